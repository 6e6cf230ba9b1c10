"""Tests Hard ImageNet on stand-in data: classes, groups, hold-out, masks, wrong input."""

import errno
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import standin_hardimagenet
from PIL import Image

from selfloop_jax.config import DataConfig, HardImageNetConfig
from selfloop_jax.data.sources import hardimagenet
from selfloop_jax.data.sources.base import Missing, Outline
from selfloop_jax.data.sources.pickles import load_plain
from selfloop_jax.errors import UsageError

TRAIN, VAL = 14, 3


WNIDS = [wnid for _, wnid, _ in hardimagenet.CLASSES]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, dict[str, str]]:
    """Both layouts, never changed."""
    root = tmp_path_factory.mktemp("standin")
    return {
        name: standin_hardimagenet.make(root / name, name, TRAIN, VAL)
        for name in ("own", "download")
    }


@pytest.fixture(scope="module")
def caches(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def copy(made, tmp_path) -> dict[str, str]:
    """A copy of one layout to break; its files are links, to be replaced and not written to."""
    root = Path(made["download"]["images_dir"]).parent
    shutil.copytree(root, tmp_path / "copy", copy_function=os.link)
    dirs = {
        k: str(tmp_path / "copy" / Path(v).relative_to(root)) for k, v in made["download"].items()
    }
    return {**dirs, "cache_dir": str(tmp_path / "cache")}


def section(dirs: dict[str, str], **changes) -> DataConfig:
    """Section `data`; what is none of its own fields is one of `data.hardimagenet`."""
    # Nothing is set aside, so that train is what the source has.
    whole = {"validation_share": 0.0, "reserve_share": 0.0}
    values = {"image_size": 16, "holdout": 2, **whole, **dirs, **changes}
    shared = {name: values.pop(name) for name in DataConfig.__dataclass_fields__ if name in values}
    return DataConfig(hardimagenet=HardImageNetConfig(**values), **shared)


def load(dirs: dict[str, str], **changes):
    return hardimagenet.load(section(dirs, **changes), prepare=True)


def message(dirs: dict[str, str], **changes) -> str:
    with pytest.raises(UsageError) as caught:
        load(dirs, **changes)
    text = str(caught.value)
    assert "\n" not in text
    return text


def replace_file(path: str | Path, data: bytes) -> None:
    """Without writing through the link."""
    Path(path).unlink(missing_ok=True)
    Path(path).write_bytes(data)


def columns(images) -> dict[str, np.ndarray]:
    return {k: v for k, v in vars(images).items() if v is not None}


def same(a, b) -> None:
    assert columns(a).keys() == columns(b).keys()
    for name, value in columns(a).items():
        np.testing.assert_array_equal(value, columns(b)[name], err_msg=name)


def test_both_layouts_give_the_same_source(made, caches):
    own, download = (load(made[name], cache_dir=caches) for name in ("own", "download"))
    for split in ("train", "test", "probe"):
        same(getattr(own, split), getattr(download, split))
    assert own.provenance == download.provenance
    assert (own.classes, own.groups, own.nested) == (download.classes, ("first", "last"), False)
    assert own.provenance["images"]["listed"] == {"train": 15 * TRAIN, "val": 15 * VAL}
    assert (own.provenance["ranked_without_mask"], own.provenance["without_rank"]) == (15, 0)
    assert own.provenance["stand_in"] == standin_hardimagenet.MARK
    assert own.provenance["converted"]["L"] > 0
    assert own.provenance["converted"]["CMYK"] > 0
    assert json.loads(json.dumps(own.provenance)) == own.provenance
    assert (
        not {"classes", "groups", "sizes"} & own.provenance.keys()
    )  # the record has these beside the facts


def test_a_second_start_reads_the_cache_and_needs_no_preparation(made, caches):
    before = load(made["own"], cache_dir=caches)
    after = hardimagenet.load(section(made["own"], cache_dir=caches), prepare=False)
    same(before.train, after.train)
    same(before.probe, after.probe)
    assert before.provenance == after.provenance


def test_groups_follow_the_ranking(made, caches):
    """The stand-in numbers its files along the ranking, so halves by number are the bands."""
    source = load(made["own"], cache_dir=caches)
    names = sorted(path.name for path in (Path(made["own"]["masks_dir"]) / "train").glob("*.JPEG"))
    for images in (source.train, source.test):
        for i, label, group in zip(images.id, images.label, images.group, strict=True):
            wnid, number = names[i].split("_")[0], int(names[i].split("_")[2].removesuffix(".JPEG"))
            assert wnid == WNIDS[label]
            assert group == (number // 7) * 2 // TRAIN
    joint = source.train.counts(15, 2) + source.test.counts(15, 2)
    np.testing.assert_array_equal(joint, TRAIN // 2)
    np.testing.assert_array_equal(source.test.counts(15, 2), 2)


def test_bands_of_uneven_classes_differ_by_one(made, caches):
    source = load(made["own"], cache_dir=caches, bands=4, holdout=1)
    joint = source.train.counts(15, 4) + source.test.counts(15, 4)
    assert source.groups == ("first", "middle 1", "middle 2", "last")
    assert set(joint.flat) == {3, 4}
    assert load(made["own"], cache_dir=caches, bands=3).groups == ("first", "middle", "last")


def test_the_holdout_is_apart_and_fixed(made, caches):
    source = load(made["own"], cache_dir=caches)
    assert not set(source.train.id) & set(source.test.id)
    assert len(source.train) + len(source.test) == 15 * TRAIN
    more = load(made["own"], cache_dir=caches, holdout=3)
    assert set(source.test.id) < set(more.test.id)
    probe = source.probe
    np.testing.assert_array_equal(probe.id, 15 * TRAIN + np.arange(15 * VAL))
    assert (probe.group == -1).all()
    assert set(probe.mask.flat) == {0, 255}
    np.testing.assert_array_equal(np.bincount(probe.label), VAL)
    assert source.train.mask is None


def test_the_holdout_hangs_on_names_and_not_on_places(made, copy, caches):
    """Deleting the mask of a class's last image moves other files up in the listing."""

    def held(source, dirs):
        names = sorted(path.name for path in Path(dirs["masks_dir"], "train").iterdir())
        return {names[i] for i in source.test.id}

    before = held(load(made["own"], cache_dir=caches), made["own"])
    last = f"{WNIDS[6]}_{WNIDS[6]}_{(TRAIN - 1) * 7 + 1}.JPEG"
    Path(copy["masks_dir"], "train", last).unlink()
    after = held(load(copy), copy)
    assert before - {last} <= after
    assert len(after) == len(before)


def test_a_skipped_image_moves_no_other(made, copy, caches):
    whole = load(made["own"], cache_dir=caches)
    masks = sorted(Path(copy["masks_dir"], "train").iterdir())
    lost = [3, 40]
    for i in lost:
        wnid, file = masks[i].name.split("_", 1)
        Path(copy["images_dir"], "train", wnid, file).unlink()
    source = load(copy, on_bad_image="skip", holdout=2)
    assert source.provenance["bad_image_count"] == 2
    assert source.provenance["bad_images"][0][0].startswith("train/n0")
    kept = {
        i: g
        for images in (source.train, source.test)
        for i, g in zip(images.id, images.group, strict=True)
    }
    before = {
        i: g
        for images in (whole.train, whole.test)
        for i, g in zip(images.id, images.group, strict=True)
    }
    assert kept == {i: g for i, g in before.items() if i not in lost}
    assert set(whole.test.id) - set(lost) <= set(source.test.id)


def test_masks_lie_on_the_objects_of_their_images(copy):
    """Images of odd sizes are white where their masks are, also after resize and crop."""
    for mask in Path(copy["masks_dir"], "val").iterdir():
        wnid, file = mask.name.split("_", 1)
        image = Path(copy["images_dir"], "val", wnid, file)
        with Image.open(mask) as opened:
            white = opened.convert("RGB")
        image.unlink()
        white.save(image, "JPEG", quality=95)
    probe = load(copy, image_size=64).probe
    bright = probe.pixels.mean(axis=-1) > 127
    wrong = (bright != (probe.mask > 0)).mean(axis=(1, 2))
    assert wrong.max() < 0.01
    assert 0.03 < (probe.mask > 0).mean() < 0.4


def test_groups_by_area_are_cut_at_each_class_s_training_quantiles(made, caches):
    source = load(made["own"], cache_dir=caches, group="mask_area", bands=2)
    assert source.groups == ("small", "large")
    sizes = source.train.counts(15, 2)
    assert abs(sizes - TRAIN // 2).max() <= 1  # one more where two areas are equal
    assert sizes.sum() == len(source.train) == 15 * TRAIN
    assert source.test is source.probe
    area = (source.test.mask > 0).mean(axis=(1, 2))
    assert (source.test.group >= 0).all()
    assert source.train.mask is None
    for c in range(15):
        own = source.test.label == c
        small, large = area[own & (source.test.group == 0)], area[own & (source.test.group == 1)]
        assert not len(small) or not len(large) or small.max() <= large.min()
    finer = load(made["own"], cache_dir=caches, group="mask_area", bands=3)
    assert finer.groups == ("small", "middle", "large")


def test_class_order_from_the_pickle_or_the_table(copy):
    source = load(copy, group="mask_area", meta_dir="")
    assert source.classes == tuple(name for _, _, name in hardimagenet.CLASSES)
    assert source.provenance["class_order"] == "built-in"
    order = [index for index, _, _ in hardimagenet.CLASSES][::-1]
    replace_file(f"{copy['meta_dir']}/hard_imagenet_idx.pkl", pickle.dumps(order))
    turned = load(copy, group="mask_area")
    assert turned.classes == source.classes[::-1]
    assert turned.provenance["class_order"] == "hard_imagenet_idx.pkl"
    np.testing.assert_array_equal(turned.train.label, 14 - source.train.label)
    np.testing.assert_array_equal(turned.train.id, source.train.id)
    Path(copy["meta_dir"], "idx_to_wnid.pkl").unlink()
    assert load(copy, group="mask_area").classes == turned.classes


def test_without_masks_the_ranking_says_which_images(made, caches):
    source = load({**made["own"], "masks_dir": ""}, cache_dir=caches)
    assert source.probe is None
    assert len(source.train) + len(source.test) == 15 * (TRAIN + 1)
    assert (
        "data.hardimagenet.group = mask_area: must be rank for an image directory without masks"
        in message({**made["own"], "masks_dir": ""}, group="mask_area")
    )


def test_what_is_not_there_is_missing(made, tmp_path):
    with pytest.raises(
        Missing, match=r"^data.hardimagenet.images_dir = '': must be the folder"
    ) as caught:
        load({})
    assert caught.value.field == "data.hardimagenet.images_dir"
    for field in ("images_dir", "masks_dir", "meta_dir"):
        with pytest.raises(Missing, match=f"^data.hardimagenet.{field} = /nowhere: no such folder"):
            load({**made["own"], field: "/nowhere"})


@pytest.mark.parametrize(
    "changes", [{}, {"bands": 3, "holdout": 1}, {"masks_dir": ""}, {"group": "mask_area"}]
)
def test_what_is_known_before_decoding_is_what_comes_out(made, caches, tmp_path, changes):
    fields = {**made["own"], **changes}
    with pytest.raises(
        Missing, match=r"^data.hardimagenet.images_dir = .*: not decoded yet at 16 pixels"
    ) as caught:
        hardimagenet.load(section(fields, cache_dir=str(tmp_path)), prepare=False)
    source = load(fields, cache_dir=caches)
    assert caught.value.outline == Outline(
        15, len(source.groups), len(source.train), len(source.test)
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"image_size": 20}, "data.image_size = 20: must be a multiple of 8 from 16 to 224"),
        ({"image_size": 232}, "data.image_size = 232: must be a multiple of 8"),
        (
            {"meta_dir": ""},
            "data.hardimagenet.group = rank: must be mask_area without a ranking",
        ),
        (
            {"holdout": 7},
            "data.hardimagenet.holdout = 7: must be below the number of images in every class and "
            "band, but dog sled, first has only 7",
        ),
    ],
)
def test_fields_that_do_not_fit(made, caches, changes, expected):
    assert expected in message({**made["own"], "cache_dir": caches, **changes})


def test_a_class_that_is_not_on_disk_is_named(copy):
    shutil.rmtree(Path(copy["images_dir"], "val", WNIDS[3]))
    assert f"no folder val/{WNIDS[3]} (ski); all 15 classes must be there" in message(copy)
    for mask in Path(copy["masks_dir"], "train").glob(f"{WNIDS[5]}_*"):
        mask.unlink()
    assert f"no masks in train/ for {WNIDS[5]} (swimming cap)" in message(copy)


def test_a_class_without_a_usable_image_is_named(copy):
    for image in Path(copy["images_dir"], "val", WNIDS[0]).iterdir():
        replace_file(image, b"")
    text = message(copy, on_bad_image="skip")
    assert f"no usable val images for {WNIDS[0]} (dog sled)" in text


def test_a_class_whose_masks_are_all_empty_is_named(copy):
    masks = sorted(Path(copy["masks_dir"], "val").glob(f"{WNIDS[3]}_*"))
    for mask in masks:
        with Image.open(mask) as opened:
            empty = Image.new("L", opened.size, 0)
        mask.unlink()
        empty.save(mask)
    field = f"data.hardimagenet.masks_dir = {copy['masks_dir']}"
    assert f"{field}: no object in any val mask for {WNIDS[3]} (ski)" in message(copy)
    wnid, file = masks[0].name.split("_", 1)
    mask, image = masks[0], Path(copy["images_dir"], "val", wnid, file)
    with Image.open(image) as opened:
        some = Image.new("L", opened.size, 90)
    mask.unlink()
    some.save(mask)
    assert load(copy).probe.mask.any(axis=(1, 2)).sum() == 15 * VAL - VAL + 1


@pytest.mark.parametrize("field", ["images_dir", "masks_dir"])
def test_a_folder_that_cannot_be_read_is_named(made, monkeypatch, field):
    def listdir(path):
        if str(path).startswith(made["own"][field]):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return before(path)

    before = os.listdir
    monkeypatch.setattr(os, "listdir", listdir)
    assert message(
        made["own"]
    ) == f"data.hardimagenet.{field} = {made['own'][field]}: {made['own'][field]}/" + (
        "train: Permission denied"
    )


def test_a_user_that_there_is_not_is_a_missing_folder(made):
    with pytest.raises(
        Missing, match=r"^data.hardimagenet.images_dir = ~nosuch/images: no such folder"
    ):
        load({**made["own"], "images_dir": "~nosuch/images"})


def test_bad_images_are_refused_with_the_first_or_skipped_and_listed(copy):
    first, *_, last = sorted(Path(copy["images_dir"], "train", WNIDS[1]).glob(f"{WNIDS[1]}_?.JPEG"))
    replace_file(first, b"no image")
    replace_file(
        Path(copy["masks_dir"], "train", f"{WNIDS[1]}_{last.name}"), last.read_bytes()[:200]
    )
    text = message(copy)
    assert f"2 of {15 * TRAIN} images cannot be used, first train/{WNIDS[1]}/{first.name}: " in text
    facts = load(copy, on_bad_image="skip").provenance
    assert facts["bad_image_count"] == 2
    assert [path for path, _ in facts["bad_images"]] == [
        f"train/{WNIDS[1]}/{x.name}" for x in (first, last)
    ]
    assert "its mask" in facts["bad_images"][1][1]
    assert facts["images"]["train"] + facts["images"]["test"] == 15 * TRAIN - 2


class Trap:
    """Makes a folder as soon as it is unpickled by the ordinary way."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["hard_imagenet_idx", "idx_to_wnid", "paths_by_rank"])
def test_a_malicious_pickle_is_refused_and_not_run(copy, tmp_path, name):
    path, trap = f"{copy['meta_dir']}/{name}.pkl", tmp_path / "sprung"
    replace_file(path, pickle.dumps({0: Trap(trap)}))
    assert f"{path}: it wants to import posix.mkdir; must hold only dicts" in message(copy)
    assert not trap.exists()
    pickle.loads(Path(path).read_bytes())
    assert trap.exists()


@pytest.mark.parametrize("name", ["hard_imagenet_idx", "idx_to_wnid", "paths_by_rank"])
@pytest.mark.parametrize("value", [7, [1, 2], {"a": 1}, [[1]], {537: ["x"]}, None])
def test_a_pickle_of_another_shape_is_damaged(copy, name, value):
    path = Path(copy["meta_dir"], f"{name}.pkl")
    replace_file(path, pickle.dumps(value))
    text = message(copy)
    assert text.startswith(str(path.parent))
    assert "damaged" in text or "no ranks for n03218198 (dog sled)" in text


@pytest.mark.parametrize(
    "entry", ["train/n03218198/nul\0", "a/b\udc80", "a/b\nc", ["x"], b"train/a/b", 7]
)
def test_ranks_that_are_no_paths_are_damaged(copy, entry):
    path = Path(copy["meta_dir"], "paths_by_rank.pkl")
    ranking = load_plain(path)
    ranking[537].append(entry)
    replace_file(path, pickle.dumps(ranking))
    assert message(copy).startswith(
        f"{path}: damaged; must be a dictionary of lists of paths train/"
    )


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        # {(((...))): 1}, which overflows the interpreter's stack.
        (
            b"\x80\x04})" + b"\x85" * 2_000_000 + b"K\x01s.",
            "it has more than 10000 tuples; must hold only",
        ),
        (pickle.dumps(bytes(17 * 2**20)), "it has more than 16 MiB; must hold only"),
        (b"\x80\x04Nr\xff\xff\xff\x7f.", "it has no object number 2147483647; must hold only"),
    ],
    ids=["deep", "long", "number"],
)
def test_a_pickle_that_is_not_safe_to_read_is_not_read(tmp_path, data, expected):
    path = tmp_path / "a.pkl"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=f"^{path}: {expected}"):
        load_plain(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_plain_containers_load_at_every_protocol(tmp_path, protocol):
    value = {1: [2.5, "x", None, True], "y": ({3, 4}, frozenset({5}), 10**30, -1)}
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    assert load_plain(path) == value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_numbers_of_numpy_are_rebuilt_from_their_bytes(tmp_path, protocol):
    values = {
        np.int64(537): [np.str_("train/a/b"), "x"],
        np.uint8(7): np.float64(0.25),
        "big": np.array([1, 2, -3], ">i4"),
        "text": np.array(["a", "bcd"]),
        "yes": np.bool_(True),
        "bytes": b"\xff\x00",
    }
    data = pickle.dumps(values, protocol)
    # Before protocol 4 names end with a line, so that those of NumPy 1 can take their place.
    for old in (data, data.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")):
        (tmp_path / "a.pkl").write_bytes(old)
        found = load_plain(tmp_path / "a.pkl")
        assert found == {
            **{537: ["train/a/b", "x"], 7: 0.25, "big": [1, 2, -3], "text": ["a", "bcd"]},
            **{"yes": True, "bytes": b"\xff\x00"},
        }
        assert {type(key) for key in found} == {int, str}
        assert type(found[7]) is float


def test_numbers_of_numpy_in_the_published_pickles(copy):
    """As an argsort and a dictionary of arrays leave them; the images come out the same."""
    before = load(copy)
    meta = Path(copy["meta_dir"])
    for name in ("hard_imagenet_idx", "idx_to_wnid", "paths_by_rank"):
        value = load_plain(meta / f"{name}.pkl")
        if isinstance(value, dict):
            value = {
                np.int64(key): np.array(part) if isinstance(part, list) else np.str_(part)
                for key, part in value.items()
            }
        else:
            value = np.array(value)
        replace_file(meta / f"{name}.pkl", pickle.dumps(value))
    after = load(copy)
    assert after.classes == before.classes
    for split in ("train", "test"):
        one, other = getattr(before, split), getattr(after, split)
        np.testing.assert_array_equal(one.group, other.group)
        np.testing.assert_array_equal(one.pixels, other.pixels)


@pytest.mark.parametrize("where", ["meta", "beside meta", "masks"])
def test_the_ranking_of_the_public_code_is_found(copy, where, capsys):
    before = load(copy)
    first = Path(copy["meta_dir"], "paths_by_rank.pkl")
    folders = {"meta": first.parent, "beside meta": first.parent.parent}
    second = folders.get(where, Path(copy["masks_dir"])) / "paths_by_rank2.pkl"
    second.write_bytes(first.read_bytes())
    load(copy)
    assert f"{second}: not read, because the ranking is that of {first}" in capsys.readouterr().err
    first.unlink()
    found = load(copy)
    np.testing.assert_array_equal(found.train.group, before.train.group)
    assert "in the order of paths_by_rank2.pkl" in found.provenance["group_definition"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (pickle.dumps(np.arange(4).reshape(2, 2)), "it has an array of shape (2, 2)"),
        (pickle.dumps(np.complex64(3)), "it has numbers of type 'c8'"),
        (pickle.dumps(np.array([{}], object)), "it has numbers of type 'O8'"),
        (pickle.dumps(np.datetime64("2020")), "it has numbers of type 'M8'"),
        (pickle.dumps(np.random.default_rng(0)), "it wants to import numpy.random"),
        (pickle.dumps(np.linalg.norm), "it wants to import numpy.linalg.norm"),
        (b"cnumpy.core.multiarray\nscalar\n(S'i8'\nS'x'\ntR.", "it has an array without a type"),
        (b"cnumpy\ndtype\n(N}S'_function'\nI1\nstb.", "it sets '_function' of a function"),
        (b"c_codecs\nencode\n(Vx\nVrot13\ntR.", "it has bytes as 'rot13'"),
        (pickle.dumps([1, 2])[:-3], "damaged, not a pickle"),
        (b"", "damaged, not a pickle"),
        (b"PK\x03\x04", "damaged, not a pickle"),
        (b"cno\x07ne\nnothing\n.", "it wants to import 'no\\x07ne.nothing'"),
        (b"\x80\x04\x8c\x03abcQ.", "it refers to an object outside of itself"),
    ],
)
def test_other_pickles_end_in_one_line(tmp_path, data, expected):
    path = tmp_path / "a.pkl"
    path.write_bytes(data)
    with pytest.raises(UsageError) as caught:
        load_plain(path)
    assert str(caught.value).startswith(f"{path}: {expected}")
    assert "\n" not in str(caught.value)


def test_a_pickle_that_cannot_be_read_says_why(copy, tmp_path):
    with pytest.raises(UsageError, match=f"^{tmp_path}: Is a directory$"):
        load_plain(tmp_path)
    path = Path(copy["meta_dir"], "paths_by_rank.pkl")
    path.unlink()
    assert message(copy) == f"{path}: No such file or directory"
