"""`python -m selfloop_jax.main --config=configs/quickstart.py [--config.seed=1] [--workdir=DIR]`.

Exit codes: 0 done or identical; 1 damage, failure while running, or a replay that differs; 2 usage, config,
lock or a missing parent; 143 ended by SIGTERM with progress saved.
"""

import os
import signal
import sys
import threading
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from selfloop_jax.errors import RunError, UsageError

FLAGS = flags.FLAGS
CONFIG = config_flags.DEFINE_config_file("config", help_string="A file of configs/, perhaps with :argument.")
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; default runs/<config>.")
REPLAY = flags.DEFINE_integer("replay", None, "Recompute this generation and compare.", lower_bound=0)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print config, sizes and costs, and stop.")
ACCEPT = flags.DEFINE_bool("accept_manifest", False, "Go on although versions or devices changed.")


def main(argv: list[str]) -> int:
    """Parses flags, runs, and turns the errors a user can cause into one line and an exit code."""
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


def _parse(argv: list[str]) -> tuple[ConfigDict, Path]:
    """Config and workdir from the command line; UsageError on whatever does not fit."""
    _check_order(argv)
    try:
        rest = FLAGS(argv)[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, ImportError) as error:
        raise UsageError(str(error).strip("'\"")) from error
    if rest:
        raise UsageError(f"argument {rest[0]}: allowed are flags, --name=value")
    workdir = WORKDIR.value and Path(WORKDIR.value)
    if CONFIG.value is None:
        if REPLAY.value is None or workdir is None:
            raise UsageError("--config is missing: for example --config=configs/quickstart.py")
        return _stored_config(workdir), workdir
    config = CONFIG.value
    if not isinstance(config, ConfigDict):
        raise UsageError("--config: the file's get_config() must return a ConfigDict")
    name = Path(config_flags.get_config_filename(FLAGS["config"])).name.partition(".py")
    return config, workdir or Path("runs") / (name[0] + name[2].replace(":", "-").replace(",", "-"))


def _check_order(argv: list[str]) -> None:
    """ml_collections ignores overrides that stand before --config; here they are an error."""
    seen = False
    for argument in argv[1:]:
        name = argument.lstrip("-").partition("=")[0]
        seen = seen or name == "config"
        if name.startswith("config.") and not seen:
            raise UsageError(f"{argument}: overrides stand behind --config")


def _stored_config(workdir: Path) -> ConfigDict:
    """The config that a run was made with, as the run recorded it."""
    from selfloop_jax import config as configs
    from selfloop_jax import store

    if not (workdir / "config.json").exists():
        raise UsageError(f"--workdir={workdir}: no run there (config.json is missing)")
    config = configs.default()
    with config.unlocked():
        config.update(store.read_json(workdir / "config.json"))
    return config


def _run(config: ConfigDict, workdir: Path) -> int:
    """Fixes the environment before the first use of a backend, then runs what was asked for."""
    from selfloop_jax import config as configs
    from selfloop_jax import parallel

    configs.check(config)
    parallel.configure(config.parallel)
    stop = _listen_for_sigterm()
    from selfloop_jax import loop, plan, replay, train

    if DRY_RUN.value:
        print(plan.describe(config, workdir))
        return 0
    try:
        if REPLAY.value is not None:
            return 0 if replay.replay(config, workdir, REPLAY.value, stop) else 1
        loop.run(config, workdir, ACCEPT.value, stop)
    except train.Stopped as stopped:
        print(f"stopped at {stopped}; the same command goes on from there", file=sys.stderr)
        return 128 + signal.SIGTERM
    return 0


def _listen_for_sigterm():
    """A function that says whether SIGTERM has come."""
    event = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: event.set())
    return event.is_set


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.exit(main(sys.argv))
