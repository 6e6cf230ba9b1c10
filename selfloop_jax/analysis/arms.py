"""Arms: runs that differ only in their seed, each with the control that matches it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from selfloop_jax.analysis.numbers import FIELD, SETTING, Row, column
from selfloop_jax.data.controls import CONTROLS, NONE
from selfloop_jax.data.pool_rules import POOL_RULES, PoolRule

CONTROL = f"{FIELD}loop.control"
POOL = f"{FIELD}pool."
# Fields of the generator: how it is trained and sampled, not how many images of what it makes.
GENERATOR = (
    f"{FIELD}diffusion.",
    *(f"{FIELD}sample.{name}" for name in ("sampler", "steps", "guidance", "temperature", "clip")),
    f"{FIELD}sample.batch_per_device",
)


@dataclass(frozen=True)
class Arm:
    """The runs of one config, one per seed: {run: {generation: row}}."""

    fields: dict[str, str]  # the config fields in which the arms differ, with their values
    runs: dict[str, dict[int, Row]]

    @property
    def first(self) -> Row:
        """The first row of its first run."""
        return next(iter(next(iter(self.runs.values())).values()))

    @property
    def control(self) -> str:
        """`none` for a loop, else the kind of control."""
        return self.setting("loop.control") or NONE

    @property
    def is_loop(self) -> bool:
        """Whether it is no control."""
        return self.control == NONE

    @property
    def name(self) -> str:
        """The values of its fields; a value that needs it gets the last word of its field.

        Where several fields end in that word it gets all of the field.
        """
        ends = Counter(field.rsplit(".", 1)[-1] for field in self.fields)
        words = []  # "rho 0.5, accumulate": a rule needs no field, a number does
        for field, value in self.fields.items():
            if self._distinguishes(field, value):
                end = field.rsplit(".", 1)[-1]
                name = end if ends[end] == 1 else field.removeprefix(FIELD)
                words.append(value if _is_word(value) else f"{name} {value}")
        if words:
            return ", ".join(words)
        return "loop" if CONTROL in self.fields else "all runs"

    def _distinguishes(self, field: str, value: str) -> bool:
        if field == CONTROL:
            return value != NONE
        return not field.startswith(self.unread)

    @property
    def unread(self) -> tuple[str, ...]:
        """Prefixes of config fields that differ for its loops and do nothing to it."""
        fields: tuple[str, ...] = ()
        if self.without_rule:  # real images alone, the same under every pool rule
            fields += (POOL,)
        kind = CONTROLS.get(self.control)
        if kind is not None and not kind.of_a_run:  # trains classifiers alone
            fields += GENERATOR
        return fields

    @property
    def without_rule(self) -> bool:
        """Whether its pools are the same under every pool rule."""
        # With the real images alone a rule adds nothing, but it may still subsample them.
        control = CONTROLS.get(self.control)
        real_alone = control is not None and not control.held_out
        return real_alone and not (self.rule and self.rule.subsamples_real)

    @property
    def keeps_real(self) -> bool:
        """Whether its rule keeps the real images; so does one that this process does not know."""
        return self.rule is None or self.rule.keeps_real

    @property
    def rule(self) -> PoolRule | None:
        """Its pool rule; None where this process does not know it."""
        return POOL_RULES.get(self.setting("pool.rule"))

    @property
    def generations(self) -> list[int]:
        """The generations that any of its runs has."""
        numbers: set[int] = set()
        for rows in self.runs.values():
            numbers.update(rows)
        return sorted(numbers)

    @property
    def last(self) -> int:
        """The generation in which most runs end: one extended run must not drop all other seeds."""
        ends = Counter(max(rows) for rows in self.runs.values())
        return max(ends, key=lambda generation: (ends[generation], generation))

    @property
    def complete_runs(self) -> list[list[Row]]:
        """The rows, in order, of each run that has all generations of the arm."""
        complete = []
        for rows in self.runs.values():
            if len(rows) == len(self.generations):
                complete.append([rows[g] for g in self.generations])
        return complete

    @property
    def versions(self) -> set[str]:
        """The versions of the program that wrote its records."""
        return {row.get("version", "") for rows in self.runs.values() for row in rows.values()}

    @property
    def seeds(self) -> list[int]:
        """The seed of each run."""
        return [_seed(rows) for rows in self.runs.values()]

    def series(self, key: str, part: str = "value") -> np.ndarray:
        """Returns float64[S,generations] of a metric or one part of it; NaN where it is absent."""
        name = column(key, part)
        generations = self.generations
        values = np.full((len(self.runs), len(generations)), np.nan)
        for i, rows in enumerate(self.runs.values()):
            for j, generation in enumerate(generations):
                values[i, j] = rows.get(generation, {}).get(name, np.nan)
        return values

    def mean(self, key: str, part: str = "value") -> np.ndarray:
        """Returns float64[generations], the mean over the seeds that have the number."""
        values = self.series(key, part)
        known = ~np.isnan(values)
        total = np.nansum(values, axis=0)
        undefined = np.full(len(total), np.nan)
        # Not `np.nanmean`, which warns where no seed has the number.
        return np.divide(total, known.sum(axis=0), where=known.any(axis=0), out=undefined)

    def interval(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns both ends, float64[generations]: over several seeds, else that of the one run."""
        values = self.series(key)
        if len(values) > 1:
            return _interval(values)
        return self.series(key, "low")[0], self.series(key, "high")[0]

    def setting(self, name: str) -> str:
        """Returns a config field that is the same in all its runs, as text."""
        return self.first.get(SETTING + name, "")


