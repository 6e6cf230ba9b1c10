"""Fidelity metrics: agreement with published implementations, time and memory on large sets.

    python -m benchmarks.fidelity [--n=50000] [--d=64]

Random features. Prints one JSON line per case. Agreement is on 2,000 rows, whatever --n; `prdc` has
to be installed for it. Each case runs in a process of its own, so that its peak resident memory is
its own.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import resource
import time

import numpy as np
import prdc
from scipy import linalg

from selfloop_jax.measure import distances, fidelity
from selfloop_jax.runtime import rng

LARGE = {
    "manifold": lambda a, b: fidelity.manifold(a, b, 5),
    "nearest": distances.nearest,
    "kernel_distance": fidelity.kernel_distance,
    "frechet": fidelity.frechet,
}


def features(name: str, n: int, d: int) -> np.ndarray:
    """Gaussian features float32[n,d], made a column at a time for a low peak of memory."""
    result = np.empty((n, d), np.float32)
    for column in range(d):
        u, v = rng.uniforms((0, "benchmark", name, column), np.arange(2 * n)).reshape(2, n)
        result[:, column] = np.sqrt(-2 * np.log1p(-u)) * np.cos(2 * np.pi * v)
    return result


def agreement(d: int) -> None:
    """Prints relative differences from prdc, scipy's matrix root and whole kernel matrices."""
    real = features("real", 2000, d)
    generated = 0.97 * features("generated", 2000, d) + np.float32(0.05)
    ours = fidelity.summary(generated, real)
    with contextlib.redirect_stdout(io.StringIO()):
        expected = prdc.compute_prdc(real, generated, 5)
    a = generated.astype(np.float64)
    b = real.astype(np.float64)
    s_a = np.cov(a, rowvar=False)
    s_b = np.cov(b, rowvar=False)
    shift = a.mean(axis=0) - b.mean(axis=0)
    expected["fid"] = (
        shift @ shift + np.trace(s_a + s_b) - 2 * np.trace(linalg.sqrtm(s_a @ s_b)).real
    )
    k_aa, k_bb, k_ab = ((x @ y.T / d + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    pairs = 2000 * 1999
    within = (k_aa.sum() - np.trace(k_aa) + k_bb.sum() - np.trace(k_bb)) / pairs
    expected["kid"] = within - 2 * k_ab.mean()
    differences = {name: float(abs(ours[name] / value - 1)) for name, value in expected.items()}
    _print(case="relative_difference", n=2000, d=d, **differences)


def large(case: str, n: int, d: int) -> None:
    """Times one measure on n against n rows, compilation included, and prints its line."""
    real = features("real", n, d)
    generated = features("generated", n, d)
    before = _peak()
    start = time.perf_counter()
    LARGE[case](real, generated)
    seconds = round(time.perf_counter() - start, 2)
    _print(case=case, n=n, d=d, seconds=seconds, peak_mib=_peak(), peak_mib_before=before)


def _peak() -> int:
    """MiB of peak resident memory of this process (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _print(**fields) -> None:
    load = round(os.getloadavg()[0], 1)
    print(
        json.dumps({"benchmark": "fidelity", **fields, "cores": os.cpu_count(), "load": load}),
        flush=True,
    )


def main() -> None:
    """Runs all cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=50_000)
    parser.add_argument("--d", type=int, default=64)
    flags = parser.parse_args()
    for target, args in [
        (agreement, (flags.d,)),
        *((large, (case, flags.n, flags.d)) for case in LARGE),
    ]:
        process = multiprocessing.get_context("spawn").Process(target=target, args=args)
        process.start()
        process.join()


if __name__ == "__main__":
    main()
