"""Predicted pools against built ones, fitted curves against known ones, laws of two loops."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from benchmarks import closed_form
from selfloop_jax.config import PoolConfig
from selfloop_jax.data import pool_rules
from selfloop_jax.data.images import concatenate
from selfloop_jax.data.pool_rules import Sizes
from selfloop_jax.errors import UsageError
from selfloop_jax.measure import dynamics

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True, database=None)


RULES = {
    "replace": {},
    "real_plus_latest": {},
    "accumulate": {},
    "accumulate_subsample": {"budget": 60},
    "substitute": {"alpha": 0.4},
    "fresh": {"n_real": 40, "n_generated": 60},
}


N_REAL, COUNT, RESERVE, GENERATIONS = 100, 150, 800, 5


PER_CLASS = np.array([60, 40])


ALIGNED = np.array([0.7, 0.5])


share = st.floats(0, 1)


def section(rule, **values):
    return PoolConfig(**({"rule": rule} | RULES[rule] | values))


COPY = dynamics.Response(np.array([0.0, 1.0]), np.zeros((2, 2)))  # generates what the pool has


def shares(section, g, real, generated, sizes):
    return pool_rules.expected_share(pool_rules.ShareInputs(section, g, real, generated, sizes))


def biased(n, first=0):
    """n real points: three of class 0 to two of class 1, a share ALIGNED of both in group 0."""
    label = (np.arange(n) % 5 >= 3).astype(np.int32)
    turn = np.array([np.sum(label[:i] == label[i]) for i in range(n)])
    return closed_form.points(label, (turn % 20 >= 20 * ALIGNED[label]).astype(int), -1, first)


REAL, HELD_OUT = biased(N_REAL), biased(RESERVE, 1000)


def loops(rule, seeds, count=COUNT, generations=GENERATIONS, **values):
    """Aligned shares float[seeds,generations,C] in the pools and among the generated images."""
    rules = section(rule, **values)
    found = [
        closed_form.multinomial_loop(rules, (seed, "loop"), REAL, HELD_OUT, generations, count, 2)
        for seed in range(seeds)
    ]
    return tuple(np.stack(column)[..., 0] for column in zip(*found, strict=True))


def test_fresh_is_anchored_at_the_share_of_the_reserve():
    sizes = dynamics.expected_sizes(np.array([100]), 10)
    rules = section("fresh", n_real=30, n_generated=10)
    of_train = dynamics.Loop(rules, np.array([0.6]), sizes, COPY)
    loop = dataclasses.replace(of_train, reserve=np.array([0.5]))
    pools, _ = dynamics.predict(loop, 6, (0, "prediction"))
    # Three quarters of each pool are new, so the distance to 0.5 shrinks to a quarter.
    np.testing.assert_allclose(pools.mean.ravel(), 0.5 + 0.1 * 0.25 ** np.arange(6))
    assert pools.mean.ravel()[5] == pytest.approx(0.5, abs=1e-3)
    assert pools.low.ravel()[5] < 0.5 < pools.high.ravel()[5] < 0.85
    # Without the reserve's share the best guess is that of the training set.
    np.testing.assert_allclose(dynamics.predict(of_train, 6, (0,))[0].mean, 0.6)


def predict(rule, response=COPY, real=ALIGNED, count=COUNT, generations=GENERATIONS, **more):
    sizes = dynamics.expected_sizes(PER_CLASS, count)
    loop = dynamics.Loop(section(rule), real, sizes, response, more.pop("later", None))
    return dynamics.predict(loop, generations, (0, "prediction"), **more)


def within(observed, expected, errors=4.5):
    """The mean over the first axis lies within so many of its standard errors, everywhere."""
    error = observed.std(axis=0, ddof=1) / np.sqrt(len(observed))
    assert (np.abs(observed.mean(axis=0) - expected) <= errors * error + 1e-12).all()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("match_group", [False, True])
def test_expected_shares_are_those_of_pools_that_are_built(rule, match_group):
    """Three classes and groups, generated sets unlike the real one; the mean over 300 keys."""
    g, rules = 3, section(rule, match_group=match_group)
    label = np.arange(90, dtype=np.int32) % 3
    real = closed_form.points(label, np.arange(90) // 3 % 5 % 3, -1)
    held_out = closed_form.points(np.arange(300) % 3, np.arange(300) // 3 % 5 % 3, -1, 1000)
    sets = [
        closed_form.points(
            np.arange(210) % 3, (np.arange(210) // 3 + i) % 7 % (3 if match_group else i + 1), i
        )
        for i in range(g)
    ]
    drawn = [closed_form.table(images, 3, 3) for images in sets]
    sizes = dynamics.expected_sizes(np.full((3, 1), 30), 210)
    expected = shares(rules, g, closed_form.table(real, 3, 3), drawn, sizes)
    needed = [sets[i] for i in pool_rules.source_generations(rules, g)]
    built = [
        pool_rules.build(rules, (key, "pool"), g, real, held_out, needed) for key in range(300)
    ]
    within(np.stack([closed_form.table(images, 3, 3) for images in built]), expected)
    np.testing.assert_allclose(expected.sum(axis=1), 1)
    if match_group and rule == "substitute":
        np.testing.assert_array_equal(expected, closed_form.table(real, 3, 3))


@pytest.mark.parametrize("rule", RULES)
def test_generation_0_has_the_real_shares(rule):
    np.testing.assert_array_equal(shares(section(rule), 0, ALIGNED, [], Sizes(1, 1)), ALIGNED)


def test_shares_of_a_pool_by_hand():
    sizes = Sizes(real=100, generated=50)
    values = {"substitute": {"alpha": 0.25}, "fresh": {"n_real": 30, "n_generated": 10}}
    drawn = [0.2, 0.4, 1.0]
    found = {
        rule: float(shares(section(rule, **values.get(rule, {})), 3, 0.6, drawn, sizes))
        for rule in RULES
    }
    accumulated = (60 + 10 + 20 + 50) / 250
    assert found == pytest.approx(
        {
            "replace": 1.0,
            "real_plus_latest": (60 + 50) / 150,
            "accumulate": accumulated,
            "accumulate_subsample": accumulated,
            "substitute": 0.75 * 0.6 + 0.25,
            "fresh": (18 + 10) / 40,
        }
    )


@SETTINGS
@given(
    st.sampled_from(sorted(RULES)),
    share,
    st.lists(share, min_size=1, max_size=6),
    st.integers(1, 99),
)
def test_a_pool_lies_between_what_it_is_mixed_from(rule, real, drawn, n):
    sizes = Sizes(n, 100 - n)
    rules = section(rule, budget=5, alpha=n / 100, n_real=n, n_generated=100 - n)
    found = shares(rules, len(drawn), real, drawn, sizes)
    assert min(real, *drawn) - 1e-12 <= found <= max(real, *drawn) + 1e-12
    other_group = shares(rules, len(drawn), 1 - real, [1 - d for d in drawn], sizes)
    assert found + other_group == pytest.approx(1)


def test_every_class_has_its_own_sizes():
    sizes = Sizes(real=np.array([10, 30]), generated=np.array([30, 10]))
    rules = section("real_plus_latest")
    found = shares(rules, 1, np.array([0.0, 0.0]), [np.array([1.0, 1.0])], sizes)
    np.testing.assert_allclose(found, [0.75, 0.25])


def draws(random, p, count):
    return random.binomial(count, p) / count


def test_a_known_response_is_found_again():
    random, pools = np.random.default_rng(0), np.tile([0.1, 0.3, 0.5, 0.7, 0.9], 40)
    drawn = draws(random, special.expit(0.3 + 1.2 * special.logit(pools)), 200)
    fitted = dynamics.fit_response(pools, drawn, 200)
    error = np.sqrt(np.diag(fitted.covariance))
    assert (np.abs(fitted.coefficients - [0.3, 1.2]) < 4 * error).all()
    assert (error < 0.05).all()
    assert fitted.correlation < 0.002
    np.testing.assert_allclose(fitted(0.5), special.expit(0.3), atol=0.01)


def test_the_fit_solves_the_likelihood_equations_with_shares_of_0_and_1():
    pools, drawn = np.array([0.1, 0.1, 0.5, 0.5, 0.9, 0.9]), np.array([0, 0.02, 0.5, 0.4, 1, 0.96])
    fitted = dynamics.fit_response(pools, drawn, np.array([50, 50, 50, 50, 50, 50]))
    residual = drawn - fitted(pools)
    np.testing.assert_allclose(
        [residual.sum(), (residual * special.logit(pools)).sum()], 0, atol=1e-8
    )


def test_intervals_of_the_coefficients_cover_under_scatter_between_generators():
    """Beta-binomial samples: equal training gives different generators; intervals cover them."""
    random, pools, inside, correlations = (
        np.random.default_rng(1),
        np.tile(np.linspace(0.2, 0.8, 5), 6),
        [],
        [],
    )
    p = special.expit(0.8 * special.logit(pools))
    for _ in range(200):
        own = random.beta(p * 19, (1 - p) * 19)  # correlation 1 / 20
        fitted = dynamics.fit_response(pools, draws(random, own, 300), 300)
        error = np.sqrt(fitted.covariance[1, 1])
        inside.append(abs(fitted.coefficients[1] - 0.8) < 1.96 * error)
        correlations.append(fitted.correlation)
    assert np.mean(inside) > 0.89
    assert np.mean(correlations) == pytest.approx(0.05, abs=0.01)


def test_scatter_between_generators_does_not_shrink_with_the_number_of_images():
    response = dynamics.Response(np.array([0.0, 1.0]), np.zeros((2, 2)), correlation=0.02)
    assert response.effective(1) == 1
    assert response.effective(10**9) == pytest.approx(50, rel=1e-3)
    assert COPY.effective(300) == 300


def test_a_fine_tuned_response_is_found_again():
    random = np.random.default_rng(2)
    pools, previous = random.uniform(0.1, 0.9, (2, 300))
    logit = 0.1 + 0.7 * special.logit(pools) + 0.4 * special.logit(previous)
    fitted = dynamics.fit_response(pools, draws(random, special.expit(logit), 300), 300, previous)
    assert fitted.fine_tuned
    np.testing.assert_allclose(fitted.coefficients, [0.1, 0.7, 0.4], atol=0.05)
    assert fitted(0.5, 0.5) == pytest.approx(special.expit(0.1), abs=0.01)


def test_pools_of_one_group_alone_are_read_half_an_image_from_the_edge():
    fitted = dynamics.fit_response(
        np.array([0, 0.25, 0.5, 0.75, 1]), np.array([0.01, 0.3, 0.5, 0.7, 0.98]), 100
    )
    assert fitted.edge == 0.005
    assert np.isfinite(fitted.coefficients).all()
    assert fitted(0.0) == fitted(0.005) > 0


@pytest.mark.parametrize(
    ("pools", "drawn", "message"),
    [
        ([0.2, 0.8], [0.3, 0.7], "2 points: a response needs more than 2, at different shares"),
        ([0.5] * 4, [0.3, 0.4, 0.5, 0.6], "4 points"),
        ([0.2, 0.3, 0.7, 0.8], [0.0, 0.0, 1.0, 1.0], "no finite curve"),
    ],
)
def test_points_without_a_curve_are_refused(pools, drawn, message):
    with pytest.raises(ValueError, match=message):
        dynamics.fit_response(np.array(pools), np.array(drawn), 100)


@SETTINGS
@given(share, st.floats(-2, 2), st.floats(0, 3))
def test_a_response_swaps_with_its_groups(b, shift, slope):
    one, other = (
        dynamics.Response(np.array([a, slope]), np.zeros((2, 2)), edge=1e-6)
        for a in (shift, -shift)
    )
    assert one(b) + other(1 - b) == pytest.approx(1, abs=1e-9)
    assert COPY(b) == pytest.approx(b, abs=1e-9)


def test_the_gap_curve_interpolates_between_measured_levels_and_refuses_others():
    curve = dynamics.gap_curve(
        np.array([0.5, 0.5, 0.9, 0.9, 0.7]), np.array([0.0, 0.2, 0.6, 0.8, 0.3])
    )
    gap, error = curve(np.array([0.5, 0.6, 0.9, 0.49, 0.91]))
    np.testing.assert_allclose(gap, [0.1, 0.2, 0.7, np.nan, np.nan])
    np.testing.assert_allclose(error[[0, 2]], [0.1, 0.1])
    assert np.isnan(curve.error[1])  # a single seed at .7
    with pytest.raises(ValueError, match="1 level of bias"):
        dynamics.gap_curve(np.array([0.5, 0.5]), np.array([0.1, 0.2]))


@SETTINGS
@given(st.lists(share, min_size=2, max_size=6, unique=True), share)
def test_the_gap_curve_is_numpy_s_interpolation(levels, at):
    gap = np.arange(len(levels)) ** 2.0
    found, _ = dynamics.gap_curve(np.array(levels), gap)(at)
    order = np.argsort(levels)
    expected = np.interp(at, np.array(levels)[order], gap[order], left=np.nan, right=np.nan)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_prediction_intervals_cover_the_multinomial_loop(rule):
    pools, drawn = loops(rule, 300)
    predicted = predict(rule)
    for observed, band in zip((pools, drawn), predicted, strict=True):
        for g in range(GENERATIONS):
            one = dynamics.Band(band.mean[g], band.low[g], band.high[g])
            assert (
                0.915 <= dynamics.score(observed[:, g], one, {})["coverage"] <= 1
            )  # 600 shares, 4 errors
        within(observed, band.mean)
    whole = dynamics.score(drawn, predicted[1], {})
    assert 0.93 <= whole["coverage"] <= 0.98


def test_coverage_reads_1_where_a_pool_is_known():
    pools, _ = predict("replace")
    np.testing.assert_array_equal(pools.low[0], ALIGNED)
    np.testing.assert_array_equal(pools.high[0], ALIGNED)


def test_a_response_with_a_fixed_point_is_followed_to_it():
    response = dynamics.Response(
        np.array([0.4, 0.5]), np.zeros((2, 2))
    )  # logit of its fixed point: .8
    _, drawn = predict("replace", response, generations=40)
    np.testing.assert_allclose(drawn.mean[-1], special.expit(0.8), atol=1e-6)
    assert (drawn.low < drawn.mean).all()
    assert (drawn.high > drawn.mean).all()


def certain(*coefficients):
    return dynamics.Response(np.array(coefficients), np.zeros((len(coefficients),) * 2))


def line(rule, coefficients, real, generations, first=None):
    """Generated shares of a noiseless loop, as many as real images; `first`: of generation 0."""
    of_all = certain(*coefficients)
    response = of_all if first is None else certain(special.logit(first), 0)
    loop = dynamics.Loop(section(rule), real, Sizes(100, 100), response, of_all)
    pools, drawn = dynamics.predict(loop, generations, (0, "line"), paths=1)
    return pools.mean, drawn.mean


def test_real_images_tame_a_response_that_runs_away():
    """With k = 1.5 `replace` leaves r* = 1/2; anchored with s = 1/2 it rests, as s k = .75 < 1."""
    _, alone = line("replace", [0, 1.5], 0.52, 40)
    assert alone[-1] > 0.99
    pools, _ = line("real_plus_latest", [0, 1.5], 0.5001, 60)
    assert pools[-1] - 0.5 == pytest.approx(0.0001 * 0.5 / (1 - 0.75), rel=1e-3)


def test_under_accumulate_the_response_wins_by_a_power_law():
    pools, _ = line("accumulate", [0, 0.5], 0.52, 401)
    distance = pools - 0.5
    assert distance[400] / distance[100] == pytest.approx((101 / 401) ** 0.5, rel=0.01)


def test_real_images_do_not_reach_the_memory_of_a_fine_tuned_generator():
    _, remembering = line("real_plus_latest", [0, 0.0, 1.2], 0.5, 60, first=0.51)
    assert remembering[-1] > 0.99
    _, stable = line("real_plus_latest", [0, 0.8, 0.5], 0.5, 200, first=0.9)  # s k_B + k_q = .9
    assert stable[-1] == pytest.approx(0.5, abs=1e-6)
    _, alone = line("replace", [0, 0.8, 0.5], 0.5, 60, first=0.51)  # k_B + k_q = 1.3
    assert alone[-1] > 0.99


@pytest.mark.parametrize("rule", ["real_plus_latest", "accumulate"])
def test_the_spread_of_a_copying_loop_is_bounded_as_derived(rule):
    pools, _ = loops(rule, 400, N_REAL, 12)
    n, p = PER_CLASS, ALIGNED
    spread = pools[:, -1].var(axis=0, ddof=1)
    settled = 0.25 * p * (1 - p) / n / (1 - 0.25 * (1 - 1 / n))
    bound = settled if rule == "real_plus_latest" else p * (1 - p) / n
    assert (spread < bound * (1 + 4.5 * np.sqrt(2 / 399))).all()
    if rule == "real_plus_latest":
        np.testing.assert_allclose(spread, settled, rtol=4.5 * np.sqrt(2 / 399))


def test_the_interval_covers_loops_of_another_response_fitted_from_a_side_study():
    """The whole path: side study, fit, prediction; every trial has its own study and loop."""
    random, inside, errors = np.random.default_rng(4), [], []
    truth, pools = np.array([0.2, 1.1]), np.tile([0.3, 0.5, 0.7, 0.9], 5)
    for trial in range(60):
        drawn_there = draws(random, special.expit(truth[0] + truth[1] * special.logit(pools)), 200)
        response = dynamics.fit_response(pools, drawn_there, 200)
        b, drawn = 0.7, []
        for _ in range(5):
            drawn.append(draws(random, special.expit(truth[0] + truth[1] * special.logit(b)), 200))
            b = (0.7 + drawn[-1]) / 2
        loop = dynamics.Loop(section("real_plus_latest"), 0.7, Sizes(200, 200), response)
        _, band = dynamics.predict(loop, 5, (trial, "p"), paths=500)
        observed = np.array(drawn)[None]
        score = dynamics.score(observed, band, {"naive": observed[:, :1]})
        inside.append(score["coverage"])
        errors.append((score["error"], score["error_naive"]))
    assert 0.88 <= np.mean(inside) <= 0.99
    assert np.mean(errors, axis=0)[0] < np.mean(errors, axis=0)[1] + 0.01


def test_an_observed_first_generation_is_taken_as_given():
    first = np.array([0.9, 0.1])
    pools, drawn = predict("real_plus_latest", first=first)
    np.testing.assert_array_equal(drawn.low[0], first)
    np.testing.assert_array_equal(drawn.high[0], first)
    np.testing.assert_allclose(pools.mean[1], (ALIGNED * N_REAL + first * COUNT) / (N_REAL + COUNT))


def test_a_fine_tuned_generator_has_one_before_it():
    tuned = certain(0.0, 0.5, 0.5)
    with pytest.raises(
        ValueError, match=r"^response of a fine-tuned generator: no previous generator"
    ):
        predict("replace", tuned)
    _, drawn = predict("replace", later=tuned)
    np.testing.assert_allclose(drawn.mean, np.broadcast_to(ALIGNED, drawn.mean.shape))


def test_memory_is_of_the_expected_share_without_sampling_noise():
    """Generation 0 generates 0.8 for an expected 0.5; a generator that is all memory stays."""
    remembering = dynamics.Loop(
        section("replace"), 0.5, Sizes(100, 100), certain(0, 1), certain(0, 0, 1)
    )
    _, memory = dynamics.predict(remembering, 4, (0, "x"), first=0.8, paths=1)
    np.testing.assert_allclose(memory.mean, [0.8, 0.5, 0.5, 0.5])
    reading = dataclasses.replace(remembering, later=certain(0, 1, 0))
    _, pool_alone = dynamics.predict(reading, 4, (0, "x"), first=0.8, paths=1)
    np.testing.assert_allclose(pool_alone.mean, [0.8] * 4)


def test_all_classes_together_scatter_less_than_one():
    """Classes draw apart: the weighted mean of n independent shares has the joint paths' spread."""
    real, weights = np.full(16, 0.5), np.ones(16)
    loop = dynamics.Loop(section("replace"), real, Sizes(50, 50), COPY)
    one, whole = (dynamics.predict(loop, 2, (0, "w"), weights=w)[1] for w in (None, weights))
    assert whole.mean.shape == (2,)
    np.testing.assert_allclose(whole.mean, 0.5)
    spread, single = whole.high - whole.low, (one.high - one.low).mean(axis=1)
    np.testing.assert_allclose(spread * 4, single, rtol=0.1)


