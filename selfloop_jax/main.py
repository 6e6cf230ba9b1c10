"""`python -m selfloop_jax.main --config=configs/quickstart.py [--config.seed=1] [--workdir=DIR]`.

Runs the study that a config describes, or recomputes a generation of an existing run:

    --config=FILE[:words]         a file of configs/, perhaps with words that choose a variant
    --config.SECTION.FIELD=VALUE  another value of a field; --dry_run lists all with their meaning;
                                  of a flag that is given twice the last value counts
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

from selfloop_jax.config import Config, check_override, local_path, share_folder, typed
from selfloop_jax.config.stored import read_config
from selfloop_jax.errors import UsageError
from selfloop_jax.runtime.cli import import_jax, one_line_errors


@one_line_errors
def main(argv: list[str]) -> int:
    """Parses flags and runs; returns the exit code."""
    # Before absl sees it: its help lists the flags of every imported module.
    if {"--help", "-h"} & set(argv):
        print(__doc__)
        return 0
    options = _options(argv)
    config, workdir = _config_and_workdir(options)
    return _run(config, workdir, options)


def parse_config(argv: list[str]) -> Config:
    """The config that a command line describes; UsageError where it, or the config, is refused."""
    from selfloop_jax import config as configs

    config, _ = _config_and_workdir(_options(argv))
    configs.check(config)
    return config


def _options(argv: list[str]) -> flags.FlagValues:
    """The flags that `argv` gives; UsageError on whatever does not fit.

    They are defined anew at each call, since every override of a config defines a flag of its own.
    """
    _check_config_flags(argv)
    options = flags.FlagValues()
    try:
        config_flags.DEFINE_config_file("config", flag_values=options, sys_argv=argv)
        flags.DEFINE_string("workdir", None, "", flag_values=options)
        flags.DEFINE_integer("replay", None, "", lower_bound=0, flag_values=options)
        flags.DEFINE_bool("dry_run", False, "", flag_values=options)
        flags.DEFINE_bool("accept_manifest", False, "", flag_values=options)
        rest = options(argv)[1:]
    except (AttributeError, KeyError) as error:
        raise UsageError(_unknown_field(str(error.args[0]), argv)) from error
    except (flags.Error, TypeError, ValueError, OSError, ImportError, SyntaxError) as error:
        raise UsageError(str(error)) from error
    if rest:
        raise UsageError(f"argument {rest[0]}: must be a flag, --name=value")
    _check_contradictions(options)
    return options


def _check_contradictions(options: flags.FlagValues) -> None:
    """Refuses flags of which one would be ignored."""
    modes = [("--dry_run", options.dry_run), ("--replay", options.replay is not None)]
    # Of these flags, in this order, the first makes the program ignore the others.
    given = [name for name, on in [*modes, ("--accept_manifest", options.accept_manifest)] if on]
    if len(given) > 1:
        raise UsageError(f"{given[1]}: must be left out with {given[0]}")


def _config_and_workdir(options: flags.FlagValues) -> tuple[Config, Path]:
    """The config that the flags describe, or a replay finds in the workdir; and the workdir."""
    workdir = local_path("--workdir", options.workdir) if options.workdir else None
    if options.config is None:
        if options.replay is None or workdir is None:
            raise UsageError("--config: missing; must be a file, for example configs/quickstart.py")
        return read_config(workdir), workdir
    file, _, words = Path(config_flags.get_config_filename(options["config"])).name.partition(".py")
    # Variants of one config get folders of their own, in characters that every system allows.
    name = file + words.replace(":", "-").replace(",", "-")
    return typed(options.config), workdir or Path("runs") / name


def _check_config_flags(argv: list[str]) -> None:
    """Refuses a missing config file, and overrides before --config: they would be ignored."""
    seen = False
    for argument, following in zip(argv[1:], [*argv[2:], ""], strict=True):
        name, _, value = argument.lstrip("-").partition("=")
        if name == "config":
            seen = True
            value = value or following  # --config FILE
            path = value.partition(":")[0]
            if not Path(path).is_file():
                raise UsageError(
                    f"--config={value}: must be a file, for example configs/quickstart.py"
                )
            share_folder(Path(path))
        elif name.startswith("config.") and not seen:
            raise UsageError(f"{argument}: must come after --config")
        elif name.startswith("config."):
            check_override(name.removeprefix("config."), value)


def _unknown_field(message: str, argv: list[str]) -> str:
    """ml_collections names the last part of an unknown field; this names the whole override."""
    names = re.findall(r"""['"](\w+)""", message)
    fields = [argument.lstrip("-").partition("=")[0] for argument in argv[1:]]
    field = next((f for f in fields if names and names[0] in f.split(".")[1:]), "--config")
    close = [name for name in names if name != names[0]]
    hint = f"did you mean {close[0]}?" if close else "--dry_run lists all fields"
    return f"{field.removeprefix('config.')}: unknown field; {hint}"


def _given(options: flags.FlagValues) -> list[str]:
    """Dotted names of the fields that the command line sets."""
    names = [name for name in options if name.startswith("config.")]
    return [name.removeprefix("config.") for name in names if options[name].present]


def _run(config: Config, workdir: Path, options: flags.FlagValues) -> int:
    """Fixes the environment before the first use of a backend, then runs what was asked for."""
    import_jax()
    from selfloop_jax import config as configs
    from selfloop_jax.runtime import environment, multihost, parallel

    configs.check(config)
    environment.configure(**configs.environment(config))
    multihost.connect(config.parallel.processes)
    parallel.meet()
    stop = _Stop().listen()
    # Imported here: they need jax, whose environment is set by now.
    from selfloop_jax.loop import replay, runner
    from selfloop_jax.studies import study_of
    from selfloop_jax.training import fit

    study = study_of(config.study)
    if options.replay is None and not (workdir / "config.json").exists():
        study.check_given(config, _given(options))
    if options.dry_run:
        study.check(config)
        print(_dry_run(config, workdir, study.dry_run(config)))
        return 0
    try:
        if options.replay is not None:
            same = replay.replay(study, config, workdir, options.replay, stop.is_set)
            return 0 if same else 1
        runner.run(study, config, workdir, options.accept_manifest, stop.is_set)
    # Progress is on disk, so a run that was asked to end has not failed.
    except fit.Preempted as stopped:
        print(f"stopped at {stopped}; the same command resumes", file=sys.stderr)
        # Without a signal of its own, another process of the run got one.
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
        # The second signal finds the system's own handler, which ends the process.
        signal.signal(number, signal.SIG_DFL)


def program(arguments: Sequence[str] | None = None) -> int:
    """Runs `main` as a program; a process that failed does not wait for the others."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # what Orbax logs is raised, in one line
    # XLA's own warnings would hide the one line of an error.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    argv = [sys.argv[0], *(sys.argv[1:] if arguments is None else arguments)]
    code = main(argv)
    if code in (1, 2) and "selfloop_jax.runtime.multihost" in sys.modules:
        sys.modules["selfloop_jax.runtime.multihost"].abort(code)
    return code


if __name__ == "__main__":
    sys.exit(program())
