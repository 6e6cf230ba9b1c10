"""Compares our speed with a peer's and prints the medians and their ratio.

    python -m benchmarks.compare --peer=peers/bin/python [--presets=small] [--precision=bfloat16]

--peer is a Python that has benchmarks/peers/requirements.txt. Both programs stay resident and are
called in turn. The output is a JSON line per case and mode of the peer; the fastest mode counts.
Both programs get the same allocator settings, threads and precision. On CPU our program runs on one
device and on two; the faster counts, since a user can choose it (`parallel.cpu_devices`).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import presets

CASES = ("diffusion_train", "sample", "classifier_train", "classifier_inference")


CALL_SECONDS = 0.7  # about how long a call of a training case takes


# Our program makes these settings itself; the peer gets the same, so that glibc keeps large freed
# blocks for both.
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
}


class Program:
    """A resident program that runs its case on request."""

    def __init__(self, command: list[str], folder: str, threads: int, **more: str):
        environment = {**os.environ, "NPROC": str(threads), **more}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            cwd=folder,
        )
        self.facts = self._read()

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def call(self) -> float:
        """Runs one call and returns its images per second."""
        self._write("")
        return self.facts["images"] / self._read()["seconds"]

    def _write(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            self.process.communicate()
            raise SystemExit(
                f"error: {' '.join(self.process.args)}: ended with {self.process.returncode}"
            )
        return json.loads(line)


def ours(
    args: argparse.Namespace, preset: str, case: str, devices: int, steps: int, folder: str = "."
) -> Program:
    """Starts our program for a case, from the checkout in `folder`."""
    flags = (f"--preset={preset}", f"--case={case}", f"--precision={args.precision}")
    # Revisions before 0.2 called the module `ours`.
    module = "cases" if (Path(folder) / "benchmarks" / "cases.py").exists() else "ours"
    command = [sys.executable, "-m", f"benchmarks.{module}", *flags]
    command += [f"--devices={devices}", f"--steps={steps}"]
    return Program(command, folder, args.threads)


def peer(
    args: argparse.Namespace, preset: str, case: str, devices: int, mode: str, steps: int
) -> Program:
    """Starts the peer's program for a case, on as many images."""
    sizes = json.dumps(presets.for_peers(presets.preset(preset, args.precision, devices)))
    command = [args.peer, "-m", "benchmarks.peers.cases", f"--case={case}", f"--mode={mode}"]
    return Program(
        [*command, f"--steps={steps}", f"--config={sizes}"], ".", args.threads, **ALLOCATOR
    )


def steps_of_a_call(args: argparse.Namespace, preset: str, case: str, devices: int) -> int:
    """Returns how many training steps take about CALL_SECONDS; 1 for other cases."""
    if not case.endswith("train"):
        return 1
    with ours(args, preset, case, devices, 1) as trial:
        rate = max(trial.call() for _ in range(3))
        # Its calls are one dispatch each.
        batch = trial.facts["images"] // trial.facts["steps_per_dispatch"]
        return max(1, round(CALL_SECONDS * rate / batch))


def in_turn(a: Program, b: Program, rounds: int) -> dict[str, Any]:
    """Calls both in turn; returns median images per second and the ratio of a to b."""
    for program in (a, b):
        program.call()
    pairs = [(a.call(), b.call()) for _ in range(rounds)]
    ratios = sorted(x / y for x, y in pairs)
    return {
        "rates": [round(statistics.median(rate), 1) for rate in zip(*pairs, strict=True)],
        "ratio": round(statistics.median(ratios), 3),
        "ratio_low": round(ratios[len(ratios) // 4], 3),
        "ratio_high": round(ratios[-1 - len(ratios) // 4], 3),
        "rounds": rounds,
    }


def compare(
    args: argparse.Namespace, preset: str, case: str, devices: int, mode: str
) -> dict[str, Any]:
    """Returns the line of a case and a mode of the peer."""
    steps = steps_of_a_call(args, preset, case, devices)
    with (
        ours(args, preset, case, devices, steps) as a,
        peer(args, preset, case, devices, mode, steps) as b,
    ):
        size = b.facts["parameters"] / a.facts["parameters"]
        if abs(size - 1) > 0.01:
            raise SystemExit(
                f"error: {preset}, {case}: the peer has {size:.3f} times our parameters"
            )
        found = in_turn(a, b, args.rounds)
    return {
        "preset": preset,
        "case": case,
        "precision": args.precision,
        "device": a.facts["device"],
        "devices": devices,
        "mode": mode,
        "steps_per_dispatch": a.facts["steps_per_dispatch"],
        **found,
        "parameters": a.facts["parameters"],
        "parameters_of_peer": b.facts["parameters"],
        "first_call_seconds": [round(p.facts["first_call_seconds"], 1) for p in (a, b)],
    }


def main() -> None:
    """Prints a JSON line per case and mode."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--peer", required=True, help="a Python with benchmarks/peers/requirements.txt"
    )
    parser.add_argument("--presets", default="quick,small")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--modes", default="eager,compiled")
    parser.add_argument("--devices", default="1,2", help="CPU devices of ours; a GPU counts as one")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    for preset in args.presets.split(","):
        for case in args.cases.split(","):
            for devices in map(int, args.devices.split(",")):
                for mode in args.modes.split(","):
                    print(json.dumps(compare(args, preset, case, devices, mode)), flush=True)


if __name__ == "__main__":
    main()
