"""Pictures joined with layers, as a stream: one slice of the keys after the other, in memory that does not grow.

Compacting and adding cut all layers at the same keys (`cuts`). Between two cuts there are a hundred thousand pictures
or so. Where a layer has one row for each key there, which is what it has after compacting, its Parquet is read as it
stands, row group by row group; elsewhere the database says which rows count. As all is sorted by key, some thousand
pictures and their rows at a time are put beside each other, while those before are used.

Lists of tags come dictionary-coded: each batch names a tag once, however many pictures have it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cutline import schemas
from cutline.dataset.ahead import ahead
from cutline.dataset.cuts import text_of
from cutline.dataset.query import BATCH_ROWS, Views
from cutline.layer import ROW_GROUP, disjoint, extent, within

_CODED = pa.list_(pa.dictionary(pa.int32(), pa.string()))


def walk(
    views: Views,
    layers: Sequence[str],
    *,
    keys: pa.LargeStringArray | None = None,
    fields: Sequence[str] | None = None,
    rows: int = BATCH_ROWS,
) -> Iterator[pa.RecordBatch]:
    """Stream readable pictures, sorted by key: the columns of `pictures`, and for each layer a struct of its name.

    Args:
        views: the dataset's.
        layers: which to join; one that does not exist is a column of nulls.
        keys: only these pictures, sorted; all by default.
        fields: the columns to read, all by default; key, uri, content and error always.
        rows: of a batch, at most.
    """
    return ahead(_batches(views, [name for name in layers if name != "pictures"], keys, fields, rows))


def _batches(
    views: Views,
    layers: Sequence[str],
    keys: pa.LargeStringArray | None,
    fields: Sequence[str] | None,
    rows: int,
) -> Iterator[pa.RecordBatch]:
    for low, high in views.again(views.slices):
        if keys is not None and _place(keys, low) == _place(keys, high, end=True):
            continue

        def opened(low: str | None = low, high: str | None = high) -> dict[str, Iterator[pa.Table]]:
            known = [name for name in layers if name in views.names()]
            return {name: _tables(views, name, low, high, fields) for name in ("pictures", *known)}

        tables = views.again(opened)  # from here on all files are open, and a compact may take them away
        beside = {name: _Sorted(found) for name, found in tables.items() if name != "pictures"}
        for pictures in tables["pictures"]:
            last = pictures.column("key")[-1].as_py()
            kept = pc.is_null(pictures.column("error"))
            if keys is not None:
                wanted = keys[_place(keys, pictures.column("key")[0].as_py()) : _place(keys, last) + 1]
                kept = pc.and_(kept, pc.is_in(pictures.column("key"), value_set=wanted.cast(pa.string())))
            found = {name: source.upto(last) for name, source in beside.items()}
            if not pc.any(kept).as_py():
                continue
            if not pc.all(kept).as_py():
                pictures = pictures.filter(kept)
            for name in layers:
                joined = _beside(pictures, found[name]) if name in found else pa.nulls(len(pictures))
                pictures = pictures.append_column(name, joined)
            yield from pictures.combine_chunks().to_batches(rows)


def _place(keys: pa.LargeStringArray, key: str | None, *, end: bool = False) -> int:
    """Where a key is, or would be; no key is the beginning, or the end."""
    return bisect_left(keys, key, key=text_of) if key is not None else len(keys) if end else 0


class _Sorted:
    """A layer's rows on their way, sorted by key."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables
        self._waiting: pa.Table | None = next(tables, None)

    def upto(self, last: str) -> list[pa.Table]:
        """The next rows, up to and with this key."""
        found = []
        while (table := self._waiting) is not None:
            keys = table.column("key")
            if keys[-1].as_py() > last:
                inside = bisect_right(keys, last, key=text_of)
                found.append(table.slice(0, inside))
                self._waiting = table.slice(inside)
                break
            found.append(table)
            self._waiting = next(self._tables, None)
        return [table for table in found if len(table)]


def _beside(pictures: pa.Table, found: list[pa.Table]) -> pa.StructArray:
    """For each picture the layer's row as a struct, null where there is none or it is about another content."""
    if not found:
        return pa.nulls(len(pictures))
    columns = {name: _stacked([table.column(name) for table in found]) for name in found[0].column_names}
    keys, absent = columns.pop("key"), None
    wanted = _whole(pictures.column("key"))
    if not keys.equals(wanted):
        places = pc.index_in(wanted, value_set=keys)
        absent = pc.is_null(places)
        whole = len(places) - places.null_count == len(keys)  # each row has its picture: the lists need no copy
        columns = {
            name: _spread(column, absent) if whole and pa.types.is_list(column.type) else column.take(places)
            for name, column in columns.items()
        }
    content = columns["content"]
    if content.null_count < len(content):
        other = pc.fill_null(pc.not_equal(content, _whole(pictures.column("content"))), False)
        absent = other if absent is None else pc.or_(absent, other)
    return pa.StructArray.from_arrays(list(columns.values()), names=list(columns), mask=absent)


