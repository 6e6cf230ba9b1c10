"""`python -m selfloop_jax.export WORKDIR --out=DIR`: a run's generated images as an image folder.

The layout is Hugging Face's imagefolder: DIR/train/*.png with DIR/train/metadata.csv (file_name,
label, group), and a part of each class in DIR/test/. `configs/folder.py` reads it back:

    python -m selfloop_jax.main --config=configs/folder.py --config.data.folder.dir=DIR
"""

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfloop_jax.errors import UsageError
from selfloop_jax.runtime import rng, store
from selfloop_jax.runtime.cli import Parser, make_folder, one_line_errors
from selfloop_jax.runtime.workdir import generation_dir, last_committed

USAGE = "WORKDIR --out=DIR [--generation=3] [--test_share=0.2]"


@one_line_errors
def program(argv: Sequence[str] | None = None) -> int:
    """Writes the folder; 0, or 2 for a mistake in the arguments, 1 for a damaged run."""
    parser = Parser("export", USAGE, __doc__)
    parser.add_argument("workdir", type=Path, help="folder of a run")
    parser.add_argument("--out", type=Path, required=True, help="a new or empty folder")
    parser.add_argument("--generation", type=int, help="default: the last committed one")
    parser.add_argument(
        "--test_share", type=float, default=0.2, help="share of each class in test/; 0: no test/"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    found = export(args)
    if args.json:
        print(json.dumps(found))
    else:
        sizes = ", ".join(f"{n} in {split}/" for split, n in found["images"].items())
        print(f"generation {found['generation']}: {sizes} of {args.out}")
    return 0


def export(args: argparse.Namespace) -> dict[str, Any]:
    """Writes the folder that the arguments ask for; returns what --json prints."""
    if not 0 <= args.test_share < 1:
        raise UsageError(f"--test_share={args.test_share}: must be in [0, 1)")
    last = last_committed(args.workdir)
    generation = last if args.generation is None else args.generation
    if not 0 <= generation <= last:
        raise UsageError(f"--generation={generation}: must be between 0 and {last}")
    record = store.read_json(generation_dir(args.workdir, generation) / "record.json")
    digest = record["digests"].get("samples.npz")
    if digest is None:
        raise UsageError(f"{args.workdir}: generation {generation} generated no images")
    arrays = store.read_npz(generation_dir(args.workdir, generation) / "samples.npz", digest)
    make_folder("--out", args.out)
    data = record["data"]
    # A generator that is conditioned on labels only makes images of unknown groups.
    groups = data["groups"] if (arrays["group"] >= 0).any() else []
    test = _test_rows(arrays["label"], args.test_share)
    sizes = {}
    for split, rows in (("train", ~test), ("test", test)):
        if rows.any():
            part = {name: array[rows] for name, array in arrays.items()}
            _write_split(args.out / split, part, data["classes"], groups)
            sizes[split] = int(rows.sum())
    # metadata.csv has numbers of groups; their names are here.
    if len(groups) > 1:
        lines = "".join(f"{name}\n" for name in groups)
        (args.out / "groups.txt").write_text(lines, encoding="utf-8")
    return {"out": str(args.out), "generation": generation, "images": sizes}


def _test_rows(label: np.ndarray, share: float) -> np.ndarray:
    """bool[N]: a keyed share of each class, the same in every export; at least one if any."""
    test = np.zeros(len(label), bool)
    # A fixed key path: the split must not depend on the seed of the run.
    order = rng.permutation((0, "export", "test"), len(label))
    for c in np.unique(label):
        of_class = order[label[order] == c]
        count = round(share * len(of_class))
        # A class of two images or more has one in test/, however small the share.
        test[of_class[: max(count, 1 if share and len(of_class) > 1 else 0)]] = True
    return test


def _write_split(
    folder: Path, arrays: dict[str, np.ndarray], classes: Sequence[str], groups: Sequence[str]
) -> None:
    """The PNG files of a split and its metadata.csv; lossless, so that pixels come back."""
    from PIL import Image

    folder.mkdir(parents=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    grouped = len(groups) > 1
    writer.writerow(["file_name", "label", *(["group"] if grouped else [])])
    for i, pixels in enumerate(arrays["pixels"]):
        name = f"{arrays['id'][i]:06d}.png"
        Image.fromarray(pixels).save(folder / name)
        group = int(arrays["group"][i])
        row = [name, classes[arrays["label"][i]]]
        if grouped:
            row.append("" if group < 0 else str(group))  # unknown stays empty
        writer.writerow(row)
    (folder / "metadata.csv").write_text(text.getvalue(), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(program())
