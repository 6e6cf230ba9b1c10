"""The learning curve against curves that are known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from selfloop_jax.measure import learning_curve
from selfloop_jax.measure.learning_curve import LearningCurve

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True, database=None)
CURVE = LearningCurve(
    ("own", "class", "shortcut"),
    np.array([-1.0, -0.5, 0.0]),
    np.array([0.4, 0.3, -1.0]),
    np.array([-1.0, -0.4, 0.8]),
)


def side_study(random: np.random.Generator, classifiers: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts of many sizes and compositions, and recalls that scatter about the curve."""
    size = random.choice([3, 20, 100, 400], (classifiers, 3, 1))
    share = random.dirichlet([0.5] * 4, (classifiers, 3))
    counts = random.poisson(size * share * 4)
    mean, deviation = CURVE.logit(counts)
    return counts, special.expit(mean + deviation * random.normal(size=counts.shape))


def test_the_curve_of_known_classifiers_is_found():
    counts, recall = side_study(np.random.default_rng(0), 300)
    found = learning_curve.fit(counts, recall, CURVE.terms)
    np.testing.assert_allclose(found.slopes, CURVE.slopes, atol=0.15)
    np.testing.assert_allclose(found.constants, CURVE.constants, atol=0.2)
    np.testing.assert_allclose(found.scatter, CURVE.scatter, atol=0.15)


def test_subgroups_without_test_images_are_left_out():
    counts, recall = side_study(np.random.default_rng(0), 60)
    whole = learning_curve.fit(counts, recall, CURVE.terms)
    recall[:, :, 3] = np.nan
    fewer = learning_curve.fit(counts, recall, CURVE.terms)
    np.testing.assert_allclose(fewer.slopes, whole.slopes, atol=0.4)
    recall[:, 1] = np.nan  # a class without any
    assert learning_curve.fit(counts, recall, CURVE.terms).constants[1] == 0


def test_the_right_terms_have_the_least_error_when_left_out():
    counts, recall = side_study(np.random.default_rng(1), 80)
    labels = [str(i % 5) for i in range(80)]
    sets = (("own",), ("own", "purity"), CURVE.terms)
    errors = [learning_curve.left_out_error(counts, recall, labels, terms) for terms in sets]
    assert np.argmin(np.sum(errors, axis=1)) == 2
    gap, mean = errors[2]
    assert gap < 0.12
    assert mean < 0.05


@pytest.mark.parametrize("classifiers", [1, 2])
def test_too_few_or_too_similar_classifiers_are_refused(classifiers):
    counts = np.full((classifiers, 3, 4), 5)
    with pytest.raises(ValueError, match="too few classifiers, or too similar"):
        learning_curve.fit(counts, np.full((classifiers, 3, 4), 0.5), ("own",))


def test_the_gap_is_the_expected_range_over_noisy_recalls():
    counts = np.array([[10, 0, 3, 40], [5, 5, 5, 5], [0, 0, 1, 80]])
    random = np.random.default_rng(0)
    mean, deviation = CURVE.logit(counts)
    recall = special.expit(mean + deviation * random.normal(size=(20_000, 3, 4)))
    assert CURVE.gap(counts) == pytest.approx(np.ptp(recall, axis=-1).mean(), abs=0.02)
    np.testing.assert_allclose(CURVE.recall(counts), recall.mean(axis=0), atol=0.015)
    # Of equal counts the recalls are equal, and only the scatter makes a gap.
    even = np.full((3, 4), 20)
    assert np.ptp(CURVE.recall(even), axis=-1).max() == pytest.approx(0)
    assert CURVE.gap(even) > 0.05


def test_a_gap_is_over_the_groups_that_are_known():
    counts = np.array([[10, 0, 3, 40], [5, 5, 5, 5], [0, 0, 1, 80]])
    known = np.array(
        [[True, False, True, True], [True, True, True, True], [False, False, True, False]]
    )
    none = np.array([-40.0, 0.0, 0.0])
    noiseless = LearningCurve(CURVE.terms, CURVE.constants, CURVE.slopes, none)
    recall = noiseless.recall(counts)
    # The last class has one group, which nothing can be compared with.
    ranges = [np.ptp(recall[0, [0, 2, 3]]), np.ptp(recall[1])]
    assert noiseless.gap(counts, known) == pytest.approx(np.mean(ranges))
    both = noiseless.gap(np.stack([counts, counts[::-1]]), known)
    assert both.shape == (2,)
    assert both[0] == pytest.approx(noiseless.gap(counts, known))


@SETTINGS
@given(st.lists(st.integers(0, 50), min_size=12, max_size=12).filter(any), st.integers(2, 9))
def test_dependence_is_a_mutual_information(counts, times):
    n = np.array(counts).reshape(3, 4)
    (nats,) = learning_curve.dependence(n).ravel()
    assert -1e-12 <= nats <= np.log(3) + 1e-12
    # It depends on shares alone, and is 0 where groups say nothing.
    assert learning_curve.dependence(times * n).item() == pytest.approx(nats, abs=1e-12)
    outer = np.outer([1, 2, 3], n.sum(axis=0))
    assert learning_curve.dependence(outer).item() == pytest.approx(0, abs=1e-12)


def test_a_group_that_gives_its_class_away_says_all():
    assert learning_curve.dependence(np.eye(5) * 7).item() == pytest.approx(np.log(5))


@SETTINGS
@given(st.floats(0.01, 5))
def test_quality_is_what_gives_the_accuracy(q):
    counts = np.array([[10, 0, 3, 40], [5, 5, 5, 5], [2, 0, 1, 80]])
    accuracy = CURVE.recall(q * counts).mean()
    assert learning_curve.quality(CURVE, counts, accuracy) == pytest.approx(q, rel=1e-6)


@pytest.mark.parametrize("accuracy", [0.0, 1.0, np.nan])
def test_an_accuracy_out_of_reach_has_no_quality(accuracy):
    assert np.isnan(learning_curve.quality(CURVE, np.full((3, 4), 10), accuracy))


def test_quality_is_of_the_subgroups_that_are_tested():
    counts = np.array([[10, 0, 3, 40], [5, 5, 5, 5], [2, 0, 1, 80]])
    known = counts > 0
    accuracy = CURVE.recall(0.4 * counts)[known].mean()
    assert learning_curve.quality(CURVE, counts, accuracy, known) == pytest.approx(0.4, rel=1e-6)
