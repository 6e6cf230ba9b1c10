"""Each loop against copy machines of its own sizes, and the reasons for having no null."""

import numpy as np
import pytest
from sidestudy import make_row

from selfloop_jax.analysis import arms, drift

REAL = np.array([[60, 30, 9, 1], [50, 0, 40, 10]])


def loop(generated: list[np.ndarray], rule: str = "replace", seed: int = 0, **facts) -> list[dict]:
    """A run that generates these tables of counts."""
    rows = []
    for g, counts in enumerate(generated):
        row = make_row("main", f"run-{seed}", seed, g, 0.5, 0.5, rule)
        row["pool.class_counts"] = REAL.sum(axis=1)
        row["pool.subgroup_counts"] = REAL.ravel()
        row["generated.class_counts"] = counts.sum(axis=1)
        row["generated.subgroup_counts"] = counts.ravel()
        rows.append(row | facts)
    return rows


KEEPS_ALL = [np.array([[9, 9, 1, 1], [10, 0, 5, 5]])] * 4
LOSES_ALL = [np.array([[20, 0, 0, 0], [20, 0, 0, 0]])] * 4


def test_a_loop_that_keeps_every_subgroup_lies_above_and_one_that_loses_all_below():
    for generated, place in ((KEEPS_ALL, 1), (LOSES_ALL, -1)):
        rows = [row for seed in range(3) for row in loop(generated, seed=seed)]
        ((one,), reasons) = drift.drifts(arms.arms(rows))
        assert reasons == []
        assert one.observed.shape == (3, 4)
        assert one.places[-1] == place
    np.testing.assert_allclose(one.observed, 2 / 7)


def test_a_copy_machine_lies_inside_and_means_scatter_less_than_runs():
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(5):
        share = REAL / REAL.sum(axis=1, keepdims=True)
        generated = []
        for _ in range(3):
            generated.append(np.array([rng.multinomial(20, row) for row in share]))
            share = generated[-1] / 20
        rows += loop(generated, seed=seed)
    ((one,), _) = drift.drifts(arms.arms(rows))
    assert (one.places == 0).all()
    assert ((one.mean.high - one.mean.low) < (one.single.high - one.single.low)).all()
    assert (np.diff(one.mean.mean) < 0).all()


def test_one_seed_has_one_band():
    ((one,), _) = drift.drifts(arms.arms(loop(KEEPS_ALL)))
    np.testing.assert_array_equal(one.mean.low, one.single.low)


def test_a_rule_that_begins_with_a_part_starts_from_the_training_images():
    facts = {"setting.pool.budget": "60", "train.class_counts": REAL.sum(axis=1)}
    rows = loop(KEEPS_ALL, "accumulate_subsample", **facts)
    made, reasons = drift.drifts(arms.arms(rows))
    assert made == []
    assert "lack the counts of subgroups" in reasons[0]
    rows = loop(
        KEEPS_ALL, "accumulate_subsample", **facts, **{"train.subgroup_counts": REAL.ravel()}
    )
    assert len(drift.drifts(arms.arms(rows))[0]) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"setting.diffusion.condition_on": "label_group"}, "conditioned on the group"),
        ({"setting.pool.rule": "mine"}, "does not say how shares follow"),
        ({"pool.subgroup_counts": np.zeros(8)}, "no real image has a known group"),
        ({"generation": 7}, "no run is complete from generation 0 on"),
    ],
)
def test_the_reason_for_no_null_is_named(change, reason):
    made, reasons = drift.drifts(arms.arms([row | change for row in loop(KEEPS_ALL)]))
    assert made == []
    assert reasons == [f"all runs: no drift null: {reasons[0].split(': ')[-1]}"]
    assert reason in reasons[0]


def test_numbers_of_an_earlier_version_have_no_null():
    rows = loop(KEEPS_ALL)
    for row in rows:
        row.pop("pool.subgroup_counts")
    assert "as those of an earlier version do" in drift.drifts(arms.arms(rows))[1][0]
