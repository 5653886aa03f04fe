"""The caption of each picture, as a recipe's `[captions]` says. Works on whole columns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cutline.compose.columns import counting, first, join, none_if_empty, rows_of
from cutline.compose.draws import Draws
from cutline.compose.recipe import Recipe

_BREAK = re.compile(r"\r\n|\r|\n")


def captions(recipe: Recipe, batch: pa.RecordBatch, draws: Draws) -> pa.StringArray:
    """One caption for each row, or null; before any dropout, and before its wildcards are drawn."""
    said = recipe.captions
    found = [
        _lines(_texts(batch, layer, said.texts, draws), said.line_breaks, layer, draws)
        for layer in said.first_of or said.all_of
    ]
    texts = join(found, said.separator) if said.all_of else first(found, len(batch))
    if recipe.caption_cleaning is not None:
        names = texts.dictionary_encode()
        clean = [recipe.caption_cleaning.caption(text)[0] for text in names.dictionary.to_pylist()]
        texts = none_if_empty(pa.array(clean, pa.string()).take(names.indices))
    return texts


def candidates(recipe: Recipe, batch: pa.RecordBatch) -> list[list[tuple[str, Fraction]]]:
    """Every caption that each row may have, with how likely it is; none for a row without one. Dropout apart.

    Captions of all_of are not drawn one by one here: where they are to be, the result means nothing.
    """
    said = recipe.captions
    if (said.texts == "first" and said.line_breaks != "draw") or said.all_of:
        plain = captions(recipe, batch, Draws(batch.column("key"), 0, 0)).to_pylist()
        return [[(text, Fraction(1))] if text else [] for text in plain]
    found: list[list[tuple[str, Fraction]]] = [[] for _ in range(len(batch))]
    for layer in said.first_of:
        rows = rows_of(batch, layer)
        for row, answer in zip(found, [] if rows is None else rows.to_pylist(), strict=rows is not None):
            if row or answer is None or answer["error"] or answer["verdict"] == "rejected":
                continue
            texts = answer["texts"] or []
            texts = [text for text in (texts if said.texts == "draw" else texts[:1]) if text]
            for text in texts:
                lines = _lines_of(text, said.line_breaks)
                row += [(line, Fraction(1, len(lines) * len(texts))) for line in lines]
    if recipe.caption_cleaning is None:
        return found
    return [[(recipe.caption_cleaning.caption(text)[0], likely) for text, likely in row] for row in found]


def _lines_of(text: str, line_breaks: str) -> Sequence[str]:
    if line_breaks == "keep" or not _BREAK.search(text):
        return [text]
    return _spoken(text) if line_breaks == "draw" else [" ".join(_spoken(text))]


def _texts(batch: pa.RecordBatch, layer: str, which: str, draws: Draws) -> pa.StringArray:
    """The first text of each row that counts, or any of them."""
    rows = rows_of(batch, layer)
    if rows is None:
        return pa.nulls(len(batch), pa.string())
    texts = pc.struct_field(rows, "texts")
    kept = pc.fill_null(pc.not_equal(pc.struct_field(rows, "verdict"), "rejected"), True)
    lengths = pc.list_value_length(texts)
    some = pc.fill_null(pc.greater(lengths, 0), False)
    said = pc.and_(pc.and_(counting(rows), kept), some)
    most = pc.max(lengths).as_py() or 0
    if most == 1 and not texts.values.null_count and said.equals(some):
        return none_if_empty(_only_ones(texts, said))
    places = texts.offsets[:-1]
    if which == "draw" and most > 1:
        counts = pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False)
        chosen = (draws.uniform(f"text of {layer}") * counts).astype(np.int32)
        places = pa.array(places.to_numpy() + chosen)
    return none_if_empty(texts.values.take(pc.if_else(said, places, None)))


def _only_ones(texts: pa.ListArray, said: pa.BooleanArray) -> pa.StringArray:
    """Lists of one text, or none, as texts, over the same bytes."""
    values = texts.values
    places = np.frombuffer(values.buffers()[1], np.int32)[values.offset : values.offset + len(values) + 1]
    offsets = places[texts.offsets.to_numpy()]
    valid = pa.array(said.to_numpy(zero_copy_only=False)).buffers()[1]
    return pa.StringArray.from_buffers(len(texts), pa.py_buffer(offsets), values.buffers()[2], valid)


def _lines(texts: pa.StringArray, line_breaks: str, layer: str, draws: Draws) -> pa.StringArray:
    if line_breaks == "keep":
        return texts
    broken = pc.match_substring_regex(texts, r"[\r\n]")
    if not pc.any(broken).as_py():
        return texts
    if line_breaks == "space":
        whole = pc.utf8_trim_whitespace(pc.replace_substring_regex(texts, r"\s*[\r\n]\s*", " "))
        return none_if_empty(pc.if_else(broken, whole, texts))
    lines = [_lines_of(text, line_breaks) if text else () for text in texts.to_pylist()]
    chances = draws.uniform(f"line of {layer}")
    drawn = [one[int(chance * len(one))] if one else None for one, chance in zip(lines, chances, strict=True)]
    return pa.array(drawn, pa.string())


def _spoken(text: str) -> Sequence[str]:
    return [line.strip() for line in _BREAK.split(text) if line.strip()]
