"""`python -m selfloop_jax.main --config=configs/quickstart.py [--config.seed=1] [--workdir=DIR]`.

Runs the study that a config describes, or goes through one that exists:

    --config=FILE[:words]         a file of configs/, perhaps with words that choose a variant
    --config.SECTION.FIELD=VALUE  another value of a field; --dry_run lists all with their meaning
    --workdir=DIR                 the run's folder; default runs/<config>. The same command resumes
    --dry_run                     print the config, sizes and costs, and stop
    --replay=G                    recompute generation G of the workdir and compare every digest
    --accept_manifest             continue on other versions or devices, marked as not exact

Exit codes: 0 done or identical; 1 damage, failure while running, or a replay that differs; 2 usage,
config, lock or a missing parent; 143 (130) ended by SIGTERM (Ctrl-C), progress saved.
"""

import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from selfloop_jax.config import Config, typed
from selfloop_jax.config.stored import read_config
from selfloop_jax.errors import RunError, UsageError

FLAGS = flags.FLAGS


CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="A file of configs/, perhaps with :argument."
)


WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; default runs/<config>.")


REPLAY = flags.DEFINE_integer(
    "replay", None, "Recompute this generation and compare.", lower_bound=0
)


DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print config, sizes and costs, and stop.")


ACCEPT = flags.DEFINE_bool("accept_manifest", False, "Go on although versions or devices changed.")


def main(argv: list[str]) -> int:
    """Parses flags, runs, and turns the errors a user can cause into one line and an exit code."""
    if {"--help", "-h"} & set(argv):
        print(__doc__)
        return 0
    try:
        config, workdir = _parse(argv)
        return _run(config, workdir)
    except (UsageError, RunError) as error:
        return _fail(error, error.exit_code)
    except OSError as error:
        return _fail(error, 1)


def _fail(error: Exception, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _parse(argv: list[str]) -> tuple[Config, Path]:
    """Config and workdir from the command line; UsageError on whatever does not fit."""
    _check_config_flags(argv)
    try:
        rest = FLAGS(argv)[1:]
    except (AttributeError, KeyError) as error:
        raise UsageError(_unknown_field(str(error.args[0]), argv)) from error
    except (flags.Error, TypeError, ValueError, OSError, ImportError, SyntaxError) as error:
        raise UsageError(str(error)) from error
    if rest:
        raise UsageError(f"argument {rest[0]}: allowed are flags, --name=value")
    workdir = Path(WORKDIR.value) if WORKDIR.value else None
    if CONFIG.value is None:
        if REPLAY.value is None or workdir is None:
            raise UsageError("--config is missing: for example --config=configs/quickstart.py")
        return read_config(workdir), workdir
    config = typed(CONFIG.value)
    name = Path(config_flags.get_config_filename(FLAGS["config"])).name.partition(".py")
    return config, workdir or Path("runs") / (name[0] + name[2].replace(":", "-").replace(",", "-"))


def _check_config_flags(argv: list[str]) -> None:
    """Overrides before --config would be ignored, a missing file would read as no config: errors here."""
    seen = False
    for argument in argv[1:]:
        name, _, value = argument.lstrip("-").partition("=")
        if name == "config":
            seen = True
            path = value.partition(":")[0]
            if value and not Path(path).is_file():
                raise UsageError(
                    f"--config={value}: allowed are files, for example configs/quickstart.py"
                )
        elif name.startswith("config.") and not seen:
            raise UsageError(f"{argument}: allowed are overrides behind --config")


def _unknown_field(message: str, argv: list[str]) -> str:
    """ml_collections names the last part of an unknown field; this names the whole override."""
    names = re.findall(r"""['"](\w+)""", message)
    fields = [argument.lstrip("-").partition("=")[0] for argument in argv[1:]]
    field = next((f for f in fields if names and names[0] in f.split(".")[1:]), "--config")
    close = [name for name in names if name != names[0]]
    hint = f"did you mean {close[0]}?" if close else "--dry_run lists the allowed ones"
    return f"{field.removeprefix('config.')}: unknown field; {hint}"


def _run(config: Config, workdir: Path) -> int:
    """Fixes the environment before the first use of a backend, then runs what was asked for."""
    from selfloop_jax import config as configs
    from selfloop_jax.runtime import environment, multihost

    configs.check(config)
    parallel = config.parallel
    environment.configure(parallel.nproc, parallel.cpu_devices, parallel.deterministic)
    multihost.connect(parallel.processes)
    stop = _Stop().listen()
    from selfloop_jax.loop import replay, runner
    from selfloop_jax.studies import study_of
    from selfloop_jax.training import fit

    study = study_of(config.study)
    if DRY_RUN.value:
        study.check(config)
        print(_dry_run(config, workdir, study.dry_run(config)))
        return 0
    try:
        if REPLAY.value is not None:
            same = replay.replay(study, config, workdir, REPLAY.value, stop.is_set)
            return 0 if same else 1
        runner.run(study, config, workdir, ACCEPT.value, stop.is_set)
    except fit.Preempted as stopped:
        print(f"stopped at {stopped}; the same command resumes", file=sys.stderr)
        # No signal of its own: another process of the run was told to stop.
        return 128 + (stop.signal or signal.SIGTERM)
    return 0


def _dry_run(config: Config, workdir: Path, lines: list[str]) -> str:
    """What --dry_run prints: every field, the devices, and what the study says of its costs."""
    from selfloop_jax import config as configs
    from selfloop_jax.runtime import environment, parallel

    kind = environment.device_info()["device_kind"]
    devices = f"devices: {parallel.device_count()} x {kind}"
    return "\n".join([configs.describe(config), "", f"workdir: {workdir}", devices, *lines])


class _Stop(threading.Event):
    """Set by SIGTERM or Ctrl-C; a second signal ends the process at once."""

    signal = 0

    def listen(self) -> "_Stop":
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, _frame: object) -> None:
        self.signal = number
        self.set()
        signal.signal(number, signal.SIG_DFL)


def program(arguments: Sequence[str] | None = None) -> int:
    """`main` as a program of its own; of several processes a failed one does not wait for others."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # what Orbax logs is raised, in one line
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    argv = [sys.argv[0], *(sys.argv[1:] if arguments is None else arguments)]
    code = main(argv)
    if code in (1, 2) and "selfloop_jax.runtime.multihost" in sys.modules:
        sys.modules["selfloop_jax.runtime.multihost"].abort(code)
    return code


if __name__ == "__main__":
    sys.exit(program())
