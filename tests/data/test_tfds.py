"""Tests MNIST, CIFAR-100 and other TFDS data sets: atomic preparation and exact reading."""

import errno
import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import pytest
import standins
import tensorflow_datasets as tfds
from PIL import Image

from selfloop_jax.config import DataConfig, TfdsConfig
from selfloop_jax.data.images import REAL, UNKNOWN
from selfloop_jax.data.resize import area_resize
from selfloop_jax.data.sources import tfds as tfds_source
from selfloop_jax.data.sources.base import Missing
from selfloop_jax.errors import RunError, UsageError

ROOT = Path(__file__).parents[2]


MNIST, CIFAR = "train-images-idx3-ubyte.gz", "cifar-100-binary.tar.gz"


SMALL = {"train": 300, "test": 100}


def section(**fields):
    """Section `data`; what is none of its own fields is one of `data.tfds`."""
    # Nothing is set aside, so that train is what the source has.
    values = {"image_size": 32, "validation_share": 0.0, "reserve_share": 0.0, **fields}
    shared = {name: values.pop(name) for name in DataConfig.__dataclass_fields__ if name in values}
    return DataConfig(tfds=TfdsConfig(**values), **shared)


def mnist(prepare=True, **fields):
    return tfds_source.mnist(section(source="mnist", **fields), prepare)


