"""Null bands and intervals: coverage, exact distributions, closed forms and invariants."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmarks import coverage
from selfloop_jax.measure import fairness, intervals, null
from selfloop_jax.measure.test_set import TestSet

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True, database=None)


KEY_PATH = (0, "test")


RATIOS = {"disparate_impact_ratio_mean", "disparate_impact_ratio_min"}


def make(columns, source_id, sizes, aligned=None, nested=False):
    """The test set of columns (label, pred, group) and sizes (classes, groups)."""
    return TestSet(*columns, *sizes, source_id, aligned, nested)


def bounds(
    columns, source_id, sizes, aligned=None, nested=False, replicates=200, key_path=KEY_PATH
):
    """Intervals of all metrics, and the two ends of every recall."""
    test_set = make(columns, source_id, sizes, aligned, nested)
    recall = fairness.recall(test_set)
    return fairness.bounds(test_set, key_path, replicates), (recall["low"], recall["high"])


def permuted(
    columns, source_id, sizes, aligned=None, nested=False, replicates=200, key_path=KEY_PATH
):
    return null.null([make(columns, source_id, sizes, aligned, nested)], key_path, replicates)


def contrast(columns, sizes, aligned):
    return fairness.summary(make(columns, None, sizes, aligned))["aligned_contrast"]


def subgroups(*counts):
    """Label, pred and group of class 0 with (right, images) in each group; errors go to class 1."""
    pred = [np.repeat([0, 1], [right, size - right]) for right, size in counts]
    group = [np.full(size, g) for g, (_, size) in enumerate(counts)]
    pred, group = np.concatenate(pred), np.concatenate(group)
    return np.zeros_like(pred), pred, group


def shown_in_all(right):
    """Label, pred, group and source of class 0 from bool[S,G]: source s is right in group g."""
    source, group = np.indices(right.shape)
    return np.zeros(right.size, int), 1 - right.ravel().astype(int), group.ravel(), source.ravel()


@pytest.mark.parametrize(
    ("design", "recalls"),
    [
        ("ten", "0.8"),
        ("paired", "0.8"),
        ("one", "0.78 to 0.82"),
        ("nested", "0.7 to 0.99"),
        ("rare", "0.97"),
        ("one", "one at 0.6"),
    ],
)
def test_coverage(design, recalls):
    covered = coverage.coverage(design, recalls, trials=120, replicates=150)["coverage"]
    assert 0.92 <= covered.pop("recall") <= 0.985
    # Neither a single class nor groups within classes have equalized odds; the latter have no
    # demographic parity either.
    assert len(covered) == {"one": 11, "nested": 10}.get(design, 12)
    # 120 trials at 95 % give less than 89 % in one case of a thousand.
    assert all(share >= 0.89 for share in covered.values()), covered


@pytest.mark.parametrize("design", ["one", "paired"])
def test_number_without_gap_is_within_its_null_band(design):
    beyond = coverage.exceedance(design, "0.8", trials=120, replicates=60)["beyond_null"]
    assert len(beyond) == {"one": 10, "paired": 11}[design]
    for name in (
        "equal_opportunity_difference_max",
        "macro_std",
        "aligned_contrast",
        "maximal_disparity",
    ):
        past, at_or_past = beyond[name]
        assert past <= 0.12, name
        assert at_or_past >= 0.015, name


def test_gap_lies_beyond_the_null_band_and_its_interval_above_0():
    right = np.array([90, 90, 90, 60, 90])
    columns = subgroups(*[(n, 100) for n in right])
    result = fairness.numbers(make(columns, None, (2, 5), [0, -1]), KEY_PATH, 500)
    others = {"accuracy", "aligned_contrast", "equalized_odds_difference", "undefined_subgroups"}
    for name in set(result) - others:
        small = name in RATIOS or name.startswith("worst")
        assert result[name]["p"] <= 0.01, name
        limit = result[name]["null"][0 if small else 2]
        observed = result[name]["value"]
        assert observed < limit if small else observed > limit, name
    for name in (
        "equal_opportunity_difference_mean",
        "equal_opportunity_difference_max",
        "macro_std",
    ):
        assert result[name]["low"] > 0, name
    assert result["disparate_impact_ratio_min"]["high"] < 1


def test_paired_null_flips_discordant_pairs():
    """Of 12 sources in 2 groups 7 are recognised in one of them: 2 Binomial(7, 1/2) - 7 of 12."""
    right = np.array([[1, 1]] * 3 + [[0, 0]] * 2 + [[1, 0]] * 6 + [[0, 1]])
    *columns, source = shown_in_all(right)
    contrast = permuted(columns, source, (2, 2), [0, -1], replicates=2000)["aligned_contrast"]
    flips = np.round((contrast * 12 + 7) / 2).astype(int)
    np.testing.assert_allclose(contrast, (2 * flips - 7) / 12, atol=1e-12)
    share = np.bincount(flips, minlength=8) / 2000
    np.testing.assert_allclose(share, stats.binom(7, 0.5).pmf(np.arange(8)), atol=0.03)
    numbers = fairness.numbers(make(columns, source, (2, 2), [0, -1]), KEY_PATH, 2000)
    exact = stats.binomtest(6, 7).pvalue
    for name in ("aligned_contrast", "equal_opportunity_difference_max"):
        assert numbers[name]["p"] == pytest.approx(exact, abs=0.02)


def test_unpaired_null_is_hypergeometric():
    columns = subgroups((8, 10), (3, 6))
    contrast = permuted(columns, None, (2, 2), [0, -1], replicates=2000)["aligned_contrast"]
    right = np.arange(5, 11)  # of the 11 right ones, those in group 0
    values = right / 10 - (11 - right) / 6
    share = [np.mean(np.abs(contrast - value) < 1e-9) for value in values]
    np.testing.assert_allclose(share, stats.hypergeom(16, 11, 10).pmf(right), atol=0.03)


def test_source_that_is_predicted_alike_in_all_groups_makes_no_difference():
    """The free permutation sees differences between sources there, the paired one none."""
    rng = np.random.default_rng(0)
    right = np.repeat(rng.random((60, 1)) < 0.7, 4, axis=1)
    *columns, source = shown_in_all(right)
    observed = fairness.summary(make(columns, source, (2, 4)))
    for name, values in permuted(columns, source, (2, 4)).items():
        np.testing.assert_allclose(values, observed[name], err_msg=name)
    assert permuted(columns, None, (2, 4))["maximal_disparity"].mean() > 0.05


@pytest.mark.parametrize("paired", [False, True])
def test_permuting_keeps_classes_and_their_recall(paired):
    rng = np.random.default_rng(1)
    right = rng.random((50, 2)) < 0.7
    label, pred, group, source = shown_in_all(right)
    # A class that is never right, most of it in group 0, must not lend its errors to class 0.
    label, pred, group = (np.r_[a, [b] * 30] for a, b in ((label, 1), (pred, 0), (group, 0)))
    label, pred, group = (np.r_[a, [b] * 10] for a, b in ((label, 1), (pred, 0), (group, 1)))
    source = np.r_[source, 100 + np.arange(40)] if paired else None
    values = permuted((label, pred, group), source, (2, 2), [0, -1])
    spread = np.abs(values["aligned_contrast"])
    assert np.ptp(spread) > 0.05
    np.testing.assert_allclose(values["worst_subgroup_accuracy"], 0, atol=1e-12)
    # Two subgroups of 50: their mean stays, so group accuracies follow from the contrast alone.
    recall = right.mean() + np.array([[0.5], [-0.5]]) * values["aligned_contrast"]
    accuracy = recall * 50 / np.array([[80], [60]])
    np.testing.assert_allclose(values["worst_group_accuracy"], accuracy.min(axis=0), atol=1e-12)


def test_single_images_among_paired_ones_are_permuted_within_their_class():
    *columns, source = shown_in_all(np.ones((3, 2), bool))
    single = subgroups((20, 20), (0, 20))
    columns = [np.r_[a, b] for a, b in zip(columns, single, strict=True)]
    source = np.r_[source, 10 + np.arange(40)]
    values = permuted(columns, source, (2, 2), [0, -1])["aligned_contrast"]
    assert np.abs(values).max() < 0.6 < contrast(columns, (2, 2), [0, -1])


def test_unknown_groups_stay_out():
    columns = subgroups((8, 10), (3, 6))
    more = [np.r_[column, [value] * 50] for column, value in zip(columns, (0, 1, -1), strict=True)]
    np.testing.assert_equal(permuted(more, None, (2, 2)), permuted(columns, None, (2, 2)))
    ours, theirs = (bounds(c, None, (2, 2))[0] for c in (more, columns))
    assert ours.pop("accuracy") != theirs.pop("accuracy")
    np.testing.assert_equal(ours, theirs)


def test_rates_have_intervals_of_agresti_and_coull():
    rng = np.random.default_rng(2)
    label, group = rng.integers(3, size=300), rng.integers(-1, 4, size=300)
    pred = np.where(rng.random(300) < 0.8, label, rng.integers(3, size=300))
    pred[(label == 0) & (group == 0)] = 0  # a recall of 1
    pred[(label == 1) & (group == 1)] = 2  # a recall of 0
    metrics, (low, high) = bounds((label, pred, group), None, (3, 4))
    for c in range(3):
        for g in range(4):
            subgroup = (label == c) & (group == g)
            ends = agresti_coull((pred[subgroup] == c).sum(), subgroup.sum())
            assert (low[c, g], high[c, g]) == pytest.approx(ends, abs=1e-12)
    ends = agresti_coull((pred == label).sum(), 300)
    assert metrics["accuracy"] == pytest.approx(ends, abs=1e-12)


def agresti_coull(successes, count):
    """Wald's interval after z^2 / 2 successes and as many failures more."""
    z2 = stats.norm.ppf(0.975) ** 2
    share = (successes + z2 / 2) / (count + z2)
    reach = math.sqrt(z2 * share * (1 - share) / (count + z2))
    return max(share - reach, 0), min(share + reach, 1)


