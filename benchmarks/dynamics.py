"""Do verdicts, predictions and loops do what they are said to do? One JSON line per case.

    python -m benchmarks.dynamics

Every case has 1,000 trials (`--trials`) with a known truth. `ok` says whether the number is where
theory puts it: rates within four binomial standard errors of their bound, means within four
standard errors of the law. Nothing is trained, half a minute on one core; every random number is
keyed by its trial.
"""

import argparse
import json
import math
import types
from collections import Counter
from collections.abc import Iterator

import numpy as np
from scipy.special import ndtri

from benchmarks import closed_form
from selfloop_jax.data.images import Images
from selfloop_jax.measure import dynamics, sign_test
from selfloop_jax.runtime import rng

ERRORS = 4.0


RULES = {
    "replace": {},
    "real_plus_latest": {},
    "accumulate": {},
    "accumulate_subsample": {"budget": 120},
    "substitute": {"alpha": 0.5},
    "fresh": {"n_real": 80, "n_generated": 120},
}


def normals(address: rng.KeyPath, *shape: int) -> np.ndarray:
    """float64[shape] standard normals by address."""
    return ndtri(rng.uniforms(address, np.arange(math.prod(shape))) + 2.0**-54).reshape(shape)


def walk(address, seeds, generations=5, step=0.05, noise=0.02, drift=0.0, pull=0.0) -> np.ndarray:
    """Bias float[seeds, generations+1] from .3 on: drifting, pulled back to .3, and measured with noise."""
    steps = drift + step * normals((*address, "step"), seeds, generations)
    b = np.full((seeds, generations + 1), 0.3)
    for g in range(generations):
        b[:, g + 1] = b[:, g] + steps[:, g] + pull * (0.3 - b[:, g])
    return b + noise * normals((*address, "noise"), seeds, generations + 1)


def contrast(address: rng.KeyPath, seeds: int, **loop: float) -> np.ndarray:
    """Contrasts of a loop against a control that does not drift but is otherwise alike."""
    changes = []
    for name, parameters in (("loop", loop), ("control", {**loop, "drift": 0.0})):
        b = walk((*address, name), seeds, **parameters)
        changes.append(b[:, -1] - b[:, 0])
    return changes[0] - changes[1]


def false_verdicts(trials: int) -> Iterator[dict]:
    """Loop and control both random walks: any amplification or attenuation is false."""
    for seeds, metrics in ((6, 1), (6, 3), (7, 3), (8, 3), (12, 3)):
        false = 0
        for trial in range(trials):
            address = (trial, "false", seeds)
            rows = sign_test.verdicts(
                {str(m): contrast((*address, m), seeds) for m in range(metrics)}
            )
            false += any(row["verdict"] != "not distinguishable" for row in rows.values())
        rate = false / trials
        yield {
            "case": "false verdicts on random walks",
            "seeds": seeds,
            "metrics": metrics,
            "rate": rate,
            "bound": 0.07,
            "ok": rate <= 0.07,
        }


CONSTRUCTED = {
    "amplification": ({"drift": 0.03, "step": 0.01}, 0.05),
    "attenuation": ({"drift": -0.03, "step": 0.01}, 0.05),
    "no change": ({"step": 0.01, "noise": 0.01, "pull": 0.5}, 0.05),
    "not distinguishable": ({"step": 0.05}, None),
}


