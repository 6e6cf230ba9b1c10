"""A run on disk: atomic files, detected damage, one run per workdir, checked resumes."""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfloop_jax.config.stored import write_or_check_config
from selfloop_jax.errors import RunError, UsageError
from selfloop_jax.runtime import store
from selfloop_jax.runtime.workdir import (
    BIT_RELEVANT,
    NOT_IN_DIGEST,
    code_difference,
    digest_record,
    generation_dir,
    lock,
    manifest_difference,
    manifest_of,
    records,
    write_or_check_manifest,
)

SETTINGS = settings(max_examples=100, deadline=None, derandomize=True, database=None)


ROOT = Path(__file__).parents[2]


ARRAYS = {
    "pixels": np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3),
    "label": np.array([3, 1], np.int32),
}


CONFIG = {
    "seed": 0,
    "data": {"bias": {"per_class": (0.3, 0.7)}, "source": "digits"},
    "loop": {"generations": 3},
    "log": {"every_steps": 50},
    "report": {"enabled": True},
}


GROWS = ("loop.generations",)


MANIFEST = {field: f"{field} as it was" for field in (*BIT_RELEVANT, "host", "git", "started")}


def changed(tree, field, value):
    """A copy of nested dictionaries with one dotted field set."""
    head, _, rest = field.partition(".")
    return tree | {head: changed(tree.get(head, {}), rest, value) if rest else value}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@contextlib.contextmanager
