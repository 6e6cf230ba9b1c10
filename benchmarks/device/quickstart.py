"""Runs the quickstart with an empty compile cache, or repeats a generation of it with another one.

    python -m benchmarks.device.quickstart --workdir=DIR [--config=configs/quickstart.py]
    python -m benchmarks.device.quickstart --workdir=DIR --replay=2

The output is a JSON line per generation, or one that says whether all bits were the same. An
earlier run in the workdir is removed first. The exit code is that of `selfloop_jax.main`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfloop_jax.runtime import workdir

KEPT = ("generation", "seconds", "images_per_second", "compilations")
Line = dict[str, Any]


def program(*arguments: str) -> tuple[int, float]:
    """Runs `selfloop_jax.main` with an empty compile cache; returns exit code and seconds."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="selfloop_cache_") as cache:
        done = subprocess.run(
            [sys.executable, "-m", "selfloop_jax.main", *arguments],
            env={**os.environ, "JAX_COMPILATION_CACHE_DIR": cache},
            stdout=sys.stderr,  # standard output is for lines of JSON
        )
    return done.returncode, round(time.perf_counter() - started, 1)


def generations(folder: Path, count: int) -> Iterator[Line]:
    """Yields a line per finished generation of a run."""
    for record in workdir.records(folder, count):
        accuracy = record["metrics"]["accuracy"]["value"]
        kept = {name: record[name] for name in KEPT}
        yield {"what": "generation", **kept, "accuracy": accuracy}


def main() -> None:
    """Prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--generations", type=int, default=3)
    parser.add_argument("--replay", type=int, help="the generation to repeat")
    args = parser.parse_args()
    folder = args.workdir
    if args.replay is not None:
        code, seconds = program(f"--workdir={folder}", f"--replay={args.replay}")
        line = {"what": "replay", "generation": args.replay, "seconds": seconds}
        print(json.dumps(line | {"identical": code == 0}), flush=True)
        raise SystemExit(code)
    if (folder / "config.json").exists():
        shutil.rmtree(folder)
    count = args.generations
    overrides = (f"--config.loop.generations={count}", f"--workdir={folder}")
    code, seconds = program(f"--config={args.config}", *overrides)
    for line in generations(folder, count):
        print(json.dumps(line), flush=True)
    print(json.dumps({"what": "quickstart", "generations": count, "seconds": seconds}), flush=True)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
