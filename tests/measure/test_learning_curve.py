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
    ("own", "class", "purity"), np.array([-1.0, -0.5, 0.0]), np.array([0.3, 0.6, 0.4]), 0.4
)


def side_study(random: np.random.Generator, classifiers: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts of many sizes and compositions, and recalls that scatter about the curve."""
    size = random.choice([3, 20, 100, 400], (classifiers, 3, 1))
    share = random.dirichlet([0.5] * 4, (classifiers, 3))
    counts = random.poisson(size * share * 4)
    noise = CURVE.scatter * random.normal(size=counts.shape)
    return counts, special.expit(CURVE.logit(counts) + noise)


def test_the_curve_of_known_classifiers_is_found():
    counts, recall = side_study(np.random.default_rng(0), 300)
    found = learning_curve.fit(counts, recall, CURVE.terms)
    np.testing.assert_allclose(found.slopes, CURVE.slopes, atol=0.05)
    np.testing.assert_allclose(found.constants, CURVE.constants, atol=0.2)
    assert found.scatter == pytest.approx(CURVE.scatter, rel=0.1)


def test_subgroups_without_test_images_are_left_out():
    counts, recall = side_study(np.random.default_rng(0), 60)
    whole = learning_curve.fit(counts, recall, CURVE.terms)
    recall[:, :, 3] = np.nan
    fewer = learning_curve.fit(counts, recall, CURVE.terms)
    np.testing.assert_allclose(fewer.slopes, whole.slopes, atol=0.15)
    recall[:, 1] = np.nan  # a class without any
    assert learning_curve.fit(counts, recall, CURVE.terms).constants[1] == 0


def test_the_right_terms_have_the_least_error_when_left_out():
    counts, recall = side_study(np.random.default_rng(1), 80)
    labels = [str(i % 5) for i in range(80)]
    sets = (("own",), ("own", "class"), ("class", "purity"), CURVE.terms)
    errors = [learning_curve.left_out_error(counts, recall, labels, terms) for terms in sets]
    assert np.argmin(errors) == 3


@pytest.mark.parametrize("classifiers", [1, 2])
def test_too_few_or_too_similar_classifiers_are_refused(classifiers):
    counts = np.full((classifiers, 3, 4), 5)
    with pytest.raises(ValueError, match="too few classifiers, or too similar"):
        learning_curve.fit(counts, np.full((classifiers, 3, 4), 0.5), ("own",))


def test_the_gap_is_the_expected_range_over_noisy_recalls():
    counts = np.array([[10, 0, 3, 40], [5, 5, 5, 5], [0, 0, 1, 80]])
    random = np.random.default_rng(0)
    logit = CURVE.logit(counts) + CURVE.scatter * random.normal(size=(20_000, 3, 4))
    expected = np.ptp(special.expit(logit), axis=-1).mean()
    assert CURVE.gap(counts) == pytest.approx(expected, abs=0.02)
    # Of equal counts the recalls are equal, and only the scatter makes a gap.
    even = np.full((3, 4), 20)
    assert np.ptp(CURVE.recall(even), axis=-1).max() == pytest.approx(0)
    assert CURVE.gap(even) > 0.05


def test_a_gap_is_over_the_groups_that_are_known():
    counts = np.array([[10, 0, 3, 40], [5, 5, 5, 5], [0, 0, 1, 80]])
    known = np.array(
        [[True, False, True, True], [True, True, True, True], [False, False, True, False]]
    )
    noiseless = LearningCurve(CURVE.terms, CURVE.constants, CURVE.slopes, 0.0)
    recall = noiseless.recall(counts)
    # The last class has one group, which nothing can be compared with.
    ranges = [np.ptp(recall[0, [0, 2, 3]]), np.ptp(recall[1])]
    assert noiseless.gap(counts, known) == pytest.approx(np.mean(ranges))
    both = noiseless.gap(np.stack([counts, counts[::-1]]), known)
    assert both.shape == (2,)
    assert both[0] == pytest.approx(noiseless.gap(counts, known))


@SETTINGS
@given(st.lists(st.integers(0, 50), min_size=12, max_size=12), st.integers(0, 11))
def test_more_images_of_a_subgroup_never_lower_its_recall(counts, place):
    before = np.array(counts).reshape(3, 4)
    after = before.copy()
    after.flat[place] += 1
    assert CURVE.recall(after).flat[place] > CURVE.recall(before).flat[place]


@SETTINGS
@given(st.floats(0.01, 5))
def test_quality_is_what_gives_the_accuracy(q):
    counts = np.array([[10, 0, 3, 40], [5, 5, 5, 5], [2, 0, 1, 80]])
    accuracy = CURVE.recall(q * counts).mean()
    assert learning_curve.quality(CURVE, counts, accuracy) == pytest.approx(q, rel=1e-6)


def test_an_accuracy_out_of_reach_gives_the_nearer_end():
    counts = np.full((3, 4), 10)
    assert learning_curve.quality(CURVE, counts, 0.0) == pytest.approx(1e-3)
    assert learning_curve.quality(CURVE, counts, 1.0) == pytest.approx(10)
