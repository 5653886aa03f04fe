"""Compacting: many small parts become few, sorted, cut at the same keys in every layer.

Rows keep their rank, tombstones stay, and inputs go to `retired/` only after the outputs are published. So a
writer, a reader, another compact or a crash at any moment meets the same rows, at worst twice.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from cutline import schemas
from cutline.dataset.cuts import bounds_sql, refine, write_cut
from cutline.dataset.query import started
from cutline.layer import (
    Layer,
    extent,
    heads_sql,
    identifier,
    rank_sql,
    read_sql,
    retire,
    row_id_sql,
    within,
)
from cutline.options import CutlineError

if TYPE_CHECKING:
    from cutline.dataset import Dataset

ABANDONED_SECONDS = 86_400.0


def compact(dataset: Dataset, layers: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """Compact these layers, slice by slice; for each how many parts there were and are.

    Between two cuts, a layer of a single part that crosses neither is left as it is.
    """
    if unknown := [name for name in layers if name not in dataset.layers()]:
        raise CutlineError(f"there is no layer {', '.join(unknown)}; there are: {', '.join(dataset.layers())}")
    keys = dataset.sql("select key from pictures order by key").arrow().column("key").cast(pa.large_string())
    refine(dataset.home / "layers", keys.combine_chunks())
    return {name: _compact(dataset, dataset.layer(name)) for name in layers}


def _compact(dataset: Dataset, layer: Layer) -> tuple[int, int]:
    for old in (layer.folder / "retired").glob("*.parquet"):
        with contextlib.suppress(FileNotFoundError):
            old.unlink()
    _clear(layer.folder)
    before = dataset.views.again(lambda: dataset.views.parts(layer.name))
    merged: set[Path] = set()
    written = 0
    for low, high in dataset.views.again(dataset.views.slices):

        def kept(low: str | None = low, high: str | None = high) -> tuple[list[Path], Iterator[pa.RecordBatch]] | None:
            # Parts that came meanwhile wait for the next compact; what another compact took is in parts of its own.
            there = [part for part in dataset.views.parts(layer.name) if part in before]
            parts = within(there, low, high)
            if not parts or (len(parts) == 1 and _inside(parts[0], low, high)):
                return None
            return parts, started(dataset.views.reader(_kept(layer.name, parts, low, high)))

        found = dataset.views.again(kept)
        if found is not None:
            parts, batches = found
            written += write_cut(layer, batches, []) > 0
            merged.update(parts)
    retire(merged)
    return len(before), len(before) - len(merged) + written


def _inside(part: Path, low: str | None, high: str | None) -> bool:
    there = extent(part)
    return (low is None or there.first >= low) and (high is None or there.last < high)


def _clear(folder: Path) -> None:
    """Remove what killed writers left half-written, once it is too old to be anyone's present work."""
    for pattern in (".part-*.tmp", ".cutline-*.tmp", ".layer-*.json"):
        for left in folder.glob(pattern):
            with contextlib.suppress(OSError):
                if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                    left.unlink()


def _kept(name: str, parts: list[Path], low: str | None, high: str | None) -> str:
    """SQL for the rows to keep: the best of each key and content, and the newest tombstone of each key."""
    ranked, bounds = rank_sql(parts), bounds_sql(low, high)
    columns = ", ".join(
        identifier(column) if column != "rank" else f"{ranked} as rank" for column in schemas.schema(name).names
    )
    source = read_sql(parts)
    best = heads_sql(parts, per_content=name != "pictures", only=bounds)
    tombs = f"select arg_max({row_id_sql()}, {ranked}) as id from {source} where deleted and {bounds} group by key"
    ids = f"{row_id_sql()} in ({best} union all {tombs})"
    return f"select {columns} from {source} where {bounds} and {ids} order by key"
