"""Compares the speed of this revision with that of another one, called in turn.

    git worktree add ../before <commit>
    python -m benchmarks.revisions --before=../before [--presets=quick,small] [--devices=2]

The output is a JSON line per case; `rates` are those of this revision and of the other one.
"""

import argparse
import json
import os
import subprocess

from benchmarks import compare


def commit(folder: str) -> str:
    """Returns the short commit hash of a checkout."""
    command = ["git", "-C", folder, "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Prints a JSON line per case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", required=True, help="a checkout of the other revision")
    parser.add_argument("--presets", default="quick,small")
    parser.add_argument("--cases", default=",".join(compare.CASES))
    parser.add_argument("--devices", type=int, default=2, help="CPU devices")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    for preset in args.presets.split(","):
        for case in args.cases.split(","):
            steps = compare.steps_of_a_call(args, preset, case, args.devices)
            now, before = (
                compare.ours(args, preset, case, args.devices, steps, folder)
                for folder in (".", args.before)
            )
            with now, before:
                found = compare.in_turn(now, before, args.rounds)
            line = {
                "before": commit(args.before),
                "preset": preset,
                "case": case,
                "precision": args.precision,
            }
            line |= {"device": now.facts["device"], "devices": args.devices}
            print(json.dumps(line | found), flush=True)


if __name__ == "__main__":
    main()
