"""`python -m selfloop_jax.sweep CONFIG [--lists=sweep,response] [--out=DIR] [--jobs=2]`: many runs.

The config file has, beside `get_config`, functions that list runs: `sweep(out)` yields stages, each a list of
(name, argument, overrides), the overrides by dotted field. Every run is a process of its own in DIR/<name>,
so that the same command goes on where it was stopped. A run that fails is told, and the others go on.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from selfloop_jax import store
from selfloop_jax.errors import UsageError

Stage = list[tuple[str, str, dict[str, Any]]]


class _Parser(argparse.ArgumentParser):
    """Mistakes leave as `UsageError`, so that they end in one line like all others."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; usage: CONFIG.py [--lists=sweep] [--out=DIR] [--jobs=2]")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs every run of the config's lists; 0 if all are complete, 1 if one failed, 2 on a usage mistake."""
    parser = _Parser(prog="python -m selfloop_jax.sweep", description=__doc__, allow_abbrev=False)
    parser.add_argument("config", type=Path)
    parser.add_argument("--lists", default="sweep", help="functions of the config, with commas between")
    parser.add_argument("--out", type=Path, default=None, help="default: runs/<config>")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    try:
        args = parser.parse_args(argv)
        if args.jobs < 1:
            raise UsageError(f"--jobs={args.jobs}: allowed are numbers from 1")
        out = args.out or Path("runs") / args.config.stem
        every = [stage for name in args.lists.split(",") for stage in stages(args.config, name, out)]
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0 if run(args.config, every, out, args.jobs) else 1


def stages(config: Path, name: str, out: Path) -> Iterator[Stage]:
    """The stages that function `name` of a config file lists."""
    if not config.is_file():
        raise UsageError(f"{config}: no such file")
    function = getattr(_module(config), name, None)
    if function is None:
        raise UsageError(f"--lists={name}: allowed are functions of {config} that list runs")
    return function(out)


def _module(config: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(config.stem, config)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(config: Path, stages: Sequence[Stage], out: Path, jobs: int) -> bool:
    """Makes all runs, `jobs` at a time and stage after stage; whether all of them ended well."""
    started, ended, left = time.perf_counter(), [], sum(map(len, stages))
    for stage in stages:
        with ThreadPoolExecutor(jobs) as pool:
            for name, code, seconds in pool.map(lambda one: _one(config, out, *one), stage):
                left -= 1
                if seconds is None:
                    continue
                ended.append((name, code))
                minutes = (time.perf_counter() - started) / len(ended) * left / 60
                how = f"failed with exit code {code}" if code else "done"
                _say(f"{name}: {how}, {seconds:.0f} s; {left} runs and about {minutes:.0f} min left")
    failed = [name for name, code in ended if code]
    for name in failed:
        _say(f"failed: {name}: {_last_line(out / f'{name}.log')}")
    return not failed


def _one(config: Path, out: Path, name: str, argument: str, overrides: dict) -> tuple[str, int, float | None]:
    """One run to its end: (name, exit code, seconds), None where it was complete already."""
    workdir = out / name
    flags = [f"--config.{field}={value}" for field, value in overrides.items()]
    if _complete(workdir):
        return name, 0, None
    command = [sys.executable, "-m", "selfloop_jax.main", f"--config={config}:{argument}", *flags]
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with open(out / f"{name}.log", "a") as log:
        ended = subprocess.run(
            [*command, f"--workdir={workdir}", "--config.report.enabled=False"],
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    return name, ended.returncode, time.perf_counter() - started


def _complete(workdir: Path) -> bool:
    """Whether a run has all generations that its config asks for."""
    if not (workdir / "config.json").exists():
        return False
    wanted = store.read_json(workdir / "config.json")["loop"]["generations"]
    return (store.generation_dir(workdir, wanted - 1) / "record.json").exists()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _last_line(path: Path) -> str:
    return path.read_text(errors="replace").strip().splitlines()[-1]


if __name__ == "__main__":
    sys.exit(main())
