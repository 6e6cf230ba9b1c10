"""Addresses: pinned numbers, independence of company and count, and what counts as an address."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from selfloop_jax.runtime import keys, rng

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True, database=None)


ADDRESS = (7, "generation", 2, "noise", 5)


parts = st.integers(0, 2**32 - 1) | st.text(max_size=8)


addresses = st.builds(
    lambda seed, path: (seed, *path), st.integers(0, 2**32 - 1), st.lists(parts, max_size=3)
)


def bits(address):
    """The two 32-bit words of an address's key."""
    return tuple(np.asarray(jax.random.key_data(keys.key(address))).tolist())


def test_words_of_an_address_are_pinned():
    expected = [
        4404347566797179331,
        1326228534432398270,
        11148622117225533632,
        18119754212576725298,
    ]
    assert rng.words(ADDRESS, 4).tolist() == expected


def test_uniforms_of_an_address_are_pinned():
    found = rng.uniforms(ADDRESS, np.array([0, 3, 1], np.uint32))
    expected = ["0x1.e8fb1636d26a4p-3", "0x1.f6ec98e8540c1p-1", "0x1.267b5d34dd478p-4"]
    assert [value.hex() for value in found] == expected


def test_permutation_of_an_address_is_pinned():
    assert rng.permutation(ADDRESS, 10).tolist() == [9, 7, 1, 4, 0, 8, 5, 6, 2, 3]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (ADDRESS, (2092497906, 3694615726)),
        ((0,), (0, 0)),
        ((2**32 - 1,), (0, 2**32 - 1)),
        ((0, "1"), (2644304332, 3399307966)),
        ((0, 1), (928981903, 3453687069)),
        ((0, 2**32 - 1), (743310391, 3789761811)),
    ],
)
def test_key_of_an_address_is_pinned(address, expected):
    assert bits(address) == expected


def test_key_is_a_typed_scalar_whatever_the_default_implementation():
    with jax.default_prng_impl("rbg"):
        key = keys.key(ADDRESS)
    assert jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    assert key.shape == ()
    assert tuple(np.asarray(jax.random.key_data(key)).tolist()) == bits(ADDRESS)


@SETTINGS
@given(addresses, st.integers(0, 40), st.integers(0, 40))
def test_a_word_does_not_depend_on_how_many_are_asked_for(address, few, more):
    longer = rng.words(address, few + more)
    assert longer.dtype == np.uint64
    assert longer.shape == (few + more,)
    np.testing.assert_array_equal(rng.words(address, few), longer[:few])


@SETTINGS
@given(addresses, addresses)
def test_drawing_at_one_address_leaves_another_alone(address, other):
    before = rng.words(address, 3), bits(address)
    rng.words(other, 5), keys.key(other)
    np.testing.assert_array_equal(rng.words(address, 3), before[0])
    assert bits(address) == before[1]


@SETTINGS
@given(addresses, st.lists(st.integers(0, 300), min_size=1, max_size=20, unique=True))
def test_a_uniform_belongs_to_its_id_in_whatever_company(address, ids):
    together = rng.uniforms(address, np.array(ids, np.uint32))
    alone = [rng.uniforms(address, np.array([i], np.uint32))[0] for i in ids]
    np.testing.assert_array_equal(together, alone)
    assert ((together >= 0) & (together < 1)).all()
    assert len(set(together.tolist())) == len(ids)


def test_no_ids_give_no_uniforms():
    assert rng.uniforms(ADDRESS, np.zeros(0, np.uint32)).shape == (0,)


def test_uniforms_are_the_top_53_bits_of_the_words():
    ids = np.arange(50, dtype=np.uint32)
    expected = [int(word) // 2**11 / 2**53 for word in rng.words(ADDRESS, 50)]
    assert rng.uniforms(ADDRESS, ids).tolist() == expected


def test_uniforms_are_uniform():
    draws = rng.uniforms((0, "spread"), np.arange(20_000, dtype=np.uint32))
    assert stats.kstest(draws, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.03


@SETTINGS
@given(addresses, st.integers(0, 60))
def test_a_permutation_holds_every_index_once(address, count):
    np.testing.assert_array_equal(np.sort(rng.permutation(address, count)), np.arange(count))


def test_every_order_of_three_comes_up_equally_often():
    orders = [tuple(rng.permutation((0, "orders", i), 3).tolist()) for i in range(1200)]
    counts = [orders.count(order) for order in itertools.permutations(range(3))]
    assert sum(counts) == 1200
    assert stats.chisquare(counts).pvalue > 1e-3


@SETTINGS
@given(addresses, addresses)
def test_different_addresses_give_different_words_and_keys(one, other):
    assume(one != other)
    assert rng.words(one, 2).tolist() != rng.words(other, 2).tolist()
    assert bits(one) != bits(other)


def test_addresses_that_look_alike_are_different():
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
    assert len({tuple(rng.words(address, 2).tolist()) for address in alike}) == len(alike)
    assert len({bits(address) for address in alike}) == len(alike)


@pytest.mark.parametrize("part", [-1, 2**32, -(2**32)])
def test_a_key_refuses_a_number_beyond_32_bits(part):
    with pytest.raises(ValueError, match=f"address part {part} "):
        keys.key((0, "generation", part))


def test_a_numpy_integer_is_the_number_it_holds():
    assert bits((0, np.int64(3))) == bits((0, np.uint32(3))) == bits((0, 3))


def test_numpy_integers_are_integers():
    assert (rng.words((np.int64(3), "a", np.uint32(5)), 4) == rng.words((3, "a", 5), 4)).all()
    assert (
        jax.random.key_data(keys.key((np.int64(3), 5))) == jax.random.key_data(keys.key((3, 5)))
    ).all()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_would_fall_together_are_refused(seed):
    with pytest.raises(ValueError, match="is not in"):
        keys.key((seed,))
