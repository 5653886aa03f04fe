"""What can be measured in a picture without a model: hashes, sharpness, colour, and the tags that are plain facts.

All measures but the first two are taken on one small copy (longest side 256), so that they cost little more than
decoding and mean the same for a thumbnail and a scan. Transparent parts count as white.

- `sha256`: of the file's bytes.
- `pixels`: sha256 of width, height, mode and the decoded bytes. Equal for the same picture in PNG, BMP or TIFF,
  with whatever metadata; a JPEG of it differs.
- `phash`: 64 bits of the low frequencies, as in pHash (Zauner, "Implementation and Benchmarking of Perceptual Image
  Hash Functions", 2010) and with the bit order of the imagehash library. Near pictures differ in few bits.
- `sharpness`: variance of the Laplacian of the grey levels (0 to 255); below about 100 a picture looks soft.
- `brightness`, `contrast`: mean and standard deviation of luma, where white is 1.
- `colourfulness`: Hasler and Süsstrunk, "Measuring colourfulness in natural images", 2003; 0 is grey, 33 moderate,
  above 80 vivid.
- `tags`: see `plain_tags`.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from cutline.annotators.session import Batched, Row
from cutline.pictures import Picture, decode

Floats = npt.NDArray[np.float32]

SMALL = 256
"""The longest side, in pixels, of the copy that is measured."""

# Chroma is the greatest minus the least of R, G and B. JPEG and scanners give grey a few levels of it.
_GREY_CHROMA = 12
_HUE_SLACK = 8  # levels away from the main hue that are noise
_HUE_SLOPE = 0.36  # tan 20°: the same hue, lighter and darker
_STRAY = 0.001  # the share of pixels that may break a rule
_TRANSPARENT_SHARE = 0.05
_TRANSPARENT_ALPHA = 12


@dataclass(frozen=True)
class Facts:
    """Plain facts about each picture. It has no options: equal pictures have equal facts."""

    writes: ClassVar[str] = "facts"
    reads: ClassVar[tuple[str, ...]] = ("pictures",)
    workers: ClassVar[Literal["device", "core"]] = "core"

    def load(self) -> Measuring:
        """Make the session; there is nothing to load."""
        return Measuring()


class Measuring(Batched):
    """One worker process measures per core; its thread reads and decodes the next picture meanwhile.

    One picture at a time: batches would gain nothing here, and decoded pictures are large.
    """

    threads = 1

    def prepare(self, row: Row) -> tuple[str, Image.Image]:
        """Hash and decode, keeping transparency. All bytes count: facts of other bytes would mislead for ever."""
        picture: Picture = row["picture"]
        data = picture.read(verify=True)
        content = picture.content or ""
        sha256 = content if len(content) == 64 else hashlib.sha256(data).hexdigest()
        return sha256, decode(data, None, name=repr(str(picture.path)))

    def batch(self, rows: list[Row], prepared: list[Any]) -> list[Row]:
        """Measure."""
        return [{"sha256": sha256, **measure(image)} for sha256, image in prepared]


def measure(image: Image.Image) -> Row:
    """All facts of a decoded picture (RGB, or RGBA where it is transparent)."""
    small = _reduce(image)
    transparent = 0.0
    if image.mode == "RGBA":
        histogram = image.getchannel("A").histogram()
        transparent = sum(histogram[: _TRANSPARENT_ALPHA + 1]) / (image.width * image.height)
        white = Image.new("RGBA", small.size, (255, 255, 255, 255))
        small = Image.alpha_composite(white, small).convert("RGB")
    grey = small.convert("L")
    luma = np.asarray(grey)
    red_green, yellow_blue, chroma = _opponents(small)
    return {
        "pixels": hash_pixels(image),
        "phash": phash(grey),
        "sharpness": sharpness(luma),
        "brightness": float(luma.mean()) / 255,
        "contrast": float(luma.std()) / 255,
        "colourfulness": colourfulness(red_green, yellow_blue),
        "tags": plain_tags(image.width, image.height, transparent) + _colour_tags(red_green, yellow_blue, chroma),
    }


def hash_pixels(image: Image.Image) -> str:
    """sha256 of `<width>x<height> <mode>\\n` and the bytes of the pixels, row by row."""
    found = hashlib.sha256(f"{image.width}x{image.height} {image.mode}\n".encode())
    rows = max(1, (1 << 16) // image.width)  # a band at a time, so that a large picture is not copied whole
    for top in range(0, image.height, rows):
        found.update(image.crop((0, top, image.width, min(top + rows, image.height))).tobytes())
    return found.hexdigest()


def _reduce(image: Image.Image) -> Image.Image:
    """The small copy: means of whole blocks, which is fast, then of what is left. A small picture stays as it is."""
    longest = max(image.size)
    if longest <= SMALL:
        return image
    size = (max(1, round(image.width * SMALL / longest)), max(1, round(image.height * SMALL / longest)))
    blocks = image.reduce(longest // SMALL)
    return blocks if blocks.size == size else blocks.resize(size, Image.Resampling.BOX)


def _opponents(image: Image.Image) -> tuple[Floats, Floats, Floats]:
    """Red against green, yellow against blue, and chroma, per pixel."""
    red, green, blue = (np.asarray(band, dtype=np.float32) for band in image.split())
    chroma: Floats = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    yellow_blue: Floats = (red + green) * np.float32(0.5) - blue
    return red - green, yellow_blue, chroma


def phash(grey: Image.Image) -> int:
    """The 64-bit perceptual hash of a grey picture: which of the lowest 8 x 8 frequencies exceed their median.

    The frequencies are those of its 32 x 32 copy. The first bit, that of the mean, is the most significant.
    """
    levels = np.asarray(grey.resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    low = _cosines() @ levels @ _cosines().T
    low = low.round(6)  # without this, frequencies that a picture lacks would be set by the noise of the arithmetic
    bits = np.packbits(low > np.median(low))
    return int.from_bytes(bits.tobytes(), "big")


@functools.cache
def _cosines() -> npt.NDArray[np.float64]:
    """The first 8 rows of the 32-point DCT-II matrix."""
    frequency, place = np.arange(8)[:, None], np.arange(32)[None, :]
    return np.cos(np.pi * frequency * (2 * place + 1) / 64)


def sharpness(luma: npt.NDArray[np.uint8]) -> float:
    """Variance of the 4-neighbour Laplacian; 0 for a picture with no inner pixels."""
    levels = luma.astype(np.int16)
    inner = levels[1:-1, 1:-1]
    if not inner.size:
        return 0.0
    laplacian = levels[:-2, 1:-1] + levels[2:, 1:-1] + levels[1:-1, :-2] + levels[1:-1, 2:] - 4 * inner
    return float(laplacian.var())


def colourfulness(red_green: Floats, yellow_blue: Floats) -> float:
    """Hasler and Süsstrunk's M3: the spread of the two colour axes and 0.3 of the mean's distance from grey."""
    spread = np.hypot(red_green.std(), yellow_blue.std())
    return float(spread + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean()))


def plain_tags(width: int, height: int, transparent: float) -> list[str]:
    """Danbooru's tags about size and background.

    - `highres`: 1600 wide or 1200 high. `absurdres`: 3200 or 2400, and `highres` with it.
    - `wide_image`, `tall_image`: the longer side is at least 1024 and four times the shorter one.
    - `transparent_background`: at least 5 % of the pixels are (nearly) invisible: alpha 12 or less of 255.
    """
    tags = []
    if width >= 1600 or height >= 1200:
        tags.append("highres")
    if width >= 3200 or height >= 2400:
        tags.append("absurdres")
    if width >= 1024 and width >= 4 * height:
        tags.append("wide_image")
    if height >= 1024 and height >= 4 * width:
        tags.append("tall_image")
    if transparent >= _TRANSPARENT_SHARE:
        tags.append("transparent_background")
    return tags


def _colour_tags(red_green: Floats, yellow_blue: Floats, chroma: Floats) -> list[str]:
    """`greyscale` and `monochrome`, up to one stray pixel in a thousand.

    - `greyscale`: no colour, that is chroma of at most 12 of 255 levels, more than JPEG and scanners give to grey.
    - `monochrome`: one hue with its tints and shades, greyscale among them. In the plane of the colour axes all
      pixels lie on one side of grey, within 20 degrees (and 8 levels) of the mean direction.
    """
    if (chroma > _GREY_CHROMA).mean() <= _STRAY:
        return ["monochrome", "greyscale"]
    across, up = float(red_green.mean()), float(yellow_blue.mean())
    length = float(np.hypot(across, up))
    if not length:  # hues that cancel out
        return []
    along = (red_green * across + yellow_blue * up) / length
    aside = np.abs(yellow_blue * across - red_green * up) / length
    other_hue = (aside > _HUE_SLACK + _HUE_SLOPE * np.maximum(along, 0)) | (along < -_HUE_SLACK)
    return ["monochrome"] if other_hue.mean() <= _STRAY else []
