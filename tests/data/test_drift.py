"""The drift null against closed forms, and against what each pool rule must keep or lose."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from benchmarks import closed_form
from selfloop_jax.config import PoolConfig
from selfloop_jax.data import drift, pool_rules
from selfloop_jax.data.pool_rules import POOL_RULES
from selfloop_jax.runtime import rng

KEY = (0, "test")
REAL = np.array([[60, 30, 9, 1], [50, 0, 40, 10], [0, 0, 0, 0]])
PER_CLASS = np.tile([12, 20, 5], (5, 1))
SIZES = {"budget": 150, "alpha": 0.5, "n_real": 40, "n_generated": 20}


def simulate(rule: str, generated=PER_CLASS, loops=400, real=REAL, reserve=None) -> np.ndarray:
    loop = drift.CopyLoop(PoolConfig(rule=rule, **SIZES), real, generated, reserve)
    return drift.coverage(loop, KEY, loops)


def expected(real: np.ndarray, images: np.ndarray) -> float:
    """The mean over subgroups with real images of the chance 1 - (1 - p)^n of an image."""
    share = real / np.maximum(real.sum(axis=1, keepdims=True), 1)
    return float((1 - (1 - share) ** images[:, None])[real > 0].mean())


@pytest.mark.parametrize("rule", ["replace", "accumulate", "real_plus_latest"])
def test_generation_0_agrees_with_the_closed_form(rule):
    simulated = simulate(rule, PER_CLASS[:1], loops=2000)
    error = simulated.std() / np.sqrt(2000)
    assert simulated.mean() == pytest.approx(expected(REAL, PER_CLASS[0]), abs=4 * error)


@pytest.mark.parametrize("rule", POOL_RULES)
def test_the_null_is_that_of_loops_through_real_pools(rule):
    # A loop without networks whose generator is the P(group | label) of its pool: labels of the
    # real set, 30 of each class, with groups of very unequal size.
    group = np.repeat(np.arange(5), [20, 5, 3, 1, 1])
    real = closed_form.points(np.repeat([0, 1], 30), np.tile(group, 2), -1)
    reserve = closed_form.points(np.tile([0, 1], 100), np.repeat([0, 1, 2, 3], 50), -1, 60)
    sizes = {"budget": 40, "alpha": 0.5, "n_real": 10, "n_generated": 20}
    section = PoolConfig(rule=rule, **sizes)
    seen = []
    for seed in range(60):
        _, shares = closed_form.multinomial_loop(section, (seed,), real, reserve, 4, 60, 5)
        seen.append((shares > 0).mean(axis=(1, 2)))
    counts = [images.counts(2, 5) for images in (real, reserve)]
    loop = drift.CopyLoop(section, counts[0], np.full((4, 2), 30), counts[1])
    null = drift.coverage(loop, KEY, 400)
    error = np.hypot(np.std(seen, axis=0) / 60**0.5, null.std(axis=0) / 20)
    assert (np.abs(np.mean(seen, axis=0) - null.mean(axis=0)) < 4 * error).all()


def test_two_alleles_under_replace_are_lost_as_wright_and_fisher_say():
    # Of p (1 - p) a share 1 - 1/n is left in each generation; with n = 1 only one group remains.
    simulated = simulate("replace", np.full((3, 1), 1), real=np.array([[50, 50]]))
    np.testing.assert_array_equal(simulated, 0.5)
    real, n = np.array([[50, 50]]), 6
    simulated = simulate("replace", np.full((2, 1), n), 4000, real)
    k = np.arange(n + 1)
    chance = np.array([1, 6, 15, 20, 15, 6, 1]) / 2**n
    lost = (chance * ((k / n) ** n + (1 - k / n) ** n)).sum()
    assert simulated[:, 1].mean() == pytest.approx(1 - lost / 2, abs=0.01)


def test_under_replace_a_lost_subgroup_never_comes_back():
    assert (np.diff(simulate("replace"), axis=1) <= 0).all()
    assert simulate("replace")[:, -1].mean() < simulate("replace")[:, 0].mean() - 0.1


@pytest.mark.parametrize("rule", ["accumulate", "real_plus_latest"])
def test_rules_that_keep_the_real_images_keep_their_coverage(rule):
    mean = simulate(rule).mean(axis=0)
    np.testing.assert_allclose(mean, mean[0], atol=0.03)


@pytest.mark.parametrize("rule", POOL_RULES)
def test_every_rule_gives_coverages_and_the_same_ones_again(rule):
    simulated = simulate(rule, loops=50, reserve=REAL)
    assert simulated.shape == (50, 5)
    assert ((simulated > 0) & (simulated <= 1)).all()
    np.testing.assert_array_equal(simulate(rule, loops=50, reserve=REAL), simulated)


def test_new_real_images_have_the_shares_of_the_reserve():
    reserve = np.array([[60, 40, 0, 0], [50, 0, 50, 0], [0, 0, 0, 0]])
    plenty = np.full((3, 3), 2000)
    kept = simulate("fresh", plenty, loops=20)[:, -1]
    lost = simulate("fresh", plenty, loops=20, reserve=reserve)[:, -1]
    # The rare groups come from the 20 generated images of a pool alone.
    assert lost.mean() < kept.mean()


def test_sizes_may_differ_between_generations():
    simulated = simulate("accumulate", np.array([[2, 2, 0], [500, 500, 0]]))
    assert simulated[:, 0].max() <= 4 / 7
    assert simulated[:, 1].mean() > 0.95


def test_a_class_without_images_keeps_the_shares_of_its_pool():
    simulated = simulate("replace", np.array([[0, 0, 0], [500, 500, 0]]))
    np.testing.assert_array_equal(simulated[:, 0], 0)
    assert simulated[:, 1].mean() > 0.95


def test_without_real_images_coverage_is_undefined():
    assert np.isnan(simulate("replace", real=np.zeros_like(REAL))).all()


def test_multinomial_counts_add_up_and_follow_the_shares():
    noise = drift.TableNoise(KEY, 500)
    share = np.array([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])
    counts = noise.counts(share, np.array([[40.0], [7.0]]), "a")
    assert counts.shape == (500, 2, 3)
    np.testing.assert_array_equal(counts.sum(axis=-1), np.tile([40, 7], (500, 1)))
    np.testing.assert_array_equal(counts[:, 1, 1], 7)
    np.testing.assert_allclose(counts[:, 0].mean(axis=0), [20, 10, 10], atol=0.6)
    # Var = n p (1 - p), and groups of a class are correlated by -sqrt(p q / ((1-p) (1-q))).
    np.testing.assert_allclose(counts[:, 0].var(axis=0), [10, 7.5, 7.5], rtol=0.2)


def test_a_subset_of_everything_is_everything():
    noise = drift.TableNoise(KEY, 10)
    share = np.array([[0.5, 0.25, 0.25]])
    same = noise.subset(share, np.array([[8.0]]), np.array([[8.0]]), "a")
    np.testing.assert_allclose(same, np.broadcast_to(share, (10, 1, 3)))
    half = noise.subset(share, np.array([[40.0]]), np.array([[80.0]]), "b")
    assert half.std(axis=0).min() > 0
    np.testing.assert_allclose(half.sum(axis=-1), 1)


def test_a_share_of_one_number_is_one_number_per_class():
    noise = drift.TableNoise(KEY, 300)
    found = noise.binomial(0.25, np.array([[100.0], [0.0]]), "a")
    assert found.shape == (300, 2, 1)
    np.testing.assert_array_equal(found[:, 1], 0.25)
    assert found[:, 0].mean() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("rule", POOL_RULES)
def test_pools_have_the_sizes_of_the_rule_and_real_images_in_generation_0(rule):
    real = np.array([[30, 20, 10], [6, 12, 12]])
    section = PoolConfig(rule=rule, budget=45, alpha=0.5, n_real=15, n_generated=9)
    loop = drift.CopyLoop(section, real, np.tile([20, 10], (4, 1)), real)
    pools = drift.pool_counts(loop, KEY, 300)
    assert pools.shape == (4, 300, 2, 3)
    if not POOL_RULES[rule].subsamples_real:
        np.testing.assert_allclose(pools[0], np.broadcast_to(real, pools[0].shape))
    for g in range(4):
        size = pool_rules.capacity(section, g, 90, 30)
        np.testing.assert_allclose(pools[g].sum(axis=(1, 2)), size)
        # Nothing prefers a subgroup: on average the shares stay.
        expected = size / 90 * real
        error = pools[g].std(axis=0) / 300**0.5
        assert (np.abs(pools[g].mean(axis=0) - expected) <= 4 * error + 1e-9).all()


def test_generated_images_count_their_quality():
    real = np.array([[30, 20, 10], [6, 12, 12], [0, 0, 0]])
    loop = drift.CopyLoop(PoolConfig(rule="accumulate"), real, np.tile([20, 10, 0], (3, 1)))
    first, second, third = drift.pool_counts(loop, KEY, 5, [0.5, 0.25, 1.0])
    copies = drift.generated_counts(loop, KEY, 5)
    np.testing.assert_allclose(first, np.broadcast_to(real, first.shape))
    np.testing.assert_allclose(second, real + 0.5 * copies[0])
    np.testing.assert_allclose(third, real + 0.5 * copies[0] + 0.25 * copies[1])


def test_a_rule_that_says_not_what_it_takes_has_no_pool_counts(monkeypatch):
    class Opaque(pool_rules.PoolRule):
        def expected_share(self, shares):
            return np.asarray(shares.real)

    monkeypatch.setitem(POOL_RULES, "opaque", Opaque())
    loop = drift.CopyLoop(PoolConfig(rule="opaque"), REAL, PER_CLASS)
    with pytest.raises(ValueError, match="opaque: says not"):
        drift.pool_counts(loop, KEY, 2)


def test_a_longer_run_begins_with_the_sets_of_a_shorter_one():
    loops = [drift.CopyLoop(PoolConfig(rule="accumulate"), REAL, PER_CLASS[:g]) for g in (2, 5)]
    short, long = (drift.generated_counts(loop, KEY, 3) for loop in loops)
    np.testing.assert_array_equal(short, long[:2])
    np.testing.assert_array_equal(long.sum(axis=-1)[..., :2], np.tile([12, 20], (5, 3, 1)))
    assert not long[..., 2, :].any()  # a class without real images


@pytest.mark.parametrize("most", [1, 7, 60, 1000, 3000])
def test_binomials_are_the_quantiles_of_uniforms(most):
    random = np.random.default_rng(most)
    n = random.integers(1, most + 1, 4000).astype(float)
    p = np.concatenate([random.uniform(1e-6, 1 - 1e-6, 3000), random.uniform(0, 2e-3, 500) + 1e-9])
    p = np.concatenate([p, 1 - p[-500:]])
    noise = drift.TableNoise(KEY, 1)
    uniform = rng.inner_uniforms((*KEY, "a"), (4000,))
    expected = stats.binom.ppf(uniform, n, p)
    np.testing.assert_array_equal(noise._binomial((4000,), n, p, "a"), expected)


def test_mixing_brings_groups_of_other_classes_back():
    real = np.array([[40, 0, 0], [0, 40, 0]])
    kept = drift.CopyLoop(PoolConfig(rule="replace"), real, np.full((4, 2), 40))
    copies = drift.generated_counts(kept, KEY, 50)
    assert (copies[..., 0, 0] == 40).all()
    mixing = replace(kept, mixing=0.5)
    counts = drift.generated_counts(mixing, KEY, 400)
    # A quarter of the images of a class have the group of the other one, and none the third.
    assert counts[0, :, 0, 1].mean() == pytest.approx(10, abs=1)
    assert not counts[..., 2].any()
    np.testing.assert_array_equal(counts.sum(axis=-1), 40)