def _spread(lists: pa.ListArray, absent: pa.BooleanArray) -> pa.ListArray:
    """Lists with empty places among them, over the same values."""
    before = np.cumsum(np.concatenate([[0], ~absent.to_numpy(zero_copy_only=False)]))
    offsets = pa.array(lists.offsets.to_numpy()[before])
    if lists.null_count:
        absent = pc.or_(absent, pc.is_null(lists).take(pa.array(np.minimum(before[:-1], len(lists) - 1))))
    return pa.ListArray.from_arrays(offsets, lists.values, mask=absent)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _tables(
    views: Views, name: str, low: str | None, high: str | None, fields: Sequence[str] | None
) -> Iterator[pa.Table]:
    """The rows of a layer that count, between two keys, in tables sorted by key. What can vanish is opened at once."""
    parts = within(views.parts(name), low, high)
    always = {"uri"} if name == "pictures" else set()
    columns = [column for column in schemas.columns(name) if fields is None or column in fields or column in always]
    columns = ["key", *columns, "content", "error", *(["detail"] if name == "pictures" and fields is None else [])]
    if disjoint(parts):
        lists = schemas.TAG_CATEGORIES if schemas.kind(name) == "tags" else ()
        coded = [f"{category}.list.element" for category in lists]
        files = [pq.ParquetFile(part, read_dictionary=coded) for part in sorted(parts, key=_first)]
        return _plain(files, columns, low, high)
    names = ", ".join(f'"{column}"' for column in columns)
    table = views.table(f"select {names} from ({views.view(name, low, high)}) order by key")
    schema = schemas.schema(name)
    arrays = [_coded(_whole(table.column(column).cast(schema.field(column).type)), name) for column in columns]
    whole = pa.table(dict(zip(columns, arrays, strict=True)))
    return (whole.slice(start, ROW_GROUP) for start in range(0, len(whole), ROW_GROUP))


def _first(part: Path) -> str:
    return extent(part).first


def _coded(column: pa.Array, layer: str) -> pa.Array:
    if schemas.kind(layer) != "tags" or not pa.types.is_list(column.type):
        return column
    if len(column) == 0:
        return pa.array([], _CODED)
    return pa.ListArray.from_arrays(column.offsets, column.values.dictionary_encode(), mask=pc.is_null(column))


def _plain(files: list[pq.ParquetFile], columns: list[str], low: str | None, high: str | None) -> Iterator[pa.Table]:
    """The rows of parts that share no keys, read as they stand."""
    for file in files:
        with file:
            for index in range(file.metadata.num_row_groups):
                ends = file.metadata.row_group(index).column(0).statistics
                if (high is not None and ends.min >= high) or (low is not None and ends.max < low):
                    continue
                table = file.read_row_group(index, columns=columns)
                keys = table.column("key")
                begin = bisect_left(keys, low, key=text_of) if low is not None and ends.min < low else 0
                end = bisect_left(keys, high, key=text_of) if high is not None and ends.max >= high else len(keys)
                if begin < end:
                    yield table.slice(begin, end - begin) if end - begin < len(keys) else table


def _stacked(columns: list[pa.ChunkedArray]) -> pa.Array:
    """One array of many. Arrow cannot stack lists of coded tags: their dictionaries go one after the other."""
    pieces = [piece for column in columns for piece in column.chunks]
    if len(pieces) == 1:
        return pieces[0]
    if pieces[0].type != _CODED:
        return pa.concat_arrays(pieces)
    codes, dictionaries, offsets, shift, filled = [], [], [np.zeros(1, np.int32)], 0, 0
    for piece in pieces:
        ends = piece.offsets.to_numpy()
        values = piece.values.slice(ends[0], ends[-1] - ends[0])
        codes.append(values.indices.to_numpy(zero_copy_only=False) + np.int32(shift))
        dictionaries.append(values.dictionary)
        offsets.append(ends[1:] - ends[0] + np.int32(filled))
        shift += len(values.dictionary)
        filled += len(values)
    values = pa.DictionaryArray.from_arrays(np.concatenate(codes), pa.concat_arrays(dictionaries))
    absent = pc.is_null(pa.chunked_array(pieces)).combine_chunks()
    return pa.ListArray.from_arrays(pa.array(np.concatenate(offsets)), values, mask=absent)
