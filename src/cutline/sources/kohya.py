"""The metadata files of kohya's trainers, today's and the older ones', and those that scripts for them leave behind."""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cutline.dataset import Found, KeyRule
from cutline.formats import kohya, sidecar
from cutline.formats.sidecar import Text
from cutline.options import option
from cutline.pictures import EXTENSIONS
from cutline.sources.listing import absolute, printable
from cutline.sources.rows import Rows

_READ = frozenset({"caption", "tags", "train_resolution"})
"""Fields."""

_OFTEN = 1000  # entries: after so many it is seen whether a batch is full

_SIZE = re.compile(r"_\d{2,5}x\d{2,5}(_[^_]+)?$")
"""What follows the picture's stem in the name of its latents: `7866720_1024x0960_sdxl.npz`."""


@dataclass(frozen=True)
class Kohya:
    """The captions, tags and latents of a metadata file (`.json` or `.jsonl`), and the pictures that it names.

    A list of what is missing (`missing.json`) is read too: its pictures become known, without words.
    """

    path: Path = option(help="the metadata file")
    image_dir: Path | None = option(
        None, "the folder that the file's paths are relative to; its pictures are added too"
    )
    layer: str = option("kohya", "the words go to captions/<layer> and tags/<layer>, latents to latents/<layer>")
    posts: bool = option(
        False, "every entry's picture becomes known, whether its file is there or not (of a list of ids it always does)"
    )
    rejected: bool = option(
        False, "its captions are answers of a model that were found bad: kept as such, and never exported"
    )
    latents: Path | None = option(None, "a folder of .npz files; their pictures are those of the same stem")

    @property
    def base(self) -> Path | None:
        """What the entries' names are relative to, if that is known."""
        return absolute(self.image_dir) if self.image_dir else None

    @property
    def rule(self) -> KeyRule:
        """Bare ids and stems match the pictures that come later by their stems."""
        first = next((entry.name for entry in kohya.read(self._path) if entry.name), "")
        return KeyRule("path" if self.image_dir or not first or _is_file_name(first) else "stem")

    @property
    def _path(self) -> Path:
        return Path(os.path.abspath(self.path.expanduser()))

    def read(self) -> Iterator[Found]:
        """Stream the words and latents, and the pictures where it is known where they are."""
        captions = f"captions/{self.layer}"
        rows = Rows("pictures", captions, f"tags/{self.layer}")
        folder = self.base
        files = _latents(absolute(self.latents), rows) if self.latents else {}
        listed: set[str] = set()
        for count, entry in enumerate(kohya.read(self._path), 1):
            if entry.error or entry.name is None:
                rows.note(f"entry that cannot be read: {entry.error}")
                rows.failed(captions, entry.name or entry.where, entry.error, f"{entry.where}: {entry.detail}")
            elif kohya.LACKS in entry.fields:
                rows.note(f"picture that a list says has no {entry.fields[kohya.LACKS]}")
                if entry.name not in listed:
                    listed.add(entry.name)
                    rows.picture(entry.name, None)
            else:
                name = _name(entry.name, folder) if folder else entry.name
                if not _picture(name, folder, rows) and self.posts:
                    rows.picture(name, None)
                self._read_entry(name, entry.fields, rows)
                if "train_resolution" in entry.fields or files:
                    self._read_latents(name, entry.fields.get("train_resolution"), files, rows)
            if count % _OFTEN == 0:
                yield from rows.full()
        for stem, file in files.items():
            rows.latents(f"latents/{self.layer}", stem, None, None, file)
        yield from rows.rest()

    def _read_entry(self, name: str, fields: Mapping[str, object], rows: Rows) -> None:
        caption, tags = fields.get("caption"), fields.get("tags")
        if caption is not None:
            layer = f"captions/{self.layer}"
            if self.rejected:
                rows.rejected(layer, name, _text(caption, "caption"), "bad_answer")
            elif isinstance(caption, str) and sidecar.is_clean(caption):
                rows.plain_caption(layer, name, caption)
            else:
                rows.caption(layer, name, [_text(caption, "caption")])
        if tags is not None:
            layer = f"tags/{self.layer}"
            if isinstance(tags, str) and sidecar.is_clean(tags):
                rows.plain_tags(layer, name, tags)
            else:
                rows.tags(layer, name, [_text(tags, "tags")])
        if caption is None and tags is None:
            rows.note("entry without words")
        for other in fields:
            if other not in _READ:
                rows.note(f"field not read: {other}")

    def _read_latents(self, name: str, size: object, files: dict[str, str], rows: Rows) -> None:
        """Add the bucket that the entry names, and the file that was found for it."""
        file = files.pop(os.path.splitext(posixpath.basename(name))[0], None) if files else None
        width, height = size if isinstance(size, list) and len(size) == 2 else (None, None)
        if size is not None and not (_is_side(width) and _is_side(height)):
            detail = f"its train_resolution is {json.dumps(size)[:200]} and no width and height"
            rows.failed(f"latents/{self.layer}", name, "bad_value", detail)
        elif size is not None or file is not None:
            rows.latents(f"latents/{self.layer}", name, width, height, file)


def _is_side(value: object) -> bool:
    return type(value) is int and 0 < value < 1 << 31


def _text(value: object, field: str) -> Text:
    if isinstance(value, str):
        return sidecar.clean(value)
    return Text(error="bad_value", detail=f"its {field} is not text, and no trainer of kohya's loads it")


def _is_file_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _name(given: str, folder: Path) -> str:
    """The entry's name as it stands; a path below `image_dir` relative to it."""
    if posixpath.isabs(given):
        relative = posixpath.relpath(given, folder.as_posix())
        return given if relative.startswith("../") else relative
    return given


def _picture(name: str, folder: Path | None, rows: Rows) -> bool:
    """Add the picture of an entry, if it can be found."""
    if folder is None and not name.startswith("/"):
        return False
    if not _is_file_name(name):
        rows.note("entry named without a picture's extension, so not looked for")
        return False
    path = os.path.join(folder or "/", name)
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        rows.note("entry whose picture is not there")
        return False
    rows.picture(name, printable(path), status.st_size, status.st_mtime_ns)
    return True


def _latents(folder: Path, rows: Rows) -> dict[str, str]:
    """The files of latents below a folder, by the stem of their picture."""
    found: dict[str, str] = {}
    for path, below, files in os.walk(folder):
        below.sort()
        for file in sorted(files):
            stem, suffix = os.path.splitext(printable(file))
            if suffix == ".npz":
                stem = _SIZE.sub("", stem)
                if stem in found:
                    rows.note("file of latents not read, since its picture has another")
                found.setdefault(stem, printable(os.path.join(path, file)))
    return found
