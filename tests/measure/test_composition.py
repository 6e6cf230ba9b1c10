"""Composition by hand, divergences against scipy, nulls against enumeration, corrections simulated."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from selfloop_jax.measure import wilson
from selfloop_jax.measure.composition import (
    aligned_interval,
    cell_coverage,
    corrected_shares,
    kl,
    null,
    summary,
    total_variation,
)
from selfloop_jax.runtime import rng, store

SETTINGS = settings(max_examples=100, deadline=None, derandomize=True, database=None)


NONE = np.array([-1, -1, -1], np.int32)


NULL = ("kl_to_real", "total_variation_to_real", "cell_coverage")


counts = st.lists(st.integers(0, 50), min_size=6, max_size=6).map(
    lambda c: np.array(c).reshape(3, 2)
)


def ints(*values):
    return np.array(values, np.int32)


def composition(label, group, real, aligned, members=None):
    return summary(
        label, group, real, aligned, np.ones(real.shape, bool) if members is None else members
    )


def test_cells_that_cannot_be_take_no_part_in_a_divergence():
    """With 0.5 in each of them a nested table of counts would look far from itself drawn smaller."""
    members = np.kron(np.eye(3, dtype=int), np.ones((1, 4), int)).astype(bool)
    real = np.where(members, 40, 0)
    label, group = np.nonzero(members)
    found = composition(label.astype(np.int32), group.astype(np.int32), real, NONE, members)
    assert found["kl_to_real"] == pytest.approx(0, abs=1e-12)
    assert (
        composition(label.astype(np.int32), group.astype(np.int32), real, NONE)["kl_to_real"] > 0.1
    )


def test_composition_of_six_images_by_hand():
    label, group = ints(0, 0, 0, 1, 1, 2), ints(0, 0, 1, 1, -1, 0)
    found = composition(label, group, np.array([[1, 1], [1, 0], [1, 1]]), ints(0, 1, -1))
    assert found["count"] == 6
    assert found["class_histogram"].tolist() == [3, 2, 1]
    assert found["joint"].tolist() == [[2, 1], [0, 1], [1, 0]]
    assert found["group_histogram"].tolist() == [3, 2]
    assert found["unknown_group"] == 1
    # real shares 1/5 in five cells; drawn 2/5 1/5 0 1/5 1/5 0: |1/5| + 0 + |1/5| + |1/5| + 0 +
    # |1/5|, halved
    assert found["total_variation_to_real"] == pytest.approx(0.4)
    # of the four images of class 0 and 1 with a known group, those in (0, 0), (0, 0) and (1, 1) are
    # aligned
    assert found["bias_aligned_share"] == pytest.approx(0.75)
    drawn, real = [2.5, 1.5, 0.5, 1.5, 1.5, 0.5], [1.5, 1.5, 1.5, 0.5, 1.5, 1.5]
    by_hand = sum(p / 8 * math.log(p / q) for p, q in zip(drawn, real, strict=True))
    assert found["kl_to_real"] == pytest.approx(by_hand)


def test_images_of_unknown_group_count_in_the_class_histogram_alone():
    real = np.full((3, 2), 4)
    known = composition(ints(0, 1), ints(1, 0), real, ints(1, 1, 1))
    more = composition(ints(0, 1, 2, 2), ints(1, 0, -1, -1), real, ints(1, 1, 1))
    assert more.pop("class_histogram").tolist() == [1, 1, 2]
    assert known.pop("class_histogram").tolist() == [1, 1, 0]
    assert (more.pop("count"), more.pop("unknown_group")) == (4, 2)
    assert (known.pop("count"), known.pop("unknown_group")) == (2, 0)
    np.testing.assert_equal(more, known)


@pytest.mark.parametrize(
    ("group", "aligned"),
    [(ints(0, 1), NONE), (ints(-1, -1), ints(0, 0, 0)), (ints(-1, 1), ints(0, -1, 0))],
    ids=["no class has an aligned group", "no group is known", "the two never meet"],
)
def test_the_aligned_share_is_nan_where_nothing_could_be_aligned(group, aligned):
    found = composition(ints(0, 1), group, np.full((3, 2), 4), aligned)
    assert math.isnan(found["bias_aligned_share"])


@pytest.mark.parametrize(
    ("group", "share"), [(ints(0, 1), 1.0), (ints(1, 0), 0.0), (ints(0, 0), 0.5)]
)
def test_the_aligned_share_counts_images_in_their_class_s_own_group(group, share):
    assert (
        composition(ints(0, 1), group, np.full((3, 2), 4), ints(0, 1, 0))["bias_aligned_share"]
        == share
    )


@SETTINGS
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 1)), max_size=40))
def test_histograms_agree_with_counting(rows):
    label, group = (ints(*column) for column in (list(zip(*rows, strict=True)) or [(), ()]))
    found = composition(label, group, np.full((3, 2), 4), NONE)
    assert found["joint"].tolist() == [[rows.count((c, g)) for g in range(2)] for c in range(3)]
    assert found["class_histogram"].tolist() == [sum(row[0] == c for row in rows) for c in range(3)]
    assert found["group_histogram"].tolist() == [sum(row[1] == g for row in rows) for g in range(2)]
    assert found["unknown_group"] == sum(row[1] == -1 for row in rows)


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


def test_kl_runs_from_the_drawn_to_the_real():
    real, drawn = np.array([[100, 0]]), np.array([[50, 50]])
    expected = 0.5 * math.log(0.5 / (100.5 / 101)) + 0.5 * math.log(0.5 / (0.5 / 101))
    assert kl(drawn, real) == pytest.approx(expected)
    assert kl(real, drawn) < kl(drawn, real)


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


def test_total_variation_of_tables_that_share_no_cell_is_one():
    assert total_variation(np.array([[3, 0], [0, 0]]), np.array([[0, 0], [0, 7]])) == 1


@pytest.mark.parametrize("empty_first", [True, False])
def test_total_variation_to_an_empty_table_is_nan(empty_first):
    tables = [np.zeros((2, 2), int), np.ones((2, 2), int)]
    assert math.isnan(total_variation(*(tables if empty_first else reversed(tables))))


def everything(*shape):
    return np.ones(shape, bool)


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


def exact_null(real, count, members):
    """All tables with the class histogram `count`: their probabilities and statistics, by enumeration."""
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
            kl(table[members], real[members]),
            total_variation(table, real),
            cell_coverage(table, real, members),
        ]
        for table in tables
    ]
    return np.array(probabilities), np.array(found)


@pytest.mark.parametrize(
    "drawn", [[[3, 1, 1], [2, 4, 0]], [[0, 0, 5], [6, 0, 0]], [[4, 0, 1], [1, 5, 0]]]
)
def test_nulls_agree_with_enumeration(drawn):
    real, members = (
        np.array([[6, 3, 1], [2, 5, 0]]),
        np.array([[True, True, True], [True, True, False]]),
    )
    drawn = np.array(drawn)
    found = null(real, drawn, members, (0, "null"), replicates=4000)
    probability, values = exact_null(real, drawn.sum(axis=1), members)
    assert probability.sum() == pytest.approx(1)
    seen = [kl(drawn[members], real[members]), total_variation(drawn, real)]
    seen.append(cell_coverage(drawn, real, members))
    for name, value, own, outwards in zip(NULL, values.T, seen, (1, 1, -1), strict=True):
        exact = probability[outwards * (value - own) >= -1e-9].sum()
        assert found[f"{name}_p"] == pytest.approx(exact, abs=0.03)
        for level, quantile in zip((0.05, 0.5, 0.95), found[name], strict=True):
            assert probability[value <= quantile + 1e-9].sum() >= level - 0.03
            assert probability[value < quantile - 1e-9].sum() <= level + 0.03


def test_the_null_of_a_distance_is_not_zero():
    """2,500 images of the real shares themselves are at a distance of .03: what nulls are for."""
    real = np.full((10, 10), 3) + np.eye(10, dtype=int) * 220
    found = null(real, real, everything(10, 10), (0, "null"), replicates=200)
    assert 0.02 < found["total_variation_to_real"][1] < 0.04
    assert found["total_variation_to_real_p"] == found["kl_to_real_p"] == 1


def test_a_drifted_table_lies_beyond_its_null():
    real = np.full((3, 4), 25)
    drawn = np.array([[97, 1, 1, 1], [25, 25, 25, 25], [100, 0, 0, 0]])
    found = null(real, drawn, everything(3, 4), (0, "null"), replicates=199)
    assert found["kl_to_real_p"] == found["total_variation_to_real_p"] == 1 / 200
    assert found["cell_coverage_p"] == 1 / 200
    assert found["cell_coverage"] == [1, 1, 1]


def test_classes_are_kept_as_they_were_drawn():
    """With one group in all nothing is left to draw: the null is the number itself."""
    real, drawn = np.array([[50], [50], [0]]), np.array([[70], [20], [10]])
    found = null(real, drawn, everything(3, 1), (0, "null"), replicates=20)
    own = total_variation(drawn, real)
    assert found["total_variation_to_real"] == pytest.approx([own] * 3)
    assert [found[f"{name}_p"] for name in NULL] == [1, 1, 1]


@pytest.mark.parametrize("real", [np.full((2, 2), 5), np.zeros((2, 2), int)])
def test_the_null_of_nothing_is_nan(real):
    found = null(real, np.zeros((2, 2), int), everything(2, 2), (0, "null"), replicates=5)
    assert np.isnan(
        [*found["kl_to_real"], found["kl_to_real_p"], found["total_variation_to_real_p"]]
    ).all()
    json.dumps(store.jsonable(found), allow_nan=False)


def test_nulls_of_nested_groups_draw_inside_each_class():
    members = np.kron(np.eye(3, dtype=int), np.ones((1, 4), int)).astype(bool)
    real = np.where(members, 40, 0)
    found = null(real, real, members, (0, "null"), replicates=100)
    same = null(
        np.full((3, 4), 40), np.full((3, 4), 40), everything(3, 4), (0, "null"), replicates=100
    )
    assert found["kl_to_real"] == pytest.approx(same["kl_to_real"], rel=0.3)


def test_a_null_is_its_address_s():
    real = np.array([[30, 20, 10], [5, 5, 50]])
    one, again, other = (
        null(real, real, everything(2, 3), (seed, "null"), replicates=50) for seed in (0, 0, 1)
    )
    assert one == again != other


def test_an_annotator_s_errors_pass_for_drift_unless_the_null_has_them():
    """Drawn from the real shares, read with 30 % errors, their rates known from 15 images of each group."""
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
        p.append([found["kl_to_real_p"] for found in nulls])
    p = np.array(p)
    assert (p[:, 0] <= 0.05).all()
    assert (p[:, 1] <= 0.05).mean() <= 0.15


def test_cell_coverage_by_hand():
    real, members = (
        np.array([[5, 0, 2], [1, 1, 9]]),
        np.array([[True, True, True], [True, True, False]]),
    )
    assert cell_coverage(np.array([[1, 4, 0], [2, 0, 7]]), real, members) == 2 / 4
    assert math.isnan(cell_coverage(real, np.zeros((2, 3), int), members))


@SETTINGS
@given(st.integers(0, 60), st.integers(1, 60))
def test_wilson_is_scipy_s(successes, more):
    count = successes + more - 1
    if not count:
        assert np.isnan(wilson.wilson(successes, count)).all()
        return
    expected = stats.binomtest(successes, count).proportion_ci(0.95, method="wilson")
    assert wilson.wilson(successes, count) == pytest.approx(
        (expected.low, expected.high), abs=1e-12
    )


def test_the_aligned_interval_is_that_of_the_aligned_share():
    joint = np.array([[8, 2], [3, 7], [50, 50]])
    assert aligned_interval(joint, ints(0, 1, -1)) == wilson.wilson(15, 20)
    assert np.isnan(aligned_interval(joint, NONE)).all()


MINORITIES = [0.9] + [0.1 / 9] * 9


@pytest.mark.parametrize(
    ("shares", "rates", "drawn", "known"),
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
def test_corrected_intervals_cover_the_truth_and_uncorrected_do_not(shares, rates, drawn, known):
    """300 trials, each a class of its own."""
    place = (len(shares), drawn, known)
    joint = draws(shares @ rates, drawn, 300, "joint", *place)
    confusion = list(held_out(rates, known, 300, "confusion", *place))
    found = corrected_shares(joint, confusion, everything(*joint.shape))
    assert found["identified"].all()
    assert 0.92 <= covered(found["low"], found["high"], shares).mean() <= 0.98
    plain = np.array([wilson.wilson(reads, drawn) for reads in joint[:, 0]]).T
    assert covered(*plain, shares[0]).mean() < 0.85


def test_the_aligned_share_is_covered_although_every_class_is_near_the_boundary():
    """The mean of ten likeliest shares is .03 too low here, half the width of the interval."""
    rates, inside = annotator(0.9, 10), []
    joints = draws(MINORITIES @ rates, 250, 400, "aligned").reshape(40, 10, 10)
    confusions = held_out(rates, 50, 400, "aligned rates").reshape(40, 10, 10, 10)
    for joint, confusion in zip(joints, confusions, strict=True):
        aligned = np.zeros(10, int)
        found = corrected_shares(joint, list(confusion), everything(10, 10), aligned)["aligned"]
        inside.append(covered(found["low"], found["high"], 0.9))
        assert not covered(*aligned_interval(joint, aligned), 0.9)
        assert found["uncorrected"] == pytest.approx(joint[:, 0].sum() / 2500)
    assert np.mean(inside) >= 0.92


@pytest.mark.parametrize("count", [20, 2000])
def test_a_perfect_annotator_changes_nothing(count):
    joint = np.array([[90, 9, 1], [0, 50, 50], [0, 0, 7]])
    known = [np.eye(3, dtype=int) * count] * 3
    found = corrected_shares(joint, known, everything(3, 3), ints(0, 1, 2))
    np.testing.assert_allclose(found["share"], found["uncorrected"], atol=1e-12)
    np.testing.assert_allclose(found["condition"], 1)
    assert found["aligned"]["share"] == pytest.approx(found["aligned"]["uncorrected"])


def test_the_interval_is_wilson_s_where_the_annotator_is_known_to_be_perfect():
    joint = np.array([[90, 10, 0]])
    found = corrected_shares(joint, [np.eye(3, dtype=int) * 10**9], everything(1, 3))
    expected = np.array([wilson.wilson(reads, 100) for reads in joint[0]])
    np.testing.assert_allclose(found["low"][0], expected[:, 0], atol=1e-5)
    np.testing.assert_allclose(found["high"][0], expected[:, 1], atol=1e-5)


def test_fewer_held_out_images_widen_the_interval():
    widths = []
    for known in (20, 200, 20000):
        counts = np.array([[9, 1], [2, 8]]) * known // 10
        found = corrected_shares(np.array([[60, 40]]), [counts], everything(1, 2))
        widths.append(found["high"][0, 0] - found["low"][0, 0])
    assert widths[0] > widths[1] > widths[2]


confusions = st.lists(st.integers(0, 30), min_size=9, max_size=9).map(
    lambda c: np.array(c).reshape(3, 3) + 60 * np.eye(3, dtype=int)
)


@SETTINGS
@given(confusions, st.lists(st.integers(0, 300), min_size=3, max_size=3))
def test_corrected_shares_lie_on_the_simplex_inside_their_interval(counts, read):
    assume(sum(read))
    found = corrected_shares(np.array([read]), [counts], everything(1, 3), ints(1))
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
    assert found["aligned"]["share"] == pytest.approx(np.clip(inverse[1], 0, 1))


def test_the_likeliest_shares_are_scipy_s_where_the_inverse_lies_outside():
    rates = np.array([[0.8, 0.15, 0.05], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7]])
    read = np.array([[700, 280, 20]])
    found = corrected_shares(read, [(rates * 1000).astype(int)], everything(1, 3))["share"][0]
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
    found = corrected_shares(joint, [np.array(counts), good], everything(2, 2), ints(0, 0))
    assert found["identified"].tolist() == [False, True]
    assert np.isnan([found[name][0] for name in ("share", "low", "high")]).all()
    assert not np.isnan(found["share"][1]).any()
    assert found["uncorrected"][0].tolist() == [0.6, 0.4]
    assert found["condition"][0] > 10 > found["condition"][1]
    aligned = found["aligned"]
    assert np.isnan([aligned["share"], aligned["low"], aligned["high"]]).all()
    assert aligned["uncorrected"] == pytest.approx(0.6)
    assert store.jsonable(found)["share"][0] == [None, None]


def test_nested_groups_empty_classes_single_groups_and_none():
    members = np.array([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]], bool)
    joint = np.array([[30, 10, 0, 0], [0, 0, 7, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    counts = [np.array([[45, 5], [5, 45]]), np.array([[9]]), np.zeros((0, 0), int), np.array([[9]])]
    found = corrected_shares(joint, counts, members, ints(0, 2, -1, 3))
    np.testing.assert_allclose(found["share"][0, :2], [0.8125, 0.1875])
    for name in ("share", "low", "high", "uncorrected"):
        assert np.isnan(found[name][~members]).all()
        assert np.isnan(found[name][3]).all()
        assert found[name][1, 2] == 1
    assert np.isnan(found["condition"][2])
    assert found["aligned"]["share"] == pytest.approx((40 * 0.8125 + 7) / 47)
    assert json.loads(json.dumps(store.jsonable(found), allow_nan=False))["share"][2] == [None] * 4
    as_lists = [table.tolist() for table in counts]  # as a record gives them back
    np.testing.assert_equal(corrected_shares(joint, as_lists, members, ints(0, 2, -1, 3)), found)


def test_without_aligned_groups_the_aligned_share_is_nan():
    counts = [np.array([[45, 5], [5, 45]])]
    for aligned in (None, ints(-1)):
        found = corrected_shares(np.array([[3, 4]]), counts, everything(1, 2), aligned)
        assert np.isnan(list(found["aligned"].values())).all()
