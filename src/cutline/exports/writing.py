"""What exports share: where a picture's words go, what may not be overwritten, and showing what would change."""

from __future__ import annotations

import hashlib
import os
import posixpath
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Self, cast

import pyarrow as pa
import xxhash

from cutline.files import storage_error, whole_file
from cutline.options import CutlineError

SHOWN = 1000
"""Lines of a diff, at most."""

_IN_MEMORY = 64 << 20  # bytes
_AHEAD = 8  # pieces of a file that wait to be written


def place(key: str, uri: str) -> str:
    """Where a picture stands in an export: as in the dataset, or, for one outside of it, where its key says.

    Raises:
        CutlineError: that would be outside of the export.
    """
    if posixpath.isabs(uri) or "://" in uri:
        uri = posixpath.join(posixpath.dirname(key).lstrip("/"), posixpath.basename(uri.partition("?")[0]))
    relative = posixpath.normpath(uri)
    if relative.startswith("../") or relative in ("..", "."):
        raise CutlineError(f"picture {key!r} ({uri}) has no place inside a folder of exported files")
    return relative


def columns(rows: Iterable[pa.RecordBatch], *names: str) -> Iterator[tuple[Any, ...]]:
    """These columns of every row, as Python values."""
    for batch in rows:
        yield from zip(*(batch.column(name).to_pylist() for name in names), strict=True)


def outputs(batches: Iterable[pa.RecordBatch], taken: Callable[[str], bool], what: str) -> tuple[str, ...]:
    """The names of the recipe's outputs whose texts these rows have beside `text`.

    Args:
        batches: rows of an export.
        taken: whether a name, in lower case, is one that no output may have.
        what: why not, for people.

    Raises:
        CutlineError: an output has such a name, or two outputs have one name but for upper and lower case.
    """
    schema = next((batch.schema for batch in batches), pa.schema([]))
    names = tuple(name.removeprefix("text.") for name in schema.names if name.startswith("text."))
    lower = [name.lower() for name in names]
    bad = [name for name, low in zip(names, lower, strict=True) if taken(low) or lower.count(low) > 1]
    refuse([f"[outputs.{name}]" for name in bad], what, "Call it something else in the recipe.")
    return names


@contextmanager
def spooled(rows: Iterator[pa.RecordBatch]) -> Iterator[Callable[[], Iterator[pa.RecordBatch]]]:
    """Keep a stream of rows, in memory or in a temporary file, so that it can be gone through more than once."""
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as handle:
        writer = None
        for batch in rows:
            if writer is None:
                writer = pa.ipc.new_stream(handle, batch.schema)
            writer.write_batch(batch)
        if writer is not None:
            writer.close()

        def again() -> Iterator[pa.RecordBatch]:
            if writer is not None:
                handle.seek(0)
                yield from pa.ipc.open_stream(handle)

        yield again


def refuse_collisions(places: Callable[[], Iterator[tuple[str, str]]], what: str, way_out: str) -> None:
    """Refuse an export in which two pictures share a place.

    Args:
        places: gives (place, key) of each picture, as often as it is called. Only 64 bits of each are held.
        what: what is wrong, for people.
        way_out: what to do about it.

    Raises:
        CutlineError: naming the pictures.
    """
    seen: set[int] = set()
    twice: set[int] = set()
    for place, _ in places():
        code = hash(place)
        (twice if code in seen else seen).add(code)
    if not twice:
        return
    keys: dict[str, list[str]] = {}
    for place, key in places():
        if hash(place) in twice:
            keys.setdefault(place, []).append(key)
    refuse([f"{place}: {', '.join(names)}" for place, names in keys.items() if len(names) > 1], what, way_out)


def refuse(found: list[str], what: str, way_out: str) -> None:
    """Refuse an export for these reasons, if there are any, showing the first twenty."""
    if found:
        shown = "\n".join(f"  {line}" for line in found[:20])
        more = f"\n  … and {len(found) - 20:,} more" if len(found) > 20 else ""
        raise CutlineError(f"nothing was written: {what}.\n{shown}{more}\n{way_out}")


