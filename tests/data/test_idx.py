"""Tests files in MNIST's format: what is read, which files are found, and what is refused."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from selfloop_jax.config import DataConfig, IdxConfig
from selfloop_jax.data import sources
from selfloop_jax.data.sources import idx
from selfloop_jax.data.sources.base import Missing
from selfloop_jax.errors import UsageError

USPS = Path(__file__).parents[3] / "shared" / "data" / "usps"
WHOLE = {"validation_share": 0.0, "reserve_share": 0.0}


def packed(array):
    """The bytes of an array in the format."""
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def build(root, prefix="", test="t10k", shape=(8, 8), zipped=True):
    """Four files of 12 training and 4 test images; image i is of shade 10 * i."""
    for split, count in (("train", 12), (test, 4)):
        shade = np.arange(count, dtype=np.uint8).reshape(-1, *(1,) * len(shape)) * 10
        images = np.broadcast_to(shade, (count, *shape))
        files = {"images": packed(images), "labels": packed(np.arange(count) % 4 + 1)}
        for what, data in files.items():
            name = f"{prefix}{split}-{what}-idx{data[3]}-ubyte"
            (root / (f"{name}.gz" if zipped else name)).write_bytes(
                gzip.compress(data) if zipped else data
            )
    return root


def load(root, side=8, prefix="", **changes):
    section = DataConfig(
        source="idx", image_size=side, idx=IdxConfig(str(root), prefix), **WHOLE | changes
    )
    return idx.load(section, prepare=True)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("prefix", "test"), [("", "t10k"), ("usps-", "t10k"), ("k_", "test")])
@pytest.mark.parametrize("shape", [(8, 8), (16, 24), (8, 8, 3)])
def test_the_four_files_are_read(tmp_path, zipped, prefix, test, shape):
    source = load(build(tmp_path, prefix, test, shape, zipped))
    assert source.classes == ("1", "2", "3", "4")
    assert source.groups == ()
    assert source.train.label.tolist() == [0, 1, 2, 3] * 3
    assert source.train.pixels[:, 0, 0, 0].tolist() == [10 * i for i in range(12)]
    assert source.train.pixels.shape == (12, 8, 8, 3)
    assert source.test.id.tolist() == [12, 13, 14, 15]
    assert len(source.provenance["archives"]) == 4


def test_a_prefix_chooses_among_data_sets(tmp_path):
    build(tmp_path, "emnist-letters-")
    build(tmp_path, "emnist-digits-")
    with pytest.raises(UsageError, match=r"must have one file of train images, not emnist-digits-"):
        load(tmp_path)
    assert len(load(tmp_path, prefix="emnist-letters-").train) == 12


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda data: data[:-1], "damaged: has 767 bytes for the shape"),
        (lambda data: data + b"x", "damaged: has more bytes for the shape"),
        (lambda data: b"", "damaged: "),
        (lambda data: b"\0\0\x0d\3" + data[4:], "must be an IDX file of bytes"),
        (lambda data: b"\0\0\x08\7" + data[4:], "must be an IDX file of bytes"),
        (lambda data: b"\x89PNG" + data[4:], "must be an IDX file of bytes"),
        (lambda data: data[:4] + b"\xff" * 12 + data[16:], "damaged: its shape is"),
        (lambda data: data[:4] + b"\0\0\0\x0c\0\0\0\0" + data[12:], "damaged: its shape is"),
        (lambda data: gzip.compress(data)[:-4], "damaged: "),
        (lambda data: gzip.compress(data)[:40], "damaged: "),
        (lambda data: b"\x1f\x8b" + data, "Unknown compression method"),
        (lambda data: gzip.compress(data)[:-8] + bytes(8), "CRC check failed"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, change, wanted):
    path = build(tmp_path, zipped=False) / "train-images-idx3-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UsageError) as caught:
        load(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
    assert wanted in str(caught.value)


def test_files_that_do_not_fit_one_another_are_named(tmp_path):
    root = build(tmp_path, zipped=False)
    path = root / "train-labels-idx1-ubyte"
    sound = path.read_bytes()
    for labels, wanted in ((np.arange(11), "has labels of shape (11,) for 12 images"),):
        path.write_bytes(packed(labels))
        with pytest.raises(UsageError, match=f"^{path}: .*"):
            load(root)
        assert wanted
    path.write_bytes(sound)
    (root / "t10k-labels-idx1-ubyte").write_bytes(packed(np.array([1, 2, 3, 9])))
    with pytest.raises(UsageError, match=r"t10k-labels-idx1-ubyte: label 9 must be a class of tr"):
        load(root)
    (root / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UsageError, match=r"must have a file t10k-labels-idx\.\.\.-ubyte"):
        load(root)


@pytest.mark.parametrize("value", ["", "no/such"])
def test_a_folder_that_is_not_there_is_missing(value):
    with pytest.raises(Missing, match=r"^data\.idx\.dir = "):
        load(value)


def test_gray_images_need_colours():
    with pytest.raises(UsageError, match=r"^data\.colorize = none: must be one of"):
        sources.check(DataConfig(source="idx", colorize="none"))


@pytest.mark.skipif(not USPS.is_dir(), reason="USPS is not on this machine")
def test_usps_is_read_to_its_pixels():
    source = load(USPS, side=16)
    assert source.classes == tuple(map(str, range(10)))
    assert (len(source.train), len(source.test)) == (7291, 2007)
    data = gzip.decompress((USPS / "usps-train-images-idx3-ubyte.gz").read_bytes())
    raw = np.frombuffer(data, np.uint8, offset=16).reshape(-1, 16, 16)
    np.testing.assert_array_equal(source.train.pixels, np.repeat(raw[..., None], 3, -1))
    labels = gzip.decompress((USPS / "usps-train-labels-idx1-ubyte.gz").read_bytes())[8:]
    assert source.train.label.tolist() == list(labels)
    assert os.path.basename(next(iter(source.provenance["archives"]))).startswith("usps-")
