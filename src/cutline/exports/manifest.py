"""What an export is, and what it says when it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from cutline.compose.recipe import Recipe

PICTURE = ("width", "height", "orientation", "offset", "size", "mtime_ns", "content")
"""Columns of the pictures layer that exports are given."""

COLUMNS = ("key", "uri", "path", *PICTURE, "caption", "tags", "text", "train_width", "train_height", "entry", "misread")
"""What the rows of an export may hold: all but the last two, unless it names those that it wants.

`uri` is a POSIX path relative to the dataset, or absolute for a picture outside of it; of one that is known from
metadata only it is the key, and `path` is null. `path` is that file on this machine, or leads into an archive where
there is an `offset`. `text` is what the recipe makes, null where it makes nothing, and `caption` and `tags` its parts
without what it leaves to chance; `train_width` and `train_height` are the trainer's bucket in pixels. Where the recipe
reads no layer of theirs, `caption`, `tags` and `train_width` are of Arrow's type null. Beside `text` stand the recipe's
other outputs, as `text.NAME`. `entry` is the caption of a metadata entry from which kohya's trainers draw the recipe's
texts, and `misread` why they would not, null where they do.
"""


class Rows(Iterator[pa.RecordBatch]):
    """The rows of an export, sorted by key, with the recipe that made their texts."""

    def __init__(self, recipe: Recipe, root: Path, made: Callable[[int | None], Iterator[pa.RecordBatch]]) -> None:
        self.recipe, self.root = recipe, root
        self._made, self._first = made, made(None)

    def __next__(self) -> pa.RecordBatch:
        return next(self._first)

    def epoch(self, number: int) -> Iterator[pa.RecordBatch]:
        """The rows once more, with their texts in another epoch."""
        return self._made(number)


@dataclass(frozen=True)
class Manifest:
    """What an export wrote."""

    format: str
    out: Path
    counts: dict[str, int]
    """Pictures: `written`, `unchanged` (it stood there already), `without_text`, and more of an export's own."""
    xxh128: str
    """XXH3's 128 bits (`xxhsum -H128`) of the file, or of the files' lines `<hash>  <path>\\n`, sorted by path."""
    beside: dict[str, str] = field(default_factory=dict)
    """Other files that it wrote beside `out`, with their xxh128."""
    diff: list[str] = field(default_factory=list)
    """For a dry run: what would change, line by line."""
    notes: list[str] = field(default_factory=list)
    """What people should know, each with what to type."""


class Export(Protocol):
    """A plug-in that writes other people's formats: a frozen dataclass with one verb.

    It may have `columns`, those of `COLUMNS` that it wants, which saves the work of making others; `files`, true where
    it can do nothing with pictures that only metadata tells of; `beside(out)`, files that it may write beside `out`
    (what stood there is kept). What `export` gives as rows is a `Rows`, for those who want more than one epoch.
    """

    def write(self, rows: Iterator[pa.RecordBatch], out: Path, *, dry_run: bool = False) -> Manifest:
        """Write rows, sorted by key, to `out`. A dry run only says what would change."""
        ...
