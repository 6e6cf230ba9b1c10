"""Ablations and RFS against plain loops, cases by hand, and classifiers of known habits."""

import itertools
import math

import numpy as np
import pytest

from selfloop_jax.data.images import Images
from selfloop_jax.measure import foreground
from selfloop_jax.runtime import rng

SIDE, CLASSES = 16, 4


KEY_PATH = (0, "probe")


def probe(count: int = 48, empty: int = 0) -> Images:
    """Class c is 50 + 30 c gray on object and background alike; objects are blocks.

    Objects keep away from the border, so that each has neighbours on all sides.
    """
    u = rng.words((0, "places"), 4 * count).reshape(count, 4) % np.uint64(4)
    masks = np.zeros((count, SIDE, SIDE), np.uint8)
    for mask, (top, left, height, width) in zip(masks, u.astype(int), strict=True):
        mask[3 + top : 7 + top + height, 3 + left : 7 + left + width] = 255
    masks[:empty] = 0
    label = np.arange(count, dtype=np.int32) % CLASSES
    pixels = np.broadcast_to((50 + 30 * label)[:, None, None, None], (count, SIDE, SIDE, 3)).astype(
        np.uint8
    )
    return Images(
        pixels=pixels,
        label=label,
        group=np.full(count, -1, np.int32),
        origin=np.full(count, -1, np.int32),
        id=np.arange(100, 100 + count, dtype=np.uint32),
        mask=masks,
    )


