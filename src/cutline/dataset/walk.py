"""Pictures joined with layers, as a stream: one slice of the keys after the other, in memory that does not grow.

Compacting and adding cut all layers at the same keys (`cuts`). Between two cuts there are a hundred thousand pictures
or so; their rows are read from each layer, sorted by key, and put beside each other. Where a layer has one row for each
key there, which is what it has after compacting, its Parquet is read as it stands; elsewhere the database says which
rows count. While one slice is used, the next is read.

Lists of tags come dictionary-coded: each batch names a tag once, however many pictures have it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cutline import schemas
from cutline.dataset.query import BATCH_ROWS, Views
from cutline.layer import disjoint, extent, within

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
        fields: the columns of layers to read, all by default; key, content and error always.
        rows: of a batch, at most.
    """
    slices = views.again(views.slices)

    def read(low: str | None, high: str | None) -> pa.Table | None:
        wanted = keys
        if wanted is not None:
            begin = 0 if low is None else bisect_left(wanted, low, key=pa.Scalar.as_py)
            end = len(wanted) if high is None else bisect_left(wanted, high, key=pa.Scalar.as_py)
            if begin == end:
                return None
            wanted = wanted[begin:end].cast(pa.string())
        return views.again(lambda: _slice(views, layers, low, high, wanted, fields))

    with ThreadPoolExecutor(1) as ahead:
        waiting: Future[pa.Table | None] | None = ahead.submit(read, *slices[0])
        for following in [*slices[1:], None]:
            assert waiting is not None
            table = waiting.result()
            waiting = ahead.submit(read, *following) if following else None
            if table is not None:
                yield from table.to_batches(rows)
            del table


def _slice(
    views: Views,
    layers: Sequence[str],
    low: str | None,
    high: str | None,
    wanted: pa.StringArray | None,
    fields: Sequence[str] | None,
) -> pa.Table:
    pictures = _rows(views, "pictures", low, high, None)
    kept = pc.is_null(pictures.column("error"))
    if wanted is not None:
        kept = pc.and_(kept, pc.is_in(pictures.column("key"), value_set=wanted))
    if not pc.all(kept, min_count=0).as_py():
        pictures = pictures.filter(kept)
    pictures = pictures.combine_chunks()
    known = views.names()
    for name in layers:
        if name == "pictures":
            continue
        joined = pa.nulls(len(pictures))
        if name in known:
            joined = _beside(pictures, _rows(views, name, low, high, fields))
        pictures = pictures.append_column(name, joined)
    return pictures


def _beside(pictures: pa.Table, rows: pa.Table) -> pa.StructArray:
    """For each picture the layer's row as a struct, null where there is none or it is about another content."""
    columns = {name: _whole(rows.column(name)) for name in rows.column_names}
    keys, absent = columns.pop("key"), None
    wanted = _whole(pictures.column("key"))
    if not keys.equals(wanted):
        places = pc.index_in(wanted, value_set=keys)
        absent = pc.is_null(places)
        columns = {name: column.take(places) for name, column in columns.items()}
    content = columns["content"]
    if content.null_count < len(content):
        other = pc.fill_null(pc.not_equal(content, _whole(pictures.column("content"))), False)
        absent = other if absent is None else pc.or_(absent, other)
    return pa.StructArray.from_arrays(list(columns.values()), names=list(columns), mask=absent)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _rows(views: Views, name: str, low: str | None, high: str | None, fields: Sequence[str] | None) -> pa.Table:
    """The rows of a layer that count, between two keys, sorted by key, each column in one piece."""
    parts = within(views.parts(name), low, high)
    said = schemas.columns(name)
    columns = ["key", *(column for column in said if fields is None or column in fields), "content", "error"]
    if name == "pictures":
        columns.append("detail")
    if parts and disjoint(parts):
        return _plain(sorted(parts, key=lambda part: extent(part).first), columns, low, high)
    names = ", ".join(f'"{column}"' for column in columns)
    table = views.table(f"select {names} from ({views.view(name, low, high)}) order by key")
    schema = schemas.schema(name)
    arrays = [_coded(_whole(table.column(column).cast(schema.field(column).type)), name) for column in columns]
    return pa.table(dict(zip(columns, arrays, strict=True)))


def _coded(column: pa.Array, layer: str) -> pa.Array:
    if schemas.kind(layer) != "tags" or not pa.types.is_list(column.type):
        return column
    values = column.values.dictionary_encode()
    return (
        pa.ListArray.from_arrays(column.offsets, values, mask=pc.is_null(column))
        if len(column)
        else pa.array([], _CODED)
    )


def _plain(parts: Sequence[Path], columns: list[str], low: str | None, high: str | None) -> pa.Table:
    """The rows of parts that share no keys, read as they stand."""
    groups: list[pa.Table] = []
    for part in parts:
        schema = pq.read_schema(part)
        tags = [
            name for name in columns if pa.types.is_list(schema.field(name).type) and name in schemas.TAG_CATEGORIES
        ]
        with pq.ParquetFile(part, read_dictionary=[f"{name}.list.element" for name in tags]) as file:
            for index in range(file.metadata.num_row_groups):
                keys = file.metadata.row_group(index).column(0).statistics
                if (high is None or keys.min < high) and (low is None or keys.max >= low):
                    groups.append(file.read_row_group(index, columns=columns))
    table = pa.table({name: _stacked([group.column(name) for group in groups]) for name in columns})
    keys = table.column("key")
    begin = 0 if low is None else pc.sum(pc.less(keys, low)).as_py()
    end = len(keys) if high is None else pc.sum(pc.less(keys, high)).as_py()
    return table.slice(begin, end - begin).combine_chunks() if (begin, end) != (0, len(keys)) else table


def _stacked(columns: list[pa.ChunkedArray]) -> pa.Array:
    """One array of many. Arrow cannot stack lists of coded tags: their dictionaries go one after the other."""
    pieces = [piece for column in columns for piece in column.chunks]
    if pieces[0].type != _CODED:
        return pa.concat_arrays(pieces)
    codes, dictionaries, offsets, shift, filled = [], [], [np.zeros(1, np.int32)], 0, 0
    for piece in pieces:
        values = piece.values
        codes.append(values.indices.to_numpy(zero_copy_only=False) + np.int32(shift))
        dictionaries.append(values.dictionary)
        offsets.append(piece.offsets.to_numpy()[1:] + np.int32(filled))
        shift += len(values.dictionary)
        filled += len(values)
    values = pa.DictionaryArray.from_arrays(np.concatenate(codes), pa.concat_arrays(dictionaries))
    absent = pc.is_null(pa.chunked_array(pieces)).combine_chunks()
    return pa.ListArray.from_arrays(pa.array(np.concatenate(offsets)), values, mask=absent)
