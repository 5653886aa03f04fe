"""What a run learns from: which pictures with which words, which of them are held out, and in what order they come.

Everything here is a function of the dataset, the recipe and (seed, epoch, key): not of processes, workers or of where
a run was stopped. So a run that goes on learns what it would have learnt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from cutline import near
from cutline.annotators.facts import phash
from cutline.annotators.session import Row
from cutline.compose.draws import Draws
from cutline.compose.recipe import Recipe
from cutline.dataset import Dataset
from cutline.duplicates import DISTANCE
from cutline.options import CutlineError
from cutline.pictures import Picture, PictureError

Places = npt.NDArray[np.int64]

WINDOW = 32
"""Optimizer steps whose pictures are sorted by length among each other: what a batch pads is little, and what comes
when is still by chance."""

FILLER = -1
"""In an order: no picture, so that all processes have equally many."""


@dataclass
class Examples:
    """Pictures with words, sorted by key. N of them."""

    table: pa.Table
    """Columns of the pictures layer, and of each layer that recipe or prompt read a struct (N rows)."""
    recipe: Recipe
    seed: int
    left_out: dict[str, int] = field(default_factory=dict)
    """Why pictures are not among them -> how many."""
    _texts: dict[int, list[str | None]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def keys(self) -> pa.StringArray:
        """Their keys."""
        return self.table["key"].combine_chunks().cast(pa.string())

    def row(self, place: int, dataset: Dataset) -> Row:
        """One picture with its rows in the layers that are read, as annotators are given it."""
        row: Row = self.table.slice(place, 1).to_pylist()[0]
        known = {name: row[name] for name in ("size", "mtime_ns", "content", "offset")}
        return {**row, "attempt": 1, "picture": Picture(dataset.path(row["uri"]), **known)}

    @cached_property
    def still(self) -> list[str]:
        """The text of each without what the recipe leaves to chance: what captions are held against."""
        return [text or "" for text in self._compose(self.recipe.still, 0)]

    def texts(self, epoch: int) -> list[str | None]:
        """The text of each in this epoch (from 0); None where the recipe drops it."""
        if not self.recipe.random:
            epoch = 0
        if epoch not in self._texts:
            self._texts = {epoch: self._compose(self.recipe, epoch)}  # the one before is not needed any more
        return self._texts[epoch]

    def _compose(self, recipe: Recipe, epoch: int) -> list[str | None]:
        found: list[str | None] = []
        for batch in self.table.to_batches(16_384):
            texts = recipe.compose(batch, seed=self.seed, epoch=epoch).to_pylist()
            found += [text if text and text.strip() else None for text in texts]
        return found

    def take(self, places: Sequence[int] | Places) -> Examples:
        """Some of them."""
        return Examples(self.table.take(pa.array(places, pa.int64())).combine_chunks(), self.recipe, self.seed)

    def fingerprint(self, reads: Sequence[str] = ()) -> str:
        """xxh3 of keys, contents and texts, and of the layers that the prompt reads: equal for equal words.

        Of a recipe that leaves anything to chance the layers count too: its texts are others in each epoch.
        """
        total = xxhash.xxh3_64()
        contents = self.table["content"].to_pylist()
        for key, content, text in zip(self.keys.to_pylist(), contents, self.still, strict=True):
            for piece in (key, content or "", text):
                total.update(piece.encode() + b"\0")
        for name in sorted({*reads, *(self.recipe.layers if self.recipe.random else ())} - {"pictures"}):
            for row in self.table[name].to_pylist():
                total.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\0")
        return total.hexdigest()

    def order(self, epoch: int, *, step: int, batch: int) -> Places:
        """In which order they come in an epoch: by chance, with those that share a step of like length.

        Args:
            epoch: from 0.
            step: pictures of an optimizer step, of all processes and micro-batches.
            batch: pictures of a micro-batch of all processes, to a multiple of which `FILLER` fills up.

        Returns:
            Places, and `FILLER`. Runs of `step` pictures are the same however a step is cut into batches.
        """
        draws = Draws(self.keys, self.seed, epoch)
        order = np.argsort(draws.integers("order"), kind="stable")
        lengths = np.array([len(text or "") for text in self.texts(epoch)], np.int64)
        steps: list[Places] = []
        for start in range(0, len(order), step * WINDOW):
            window = order[start : start + step * WINDOW]
            window = window[np.argsort(lengths[window], kind="stable")]
            steps += [window[at : at + step] for at in range(0, len(window), step)]
        whole = [one for one in steps if len(one) == step]
        rest = [one for one in steps if len(one) < step]  # at most one, and it comes last
        if whole:
            first = draws.integers("order of steps", np.array([one[0] for one in whole]))
            whole = [whole[place] for place in np.argsort(first, kind="stable")]
        found = np.concatenate([*whole, *rest])
        return np.concatenate([found, np.full(-len(found) % batch, FILLER, np.int64)])


def gather(dataset: Dataset, recipe: Recipe, reads: Sequence[str], *, where: str = "", seed: int = 0) -> Examples:
    """The readable pictures that the recipe has a text for.

    Args:
        dataset: whose pictures.
        recipe: what is learnt of them.
        reads: layers that the prompt reads.
        where: an SQL condition, as in `Dataset.scan`.
        seed: of what the recipe leaves to chance, and of the order.

    Raises:
        CutlineError: there is none.
    """
    facts = ("facts",) if "facts" in dataset.layers() else ()
    layers = dict.fromkeys((*recipe.layers, *(name for name in reads if name != "pictures"), *facts))
    kept, left_out = [], {"without words": 0, "without a file": 0}
    for batch in dataset.scan(*layers, where=where):
        texts = recipe.still.compose(batch, seed=seed)
        worded = pc.fill_null(pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0), False)
        there = pc.is_valid(batch["uri"])
        left_out["without a file"] += pc.sum(pc.invert(there)).as_py() or 0
        left_out["without words"] += pc.sum(pc.and_(there, pc.invert(worded))).as_py() or 0
        kept.append(batch.filter(pc.and_(there, worded)))
    unreadable = dataset.sql("from pictures where error is not null and error <> 'vanished'").count()
    left_out["unreadable"] = unreadable
    if not sum(map(len, kept)):
        why = ", ".join(f"{count:,} {what}" for what, count in left_out.items() if count)
        why = why or ("no picture meets --where" if where else "it has no pictures")
        raise CutlineError(
            f"there is nothing to learn from in {dataset.root}: {why}. Words are read from "
            f"{', '.join(recipe.layers)}; see: cutline status {dataset.root}"
        )
    table = pa.Table.from_batches(kept).unify_dictionaries().combine_chunks()
    return Examples(table, recipe, seed, {what: count for what, count in left_out.items() if count})


def hashes_of(examples: Examples, dataset: Dataset, show: Callable[[int], None]) -> list[int | PictureError]:
    """The perceptual hash of each picture, or why it cannot be opened; from layer `facts`, or else by looking."""
    known: list[int | None] = [None] * len(examples)
    if "facts" in examples.table.column_names:
        contents = examples.table["content"].to_pylist()
        for place, (row, content) in enumerate(zip(examples.table["facts"].to_pylist(), contents, strict=True)):
            if row and row["error"] is None and row["content"] == content:
                known[place] = row["phash"]

    def look(place: int) -> int | PictureError:
        if (found := known[place]) is not None:
            return found
        try:
            return phash(examples.row(place, dataset)["picture"].decode().convert("L"))
        except PictureError as error:
            return error

    found = []
    with ThreadPoolExecutor(4, thread_name_prefix="look") as pool:
        for done, one in enumerate(pool.map(look, range(len(examples)))):
            found.append(one)
            show(done + 1)
    return found


def hold_out(keys: Sequence[str], hashes: Sequence[int], share: float) -> list[bool]:
    """Which pictures are held out: a share of them, and near pictures on one side.

    Pictures whose perceptual hashes differ in at most `duplicates.DISTANCE` bits, and chains of such, are one group. A
    group is held out where xxh64 of its first key is below that share of 2**64: so a picture stays on its side when
    others come. Where that would hold out none, or all, the group with the lowest hash is the one held out.
    """
    if share <= 0:
        return [False] * len(keys)
    group = near.groups(np.array(hashes, np.uint64), DISTANCE)
    chance = {first: xxhash.xxh64_intdigest(keys[first].encode()) / 2**64 for first in sorted({*group.tolist()})}
    out = {first for first, drawn in chance.items() if drawn < share}
    if not out or len(out) == len(chance):
        out = {min(chance, key=chance.__getitem__)} if len(chance) > 1 else set()
    return [first in out for first in group.tolist()]


def spread(places: Sequence[int], keys: Sequence[str], count: int) -> list[int]:
    """Up to `count` of these places: those whose keys have the lowest xxh64. The same ones in every run."""
    chosen = sorted(places, key=lambda place: xxhash.xxh64_intdigest(f"spread {keys[place]}".encode()))[:count]
    return sorted(chosen)


def describe(lengths: Sequence[int], limit: int) -> dict[str, Any]:
    """Tokens of the texts: the least, median, 95th percentile and most; and how many texts are cut at `limit`."""
    counts = np.array(lengths)
    return {
        "least": int(counts.min()),
        "median": int(np.median(counts)),
        "most_of_95_percent": int(np.percentile(counts, 95, method="higher")),
        "most": int(counts.max()),
        "limit": limit,
        "cut": int((counts > limit).sum()),
    }
