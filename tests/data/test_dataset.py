"""Tests the four splits of a source, with groups missing in some of them or in all."""

import dataclasses

import numpy as np
import pytest

from selfloop_jax.config import BiasConfig, Config, DataConfig
from selfloop_jax.data import dataset
from selfloop_jax.data.images import REAL, Images
from selfloop_jax.data.sources import SOURCES, Source, SourceEntry, four_splits
from selfloop_jax.errors import UsageError


def images(label, group, first):
    n = len(label)
    columns = np.asarray(label, np.int32), np.asarray(group, np.int32), np.full(n, REAL, np.int32)
    pixels = np.random.default_rng(first).integers(0, 256, (n, 8, 8, 3), np.uint8)
    return Images(pixels, *columns, np.arange(first, first + n, dtype=np.uint32))


def make_source(counts, test_counts, nested=False, groups=True):
    """A source of counts int[C,G] images (a last column: unknown group); test images likewise."""
    parts = {}
    for name, table in (("train", np.array(counts)), ("test", np.array(test_counts))):
        label, group = np.repeat(np.indices(table.shape).reshape(2, -1), table.ravel(), axis=1)
        group = np.where(group == table.shape[1] - 1, -1, group)
        parts[name] = images(label, group, 1000 * (name == "test"))
    names = tuple(f"g{g}" for g in range(np.shape(counts)[1] - 1)) if groups else ()
    classes = ("a", "b", "c")[: len(counts)]

    def load(section, prepare):
        return Source(**four_splits(section, **parts), classes=classes, groups=names, nested=nested)

    return SourceEntry(load)


@pytest.fixture
def load(monkeypatch):
    def loaded(source, seed=0, **fields):
        monkeypatch.setitem(SOURCES, "made", source)
        bias = BiasConfig(fields.pop("bias", "natural"))
        values = {"source": "made", "colorize": "none", "bias": bias} | fields
        return dataset.load(DataConfig(**values), seed)

    return loaded


FULL = [[40, 20, 0], [20, 40, 0]]


def test_validation_and_reserve_are_set_aside_with_every_subgroup_in_proportion(load):
    data = load(make_source(FULL, FULL), validation_share=0.1, reserve_share=0.2)
    assert data.validation.counts(2, 2).tolist() == [[4, 2], [2, 4]]
    assert data.reserve.counts(2, 2).tolist() == [[8, 4], [4, 8]]
    ids = np.concatenate([part.id for part in data.splits.values()])
    assert len(np.unique(ids)) == len(ids) == 240
    other = load(make_source(FULL, FULL), seed=1, validation_share=0.1, reserve_share=0.2)
    for name, part in data.splits.items():  # splits do not follow the seed
        np.testing.assert_array_equal(part.id, other.splits[name].id)


def test_a_bias_is_put_into_train_and_reserve_alone(load):
    data = load(make_source(FULL, FULL), bias="unbiased")
    assert data.train.counts(2, 2).tolist() == [[14, 14], [14, 14]]
    assert data.reserve.counts(2, 2).tolist() == [[4, 4], [4, 4]]
    assert data.test.counts(2, 2).tolist() == [row[:2] for row in FULL]
    assert data.provenance["before_subsampling"] == {"train": 84, "reserve": 24}
    assert data.aligned_group.tolist() == [-1, -1]
    assert load(make_source(FULL, FULL)).aligned_group.tolist() == [0, 1]


def test_the_subset_follows_the_seed(load):
    one, other = (load(make_source(FULL, FULL), seed=seed, bias="unbiased") for seed in (0, 1))
    assert set(one.train.id.tolist()) != set(other.train.id.tolist())


def test_a_reserve_that_lacks_a_subgroup_is_empty_and_stops_no_run(load):
    data = load(make_source([[40, 2, 0], [40, 40, 0]], FULL), bias="unbiased", reserve_share=0.1)
    assert len(data.reserve) == 0
    assert len(data.train) > 0


def test_a_group_without_a_test_image_is_refused_an_empty_subgroup_is_not(load):
    with pytest.raises(
        UsageError, match=r"^group g1 has training images but not a single test image$"
    ):
        load(make_source(FULL, [[5, 0, 1], [5, 0, 1]]))
    assert load(make_source(FULL, [[5, 0, 1], [5, 5, 1]])).test.counts(2, 2)[0, 1] == 0


@pytest.mark.parametrize("nested", [False, True])
def test_a_class_without_a_known_group_cannot_be_biased(load, nested):
    counts = [[20, 20, 0, 0, 0], [0, 0, 20, 20, 0], [0, 0, 0, 0, 40]]
    source = make_source(counts, counts, nested)
    with pytest.raises(
        UsageError, match=r"^data\.bias\.kind = rho: must be natural, because class c has no"
    ):
        load(source, bias="rho")
    data = load(source)
    assert (data.train.group[data.train.label == 2] == -1).all()
    assert data.aligned_group[2] == -1


def test_without_groups_all_are_one_and_no_group_is_aligned(load):
    data = load(make_source([[0, 30], [0, 30]], [[0, 10], [0, 10]], groups=False))
    assert data.groups == ("all",)
    assert {int(g) for part in data.splits.values() for g in part.group} == {0}
    assert data.aligned_group.tolist() == [-1, -1]


def test_gray_images_of_any_source_may_be_coloured_others_not(load):
    source = make_source([[0, 30], [0, 30]], [[0, 10], [0, 10]], groups=False)
    with pytest.raises(UsageError, match=r"^data\.colorize = two_colour: must be none"):
        load(source, colorize="two_colour", bias="unbiased")


def test_a_source_is_loaded_once_for_many_seeds_and_biases(load):
    calls = []
    plain = make_source(FULL, FULL)

    def counted(section, prepare):
        calls.append(section)
        return plain.load(section, prepare)

    source = SourceEntry(counted)
    first = load(source, seed=0)
    load(source, seed=1, bias="unbiased", train_size=20)
    assert len(calls) == 1
    load(source, reserve_share=0.3)
    assert len(calls) == 2
    assert first.validation.id.tolist() == load(source, seed=1).validation.id.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validation": images([0], [0], 0)}, "two images have the same id"),
        ({"classes": ("a",)}, "a label is not among the 1 classes"),
        ({"test": images([0, 1], [0, 1], 1000).take(slice(0))}, "group g0 has training images but"),
    ],
)
def test_a_source_that_does_not_fit_itself_is_refused(load, change, message):
    plain = make_source(FULL, FULL)

    def changed(section, prepare):
        return dataclasses.replace(plain.load(section, prepare), **change)

    with pytest.raises(UsageError, match=message):
        load(SourceEntry(changed))


def test_images_of_another_size_are_refused(load):
    with pytest.raises(UsageError, match=r"^data\.image_size = 16: data\.source = made has images"):
        load(make_source(FULL, FULL), image_size=16)


def test_the_check_reads_the_table(monkeypatch):
    config = Config(data=DataConfig(source="mine"))
    with pytest.raises(UsageError, match=r"^data\.source = mine: must be one of digits \| .*tfds:"):
        dataset.check(config)
    monkeypatch.setitem(SOURCES, "mine", SourceEntry(None))
    dataset.check(config)
    monkeypatch.setitem(SOURCES, "mine", SourceEntry(None, in_colour=True))
    with pytest.raises(UsageError, match=r"^data\.colorize = two_colour: must be none for"):
        dataset.check(config)
