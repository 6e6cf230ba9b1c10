"""Measures how training and sampling differ between numbers of devices and of microbatches.

    python -m benchmarks.devices [--steps=50]

It trains the quickstart's networks on CPU devices with the same global batch and keys, from SEEDS
initial weights. `relative_l2` compares the weights with those of one device and one microbatch: the
largest distance over the leaves, its median over seeds, and `largest` its largest value. In
float64 it shows that only the order of sums differs. In float32 a ReLU whose input lies within
rounding of 0 may open on one number of devices alone, and training amplifies that for some seeds.
The images are sampled from the weights of one device; their digest shows whether they are the same
bits on any number of devices. The output is a JSON line per case.
"""

import argparse
import dataclasses
import json
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import cases, presets
from selfloop_jax import config as configs
from selfloop_jax.runtime import environment, keys, parallel, store
from selfloop_jax.sampling import sampler
from selfloop_jax.training import classifier, fit, generator
from selfloop_jax.training.step import Trainer, TrainState

DEVICES = (1, 2, 4)
# Devices and microbatches. Classifiers have BatchNorm, and so no microbatches.
SPLITS = {
    "diffusion": ((1, 1), (2, 1), (4, 1), (1, 2), (1, 4), (2, 2), (4, 4)),
    "classifier": ((1, 1), (2, 1), (4, 1)),
}


IMAGES = 16


SEEDS = 5


def trained(
    kind: str, devices: int, microbatches: int, x64: bool, steps: int, folder: Path
) -> None:
    """Trains and writes the weights; samples with those of one device, writes a digest."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", x64)
    config = presets.preset("quick", devices=devices)
    environment.configure(**configs.environment(config))
    side = config.data.image_size
    if kind == "diffusion":
        section = dataclasses.replace(config.diffusion, microbatches=microbatches)
        net, process = generator.build(section, presets.CLASSES, 0)
        trainer = generator.make_trainer(net, process, section, side, 1)
    else:
        trainer = classifier.make_trainer(
            classifier.build(config.classifier, presets.CLASSES), config.classifier, side, 1
        )
    name = f"{kind}-{x64}-{devices}-{microbatches}"
    store.write_json(folder / "device.json", environment.device_info()["device_kind"])
    for seed in range(SEEDS):
        state = _fit(trainer, _start(trainer, x64, seed), cases.pool(side), steps)
        leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state.params))}
        store.write_npz(folder / f"{name}-{seed}.npz", leaves)
    if kind == "diffusion" and microbatches == 1 and not x64:
        structure = jax.tree.structure(state.params)
        stored = store.read_npz(folder / f"{kind}-{x64}-1-1-0.npz")
        params = parallel.replicate(
            jax.tree.unflatten(structure, [stored[str(i)] for i in range(len(stored))])
        )
        sample = sampler.make_sampler(net, process, config.sample, side)
        key = parallel.replicate(keys.key((0, "sample")))
        pixels = []
        for first in range(0, IMAGES, devices * IMAGES // 4):
            ids = np.arange(first, first + devices * IMAGES // 4, dtype=np.uint32)
            label = (ids % presets.CLASSES).astype(np.int32)
            pixels.append(sample(params, key, ids, label, label))
        digest = store.digest_arrays({"pixels": np.concatenate(pixels)})
        store.write_json(folder / f"{name}.json", digest)


def _start(trainer: Trainer, x64: bool, seed: int) -> TrainState:
    """Returns the same float32 initial weights, as float64 where `x64`."""
    state = trainer.start(trainer.init(jax.random.key(seed)), 1e-3, 1e6)
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64) if x.dtype == np.float32 else x, state)
    return parallel.replicate(wide) if x64 else state


def _fit(trainer: Trainer, state: TrainState, shown: Any, steps: int) -> TrainState:
    pool = fit.put_on_devices(fit.training_columns(shown), len(shown), "device")
    key = parallel.replicate(keys.key((0, "noise")))
    for step in range(steps):
        index = cases.images.batch_indices((0, "order"), len(shown), trainer.batch, step)[None]
        state, metrics = trainer.program(state, pool, parallel.shard_steps({"index": index}), key)
        jax.block_until_ready(metrics)
    return state


def _distance(folder: Path, name: str, split: tuple[int, int], seed: int) -> float:
    """Returns the largest relative L2 distance over leaves to the weights of one device."""
    norm = np.linalg.norm
    a, b = (store.read_npz(folder / f"{name}-{n}-{m}-{seed}.npz") for n, m in ((1, 1), split))
    pairs = ((a[name].astype(np.float64), b[name].astype(np.float64)) for name in a)
    return max(float(norm(x - y) / max(norm(x), 1e-12)) for x, y in pairs)


def main() -> None:
    """Prints a JSON line per case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    steps = parser.parse_args().steps
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in ("diffusion", "classifier"):
            for x64 in (False, True):
                for devices, microbatches in SPLITS[kind]:
                    process = context.Process(
                        target=trained, args=(kind, devices, microbatches, x64, steps, folder)
                    )
                    process.start()
                    process.join()
                    if process.exitcode:
                        raise SystemExit(
                            f"error: {kind} on {devices} devices: ended with {process.exitcode}"
                        )
                for split in SPLITS[kind][1:]:
                    found = [
                        _distance(folder, f"{kind}-{x64}", split, seed) for seed in range(SEEDS)
                    ]
                    line = {
                        "network": kind,
                        "device": store.read_json(folder / "device.json"),
                        "precision": "float64" if x64 else "float32",
                        "devices": split[0],
                        "microbatches": split[1],
                        "steps": steps,
                        "seeds": SEEDS,
                        "relative_l2": float(f"{np.median(found):.3g}"),
                        "largest": float(f"{max(found):.3g}"),
                    }
                    print(json.dumps(line), flush=True)
        digests = [store.read_json(folder / f"diffusion-False-{n}-1.json") for n in DEVICES]
        device = store.read_json(folder / "device.json")
        line = {"images_drawn": IMAGES, "device": device, "devices": DEVICES}
        line["one_digest"] = len(set(digests)) == 1
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