def cifar(prepare=True, coarse=True, **fields):
    return tfds_source.cifar(section(source="cifar20", **fields), coarse, prepare)


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Small stand-in archives of both data sets, and the fields that name them."""
    folder = tmp_path_factory.mktemp("archives")
    standins.mnist_archives(folder, **SMALL)
    standins.cifar100_archive(folder, **SMALL)
    return {"archive_dir": str(folder), "checksums": str(standins.checksums(folder))}


@pytest.fixture(scope="module")
def prepared(archives, tmp_path_factory):
    """A folder that has both data sets, made from `archives`."""
    folder = str(tmp_path_factory.mktemp("prepared"))
    mnist(dir=folder, **archives)
    cifar(dir=folder, **archives)
    return folder


def digits_of(folder, prefix):
    """Pixels uint8[N,28,28] and labels of a pair of MNIST's archives."""
    read = [
        gzip.decompress(Path(folder, f"{prefix}-{name}-ubyte.gz").read_bytes())
        for name in ("images-idx3", "labels-idx1")
    ]
    return np.frombuffer(read[0], np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(
        read[1], np.uint8, offset=8
    )


def records_of(folder, split):
    """uint8[N,3074] records of CIFAR-100's archive."""
    with tarfile.open(Path(folder, CIFAR)) as archive:
        data = archive.extractfile(f"cifar-100-binary/{split}.bin").read()
    return np.frombuffer(data, np.uint8).reshape(-1, 3074)


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*"))


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("sizes", [SMALL, {"train": 60_000, "test": 10_000}])
def test_mnist_comes_as_its_archives_have_it(sizes, tmp_path):
    standins.mnist_archives(tmp_path / "archives", **sizes)
    table = standins.checksums(tmp_path / "archives")
    source = mnist(dir=str(tmp_path), archive_dir=str(tmp_path / "archives"), checksums=str(table))
    for images, prefix in ((source.train, "train"), (source.test, "t10k")):
        pixels, label = digits_of(tmp_path / "archives", prefix)
        assert images.pixels.shape == (len(label), 32, 32, 3)
        assert (images.pixels[:, 2:30, 2:30] == pixels[..., None]).all()
        border = np.ones((32, 32), bool)
        border[2:30, 2:30] = False
        assert not images.pixels[:, border].any()
        assert (images.label == label).all()
        assert (images.group == UNKNOWN).all()
        assert (images.origin == REAL).all()
    ids = np.concatenate([source.train.id, source.test.id])
    assert (ids == np.arange(sum(sizes.values()))).all()
    assert source.classes == tuple("0123456789")
    assert (source.groups, source.nested) == ((), False)
    assert len(source.validation) == len(source.reserve) == 0


@pytest.mark.parametrize("coarse", [True, False])
def test_cifar_comes_as_its_archive_has_it(coarse, archives, prepared):
    source = cifar(prepare=False, coarse=coarse, dir=prepared, **archives)
    for images, split in ((source.train, "train"), (source.test, "test")):
        records = records_of(archives["archive_dir"], split)
        assert (images.pixels == records[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)).all()
        assert (images.label == records[:, 0 if coarse else 1]).all()
        assert (images.group == (records[:, 1] if coarse else UNKNOWN)).all()
        assert (images.origin == REAL).all()
    assert (np.concatenate([source.train.id, source.test.id]) == np.arange(400)).all()
    levels = (tuple(standins.CLASSES), tuple(standins.FINE))
    assert (source.classes, source.groups) == (levels if coarse else (levels[1], ()))
    assert source.nested == coarse


@pytest.mark.parametrize("side", [8, 16])
def test_smaller_images_are_means_over_squares(side, archives, prepared):
    whole = mnist(prepare=False, dir=prepared, **archives)
    small = mnist(prepare=False, dir=prepared, image_size=side, **archives)
    assert (small.train.pixels == area_resize(whole.train.pixels[..., 0], side)[..., None]).all()
    whole = cifar(prepare=False, dir=prepared, **archives)
    small = cifar(prepare=False, dir=prepared, image_size=side, **archives)
    for channel in range(3):
        expected = area_resize(whole.test.pixels[..., channel], side)
        assert (small.test.pixels[..., channel] == expected).all()


@pytest.mark.parametrize("load", [mnist, cifar])
def test_other_sizes_are_refused(load, tmp_path):
    with pytest.raises(
        UsageError, match=r"data.image_size = 28: must be one of 8 \| 16 \| 32 for data.source"
    ):
        load(dir=str(tmp_path), image_size=28)
    assert names(tmp_path) == []


def test_stand_ins_have_the_official_mapping_and_can_be_learned():
    assert len(standins.FINE) == 100
    assert (np.bincount(standins.COARSE_OF_FINE) == 5).all()
    assert (np.bincount(standins.labels("train", 50_000, 100)) == 500).all()
    assert standins.COARSE_OF_FINE[:12].tolist() == [4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14]
    label = {split: standins.labels(split, count, 10) for split, count in SMALL.items()}
    x = {
        split: standins.crops(split, label[split], 10, 28, standins.photos()).mean(axis=(2, 3))
        for split in SMALL
    }
    centres = np.stack([x["train"][label["train"] == c].mean(axis=0) for c in range(10)])
    nearest = np.argmin(((x["test"][:, None] - centres) ** 2).sum(axis=2), axis=1)
    assert (nearest == label["test"]).mean() > 0.3  # by mean colour alone; chance is 0.1


def test_the_second_start_needs_no_archives_and_writes_nothing(archives, tmp_path):
    folder = tmp_path / "archives"
    shutil.copytree(archives["archive_dir"], folder)
    fields = {
        "dir": str(tmp_path / "data"),
        "archive_dir": str(folder),
        "checksums": archives["checksums"],
    }
    first = mnist(**fields)
    before = {
        name: (tmp_path / "data" / name).stat().st_mtime_ns for name in names(tmp_path / "data")
    }
    for path in folder.iterdir():
        path.unlink()
    for prepare in (True, False):
        again = mnist(prepare=prepare, **fields)
        assert (again.train.pixels == first.train.pixels).all()
        assert (again.test.label == first.test.label).all()
    assert before == {
        name: (tmp_path / "data" / name).stat().st_mtime_ns for name in names(tmp_path / "data")
    }
    assert not any("incomplete" in name or "downloads" in name for name in before)


@pytest.mark.parametrize("load", [mnist, cifar])
def test_what_is_not_prepared_is_missing(load, archives, tmp_path):
    with pytest.raises(Missing, match=r"data.tfds.dir = .* is not prepared there") as error:
        load(prepare=False, dir=str(tmp_path / "data"), **archives)
    assert error.value.field == "data.tfds.dir"
    one_line(error)
    assert not (tmp_path / "data").exists()


def test_a_stand_in_is_never_taken_for_the_official_data(archives, prepared):
    source = mnist(prepare=False, dir=prepared, **archives)
    assert source.provenance["stand_in"] == "checksums.tsv"
    rows = [line.split("\t") for line in Path(archives["checksums"]).read_text().splitlines()]
    digests = {name: digest for _, _, digest, name in rows}
    assert source.provenance["archives"] == {
        name: digests[name] for name in digests if name != CIFAR
    }
    assert cifar(prepare=False, dir=prepared, **archives).provenance["archives"] == {
        CIFAR: digests[CIFAR]
    }
    json.dumps(source.provenance)
    for load in (mnist, cifar):
        with pytest.raises(Missing, match="official"):
            load(prepare=False, dir=prepared)


def test_other_stand_ins_lie_elsewhere(archives, prepared, tmp_path):
    standins.mnist_archives(tmp_path, train=50, test=20)
    other = {"archive_dir": str(tmp_path), "checksums": str(standins.checksums(tmp_path))}
    assert len(mnist(dir=prepared, **other).train) == 50
    assert len(mnist(prepare=False, dir=prepared, **archives).train) == 300


def test_a_stand_in_moved_to_the_official_place_is_refused(archives, prepared, tmp_path):
    (variant,) = Path(prepared, "selfloop_cifar100").iterdir()
    shutil.copytree(variant, tmp_path / "selfloop_cifar100" / "official")
    with pytest.raises(RunError, match="damaged: not made from the expected archives") as error:
        cifar(prepare=False, dir=str(tmp_path))
    one_line(error)


def test_official_archives_are_the_registered_ones():
    registered = [
        line
        for name in ("mnist", "cifar100")
        for line in (tfds.core.tfds_path() / f"url_checksums/{name}.txt").read_text().splitlines()
    ]
    assert sorted(tfds_source.tfds_prepare.archives.OFFICIAL.read_text().splitlines()) == sorted(
        registered
    )


def damage(path, kind):
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "is missing"),
        ("truncated", "has [0-9]+ bytes instead of"),
        ("flipped", "has sha256 [0-9a-f]+ instead of"),
    ],
)
@pytest.mark.parametrize(("load", "name"), [(mnist, MNIST), (cifar, CIFAR)])
def test_other_archives_are_refused(load, name, kind, message, archives, tmp_path, capsys):
    folder = tmp_path / "archives"
    shutil.copytree(archives["archive_dir"], folder)
    damage(folder / name, kind)
    with pytest.raises(UsageError, match=f"data.archive_dir = .*: {name} {message}") as error:
        load(dir=str(tmp_path / "data"), archive_dir=str(folder), checksums=archives["checksums"])
    one_line(error)
    assert not (tmp_path / "data").exists()
    assert capsys.readouterr().err == ""
    shutil.copy(Path(archives["archive_dir"], name), folder)
    load(dir=str(tmp_path / "data"), archive_dir=str(folder), checksums=archives["checksums"])


