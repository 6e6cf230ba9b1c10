"""Tests Parquet files and tar shards: pixels come back, splits are found, damage is named."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from selfloop_jax.config import DataConfig, FolderConfig
from selfloop_jax.data.sources import shards
from selfloop_jax.data.sources.base import Missing, Outline
from selfloop_jax.errors import UsageError

SIDE = 8
COUNTS = {"train": 12, "test": 8}


def load(root, kind, prepare=True, **changes):
    names = {"label_column", "group_column", "image_column", "ignore"}
    own = {name: changes.pop(name) for name in names & changes.keys()}
    section = DataConfig(
        source=kind,
        image_size=SIDE,
        colorize="none",
        folder=FolderConfig(str(root / "mine"), **own),
        **{"cache_dir": str(root / "cache"), "validation_share": 0.0, "reserve_share": 0.0}
        | changes,
    )
    return getattr(shards, kind)(section, prepare)


def refused(root, kind, **changes):
    with pytest.raises(UsageError) as caught:
        load(root, kind, **changes)
    line = str(caught.value)
    assert "\n" not in line
    return line


def pixels(split, i):
    words = np.random.Philox(key=[list(COUNTS).index(split), i]).random_raw(SIDE * SIDE * 3)
    return words.astype(np.uint8).reshape(SIDE, SIDE, 3)


def encoded(split, i):
    buffer = io.BytesIO()
    Image.fromarray(pixels(split, i)).save(buffer, "PNG")
    return buffer.getvalue()


def rows(split, names=True):
    """Label and group of each image of a split."""
    return [(("cat", "dog")[i % 2] if names else i % 2, i // 2 % 2) for i in range(COUNTS[split])]


def write_parquet(path, split, rows_, struct=True, features=None, images=None):
    images = images or [encoded(split, i) for i in range(len(rows_))]
    if struct:
        images = [{"bytes": image, "path": None} for image in images]
    columns = {"image": images, "label": [one[0] for one in rows_], "group": [r[1] for r in rows_]}
    table = pa.table({**columns, "caption": ["x"] * len(rows_)})
    if features:
        info = json.dumps({"info": {"features": {"label": features}}})
        table = table.replace_schema_metadata({"huggingface": info})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=5, write_page_checksum=True)
    return path


def write_tar(path, split, rows_, cls=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for i, (label, group) in enumerate(rows_):
            about = {"group": group, "caption": "x"} | ({} if cls else {"label": label})
            files = {"png": encoded(split, i), "json": json.dumps(about).encode()}
            if cls:
                files["cls"] = f"{label}\n".encode()
            for ending, data in files.items():
                member = tarfile.TarInfo(f"{i:06d}.{ending}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


def build(root, kind):
    """<root>/mine with the images of train in two files."""
    mine = root / "mine"
    for split in COUNTS:
        every = rows(split)
        if kind == "parquet":
            first = [encoded(split, i) for i in range(5)]
            rest = [encoded(split, i) for i in range(5, len(every))]
            write_parquet(
                mine / "data" / f"{split}-00000-of-2.parquet", split, every[:5], images=first
            )
            write_parquet(
                mine / "data" / f"{split}-00001-of-2.parquet", split, every[5:], images=rest
            )
        else:
            write_tar(mine / split / "00000.tar", split, every)
    return mine


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_pixels_labels_and_groups_come_back(tmp_path, kind, capsys):
    build(tmp_path, kind)
    with pytest.raises(Missing) as caught:
        load(tmp_path, kind, prepare=False)
    assert caught.value.outline == Outline(classes=2, groups=2, train=12, test=8)
    for _ in range(2):  # the second time from the cache
        source = load(tmp_path, kind)
        assert source.classes == ("cat", "dog")
        assert source.groups == ("0", "1")
        for split in COUNTS:
            images = getattr(source, split)
            wanted = np.stack([pixels(split, i) for i in range(COUNTS[split])])
            np.testing.assert_array_equal(images.pixels, wanted)
            assert [source.classes[c] for c in images.label] == [label for label, _ in rows(split)]
            assert images.group.tolist() == [group for _, group in rows(split)]
        assert source.test.id.tolist() == list(range(12, 20))
    assert "columns not read: caption" in capsys.readouterr().err
    assert load(tmp_path, kind, prepare=False).classes == ("cat", "dog")


def test_names_of_classes_are_those_of_the_features(tmp_path):
    features = {"names": ["tench", "goldfish"], "_type": "ClassLabel"}
    for split in COUNTS:
        path = tmp_path / "mine" / split / "0000.parquet"
        write_parquet(path, split, rows(split, names=False), struct=False, features=features)
    source = load(tmp_path, "parquet")
    assert source.classes == ("goldfish", "tench")
    assert [source.classes[c] for c in source.train.label[:2]] == ["tench", "goldfish"]
    write_parquet(path, "test", [(2, 0), (0, 1)], features=features)
    assert "row 0: label = 2: must be from 0 to 1" in refused(tmp_path, "parquet")


def test_labels_lie_beside_the_images_of_a_shard(tmp_path):
    for split in COUNTS:
        write_tar(tmp_path / "mine" / f"{split}-000000.tar", split, rows(split), cls=True)
    assert load(tmp_path, "webdataset").classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00001.parquet", "train"),
        ("default/test/0000.parquet", "test"),
        ("valid.parquet", "validation"),
        ("val-0.parquet", "validation"),
        ("train/test.parquet", "train"),
        ("reserve/x.parquet", "reserve"),
        ("trainer.parquet", None),
        ("data/0000.parquet", None),
    ],
)
def test_the_split_is_in_the_name(tmp_path, name, split):
    mine = build(tmp_path, "parquet")
    for path in (mine / "data").iterdir():
        if split is not None and path.name.startswith(split):
            path.unlink()
    write_parquet(mine / name, "train", rows("train"))
    if split is None:
        assert refused(tmp_path, "parquet").startswith(f"{mine / name}: of which split?")
        load(tmp_path, "parquet", ignore=(name,))
    else:
        assert len(getattr(load(tmp_path, "parquet"), split)) == 12


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_a_bad_image_is_named_or_left_out(tmp_path, kind):
    mine = tmp_path / "mine"
    for split in COUNTS:
        images = [encoded(split, i) for i in range(COUNTS[split])]
        images[5] = images[5][:60]
        if kind == "parquet":
            write_parquet(mine / split / "0.parquet", split, rows(split), images=images)
        else:
            path = write_tar(mine / split / "0.tar", split, rows(split))
            data = path.read_bytes()
            sound = encoded(split, 5)
            path.write_bytes(data.replace(sound, bytes(len(sound))))
    assert "1 of 12 images cannot be used, first row 5: " in refused(tmp_path, kind)
    source = load(tmp_path, kind, on_bad_image="skip")
    assert source.train.id.tolist() == [0, 1, 2, 3, 4, *range(6, 12)]
    assert source.provenance["bad_image_count"] == 2


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
@pytest.mark.parametrize("kept", [0, 0.1, 0.5, 0.7])
def test_a_file_that_is_cut_short_is_named(tmp_path, kind, kept):
    mine = build(tmp_path, kind)
    path = sorted(mine.rglob("*.*"))[0]
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    assert refused(tmp_path, kind).startswith(f"{path}: ")


def test_a_shard_that_is_cut_at_the_end_of_a_file_is_named(tmp_path):
    path = build(tmp_path, "webdataset") / "train" / "00000.tar"
    data = path.read_bytes()
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-2]
    path.write_bytes(data[: last.offset])
    assert "neither a file's header nor the mark of a tar's end" in refused(tmp_path, "webdataset")


def test_a_damaged_header_within_a_shard_is_named(tmp_path):
    path = build(tmp_path, "webdataset") / "train" / "00000.tar"
    with tarfile.open(path) as archive:
        place = archive.getmembers()[2].offset
    data = bytearray(path.read_bytes())
    data[place] ^= 1  # the name no longer fits the header's checksum
    path.write_bytes(data)
    assert f"{path}: damaged: at byte {place} there is neither" in refused(tmp_path, "webdataset")


def test_a_flipped_bit_in_a_page_of_parquet_is_named(tmp_path):
    path = sorted(build(tmp_path, "parquet").rglob("*.parquet"))[0]
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    assert refused(tmp_path, "parquet").startswith(f"{path}")


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        ({"label_column": "breed"}, "must have one column 'breed', not ['image', 'label', "),
        ({"image_column": "img"}, "must have one column 'img', not ['image', 'label', 'group'"),
        ({"group_column": "sex"}, "no column 'sex' among ['image', 'label', 'group', 'caption']"),
        ({"image_column": "caption"}, "caption must be the bytes of an image file"),
        ({"label_column": "image"}, "must be another column than image and label"),
    ],
)
def test_columns_that_are_not_there_are_named(tmp_path, columns, wanted):
    build(tmp_path, "parquet")
    assert wanted in refused(tmp_path, "parquet", **columns)


def test_a_split_without_files_is_named(tmp_path):
    mine = build(tmp_path, "webdataset")
    (mine / "test" / "00000.tar").unlink()
    assert refused(tmp_path, "webdataset") == (f"{mine}: must have .tar files of test, as in test/")
    with pytest.raises(Missing):
        load(tmp_path / "elsewhere", "webdataset")


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ([("a.png", b"x"), ("a.json", b"[1]")], "its .json must be an object"),
        ([("a.png", b"x"), ("a.json", b"{")], "its .json is not JSON"),
        ([("a.png", b"x"), ("a.json", b'{"label": [1]}')], "label = [1]: must be text or a number"),
        ([("a.png", b"x"), ("a.cls", b"\xff")], "its label is not UTF-8"),
        ([("a.png", b"x")], "label = '': must be a name"),
        ([("a.json", b"{}")], "must have one image, has ['json']"),
        ([("a.png", b"x"), ("a.jpg", b"x")], "must have one image, has ['jpg', 'png']"),
        ([("a.png", b"x"), ("a.png", b"x")], "has two files .png"),
        ([("a.png", b"x"), ("b.png", b"x"), ("a.cls", b"1")], "must"),
    ],
)
def test_a_wrong_sample_is_named(tmp_path, files, wanted):
    path = build(tmp_path, "webdataset") / "train" / "00000.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    line = refused(tmp_path, "webdataset")
    assert line.startswith(f"{path}")
    assert wanted in line


def test_a_link_in_a_shard_is_not_followed(tmp_path):
    path = build(tmp_path, "webdataset") / "train" / "00000.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("a.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    assert "'a.png' must be a file, not a link" in refused(tmp_path, "webdataset")
