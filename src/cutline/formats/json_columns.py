"""JSON written a column at a time, for files of millions of entries.

The text of each entry is put together by Arrow, whole columns at once; only texts that hold a character which JSON
escapes go one by one.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from json.encoder import encode_basestring

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def quoted(texts: pa.StringArray) -> pa.StringArray:
    """Each text as a JSON string, null where it is null; the same as `json.dumps(text, ensure_ascii=False)`."""
    plain = pc.binary_join_element_wise('"', texts, '"', "")
    data, offsets = _bytes(texts)
    special = np.flatnonzero((data < 0x20) | (data == ord('"')) | (data == ord("\\")))
    if not len(special):
        return plain
    rows = np.unique(np.searchsorted(offsets, special + offsets[0], side="right") - 1)
    mask = np.zeros(len(texts), bool)
    mask[rows] = True
    escaped = [encode_basestring(text) for text in texts.take(pa.array(rows)).to_pylist() if text is not None]
    return pc.replace_with_mask(plain, pc.and_(pa.array(mask), pc.is_valid(texts)), pa.array(escaped, pa.string()))


def pairs(first: pa.Array, second: pa.Array) -> pa.StringArray:
    """`[first, second]` of two columns of numbers; null where one is."""
    return pc.binary_join_element_wise("[", first.cast(pa.string()), ", ", second.cast(pa.string()), "]", "")


def objects(fields: Mapping[str, pa.StringArray], before: pa.StringArray | str = "") -> pa.StringArray:
    """One JSON object for each row.

    Args:
        fields: the name of each and its values, which are JSON already; what is null is left out. In each row there
            must be one that is not.
        before: what stands before each object.
    """
    named = [pc.binary_join_element_wise(f'"{name}": ', values, "") for name, values in fields.items()]
    if functools.reduce(pc.and_, [pc.is_null(column) for column in named]).true_count:
        raise ValueError("a row without any field")
    body = named[0] if len(named) == 1 else pc.binary_join_element_wise(*named, ", ", null_handling="skip")
    return pc.binary_join_element_wise(before, "{", body, "}", "")


def text(rows: pa.StringArray) -> memoryview:
    """The texts of all rows, one after the other, without copying them. Null counts for nothing."""
    data, _ = _bytes(rows)
    return data.data


def _bytes(texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of an array of strings, and where in its buffer each begins."""
    if not len(texts):
        return np.zeros(0, np.uint8), np.zeros(1, np.int32)
    _, places, data = texts.buffers()
    offsets = np.frombuffer(places, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    whole = np.frombuffer(data or b"", np.uint8)
    return whole[offsets[0] : offsets[-1]], offsets