@pytest.mark.parametrize("count", [*range(15, 32), 50, 100, 400])
def test_the_interval_of_a_share_covers_and_holds_wilsons(count):
    successes = np.arange(count + 1)
    low, high = intervals.agresti_coull(successes, count)
    for share in np.linspace(0.5, 0.999, 300):
        covers = (low <= share) & (share <= high)
        assert stats.binom(count, share).pmf(successes)[covers].sum() >= 0.92, share
    inner_low, inner_high = intervals.wilson(successes, count)
    assert (low <= inner_low + 1e-12).all()
    assert (high >= inner_high - 1e-12).all()
    assert (low[0], high[-1]) == (0, 1)
    assert np.isnan(intervals.agresti_coull(0, 0)).all()


@pytest.mark.parametrize("copies", [2, 5])
def test_copies_of_an_image_are_worth_one(copies):
    columns = subgroups((60, 80), (70, 90))
    copied = [np.repeat(column, copies) for column in columns]
    once, (low, high) = bounds(columns, None, (2, 2), [0, -1])
    many, (low_many, high_many) = bounds(copied, np.repeat(np.arange(170), copies), (2, 2), [0, -1])
    np.testing.assert_allclose([low_many, high_many], [low, high], atol=0.002)
    for name in once:
        np.testing.assert_allclose(many[name], once[name], atol=0.004, err_msg=name)


