"""Which of many 64-bit hashes lie near each other: exact, and without comparing each with every other.

Two hashes that differ in at most `d` bits, cut alike into `b` blocks, have at least `b - d` whole blocks in common,
since each differing bit spoils one block at most. So for each choice of `b - d` blocks the hashes are sorted by those,
and only neighbours that agree in all of them are compared. More blocks mean more sorting and fewer comparisons; how
many are best follows from the number of hashes. Every pair within `d` meets in at least one of the choices: nothing is
left to chance.

Real pictures crowd: thousands are blank, or nearly. Equal hashes are looked at once, and where many agree in the chosen
blocks, the search first spreads out: from one hash to all within its reach, from those to the ones not reached yet. So
a crowd of near hashes costs little more than its size, and memory never grows with the number of pairs.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]

FARTHEST = 12
"""Beyond this many bits of 64 there are too many choices of blocks; and pictures so far apart are hardly alike."""

_BITS = 64
_CROWD = 512  # as many that agree in the chosen blocks are searched by spreading out
_BLOCK = 1 << 18  # comparisons at a time: what fits a processor's cache
_TRIES = 16  # how often to look for a crowd of that part of them
_WAITING = 1 << 20  # pairs that wait to be united
_SORT, _COMPARE = 100, 40  # nanoseconds for each hash and comparison, which is dear because real hashes crowd


def groups(hashes: Hashes, distance: int) -> Places:
    """Group hashes: two within `distance` bits are in one group, and so are any that a chain of such pairs joins.

    Returns:
        For each hash the place of the first one of its group; that of a hash that is alone is its own.
    """
    if not 0 <= distance <= FARTHEST:
        raise ValueError(f"the distance must be from 0 to {FARTHEST}, not {distance}")
    distinct, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    union = _Union(len(distinct))
    if distance and len(distinct) > 1:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for _ in pool.map(lambda mask: _meet(distinct, mask, distance, union), choices(len(distinct), distance)):
                pass
    earliest = np.full(len(distinct), len(hashes), np.int64)
    np.minimum.at(earliest, union.root, first)
    found: Places = earliest[union.root][which]
    return found


def choices(count: int, distance: int) -> list[list[tuple[int, int]]]:
    """Which blocks to sort by, choice after choice; a block is (its lowest bit, how many bits). The cheapest scheme."""

    def cost(blocks: int) -> float:
        bits = _BITS * (blocks - distance) / blocks
        return math.comb(blocks, distance) * (_SORT + _COMPARE * count / 2 ** (bits + 1))

    blocks = min(range(distance + 1, distance + 7), key=cost)
    edges = [_BITS * number // blocks for number in range(blocks + 1)]
    cut = [(low, high - low) for low, high in itertools.pairwise(edges)]
    return [list(chosen) for chosen in itertools.combinations(cut, blocks - distance)]


class _Union:
    """Which places belong together, so far. `root` leads each place to the lowest one of its group."""

    def __init__(self, count: int) -> None:
        self.root: Places = np.arange(count)
        self._lock = threading.Lock()

    def unite(self, pairs: list[tuple[Places, Places]]) -> None:
        """Put both of each pair into one group."""
        if not pairs:
            return
        left, right = (np.concatenate(side) for side in zip(*pairs, strict=True))
        with self._lock:
            root = self.root.copy()  # others read the old one meanwhile
            while True:
                left, right = root[left], root[right]
                apart = left != right
                if not apart.any():
                    break
                left, right = left[apart], right[apart]
                np.minimum.at(root, np.maximum(left, right), np.minimum(left, right))
                while not np.array_equal(further := root[root], root):
                    root = further
            self.root = root


def _meet(hashes: Hashes, blocks: list[tuple[int, int]], distance: int, union: _Union) -> None:
    """Unite those within `distance` among the hashes that agree in these blocks."""
    key = np.zeros(len(hashes), np.uint64)
    for low, bits in blocks:
        key = (key << np.uint64(bits)) | ((hashes >> np.uint64(low)) & np.uint64((1 << bits) - 1))
    place = np.argsort(key)
    key = key[place]
    starts = np.flatnonzero(np.concatenate(([True], key[1:] != key[:-1])))
    ends = np.append(starts[1:], len(key))
    del key
    ordered = hashes[place]
    waiting: list[tuple[Places, Places]] = []

    def found(left: Places, right: Places) -> None:
        left, right = place[left], place[right]
        new = union.root[left] != union.root[right]
        waiting.append((left[new], right[new]))
        if sum(len(side) for side, _ in waiting) > _WAITING:
            union.unite(waiting)
            waiting.clear()

    root = union.root[place]
    new = np.minimum.reduceat(root, starts) != np.maximum.reduceat(root, starts)  # a bucket of one group says nothing
    starts, ends = starts[new], ends[new]
    crowded = ends - starts > _CROWD
    for start, end in zip(starts[crowded].tolist(), ends[crowded].tolist(), strict=True):
        for left, right in _crowd(ordered[start:end], root[start:end], distance):
            found(left + start, right + start)
    sizes = (ends - starts)[~crowded]
    end = np.repeat(ends[~crowded], sizes)
    left = end - np.repeat(np.cumsum(sizes), sizes) + np.arange(len(end))  # all places in these buckets
    for step in itertools.count(1):
        inside = left + step < end
        left, end = left[inside], end[inside]
        if not len(left):
            break
        near = left[np.bitwise_count(ordered[left] ^ ordered[left + step]) <= distance]
        if len(near):
            found(near, near + step)
    union.unite(waiting)


def _crowd(hashes: Hashes, root: Places, distance: int) -> Iterator[tuple[Places, Places]]:
    """Pairs within `distance` that join all that belong together; those of one `root` are known to."""
    rest = np.arange(len(hashes))
    failed = 0
    while len(rest) and failed < _TRIES:
        start = rest[len(rest) * failed // _TRIES]
        before = len(rest)
        same = root[rest] == root[start]
        edge, rest = rest[same], rest[~same]
        while len(edge) and len(rest):
            some = edge[: max(1, _BLOCK // len(rest))]
            near = np.bitwise_count(hashes[some, None] ^ hashes[rest]) <= distance
            reached = near.any(axis=0)
            if reached.any():
                yield some[near[:, reached].argmax(axis=0)], rest[reached]
                reached = np.isin(root[rest], root[rest[reached]])
            edge = np.concatenate((edge[len(some) :], rest[reached]))
            rest = rest[~reached]
        failed += before - len(rest) < before / _TRIES
    while len(rest) > 1:  # no crowd here: each with each
        some = rest[: max(1, _BLOCK // len(rest))]
        left, right = np.nonzero(np.bitwise_count(hashes[some, None] ^ hashes[rest]) <= distance)
        yield some[left[left < right]], rest[right[left < right]]
        rest = rest[len(some) :]
