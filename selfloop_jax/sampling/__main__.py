"""`python -m selfloop_jax.sampling WORKDIR --out=DIR`: generates images from a run's checkpoint.

Writes DIR/images/*.png, DIR/grid.png (one row per class) and DIR/samples.npz with pixels
uint8[N,H,W,3], id, label and group [N]. The generator is that of --generation, by default the last
one with a checkpoint. Without --seed the noise is that of the run: image i of the run's own
samples.npz comes out again if its label is requested for it and nothing else is changed.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfloop_jax import config as configs
from selfloop_jax.config import Config
from selfloop_jax.config.stored import read_config
from selfloop_jax.errors import UsageError
from selfloop_jax.runtime import store
from selfloop_jax.runtime.cli import Parser, make_folder, one_line_errors
from selfloop_jax.runtime.workdir import generation_dir

USAGE = "WORKDIR --out=DIR [--generation=3] [--count=64] [--label=3] [--steps=18] [--seed=1]"


@one_line_errors
def program(argv: Sequence[str] | None = None) -> int:
    """Generates the images; 0, or 2 for a mistake in the arguments, 1 for a damaged run."""
    parser = Parser("sampling", USAGE, __doc__)
    parser.add_argument("workdir", type=Path, help="folder of a run")
    parser.add_argument("--out", type=Path, required=True, help="a new or empty folder")
    parser.add_argument("--generation", type=int, help="default: the last one with a checkpoint")
    parser.add_argument("--count", type=int, default=64, help="images; default 64")
    parser.add_argument("--label", help="class name or number; default: the classes in turn")
    parser.add_argument("--group", help="group name or number, if the generator takes groups")
    parser.add_argument("--steps", type=int, help="solver steps; default: those of the run")
    parser.add_argument("--guidance", type=float, help="w of (1 + w) cond - w uncond")
    parser.add_argument("--seed", type=int, help="of the noise; default: the run's own noise")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    found = sample(args)
    if args.json:
        print(json.dumps(found))
    else:
        print(f"{found['count']} images of generation {found['generation']} in {args.out}")
    return 0


def sample(args: argparse.Namespace) -> dict[str, Any]:
    """Generates what the arguments ask for and writes it; returns what --json prints."""
    config = _config(args)
    generation = _generation(args)
    record = _first_record(args.workdir)
    label = _choice(args.label, "--label", record["data"]["classes"])
    group = _choice(args.group, "--group", record["data"]["groups"])
    if args.count < 1:
        raise UsageError(f"--count={args.count}: must be > 0")
    if args.group is not None and config.diffusion.condition_on != "label_group":
        raise UsageError("--group: the generator of this run takes labels alone")
    # Before generating, which may take hours.
    make_folder("--out", args.out)
    ids = np.arange(args.count)
    classes = len(record["data"]["classes"])
    # The classes in turn, so that the first few images have all of them.
    labels = np.full(args.count, label) if label is not None else ids % classes
    groups = np.full(args.count, -1 if group is None else group)
    pixels, digest = _generate(
        config, args.workdir, generation, record, labels.astype(np.int32), groups.astype(np.int32)
    )
    _write(args.out, pixels, labels.astype(np.int32), groups.astype(np.int32))
    return {
        "out": str(args.out),
        "count": args.count,
        "generation": generation,
        "checkpoint": digest,
        "pixels": store.digest_arrays({"pixels": pixels}),
    }


def _config(args: argparse.Namespace) -> Config:
    """The run's config with the arguments in it, checked."""
    config = read_config(args.workdir)
    sample_section = config.sample
    if args.steps is not None:
        sample_section = dataclasses.replace(sample_section, steps=args.steps)
    if args.guidance is not None:
        sample_section = dataclasses.replace(sample_section, guidance=args.guidance)
    seed = config.seed if args.seed is None else args.seed
    config = dataclasses.replace(config, sample=sample_section, seed=seed)
    # The arguments obey the rules of the config's fields.
    configs.check(config)
    return config


def _checkpoint_folders(workdir: Path) -> dict[int, Path]:
    """The folders of generators that have a finished checkpoint, by generation."""
    found = {}
    for folder in sorted(workdir.glob("gen_*/diffusion")):
        # A finished checkpoint is named by its step alone.
        if any(path.name.isdigit() for path in folder.iterdir() if path.is_dir()):
            found[int(folder.parent.name.removeprefix("gen_"))] = folder
    return found


def _generation(args: argparse.Namespace) -> int:
    """The generation that is asked for; UsageError where it has no generator."""
    available = _checkpoint_folders(args.workdir)
    if not available:
        raise UsageError(f"{args.workdir}: no generator with a finished checkpoint in it")
    if args.generation is None:
        return max(available)
    if args.generation not in available:
        allowed = " | ".join(map(str, available))
        raise UsageError(f"--generation={args.generation}: must be one of {allowed}")
    return args.generation


