"""Forecasts from counts, in studies in which their law holds."""

from functools import cache

import countsstudy
import numpy as np
import pytest

from selfloop_jax.analysis import counts_forecast
from selfloop_jax.analysis.arms import arms
from selfloop_jax.analysis.numbers import RECALL, Row


@cache
def study() -> list[Row]:
    return countsstudy.make()


def split(rows: list[Row]) -> tuple[list, counts_forecast.Law]:
    found = counts_forecast.law([row for row in rows if row["set"] == "side"])
    assert found is not None
    return arms([row for row in rows if row["set"] == "main"]), found


@cache
def forecasts() -> tuple[list[counts_forecast.CountsForecast], list[str]]:
    return counts_forecast.forecasts(*split(study()))


def test_the_law_of_the_side_study_is_found():
    _, found = split(study())
    assert found.classifiers == 24
    assert {"own", "shortcut"} <= set(found.curve.terms)
    counts = countsstudy.real_counts(np.random.default_rng(5), 0.4)
    expected = countsstudy.CURVE.recall(counts)
    assert np.abs(found.curve.recall(counts) - expected).max() < 0.05


def test_quality_and_its_fall_come_from_the_other_half():
    made, reasons = forecasts()
    assert reasons == []
    assert len(made) == 6
    for one in made:
        assert one.fitted_on.start == pytest.approx(countsstudy.START, rel=0.1)
        assert one.fitted_on.factor == pytest.approx(countsstudy.FACTOR, rel=0.1)
        own = one.arm.fields["config.data.bias.rho"]
        assert own not in one.fitted_on.name
        assert one.fitted_on.mixing < 0.06  # copies


def test_where_the_law_holds_it_forecasts_better_than_its_rivals():
    made, _ = forecasts()
    for one in made:
        error = {name: one.errors(name).mean() for name in one.predicted}
        assert error[counts_forecast.DRIFT] < 0.06
        assert error[counts_forecast.OBSERVED] < 0.06
        if one.arm.setting("pool.rule") == "replace":
            assert error[counts_forecast.DRIFT] < error[counts_forecast.NO_CHANGE]
    found = [
        one
        for one in counts_forecast.comparisons(made)
        if not one.loop.arm.keeps_real
        and one.forecast == counts_forecast.DRIFT
        and one.rival in counts_forecast.PLANNED
    ]
    by_rival = {(one.rival, one.loop.fitted_on.name): one for one in found}
    assert len(by_rival) == 6
    for (rival, _), one in by_rival.items():
        if rival == counts_forecast.NO_CHANGE:
            assert one.difference < 0
            assert one.p < 0.05
        errors = (one.loop.errors(name) for name in (counts_forecast.DRIFT, rival))
        assert one.difference == pytest.approx(np.subtract(*errors).mean())


def test_the_forecast_from_drift_uses_nothing_that_was_observed_later():
    rows = [dict(row) for row in study()]
    for row in rows:
        # Of the half that is forecast; the other half fits the quality.
        if row["set"] == "main" and row["config.data.bias.rho"] == "0.6":
            row["generated.subgroup_counts"] = row["generated.subgroup_counts"][::-1]
            row["metrics.cas"] = 0.3
            if row["generation"]:
                row["pool.subgroup_counts"] = row["pool.subgroup_counts"][::-1]
                row["metrics.accuracy"] = 0.4
                row["metrics.equal_opportunity_difference_mean"] = 0.5
                row[RECALL] = row[RECALL][::-1]
    again, _ = counts_forecast.forecasts(*split(rows))
    by_name = {one.arm.name: one for one in again}
    for one in forecasts()[0]:
        if one.arm.fields["config.data.bias.rho"] == "0.6":
            other = by_name[one.arm.name]
            for name in (counts_forecast.DRIFT, counts_forecast.MIXED, counts_forecast.NO_CHANGE):
                np.testing.assert_array_equal(one.predicted[name], other.predicted[name])
            assert (one.gaps != other.gaps)[:, 1:].all()


def test_a_generator_that_mixes_classes_is_found_and_forecast():
    made, _ = counts_forecast.forecasts(*split(countsstudy.make(("replace",), mixing=0.3)))
    for one in made:
        assert one.fitted_on.mixing == pytest.approx(0.3, abs=0.08)
        mixed, copied = (
            one.errors(name).mean() for name in (counts_forecast.MIXED, counts_forecast.DRIFT)
        )
        assert mixed < copied