def test_paired_contrast_has_the_error_of_paired_differences():
    rng = np.random.default_rng(3)
    ease = rng.normal(size=(400, 1)) * 2
    right = ease + rng.normal(size=(400, 2)) > [-1.5, -1]
    *columns, source = shown_in_all(right)
    difference = right[:, 0].astype(float) - right[:, 1]
    plain = difference.std(ddof=1) / math.sqrt(400)
    reach = {}
    for name, ids in (("paired", source), ("unpaired", None)):
        metrics, _ = bounds(columns, ids, (2, 2), [0, -1])
        low, high = metrics["aligned_contrast"]
        assert (low + high) / 2 == pytest.approx(difference.mean())
        high_of_range = metrics["equal_opportunity_difference_mean"][1]
        assert high_of_range == pytest.approx(max(-low, high), abs=0.001)
        reach[name] = (high - low) / 2 / stats.norm.ppf(0.975)
    assert reach["paired"] == pytest.approx(plain, rel=0.02)
    free = math.sqrt(sum(p * (1 - p) / 400 for p in right.mean(axis=0)))
    assert reach["unpaired"] == pytest.approx(free, rel=0.02)
    assert free > 1.2 * plain


@pytest.mark.parametrize(("images", "aligned", "other"), [(100, 99, 25), (15, 14, 6), (15, 15, 0)])
def test_a_strong_contrast_of_many_classes_lies_inside_its_interval(images, aligned, other):
    columns = in_classes(10, subgroups((aligned, images), *[(other, images)] * 4))
    low, high = bounds(columns, None, (10, 5), [0] * 10)[0]["aligned_contrast"]
    value = (aligned - other) / images
    assert low < value <= high
    assert (low + high) / 2 == pytest.approx(value) or high == 1


