"""Tests data from the user's folder: what it loads, its error messages, and killed builds."""

import dataclasses
import errno
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from selfloop_jax.config import DataConfig, FolderConfig
from selfloop_jax.data.sources import folder
from selfloop_jax.data.sources.base import Missing, Outline
from selfloop_jax.errors import UsageError

ROOT = Path(__file__).parents[2]


SIDE = 8


ROWS = {
    "train": [
        ("a.png", "cat", 0),
        ("b.jpg", "cat", 1),
        ("c.webp", "dog", 0),
        ("deep/d.png", "dog", ""),
    ],
    "test": [("e.png", "dog", 0), ("f.png", "cat", 1), ("g.PNG", "cat", -1)],
}


SPLITS = ("train", "validation", "reserve", "test")


OWN = {one.name for one in dataclasses.fields(FolderConfig)}


# Nothing is set aside, so that train is what the source has.
WHOLE = {"validation_share": 0.0, "reserve_share": 0.0}


def section(root, **changes):
    own = {name: changes.pop(name) for name in OWN & changes.keys()}
    place = FolderConfig(**{"dir": str(root / "mine")} | own)
    fields = {"image_size": SIDE, "colorize": "none", "cache_dir": str(root / "cache")}
    return DataConfig(folder=place, **fields | WHOLE | changes)


def load(root, **changes):
    return folder.load(section(root, **changes), prepare=True)


