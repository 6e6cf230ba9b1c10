"""Prints versions, memory, and rates of matrix products and copies of an accelerator.

    python -m benchmarks.device.facts

The output is a JSON line per fact. A relative error of 3e-4 in float32 is that of TF32.
"""

import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import speed
from selfloop_jax.runtime import environment

PRODUCTS = (("bfloat16", "default"), ("float32", "default"), ("float32", "highest"))
ROUNDS = 5


def lines(size: int, mib: int) -> Iterator[dict[str, Any]]:
    """Yields the lines; `size` is that of the matrices, `mib` that of the copies."""
    yield {"what": "environment", **environment.manifest(None)}
    yield {"what": "memory", **(jax.local_devices()[0].memory_stats() or {})}
    for dtype, precision in PRODUCTS:
        with jax.default_matmul_precision(precision):
            found = {"tflops": round(speed.matmul_peak(dtype, size) / 1e12, 3)}
            found["relative_error"] = float(f"{_error(dtype, size):.2g}")
        yield {"what": "matrix product", "dtype": dtype, "precision": precision, **found}
    yield {"what": "copies", "mib": mib, **_copies(mib)}


def _error(dtype: str, size: int) -> float:
    """The relative L2 error of a few rows of a product of two matrices."""
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    found = np.asarray(jnp.dot(a, a, preferred_element_type=jnp.float32)[:64], np.float64)
    wide = np.asarray(a, np.float64)
    exact = wide[:64] @ wide
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def _copies(mib: int) -> dict[str, float]:
    """GB/s from the host to the device and back."""
    host = np.ones(mib * speed.MIB, np.uint8)
    on_device = jax.device_put(host)
    # JAX keeps the host's copy of an array: each one can be fetched once.
    fresh = [jax.block_until_ready(on_device + np.uint8(i)) for i in range(ROUNDS)]
    seconds = {
        "to_device": speed.median_seconds(
            lambda: jax.block_until_ready(jax.device_put(host)), ROUNDS
        ),
        "to_host": speed.median_seconds(lambda: np.asarray(fresh.pop()), ROUNDS),
    }
    return {f"{name}_gb_s": round(host.nbytes / s / 1e9, 2) for name, s in seconds.items()}


def main() -> None:
    """Prints the lines; on a CPU, of small matrices and copies."""
    environment.configure(nproc=2, cpu_devices=1, deterministic=True)
    size, mib = (512, 64) if jax.default_backend() == "cpu" else (8192, 1024)
    for line in lines(size, mib):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
