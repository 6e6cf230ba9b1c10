"""Tests augmentation: keys per example, distributions, and refused settings."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfloop_jax.config import AugmentConfig, Config, DataConfig, FlipConfig, LoopClassifierConfig
from selfloop_jax.errors import UsageError
from selfloop_jax.runtime import parallel
from selfloop_jax.training import augment

EVERYTHING = {
    "flip": True,
    "crop": 2,
    "brightness": 0.5,
    "contrast": 0.5,
    "saturation": 0.9,
    "hue": 0.5,
}


KEY = jax.random.key(3)


PIXELS = np.random.default_rng(0).uniform(-1, 1, (8, 6, 6, 3)).astype(np.float32)


def apply(pixels, position=None, key=KEY, **section):
    """Augments each image of `pixels` by the settings in `section`."""
    position = np.arange(len(pixels), dtype=np.int32) if position is None else position
    program = jax.jit(lambda x, key, p: augment.augment(x, key, p, AugmentConfig(**section)))
    return np.asarray(program(pixels, key, position))


def images(image, count):
    return np.broadcast_to(np.float32(image), (count, *image.shape))


def test_off_traces_nothing():
    jaxpr = jax.make_jaxpr(lambda x, key, p: augment.augment(x, key, p, AugmentConfig()))(
        PIXELS, KEY, jnp.arange(8)
    )
    assert not jaxpr.eqns


def test_a_section_may_lack_a_transform():
    def traced(section):
        program = jax.make_jaxpr(lambda x, key, p: augment.augment(x, key, p, section))
        return str(program(PIXELS, KEY, jnp.arange(8)))

    assert traced(FlipConfig(flip=True)) == traced(AugmentConfig(flip=True))


@pytest.mark.parametrize("name", list(EVERYTHING))
def test_each_transform_changes_images_and_keeps_their_range(name):
    section = {name: EVERYTHING[name]}
    changed = apply(PIXELS, **section)
    assert np.abs(changed - PIXELS).max() > 0.1
    assert np.abs(changed).max() <= 1


def test_another_key_gives_other_changes():
    position = np.zeros(2, np.int32)
    program = jax.jit(
        lambda key: augment.augment(PIXELS[[0, 0]], key, position, AugmentConfig(crop=2, hue=0.5))
    )
    one, again, other = program(KEY), program(KEY), program(jax.random.key(4))
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(one[0], one[1])
    assert np.abs(one - other).max() > 0.1


def test_an_example_does_not_depend_on_the_batch_or_the_devices():
    whole = apply(PIXELS, **EVERYTHING)
    position = np.arange(8, dtype=np.int32)
    for part in (slice(3, 4), slice(None, None, -3)):
        alone = apply(PIXELS[part], position[part], **EVERYTHING)
        np.testing.assert_allclose(alone, whole[part], rtol=0, atol=1e-6)
    moved = {"flip": True, "crop": 2}  # moves pixels: not even rounding may differ
    np.testing.assert_array_equal(
        apply(PIXELS[3:5], position[3:5], **moved), apply(PIXELS, **moved)[3:5]
    )
    spread = parallel.map_over_devices(
        lambda key, rows: augment.augment(
            rows["x"], key, rows["position"], AugmentConfig(**EVERYTHING)
        )
    )
    np.testing.assert_allclose(
        spread(KEY, {"x": PIXELS, "position": position}), whole, rtol=0, atol=1e-6
    )


def test_one_transform_does_not_change_the_random_numbers_of_another():
    both, flipped = apply(PIXELS, flip=True, brightness=1e-6), apply(PIXELS, flip=True)
    np.testing.assert_allclose(both, flipped, rtol=0, atol=1e-5)


def test_half_of_the_images_are_flipped():
    image = np.arange(12).reshape(2, 2, 3) / 12
    out = apply(images(image, 2000), flip=True)
    flipped = np.all(out == np.float32(image[:, ::-1]), axis=(1, 2, 3))
    assert np.all(flipped | np.all(out == np.float32(image), axis=(1, 2, 3)))
    assert abs(flipped.mean() - 0.5) < 0.05  # more than four standard errors


def test_crops_are_all_windows_within_the_padding():
    image = np.arange(5 * 5 * 3).reshape(5, 5, 3) / 75
    padded = np.float32(np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge"))
    windows = [padded[r : r + 5, c : c + 5] for r in range(5) for c in range(5)]
    found = [
        [np.array_equal(x, w) for w in windows].index(True)
        for x in apply(images(image, 1000), crop=2)
    ]
    counts = np.bincount(found, minlength=25)
    assert counts.min() > 15  # 40 expected
    assert counts.max() < 70


def test_brightness_scales_from_black_and_contrast_about_the_mean():
    image = np.random.default_rng(1).uniform(-0.4, 0.0, (4, 4, 3)).astype(np.float32)
    out = apply(images(image, 500), brightness=0.25)
    factor = (out + 1).mean(axis=(1, 2, 3)) / (image + 1).mean()
    np.testing.assert_allclose(out, (image + 1) * factor.reshape(-1, 1, 1, 1) - 1, atol=1e-6)
    assert 0.75 <= factor.min() < 0.77
    assert 1.23 < factor.max() <= 1.2501
    out = apply(images(image, 500), contrast=0.25)
    factor = out.std(axis=(1, 2, 3)) / image.std()
    mean = (image @ augment.YIQ[0]).mean()
    np.testing.assert_allclose(out, mean + (image - mean) * factor.reshape(-1, 1, 1, 1), atol=1e-6)
    assert 0.75 <= factor.min() < 0.77
    assert 1.23 < factor.max() <= 1.2501


def test_saturation_and_hue_keep_luma_and_grey():
    image = np.random.default_rng(1).uniform(-0.2, 0.2, (4, 4, 3)).astype(np.float32)
    grey = np.repeat(image[..., :1], 3, axis=-1)
    for section in ({"saturation": 0.9}, {"hue": 0.5}):
        out = apply(images(image, 50), **section)
        np.testing.assert_allclose(
            out @ augment.YIQ[0], images(image @ augment.YIQ[0], 50), atol=1e-5
        )
        np.testing.assert_allclose(apply(images(grey, 50), **section), images(grey, 50), atol=1e-4)
        assert np.abs(out - image).max() > 0.1


def test_hue_turns_colours_by_up_to_its_share_of_a_circle():
    image = np.float32([[[0.2, -0.1, -0.1]]])
    out = apply(images(image, 500), hue=0.125)
    plane = (out @ augment.YIQ[1:].T).reshape(-1, 2) @ [1, 1j]
    start = (image @ augment.YIQ[1:].T).reshape(2) @ [1, 1j]
    turns = np.angle(plane / start) / (2 * np.pi)
    np.testing.assert_allclose(np.abs(plane), np.abs(start), rtol=1e-4)
    assert -0.1251 < turns.min() < -0.12
    assert 0.12 < turns.max() < 0.1251


def check(colorize, **augmentation):
    classifier = LoopClassifierConfig(augment=AugmentConfig(**augmentation))
    augment.check(Config(classifier=classifier, data=DataConfig(colorize=colorize)))


def test_a_crop_must_be_smaller_than_the_image():
    check("none", crop=7)
    with pytest.raises(
        UsageError, match=r"^classifier\.augment\.crop = 8: must be < 8 for images of 8 pixels$"
    ):
        check("none", crop=8)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_jitter_is_refused_where_the_colour_is_the_group(name):
    check("none", **{name: 0.1})
    message = f"classifier.augment.{name} = 0.1: must be 0 where an image's colour is its group"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        check("two_colour", **{name: 0.1})


def test_transforms_that_keep_the_group_are_allowed():
    check("none", **EVERYTHING)
    check("two_colour", flip=True, crop=7)
