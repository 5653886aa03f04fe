"""Hugging Face's imagefolder metadata: `metadata.jsonl`, or its twins `.csv` and `.parquet`.

Every record has a `file_name`, a POSIX path relative to the metadata file's folder; the other columns are free.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import pyarrow as pa

from cutline.formats import sidecar
from cutline.formats.entries import Entry, entry, json_lines
from cutline.options import CutlineError

FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
"""What such a file may be called; the first that is there is read."""

_CSV_BLOCK = 8 << 20  # bytes: a record must fit
_BATCH = 10_000


def read(path: Path) -> Iterator[Entry]:
    """Stream the entries of a metadata file, by its suffix, in bounded memory.

    Raises:
        CutlineError: there is no such file, or it is not what its suffix says.
    """
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    return readers.get(path.suffix.lower(), _read_lines)(path)


def write(handle: IO[bytes], entries: Iterator[tuple[str, Mapping[str, str | None]]]) -> None:
    """Stream file names and their other columns into a metadata.jsonl."""
    for name, fields in entries:
        handle.write(json.dumps({"file_name": name, **fields}, ensure_ascii=False).encode("utf-8") + b"\n")


def _read_lines(path: Path) -> Iterator[Entry]:
    return json_lines(path, "file_name")


def _read_csv(path: Path) -> Iterator[Entry]:
    from pyarrow import csv as arrow_csv

    broken: list[tuple[int | None, int]] = []

    def skip(row: arrow_csv.InvalidRow) -> str:
        broken.append((row.number, row.actual_columns))
        return "skip"

    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as handle:
            header = next(csv.reader(handle), [])
        if not header:
            return
        reader = arrow_csv.open_csv(
            path,
            arrow_csv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK),
            arrow_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
            # As bytes, so that a value that is not UTF-8 spoils only itself.
            arrow_csv.ConvertOptions(column_types=dict.fromkeys(header, pa.binary()), strings_can_be_null=False),
        )
        number = 0
        for batch in reader:
            for row in batch.to_pylist():
                number += 1
                yield _decoded(f"record {number} of {path.name}", row)
        for place, columns in broken:
            detail = f"it has {columns} values, and the header {len(header)}"
            yield Entry(f"row {place} of {path.name}", error="bad_csv", detail=detail)
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowInvalid) as error:
        raise CutlineError(f"cannot read {path}: {error}") from None


def _decoded(where: str, row: dict[str, bytes]) -> Entry:
    fields: dict[str, object] = {}
    for column, value in row.items():
        try:
            fields[column] = value.decode("utf-8")
        except UnicodeDecodeError:
            fields[column] = sidecar.read(value)  # it carries the reason
    return entry(where, fields, "file_name")


def _read_parquet(path: Path) -> Iterator[Entry]:
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield entry(f"record {number} of {path.name}", row, "file_name")
    except (OSError, pa.ArrowInvalid) as error:
        raise CutlineError(f"cannot read {path}: {error}") from None
