"""Measures compile time, images per second, memory and utilisation of our cases.

    python -m benchmarks.speed [--presets=quick,small] [--precision=float32] [--devices=2]

The output is a JSON line per case. Each case runs in its own process, so that its peak memory is
its own. FLOPs are XLA's count of one network pass (forward, or forward and backward) before it
compiles, since it cannot look into calls of a library. Utilisation is relative to a large matrix
product at the same precision on the same devices.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import cases, presets
from selfloop_jax import config as configs
from selfloop_jax.diffusion import solvers
from selfloop_jax.runtime import environment, parallel
from selfloop_jax.training import classifier, generator

MIB = 2**20


def forward_flops(config: configs.Config, case: str) -> float:
    """Returns FLOPs per generated or predicted image, over all evaluations of the network."""
    n = 16
    x = jnp.zeros((n, config.data.image_size, config.data.image_size, 3))
    if case == "sample":
        net, _ = generator.build(config.diffusion, presets.CLASSES, 0)
        one = jnp.zeros(n, jnp.int32)
        arguments = (x, jnp.zeros(n), one, one)
        # Guidance evaluates the network twice: with its condition and without.
        passes = 2 * solvers.SOLVERS["ddim"].evaluations(config.sample.steps)
    else:
        net = classifier.build(config.classifier, presets.CLASSES)
        arguments = (x,)
        passes = 1
    variables = jax.eval_shape(net.init, jax.random.key(0), *arguments)
    return _flops(jax.jit(net.apply).lower(variables, *arguments)) / n * passes


def training_flops(config: configs.Config, case: str) -> float:
    """Returns FLOPs of loss and gradient per training image, on one device."""
    n = 16
    side = config.data.image_size
    if case == "diffusion_train":
        net, process = generator.build(config.diffusion, presets.CLASSES, 0)
        trainer = generator.make_trainer(net, process, config.diffusion, side, 1)
        loss = partial(generator.loss, model=net, process=process, section=config.diffusion)
    else:
        net = classifier.build(config.classifier, presets.CLASSES).clone(axis_name=None)
        trainer = classifier.make_trainer(net, config.classifier, side, 1)
        loss = partial(classifier.loss, model=net, section=config.classifier)
    shapes = {"pixels": (n, side, side, 3), "label": (n,), "group": (n,), "position": (n,)}
    batch = {name: jnp.zeros(shape, jnp.int32) for name, shape in shapes.items()}
    params, stats = (
        jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)
        for tree in (trainer.abstract.params, trainer.abstract.batch_stats)
    )
    whole = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return _flops(whole.lower(params, stats, batch, jax.random.key(0))) / n


def _flops(lowered: Any) -> float:
    return float(lowered.cost_analysis()["flops"])


def median_seconds(call: Callable[[], Any], rounds: int) -> float:
    """Returns the median seconds of a call, which waits for its own end."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def matmul_peak(precision: str, size: int = 0) -> float:
    """Returns FLOP/s of a large matrix product on all devices at once."""
    on_cpu = jax.default_backend() == "cpu"
    n = size or (2048 if on_cpu else 8192)
    products = 4 if on_cpu else 32

    def product(_, row):
        x = (
            jax.random.normal(jax.random.fold_in(jax.random.key(0), row[0]), (n, n), precision)
            / n**0.5
        )

        def once(_, x):
            return jnp.dot(x, x, preferred_element_type=jnp.float32).astype(x.dtype)

        return jax.lax.fori_loop(0, products, once, x)[:1, :1].astype(jnp.float32)

    program = parallel.map_over_devices(product)
    rows = np.arange(jax.device_count())
    program(jnp.zeros(()), rows)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        program(jnp.zeros(()), rows)
        seconds.append(time.perf_counter() - started)
    return products * 2 * n**3 * jax.device_count() / min(seconds)


def measure(
    preset: str, case: str, precision: str, devices: int, deterministic: bool, rounds: int
) -> None:
    """Measures one case and prints its line."""
    config = presets.preset(preset, precision, devices)
    config = replace(config, parallel=replace(config.parallel, deterministic=deterministic))
    environment.configure(**configs.environment(config))
    started = time.perf_counter()
    # As many dispatches as a run has in flight, where a dispatch has several steps.
    built = cases.build(config, case, steps=max(8, 3 * cases.steps_per_dispatch(config)))
    built.call()
    first = time.perf_counter() - started
    rate = built.images / median_seconds(built.call, rounds)
    memory = jax.devices()[0].memory_stats() or {}
    peak_bytes = memory.get(
        "peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    flops = (training_flops if case.endswith("train") else forward_flops)(config, case)
    peak = matmul_peak(precision)
    line = {
        "preset": preset,
        "case": case,
        "precision": precision,
        "devices": parallel.device_count(),
        "device": environment.device_info()["device_kind"],
        "parameters": built.parameters,
        "steps_per_dispatch": built.steps_per_dispatch,
        "deterministic": deterministic,
        "images_per_second": round(rate, 1),
        "first_call_seconds": round(first, 2),
        "peak_mib": round(peak_bytes / MIB),
        "mflop_per_image": round(flops / 1e6, 2),
        "gflops": round(flops * rate / 1e9, 1),
        "matmul_gflops": round(peak / 1e9, 1),
        "utilisation": round(flops * rate / peak, 3),
    }
    print(json.dumps(line), flush=True)


def main() -> None:
    """Prints a JSON line per case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", default="quick,small")
    parser.add_argument("--cases", default=",".join(cases.CASES))
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--devices", type=int, default=2, help="CPU devices")
    parser.add_argument("--deterministic", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    for preset in args.presets.split(","):
        for case in args.cases.split(","):
            settings = (args.precision, args.devices, args.deterministic, args.rounds)
            process = context.Process(target=measure, args=(preset, case, *settings))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"error: {preset}, {case}: ended with {process.exitcode}")


if __name__ == "__main__":
    main()