def test_predictions_depend_on_their_key_path_alone():
    one, again = predict("fresh"), predict("fresh")
    np.testing.assert_array_equal(one[1].low, again[1].low)


def test_the_score_counts_errors_and_intervals():
    observed = np.array([[0.5, 0.6], [0.5, 0.8]])
    band = dynamics.Band(np.array([0.5, 0.6]), np.array([0.4, 0.5]), np.array([0.6, 0.7]))
    found = dynamics.score(observed, band, {"naive": observed[:, :1]})
    assert found == pytest.approx(
        {"error": 0.05, "error_naive": 0.1, "coverage": 0.75, "undefined": 0}
    )
    hole = dynamics.Band(np.array([0.5, np.nan]), band.low, band.high)
    found = dynamics.score(observed, hole, {"naive": observed[:, :1]})
    assert found == pytest.approx(
        {"error": 0.0, "error_naive": 0.0, "coverage": 1.0, "undefined": 2}
    )
    nothing = dynamics.Band(np.full(2, np.nan), band.low, band.high)
    assert dynamics.score(observed, nothing, {"naive": observed[:, :1]})["undefined"] == 4


def test_under_replace_shares_drift_as_wright_and_fisher_say():
    """Martingale, and heterozygosity p(1-p) that decays by 1 - 1/n_c a step."""
    seeds, generations, count = 400, 8, 50
    _, drawn = loops("replace", seeds, count, generations)
    n_c = count * PER_CLASS / N_REAL
    within(drawn, ALIGNED)
    steps = np.arange(1, generations + 1)[:, None]
    within(drawn * (1 - drawn), ALIGNED * (1 - ALIGNED) * (1 - 1 / n_c) ** steps)


