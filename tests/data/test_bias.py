"""Tests the initial bias by subsampling: tables of crossed and nested groups, left-out images."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfloop_jax.config import BiasConfig
from selfloop_jax.data.bias import aligned_groups, group_table, largest, subsample
from selfloop_jax.data.images import REAL, Images
from selfloop_jax.errors import UsageError

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True, database=None)


NESTED = np.kron(np.eye(3, dtype=int), np.ones((1, 5), int)).astype(
    bool
)  # 3 classes of 5 groups each


def images(counts):
    """Returns images with histogram `counts` int[C,G+1]; column 0 holds unknown groups."""
    counts = np.asarray(counts)
    label, group = np.repeat(
        np.indices(counts.shape).reshape(2, -1), counts.ravel(), axis=1
    ).astype(np.int32)
    order = np.argsort(
        (np.arange(len(label)) * 7919) % 1009, kind="stable"
    )  # not sorted by subgroup
    n = len(label)
    pixels, origin = np.zeros((n, 1, 1, 3), np.uint8), np.full(n, REAL, np.int32)
    return Images(
        pixels, label[order], group[order] - 1, origin, np.arange(5, 5 + n, dtype=np.uint32)
    )


def names(classes, groups):
    return [f"c{i}" for i in range(classes)], [f"g{i}" for i in range(groups)]


def test_one_nested_group_at_a_share():
    table = group_table(BiasConfig(kind="rho", rho=0.6), NESTED)
    np.testing.assert_allclose(table[1], [*[0] * 5, 0.6, 0.1, 0.1, 0.1, 0.1, *[0] * 5])
    np.testing.assert_allclose(group_table(BiasConfig(), NESTED), NESTED / 5)


def test_one_row_serves_all_classes():
    row = (0.4, 0.3, 0.1, 0.1, 0.1)
    table = group_table(BiasConfig(kind="per_class", per_class=(row,)), NESTED)
    assert [table[c, NESTED[c]].tolist() for c in range(3)] == [list(row)] * 3


def test_classes_with_different_numbers_of_groups_have_rows_of_their_own():
    members = np.array([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], bool)
    table = group_table(
        BiasConfig(kind="per_class", per_class=((0.2, 0.8), (1.0,), (1.0,))), members
    )
    assert table.tolist() == [[0.2, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert group_table(BiasConfig(kind="rho"), members)[1].tolist() == [0, 0, 1, 0]
    with pytest.raises(UsageError, match="of 1/2 probabilities"):
        group_table(BiasConfig(kind="per_class", per_class=((0.2, 0.8),)), members)


def test_a_group_is_aligned_only_by_the_margin():
    table = np.array([[0.51, 0.49], [0.52, 0.48], [0.5, 0.5]])
    assert aligned_groups(table, 0.03).tolist() == [-1, 0, -1]


@SETTINGS
@given(st.data())
def test_a_subset_has_the_table_and_keeps_the_class_shares(data):
    # From 8 images on, no subset is so small that a class is rounded away, which is refused.
    rows = st.lists(st.integers(8, 40), min_size=4, max_size=4)
    counts = np.array(data.draw(st.lists(rows, min_size=2, max_size=4)))
    counts[:, 0] = 2  # unknown group
    bias = data.draw(st.sampled_from([BiasConfig(), BiasConfig(kind="rho", rho=0.8)]))
    table = group_table(bias, np.ones((len(counts), 3), bool))
    have = images(counts)
    found = subsample(have, table, 0, 0, names(*table.shape))
    known = counts[:, 1:].sum(axis=1)
    exact = len(found) * (known / known.sum())[:, None] * table
    assert abs(found.counts(*table.shape) - exact).max() < 1
    assert (found.counts(*table.shape) <= counts[:, 1:]).all()
    assert (found.group >= 0).all()
    largest = min((counts[:, 1:] / ((known / known.sum())[:, None] * table)).ravel())
    assert len(found) == int(largest + 1e-9)
    assert (np.diff(found.id.astype(int)) > 0).all()


def test_a_smaller_subset_lies_within_a_larger_one():
    have = images([[0, 50, 50], [0, 50, 50]])
    table = group_table(BiasConfig(), np.ones((2, 2), bool))
    sets = {n: set(subsample(have, table, n, 0, names(2, 2)).id.tolist()) for n in (20, 60, 200)}
    assert sets[20] < sets[60] < sets[200]
    assert [len(ids) for ids in sets.values()] == [20, 60, 200]


@pytest.mark.parametrize("table", [None, np.array([[0.5, 0.5], [0.2, 0.8]])])
def test_seeds_in_a_row_get_disjoint_images_while_there_are_enough(table):
    have = images([[0, 60, 60], [0, 60, 60]])
    sets = [set(subsample(have, table, 68, seed, names(2, 2)).id.tolist()) for seed in range(7)]
    assert {len(ids) for ids in sets} == {68}
    # 17 of each subgroup, so that there are enough for three seeds; under the table 27 of one.
    enough = 3 if table is None else 2
    for first, second in itertools.combinations(sets[:enough], 2):
        assert not first & second
    # Then another order begins: no seed has the images of an earlier one.
    assert len(set(map(frozenset, sets))) == 7
    assert 0 < len(sets[0] & sets[enough]) < 68


def test_seeds_differ_where_one_subgroup_is_used_up():
    have = images([[0, 20, 60], [0, 60, 60]])
    table = group_table(BiasConfig(), np.ones((2, 2), bool))
    first, second = (subsample(have, table, 0, seed, names(2, 2)).id for seed in range(2))
    assert len(first) == len(second) < 200
    assert first.tolist() != second.tolist()


def test_without_a_table_the_composition_stays_unknown_groups_too():
    have = images([[10, 20, 30], [0, 40, 100]])
    found = subsample(have, None, 100, 0, names(2, 2))
    assert found.counts(2, 2).tolist() == [[10, 15], [20, 50]]
    assert (found.group < 0).sum() == 5


def test_the_largest_subset_is_as_large_as_said():
    table = group_table(BiasConfig(), np.ones((2, 2), bool))
    have = images([[3, 5, 5], [0, 5, 9]])
    assert largest(have, table) == len(subsample(have, table, 0, 0, names(2, 2))) == 17
    assert largest(images([[0, 5, 0], [0, 5, 9]]), table) == 0
    assert largest(have.take(slice(0)), table) == 0


def test_a_size_that_empties_a_class_is_an_error_that_names_it():
    with pytest.raises(
        UsageError, match=r"^data\.train_size = 5: too small to leave an image of class c1"
    ):
        subsample(images([[0, 50, 50], [0, 2, 3]]), None, 5, 0, names(2, 2))


def test_an_empty_subgroup_or_too_large_a_size_is_an_error_that_names_it():
    table = group_table(BiasConfig(), np.ones((2, 2), bool))
    with pytest.raises(
        UsageError, match=r"^data\.bias: class c1 has no training image of group g0$"
    ):
        subsample(images([[0, 5, 5], [3, 0, 5]]), table, 0, 0, names(2, 2))
    with pytest.raises(UsageError, match=r"^data\.train_size = 21: must be at most 17 under"):
        subsample(images([[0, 5, 5], [0, 5, 9]]), table, 21, 0, names(2, 2))
