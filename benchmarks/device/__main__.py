"""Measures a GPU within minutes: each part is a program with a limit, the most important first.

    python -m benchmarks.device [--parts=facts,hard] [--seconds=540] [--out=FOLDER] [--peer=PYTHON]
    python -m benchmarks.device --dry            # everything on the CPU and shrunk, for a trial

Every result is a JSON line, printed and appended to FOLDER/lines.jsonl; FOLDER/log.txt has what
programs print otherwise. A program that failed, that ran out of its limit, or for which no time is
left is a line too. What does not fit into one call fits into the next one: --parts names its parts,
and the compile cache stays. `benchmarks.tables` reads lines.jsonl.

  facts       versions, memory, rates of matrix products and copies
  quickstart  three generations with an empty compile cache
  replay      generation 2 of them again: whether all bits are the same
  cases       speed and memory of the presets, `benchmarks.speed`
  free        the same without deterministic operations, and single operations
  hard        the U-Net of Hard ImageNet: memory and speed by batch
  ops         single operations
  peers       PyTorch, called in turn, `benchmarks.compare`; needs --peer
  loop        time outside compiled programs, `benchmarks.loop`
  profile     kinds of work, `benchmarks.profile`
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

NAMES = (
    *("facts", "quickstart", "replay", "cases", "free", "hard", "ops"),
    *("peers", "loop", "profile"),
)
LEAST = 10.0  # seconds that are left for a program to be started at all
DRY = {
    "JAX_PLATFORMS": "cpu",
    # LLVM's later passes take longer than a dry run saves by them.
    "XLA_FLAGS": "--xla_backend_optimization_level=1",
}
# JAX's allocator would take nearly all memory, and PyTorch needs some of it.
SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


@dataclass(frozen=True)
class Step:
    """A program of a part: a module with its arguments, and the seconds that it may take."""

    part: str
    arguments: tuple[str, ...]
    limit: float
    environment: Mapping[str, str] = field(default_factory=dict)


def steps(folder: Path, peer: str | None) -> Iterator[Step]:
    """Yields what is run on a GPU, in its order."""
    workdir = f"--workdir={folder / 'quickstart'}"
    speed = ("benchmarks.speed", "--devices=1", "--rounds=5")
    cifar = (*speed, "--presets=cifar", "--precision=bfloat16")
    yield Step("facts", ("benchmarks.device.facts",), 60)
    yield Step("quickstart", ("benchmarks.device.quickstart", workdir), 200)
    yield Step("replay", ("benchmarks.device.quickstart", workdir, "--replay=2"), 150)
    yield Step("cases", cifar, 240)
    trained = (*cifar, "--cases=diffusion_train,classifier_train")
    yield Step("free", (*trained, "--no-deterministic"), 150)
    yield Step("free", ("benchmarks.device.ops", "--no-deterministic"), 60)
    yield Step("hard", ("benchmarks.device.hard",), 400)
    yield Step("ops", ("benchmarks.device.ops",), 60)
    if peer:
        compare = ("benchmarks.compare", f"--peer={peer}", "--devices=1", "--modes=compiled")
        compared = (*compare, "--presets=cifar", "--precision=bfloat16", "--rounds=7")
        yield Step("peers", compared, 400, SHARED)
    yield Step("loop", ("benchmarks.loop",), 120)
    yield Step("profile", ("benchmarks.profile",), 120)
    for precision in ("bfloat16", "float32"):
        for preset in ("small", "quick", "cifar"):
            if (preset, precision) != ("cifar", "bfloat16"):
                settings = (f"--presets={preset}", f"--precision={precision}")
                yield Step("cases", (*speed, *settings), 240)


def dry_steps(folder: Path, peer: str | None) -> Iterator[Step]:
    """Yields the same programs on the CPU, with little to do each."""
    workdir = f"--workdir={folder / 'quickstart'}"
    tiny = "--config=configs/quickstart.py:tiny"
    speed = ("benchmarks.speed", "--devices=1", "--rounds=1", "--presets=quick")
    hard = ("benchmarks.device.hard", "--config=hardimagenet.py:tiny", "--batches=4", "--rounds=1")
    for part, arguments in (
        ("facts", ("benchmarks.device.facts",)),
        ("quickstart", ("benchmarks.device.quickstart", workdir, tiny)),
        ("replay", ("benchmarks.device.quickstart", workdir, "--replay=2")),
        ("cases", speed),
        ("free", (*speed, "--cases=classifier_train", "--no-deterministic")),
        ("free", ("benchmarks.device.ops", "--no-deterministic", "--rounds=1")),
        ("hard", hard),
        ("ops", ("benchmarks.device.ops", "--rounds=1")),
        ("loop", ("benchmarks.loop", tiny, "--generations=2")),
        ("profile", ("benchmarks.profile", tiny, "--shorter=1")),
    ):
        yield Step(part, arguments, 900, DRY)
    if peer:
        compare = ("benchmarks.compare", f"--peer={peer}", "--devices=1", "--modes=eager")
        compared = (*compare, "--presets=quick", "--rounds=1")
        yield Step("peers", compared, 900, DRY)


class Runner:
    """Runs steps one after the other until a deadline; every line goes to a file as well."""

    def __init__(self, folder: Path, seconds: float):
        folder.mkdir(parents=True, exist_ok=True)
        self._deadline = time.monotonic() + seconds
        self._lines = folder / "lines.jsonl"
        self._log = folder / "log.txt"

    def say(self, line: dict[str, Any]) -> None:
        """Prints a line and keeps it."""
        text = json.dumps(line)
        print(text, flush=True)
        with self._lines.open("a") as file:
            print(text, file=file)

    def run(self, step: Step) -> None:
        """Runs a step to its end, its limit or the deadline."""
        left = self._deadline - time.monotonic()
        named = {"part": step.part, "command": " ".join(step.arguments)}
        if left < LEAST:
            self.say(named | {"skipped": f"{max(left, 0):.0f} s left"})
            return
        started = time.monotonic()
        limit = min(step.limit, left)
        with self._log.open("a") as log:
            print(f"--- {named['command']}", file=log, flush=True)
            code = self._watched(step, limit, log)
        seconds = time.monotonic() - started
        end = {"seconds": round(seconds, 1), "limit": round(limit), "exit_code": code}
        if code:
            late = seconds >= limit
            end["problem"] = "ran out of its limit" if late else "failed: see log.txt"
        self.say(named | end)

    def _watched(self, step: Step, limit: float, log: TextIO) -> int:
        """Runs a program and reads its lines; returns its exit code. Nothing of it stays."""
        process = subprocess.Popen(
            [sys.executable, "-m", *step.arguments],
            env={**os.environ, **step.environment},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            errors="replace",
            start_new_session=True,  # a group of its own, which ends as a whole
        )
        timer = threading.Timer(limit, _kill, (process,))
        timer.start()
        try:
            with process.stdout as output:
                for text in output:
                    self._take(text, step.part, log)
            # Not collected yet, so that no other process gets its number before `_kill`.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        finally:
            timer.cancel()
            timer.join()
            _kill(process)
            process.wait()
        return process.returncode

    def _take(self, text: str, part: str, log: TextIO) -> None:
        """Keeps a line of a program: an object of JSON as a result, anything else in the log."""
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if isinstance(line, dict):
            self.say({"part": part} | line)
        else:
            print(text, end="", file=log, flush=True)


def _stop(number: int, _frame: object) -> None:
    """Ends this program by an exception, on which `Runner.run` ends the one that it started."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def _kill(process: subprocess.Popen) -> None:
    """Ends a program with all that it has started; `process` has not been collected yet."""
    os.killpg(process.pid, signal.SIGKILL)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the parts that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(NAMES))
    parser.add_argument("--seconds", type=float, help="of all; default: 540, 3600 with --dry")
    parser.add_argument("--out", type=Path, default=Path("runs/device"), metavar="FOLDER")
    parser.add_argument("--peer", help="a Python with benchmarks/peers/requirements.txt")
    parser.add_argument("--dry", action="store_true", help="on the CPU and shrunk")
    args = parser.parse_args(argv)
    asked = args.parts.split(",")
    if unknown := set(asked) - set(NAMES):
        parser.error(f"--parts={args.parts}: {sorted(unknown)[0]} is none of {', '.join(NAMES)}")
    signal.signal(signal.SIGTERM, _stop)
    whole = 3600 if args.dry else 540
    runner = Runner(args.out, whole if args.seconds is None else args.seconds)
    if "peers" in asked and not args.peer:
        runner.say({"part": "peers", "skipped": "--peer is not given"})
    for step in (dry_steps if args.dry else steps)(args.out, args.peer):
        if step.part in asked:
            runner.run(step)


if __name__ == "__main__":
    main()
