"""Where layers are cut: at the same keys in each, so that they can be joined piece by piece.

The cuts stand in `.cutline/cuts.json`, a sorted list of keys. They only ever get more: a part that was cut before
crosses none of the older ones. Nothing depends on them but speed and memory.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from cutline import schemas
from cutline.dataset.ahead import ahead
from cutline.files import whole_file
from cutline.layer import Layer, fit, publish_file, quote, write_part

PICTURES_PER_CUT = 131_072
"""A slice of more than twice as many is cut at each this-many-th key."""


def read_cuts(layers: Path) -> list[str]:
    """The cuts of the dataset whose layers are in this folder; none where it is small."""
    try:
        found: list[str] = json.loads(_file(layers).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return found


def refine(layers: Path, keys: pa.LargeStringArray) -> None:
    """Cut the slices that have grown too large, now that a dataset has these keys (sorted)."""
    cuts = read_cuts(layers)
    more = []
    begin = 0
    for high in [*cuts, None]:
        end = len(keys) if high is None else bisect_left(keys, high, key=text_of)
        if end - begin > 2 * PICTURES_PER_CUT:
            more += [keys[place].as_py() for place in range(begin + PICTURES_PER_CUT, end - 1, PICTURES_PER_CUT)]
        begin = end
    if more:
        with whole_file(_file(layers), "w") as handle:
            handle.write(json.dumps(sorted({*cuts, *more}), ensure_ascii=False, indent=0) + "\n")


def text_of(scalar: pa.Scalar) -> str:
    """For bisecting an array of keys."""
    found: str = scalar.as_py()
    return found


def bounds_sql(low: str | None, high: str | None) -> str:
    """SQL for the keys from `low` up to, and without, `high`; None is no bound."""
    bounds = [f"key >= {quote(low)}"] if low is not None else []
    bounds += [f"key < {quote(high)}"] if high is not None else []
    return " and ".join(bounds) or "true"


def write_cut(layer: Layer, batches: Iterator[pa.RecordBatch], cuts: Sequence[str]) -> int:
    """Publish a stream of rows, sorted by key, as parts that cross no cut; how many rows. Lacking columns are null."""
    schema = schemas.schema(layer.name)
    total = 0

    def fitted(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        nonlocal total
        for batch in batches:
            total += batch.num_rows
            yield fit(batch, schema)

    for piece in _split(ahead(batches), list(cuts)):
        layer.folder.mkdir(parents=True, exist_ok=True)
        publish_file(layer.folder, partial(write_part, schema=schema, batches=fitted(piece)))
    return total


def _split(batches: Iterator[pa.RecordBatch], cuts: list[str]) -> Iterator[Iterator[pa.RecordBatch]]:
    """Cut a stream that is sorted by key before each of the keys; use up each piece before the next is asked for."""
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


def _file(layers: Path) -> Path:
    return layers.parent / "cuts.json"