def test_under_accumulate_drift_stays_bounded():
    """After G steps of n = n_r = n_s Var of the share is p(1-p) (1 - prod (1 - 1/(n (g+1)^2)))."""
    _, drawn = loops("replace", 300, N_REAL, 12)
    pools, _ = loops("accumulate", 300, N_REAL, 12)
    spread = pools[:, -1].var(axis=0, ddof=1)
    g = np.arange(1, 12)[:, None]
    expected = ALIGNED * (1 - ALIGNED) * (1 - np.prod(1 - 1 / (PER_CLASS * (g + 1) ** 2), axis=0))
    np.testing.assert_allclose(spread, expected, rtol=4.5 * np.sqrt(2 / 299))
    assert (spread < drawn[:, -1].var(axis=0, ddof=1) / 5).all()


@SETTINGS
@given(st.sampled_from(sorted(RULES)), st.integers(0, 9))
def test_tables_of_the_loop_are_shares(rule, seed):
    tables = closed_form.multinomial_loop(section(rule), (seed,), REAL, HELD_OUT, 3, COUNT, 2)
    for found in tables:
        assert found.shape == (3, 2, 2)
        np.testing.assert_allclose(found.sum(axis=2), 1)
    if rule != "accumulate_subsample":
        np.testing.assert_array_equal(tables[0][0], closed_form.table(REAL, 2, 2))


