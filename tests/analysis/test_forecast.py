"""Forecasts of loops from a side study whose curves are known."""

import math

import numpy as np
import pytest
from sidestudy import CLASSES, REAL, make_row, make_side_study

from selfloop_jax.analysis import arms, forecast
from selfloop_jax.config import PoolConfig
from selfloop_jax.config.fields import leaves
from selfloop_jax.data import pool_rules


def test_the_curves_of_the_side_study_are_found():
    found = forecast.curves(make_side_study())
    np.testing.assert_allclose(found.scratch.coefficients, [-0.2, 0.9], atol=0.01)
    np.testing.assert_allclose(found.fine_tuned.coefficients, [-0.1, 0.5, 0.4], atol=0.1)
    assert found.generators == {"scratch": 4, "fine_tuned": 8}  # two rules share a generation 0
    assert len(found.points["scratch"]) == 4 * CLASSES
    assert len(found.points["fine_tuned"]) == 8 * CLASSES
    np.testing.assert_allclose(found.gap(0.5)[0], 0.3, atol=1e-9)


def make_loops(found: forecast.Curves) -> list[dict]:
    """Two seeds of two pool rules that follow the curves exactly."""
    loops = []
    for rule in ("replace", "accumulate"):
        for seed in range(2):
            shares = [0.5]
            pools = [0.5]
            expected = found.scratch(0.5)
            for g in range(1, 5):
                sizes = pool_rules.Sizes(real=REAL, generated=1000)
                inputs = pool_rules.ShareInputs(PoolConfig(rule), g, 0.5, shares, sizes)
                pools.append(float(pool_rules.expected_share(inputs)))
                expected = found.fine_tuned(pools[-1], expected)
                shares.append(float(expected))
            for g in range(5):
                name = f"{rule}-{seed}"
                loops.append(make_row("main", name, seed, g, pools[g], shares[g], rule))
    return loops


def test_a_loop_on_the_curves_is_forecast_better_than_by_no_change():
    found = forecast.curves(make_side_study())
    made, reasons = forecast.forecasts(arms.arms(make_loops(found)), found)
    assert reasons == []
    assert [one.arm.name for one in made] == ["replace", "accumulate"]
    for one in made:
        for quantity in ("generated share", "generated share, by class"):
            score = one.scores[quantity]
            assert score["error"] < 0.005 < score["error_naive"]
            assert score["coverage"] == 1
        assert one.scores["gap"]["error"] < 0.01
    assert "Fine-tuned a, b, c = " in forecast.response_formulas(found)


def test_without_aligned_groups_there_are_no_curves():
    unbiased = [row | {"pool.aligned_counts": np.zeros(CLASSES)} for row in make_side_study()]
    assert forecast.curves(unbiased) is None
    assert forecast.curves([]) is None


def test_one_level_of_bias_gives_no_curves():
    one = [row for row in make_side_study() if row["config.data.bias.rho"] == "0.2"]
    assert forecast.curves(one) is None


def loop(**facts) -> list[dict]:
    return [make_row("main", "a", 0, g, 0.5, 0.5, "replace") | facts for g in range(2)]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (loop(), "too few generators"),
        (loop(**{"setting.diffusion.later.start": "scratch"})[:1], "two generations"),
        (loop(**{"setting.diffusion.condition_on": "label_group"}), "conditioned on the group"),
        (loop(**{"setting.pool.rule": "mine"}), "its pool rule does not say how shares follow"),
        (loop(**{"pool.aligned_counts": np.zeros(CLASSES)}), "no class has an aligned group"),
    ],
)
def test_the_reason_for_no_forecast_is_named(rows, reason):
    found = forecast.curves([row for row in make_side_study() if row["generation"] == 0])
    assert found.fine_tuned is None
    made, reasons = forecast.forecasts(arms.arms(rows), found)
    assert made == []
    assert reasons[0].startswith("all runs: no forecast: ")
    assert reason in reasons[0]


def test_generators_from_scratch_need_no_fine_tuned_ones():
    found = forecast.curves([row for row in make_side_study() if row["generation"] == 0])
    rows = loop(**{"setting.diffusion.later.start": "scratch"})
    made, reasons = forecast.forecasts(arms.arms(rows), found)
    assert len(made) == 1
    assert reasons == []


def test_classes_without_an_aligned_group_are_left_out():
    found = forecast.curves(make_side_study())
    rows = [make_row("main", "a", 0, g, 0.5, 0.5, "replace") for g in range(3)]
    ((whole,), _) = forecast.forecasts(arms.arms(rows), found)
    for row in rows:
        row["pool.aligned_counts"][5:] = 0
        row["generated.aligned_counts"][5:] = 0
    ((half,), _) = forecast.forecasts(arms.arms(rows), found)
    np.testing.assert_allclose(half.share.mean, whole.share.mean)
    np.testing.assert_allclose(half.shares, whole.shares)


