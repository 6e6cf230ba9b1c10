"""What a change is made of: ladders of controls."""

import numpy as np
import pytest

from selfloop_jax.analysis.arms import arms
from selfloop_jax.analysis.decomposition import LADDER, decompositions
from selfloop_jax.analysis.numbers import Row
from selfloop_jax.report.decomposition import decomposition_table

METRIC = "equal_opportunity_difference_mean"
CHANGES = dict(zip((*LADDER, "none"), (0.0, 0.1, 0.3, 0.35, 0.33), strict=True))


def rows(kinds: tuple[str, ...] = tuple(CHANGES), seeds: int = 4) -> list[Row]:
    found = []
    for kind in kinds:
        for seed in range(seeds):
            for g, value in enumerate((0.2, 0.2 + CHANGES[kind] + 0.01 * seed)):
                found.append(
                    {
                        **{"set": "main", "run": f"{kind}-{seed}", "seed": seed, "generation": g},
                        **{"config.loop.control": kind, "setting.loop.control": kind},
                        "setting.pool.rule": "replace",
                        f"metrics.{METRIC}": value,
                    }
                )
    return found


def test_steps_add_up_to_the_change_of_the_loop():
    (one,) = decompositions(arms(rows()), METRIC)
    steps = one.steps()
    assert [name for name, *_ in steps] == [*LADDER, "loop"]
    np.testing.assert_allclose([added for _, _, added, _ in steps], [0.015, 0.1, 0.2, 0.05, -0.02])
    assert sum(added for _, _, added, _ in steps) == pytest.approx(steps[-1][1])


@pytest.mark.parametrize("missing", LADDER)
def test_a_loop_that_lacks_a_rung_has_no_ladder(missing):
    kinds = tuple(kind for kind in CHANGES if kind != missing)
    assert decompositions(arms(rows(kinds)), METRIC) == []


def test_only_seeds_that_have_all_rungs_count():
    fewer = [row for row in rows() if row["run"] not in ("neutral_drift-1", "none-3")]
    (one,) = decompositions(arms(fewer), METRIC)
    assert all(len(change) == 2 for change in one.rungs.values())
    table = decomposition_table([one])
    assert table.rows[0] == ("loop, mean equal opportunity difference, 2 seeds",)
    assert [row[0] for row in table.rows[1:]] == [*LADDER, "loop"]
