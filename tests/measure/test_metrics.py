"""The table of metrics: what a row promises, and a metric added from outside the package."""

import numpy as np
import pytest

from selfloop_jax.measure import fairness
from selfloop_jax.measure.intervals import share_bounds
from selfloop_jax.measure.metrics import METRICS, Metric
from selfloop_jax.measure.test_set import TestSet

KEY_PATH = (0, "test")


def gap_of_two_classes(test_set):
    """A metric that a user could write: how differently the groups fare between classes 0 and 1."""
    recall = test_set.recall
    return abs((recall[0, 0] - recall[0, 1]) - (recall[1, 0] - recall[1, 1]))


@pytest.fixture
def added():
    """Three metrics of a user's: one for each direction, one of them with an interval."""
    rows = (
        Metric("gap", "gap", better="lower", is_bias=True, value=gap_of_two_classes),
        Metric("evenness", "evenness", better="higher", value=lambda t: 1 - gap_of_two_classes(t)),
        Metric(
            "first_group_accuracy",
            "accuracy in group 0",
            value=lambda t: t.group_accuracy[0],
            interval=lambda e: share_bounds(e.group_accuracy[0], e.level),
        ),
    )
    METRICS.update({metric.key: metric for metric in rows})
    yield
    for metric in rows:
        del METRICS[metric.key]


def unfair() -> TestSet:
    """Two classes and groups; class 0 is recognised less often in group 1."""
    label, group, _ = np.indices((2, 2, 50)).reshape(3, -1)
    wrong = np.random.default_rng(0).random(200) < np.where((label == 0) & (group == 1), 0.5, 0.1)
    return TestSet(label, np.where(wrong, 1 - label, label), group, 2, 2)


def test_rows_are_consistent():
    for key, metric in METRICS.items():
        assert metric.key == key
        assert metric.title
        assert metric.better in ("higher", "lower", "")
        assert not (metric.is_bias and metric.value is None)
        assert metric.interval is None or metric.value is not None
    assert len({metric.title for metric in METRICS.values()}) == len(METRICS)


def test_a_metric_from_outside_gets_value_null_band_and_p(added):
    numbers = fairness.numbers(unfair(), KEY_PATH, 200)
    value = gap_of_two_classes(unfair())
    assert fairness.summary(unfair())["gap"] == numbers["gap"]["value"] == value
    assert numbers["gap"].keys() == {"value", "null", "p"}
    assert numbers["gap"]["null"][2] < value
    assert numbers["gap"]["p"] <= 0.02
    assert numbers["evenness"]["null"][0] > numbers["evenness"]["value"]
    assert numbers["evenness"]["p"] <= 0.02
    assert numbers["first_group_accuracy"].keys() == {"value", "low", "high", "null", "p"}
    low, high = (numbers["first_group_accuracy"][end] for end in ("low", "high"))
    assert low < numbers["first_group_accuracy"]["value"] < high


def test_a_metric_from_outside_does_not_change_the_others(added):
    before = fairness.numbers(unfair(), KEY_PATH, 50)
    for key in ("gap", "evenness", "first_group_accuracy"):
        del before[key]
    saved = {key: METRICS.pop(key) for key in ("gap", "evenness", "first_group_accuracy")}
    np.testing.assert_equal(fairness.numbers(unfair(), KEY_PATH, 50), before)
    METRICS.update(saved)


def test_a_metric_of_an_unknown_section_is_refused():
    with pytest.raises(ValueError, match="section = bias: must be one of classifier"):
        Metric("gap", "gap", "bias")


def test_a_count_and_the_plain_accuracy_have_no_null():
    assert not METRICS["undefined_subgroups"].has_null
    assert not METRICS["accuracy"].has_null
    assert not METRICS["fid"].has_null
    assert METRICS["aligned_contrast"].has_null
