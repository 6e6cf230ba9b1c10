"""Composition numbers by hand, divergences against scipy and plain loops."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from selfloop_jax.measure import drift

SETTINGS = settings(max_examples=100, deadline=None, derandomize=True, database=None)
NONE = np.array([-1, -1, -1], np.int32)

counts = st.lists(st.integers(0, 50), min_size=6, max_size=6).map(lambda c: np.array(c).reshape(3, 2))


def ints(*values):
    return np.array(values, np.int32)


def composition(label, group, real, aligned, members=None):
    return drift.composition(
        label, group, real, aligned, np.ones(real.shape, bool) if members is None else members
    )


def test_cells_that_cannot_be_take_no_part_in_a_divergence():
    """With 0.5 in each of them a nested table of counts would look far from itself drawn smaller."""
    members = np.kron(np.eye(3, dtype=int), np.ones((1, 4), int)).astype(bool)
    real = np.where(members, 40, 0)
    label, group = np.nonzero(members)
    found = composition(label.astype(np.int32), group.astype(np.int32), real, NONE, members)
    assert found["kl_to_real"] == pytest.approx(0, abs=1e-12)
    assert composition(label.astype(np.int32), group.astype(np.int32), real, NONE)["kl_to_real"] > 0.1


def test_composition_of_six_images_by_hand():
    label, group = ints(0, 0, 0, 1, 1, 2), ints(0, 0, 1, 1, -1, 0)
    found = composition(label, group, np.array([[1, 1], [1, 0], [1, 1]]), ints(0, 1, -1))
    assert found["count"] == 6
    assert found["class_histogram"].tolist() == [3, 2, 1]
    assert found["joint"].tolist() == [[2, 1], [0, 1], [1, 0]]
    assert found["group_histogram"].tolist() == [3, 2]
    assert found["unknown_group"] == 1
    # real shares 1/5 in five cells; drawn 2/5 1/5 0 1/5 1/5 0: |1/5| + 0 + |1/5| + |1/5| + 0 + |1/5|, halved
    assert found["total_variation_to_real"] == pytest.approx(0.4)
    # of the four images of class 0 and 1 with a known group, those in (0, 0), (0, 0) and (1, 1) are aligned
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


@pytest.mark.parametrize(("group", "share"), [(ints(0, 1), 1.0), (ints(1, 0), 0.0), (ints(0, 0), 0.5)])
def test_the_aligned_share_counts_images_in_their_class_s_own_group(group, share):
    assert composition(ints(0, 1), group, np.full((3, 2), 4), ints(0, 1, 0))["bias_aligned_share"] == share


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
        assert math.isnan(drift.kl(p, q))
        return
    expected = stats.entropy((p + 0.5).ravel(), (q + 0.5).ravel())
    assert drift.kl(p, q) == pytest.approx(expected, abs=1e-12)
    assert drift.kl(p, q) >= -1e-12
    assert drift.kl(p, p) == 0


def test_kl_runs_from_the_drawn_to_the_real():
    real, drawn = np.array([[100, 0]]), np.array([[50, 50]])
    expected = 0.5 * math.log(0.5 / (100.5 / 101)) + 0.5 * math.log(0.5 / (0.5 / 101))
    assert drift.kl(drawn, real) == pytest.approx(expected)
    assert drift.kl(real, drawn) < drift.kl(drawn, real)


@SETTINGS
@given(counts, counts)
def test_total_variation_is_the_largest_difference_over_all_events(p, q):
    assume(p.sum() and q.sum())
    difference = (p / p.sum() - q / q.sum()).ravel()
    events = [[cell for cell in range(6) if event >> cell & 1] for event in range(2**6)]
    brute = max(abs(difference[event].sum()) for event in events)
    assert drift.total_variation(p, q) == pytest.approx(brute, abs=1e-12)
    assert drift.total_variation(q, p) == drift.total_variation(p, q)


@SETTINGS
@given(counts, st.integers(1, 9))
def test_total_variation_looks_at_shares_not_at_sizes(p, factor):
    assume(p.sum())
    assert drift.total_variation(p, factor * p) == pytest.approx(0, abs=1e-12)


def test_total_variation_of_tables_that_share_no_cell_is_one():
    assert drift.total_variation(np.array([[3, 0], [0, 0]]), np.array([[0, 0], [0, 7]])) == 1


@pytest.mark.parametrize("empty_first", [True, False])
def test_total_variation_to_an_empty_table_is_nan(empty_first):
    tables = [np.zeros((2, 2), int), np.ones((2, 2), int)]
    assert math.isnan(drift.total_variation(*(tables if empty_first else reversed(tables))))