def test_a_pool_without_a_class_is_refused():
    with pytest.raises(UsageError, match=r"^pool of generation 0: a class has no image"):
        closed_form.multinomial_loop(
            section("accumulate_subsample", budget=1), (0,), REAL, HELD_OUT, 2, 9, 2
        )


def gaussian(rule, seeds=300, n=20, generations=6, **values):
    found = [
        closed_form.gaussian_loop(section(rule), (seed, "gauss"), n, generations, n, 2, **values)
        for seed in range(seeds)
    ]
    return tuple(np.stack(column) for column in zip(*found, strict=True))


@pytest.mark.parametrize("scale", [1.0, 0.8])
@pytest.mark.parametrize("unbiased", [True, False])
def test_under_replace_the_covariance_shrinks_by_lambda(scale, unbiased):
    _, trace, _ = gaussian("replace", scale=scale, unbiased=unbiased)
    t, n = np.arange(6), 20
    within(trace, 2 * scale**t * (1 if unbiased else (1 - 1 / n) ** (t + 1)))


def test_the_mean_wanders_off_under_replace_and_stays_under_accumulate():
    n, generations = 20, 10
    replaced, _, _ = gaussian("replace", n=n, generations=generations)
    accumulated, _, _ = gaussian("accumulate", n=n, generations=generations)
    t = np.arange(1, generations + 1)
    within((replaced**2).sum(axis=2), 2 / n * t)
    squared = (accumulated**2).sum(axis=2)
    error = squared.std(axis=0) / np.sqrt(len(squared))
    assert (squared.mean(axis=0) < 2 / n * np.pi**2 / 6 + 4.5 * error).all()


