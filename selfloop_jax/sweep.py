"""`python -m selfloop_jax.sweep CONFIG [--lists=sweep,response] [--out=DIR] [--jobs=2]`: many runs.

Besides `get_config` the config file has functions that list runs: `sweep(out)` yields stages, each
a list of (name, argument, overrides), with overrides by dotted field. Every run is a process of its
own in DIR/<name>, so the same command resumes. A run that fails is reported, and the others
continue. DIR/listed_runs.json has the names of all runs by list, so that a report of some of them
can say which are missing. `--config.FIELD=VALUE` holds for all runs, for example where your data
lie.
"""

import hashlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from selfloop_jax.analysis import listed_runs
from selfloop_jax.config import local_path, run_file, typed
from selfloop_jax.config.command_line import parse_config
from selfloop_jax.errors import RunError, UsageError
from selfloop_jax.runtime import store
from selfloop_jax.runtime.cli import Parser, one_line_errors

Stage = list[tuple[str, str, dict[str, Any]]]
RESERVED = ("listed_runs",)  # whose .json is a file of the sweep


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Makes the runs of the lists; 0 if all are complete, 1 if one failed, 2 on a usage mistake."""
    usage = "CONFIG.py [--lists=sweep] [--out=DIR] [--jobs=2] [--config.FIELD=VALUE]"
    parser = Parser("sweep", usage, __doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument(
        "--lists", default="sweep", help="functions of the config, with commas between"
    )
    parser.add_argument("--out", help="default: runs/<config>")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    args, others = parser.parse_known_args(argv)
    for flag in others:
        if not re.fullmatch(r"--config\.[\w.]+=.*", flag, re.DOTALL):
            parser.error(f"unrecognized argument: {flag}")
    if args.jobs < 1:
        raise UsageError(f"--jobs={args.jobs}: must be > 0")
    out = local_path("--out", args.out) if args.out else Path("runs") / args.config.stem
    lists = {name: stages(args.config, name, out) for name in args.lists.split(",")}
    every = list(itertools.chain(*lists.values()))
    _check_names(every)
    names = {key: [one[0] for one in itertools.chain(*value)] for key, value in lists.items()}
    digests = _digests(
        args.config, {argument for _, argument, _ in itertools.chain(*every)}, others
    )
    _check_no_list_sets(others, itertools.chain(*every))
    for name, argument, overrides in itertools.chain(*every):
        _check_run(args.config, name, _flags(argument, overrides, args.config, others))
    listed_runs.write(out, names)
    succeeded = run(args.config, digests, every, out, args.jobs, others)
    if _stopped.is_set():
        return 128 + signal.SIGTERM
    return 0 if succeeded else 1


def stages(config: Path, name: str, out: Path) -> list[Stage]:
    """The stages that function `name` of a config file lists."""
    if not config.is_file():
        raise UsageError(f"{config}: no such file")
    try:
        listed = [list(stage) for stage in getattr(run_file("CONFIG", config), name)(out)]
        for run in itertools.chain(*listed):
            if len(run) != 3 or tuple(map(type, run)) != (str, str, dict):
                raise TypeError(f"runs must be (name, argument, overrides), not {run!r:.80}")
        if not any(listed):
            raise ValueError("it lists none")
    except Exception as error:  # whatever a file of the user's can raise
        why = f"{type(error).__name__}: {error}"
        raise UsageError(
            f"--lists={name}: must be a function of {config} that lists runs ({why})"
        ) from error
    return listed


def _check_names(every: Sequence[Stage]) -> None:
    """Raises UsageError for a name that is no folder of its own inside of --out."""
    taken: dict[str, tuple] = {}
    for stage in every:
        in_stage = [run[0] for run in stage]
        for run in stage:
            name = run[0]
            parts = name.split("/")
            plain = all(part.strip(". ") and part.isprintable() for part in parts)
            if not plain or name.endswith((".json", ".log")) or name in RESERVED:
                raise UsageError(
                    f"run {name!a}: must be a name that can be a folder inside of --out, and not "
                    "end in .json or .log"
                )
            if taken.setdefault(name, run) != run or in_stage.count(name) > 1:
                raise UsageError(f"run {name}: must be listed once; two runs have this name")
    for name in taken:
        above = next((one for one in taken if name.startswith(f"{one}/")), None)
        if above is not None:
            raise UsageError(f"run {name}: must not lie inside of the folder of run {above}")


def _check_run(config: Path, name: str, flags: Sequence[str]) -> None:
    """Raises UsageError, naming the run, where its config is refused; before any run starts."""
    try:
        parse_config([f"run {name}", *flags])
    except UsageError as error:
        raise UsageError(f"run {name} of {config}: {error}") from error


def _flags(argument: str, overrides: dict, config: Path, flags: Sequence[str]) -> list[str]:
    """What a run's program gets, but for the workdir."""
    own = [f"--config.{field}={value}" for field, value in overrides.items()]
    return [f"--config={config}:{argument}", *own, *flags]


def _check_no_list_sets(flags: Sequence[str], runs: Iterable[tuple]) -> None:
    """Raises UsageError for a flag whose field a list sets: one of the two would be ignored."""
    fields = {_field(flag): flag for flag in flags}
    for name, _, overrides in runs:
        for field in fields.keys() & overrides.keys():
            raise UsageError(f"{fields[field]}: must not be a field that run {name} sets itself")


