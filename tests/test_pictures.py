"""Pictures: what opens and as which colours, and files broken on purpose, each refused in one sentence."""

from __future__ import annotations

import builtins
import hashlib
import io
import os
import struct
import sys
import types
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trimtab import pictures
from trimtab.errors import BadItem, MissingExtra, TaskError
from trimtab.types import Picture

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def two(left: Any = RED, right: Any = BLUE, mode: str = "RGB") -> Image.Image:
    """Two pixels beside each other."""
    image = Image.new(mode, (2, 1))
    image.putpixel((0, 0), left)
    image.putpixel((1, 0), right)
    return image


def saved(path: Path, image: Image.Image, **how: Any) -> Path:
    image.save(path, **how)
    return path


def pixels(path: Path) -> list[list[tuple[int, ...]]]:
    found = pictures.opened(pictures.of_file(path))
    assert found.mode == "RGB" and isinstance(found, Image.Image)
    return [[tuple(p) for p in row] for row in np.asarray(found).tolist()]


def listed(path: str | Path) -> Picture:
    """As a loader has it for a run that goes on without what cannot be read."""
    with pictures.later():
        return pictures.of_file(path)


def refused(path: Path, *, item: str | None = None) -> str:
    """The sentence, which names the file and has one line."""
    with pytest.raises(BadItem) as caught:
        pictures.opened(listed(path), item=item)
    words = str(caught.value)
    assert str(path) in words and "\n" not in words
    return words


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG's bytes by hand, whatever its header claims."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = zlib.compress(data)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


# what opens


@pytest.mark.parametrize("ending", ["png", "bmp", "tiff", "gif", "webp"])
def test_formats_without_loss_keep_their_colours(tmp_path, ending):
    how = {"lossless": True} if ending == "webp" else {}
    assert pixels(saved(tmp_path / f"a.{ending}", two(), **how)) == [[RED, BLUE]]


def test_a_jpeg_is_close(tmp_path):
    path = saved(tmp_path / "a.jpg", Image.new("RGB", (16, 16), (200, 40, 90)), quality=95)
    assert np.abs(np.array(pixels(path)[3][3]) - (200, 40, 90)).max() <= 4


def test_the_digest_is_that_of_the_bytes(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", two())
    found = pictures.of_file(path)
    assert found == Picture(str(path), hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.chdir(tmp_path)
    assert pictures.of_file("a.png") == found
    assert listed("a.png") == found


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (two(0, 255, "L"), [(0, 0, 0), WHITE]),
        (two(0, 1, "1"), [(0, 0, 0), WHITE]),
        (two((*RED, 255), (*BLUE, 0), "RGBA"), [RED, WHITE]),
        (two((*RED, 51), (*GREEN, 102), "RGBA"), [(255, 204, 204), (153, 255, 153)]),
        (two((0, 255), (0, 0), "LA"), [(0, 0, 0), WHITE]),
        (two().convert("P"), [RED, BLUE]),
        (Image.fromarray(np.array([[0, 65535]], dtype=np.uint16)), [(0, 0, 0), WHITE]),
        (Image.fromarray(np.array([[128, 129]], dtype=np.uint16)), [(0, 0, 0), (1, 1, 1)]),
    ],
    ids=["grey", "bits", "alpha", "half", "grey-alpha", "palette", "16-bit", "16-bit-rounded"],
)
def test_other_modes_become_rgb_on_white(tmp_path, image, expected):
    assert pixels(saved(tmp_path / "a.png", image)) == [expected]


def test_a_transparent_colour_is_white_too(tmp_path):
    path = saved(tmp_path / "palette.png", two().convert("P"), transparency=two().convert("P").getpixel((1, 0)))
    assert pixels(path) == [[RED, WHITE]]
    assert pixels(saved(tmp_path / "rgb.png", two(), transparency=BLUE)) == [[RED, WHITE]]


def test_a_transparent_value_of_16_bit_grey_is_white_too(tmp_path):
    path = tmp_path / "grey.png"
    Image.fromarray(np.array([[0, 30_000]], np.uint16)).save(path, transparency=0)
    if "transparency" not in Image.open(path).info:
        pytest.skip("this Pillow writes no transparent value of 16 bits")
    assert [pictures.opened(pictures.of_file(path)).getpixel((x, 0)) for x in (0, 1)] == [(255,) * 3, (117,) * 3]


