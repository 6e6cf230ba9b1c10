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
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from selfloop_jax import config as configs
from selfloop_jax.config import Config, command_line
from selfloop_jax.runtime.cli import one_line_errors


@one_line_errors
def main(argv: list[str]) -> int:
    """Parses flags and runs; returns the exit code."""
    # Before absl sees it: its help lists the flags of every imported module.
    if {"--help", "-h"} & set(argv):
        print(__doc__)
        return 0
    options = command_line.parse_flags(argv)
    config, workdir = command_line.config_and_workdir(options)
    return _run(config, workdir, options)


def _run(config: Config, workdir: Path, options: flags.FlagValues) -> int:
    """Fixes the environment before the first use of a backend, then runs what was asked for."""
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
        study.check_given(config, command_line.given(options))
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
