"""The bytes of a picture, what is wrong with them, and the one function that turns them into pixels.

Everything in Cutline that looks at a picture goes through `decode`, so that a caption, a fact and the web page
speak of the same pixels: turned upright as its EXIF orientation says, 16 bits scaled (not clipped) to 8, transparency
laid over one background, the first frame of an animation. Colour profiles are not applied, as trainers do not apply
them either.

A picture that cannot be had raises `PictureError`, whose `reason` is one of `REASONS`. Damaged files are never
half-decoded: half a picture would get a whole caption.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import stat
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cutline import archives
from cutline.options import CutlineError

if TYPE_CHECKING:  # Pillow and its formats take 60 ms to import, and most commands never open a picture
    from PIL import Image

Reason = Literal["empty", "truncated", "not_an_image", "too_large", "unsupported", "vanished", "permission", "changed"]

WHITE = (255, 255, 255)

MAX_PIXELS = 178_956_970
"""Pictures with more pixels are refused by what their header says; it is where Pillow, too, suspects a bomb."""

MAX_BYTES = 1 << 31
"""Larger files are not read: 2 GiB hold `MAX_PIXELS` with 16 bits and alpha, uncompressed."""

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})
"""Suffixes, in lower case, of the pictures that Cutline reads. What a file is, its bytes say."""

# fmt: off
FOREIGN = frozenset({
    ".svg", ".svgz", ".ai", ".eps", ".pdf", ".psd", ".psb", ".xcf", ".kra", ".clip", ".heic", ".heif", ".jxl", ".jp2",
    ".j2k", ".jpx", ".ico", ".cur", ".tga", ".dds", ".exr", ".hdr", ".qoi", ".cr2", ".cr3", ".nef", ".arw", ".dng",
    ".orf", ".rw2", ".raf", ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".wmv", ".flv", ".mpg", ".mpeg", ".3gp",
    ".swf",
})
# fmt: on
"""Suffixes of pictures and films that Cutline does not read: reported as `unsupported`, never opened."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # as Pillow calls them

# How a file of each format begins, to tell a damaged picture from what never was one.
_BEGINS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}

_BEGINS_FOREIGN = {
    b"8BPS": "a Photoshop file",
    b"%PDF": "a PDF",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\x1aE\xdf\xa3": "Matroska or WebM video",
    b"\0\0\1\0": "an icon",
    b"qoif": "QOI",
}

# What Pillow raises for bad data. tests/test_pictures.py breaks files in many ways to see that this is all.
_BAD_DATA = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    RuntimeError,  # AVIF
    struct.error,
    zlib.error,
)


class PictureError(CutlineError):
    """A picture that cannot be had. `reason` is the `error` of its row, the text its `detail`."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason

    def __reduce__(self) -> tuple[type[PictureError], tuple[Reason, str]]:
        return PictureError, (self.reason, str(self))  # so that it travels between processes


@dataclass(frozen=True)
class Picture:
    """Where a picture's bytes are, and what they were when they were last looked at."""

    path: Path
    size: int | None = None
    mtime_ns: int | None = None
    """Of the file; of a picture in an archive that of the archive."""
    content: str | None = None
    offset: int | None = None
    """Where its bytes begin in the archive that `path` leads into; none for a file of its own."""

    def read(self, *, verify: bool = False) -> bytes:
        """Return the bytes of the file.

        A file that is not of the size and time known may have changed, and is hashed; `verify` hashes it in any case
        where `content` is known. Words made of other bytes would be filed under the wrong content.
        """
        data, size, mtime_ns = _read(self.path, self.offset, self.size)
        if not data:
            raise PictureError("empty", f"{_name(self.path)} is empty (0 bytes)")
        known = self.size is not None and self.mtime_ns is not None
        if known and (size, mtime_ns) != (self.size, self.mtime_ns):
            verify = True
        elif self.content is None:
            verify = False  # nothing to hold it against
        if verify and _digest(data, self.content) != self.content:
            raise PictureError("changed", f"{_name(self.path)} has changed since it was added: run cutline add again")
        return data

    def decode(self, background: tuple[int, int, int] = WHITE) -> Image.Image:
        """Return the picture as RGB, upright, over `background` where it is transparent."""
        return decode(self.read(), background, name=_name(self.path))


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found: the columns of a picture's row."""

    content: str | None = None
    size: int | None = None
    mtime_ns: int | None = None
    width: int | None = None
    height: int | None = None
    format: str | None = None
    orientation: int | None = None
    error: Reason | None = None
    detail: str | None = None