def test_groups_of_a_class_share_nothing_with_other_classes():
    """The error of a mean contrast over classes is that of independent contrasts."""
    columns = subgroups((80, 100), (70, 100))
    both = [np.r_[column, column] for column in columns]
    both[0][200:] = 1
    both[1][200:] = 1 - both[1][200:]
    one, two = (
        np.diff(bounds(c, None, (2, 2), [0, 0])[0]["aligned_contrast"]) for c in (columns, both)
    )
    assert one == pytest.approx(two * math.sqrt(2))


@pytest.mark.parametrize("groups", [2, 5, 10])
def test_critical_value_of_equal_subgroups_is_that_of_tukey(groups):
    columns = subgroups(*[(80, 100)] * groups)
    low, high = bounds(columns, None, (2, groups), replicates=20000)[0][
        "equal_opportunity_difference_max"
    ]
    adjusted = 81 / 102
    deviation = math.sqrt(2 * adjusted * (1 - adjusted) / 102)
    assert low == 0
    tukey = stats.studentized_range.ppf(0.95, groups, math.inf) / math.sqrt(2)
    assert high / deviation == pytest.approx(tukey, rel=0.03)


def in_classes(count, columns):
    """The same subgroups in each of so many classes."""
    classes = np.repeat(np.arange(count), len(columns[0]))
    return classes, (classes + np.tile(columns[1], count)) % count, np.tile(columns[2], count)


def test_critical_value_grows_with_the_classes():
    """Four classes of two groups are four independent differences and eight independent recalls."""
    columns = in_classes(4, subgroups((80, 100), (80, 100)))
    metrics, _ = bounds(columns, None, (4, 2), replicates=20000)
    deviation = math.sqrt(2 * (81 / 102) * (21 / 102) / 102)
    z = {count: stats.norm.ppf((1 + 0.95 ** (1 / count)) / 2) for count in (4, 8)}
    _, high = metrics["equal_opportunity_difference_max"]
    assert high / deviation == pytest.approx(z[4], rel=0.03)
    level = 2 * stats.norm.cdf(z[8]) - 1
    theirs = stats.binomtest(80, 100).proportion_ci(level, method="exact")
    assert metrics["worst_subgroup_accuracy"] == pytest.approx(tuple(theirs), abs=1e-9)


def test_mean_range_is_raised_by_noise_and_lowered_by_one_pair_a_class():
    columns = in_classes(
        4, subgroups((20, 100), *[(80, 100)] * 4)
    )  # recalls of .2 and .8 have equal errors
    low, high = bounds(columns, None, (4, 5), replicates=5000)[0][
        "equal_opportunity_difference_mean"
    ]
    deviation = math.sqrt((81 / 102) * (21 / 102) / 102)
    assert high == pytest.approx(0.6 + 1.96 * math.sqrt(2 / 4) * deviation, rel=1e-3)
    # Noise alone makes a range of equal rates, whose errors are those of the class's one rate.
    one = (4 * 81 + 21) / (5 * 102)
    ranges = np.ptp(np.random.default_rng(6).normal(size=(20000, 4, 5)), axis=2)
    noise = np.quantile(ranges.mean(axis=1), 0.95) * math.sqrt(one * (1 - one) / 102)
    assert low == pytest.approx(0.6 - noise, abs=0.02 * noise)


