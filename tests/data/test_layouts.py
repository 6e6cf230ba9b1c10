"""Tests the layouts in which people keep MNIST and CIFAR-100: one content from all of them."""

import dataclasses
import gzip
import hashlib
import io
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import standins

from selfloop_jax.data.sources import archives, layouts
from selfloop_jax.errors import UsageError

MNIST_FILES = [name.removesuffix(".gz") for name in layouts.MNIST.archives]


def as_official(published, files):
    """The data set, were these files the official ones."""
    sha256 = {
        name: hashlib.sha256(
            "\n".join(data.decode().split()).encode() if name.endswith(".txt") else data
        ).hexdigest()
        for name, data in files.items()
    }
    return dataclasses.replace(published, sha256=sha256)


def read(folder, published):
    return layouts.read(str(folder), published, archives.table("", published.archives))


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    """A folder with archives, and the data set whose official contents these are."""
    folder = tmp_path_factory.mktemp("mnist")
    standins.mnist_archives(folder, 30, 20)
    files = {name: gzip.decompress((folder / f"{name}.gz").read_bytes()) for name in MNIST_FILES}
    return folder, as_official(layouts.MNIST, files)


@pytest.fixture(scope="module")
def cifar100(tmp_path_factory):
    """A folder with the archive and both versions unpacked, and the data set of these contents."""
    folder = tmp_path_factory.mktemp("cifar100")
    standins.cifar100_archive(folder, 30, 20)
    with tarfile.open(folder / "cifar-100-binary.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    binary = folder / "cifar-100-binary"
    files = {path.name: path.read_bytes() for path in binary.iterdir()}
    (folder / "cifar-100-python").mkdir()
    for name, data in python_version(files).items():
        (folder / "cifar-100-python" / name).write_bytes(data)
    return folder, as_official(layouts.CIFAR100, files)


def python_version(files):
    """The pickles of CIFAR-100's Python version with the same contents."""
    pickles = {}
    for split in ("train", "test"):
        records = np.frombuffer(files[f"{split}.bin"], np.uint8).reshape(-1, 3074)
        pickles[split] = {
            "filenames": [f"{i}.png" for i in range(len(records))],
            "batch_label": split,
            "fine_labels": records[:, 1].tolist(),
            "coarse_labels": records[:, 0].tolist(),
            "data": records[:, 2:],
        }
    pickles["meta"] = {
        f"{level}_label_names": files[f"{level}_label_names.txt"].decode().split()
        for level in ("fine", "coarse")
    }
    return {name: pickle.dumps(value, protocol=4) for name, value in pickles.items()}


def pack(path, folder, mode="w:gz", below=""):
    """Packs the files of a folder into a tar, with other headers than the official one."""
    with tarfile.open(path, mode) as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, f"{below}{folder.name}/{file.name}")


