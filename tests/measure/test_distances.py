"""Nearest rows against brute force, and what must not change them."""

import numpy as np
import pytest

from selfloop_jax.measure import distances


def normal(seed, n, d=16, scale=1.0, shift=0.0):
    """float32[n,d]"""
    return (np.random.RandomState(seed).randn(n, d) * scale + shift).astype(np.float32)


def all_distances(queries, base):
    """float64[M,N]"""
    return np.sqrt(((queries[:, None].astype(np.float64) - base[None]) ** 2).sum(axis=2))


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 70), (65, 1), (1003, 1027)])
def test_nearest_equals_brute_force(n, m):
    queries, base = normal(0, n), normal(1, m)
    index, distance = distances.nearest(queries, base)
    expected = all_distances(queries, base)
    assert index.dtype == np.int64
    assert index.tolist() == expected.argmin(axis=1).tolist()
    assert distance == pytest.approx(expected.min(axis=1), rel=1e-12)


def test_a_duplicate_is_at_distance_zero_however_far_out():
    """Neighbours are a few float32 steps apart: about their mean they are far from each other."""
    base = (1000 + np.random.RandomState(0).randint(0, 4, (500, 64)) * 2.0**-14).astype(np.float32)
    index, distance = distances.nearest(base[::-1], base)
    assert index.tolist() == list(range(499, -1, -1))
    assert (distance == 0).all()


def test_near_duplicates_are_distinguished():
    """In float32 |x|^2 + |y|^2 - 2xy would see only noise here."""
    query = normal(0, 1, shift=10)
    base = np.concatenate([query + step * np.float32(1e-4) for step in (3, -2, 1, -4)])
    index, distance = distances.nearest(query, base)
    assert index.tolist() == [2]
    assert distance == pytest.approx(all_distances(query, base)[:, 2], rel=1e-12)


def test_of_equally_near_rows_the_first_is_taken():
    """In whatever tile: there are three."""
    assert distances.nearest(normal(0, 1), np.repeat(normal(0, 1), 2100, axis=0))[0].tolist() == [0]


def test_no_base_is_an_error():
    with pytest.raises(ValueError, match="base: no rows"):
        distances.nearest(normal(0, 3), normal(0, 0))
