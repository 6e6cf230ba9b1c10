"""Composition by hand, divergences by scipy, nulls by enumeration, corrections by simulation."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from selfloop_jax.measure.composition import (
    NULL_KEYS,
    corrected_shares,
    kl,
    null,
    subgroup_coverage,
    summary,
    total_variation,
)
from selfloop_jax.measure.intervals import wilson
from selfloop_jax.runtime import rng, store

SETTINGS = settings(max_examples=100, deadline=None, derandomize=True, database=None)


NONE = np.array([-1, -1, -1], np.int32)


counts = st.lists(st.integers(0, 50), min_size=6, max_size=6).map(
    lambda c: np.array(c).reshape(3, 2)
)


def ints(*values):
    return np.array(values, np.int32)


def values(counts, real, aligned, groups_of_class=None):
    """The values of `summary`, by key."""
    groups_of_class = np.ones(real.shape, bool) if groups_of_class is None else groups_of_class
    return {
        key: number["value"]
        for key, number in summary(counts, real, groups_of_class, aligned).items()
    }


def test_subgroups_that_cannot_be_take_no_part_in_a_divergence():
    """With 0.5 in each of them a nested table of counts would look far from a smaller sample."""
    groups_of_class = np.kron(np.eye(3, dtype=int), np.ones((1, 4), int)).astype(bool)
    real = np.where(groups_of_class, 40, 0)
    counts = groups_of_class.astype(int)
    assert values(counts, real, NONE, groups_of_class)["kl_to_real"] == pytest.approx(0, abs=1e-12)
    assert values(counts, real, NONE)["kl_to_real"] > 0.1


def test_composition_of_five_images_by_hand():
    counts = np.array([[2, 1], [0, 1], [1, 0]])
    found = values(counts, np.array([[1, 1], [1, 0], [1, 1]]), ints(0, 1, -1))
    # Real shares 1/5 in five subgroups; generated 2/5 1/5 0 1/5 1/5 0: |1/5| + 0 + |1/5| + |1/5| +
    # 0 + |1/5|, halved.
    assert found["total_variation_to_real"] == pytest.approx(0.4)
    # Of the four images of classes 0 and 1, those in (0, 0), (0, 0) and (1, 1) are aligned.
    assert found["bias_aligned_share"] == pytest.approx(0.75)
    assert found["subgroup_coverage"] == 3 / 5
    generated, real = [2.5, 1.5, 0.5, 1.5, 1.5, 0.5], [1.5, 1.5, 1.5, 0.5, 1.5, 1.5]
    by_hand = sum(p / 8 * math.log(p / q) for p, q in zip(generated, real, strict=True))
    assert found["kl_to_real"] == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("counts", "aligned"),
    [
        ([[1, 0], [0, 1], [0, 0]], NONE),
        ([[0, 0], [0, 0], [0, 0]], ints(0, 0, 0)),
        ([[0, 0], [0, 1], [0, 0]], ints(0, -1, 0)),
    ],
    ids=["no class has an aligned group", "no group is known", "the two never meet"],
)
def test_the_aligned_share_is_nan_where_nothing_could_be_aligned(counts, aligned):
    counts = np.array(counts)
    found = summary(counts, np.full((3, 2), 4), everything(3, 2), aligned)["bias_aligned_share"]
    assert np.isnan(list(found.values())).all()


@pytest.mark.parametrize(
    ("counts", "share"),
    [([[1, 0], [0, 1]], 1.0), ([[0, 1], [1, 0]], 0.0), ([[1, 0], [1, 0]], 0.5)],
)
def test_the_aligned_share_counts_images_in_their_class_s_own_group(counts, share):
    found = values(np.array(counts), np.full((2, 2), 4), ints(0, 1))
    assert found["bias_aligned_share"] == share


def everything(*shape):
    return np.ones(shape, bool)


@SETTINGS
@given(counts, counts)
def test_kl_is_scipy_s_entropy_of_the_smoothed_tables(p, q):
    if not p.sum() or not q.sum():
        assert math.isnan(kl(p, q))
        return
    expected = stats.entropy((p + 0.5).ravel(), (q + 0.5).ravel())
    assert kl(p, q) == pytest.approx(expected, abs=1e-12)
    assert kl(p, q) >= -1e-12
    assert kl(p, p) == 0


def test_kl_runs_from_the_generated_to_the_real():
    real, generated = np.array([[100, 0]]), np.array([[50, 50]])
    expected = 0.5 * math.log(0.5 / (100.5 / 101)) + 0.5 * math.log(0.5 / (0.5 / 101))
    assert kl(generated, real) == pytest.approx(expected)
    assert kl(real, generated) < kl(generated, real)


@SETTINGS
@given(counts, counts)
def test_total_variation_is_the_largest_difference_over_all_events(p, q):
    assume(p.sum() and q.sum())
    difference = (p / p.sum() - q / q.sum()).ravel()
    events = [[cell for cell in range(6) if event >> cell & 1] for event in range(2**6)]
    brute = max(abs(difference[event].sum()) for event in events)
    assert total_variation(p, q) == pytest.approx(brute, abs=1e-12)
    assert total_variation(q, p) == total_variation(p, q)


@SETTINGS
@given(counts, st.integers(1, 9))
def test_total_variation_looks_at_shares_not_at_sizes(p, factor):
    assume(p.sum())
    assert total_variation(p, factor * p) == pytest.approx(0, abs=1e-12)


def test_total_variation_of_tables_that_share_no_subgroup_is_one():
    assert total_variation(np.array([[3, 0], [0, 0]]), np.array([[0, 0], [0, 7]])) == 1


@pytest.mark.parametrize("empty_first", [True, False])
def test_total_variation_to_an_empty_table_is_nan(empty_first):
    tables = [np.zeros((2, 2), int), np.ones((2, 2), int)]
    assert math.isnan(total_variation(*(tables if empty_first else reversed(tables))))


def none(classes):
    """No class has an aligned group."""
    return np.full(classes, -1)


def draws(shares, count, trials, *place):
    """int64[trials,K]: multinomial counts by comparing every uniform with the cumulated shares."""
    uniform = rng.uniforms(("test_drift", *place), np.arange(trials * count)).reshape(
        trials, count, 1
    )
    chosen = (uniform >= np.cumsum(shares)[:-1]).sum(axis=2)
    return np.stack([(chosen == k).sum(axis=1) for k in range(len(shares))], axis=1)


def annotator(accuracy, groups):
    """float64[K,K] that errs into all other groups alike."""
    wrong = (1 - accuracy) / (groups - 1)
    return np.where(np.eye(groups, dtype=bool), accuracy, wrong)


def held_out(rates, count, trials, *place):
    """int64[trials,K,K]: `count` images of each group, annotated."""
    return np.stack([draws(row, count, trials, *place, k) for k, row in enumerate(rates)], axis=1)


def covered(low, high, truth):
    return (low - 1e-12 <= truth) & (truth <= high + 1e-12)


def exact_null(real, count, groups_of_class):
    """Probabilities and statistics of all tables with the class histogram `count`."""
    rows = []
    for row, n in zip(real, count, strict=True):
        tables = [c for c in itertools.product(range(n + 1), repeat=len(row)) if sum(c) == n]
        rows.append([(table, stats.multinomial.pmf(table, n, row / row.sum())) for table in tables])
    every = [zip(*choice, strict=True) for choice in itertools.product(*rows)]
    tables, probabilities = zip(
        *((np.array(table), math.prod(p)) for table, p in every), strict=True
    )
    found = [
        [
            kl(table[groups_of_class], real[groups_of_class]),
            total_variation(table, real),
            subgroup_coverage(table, real, groups_of_class),
        ]
        for table in tables
    ]
    return np.array(probabilities), np.array(found)


@pytest.mark.parametrize(
    "generated", [[[3, 1, 1], [2, 4, 0]], [[0, 0, 5], [6, 0, 0]], [[4, 0, 1], [1, 5, 0]]]
)
def test_nulls_agree_with_enumeration(generated):
    real, groups_of_class = (
        np.array([[6, 3, 1], [2, 5, 0]]),
        np.array([[True, True, True], [True, True, False]]),
    )
    generated = np.array(generated)
    found = null(real, generated, groups_of_class, (0, "null"), replicates=4000)
    probability, values = exact_null(real, generated.sum(axis=1), groups_of_class)
    assert probability.sum() == pytest.approx(1)
    seen = [kl(generated[groups_of_class], real[groups_of_class]), total_variation(generated, real)]
    seen.append(subgroup_coverage(generated, real, groups_of_class))
    for name, value, own, outwards in zip(NULL_KEYS, values.T, seen, (1, 1, -1), strict=True):
        exact = probability[outwards * (value - own) >= -1e-9].sum()
        assert found[name]["p"] == pytest.approx(exact, abs=0.03)
        for level, quantile in zip((0.05, 0.5, 0.95), found[name]["null"], strict=True):
            assert probability[value <= quantile + 1e-9].sum() >= level - 0.03
            assert probability[value < quantile - 1e-9].sum() <= level + 0.03


def test_the_null_of_a_distance_is_not_zero():
    """2,500 images of the real shares themselves are at a distance of .03: what nulls are for."""
    real = np.full((10, 10), 3) + np.eye(10, dtype=int) * 220
    found = null(real, real, everything(10, 10), (0, "null"), replicates=200)
    assert 0.02 < found["total_variation_to_real"]["null"][1] < 0.04
    assert found["total_variation_to_real"]["p"] == found["kl_to_real"]["p"] == 1


def test_a_changed_table_lies_beyond_its_null():
    real = np.full((3, 4), 25)
    generated = np.array([[97, 1, 1, 1], [25, 25, 25, 25], [100, 0, 0, 0]])
    found = null(real, generated, everything(3, 4), (0, "null"), replicates=199)
    assert [found[name]["p"] for name in NULL_KEYS] == [1 / 200] * 3
    assert found["subgroup_coverage"]["null"] == [1, 1, 1]


def test_classes_are_kept_as_they_were_generated():
    """With one group in all nothing is left to draw: the null is the number itself."""
    real, generated = np.array([[50], [50], [0]]), np.array([[70], [20], [10]])
    found = null(real, generated, everything(3, 1), (0, "null"), replicates=20)
    own = total_variation(generated, real)
    assert found["total_variation_to_real"]["null"] == pytest.approx([own] * 3)
    assert [found[name]["p"] for name in NULL_KEYS] == [1, 1, 1]


@pytest.mark.parametrize("real", [np.full((2, 2), 5), np.zeros((2, 2), int)])
def test_the_null_of_nothing_is_nan(real):
    found = null(real, np.zeros((2, 2), int), everything(2, 2), (0, "null"), replicates=5)
    kl_to_real, distance = (found[name] for name in NULL_KEYS[:2])
    assert np.isnan([*kl_to_real["null"], kl_to_real["p"], distance["p"]]).all()
    json.dumps(store.jsonable(found), allow_nan=False)


def test_nulls_of_nested_groups_draw_inside_each_class():
    groups_of_class = np.kron(np.eye(3, dtype=int), np.ones((1, 4), int)).astype(bool)
    real = np.where(groups_of_class, 40, 0)
    found = null(real, real, groups_of_class, (0, "null"), replicates=100)
    same = null(
        np.full((3, 4), 40), np.full((3, 4), 40), everything(3, 4), (0, "null"), replicates=100
    )
    expected = same["kl_to_real"]["null"]
    assert found["kl_to_real"]["null"] == pytest.approx(expected, rel=0.3)


def test_a_null_depends_on_its_key_path_alone():
    real = np.array([[30, 20, 10], [5, 5, 50]])
    one, again, other = (
        null(real, real, everything(2, 3), (seed, "null"), replicates=50) for seed in (0, 0, 1)
    )
    assert one == again != other


def test_an_annotator_s_errors_look_like_a_change_unless_the_null_has_them():
    """Sampled from the real shares, read with 30 % errors known from 15 images of each group."""
    real = np.array([[60, 20, 10, 10], [10, 60, 20, 10], [5, 5, 5, 85]])
    rates = 0.7 * np.eye(4) + 0.3 * np.roll(np.eye(4), 1, axis=1)
    read = np.stack(
        [draws(row / 100 @ rates, 600, 20, "read", c) for c, row in enumerate(real)], axis=1
    )
    counts = [held_out(rates, 15, 20, "rates", c) for c in range(3)]
    p = []
    for t in range(20):
        ways = (None, [table[t] for table in counts])
        nulls = [null(real, read[t], everything(3, 4), (t, "null"), 79, way) for way in ways]
        p.append([found["kl_to_real"]["p"] for found in nulls])
    p = np.array(p)
    assert (p[:, 0] <= 0.05).all()
    assert (p[:, 1] <= 0.05).mean() <= 0.15


def test_subgroup_coverage_by_hand():
    real, groups_of_class = (
        np.array([[5, 0, 2], [1, 1, 9]]),
        np.array([[True, True, True], [True, True, False]]),
    )
    assert subgroup_coverage(np.array([[1, 4, 0], [2, 0, 7]]), real, groups_of_class) == 2 / 4
    assert math.isnan(subgroup_coverage(real, np.zeros((2, 3), int), groups_of_class))


@SETTINGS
@given(st.integers(0, 60), st.integers(1, 60))
def test_wilson_is_scipy_s(successes, more):
    count = successes + more - 1
    if not count:
        assert np.isnan(wilson(successes, count)).all()
        return
    expected = stats.binomtest(successes, count).proportion_ci(0.95, method="wilson")
    assert wilson(successes, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_aligned_interval_is_that_of_the_aligned_share():
    joint = np.array([[8, 2], [3, 7], [50, 50]])
    number = summary(joint, joint, everything(3, 2), ints(0, 1, -1))["bias_aligned_share"]
    assert (number["low"], number["high"]) == wilson(15, 20)


MINORITIES = [0.9] + [0.1 / 9] * 9


@pytest.mark.parametrize(
    ("shares", "rates", "generated", "known"),
    [
        ([0.7, 0.3], annotator(0.9, 2), 200, 100),
        ([0.9, 0.1], annotator(0.8, 2), 100, 40),
        ([0.6, 0.4], np.array([[0.95, 0.05], [0.25, 0.75]]), 250, 50),
        ([0.4, 0.3, 0.15, 0.1, 0.05], annotator(0.85, 5), 250, 50),
        (MINORITIES, annotator(0.9, 10), 250, 50),
    ],
    ids=[
        "two groups",
        "weak, few images",
        "asymmetric",
        "five groups",
        "ten groups near the boundary",
    ],
)
def test_corrected_intervals_cover_the_truth_and_uncorrected_do_not(
    shares, rates, generated, known
):
    """300 trials, each a class of its own."""
    place = (len(shares), generated, known)
    joint = draws(shares @ rates, generated, 300, "joint", *place)
    confusion = list(held_out(rates, known, 300, "confusion", *place))
    found, _ = corrected_shares(joint, confusion, everything(*joint.shape), none(300))
    assert found["identified"].all()
    assert 0.92 <= covered(found["low"], found["high"], shares).mean() <= 0.98
    plain = np.array([wilson(reads, generated) for reads in joint[:, 0]]).T
    assert covered(*plain, shares[0]).mean() < 0.85


def test_the_aligned_share_is_covered_although_every_class_is_near_the_boundary():
    """The mean of ten likeliest shares is .03 too low here, half the width of the interval."""
    rates, inside = annotator(0.9, 10), []
    joints = draws(MINORITIES @ rates, 250, 400, "aligned").reshape(40, 10, 10)
    confusions = held_out(rates, 50, 400, "aligned rates").reshape(40, 10, 10, 10)
    for joint, confusion in zip(joints, confusions, strict=True):
        aligned = np.zeros(10, int)
        _, found = corrected_shares(joint, list(confusion), everything(10, 10), aligned)
        inside.append(covered(found["low"], found["high"], 0.9))
        plain = summary(joint, joint, everything(10, 10), aligned)["bias_aligned_share"]
        assert not covered(plain["low"], plain["high"], 0.9)
    assert np.mean(inside) >= 0.92


@pytest.mark.parametrize("count", [20, 2000])
def test_a_perfect_annotator_changes_nothing(count):
    joint = np.array([[90, 9, 1], [0, 50, 50], [0, 0, 7]])
    known = [np.eye(3, dtype=int) * count] * 3
    found, aligned = corrected_shares(joint, known, everything(3, 3), ints(0, 1, 2))
    np.testing.assert_allclose(found["share"], found["uncorrected"], atol=1e-12)
    np.testing.assert_allclose(found["condition"], 1)
    assert aligned["value"] == pytest.approx((90 + 50 + 7) / 207)


def test_the_interval_is_wilson_s_where_the_annotator_is_known_to_be_perfect():
    joint = np.array([[90, 10, 0]])
    found, _ = corrected_shares(joint, [np.eye(3, dtype=int) * 10**9], everything(1, 3), none(1))
    expected = np.array([wilson(reads, 100) for reads in joint[0]])
    np.testing.assert_allclose(found["low"][0], expected[:, 0], atol=1e-5)
    np.testing.assert_allclose(found["high"][0], expected[:, 1], atol=1e-5)


def test_fewer_held_out_images_widen_the_interval():
    widths = []
    for known in (20, 200, 20000):
        counts = np.array([[9, 1], [2, 8]]) * known // 10
        found, _ = corrected_shares(np.array([[60, 40]]), [counts], everything(1, 2), none(1))
        widths.append(found["high"][0, 0] - found["low"][0, 0])
    assert widths[0] > widths[1] > widths[2]


confusions = st.lists(st.integers(0, 30), min_size=9, max_size=9).map(
    lambda c: np.array(c).reshape(3, 3) + 60 * np.eye(3, dtype=int)
)


@SETTINGS
@given(confusions, st.lists(st.integers(0, 300), min_size=3, max_size=3))
def test_corrected_shares_lie_on_the_simplex_inside_their_interval(counts, read):
    assume(sum(read))
    found, aligned = corrected_shares(np.array([read]), [counts], everything(1, 3), ints(1))
    share, low, high = found["share"][0], found["low"][0], found["high"][0]
    assert found["identified"][0]
    assert share.sum() == pytest.approx(1)
    assert (np.diff([np.zeros(3), low, share, high, np.ones(3)], axis=0) >= 0).all()
    rates = counts / counts.sum(axis=1, keepdims=True)
    inverse = np.linalg.inv(rates.T) @ (np.array(read) / sum(read))
    if (inverse >= 0).all():
        np.testing.assert_allclose(share, inverse, atol=1e-4)
    expected = share @ rates
    best = np.array(read) / sum(read) / np.where(expected > 0, expected, 1)
    assert (
        rates @ best <= 1 + 1e-6
    ).all()  # Kuhn and Tucker: no group's share could rise to advantage
    assert aligned["value"] == pytest.approx(np.clip(inverse[1], 0, 1))


def test_the_likeliest_shares_are_scipy_s_where_the_inverse_lies_outside():
    rates = np.array([[0.8, 0.15, 0.05], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7]])
    read = np.array([[700, 280, 20]])
    counts = [(rates * 1000).astype(int)]
    found = corrected_shares(read, counts, everything(1, 3), none(1))[0]["share"][0]
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 501)] * 2), axis=-1).reshape(-1, 2)
    grid = np.column_stack([grid, 1 - grid.sum(axis=1)])[grid.sum(axis=1) <= 1]
    best = grid[(np.log(grid @ rates) @ read[0]).argmax()]
    assert best[2] == 0
    np.testing.assert_allclose(found, best, atol=2e-3)


@pytest.mark.parametrize(
    "counts",
    [
        [[50, 50], [50, 50]],
        [[52, 48], [47, 53]],
        [[40, 0], [0, 0]],
        [[100, 0], [100, 0]],
        [[1, 0], [1, 0]],
    ],
    ids=[
        "guesses",
        "guesses, by chance not quite",
        "a group never held out",
        "one answer",
        "two images",
    ],
)
def test_an_annotator_that_cannot_tell_the_groups_apart_identifies_nothing(counts):
    good = np.array([[90, 10], [5, 95]])
    joint = np.array([[60, 40], [60, 40]])
    known = [np.array(counts), good]
    found, aligned = corrected_shares(joint, known, everything(2, 2), ints(0, 0))
    assert found["identified"].tolist() == [False, True]
    assert np.isnan([found[name][0] for name in ("share", "low", "high")]).all()
    assert not np.isnan(found["share"][1]).any()
    assert found["uncorrected"][0].tolist() == [0.6, 0.4]
    assert found["condition"][0] > 10 > found["condition"][1]
    assert np.isnan(list(aligned.values())).all()
    assert store.jsonable(found)["share"][0] == [None, None]


def test_nested_groups_empty_classes_single_groups_and_none():
    groups_of_class = np.array([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]], bool)
    joint = np.array([[30, 10, 0, 0], [0, 0, 7, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    counts = [np.array([[45, 5], [5, 45]]), np.array([[9]]), np.zeros((0, 0), int), np.array([[9]])]
    found, aligned = corrected_shares(joint, counts, groups_of_class, ints(0, 2, -1, 3))
    np.testing.assert_allclose(found["share"][0, :2], [0.8125, 0.1875])
    for name in ("share", "low", "high", "uncorrected"):
        assert np.isnan(found[name][~groups_of_class]).all()
        assert np.isnan(found[name][3]).all()
        assert found[name][1, 2] == 1
    assert np.isnan(found["condition"][2])
    assert aligned["value"] == pytest.approx((40 * 0.8125 + 7) / 47)
    assert json.loads(json.dumps(store.jsonable(found), allow_nan=False))["share"][2] == [None] * 4
    as_lists = [table.tolist() for table in counts]  # as a record gives them back
    again, _ = corrected_shares(joint, as_lists, groups_of_class, ints(0, 2, -1, 3))
    np.testing.assert_equal(again, found)


def test_without_aligned_groups_the_aligned_share_is_nan():
    counts = [np.array([[45, 5], [5, 45]])]
    _, aligned = corrected_shares(np.array([[3, 4]]), counts, everything(1, 2), none(1))
    assert np.isnan(list(aligned.values())).all()