def test_an_archive_that_cannot_be_read_is_named(archives, tmp_path, monkeypatch):
    def unreadable(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(hashlib, "file_digest", unreadable)
    with pytest.raises(
        UsageError,
        match=rf"data.archive_dir = .*: {MNIST} cannot be read \(Permission denied\); the",
    ) as error:
        mnist(dir=str(tmp_path / "data"), **archives)
    one_line(error)
    assert not (tmp_path / "data").exists()


def test_a_user_that_there_is_not_is_no_traceback(archives, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=rf"data.archive_dir = ~nosuch/a: {MNIST} is missing"):
        mnist(dir=str(tmp_path), **{**archives, "archive_dir": "~nosuch/a"})
    with pytest.raises(
        UsageError, match=r"data.tfds.checksums = ~nosuch/table.tsv: .*No such file"
    ):
        mnist(dir=str(tmp_path), **{**archives, "checksums": "~nosuch/table.tsv"})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Missing):
        mnist(False, dir="~nosuch/data", **archives)


def test_official_archives_are_expected_by_default(archives, tmp_path):
    with pytest.raises(
        UsageError,
        match=f"data.archive_dir = .*: {MNIST} is not official: has sha256 [0-9a-f]+ instead",
    ):
        mnist(dir=str(tmp_path), archive_dir=archives["archive_dir"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("url 1 2\n", "not a row"),
        ("url\t1\t" + "0" * 64 + "\tother.gz\n", f"no row for {MNIST}"),
    ],
)
def test_other_tables_are_refused(text, message, tmp_path):
    table = tmp_path / "table.tsv"
    if text:
        table.write_text(text)
    with pytest.raises(UsageError, match=f"data.tfds.checksums = {table}: .*{message}") as error:
        mnist(dir=str(tmp_path / "data"), checksums=str(table))
    one_line(error)
    assert not (tmp_path / "data").exists()


