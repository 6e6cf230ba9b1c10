"""Image files to arrays of one size: kinds of files, conversion to RGB, resize and crop.

The first bytes tell PNG, JPEG and WebP apart, whatever the file is called. Of an animation
the first frame counts. Gray, palette and CMYK images become RGB by Pillow's rules, 16-bit gray is
scaled to 8 bits, and what is transparent becomes white.
"""

import contextlib
import io
import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from selfloop_jax.errors import UsageError
from selfloop_jax.runtime.log import say

# A file of a few kilobytes can unpack to gigabytes.
MAX_PIXELS = 100_000_000


SECONDS_BETWEEN_LINES = 5.0


THREADS = min(16, os.cpu_count() or 1)


# Pillow's class by the first bytes. Not Image.open: its own limit on pixels only warns.
Kinds = dict[str, tuple[bytes, Callable[[BinaryIO], Image.Image]]]


KINDS: Kinds = {
    "PNG": (rb"\x89PNG\r\n\x1a\n", PngImageFile),
    "JPEG": (rb"\xff\xd8\xff", JpegImageFile),
    "WebP": (rb"RIFF....WEBP", WebPImageFile),
}


SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # of files of these kinds


# What others have put into a data set as an image; TFDS's own decoders read these as well.
RECORD_KINDS: Kinds = {**KINDS, "GIF": (rb"GIF8", GifImageFile), "BMP": (rb"BM", BmpImageFile)}


Encoded = Path | bytes  # an image's file, or what is in it


class BadImage(Exception):
    """A file that gives no image; the message says why, without the path."""


@dataclass
class Decoded:
    """The K images of a list of files that could be read, in the list's order.

    pixels uint8[K,side,side,3]; masks uint8[K,side,side], 0 or 255, or None; kept int64[K], places
    in the list; bad: the other places, each with its reason; converted: images that were not plain
    RGB by Pillow's name of what they were ("RGB" itself: RGB with one colour declared transparent).
    """

    pixels: np.ndarray
    masks: np.ndarray | None
    kept: np.ndarray
    bad: list[tuple[int, str]]
    converted: dict[str, int]


def square(image: bytes | np.ndarray, side: int) -> np.ndarray:
    """uint8[side,side,3]: the central square of an image, resized.

    Of an encoded one or of uint8[H,W,1 or 3]. An orientation noted in EXIF is left alone, as TFDS
    leaves it. Raises BadImage on damaged bytes and on more than 100 megapixels.
    """
    with _quiet():
        if isinstance(image, bytes):
            whole = _read(image, RECORD_KINDS)
        else:
            # Pillow knows no array whose last axis has length 1.
            whole = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        return np.asarray(_fill(_rgb(whole), side))


def decode_all(
    images: Sequence[Encoded],
    side: int,
    masks: Sequence[Path] | None,
    on_bad_image: str,
    what: str,
    geometry: str = "fill",
    where: Callable[[int], str] | None = None,
) -> Decoded:
    """Decodes a list of images in threads, and prints its progress under the name `what`.

    Geometry `fill`: turned as its EXIF says, then the central square, resized without changing the
    aspect. `imagenet`: resized to a square of 256/224 sides, whatever the aspect, and its centre
    cut out; EXIF is ignored as ImageNet's loaders ignore it. There alone an image can have a mask,
    which goes through the same steps and is then cut at half of its own maximum, so that its
    outline keeps its place. (The public code of Hard ImageNet counts every value above 0:
    its objects are about a pixel larger all round.)

    Bad are missing, damaged or other kinds of files, more than 100 megapixels (read off the
    header) and a mask of another aspect than its image. With `on_bad_image` = refuse the bad ones
    end in one UsageError that gives their number and the first of them, image i called `where(i)`
    or by its path; with `skip` they are left out and listed.
    """
    # Threads write into these rows; those of bad images are taken out below.
    pixels = np.zeros((len(images), side, side, 3), np.uint8)
    cuts = None if masks is None else np.zeros((len(images), side, side), np.uint8)

    def one(i: int) -> tuple[str | None, str | None]:
        """The reason why image i is bad and what it was converted from."""
        try:
            mask = None if masks is None else masks[i]
            image, cut, converted = _decode(images[i], side, mask, geometry)
        except BadImage as error:
            return str(error), None
        pixels[i] = image
        if cuts is not None and cut is not None:
            cuts[i] = cut
        return None, converted

    outcomes = list(_in_threads(one, len(images), what))
    bad = [(i, reason) for i, (reason, _) in enumerate(outcomes) if reason is not None]
    if bad and on_bad_image == "refuse":
        i, reason = bad[0]
        name = where(i) if where else str(images[i])
        raise UsageError(
            f"{what}: {len(bad)} of {len(images)} images cannot be used, first {name}: "
            f"{reason}; data.on_bad_image=skip leaves them out"
        )
    # Places in the list, by which a source finds labels and ids.
    kept = np.array([i for i, (reason, _) in enumerate(outcomes) if reason is None], np.int64)
    if bad:
        pixels = pixels[kept]
        cuts = None if cuts is None else cuts[kept]
    converted = Counter(mode for _, mode in outcomes if mode is not None)
    return Decoded(pixels, cuts, kept, bad, dict(sorted(converted.items())))