@pytest.mark.parametrize("rule", pool_rules.POOL_RULES)
def test_every_rule_is_forecast_with_its_own_sizes(rule):
    sizes = {"alpha": "0.25", "budget": "800", "n_real": "300", "n_generated": "100"}
    settings = {f"setting.pool.{name}": value for name, value in sizes.items()}
    shares = (0.3, 0.4, 0.4)
    rows = [make_row("main", "a", 0, g, 0.5, shares[g], rule) | settings for g in range(3)]
    found = forecast.curves(make_side_study())
    ((one,), _) = forecast.forecasts(arms.arms(rows), found)
    assert np.isfinite(one.share.mean).all()
    assert (one.share.low <= one.share.high).all()
    if rule in ("substitute", "fresh"):  # a quarter of the pool is generated
        expected = found.fine_tuned(0.75 * 0.5 + 0.25 * 0.3, found.scratch(0.5))
        assert one.share.mean[0, 1] == pytest.approx(float(expected))


def test_fresh_is_forecast_from_the_shares_of_the_reserve():
    settings = {"setting.pool.n_real": "300", "setting.pool.n_generated": "100"}
    rows = [make_row("main", "a", 0, g, 0.6, 0.6, "fresh") | settings for g in range(3)]
    found = forecast.curves(make_side_study())
    ((of_train,), _) = forecast.forecasts(arms.arms(rows), found)
    for row in rows:
        row["reserve.class_counts"] = np.full(CLASSES, 100.0)
        row["reserve.aligned_counts"] = np.full(CLASSES, 50.0)
    rows[0]["reserve.class_counts"] = np.r_[np.full(CLASSES - 1, 100.0), 0]  # a class without
    ((one,), _) = forecast.forecasts(arms.arms(rows), found)
    expected = found.fine_tuned(0.75 * 0.5 + 0.25 * 0.6, found.scratch(0.6))
    last = found.fine_tuned(0.6, found.scratch(0.6))
    assert one.share.mean[0, 1] == pytest.approx(float(0.9 * expected + 0.1 * last), abs=1e-3)
    assert of_train.share.mean[0, 1] == pytest.approx(float(last), abs=1e-3)


def test_forecasts_carry_their_rivals():
    rows = [make_row("main", "a", 0, g, 0.5, (0.7, 0.6, 0.6)[g], "replace") for g in range(3)]
    for row in rows:  # a rule may begin with a part of the training images
        row["train.class_counts"] = np.full(CLASSES, 1000.0)
        row["train.aligned_counts"] = np.full(CLASSES, 400.0)
    ((one,), _) = forecast.forecasts(arms.arms(rows), forecast.curves(make_side_study()))
    assert set(one.share_rivals) == set(one.gap_rivals) == set(forecast.RIVALS)
    np.testing.assert_allclose(one.share_rivals["real"], [[0.4]])
    np.testing.assert_allclose(one.share_rivals["copy"], [[0.7] * 3])
    np.testing.assert_allclose(one.share_rivals["naive"], [[0.7]])
    np.testing.assert_allclose(one.gap_rivals["copy"][0, 1:], 0.1 + 0.4 * 0.7, atol=1e-6)
    assert one.scores["generated share"]["error_copy"] == pytest.approx(0.1)


def test_a_rule_gets_the_whole_section_of_its_config(monkeypatch):
    seen = []

    class Recording(pool_rules.Replace):
        def expected_share(self, shares):
            seen.append(shares.section)
            return super().expected_share(shares)

    monkeypatch.setitem(pool_rules.POOL_RULES, "mine", Recording())
    section = PoolConfig("mine", 7, 0.25, True, 3, 4)
    assert all(value != declared.default for _, value, declared in leaves(section))
    settings = {f"setting.pool.{name}": str(value) for name, value, _ in leaves(section)}
    rows = [make_row("main", "a", 0, g, 0.5, 0.5, "mine") | settings for g in range(2)]
    found = forecast.curves(make_side_study())
    assert len(forecast.forecasts(arms.arms(rows), found)[0]) == 1
    assert set(seen) == {section}


def test_the_gap_forecast_is_undefined_outside_the_measured_shares():
    found = forecast.curves(make_side_study())
    rows = [make_row("main", "a", 0, g, 0.95, 0.95, "replace") for g in range(2)]
    ((one,), _) = forecast.forecasts(arms.arms(rows), found)
    assert math.isnan(one.gap.mean[0, 1])
    assert one.scores["gap"]["undefined"] == 1
