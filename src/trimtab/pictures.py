"""The room that opens pictures: a `Picture` in, pixels in RGB out, or one sentence on why not.

A picture's source is the path of a file, or SCHEME:WORDS of a room that draws (SCHEMES). A file is measured before it
is decoded, so that a few bytes that unpack to gigapixels cost nothing.

What is done to a file's pixels is defined, because skin tones are among the things that are measured:

| mode | becomes RGB by |
|---|---|
| RGB, 1, L, P | the same colours |
| RGBA, LA, PA, P or L with a transparent colour | laid on white |
| I;16 (16-bit grey) | v -> round(v / 257) in each channel |
| CMYK, LAB, HSV | refused: without the profile they were made for, colours shift |
| I, F (32-bit) | refused: nothing says which value is white |

The orientation that a camera noted (EXIF) is applied. A file of several frames or pages is refused: which of them is
meant is not known. Colour profiles of RGB files are not applied, as image processors do not either.

Pillow is imported where it is needed, and its absence says which extra brings it.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import BadItem, MissingExtra, TrimtabError
from .types import Picture

if TYPE_CHECKING:
    from PIL.Image import Image

SCHEMES: dict[str, str] = {"roomworld": "trimtab.roomworld:draw"}
"""SCHEME -> what draws its WORDS: a function of a text that returns an image."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is tried on a file; decoders of rarer formats are never reached. MPO, a camera's JPEG, is read as JPEG."""
PIXELS = 1 << 26
"""The most pixels that a file may unpack to: 8,192 x 8,192, 192 MiB in RGB."""
BYTES = 1 << 28
"""The most bytes that a file may have."""
_LATER: ContextVar[bool] = ContextVar("pictures that cannot be read are listed", default=False)
SHIFTING = ("CMYK", "LAB", "HSV")
UNSCALED = ("I", "F")


def of_file(path: str | Path) -> Picture:
    """The picture in a file, by the SHA-256 of its bytes; it is not opened.

    The source is an absolute path: another working folder does not change what is meant, and no file's name can be
    taken for a scheme. Raises BadItem for a file that is missing or cannot be read; within `later` its digest is empty.
    """
    file = _absolute(path)
    try:
        with file.open("rb") as bytes_:
            return Picture(str(file), hashlib.file_digest(bytes_, "sha256").hexdigest())
    except OSError as error:
        if _LATER.get():
            return Picture(str(file), "")
        raise BadItem(f"image {str(file)!r} {_why(file, error)}") from error


@contextmanager
def later() -> Iterator[None]:
    """Within it a file that cannot be read is listed all the same: opening it says why, and may be what fails.

    For tasks that are loaded for a run that goes on without such items (evaluate's `skip_bad`).
    """
    before = _LATER.set(True)
    try:
        yield
    finally:
        _LATER.reset(before)


def are_for_later() -> bool:
    """Whether `later` holds, so that a loader that finds no file lists the one that it looked for."""
    return _LATER.get()


def drawn(picture: Picture) -> bool:
    """Whether a room draws it, so that there is no file."""
    return _scheme(picture) is not None


def opened(picture: Picture, *, item: str | None = None) -> Image:
    """The picture's pixels: a PIL image in mode RGB, decoded, upright, at least 1 x 1.

    `item` is named in refusals. Raises BadItem, one sentence with the file and what is wrong with it, for a file that
    is missing, empty, not an image of FORMATS, cut off, beyond PIXELS or BYTES, of zero width or height, animated, of a
    mode that is refused (the table above), or changed since its digest was taken; MissingExtra without Pillow.
    """
    image_module = _pillow()
    named = f"item {item!r}: " if item is not None else ""
    scheme = _scheme(picture)
    if scheme is not None:
        return _drawn(scheme, picture, named)
    file = Path(picture.source)
    try:
        return _decoded(image_module, _bytes(file, picture.digest))
    except _Flaw as flaw:
        raise BadItem(f"{named}image {picture.source!r} {flaw}") from flaw.__cause__


