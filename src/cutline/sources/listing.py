"""Listing the pictures below a folder, as every source does that reads one."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cutline import archives
from cutline.options import CutlineError
from cutline.pictures import EXTENSIONS, FOREIGN
from cutline.sources.rows import Rows

SIDECARS = (".txt", ".caption")


@dataclass(frozen=True)
class Listed:
    """One folder's files, by what they are. Names are as the file system has them."""

    path: str
    prefix: str
    """The folder relative to where the listing began, with a slash at its end; empty for that folder itself."""
    pictures: list[os.DirEntry[str]]
    sidecars: list[os.DirEntry[str]]

    def name(self, entry: os.DirEntry[str]) -> str:
        """The POSIX path of a file, relative to where the listing began."""
        return self.prefix + entry.name


def absolute(path: Path) -> Path:
    """The folder as an absolute path, its links left as they are. Raises CutlineError where it is none."""
    folder = Path(os.path.abspath(path.expanduser()))
    if not folder.is_dir():
        raise CutlineError(f"there is no folder {folder}")
    return folder


def walk(folder: Path, rows: Rows) -> Iterator[Listed]:
    """Go through a folder and those below it, in order of their names, links to folders too.

    Hidden folders and files are left out, and so is a link that leads back into itself.
    """
    yield from _walk(str(folder), "", (), rows)


def _walk(path: str, prefix: str, above: tuple[tuple[int, int], ...], rows: Rows) -> Iterator[Listed]:
    todo = [(path, prefix, above)]
    while todo:
        path, prefix, above = todo.pop()
        try:
            status = os.stat(path)
            with os.scandir(path) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            rows.note(f"folder that cannot be read ({error.strerror}): {printable(prefix or path)}")
            continue
        here = (status.st_dev, status.st_ino)
        if here in above:
            rows.note("link to a folder that it is in")
            continue
        listed = Listed(path, prefix, [], [])
        below = []
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith("."):
                if suffix in EXTENSIONS:
                    rows.note("hidden picture")
            elif _is_folder(entry):
                below.append((entry.path, f"{prefix}{entry.name}/", (*above, here)))
            elif suffix in EXTENSIONS or suffix in FOREIGN:
                listed.pictures.append(entry)
            elif suffix in SIDECARS:
                listed.sidecars.append(entry)
            elif suffix == archives.SUFFIX:
                rows.note("tar, whose pictures are not read: add it, or a folder of tars, by its own name")
        yield listed
        todo += reversed(below)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def list_picture(listed: Listed, entry: os.DirEntry[str], rows: Rows) -> str:
    """Add a picture's row, and return its name."""
    raw = listed.name(entry)
    name = printable(raw)
    error = detail = size = mtime_ns = None
    try:
        status = entry.stat()
        size, mtime_ns = status.st_size, status.st_mtime_ns
    except FileNotFoundError:
        error, detail = "vanished", "it is a link that leads nowhere, or it went while it was listed"
    except OSError as problem:
        error, detail = "vanished" if problem.errno == errno.ELOOP else "permission", problem.strerror
    if name != raw:
        error, detail = "bad_name", "its name is not UTF-8, which Parquet and JSON cannot hold; rename it"
    elif os.path.splitext(entry.name)[1].lower() in FOREIGN:
        error, detail = "unsupported", f"Cutline does not read {os.path.splitext(entry.name)[1].lower()} files"
    rows.picture(name, printable(entry.path), size, mtime_ns, error, detail)
    return name


def printable(name: str) -> str:
    r"""A file's name, in which bytes that are not UTF-8 are written as `\xe9`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
