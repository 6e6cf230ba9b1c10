"""Mutates files that strangers write, a hundred thousand times each, and reads them.

    python -m benchmarks.fuzz [--count=100000] [--parsers=csv,png,...] [--seed=0] > FILE

Each parser of the package gets sound files with random damage: flipped bits, pieces that are cut
out, doubled, overwritten or exchanged, cut ends, and odd words in text. What must hold of each: the
file is read, or refused in one line as a user's mistake; within some seconds and some hundred
megabytes; and where the format has checksums, flipped bits are never read as something else. The
output is a JSON line for each input that breaks this, with the damaged file as base64, and one with
the counts for each parser. The exit code is 1 where an input broke it.
"""

import argparse
import base64
import collections
import csv
import gzip
import hashlib
import io
import json
import os
import pickle
import random
import resource
import signal
import struct
import sys
import tarfile
import tempfile
import traceback
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from selfloop_jax import config as configs
from selfloop_jax.config import command_line
from selfloop_jax.data import decode
from selfloop_jax.data.sources import folder_tables, idx, pickles, shards
from selfloop_jax.errors import RunError, UsageError
from selfloop_jax.measure import read_features, read_table
from selfloop_jax.models import torch_file
from selfloop_jax.runtime import store

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "tests" / "reference"  # with files of torch.save
SHARED_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # no disk for so many files
SECONDS = 10  # for one input
MEMORY = 2**29  # bytes that a batch of inputs may take more than the one before
BATCH = 500  # inputs of a process
# What may be raised: all of it becomes one line.
REFUSED = (UsageError, RunError, decode.BadImage)
FINE = {"reads", "reads the same", "refused"}
WORDS = [
    *(b"", b"nan", b"inf", b"-1", b"1e999", b"0x10", b"999999999999999999999", b"\x00", b"\xff"),
    *(b'"', b"''", b",", b"\n", b"\r", b"\t", b"{", b"[", b"}" * 50, b"[" * 3000, b"../", b"/"),
    *("\u202e".encode(), "\u00e9".encode(), b"null", b"true", b"=", b"--", b":", b"(", b"1_0"),
]


@dataclass(frozen=True)
class Parser:
    """What reads a file, sound files, and how they may be damaged.

    checked: whether every bit of the file is under a checksum, so that no flip may go unseen.
    """

    read: Callable[[Path], Any]
    seeds: list[bytes]
    suffix: str = ""
    checked: bool = False
    known: set[str] = field(default_factory=set)  # digests of what the sound files give


def digest(value: Any) -> str:
    """sha256 of what a parser gives."""
    if isinstance(value, dict) and all(isinstance(one, np.ndarray) for one in value.values()):
        return store.digest_arrays({str(name): one for name, one in value.items()})
    if isinstance(value, np.ndarray):
        return store.digest_arrays({"": value})
    return hashlib.sha256(repr(value).encode(errors="replace")).hexdigest()


# ------------------------------------------------------------------------------------------------
# Sound files.
# ------------------------------------------------------------------------------------------------