def test_means_of_two_groups():
    """Of two groups the weighted deviation is half the range, and the range has one slope."""
    columns = subgroups((80, 100), (60, 100))
    metrics, _ = bounds(columns, None, (2, 2), replicates=5000)
    low, high = metrics["equal_opportunity_difference_mean"]
    assert metrics["macro_std"] == pytest.approx((low / 2, high / 2))
    deviation = math.sqrt(sum((x / 102) * (1 - x / 102) / 102 for x in (81, 61)))
    assert high == pytest.approx(0.2 + 1.96 * deviation, rel=1e-3)
    # Below, either error is that of their common rate where that is larger.
    variances = [p * (1 - p) / 102 for p in (71 / 102, 61 / 102)]
    assert low == pytest.approx(0.2 - 1.96 * math.sqrt(sum(variances)), abs=0.004)
    assert metrics["equal_opportunity_difference_max"] == pytest.approx((low, high), abs=0.006)


def test_always_right_has_an_error():
    columns = subgroups((20, 20), (20, 20), (20, 20))
    *paired, source = shown_in_all(np.ones((20, 3), bool))
    for test_set, ids in ((columns, None), (paired, source)):
        metrics, (low, high) = bounds(test_set, ids, (2, 3), [0, -1])
        assert high[0] == pytest.approx([1] * 3)
        assert np.all((low[0] > 0.7) & (low[0] < 0.95))
        assert metrics["equal_opportunity_difference_max"][0] == 0
        assert 0.05 < metrics["equal_opportunity_difference_max"][1] < 0.3
        assert -0.3 < metrics["aligned_contrast"][0] < -0.03
        metrics, _ = bounds(test_set, ids, (2, 3), nested=True)
        assert 0.7 < metrics["disparate_impact_ratio_min"][0] < 0.95
        assert metrics["disparate_impact_ratio_min"][1] == 1


def test_ratio_with_a_group_that_never_hits():
    """Its rate may be 0, so the ratio may; that it is lower than the others is still seen."""
    metrics, _ = bounds(subgroups((80, 100), (80, 100), (0, 100)), None, (2, 3), nested=True)
    low, high = metrics["disparate_impact_ratio_min"]
    assert low == 0 < high < 0.3
    # With no hit anywhere groups of very different size are alike: nothing says otherwise.
    metrics, _ = bounds(subgroups((0, 3), (0, 2000)), None, (2, 2), nested=True)
    assert metrics["disparate_impact_ratio_min"] == (0, 1)


def test_higher_level_is_wider():
    columns = subgroups((80, 100), (60, 100), (75, 90))
    test_set = make(columns, None, (2, 3), [1, -1])
    narrow, wide = (fairness.bounds(test_set, KEY_PATH, 500, level) for level in (0.8, 0.99))
    for name in set(narrow) - {"equalized_odds_difference"}:
        assert wide[name][0] <= narrow[name][0] <= narrow[name][1] <= wide[name][1], name
        assert wide[name] != narrow[name]


def test_contrast_by_hand():
    # Class 0: recalls .5, 1, 0 of groups 0, 1, 2; class 1: 1 of group 0, 0 of group 2; class 2:
    # none aligned.
    label = np.array([0, 0, 0, 0, 1, 1, 2, 2, 1])
    pred = np.array([0, 1, 0, 1, 1, 0, 2, 1, 1])
    group = np.array([0, 0, 1, 2, 0, 2, 0, 1, -1])

    def of(*aligned):
        return contrast((label, pred, group), (3, 3), aligned)

    assert of(1, -1, -1) == pytest.approx(1 - 0.25)
    assert of(0, 2, -1) == pytest.approx((0.0 - 1.0) / 2)
    assert of(0, 1, -1) == pytest.approx(0)  # class 1 has no images in group 1
    assert math.isnan(of(-1, 1, 2))
    low, high = bounds((label, pred, group), None, (3, 3), [0, 2, -1])[0]["aligned_contrast"]
    assert low < -0.5 < high


