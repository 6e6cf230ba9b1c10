"""Sign-flip tests against scipy, enumeration, hand calculation and simulated contrasts."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from selfloop_jax.measure import sign_test

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True, database=None)


# On a grid: two sums are then equal up to rounding, or clearly different.
contrasts = st.lists(st.integers(-3000, 3000), min_size=1, max_size=9).map(
    lambda thousandths: np.array(thousandths) / 1000
)
margins = st.integers(10, 5000).map(lambda thousandths: thousandths / 1000)


p_values = st.lists(st.floats(0, 1), min_size=1, max_size=8)


@pytest.mark.parametrize("seeds", [2, 5, 6, 9])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_sign_flip_is_scipy_s_exact_permutation_test(seeds, shift):
    d = np.random.default_rng(seeds).normal(shift, 1, seeds)
    exact = stats.permutation_test(
        (d, np.zeros(seeds)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    )
    assert sign_test.sign_flip(d) == pytest.approx(exact.pvalue)


@SETTINGS
@given(contrasts)
def test_sign_flip_counts_the_patterns_of_signs(d):
    signs = itertools.product([1, -1], repeat=len(d))
    extreme = [abs(np.dot(s, d)) >= abs(d.sum()) - 1e-11 * np.abs(d).sum() for s in signs]
    assert sign_test.sign_flip(d) == pytest.approx(np.mean(extreme))


@SETTINGS
@given(contrasts, st.floats(0.01, 100), st.randoms())
def test_sign_flip_knows_no_direction_no_unit_and_no_order(d, unit, random):
    p = sign_test.sign_flip(d)
    shuffled = list(d)
    random.shuffle(shuffled)
    assert (
        sign_test.sign_flip(-d)
        == sign_test.sign_flip(unit * d)
        == sign_test.sign_flip(np.array(shuffled))
        == p
    )
    assert 2 / 2 ** len(d) <= p <= 1


def test_six_seeds_are_the_least_that_reach_five_percent():
    assert sign_test.sign_flip(np.full(6, 0.3)) == 2 / 64
    assert sign_test.sign_flip(np.full(5, 0.3)) == 2 / 32
    assert sign_test.least_seeds(1, 0.05) == 6
    assert [sign_test.least_seeds(m, 0.05) for m in (2, 3, 4, 6, 7, 12, 13)] == [
        7,
        7,
        8,
        8,
        9,
        9,
        10,
    ]


def test_no_change_at_all_is_no_evidence():
    assert sign_test.sign_flip(np.zeros(8)) == 1


def test_above_twenty_seeds_patterns_are_sampled():
    d = np.linspace(-0.5, 1.2, 22)
    exact = stats.ttest_1samp(d, 0).pvalue  # close to the permutation test of so many
    assert sign_test.sign_flip(d) == pytest.approx(exact, rel=0.15)
    assert sign_test.sign_flip(d) == sign_test.sign_flip(d)
    assert sign_test.sign_flip(np.ones(40)) == pytest.approx(2**-20)


@pytest.mark.parametrize("d", [np.array([0.1, np.nan]), np.ones((2, 3))])
def test_what_cannot_be_tested_is_refused(d):
    with pytest.raises(ValueError, match="must be finite numbers"):
        sign_test.sign_flip(d)


def test_twenty_seeds_are_enumerated():
    assert sign_test.sign_flip(np.full(20, 1.0)) == 2 / 2**20


def test_holm_by_hand():
    # the formula of statsmodels.stats.multitest: max over j <= i of (m - j + 1) p_(j), at most 1
    np.testing.assert_allclose(sign_test.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(sign_test.holm([0.6, 0.5]), [1.0, 1.0])
    assert len(sign_test.holm([])) == 0


@SETTINGS
@given(p_values, st.floats(0.01, 0.3))
def test_holm_rejects_what_its_steps_reject(p, alpha):
    """The step-down procedure as published, one hypothesis at a time."""
    rejected = set()
    for rank, i in enumerate(np.argsort(p, kind="stable")):
        if p[i] * (len(p) - rank) > alpha:
            break
        rejected.add(int(i))
    adjusted = sign_test.holm(p)
    assert set(np.flatnonzero(adjusted <= alpha)) == rejected
    assert (adjusted >= p).all()


def equivalent(d, margin):
    return sign_test.equivalent(d[None], np.full((1, len(d)), margin))[0]


def beyond(d, margin):
    return sign_test.beyond(d[None], np.broadcast_to(margin, (1, len(d))))[0]


def test_a_wider_margin_is_easier_and_a_mean_outside_never_passes():
    d = np.array([0.02, -0.01, 0.03, 0.0, 0.01, -0.02, 0.01])
    ps = [equivalent(d, margin) for margin in (0.001, 0.01, 0.05, 1.0)]
    assert ps == sorted(ps, reverse=True)
    assert ps[-1] == 1 / 2**7
    assert equivalent(d + 0.1, 0.05) > 0.5


def test_equivalence_holds_its_level_at_the_edge_of_the_margin():
    random = np.random.default_rng(3)
    p = [equivalent(random.normal(0.1, 0.02, 7), 0.1) for _ in range(1000)]
    assert np.mean(np.array(p) <= 0.05) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)


def test_the_interval_is_student_s():
    d = np.array([0.1, 0.4, -0.2, 0.3])
    expected = stats.ttest_1samp(d, 0).confidence_interval(0.9)
    assert sign_test.interval(d, 0.9) == pytest.approx((expected.low, expected.high))
    two = stats.ttest_1samp(d[:2], 0).confidence_interval(0.9)
    assert sign_test.interval(d[:2], 0.9) == pytest.approx((two.low, two.high))
    assert all(math.isnan(end) for end in sign_test.interval(d[:1], 0.9))


UP = np.array([0.10, 0.12, 0.09, 0.11, 0.08, 0.13])


tables = st.integers(1, 7).flatmap(
    lambda seeds: st.lists(
        st.lists(st.integers(-300, 300), min_size=seeds, max_size=seeds), min_size=1, max_size=4
    ).map(lambda rows: np.array(rows) / 100)
)


def min_p(table, one_sided):
    """Single-step min-p as it is defined, one pattern of signs after the other."""
    patterns = list(itertools.product([1, -1], repeat=table.shape[1]))
    sums = np.array([table @ np.array(pattern) for pattern in patterns])
    statistic = sums if one_sided else np.abs(sums)
    p = np.array([np.mean(statistic >= row - 1e-9, axis=0) for row in statistic])
    return np.array([np.mean(p.min(axis=1) <= own + 1e-9) for own in p[0]])


@SETTINGS
@given(tables, st.booleans())
def test_joint_p_values_are_those_of_the_definition(table, one_sided):
    found = sign_test.joint_sign_flip(table, one_sided)
    np.testing.assert_allclose(found, min_p(table, one_sided))


@SETTINGS
@given(tables)
def test_a_joint_p_lies_between_the_single_one_and_bonferroni_s(table):
    single = np.array([sign_test.sign_flip(d) for d in table])
    joint = sign_test.joint_sign_flip(table)
    assert (joint >= single - 1e-9).all()
    assert (joint <= np.minimum(1, len(table) * single) + 1e-9).all()


def test_arms_that_share_their_signs_cost_nothing_and_a_missing_seed_has_no_say():
    arms = np.stack([UP, 2 * UP, UP**2])
    np.testing.assert_array_equal(sign_test.joint_sign_flip(arms), 2 / 64)
    # Five seeds reach 2 / 32 with four of 64 patterns; in the other arms two more reach as much.
    arms[1, 0] = np.nan
    assert sign_test.joint_sign_flip(arms)[1] == 6 / 64


def test_joint_p_values_hold_for_all_arms_together():
    random = np.random.default_rng(0)
    false = 0
    for _ in range(600):
        common = random.normal(size=8)  # what all arms of a seed share
        table = common + random.normal(size=(6, 8))
        false += sign_test.joint_sign_flip(table).min() <= 0.05
    assert false / 600 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)


def test_above_fourteen_seeds_joint_patterns_are_sampled():
    d = np.linspace(-0.5, 1.2, 16)
    (joint,) = sign_test.joint_sign_flip(d[None])
    assert joint == pytest.approx(sign_test.sign_flip(d), abs=0.005)
    assert sign_test.joint_sign_flip(np.ones((2, 30))).tolist() == [2**-14] * 2


@SETTINGS
@given(tables, margins)
def test_margin_tests_are_pairs_of_one_sided_joint_tests(table, margin):
    limits = np.full(table.shape, margin)
    inside = np.split(min_p(np.concatenate([table + margin, margin - table]), True), 2)
    outside = np.split(min_p(np.concatenate([table - margin, -table - margin]), True), 2)
    np.testing.assert_allclose(sign_test.equivalent(table, limits), np.maximum(*inside))
    np.testing.assert_allclose(sign_test.beyond(table, limits), np.minimum(*outside))


def test_more_than_a_margin_by_hand():
    assert beyond(UP, 0.05) == beyond(-UP, 0.05) == 2 / 64
    assert beyond(UP, 0.15) == 1
    assert beyond(UP, UP / 2) == 2 / 64  # a margin for each seed


@pytest.mark.parametrize("mean", [0.1, -0.1])
def test_a_mean_on_the_margin_is_not_beyond_it(mean):
    random = np.random.default_rng(4)
    p = [beyond(random.normal(mean, 0.02, 7), 0.1) for _ in range(1000)]
    assert np.mean(np.array(p) <= 0.05) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)


@pytest.mark.parametrize(("seeds", "metrics"), [(6, 1), (8, 1), (12, 1), (7, 3), (12, 3)])
def test_the_smallest_detectable_contrast_is_found_four_times_in_five(seeds, metrics):
    unit = np.linspace(-1, 1, seeds)
    unit /= np.std(unit, ddof=1)
    effect = sign_test.smallest_detectable(unit, metrics, 0.05)
    trials = np.random.default_rng(seeds).normal(effect, 1, (600, seeds))
    found = np.mean([sign_test.sign_flip(d) * metrics <= 0.05 for d in trials])
    assert found == pytest.approx(0.8, abs=0.09)  # an approximation, and 5 standard errors


def test_the_smallest_detectable_contrast_needs_two_seeds_and_enough_for_the_level():
    assert math.isnan(sign_test.smallest_detectable(UP[:1], 1, 0.05))
    assert sign_test.smallest_detectable(UP[:2], 1, 0.05) == math.inf
    # Two seeds of one sign are significant at 0.6: as many are found with a chance of 80 %.
    effect = sign_test.smallest_detectable(UP[:2], 1, 0.6)
    assert stats.norm.cdf(effect / np.std(UP[:2], ddof=1)) ** 2 == pytest.approx(0.8)


def test_seeds_needed_grow_with_the_scatter_and_shrink_with_the_distance():
    d = np.array([0.1, -0.1, 0.05, -0.05, 0.02, -0.02])
    near = sign_test.seeds_needed(d, 0.05, 1, 0.05)
    assert sign_test.seeds_needed(d, 0.1, 1, 0.05) < near
    assert sign_test.seeds_needed(2 * d, 0.05, 1, 0.05) > near
    assert sign_test.seeds_needed(d, 0.001, 1, 0.05) == math.inf
    # Six contrasts need eight seeds at the least, however clear they are.
    assert sign_test.seeds_needed(d, 10.0, 6, 0.05) == 8
    # So few seeds do not show the scatter.
    assert sign_test.seeds_needed(d[:3], 0.001, 1, 0.05) == 6


def test_so_many_seeds_as_needed_find_it_most_of_the_time():
    random = np.random.default_rng(0)
    spread = 0.1
    d = spread * np.array([-1, 1] * 3) * np.sqrt(5 / 6)  # with that standard deviation
    needed = int(sign_test.seeds_needed(d, 0.1, 1, 0.05))
    hits = [sign_test.sign_flip(random.normal(0.1, spread, needed)) <= 0.05 for _ in range(200)]
    assert 0.7 < np.mean(hits) < 0.95