@pytest.mark.parametrize("rule", RULES)
def test_sizes_of_the_pools_are_those_of_the_rule(rule):
    rules = section(rule)
    _, _, sizes = closed_form.gaussian_loop(rules, (0,), 90, GENERATIONS, 110, 3, n_reserve=200)
    assert sizes.tolist() == [pool_rules.capacity(rules, g, 90, 110) for g in range(GENERATIONS)]


def test_a_vector_is_found_by_origin_and_id():
    vectors = {-1: np.arange(10.0)[:, None], 2: 100 + np.arange(5.0)[:, None]}
    both = [
        closed_form.points(np.zeros(n), np.zeros(n), origin) for n, origin in ((10, -1), (5, 2))
    ]
    mixed = concatenate(both).take(np.array([12, 3, 0, 14]))
    assert closed_form.look_up(vectors, mixed)[:, 0].tolist() == [102, 3, 0, 104]


def test_gaussians_of_one_dimension_and_of_more_dimensions_than_points():
    assert gaussian("replace", seeds=2)[0].shape == (2, 6, 2)
    mean, trace, _ = closed_form.gaussian_loop(section("replace"), (0,), 4, 3, 4, 1)
    assert mean.shape == (3, 1)
    assert (trace > 0).all()
    mean, trace, _ = closed_form.gaussian_loop(section("accumulate"), (0,), 4, 3, 4, 9)
    assert np.isfinite(mean).all()
    assert np.isfinite(trace).all()
