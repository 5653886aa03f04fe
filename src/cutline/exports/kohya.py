"""The metadata file that kohya's trainers load."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pyarrow as pa

from cutline.exports.manifest import Manifest
from cutline.exports.writing import columns, refuse, write_file
from cutline.formats import kohya
from cutline.options import OptionError, option


@dataclass(frozen=True)
class Kohya:
    """One `.json` or `.jsonl` file with the caption and the tags of every picture, for a trainer's `metadata_file`.

    A picture is named by its path relative to the dataset, which is the trainer's `image_dir`; one that lies elsewhere
    by its absolute path. The recipe's text is not used: the trainer joins caption and tags itself.
    """

    image_size: bool = option(
        True, "write each picture's size as the trainer sees it, which ignores EXIF; without, it opens every picture"
    )
    legacy: bool = option(False, "name pictures by their bare stems, for old tools; today's trainers cannot load that")

    def write(self, rows: Iterator[pa.RecordBatch], out: Path, *, dry_run: bool = False) -> Manifest:
        """Write the file, whole or not at all; pictures without words are left out and counted."""
        if out.suffix not in (".json", ".jsonl") or out.is_dir():
            raise OptionError(f"kohya writes one file: {out} must end with .json or .jsonl")
        counts = Counter(written=0, unchanged=0, without_text=0)

        def produce(handle: IO[bytes]) -> None:
            kohya.write(handle, self._entries(rows, counts), lines=out.suffix == ".jsonl")

        sha256, changed, diff = write_file(out, produce, dry_run=dry_run)
        counts["written" if changed else "unchanged"] = counts.pop("entries", 0)
        notes = []
        if archived := counts.pop("archived", 0):
            notes.append(f"{archived:,} of these pictures are inside archives, where no trainer of kohya's finds them")
        return Manifest("kohya", out, dict(counts), sha256, diff, notes)

    def _entries(self, rows: Iterator[pa.RecordBatch], counts: Counter[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        users: dict[str, list[str]] = {}
        names = ("uri", "offset", "caption", "tags", "width", "height", "orientation")
        for uri, offset, caption, tags, width, height, orientation in columns(rows, *names):
            if not caption and not tags:
                counts["without_text"] += 1
                continue
            counts["entries"] += 1
            if offset is not None:
                counts["archived"] += 1
            name = uri
            if self.legacy:
                name = os.path.splitext(PurePosixPath(uri).name)[0]
                users.setdefault(name, []).append(uri)
            fields: dict[str, Any] = {}
            if caption:
                fields["caption"] = caption
            if tags:
                fields["tags"] = tags
            if self.image_size and width and height:
                fields["image_size"] = [height, width] if (orientation or 1) >= 5 else [width, height]
            yield name, fields
        shared = [f"{stem}: {', '.join(uris)}" for stem, uris in users.items() if len(uris) > 1]
        refuse(shared, "with legacy=true these pictures would share a name", "Leave legacy=true out.")
