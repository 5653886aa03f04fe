"""Hugging Face's imagefolder: a metadata.jsonl beside the pictures."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, ClassVar, Literal

import pyarrow as pa

from cutline.exports.manifest import Manifest
from cutline.exports.writing import columns, make_folder, outputs, place, refuse, refuse_collisions, spooled, write_file
from cutline.files import storage_error
from cutline.formats import metadata_jsonl
from cutline.options import CutlineError, OptionError, option

_FILE = "metadata.jsonl"

# What the datasets library takes for the name of a split, in a file's or folder's name; then it ignores the metadata.
_SPLIT = re.compile(
    r"(?:^|[-._ 0-9/])(?:train|training|validation|valid|dev|val|test|testing|eval|evaluation)(?=[-._ 0-9/])"
)

# What it takes for the pictures themselves, for their folder, or for our text.
_TAKEN = re.compile(r"(?:.*_)?file_names?|image|label|text")


@dataclass(frozen=True)
class MetadataJsonl:
    """`metadata.jsonl` with each picture's `file_name` and `text`, which `datasets` loads as an imagefolder.

    Each of the recipe's `[outputs.NAME]` is a field NAME of its own. The pictures must be below the folder it stands
    in; `pictures=link` or `copy` puts them there.
    """

    files: ClassVar[bool] = True

    pictures: Literal["", "link", "copy"] = option(
        "", "put the pictures into the folder: link (a hard link, which takes no space) or copy"
    )

    def write(self, rows: Iterator[pa.RecordBatch], out: Path, *, dry_run: bool = False) -> Manifest:
        """Write the file, whole or not at all; pictures without a text are left out and counted."""
        folder = Path(os.path.abspath(out.expanduser()))
        if out.suffix in (".jsonl", ".json", ".csv", ".parquet"):
            if out.name != _FILE:
                raise OptionError(f"datasets reads a file called {_FILE}, so {out.name} would never be found")
            folder = folder.parent
        counts = Counter(written=0, unchanged=0, without_text=0)
        with spooled(rows) as again:
            refuse(
                [path for path, offset in columns(again(), "path", "offset") if offset is not None],
                "these pictures are inside archives, where datasets does not look for them",
                "Export webdataset, whose tars datasets loads too.",
            )
            refuse(
                [name for name, *_ in self._texts(folder, again) if "\\" in name],
                "datasets takes a backslash in a file name for a slash, and would look for these pictures elsewhere",
                "Rename them.",
            )
            if self.pictures:
                self._check_pictures(folder, again)
                for name, _, path, _ in self._texts(folder, again):
                    counts["pictures"] += self._put(Path(path), folder / name, dry_run)
            else:
                _check_below(folder, again)

            def produce(handle: IO[bytes]) -> None:
                metadata_jsonl.write(handle, ((name, said) for name, said, *_ in self._texts(folder, again)))

            xxh128, changed, diff = write_file(folder / _FILE, produce, dry_run=dry_run)
            splits = 0
            for name, *_ in self._texts(folder, again):
                counts["written" if changed else "unchanged"] += 1
                splits += bool(_SPLIT.search(name))
            total = sum(batch.num_rows for batch in again())
        counts["without_text"] = total - counts["written"] - counts["unchanged"]
        notes = []
        if splits:
            notes.append(
                f"{splits:,} pictures are named like a split (train, test …), for which datasets would leave out the "
                f'texts. Load them all with load_dataset("imagefolder", data_dir="{folder}", data_files="**")'
            )
        return Manifest("metadata_jsonl", folder / _FILE, dict(counts), xxh128, diff=diff, notes=notes)

    def _texts(
        self, folder: Path, again: Callable[[], Iterator[pa.RecordBatch]]
    ) -> Iterator[tuple[str, dict[str, str | None], str, str]]:
        """File name, fields, path and key of each picture that has any text. Fields that it lacks are null."""
        below = _prefix(folder)
        fields = _fields(again)
        for key, uri, path, *texts in columns(again(), "key", "uri", "path", *fields):
            if any(texts):
                said = {field: text or None for field, text in zip(fields.values(), texts, strict=True)}
                yield (place(key, uri) if self.pictures else path.removeprefix(below)), said, path, key

    def _check_pictures(self, folder: Path, again: Callable[[], Iterator[pa.RecordBatch]]) -> None:
        refuse_collisions(
            lambda: ((name, key) for name, _, _, key in self._texts(folder, again)),
            "these pictures would share a file name",
            "Add one of each to another dataset, or rename it.",
        )
        others = []
        for name, _, path, _ in self._texts(folder, again):
            there = folder / name
            if there.exists() and not _same(Path(path), there):
                others.append(name)
        refuse(others, f"other files already stand in {folder} under these names", "Choose an empty folder.")

    def _put(self, picture: Path, there: Path, dry_run: bool) -> bool:
        """Link or copy a picture; whether it was not there before."""
        if there.exists() or dry_run:
            return not there.exists()
        make_folder(there.parent)
        try:
            if self.pictures == "link":
                os.link(os.path.realpath(picture), there)
            else:
                _copy(picture, there)
        except FileNotFoundError:
            raise CutlineError(f"{picture} has vanished. Look again: cutline add") from None
        except OSError as error:
            if self.pictures == "link":
                raise CutlineError(
                    f"cannot link {picture} to {there}: {error.strerror}. Try: -o pictures=copy"
                ) from None
            raise storage_error(there, error) from error
        return True


def _check_below(folder: Path, again: Callable[[], Iterator[pa.RecordBatch]]) -> None:
    below = _prefix(folder)
    texts = columns(again(), "path", *_fields(again))
    outside = [path for path, *said in texts if any(said) and not path.startswith(below)]
    refuse(
        outside,
        f"these pictures are not below {folder}, so its {_FILE} cannot name them",
        "Put them there with -o pictures=link (no space) or -o pictures=copy, or choose a folder above them.",
    )


def _fields(again: Callable[[], Iterator[pa.RecordBatch]]) -> dict[str, str]:
    """The column of each text, with its field in the file."""
    names = outputs(
        again(), lambda name: _TAKEN.fullmatch(name) is not None, "datasets has a use of its own for this name"
    )
    return {"text": "text"} | {f"text.{name}": name for name in names}


def _prefix(folder: Path) -> str:
    return folder.as_posix().rstrip("/") + "/"


def _copy(picture: Path, there: Path) -> None:
    hidden = there.with_name(f".cutline-{secrets.token_hex(6)}.tmp")
    try:
        shutil.copy2(picture, hidden)
        os.replace(hidden, there)
    finally:
        hidden.unlink(missing_ok=True)


def _same(picture: Path, there: Path) -> bool:
    """Whether a file is the picture, or a copy that still looks like it."""
    try:
        status, other = picture.stat(), there.stat()
    except OSError:
        return False
    return os.path.samestat(status, other) or (status.st_size, status.st_mtime_ns) == (other.st_size, other.st_mtime_ns)