def thumbnail(picture: Picture, size: int = 320) -> bytes:
    """The picture for people to look at, as the bytes of a PNG of at most `size` pixels a side.

    What a room draws is drawn at that size; a file is scaled down, and never up. Raises as `opened`.
    """
    scheme = _scheme(picture)
    image = opened(picture) if scheme is None else _drawn(scheme, picture, "", size)
    image.thumbnail((size, size))
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


class _Flaw(Exception):
    """What is wrong with a file, to go on a sentence that names it."""


def _absolute(path: str | Path) -> Path:
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:  # "~name" of nobody here is a file's name
        return Path(path).absolute()


def _scheme(picture: Picture) -> str | None:
    scheme, colon, _ = picture.source.partition(":")
    return scheme if colon and scheme in SCHEMES else None


def _drawn(scheme: str, picture: Picture, named: str, *size: int) -> Image:
    """What a room draws of a picture's words, at its own size unless one is given."""
    room, _, function = SCHEMES[scheme].partition(":")
    try:
        image: Any = getattr(import_module(room), function)(picture.source.partition(":")[2], *size)
    except TrimtabError as error:
        raise BadItem(f"{named}image {picture.source!r} cannot be drawn: {error}") from error
    return _rgb(image)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("opening images needs 'Pillow'; run: pip install 'trimtab[vision]'") from error
    return Image


def _why(file: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    return "is a folder, expected an image" if file.is_dir() else f"cannot be read ({error.strerror or error})"


def _bytes(file: Path, digest: str) -> bytes:
    """The file's bytes, once: what is compared with the digest is what is decoded."""
    try:
        size = file.stat().st_size
        if size > BYTES and file.is_file():
            raise _Flaw(f"has {size:,} bytes, more than the {BYTES:,} that are read; save it smaller")
        content = file.read_bytes()
    except OSError as error:
        raise _Flaw(_why(file, error)) from error
    if not content:
        raise _Flaw("is empty (0 bytes); copy it again")
    if digest and hashlib.sha256(content).hexdigest() != digest:
        raise _Flaw("was changed since its SHA-256 was taken; load the task again")
    return content


def _decoded(pil: Any, content: bytes) -> Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what is refused below, or of harmless metadata
            with pil.open(io.BytesIO(content), formats=FORMATS) as image:
                _measured(image)
                image.load()
                return _rgb(_upright(image))
    except (_Flaw, MemoryError):
        raise
    except pil.DecompressionBombError as error:
        raise _Flaw(f"would unpack to more than {PIXELS:,} pixels; scale it down") from error
    except pil.UnidentifiedImageError as error:
        raise _Flaw(f"is no image of the formats {', '.join(FORMATS)}, or its beginning is damaged") from error
    except Exception as error:  # a damaged file raises whatever its decoder stumbles over: OSError, SyntaxError, ...
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise _Flaw(f"is damaged or cut off ({reason})") from error


def _measured(image: Any) -> None:
    """Refuse by what the header says, before anything is decoded."""
    width, height = image.size
    if not (width and height):
        raise _Flaw(f"is {width} x {height} pixels, which shows nothing")
    if width * height > PIXELS:
        raise _Flaw(f"is {width:,} x {height:,} pixels, more than {PIXELS:,}; scale it down")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # an MPO's first frame is the photograph, the others are for 3-D displays
        what = "pages" if image.format == "TIFF" else "frames"
        raise _Flaw(f"has {frames} {what} ({image.format}); save the one that is meant as an image of its own")
    if image.mode in SHIFTING:
        raise _Flaw(f"is in {image.mode}, whose colours shift without its profile; save it as RGB")
    if image.mode in UNSCALED and image.format != "PNG":
        raise _Flaw(f"has 32-bit grey values (mode {image.mode}) without a scale; save it with 8 or 16 bits")


def _upright(image: Any) -> Any:
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def _rgb(image: Any) -> Image:
    """By the table at the top of this file."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey, which a PNG was as "I" in older Pillow
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        clear = image.info.get("transparency")
        grey = np.where(values == clear, 255, (values + 128) // 257)
        image = Image.fromarray(grey.astype(np.uint8))
    if image.has_transparency_data:
        above = image.convert("RGBA")
        white = Image.new("RGBA", above.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, above)
    found: Image.Image = image.convert("RGB")
    return found