def constructed(trials: int) -> Iterator[dict]:
    """One metric for each verdict, alone or as a family of four; how often each of them gets which."""
    margins = {name: margin for name, (_, margin) in CONSTRUCTED.items() if margin}
    for seeds, metrics in ((6, 1), (6, 4), (8, 4), (12, 4)):
        got = {name: Counter() for name in CONSTRUCTED}
        for trial in range(trials):
            d = {
                name: contrast((trial, "built", seeds, name), seeds, **loop)
                for name, (loop, _) in CONSTRUCTED.items()
            }
            for family in [d] if metrics > 1 else [{name: x} for name, x in d.items()]:
                limits = {name: margin for name, margin in margins.items() if name in family}
                for name, row in sign_test.verdicts(family, limits).items():
                    got[name][row["verdict"]] += 1
        for name, counts in got.items():
            yield {
                "case": "constructed dynamics",
                "truth": name,
                "seeds": seeds,
                "metrics": metrics,
                "returned": {key: count / trials for key, count in sorted(counts.items())},
                "right": counts[name] / trials,
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
    """Observed float[trials,T] against the law float[T]: means, their intervals, the worst deviation."""
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


def section(rule: str) -> types.SimpleNamespace:
    """Section `pool` of a config."""
    fields = {"budget": 0, "alpha": 0.0, "match_group": False, "n_real": 0, "n_generated": 0}
    return types.SimpleNamespace(rule=rule, **(fields | RULES[rule]))


def gaussian(trials: int, rule: str, n: int, generations: int, **values) -> list[np.ndarray]:
    """Means, traces and sizes of pools of that many loops in two dimensions."""
    found = [
        closed_form.gaussian_loop(section(rule), (trial, "gauss"), n, generations, n, 2, **values)
        for trial in range(trials)
    ]
    return [np.stack(column) for column in zip(*found, strict=True)]


def gaussian_laws(trials: int) -> Iterator[dict]:
    """E tr(Sigma_t) = lambda^t tr(Sigma_0) under replace, and how far the mean wanders."""
    n, t = 20, np.arange(8)
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
    label, turn = np.arange(n) % 2, np.arange(n) // 2
    return closed_form.points(label, turn % 20 >= 20 * SHARE[label], -1, first)


def multinomial_laws(trials: int, generations: int = 8) -> Iterator[dict]:
    """Drift under replace as Wright and Fisher have it, and intervals of predictions for every rule."""
    real, reserve = real_points(200), real_points(1200, 200)
    for rule in RULES:
        found = [
            closed_form.multinomial_loop(
                section(rule), (trial, "loop"), real, reserve, generations, 200, 2
            )
            for trial in range(trials)
        ]
        pools, drawn = (np.stack(column)[..., 0] for column in zip(*found, strict=True))
        if rule == "replace":
            t = np.arange(1, generations + 1)
            yield law(
                "aligned share, multinomial loop, replace", drawn[..., 0], np.full(generations, 0.7)
            )
            heterozygosity = 0.21 * (1 - 1 / 100) ** t
            both = drawn[..., 0] * (1 - drawn[..., 0])
            yield law("heterozygosity, multinomial loop, replace", both, heterozygosity)
        yield coverage(rule, pools, drawn)


def coverage(rule: str, pools: np.ndarray, drawn: np.ndarray) -> dict:
    """How often the intervals of `predict` with the identity as response hold the loop's shares."""
    sizes = dynamics.expected_sizes(section(rule), np.array([100, 100]), 200)
    generations = pools.shape[1]
    address = (0, "prediction", rule)
    of_pools, of_drawn = dynamics.predict(
        rule, SHARE, sizes, dynamics.IDENTITY, generations, address
    )
    each = [
        dynamics.score(
            drawn[:, g], dynamics.Band(of_drawn.mean[g], of_drawn.low[g], of_drawn.high[g]), SHARE
        )
        for g in range(generations)
    ]
    rates = np.array([found["coverage"] for found in each])
    whole = dynamics.score(pools, of_pools, SHARE)["coverage"]
    error = math.sqrt(0.95 * 0.05 / (2 * len(drawn)))
    return {
        "case": "coverage of 95 % intervals, multinomial loop",
        "rule": rule,
        "drawn_by_generation": np.round(rates, 3).tolist(),
        "drawn": round(float(rates.mean()), 3),
        "pools": round(whole, 3),
        "ok": bool(
            (np.abs(rates - 0.95) < 0.015 + ERRORS * error).all()
        ),  # .015: quantiles of a discrete share
    }


def main() -> None:
    """Prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    trials = parser.parse_args().trials
    for cases in (false_verdicts, constructed, power, gaussian_laws, multinomial_laws):
        for line in cases(trials):
            print(json.dumps({**line, "trials": trials}), flush=True)


if __name__ == "__main__":
    main()
