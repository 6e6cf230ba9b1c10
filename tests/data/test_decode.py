"""Image files to arrays of one size, and the cache that keeps them."""

import contextlib
import os
import resource
import struct
import threading
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from selfloop_jax.data import cache, decode
from selfloop_jax.data.decode import BadImage
from selfloop_jax.errors import RunError, UsageError
from selfloop_jax.runtime import store

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True, database=None)


WORDS = np.random.Philox(key=3).random_raw


def noise(*shape, dtype=np.uint8):
    return (WORDS(int(np.prod(shape))) >> np.uint64(13)).astype(dtype).reshape(shape)


def saved(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(width, height):
    """A PNG of which only the header is large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def png(depth, colour, row, transparent, side=8, interlaced=0):
    """A PNG of equal rows; `transparent` is the content of its chunk tRNS, or None."""
    header = struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, interlaced)
    chunks = [chunk(b"IHDR", header)]
    if colour == 3:
        chunks.append(chunk(b"PLTE", bytes([90, 80, 70, 30, 20, 10])))
    if transparent is not None:
        chunks.append(chunk(b"tRNS", transparent))
    chunks.append(chunk(b"IDAT", zlib.compress((b"\0" + row) * side)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


WORD = struct.Struct(">H").pack
# Kind: depth, colour type, left and right half of a row of eight pixels, tRNS of the right half,
# and what the left half is in eight bits.
TRANSPARENT = {
    "gray1": (1, 0, b"\xf0", b"", WORD(0), (255, 255, 255)),
    "gray2": (2, 0, b"\xff", b"\x55", WORD(1), (255, 255, 255)),
    "gray4": (4, 0, b"\xaa\xaa", b"\x55\x55", WORD(5), (170, 170, 170)),
    "gray8": (8, 0, b"\x80" * 4, b"\x12" * 4, WORD(0x12), (128, 128, 128)),
    "gray16": (16, 0, b"\x12\x35" * 4, b"\x12\x34" * 4, WORD(0x1234), (18, 18, 18)),
    "rgb8": (8, 2, b"\1\2\4" * 4, b"\1\2\3" * 4, WORD(1) + WORD(2) + WORD(3), (1, 2, 4)),
    "rgb16": (
        *(16, 2, b"\1\0\2\0\3\1" * 4, b"\1\0\2\0\3\0" * 4),
        *(WORD(0x100) + WORD(0x200) + WORD(0x300), (1, 2, 3)),
    ),
    "palette1": (1, 3, b"\x0f", b"", b"\xff\x00", (90, 80, 70)),
    "palette2": (2, 3, b"\x00", b"\x55", b"\xff\x00", (90, 80, 70)),
    "palette4": (4, 3, b"\x00" * 2, b"\x11" * 2, b"\xff\x00", (90, 80, 70)),
    "palette8": (8, 3, b"\x00" * 4, b"\x01" * 4, b"\xff\x00", (90, 80, 70)),
    "gray_alpha8": (8, 4, b"\x80\xff" * 4, b"\x12\x00" * 4, None, (128, 128, 128)),
    "gray_alpha16": (16, 4, b"\x80\0\xff\xff" * 4, b"\x12\0\0\0" * 4, None, (128, 128, 128)),
    "rgba8": (8, 6, b"\1\2\3\xff" * 4, b"\7\7\7\0" * 4, None, (1, 2, 3)),
    "rgba16": (16, 6, b"\1\0\2\0\3\0\xff\xff" * 4, b"\7\7\7\7\7\7\0\0" * 4, None, (1, 2, 3)),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_what_is_transparent_lies_on_white_in_every_kind_of_png(tmp_path, name):
    depth, colour, left, right, declared, shade = TRANSPARENT[name]
    data = png(depth, colour, left + right, declared)
    (tmp_path / "a.png").write_bytes(data)
    row = np.array([shade] * 4 + [(255, 255, 255)] * 4, np.uint8)
    wanted = np.broadcast_to(row, (8, 8, 3))
    np.testing.assert_array_equal(decoded(tmp_path / "a.png", 8)[0], wanted)
    np.testing.assert_array_equal(decode.square(data, 8), wanted)


def test_a_transparent_colour_is_found_in_an_interlaced_png(tmp_path):
    """Of one pixel alone, which the first of Adam7's passes holds."""
    colour = b"\1\0\2\0\3\0"
    for declared, wanted in ((colour, [255, 255, 255]), (b"\1\0\2\0\3\1", [1, 2, 3])):
        data = png(16, 2, colour, declared, side=1, interlaced=1)
        assert decode.square(data, 1)[0, 0].tolist() == wanted


def decoded(path, side, mask=None, geometry="fill"):
    """Pixels and mask of one image; raises BadImage where it is bad."""
    masks = None if mask is None else [mask]
    found = decode.decode_all([path], side, masks, "skip", "test", geometry)
    for _, reason in found.bad:
        raise BadImage(reason)
    return found.pixels[0], None if mask is None else found.masks[0]


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.PNG", "a_png_called.jpg"])
def test_an_image_of_the_wanted_size_comes_as_it_is(tmp_path, name):
    pixels = noise(24, 24, 3)
    kind = "WEBP" if name.endswith("webp") else "PNG"
    saved(tmp_path / name, pixels, format=kind, lossless=True)
    got, mask = decoded(tmp_path / name, 24)
    assert got.dtype == np.uint8
    assert mask is None
    np.testing.assert_array_equal(got, pixels)


def test_jpeg_comes_close(tmp_path):
    ramp = np.broadcast_to(np.arange(0, 240, 10, dtype=np.uint8)[:, None, None], (24, 24, 3))
    got, _ = decoded(saved(tmp_path / "a.jpg", ramp, quality=95), 24)
    assert abs(got.astype(int) - ramp).max() < 6


@pytest.mark.parametrize("size", [(17, 17), (40, 17), (17, 41)])
def test_fill_keeps_the_aspect_and_imagenet_does_not(tmp_path, size):
    """A centred disc stays round under fill alone."""
    y, x = np.mgrid[: size[1], : size[0]]
    disc = (x - (size[0] - 1) / 2) ** 2 + (y - (size[1] - 1) / 2) ** 2 < 36
    path = saved(tmp_path / "a.png", np.repeat(np.uint8(disc * 255)[..., None], 3, -1))
    wide, high = (
        (decoded(path, 34, geometry=geometry)[0][..., 0] > 127).any(axis=axis).sum()
        for geometry, axis in (("fill", 0), ("fill", 1))
    )
    assert abs(wide - high) <= 2
    stretched = decoded(path, 34, geometry="imagenet")[0][..., 0] > 127
    ratio = stretched.any(axis=0).sum() / stretched.any(axis=1).sum()
    assert ratio == pytest.approx(size[1] / size[0], rel=0.2)


def test_imagenet_geometry_is_256_and_224(tmp_path):
    pixels = noise(256, 256, 3)
    got, _ = decoded(saved(tmp_path / "a.png", pixels), 224, geometry="imagenet")
    np.testing.assert_array_equal(got, pixels[16:240, 16:240])


def test_shrinking_is_antialiased(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::2] = 255
    got, _ = decoded(saved(tmp_path / "a.png", stripes), 8)
    assert abs(got.astype(int) - 127).max() < 12


def test_what_is_not_rgb_becomes_it(tmp_path):
    gray = noise(9, 9)
    ramp = np.arange(0, 81, dtype=np.uint16).reshape(9, 9) * 257
    alpha = np.concatenate([noise(9, 9, 3), np.zeros((9, 9, 1), np.uint8)], -1)
    alpha[0, 0, 3] = 255
    palette = Image.fromarray(noise(9, 9) % 7, "L").convert("P")
    cases = {
        "L": (Image.fromarray(gray), np.repeat(gray[..., None], 3, -1)),
        "LA": (Image.merge("LA", [Image.new("L", (9, 9), 40), Image.new("L", (9, 9), 0)]), 255),
        "1": (Image.fromarray(gray > 99), np.repeat(np.uint8(gray > 99)[..., None] * 255, 3, -1)),
        "I;16": (Image.fromarray(ramp), np.repeat(np.uint8(ramp // 257)[..., None], 3, -1)),
        "P": (palette, np.asarray(palette.convert("RGB"))),
        "RGBA": (Image.fromarray(alpha), np.where(alpha[..., 3:] > 0, alpha[..., :3], 255)),
    }
    for mode, (image, wanted) in cases.items():
        path = tmp_path / f"{mode.replace(';', '')}.png"
        image.save(path)
        got, _ = decoded(path, 9)
        np.testing.assert_array_equal(got, np.broadcast_to(wanted, (9, 9, 3)), err_msg=mode)
    Image.new("CMYK", (9, 9), (0, 255, 255, 0)).save(tmp_path / "c.jpg")
    assert decoded(tmp_path / "c.jpg", 9)[0][4, 4].tolist() == pytest.approx([255, 0, 0], abs=4)
    paths = sorted(tmp_path.iterdir())
    found = decode.decode_all(paths, 9, None, "refuse", "test").converted
    assert found == dict.fromkeys([*sorted(cases), "CMYK"], 1)


def test_a_transparent_colour_of_plain_rgb_lies_on_white(tmp_path):
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[0] = (9, 8, 7)
    saved(tmp_path / "a.png", pixels, transparency=(0, 0, 0))
    got = decode.decode_all([tmp_path / "a.png"], 4, None, "refuse", "test")
    np.testing.assert_array_equal(got.pixels[0], np.where(pixels == 0, 255, pixels))
    assert got.converted == {"RGB": 1}


def test_the_first_frame_of_an_animation_counts(tmp_path):
    frames = [Image.fromarray(noise(8, 8, 3)) for _ in range(3)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_array_equal(decoded(tmp_path / "a.webp", 8)[0], np.asarray(frames[0]))


def test_orientation_turns_an_image_unless_it_is_imagenet(tmp_path):
    pixels = noise(8, 8, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path / "a.png", pixels, exif=exif)
    np.testing.assert_array_equal(decoded(path, 8)[0], np.rot90(pixels, -1))
    np.testing.assert_array_equal(decode.square(path.read_bytes(), 8), pixels)
    upright = decoded(saved(tmp_path / "b.png", pixels), 8, geometry="imagenet")[0]
    np.testing.assert_array_equal(decoded(path, 8, geometry="imagenet")[0], upright)


def test_damaged_exif_turns_nothing(tmp_path):
    broken = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0"
    assert decoded(saved(tmp_path / "a.jpg", noise(8, 8, 3), exif=broken), 8)[0].shape == (8, 8, 3)


@pytest.mark.parametrize("size", [(24, 24), (40, 17), (17, 41)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_bytes_and_arrays_give_what_a_file_gives(tmp_path, kind, size):
    path = tmp_path / "a"
    saved(path, noise(size[1], size[0], 3), format=kind)
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    got = decode.square(path.read_bytes(), 12)
    np.testing.assert_array_equal(got, decode.square(np.asarray(image), 12))
    if kind in ("PNG", "JPEG", "WEBP"):
        np.testing.assert_array_equal(got, decoded(path, 12)[0])
    gray = noise(size[1], size[0], 1)
    np.testing.assert_array_equal(
        decode.square(gray, 12),
        decode.square(np.broadcast_to(gray, (*gray.shape[:2], 3)).copy(), 12),
    )


def test_bytes_of_no_image_and_of_a_huge_one_are_bad():
    with pytest.raises(BadImage, match="not a PNG, JPEG, WebP, GIF or BMP image"):
        decode.square(b"garbage", 8)
    with pytest.raises(BadImage, match="20000 x 10000 pixels are more than 100 megapixels"):
        decode.square(png_claiming(20_000, 10_000), 8)


@SETTINGS
@given(data=st.data())
def test_image_and_mask_share_the_crop(tmp_path_factory, data):
    """The image of a bright rectangle and the rectangle as its mask come out the same."""
    folder = tmp_path_factory.mktemp("mask")
    width, height = data.draw(st.integers(5, 60)), data.draw(st.integers(5, 60))
    left, top = data.draw(st.integers(0, width - 2)), data.draw(st.integers(0, height - 2))
    bright = np.zeros((height, width), np.uint8)
    bright[
        top : top + data.draw(st.integers(1, height)),
        left : left + data.draw(st.integers(1, width)),
    ] = 255
    image = saved(folder / "a.png", np.repeat(bright[..., None], 3, -1))
    mask = saved(folder / "m.png", bright)
    pixels, cut = decoded(image, data.draw(st.integers(1, 33)), mask, "imagenet")
    assert cut.dtype == np.uint8
    np.testing.assert_array_equal(cut, np.where(pixels[..., 0] > 127, 255, 0))


def test_a_jpeg_mask_is_binary_and_a_smaller_one_is_aligned(tmp_path):
    image = np.zeros((60, 90, 3), np.uint8)
    image[20:40, 30:60] = 200
    path = saved(tmp_path / "a.png", image)
    mask = saved(tmp_path / "m.jpg", np.uint8(image[::3, ::3, 0] > 0) * 255)
    pixels, cut = decoded(path, 60, mask, "imagenet")
    assert set(np.unique(cut)) == {0, 255}
    assert ((cut == 255) != (pixels[..., 0] > 100)).mean() < 0.03


def test_a_mask_is_cut_at_half_of_its_own_maximum(tmp_path):
    path = saved(tmp_path / "a.png", noise(64, 64, 3))
    shape = np.zeros((64, 64), np.uint8)
    shape[16:40, 20:48] = 1
    cuts = [
        decoded(path, 48, saved(tmp_path / "m.png", shape * level), "imagenet")[1]
        for level in (255, 254, 127, 90)
    ]
    assert set(cuts[0].flat) == {0, 255}
    for cut in cuts[1:]:
        np.testing.assert_array_equal(cut, cuts[0])
    assert not decoded(path, 48, saved(tmp_path / "m.png", shape * 0), "imagenet")[1].any()


def test_a_mask_of_another_aspect_is_refused(tmp_path):
    path = saved(tmp_path / "a.png", noise(20, 30, 3))
    with pytest.raises(BadImage, match="its mask: 20 x 30 pixels have another aspect than 30 x 20"):
        decoded(path, 8, saved(tmp_path / "m.png", noise(30, 20)), "imagenet")
    with pytest.raises(BadImage, match="its mask: no such file"):
        decoded(path, 8, tmp_path / "none.png", "imagenet")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a PNG, JPEG or WebP image"),
        (b"GIF89a" + bytes(30), "not a PNG, JPEG or WebP image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "damaged or unreadable"),
        (png_claiming(10_001, 10_000), "10001 x 10000 pixels are more than 100 megapixels"),
        (png_claiming(2**31 - 1, 2**31 - 1), "more than 100 megapixels"),
    ],
)
def test_bad_files_say_why(tmp_path, content, reason):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(BadImage, match=reason):
        decoded(tmp_path / "a.png", 8)


def test_a_missing_file_and_a_folder_say_so(tmp_path):
    with pytest.raises(BadImage, match=r"^no such file$"):
        decoded(tmp_path / "a.png", 8)
    with pytest.raises(BadImage, match="Is a directory"):
        decoded(tmp_path, 8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@SETTINGS
@given(share=st.floats(0, 0.95), flip=st.booleans())
def test_damage_is_a_bad_image_or_none(tmp_path_factory, kind, share, flip):
    """A truncated file is a bad image. A file with one changed byte is a bad image or none."""
    path = tmp_path_factory.mktemp("damage") / "a"
    saved(path, noise(16, 16, 3), format=kind)
    content = bytearray(path.read_bytes())
    at = int(share * len(content))
    if not flip:
        path.write_bytes(content[:at])
        with pytest.raises(BadImage):
            decoded(path, 8)
        return
    content[at] ^= 0x55
    path.write_bytes(content)
    with contextlib.suppress(BadImage):
        assert decoded(path, 8)[0].shape == (8, 8, 3)


@SETTINGS
@given(st.integers(0, 10**6))
def test_no_flipped_bit_of_a_png_goes_unseen(tmp_path_factory, place):
    """Every chunk has a checksum, and Pillow decodes pixels without a look at it."""
    path = saved(tmp_path_factory.mktemp("png") / "a.png", noise(12, 12, 3))
    data = bytearray(path.read_bytes())
    data[place // 8 % len(data)] ^= 1 << place % 8
    with pytest.raises(BadImage):
        decode.square(bytes(data), 12)


def test_bad_images_are_refused_in_one_line_or_left_out(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    sound = [saved(path, noise(8, 8, 3)) for path in paths[::2]]
    paths[1].write_bytes(b"GIF")
    masks = [saved(tmp_path / f"m{i}.png", noise(8, 8)) for i in range(5)]
    with pytest.raises(UsageError) as caught:
        decode.decode_all(paths, 8, None, "refuse", "my train")
    line = str(caught.value)
    assert line.startswith(f"my train: 2 of 5 images cannot be used, first {paths[1]}: not a PNG")
    assert "data.on_bad_image" in line
    assert "\n" not in line
    got = decode.decode_all(paths, 8, masks, "skip", "my train", "imagenet")
    assert got.kept.tolist() == [0, 2, 4]
    assert got.bad == [(1, "not a PNG, JPEG or WebP image"), (3, "no such file")]
    for i, path in enumerate(sound):
        pixels, mask = decoded(path, 8, masks[2 * i], "imagenet")
        np.testing.assert_array_equal(got.pixels[i], pixels)
        np.testing.assert_array_equal(got.masks[i], mask)


def test_progress_is_logged(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(decode, "SECONDS_BETWEEN_LINES", 0)
    decode.decode_all(
        [saved(tmp_path / "a.png", noise(8, 8, 3))] * 3, 8, None, "refuse", "my train"
    )
    lines = capsys.readouterr().err.splitlines()
    assert lines[1].startswith("my train: image 2/3  ")
    assert lines[1].endswith(" s left")


ARRAYS = {"pixels": noise(3, 4, 4, 3), "kept": np.arange(3)}


FACTS = {"bad": [["a.png", "no such file"]], "converted": {"L": 2}}


def made(root, key=1, calls=None, fail=None):
    def make():
        if calls is not None:
            calls.append(key)
        if fail:
            raise fail
        return {name: array + key - 1 for name, array in ARRAYS.items()}, FACTS

    return cache.cached(str(root), "test", {"files": key}, 200, make)


def contents(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def check(entry, key=1):
    arrays, facts = entry
    assert facts == FACTS
    assert arrays.keys() == ARRAYS.keys()
    for name, array in arrays.items():
        assert array.dtype == ARRAYS[name].dtype
        np.testing.assert_array_equal(array, ARRAYS[name] + key - 1)


def test_an_entry_is_made_once_per_key(tmp_path):
    calls = []
    for key in (1, 1, 2, 1, 2):
        check(made(tmp_path / "deep" / "cache", key, calls), key)
    assert calls == [1, 2]


def test_a_process_that_writes_nothing_of_a_run_keeps_its_own_entries(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "leading", False)
    calls = []
    for _ in range(2):
        check(made(tmp_path, calls=calls))
    assert calls == [1]


def test_facts_read_the_same_the_first_time(tmp_path):
    facts = [
        cache.cached(str(tmp_path), "t", {}, 0, lambda: ({}, {"a": (1, 2)}))[1] for _ in range(2)
    ]
    assert facts == [{"a": [1, 2]}] * 2


def test_nothing_is_kept_of_a_failure(tmp_path):
    for fail in (UsageError("wrong"), KeyboardInterrupt()):
        with pytest.raises(type(fail)):
            made(tmp_path, fail=fail)
        assert all(name.endswith(".lock") for name in contents(tmp_path))
    check(made(tmp_path))


@SETTINGS
@given(data=st.data())
def test_any_damaged_byte_is_made_again(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("cache")
    made(root)
    before = contents(root)
    name = data.draw(st.sampled_from(sorted(name for name in before if not name.endswith(".lock"))))
    content = bytearray(before[name])
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (root / name).write_bytes(content)
    check(made(root))
    after = contents(root)
    if name.endswith(".json"):  # Other white space between its words is the same index.
        del after[name], before[name]
    assert after == before


def test_damage_is_reported_in_one_line(tmp_path, capsys):
    made(tmp_path)
    (entry,) = (path for path in tmp_path.iterdir() if path.is_dir())
    for path, damage in (
        (entry / "kept.npy", b"x"),
        (entry / "pixels.npy", None),
        (entry / "index.json", b"{}"),
    ):
        path.write_bytes(damage) if damage else path.unlink()
        calls = []
        check(made(tmp_path, calls=calls))
        assert calls == [1]
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(str(path))
        assert line.endswith("decoding again")


def test_two_at_once_make_an_entry_once(tmp_path):
    calls, entries, started = [], [], threading.Event()

    def make():
        calls.append(1)
        started.wait(0.3)
        return ARRAYS, FACTS

    def ask():
        entries.append(cache.cached(str(tmp_path), "test", {}, 200, make))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1]
    for entry in entries:
        check(entry)


def test_leftovers_of_killed_builds_go_and_nothing_else_does(tmp_path):
    made(tmp_path, 1)
    (entry,) = (path for path in tmp_path.iterdir() if path.is_dir())
    entry.rename(entry.with_name(entry.name + ".tmp"))
    others = tmp_path / "holiday-0123456789abcdef.tmp", tmp_path / "notes.tmp"
    for other in others:
        other.mkdir()
    made(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.glob("*.tmp")) == sorted(
        path.name for path in others
    )


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    calls = []
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            UsageError,
            match=r"^data\.cache_dir = '.*file.*must be a writable folder$",
        ):
            made(root, calls=calls)
    assert calls == []


def test_a_write_that_fails_names_its_file_and_leaves_nothing(tmp_path):
    """NumPy's own error has neither number nor name."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"test-\w+\.tmp/big\.npy: not written: \w+") as caught:
            cache.cached(str(tmp_path), "test", {}, 2**20, lambda: ({"big": np.zeros(2**17)}, {}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "None" not in str(caught.value)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_user_that_there_is_not_is_no_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(made("~nosuch/cache"))


def test_a_full_disk_is_noticed_before_the_work(tmp_path):
    with pytest.raises(RunError, match="are needed, the disk has"):
        cache.cached(str(tmp_path), "test", {}, 2**60, lambda: pytest.fail("made"))


def test_the_default_folder_is_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    made("")
    assert (tmp_path / ".cache" / "selfloop_jax_data").is_dir()


def test_stamps_tell_files_apart(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    (stamp,) = cache.stamps(tmp_path, ["a"])
    assert stamp[:3] == ["a", 3, path.stat().st_mtime_ns]
    assert cache.stamps(tmp_path, ["b", "nul\0", "\ud800"]) == [
        [name, None, None, None, None] for name in ("b", "nul\0", "\ud800")
    ]


@pytest.mark.parametrize("how", ["written", "replaced"])
def test_a_file_of_the_same_length_and_time_is_another_one(tmp_path, how):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    before = cache.stamps(tmp_path, ["a"])
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    other = path if how == "written" else tmp_path / "b"
    other.write_bytes(b"xyz")
    os.utime(other, ns=times)
    os.replace(other, path)
    assert path.stat().st_mtime_ns == times[1]
    assert cache.stamps(tmp_path, ["a"]) != before


def test_the_same_arrays_give_the_same_files(tmp_path):
    for root in (tmp_path / "a", tmp_path / "b"):
        made(root)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
