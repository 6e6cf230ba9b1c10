"""Validation of verdicts, forecasts and closed-form loops on simulated data.

    python -m benchmarks.dynamics

Every case has 1,000 trials (`--trials`; power of the joint test a quarter) with a known truth. `ok`
says whether the number is where theory puts it: rates within four binomial standard errors of their
bound, means within four standard errors of the law. Nothing is trained, about a minute on one core;
every random number is keyed by its trial.
"""

import argparse
import json
import math
from collections.abc import Iterator

import numpy as np
from scipy.special import ndtri

from benchmarks import closed_form
from selfloop_jax.config import PoolConfig
from selfloop_jax.data.images import Images
from selfloop_jax.measure import dynamics, sign_test
from selfloop_jax.runtime import rng

ERRORS = 4.0


RULES = (
    PoolConfig("replace"),
    PoolConfig("real_plus_latest"),
    PoolConfig("accumulate"),
    PoolConfig("accumulate_subsample", budget=120),
    PoolConfig("substitute", alpha=0.5),
    PoolConfig("fresh", n_real=80, n_generated=120),
)


def normals(key_path: rng.KeyPath, *shape: int) -> np.ndarray:
    """float64[shape] standard normals by key path."""
    return ndtri(rng.uniforms(key_path, np.arange(math.prod(shape))) + 2.0**-54).reshape(shape)


def walk(
    key_path: rng.KeyPath,
    seeds: int,
    generations: int = 5,
    step: float = 0.05,
    noise: float = 0.02,
    drift: float = 0.0,
) -> np.ndarray:
    """Bias float[seeds, generations+1] from 0.3 on, which drifts and is measured with noise."""
    steps = drift + step * normals((*key_path, "step"), seeds, generations)
    b = np.full((seeds, generations + 1), 0.3)
    for g in range(generations):
        b[:, g + 1] = b[:, g] + steps[:, g]
    return b + noise * normals((*key_path, "noise"), seeds, generations + 1)


def contrast(key_path: rng.KeyPath, seeds: int, **loop: float) -> np.ndarray:
    """Contrasts of a loop against a control that does not drift but is otherwise alike."""
    changes = []
    for name, parameters in (("loop", loop), ("control", {**loop, "drift": 0.0})):
        b = walk((*key_path, name), seeds, **parameters)
        changes.append(b[:, -1] - b[:, 0])
    return changes[0] - changes[1]


def false_findings(trials: int) -> Iterator[dict]:
    """Loop and control both random walks: every significant contrast is false.

    Arms share half of what moves them, as arms of the same seeds do.
    """
    for seeds, count in ((6, 1), (6, 6), (8, 6), (12, 6)):
        false = 0
        for trial in range(trials):
            key_path = (trial, "false", seeds)
            common = contrast((*key_path, "common"), seeds)
            own = [contrast((*key_path, m), seeds) for m in range(count)]
            false += sign_test.joint_sign_flip(common + np.array(own)).min() <= 0.05
        rate = false / trials
        bound = 0.05 + ERRORS * math.sqrt(0.05 * 0.95 / trials)
        yield {
            "case": "false findings on random walks, joint test",
            "seeds": seeds,
            "arms": count,
            "rate": rate,
            "bound": round(bound, 4),
            "ok": bool(rate <= bound),
        }


SKEWED = {
    "lognormal, 0.5": lambda u: np.exp(0.5 * ndtri(u)) - math.exp(0.5**2 / 2),
    "lognormal, 1.0": lambda u: np.exp(ndtri(u)) - math.exp(0.5),
    "lognormal, 1.5": lambda u: np.exp(1.5 * ndtri(u)) - math.exp(1.5**2 / 2),
    "-0.2 in a fifth, +0.05 else": lambda u: np.where(u < 0.2, -0.2, 0.05),
}


def skewed(trials: int) -> Iterator[dict]:
    """Contrasts of mean 0 that loop and control cannot exchange: how far "exact" then is off."""
    for name, quantile in SKEWED.items():
        for seeds in (6, 12):
            u = rng.uniforms((0, "skewed", name, seeds), np.arange(trials * seeds))
            p = [sign_test.sign_flip(d) for d in quantile(u.reshape(trials, seeds) + 2.0**-54)]
            yield {
                "case": "contrasts of mean 0 called significant at 0.05, skewed",
                "contrasts": name,
                "seeds": seeds,
                "rate": float(np.mean(np.array(p) <= 0.05)),
            }


