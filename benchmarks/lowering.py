"""Lowers every step and sampler of the shipped configs for a GPU or TPU, without the hardware.

    python -m benchmarks.lowering --platform=cuda [--configs=quickstart.py,cifar20.py:small]

The output is a JSON line per config and program:
  scatters          operations whose result depends on the order of additions on a GPU
  flops             of one optimizer step, or of one call of the other programs, as XLA counts them;
                    the body of a loop counts once: of sampling, one step of the solver
  images            that they are for
  argument_bytes    of state, pool, batch indices and keys
  activation_bytes  that the loss keeps for its gradient, before XLA merges any; training alone

    pip install libtpu     # of the version in requirements/lock-*.txt; no TPU is needed
    python -m benchmarks.lowering --platform=tpu --topology=v5e:1x1 --configs=quickstart.py

compiles each program for one chip of a TPU as well, in minutes, and adds `temporary_bytes`, what
the program takes on the chip in addition to its arguments and results. `flops` are those of the
compiled program then.
"""

import argparse
import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from jax.experimental import topologies

from benchmarks import presets
from selfloop_jax import config as configs
from selfloop_jax.data import sources
from selfloop_jax.loop.context import Networks
from selfloop_jax.runtime import environment, parallel
from selfloop_jax.sampling import sampler
from selfloop_jax.training import classifier, step

FOLDER = Path(__file__).parent.parent / "configs"
# One argument for each set of networks that a config file has.
SHIPPED = (
    *("quickstart.py", "digits_study.py", "mnist_study.py"),
    *("colormnist.py:mnist5k", "colormnist.py:full", "folder.py", "folder.py:large"),
    *("cifar20.py", "cifar20.py:small", "hardimagenet.py:64", "hardimagenet.py:128"),
)
UNKNOWN = 10  # classes and groups of a source that only its files tell
PLATFORMS = {"cuda": "gpu", "tpu": "tpu"}  # JAX's names for lowering and for devices
SCATTER = re.compile(r'"stablehlo\.(?:scatter|select_and_scatter)"\(')


@dataclass(frozen=True)
class Program:
    """A program and the shapes that it is called with.

    images: of one call or optimizer step. activation_bytes: of all of them, None where no gradient
    is taken.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    images: int
    activation_bytes: int | None = None


def read(name: str) -> configs.Config:
    """Returns a config of configs/ by `file.py` or `file.py:argument`."""
    return configs.typed(presets.read(str(FOLDER / name)))


def programs(config: configs.Config, platform: str) -> Iterator[Program]:
    """Yields the programs of a run on one device of the platform."""
    known = sources.outline(config.data)
    networks = Networks(config, known.classes or UNKNOWN, known.groups or UNKNOWN, 1.0)
    per_dispatch = configs.steps_per_dispatch(config, PLATFORMS[platform])
    side = config.data.image_size
    for name, trainer in networks.trainers.items():
        arguments = training_arguments(trainer, side, per_dispatch)
        kept = trainer.batch * step.activation_bytes(trainer, side)
        yield Program(f"{name}_train", trainer.program, arguments, trainer.batch, kept)
    count = config.sample.batch_per_device
    generate = partial(
        sampler.generate,
        model=networks.unet,
        process=networks.process,
        section=config.sample,
        side=side,
    )
    rows = {name: _shape(count) for name in ("label", "group")} | {
        "id": _shape(count, dtype="uint32")
    }
    params = networks.trainers["diffusion"].abstract.params
    key = _key()
    yield Program("sample", generate, ((params, key), rows), count)
    for name, net in networks.classifiers.items():
        state = networks.trainers[name].abstract
        weights = {"params": state.params, "batch_stats": state.batch_stats}
        batch = config.measure.batch
        forward = partial(classifier.forward, model=net, section=getattr(config, name))
        pixels = _shape(batch, side, side, 3, dtype=np.uint8)
        yield Program(f"{name}_inference", forward, (weights, pixels), batch)


def training_arguments(
    trainer: step.Trainer, side: int, steps: int, images: int = 1_000, devices: int = 1
) -> tuple[Any, ...]:
    """Returns the shapes that a training program is called with: state, pool, indices and key."""
    pool = {"pixels": _shape(images, side, side, 3, dtype=np.uint8)}
    pool |= {name: _shape(images) for name in ("label", "group")}
    rows = {"index": _shape(devices, steps, trainer.batch // devices)}
    return trainer.abstract, pool, rows, _key()


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def _shape(*shape: int, dtype: Any = np.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def lower(program: Program, platform: str, chip: jax.Device | None = None) -> dict[str, Any]:
    """Returns what a program is on a platform.

    chip: of a topology, which the program is compiled for; None: it is not compiled.
    """
    started = time.perf_counter()
    arguments = program.arguments
    if chip:
        place = jax.sharding.SingleDeviceSharding(chip)
        arguments = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), arguments
        )
    traced = jax.jit(program.function).trace(*arguments)
    lowered = traced.lower(lowering_platforms=(platform,))
    found = {
        "program": program.name,
        "platform": platform,
        "images": program.images,
        "scatters": len(SCATTER.findall(lowered.as_text())),
        "argument_bytes": _bytes(program.arguments),
        "activation_bytes": program.activation_bytes,
        "lowering_seconds": round(time.perf_counter() - started, 1),
    }
    counted: Any = lowered
    if chip:
        started = time.perf_counter()
        counted = lowered.compile()
        found["compiling_seconds"] = round(time.perf_counter() - started, 1)
        found["temporary_bytes"] = counted.memory_analysis().temp_size_in_bytes
    found["flops"] = float(counted.cost_analysis()["flops"])
    return {name: value for name, value in found.items() if value is not None}


def _bytes(tree: Any) -> int:
    leaves = jax.tree.leaves(jax.eval_shape(lambda tree: tree, tree))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints a line per config and program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--platform", choices=tuple(PLATFORMS), required=True)
    parser.add_argument("--configs", default=",".join(SHIPPED))
    parser.add_argument("--topology", help="of one TPU chip, such as v5e:1x1, to compile for")
    args = parser.parse_args(argv)
    environment.configure(nproc=2, cpu_devices=1, deterministic=True)
    chip = _chip(args.topology) if args.topology else None
    # Programs of a run map over these devices.
    devices = mock.patch.object(parallel, "devices", return_value=[chip])
    with devices if chip else contextlib.nullcontext():
        for name in re.split(r",(?=\w+\.py)", args.configs):  # arguments have commas of their own
            for program in programs(read(name), args.platform):
                found = lower(program, args.platform, chip)
                print(json.dumps({"config": name, **found}), flush=True)


def _chip(name: str) -> jax.Device:
    """The chip of a TPU topology, by libtpu, which describes and compiles for any."""
    found = topologies.get_topology_desc(
        platform="tpu", topology_name=name, chips_per_host_bounds=(1, 1, 1)
    )
    return found.devices[0]


if __name__ == "__main__":
    main()
