"""Writes STAND-IN archives of MNIST and CIFAR-100, their pixels cut from two photographs.

The files have the official format to the byte. A label decides the photograph and the place of an
image, up to shift, mirror and brightness, so that a classifier can learn it. Tests and
demonstrations use them; results never do.
"""

import functools
import gzip
import hashlib
import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import sklearn.datasets

from selfloop_jax.runtime import rng

# CIFAR-100's superclasses in their order, each with its classes, whose own order is that of the
# alphabet.
CLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}


FINE = sorted(" ".join(CLASSES.values()).split())


COARSE_OF_FINE = np.array(
    [[name in fine.split() for fine in CLASSES.values()].index(True) for name in FINE]
)


SHIFT = 16  # pixels that an image of a label may lie further down, and to the right


CHUNK = 5000


def mnist_archives(folder, train=60_000, test=10_000):
    """Writes the four IDX files of `train` and `test` images into `folder`."""
    for prefix, count in {"train": train, "t10k": test}.items():
        label = labels(prefix, count, 10)
        gray = crops(
            prefix, label, 10, 28, [photo.mean(axis=2, keepdims=True) for photo in photos()]
        )
        gray = gray[:, 0].astype(np.float32)
        # MNIST's background is black, so pixels below the image's mean become black.
        pixels = np.clip(2 * (gray - gray.mean(axis=(1, 2), keepdims=True)), 0, 255).astype(
            np.uint8
        )
        for name, rank, array in (("images-idx3", 3, pixels), ("labels-idx1", 1, label)):
            header = np.array([0x800 + rank, *array.shape], ">u4").tobytes()
            write_gzip(Path(folder, f"{prefix}-{name}-ubyte.gz"), header + array.tobytes())


def cifar100_archive(folder, train=50_000, test=10_000):
    """Writes the tar.gz of the binary version, of `train` and `test` images, into `folder`."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        directory = tarfile.TarInfo("cifar-100-binary/")
        directory.type, directory.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(directory)
        for name, data in (
            ("coarse_label_names.txt", "".join(f"{name}\n" for name in CLASSES).encode()),
            ("fine_label_names.txt", "".join(f"{name}\n" for name in FINE).encode()),
            ("test.bin", cifar100_records("test", test)),
            ("train.bin", cifar100_records("train", train)),
        ):
            member = tarfile.TarInfo(f"cifar-100-binary/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    write_gzip(Path(folder, "cifar-100-binary.tar.gz"), tar.getvalue())


def cifar100_records(split, count):
    """Returns records of a coarse byte, a fine byte and 3,072 bytes in planes."""
    fine = labels(split, count, 100)
    planes = crops(split, fine, 100, 32, photos()).reshape(count, -1)
    coarse = COARSE_OF_FINE[fine].astype(np.uint8)
    return np.concatenate([coarse[:, None], fine[:, None], planes], axis=1).tobytes()


def checksums(folder, url="https://stand-in.invalid"):
    """Writes the checksum table of the archives in `folder`, as if served from `url`."""
    path = Path(folder, "checksums.tsv")
    rows = []
    for archive in sorted(Path(folder).glob("*.gz")):
        data = archive.read_bytes()
        rows.append(
            f"{url}/{archive.name}\t{len(data)}\t{hashlib.sha256(data).hexdigest()}\t{archive.name}\n"
        )
    path.write_text("".join(rows))
    return path


def labels(split, count, classes):
    """Returns shuffled labels uint8[count], as even over the classes as possible."""
    return (rng.permutation((0, "stand-in", split, "label"), count) % classes).astype(np.uint8)


def crops(split, label, classes, side, pictures):
    """Returns planes uint8[N,C,side,side], cut from the pictures [H,W,C] by label."""
    shape = (pictures[0].shape[2], side, side)
    pixels = np.empty((len(label), *shape), np.uint8)
    ids = np.arange(len(label))
    u = {
        what: rng.uniforms((0, "stand-in", split, what), ids)
        for what in ("down", "right", "mirror", "light")
    }
    light = (160 + 96 * u["light"]).astype(np.uint16)[:, None, None, None]
    windows = [
        np.lib.stride_tricks.sliding_window_view(photo, (side, side), axis=(0, 1))
        for photo in pictures
    ]
    top, left, photo = places(classes, side)
    for start in range(0, len(label), CHUNK):
        part = ids[start : start + CHUNK]
        row = top[label[part]] + (SHIFT * u["down"][part]).astype(int)
        column = left[label[part]] + (SHIFT * u["right"][part]).astype(int)
        which = photo[label[part]]
        block = np.empty((len(part), *shape), np.uint16)
        for i, window in enumerate(windows):
            block[which == i] = window[row[which == i], column[which == i]]
        mirrored = u["mirror"][part] < 0.5
        block[mirrored] = block[mirrored, ..., ::-1]
        pixels[part] = block * light[part] >> 8
    return pixels


def places(classes, side):
    """Returns row, column and photograph of each label's corner: places of most contrast."""
    size = side + SHIFT
    height, width = photos()[0].shape[:2]
    photo, row, column = np.indices((2, 5, 10)).reshape(3, -1)
    top, left = row * (height - size) // 4, column * (width - size) // 9
    contrast = [
        photos()[p][t : t + size, s : s + size].std()
        for p, t, s in zip(photo, top, left, strict=True)
    ]
    richest = np.argsort(contrast, kind="stable")[::-1][:classes]
    return top[richest], left[richest], photo[richest]


@functools.cache
def photos():
    """Returns scikit-learn's two photographs uint8[427,640,3], china.jpg and flower.jpg."""
    return [np.asarray(image) for image in sklearn.datasets.load_sample_images().images]


def write_gzip(path, data):
    """Writes gzip without name and date, so that the bytes are reproducible."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file, gzip.GzipFile("", "wb", 1, file, mtime=0) as packed:
        packed.write(data)


if __name__ == "__main__":  # python tests/standins.py FOLDER: both data sets at full size
    mnist_archives(sys.argv[1])
    cifar100_archive(sys.argv[1])
    print(checksums(sys.argv[1]))
