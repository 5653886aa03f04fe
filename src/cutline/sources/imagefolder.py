"""A folder of pictures in Hugging Face's imagefolder form: their words stand in metadata files."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cutline.dataset import Found
from cutline.formats import metadata_jsonl
from cutline.formats.entries import Entry
from cutline.options import CutlineError, option
from cutline.sources.listing import absolute, list_picture, walk
from cutline.sources.rows import Rows, texts

CAPTION_COLUMNS = ("text", "caption", "captions")
"""Where captions stand unless `text_column` says otherwise; the first that a record has."""

CAPTIONS, TAGS = "captions/imagefolder", "tags/imagefolder"


@dataclass(frozen=True)
class ImageFolder:
    """Pictures below a folder, and the words in its metadata.jsonl, .csv or .parquet and those of its subfolders."""

    path: Path = option(help="the folder, or its metadata file")
    text_column: str = option("", "the column that holds the captions; by default text, caption or captions")

    @property
    def covers(self) -> Path:
        """Every picture below this folder is listed."""
        return absolute(self.path.parent if self.path.name in metadata_jsonl.FILES else self.path)

    def read(self) -> Iterator[Found]:
        """Stream the pictures, then the words of each metadata file."""
        rows = Rows("pictures", CAPTIONS, TAGS)
        files: list[tuple[str, Path]] = []
        for listed in walk(self.covers, rows):
            for entry in listed.pictures:
                list_picture(listed, entry, rows)
                yield from rows.full()
            there = [Path(listed.path, file) for file in metadata_jsonl.FILES if Path(listed.path, file).is_file()]
            files += [(listed.prefix, file) for file in there[:1]]
            if there[1:]:
                rows.note("metadata file not read, since its folder has another", len(there) - 1)
        if not files:
            raise CutlineError(f"{self.covers} has no {', '.join(metadata_jsonl.FILES)}. For sidecars: --from folder")
        for prefix, file in files:
            yield from self._read_file(prefix, file, rows)
        yield from rows.rest()

    def _read_file(self, prefix: str, file: Path, rows: Rows) -> Iterator[Found]:
        columns: set[str] = set()
        wanted = (self.text_column,) if self.text_column else CAPTION_COLUMNS
        for entry in metadata_jsonl.read(file):
            name = self._name(prefix, entry, rows)
            if entry.error or name is None:
                rows.note(f"metadata record that cannot be read: {entry.error or 'bad_name'}")
                detail = entry.detail or f"{entry.name!r} leads out of the folder"
                rows.failed(CAPTIONS, prefix + entry.where, entry.error or "bad_name", f"{entry.where}: {detail}")
            else:
                columns.update(entry.fields)
                self._read_entry(name, entry, wanted, rows)
            yield from rows.full()
        if columns and not columns.intersection(wanted if self.text_column else {*wanted, "tags"}):
            raise CutlineError(
                f"{file} has no column {' or '.join(wanted)}. It has: {', '.join(sorted(columns))}. "
                "Say which holds the captions: -o text_column=…"
            )

    def _read_entry(self, name: str, entry: Entry, wanted: tuple[str, ...], rows: Rows) -> None:
        column = next((column for column in wanted if entry.fields.get(column) is not None), None)
        if column is not None:
            rows.caption(CAPTIONS, name, texts(entry.fields[column]))
        elif "tags" not in entry.fields:
            rows.note("metadata record without a text")
        if column != "tags" and entry.fields.get("tags") is not None:
            rows.tags(TAGS, name, texts(entry.fields["tags"]))
        for other in entry.fields.keys() - {column, "tags"}:
            rows.note(f"column not read: {other}")

    def _name(self, prefix: str, entry: Entry, rows: Rows) -> str | None:
        """The picture's path relative to `covers`, whether it is there or not; none where it leads out of it."""
        if entry.name is None:
            return None
        given = entry.name
        path = os.path.join(self.covers, prefix)
        if not os.path.exists(os.path.join(path, given)):
            windows = given.replace("\\", "/")
            if windows != given and os.path.exists(os.path.join(path, windows)):
                rows.note("file name with backslashes")
                given = windows
            else:
                rows.note("metadata record whose picture is not there")
        name = posixpath.normpath(prefix + given)
        if posixpath.isabs(given):
            name = posixpath.relpath(given, self.covers.as_posix())
        return None if name == ".." or name.startswith("../") else name
