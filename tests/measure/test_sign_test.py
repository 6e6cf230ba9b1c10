"""Verdicts against scipy, hand calculation and simulated dynamics with a known truth."""

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


def walks(random, seeds, generations=5, step=0.05, noise=0.02, drift=0.0):
    """Bias float[seeds, generations+1]: a random walk, measured with noise."""
    steps = random.normal(drift, step, (seeds, generations))
    b = 0.3 + np.concatenate([np.zeros((seeds, 1)), np.cumsum(steps, axis=1)], axis=1)
    return b + random.normal(0, noise, b.shape)


def one(d, margin=None, alpha=0.05):
    return sign_test.verdicts({"gap": d}, margin and {"gap": margin}, alpha)["gap"]


def contrast(loop, control):
    """float[S] of bias float[S,G+1] in the loop and in its control, seed by seed."""
    return (loop[:, -1] - loop[:, 0]) - (control[:, -1] - control[:, 0])


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


@SETTINGS
@given(contrasts, margins)
def test_equivalence_takes_the_worse_of_two_one_sided_tests(d, margin):
    ps = []
    for shifted in (d + margin, margin - d):
        sums = [np.dot(s, shifted) for s in itertools.product([1, -1], repeat=len(d))]
        ps.append(np.mean(np.array(sums) >= sums[0] - 1e-11 * np.abs(shifted).sum()))
    assert sign_test.equivalent(d, margin) == pytest.approx(max(ps))
    assert sign_test.equivalent(-d, margin) == sign_test.equivalent(d, margin)


def test_a_wider_margin_is_easier_and_a_mean_outside_never_passes():
    d = np.array([0.02, -0.01, 0.03, 0.0, 0.01, -0.02, 0.01])
    ps = [sign_test.equivalent(d, margin) for margin in (0.001, 0.01, 0.05, 1.0)]
    assert ps == sorted(ps, reverse=True)
    assert ps[-1] == 1 / 2**7
    assert sign_test.equivalent(d + 0.1, 0.05) > 0.5


def test_equivalence_holds_its_level_at_the_edge_of_the_margin():
    random = np.random.default_rng(3)
    p = [sign_test.equivalent(random.normal(0.1, 0.02, 7), 0.1) for _ in range(1000)]
    assert np.mean(np.array(p) <= 0.05) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)


def test_the_interval_is_student_s():
    d = np.array([0.1, 0.4, -0.2, 0.3])
    expected = stats.ttest_1samp(d, 0).confidence_interval(0.9)
    assert sign_test.interval(d, 0.9) == pytest.approx((expected.low, expected.high))
    two = stats.ttest_1samp(d[:2], 0).confidence_interval(0.9)
    assert sign_test.interval(d[:2], 0.9) == pytest.approx((two.low, two.high))
    assert all(math.isnan(end) for end in sign_test.interval(d[:1], 0.9))


UP = np.array([0.10, 0.12, 0.09, 0.11, 0.08, 0.13])


def test_the_direction_is_that_of_the_mean():
    assert (one(UP)["verdict"], one(-UP)["verdict"]) == ("amplification", "attenuation")
    assert "+0.105 over 6 seeds" in one(UP)["reason"]
    assert "-0.105 over 6 seeds" in one(-UP)["reason"]


def test_no_change_needs_a_margin_and_a_proof():
    d = np.array([0.01, -0.02, 0.01, -0.01, 0.02, -0.005, 0.0])
    assert one(d)["verdict"] == "not distinguishable"
    assert "no margin was fixed" in one(d)["reason"]
    assert one(d, margin=0.05)["verdict"] == "no change"
    assert one(d, margin=0.005)["verdict"] == "not distinguishable"
    assert "not shown to lie within the margin of 0.005" in one(d, margin=0.005)["reason"]


def test_a_real_change_within_the_margin_is_no_change_and_says_both():
    row = one(UP / 100, margin=0.05)
    assert row["p_holm"] <= 0.05
    assert row["verdict"] == "no change"
    assert "a real change of +0.00105" in row["reason"]
    assert "within the margin of 0.05" in row["reason"]


def test_a_change_beyond_the_margin_is_amplification():
    assert one(UP, margin=0.05)["verdict"] == "amplification"


def test_five_seeds_say_nothing_however_large_the_change():
    row = one(UP[:5] * 10, margin=100.0)
    assert row["verdict"] == "not distinguishable"
    assert row["reason"] == "5 seeds: at least 6 are needed to reach 0.05."


def test_six_seeds_say_nothing_about_three_metrics():
    rows = sign_test.verdicts(dict.fromkeys("abc", UP), {"b": 1.0})
    assert rows["a"]["verdict"] == "not distinguishable"
    assert "6 seeds with 3 metrics: at least 7 are needed" in rows["a"]["reason"]
    assert rows["a"]["smallest_detectable"] == math.inf
    assert rows["b"]["verdict"] == "no change"  # the one-sided tests reach 1 / 64
    seven = sign_test.verdicts({name: np.append(UP, 0.1) for name in "abc"})
    assert {row["verdict"] for row in seven.values()} == {"amplification"}


