"""Measures how long training waits for a checkpoint, with a state of many parameters.

    python -m benchmarks.saves [--parameters=281] [--saves=3] [--folder=DIR]

Parameters are in millions; a state has four float32 numbers for each: weights, their average and
two moments. The output is a JSON line: `waits_seconds`, what one save costs the training's thread,
which is a copy of the state to the host; `whole_seconds`, all of it, hashing and writing too, which
is what the thread waited for before these went to a thread of their own. Medians over the saves.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from selfloop_jax.runtime import environment, parallel
from selfloop_jax.training.checkpoints import Checkpoints, Saver
from selfloop_jax.training.step import TrainState

LEAVES = 300  # of the weights, about as many as a U-Net has
MILLION = 10**6


def state(parameters: int) -> TrainState:
    """Returns a state with about as many parameters, on the devices."""

    @jax.jit
    def make(key: jax.Array) -> TrainState:
        def weights(number: int) -> dict[str, jax.Array]:
            shape = (LEAVES, parameters // LEAVES)
            rows = jax.random.uniform(jax.random.fold_in(key, number), shape)
            return {f"kernel_{i}": rows[i] for i in range(LEAVES)}

        moments = {"mu": weights(2), "nu": weights(3)}
        return TrainState(jnp.int32(0), weights(0), weights(1), {}, {}, moments)

    return parallel.replicate(make(jax.random.key(0)))


def measure(parameters: int, saves: int, folder: Path) -> dict[str, object]:
    """Returns the line of the output."""
    made = jax.block_until_ready(state(parameters))
    checkpoints = Checkpoints(folder / "checkpoints", 1, 1)
    waits, whole = [], []
    with Saver(checkpoints) as saver:
        for step in range(saves):
            started = time.perf_counter()
            saver.save(step, made, "benchmark")
            waits.append(time.perf_counter() - started)
            saver.wait()
            whole.append(time.perf_counter() - started)
    leaves = jax.tree.leaves(made)
    return {
        "what": "saves",
        "device": environment.device_info()["device_kind"],
        "parameters": parameters,
        "gib": round(sum(leaf.nbytes for leaf in leaves) / 2**30, 2),
        "saves": saves,
        "waits_seconds": round(statistics.median(waits), 3),
        "whole_seconds": round(statistics.median(whole), 3),
        "whole_low": round(min(whole), 3),
        "whole_high": round(max(whole), 3),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=float, default=281.0, help="in millions")
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--folder", help="on the disk to measure; default: a temporary one")
    args = parser.parse_args(argv)
    environment.configure(nproc=2, cpu_devices=1, deterministic=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        parameters = math.ceil(args.parameters * MILLION / LEAVES) * LEAVES
        print(json.dumps(measure(parameters, args.saves, Path(folder))))


if __name__ == "__main__":
    main()
