"""Fairness metrics against fairlearn, a loop over rows and hand counts, and their invariants."""

import math
import subprocess
import sys
from pathlib import Path

import fairlearn.metrics as fm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score

from selfloop_jax.measure import fairness
from selfloop_jax.measure.test_set import TestSet

KEYS = [
    "accuracy",
    "worst_group_accuracy",
    "worst_subgroup_accuracy",
    "equal_opportunity_difference_mean",
    "equal_opportunity_difference_max",
    "disparate_impact_ratio_mean",
    "disparate_impact_ratio_min",
    "equalized_odds_difference",
    "demographic_parity_difference",
    "maximal_disparity",
    "macro_std",
    "undefined_subgroups",
]


CROSSED_ONLY = {"equalized_odds_difference", "demographic_parity_difference"}


# The same examples on every run: a red test is a change in the code, not in the draw.
SETTINGS = settings(max_examples=100, deadline=None, derandomize=True, database=None)


def summary(label, pred, group, num_classes, num_groups, nested=False):
    """`fairness.summary` of a test set without aligned groups."""
    found = fairness.summary(TestSet(label, pred, group, num_classes, num_groups, nested=nested))
    assert math.isnan(found.pop("aligned_contrast"))
    return found


def assert_same(ours, theirs):
    """Equal keys, equal NaNs, values to rounding."""
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value == pytest.approx(theirs[name], abs=1e-12, nan_ok=True), name


def share(rows, holds):
    """Share of `rows` for which `holds`; None without rows."""
    return sum(map(holds, rows)) / len(rows) if rows else None


def defined(values):
    return [value for value in values if value is not None]


def spread(values):
    values = defined(values)
    return max(values) - min(values) if len(values) >= 2 else None


def ratio(values):
    values = defined(values)
    if len(values) < 2:
        return None
    return 1.0 if max(values) == 0 else min(values) / max(values)


def mean(values):
    return math.fsum(values) / len(values)


def weighted_std(tpr, subgroups):
    """Standard deviation of the recalls of `subgroups`, every image of a subgroup counting once."""
    each_image = [recall for recall, subgroup in zip(tpr, subgroups, strict=True) for _ in subgroup]
    if len(defined(tpr)) < 2:
        return None
    centre = mean(each_image)
    return math.sqrt(mean([(recall - centre) ** 2 for recall in each_image]))


def over(function, values):
    values = defined(values)
    return function(values) if values else math.nan


def by_hand(label, pred, group, num_classes, num_groups, nested=False):
    """Every number of `fairness.summary`, straight from its definition."""
    everything = list(zip(label, pred, group, strict=True))
    known = [row for row in everything if row[2] != -1]
    home = {g: c for c, _, g in known}
    classes, groups = range(num_classes), range(num_groups)
    by_group = [[row for row in known if row[2] == g] for g in groups]

    def right(row):
        return row[0] == row[1]

    opportunity, impact, odds, parity, deviation, expected = [], [], [], [], [], []
    for c in classes:
        rows = [by_group[g] for g in groups if not nested or home.get(g) == c]
        subgroups = [[row for row in members if row[0] == c] for members in rows]
        others = [[row for row in members if row[0] != c] for members in rows]
        tpr, fpr, positive = (
            [share(members, lambda row, c=c: row[1] == c) for members in kind]
            for kind in (subgroups, others, rows)
        )
        opportunity.append(spread(tpr))
        impact.append(ratio(positive))
        parity.append(spread(positive))
        odds.append(None if None in (spread(tpr), spread(fpr)) else max(spread(tpr), spread(fpr)))
        deviation.append(weighted_std(tpr, subgroups))
        expected += subgroups
    expected = by_group if nested else expected
    accuracies = [share(members, right) for members in by_group]
    return {
        "accuracy": over(mean, [share(everything, right)]),
        "worst_group_accuracy": over(min, accuracies),
        "worst_subgroup_accuracy": over(min, [share(subgroup, right) for subgroup in expected]),
        "equal_opportunity_difference_mean": over(mean, opportunity),
        "equal_opportunity_difference_max": over(max, opportunity),
        "disparate_impact_ratio_mean": over(mean, impact),
        "disparate_impact_ratio_min": over(min, impact),
        "equalized_odds_difference": math.nan if nested else over(max, odds),
        "demographic_parity_difference": math.nan if nested else over(max, parity),
        "maximal_disparity": over(max, [spread(accuracies)]),
        "macro_std": over(mean, deviation),
        "undefined_subgroups": float(sum(not subgroup for subgroup in expected)),
    }