def test_an_unbiased_half_has_no_rival_in_an_aligned_share():
    rows = [dict(row) for row in study()]
    for row in rows:
        if row.get("config.data.bias.rho") == "0.2":
            row["pool.aligned_counts"] = np.zeros(countsstudy.CLASSES)
    made, _ = counts_forecast.forecasts(*split(rows))
    for one in made:
        has = counts_forecast.ALIGNED in one.predicted
        assert has == (one.arm.fields["config.data.bias.rho"] == "0.6")


@pytest.mark.parametrize("rule", ["accumulate_subsample", "fresh", "substitute"])
def test_rules_that_take_parts_of_sets_are_forecast_too(rule):
    made, reasons = counts_forecast.forecasts(*split(countsstudy.make(("replace", rule))))
    assert reasons == []
    for one in made:
        assert one.errors(counts_forecast.OBSERVED).mean() < 0.08
        # Fitted to loops of generated images alone, of which `substitute` is none.
        assert one.fitted_on.factor == pytest.approx(countsstudy.FACTOR, rel=0.1)
        assert (counts_forecast.OTHER_CHANGE in one.predicted) == (
            one.arm.setting("pool.rule") == "replace"
        )


def test_one_extended_run_drops_no_other_seed():
    rows = countsstudy.make(("replace",))
    last = next(row for row in rows if row["run"] == "replace-0.6-3" and row["generation"] == 4)
    made, reasons = counts_forecast.forecasts(*split([*rows, {**last, "generation": 5}]))
    assert [len(one.seeds) for one in made] == [8, 8]
    assert reasons == []


def test_runs_that_lack_a_number_are_left_out_and_counted():
    rows = [dict(row) for row in countsstudy.make(("replace",))]
    for row in rows:
        if row["run"] == "replace-0.6-3" and row["generation"] == 2:
            row["metrics.equal_opportunity_difference_mean"] = float("nan")
        if row["run"] == "replace-0.2-5" and row["generation"] == 1:
            del row["generated.subgroup_counts"]
    made, reasons = counts_forecast.forecasts(*split(rows))
    assert [len(one.seeds) for one in made] == [7, 7]
    assert all("1 incomplete runs are not in the forecast" in reason for reason in reasons)


def test_three_parts_are_not_two_halves():
    rows = countsstudy.make(("replace",), (0.6, 0.4, 0.2))
    made, reasons = counts_forecast.forecasts(*split(rows))
    assert made == []
    assert all("more than one other part" in reason for reason in reasons)


def test_pools_below_those_of_the_side_study_are_named():
    rows = [row for row in study() if row.get("config.data.train_size") != "40"]
    rows = [row for row in rows if row.get("config.data.train_size") != "120"]
    made, reasons = counts_forecast.forecasts(*split(rows))
    assert len(made) == 6
    assert all("there the law is extrapolated" in reason for reason in reasons)
    assert len(reasons) == 2  # under `replace`, in both halves


def changed(name: str, value: object) -> list[Row]:
    return [{**row, name: value} if row["set"] == "main" else row for row in study()]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (changed("setting.diffusion.condition_on", "label_and_group"), "conditioned on the group"),
        (changed("setting.pool.rule", "unknown"), "does not say how many"),
        (changed("setting.pool.match_group", "True"), "does not say how many"),
        ([row for row in study() if row["generation"] == 0], "two generations"),
        (
            [
                {k: v for k, v in row.items() if k != RECALL or row["set"] == "side"}
                for row in study()
            ],
            "no run has counts and recalls",
        ),
        ([row for row in study() if row.get("config.data.bias.rho") != "0.2"], "no other half"),
        ([row for row in study() if "replace" not in row["run"]], "no other half"),
    ],
)
def test_a_loop_without_a_forecast_says_why(rows, said):
    rows = [row for row in study() if row["set"] == "side"] + [
        r for r in rows if r["set"] == "main"
    ]
    made, reasons = counts_forecast.forecasts(*split(rows))
    assert made == []
    assert reasons
    assert all(said in reason for reason in reasons)


def test_a_side_study_of_too_few_classifiers_gives_no_law():
    side = [row for row in study() if row["set"] == "side"]
    assert counts_forecast.law([]) is None
    assert counts_forecast.law(side[:1]) is None
    # Generated images in the pools: not classifiers of real images.
    assert counts_forecast.law([{**row, "pool.real": 0.0} for row in side]) is None