def write_file(out: Path, produce: Callable[[IO[bytes]], None], *, dry_run: bool) -> tuple[str, bool, list[str]]:
    """Write one whole file, or say what it would change.

    Returns:
        The file's xxh128, whether it differs from what is there (a file that does not is left untouched), and for a
        dry run what would change.
    """
    if dry_run:
        with tempfile.TemporaryFile() as handle:
            xxh128 = _produced(handle, produce)
            handle.seek(0)
            changed = xxh128 != _xxh128(out, handle)
            return xxh128, changed, _differences(out, handle) if changed else []
    make_folder(out.parent)
    xxh128, changed = "", False
    # Not synced to the disk: an export can be made again, and of many gigabytes that would take most of the time.
    with suppress(_Unchanged), whole_file(out, "w+b", durable=False) as handle:
        xxh128 = _produced(handle, produce)
        if xxh128 == _xxh128(out, handle):
            raise _Unchanged
        changed = True
    return xxh128, changed, []


def _produced(handle: IO[bytes], produce: Callable[[IO[bytes]], None]) -> str:
    """Let a file be written, by a thread that hashes what it writes; the xxh128."""
    with _Hashed(handle) as hashed:
        produce(cast(IO[bytes], hashed))
    handle.flush()
    return hashed.xxh128.hexdigest()


class _Hashed:
    """A file to write to, while what was written before is still on its way into hash and file."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self._thread = ThreadPoolExecutor(1)
        self._written: deque[Future[None]] = deque()
        self._told = 0
        self.xxh128 = xxhash.xxh3_128()
        self.closed = False

    def write(self, data: bytes | memoryview) -> int:
        if len(self._written) == _AHEAD:
            self._written.popleft().result()
        self._written.append(self._thread.submit(self._write, data))
        self._told += len(data)
        return len(data)

    def tell(self) -> int:
        return self._told

    def flush(self) -> None:
        """What is written goes on its way by itself."""

    def _write(self, data: bytes | memoryview) -> None:
        self.xxh128.update(data)
        self._handle.write(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._thread.shutdown(cancel_futures=error is not None)
        if error is None:
            for written in self._written:
                written.result()


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. Raises StorageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(folder, error) from error


class _Unchanged(Exception):
    """The new file is the old one: leave it."""


def _xxh128(path: Path, new: IO[bytes]) -> str:
    """The xxh128 of the file that is there, if it can be the same as the new one."""
    try:
        with path.open("rb") as handle:
            same_size = os.fstat(handle.fileno()).st_size == os.fstat(new.fileno()).st_size
            return hashlib.file_digest(handle, xxhash.xxh3_128).hexdigest() if same_size else ""
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise storage_error(path, error) from error


def _differences(old: Path, new: IO[bytes]) -> list[str]:
    """Which lines a file would lose and gain. Each line holds a picture's whole entry, so their order says nothing."""
    before: set[int] = set()
    with suppress(FileNotFoundError), old.open("rb") as handle:
        before.update(hash(line) for line in _lines(handle))
    after = {hash(line) for line in _lines(new)}
    new.seek(0)
    found = [(line, "+") for line in _lines(new) if hash(line) not in before]
    with suppress(FileNotFoundError), old.open("rb") as handle:
        found += [(line, "-") for line in _lines(handle) if hash(line) not in after]
    # Sorted by what stands in the line, so that the two of one picture stand together.
    found.sort(key=lambda item: (item[0].partition(b": ")[0], item[1] == "+", item[0]))
    return shortened([f"{sign} {line.decode('utf-8', 'replace')}" for line, sign in found])


def _lines(handle: IO[bytes]) -> Iterator[bytes]:
    while line := handle.readline(1 << 20):
        yield line.rstrip(b",\r\n")


def shortened(lines: list[str]) -> list[str]:
    """At most `SHOWN` lines, saying how many were left out."""
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"… and {len(lines) - SHOWN:,} more lines"]
