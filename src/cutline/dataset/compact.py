"""Compacting: many small parts become few, sorted, cut at the same keys in every layer.

Rows keep their rank, tombstones stay, and inputs go to `retired/` only after the outputs are published. So a
writer, a reader, another compact or a crash at any moment meets the same rows, at worst twice.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cutline import schemas
from cutline.layer import heads_sql, identifier, publish_file, rank_sql, read_sql, retire, row_id_sql
from cutline.options import CutlineError

if TYPE_CHECKING:
    from cutline.dataset import Dataset

ABANDONED_SECONDS = 86_400.0
PICTURES_PER_CUT = 131_072
"""Every layer is cut at each this-many-th key of the pictures layer."""


def compact(dataset: Dataset, layers: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """Compact these layers; for each how many parts there were and are. One of a single part is left as it is."""
    if unknown := [name for name in layers if name not in dataset.layers()]:
        raise CutlineError(f"there is no layer {', '.join(unknown)}; there are: {', '.join(dataset.layers())}")
    cuts = _cuts(dataset)
    done: dict[str, tuple[int, int]] = {}
    for name in layers:
        layer = dataset.layer(name)
        for old in (layer.folder / "retired").glob("*.parquet"):
            with contextlib.suppress(FileNotFoundError):
                old.unlink()
        _clear(layer.folder)
        before: list[Path] = []

        def question(name: str = name, before: list[Path] = before) -> str:
            before[:] = dataset.views.parts(name)
            return _kept(name, before)

        if len(layer.parts()) < 2:
            done[name] = (len(layer.parts()),) * 2
            continue
        reader = dataset.views.ask(question, lambda answer: iter(_Ahead(answer.to_arrow_reader(65_536))))
        after = 0
        for batches in _split(reader, cuts):
            publish_file(layer.folder, partial(_write, schemas.schema(name), batches))
            after += 1
        retire(before)
        done[name] = (len(before), after)
    return done


def _clear(folder: Path) -> None:
    """Remove what killed writers left half-written, once it is too old to be anyone's present work."""
    for pattern in (".part-*.tmp", ".cutline-*.tmp", ".layer-*.json"):
        for left in folder.glob(pattern):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                    left.unlink()


class _Ahead:
    """A reader whose first batch is fetched at once, so that what can fail for a vanished part fails there."""

    def __init__(self, reader: pa.RecordBatchReader) -> None:
        self.reader = reader
        self.first = next(reader, None)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        if self.first is not None:
            yield self.first
            yield from self.reader


def _cuts(dataset: Dataset) -> list[str]:
    found = dataset.sql(
        f"select key from (select key, row_number() over (order by key) as n from pictures) "
        f"where n % {PICTURES_PER_CUT} = 0 order by key"
    ).fetchall()
    return [key for (key,) in found]


def _kept(name: str, parts: list[Path]) -> str:
    """SQL for the rows to keep: the best of each key and content, and the newest tombstone of each key."""
    ranked = rank_sql(parts)
    columns = ", ".join(
        identifier(column) if column != "rank" else f"{ranked} as rank" for column in schemas.schema(name).names
    )
    source = read_sql(parts)
    best = heads_sql(parts, per_content=name != "pictures")
    tombs = f"select arg_max({row_id_sql()}, {ranked}) as id from {source} where deleted group by key"
    return f"select {columns} from {source} where {row_id_sql()} in ({best} union all {tombs}) order by key"


def _split(batches: Iterator[pa.RecordBatch], cuts: list[str]) -> Iterator[Iterator[pa.RecordBatch]]:
    """Cut a sorted stream before each of the keys; each piece must be used up before the next is asked for."""
    waiting: list[pa.RecordBatch] = []
    remaining = list(cuts)

    def pull() -> pa.RecordBatch | None:
        return waiting.pop() if waiting else next(batches, None)

    def piece(first: pa.RecordBatch, end: str | None) -> Iterator[pa.RecordBatch]:
        batch: pa.RecordBatch | None = first
        while batch is not None:
            if end is None:
                yield batch
            else:
                inside = pc.sum(pc.less(batch.column("key"), end)).as_py() or 0
                if inside:
                    yield batch.slice(0, inside)
                if inside < batch.num_rows:
                    waiting.append(batch.slice(inside))
                    return
            batch = pull()

    while (first := pull()) is not None:
        while remaining and first.column("key")[0].as_py() >= remaining[0]:
            remaining.pop(0)
        yield piece(first, remaining[0] if remaining else None)


def _write(schema: pa.Schema, batches: Iterator[pa.RecordBatch], path: Path) -> None:
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_table(pa.Table.from_batches([batch]).cast(schema))
