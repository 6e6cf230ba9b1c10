"""Compiles and times training of the Hard ImageNet U-Net by batch size and by ways to save memory.

    python -m benchmarks.device.hard [--config=hardimagenet.py:64] [--batches=64,128,256]

The last batch is also tried with `remat`, and in four microbatches. All variants compile at the
same time; then they are timed one after the other, a dispatch a call. The output is a JSON line per
variant when it is compiled, with the compiler's count of memory, and another when it is timed.
FLOPs are those without the second pass of `remat`. `peak_gib` is that of the process so far.
"""

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import Any

import jax

from benchmarks import cases, lowering, presets, speed
from selfloop_jax import config as configs
from selfloop_jax.config import Config
from selfloop_jax.diffusion import processes
from selfloop_jax.runtime import environment, parallel
from selfloop_jax.training import generator, step

GIB = 2**30
MICROBATCHES = 4
Line = dict[str, Any]


def variants(config: Config, batches: list[int]) -> list[Config]:
    """Returns the config with each batch, and with two ways to save memory at the last one."""
    # A run has the scale of the pixels from its images.
    section = processes.for_data(config.diffusion, 1.0)
    sections = [replace(section, batch=batch) for batch in batches]
    last = sections[-1]
    sections.append(replace(last, unet=replace(last.unet, remat=True)))
    sections.append(replace(last, microbatches=MICROBATCHES))
    return [replace(config, diffusion=own) for own in sections]


def setting(config: Config) -> Line:
    """Returns what distinguishes a variant."""
    section = config.diffusion
    return {
        "what": "hard imagenet",
        "batch": section.batch,
        "remat": section.unet.remat,
        "microbatches": section.microbatches,
        "precision": config.parallel.precision,
    }


def compiled(config: Config) -> tuple[step.Trainer, Line]:
    """Returns a trainer whose program is compiled, and the compiler's count of its memory."""
    started = time.perf_counter()
    side = config.data.image_size
    dtype = configs.activation_dtype(config)
    net, process = generator.build(config.diffusion, presets.CLASSES, 0, dtype)
    steps = cases.steps_per_dispatch(config)
    trainer = generator.make_trainer(net, process, config.diffusion, side, steps)
    arguments = lowering.training_arguments(
        trainer, side, steps, presets.IMAGES, parallel.device_count()
    )
    program = trainer.program.lower(*arguments).compile()
    memory = program.memory_analysis()
    return replace(trainer, program=program), {
        "parameters": trainer.parameters,
        "steps_per_dispatch": steps,
        "compiling_seconds": round(time.perf_counter() - started, 1),
        "argument_gib": round(memory.argument_size_in_bytes / GIB, 3),
        "temporary_gib": round(memory.temp_size_in_bytes / GIB, 3),
        "aliased_gib": round(memory.alias_size_in_bytes / GIB, 3),
    }


def timed(trainer: step.Trainer, side: int, flops: float, rounds: int) -> Line:
    """Returns the speed of a compiled trainer; `flops` are those of an image."""
    case = cases.training(trainer, side, steps=1)
    case.call()
    rate = case.images / speed.median_seconds(case.call, rounds)
    memory = jax.local_devices()[0].memory_stats() or {}
    return {
        "images_per_second": round(rate, 2),
        "seconds_per_step": round(trainer.batch / rate, 4),
        "gflops": round(flops * rate / 1e9, 1),
        "peak_gib": round(memory.get("peak_bytes_in_use", 0) / GIB, 2),
    }


def lines(config: Config, batches: list[int], rounds: int) -> Iterator[Line]:
    """Yields the lines of all variants: compiled, in the order of their ends, then timed."""
    every = variants(config, batches)
    trainers = {}
    with ThreadPoolExecutor(len(every)) as threads:
        waiting = {threads.submit(compiled, own): own for own in every}
        for done in as_completed(waiting):
            own = waiting[done]
            # A variant that fails, for lack of memory say, is a finding as well.
            if error := done.exception():
                yield setting(own) | _problem(error)
            else:
                trainers[own], found = done.result()
                yield setting(own) | found
    flops = speed.training_flops(every[0], "diffusion_train")
    for own in filter(trainers.get, every):
        try:
            found = timed(trainers.pop(own), own.data.image_size, flops, rounds)
        except jax.errors.JaxRuntimeError as error:
            found = _problem(error)
        yield setting(own) | found


def _problem(error: BaseException) -> Line:
    return {"error": f"{type(error).__name__}: {str(error)[:200]}"}


def main() -> None:
    """Prints two JSON lines per variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="hardimagenet.py:64")
    parser.add_argument("--batches", default="64,128,256")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    config = lowering.read(args.config)
    environment.configure(**configs.environment(config) | {"cpu_devices": 1})
    for line in lines(config, list(map(int, args.batches.split(","))), args.rounds):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
