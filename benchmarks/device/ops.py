"""Times the gradients of single operations that a GPU may be slow at, as the project has them.

    python -m benchmarks.device.ops [--no-deterministic]

Where bits must repeat, XLA turns scatters into loops and chooses among fewer kernels. The output is
a JSON line per operation and way of computing it: milliseconds, or the error.
"""

import argparse
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from benchmarks import speed
from selfloop_jax.models import layers
from selfloop_jax.runtime import environment

CALLS = 20  # between two waits for the device


@dataclass(frozen=True)
class Operation:
    """A function of an array of this shape, whose gradient is timed."""

    name: str
    way: str
    function: Callable[[jax.Array], jax.Array]
    shape: tuple[int, ...]


def operations(small: bool) -> Iterator[Operation]:
    """Yields the operations at the sizes of the presets and of Hard ImageNet, or at small ones."""
    batch = 4 if small else 256
    rows = jnp.arange(batch) % 15
    shape = (16, 64 if small else 512)
    for way, embed in (("one-hot product", layers.Embed), ("scatter", nn.Embed)):
        table = embed(*shape)
        look_up = functools.partial(_look_up, table, rows)
        yield Operation("embedding", way, look_up, shape)
    shape = (batch, 8, 8, 16) if small else (batch, 32, 32, 64)
    yield Operation("max pool", "maxima", lambda x: layers.max_pool(x, 2, 2), shape)
    # Small: where bits must repeat, XLA may take a turn of a loop for each of its outputs.
    few = (8, 16, 16, 16)
    yield Operation("max pool", "maxima", lambda x: layers.max_pool(x, 2, 2), few)
    yield Operation("max pool", "select and scatter", lambda x: nn.max_pool(x, (2, 2), (2, 2)), few)
    # Batch, positions, heads, width: of cifar, and of Hard ImageNet at 16 and 8 pixels.
    attended = ((128, 256, 1, 256), (batch, 256, 4, 96), (batch, 64, 4, 128))
    for shape in ((4, 16, 2, 8),) if small else attended:
        for way in ("xla", "cudnn"):
            attend = functools.partial(jax.nn.dot_product_attention, implementation=way)
            yield Operation("attention", way, lambda x, attend=attend: attend(x, x, x), shape)
    width = 16 if small else 256
    kernel = jax.random.normal(jax.random.key(1), (3, 3, width, width), jnp.bfloat16)
    for side in (2, 4):
        yield Operation(
            "3x3 convolution",
            f"{side}x{side} map",
            lambda x: layers.convolve(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            ),
            (batch, side, side, width),
        )


def _look_up(table: nn.Module, rows: jax.Array, weights: jax.Array) -> jax.Array:
    found: jax.Array = table.apply({"params": {"embedding": weights}}, rows)
    return found


def measure(operation: Operation, rounds: int) -> dict[str, Any]:
    """Returns the line of an operation in bfloat16."""
    line = {"what": "operation", "operation": operation.name, "way": operation.way}
    line["shape"] = list(operation.shape)
    x = jax.random.normal(jax.random.key(0), operation.shape, jnp.bfloat16)

    def loss(x):
        return jnp.sum(operation.function(x).astype(jnp.float32) ** 2)

    try:
        gradient = jax.jit(jax.grad(loss)).lower(x).compile()

        def call() -> None:
            jax.block_until_ready([gradient(x) for _ in range(CALLS)])

        call()
        return line | {"milliseconds": round(1e3 * speed.median_seconds(call, rounds) / CALLS, 4)}
    # One kernel that this device lacks is a finding, and no reason to miss the others.
    except Exception as error:
        return line | {"error": f"{type(error).__name__}: {str(error)[:200]}"}


def main() -> None:
    """Prints a JSON line per operation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--deterministic", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    environment.configure(nproc=2, cpu_devices=1, deterministic=args.deterministic)
    for operation in operations(small=jax.default_backend() == "cpu"):
        line = measure(operation, args.rounds) | {"deterministic": args.deterministic}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