def looking(images: Images, where: np.ndarray):
    """A classifier that reads one pixel of each image, the middle one of `where` bool[N,H,W].

    Its logits fall with the distance from each class's gray.
    """
    spots = [tuple(np.argwhere(one)[len(np.argwhere(one)) // 2]) for one in where]

    def predict(pixels: np.ndarray) -> np.ndarray:
        seen = np.array([image[spot].mean() for image, spot in zip(pixels, spots, strict=True)])
        return -np.abs(seen[:, None] - (50 + 30 * np.arange(CLASSES))).astype(np.float32)

    return predict


def test_object_ablation_takes_an_object_classifier_to_chance_and_leaves_a_background_one():
    images = probe()
    on_object, around = images.mask > 0, images.mask == 0
    around[:, 1:-1, 1:-1] = False  # the rim, out of reach of every box
    seeing = foreground.evaluate(looking(images, on_object), images, CLASSES, KEY_PATH)["ablations"]
    blind = foreground.evaluate(looking(images, around), images, CLASSES, KEY_PATH)["ablations"]
    assert seeing["none"]["accuracy"] == blind["none"]["accuracy"] == 1
    for kind in ("object", "box"):
        assert (
            seeing[kind]["accuracy"] == 1 / CLASSES
        )  # all of them look like the class of gray 140
        assert seeing[kind]["per_class"] == [0, 0, 0, 1]
    assert all(values["accuracy"] == 1 for values in blind.values())


def test_tiles_show_the_background_of_an_image_to_a_classifier_of_objects():
    images = probe()
    images.pixels[images.mask == 0] = 50
    result = foreground.evaluate(looking(images, images.mask > 0), images, CLASSES, KEY_PATH)
    assert result["ablations"]["tile"]["per_class"] == [1, 0, 0, 0]


def test_rfs_has_the_sign_of_what_a_classifier_looks_at():
    images = probe(96)
    seeing = foreground.evaluate(looking(images, images.mask > 0), images, CLASSES, KEY_PATH)
    blind = foreground.evaluate(looking(images, images.mask == 0), images, CLASSES, KEY_PATH)
    for noise in seeing["noise"]:
        assert noise["background"]["accuracy"] == 1
        assert noise["rfs"] == pytest.approx(1)
    for noise in blind["noise"]:
        assert noise["foreground"]["accuracy"] == 1
        assert noise["rfs"] == pytest.approx(-1)
    falling = [noise["foreground"]["class_mean"] for noise in seeing["noise"]]
    assert falling == sorted(falling, reverse=True)
    assert 1 / CLASSES - 0.1 < falling[-1] < falling[0] < 0.9


def test_a_classifier_of_the_whole_image_is_in_between():
    images = probe(96)
    both = looking(images, images.mask > 0), looking(images, images.mask == 0)
    result = foreground.evaluate(lambda x: both[0](x) + both[1](x), images, CLASSES, KEY_PATH)
    assert all(abs(noise["rfs"]) < 0.35 for noise in result["noise"])


@pytest.mark.parametrize(
    ("a_fg", "a_bg", "expected"),
    [
        (0.5, 0.5, 0),
        (0, 0, 0),
        (1, 1, 0),
        (0.5, 1, 1),
        (1, 0.5, -1),
        (0, 0.5, 1),
        (0.6, 0.4, -0.2),
        (0.2, 0.4, 0.2 / 0.6),
        (0.7, 0.9, 0.2 / 0.4),
    ],
)
def test_rfs_by_hand(a_fg, a_bg, expected):
    assert foreground.rfs(a_fg, a_bg) == pytest.approx(expected)


def test_rfs_stays_within_one_and_is_odd():
    for a, b in itertools.product(np.linspace(0, 1, 21), repeat=2):
        assert -1 - 1e-12 <= foreground.rfs(a, b) <= 1 + 1e-12
        assert foreground.rfs(a, b) == -foreground.rfs(b, a)
    assert math.isnan(foreground.rfs(math.nan, 0.5))


def plain_ablation(image: np.ndarray, mask: np.ndarray, kind: str) -> np.ndarray:
    """`ablate` of one image, pixel by pixel; "tile" only of masks in one piece."""
    out, height, width = image.copy(), *mask.shape
    places = [(y, x) for y in range(height) for x in range(width) if mask[y, x]]
    if not places or kind == "none":
        return out
    top, bottom = min(y for y, _ in places), max(y for y, _ in places) + 1
    left, right = min(x for _, x in places), max(x for _, x in places) + 1
    if kind == "tile":
        h, w = bottom - top, right - left
        sizes = [
            min(w, width - right) * h,
            min(w, left) * h,
            min(h, height - bottom) * w,
            min(h, top) * w,
        ]
        best = sizes.index(max(sizes))
        wide, high = sizes[best] // h, sizes[best] // w
        sources = {
            0: lambda y, x: (y, right + (x - right) % wide),
            1: lambda y, x: (y, left - wide + (x - left) % wide),
            2: lambda y, x: (bottom + (y - bottom) % high, x),
            3: lambda y, x: (top - high + (y - top) % high, x),
        }
    for y in range(top, bottom):
        for x in range(left, right):
            if kind == "tile":
                out[y, x] = image[sources[best](y, x)] if max(sizes) else 128
            elif kind == "box" or mask[y, x]:
                out[y, x] = 128
    return out


def noise_images(count: int, side: int) -> np.ndarray:
    words = rng.words((0, "noise images"), count * side * side * 3)
    return (words % np.uint64(256)).astype(np.uint8).reshape(count, side, side, 3)


@pytest.mark.parametrize("kind", foreground.ABLATIONS)
def test_ablations_agree_with_plain_loops(kind):
    pixels = noise_images(40, 12)
    masks = np.zeros((40, 12, 12), np.uint8)
    corners = rng.words((0, "corners"), 160).reshape(40, 4) % np.uint64(12)
    for mask, (a, b, c, d) in zip(masks, corners.astype(int), strict=True):
        y, x = sorted((a, b)), sorted((c, d))
        mask[y[0] : y[1] + 1, x[0]] = 255  # an L in one piece, its box anywhere, up to the border
        mask[y[1], x[0] : x[1] + 1] = 255
    masks[0] = 0
    before = pixels.copy()
    got = foreground.ablate(pixels, masks, kind)
    expected = np.stack([plain_ablation(p, m, kind) for p, m in zip(pixels, masks, strict=True)])
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(pixels, before)
    assert got.dtype == np.uint8


def ramp(height: int, width: int) -> np.ndarray:
    """uint8[H,W,3] whose pixel in row y and column x is 10 y + x."""
    values = 10 * np.arange(height)[:, None] + np.arange(width)
    return np.repeat(values[..., None], 3, axis=-1).astype(np.uint8)


def test_a_tile_by_hand():
    """Rows 1-2 and columns 2-4 of 5 x 6 pixels: 1 column right, 2 left, 2 rows below, 1 above."""
    mask = np.zeros((5, 6), np.uint8)
    mask[1:3, 2:5] = 255
    got = foreground.tile(ramp(5, 6), mask)[..., 0]
    expected = ramp(5, 6)[..., 0]
    expected[1:3, 2:5] = [[32, 33, 34], [42, 43, 44]]  # below: 2 x 3 = 6, left: 2 x 2 = 4
    np.testing.assert_array_equal(got, expected)


def test_a_tile_stops_at_another_part_of_the_object_and_repeats():
    """Parts in columns 1-3 and 5: the first has a column on either side, the other in front."""
    mask = np.zeros((2, 6), np.uint8)
    mask[:, 1:4] = mask[:, 5:] = 255
    got = foreground.tile(ramp(2, 6), mask)[..., 0]
    np.testing.assert_array_equal(got, [[0, 4, 4, 4, 4, 4], [10, 14, 14, 14, 14, 14]])


def test_a_tile_without_any_neighbour_is_gray():
    np.testing.assert_array_equal(foreground.tile(ramp(4, 4), np.full((4, 4), 255, np.uint8)), 128)


def test_tiles_show_nothing_of_the_object():
    pixels, masks = noise_images(30, 12) // 2, np.zeros((30, 12, 12), np.uint8)
    masks[rng.words((0, "specks"), 30 * 144).reshape(30, 12, 12) % np.uint64(10) == 0] = 255
    pixels[masks > 0] = 255
    assert (pixels == 255).any()
    assert not (foreground.ablate(pixels, masks, "tile") == 255).any()


def test_noise_has_its_deviation_and_stays_on_its_place():
    images = probe(40)
    pixels = np.full_like(images.pixels, 128)
    noisy = foreground.noised(pixels, images.id, (0, "n"), 0.125)
    assert abs((noisy.astype(float) - 128).std() / 255 - 0.125) < 0.002
    assert abs((noisy.astype(float) - 128).mean()) < 0.5
    on_object = images.mask > 0
    fore = foreground.placed(pixels, noisy, images.mask, "foreground")
    back = foreground.placed(pixels, noisy, images.mask, "background")
    assert (fore[~on_object] == 128).all()
    assert (back[on_object] == 128).all()
    np.testing.assert_array_equal(fore[on_object], noisy[on_object])
    np.testing.assert_array_equal(back[~on_object], noisy[~on_object])
    loud = foreground.noised(pixels, images.id, (0, "n"), 0.75)
    assert loud.min() == 0
    assert loud.max() == 255


def test_noise_belongs_to_the_image_and_the_trial():
    images = probe(40)
    noisy = foreground.noised(images.pixels, images.id, (0, "n"), 0.25)
    order = np.arange(40)[::-3]
    alone = images.take(order)
    np.testing.assert_array_equal(
        foreground.noised(alone.pixels, alone.id, (0, "n"), 0.25), noisy[order]
    )
    assert (foreground.noised(images.pixels, images.id, (0, "m"), 0.25) != noisy).mean() > 0.9
    assert (noisy[0].astype(int) - 50 != noisy[4].astype(int) - 50).mean() > 0.9


def test_evaluation_leaves_out_empty_masks_and_asks_with_one_shape():
    images = probe(20, empty=3)
    shapes = []

    def predict(pixels):
        shapes.append(pixels.shape)
        return np.eye(CLASSES, dtype=np.float32)[np.zeros(len(pixels), int)]

    result = foreground.evaluate(
        predict, images, CLASSES + 1, KEY_PATH, sigmas=(0.25, 0.5), trials=2
    )
    assert (result["count"], result["empty_masks"]) == (17, 3)
    assert set(shapes) == {(17, SIDE, SIDE, 3)}
    assert len(shapes) == len(foreground.ABLATIONS) + 2 * 2 * 2
    assert [noise["sigma"] for noise in result["noise"]] == [0.25, 0.5]
    plain = result["ablations"]["none"]
    assert plain["accuracy"] == 4 / 17
    assert plain["per_class"][:4] == [1, 0, 0, 0]
    assert math.isnan(plain["per_class"][4])
    assert plain["class_mean"] == 1 / 4
    assert result["noise"][0]["rfs"] == 0
    assert math.isnan(result["noise"][0]["rfs_per_class"][4])


def test_evaluation_repeats_itself_and_averages_over_trials():
    images = probe(24)
    predict = looking(images, images.mask > 0)
    several = foreground.evaluate(predict, images, CLASSES, KEY_PATH, sigmas=(0.5,), trials=3)
    assert several == foreground.evaluate(
        predict, images, CLASSES, KEY_PATH, sigmas=(0.5,), trials=3
    )
    hits = []
    for trial in range(3):
        noisy = foreground.noised(images.pixels, images.id, (*KEY_PATH, "trial", trial), 0.5)
        hits.append(predict(noisy).argmax(axis=1) == images.label)
    accuracy = several["noise"][0]["foreground"]["accuracy"]
    assert accuracy == pytest.approx(np.mean(hits))
    assert len({float(np.mean(one)) for one in hits}) > 1


def test_nothing_to_evaluate():
    result = foreground.evaluate(lambda x: 1 / 0, probe(4, empty=4), CLASSES, KEY_PATH)
    assert result["count"] == 0
    assert math.isnan(result["noise"][0]["rfs"])
    assert math.isnan(result["ablations"]["tile"]["accuracy"])
    images = probe(4)
    with pytest.raises(ValueError, match="images must have masks"):
        foreground.evaluate(None, Images(**{**vars(images), "mask": None}), CLASSES, KEY_PATH)
