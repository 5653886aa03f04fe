"""JSON written a column at a time, for files of millions of entries.

The text of all entries is put together by Arrow in one pass over whole columns; only texts that hold a character which
JSON escapes go one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from json.encoder import encode_basestring

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_PIECE = 1 << 18  # bytes that are looked at together: they stay in a processor's cache


def escaped(texts: pa.StringArray) -> pa.StringArray:
    """Each text as it stands between the quotation marks of a JSON string: `json.dumps(text, ensure_ascii=False)`."""
    data, offsets = _bytes(texts)
    special = _special(data)
    if not len(special):
        return texts
    rows = np.unique(np.searchsorted(offsets, special + offsets[0], side="right") - 1)
    mask = np.zeros(len(texts), bool)
    mask[rows] = True
    strings = [encode_basestring(text)[1:-1] for text in texts.take(pa.array(rows)).to_pylist() if text is not None]
    return pc.replace_with_mask(texts, pc.and_(pa.array(mask), pc.is_valid(texts)), pa.array(strings, pa.string()))


def lines(
    fields: Mapping[str, pa.StringArray | tuple[pa.Array, pa.Array]],
    *,
    name: pa.StringArray | None = None,
    before: str = "",
    after: str = "",
) -> pa.StringArray:
    """One JSON object for each row, as one text.

    Args:
        fields: the name of each and its texts, or a pair of columns of numbers; what is null is left out.
        name: each row's name in an object around all of them: `"name": {...}`.
        before: what stands before each row.
        after: what stands after each row.
    """
    pieces: list[pa.Array | str] = [before + "{"] if name is None else [before + '"', escaped(name), '": {']
    some = None  # whether another field stands before this one
    for field, values in fields.items():
        numbers = values if isinstance(values, tuple) else None
        there = pc.and_(*map(pc.is_valid, numbers)) if numbers else pc.is_valid(values)
        if not there.true_count:
            continue
        if some is not None:
            pieces.append(_where(pc.and_(there, some), ", "))
        pieces.append(_where(there, f'"{field}": ' + ("[" if numbers else '"')))
        if numbers:
            first, second = (pc.if_else(there, side.cast(pa.string()), None) for side in numbers)
            pieces += [first, _where(there, ", "), second]
        else:
            pieces.append(escaped(values))
        pieces.append(_where(there, "]" if numbers else '"'))
        some = there if some is None else pc.or_(some, there)
    return pc.binary_join_element_wise(*pieces, "}" + after, "", null_handling="replace")


def _where(rows: pa.BooleanArray, text: str) -> pa.StringArray | str:
    return text if rows.true_count == len(rows) else pc.if_else(rows, text, "")


def text(rows: pa.StringArray) -> memoryview:
    """The texts of all rows, one after the other, without copying them. Null counts for nothing."""
    data, _ = _bytes(rows)
    return data.data


def _special(data: np.ndarray) -> np.ndarray:
    """Where the bytes are that JSON escapes."""
    found = []
    marks, more = np.empty(_PIECE, bool), np.empty(_PIECE, bool)
    for begin in range(0, len(data), _PIECE):
        piece = data[begin : begin + _PIECE]
        marked, also = marks[: len(piece)], more[: len(piece)]
        np.less(piece, 0x20, out=marked)
        for character in b'"\\':
            np.equal(piece, character, out=also)
            np.logical_or(marked, also, out=marked)
        if marked.any():
            found.append(np.flatnonzero(marked) + begin)
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _bytes(texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of an array of strings, and where in its buffer each begins."""
    if not len(texts):
        return np.zeros(0, np.uint8), np.zeros(1, np.int32)
    _, places, data = texts.buffers()
    offsets = np.frombuffer(places, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    whole = np.frombuffer(data or b"", np.uint8)
    return whole[offsets[0] : offsets[-1]], offsets