def _is_word(value: str) -> bool:
    number = value.replace(".", "").replace("-", "").isdigit()
    return not number and value not in ("true", "false", "")


def arms(rows: Sequence[Row]) -> list[Arm]:
    """Returns the arms in the order of their first rows, each with one run per seed.

    Of several runs of one seed the longest counts, the first of equally long ones.
    """
    found: dict[tuple[tuple[str, str], ...], Arm] = {}
    for row in rows:
        # The seed is no config column, so runs that differ in it alone have equal fields.
        fields = {name: value for name, value in row.items() if name.startswith(FIELD)}
        key = tuple(fields.items())
        if key not in found:
            found[key] = Arm(_differing(fields, rows), {})
        found[key].runs.setdefault(row["run"], {})[row["generation"]] = row
    return [replace(arm, runs=_one_per_seed(arm.runs)) for arm in found.values()]


def _one_per_seed(runs: dict[str, dict[int, Row]]) -> dict[str, dict[int, Row]]:
    longest: dict[int, str] = {}
    for name, rows in runs.items():
        # Strictly longer: of equally long runs the first stays.
        seed = _seed(rows)
        if seed not in longest or len(rows) > len(runs[longest[seed]]):
            longest[seed] = name
    return {name: rows for name, rows in runs.items() if longest[_seed(rows)] == name}


def _seed(rows: dict[int, Row]) -> int:
    return next(iter(rows.values()))["seed"]


def _differing(fields: dict[str, str], rows: Sequence[Row]) -> dict[str, str]:
    """Fields in which any two of the rows differ: the CSV may have more, for a side study."""
    differing = {}
    for name, value in fields.items():
        if len({row.get(name) for row in rows}) > 1:
            differing[name] = value
    return differing


def control_of(arm: Arm, every: Sequence[Arm], kind: str) -> Arm | None:
    """Returns the control of that kind whose config matches a loop's otherwise, or None.

    Of several that match, the one with the most of the loop's seeds and then of its fields.
    """
    matching = [other for other in every if other.control == kind and _matches(arm, other)]

    def shared(other: Arm) -> tuple[int, int]:
        fields = sum(other.fields.get(field) == value for field, value in arm.fields.items())
        return len(set(arm.seeds) & set(other.seeds)), fields

    return max(matching, key=shared, default=None)


def _matches(loop: Arm, control: Arm) -> bool:
    """Whether the configs are the same but for the control and what it does not read."""
    free = (CONTROL, *control.unread)
    fixed = {field: value for field, value in loop.fields.items() if not field.startswith(free)}
    return all(control.fields.get(field) == value for field, value in fixed.items())


def without_loop(every: Sequence[Arm]) -> list[Arm]:
    """Returns the controls that match no loop; none where there is no loop at all."""
    loops = [arm for arm in every if arm.is_loop]
    controls = [arm for arm in every if not arm.is_loop] if loops else []
    return [arm for arm in controls if not any(_matches(loop, arm) for loop in loops)]


def _interval(values: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Student-t interval over seeds of each column of float64[S,G]; NaN below three seeds.

    The interval of two seeds is wider than any plot and says less than their two curves.
    """
    n = np.sum(~np.isnan(values), axis=0)
    # Divisors are kept above 0 to avoid warnings; `n` decides below which columns count.
    mean = np.nansum(values, axis=0) / np.maximum(n, 1)
    deviation = np.sqrt(np.nansum((values - mean) ** 2, axis=0) / np.maximum(n - 1, 1))
    quantile = special.stdtrit(np.maximum(n - 1, 1), (1 + level) / 2)  # of Student's t
    half = quantile * deviation / np.sqrt(np.maximum(n, 1))
    half = np.where(n > 2, half, np.nan)
    return mean - half, mean + half