@st.composite
def sets_of_rows(draw):
    """Columns, source and sizes; small enough that empty subgroups and single groups are common."""
    num_classes, num_groups = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    nested, paired = draw(st.booleans()), draw(st.booleans())
    classes, groups = st.integers(0, num_classes - 1), st.integers(-1, num_groups - 1)
    home = draw(st.lists(classes, min_size=num_groups, max_size=num_groups))
    rows = draw(st.lists(st.tuples(classes, classes, groups, st.integers(0, 4)), max_size=40))
    label = [home[g] if nested and g >= 0 else c for c, _, g, _ in rows]
    source = [5 * c + s for c, (*_, s) in zip(label, rows, strict=True)]  # within the class
    columns = [label, [p for _, p, _, _ in rows], [g for _, _, g, _ in rows]]
    aligned = draw(st.lists(groups, min_size=num_classes, max_size=num_classes))
    columns = [np.array(column, np.int32) for column in columns]
    source = np.array(source, np.uint32) if paired else None
    return columns, source, num_classes, num_groups, np.array(aligned, np.int32), nested


@given(sets_of_rows())
@SETTINGS
def test_every_number_lies_in_its_interval(arguments):
    columns, source, num_classes, num_groups, aligned, nested = arguments
    test_set = make(columns, source, (num_classes, num_groups), aligned, nested)
    numbers = fairness.numbers(test_set, KEY_PATH, 40)
    assert {name: number["value"] for name, number in numbers.items()} == pytest.approx(
        fairness.summary(test_set), nan_ok=True
    )
    assert numbers.pop("undefined_subgroups").keys() == {"value"}
    assert numbers["accuracy"].keys() == {"value", "low", "high"}
    for name, number in numbers.items():
        if math.isnan(number["value"]):
            chance = [number["low"], number["high"], *number.get("null", []), number.get("p")]
            assert all(part is None or math.isnan(part) for part in chance)
        else:
            assert number["low"] - 1e-9 <= number["value"] <= number["high"] + 1e-9, name
            assert (-1 if name == "aligned_contrast" else 0) <= number["low"]
            assert number["high"] <= 1
            assert name == "accuracy" or (
                0 < number["p"] <= 1 and np.all(np.diff(number["null"]) >= 0)
            )
    recall = fairness.recall(test_set)
    undefined = np.isnan(test_set.recall)
    for name, table in recall.items():
        np.testing.assert_array_equal(np.isnan(table), undefined, err_msg=name)
    assert np.all((recall["low"] <= test_set.recall + 1e-9) | undefined)
    assert np.all((test_set.recall <= recall["high"] + 1e-9) | undefined)
    json.dumps(numbers)


def with_gap(paired=True, seed=4):
    """A test set of 3 classes and 4 groups with a gap and unknown groups."""
    rng = np.random.default_rng(seed)
    label = np.repeat(rng.integers(3, size=60), 4)
    group, source = np.tile(np.arange(4), 60), np.repeat(np.arange(60), 4)
    wrong = rng.random(240) < 0.1 + 0.1 * group
    pred = np.where(wrong, rng.integers(3, size=240), label)
    group = np.where(rng.random(240) < 0.05, -1, group)
    return [label, pred, group], source if paired else None


