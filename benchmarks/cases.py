"""Runs one case of our program on random images: a training step, sampling or inference.

    python -m benchmarks.cases --preset=small --case=sample [--precision=bfloat16] [--devices=2]

`benchmarks.compare` starts it. It makes steps as `training.fit` does: the host makes the batch
indices, and a dispatch has as many steps as in a run on the same platform.
"""

import argparse
import dataclasses
import functools
from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import presets
from benchmarks.worker import Case, serve
from selfloop_jax import config as configs
from selfloop_jax.data import images
from selfloop_jax.runtime import environment, keys, parallel, rng
from selfloop_jax.sampling import sampler
from selfloop_jax.training import classifier, fit, generator, step

CASES = ("diffusion_train", "sample", "classifier_train", "classifier_inference")


def pool(side: int) -> images.Images:
    """Returns a pool of random pixels with labels in turn."""
    count = presets.IMAGES
    label = (np.arange(count) % presets.CLASSES).astype(np.int32)
    words = rng.uniforms((0, "benchmark"), np.arange(count * side * side * 3))
    pixels = (256 * words).astype(np.uint8).reshape(count, side, side, 3)
    return images.Images(
        pixels, label, label, np.full(count, -1, np.int32), np.arange(count, dtype=np.uint32)
    )


def build(config: configs.Config, case: str, steps: int = 1) -> Case:
    """Returns one case of a config; a call of a training case makes at least `steps` steps."""
    dtype = configs.activation_dtype(config)
    side = config.data.image_size
    per_dispatch = steps_per_dispatch(config)
    if case in ("diffusion_train", "sample"):
        net, process = generator.build(config.diffusion, presets.CLASSES, 0, dtype)
        trainer = generator.make_trainer(net, process, config.diffusion, side, per_dispatch)
        if case == "sample":
            return _sampling(
                config, trainer, sampler.make_sampler(net, process, config.sample, side)
            )
        return training(trainer, side, steps)
    net = classifier.build(config.classifier, presets.CLASSES, dtype)
    trainer = classifier.make_trainer(net, config.classifier, side, per_dispatch)
    if case == "classifier_train":
        return training(trainer, side, steps)
    predict = classifier.make_predict(net, config.classifier, config.measure.batch)
    weights = trainer.init(jax.random.key(0))
    pixels = pool(side).pixels
    shown = np.concatenate([pixels] * (-(-config.measure.batch // len(pixels))))[
        : config.measure.batch
    ]
    return Case(functools.partial(_run, predict, weights, shown), len(shown), trainer.parameters)


def _run(function: Callable, *arguments: Any) -> None:
    function(*arguments)


def steps_per_dispatch(config: configs.Config) -> int:
    """Returns how many training steps a run dispatches at once on this platform."""
    return configs.steps_per_dispatch(config, environment.device_info()["platform"])


def training(trainer: step.Trainer, side: int, steps: int) -> Case:
    """Returns whole dispatches of at least `steps` training steps on images of `side` pixels."""
    shown = pool(side)
    arrays = fit.put_on_devices(fit.training_columns(shown), len(shown), "device")
    key = parallel.replicate(keys.key((0, "noise")))
    per_dispatch = trainer.steps_per_dispatch
    dispatches = -(-steps // per_dispatch)
    held = {"state": trainer.start(trainer.init(jax.random.key(0)), 1e-4, 1e6), "step": 0}

    def call() -> None:
        in_flight: deque[Any] = deque()
        for _ in range(dispatches):
            numbers = range(held["step"], held["step"] + per_dispatch)
            order = (0, "order")
            index = [images.batch_indices(order, len(shown), trainer.batch, n) for n in numbers]
            rows = parallel.shard_steps({"index": np.stack(index)})
            held["state"], metrics = trainer.program(held["state"], arrays, rows, key)
            parallel.limit_in_flight(in_flight, metrics, per_dispatch)
            held["step"] += per_dispatch
        jax.block_until_ready(held["state"])

    count = trainer.batch * per_dispatch * dispatches
    return Case(call, count, trainer.parameters, steps_per_dispatch=per_dispatch)


def _sampling(config: configs.Config, trainer: step.Trainer, sample: Callable) -> Case:
    count = config.sample.batch_per_device * parallel.device_count()
    params = trainer.init(jax.random.key(0))["params"]
    key = parallel.replicate(keys.key((0, "sample")))
    ids = np.arange(count, dtype=np.uint32)
    label = (ids % presets.CLASSES).astype(np.int32)
    return Case(
        functools.partial(_run, sample, params, key, ids, label, label), count, trainer.parameters
    )


def main() -> None:
    """Builds one case and runs it on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=presets.NAMES, default="small")
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1)
    args = parser.parse_args()
    config = presets.preset(args.preset, args.precision, args.devices)
    environment.configure(**configs.environment(config))
    device = environment.device_info()["device_kind"]
    serve(lambda: dataclasses.replace(build(config, args.case, args.steps), device=device))


if __name__ == "__main__":
    main()