def _array(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _image(kind: str, mode: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(_array(1, 12, 10, 3)).convert(mode)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _table(rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _json_lines(rows: Sequence[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for i in range(3):
            for ending, data in (
                ("png", _image("PNG", "RGB")),
                ("json", json.dumps({"label": f"c{i % 2}", "group": "a"}).encode()),
            ):
                member = tarfile.TarInfo(f"{i:04d}.{ending}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _parquet() -> bytes:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table(
        {
            "image": [{"bytes": _image("PNG", "RGB"), "path": f"{i}.png"} for i in range(4)],
            "label": [0, 1, 0, 1],
            "group": ["a", "b", "b", "a"],
        }
    )
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, write_page_checksum=True)
    return buffer.getvalue()


def _safetensors() -> bytes:
    from safetensors.numpy import save

    return save({"conv.weight": np.arange(12, dtype=np.float32).reshape(3, 4)})


# ------------------------------------------------------------------------------------------------
# Parsers.
# ------------------------------------------------------------------------------------------------


def _square(path: Path) -> np.ndarray:
    return decode.square(path.read_bytes(), 8)


def _rows(path: Path) -> Any:
    return folder_tables.read(path, folder_tables.Columns("label", "group"))


def _predictions(path: Path) -> Any:
    table = read_table.read_table(path)
    return [table.classes, table.groups, table.test_set.label.tolist()]


def _tar_read(path: Path) -> Any:
    section = configs.typed(configs.default()).data
    rows, unread = shards._tar_rows(path, section)
    images = [hashlib.sha256(image).hexdigest() for image in shards._tar_images(path, section)]
    return [repr(row) for row in rows], sorted(unread), images


def _parquet_read(path: Path) -> Any:
    section = configs.typed(configs.default()).data
    rows, unread = shards._parquet_rows(path, section)
    return [repr(row) for row in rows], sorted(unread), list(shards._parquet_images(path, section))


def _features(path: Path) -> Any:
    found = read_features.read_features([path])
    if found is None:  # the program would look for images, and say what is wrong
        raise UsageError("no features")
    return found


def _weights(path: Path) -> Any:
    return torch_file.read(str(path), "classifier.init_from").tensors


def _override(path: Path) -> Any:
    """A command line whose last word is in the file."""
    text = path.read_bytes().decode(errors="surrogateescape").replace("\x00", "")
    config = command_line.parse_config(
        ["main", f"--config={ROOT / 'configs/quickstart.py'}", f"--config.{text}"]
    )
    return config.to_dict()


def parsers() -> dict[str, Parser]:
    """All parsers by name."""
    rows = [["file_name", "label", "group"], ["a.png", "cat", "0"], ["b.png", "d\u00f6g", ""]]
    objects = [{"file_name": "a.png", "label": "cat", "group": 0}, {"file_name": "b.png"}]
    predictions = [["label", "pred", "group"], [0, 1, 0], [1, 1, 1], [1, 0, 0]]
    arrays = {name: np.array([0, 1, 1, 0]) for name in ("label", "pred", "group")}
    features = _npz(features=np.ones((4, 3), np.float32))
    recorded = _npz(pixels=_array(2, 2, 4, 4, 3), label=np.arange(2))
    recorded_digest = hashlib.sha256(recorded).hexdigest()
    images, labels = _array(3, 5, 6, 6), _array(4, 5)
    ranks = {"n01": [3, 1, 2], "n02": np.argsort([3, 1, 2]), np.int64(3): "text"}
    overrides = [
        *(b"seed=3", b"loop.generations=2", b"data.bias.per_class=(.1,.2)", b"sample.guidance=1.5"),
        *(b"diffusion.unet.multipliers=(1,2)", b"data.folder.dir=x", b"report.enabled=False"),
    ]
    png = [
        *(_image("PNG", mode) for mode in ("RGB", "L", "P", "1", "RGBA", "LA")),
        _image("PNG", "RGB", transparency=(1, 2, 3)),
        _image("PNG", "P", transparency=1),
    ]
    return {
        "csv": Parser(_rows, [_table(rows)], ".csv"),
        "jsonl": Parser(_rows, [_json_lines(objects)], ".jsonl"),
        "png": Parser(_square, png, checked=True),
        "jpeg": Parser(_square, [_image("JPEG", mode) for mode in ("RGB", "L", "CMYK")]),
        "webp": Parser(_square, [_image("WEBP", "RGB"), _image("WEBP", "RGB", lossless=True)]),
        "predictions_csv": Parser(_predictions, [_table(predictions)], ".csv"),
        "predictions_npz": Parser(_predictions, [_npz(**arrays)], ".npz", True),
        "features_npz": Parser(_features, [features], ".npz", True),
        "recorded_npz": Parser(
            lambda path: store.read_npz(path, recorded_digest), [recorded], ".npz", True
        ),
        "json": Parser(store.read_json, [json.dumps({"a": [1, {"b": None}]}).encode()], ".json"),
        "pickle": Parser(
            pickles.load_plain, [pickle.dumps(ranks, protocol) for protocol in range(6)], ".pkl"
        ),
        "idx": Parser(lambda path: idx._read(path, {}), [_idx(images), _idx(labels)]),
        "idx_gz": Parser(
            lambda path: idx._read(path, {}), [gzip.compress(_idx(images), mtime=0)], checked=True
        ),
        "tar": Parser(_tar_read, [_tar()], ".tar"),
        "parquet": Parser(_parquet_read, [_parquet()], ".parquet"),
        "safetensors": Parser(_weights, [_safetensors()], ".safetensors"),
        "torch": Parser(_weights, [(REFERENCE / "tiny.pth").read_bytes()], ".pth", True),
        "torch_legacy": Parser(_weights, [(REFERENCE / "tiny_old.pth").read_bytes()], ".pth"),
        "overrides": Parser(_override, overrides),
    }


# ------------------------------------------------------------------------------------------------
# Damage.
# ------------------------------------------------------------------------------------------------


def flip(data: bytearray, rng: random.Random) -> None:
    """Flips one to eight bits."""
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def restructure(data: bytearray, rng: random.Random, other: bytes) -> None:
    """Cuts out, doubles, overwrites, exchanges or inserts a piece, or cuts off the end."""
    first, last = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    last = min(last, first + rng.choice((1, 2, 4, 16, 1000)))
    kind = rng.randrange(7)
    if kind == 0:
        del data[first:last]
    elif kind == 1:
        data[first:first] = data[first:last]
    elif kind == 2:
        data[first:last] = rng.randbytes(last - first)
    elif kind == 3:
        data[first:last] = rng.choice((b"\x00", b"\xff", b"\x7f", b"\x80")) * (last - first)
    elif kind == 4:
        data[first:last] = rng.choice(WORDS)
    elif kind == 5:
        start = rng.randrange(len(other))
        data[first:last] = other[start : start + last - first]
    else:
        del data[first:]


def mutated(parser: Parser, rng: random.Random) -> tuple[bytes, bool]:
    """A damaged file, and whether all of its damage is flipped bits."""
    data = bytearray(rng.choice(parser.seeds))
    if rng.random() < 0.4:
        flip(data, rng)
        return bytes(data), True
    for _ in range(rng.choice((1, 1, 2, 4))):
        if data:
            restructure(data, rng, rng.choice(parser.seeds))
    return bytes(data), False


# ------------------------------------------------------------------------------------------------
# Reading.
# ------------------------------------------------------------------------------------------------


class Hang(BaseException):
    """Raised in a parser that takes too long; no parser catches it."""


def _hang(_number: int, _frame: object) -> NoReturn:
    raise Hang


def outcome(parser: Parser, path: Path, flipped: bool) -> tuple[str, str]:
    """How the parser takes the file: `reads`, `refused`, or what is wrong with how it does."""
    signal.alarm(SECONDS)
    try:
        found = digest(parser.read(path))
    except Hang:
        return "hangs", traceback.format_exc()[-1500:]
    except REFUSED as error:
        # The surrogates of odd bytes cannot be printed; Python's own stream writes them escaped.
        return ("refused", "") if str(error).strip() else ("says nothing", repr(error))
    except MemoryError:
        return "takes too much memory", traceback.format_exc()[-1500:]
    except BaseException:
        return "crashes", traceback.format_exc()[-1500:]
    finally:
        signal.alarm(0)
    if flipped and parser.checked and found not in parser.known:
        return "reads damage", ""
    return ("reads the same", "") if found in parser.known else ("reads", "")


def batch(parser: Parser, name: str, seed: int, first: int, count: int, pipe: int) -> None:
    """Reads some damaged files in this process; writes a line for each, and its number first."""
    signal.signal(signal.SIGALRM, _hang)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as folder:
        path = Path(folder) / f"file{parser.suffix}"
        for number in range(first, first + count):
            data, flipped = mutated(parser, random.Random(f"{seed} {name} {number}"))
            path.write_bytes(data)
            os.write(pipe, f"{number}\n".encode())
            how, why = outcome(parser, path, flipped)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            if (peak - before) * 1024 > MEMORY:
                how, why, before = "takes too much memory", f"{peak - before} KiB", peak
            os.write(pipe, (json.dumps([how, why]) + "\n").encode())


def fuzz(name: str, parser: Parser, count: int, seed: int) -> collections.Counter[str]:
    """Reads `count` damaged files; prints a line for each that is not taken as it should be."""
    counts: collections.Counter[str] = collections.Counter()
    number = 0
    while number < count:
        last = min(number + BATCH, count)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            code = 1
            try:
                batch(parser, name, seed, number, last - number, write)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(write)
        with os.fdopen(read) as lines:
            for line in lines:
                at = int(line)
                answer = lines.readline()
                if not answer:
                    break
                how, why = json.loads(answer)
                number = at + 1
                counts[how] += 1
                if how not in FINE:
                    _print(
                        name, at, how, why, mutated(parser, random.Random(f"{seed} {name} {at}"))[0]
                    )
        status = os.waitpid(pid, 0)[1]
        if number < last:
            # The process has ended on this very input.
            data = mutated(parser, random.Random(f"{seed} {name} {number}"))[0]
            _print(name, number, "ends the process", f"status {status}", data)
            counts["ends the process"] += 1
            number += 1
    return counts


def _print(name: str, number: int, how: str, why: str, data: bytes) -> None:
    line = {"parser": name, "number": number, "outcome": how, "why": why}
    coded = base64.b64encode(zlib.compress(data)).decode()
    print(json.dumps({**line, "zlib_base64": coded}), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the lines; 1 where an input was not taken as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000, help="damaged files for each parser")
    parser.add_argument("--parsers", help="names, with commas between; default: all")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    every = parsers()
    wrong = False
    with tempfile.TemporaryDirectory() as folder:
        for name in args.parsers.split(",") if args.parsers else every:
            one = every[name]
            for i, seed in enumerate(one.seeds):
                path = Path(folder) / f"{name}{i}{one.suffix}"
                path.write_bytes(seed)
                one.known.add(digest(one.read(path)))
            counts = fuzz(name, one, args.count, args.seed)
            print(json.dumps({"parser": name, "counts": dict(sorted(counts.items()))}), flush=True)
            wrong |= bool(counts.keys() - FINE)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
