"""Odd texts: empty ones and why, such as hold what rarely is meant, and such as are said more than once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import xxhash

from cutline.compose.recipe import Recipe
from cutline.dataset import Dataset
from cutline.dataset.query import Relation
from cutline.layer import quote
from cutline.preview import places
from cutline.preview.drawn import EXAMPLES, Drawn, Found, Histogram, normal

Hashes = npt.NDArray[np.uint64]

CAUSES = {
    "no_row": "no layer has a row",
    "error": "the row is an error",
    "rejected": "the caption was rejected",
    "nothing_said": "the row says nothing",
    "left_out": "the recipe leaves out all that there is",
    "dropped": "dropped by dropout",
    "blank": "blanks alone",
}
"""Why a text is empty, in the words of a report."""

LEFTOVERS = {
    "{": r"\{",
    "|": r"\|",
    "}": r"\}",
    "|||": r"\|\|\|",
    ";;;": ";;;",
    "line break": "\n",
    "carriage return": "\r",
    "byte-order mark": "\ufeff",
    ", without a space": r"[^0-9],[^\s,]|[0-9],[^\s,0-9]",
    "brackets read as weights": r"(^|[^\\])[(\[]",
}
"""What rarely is meant to stand in a text that is trained on, as regular expressions. The last one is looked for only
where the trainer reads weights."""


def look_for_empty(recipe: Recipe, drawn: Drawn, found: dict[str, Found]) -> None:
    """Sort empty texts by their cause."""
    bare = pc.utf8_trim_whitespace(drawn.texts)
    nothing = pc.fill_null(pc.equal(bare, ""), True)
    if not pc.any(nothing).as_py():
        return
    rows = drawn.batch.filter(nothing)
    texts = drawn.texts.filter(nothing).to_pylist()
    layers = (*recipe.captions.layers, *recipe.tags.layers)
    said = [rows.column(layer).to_pylist() for layer in layers]
    keys = rows.column("key").to_pylist()
    for row, text in enumerate(texts):
        cause = _cause(text, [column[row] for column in said], recipe)
        found[cause].add(1, iter([keys[row]]))


def _cause(text: str | None, rows: list[dict[str, Any] | None], recipe: Recipe) -> str:
    if text is not None:
        return "blank" if text else "dropped"
    there = [row for row in rows if row is not None]
    good = [row for row in there if row["error"] is None]
    rejected = [row for row in good if row.get("verdict") == "rejected"]
    kept = [row for row in good if row not in rejected]
    captions, tags = (
        any(any(row.get(name) or []) for row in kept for name in names) for names in (("texts",), recipe.tags.order)
    )
    if captions or tags:
        by_chance = (captions and recipe.captions.dropout) or (tags and recipe.tags.dropout)
        return "dropped" if by_chance else "left_out"
    if rejected:
        return "rejected"
    if len(good) < len(there):
        return "error"
    return "nothing_said" if there else "no_row"


def look_for_leftovers(drawn: Drawn, found: dict[str, Found]) -> None:
    """Find those of `LEFTOVERS` that are in `found`. What does not occur in any text is not looked for in each."""
    data = places.data(drawn.texts).tobytes()
    for name in found:
        pattern = LEFTOVERS[name]
        literal = pattern.replace("\\", "")
        if "[" not in pattern and literal.encode() not in data:
            continue
        has = pc.fill_null(pc.match_substring_regex(drawn.texts, pattern), False)
        if count := pc.sum(has).as_py():
            found[name].add(count, drawn.keys(has))


class EqualTexts:
    """Equal texts: of one picture over the epochs, and of several pictures."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.distinct = Histogram()
        self._rows: list[Hashes] = []
        self._first: list[Hashes] = []
        self._alike: list[Hashes] = []

    def add(self, drawn: Drawn) -> None:
        """Look at some pictures in one epoch. All epochs of a picture come one after the other."""
        texts = drawn.texts.to_pylist()
        hashes = _hashes(texts)
        self._rows.append(hashes)
        if drawn.epoch == 0:
            self._first.append(hashes)
            self._alike.append(_hashes([text and normal(text) for text in texts]))
        if drawn.epoch == self.epochs - 1:
            ordered = np.sort(np.stack(self._rows), axis=0)
            changes = (np.diff(ordered, axis=0, prepend=np.uint64(0)) != 0).sum(axis=0)  # a 0 says nothing
            self.distinct.add(changes)
            self._rows.clear()

    def told(
        self, dataset: Dataset, recipe: Recipe, output: str, seed: int, only: Relation | None
    ) -> tuple[Found, Found]:
        """Pictures that say what an earlier one says; the commonest such texts are looked up again."""

        def found(pieces: list[Hashes]) -> Found:
            whole = np.concatenate([np.zeros(0, np.uint64), *pieces])
            _, first, counts = np.unique(whole[whole != 0], return_index=True, return_counts=True)
            several = counts > 1
            commonest = np.flatnonzero(several)[np.argsort(-counts[several], kind="stable")][:EXAMPLES]
            rows = np.flatnonzero(whole != 0)[first[commonest]].tolist()
            shown = _texts_of(dataset, recipe, output, seed, only, rows) if rows else []
            examples = [f"{count:,} × {text}" for count, text in zip(counts[commonest].tolist(), shown, strict=True)]
            return Found(int((counts[several] - 1).sum()), examples)

        return found(self._first), found(self._alike)


def _texts_of(
    dataset: Dataset, recipe: Recipe, output: str, seed: int, only: Relation | None, rows: list[int]
) -> list[str]:
    """The texts of pictures by their number among those that were looked at, sorted by key."""
    keys = only.keys() if only is not None else None
    found = []
    for row in rows:
        known = "select key from pictures where error is null order by key"
        key = keys[row].as_py() if keys is not None else dataset.sql(f"{known} limit 1 offset {row}").fetchall()[0][0]
        wanted = dataset.sql(f"select key from pictures where key = {quote(key)}")
        (batch,) = dataset.scan(*recipe.layers, fields=recipe.fields, only=wanted)
        found.append(str(recipe.compose(batch, seed=seed, output=output)[0].as_py()))
    return found


def _hashes(texts: list[str | None]) -> Hashes:
    """64 bits for each text; 0 where it is empty."""
    hashed = xxhash.xxh3_64_intdigest
    return np.fromiter((hashed(text.encode()) or 1 if text else 0 for text in texts), np.uint64, len(texts))