@pytest.mark.parametrize("paired", [False, True])
def test_order_of_rows_is_irrelevant(paired):
    columns, source = with_gap(paired)
    order = np.random.default_rng(5).permutation(240)
    moved, moved_source = [column[order] for column in columns], source[order] if paired else None
    ours, theirs = (
        bounds(columns, source, (3, 4), [0, 1, 2]),
        bounds(moved, moved_source, (3, 4), [0, 1, 2]),
    )
    for name, ends in ours[0].items():
        np.testing.assert_allclose(theirs[0][name], ends, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(theirs[1], ours[1], atol=1e-9)
    if paired:
        np.testing.assert_equal(
            permuted(columns, source, (3, 4)), permuted(moved, moved_source, (3, 4)), strict=True
        )


@pytest.mark.parametrize("paired", [False, True])
def test_names_of_groups_are_irrelevant(paired):
    columns, source = with_gap(paired)
    names = np.array([2, 0, 3, 1, -1])  # the last one is that of unknown groups
    aligned = np.array([0, 1, 2])
    renamed = [columns[0], columns[1], names[columns[2]]]
    ours, theirs = (
        bounds(columns, source, (3, 4), aligned, replicates=3000),
        bounds(renamed, source, (3, 4), names[aligned], replicates=3000),
    )
    np.testing.assert_allclose(np.array(theirs[1])[:, :, names[:4]], ours[1], atol=1e-12)
    for name, ends in ours[0].items():
        np.testing.assert_allclose(theirs[0][name], ends, atol=0.03, err_msg=name)
    for name in ("accuracy", "aligned_contrast"):
        np.testing.assert_allclose(theirs[0][name], ours[0][name], atol=1e-9)


def test_nested_compares_the_groups_of_a_class():
    """Two classes of two groups: the same numbers as crossed groups that share their names."""
    columns, _ = with_gap()
    label, pred, group = columns
    inside = np.where(group >= 0, group + 4 * label, -1)
    ours, recall = bounds((label, pred, inside), None, (3, 12), nested=True)
    theirs, crossed = bounds(columns, None, (3, 4))
    for name in (
        "equal_opportunity_difference_mean",
        "equal_opportunity_difference_max",
        "macro_std",
    ):
        assert ours[name] == pytest.approx(theirs[name])
    for low_or_high in (0, 1):
        table = recall[low_or_high][~np.isnan(recall[low_or_high])]
        np.testing.assert_allclose(table, crossed[low_or_high].ravel())
    for name in ("equalized_odds_difference", "demographic_parity_difference"):
        assert np.isnan(ours[name]).all()
        assert not np.isnan(theirs[name]).any()
    assert ours["disparate_impact_ratio_min"] != theirs["disparate_impact_ratio_min"]


def test_numbers_depend_on_their_key_path_alone():
    columns, source = with_gap()
    results = [
        fairness.numbers(make(columns, source, (3, 4), [0, 1, 2]), key_path, 100)
        for key_path in (KEY_PATH, KEY_PATH, (0, "other"))
    ]
    np.testing.assert_equal(results[0], results[1])
    name = "equal_opportunity_difference_max"
    ours, other = (result[name] for result in (results[0], results[2]))
    assert ours["high"] != other["high"]
    assert ours["null"] != other["null"]
    # Permutation b does not depend on how many there are.
    few, many = (permuted(columns, source, (3, 4), replicates=n)[name] for n in (5, 10))
    np.testing.assert_array_equal(few, many[:5])


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("rows", [0, 6])
def test_no_rows_and_unknown_groups(nested, rows):
    columns = [np.zeros(rows, np.int32), np.zeros(rows, np.int32), np.full(rows, -1)]
    for source in (None, np.arange(rows) // 2):
        test_set = make(columns, source, (3, 4), [0, 1, -1], nested)
        result = fairness.numbers(test_set, KEY_PATH, 20)
        assert np.isnan([*fairness.recall(test_set).values()]).all()
        assert result.pop("undefined_subgroups")["value"] == (4 if nested else 12)
        accuracy = result.pop("accuracy")
        assert (
            math.isnan(accuracy["low"])
            if rows == 0
            else 0.2 < accuracy["low"] < accuracy["high"] == 1
        )
        for number in result.values():
            assert np.isnan([number["low"], number["high"], *number["null"], number["p"]]).all()


def test_one_group_has_rates_but_no_range():
    result = fairness.numbers(make(subgroups((15, 20)), None, (2, 1), [0, -1]), KEY_PATH, 20)
    del result["undefined_subgroups"]
    defined = {name for name, number in result.items() if not math.isnan(number["low"])}
    assert defined == {"accuracy", "worst_group_accuracy", "worst_subgroup_accuracy"}
    assert result["worst_group_accuracy"]["null"] == [0.75] * 3
    assert result["worst_group_accuracy"]["p"] == 1


def test_a_source_has_one_label():
    columns = [np.array([0, 0, 1]), np.zeros(3, int), np.array([0, 1, 0])]
    for function in (bounds, permuted):
        with pytest.raises(ValueError, match=r"source_id: 7 has labels \[0, 1\]"):
            function(columns, np.array([7, 3, 7]), (2, 2))
        with pytest.raises(ValueError, match="source_id: shape"):
            function(columns, np.array([7, 3]), (2, 2))
    with pytest.raises(ValueError, match="group: 0 occurs with labels"):
        bounds(columns, None, (2, 2), nested=True)