@st.composite
def sets_of_rows(draw, nested=None, unknown=True, min_size=0):
    """Small test sets: empty subgroups, single groups and unused classes are common."""
    num_classes, num_groups = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    nested = draw(st.booleans()) if nested is None else nested
    classes, groups = (
        st.integers(0, num_classes - 1),
        st.integers(-1 if unknown else 0, num_groups - 1),
    )
    home = draw(st.lists(classes, min_size=num_groups, max_size=num_groups))
    rows = draw(st.lists(st.tuples(classes, classes, groups), min_size=min_size, max_size=40))
    label = [home[g] if nested and g >= 0 else c for c, _, g in rows]
    columns = [label, [p for _, p, _ in rows], [g for _, _, g in rows]]
    return (*(np.array(column, np.int32) for column in columns), num_classes, num_groups, nested)


def draw_crossed(seed, num_classes=4, num_groups=3, size=200):
    """A right-most-of-the-time classifier whose errors depend on the group."""
    rng = np.random.default_rng(seed)
    label, group = rng.integers(num_classes, size=size), rng.integers(num_groups, size=size)
    wrong = rng.random(size) < 0.1 + 0.2 * group
    pred = np.where(wrong, rng.integers(num_classes, size=size), label)
    return label, pred, group


def draw_nested(seed, num_classes=4, per_class=3, size=200):
    """Fine labels as groups: group // per_class is the class."""
    rng = np.random.default_rng(seed)
    group = rng.integers(num_classes * per_class, size=size)
    label = group // per_class
    pred = np.where(rng.random(size) < 0.3, rng.integers(num_classes, size=size), label)
    return label, pred, group


@pytest.mark.parametrize("nested", [False, True])
@given(data=st.data())
@SETTINGS
def test_loop_over_rows(data, nested):
    arguments = data.draw(sets_of_rows(nested=nested))
    ours = summary(*arguments)
    assert list(ours) == KEYS
    assert all(type(value) is float for value in ours.values())
    assert_same(ours, by_hand(*(column.tolist() for column in arguments[:3]), *arguments[3:]))


@pytest.mark.parametrize("seed", range(5))
def test_loop_over_rows_at_size(seed):
    label, pred, group = draw_crossed(seed, size=1000)
    group[::7] = -1
    assert_same(summary(label, pred, group, 4, 3), by_hand(label, pred, group, 4, 3))
    label, pred, group = draw_nested(seed, size=1000)
    group[::7] = -1
    assert_same(summary(label, pred, group, 4, 12, True), by_hand(label, pred, group, 4, 12, True))


def frame(metric, truth, guess, group, keep):
    """A fairlearn metric in each group of the rows kept."""
    # Lists, since fairlearn squeezes a single row of an array to a scalar.
    columns = [column[keep].tolist() for column in (truth, guess, group)]
    return fm.MetricFrame(
        metrics=metric, y_true=columns[0], y_pred=columns[1], sensitive_features=columns[2]
    )


def difference(*arguments):
    """Range of a fairlearn metric over groups; None with fewer than two (fairlearn: 0)."""
    rows = arguments[-1]
    result = frame(*arguments) if rows.any() else None
    return result.difference() if result and len(result.by_group) >= 2 else None


