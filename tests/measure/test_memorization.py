"""Copies of training images: what is found, what is not, and how often by chance."""

import math

import numpy as np
import pytest
from scipy import stats

from selfloop_jax.measure import memorization
from selfloop_jax.measure.intervals import wilson

KEY_PATH = (0, "memorization")


def normal(seed, n, d=16, scale=1.0, shift=0.0):
    """float32[n,d]"""
    return (np.random.RandomState(seed).randn(n, d) * scale + shift).astype(np.float32)


def test_copies_of_training_images_are_memorised():
    train, held_out = normal(0, 300), normal(1, 300)
    found = memorization.memorization(train[:100], train, held_out)
    assert (found["median_ratio"], found["share_nearer"], found["count"], found["base"]) == (
        0,
        1,
        100,
        300,
    )
    assert found["high"] == 1


def test_new_images_are_as_near_to_either():
    found = memorization.memorization(normal(2, 1000), normal(0, 800), normal(1, 800))
    assert found["low"] < 0.5 < found["high"]
    assert found["median_ratio"] == pytest.approx(1, abs=0.03)


def test_copies_of_what_both_sets_hold_say_nothing():
    real = normal(0, 50)
    found = memorization.memorization(real[:20], real, real[::-1])
    assert (found["median_ratio"], found["share_nearer"]) == (1, 0.5)


def test_interval_is_wilsons_where_every_image_has_a_neighbour_of_its_own():
    train, held_out = normal(0, 80), normal(1, 80)
    found = memorization.memorization(np.concatenate([train[:30], held_out[:60]]), train, held_out)
    expected = stats.binomtest(30, 90).proportion_ci(method="wilson")
    assert (found["effective"], found["share_nearer"]) == pytest.approx((90, 1 / 3))
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert (wilson(0, 10)[0], wilson(10, 10)[1]) == (0, 1)


def test_images_with_the_same_neighbour_count_as_fewer():
    train, held_out = normal(0, 80), normal(1, 80)
    generated = np.concatenate([np.repeat(train[:1], 6, axis=0), held_out[:1], held_out[:1]])
    found = memorization.memorization(generated, train, held_out)
    assert (found["effective"], found["share_nearer"]) == pytest.approx((64 / (36 + 4), 0.75))


def test_interval_holds_where_few_real_images_are_nearest_to_most():
    """Many features, few real images: Wilson's plain interval misses in a third and more."""
    missed = missed_if_independent = 0
    for trial in range(60):
        sets = (normal(3 * trial + i, n, 64) for i, n in enumerate((400, 100, 100)))
        found = memorization.memorization(*sets)
        low, high = wilson(found["share_nearer"] * 400, 400)
        missed += not found["low"] < 0.5 < found["high"]
        missed_if_independent += not low < 0.5 < high
    assert missed <= 3
    assert missed_if_independent >= 20


def test_sets_of_unequal_size_are_an_error():
    with pytest.raises(ValueError, match="train: 5 rows; must be 4, as many as held_out has"):
        memorization.memorization(normal(0, 3), normal(1, 5), normal(2, 4))


@pytest.mark.parametrize(("n", "base"), [(0, 4), (4, 0)])
def test_memorization_of_nothing_is_undefined(n, base):
    found = memorization.memorization(normal(0, n), normal(1, base), normal(2, base))
    assert math.isnan(found["share_nearer"])
    assert math.isnan(found["median_ratio"])
    assert math.isnan(found["copied"])


def planted(trial, share, d=64, n=400, base=1000):
    """Features of generated, training and held-out images, some of them near a training image."""
    generated, train, held_out = (
        normal(3 * trial + i, size, d) for i, size in enumerate((n, base, base))
    )
    copies = round(share * n)
    rows = np.random.RandomState(trial).choice(base, copies)
    generated[:copies] = train[rows] + normal(trial, copies, d, scale=0.1)
    return generated, train, held_out


@pytest.mark.parametrize("d", [8, 64])
def test_five_percent_of_near_copies_are_found(d):
    found = [memorization.memorization(*planted(trial, 0.05, d)) for trial in range(20)]
    assert sum(one["copied_low"] > 0 for one in found) >= 16
    assert np.mean([one["copied"] for one in found]) == pytest.approx(0.05, abs=0.005)


def test_the_typical_image_does_not_show_a_few_copies():
    found = [memorization.memorization(*planted(trial, 0.05)) for trial in range(20)]
    assert sum(one["low"] > 0.5 for one in found) <= 4


@pytest.mark.parametrize("d", [2, 8, 64])
def test_without_copies_few_are_found(d):
    found = [memorization.memorization(*planted(trial, 0, d)) for trial in range(40)]
    # 2.5 % on this side, so that more than 4 of 40 happen in one case of two hundred.
    assert sum(one["copied_low"] > 0 for one in found) <= 4
    assert abs(np.mean([one["copied"] for one in found])) < 0.01


def test_copies_of_images_that_are_not_searched_count_in_proportion():
    """Of 300 training images 100 are searched, as many as are held out."""
    train, held_out = normal(0, 300, 64), normal(1, 100, 64)
    generated = np.concatenate([train[:60] + normal(2, 60, 64, scale=0.1), normal(3, 240, 64)])
    metrics, notes = memorization.report(generated, train, held_out, KEY_PATH)
    assert metrics["copied_share"]["value"] == pytest.approx(0.2, abs=0.07)
    assert metrics["copied_share"]["low"] > 0
    assert metrics["copied_share"]["baseline"] == 0
    assert notes[0].startswith("memorized_share: 100 of 300 training images are searched")


def test_report_distinguishes_copies_from_new_images():
    train, held_out = normal(0, 400), normal(1, 400)
    copies = train[:100] + normal(2, 100, scale=0.05)
    metrics, notes = memorization.report(copies, train, held_out, KEY_PATH)
    share = metrics["memorized_share"]
    assert (share["value"], share["high"]) == (1, 1)
    assert 0.4 < share["baseline"] < 0.6
    assert metrics["copied_share"]["value"] == 1
    assert notes == []


def test_a_note_where_held_out_images_were_sampled_otherwise():
    shifted = normal(2, 400, shift=1)
    for held_out, notes in ((shifted, 1), (normal(2, 400), 0)):
        found = memorization.report(normal(0, 400), normal(1, 400), held_out, KEY_PATH)[1]
        assert sum("even of held-out" in note for note in found) == notes


def test_without_held_out_images_nothing_is_known():
    features = normal(0, 60, 4)
    metrics, _ = memorization.report(features, features, features[:0], KEY_PATH)
    for number in metrics.values():
        assert np.isnan(list(number.values())).all()
