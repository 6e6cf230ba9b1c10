"""Measures the time that a run spends outside its compiled programs, by phase.

    python -m benchmarks.loop [--config=configs/quickstart.py] [--generations=3]

A thread waits for the results of the programs in the order of their calls. A program counts as
computing from its call, or from the end of the previous one, until its result is there. The loop
itself runs unchanged, so host work still overlaps with programs. The compilations of generation 0
count as computing, and so does the host work inside prediction and sampling. The output is a JSON
line per generation.
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
from selfloop_jax.config import Config
from selfloop_jax.loop import context, runner, setup
from selfloop_jax.loop.phase import Phase, Result
from selfloop_jax.loop.stage import Study
from selfloop_jax.measure import distances
from selfloop_jax.runtime import environment, store
from selfloop_jax.studies import self_consuming


class Clock:
    """Measures the seconds in which one of the wrapped programs was computing."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._end = 0.0
        self._watch = ThreadPoolExecutor(1)

    @property
    def seconds(self) -> float:
        """Waits for all calls to end and returns the seconds so far."""
        self._watch.submit(lambda: None).result()
        return self._seconds

    def wrap(self, function: Callable, kept: Callable = lambda result: result) -> Callable:
        """Returns `function`, timed; `kept` picks the part of its result that is not donated."""

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


def timed_context(config: Config, clock: Clock) -> context.RunContext:
    """Returns a run whose programs are timed by the clock."""
    timed = setup.open_run(config, lambda: False)
    networks = timed.networks
    for name, trainer in networks.trainers.items():
        networks.trainers[name] = dataclasses.replace(
            trainer, program=clock.wrap(trainer.program, lambda result: result[1])
        )
    networks.predict = {name: clock.wrap(predict) for name, predict in networks.predict.items()}
    networks.features = clock.wrap(networks.features)
    networks.sampler = clock.wrap(networks.sampler)
    visit = distances.visit
    distances.visit = lambda tile, *blocks: visit(clock.wrap(tile), *blocks)
    return timed


def by_phase(clock: Clock) -> tuple[Study, dict[str, float]]:
    """Returns the study, timed, and each phase's seconds outside programs in its last run."""
    outside: dict[str, float] = {}

    class Timed(Phase):
        """Notes the seconds of a phase in which none of its programs was computing."""

        def run(self, run: context.GenerationRun) -> Result:
            started = time.perf_counter()
            before = clock.seconds
            result = super().run(run)
            elapsed = time.perf_counter() - started
            outside[self.name] = elapsed - (clock.seconds - before)
            return result

    timed = tuple(Timed(**vars(phase)) for phase in self_consuming.STUDY.phases)
    return dataclasses.replace(self_consuming.STUDY, phases=timed), outside


def main() -> None:
    """Prints a JSON line per generation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--generations", type=int, default=3)
    args = parser.parse_args()
    fields = presets.read(args.config)
    fields.loop.generations = args.generations
    config = configs.typed(fields)
    environment.configure(**configs.environment(config))
    clock = Clock()
    timed = timed_context(config, clock)
    study, outside = by_phase(clock)
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder)
        store.write_json(workdir / "config.json", config.to_dict())
        for number in range(args.generations):
            started = time.perf_counter()
            before = clock.seconds
            run = setup.generation(timed, number, workdir, workdir)
            record = runner.run_stage(study, run, entry=0)
            seconds = time.perf_counter() - started
            inside = clock.seconds - before
            line = {
                "config": Path(args.config).stem,
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