def _in_threads(work: Callable[[int], tuple], count: int, what: str) -> Iterator[tuple]:
    """work(0), work(1), ... in order; Pillow releases the GIL while it decodes."""
    pool = ThreadPoolExecutor(THREADS)
    try:
        with _quiet():
            yield from _with_progress(pool.map(work, range(count)), count, what)
    finally:
        # After an error, thousands of images can still be queued.
        pool.shutdown(cancel_futures=True)


def _with_progress(outcomes: Iterable[tuple], count: int, what: str) -> Iterator[tuple]:
    """The same outcomes; prints a line every few seconds."""
    started = shown = time.perf_counter()
    for done, outcome in enumerate(outcomes, 1):
        yield outcome
        now = time.perf_counter()
        if now - shown >= SECONDS_BETWEEN_LINES:
            shown = now
            rate = done / (now - started)
            left = (count - done) / rate
            say(f"{what}: image {done}/{count}  {rate:.0f} images/s  {left:.0f} s left")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences Pillow's warnings of harmless faults: ImageNet is full of damaged EXIF."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
        yield


def _decode(
    image_file: Encoded, side: int, mask: Path | None, geometry: str
) -> tuple[np.ndarray, np.ndarray | None, str | None]:
    """Pixels, mask and the mode that the image was converted from, None if it was plain RGB."""
    image = _read(image_file)
    # A PNG in RGB can declare one colour transparent.
    plain = image.mode == "RGB" and not image.has_transparency_data
    converted = None if plain else image.mode
    if geometry == "fill":
        return np.asarray(_fill(_rgb(_upright(image)), side)), None, converted
    # A mask is fitted to the stored image, before both are resized and cropped.
    cut = None if mask is None else _cut(mask, image.size, side)
    return np.asarray(_imagenet(_rgb(image), side)), cut, converted


def _cut(path: Path, size: tuple[int, int], side: int) -> np.ndarray:
    """uint8[side,side] of 0 and 255: the mask of an image of `size`.

    An all-black one stays empty.
    """
    try:
        gray = _aligned(_read(path), size)
    except BadImage as error:
        raise BadImage(f"its mask: {error}") from error
    # Masks are published as JPEGs, whose values are not exactly 0 and 255.
    half = np.asarray(gray).max() / 2
    return np.where(np.asarray(_imagenet(gray, side)) > half, 255, 0).astype(np.uint8)