def draw(path, shade):
    """An image that only its shade tells from the others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIDE, SIDE), (shade, shade, shade)).save(path)


def table(rows, header="file_name,label,group"):
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


def build(root, rows=ROWS):
    """<root>/mine with a metadata.csv per split; image i of the whole is of shade 10 * i."""
    shade = 0
    for split, listed in rows.items():
        for file, *_ in listed:
            draw(root / "mine" / split / file, shade)
            shade += 10
        (root / "mine" / split / "metadata.csv").write_text(table(listed))
    return root / "mine"


def shades(images):
    return images.pixels[:, 4, 4, 0]


def entries(root):
    """What is cached, but for locks."""
    return [path for path in (root / "cache").glob("*") if path.suffix != ".lock"]


def refused(root, **changes):
    """The one line that the folder ends in; nothing was cached."""
    before = entries(root)
    with pytest.raises(UsageError) as caught:
        load(root, **changes)
    assert entries(root) == before
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_a_folder_with_a_table(tmp_path):
    build(tmp_path)
    source = load(tmp_path)
    assert source.classes == ("cat", "dog")
    assert source.groups == ("0", "1")
    assert not source.nested
    assert len(source.validation) == len(source.reserve) == 0
    assert source.probe is None
    assert source.train.label.tolist() == [0, 0, 1, 1]
    assert source.train.group.tolist() == [0, 1, 0, -1]
    assert source.test.label.tolist() == [1, 0, 0]
    assert source.test.group.tolist() == [0, 1, -1]
    assert source.train.id.tolist() == [0, 1, 2, 3]
    assert source.test.id.tolist() == [4, 5, 6]
    assert (source.train.origin == -1).all()
    assert source.train.pixels.shape == (4, SIDE, SIDE, 3)
    np.testing.assert_allclose(shades(source.train), [0, 10, 20, 30], atol=3)
    np.testing.assert_array_equal(shades(source.test), [40, 50, 60])
    assert source.provenance == {
        "images": {"train": 4, "test": 3},
        "bad_images": [],
        "bad_image_count": 0,
        "converted": {},
        "stand_in": None,
        "test_subgroups_empty": 2,  # cat of group 0, dog of group 1
    }


def test_a_second_load_comes_from_the_cache(tmp_path, monkeypatch):
    build(tmp_path)
    first = load(tmp_path)
    monkeypatch.setattr(folder, "decode_all", lambda *_, **__: pytest.fail("decoded again"))
    second = load(tmp_path)
    for field in dataclasses.fields(first):
        if field.name not in SPLITS:
            assert getattr(first, field.name) == getattr(second, field.name)
    for name in SPLITS:
        np.testing.assert_array_equal(getattr(first, name).pixels, getattr(second, name).pixels)
        np.testing.assert_array_equal(getattr(first, name).id, getattr(second, name).id)


def test_a_changed_file_or_size_is_decoded_again_and_a_changed_label_is_not(tmp_path):
    mine = build(tmp_path)
    load(tmp_path)
    os.utime(mine / "train" / "a.png", ns=(1, 1))
    load(tmp_path)
    assert len(entries(tmp_path)) == 2
    assert load(tmp_path, image_size=4).train.pixels.shape == (4, 4, 4, 3)
    assert len(entries(tmp_path)) == 3
    path = mine / "train" / "metadata.csv"
    path.write_text(path.read_text().replace("a.png,cat", "a.png,dog"))
    assert load(tmp_path).train.label.tolist() == [1, 0, 1, 1]
    assert len(entries(tmp_path)) == 3


def test_a_folder_per_class(tmp_path):
    for i, name in enumerate(
        ["train/10/x.png", "train/9/b.png", "train/9/a.png", "test/9/c.png", "test/10/d.png"]
    ):
        draw(tmp_path / "mine" / name, 10 * i)
    (tmp_path / "mine" / "train" / "9" / ".DS_Store").touch()
    source = load(tmp_path)
    assert source.classes == ("9", "10")  # integers in numerical order
    assert source.groups == ()
    assert not source.nested
    assert (source.train.group == -1).all()
    assert source.train.label.tolist() == [1, 0, 0]
    assert shades(source.train).tolist() == [0, 20, 10]
    assert source.test.label.tolist() == [1, 0]
    assert source.provenance["test_subgroups_empty"] == 0


def test_validation_and_reserve_are_taken_where_they_are(tmp_path):
    build(tmp_path, {**ROWS, "validation": [("h.png", "cat", 0)], "reserve": [("i.png", "dog", 1)]})
    source = load(tmp_path)
    assert source.validation.id.tolist() == [7]
    assert source.reserve.id.tolist() == [8]
    assert shades(source.reserve).tolist() == [80]
    assert source.provenance["images"] == {"train": 4, "test": 3, "validation": 1, "reserve": 1}


def test_groups_within_classes_are_nested(tmp_path):
    listed = [("a.png", "x", 0), ("b.png", "x", 1), ("c.png", "y", 2), ("d.png", "y", 3)]
    build(tmp_path, {"train": listed, "test": listed[1:]})
    source = load(tmp_path)
    assert source.nested
    assert source.provenance["test_subgroups_empty"] == 1
    build(
        tmp_path,
        {"train": [(file, "x", group) for file, _, group in listed], "test": [("a.png", "x", 0)]},
    )
    assert not load(tmp_path).nested  # with one class there is nothing to be nested in


def test_groups_have_names_where_a_file_gives_them(tmp_path):
    mine = build(tmp_path)
    (mine / "groups.txt").write_text("red\ngreen\nnever seen\n")
    assert load(tmp_path).groups == ("red", "green", "never seen")


def test_a_table_from_a_spreadsheet_is_read(tmp_path):
    """The table has a byte order mark, CRLF, quotes, spaces, and reordered and extra columns."""
    mine = build(tmp_path)
    rows = [
        "group,label,note,file_name",
        '0, cat ,"a, b",a.png',
        "1,cat,,b.jpg",
        "",
        ",dog,,c.webp",
    ]
    text = "\r\n".join([*rows, "0,dog,,deep/d.png", ""])
    (mine / "train" / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    source = load(tmp_path)
    assert source.classes == ("cat", "dog")
    assert source.train.group.tolist() == [0, 1, -1, 0]


def test_bad_images_can_be_skipped_and_ids_stay(tmp_path):
    mine = build(tmp_path)
    (mine / "train" / "a.png").write_bytes(b"broken")
    (mine / "test" / "g.PNG").unlink()
    source = load(tmp_path, on_bad_image="skip")
    assert source.train.id.tolist() == [1, 2, 3]
    assert source.test.id.tolist() == [4, 5]
    assert source.provenance["bad_image_count"] == 2
    assert source.provenance["bad_images"] == [
        ["train/a.png", "not a PNG, JPEG or WebP image"],
        ["test/g.PNG", "no such file"],
    ]
    (mine / "train" / "b.jpg").write_bytes(b"broken")
    with pytest.raises(UsageError, match="train: class 'cat' has no image here"):
        load(tmp_path, on_bad_image="skip")


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_every_row_becomes_its_image(tmp_path_factory, data):
    """Any table without fault: labels, groups, ids and pixels of row i are those of image i."""
    root = tmp_path_factory.mktemp("any")
    names = data.draw(
        st.lists(st.text("abc1", min_size=1, max_size=3), min_size=1, max_size=3, unique=True)
    )
    rows, shade = {}, 0
    for split in ("train", "test"):
        extra = data.draw(st.lists(st.sampled_from(names), max_size=3))
        labels = data.draw(st.permutations(names + extra))
        groups = [0, *data.draw(st.lists(st.sampled_from([-1, 0, 1]), min_size=8, max_size=8))]
        rows[split] = [(f"{i}.png", label, groups[i]) for i, label in enumerate(labels)]
    rows["train"][0] = (*rows["train"][0][:2], 1)
    rows["test"][0] = (*rows["test"][0][:2], 0)
    build(root, rows)
    source = load(root)
    assert set(source.classes) == set(names)
    for split, images in (("train", source.train), ("test", source.test)):
        assert [source.classes[c] for c in images.label] == [label for _, label, _ in rows[split]]
        assert images.group.tolist() == [group for *_, group in rows[split]]
        assert shades(images).tolist() == [shade + 10 * i for i in range(len(images))]
        shade += 10 * len(images)
    assert np.concatenate([source.train.id, source.test.id]).tolist() == list(range(shade // 10))


@pytest.mark.parametrize("prepare", [True, False])
@pytest.mark.parametrize("value", ["", "no/such/folder"])
def test_a_folder_that_is_not_there_is_missing(tmp_path, value, prepare):
    with pytest.raises(Missing) as caught:
        folder.load(section(tmp_path, dir=value), prepare)
    assert caught.value.field == "data.folder.dir"
    assert str(caught.value).startswith(f"data.folder.dir = '{value}': ")
    assert str(caught.value).endswith("must be the folder with train/ and test/")


def test_images_not_decoded_yet_are_missing_unless_to_be_prepared(tmp_path):
    build(tmp_path)
    with pytest.raises(Missing, match="not decoded yet at 8 pixels") as caught:
        folder.load(section(tmp_path), prepare=False)
    assert caught.value.outline == Outline(classes=2, groups=2, train=4, test=3)
    load(tmp_path)
    assert len(folder.load(section(tmp_path), prepare=False).train) == 4


@pytest.mark.parametrize(("colorize", "groups"), [("none", 1), ("two_colour", 2)])
def test_an_outline_without_groups_has_one_or_the_colours(tmp_path, colorize, groups):
    for name in ("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png"):
        draw(tmp_path / "mine" / name, 0)
    with pytest.raises(Missing) as caught:
        folder.load(section(tmp_path, colorize=colorize), prepare=False)
    assert caught.value.outline == Outline(classes=2, groups=groups, train=2, test=2)


@pytest.mark.parametrize(
    ("split", "content", "wanted"),
    [
        (
            "train",
            "a.png,cat,0\nz.png,dog,0",
            "{csv}, row 3, file_name = 'z.png': no such file in {dir}",
        ),
        (
            "test",
            "e.png,cat,0\nf.png,cow,0",
            "{csv}, row 3, file_name = 'f.png': label = 'cow': must be a class of train (",
        ),
        (
            "train",
            "a.png,cat,red",
            "{csv}, row 2: group = 'red': must be 0, 1, ..., or -1 or empty",
        ),
        ("train", "a.png,cat,1.0", "{csv}, row 2: group = '1.0': must be 0, 1, "),
        ("train", "a.png,cat,-2", "{csv}, row 2: group = '-2': must be 0, 1, "),
        ("train", "a.png,cat,²", "{csv}, row 2: group = '²': must be 0, 1, "),
        ("train", "a.png,cat,99999999999", "{csv}, row 2: group = '99999999999': must be 0, 1, "),
        (
            "train",
            "a.png,cat,0\nb.jpg,dog,7",
            "{csv}, row 3, file_name = 'b.jpg': group = 7, but no image has group 2",
        ),
        (
            "train",
            "a.png,cat,0\n\n./a.png,dog,1",
            "{csv}, row 4, file_name = './a.png': the same file as {csv}, row 2",
        ),
        ("train", "a.png,,0", "{csv}, row 2: label = '': must be a name or an integer"),
        ("train", "a.png,cat", "{csv}, row 2: 2 cells under 3 columns"),
        (
            "train",
            "../test/e.png,cat,0",
            "{csv}, row 2, file_name = '../test/e.png': outside of the folder",
        ),
        (
            "train",
            "deep/../a.png,cat,0",
            "{csv}, row 2, file_name = 'deep/../a.png': outside of the folder",
        ),
        (
            "train",
            "/etc/x.png,cat,0",
            "{csv}, row 2, file_name = '/etc/x.png': outside of the folder",
        ),
        (
            "train",
            "nul\0.png,cat,0",
            "{csv}, row 2, file_name = 'nul\\x00.png': outside of the folder",
        ),
        (
            "train",
            "link.png,cat,0",
            "{csv}, row 2, file_name = 'link.png': outside of the folder; must be in",
        ),
        (
            "train",
            "a.tiff,cat,0",
            "{csv}, row 2, file_name = 'a.tiff': must be a file ending in .png | .jpg",
        ),
        (
            "train",
            "huge.png,cat,0\na.png,dog,0",
            "first {csv}, row 2, file_name = 'huge.png': 20000 x 20000 pixels are",
        ),
        (
            "train",
            "broken.png,cat,0\na.png,dog,0",
            "first {csv}, row 2, file_name = 'broken.png': not a PNG, JPEG",
        ),
        ("train", 'a.png,"cat,0', "{csv}, row 2: not a CSV"),
        ("train", "", "{csv}: it lists no image"),
        ("train", "a.png,cat,0\nb.jpg,dog,", "{dir_test}: class 'dog' has no image here"),
        ("test", "e.png,cat,\nf.png,dog,-1", "{dir}: no image has a group, but others do"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, split, content, wanted):
    mine = build(tmp_path, {**ROWS, "test": [("e.png", "cat", 0), ("f.png", "cat", 1)]})
    if "{dir_test}" not in wanted:
        (mine / "test" / "metadata.csv").write_text(
            table([("e.png", "cat", 0), ("f.png", "dog", 1)])
        )
    draw(tmp_path / "outside.png", 0)
    (mine / "train" / "link.png").symlink_to(tmp_path / "outside.png")
    (mine / "train" / "broken.png").write_bytes(b"GIF89a")
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    (mine / "train" / "huge.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    )  # fmt: skip
    path = mine / split / "metadata.csv"
    path.write_text(f"file_name,label,group\n{content}\n")
    line = wanted.format(csv=path, dir=mine / split, dir_test=mine / "test")
    assert line in refused(tmp_path)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", "row 1: no column 'file_name' among []"),
        (b"file,label\na.png,cat\n", "row 1: no column 'file_name' among ['file', 'label']"),
        (b"file_name;label\na.png;cat\n", "row 1: no column 'file_name' among ['file_name;label']"),
        (b"file_name,class\na.png,cat\n", "row 1: no column 'label' among"),
        (b"file_name,label,label\na.png,cat,dog\n", "row 1: two columns 'label' among"),
        (b"file_name,label\n\n", ": it lists no image"),
        (b"file_name,label\na.png,caf\xe9\n", ": byte 25 is not UTF-8"),
        (b"\xff\xfef\0i\0", ": byte 0 is not UTF-8"),
    ],
)
def test_a_wrong_table_is_named(tmp_path, content, wanted):
    path = build(tmp_path) / "train" / "metadata.csv"
    path.write_bytes(content)
    line = refused(tmp_path)
    assert line.startswith(f"{path}")
    assert wanted in line


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_folder_without_a_split_is_named(tmp_path, split):
    mine = build(tmp_path)
    (mine / split).rename(mine / "other")
    assert refused(tmp_path).startswith(f"data.folder.dir = '{mine}': no folder {split}/ in it")


def test_class_folders_must_hold_images_and_nothing_else(tmp_path):
    mine = tmp_path / "mine"
    for name in ("train/a/1.png", "train/b/1.png", "test/a/1.png"):
        draw(mine / name, 0)
    assert (
        refused(tmp_path)
        == f"{mine}/test: class 'b' has no image here; train and test must have some of each"
    )
    (mine / "test" / "b").mkdir()
    assert refused(tmp_path).startswith(f"{mine}/test/b: class 'b' has no image here")
    draw(mine / "test" / "b" / "1.png", 0)
    (mine / "test" / "c").mkdir()
    draw(mine / "test" / "c" / "1.png", 0)
    assert refused(tmp_path).startswith(
        f"{mine}/test/c/1.png: label = 'c': must be a class of train ('a', 'b')"
    )
    (mine / "test" / "c").rename(mine / "test" / "b" / "c")
    assert refused(tmp_path).startswith(f"{mine}/test/b/c: must be a file ending in")
    (mine / "test" / "b" / "c").rename(mine / "test" / "b" / "c.png")
    assert refused(tmp_path).startswith(f"{mine}/test/b/c.png: no such file")
    (mine / "test" / "b" / "c.png" / "1.png").rename(mine / "test" / "1.png")
    assert refused(tmp_path).startswith(f"{mine}/test/1.png: no class; ")


def test_a_class_folder_must_not_lead_elsewhere(tmp_path):
    mine = tmp_path / "mine"
    for name in ("train/a/1.png", "train/b/1.png", "test/a/1.png", "b/1.png"):
        draw(mine / name, 0)
    (mine / "test" / "b").symlink_to(mine / "b")
    assert refused(tmp_path).startswith(f"{mine}/test/b/1.png: outside of the folder")
    (mine / "test" / "b").unlink()
    (mine / "test").rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "b").mkdir()
    draw(tmp_path / "elsewhere" / "b" / "1.png", 0)
    (mine / "test").symlink_to(tmp_path / "elsewhere")  # A split itself may be a link.
    assert len(load(tmp_path).test) == 2


@pytest.mark.parametrize("linked", ["file", "split"])
def test_a_file_in_two_splits_is_refused(tmp_path, linked):
    mine = build(tmp_path)
    if linked == "file":
        (mine / "test" / "e.png").unlink()
        os.link(mine / "train" / "a.png", mine / "test" / "e.png")
    else:
        shutil.rmtree(mine / "test")
        (mine / "test").symlink_to("train")
    name = {"file": "e.png", "split": "a.png"}[linked]
    assert refused(tmp_path) == (
        f"{mine}/test/metadata.csv, row 2, file_name = '{name}': the same file as "
        f"{mine}/train/metadata.csv, row 2, file_name = 'a.png'; an image must be listed only once"
    )


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    mine = build(tmp_path)

    def listdir(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "listdir", listdir)
    assert refused(tmp_path).startswith(f"data.folder.dir = '{mine}': Permission denied; must be")


def test_an_empty_split_is_named(tmp_path):
    mine = build(tmp_path)
    (mine / "validation").mkdir()
    assert refused(tmp_path).startswith(f"{mine}/validation: empty; must have a metadata.csv or")


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        ("red\n", "metadata.csv, row 3, file_name = 'b.jpg': group = 1: {path} names only 0 to 0"),
        ("red\nred\n", "{path}: a name is empty or occurs twice"),
        ("red\n\ngreen\n", "{path}: a name is empty or occurs twice"),
    ],
)
def test_wrong_names_of_groups_are_refused(tmp_path, names, wanted):
    path = build(tmp_path) / "groups.txt"
    path.write_text(names)
    assert wanted.format(path=path) in refused(tmp_path)


def class_folders(root, names=("cat", "dog")):
    """<root>/mine with two images of each class in train and test."""
    for split in ("train", "test"):
        for i, name in enumerate(names):
            for j in range(2):
                draw(root / "mine" / split / name / f"{j}.png", 40 * i + 10 * j)
    return root / "mine"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "metadata.csv",
            "train.csv",
            "labels.txt",
            "annotations.json",
            "data.parquet",
            "Groups.txt",
        ),
        *("train/metadata.parquet", "train/Metadata.csv", "train/metadata.CSV", "train/labels.csv"),
        *(
            "train/metadata (1).csv",
            "train/metadata.csv.txt",
            "train/metadata.tsv",
            "train/metadata",
        ),
        *("train/metadata.csv~", "train/metadata.csv.bak", "train/labels.xlsx", "train/groups.txt"),
        *(
            "train/cat/metadata.csv",
            "test/cat/x.xml",
            "extra/labels.csv",
            "images.zip",
            "train/a.npz",
        ),
    ],
)
def test_a_table_that_nobody_reads_is_refused_by_name(tmp_path, name):
    mine = class_folders(tmp_path)
    (mine / name).parent.mkdir(exist_ok=True)
    (mine / name).write_text("file_name,label,group\n")
    line = refused(tmp_path)
    assert line.startswith(f"{mine / name}: not read: labels and groups must be in <split>/")
    load(tmp_path, ignore=(name.replace("(1)", "*"),))


def test_a_pattern_that_leaves_nothing_alone_is_refused(tmp_path):
    mine = class_folders(tmp_path)
    (mine / "train" / "notes.csv").write_text("a\n")
    line = refused(tmp_path, ignore=("train/*.csv", "tests/*.csv"))
    assert line.startswith(f"data.folder.ignore: 'tests/*.csv' must fit a path below {mine}")


def test_a_link_to_nowhere_is_no_table(tmp_path):
    mine = class_folders(tmp_path)
    (mine / "train" / "metadata.csv").symlink_to("nowhere.csv")
    assert refused(tmp_path).startswith(f"{mine}/train/metadata.csv: not read")


@pytest.mark.parametrize(
    "name", ["val", "valid", "dev", "Train", "training", "testing", "eval", "test_set", "TEST"]
)
def test_a_split_of_another_name_is_refused(tmp_path, name):
    mine = class_folders(tmp_path)
    draw(mine / name / "cat" / "1.png", 0)
    line = refused(tmp_path)
    assert line.startswith(f"{mine}/{name}: not read: a split must be called train | test | ")
    load(tmp_path, ignore=(name,))


def test_what_is_left_alone_is_named(tmp_path, capsys):
    mine = build(tmp_path)
    for name in ("README.md", "LICENSE.txt", "Thumbs.db", ".cache/x.csv", "notes.doc"):
        (mine / name).parent.mkdir(exist_ok=True)
        (mine / name).touch()
    for i in range(7):
        draw(mine / "masks" / f"{i}.png", 0)
        draw(mine / "train" / f"more{i}.png", 0)
    rows = [(*row, "f") for row in ROWS["train"]]
    (mine / "train" / "metadata.csv").write_text(table(rows, "file_name,label,group,sex"))
    load(tmp_path)
    said = capsys.readouterr().err
    assert f"{mine}: train/metadata.csv does not list 7 images: more0.png, more1.png, " in said
    assert f"{mine}: not read: LICENSE.txt, README.md, masks/ (7 files), notes.doc\n" in said
    assert f"{mine}: train/metadata.csv: columns not read: sex\n" in said
    assert "no groups" not in said
    assert "Thumbs" not in said


def test_images_without_groups_are_said_to_have_none(tmp_path, capsys):
    class_folders(tmp_path)
    load(tmp_path)
    assert capsys.readouterr().err == (
        "no groups: digits gives none, so no gap between groups can be measured\n"
    )
    load(tmp_path, colorize="two_colour")
    assert "no groups" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "groups"),
    [
        ('{"file_name": "a.png", "label": "cat", "group": 1}\n\n'
         '{"label": 7, "file_name": "b.jpg", "group": 0, "box": [1, 2]}\n'
         '{"file_name": "c.webp", "label": "cat", "group": null}\n', [1, 0, -1]),
        ('{"file_name": "a.png", "label": "cat", "group": "f"}\r\n'
         '{"file_name": "b.jpg", "label": "7", "group": "m"}\r\n'
         '{"file_name": "c.webp", "label": "cat"}', [0, 1, -1]),
    ],
)  # fmt: skip
def test_a_table_of_json_lines_is_read(tmp_path, content, groups):
    mine = build(tmp_path)
    for split in ("train", "test"):
        for name in ("a.png", "b.jpg", "c.webp"):
            if split == "test":
                draw(mine / split / name, 100)
        (mine / split / "metadata.csv").unlink()
        (mine / split / "metadata.jsonl").write_text(content, newline="")
    source = load(tmp_path)
    assert source.classes == ("7", "cat")
    assert source.train.label.tolist() == [1, 0, 1]
    assert source.train.group.tolist() == groups
    (mine / "train" / "metadata.csv").write_text(table(ROWS["train"]))
    assert refused(tmp_path).endswith("must be one table, not two")


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("[1]\n", "row 1: must be an object"),
        ('{"file_name": "a.png"\n', "row 1: not JSON"),
        ('\n{"file_name": "a.png", "label": "x", "label": "y"}', "row 2: not JSON: a name occurs"),
        ('{"file_name": "a.png", "label": ["x"]}', "row 1: label = ['x']: must be text or a"),
        ('{"file_name": "a.png", "label": NaN}', "row 1: label = 'NaN': must be a name"),
        ('{"file_name": "a.png"}', ": no column 'label' among ['file_name']"),
        ('{"file_name": "a.png", "label": "x", "group": 1.5}', "row 1: group = '1.5': must be 0"),
        ("[" * 100_000, "row 1: not JSON"),
        ("", ": no column 'file_name' among []"),
    ],
)
def test_a_wrong_table_of_json_lines_is_named(tmp_path, content, wanted):
    path = build(tmp_path) / "train" / "metadata.jsonl"
    path.with_suffix(".csv").unlink()
    path.write_text(content)
    line = refused(tmp_path)
    assert line.startswith(str(path))
    assert wanted in line


def test_columns_of_other_names_are_taken_where_they_are_named(tmp_path):
    mine = build(tmp_path)
    for split in ("train", "test"):
        rows = [(file, label, "fm"[int(group == 1)]) for file, label, group in ROWS[split]]
        (mine / split / "metadata.csv").write_text(table(rows, "file_name,breed,sex"))
    line = refused(tmp_path)
    assert "no column 'label' among ['file_name', 'breed', 'sex']" in line
    source = load(tmp_path, label_column="breed", group_column="sex")
    assert source.groups == ("f", "m")
    assert source.train.group.tolist() == [0, 1, 0, 0]
    assert "no column 'age'" in refused(tmp_path, label_column="breed", group_column="age")
    assert "must be another" in refused(tmp_path, label_column="sex", group_column="sex")


@pytest.mark.parametrize("column", ["Group", "groups", "group_id", "gruop", "subgroup", "GROUP "])
def test_a_column_that_is_nearly_ours_is_refused(tmp_path, column):
    mine = build(tmp_path)
    (mine / "train" / "metadata.csv").write_text(table(ROWS["train"], f"file_name,label,{column}"))
    line = refused(tmp_path)
    assert f"row 1: no column 'group' among ['file_name', 'label', '{column.strip()}']" in line
    assert f"data.folder.group_column={column.strip()} takes another column" in line


def test_groups_with_names(tmp_path):
    mine = build(tmp_path)
    named = {0: "red", 1: "green", "": "", -1: "-1"}
    for split in ("train", "test"):
        rows = [(file, label, named[group]) for file, label, group in ROWS[split]]
        (mine / split / "metadata.csv").write_text(table(rows))
    source = load(tmp_path)
    assert source.groups == ("green", "red")
    assert source.train.group.tolist() == [1, 0, 1, -1]
    (mine / "groups.txt").write_text("red\ngreen\n")
    assert load(tmp_path).groups == ("red", "green")
    assert load(tmp_path).train.group.tolist() == [0, 1, 0, -1]
    (mine / "groups.txt").write_text("red\nblue\n")
    assert "row 3: group = 'green': must be a line of" in refused(tmp_path)


def test_names_of_groups_without_any_row_of_a_group_are_refused(tmp_path):
    mine = class_folders(tmp_path)
    (mine / "groups.txt").write_text("red\ngreen\n")
    assert "groups.txt: names groups, but no row of a table has one" in refused(tmp_path)


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("1", "01"), "'1' and '01' are one number".replace("'1' and '01'", "'01' and '1'")),
        (("cop", "\u0441\u043e\u0440"), "'cop' and '\\u0441\\u043e\\u0440' look alike"),
        (("Cat", "cat"), "'Cat' and 'cat' look alike"),
        (("a\u200b", "a"), "label = 'a\\u200b': must not hold '\\u200b'"),
        (
            ("caf\udce9", "a"),
            "label = 'caf\\udce9': must not hold '\\udce9', a byte that is not UTF-8",
        ),
    ],
)
def test_class_folders_that_look_alike_are_refused(tmp_path, names, wanted):
    class_folders(tmp_path, names)
    assert wanted in refused(tmp_path)


def test_two_normal_forms_are_one_class(tmp_path):
    mine = build(tmp_path)
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    rows = [("a.png", composed, 0), ("b.jpg", decomposed, 1), ("c.webp", "dog", 0)]
    (mine / "train" / "metadata.csv").write_text(table(rows))
    (mine / "test" / "metadata.csv").write_text(
        table([("e.png", decomposed, 0), ("f.png", "dog", 1)])
    )
    assert load(tmp_path).classes == (composed, "dog")
    draw(mine / "train" / f"{decomposed}.png", 0)
    rows[0] = (f"{composed}.png", composed, 0)
    (mine / "train" / "metadata.csv").write_text(table(rows))
    assert "; there is 'cafe\\u0301.png', and the row has 'caf\\xe9.png'" in refused(tmp_path)


def test_a_folder_that_looks_like_another_one_is_walked_once(tmp_path):
    """A link that leads back does not make the walk endless."""
    mine = class_folders(tmp_path)
    (mine / "extra").mkdir()
    (mine / "extra" / "back").symlink_to(mine)
    load(tmp_path)


KILLED = """
import os, shutil, signal, sys, time
from pathlib import Path
from selfloop_jax.config import DataConfig, FolderConfig
from selfloop_jax.data.sources import folder