def rewrite_tar(folder, **members):
    """CIFAR-100's archive with other files in it."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(f"cifar-100-binary/{name.replace('_bin', '.bin')}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    standins.write_gzip(Path(folder, CIFAR), tar.getvalue())


@pytest.mark.parametrize(
    ("load", "change", "message"),
    [
        (mnist, lambda f: (f / MNIST).write_bytes(b"plain"), "not a whole gzip file"),
        (
            mnist,
            lambda f: standins.write_gzip(f / MNIST, b"\0\0\x08\x01" + bytes(20)),
            "not an IDX file",
        ),
        (mnist, lambda f: standins.write_gzip(f / MNIST, b""), "not an IDX file"),
        (
            mnist,
            lambda f: standins.write_gzip(f / MNIST, np.array([0x803, 9, 28, 28], ">u4").tobytes()),
            "do not fit its shape",
        ),
        (
            mnist,
            lambda f: shutil.copy(f / "t10k-images-idx3-ubyte.gz", f / MNIST),
            "do not fit 10 digits",
        ),
        (cifar, lambda f: (f / CIFAR).write_bytes(b"plain"), "not a whole tar"),
        (cifar, lambda f: rewrite_tar(f, train_bin=b""), "has no test.bin"),
    ],
)  # fmt: skip
def test_stand_ins_of_another_format_are_refused(load, change, message, tmp_path):
    standins.mnist_archives(tmp_path / "a", 20, 10)
    standins.cifar100_archive(tmp_path / "a", 20, 10)
    change(tmp_path / "a")
    fields = {
        "archive_dir": str(tmp_path / "a"),
        "checksums": str(standins.checksums(tmp_path / "a")),
    }
    with pytest.raises(UsageError, match=f"data.archive_dir = .*{message}") as error:
        load(dir=str(tmp_path / "data"), **fields)
    one_line(error)
    assert not list((tmp_path / "data").rglob("*.json"))
    assert not list((tmp_path / "data").rglob("incomplete*"))


def test_damage_after_preparing_is_noticed(archives, tmp_path):
    mnist(dir=str(tmp_path), **archives)
    (path,) = tmp_path.rglob("*train.array_record*")
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:70_000] + b"\0" * 1000 + whole[71_000:], b""):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match="damaged") as error:
            mnist(dir=str(tmp_path), **archives)
        one_line(error)
    path.unlink()
    with pytest.raises(RunError, match="damaged"):
        mnist(dir=str(tmp_path), **archives)


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"name": 3}', '{"splits": [{"shardLengths": ["x"]}]}']
)
def test_a_damaged_description_is_noticed(by_name, content, archives, prepared, tmp_path):
    (variant,) = Path(prepared, "selfloop_cifar100").iterdir()
    place = tmp_path / "selfloop_cifar100" / variant.name
    shutil.copytree(variant, place)
    (info,) = place.rglob("dataset_info.json")
    info.write_text(content)
    load = functools.partial(cifar, dir=str(tmp_path), **archives)
    if by_name:
        load = functools.partial(
            named, f"selfloop_cifar100/{variant.name}", tmp_path, label_feature="label"
        )
    with pytest.raises(RunError, match=f"^{place}: damaged: .*: delete it$") as error:
        load()
    one_line(error)


def test_preparing_leaves_nothing_in_the_folder_of_temporary_files(archives, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    mnist(dir=str(tmp_path / "data"), **archives)
    assert names(tmp_path / "temporary") == []


def test_a_folder_that_cannot_be_read_is_named(archives, tmp_path, monkeypatch):
    def unreadable(self):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path))

    monkeypatch.setattr(tfds.core.DatasetBuilder, "is_prepared", unreadable)
    with pytest.raises(
        UsageError,
        match=f"^data.tfds.dir: {tmp_path}: Permission denied; must be a readable folder",
    ) as error:
        mnist(dir=str(tmp_path), **archives)
    one_line(error)


def test_a_folder_that_cannot_be_written_is_named(archives, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"data.tfds.dir = .*file/data: .* not prepared") as error:
        mnist(dir=str(tmp_path / "file" / "data"), **archives)
    one_line(error)


@pytest.fixture
def served(archives, tmp_path, monkeypatch):
    """A copy of the archives and the table that gives their addresses on a local server."""
    monkeypatch.setenv("NO_PROXY", "*")
    folder = tmp_path / "served"
    shutil.copytree(archives["archive_dir"], folder)

    released = threading.Event()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            """Hangs up while there is a file `drop`."""
            if (folder / "drop").exists():
                self.connection.shutdown(socket.SHUT_RDWR)
            else:
                super().do_GET()

        def copyfile(self, source, outputfile):
            """Stalls after a thousand bytes while there is a file `stall`."""
            if (folder / "stall").exists():
                outputfile.write(source.read(1000))
                released.wait(30)
            else:
                super().copyfile(source, outputfile)

        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        shutil.move(
            standins.checksums(folder, f"http://127.0.0.1:{server.server_port}"),
            tmp_path / "table.tsv",
        )
        yield folder
        released.set()
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("load", [mnist, cifar])
def test_archives_are_downloaded_from_the_addresses_of_the_table(
    load, served, archives, prepared, tmp_path
):
    source = load(dir=str(tmp_path / "data"), checksums=str(tmp_path / "table.tsv"))
    expected = load(prepare=False, dir=prepared, **archives)
    assert (source.train.pixels == expected.train.pixels).all()
    assert source.provenance["stand_in"] == "table.tsv"
    assert not any("downloads" in name for name in names(tmp_path / "data"))


@pytest.mark.parametrize("kind", ["missing", "truncated", "flipped"])
def test_downloads_that_fail_leave_nothing(kind, served, tmp_path):
    damage(served / CIFAR, kind)
    with pytest.raises(
        RunError, match=f"download failed.*data.archive_dir can name .*{CIFAR}"
    ) as error:
        cifar(dir=str(tmp_path / "data"), checksums=str(tmp_path / "table.tsv"))
    one_line(error)
    assert not any(
        "downloads" in name or name.endswith("1.0.0") for name in names(tmp_path / "data")
    )


@pytest.mark.parametrize("kind", ["drop", "stall"])
def test_a_server_that_stops_sending_is_given_up_in_one_line(
    kind, served, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(tfds_source.tfds_prepare, "SECONDS_TO_ANSWER", 1)
    (served / kind).touch()
    started = time.monotonic()
    with pytest.raises(RunError, match=r"download failed.*data.archive_dir can name") as error:
        cifar(dir=str(tmp_path / "data"), checksums=str(tmp_path / "table.tsv"))
    one_line(error)
    assert time.monotonic() - started < 15
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("preparing selfloop_cifar100/")


class Fetched(tfds.core.GeneratorBasedBuilder):
    """A data set whose server does not answer."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "kind": np.int64})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        dl_manager.download("http://127.0.0.1:9/images.zip")

    def _generate_examples(self):
        return iter(())