def test_a_name_that_begins_with_a_tilde_is_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (2, 2), (9, 8, 7)).save("~x.png")
    assert pictures.opened(pictures.of_file("~x.png")).getpixel((0, 0)) == (9, 8, 7)


def test_the_orientation_of_the_camera_is_applied(tmp_path):
    """6: the camera was turned to the right, so the picture is turned back; 2: mirrored."""
    for orientation, expected in ((6, [[RED], [BLUE]]), (2, [[BLUE, RED]]), (1, [[RED, BLUE]])):
        exif = Image.Exif()
        exif[0x0112] = orientation
        assert pixels(saved(tmp_path / f"{orientation}.png", two(), exif=exif)) == expected


def test_one_frame_of_a_format_with_frames_is_fine(tmp_path):
    assert pixels(saved(tmp_path / "one.gif", two(), save_all=True)) == [[RED, BLUE]]


def test_a_camera_with_a_second_picture_in_its_jpeg_is_fine(tmp_path):
    """MPO: the first picture is the photograph."""
    first, second = Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), BLUE)
    path = saved(tmp_path / "a.jpg", first, format="MPO", save_all=True, append_images=[second])
    assert np.abs(np.array(pixels(path)[0][0]) - RED).max() <= 4


def test_the_result_stands_alone(tmp_path):
    path = saved(tmp_path / "a.png", two())
    found = pictures.opened(pictures.of_file(path))
    path.unlink()
    assert found.getpixel((0, 0)) == RED


# files that are refused


def test_a_missing_file_a_folder_and_one_that_may_not_be_read(tmp_path, monkeypatch):
    assert "does not exist" in refused(tmp_path / "none.png")
    assert "is a folder" in refused(tmp_path)
    with pytest.raises(BadItem, match=r"none\.png' does not exist"):
        pictures.of_file(tmp_path / "none.png")
    assert listed(tmp_path / "none.png") == Picture(str(tmp_path / "none.png"), "")
    if os.geteuid():
        locked = saved(tmp_path / "locked.png", two())
        locked.chmod(0)
        assert "cannot be read (Permission denied)" in refused(locked)


def test_the_item_is_named_where_it_is_known(tmp_path):
    assert refused(tmp_path / "none.png", item="who/7").startswith("item 'who/7': image ")


def test_an_empty_file(tmp_path):
    path = tmp_path / "empty.png"
    path.touch()
    assert "is empty (0 bytes)" in refused(path)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_every_way_of_cutting_a_file_off_is_refused(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = saved(tmp_path / f"whole.{ending}", Image.fromarray(noise)).read_bytes()
    for part in (0.001, 0.01, 0.3, 0.6, 0.9):
        path = tmp_path / f"cut{part}.{ending}"
        path.write_bytes(whole[: max(1, int(part * len(whole)))])
        words = refused(path)
        assert "damaged" in words, words


def test_what_is_no_image(tmp_path):
    for name, content in (("a.png", b"<html>404</html>"), ("b.svg", b"<svg/>"), ("c.png", bytes(range(256)) * 9)):
        path = tmp_path / name
        path.write_bytes(content)
        assert "is no image of the formats PNG, JPEG" in refused(path)


def test_rarer_formats_are_not_tried(tmp_path):
    """Pillow would open it; the fewer decoders a stranger's file reaches the better."""
    path = saved(tmp_path / "a.ppm", two())
    Image.open(path).load()
    assert "is no image of the formats" in refused(path)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_zero_width_or_height(tmp_path, size):
    path = tmp_path / "flat.png"
    path.write_bytes(png(*size))
    words = refused(path)
    assert "which shows nothing" in words or "damaged" in words, words
    bmp = bytearray(saved(tmp_path / "flat.bmp", two()).read_bytes())
    bmp[18:26] = struct.pack("<ii", *size)
    (tmp_path / "flat.bmp").write_bytes(bmp)
    words = refused(tmp_path / "flat.bmp")
    assert "which shows nothing" in words or "damaged" in words, words


@pytest.mark.parametrize(("width", "height"), [(8193, 8192), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_measured_and_not_decoded(tmp_path, monkeypatch, width, height):
    """A hundred bytes that claim gigapixels; decoding is made to fail the test."""

    def decoded(*args: Any) -> None:
        pytest.fail("a bomb was decoded")

    path = tmp_path / "bomb.png"
    path.write_bytes(png(width, height))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    assert "67,108,864" in refused(path)


def test_the_limit_itself_is_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "PIXELS", 6)
    assert len(pixels(saved(tmp_path / "six.png", Image.new("RGB", (3, 2))))) == 2
    assert "7 x 1 pixels, more than 6" in refused(saved(tmp_path / "seven.png", Image.new("RGB", (7, 1))))


def test_a_file_of_too_many_bytes_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "BYTES", 10)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("it was read"))
    assert "more than the 10 that are read" in refused(saved(tmp_path / "a.png", two()))


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tiff"])
def test_several_frames_are_refused(tmp_path, ending):
    more = {"tiff": "pages"}.get(ending, "frames")
    path = saved(tmp_path / f"a.{ending}", two(), save_all=True, append_images=[two(GREEN, RED)])
    assert f"has 2 {more} ({ending.upper()})" in refused(path)


