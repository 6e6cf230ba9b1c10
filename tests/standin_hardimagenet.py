"""A STAND-IN for Hard ImageNet in the official layout, for tests and for trying a config:

    python -m tests.standin_hardimagenet FOLDER

Its pixels are crops of the two photographs that scikit-learn ships. A class has a place in one of
them for its object and one in the other for its background, so both can be learnt; the later an
image stands in the ranking, the more often is its background that of another class. Nothing
measured on it says anything about Hard ImageNet.
"""

import pickle
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from selfloop_jax.data.sources.hardimagenet import CLASSES
from selfloop_jax.runtime import rng

MARK = "crops of two photographs, not ImageNet"


EXTRA_CLASS = "n01440764"  # tench: in ImageNet, not in Hard ImageNet


LAYOUTS = {"own": "ILSVRC2012", "download": "HardImageNet_Images"}


def make(
    folder: Path, layout: str = "own", per_class: int = 60, val_per_class: int = 10
) -> dict[str, str]:
    """Writes images, masks and pickles; returns the three fields of section `data` that name them.

    Of each class one ranked training image has no mask. Layout "own" is a whole ImageNet, with more
    images and classes than Hard ImageNet; "download" has those of Hard ImageNet and the ranked one
    alone.
    """
    images, masks = folder / LAYOUTS[layout], folder / "hardImageNet"
    photos = load_sample_images().images
    ranking = {}
    for label, (index, wnid, _) in enumerate(CLASSES):
        train = [f"{wnid}_{n * 7 + 1}.JPEG" for n in range(per_class)]
        val = [
            f"ILSVRC2012_val_{label * val_per_class + n + 1:08d}.JPEG" for n in range(val_per_class)
        ]
        for split, files in (("train", train), ("val", val)):
            for n, file in enumerate(files):
                _write(
                    images / split / wnid / file,
                    masks / split / f"{wnid}_{file}",
                    photos,
                    label,
                    n / len(files),
                )
        unmasked = f"{wnid}_9999.JPEG"
        _write(images / "train" / wnid / unmasked, None, photos, label, 0.5)
        ranking[index] = [f"train/{wnid}/{file}" for file in [*train[:3], unmasked, *train[3:]]]
        if layout == "own":
            _write(images / "train" / wnid / f"{wnid}_10000.JPEG", None, photos, label, 0.5)
    if layout == "own":
        for split in ("train", "val"):
            _write(images / split / EXTRA_CLASS / f"{EXTRA_CLASS}_1.JPEG", None, photos, 0, 0.5)
    _write_meta(masks / "meta", ranking)
    (images / "STAND-IN").write_text(f"{MARK}\nSee tests/standin_hardimagenet.py.\n")
    return {"images_dir": str(images), "masks_dir": str(masks), "meta_dir": str(masks / "meta")}


def _write_meta(folder: Path, ranking: dict[int, list[str]]) -> None:
    """Writes the four pickles with the types that the public code expects."""
    names = [f"class {i}" for i in range(1000)]
    wnids = {i: f"n{i:08d}" for i in range(1000)}
    for index, wnid, name in CLASSES:
        names[index], wnids[index] = name, wnid
    meta = {
        "idx_to_wnid": wnids,
        "hard_imagenet_idx": [index for index, _, _ in CLASSES],
        "imagenet_classnames": names,
        "paths_by_rank": ranking,
    }
    folder.mkdir(parents=True)
    for name, value in meta.items():
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(value))


def _write(path: Path, mask_path: Path | None, photos: list, label: int, rank: float) -> None:
    """Writes one image and its mask from the image's name, class and rank in [0, 1)."""
    u = rng.uniforms((0, "stand-in", path.name), np.arange(14))
    width, height = (80 + 120 * u[:2]).astype(int)
    behind = label if u[2] >= rank * 0.9 else int(u[3] * len(CLASSES))
    canvas = _crop(photos[0], behind, width, height, u[4:6])
    patch = np.roll(
        _crop(photos[1], label, width, height, u[6:8]), label, axis=-1
    )  # more kinds of colour
    inside = _ellipse(width, height, u[8:12])
    pixels = np.where(inside[..., None], patch, canvas)
    image = Image.fromarray(pixels).convert({0: "L", 1: "CMYK"}.get(int(u[12] * 20), "RGB"))
    _save(image, path)
    if mask_path is not None:
        mask = Image.fromarray(np.where(inside, 255, 0).astype(np.uint8))
        _save(mask.convert("RGB") if u[13] < 0.5 else mask, mask_path)


def _crop(photo: np.ndarray, place: int, width: int, height: int, jitter: np.ndarray) -> np.ndarray:
    """Returns uint8[height,width,3]: one of 15 places in a photograph, shifted a little."""
    row, column = divmod(place, 5)
    top, left = row * 130 + int(jitter[0] * 20), column * 120 + int(jitter[1] * 20)
    cut = Image.fromarray(photo[top : top + 110, left : left + 110])
    return np.asarray(cut.resize((width, height), Image.Resampling.BILINEAR))


def _ellipse(width: int, height: int, u: np.ndarray) -> np.ndarray:
    """Returns bool[height,width]: an ellipse of 20 to 55 % of the image near its middle."""
    y, x = np.ogrid[:height, :width]
    middle = (0.4 + 0.2 * u[:2]) * (width, height)
    radii = (0.1 + 0.175 * u[2:]) * (width, height)
    return ((x - middle[0]) / radii[0]) ** 2 + ((y - middle[1]) / radii[1]) ** 2 <= 1


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "JPEG", quality=90)


if __name__ == "__main__":
    for name, value in make(Path(sys.argv[1])).items():
        print(f"--config.data.{name}={value}")
