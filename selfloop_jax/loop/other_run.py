"""Another run that a config names: in `loop.branch_from`, or in `loop.control_of`."""

from pathlib import Path

from selfloop_jax.config import Config
from selfloop_jax.config.stored import check_same_config
from selfloop_jax.runtime.workdir import check_version

# Fields in which the two runs may differ, by how their names begin: they say nothing of what a
# generation computes.
MAY_DIFFER = ("loop.generations", "loop.branch_from", "loop.control", "verdict.", "checkpoint.")


def check(config: Config, source: Path, field: str, may_differ: tuple[str, ...] = ()) -> None:
    """Raises UsageError where the run in `source` is of an earlier version or of another study.

    field: the config field that names `source`. may_differ: further fields that are free, by how
    their names begin.
    """
    # Before the fields: those of version 0.1 had other names.
    check_version(source, f"{field} = {source}")
    check_same_config(config.to_dict(), source, field, (*MAY_DIFFER, *may_differ))
