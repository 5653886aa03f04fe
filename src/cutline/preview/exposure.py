"""How often each tag is seen over a run, which never, which always in one place; and tags that are said again."""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cutline.compose.recipe import Recipe
from cutline.preview import places
from cutline.preview.drawn import EXAMPLES, NONE, Counts, Drawn, Found, normal
from cutline.preview.lengths import Measured
from cutline.tags import parents

_PUNCTUATION = str.maketrans(dict.fromkeys("_" + string.punctuation, " "))
_WIDE = np.int64(1 << 32)


@dataclass(frozen=True)
class Exposure:
    """How often each tag is seen over the run."""

    encoder: str
    """Whose limit `kept` is about; empty where no tokenizer is at hand."""
    tags: pa.Table
    """tag, texts (that have it), kept (of those, with the tag within the limit; null where nothing is counted),
    pictures (that have it in a layer or a text): the commonest first."""
    never: pa.Table
    """tag, pictures: in a layer, and in no text. By pictures, descending."""
    fixed: pa.Table
    """tag, texts, place (0 for the first of a text's tags): in every text, and two at least, of the pictures that have
    it, always at this place. By texts, descending."""

    @property
    def texts(self) -> int:
        """How often a tag is in a text."""
        return _total(self.tags["texts"])

    @property
    def lost(self) -> int:
        """How often it is there and falls off."""
        return self.texts - _total(self.tags["kept"]) if self.encoder else 0

    def as_dict(self, top: int) -> dict[str, Any]:
        """As JSON, with that many tags of each sort."""
        return {
            "encoder": self.encoder,
            "tags": len(self.tags),
            "texts": self.texts,
            "lost": self.lost,
            "commonest": self.tags.slice(0, top).to_pylist(),
            "rarest": self.tags.slice(max(len(self.tags) - top, 0)).to_pylist()[::-1],
            "never": {"tags": len(self.never), "commonest": self.never.slice(0, top).to_pylist()},
            "fixed": {"tags": len(self.fixed), "commonest": self.fixed.slice(0, top).to_pylist()},
        }