def joint_power(trials: int) -> Iterator[dict]:
    """How often a true contrast, in standard deviations, is found among arms without one."""
    for arms in (1, 2, 6):
        for seeds in (6, 8, 10, 12):
            for effect in (1.0, 1.5, 2.0, 3.0):
                found = 0
                fewer = max(trials // 4, 1)
                for trial in range(fewer):
                    table = normals((trial, "joint power", seeds), arms, seeds)
                    table[0] += effect
                    found += sign_test.joint_sign_flip(table)[0] <= 0.05
                yield {
                    "case": "power of the joint test",
                    "arms": arms,
                    "seeds": seeds,
                    "contrast_in_sd": effect,
                    "power": found / fewer,
                    "trials": fewer,
                }


def power(trials: int) -> Iterator[dict]:
    """How often a true contrast of so many standard deviations between seeds is found."""
    for metrics in (1, 3):
        for seeds in (6, 7, 8, 12):
            unit = np.linspace(-1, 1, seeds)
            detectable = sign_test.smallest_detectable(unit / np.std(unit, ddof=1), metrics, 0.05)
            for effect in (0.5, 1.0, 1.5, 2.0, detectable):
                if math.isinf(effect):
                    continue
                d = effect + normals((0, "power", seeds, metrics), trials, seeds)
                found = np.mean([sign_test.sign_flip(row) * metrics <= 0.05 for row in d])
                yield {
                    "case": "power at Holm's first level",
                    "metrics": metrics,
                    "seeds": seeds,
                    "contrast_in_sd": round(effect, 3),
                    "smallest_detectable": effect is detectable,
                    "power": float(found),
                }


def law(case: str, observed: np.ndarray, expected: np.ndarray, **facts) -> dict:
    """Observed float[trials,T] against the law float[T], in standard errors of the mean."""
    error = observed.std(axis=0, ddof=1) / math.sqrt(len(observed))
    mean = observed.mean(axis=0)
    off = np.abs(mean - expected) / error
    return {
        "case": case,
        **facts,
        "law": np.round(expected, 4).tolist(),
        "mean": np.round(mean, 4).tolist(),
        "half_width_95": np.round(1.96 * error, 4).tolist(),
        "worst_in_errors": round(float(off.max()), 2),
        "ok": bool((off < ERRORS).all()),
    }


def gaussian(trials: int, rule: str, n: int, generations: int, **values) -> list[np.ndarray]:
    """Means, traces and sizes of pools of that many loops in two dimensions."""
    found = [
        closed_form.gaussian_loop(
            PoolConfig(rule), (trial, "gauss"), n, generations, n, 2, **values
        )
        for trial in range(trials)
    ]
    return [np.stack(column) for column in zip(*found, strict=True)]


def gaussian_laws(trials: int) -> Iterator[dict]:
    """E tr(Sigma_t) = lambda^t tr(Sigma_0) under replace, and how far the mean wanders."""
    n = 20
    t = np.arange(8)
    for scale in (1.0, 0.8):
        for unbiased in (True, False):
            _, trace, _ = gaussian(trials, "replace", n, len(t), scale=scale, unbiased=unbiased)
            expected = 2 * scale**t * (1 if unbiased else (1 - 1 / n) ** (t + 1))
            case = "trace of the covariance, Gaussian loop, replace"
            yield law(case, trace, expected, scale=scale, unbiased=unbiased)
    mean, _, _ = gaussian(trials, "replace", n, len(t))
    yield law(
        "squared error of the mean, Gaussian loop, replace", (mean**2).sum(axis=2), 2 / n * (t + 1)
    )
    mean, _, _ = gaussian(trials, "accumulate", n, 20)
    squared = (mean**2).sum(axis=2).mean(axis=0)
    yield {
        "case": "squared error of the mean, Gaussian loop, accumulate",
        "bound": round(2 / n * np.pi**2 / 6, 4),
        "mean_at_generation_0_1_5_19": np.round(squared[[0, 1, 5, 19]], 4).tolist(),
        "ok": bool((squared < 1.1 * 2 / n * np.pi**2 / 6).all()),
    }


SHARE = np.array([0.7, 0.5])


def real_points(n: int, first: int = 0) -> Images:
    """n points of two classes in turn, of every 20 of a class exactly SHARE in group 0."""
    label = np.arange(n) % 2
    turn = np.arange(n) // 2
    return closed_form.points(label, turn % 20 >= 20 * SHARE[label], -1, first)


def multinomial_laws(trials: int, generations: int = 8) -> Iterator[dict]:
    """Drift under replace as Wright and Fisher have it, and forecast intervals of every rule."""
    real = real_points(200)
    reserve = real_points(1200, 200)
    for rule in RULES:
        loops = [
            closed_form.multinomial_loop(rule, (trial, "loop"), real, reserve, generations, 200, 2)
            for trial in range(trials)
        ]
        pools, generated = (np.stack(column)[..., 0] for column in zip(*loops, strict=True))
        if rule.rule == "replace":
            t = np.arange(1, generations + 1)
            share = generated[..., 0]
            yield law("aligned share, multinomial loop, replace", share, np.full(generations, 0.7))
            expected = 0.21 * (1 - 1 / 100) ** t
            yield law("heterozygosity, multinomial loop, replace", share * (1 - share), expected)
        yield coverage(rule, pools, generated)


def coverage(rule: PoolConfig, pools: np.ndarray, generated: np.ndarray) -> dict:
    """How often the intervals of `predict`, for a copying generator, hold the loop's shares."""
    generations = pools.shape[1]
    sizes = dynamics.expected_sizes(np.array([100, 100]), 200)
    loop = dynamics.Loop(rule, SHARE, sizes, dynamics.COPY)
    of_pools, bands = dynamics.predict(loop, generations, (0, "prediction", rule.rule))
    rates = np.zeros(generations)
    for g in range(generations):
        band = dynamics.Band(bands.mean[g], bands.low[g], bands.high[g])
        rates[g] = dynamics.score(generated[:, g], band, {})["coverage"]
    whole = dynamics.score(pools, of_pools, {})["coverage"]
    # Quantiles of a discrete share cannot cover exactly: 0.015.
    margin = 0.015 + ERRORS * math.sqrt(0.95 * 0.05 / (2 * len(generated)))
    return {
        "case": "coverage of 95 % intervals, multinomial loop",
        "rule": rule.rule,
        "generated_by_generation": np.round(rates, 3).tolist(),
        "generated": round(float(rates.mean()), 3),
        "pools": round(whole, 3),
        "ok": bool((np.abs(rates - 0.95) < margin).all()),
    }


def lines(trials: int) -> Iterator[str]:
    """Yields every case as a line of JSON."""
    for cases in (false_findings, skewed, power, joint_power, gaussian_laws, multinomial_laws):
        for line in cases(trials):
            yield json.dumps({"trials": trials, **line})


def main() -> None:
    """Prints a JSON line per case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    for line in lines(parser.parse_args().trials):
        print(line, flush=True)


if __name__ == "__main__":
    main()