def inspect(path: Path, offset: int | None = None, size: int | None = None) -> Inspection:
    """Read a file once, hash it and see whether all of it decodes. Bad files do not raise: `error` says what is wrong.

    Files with a suffix in `FOREIGN` are not opened, since films are large: they have no `content`. With `offset` and
    `size`, it is a picture in an archive.
    """
    content = mtime_ns = None
    try:
        if path.suffix.lower() in FOREIGN:
            status = _stat(path if offset is None else _archive(path))
            size, mtime_ns = status.st_size if offset is None else size, status.st_mtime_ns
            raise PictureError("unsupported", f"{_name(path)}: {path.suffix.lower()} files are not read")
        data, size, mtime_ns = _read(path, offset, size)
        content = hashlib.sha256(data).hexdigest()
        width, height, kind, orientation = _verify(data, _name(path))
    except PictureError as error:
        return Inspection(content, size, mtime_ns, error=error.reason, detail=str(error))
    return Inspection(content, size, mtime_ns, width, height, kind, orientation)


def decode(
    data: bytes,
    background: tuple[int, int, int] | None = WHITE,
    *,
    at_least: int | None = None,
    name: str = "the picture",
) -> Image.Image:
    """Return the picture in these bytes: 8 bits per channel, upright, its first frame, without metadata.

    Args:
        data: a whole file.
        background: the colour behind transparent parts. With None, a picture that has any stays RGBA.
        at_least: a reduced picture will do, with no side shorter than this many pixels (a JPEG decodes faster so).
        name: what to call the picture in errors.

    Raises:
        PictureError: empty, truncated, not_an_image, too_large or unsupported.
    """
    image = _open(data, name)
    try:
        if at_least is not None:
            image.draft(None, (max(1, at_least), max(1, at_least)))
        image.load()
        return _flatten(_turn(_eight_bits(image), _orientation(image)), background)
    except MemoryError as error:
        raise PictureError("too_large", f"{name} does not fit in memory: {image.width} x {image.height}") from error
    except _BAD_DATA as error:
        raise _damaged(error, name) from error


def _verify(data: bytes, name: str) -> tuple[int, int, str, int]:
    """Width and height as shown, the format and the EXIF orientation of a picture all of which decodes."""
    image = _open(data, name)
    kind = str(image.format)
    try:
        if kind in ("JPEG", "MPO"):
            # Reading every coefficient finds a missing end as surely as computing every pixel, in less time.
            width, height = image.size
            image.draft("L", (1, 1))
            image.load()
        else:
            image.load()
            width, height = image.size
        orientation = _orientation(image)
        return (height, width, kind, orientation) if orientation >= 5 else (width, height, kind, orientation)
    except MemoryError as error:
        raise PictureError("too_large", f"{name} does not fit in memory: {image.width} x {image.height}") from error
    except _BAD_DATA as error:
        raise _damaged(error, name) from error