def _first_record(workdir: Path) -> store.Json:
    """The record of generation 0, which names classes and groups."""
    path = generation_dir(workdir, 0) / "record.json"
    if not path.exists():
        raise UsageError(f"{path}: missing; needed is a run with a finished generation")
    return store.read_json(path)


def _choice(value: str | None, flag: str, names: Sequence[str]) -> int | None:
    """The number of a class or group given by name or by number; None where none is given."""
    if value is None:
        return None
    if value in names:
        return list(names).index(value)
    if value.isdecimal() and int(value) < len(names):
        return int(value)
    raise UsageError(f"{flag}={value}: must be one of {' | '.join(map(str, names))}")


def _generate(
    config: Config,
    workdir: Path,
    generation: int,
    record: store.Json,
    label: np.ndarray,
    group: np.ndarray,
) -> tuple[np.ndarray, str]:
    """The images uint8[N,H,W,3], and the digest of the checkpoint that they come from."""
    from selfloop_jax.runtime import environment, keys, parallel

    # Before the first use of a backend.
    threads = config.parallel
    environment.configure(threads.nproc, threads.cpu_devices, threads.deterministic)
    from selfloop_jax.sampling.sampler import make_sampler
    from selfloop_jax.training import generator
    from selfloop_jax.training.checkpoints import Checkpoints
    from selfloop_jax.training.step import ema_variables

    data = record["data"]
    side = config.data.image_size
    # None: activations keep the dtype of their input.
    dtype = None if config.parallel.precision == "float32" else config.parallel.precision
    net, process = generator.build(
        config.diffusion, len(data["classes"]), len(data["groups"]), dtype
    )
    # The trainer gives the shapes that the checkpoint is restored into.
    trainer = generator.make_trainer(net, process, config.diffusion, side, 1)
    folder = _checkpoint_folders(workdir)[generation]
    checkpoints = Checkpoints(folder, config.checkpoint.interval_steps, config.checkpoint.keep)
    step = checkpoints.steps()[-1]
    state = checkpoints.load(step, trainer.abstract, _recorded_digest(workdir, generation))
    params = parallel.replicate(ema_variables(state)["params"])
    sampler = make_sampler(net, process, config.sample, side)
    # The key path of the run's own phase `sample`, so that its images come out again.
    key = parallel.replicate(keys.key((config.seed, "generation", generation, "sample", "noise")))
    count = len(label)
    devices = parallel.device_count()
    # A few images need not cost a whole batch.
    chunk = min(config.sample.batch_per_device, -(-count // devices)) * devices
    parts = []
    for first in range(0, count, chunk):
        ids = np.arange(first, first + chunk, dtype=np.uint32)
        # The surplus of the last chunk repeats the last image, and is cut off.
        rows = np.minimum(ids, count - 1)
        pixels = sampler(params, key, ids, label[rows], group[rows])
        parts.append(pixels[: count - first])
    return np.concatenate(parts), checkpoints.digest(step)


def _recorded_digest(workdir: Path, generation: int) -> str | None:
    """The digest that the record names; None while the generation is not committed."""
    path = generation_dir(workdir, generation) / "record.json"
    return store.read_json(path)["digests"].get("diffusion") if path.exists() else None


def _write(out: Path, pixels: np.ndarray, label: np.ndarray, group: np.ndarray) -> None:
    """Images, grid and arrays."""
    from PIL import Image

    images = out / "images"
    images.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(images / f"{i:06d}_label{label[i]}.png")
    Image.fromarray(grid(pixels, label)).save(out / "grid.png")
    ids = np.arange(len(pixels), dtype=np.uint32)
    store.write_npz(
        out / "samples.npz", {"pixels": pixels, "id": ids, "label": label, "group": group}
    )


def grid(pixels: np.ndarray, label: np.ndarray, columns: int = 16, gap: int = 2) -> np.ndarray:
    """uint8[H,W,3]: the images in rows by class, on white, enlarged to 32 pixels or more."""
    side = pixels.shape[1]
    # A whole factor, so that every pixel stays a square.
    scale = max(1, -(-32 // side))
    rows = []
    for c in np.unique(label):
        of_class = np.flatnonzero(label == c)
        rows += [of_class[i : i + columns] for i in range(0, len(of_class), columns)]
    cell = side * scale + gap
    widest = max(len(row) for row in rows)
    sheet = np.full((len(rows) * cell + gap, widest * cell + gap, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, index in enumerate(row):
            enlarged = pixels[index].repeat(scale, axis=0).repeat(scale, axis=1)
            top = gap + r * cell
            left = gap + c * cell
            sheet[top : top + side * scale, left : left + side * scale] = enlarged
    return sheet


if __name__ == "__main__":
    sys.exit(program())