def _field(flag: str) -> str:
    """The field of a flag --config.FIELD=VALUE."""
    return flag.removeprefix("--config.").partition("=")[0]


def run(
    config: Path,
    digests: dict[str, str],
    stages: Sequence[Stage],
    out: Path,
    jobs: int,
    flags: Sequence[str] = (),
) -> bool:
    """Makes all runs, `jobs` at a time and stage after stage; whether all of them succeeded.

    digests: of the config by argument, see `_digests`; flags: of the command, for every run.
    """
    started = time.perf_counter()
    ended: list[tuple[str, int]] = []
    left = sum(map(len, stages))
    for stage in stages:
        # A stage may branch from runs of the stage before, so all of those end first.
        with ThreadPoolExecutor(jobs) as pool:
            for name, code, seconds in pool.map(
                lambda one: _one(config, digests[one[1]], out, flags, *one), stage
            ):
                left -= 1
                if seconds is None:
                    continue
                ended.append((name, code))
                # Time per ended run, whatever ran in parallel, times the runs left.
                minutes = (time.perf_counter() - started) / len(ended) * left / 60
                how = f"failed with exit code {code}" if code else "done"
                _say(
                    f"{name}: {how}, {seconds:.0f} s; {left} runs and about {minutes:.0f} min left"
                )
    if _stopped.is_set():
        _say("stopped; the same command resumes")
        return False
    failed = [name for name, code in ended if code]
    for name in failed:
        _say(f"failed: {name}: {_last_line(out / f'{name}.log')}")
    return not failed


def _digests(config: Path, arguments: set[str], flags: Sequence[str]) -> dict[str, str]:
    """sha256 by argument of what `get_config` gives.

    UsageError where it gives no config, or one without the field of a flag, or where arguments
    differ in that field: the flag would make one run of two.

    Of all its fields, not of the file: a file may take half of its fields from another one.
    """
    digests = {}
    values: dict[str, set[str]] = {}  # of the fields of the flags
    module = run_file("CONFIG", config)
    for argument in arguments:
        try:
            fields = typed(module.get_config(argument)).to_dict()
        except UsageError:
            raise
        except Exception as error:  # whatever a file of the user's can raise
            why = f"{type(error).__name__}: {error}"
            raise UsageError(
                f"{config}:{argument}: get_config must return a config ({why})"
            ) from error
        for flag in flags:
            if _field(flag) not in store.flatten(fields):
                raise UsageError(f"{flag}: must be a field of {config}:{argument}")
            values.setdefault(flag, set()).add(str(store.flatten(fields)[_field(flag)]))
        text = json.dumps(fields, sort_keys=True)
        digests[argument] = hashlib.sha256(text.encode()).hexdigest()
    for flag, different in values.items():
        if len(different) > 1:
            named = " and ".join(sorted(different))
            raise UsageError(f"{flag}: must not be a field in which listed runs differ: {named}")
    return digests


def _one(
    config: Path,
    digest: str,
    out: Path,
    flags: Sequence[str],
    name: str,
    argument: str,
    overrides: dict,
) -> tuple[str, int, float | None]:
    """One run to its end: (name, exit code, seconds), None where it was complete already."""
    command = ["-m", "selfloop_jax.main", *_flags(argument, overrides, config, flags)]
    made_with = {"command": command, "config": digest}
    done = out / f"{name}.json"  # what a complete run was made with
    # With another command or config it is another run, which is not complete.
    if _read(done) == made_with:
        return name, 0, None
    done.parent.mkdir(parents=True, exist_ok=True)  # a name can have folders in it
    started = time.perf_counter()
    with open(out / f"{name}.log", "a") as log:
        # Without reports of single runs: one of all runs together is made afterwards.
        code = _wait(
            [sys.executable, *command, f"--workdir={out / name}", "--config.report.enabled=False"],
            log,
        )
    if not code:
        store.write_json(done, made_with)
    return name, code, time.perf_counter() - started


def _read(path: Path) -> Any:
    """What a file of JSON holds; None where it is missing or damaged."""
    try:
        return store.read_json(path)
    except RunError:
        return None  # the run itself then finds what it has done


_running: set[subprocess.Popen] = set()
_stopped = threading.Event()


def _wait(command: list[str], log: Any) -> int:
    """The exit code of a process; none starts once the sweep has to end."""
    if _stopped.is_set():
        return 128 + signal.SIGTERM
    # Unbuffered, so that the log is current while the process runs.
    process = subprocess.Popen(
        command, stdout=log, stderr=log, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    _running.add(process)
    # A signal since the first line has not seen this process.
    if _stopped.is_set():
        process.terminate()
    code = process.wait()
    _running.discard(process)
    return code


def _stop(number: int, _frame: object) -> None:
    """SIGTERM or Ctrl-C: running runs save and end; the same command resumes them."""
    _stopped.set()
    # A copy: other threads remove processes from the set meanwhile.
    for process in list(_running):
        process.terminate()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "its log is empty"


def program(argv: Sequence[str] | None = None) -> int:
    """Runs `main` as a program: SIGTERM and Ctrl-C let the runs under way save first."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    return main(argv)


if __name__ == "__main__":
    sys.exit(program())
