"""Tests random numbers by key path: pinned values, independence of count, distinct paths."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from selfloop_jax.runtime import keys, rng

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True, database=None)


KEY_PATH = (7, "generation", 2, "noise", 5)


parts = st.integers(0, 2**32 - 1) | st.text(max_size=8)


key_paths = st.builds(
    lambda seed, path: (seed, *path), st.integers(0, 2**32 - 1), st.lists(parts, max_size=3)
)


def bits(key_path):
    """Returns the two 32-bit words of the key of a key path."""
    return tuple(np.asarray(jax.random.key_data(keys.key(key_path))).tolist())


def test_words_of_a_key_path_are_pinned():
    expected = [
        4404347566797179331,
        1326228534432398270,
        11148622117225533632,
        18119754212576725298,
    ]
    assert rng.words(KEY_PATH, 4).tolist() == expected


def test_uniforms_of_a_key_path_are_pinned():
    found = rng.uniforms(KEY_PATH, np.array([0, 3, 1], np.uint32))
    expected = ["0x1.e8fb1636d26a4p-3", "0x1.f6ec98e8540c1p-1", "0x1.267b5d34dd478p-4"]
    assert [value.hex() for value in found] == expected


def test_permutation_of_a_key_path_is_pinned():
    assert rng.permutation(KEY_PATH, 10).tolist() == [9, 7, 1, 4, 0, 8, 5, 6, 2, 3]


@pytest.mark.parametrize(
    ("key_path", "expected"),
    [
        (KEY_PATH, (2092497906, 3694615726)),
        ((0,), (0, 0)),
        ((2**32 - 1,), (0, 2**32 - 1)),
        ((0, "1"), (2644304332, 3399307966)),
        ((0, 1), (928981903, 3453687069)),
        ((0, 2**32 - 1), (743310391, 3789761811)),
    ],
)
def test_key_of_a_key_path_is_pinned(key_path, expected):
    assert bits(key_path) == expected


def test_key_is_a_typed_scalar_whatever_the_default_implementation():
    with jax.default_prng_impl("rbg"):
        key = keys.key(KEY_PATH)
    assert jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    assert key.shape == ()
    assert tuple(np.asarray(jax.random.key_data(key)).tolist()) == bits(KEY_PATH)


@SETTINGS
@given(key_paths, st.integers(0, 40), st.integers(0, 40))
def test_a_word_does_not_depend_on_the_count(key_path, few, more):
    longer = rng.words(key_path, few + more)
    assert longer.dtype == np.uint64
    assert longer.shape == (few + more,)
    np.testing.assert_array_equal(rng.words(key_path, few), longer[:few])


@SETTINGS
@given(key_paths, key_paths)
def test_using_one_key_path_does_not_change_another(key_path, other):
    before = rng.words(key_path, 3), bits(key_path)
    rng.words(other, 5), keys.key(other)
    np.testing.assert_array_equal(rng.words(key_path, 3), before[0])
    assert bits(key_path) == before[1]


@SETTINGS
@given(key_paths, st.lists(st.integers(0, 300), min_size=1, max_size=20, unique=True))
def test_a_uniform_depends_on_its_id_alone(key_path, ids):
    together = rng.uniforms(key_path, np.array(ids, np.uint32))
    alone = [rng.uniforms(key_path, np.array([i], np.uint32))[0] for i in ids]
    np.testing.assert_array_equal(together, alone)
    assert ((together >= 0) & (together < 1)).all()
    assert len(set(together.tolist())) == len(ids)


def test_no_ids_give_no_uniforms():
    assert rng.uniforms(KEY_PATH, np.zeros(0, np.uint32)).shape == (0,)


def test_uniforms_are_the_top_53_bits_of_the_words():
    ids = np.arange(50, dtype=np.uint32)
    expected = [int(word) // 2**11 / 2**53 for word in rng.words(KEY_PATH, 50)]
    assert rng.uniforms(KEY_PATH, ids).tolist() == expected


def test_uniforms_are_uniform():
    found = rng.uniforms((0, "spread"), np.arange(20_000, dtype=np.uint32))
    assert stats.kstest(found, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.03


@SETTINGS
@given(key_paths, st.integers(0, 60))
def test_a_permutation_holds_every_index_once(key_path, count):
    np.testing.assert_array_equal(np.sort(rng.permutation(key_path, count)), np.arange(count))


def test_every_order_of_three_comes_up_equally_often():
    orders = [tuple(rng.permutation((0, "orders", i), 3).tolist()) for i in range(1200)]
    counts = [orders.count(order) for order in itertools.permutations(range(3))]
    assert sum(counts) == 1200
    assert stats.chisquare(counts).pvalue > 1e-3


@SETTINGS
@given(key_paths, key_paths)
def test_different_key_paths_give_different_words_and_keys(one, other):
    assume(one != other)
    assert rng.words(one, 2).tolist() != rng.words(other, 2).tolist()
    assert bits(one) != bits(other)


def test_key_paths_that_look_alike_are_different():
    alike = [
        (0,),
        (1,),
        (0, 0),
        (0, "0"),
        (0, ""),
        (0, "a"),
        (0, "a", "b"),
        (0, "b", "a"),
        (0, "ab"),
    ]
    alike += [(0, 1, 2), (0, 2, 1), (0, 12), (0, "12"), (0, "1", "2"), (0, "('a', 'b')")]
    assert len({tuple(rng.words(key_path, 2).tolist()) for key_path in alike}) == len(alike)
    assert len({bits(key_path) for key_path in alike}) == len(alike)


@pytest.mark.parametrize("part", [-1, 2**32, -(2**32)])
def test_a_key_refuses_a_number_beyond_32_bits(part):
    with pytest.raises(ValueError, match=f"key path part {part} "):
        keys.key((0, "generation", part))


def test_a_numpy_integer_is_the_number_it_holds():
    assert bits((0, np.int64(3))) == bits((0, np.uint32(3))) == bits((0, 3))


def test_numpy_integers_are_integers():
    assert (rng.words((np.int64(3), "a", np.uint32(5)), 4) == rng.words((3, "a", 5), 4)).all()
    assert (
        jax.random.key_data(keys.key((np.int64(3), 5))) == jax.random.key_data(keys.key((3, 5)))
    ).all()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_outside_32_bits_are_refused(seed):
    with pytest.raises(ValueError, match="is not in"):
        keys.key((seed,))
