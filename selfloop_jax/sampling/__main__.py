"""`python -m selfloop_jax.sampling WORKDIR --out=DIR`: generates images from a run's checkpoint.

Writes DIR/images/*.png, DIR/grid.png (one row per class) and DIR/samples.npz with pixels
uint8[N,H,W,3], id, label and group [N]. The generator is that of --generation, by default the last
one whose training is complete.

Without --label the classes are requested in turn. A generator that takes groups gets those of each
class in turn unless --group names one; to any other, group -1 stands for none.

Without --seed the noise is that of the run: image i of the run's own samples.npz comes out again if
its label and group are requested for it and nothing else is changed. It has the same bits where a
device computes as many images at a time as in the run, sample.batch_per_device; a --count too small
for that is computed in a smaller batch, whose images are equal up to rounding.
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
from selfloop_jax.runtime.cli import (
    Parser,
    add_register,
    check_registered,
    make_folder,
    one_line_errors,
)
from selfloop_jax.runtime.workdir import generation_dir, generation_dirs
from selfloop_jax.sampling.requests import in_turn

USAGE = "WORKDIR --out=DIR [--generation=3] [--count=64] [--label=3] [--group=0] [--steps=15]"
TRAINED = "diffusion.json"  # of a generation: its generator is trained


@one_line_errors
def program(argv: Sequence[str] | None = None) -> int:
    """Generates the images; 0, or 2 for a mistake in the arguments, 1 for a damaged run."""
    parser = Parser("sampling", USAGE, __doc__)
    parser.add_argument("workdir", type=Path, help="folder of a run")
    parser.add_argument("--out", type=Path, required=True, help="a new or empty folder")
    parser.add_argument("--generation", type=int, help="default: the last trained one")
    parser.add_argument("--count", type=int, default=64, help="images; default 64")
    parser.add_argument("--label", help="class name or number; default: the classes in turn")
    parser.add_argument("--group", help="group name or number; default: those of a class in turn")
    parser.add_argument("--steps", type=int, help="solver steps; default: those of the run")
    parser.add_argument("--guidance", type=float, help="w of (1 + w) cond - w uncond")
    parser.add_argument("--seed", type=int, help="of the noise; default: the run's own noise")
    add_register(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    found = sample(args)
    if args.json:
        print(json.dumps(found))
    else:
        which = f"generation {found['generation']}, step {found['step']}"
        print(f"{found['count']} images of {which}, in {args.out}")
    return 0


def sample(args: argparse.Namespace) -> dict[str, Any]:
    """Generates what the arguments ask for and writes it; returns what --json prints."""
    config = _config(args)
    generation = _generation(args)
    data = _first_record(args.workdir)["data"]
    if args.count < 1:
        raise UsageError(f"--count={args.count}: must be > 0")
    label, group = _requested(args, config, data)
    _prepare(config, args.register)
    # Before generating, which may take hours.
    make_folder("--out", args.out)
    # What the phase has written at its end.
    trained = store.read_json(generation_dir(args.workdir, generation) / TRAINED)
    digest = trained["digests"]["diffusion"]
    pixels = _generate(config, args.workdir, generation, digest, data, label, group)
    _write(args.out, pixels, label, group)
    return {
        "out": str(args.out),
        "count": args.count,
        "generation": generation,
        "step": _steps(config, generation),
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


def _generation(args: argparse.Namespace) -> int:
    """The generation that is asked for; UsageError where its generator is not fully trained."""
    folders = generation_dirs(args.workdir)
    # A checkpoint alone may be one of a training under way.
    trained = [number for number in folders if (folders[number] / TRAINED).is_file()]
    if not trained:
        raise UsageError(f"{args.workdir}: no fully trained generator in it")
    if args.generation is None:
        return trained[-1]
    if args.generation not in trained:
        known = " | ".join(map(str, trained))
        under_way = args.generation in folders and (folders[args.generation] / "diffusion").is_dir()
        why = f"; {args.generation} is still in training" if under_way else ""
        raise UsageError(f"--generation={args.generation}: must be one of {known}{why}")
    return args.generation


def _steps(config: Config, generation: int) -> int:
    """The last training step of a generation's generator."""
    return configs.training_section(config.diffusion, generation).steps


def _first_record(workdir: Path) -> store.Json:
    """The record of generation 0, which names classes and groups."""
    path = generation_dir(workdir, 0) / "record.json"
    if not path.exists():
        raise UsageError(f"{path}: missing; WORKDIR must hold a run with a finished generation")
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


def _requested(
    args: argparse.Namespace, config: Config, data: store.Json
) -> tuple[np.ndarray, np.ndarray]:
    """Label and group int32[N] of each image; UsageError for an unknown name or subgroup."""
    classes = data["classes"]
    groups = data["groups"]
    label = _choice(args.label, "--label", classes)
    group = _choice(args.group, "--group", groups)
    takes_groups = config.diffusion.condition_on == "label_group"
    if group is not None and not takes_groups:
        raise UsageError("--group: must be left out; the generator of this run takes only labels")
    possible = np.ones((len(classes), len(groups)), bool)
    if data.get("nested"):
        possible = np.array([np.isin(range(len(groups)), own) for own in data["groups_of_class"]])
    of_class = np.arange(len(classes)) if label is None else np.array([label])
    if group is not None:
        # Nested groups: no image of another class has had this group in training.
        of_class = of_class[possible[of_class, group]]
        possible &= np.arange(len(groups)) == group
    if not len(of_class):
        raise UsageError(f"--group={args.group}: must be a group of --label={args.label}")
    # The classes in turn, so that the first few images have all of them.
    turn, of_image = in_turn(np.arange(args.count), possible[of_class])
    if not takes_groups:
        of_image = np.full_like(of_image, -1)
    return of_class[turn].astype(np.int32), of_image


def _prepare(config: Config, register: Path | None) -> None:
    """Fixes threads and devices before the first use of a backend; checks the solver's name."""
    from selfloop_jax.diffusion import solvers
    from selfloop_jax.runtime import environment

    environment.configure(**configs.environment(config))
    environment.start_backend()
    if register:
        configs.run_file("--register", register)
    check_registered(lambda: solvers.check(config))


def _generate(
    config: Config,
    workdir: Path,
    generation: int,
    digest: str,
    data: store.Json,
    label: np.ndarray,
    group: np.ndarray,
) -> np.ndarray:
    """The images uint8[N,H,W,3] of the generator whose checkpoint has this digest."""
    from selfloop_jax.diffusion import processes
    from selfloop_jax.runtime import keys, parallel
    from selfloop_jax.sampling.sampler import make_sampler
    from selfloop_jax.training import generator
    from selfloop_jax.training.checkpoints import load_weights

    side = config.data.image_size
    dtype = configs.activation_dtype(config)
    sizes = (len(data["classes"]), len(data["groups"]))
    diffusion = processes.for_data(config.diffusion, data["pixel_rms"])
    net, process = generator.build(diffusion, *sizes, dtype)
    # The trainer gives the shapes that the checkpoint is restored into.
    trainer = generator.make_trainer(net, process, diffusion, side, 1)
    folder = generation_dir(workdir, generation) / "diffusion"
    weights = load_weights(config, folder, _steps(config, generation), trainer, digest)
    params = weights["params"]
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
    return np.concatenate(parts)


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
