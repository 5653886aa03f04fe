"""The metadata file of kohya's trainers, today's and the older ones'."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cutline.dataset import Found
from cutline.formats import kohya
from cutline.formats.entries import Entry
from cutline.formats.sidecar import Text
from cutline.options import option
from cutline.pictures import EXTENSIONS
from cutline.sources.listing import absolute, printable
from cutline.sources.rows import Rows, texts


@dataclass(frozen=True)
class Kohya:
    """The captions and tags of a metadata file (`.json` or `.jsonl`), and the pictures that it names."""

    path: Path = option(help="the metadata file")
    image_dir: Path | None = option(
        None, "the folder that the file's paths are relative to; its pictures are added too"
    )
    layer: str = option("kohya", "the words go to captions/<layer> and tags/<layer>")

    @property
    def base(self) -> Path | None:
        """What the entries' names are relative to, if that is known."""
        return absolute(self.image_dir) if self.image_dir else None

    def read(self) -> Iterator[Found]:
        """Stream the words, and the pictures where it is known where they are."""
        captions, tags = f"captions/{self.layer}", f"tags/{self.layer}"
        rows = Rows("pictures", captions, tags)
        folder = self.base
        for entry in kohya.read(Path(os.path.abspath(self.path.expanduser()))):
            if entry.error:
                rows.note(f"entry that cannot be read: {entry.error}")
                rows.failed(captions, entry.name or entry.where, entry.error, f"{entry.where}: {entry.detail}")
            else:
                name = _name(str(entry.name), folder)
                _picture(name, folder, rows)
                self._read_entry(name, entry, captions, tags, rows)
            yield from rows.full()
        yield from rows.rest()

    def _read_entry(self, name: str, entry: Entry, captions: str, tags: str, rows: Rows) -> None:
        if entry.fields.get("caption") is not None:
            rows.caption(captions, name, _text(entry, "caption"))
        if entry.fields.get("tags") is not None:
            rows.tags(tags, name, _text(entry, "tags"))
        if entry.fields.get("caption") is None and entry.fields.get("tags") is None:
            rows.note("entry without words")
        for other in entry.fields.keys() - {"caption", "tags"}:
            rows.note(f"field not read: {other}")


def _text(entry: Entry, field: str) -> list[Text]:
    value = entry.fields[field]
    if isinstance(value, str):
        return texts(value)
    return [Text(error="bad_value", detail=f"its {field} is not text, and no trainer of kohya's loads it")]


def _name(given: str, folder: Path | None) -> str:
    """The entry's name as it stands; a path below `image_dir` relative to it."""
    if folder and posixpath.isabs(given):
        relative = posixpath.relpath(given, folder.as_posix())
        return given if relative.startswith("../") else relative
    return given


def _picture(name: str, folder: Path | None, rows: Rows) -> None:
    """Add the picture of an entry, if it can be found."""
    if folder is None and not posixpath.isabs(name):
        return
    if os.path.splitext(name)[1].lower() not in EXTENSIONS:
        rows.note("entry named without a picture's extension, so not looked for")
        return
    path = os.path.join(folder or "/", name)
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        rows.note("entry whose picture is not there")
        return
    rows.picture(name, printable(path), status.st_size, status.st_mtime_ns)