def _read(source: Encoded, kinds: Kinds = KINDS) -> Image.Image:
    """The image of a file or of its bytes as it is stored; BadImage says what is wrong."""
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            kind = _kind(file.read(16), kinds)
            file.seek(0)
            image = kind(file)
            # The header gives the size before `load` takes memory for the pixels.
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width} x {image.height}"
                raise BadImage(f"{size} pixels are more than {MAX_PIXELS // 10**6} megapixels")
            if isinstance(image, PngImageFile):
                # Pillow decodes pixels without a look at their checksums.
                image.verify()
                file.seek(0)
                image = kind(file)
            tiles = getattr(image, "tile", None)
            # Pillow reads pixels only when asked, and the file closes with this block.
            image.load()
            if isinstance(image, PngImageFile) and "transparency" in image.info:
                _correct_transparency(image, str(tiles[0][3]) if tiles else "", file)
            return image
    # Too little memory is no fault of the file, and ends the run.
    except (BadImage, MemoryError):
        raise
    except FileNotFoundError as error:
        raise BadImage("no such file") from error
    except Exception as error:  # Pillow raises a dozen kinds on damaged bytes.
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise BadImage(f"damaged or unreadable: {' '.join(reason.split())}") from error


def _correct_transparency(image: PngImageFile, raw: str, file: BinaryIO) -> None:
    """Says in eight bits which value of a PNG is transparent.

    Its chunk tRNS says so in the depth of the file, and Pillow compares that with eight bits. What
    has a palette, one bit or 16-bit gray is right, or is left to `_eight_bits`.
    """
    value = image.info["transparency"]
    bits = {"L;2": 2, "L;4": 4, "L": 8}.get(raw, 0)
    if bits:
        # Pillow spreads gray of few bits over 0 to 255.
        image.info["transparency"] = (value & (2**bits - 1)) * (255 // (2**bits - 1))
    if raw == "RGB;16B":
        # Pillow keeps the high byte of each number, and of a second reading the low one.
        file.seek(0)
        low = PngImageFile(file)
        low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
        low.load()
        found = np.asarray(image).astype(np.int64) * 256 + np.asarray(low)
        alpha = np.where((found == value).all(axis=-1), 0, 255).astype(np.uint8)
        image.putalpha(Image.fromarray(alpha))


def _kind(head: bytes, kinds: Kinds) -> Callable[[BinaryIO], Image.Image]:
    """Pillow's class for a file that begins so."""
    for pattern, kind in kinds.values():
        if re.match(pattern, head, re.DOTALL):
            return kind
    *names, last = kinds
    raise BadImage(f"not a {', '.join(names)} or {last} image")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit gray as 8-bit gray; Pillow's own conversion clips in some versions.

    With an alpha channel where one value is declared transparent.
    """
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    # 65535 = 257 * 255.
    gray = Image.fromarray((values // 257).astype(np.uint8))
    if "transparency" in image.info:
        seen = values != image.info["transparency"]
        gray.putalpha(Image.fromarray(np.where(seen, 255, 0).astype(np.uint8)))
    return gray


def _rgb(image: Image.Image) -> Image.Image:
    image = _eight_bits(image)
    # Palettes can be transparent, too; as RGBA all kinds are the same.
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says; unreadable EXIF turns nothing."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # As many kinds as there are ways to damage EXIF; the pixels are sound.
        return image


def _aligned(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The mask in gray at its image's size; one pixel of its sides may be rounding."""
    # Cross products compare the aspects without a division; `max(size)` allows for one pixel.
    if abs(mask.width * size[1] - size[0] * mask.height) > max(size):
        raise BadImage(
            f"{mask.width} x {mask.height} pixels have another aspect than {size[0]} x {size[1]}"
        )
    gray = _eight_bits(mask).convert("L")
    return gray if gray.size == size else gray.resize(size, Image.Resampling.BILINEAR)


def _fill(image: Image.Image, side: int) -> Image.Image:
    """Shorter side to `side`, centre crop.

    In one step, so that a strip of pixels never grows huge.
    """
    short = min(image.size)
    left = (image.width - short) // 2
    top = (image.height - short) // 2
    # The crop is a box of the resize, so the part that is cut off is never resized.
    box = (left, top, left + short, top + short)
    return image.resize((side, side), Image.Resampling.BILINEAR, box)


def _imagenet(image: Image.Image, side: int) -> Image.Image:
    """At side 224: resize to 256 x 256, centre crop 224."""
    whole = round(side * 256 / 224)
    first = (whole - side) // 2
    resized = image.resize((whole, whole), Image.Resampling.BILINEAR)
    return resized.crop((first, first, first + side, first + side))
