"""How much of a run's time passes outside its compiled programs, generation by generation and phase by phase.

    python -m benchmarks.loop [--config=configs/quickstart.py] [--generations=3]

A thread waits for what the programs give, in the order of their calls: one computes from its call,
or from the end of the one before it, until its result is there. The loop itself runs as always,
host work behind programs included. The compilations of generation 0 count as computing, and so does
what prediction and drawing do around their programs. A JSON line per generation.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from benchmarks import presets
from selfloop_jax import config as configs
from selfloop_jax.loop import context, runner
from selfloop_jax.measure import fidelity
from selfloop_jax.runtime import environment, store


class Clock:
    """Seconds in which one of the wrapped programs was computing."""

    def __init__(self) -> None:
        self._seconds, self._end = 0.0, 0.0
        self._watch = ThreadPoolExecutor(1)

    @property
    def seconds(self) -> float:
        """Until now, once all that was called is done."""
        self._watch.submit(lambda: None).result()
        return self._seconds

    def wrap(self, function: Callable, kept: Callable = lambda result: result) -> Callable:
        """`function`, timed; `kept` picks of its result what later calls do not donate."""

        def timed(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments)
            self._watch.submit(self._note, started, kept(result))
            return result

        return timed

    def _note(self, started: float, result: Any) -> None:
        jax.block_until_ready(result)
        ended = time.perf_counter()
        self._seconds += ended - max(started, self._end)
        self._end = ended


def timed_study(config: configs.Config, clock: Clock) -> context.RunContext:
    """A study whose programs run by the clock."""
    study = context.RunContext(config, runner.load(config), lambda: False)
    networks = study.networks
    for name, trainer in networks.trainers.items():
        networks.trainers[name] = dataclasses.replace(
            trainer, program=clock.wrap(trainer.program, lambda result: result[1])
        )
    networks.predict = {name: clock.wrap(predict) for name, predict in networks.predict.items()}
    networks.features, networks.draw = clock.wrap(networks.features), clock.wrap(networks.draw)
    visit = fidelity._visit
    fidelity._visit = lambda tile, *blocks: visit(clock.wrap(tile), *blocks)
    return study


def by_phase(clock: Clock) -> tuple[dict[str, Callable], dict[str, float]]:
    """The loop's phases, and the seconds outside programs that each took when last run."""
    outside: dict[str, float] = {}

    def watched(name: str, phase: Callable) -> Callable:
        def run(gen: context.GenerationRun) -> context.Entry:
            started, before = time.perf_counter(), clock.seconds
            entry = phase(gen)
            outside[name] = time.perf_counter() - started - (clock.seconds - before)
            return entry

        return run

    return {name: watched(name, phase) for name, phase in runner.PHASES.items()}, outside


def main() -> None:
    """Prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/quickstart.py"))
    parser.add_argument("--generations", type=int, default=3)
    args = parser.parse_args()
    config = presets.load(args.config).get_config()
    config.loop.generations = args.generations
    config = configs.typed(config)
    environment.configure(*presets.threads(config))
    clock = Clock()
    study = timed_study(config, clock)
    runner.PHASES, outside = by_phase(clock)
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder)
        store.write_json(workdir / "config.json", config.to_dict())
        for number in range(args.generations):
            started, before = time.perf_counter(), clock.seconds
            record = runner.run_generation(
                context.GenerationRun(study, number, workdir, workdir), True
            )
            seconds, inside = time.perf_counter() - started, clock.seconds - before
            line = {
                "config": args.config.stem,
                "device": environment.device_info()["device_kind"],
                "generation": number,
                "seconds": round(seconds, 2),
                "outside": round(1 - inside / seconds, 4),
                "outside_seconds": {name: round(value, 2) for name, value in outside.items()},
                "compilations": record["compilations"],
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
