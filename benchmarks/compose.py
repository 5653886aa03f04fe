"""Composing a million pictures' texts with shuffling and dropout, on one core, against the trainer's way.

The baseline draws each text as kohya's trainers do, one row after the other in Python: split at the separator, shuffle,
drop, join (`compose.kohya.Subset`, on entries that were written before). `Recipe.compose` starts from the columns of
the layers: it orders tags by category, writes underscores as spaces, keeps some, shuffles and drops others, joins them
with the caption. Reading the layers from the disk is not counted for either side; most memory held is told after a
tenth and at the end. Taken in turns; the median of the ratios counts.

    python benchmarks/compose.py               # a million posts: some minutes
    python benchmarks/compose.py -n 100000
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import tempfile
import time
from pathlib import Path

import pyarrow as pa

from cutline.compose.as_kohya import AsKohya
from cutline.compose.kohya import Subset
from cutline.compose.recipe import Recipe
from cutline.dataset import Dataset
from cutline.exports.export import BATCH
from pairs import finish, median_ratio, middle, say_machine, spread, take_pairs, verdict
from preview import fill

MOST = 20.0
"""Microseconds a row: 50,000 rows a second."""

GROWTH = 64.0
"""MB that the rest may hold more than the first tenth."""

RECIPE = {
    "tags": {
        "first_of": ["tags/danbooru"],
        "order": ["artist", "character", "copyright", "general", "meta"],
        "underscores": "space",
        "shuffle": True,
        "keep": ["artist", "character", "copyright"],
        "dropout": 0.1,
    },
    "captions": {"first_of": ["captions/florence-long"]},
    "text": {"order": ["tags", "caption"], "dropout": 0.05},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--posts", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to put it all, and to leave it; by default it is removed")
    chosen = parser.parse_args()
    say_machine()
    with tempfile.TemporaryDirectory(prefix="cutline-compose-") as temporary:
        home = chosen.folder or Path(temporary)
        dataset, recipe = Dataset(home / "dataset"), Recipe.parse(RECIPE)
        fill(home, chosen.posts)
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        pa.set_cpu_count(1)
        held: list[tuple[float, float]] = []
        pairs = take_pairs(chosen.pairs, lambda: drawn(dataset, recipe), lambda: composed(dataset, recipe, held))
    ours = middle(pairs, 1)
    print(
        f"the trainer's way: {chosen.posts / middle(pairs, 0):,.0f} rows/s; compose: {chosen.posts / ours:,.0f} rows/s"
    )
    early, late = held[0]
    finish(
        verdict("compose's time over the trainer's way", median_ratio(pairs), 1.0, "times", spread(pairs)),
        verdict("compose", ours / chosen.posts * 1e6, MOST, "microseconds a row", f"{chosen.posts:,} rows, one core"),
        verdict("memory after a tenth to the end", late - early, GROWTH, "MB more", f"{late:,.0f} MB held at most"),
    )


def composed(dataset: Dataset, recipe: Recipe, held: list[tuple[float, float]]) -> float:
    """Compose the texts of one epoch; the seconds."""
    seconds, rows, early = 0.0, 0, 0.0
    tenth = dataset.sql("from pictures").count() / 10
    for batch in dataset.scan(*recipe.layers, fields=recipe.fields, rows=BATCH):
        start = time.perf_counter()
        recipe.compose(batch, seed=0, epoch=1)
        seconds += time.perf_counter() - start
        rows += len(batch)
        early = early or (memory() if rows >= tenth else 0.0)
    held.append((early, memory()))
    return seconds


def drawn(dataset: Dataset, recipe: Recipe) -> float:
    """Draw the texts of one epoch from entries; the seconds of the drawing alone."""
    told, rng, seconds = AsKohya(recipe), random.Random(0), 0.0
    subset = Subset(**told.options)
    for batch in dataset.scan(*recipe.layers, fields=recipe.fields, rows=BATCH):
        entries = [entry or "" for entry in told.entries(recipe.make(batch, seed=0))[0].to_pylist()]
        start = time.perf_counter()
        for entry in entries:
            subset.draw(entry, rng)
        seconds += time.perf_counter() - start
    return seconds


def memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MB


if __name__ == "__main__":
    main()
