"""Sets of images from folders and .npz files, brought to one size."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from selfloop_jax.data import decode
from selfloop_jax.errors import RunError, UsageError
from selfloop_jax.runtime import store

SIDE_FILES = ("metadata.csv", "groups.txt")  # what an imagefolder has besides images


@dataclass(frozen=True)
class ImageSource:
    """Images on disk, not yet decoded: files or the pixels of an .npz, and their size.

    size: (width, height) of all of them, or None where they differ; `sizes` shows two of them.
    """

    path: Path
    files: list[Path]
    pixels: np.ndarray | None
    size: tuple[int, int] | None
    sizes: str

    def read(self, side: int) -> np.ndarray:
        """uint8[N,side,side,3]: the central square of each image, resized.

        UsageError where one cannot be decoded.
        """
        if self.pixels is not None:
            if self.size == (side, side):
                return self.pixels
            return np.stack([decode.square(image, side) for image in self.pixels])
        # `skip` collects the images that fail, so that the message can count them.
        decoded = decode.decode_all(self.files, side, None, "skip", str(self.path))
        if decoded.bad:
            i, reason = decoded.bad[0]
            raise UsageError(
                f"{self.path}: {len(decoded.bad)} of {len(self.files)} images cannot be read, "
                f"first {self.files[i]}: {reason}"
            )
        return decoded.pixels


def find_images(path: Path) -> ImageSource:
    """The images of a folder, with all folders in it, or of an .npz with `pixels`."""
    if path.is_dir():
        return _folder(path)
    if path.suffix.lower() != ".npz" or not path.is_file():
        raise UsageError(f"{path}: must be a folder of images or an .npz file with pixels")
    try:
        pixels = store.read_npz(path).get("pixels")
    except RunError as error:
        raise UsageError(str(error)) from error
    if pixels is None:
        raise UsageError(f"{path}: no array pixels in it")
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or not len(pixels):
        raise UsageError(
            f"{path}: pixels: {pixels.dtype}{list(pixels.shape)}; must be uint8[N,H,W,3]"
        )
    height, width = pixels.shape[1:3]
    return ImageSource(path, [], pixels, (width, height), _text((width, height)))


def common_side(sources: Sequence[ImageSource], wanted: int | None) -> int:
    """The side that all images are brought to: `wanted`, or the side that all of them have."""
    if wanted is not None:
        return wanted
    for source in sources:
        if source.size is None:
            raise UsageError(f"{source.path}: images of {source.sizes}: --image_size is needed")
        if source.size[0] != source.size[1]:
            raise UsageError(
                f"{source.path}: images of {source.sizes}: --image_size is needed, and takes "
                "their central squares"
            )
    first, *others = sources
    for other in others:
        if other.size != first.size:
            raise UsageError(
                f"{first.path} has images of {first.sizes}, {other.path} of {other.sizes}: "
                "--image_size is needed"
            )
    assert first.size is not None
    return first.size[0]


def _folder(path: Path) -> ImageSource:
    files = []
    for file in sorted(path.rglob("*")):
        # Hidden files are those that file managers leave.
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if hidden or (file.is_dir() and not file.is_symlink()) or file.name in SIDE_FILES:
            continue
        # Refused instead of left out, as a linked folder: the numbers would be of another set.
        if file.suffix.lower() not in decode.SUFFIXES:
            raise UsageError(
                f"{file}: must end in {' | '.join(decode.SUFFIXES)}, or be called "
                f"{' | '.join(SIDE_FILES)}"
            )
        files.append(file)
    if not files:
        raise UsageError(f"{path}: no PNG, JPEG or WebP image in it")
    # One file of every size is enough for the message.
    sizes = {_size(file): file for file in files}
    first = sorted(sizes)[:2]
    shown = " and ".join(f"{_text(size)} ({sizes[size].name})" for size in first)
    if len(sizes) == 1:
        return ImageSource(path, files, None, first[0], _text(first[0]))
    return ImageSource(path, files, None, None, shown)


def _size(file: Path) -> tuple[int, int]:
    """Width and height from the file's header; decoding finds out what else is wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file) as image:
                return image.size
    except Exception as error:  # Pillow raises a dozen kinds on damaged bytes.
        reason = str(error).replace(str(file), "").strip() or type(error).__name__
        raise UsageError(f"{file}: damaged or unreadable: {reason}") from error


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
