"""Runs that differ in their seed alone are one arm; an arm has a control where a control was run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from selfloop_jax.analysis.numbers import FACT, FIELD, Row

CONTROL = f"{FIELD}loop.control"


POOL = f"{FIELD}pool."


CONTROLS = ("no_synthetic", "fresh_real", "oracle_resample")


@dataclass(frozen=True)
class Arm:
    """The runs of one config, one per seed: {run: {generation: row}}."""

    fields: dict[str, str]  # the config fields in which the arms differ, with their values
    runs: dict[str, dict[int, Row]]

    @property
    def control(self) -> str:
        """`none` for a loop, else which control it is."""
        return self.fact("loop.control") or "none"

    @property
    def name(self) -> str:
        """Its values, with the field's last word where the value does not speak for itself."""
        shown = {field: value for field, value in self.fields.items() if self._tells(field, value)}
        words = [
            value if _speaks(value) else f"{f.rsplit('.', 1)[-1]} {value}"
            for f, value in shown.items()
        ]
        return ", ".join(words) or "all runs"

    def _tells(self, field: str, value: str) -> bool:
        if field == CONTROL:
            return value != "none"
        return not (self.without_rule and field.startswith(POOL))

    @property
    def without_rule(self) -> bool:
        """Whether its pools are the same under every rule."""
        return self.control == "no_synthetic" and self.fact("pool.rule") != "accumulate_subsample"

    @property
    def generations(self) -> list[int]:
        """The generations that any seed has."""
        return sorted({g for rows in self.runs.values() for g in rows})

    def series(self, column: str) -> np.ndarray:
        """float64[S,generations] of a number; NaN where a run lacks it."""
        return np.array(
            [
                [float(rows.get(g, {}).get(column, np.nan)) for g in self.generations]
                for rows in self.runs.values()
            ]
        )

    def interval(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """Ends float64[generations]: over seeds where there are several, else what the one run recorded."""
        values = self.series(column)
        if len(values) > 1:
            return _interval(values)
        return self.series(f"{column}.low")[0], self.series(f"{column}.high")[0]

    @property
    def seeds(self) -> list[int]:
        """The seed of each run."""
        return [_seed(generations) for generations in self.runs.values()]

    def fact(self, name: str) -> str:
        """A config field that is the same in all its runs, as text."""
        return next(iter(next(iter(self.runs.values())).values())).get(FACT + name, "")


def _speaks(value: str) -> bool:
    return not value.replace(".", "").replace("-", "").isdigit() and value not in (
        "true",
        "false",
        "",
    )


def arms(rows: Sequence[Row]) -> list[Arm]:
    """The arms of the runs, in the order in which they come.

    Of several runs of one seed the longest counts, the first of equally long ones.
    """
    found: dict[tuple[tuple[str, str], ...], Arm] = {}
    for row in rows:
        fields = {name: value for name, value in row.items() if name.startswith(FIELD)}
        arm = found.setdefault(tuple(fields.items()), Arm(_differing(fields, rows), {}))
        arm.runs.setdefault(row["run"], {})[row["generation"]] = row
    return [replace(arm, runs=_one_per_seed(arm.runs)) for arm in found.values()]


def _one_per_seed(runs: dict[str, dict[int, Row]]) -> dict[str, dict[int, Row]]:
    longest: dict[int, str] = {}
    for name, generations in runs.items():
        seed = _seed(generations)
        if seed not in longest or len(generations) > len(runs[longest[seed]]):
            longest[seed] = name
    return {
        name: generations
        for name, generations in runs.items()
        if longest[_seed(generations)] == name
    }


def _seed(generations: dict[int, Row]) -> int:
    return next(iter(generations.values()))["seed"]


def _differing(fields: dict[str, str], rows: Sequence[Row]) -> dict[str, str]:
    return {
        name: value for name, value in fields.items() if len({row.get(name) for row in rows}) > 1
    }


def control_of(arm: Arm, every: Sequence[Arm], kind: str) -> Arm | None:
    """The control arm of that kind which matches a loop's config, or None."""
    for other in every:
        free = (CONTROL, POOL) if other.without_rule else (CONTROL,)
        same = all(
            other.fields.get(f) == value
            for f, value in arm.fields.items()
            if not f.startswith(free)
        )
        if other.control == kind and same:
            return other
    return None


def _interval(values: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Student-t interval over seeds of each column of float64[S,G]; NaN with fewer than three seeds.

    That of two is wider than any plot and says less than their two curves.
    """
    n = np.sum(~np.isnan(values), axis=0)
    mean = np.nansum(values, axis=0) / np.maximum(n, 1)
    deviation = np.sqrt(np.nansum((values - mean) ** 2, axis=0) / np.maximum(n - 1, 1))
    half = (
        stats.t.ppf((1 + level) / 2, np.maximum(n - 1, 1)) * deviation / np.sqrt(np.maximum(n, 1))
    )
    half = np.where(n > 2, half, np.nan)
    return mean - half, mean + half
