"""Text files, one for each picture, of the same name."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import xxhash

from cutline.exports.manifest import Manifest
from cutline.exports.writing import (
    SHOWN,
    columns,
    make_folder,
    outputs,
    place,
    refuse,
    refuse_collisions,
    shortened,
    spooled,
)
from cutline.files import storage_error, whole_file
from cutline.formats import sidecar
from cutline.options import CutlineError, OptionError, option
from cutline.pictures import EXTENSIONS, FOREIGN

_LONGEST_NAME = 255  # bytes, on every file system of note
_OUTCOMES = ("written", "unreadable", "skipped", "unchanged")  # what a picture of several files counts as, first found


@dataclass(frozen=True)
class Sidecar:
    """The recipe's text of each picture in a file of its own: `trip/cat.jpg` gets `trip/cat.txt`.

    Each of the recipe's `[outputs.NAME]` goes to `trip/cat.NAME` by the same rules. A file holds the text and nothing
    else, in UTF-8, without a line end. Give the dataset's own folder as `out` to have the files beside the pictures.
    """

    extension: str = option(".txt", "the files' extension, with its dot or without")
    mode: Literal["skip", "overwrite", "append", "prepend"] = option("skip", "what to do where a file already stands")
    separator: str = option(", ", "stands between what was there and what append or prepend adds")

    def __post_init__(self) -> None:
        suffix = self._suffix.lower()
        if suffix in EXTENSIONS or suffix in FOREIGN:
            raise OptionError(f"extension {self.extension} is a picture's; texts written there would replace pictures")
        if len(suffix) < 2 or "/" in suffix or "\0" in suffix or suffix.endswith("."):
            raise OptionError(f"extension {self.extension!r} is none; one looks like .txt")

    @property
    def _suffix(self) -> str:
        return "." + self.extension.removeprefix(".")

    def write(self, rows: Iterator[pa.RecordBatch], out: Path, *, dry_run: bool = False) -> Manifest:
        """Write the files, each whole or not at all. Whatever cannot be written is refused before anything is."""
        out = Path(os.path.abspath(out.expanduser()))
        counts = Counter(written=0, unchanged=0, skipped=0, without_text=0)
        hashes: list[str] = []
        diff: list[str] = []
        stale: list[str] = []
        with spooled(rows) as again:
            extensions = self._extensions(again)
            self._check(again, extensions)
            for _, files, empty in self._files(again, extensions):
                stale += [name for name in empty if (out / name).exists()]
                outcomes = set[str]()
                for name, text in files:
                    there = _read(out / name)
                    outcome, data = self._outcome(there, text)
                    outcomes.add(outcome)
                    hashes.append(f"{name}\0{xxhash.xxh3_128(data).hexdigest()}")
                    if outcome != "written":
                        continue
                    if not dry_run:
                        _write(out / name, data)
                    elif len(diff) <= SHOWN:
                        diff += _difference(name, there, data)
                counts[next((one for one in _OUTCOMES if one in outcomes), "without_text")] += 1
        notes = []
        if counts["skipped"]:
            notes.append(f"{counts['skipped']:,} files stood there with other texts: -o mode=overwrite replaces them")
        if stale:
            notes.append(
                f"{len(stale):,} files of before still stand where there is no text now, and a trainer reads them: "
                f"{stale[0]}{' …' if len(stale) > 1 else ''}. Remove them if they are not wanted"
            )
        return Manifest("sidecar", out, dict(counts), _digest(hashes), diff=shortened(diff), notes=notes)

    def _extensions(self, again: Callable[[], Iterator[pa.RecordBatch]]) -> dict[str, str]:
        """The column of each text, with the extension of its files."""
        taken = {self._suffix.lower(), *EXTENSIONS, *FOREIGN}
        what = "an output's name becomes its files' extension, and pictures or other texts have this one"
        names = outputs(again(), lambda name: f".{name}" in taken, what)
        return {"text": self._suffix} | {f"text.{name}": f".{name}" for name in names}

    def _files(
        self, again: Callable[[], Iterator[pa.RecordBatch]], extensions: dict[str, str]
    ) -> Iterator[tuple[str, list[tuple[str, str]], list[str]]]:
        """The key of each picture, the name and text of each of its files, and the names of those without a text."""
        for key, uri, *texts in columns(again(), "key", "uri", *extensions):
            try:
                stem = os.path.splitext(place(key, uri))[0]
            except CutlineError:
                if any(texts):
                    raise
                yield key, [], []
                continue
            files = [(stem + extension, text) for extension, text in zip(extensions.values(), texts, strict=True)]
            yield key, [(name, text) for name, text in files if text], [name for name, text in files if not text]

    def _check(self, again: Callable[[], Iterator[pa.RecordBatch]], extensions: dict[str, str]) -> None:
        def places() -> Iterator[tuple[str, str]]:
            for key, files, _ in self._files(again, extensions):
                yield from ((name, key) for name, _ in files)

        refuse_collisions(
            places,
            "these pictures would share a text file",
            "Rename one of each, or export kohya or metadata_jsonl, which name pictures in full.",
        )
        long = [name for name, _ in places() if len(os.path.basename(name).encode()) > _LONGEST_NAME]
        refuse(long, f"these names are longer than {_LONGEST_NAME} bytes", "Choose a shorter extension.")

    def _outcome(self, there: bytes | None, text: str) -> tuple[str, bytes]:
        """What becomes of a file, and what it then holds."""
        if there is None:
            return "written", sidecar.write(text)
        if self.mode in ("append", "prepend"):
            old = sidecar.read(there)
            if old.error:  # what it says would be lost
                return "unreadable", there
            text = self._added(old.text or "", text)
            if text == old.text:
                return "unchanged", there
        data = sidecar.write(text)
        if data == there:
            return "unchanged", there
        return ("skipped", there) if self.mode == "skip" else ("written", data)

    def _added(self, old: str, text: str) -> str:
        """Old and new text; only the old where the new was added before."""
        if not old or old == text:
            return text
        if self.mode == "append":
            return old if old.endswith(self.separator + text) else old + self.separator + text
        return old if old.startswith(text + self.separator) else text + self.separator + old


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise storage_error(path, error) from error


def _write(path: Path, data: bytes) -> None:
    make_folder(path.parent)
    with whole_file(path, durable=False) as handle:
        handle.write(data)


def _difference(name: str, there: bytes | None, data: bytes) -> list[str]:
    before = [] if there is None else there.decode("utf-8", "replace").split("\n")
    after = data.decode("utf-8").split("\n")
    old = "/dev/null" if there is None else name
    return list(difflib.unified_diff(before, after, old, name, lineterm=""))


def _digest(hashes: list[str]) -> str:
    """xxh128 of `<xxh128>  <name>` lines, sorted by name."""
    total = xxhash.xxh3_128()
    for item in sorted(hashes, key=str.encode):
        name, _, code = item.partition("\0")
        total.update(f"{code}  {name}\n".encode())
    return total.hexdigest()