def by_fairlearn(label, pred, group, num_classes, nested):
    """The metrics that fairlearn has."""
    # Its rates are 0 where undefined, so each sees only rows that define it.
    known = group >= 0
    label, pred, group = label[known], pred[known], group[known]
    everyone = np.ones(len(label), bool)
    opportunity, impact, odds, parity, worst = [], [], [], [], []
    for c in range(num_classes):
        truth, guess, inside = (label == c).astype(int), (pred == c).astype(int), label == c
        tpr = difference(fm.true_positive_rate, truth, guess, group, inside)
        fpr = difference(fm.false_positive_rate, truth, guess, group, ~inside)
        opportunity.append(tpr)
        odds.append(None if tpr is None or fpr is None else max(tpr, fpr))
        parity.append(difference(fm.selection_rate, truth, guess, group, everyone))
        impact.append(demographic_ratio(truth, guess, group, inside if nested else everyone))
        if inside.any():
            worst.append(frame(fm.true_positive_rate, truth, guess, group, inside).group_min())
    return {
        "worst_group_accuracy": frame(accuracy_score, label, pred, group, everyone).group_min(),
        "worst_subgroup_accuracy": min(worst),
        "equal_opportunity_difference_mean": over(mean, opportunity),
        "equal_opportunity_difference_max": over(max, opportunity),
        "disparate_impact_ratio_mean": over(mean, impact),
        "disparate_impact_ratio_min": over(min, impact),
        "equalized_odds_difference": math.nan if nested else over(max, odds),
        "demographic_parity_difference": math.nan if nested else over(max, parity),
        "maximal_disparity": difference(accuracy_score, label, pred, group, everyone),
    }


def demographic_ratio(truth, guess, group, keep):
    """fairlearn's ratio of selection rates, which is NaN (here 1) for a class never predicted."""
    if len(np.unique(group[keep])) < 2:
        return None
    if not guess[keep].any():
        return 1.0
    return fm.demographic_parity_ratio(truth[keep], guess[keep], sensitive_features=group[keep])


def crossed_cases():
    yield "full", draw_crossed(0)
    yield "small, subgroups missing", draw_crossed(1, size=14)
    label, pred, group = draw_crossed(2)
    keep = ~((label == 1) & (group == 2)) & ~((label == 3) & (group != 0))
    yield "empty subgroups, class 3 in one group", (label[keep], pred[keep], group[keep])
    yield "class 2 without rows", tuple(column[label != 2] for column in (label, pred, group))
    yield "class 2 never predicted", (label, np.where(pred == 2, 0, pred), group)
    yield "group 1 without rows", tuple(column[group != 1] for column in (label, pred, group))
    yield "unknown groups", (label, pred, np.where(np.arange(len(group)) % 3 == 0, -1, group))


