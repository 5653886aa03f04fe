"""The caption of each picture, as a recipe's `[captions]` says. Works on whole columns."""

from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cutline.compose.columns import counting, first, join, none_if_empty, rows_of
from cutline.compose.draws import Draws, Floats
from cutline.compose.recipe import Recipe

_BREAK = re.compile(r"\r\n|\r|\n")
_SPACED = re.compile(r"[ \t\f\r\n]*[\r\n][ \t\f\r\n]*")


def captions(recipe: Recipe, batch: pa.RecordBatch, draws: Draws) -> pa.StringArray:
    """One caption for each row, or null; before any dropout, and before its wildcards are drawn."""
    said = recipe.captions
    if said.texts == "draw" or said.line_breaks == "draw":
        found = [_drawn(_choices(recipe, batch, layer), draws.uniform(f"caption of {layer}")) for layer in said.layers]
    else:
        found = [_lines(_texts(batch, layer), said.line_breaks) for layer in said.layers]
    texts = join(found, said.separator) if said.all_of else first(found, len(batch))
    if recipe.caption_cleaning is not None:
        names = texts.dictionary_encode()
        clean = [recipe.caption_cleaning.caption(text)[0] for text in names.dictionary.to_pylist()]
        texts = none_if_empty(pa.array(clean, pa.string()).take(names.indices))
    return texts


Choices = list[tuple[str, Fraction]]
"""Texts of which one is drawn, each with how likely it is."""


def candidates(recipe: Recipe, batch: pa.RecordBatch) -> list[Choices]:
    """Every caption that each row may have; none for a row without one. Dropout apart.

    Captions of all_of are not drawn one by one here: where they are to be, the result means nothing.
    """
    said = recipe.captions
    if (said.texts == "first" and said.line_breaks != "draw") or said.all_of:
        plain = captions(recipe, batch, Draws(batch.column("key"), 0, 0)).to_pylist()
        return [[(text, Fraction(1))] if text else [] for text in plain]
    layers = [_choices(recipe, batch, layer) for layer in said.first_of]
    found: list[Choices] = [next(filter(None, choices), []) for choices in zip(*layers, strict=True)]
    if recipe.caption_cleaning is None:
        return found
    return [[(recipe.caption_cleaning.caption(text)[0], likely) for text, likely in choices] for choices in found]


def _choices(recipe: Recipe, batch: pa.RecordBatch, layer: str) -> list[Choices]:
    """What each row of a layer may say: each of its texts as often, and each line of a text."""
    said, rows = recipe.captions, rows_of(batch, layer)
    if rows is None:
        return [[] for _ in range(len(batch))]
    columns = [pc.struct_field(rows, name) for name in ("texts", "verdict")]
    found: list[Choices] = []
    for good, texts, verdict in zip(
        counting(rows).to_pylist(), *(column.to_pylist() for column in columns), strict=True
    ):
        there = texts if good and texts and verdict != "rejected" else []
        each = [_lines_of(text, said.line_breaks) for text in (there if said.texts == "draw" else there[:1]) if text]
        each = [lines for lines in each if lines]
        found.append([(line, Fraction(1, len(lines) * len(each))) for lines in each for line in lines])
    return found


def _drawn(found: list[Choices], chances: Floats) -> pa.StringArray:
    """One of each row's choices; null where it has none."""
    texts: list[str | None] = []
    for choices, chance in zip(found, chances.tolist(), strict=True):
        place, up_to = 0, 0.0
        while place < len(choices) - 1 and (up_to := up_to + choices[place][1]) <= chance:
            place += 1
        texts.append(choices[place][0] if choices else None)
    return pa.array(texts, pa.string())


def _lines_of(text: str, line_breaks: str) -> list[str]:
    """The lines of which one is drawn; or the whole text as its only one."""
    if line_breaks == "draw":
        return [line.strip() for line in _BREAK.split(text) if line.strip()] if _BREAK.search(text) else [text]
    whole = _SPACED.sub(" ", text).strip() if line_breaks == "space" and _BREAK.search(text) else text
    return [whole] if whole else []


def _texts(batch: pa.RecordBatch, layer: str) -> pa.StringArray:
    """The first text of each row that counts."""
    rows = rows_of(batch, layer)
    if rows is None:
        return pa.nulls(len(batch), pa.string())
    texts = pc.struct_field(rows, "texts")
    kept = pc.fill_null(pc.not_equal(pc.struct_field(rows, "verdict"), "rejected"), True)
    lengths = pc.list_value_length(texts)
    some = pc.fill_null(pc.greater(lengths, 0), False)
    said = pc.and_(pc.and_(counting(rows), kept), some)
    if pc.max(lengths).as_py() == 1 and not texts.values.null_count and said.equals(some):
        return none_if_empty(_only_ones(texts, said))
    return none_if_empty(texts.values.take(pc.if_else(said, texts.offsets[:-1], None)))


def _only_ones(texts: pa.ListArray, said: pa.BooleanArray) -> pa.StringArray:
    """Lists of one text, or none, as texts, over the same bytes."""
    values = texts.values
    places = np.frombuffer(values.buffers()[1], np.int32)[values.offset : values.offset + len(values) + 1]
    offsets = places[texts.offsets.to_numpy()]
    valid = pa.array(said.to_numpy(zero_copy_only=False)).buffers()[1]
    return pa.StringArray.from_buffers(len(texts), pa.py_buffer(offsets), values.buffers()[2], valid)


def _lines(texts: pa.StringArray, line_breaks: str) -> pa.StringArray:
    """With line breaks as they are, or each a space, as `_lines_of` does."""
    broken = pc.match_substring_regex(texts, r"[\r\n]")
    if line_breaks == "keep" or not pc.any(broken).as_py():
        return texts
    whole = pc.utf8_trim_whitespace(pc.replace_substring_regex(texts, _SPACED.pattern, " "))
    return none_if_empty(pc.if_else(broken, whole, texts))