def same(a, b):
    """Whether columns are equal, arrays and names in any nesting."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return np.array_equal(a, b)


def raw(folder, source, ending, place="", dotted=False):
    target = folder / place
    target.mkdir(parents=True, exist_ok=True)
    for name in MNIST_FILES:
        renamed = name.replace("-idx", ".idx") if dotted else name
        data = (source / f"{name}.gz").read_bytes()
        # Compressed anew, so that the archive is another file.
        data = gzip.compress(gzip.decompress(data), 1) if ending else gzip.decompress(data)
        (target / f"{renamed}{ending}").write_bytes(data)


@pytest.mark.parametrize("place", ["", "MNIST/raw"])
@pytest.mark.parametrize(("ending", "dotted"), [(".gz", False), ("", False), ("", True)])
def test_every_layout_of_mnist_has_the_same_digits(place, ending, dotted, mnist, tmp_path):
    folder, published = mnist
    raw(tmp_path, folder, ending, place, dotted)
    columns = read(tmp_path, published)
    assert columns["train"][0].shape == (30, 28, 28)
    assert same(columns, read(folder, published))


@pytest.mark.parametrize("version", ["binary", "python"])
@pytest.mark.parametrize("layout", ["below", "itself", ".tar.gz", ".tar", ".tgz", "dotted"])
def test_every_layout_of_cifar100_has_the_same_images(version, layout, cifar100, tmp_path):
    folder, published = cifar100
    unpacked = folder / f"cifar-100-{version}"
    place = tmp_path
    if layout == "below":
        shutil.copytree(unpacked, tmp_path / unpacked.name)
    elif layout == "itself":
        place = unpacked
    elif layout == "dotted":
        pack(tmp_path / f"{unpacked.name}.tar.gz", unpacked, below="./")
    else:
        mode = "w" if layout == ".tar" else "w:gz"
        pack(tmp_path / f"{unpacked.name}{layout}", unpacked, mode)
    names, records = read(place, published)
    assert names["coarse_label"] == list(standins.CLASSES)
    assert records["train"].shape == (30, 3074)
    assert same((names, records), layouts.cifar100_columns(contents(folder)))


def contents(folder):
    return {path.name: path.read_bytes() for path in (folder / "cifar-100-binary").iterdir()}


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "cifar-100-python"])
def test_other_contents_are_not_official(name, mnist, cifar100, tmp_path):
    if name.endswith(".gz"):
        shutil.copy(mnist[0] / name, tmp_path)
        message = f"{name} is not official: has sha256"
        published = layouts.MNIST
    else:
        shutil.copytree(cifar100[0] / name, tmp_path / name)
        message = f"{name}/train is not official: train.bin has sha256"
        published = layouts.CIFAR100
    with pytest.raises(UsageError, match=f"{message} [0-9a-f]+ instead of [0-9a-f]+; the folder"):
        read(tmp_path, published)


@pytest.mark.skipif("SELFLOOP_ARCHIVES" not in os.environ, reason="no official files")
@pytest.mark.parametrize("published", [layouts.MNIST, layouts.CIFAR100], ids=["MNIST", "CIFAR100"])
def test_official_files_are_known(published):
    """Of the folder in SELFLOOP_ARCHIVES, which may lack one of the two data sets."""
    folder = Path(os.environ["SELFLOOP_ARCHIVES"])
    try:
        columns = read(folder, published)
    except UsageError as error:
        if "is missing" not in str(error):
            raise
        pytest.skip(str(error))
    train = columns["train"][0] if published is layouts.MNIST else columns[1]["train"]
    assert len(train) == (60_000 if published is layouts.MNIST else 50_000)


class Imports:
    """Pickled, it asks for a function of another module."""

    def __reduce__(self):
        return (__import__, ("selfloop_jax.no_such_module",))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("train", pickle.dumps(Imports(), 4), "it asks for (__builtin__|builtins).__import__"),
        ("train", pickle.dumps({"data": np.zeros((1, 3072), np.uint8)}, 4), "coarse_labels"),
        ("meta", b"", "Ran out of input"),
        ("test", b"\x80\x02}garbage", "not CIFAR-100's Python version"),
    ],
)
def test_a_pickle_that_is_none_of_cifar100_is_refused(name, data, message, cifar100, tmp_path):
    folder, published = cifar100
    shutil.copytree(folder / "cifar-100-python", tmp_path / "cifar-100-python")
    (tmp_path / "cifar-100-python" / name).write_bytes(data)
    with pytest.raises(UsageError, match=f"data.archive_dir = .*{message}") as error:
        read(tmp_path, published)
    assert "\n" not in str(error.value)


def test_a_file_that_is_missing_is_named(cifar100, tmp_path):
    folder, published = cifar100
    shutil.copytree(folder / "cifar-100-python", tmp_path / "cifar-100-python")
    (tmp_path / "cifar-100-python" / "meta").unlink()
    with pytest.raises(UsageError, match="cifar-100-python has no meta; the folder must have"):
        read(tmp_path, published)


def test_a_tar_without_the_files_is_refused(cifar100, tmp_path):
    _, published = cifar100
    with tarfile.open(tmp_path / "cifar-100-python.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("cifar-100-python/train"), io.BytesIO())
    with pytest.raises(UsageError, match=r"cifar-100-python.tar.gz has no test"):
        read(tmp_path, published)


@pytest.mark.parametrize("kind", ["gz", "tar"])
def test_a_file_that_was_cut_short_is_named(kind, mnist, cifar100, tmp_path):
    folder, published = mnist if kind == "gz" else cifar100
    for archive in published.archives:
        data = Path(folder, archive).read_bytes()
        (tmp_path / archive).write_bytes(data[: len(data) // 2])
    name = published.archives[0]
    with pytest.raises(UsageError, match=rf"data.archive_dir = .*: {name} is not a whole {kind}"):
        read(tmp_path, published)