class Tags:
    """Where each tag is seen. Tags, and what is left of them after normalising, are numbered as they come."""

    def __init__(self, recipe: Recipe, epochs: int) -> None:
        self.recipe, self.epochs = recipe, epochs
        self.twice, self.twice_alike, self.again, self.fused = Found(), Found(), Found(), Found()
        self._codes: dict[str, int] = {}
        self._normal: dict[str, int] = {}
        self._first_spelling: list[str] = []  # of each normal one
        self._plain: list[str] = []  # of each tag
        self._normal_of = NONE  # each tag
        self._texts, self._kept = NONE, NONE
        self._low, self._high = NONE, NONE  # its places in texts
        self._in_layer, self._with = NONE, NONE  # of each normal one: pictures
        self._pairs = NONE  # of the batch in hand: row and normal tag
        self._new_normal: list[int] = []

    def add(self, drawn: Drawn, measured: Measured | None) -> None:
        """Look at some pictures in one epoch. All epochs of a picture come one after the other, from 0."""
        rows, codes, place = self._flat(drawn.tags)
        if drawn.epoch == 0:
            layer_rows, layer_codes = self._layers(drawn.batch)
            pairs = _distinct(_pairs(layer_rows, layer_codes))
            self._in_layer = _counted(self._in_layer, _second(pairs), len(self._normal))
            self._pairs = pairs
        self._pairs = _distinct(np.concatenate([self._pairs, _pairs(rows, self._normal_of[codes])]))
        if drawn.epoch == self.epochs - 1:
            self._with = _counted(self._with, _second(self._pairs), len(self._normal))
        each, first = np.unique(_pairs(rows, codes), return_index=True)
        self._texts = _counted(self._texts, _second(each), len(self._codes))
        np.minimum.at(self._low, codes, place)
        np.maximum.at(self._high, codes, place)
        self._doubles(drawn, rows, codes)
        self._say_again(drawn, rows, codes)
        starts, ends = places.locate(drawn.texts, drawn.caption, drawn.tags, self.recipe.tags.separator)
        self._look_for_fused(drawn, rows, starts, ends)
        if measured is not None:
            whole = pc.binary_length(drawn.texts).fill_null(0).to_numpy()[rows]  # of a tag that is not found as it is
            kept = measured.keeps(rows[first], np.where(ends < 0, whole, ends)[first])
            self._kept = _counted(self._kept, codes[first][kept], len(self._codes))

    def told(self, encoder: str) -> Exposure:
        """What was counted; `encoder` is the one whose limit it was, or empty."""
        count = len(self._codes)
        texts, kept = (_counted(numbers, NONE, count) for numbers in (self._texts, self._kept))
        in_layer, having = (_counted(numbers, NONE, len(self._normal)) for numbers in (self._in_layer, self._with))
        pictures = having[self._normal_of]
        tags = pa.table(
            {
                "tag": pa.array(self._codes, pa.string()),
                "texts": texts,
                "kept": pa.array(kept if encoder else [None] * count, pa.int64()),
                "pictures": pictures,
                "place": self._low,
            }
        )
        fixed = (texts > 1) & (self._low == self._high) & (texts == pictures * self.epochs)
        unseen = in_layer > 0
        unseen[self._normal_of] = False
        never = pa.table({"tag": pa.array(self._first_spelling, pa.string()), "pictures": in_layer})
        return Exposure(
            encoder,
            tags.drop_columns(["place"]).sort_by([("texts", "descending"), ("tag", "ascending")]),
            never.filter(pa.array(unseen)).sort_by([("pictures", "descending"), ("tag", "ascending")]),
            tags.select(["tag", "texts", "place"])
            .filter(pa.array(fixed))
            .sort_by([("texts", "descending"), ("tag", "ascending")]),
        )

    def _flat(self, lists: pa.ListArray) -> tuple[Counts, Counts, Counts]:
        """Row, number of the tag, and place among the row's tags, of every tag in every text."""
        rows = parents(lists)
        coded = _coded(pc.list_flatten(lists))
        names = coded.dictionary.to_pylist()
        numbers = np.fromiter((self._code(tag) for tag in names), np.int64, len(names))
        place = np.arange(len(rows)) - np.searchsorted(rows, rows)
        grown = len(self._codes) - len(self._low)
        self._low = np.concatenate([self._low, np.full(grown, np.iinfo(np.int64).max)])
        self._high = np.concatenate([self._high, np.full(grown, -1)])
        self._normal_of = np.concatenate([self._normal_of, np.array(self._new_normal, np.int64)])
        self._new_normal = []
        return rows, numbers[np.asarray(coded.indices)] if len(rows) else NONE, place

    def _code(self, tag: str) -> int:
        if (found := self._codes.get(tag)) is None:
            found = self._codes[tag] = len(self._codes)
            self._new_normal.append(self._normal_code(tag))
            self._plain.append(_plain(tag))
        return found

    def _normal_code(self, tag: str) -> int:
        name = normal(tag)
        if (found := self._normal.get(name)) is None:
            found = self._normal[name] = len(self._normal)
            self._first_spelling.append(tag)
        return found

    def _layers(self, batch: pa.RecordBatch) -> tuple[Counts, Counts]:
        """Row and number after normalising of every tag in the layers that the recipe reads."""
        rows, codes = [NONE], [NONE]
        for layer in self.recipe.tags.layers:
            column = batch.column(layer)
            if not pa.types.is_struct(column.type):  # nobody wrote it yet
                continue
            for category in self.recipe.tags.order:
                lists = pc.struct_field(column, category)
                coded = _coded(pc.list_flatten(lists))
                names = coded.dictionary.to_pylist()
                numbers = np.fromiter((self._normal_code(tag) if tag else -1 for tag in names), np.int64, len(names))
                mine = parents(lists)
                some = np.asarray(pc.is_valid(coded.indices))
                code = numbers[np.asarray(coded.indices.filter(pa.array(some)))] if len(names) else NONE
                rows.append(mine[some][code >= 0])
                codes.append(code[code >= 0])
        return np.concatenate(rows), np.concatenate(codes)

    def _doubles(self, drawn: Drawn, rows: Counts, codes: Counts) -> None:
        names = list[str]()
        for found, numbers in ((self.twice, codes), (self.twice_alike, self._normal_of[codes])):
            pairs = _pairs(rows, numbers)
            order = np.argsort(pairs, kind="stable")
            again = order[1:][pairs[order][1:] == pairs[order][:-1]]
            if len(again):
                names = names or list(self._codes)
                keys = drawn.batch.column("key")
                told = (f"{keys[int(rows[at])].as_py()}: {names[codes[at]]}" for at in again)
                found.add(len(np.unique(rows[again])), told)

    def _say_again(self, drawn: Drawn, rows: Counts, codes: Counts) -> None:
        """Look for tags in captions."""
        bounds = np.searchsorted(rows, np.arange(len(drawn.texts) + 1)).tolist()
        listed, plain = codes.tolist(), self._plain
        names = list[str]()
        for row, caption in enumerate(drawn.caption.to_pylist()):
            begin, end = bounds[row], bounds[row + 1]
            if not caption or begin == end:
                continue
            words = _plain(caption)
            said = [code for code in listed[begin:end] if plain[code] in words and len(plain[code]) > 2]
            if said:
                told = list[str]()
                if len(self.again.examples) < EXAMPLES:
                    names = names or list(self._codes)
                    key = drawn.batch.column("key")[row].as_py()
                    told.append(f"{key}: {', '.join(names[code] for code in said)}")
                self.again.add(1, iter(told))

    def _look_for_fused(self, drawn: Drawn, rows: Counts, starts: Counts, ends: Counts) -> None:
        border = self.recipe.tags.separator.strip()
        if not border:  # every space parts two tags, or none does: nothing can be told
            return
        fused = places.fused(drawn.texts, rows, starts, ends, border)
        if fused.any():
            keys = drawn.batch.column("key")
            told = (
                f"{keys[row].as_py()}: {places.between(drawn.texts[row].as_py(), int(start), border)}"
                for row, start in zip(rows[fused].tolist(), starts[fused], strict=True)
            )
            self.fused.add(int(fused.sum()), told)


def _plain(text: str) -> str:
    """The words of a text, each between spaces, without punctuation and case: what can be found in another."""
    return f" {' '.join(text.lower().translate(_PUNCTUATION).split())} "


def _pairs(rows: Counts, codes: Counts) -> Counts:
    """Row and number as one number."""
    return rows * _WIDE + codes


def _distinct(pairs: Counts) -> Counts:
    """Each once, ascending. With so many, sorting is quicker than `np.unique`."""
    ordered = np.sort(pairs)
    found: Counts = ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)]]
    return found


def _second(pairs: Counts) -> Counts:
    found: Counts = pairs % _WIDE
    return found


def _counted(counts: Counts, numbers: Counts, length: int) -> Counts:
    """How often each number came, with those that came before."""
    more = np.bincount(numbers, minlength=length).astype(np.int64)
    more[: len(counts)] += counts
    return more


def _coded(values: pa.Array) -> pa.DictionaryArray:
    return values if pa.types.is_dictionary(values.type) else values.dictionary_encode()


def _total(column: pa.ChunkedArray) -> int:
    return int(pc.sum(column).as_py() or 0)