def test_both_families_are_adjusted():
    rows = sign_test.verdicts({"a": UP, "b": -UP}, {"a": 1.0, "b": 1.0})
    assert rows["a"]["p"] == 2 / 64
    assert rows["a"]["p_holm"] == 4 / 64
    assert rows["a"]["p_equivalence"] == 1 / 64
    assert rows["a"]["p_equivalence_holm"] == 2 / 64


def test_seeds_without_a_value_are_dropped_and_counted():
    row = one(np.array([*UP, np.nan, np.nan]))
    assert (row["seeds"], row["dropped"], row["verdict"]) == (6, 2, "amplification")
    assert row["reason"].endswith("; 2 seeds without a value were left out.")
    empty = one(np.full(6, np.nan))
    assert (empty["seeds"], empty["p"], empty["verdict"]) == (0, 1.0, "not distinguishable")
    assert math.isnan(empty["mean"])


@pytest.mark.parametrize(
    "margins", [{"other": 0.1}, {"gap": 0.0}, {"gap": -1.0}, {"gap": math.nan}]
)
def test_a_margin_that_cannot_be_is_refused(margins):
    with pytest.raises(ValueError, match="must be positive, and for one of"):
        sign_test.verdicts({"gap": UP}, margins)


@SETTINGS
@given(
    st.lists(st.lists(st.floats(-1, 1), min_size=8, max_size=8), min_size=1, max_size=4),
    st.booleans(),
)
def test_turning_the_metric_round_turns_the_verdict_round(rows, with_margin):
    d = {str(i): np.array(row) for i, row in enumerate(rows)}
    margins = dict.fromkeys(d, 0.3) if with_margin else None
    turned = {"amplification": "attenuation", "attenuation": "amplification"}
    there = sign_test.verdicts(d, margins)
    back = sign_test.verdicts({name: -x for name, x in d.items()}, margins)
    for name, row in there.items():
        assert back[name]["verdict"] == turned.get(row["verdict"], row["verdict"])
        assert with_margin or row["verdict"] != "no change"
        assert row["reason"].endswith(".")


@pytest.mark.parametrize(("seeds", "metrics"), [(6, 1), (8, 1), (12, 1), (7, 3), (12, 3)])
def test_the_smallest_detectable_contrast_is_found_four_times_in_five(seeds, metrics):
    unit = np.linspace(-1, 1, seeds)
    unit /= np.std(unit, ddof=1)
    effect = sign_test.smallest_detectable(unit, metrics, 0.05)
    trials = np.random.default_rng(seeds).normal(effect, 1, (600, seeds))
    found = np.mean([sign_test.sign_flip(d) * metrics <= 0.05 for d in trials])
    assert found == pytest.approx(0.8, abs=0.09)  # an approximation, and 5 standard errors


@pytest.mark.parametrize(("seeds", "metrics"), [(6, 1), (6, 3), (8, 3)])
def test_random_walks_are_not_called_amplification(seeds, metrics):
    random, false = np.random.default_rng(10 + seeds), 0
    for _ in range(300):
        pairs = {str(m): (walks(random, seeds), walks(random, seeds)) for m in range(metrics)}
        rows = sign_test.verdicts({name: contrast(*pair) for name, pair in pairs.items()})
        false += any(row["verdict"] != "not distinguishable" for row in rows.values())
    assert false <= 0.07 * 300


@pytest.mark.parametrize(
    ("loop", "margin", "expected"),
    [
        ({"drift": 0.03, "step": 0.01}, 0.05, "amplification"),
        ({"drift": -0.03, "step": 0.01}, 0.05, "attenuation"),
        ({"step": 0.004, "noise": 0.01}, 0.05, "no change"),
        ({"step": 0.05}, None, "not distinguishable"),
        ({"step": 0.05}, 0.02, "not distinguishable"),
    ],
)
def test_constructed_dynamics_get_their_verdict(loop, margin, expected):
    random, right = np.random.default_rng(5), 0
    control = {**loop, "drift": 0.0}
    for _ in range(100):
        d = contrast(walks(random, 8, **loop), walks(random, 8, **control))
        right += one(d, margin)["verdict"] == expected
    assert right >= 85


def test_the_smallest_detectable_contrast_needs_two_seeds_and_enough_for_the_level():
    assert math.isnan(sign_test.smallest_detectable(UP[:1], 1, 0.05))
    assert sign_test.smallest_detectable(UP[:2], 1, 0.05) == math.inf
    # Two seeds of one sign are significant at 0.6: as many are found with a chance of 80 %.
    effect = sign_test.smallest_detectable(UP[:2], 1, 0.6)
    assert stats.norm.cdf(effect / np.std(UP[:2], ddof=1)) ** 2 == pytest.approx(0.8)