def _open(data: bytes, name: str) -> Image.Image:
    """Read the header and no pixels."""
    from io import BytesIO

    _prepare_pillow()
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise PictureError("empty", f"{name} is empty (0 bytes)")
    try:
        image = Image.open(BytesIO(data), formats=_FORMATS)
    except (Image.DecompressionBombError, MemoryError) as error:
        raise PictureError("too_large", f"{name} is too large to decode: {error}") from error
    except UnidentifiedImageError:
        raise _unidentified(data, name) from None
    except _BAD_DATA as error:
        raise _damaged(error, name) from error
    if image.width * image.height > MAX_PIXELS:  # someone may have lifted Pillow's own limit
        raise _too_many_pixels(image.width, image.height, name)
    return image


@functools.cache
def _prepare_pillow() -> None:
    """Import the formats that are read (asked for by name, Pillow would import all 45), and quieten them."""
    import warnings

    from PIL import AvifImagePlugin, Image, TiffImagePlugin, WebPImagePlugin  # noqa: F401

    Image.preinit()
    # Pillow warns about odd metadata and about 90 million pixels. The pixels are either right or an error here.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def _unidentified(data: bytes, name: str) -> PictureError:
    begins = next((kind for magic, kind in _BEGINS.items() if data.startswith(magic)), None)
    foreign = next((kind for magic, kind in _BEGINS_FOREIGN.items() if data.startswith(magic)), None)
    head = data[:1024].lower()
    if data[:4] == b"RIFF":
        begins, foreign = ("WEBP", None) if data[8:12] == b"WEBP" else (None, "a RIFF file (AVI, WAV)")
    elif data[4:8] == b"ftyp":
        begins, foreign = ("AVIF", None) if data[8:12] in (b"avif", b"avis") else (None, "HEIF or MPEG-4")
    elif b"<svg" in head and b"<html" not in head:
        foreign = "SVG"
    if begins == "PNG" and data[12:16] == b"IHDR" and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        if width * height > MAX_PIXELS:  # a bare header is too large before it is cut off
            return _too_many_pixels(width, height, name)
    if begins:
        return PictureError(
            "truncated", f"{name} begins like {begins}, but its header is cut off, damaged or of a rare kind"
        )
    if foreign:
        return PictureError("unsupported", f"{name} is {foreign}, which is not read")
    what = "a web page" if b"<html" in head or b"<!doctype html" in head else f"it begins with {data[:8]!r}"
    return PictureError("not_an_image", f"{name} is not a picture: {what}")


def _too_many_pixels(width: int, height: int, name: str) -> PictureError:
    return PictureError(
        "too_large", f"{name} is too large to decode: {width} x {height}, the limit is {MAX_PIXELS} pixels"
    )


def _damaged(error: Exception, name: str) -> PictureError:
    return PictureError("truncated", f"{name} is cut off or damaged: {error}")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or where it cannot be read, as viewers do."""
    try:
        found = image.getexif().get(0x0112, 1)
    except _BAD_DATA:
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _turn(image: Image.Image, orientation: int) -> Image.Image:
    from PIL.Image import Transpose

    method = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(orientation)
    return image if method is None else image.transpose(method)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey values of more than 8 bits by their real range; Pillow's own conversion clips them.

    - 16 bits (`I;16`): 0 to 65535, so that 65535 is white; 12-bit TIFFs: 0 to 4095.
    - 32-bit integers (`I`): 0 to 65535 where all values lie in it, as those come from 16-bit files;
      otherwise from their least to their greatest.
    - floats (`F`): 0 to 1, else 0 to 255 where all values lie in it; otherwise from least to greatest.
    """
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    import numpy
    from PIL import Image

    values = numpy.asarray(image)
    real = values[numpy.isfinite(values)] if image.mode == "F" else values
    least, greatest = (float(real.min()), float(real.max())) if real.size else (0.0, 0.0)
    tags = getattr(image, "tag_v2", {})  # of TIFF: 258 is BitsPerSample, 262 is 0 where 0 is white
    usual = {"F": (1.0, 255.0), "I": (65535.0,)}.get(image.mode, (4095.0 if tags.get(258) == (12,) else 65535.0,))
    low, high = next(((0.0, top) for top in usual if least >= 0 and greatest <= top), (least, greatest))
    enough = "float32" if image.mode.startswith("I;") else "float64"
    scaled = (values.astype(enough) - low) * (255 / ((high - low) or 1))
    eight = numpy.rint(numpy.nan_to_num(scaled, nan=0.0).clip(0, 255)).astype(numpy.uint8)
    grey = Image.fromarray(255 - eight if tags.get(262) == 0 else eight)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # PNG names one grey value
        grey.putalpha(Image.fromarray(numpy.where(values == transparent, 0, 255).astype(numpy.uint8)))
    return grey