def test_print_colours_are_refused(tmp_path):
    ink = Image.new("CMYK", (4, 4), (0, 200, 200, 0))
    assert "is in CMYK, whose colours shift" in refused(saved(tmp_path / "a.jpg", ink))
    assert "is in CMYK" in refused(saved(tmp_path / "a.tiff", ink))
    assert "is in LAB" in refused(saved(tmp_path / "lab.tiff", Image.new("LAB", (4, 4))))


def test_values_without_a_scale_are_refused(tmp_path):
    for mode in ("I", "F"):
        assert f"(mode {mode}) without a scale" in refused(saved(tmp_path / f"{mode}.tiff", Image.new(mode, (2, 2))))


def test_a_file_that_was_changed_after_its_digest_was_taken(tmp_path):
    path = saved(tmp_path / "a.png", two())
    before = pictures.of_file(path)
    saved(path, two(GREEN, GREEN))
    with pytest.raises(BadItem, match="was changed since its SHA-256 was taken"):
        pictures.opened(before)


def test_damaged_metadata_does_not_leak_another_error(tmp_path):
    """Every byte of a small JPEG with EXIF turned over: an image, or a BadItem, and nothing else."""
    exif = Image.Exif()
    exif[0x0112] = 6
    sink = io.BytesIO()
    two().save(sink, "JPEG", exif=exif)
    whole = sink.getvalue()
    opened = 0
    for n in range(len(whole)):
        path = tmp_path / "a.jpg"
        path.write_bytes(whole[:n] + bytes([whole[n] ^ 0xFF]) + whole[n + 1 :])
        try:
            opened += pictures.opened(pictures.of_file(path)).mode == "RGB"
        except BadItem as error:
            assert str(path) in str(error)
    assert 0 < opened < len(whole)


# rooms that draw


def room(monkeypatch, draw: Any) -> None:
    module = types.ModuleType("somebodys_room")
    module.draw = draw
    monkeypatch.setitem(sys.modules, "somebodys_room", module)
    monkeypatch.setitem(pictures.SCHEMES, "roomworld", "somebodys_room:draw")


def test_a_scheme_draws_its_words(monkeypatch):
    asked = []
    room(monkeypatch, lambda words: asked.append(words) or two((*RED, 0), (*BLUE, 255), "RGBA"))
    picture = Picture("roomworld:nurse:left woman", "d")
    assert pictures.drawn(picture) and not pictures.drawn(Picture("/tmp/roomworld:x", ""))
    found = pictures.opened(picture)
    assert asked == ["nurse:left woman"]
    assert found.mode == "RGB" and [found.getpixel((x, 0)) for x in (0, 1)] == [WHITE, BLUE]


def test_words_that_cannot_be_drawn_name_the_item(monkeypatch):
    def draw(words: str) -> Image.Image:
        raise TaskError(f"no occupation {words!r}")

    room(monkeypatch, draw)
    with pytest.raises(BadItem, match=r"^item 'a': image 'roomworld:astronaut' cannot be drawn: no occupation 'astron"):
        pictures.opened(Picture("roomworld:astronaut", ""), item="a")


def test_a_file_is_never_taken_for_a_scheme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(Path("roomworld:x.png"), two())
    found = pictures.of_file("roomworld:x.png")
    assert not pictures.drawn(found) and pictures.opened(found).size == (2, 1)


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    plain = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "PIL":
            raise ImportError("No module named 'PIL'")
        return plain(name, *args, **kwargs)

    path = saved(tmp_path / "a.png", two())
    monkeypatch.setattr(builtins, "__import__", without)
    picture = pictures.of_file(path)  # needs none
    with pytest.raises(MissingExtra, match=r"needs 'Pillow'; run: pip install 'trimtab\[vision\]'"):
        pictures.opened(picture)
