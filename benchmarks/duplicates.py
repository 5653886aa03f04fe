"""Near duplicates among a million pictures: `near.groups` against comparing every hash with every other.

Three collections of 64-bit hashes: strangers only; a mixture of strangers, families of changed copies, nearly blank
pictures and equal ones, as collections are; and one whose bits lean to one side, since those of real pictures do. Brute
force compares each hash with all later ones, a row at a time, with numpy as well. It is run on the first hashes, where
both must find the same groups, and is extrapolated by the square of their number.

    python benchmarks/duplicates.py                   # a million hashes: a minute or two on two cores
    python benchmarks/duplicates.py -n 100000
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable

import numpy as np

from cutline import near
from cutline.duplicates import DISTANCE
from pairs import finish, say_machine, verdict

SECONDS, MEGABYTES = 60.0, 2000.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--hashes", type=int, default=1_000_000)
    parser.add_argument("--brute", type=int, default=20_000, help="how many brute force compares")
    chosen = parser.parse_args()
    say_machine()
    met: list[bool] = []
    for name, make in COLLECTIONS.items():
        hashes = make(np.random.default_rng(0), chosen.hashes)
        few = hashes[: chosen.brute]
        start = time.perf_counter()
        expected = brute(few)
        slow = (time.perf_counter() - start) * (len(hashes) / len(few)) ** 2
        if not np.array_equal(near.groups(few, DISTANCE), expected):
            sys.exit(f"{name}: other groups than brute force finds among {len(few):,}")
        start = time.perf_counter()
        groups = near.groups(hashes, DISTANCE)
        seconds = time.perf_counter() - start
        sizes = np.bincount(groups)
        shared = sizes[sizes > 1]
        print(f"{name}: {len(hashes):,} hashes, distance {DISTANCE}: {shared.sum():,} in {len(shared):,} groups")
        same = f"Brute force: {slow / 60:.0f} minutes, {slow / seconds:.0f} times that; equal on {len(few):,}"
        met.append(verdict(f"{name}, grouped", seconds, SECONDS, "s", same))
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    met.append(verdict("peak memory of all", megabytes, MEGABYTES, "MB"))
    finish(*met)


def brute(hashes: near.Hashes) -> near.Places:
    """For each hash the place of the first one of its group: every pair compared."""
    root = np.arange(len(hashes))
    for place in range(len(hashes)):
        close = np.flatnonzero(np.bitwise_count(hashes[place:] ^ hashes[place]) <= DISTANCE) + place
        if len(close) > 1 and (root[close] != root[place]).any():
            joined = np.isin(root, root[close])
            root[joined] = root[joined].min()
    return root


def strangers(random: np.random.Generator, count: int) -> near.Hashes:
    return random.integers(0, 2**64, count, dtype=np.uint64)


def mixture(random: np.random.Generator, count: int) -> near.Hashes:
    """Half strangers; families of five; a tenth nearly blank, another tenth quite blank."""
    tenth = count // 10
    families = np.repeat(strangers(random, 3 * tenth // 5), 5)
    blank = np.zeros(2 * tenth, np.uint64)
    found = np.concatenate([strangers(random, count - len(families) - len(blank)), families, blank])
    changed = np.s_[count - len(families) - len(blank) : count - tenth]
    for _ in range(4):
        found[changed] ^= np.uint64(1) << random.integers(0, 64, len(found[changed]), dtype=np.uint64)
    random.shuffle(found)
    return found


def leaning(random: np.random.Generator, count: int) -> near.Hashes:
    """Each bit set with a probability of its own, from a quarter to three quarters."""
    found = np.zeros(count, np.uint64)
    for bit, share in enumerate(random.uniform(0.25, 0.75, 64)):
        found |= (random.random(count) < share).astype(np.uint64) << np.uint64(bit)
    return found


COLLECTIONS: dict[str, Callable[[np.random.Generator, int], near.Hashes]] = {
    "strangers": strangers,
    "mixture": mixture,
    "leaning": leaning,
}


if __name__ == "__main__":
    main()
