"""Aspect-ratio buckets, as kohya-ss/sd-scripts makes and chooses them.

A trainer crops every picture to one of a few sizes in pixels, its buckets. Those of `max_reso`'s area are made
beforehand, and a picture goes into the one whose ratio of width to height is nearest to its own: it is scaled until it
just covers the bucket, and what juts out is cropped. With `no_upscale` nothing is made beforehand: a picture is scaled
down to that area where it is larger, left alone where it is not, and cropped to multiples of `steps`. The rules are
those of sd-scripts 0.10.1 (`BucketManager` of `library/train_util.py` and `make_bucket_resolutions` of
`library/model_util.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cutline.compose.kohya import TrainerError
from cutline.options import OptionError

Numbers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def sides(batch: pa.RecordBatch) -> tuple[pa.Int32Array, pa.Int32Array]:
    """Width and height in pixels of some pictures as a trainer sees them, which ignores EXIF; null where unknown.

    Args:
        batch: rows with the columns `width`, `height` and `orientation`.
    """
    width, height = batch.column("width"), batch.column("height")
    turned = pc.fill_null(pc.greater_equal(batch.column("orientation"), 5), False)
    if pc.any(turned).as_py():
        width, height = pc.if_else(turned, height, width), pc.if_else(turned, width, height)
    return width, height


@dataclass(frozen=True)
class Bucket:
    """Where one picture goes."""

    width: int
    height: int
    """What is left of the picture, in pixels."""
    resized: tuple[int, int]
    """Its width and height in pixels before it is cropped to that."""
    ar_error: float
    """The bucket's ratio of width to height, less the picture's."""


@dataclass(frozen=True)
class Buckets:
    """The buckets of one dataset.

    Raises:
        OptionError: sizes that the trainer refuses too.
    """

    max_reso: tuple[int, int] = (1024, 1024)
    """`resolution` of the dataset config: no bucket has more pixels than this width times this height."""
    min_size: int = 256
    """`min_bucket_reso`, which like the next has no effect with `no_upscale`."""
    max_size: int = 2048
    """`max_bucket_reso`: both are limits in pixels of a bucket's width and height."""
    steps: int = 64
    """`bucket_reso_steps`: widths and heights are multiples of this many pixels."""
    no_upscale: bool = False
    """`bucket_no_upscale`."""

    def __post_init__(self) -> None:
        width, height = self.max_reso
        if min(width, height, self.min_size, self.steps) < 1:
            raise OptionError("max_reso, min_size and steps are pixels, of which there is at least 1")
        if self.max_size < max(width, height):
            raise OptionError(
                f"max_size = {self.max_size} is below max_reso {width}x{height}; make it at least as large"
            )
        if self.max_size < self.min_size:
            raise OptionError(f"max_size = {self.max_size} is below min_size = {self.min_size}")
        if not self.no_upscale and math.isqrt(self.area) < self.steps:
            raise OptionError(f"max_reso {width}x{height} has no room for a bucket of steps = {self.steps}")

    @property
    def area(self) -> int:
        """The most pixels of a bucket."""
        return self.max_reso[0] * self.max_reso[1]

    @cached_property
    def predefined(self) -> list[tuple[int, int]]:
        """All buckets as (width, height), from the narrowest; none with `no_upscale`."""
        if self.no_upscale:
            return []
        side = math.isqrt(self.area) // self.steps * self.steps
        found = {(side, side)}
        for width in range(self.min_size, self.max_size + 1, self.steps):
            height = min(self.max_size, self.area // width // self.steps * self.steps)
            if height >= self.min_size:
                found |= {(width, height), (height, width)}
        return sorted(found)

    def choose(self, width: int, height: int) -> Bucket:
        """The bucket of a picture of this size in pixels.

        Raises:
            OptionError: a picture without pixels.
            TrainerError: the picture is so small or narrow that the trainer, with `no_upscale`, stops at it.
        """
        if width < 1 or height < 1:
            raise OptionError(f"a picture of {width}x{height} pixels is none")
        widths, heights, scaled = self._choose(np.array([width]), np.array([height]))
        if heights[0] == 0:
            raise TrainerError("ZeroDivisionError", "division by zero")
        chosen = int(widths[0]), int(heights[0])
        return Bucket(*chosen, (int(scaled[0][0]), int(scaled[1][0])), chosen[0] / chosen[1] - width / height)

    def choose_all(self, widths: npt.ArrayLike, heights: npt.ArrayLike) -> tuple[Numbers, Numbers]:
        """Widths and heights of the buckets of many pictures; (0, 0) where the trainer would stop.

        Args:
            widths: of the pictures in pixels, at least 1.
            heights: as widths.
        """
        wide, high = np.asarray(widths, np.int64), np.asarray(heights, np.int64)
        if np.any(wide < 1) or np.any(high < 1):
            raise OptionError("a picture without pixels has no bucket: widths and heights are at least 1")
        found = [
            self._choose(wide[begin : begin + _AT_ONCE], high[begin : begin + _AT_ONCE])[:2]
            for begin in range(0, len(wide), _AT_ONCE)
        ]
        if not found:
            return wide, high
        return np.concatenate([one for one, _ in found]), np.concatenate([other for _, other in found])

    def _choose(self, width: Numbers, height: Numbers) -> tuple[Numbers, Numbers, tuple[Numbers, Numbers]]:
        """Widths and heights of buckets, and of the pictures before they are cropped to them."""
        return self._rounded(width, height) if self.no_upscale else self._nearest(width, height)

    def _nearest(self, width: Numbers, height: Numbers) -> tuple[Numbers, Numbers, tuple[Numbers, Numbers]]:
        ratio = width / height
        bucket = np.zeros(len(width), np.int64)
        least = np.full(len(width), np.inf)
        for place, (one_width, one_height) in enumerate(self.predefined):
            error = np.abs(one_width / one_height - ratio)
            nearer = error < least  # of two as near, the first stays; no two have one ratio
            bucket[nearer], least[nearer] = place, error[nearer]
        sizes = np.array(self.predefined, np.int64)
        bucket_width, bucket_height = sizes[bucket].T
        wider = ratio > bucket_width / bucket_height
        scale = np.where(wider, bucket_height / height, bucket_width / width)
        return bucket_width, bucket_height, (_nearest_int(width * scale), _nearest_int(height * scale))

    def _rounded(self, width: Numbers, height: Numbers) -> tuple[Numbers, Numbers, tuple[Numbers, Numbers]]:
        large = width * height > self.area
        ratio = width / height
        exact_width = np.sqrt(self.area * ratio)
        exact_height = self.area / exact_width
        # One side is rounded to steps, and the other follows: whichever side keeps the ratio better.
        by_width = self._to_steps(exact_width)
        by_height = self._to_steps(exact_height)
        with np.errstate(divide="ignore", invalid="ignore"):
            width_error = np.abs(by_width / self._to_steps(by_width / ratio) - ratio)
            height_error = np.abs(self._to_steps(by_height * ratio) / by_height - ratio)
        fails = large & ((by_height == 0) | (self._to_steps(by_width / ratio) == 0))
        first = width_error < height_error
        scaled_width = np.where(first, by_width, _nearest_int(by_height * ratio))
        scaled_height = np.where(first, _nearest_int(by_width / ratio), by_height)
        scaled_width = np.where(large, scaled_width, width)
        scaled_height = np.where(large, scaled_height, height)
        bucket_width = scaled_width - scaled_width % self.steps
        bucket_height = scaled_height - scaled_height % self.steps
        fails |= bucket_height == 0
        return np.where(fails, 0, bucket_width), np.where(fails, 0, bucket_height), (scaled_width, scaled_height)

    def _to_steps(self, pixels: Any) -> Numbers:
        whole = _nearest_int(pixels)
        return whole - whole % self.steps


_AT_ONCE = 1 << 16  # pictures whose numbers stay in a processor's cache


def _nearest_int(values: Any) -> Numbers:
    whole: Numbers = (values + 0.5).astype(np.int64)
    return whole