def test_a_data_set_by_name_gives_up_without_a_network(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("NO_PROXY", "*")
    started = time.monotonic()
    with pytest.raises(
        RunError, match=r"data.tfds.dir = .*: fetched not prepared: .*127.0.0.1"
    ) as error:
        named("fetched", tmp_path)
    one_line(error)
    assert time.monotonic() - started < 15
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("preparing fetched/1.0.0")


def test_a_certificate_that_python_does_not_trust_is_an_answer(served, tmp_path, monkeypatch):
    def untrusted(*_, **__):
        raise urllib.error.URLError(ssl.SSLCertVerificationError("self-signed"))

    monkeypatch.setattr(urllib.request, "urlopen", untrusted)
    assert (
        len(cifar(dir=str(tmp_path / "data"), checksums=str(tmp_path / "table.tsv")).train) == 300
    )


def test_no_network_is_reported_at_once(archives, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NO_PROXY", "*")
    text = (
        Path(archives["checksums"])
        .read_text()
        .replace("https://stand-in.invalid", "http://127.0.0.1:9")
    )
    (tmp_path / "table.tsv").write_text(text)
    started = time.monotonic()
    with pytest.raises(RunError, match=r"no answer .*data.archive_dir can name a folder") as error:
        mnist(dir=str(tmp_path / "data"), checksums=str(tmp_path / "table.tsv"))
    one_line(error)
    assert time.monotonic() - started < 10
    assert not (tmp_path / "data").exists()
    assert capsys.readouterr().err == ""


PREPARE = """
import json, sys
import tensorflow_datasets
from selfloop_jax.config import DataConfig, TfdsConfig
from selfloop_jax.data.sources import tfds
fields = json.loads(sys.argv[1])
shared = {"source": "cifar20", "image_size": 32, "archive_dir": fields.pop("archive_dir", "")}
data = DataConfig(tfds=TfdsConfig(**fields), **shared)
print("ready", flush=True)
source = tfds.cifar(data, True, True)
print(len(source.train), "tensorflow" in sys.modules, flush=True)
"""


def preparing(**fields):
    """A process that prepares CIFAR-100, from the moment on that it starts to."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PREPARE, json.dumps(fields)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def kill_when(folder, pattern, seconds, **fields):
    """Kills a preparation some seconds after a file that fits the pattern has come up."""
    process = preparing(dir=str(folder), **fields)
    deadline = time.monotonic() + 30
    while not any(folder.glob(pattern)) and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_killed_at_any_moment_the_next_start_succeeds(tmp_path):
    standins.cifar100_archive(tmp_path, train=10_000, test=2000)
    archives = {"archive_dir": str(tmp_path), "checksums": str(standins.checksums(tmp_path))}
    data = tmp_path / "data"
    incomplete = "selfloop_cifar100/*/incomplete*"
    for pattern, seconds in ((incomplete, 0), (f"{incomplete}/*train*", 0.1)):
        kill_when(data, pattern, seconds, **archives)
    assert (
        len(list(data.glob(incomplete))) == 1
    )  # of the last one; each start removes what it finds
    source = cifar(dir=str(data), **archives)
    records = records_of(tmp_path, "train")
    assert (
        source.train.pixels == records[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    ).all()
    assert not any("incomplete" in name for name in names(data))


def test_killed_in_a_download_the_next_start_succeeds(served, archives, prepared, tmp_path):
    (served / "stall").touch()
    table = {"checksums": str(tmp_path / "table.tsv")}
    kill_when(tmp_path / "data", ".*.downloads/*/*.tmp.*/*", 0, **table)
    (served / "stall").unlink()
    source = cifar(dir=str(tmp_path / "data"), **table)
    assert (source.train.pixels == cifar(False, dir=prepared, **archives).train.pixels).all()
    assert not any("downloads" in name for name in names(tmp_path / "data"))


def test_two_processes_prepare_at_once_without_tensorflow(archives, tmp_path):
    processes = [preparing(dir=str(tmp_path / "data"), **archives) for _ in range(2)]
    for process in processes:
        output, errors = process.communicate(timeout=60)
        assert (output, process.returncode) == ("210 False\n", 0), errors
    assert not any("incomplete" in name for name in names(tmp_path / "data"))


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


class SmallFaces(tfds.core.GeneratorBasedBuilder):
    """Twelve by ten pixels, with attributes as CelebA has them."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS = {"train": 9, "validation": 4}  # noqa: RUF012
    ENCODED = True

    def _info(self):
        features = {
            "image": tfds.features.Image(),
            "attributes": {"Male": np.bool_, "Age": np.int64, "Height": np.float32},
            "kind": tfds.features.ClassLabel(names=["cat", "dog"]),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(count) for split, count in self.SPLITS.items()}

    def _generate_examples(self, count):
        for i in range(count):
            pixels = np.full((10, 12, 3), 20 * i, np.uint8)
            attributes = {"Male": i % 2 == 0, "Age": 20 + 10 * (i % 3), "Height": 1.5}
            image = png(pixels) if self.ENCODED else pixels
            yield i, {"image": image, "attributes": attributes, "kind": i % 2}


class GrayTensors(SmallFaces):
    """Arrays instead of encoded images; `KINDS` of -1 are unknown."""

    SPLITS = {"train": 5, "test": 3, "validation": 2}  # noqa: RUF012
    KINDS = (0, 1, 1, 0, 1)

    def _info(self):
        features = {
            "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8, encoding="bytes"),
            "kind": tfds.features.ClassLabel(names=["cat", "dog"]),
            "half": tfds.features.ClassLabel(names=["left", "right"]),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _generate_examples(self, count):
        for i in range(count):
            yield (
                i,
                {
                    "image": np.full((8, 8, 1), 30 * i, np.uint8),
                    "kind": self.KINDS[i],
                    "half": -(i % 2),
                },
            )


class TrainAlone(SmallFaces):
    SPLITS = {"train": 4}  # noqa: RUF012


class Odd(SmallFaces):
    """As SmallFaces, but that `THIRD` is the third image of either split."""

    THIRD = b"garbage"

    def _generate_examples(self, count):
        for i, example in super()._generate_examples(count):
            yield i, {**example, "image": self.THIRD} if i == 2 else example


class NeedsTensorflow(SmallFaces):
    ENCODED = False


def named(name, folder, prepare=True, **fields):
    fields = {"label_feature": "kind", "image_size": 4, "dir": str(folder), **fields}
    return tfds_source.named(section(source=f"tfds:{name}", **fields), prepare)


def test_a_data_set_by_name_with_a_nested_feature(tmp_path):
    source = named("small_faces", tmp_path, group_feature="attributes.Male")
    assert source.classes == ("cat", "dog")
    assert source.groups == ("False", "True")
    assert source.nested  # here only dogs are not male
    assert source.train.label.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    assert source.train.group.tolist() == [1, 0, 1, 0, 1, 0, 1, 0, 1]
    assert source.train.pixels.shape == (9, 4, 4, 3)
    assert source.train.pixels[:, 0, 0, 0].tolist() == [20 * i for i in range(9)]
    assert source.test.id.tolist() == [9, 10, 11, 12]
    assert source.provenance["splits"] == ["train", "validation"]
    assert source.provenance["tfds"] == "small_faces/1.0.0"
    assert source.provenance["stand_in"] is None


def test_integers_are_groups_by_their_values(tmp_path):
    source = named("small_faces", tmp_path, group_feature="attributes.Age")
    assert source.groups == ("20", "30", "40")
    assert source.train.group.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2]
    assert not source.nested
    source = named("small_faces", tmp_path, label_feature="attributes.Male")
    assert (source.classes, source.groups, source.nested) == (("False", "True"), (), False)
    assert (source.train.group == UNKNOWN).all()


def test_gray_arrays_become_three_channels(tmp_path):
    source = named("gray_tensors", tmp_path, group_feature="half")
    assert source.train.pixels.shape == (5, 4, 4, 3)
    assert (source.train.pixels == 30 * np.arange(5)[:, None, None, None]).all()
    assert source.train.group.tolist() == [0, UNKNOWN, 0, UNKNOWN, 0]
    assert source.provenance["splits"] == ["train", "test"]
    assert len(source.test) == 3


def test_images_without_a_label_are_refused(tmp_path):
    with pytest.raises(
        UsageError, match=r"data.tfds.label_feature = half: images of train or test have no label"
    ):
        named("gray_tensors", tmp_path, label_feature="half")


def png_claiming(width, height):
    """A PNG whose header alone is large."""
    small = png(np.zeros((9, 9, 3), np.uint8))
    header = b"IHDR" + struct.pack(">II", width, height) + small[24:29]
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


@pytest.mark.parametrize(
    ("third", "message"),
    [
        (b"garbage", "not a PNG, JPEG, WebP, GIF or BMP image"),
        (png(np.zeros((9, 9, 3), np.uint8))[:40], "damaged or unreadable"),
        (png_claiming(20_000, 10_000), "20000 x 10000 pixels are more than 100 megapixels"),
    ],
    ids=["garbage", "short", "huge"],
)
def test_an_image_that_cannot_be_used_is_named(third, message, tmp_path, monkeypatch):
    monkeypatch.setattr(Odd, "THIRD", third)
    with pytest.raises(
        RunError, match=f"^odd/1.0.0, train, record 2: ({message}).*; in {tmp_path}/odd/"
    ) as error:
        named("odd", tmp_path)
    one_line(error)


@pytest.mark.parametrize("name", ["small_faces/nope", "small_faces:9.9.9"])
def test_a_config_or_version_that_does_not_exist_is_refused(name, tmp_path):
    with pytest.raises(UsageError, match=f"^data.source = tfds:{name}: .*(nope|9.9.9)") as error:
        named(name, tmp_path)
    one_line(error)


def test_a_folder_of_archives_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(
        UsageError,
        match=r"^data.archive_dir = /nowhere: No such file or directory; must be a folder",
    ):
        named("small_faces", tmp_path / "data", archive_dir="/nowhere")
    assert not (tmp_path / "data").exists()


def test_what_a_data_set_lacks_is_named(tmp_path):
    for field, value, known in (
        ("label_feature", "label", "attributes.Age | attributes.Male | kind"),
        ("group_feature", "attributes", ""),
        ("group_feature", "attributes.Height", ""),
        ("label_feature", "", ""),
    ):
        message = re.escape(f"data.tfds.{field} = {value}: must be one of {known}")
        with pytest.raises(UsageError, match=message) as error:
            named("small_faces", tmp_path, **{field: value})
        one_line(error)
    with pytest.raises(
        UsageError, match="its splits are train; must have train and either test or validation"
    ):
        named("train_alone", tmp_path)


def test_what_takes_tensorflow_says_so(tmp_path):
    with pytest.raises(
        UsageError, match=r"data.source = tfds:needs_tensorflow: .*without TensorFlow"
    ) as error:
        named("needs_tensorflow", tmp_path)
    one_line(error)
    assert "No module named 'tensorflow'" in str(error.value)
    assert not list(tmp_path.rglob("incomplete*"))
    assert not list(tmp_path.rglob("*.json"))
    named("small_faces", tmp_path)
    (info,) = tmp_path.rglob("dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(
        UsageError, match="prepared as tfrecord, which only TensorFlow reads"
    ) as error:
        named("small_faces", tmp_path)
    one_line(error)


@pytest.mark.parametrize("name", ["small_faces", "no_such_data_set"])
def test_names_that_are_not_prepared_are_missing(name, tmp_path):
    with pytest.raises(Missing) as error:
        named(name, tmp_path / "data", prepare=False)
    assert error.value.field == "data.tfds.dir"
    assert one_line(error).startswith("data.tfds.dir = ")
    assert not (tmp_path / "data").exists()


def test_names_that_would_be_fetched_are_refused(tmp_path):
    with pytest.raises(
        UsageError, match=r"data.source = tfds:huggingface:mnist: must be tfds:<name>"
    ):
        named("huggingface:mnist", tmp_path)


def test_a_stand_in_read_by_its_name_says_so(archives, prepared):
    (variant,) = [path.name for path in Path(prepared, "selfloop_cifar100").iterdir()]
    source = named(
        f"selfloop_cifar100/{variant}", prepared, False, label_feature="coarse_label", image_size=32
    )
    assert source.provenance["stand_in"] == "checksums.tsv"
    assert (source.train.pixels == cifar(False, dir=prepared, **archives).train.pixels).all()