def section(cache):
    place = FolderConfig(sys.argv[1])
    return DataConfig(folder=place, image_size=48, colorize="none", cache_dir=cache)

def build(cache, delay=None):
    child = os.fork()
    if not child:
        folder.load(section(cache), True)
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]

def entries(cache):
    return [path for path in Path(cache).glob("*") if path.is_dir() and path.suffix != ".tmp"]

def files(cache):
    return {path.name: path.read_bytes() for folder in entries(cache) for path in folder.iterdir()}

whole, killed = sys.argv[2:]
start = time.perf_counter()
assert build(whole) == 0
took = time.perf_counter() - start
deaths = parts = 0
for i in range(24):
    deaths += build(killed, took * (0.2 + 0.8 * (i * 0.618 % 1))) == signal.SIGKILL
    parts += any(Path(killed).glob("*.tmp"))
    for entry in entries(killed):
        assert files(killed) == files(whole)
        shutil.rmtree(entry)
assert build(killed) == 0
assert files(killed) == files(whole)
assert not any(Path(killed).glob("*.tmp"))
print(deaths, parts)
"""


def test_a_killed_build_leaves_no_part_of_an_entry(tmp_path):
    """Kills the build at many moments; the next build gives the same files and no leftovers."""
    pixels = np.random.Philox(key=1).random_raw(150 * 150 * 3).astype(np.uint8).reshape(150, 150, 3)
    for split, count in (("train", 24), ("test", 6)):
        for i in range(count):
            path = tmp_path / "mine" / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.roll(pixels, i)).save(path, compress_level=1)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            KILLED,
            *(str(tmp_path / name) for name in ("mine", "whole", "killed")),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 0
    assert "decoding again" not in done.stderr