def _flatten(image: Image.Image, background: tuple[int, int, int] | None) -> Image.Image:
    """Convert to RGB over the background, or to RGBA where there is transparency and no background."""
    from PIL import Image

    if image.has_transparency_data:
        premultiplied = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
        image = (image.convert(premultiplied) if premultiplied else image).convert("RGBA")
        if image.getchannel("A").getextrema() == (255, 255):
            image = image.convert("RGB")  # transparent in name only
        elif background is not None:
            behind = Image.new("RGBA", image.size, (*background, 255))
            image = Image.alpha_composite(behind, image).convert("RGB")
    else:
        image = image.convert("RGB")
    image.info.clear()  # it is upright now: an orientation left here would turn it again
    return image


def _read(path: Path, offset: int | None = None, size: int | None = None) -> tuple[bytes, int, int]:
    """The bytes of a file or of a picture in an archive, their number, and the file's time when they were read."""
    file = path if offset is None else _archive(path)
    status = _stat(file)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise PictureError("not_an_image", f"{_name(path)} is not a file")
    wanted = status.st_size if offset is None else size or 0
    if wanted > MAX_BYTES:
        raise PictureError("too_large", f"{_name(path)} has {wanted} bytes; the limit is {MAX_BYTES}")
    try:
        with file.open("rb") as handle:
            if offset is None:
                data, status = handle.read(), os.fstat(handle.fileno())
                return data, status.st_size, status.st_mtime_ns
            handle.seek(offset)
            data, status = handle.read(wanted), os.fstat(handle.fileno())
    except OSError as error:
        raise _unreachable(path, error) from error
    if len(data) < wanted:
        raise PictureError(
            "truncated",
            f"{_name(file)} ends before {_name(path)} does: it was cut off or changed. Run cutline add again",
        )
    return data, wanted, status.st_mtime_ns


def _archive(path: Path) -> Path:
    """The archive that a picture is in."""
    archive = archives.holding(path)
    if archive is None:
        raise PictureError("vanished", f"the archive of {_name(path)} is not there any more")
    return archive


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise _unreachable(path, error) from error


def _unreachable(path: Path, error: Exception) -> PictureError:
    code = getattr(error, "errno", None)
    if code in (errno.EACCES, errno.EPERM):
        return PictureError("permission", f"{_name(path)} may not be read: chmod it, or run as its owner")
    if code == errno.ELOOP:
        return PictureError("vanished", f"{_name(path)} is a link that leads back to itself")
    if code == errno.ENOENT and path.is_symlink():
        return PictureError("vanished", f"{_name(path)} is a link to a file that is not there")
    if code in (errno.ENOENT, errno.ENOTDIR):
        return PictureError("vanished", f"{_name(path)} is not there any more")
    # A failing disk or network: like a vanished picture it may come back.
    return PictureError("vanished", f"{_name(path)} cannot be read: {getattr(error, 'strerror', None) or error}")


def _digest(data: bytes, like: str | None) -> str:
    """sha256, or md5 where that is what the metadata gave."""
    if like is not None and len(like) == 32:
        return hashlib.md5(data, usedforsecurity=False).hexdigest()
    return hashlib.sha256(data).hexdigest()


def _name(path: Path) -> str:
    return repr(os.fspath(path))  # a newline in a name must not break a line of output