def nested_cases():
    label, pred, group = draw_nested(0)
    yield "full", (label, pred, group)
    yield "small", draw_nested(1, size=20)
    keep = (group != 4) & (group // 3 != 2)
    yield "group 4 and class 2 without rows", (label[keep], pred[keep], group[keep])
    yield "class 2 never predicted", (label, np.where(pred == 2, 0, pred), group)
    yield "unknown groups", (label, pred, np.where(np.arange(len(group)) % 3 == 0, -1, group))


CASES = [(False, *case) for case in crossed_cases()] + [(True, *case) for case in nested_cases()]


@pytest.mark.parametrize(
    ("nested", "columns"),
    [case[::2] for case in CASES],
    ids=[f"{'nested' if nested else 'crossed'}: {name}" for nested, name, _ in CASES],
)
def test_fairlearn(nested, columns):
    label, _, group = columns
    ours = summary(*columns, 4, 12 if nested else 3, nested)
    theirs = by_fairlearn(*columns, 4, nested)
    assert_same({name: ours[name] for name in theirs}, theirs)
    assert ours["accuracy"] == accuracy_score(*columns[:2])
    subgroups = set(zip(label[group >= 0], group[group >= 0], strict=True))
    assert ours["undefined_subgroups"] == 12 - len(subgroups)


@pytest.mark.parametrize("seed", range(3))
def test_fairlearn_one_call_per_class(seed):
    """With every subgroup filled the ready-made functions say the same."""
    label, pred, group = draw_crossed(seed, num_classes=3, num_groups=4, size=300)
    ours = summary(label, pred, group, 3, 4)
    assert ours["undefined_subgroups"] == 0
    one_class = [((label == c).astype(int), (pred == c).astype(int)) for c in range(3)]

    def each(function):
        return [function(*binary, sensitive_features=group) for binary in one_class]

    assert_same(
        {name: value for name, value in ours.items() if name.startswith(("equal", "dis", "demo"))},
        {
            "equal_opportunity_difference_mean": mean(each(fm.equal_opportunity_difference)),
            "equal_opportunity_difference_max": max(each(fm.equal_opportunity_difference)),
            "disparate_impact_ratio_mean": mean(each(fm.demographic_parity_ratio)),
            "disparate_impact_ratio_min": min(each(fm.demographic_parity_ratio)),
            "equalized_odds_difference": max(each(fm.equalized_odds_difference)),
            "demographic_parity_difference": max(each(fm.demographic_parity_difference)),
        },
    )


def test_hand_count_crossed():
    # Four subgroups of two images with 2 1 / 1 2 right (class by group), and a wrong one of unknown
    # group.
    label = np.array([0, 0, 0, 0, 1, 1, 1, 1, 0])
    group = np.array([0, 0, 1, 1, 0, 0, 1, 1, -1])
    pred = np.array([0, 0, 0, 1, 1, 0, 1, 1, 1])
    assert summary(label, pred, group, 2, 2) == {
        "accuracy": 6 / 9,
        "worst_group_accuracy": 0.75,
        "worst_subgroup_accuracy": 0.5,
        "equal_opportunity_difference_mean": 0.5,
        "equal_opportunity_difference_max": 0.5,
        # P(yhat=0|g) = 3/4, 1/4; P(yhat=1|g) = 1/4, 3/4.
        "disparate_impact_ratio_mean": pytest.approx(1 / 3),
        "disparate_impact_ratio_min": pytest.approx(1 / 3),
        "equalized_odds_difference": 0.5,
        "demographic_parity_difference": 0.5,
        "maximal_disparity": 0.0,
        "macro_std": 0.25,
        "undefined_subgroups": 0.0,
    }


def test_hand_count_nested():
    # Class 0: group 0 has recall 1 (1 image), group 1 has 1/3 (3 images).
    # Class 1: group 2 has 1/2 (2 images), group 3 has no image: nothing to compare.
    group = np.array([0, 1, 1, 1, 2, 2])
    label = np.array([0, 0, 0, 0, 1, 1])
    pred = np.array([0, 0, 1, 1, 1, 0])
    ours = summary(label, pred, group, 2, 4, nested=True)
    third = pytest.approx(1 / 3, abs=1e-15)
    assert math.isnan(ours.pop("equalized_odds_difference"))
    assert math.isnan(ours.pop("demographic_parity_difference"))
    assert ours == {
        "accuracy": 0.5,
        "worst_group_accuracy": third,
        "worst_subgroup_accuracy": third,
        "equal_opportunity_difference_mean": pytest.approx(2 / 3, abs=1e-15),
        "equal_opportunity_difference_max": pytest.approx(2 / 3, abs=1e-15),
        "disparate_impact_ratio_mean": third,
        "disparate_impact_ratio_min": third,
        "maximal_disparity": pytest.approx(2 / 3, abs=1e-15),
        # Mean (1 + 3/3)/4 = 1/2, variance (1/4 + 3/36)/4 = 1/12.
        "macro_std": pytest.approx(math.sqrt(1 / 12), abs=1e-15),
        "undefined_subgroups": 1.0,
    }


def test_group_of_other_classes_counts_in_selection_only():
    """Group 1 lacks class 0: its TPR is undefined, its FPR and P(yhat=0|g) are not."""
    label = np.array([0, 0, 1, 1, 1, 1])
    pred = np.array([0, 1, 1, 1, 0, 1])
    group = np.array([0, 0, 0, 0, 1, 1])
    ours = summary(label, pred, group, 2, 2)
    # Class 0: no TPR range. P(yhat=0|g) = 1/4, 1/2; P(yhat=1|g) = 3/4, 1/2. Class 1: TPR 1, 1/2.
    assert ours["equal_opportunity_difference_mean"] == 0.5
    assert ours["disparate_impact_ratio_min"] == 0.5
    assert ours["disparate_impact_ratio_mean"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert ours["demographic_parity_difference"] == 0.25
    # Class 0 lacks a TPR range, class 1 an FPR range: no class has both.
    assert math.isnan(ours["equalized_odds_difference"])
    assert ours["undefined_subgroups"] == 1


def test_class_never_predicted_and_without_rows_has_impact_one():
    ours = summary(np.array([0, 0]), np.array([0, 0]), np.array([0, 1]), 2, 2)
    assert ours["disparate_impact_ratio_mean"] == 1
    assert ours["undefined_subgroups"] == 2


def test_recalls():
    label, pred, group = (
        np.array([0, 0, 0, 1, 1]),
        np.array([0, 1, 0, 1, 0]),
        np.array([0, 0, 2, 2, -1]),
    )
    test_set = TestSet(label, pred, group, 2, 3)
    assert (test_set.recall.dtype, test_set.subgroup_size.dtype) == (np.float64, np.int64)
    np.testing.assert_array_equal(test_set.recall, [[0.5, np.nan, 1], [np.nan, np.nan, 1]])
    np.testing.assert_array_equal(test_set.subgroup_size, [[2, 0, 1], [0, 0, 1]])
    with_interval = fairness.recall(test_set)
    np.testing.assert_array_equal(with_interval["value"], test_set.recall)


@pytest.mark.parametrize("nested", [False, True])
def test_empty_input(nested):
    ours = summary([], [], [], 3, 4, nested)
    assert ours.pop("undefined_subgroups") == (4 if nested else 12)
    assert all(map(math.isnan, ours.values()))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("num_groups", [0, 2])
def test_unknown_groups_leave_accuracy(nested, num_groups):
    ours = summary([0, 1, 1, 2], [0, 1, 2, 2], [-1] * 4, 3, num_groups, nested)
    assert ours.pop("accuracy") == 0.75
    assert ours.pop("undefined_subgroups") == (num_groups if nested else 3 * num_groups)
    assert all(map(math.isnan, ours.values()))


@pytest.mark.parametrize("nested", [False, True])
def test_one_group_has_worst_but_no_range(nested):
    ours = summary([0, 0, 0, 0], [0, 1, 0, 0], [0] * 4, 2, 1, nested)
    for name in ("accuracy", "worst_group_accuracy", "worst_subgroup_accuracy"):
        assert ours.pop(name) == 0.75
    assert ours.pop("undefined_subgroups") == (0 if nested else 1)
    assert all(map(math.isnan, ours.values()))


@given(sets_of_rows(), st.randoms(use_true_random=False))
@SETTINGS
def test_order_of_rows_is_irrelevant(arguments, random):
    order = np.array(random.sample(range(len(arguments[0])), len(arguments[0])), int)
    shuffled = [column[order] for column in arguments[:3]]
    np.testing.assert_equal(summary(*shuffled, *arguments[3:]), summary(*arguments))


@given(sets_of_rows(), st.randoms(use_true_random=False))
@SETTINGS
def test_names_of_groups_and_classes_are_irrelevant(arguments, random):
    label, pred, group, num_classes, num_groups, nested = arguments
    classes = np.array(random.sample(range(num_classes), num_classes))
    groups = np.array(
        random.sample(range(num_groups), num_groups) + [-1]
    )  # group -1 stays: the last entry
    renamed = summary(classes[label], classes[pred], groups[group], num_classes, num_groups, nested)
    assert_same(renamed, summary(*arguments))


@given(sets_of_rows(), st.integers(2, 3))
@SETTINGS
def test_repeated_data_change_counts_only(arguments, times):
    repeated = [np.tile(column, times) for column in arguments[:3]]
    assert_same(summary(*repeated, *arguments[3:]), summary(*arguments))
    once = TestSet(*arguments[:5])
    often = TestSet(*repeated, *arguments[3:5])
    np.testing.assert_array_equal(often.recall, once.recall)
    np.testing.assert_array_equal(often.subgroup_size, times * once.subgroup_size)


@given(sets_of_rows())
@SETTINGS
def test_unknown_groups_count_in_accuracy_only(arguments):
    known = arguments[2] >= 0
    ours = summary(*arguments)
    without = summary(*(column[known] for column in arguments[:3]), *arguments[3:])
    accuracy, without["accuracy"] = without["accuracy"], ours["accuracy"]
    np.testing.assert_equal(ours, without)
    if known.all() and len(known):
        assert accuracy == np.mean(arguments[0] == arguments[1])


@given(sets_of_rows())
@SETTINGS
def test_values_stay_in_range_and_order(arguments):
    ours = summary(*arguments)
    assert all(
        math.isnan(value) or 0 <= value <= 1
        for name, value in ours.items()
        if name != "undefined_subgroups"
    )
    # A comparison with NaN is false, so each line also holds where a side is undefined.
    assert not ours["worst_subgroup_accuracy"] > ours["worst_group_accuracy"]
    assert (
        not ours["equal_opportunity_difference_mean"]
        > ours["equal_opportunity_difference_max"] + 1e-12
    )
    assert not ours["disparate_impact_ratio_mean"] < ours["disparate_impact_ratio_min"] - 1e-12
    # No deviation exceeds half the range it comes from.
    assert not ours["macro_std"] > ours["equal_opportunity_difference_mean"] / 2 + 1e-12


def balanced(num_classes, num_groups, per_cell=3):
    """Label and group of a test set with equal, filled subgroups."""
    label, group, _ = np.indices((num_classes, num_groups, per_cell)).reshape(3, -1)
    return label, group


@given(st.integers(2, 5), st.integers(2, 5))
@SETTINGS
def test_perfect_predictions(num_classes, num_groups):
    label, group = balanced(num_classes, num_groups)
    assert summary(label, label, group, num_classes, num_groups) == {
        name: float(name.startswith(("accuracy", "worst", "disparate"))) for name in KEYS
    }


@given(sets_of_rows(nested=True, unknown=False, min_size=1))
@SETTINGS
def test_perfect_nested_predictions(arguments):
    label, _, group, *rest = arguments
    ours = summary(label, label, group, *rest)
    for name in set(KEYS) - CROSSED_ONLY - {"undefined_subgroups"}:
        perfect = float(name.startswith(("accuracy", "worst", "disparate")))
        # Where no class has two groups, only the ranges and ratios are undefined.
        assert ours[name] == perfect or (
            math.isnan(ours[name]) and not name.startswith(("accuracy", "worst"))
        )


@given(st.integers(2, 5), st.integers(2, 5), st.data())
@SETTINGS
def test_constant_predictions(num_classes, num_groups, data):
    """Useless but even-handed: no gap anywhere."""
    label, group = balanced(num_classes, num_groups)
    pred = np.full_like(label, data.draw(st.integers(0, num_classes - 1)))
    assert summary(label, pred, group, num_classes, num_groups) == {
        name: 1 / num_classes
        if name in ("accuracy", "worst_group_accuracy")
        else float("ratio" in name)
        for name in KEYS
    }


@pytest.mark.parametrize(
    ("columns", "nested", "words"),
    [
        (([0, 2], [0, 1], [0, 1]), False, ["label", "2", "row 1", "0 to 1"]),
        (([-1, 0], [0, 1], [0, 1]), False, ["label", "-1", "0 to 1"]),
        (([0, 1], [0, 5], [0, 1]), False, ["pred", "5", "0 to 1"]),
        (([0, 1], [0, -1], [0, 1]), False, ["pred", "-1", "0 to 1"]),
        (([0, 1], [0, 1], [0, 3]), False, ["group", "3", "-1 to 2"]),
        (([0, 1], [0, 1], [-2, 0]), False, ["group", "-2", "-1 to 2"]),
        (
            ([0, 1], [0, 1], np.array([2**64 - 1, 0], np.uint64)),
            False,
            ["group", str(2**64 - 1), "-1 to 2"],
        ),
        (([0, 1], [0, 1], [0]), False, ["label, pred, group", "(2,)", "(1,)"]),
        (([[0, 1]], [[0, 1]], [[0, 1]]), False, ["shapes", "(1, 2)", "(N,)"]),
        (([0, 1], [0.0, 1.0], [0, 1]), False, ["pred", "float64", "integers"]),
        (([0, 0, 1], [0, 1, 1], [1, 2, 2]), True, ["group", "2", "[0, 1]", "one label"]),
    ],
)
def test_mistakes_are_named_in_one_line(columns, nested, words):
    with pytest.raises(ValueError, match=r"^(label|pred|group)") as caught:
        summary(*columns, 2, 3, nested)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_other_columns_are_checked_too():
    columns = ([0, 1], [0, 1], [0, 1], 2, 3)
    with pytest.raises(ValueError, match=r"^source_id: shape \(3,\)"):
        TestSet(*columns, source_id=np.arange(3))
    with pytest.raises(ValueError, match=r"^aligned_group: shape \(3,\); must be \(2,\)"):
        TestSet(*columns, aligned_group=[0, 1, 2])
    with pytest.raises(ValueError, match=r"^aligned_group: 3 in row 1; must be from -1 to 2"):
        TestSet(*columns, aligned_group=[0, 3])


@given(sets_of_rows(), st.randoms(use_true_random=False))
@SETTINGS
def test_other_groups_and_some_rows_make_new_test_sets(arguments, random):
    *columns, num_classes, num_groups, _ = arguments
    test_set = TestSet(*columns, num_classes, num_groups)
    before = fairness.summary(test_set)  # what is cached must not be taken over
    group = np.array(random.sample(columns[2].tolist(), len(columns[2])), int)
    direct = TestSet(*columns[:2], group, num_classes, num_groups)
    np.testing.assert_equal(fairness.summary(test_set.with_groups(group)), fairness.summary(direct))
    rows = np.array([random.random() < 0.5 for _ in group], bool)
    direct = TestSet(*(column[rows] for column in columns), num_classes, num_groups)
    np.testing.assert_equal(fairness.summary(test_set.take(rows)), fairness.summary(direct))
    np.testing.assert_equal(fairness.summary(test_set), before)


def test_other_groups_are_checked():
    test_set = TestSet([0, 1, 1], [0, 1, 0], [0, 1, 1], 2, 2, nested=True)
    for group, words in (
        ([0, 1], "group: shape"),
        ([0, 2, 1], "group: 2 in row 1"),
        ([0, 0, 1], "group: 0 occurs with labels"),
    ):
        with pytest.raises(ValueError, match=words):
            test_set.with_groups(np.array(group))


def test_unknown_group_may_occur_in_two_classes():
    assert summary([0, 1], [0, 1], [-1, -1], 2, 3, nested=True)["accuracy"] == 1


def test_needs_no_jax():
    command = "import sys, selfloop_jax.measure.fairness; sys.exit('jax' in sys.modules)"
    root = Path(fairness.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", command], cwd=root, check=False).returncode == 0


def classifiers(count):
    """Test sets of one set of images with the predictions of several classifiers."""
    random = np.random.default_rng(0)
    label = np.repeat(np.arange(3), 40)
    group = np.tile(np.arange(2), 60)
    sets = []
    for _ in range(count):
        wrong = random.random(120) < 0.2 + 0.2 * group
        sets.append(TestSet(label, np.where(wrong, (label + 1) % 3, label), group, 3, 2))
    return sets


def test_values_and_intervals_are_means_and_one_classifier_twice_is_itself():
    first, *more = classifiers(3)
    alone = [fairness.numbers(one, (0,), 100) for one in (first, *more)]
    mean = fairness.numbers(first, (0,), 100, more=more)
    for key, number in mean.items():
        for part in ("value", "low", "high"):
            if part in number:
                expected = np.mean([one[key][part] for one in alone])
                assert number[part] == pytest.approx(expected, nan_ok=True), (key, part)
    twice = fairness.numbers(first, (0,), 100, more=[first])
    for key, number in twice.items():
        np.testing.assert_equal(number["value"], alone[0][key]["value"])
        # The null too: groups are permuted once for both.
        np.testing.assert_allclose(number.get("null", 0), alone[0][key].get("null", 0), atol=1e-12)
        np.testing.assert_equal(number.get("p"), alone[0][key].get("p"))


def test_the_null_of_a_mean_is_narrower_than_the_mean_of_nulls():
    """Noise of several classifiers averages out, and with it the gap that noise alone makes."""
    first, *more = classifiers(8)
    key = "equal_opportunity_difference_mean"
    one = fairness.numbers(first, (0,), 200)[key]["null"]
    mean = fairness.numbers(first, (0,), 200, more=more)[key]["null"]
    assert mean[2] - mean[0] < one[2] - one[0]
