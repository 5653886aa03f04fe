"""What is left to do, among two million pictures: `Dataset.missing` against an anti-join in plain Python.

The dataset is made for the occasion: pictures in 200 parts, strewn over them as if they had come in over time; every
second one by key has a caption, in 200 parts in the order of keys. Counted is what is missing, and all missing rows
are streamed. The baseline reads key and content of the same parts with pyarrow and looks each picture up in a Python
set; it knows nothing of parts that overlap, errors and deleted rows. Each run is a process of its own, timed from
opening the dataset to the last row, after the imports; its peak memory includes everything.

    python benchmarks/missing.py                      # two million pictures: two minutes on two cores
    python benchmarks/missing.py -n 200000
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cutline import schemas
from cutline.dataset import Dataset, KeyRule
from cutline.layer import publish
from pairs import finish, median_ratio, middle, say_machine, spread, take_pairs, verdict

LAYER = "captions/blip"
PARTS = 200
SECONDS, MEGABYTES = 2.0, 1000.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--pictures", type=int, default=2_000_000)
    parser.add_argument("--pairs", type=int, default=5, help="how often each side is timed")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)  # one side of a pair
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.side:
        run_side(chosen.side, chosen.folder)
        return
    say_machine()
    with tempfile.TemporaryDirectory(prefix="cutline-missing-") as temporary:
        make_dataset(Path(temporary), chosen.pictures)
        expected = chosen.pictures // 2
        print(f"{chosen.pictures:,} pictures in {PARTS} parts, {chosen.pictures - expected:,} of them with a caption")
        met: list[bool] = []
        for side, what in (("count", "missing().count()"), ("stream", "missing().batches(), all rows")):
            memory: dict[str, list[float]] = {"set": [], side: []}
            pairs = take_pairs(
                chosen.pairs,
                partial(timed, "set", Path(temporary), expected, memory),
                partial(timed, side, Path(temporary), expected, memory),
                show=False,
            )
            plain = f"plain set: {middle(pairs, 0):.2f} s, {statistics.median(memory['set']):.0f} MB"
            ratio = f"{median_ratio(pairs):.2f} times a plain set ({spread(pairs)}; {plain})"
            met.append(verdict(what, middle(pairs, 1), SECONDS, "s", ratio))
            met.append(verdict(f"{what}, peak memory", max(memory[side]), MEGABYTES, "MB"))
    finish(*met)


def make_dataset(root: Path, count: int) -> None:
    """Publish a pictures layer and a caption layer, each in `PARTS` parts."""
    dataset = Dataset(root)
    dataset.create(KeyRule())
    strewn = np.random.default_rng(0).permutation(count)
    for numbers in np.array_split(strewn, PARTS):
        keys, contents = keys_and_contents(numbers)
        table = pa.table(
            {
                "key": keys,
                "uri": keys,
                "size": pa.array(100_000 + numbers % 900_000),
                "mtime_ns": pa.array(1_700_000_000_000_000_000 + numbers * 1_000_003),
                "width": pa.repeat(512, len(keys)),
                "height": pa.repeat(512, len(keys)),
                "format": pa.repeat("JPEG", len(keys)),
                "orientation": pa.repeat(1, len(keys)),
                "content": contents,
            }
        )
        publish(dataset.layer("pictures").folder, fit(table, "pictures"))
    for numbers in np.array_split(np.arange(0, count, 2), PARTS):
        keys, contents = keys_and_contents(numbers)
        texts = [f"a photograph of thing number {number}, with more words than it needs" for number in numbers]
        table = pa.table(
            {
                "key": keys,
                "texts": [[text] for text in texts],
                "raw": texts,
                "verdict": pa.repeat("good", len(keys)),
                "request": [content[:16] for content in contents],
                "attempt": pa.repeat(1, len(keys)),
                "content": contents,
            }
        )
        publish(dataset.layer(LAYER).folder, fit(table, LAYER))


def keys_and_contents(numbers: Any) -> tuple[list[str], list[str]]:
    keys = [f"{number // 1000:04}/{number:08}.jpg" for number in numbers.tolist()]
    return keys, [hashlib.sha256(key.encode()).hexdigest() for key in keys]


def fit(table: pa.Table, layer: str) -> pa.Table:
    schema = schemas.schema(layer)
    for field in schema:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(schema.names).cast(schema)


def timed(side: str, folder: Path, expected: int, memory: dict[str, list[float]]) -> float:
    """Run one side as a process of its own: its seconds; its peak memory is noted in MB."""
    command = [sys.executable, os.fspath(Path(__file__).resolve()), "--side", side, "--folder", os.fspath(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed with {done.returncode}:\n{done.stdout}{done.stderr}")
    found = json.loads(done.stdout)
    if found["missing"] != expected:
        sys.exit(f"{side} finds {found['missing']:,} missing, not {expected:,}")
    memory[side].append(found["megabytes"])
    return float(found["seconds"])


def run_side(side: str, folder: Path) -> None:
    start = time.perf_counter()
    missing = SIDES[side](Dataset(folder))
    seconds = time.perf_counter() - start
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"missing": missing, "seconds": seconds, "megabytes": kilobytes * 1024 / 1e6}))


def count_missing(dataset: Dataset) -> int:
    return dataset.missing(LAYER).count()


def stream_missing(dataset: Dataset) -> int:
    return sum(batch.num_rows for batch in dataset.missing(LAYER).batches())


def plain_set(dataset: Dataset) -> int:
    def rows(part: Path) -> zip[tuple[Any, Any]]:
        table = pq.read_table(part, columns=["key", "content"])
        return zip(table["key"].to_pylist(), table["content"].to_pylist(), strict=True)

    done = {row for part in dataset.layer(LAYER).parts() for row in rows(part)}
    return sum(row not in done for part in dataset.layer("pictures").parts() for row in rows(part))


SIDES: dict[str, Callable[[Dataset], int]] = {"set": plain_set, "count": count_missing, "stream": stream_missing}


if __name__ == "__main__":
    main()
