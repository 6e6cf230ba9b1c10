"""Fidelity against the authors' package and textbook formulas, and what must not change it."""

import json
import math

import jax.numpy as jnp
import numpy as np
import prdc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

from selfloop_jax.measure import distances, fidelity

SETTINGS = settings(max_examples=25, deadline=None, derandomize=True, database=None)


MANIFOLD = ("precision", "recall", "density", "coverage")


K = 5


def normal(seed, n, d=16, scale=1.0, shift=0.0):
    """float32[n,d]"""
    return (np.random.RandomState(seed).randn(n, d) * scale + shift).astype(np.float32)


def kid(a, b):
    """Unbiased MMD^2 from whole kernel matrices in float64 (Binkowski et al. 2018)."""
    a, b, (m, d), n = a.astype(np.float64), b.astype(np.float64), a.shape, len(b)
    k_aa, k_bb, k_ab = ((x @ y.T / d + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within = (k_aa.sum() - np.trace(k_aa)) / (m * (m - 1)) + (k_bb.sum() - np.trace(k_bb)) / (
        n * (n - 1)
    )
    return within - 2 * k_ab.mean()


def frechet(a, b):
    """The published formula, by way of a general matrix root."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    s_a, s_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    shift = a.mean(axis=0) - b.mean(axis=0)
    return shift @ shift + np.trace(s_a + s_b) - 2 * np.trace(linalg.sqrtm(s_a @ s_b)).real


lattice = st.integers(0, 2**32 - 1).map(lambda seed: np.random.RandomState(seed))


@pytest.mark.parametrize(
    ("n", "m", "k"), [(7, 9, 5), (64, 65, 3), (300, 200, 5), (1027, 1003, 5), (200, 130, 90)]
)
def test_manifold_equals_the_authors_package(n, m, k):
    real, generated = normal(0, n), normal(1, m, scale=0.9, shift=0.1)
    expected = prdc.compute_prdc(real, generated, k)
    assert fidelity.manifold(real, generated, k) == pytest.approx(expected, rel=1e-12)


@SETTINGS
@given(lattice, st.integers(7, 70), st.integers(7, 70), st.integers(1, 5))
def test_manifold_equals_the_authors_package_where_distances_tie(random, n, m, k):
    """Points of a small lattice: many duplicates, many neighbours at the same distance."""
    real = random.randint(0, 3, (n, 3)).astype(np.float32)
    generated = random.randint(0, 3, (m, 3)).astype(np.float32)
    expected = prdc.compute_prdc(real, generated, k)
    assert fidelity.manifold(real, generated, k) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [K, K + 1, 1003])
def test_identical_sets_cover_each_other(n):
    """An open ball holds its own image and k - 1 neighbours: density 1."""
    real = normal(0, n)
    found = fidelity.manifold(real, real[np.random.RandomState(1).permutation(n)], K)
    expected = 1.0 if n > K else math.nan
    assert found == pytest.approx(dict.fromkeys(MANIFOLD, expected), nan_ok=True)


def test_sets_far_apart_share_nothing():
    found = fidelity.manifold(normal(0, 50), normal(1, 50, shift=100), K)
    assert found == dict.fromkeys(MANIFOLD, 0.0)


@pytest.mark.parametrize("n", [60, 300])  # in one tile, and in several
def test_balls_of_images_with_k_copies_are_empty(n):
    """Open balls of radius 0, where |x|^2 + |y|^2 - 2xy alone is a rounding error."""
    real = np.repeat(normal(0, n, 64), K + 1, axis=0)
    assert fidelity.manifold(real, real[::-1], K) == dict.fromkeys(MANIFOLD, 0.0)


@pytest.mark.parametrize(("n", "m", "d"), [(500, 300, 8), (2000, 1500, 32)])
def test_frechet_equals_the_formula_with_a_matrix_root(n, m, d):
    mix = np.random.RandomState(2).randn(d, d).astype(np.float32)
    a, b = normal(0, n, d), normal(1, m, d, scale=1.2, shift=0.3) @ mix
    assert fidelity.frechet(a, b) == pytest.approx(frechet(a, b), rel=1e-6)


def test_frechet_of_diagonal_gaussians():
    scale_a, scale_b, shift = np.array([1, 2, 0.5]), np.array([3, 1, 0.5]), np.array([0, 1, -2])
    a, b = normal(0, 100_000, 3) * scale_a, normal(1, 100_000, 3) * scale_b + shift
    closed = (shift**2).sum() + ((scale_a - scale_b) ** 2).sum()
    assert fidelity.frechet(a, b) == pytest.approx(closed, rel=0.02)


def test_frechet_of_fewer_images_than_features():
    """Exact where rooted covariances would be off by the root of a rounding error."""
    a = normal(0, 10, 64)
    assert fidelity.frechet(a, a) == pytest.approx(0, abs=1e-12)
    assert fidelity.frechet(a, a.astype(np.float64) + 0.5) == pytest.approx(64 * 0.25, rel=1e-12)


def test_frechet_of_dead_features():
    a, b = normal(0, 100, 8), normal(1, 100, 8)
    a[:, 3:] = b[:, 3:] = 0
    assert fidelity.frechet(a, b) == pytest.approx(frechet(a[:, :3], b[:, :3]), rel=1e-6)


@pytest.mark.parametrize(("n", "m", "d"), [(2, 2, 3), (65, 64, 8), (1027, 2050, 16)])
def test_kernel_distance_equals_whole_matrices(n, m, d):
    a, b = normal(0, n, d), normal(1, m, d, scale=1.3, shift=0.2)
    assert fidelity.kernel_distance(a, b) == pytest.approx(kid(a, b), rel=1e-9)


def test_kernel_distance_of_one_distribution_is_accurate_about_zero():
    a, b = normal(0, 1500, 8), normal(1, 1100, 8)
    expected = kid(a, b)
    assert abs(expected) < 0.02
    assert fidelity.kernel_distance(a, b) == pytest.approx(expected, abs=1e-12)


def numbers(a, b):
    index, distance = distances.nearest(a, b)
    return {**fidelity.summary(a, b, 3), "nearest": distance.sum(), "index": index.sum()}


def test_size_of_tiles_does_not_matter(monkeypatch):
    a, b = normal(0, 203), normal(1, 130, scale=0.9)
    whole = numbers(a, b)
    for edge in ("TILE", "SMALL_TILE"):
        monkeypatch.setattr(distances, edge, 64)
    assert numbers(a, b) == pytest.approx(whole, rel=1e-9)


@SETTINGS
@given(lattice, st.integers(5, 64), st.integers(5, 64))
def test_order_rotation_and_shift_do_not_matter(random, n, m):
    a, b = random.randn(n, 6), random.randn(m, 6) + 0.3
    rotation = np.linalg.qr(random.randn(6, 6))[0]
    before = fidelity.summary(a, b, 3)
    rotated = fidelity.summary(
        a[random.permutation(n)] @ rotation, b[random.permutation(m)] @ rotation, 3
    )
    assert rotated == pytest.approx(before, rel=1e-6, abs=1e-9)
    shifted = fidelity.summary(a + 2, b + 2, 3)
    assert {**shifted, "kid": 0} == pytest.approx({**before, "kid": 0}, rel=1e-6, abs=1e-9)


@SETTINGS
@given(lattice, st.integers(4, 64), st.integers(4, 64))
def test_ranges_and_symmetries(random, n, m):
    a, b = random.randn(n, 6).astype(np.float32), (random.randn(m, 6) * 2).astype(np.float32)
    one, other = fidelity.summary(a, b, 3), fidelity.summary(b, a, 3)
    assert all(0 <= one[name] <= 1 for name in ("precision", "recall", "coverage"))
    assert one["fid"] >= 0
    assert one["fid"] == pytest.approx(other["fid"], rel=1e-9)
    assert one["kid"] == pytest.approx(other["kid"], rel=1e-9, abs=1e-12)
    assert (one["precision"], one["recall"]) == (other["recall"], other["precision"])


def test_the_rest_of_the_program_stays_float32():
    distances.nearest(normal(0, 70, 2), normal(1, 70, 2))
    assert jnp.asarray(np.zeros(1)).dtype == jnp.float32


def test_summary_holds_every_measure():
    a, b = normal(0, 90), normal(1, 80, scale=0.9)
    found = fidelity.summary(a, b)
    assert list(found) == ["fid", "kid", *MANIFOLD]
    assert found["fid"] == fidelity.frechet(a, b)
    assert found["precision"] == fidelity.manifold(b, a, 5)["precision"]


@pytest.mark.parametrize(("n", "m"), [(0, 10), (10, 0), (1, 10), (10, 1), (0, 0)])
def test_too_few_images_give_nan_for_everything(n, m):
    found = fidelity.summary(normal(0, n), normal(1, m), k=3)
    assert all(math.isnan(found[name]) for name in ("fid", "kid", *MANIFOLD))


@pytest.mark.parametrize("n", [2, K])
def test_k_images_have_distances_but_no_manifold(n):
    found = fidelity.summary(normal(0, n), normal(1, 20), K)
    assert np.isfinite([found["fid"], found["kid"]]).all()
    assert all(math.isnan(found[name]) for name in MANIFOLD)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite_are_an_error(value):
    bad = normal(0, 10)
    bad[3, 3] = value
    for measure in (fidelity.frechet, fidelity.kernel_distance, distances.nearest):
        with pytest.raises(ValueError, match="features: NaN"):
            measure(bad, normal(1, 10))
    with pytest.raises(ValueError, match="features: NaN"):
        fidelity.manifold(normal(1, 10), bad, 3)


def labelled(features, label=0, group=0):
    n = len(features)
    return fidelity.FeatureSet(features, np.broadcast_to(label, n), np.broadcast_to(group, n))


def halves(n):
    return np.arange(n) % 2


KEY_PATH = (0, "generation", 1, "fidelity")


def part(numbers, name):
    """One part of every number that has it: {key: value}."""
    return {key: number[name] for key, number in numbers.items()}


def test_report_compares_with_the_baseline_at_equal_sizes():
    generated = labelled(normal(0, 120, shift=0.5), halves(120), -1)
    real, held_out = labelled(normal(1, 200), halves(200)), labelled(normal(2, 80), halves(80))
    report = fidelity.report(generated, real, held_out, 3, 1, KEY_PATH)
    direct = fidelity.summary(held_out.features, real.features)
    assert part(report.metrics, "baseline") == pytest.approx(direct)
    # FID's bias falls with the sample size: all 120 images would have looked better than the
    # baseline's 80.
    cut = generated.shuffled((*KEY_PATH, "generated")).features[:80]
    assert part(report.metrics, "value") == pytest.approx(fidelity.summary(cut, real.features))
    assert report.metrics["fid"]["value"] > report.metrics["fid"]["baseline"]
    assert len(report.by_class) == 3
    assert np.isfinite([list(number.values()) for number in report.by_class[1].values()]).all()
    assert math.isnan(report.by_class[2]["fid"]["value"])
    # No generated image has a known group.
    assert np.isnan([number["value"] for number in report.by_group[0].values()]).all()
    json.dumps([report.metrics, report.by_class, report.by_group])


def test_report_of_equal_sizes_leaves_nothing_out():
    label = halves(60)
    sets = [labelled(normal(seed, 60), label, 1 - label) for seed in range(3)]
    report = fidelity.report(*sets, 2, 2, KEY_PATH, k=3)
    generated, real, _ = (one.features for one in sets)
    assert part(report.metrics, "value") == pytest.approx(fidelity.summary(generated, real, 3))
    for c in range(2):
        direct = fidelity.summary(generated[label == c], real[label == c], 3)
        assert part(report.by_class[c], "value") == pytest.approx(direct)
        assert part(report.by_group[1 - c], "value") == pytest.approx(direct)
    assert not any(note.startswith("sizes") for note in report.notes)


@pytest.mark.parametrize(
    ("generated", "held_out", "cut"), [(100, 40, "value"), (40, 100, "baseline")]
)
def test_the_key_path_decides_which_images_stay(generated, held_out, cut):
    sets = [labelled(normal(seed, n)) for seed, n in enumerate((generated, 60, held_out))]
    first, again = (fidelity.report(*sets, 1, 0, KEY_PATH) for _ in range(2))
    other = fidelity.report(*sets, 1, 0, (1, *KEY_PATH[1:]))
    assert first == again
    assert first.metrics["fid"][cut] != pytest.approx(other.metrics["fid"][cut], rel=1e-6)


def test_notes_name_what_was_too_small():
    generated = labelled(normal(0, 30), halves(30))
    held_out = labelled(normal(1, 10), np.arange(10) // 4 % 2)
    real = labelled(normal(2, 50), halves(50))
    few = "fewer than 2048: biased upwards by small samples; compare with the baseline only"
    assert fidelity.report(generated, real, held_out, 3, 1, KEY_PATH).notes == [
        "sizes: of 30 generated images and 10 real ones for the baseline the larger set is cut to "
        "the smaller, overall and in every class and group",
        f"fid, overall: 10 images for 16 features, {few}",
        "fid, overall: 10 images for 16 features: their covariance is rank-deficient",
        f"fid, by_class: 4 to 6 images for 16 features, {few}",
        "fid, by_class: 4 images for 16 features: their covariance is rank-deficient",
        "by_class 1, 2: a set has no more than k = 5 images: undefined numbers are null",
        f"fid, by_group: 10 images for 16 features, {few}",
        "fid, by_group: 10 images for 16 features: their covariance is rank-deficient",
    ]


@pytest.mark.parametrize(("features", "notes"), [(4, 0), (16, 1)])
def test_enough_images_need_no_notes(features, notes, monkeypatch):
    """More images than ENOUGH, and at least ten per feature."""
    monkeypatch.setattr(fidelity, "ENOUGH", 50)
    sets = [labelled(normal(seed, 50, features)) for seed in range(3)]
    assert len(fidelity.report(*sets, 0, 0, KEY_PATH).notes) == notes


def test_without_images_for_it_only_the_baseline_is_missing():
    features = normal(0, 60, 4)
    some, none = labelled(features), labelled(features[:0])
    metrics = fidelity.report(some, some, none, 1, 1, KEY_PATH, 3).metrics
    direct = fidelity.summary(features, features, 3)
    assert part(metrics, "value") == pytest.approx(direct, abs=1e-9)
    assert np.isnan(list(part(metrics, "baseline").values())).all()
