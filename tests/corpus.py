"""Pictures as they come: a corpus of damaged, odd and oddly named files, for any test that meets pictures."""

from __future__ import annotations

import os
import struct
import unicodedata
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def make_photo(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    """A small RGB picture with gradients, shapes and a little noise, the same for the same seed."""
    random = np.random.default_rng(seed)
    down, across = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    canvas = np.stack([across * 200, down * 180, 120 + 60 * np.sin(6 * across + 4 * down)], axis=-1)
    for _ in range(4):
        top, left = random.integers(0, max(1, height // 2)), random.integers(0, max(1, width // 2))
        canvas[top : top + height // 3, left : left + width // 3] = random.integers(0, 256, 3)
    canvas += random.normal(0, 6, canvas.shape)
    return Image.fromarray(canvas.clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str, **settings: Any) -> bytes:
    """The bytes of a file of this kind."""
    out = BytesIO()
    image.save(out, kind, **settings)
    return out.getvalue()


def oriented(orientation: int) -> Image.Exif:
    """EXIF that says how to turn the picture, 1 to 8."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png_header(width: int, height: int) -> bytes:
    """The first 33 bytes of an RGB PNG."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def make_bad_corpus(folder: Path) -> dict[str, str | None]:
    """Write the corpus. Returns each file's name, relative to `folder`, with the error it should have, or None.

    A folder `looping folder` holds a good picture and a link to itself, `again`, which no walk should follow.
    """
    folder.mkdir(parents=True, exist_ok=True)
    photo = make_photo()
    jpeg, png = encode(photo, "JPEG", quality=90), encode(photo, "PNG")
    frames = [make_photo(seed=seed) for seed in (1, 2)]
    palette = photo.quantize(16)

    bad: dict[str, tuple[bytes, str]] = {
        "empty.jpg": (b"", "empty"),
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "truncated.png": (png[: len(png) // 2], "truncated"),
        "beheaded.png": (png[:20], "truncated"),
        "error page.png": (b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>", "not_an_image"),
        "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "unsupported"),
        "drawing named.png": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported"),
        "film.mp4": (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", "unsupported"),
        "film named.jpg": (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", "unsupported"),
        "bomb.png": (png_header(60_000, 60_000) + struct.pack(">I", 1 << 20) + b"IDAT", "too_large"),
        "bare bomb.png": (png_header(60_000, 60_000), "too_large"),
    }
    ramp = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    good: dict[str, bytes] = {
        "cmyk.jpg": encode(photo.convert("CMYK"), "JPEG"),
        "sixteen bits.png": encode(Image.fromarray(ramp), "PNG"),
        "palette with alpha.png": encode(palette, "PNG", transparency=bytes(range(0, 256, 16))),
        "animated.gif": encode(photo, "GIF", save_all=True, append_images=frames),
        "animated.webp": encode(photo, "WEBP", save_all=True, append_images=frames),
        "rotated.jpg": encode(photo, "JPEG", exif=oriented(6)),
        "name with  spaces.jpg": jpeg,
        "emoji 🐈‍⬛.jpg": jpeg,
        "猫と庭.jpg": jpeg,
        "n" * 246 + ".jpg": jpeg,  # 250 bytes; most file systems allow 255
        "[brackets] {braces} *.jpg": jpeg,
        "new\nline.jpg": jpeg,
        "UPPER.JPG": jpeg,
        "Mixed.JpEg": jpeg,
        "looping folder/inside.png": png,
    }
    expected: dict[str, str | None] = {}
    (folder / "looping folder").mkdir(exist_ok=True)
    for name, (data, reason) in bad.items():
        (folder / name).write_bytes(data)
        expected[name] = reason
    for name, data in good.items():
        (folder / name).write_bytes(data)
        expected[name] = None
    for name, target in (("loop a.png", "loop b.png"), ("loop b.png", "loop a.png"), ("dangling.png", "gone.png")):
        (folder / name).symlink_to(target)
        expected[name] = "vanished"
    (folder / "looping folder" / "again").symlink_to(".")
    if os.geteuid() != 0:  # root reads everything
        (folder / "locked.jpg").write_bytes(jpeg)
        (folder / "locked.jpg").chmod(0)
        expected["locked.jpg"] = "permission"
    return expected


def make_twins(folder: Path) -> tuple[str, str]:
    """Write two pictures whose names differ only as NFC and NFD do; returns both names, NFC first.

    Linux keeps both. A file system that normalises names (that of macOS) would keep one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    composed, decomposed = (unicodedata.normalize(form, "café.png") for form in ("NFC", "NFD"))
    (folder / composed).write_bytes(encode(make_photo(seed=1), "PNG"))
    (folder / decomposed).write_bytes(encode(make_photo(seed=2), "PNG"))
    return composed, decomposed
