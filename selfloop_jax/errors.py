"""The two errors that end a run: `main` prints one line and exits with the class's code."""


class UsageError(Exception):
    """A mistake of the user: the message names the field, its value and the rule."""

    exit_code = 2


class RunError(Exception):
    """Damage on disk or a failure while running: the message names the artifact or the phase."""

    exit_code = 1