def full_disk(where):
    """A disk that fails at fsync, at rename ("replace"), or half-way through the data ("write")."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch:
        if where == "write":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        else:
            patch.setattr(os, where, no_space)
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
@pytest.mark.parametrize("old", [b"old", None])
@pytest.mark.parametrize(
    "write",
    [
        lambda path: store.write_bytes(path, bytes(5000)),
        lambda path: store.write_json(path, list(range(2000))),
        lambda path: store.write_npz(path, {"x": np.zeros(5000)}),
    ],
    ids=["bytes", "json", "npz"],
)
def test_a_full_disk_leaves_the_old_file_or_none(tmp_path, write, old, where):
    path = tmp_path / "record.json"
    if old:
        path.write_bytes(old)
    with full_disk(where), pytest.raises(OSError, match=r"No space left|File too large"):
        write(path)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == (
        {"record.json": old} if old else {}
    )


def test_a_file_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    path, done = tmp_path / "file", []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor):
        kind = "folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file"
        done.append(f"fsync {kind}, {os.fstat(descriptor).st_size if kind == 'file' else ''}")
        real_fsync(descriptor)

    def replace(source, target):
        done.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    store.write_bytes(path, b"12345")
    assert done == ["fsync file, 5", "rename", "fsync folder, "]


def test_a_write_that_was_killed_does_not_hinder_the_next(tmp_path, monkeypatch):
    path = tmp_path / "file"
    store.write_bytes(path, b"old")

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.write_bytes(path, b"half")
    assert path.read_bytes() == b"old"
    store.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


def test_a_file_gets_its_folder_and_none_above_it(tmp_path):
    """A workdir that is moved away under a run is not made again, half empty."""
    store.write_npz(tmp_path / "gen_0012" / "samples.npz", {"label": np.arange(3)})
    assert (tmp_path / "gen_0012" / "samples.npz").exists()
    with pytest.raises(FileNotFoundError):
        store.write_json(tmp_path / "gone" / "gen_0013" / "record.json", {})
    assert not (tmp_path / "gone").exists()


def test_json_holds_arrays_as_lists_and_what_is_not_finite_as_null(tmp_path):
    value = {
        "array": np.array([[1, 2], [3, 4]]),
        "scalars": (np.float32(0.5), np.int64(7), np.bool_(True)),
        "nan": [float("nan"), np.float64("inf"), {"deep": np.array([1.0, -np.inf])}],
        3: "a number as a name",
    }
    store.write_json(tmp_path / "x.json", value)
    assert store.read_json(tmp_path / "x.json") == {
        "array": [[1, 2], [3, 4]],
        "scalars": [0.5, 7, True],
        "nan": [None, None, {"deep": [1.0, None]}],
        "3": "a number as a name",
    }


@SETTINGS
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_json_gives_back_the_very_float(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "float.json"
    store.write_json(path, [value])
    assert store.read_json(path)[0].hex() == value.hex()


@pytest.mark.parametrize("data", [b"", b'{"a": 1', b"\xff\xfe", b"PK\x03\x04"])
def test_damaged_json_is_named(tmp_path, data):
    path = tmp_path / "record.json"
    path.write_bytes(data)
    with pytest.raises(RunError, match=f"^{re.escape(str(path))}: damaged"):
        store.read_json(path)


@pytest.mark.parametrize("read", [store.read_json, store.read_npz])
def test_a_missing_file_is_named(tmp_path, read):
    path = tmp_path / "missing"
    with pytest.raises(RunError, match=f"^{re.escape(str(path))}: missing"):
        read(path)


def test_npz_gives_back_names_values_and_kinds(tmp_path):
    arrays = ARRAYS | {"scalar": np.float32(1.5), "empty": np.zeros((0, 3), np.uint32)}
    digest = store.write_npz(tmp_path / "x.npz", arrays)
    found = store.read_npz(tmp_path / "x.npz", digest)
    assert store.digest_arrays(found) == store.digest_arrays(arrays)


def test_npz_is_a_function_of_the_arrays_alone(tmp_path, monkeypatch):
    one = store.write_npz(tmp_path / "one.npz", ARRAYS)
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setattr("time.localtime", lambda *_: (2033, 5, 18, 3, 33, 20, 2, 138, 0))
    other = store.write_npz(
        tmp_path / "other.npz", {name: array.copy() for name, array in ARRAYS.items()}
    )
    data = (tmp_path / "one.npz").read_bytes()
    assert data == (tmp_path / "other.npz").read_bytes()
    assert one == other == hashlib.sha256(data).hexdigest()
    assert (
        store.write_npz(tmp_path / "one.npz", changed(ARRAYS, "label", np.array([3, 2], np.int32)))
        != one
    )


@SETTINGS
@given(st.data())
def test_any_flipped_bit_is_noticed(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "flipped.npz"
    digest = store.write_npz(path, ARRAYS)
    damaged = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(damaged) - 1))
    damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(damaged)
    with pytest.raises(RunError, match=f"^{re.escape(str(path))}: damaged"):
        store.read_npz(path, digest)


@SETTINGS
@given(st.floats(0, 1, exclude_max=True))
def test_a_cut_npz_is_noticed_without_a_digest(tmp_path_factory, share):
    path = tmp_path_factory.getbasetemp() / "cut.npz"
    store.write_npz(path, ARRAYS)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(RunError, match=f"^{re.escape(str(path))}: damaged"):
        store.read_npz(path)


def test_a_flipped_data_byte_is_noticed_without_a_digest(tmp_path):
    path = tmp_path / "x.npz"
    store.write_npz(path, ARRAYS)
    data = path.read_bytes()
    place = data.index(ARRAYS["pixels"].tobytes())
    path.write_bytes(data[:place] + b"\x01" + data[place + 1 :])
    with pytest.raises(RunError, match=f"^{re.escape(str(path))}: damaged"):
        store.read_npz(path)


def test_the_digest_of_arrays_is_pinned():
    assert (
        store.digest_arrays(ARRAYS)
        == "6030872536242bb52038b4bd7d7a878f7f5ab32a997f9261149ed1154cdbbf72"
    )


@pytest.mark.parametrize(
    "arrays",
    [
        {"a": np.arange(6, dtype=np.int32).reshape(3, 2)},
        {"a": np.arange(6, dtype=np.int32)},
        {"a": np.arange(6, dtype=np.uint32).reshape(2, 3)},
        {"a": np.arange(6, dtype=np.int64).reshape(2, 3)},
        {"b": np.arange(6, dtype=np.int32).reshape(2, 3)},
        {"a": np.array([[0, 1, 2], [3, 4, 6]], np.int32)},
        {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": np.zeros(0, np.int32)},
        {},
    ],
    ids=["shape", "rank", "signedness", "width", "name", "value", "one more array", "nothing"],
)
def test_a_digest_sees(arrays):
    assert store.digest_arrays(arrays) != store.digest_arrays(
        {"a": np.arange(6, dtype=np.int32).reshape(2, 3)}
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"x": np.float32(0.0)}, {"x": np.float32(-0.0)}),
        ({"x": np.float32(1)}, {"x": np.ones(1, np.float32)}),
        ({"x": np.array([1, 2]), "y": np.array([3])}, {"x": np.array([1]), "y": np.array([2, 3])}),
        ({"x": np.array([1]), "y": np.array([2])}, {"x": np.array([2]), "y": np.array([1])}),
    ],
    ids=[
        "a sign of zero",
        "a scalar and a row of one",
        "where one array ends",
        "which array is which",
    ],
)
def test_a_digest_tells_apart(one, other):
    assert store.digest_arrays(one) != store.digest_arrays(other)


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int32, np.uint64, np.float16, np.float32, np.complex64]
)
@pytest.mark.parametrize(
    "laid_out",
    [
        np.asfortranarray,
        lambda array: np.repeat(array, 2, axis=1)[:, ::2],
        lambda array: array[::-1].copy()[::-1],
        lambda array: array.astype(array.dtype.newbyteorder(">")),
        lambda array: array.astype(array.dtype.newbyteorder("<")),
    ],
    ids=["fortran", "strided", "reversed", "big-endian", "little-endian"],
)
def test_a_digest_does_not_see_how_an_array_lies_in_memory(dtype, laid_out):
    array = np.arange(12).reshape(3, 4).astype(dtype)
    assert store.digest_arrays({"a": laid_out(array)}) == store.digest_arrays({"a": array})


def test_a_digest_does_not_see_the_order_of_names():
    assert store.digest_arrays(dict(reversed(ARRAYS.items()))) == store.digest_arrays(ARRAYS)


RECORD = {
    "generation": 0,
    "metrics": {"accuracy": 0.9, "gaps": [0.1, None]},
    "digests": {},
    "seconds": {"pool": 1},
}


@pytest.mark.parametrize("field", NOT_IN_DIGEST)
def test_the_digest_of_a_record_is_about_what_was_made_not_the_making(field):
    assert "seconds" in NOT_IN_DIGEST
    assert digest_record(RECORD | {field: "something else"}) == digest_record(RECORD)
    without = {name: value for name, value in RECORD.items() if name != field}
    assert digest_record(without) == digest_record(RECORD)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("generation", 1),
        ("metrics.accuracy", 0.90000001),
        ("metrics.gaps", [None, 0.1]),
        ("digests.x", "0"),
    ],
)
def test_the_digest_of_a_record_sees(field, value):
    assert digest_record(changed(RECORD, field, value)) != digest_record(RECORD)


def test_the_digest_of_a_record_does_not_see_the_order_of_fields(tmp_path):
    store.write_json(tmp_path / "record.json", dict(reversed(RECORD.items())))
    assert digest_record(store.read_json(tmp_path / "record.json")) == digest_record(RECORD)


def write_chain(workdir, generations):
    """Committed records as the loop writes them."""
    parents = {}
    for g in range(generations):
        record = {
            "generation": g,
            "metrics": {"accuracy": g / 10},
            "parents": parents,
            "seconds": {"pool": g},
        }
        store.write_json(generation_dir(workdir, g) / "record.json", record)
        parents = {f"gen_{g:04d}/record.json": digest_record(record)}


def rewrite(workdir, g, field, value):
    path = generation_dir(workdir, g) / "record.json"
    store.write_json(path, changed(store.read_json(path), field, value))


@pytest.mark.parametrize(("asked", "found"), [(0, 0), (2, 2), (3, 3), (9, 3)])
def test_records_are_the_committed_ones_in_order(tmp_path, asked, found):
    write_chain(tmp_path, 3)
    assert [record["generation"] for record in records(tmp_path, asked)] == list(range(found))


def test_records_of_a_folder_that_is_not_there_are_none(tmp_path):
    assert records(tmp_path / "new", 3) == []


def test_an_unfinished_generation_is_not_a_record(tmp_path):
    write_chain(tmp_path, 2)
    store.write_json(generation_dir(tmp_path, 2) / "measure.json", {"metrics": {}})
    assert len(records(tmp_path, 3)) == 2


@pytest.mark.parametrize("g", [0, 1])
def test_a_record_changed_after_its_commit_is_named(tmp_path, g):
    write_chain(tmp_path, 3)
    rewrite(tmp_path, g, "metrics.accuracy", 0.99)
    with pytest.raises(
        RunError, match=f"^{re.escape(str(tmp_path))}/gen_000{g}/record.json: damaged"
    ):
        records(tmp_path, 3)


def test_a_record_that_names_no_parent_is_refused(tmp_path):
    write_chain(tmp_path, 2)
    rewrite(tmp_path, 1, "parents", {})
    with pytest.raises(RunError, match=r"gen_0000/record\.json: damaged"):
        records(tmp_path, 2)


def test_seconds_of_a_record_may_differ(tmp_path):
    write_chain(tmp_path, 3)
    rewrite(tmp_path, 0, "seconds", {"pool": 99})
    assert len(records(tmp_path, 3)) == 3


HOLD = (
    "import sys; from pathlib import Path; from selfloop_jax.runtime import workdir\n"
    "with workdir.lock(Path(sys.argv[1])):\n"
    "    print('held', flush=True); sys.stdin.read()\n"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock on tmp_path."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def assert_taken(workdir):
    with pytest.raises(UsageError, match=f"^--workdir={re.escape(str(workdir))}: another run"):
        lock(workdir).__enter__()


def test_a_second_run_in_a_folder_is_refused_until_the_first_is_killed(tmp_path, holder):
    assert_taken(tmp_path)
    with lock(tmp_path / "elsewhere"):
        pass
    holder.kill()
    holder.wait()
    with lock(tmp_path):
        assert_taken(tmp_path)


def test_the_lock_is_given_back_however_the_run_ends(tmp_path):
    for error in (RunError, KeyboardInterrupt, OSError):
        with pytest.raises(error, match="the run's own"), lock(tmp_path / "new"):
            raise error("the run's own")
    with lock(tmp_path / "new"):
        pass


def test_a_lock_file_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / ".lock").mkdir()
    line = f"--workdir={tmp_path}: must be a folder that can be written: .lock: Is a directory"
    with pytest.raises(UsageError, match=f"^{re.escape(line)}$"):
        lock(tmp_path).__enter__()


def test_a_file_system_without_locks_is_not_taken_for_another_run(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    line = f"--workdir={tmp_path}: must be on a file system with locks: No locks available"
    with pytest.raises(UsageError, match=f"^{re.escape(line)}$"):
        lock(tmp_path).__enter__()


def test_locks_of_two_names_do_not_exclude_each_other(tmp_path):
    taken = pytest.raises(UsageError, match="another reader is using it")
    with lock(tmp_path), lock(tmp_path, ".other", "reader"), taken:
        lock(tmp_path, ".other", "reader").__enter__()


def test_the_first_start_writes_the_config_and_the_same_again_changes_nothing(tmp_path):
    write_or_check_config(tmp_path, CONFIG, GROWS)
    written = (tmp_path / "config.json").stat()
    assert store.flatten(store.read_json(tmp_path / "config.json")) == store.flatten(
        changed(CONFIG, "data.bias.per_class", [0.3, 0.7])
    )
    write_or_check_config(tmp_path, CONFIG, GROWS)
    again = (tmp_path / "config.json").stat()
    assert (again.st_ino, again.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


@pytest.mark.parametrize(
    ("field", "value"), [("loop.generations", 5), ("log.every_steps", 1), ("report.enabled", False)]
)
def test_more_generations_logging_and_report_are_free(tmp_path, field, value):
    write_or_check_config(tmp_path, CONFIG, GROWS)
    write_or_check_config(tmp_path, changed(CONFIG, field, value), GROWS)
    assert store.flatten(store.read_json(tmp_path / "config.json"))[field] == value
    if field == "loop.generations":  # and from now on it may not go back
        with pytest.raises(UsageError, match=r"^loop\.generations = 3: must be at least 5, "):
            write_or_check_config(tmp_path, CONFIG, GROWS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("loop.generations", 2),
        ("seed", 1),
        ("data.source", "mnist5k"),
        ("data.bias.per_class", (0.3, 0.8)),
        ("data.new", 1),
    ],
)
def test_any_other_field_is_named_and_the_config_left_alone(tmp_path, field, value):
    write_or_check_config(tmp_path, CONFIG, GROWS)
    before = (tmp_path / "config.json").read_bytes()
    both = changed(changed(CONFIG, field, value), "log.every_steps", 1)
    with pytest.raises(
        UsageError,
        match=f"^{re.escape(field)} = .*: must be .* the run in {re.escape(str(tmp_path))};",
    ):
        write_or_check_config(tmp_path, both, GROWS)
    assert (tmp_path / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("field", "before", "after", "free"),
    [
        ("data.cache_dir", "", "/scratch/1", True),
        ("data.folder.dir", "/a", "/b", True),
        ("data.archive_dir", "/a", "", True),
        ("data.hardimagenet.meta_dir", "/a", "/b", True),
        ("classifier.init_from", "a.pth", "/b/a.pth", True),
        ("classifier.init_from", "", "a.pth", False),
        ("measure.features_weights", "a.pth", "", False),
        ("loop.branch_from", "/a", "/b", False),
        ("data.folder.group_column", "a", "b", False),
    ],
)
def test_where_something_lies_may_change(tmp_path, field, before, after, free):
    write_or_check_config(tmp_path, changed(CONFIG, field, before), GROWS)
    later = changed(CONFIG, field, after)
    if free:
        write_or_check_config(tmp_path, later, GROWS)
        assert store.flatten(store.read_json(tmp_path / "config.json"))[field] == after
    else:
        with pytest.raises(UsageError, match=f"^{re.escape(field)} = "):
            write_or_check_config(tmp_path, later, GROWS)


def test_a_run_whose_config_is_gone_is_not_taken_for_a_new_one(tmp_path):
    generation_dir(tmp_path, 0).mkdir()
    with pytest.raises(RunError, match=r"config\.json: missing"):
        write_or_check_config(tmp_path, CONFIG, GROWS)
    assert names(tmp_path) == ["gen_0000"]


def test_flatten_gives_dotted_names():
    tree = {"a": {"b": {"c": 1}, "d": [2]}, "e": {}, "f": None}
    assert store.flatten(tree) == {"a.b.c": 1, "a.d": [2], "e": {}, "f": None}


def test_the_same_manifest_is_written_once(tmp_path):
    assert write_or_check_manifest(tmp_path, MANIFEST, accept=False) == 0
    assert write_or_check_manifest(tmp_path, MANIFEST, accept=True) == 0
    assert store.read_json(tmp_path / "manifest.json") == [MANIFEST]


@pytest.mark.parametrize("field", ["host", "started"])
def test_what_decides_no_bit_may_change(tmp_path, field):
    write_or_check_manifest(tmp_path, MANIFEST, accept=False)
    assert write_or_check_manifest(tmp_path, MANIFEST | {field: "new"}, accept=False) == 0
    assert manifest_difference(MANIFEST, MANIFEST | {field: "new"}) is None


def test_other_code_is_a_further_entry(tmp_path):
    """Whether or not it is committed: the digest of the files decides, and the commit without."""
    old = MANIFEST | {"selfloop_jax": "0.2.0"}
    assert write_or_check_manifest(tmp_path, old, accept=False) == 0
    first = old | {"git": "abc+dirty", "code": "1" * 64}
    assert code_difference(old, first) == (
        "made by version 0.2.0 git as it was, continued by 0.2.0 abc+dirty"
    )
    assert write_or_check_manifest(tmp_path, first, accept=False) == 1
    assert write_or_check_manifest(tmp_path, first | {"git": "def"}, accept=False) == 1
    other = first | {"code": "2" * 64}
    assert write_or_check_manifest(tmp_path, other, accept=False) == 2
    assert store.read_json(tmp_path / "manifest.json") == [old, first, other]
    assert manifest_difference(first, other) is None  # and so nothing to be accepted


@pytest.mark.parametrize("field", BIT_RELEVANT)
def test_what_decides_bits_is_named_when_it_changes(tmp_path, field):
    write_or_check_manifest(tmp_path, MANIFEST, accept=False)
    with pytest.raises(
        UsageError, match=f"^{field} = new: .* was made with {field} as it was; .*--accept_manifest"
    ):
        write_or_check_manifest(tmp_path, MANIFEST | {field: "new"}, accept=False)
    assert store.read_json(tmp_path / "manifest.json") == [MANIFEST]
    assert manifest_difference(MANIFEST, MANIFEST | {field: "new"}) == field


def test_a_changed_driver_or_library_of_a_gpu_is_named(tmp_path):
    found = MANIFEST | {"accelerator": {"driver": "580", "nvidia-cudnn-cu12": "9.19"}}
    other = MANIFEST | {"accelerator": {"driver": "580", "nvidia-cudnn-cu12": "9.20"}}
    write_or_check_manifest(tmp_path, found, accept=False)
    with pytest.raises(
        UsageError, match=r"^accelerator.nvidia-cudnn-cu12 = 9.20: .* was made with 9.19;"
    ):
        write_or_check_manifest(tmp_path, other, accept=False)


def test_an_accepted_manifest_is_appended_and_each_record_keeps_its_own(tmp_path):
    other = MANIFEST | {"jax": "new"}
    assert write_or_check_manifest(tmp_path, MANIFEST, accept=False) == 0
    assert write_or_check_manifest(tmp_path, other, accept=True) == 1
    assert store.read_json(tmp_path / "manifest.json") == [MANIFEST, other]
    assert write_or_check_manifest(tmp_path, other, accept=False) == 1
    with pytest.raises(UsageError, match=r"^jax = jax as it was: .* was made with new;"):
        write_or_check_manifest(tmp_path, MANIFEST, accept=False)
    assert write_or_check_manifest(tmp_path, MANIFEST, accept=True) == 2
    assert store.read_json(tmp_path / "manifest.json") == [MANIFEST, other, MANIFEST]
    found = [manifest_of(tmp_path, {"manifest": place})["jax"] for place in range(3)]
    assert found == [MANIFEST["jax"], "new", MANIFEST["jax"]]
    write_or_check_manifest(tmp_path, other, accept=True)
    assert manifest_of(tmp_path, {}) == other  # a record of an earlier version: the last one
    with pytest.raises(RunError, match=r"manifest\.json: damaged: it has no entry 4"):
        manifest_of(tmp_path, {"manifest": 4})


def test_the_manifest_decides_by_versions_devices_and_threads():
    assert {"python", "jax", "jaxlib", "numpy", "device_kind", "device_count", "nproc"} <= set(
        BIT_RELEVANT
    )


def test_a_run_without_its_manifest_is_damaged(tmp_path):
    (tmp_path / "gen_0000").mkdir()
    with pytest.raises(RunError, match=r"manifest\.json: missing"):
        write_or_check_manifest(tmp_path, {"python": "3"}, False)


@pytest.mark.parametrize("text", ['{"b": 1}', "[]"])
def test_a_record_of_the_wrong_shape_is_damaged(tmp_path, text):
    for generation in range(2):
        store.write_json(tmp_path / f"gen_{generation:04d}/record.json", {"parents": {}})
    (tmp_path / "gen_0001/record.json").write_text(text)
    with pytest.raises(RunError, match=r"gen_0001/record\.json: damaged"):
        records(tmp_path, 2)


def test_a_disk_without_room_is_named_before_anything_is_written(tmp_path):
    store.check_space(tmp_path / "checkpoint", 1)
    with pytest.raises(
        RunError, match=r"checkpoint: not saved: \d+ bytes are needed, the disk has \d+ left"
    ):
        store.check_space(tmp_path / "checkpoint", 2**62)
