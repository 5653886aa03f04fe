"""Random numbers that depend on nothing but seed, epoch, picture and purpose.

What a recipe leaves to chance is drawn anew in every epoch, and comes out the same on every machine, in whatever order
and however many at a time pictures are composed. The number of a picture is the 64-bit XXH3 of the text
`<seed>:<epoch>:<key>` in UTF-8, xor that of the purpose's name; the n-th draw for it is what the SplitMix64 generator
gives n + 1 steps on (Steele, Lea and Flood, *Fast splittable pseudorandom number generators*, OOPSLA 2014).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

Integers = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


class Draws:
    """The random numbers of some pictures."""

    def __init__(self, keys: pa.StringArray, seed: int, epoch: int) -> None:
        self._keys, self._head = keys, f"{seed}:{epoch}:".encode()

    def integers(self, purpose: str, rows: npt.NDArray[np.int64] | None = None, number: object = 0) -> Integers:
        """Random 64-bit numbers: draw `number` (one, or an array as long as `rows`) of each of these rows or of all."""
        start = self._numbers if rows is None else self._numbers[rows]
        with np.errstate(over="ignore"):
            mixed = (start ^ np.uint64(xxhash.xxh3_64_intdigest(purpose.encode()))) + _STEP * (
                np.asarray(number, np.uint64) + np.uint64(1)
            )
            mixed = (mixed ^ (mixed >> np.uint64(30))) * _FIRST
            mixed = (mixed ^ (mixed >> np.uint64(27))) * _SECOND
        found: Integers = mixed ^ (mixed >> np.uint64(31))
        return found

    def uniform(self, purpose: str, rows: npt.NDArray[np.int64] | None = None, number: object = 0) -> Floats:
        """As `integers`, evenly from 0 up to, and not, 1: the upper 53 bits of each number."""
        upper = (self.integers(purpose, rows, number) >> np.uint64(11)).astype(np.float64)
        return upper * 2.0**-53

    def picker(self, purpose: str, row: int) -> Callable[[int], int]:
        """What picks, draw by draw, one of so many things for a row: gives a number from 0 up to the given one."""
        numbers = itertools.count()
        place = np.array([row])
        return lambda count: int(self.integers(purpose, place, next(numbers))[0]) * count >> 64

    @cached_property
    def _numbers(self) -> Integers:
        head, hashed = self._head, xxhash.xxh3_64_intdigest
        return np.fromiter(
            (hashed(head + key) for key in self._keys.cast(pa.binary()).to_pylist()), np.uint64, len(self._keys)
        )
