"""WebDataset tars, among them what img2dataset leaves: pictures are read in place, nothing is unpacked."""

from __future__ import annotations

import glob
import json
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from cutline import archives
from cutline.archives import Damaged, Member
from cutline.dataset import Found
from cutline.formats import sidecar
from cutline.formats.webdataset import samples
from cutline.options import CutlineError, option
from cutline.pictures import EXTENSIONS, FOREIGN
from cutline.sources.listing import printable
from cutline.sources.rows import Rows, texts

_BATCH = 10_000  # records of a Parquet file

_LARGEST = 16_000_000
"""Bytes. A larger `.json` is no sample's record."""

_RECORD = frozenset(
    {"caption", "status", "error_message", "key", "width", "height", "original_width", "original_height"}
)
"""Fields of img2dataset's records that are read, or that the picture itself says."""


class _Tar(NamedTuple):
    """A tar that is being read."""

    path: Path
    prefix: str
    """What names of pictures in it begin with."""
    mtime_ns: int
    handle: IO[bytes]


@dataclass(frozen=True)
class WebDataset:
    """The pictures in tars and their captions: a sample's `.txt`, `.caption` or the `caption` of its `.json`.

    Where img2dataset wrote a Parquet file beside a tar, what it could not download are pictures with an error.
    """

    path: Path = option(help="a tar, a folder of tars, or a pattern such as 'shards/{00000..00099}*.tar'")
    layer: str = option("webdataset", "the words go to captions/<layer>")

    @property
    def archived(self) -> bool:
        """It lists what is in archives."""
        return True

    @property
    def covers(self) -> Path | None:
        """Every picture in the tars of this folder, or in this tar, is listed. A pattern may leave some out."""
        path = self._path
        return path if path.exists() else None

    @property
    def base(self) -> Path:
        """What names are relative to."""
        path = self._path
        if path.exists():
            return path if path.is_dir() else path.parent
        return Path(os.path.dirname(re.split(r"[*?\[{]", str(path))[0] + "x"))

    @property
    def _path(self) -> Path:
        return Path(os.path.abspath(self.path.expanduser()))

    def read(self) -> Iterator[Found]:
        """Stream the pictures and captions of each tar, in order of their names."""
        layer = f"captions/{self.layer}"
        rows = Rows("pictures", layer)
        for archive in self._tars(rows):
            prefix = archive.relative_to(self.base).as_posix() + "/"
            there = set[str]()
            try:
                mtime_ns = archive.stat().st_mtime_ns
                with archive.open("rb") as handle:
                    for key, files in samples(archives.members(archive)):
                        there.add(key)
                        self._read_sample(_Tar(archive, prefix, mtime_ns, handle), key, files, rows)
                        yield from rows.full()
            except (Damaged, OSError) as error:
                reason = error if isinstance(error, Damaged) else f"{archive}: {error.strerror}"
                rows.note(f"tar that is damaged or cannot be read: {reason}")
                what = "truncated" if isinstance(error, Damaged) else "permission"
                rest = prefix + "(damaged)"  # stands for whatever there is behind the damage
                rows.picture(rest, _uri(archive, rest, prefix), None, None, what, str(reason), offset=0)
            yield from self._read_failures(archive, prefix, there, rows)
        yield from rows.rest()

    def _tars(self, rows: Rows) -> list[Path]:
        path = self._path
        if path.is_dir():
            found = [Path(folder, name) for folder, below, names in _walk(path) for name in names]
        elif path.is_file():
            found = [path]
        else:
            found = [Path(name) for pattern in _braces(str(path)) for name in glob.glob(pattern, recursive=True)]
        tars = sorted({file for file in found if file.name.lower().endswith(archives.SUFFIX)})
        squeezed = sorted(file for file in found if file.name.lower().endswith(archives.COMPRESSED))
        if squeezed and (not tars or path.is_file()):
            raise CutlineError(
                f"{squeezed[0]} is compressed, and nothing in it can be read in place. Decompress it once "
                f"(for a .tar.gz: gunzip {squeezed[0]}) and add the .tar; pictures gain nothing by it."
            )
        if squeezed:
            rows.note("compressed tar, not read (decompress it)", len(squeezed))
        if not tars:
            raise CutlineError(f"there is no .tar in {path}" if path.is_dir() else f"there is no tar {path}")
        return tars

    def _read_sample(self, tar: _Tar, key: str, files: dict[str, Member], rows: Rows) -> None:
        archive, prefix, mtime_ns, handle = tar
        pictures = [name for name in files if f".{name.rpartition('.')[2]}" in EXTENSIONS]
        pictures.sort(key=lambda name: "." in name)  # a mask `seg.png` is not the picture where there is a `jpg`
        pictures += [name for name in files if f".{name}" in FOREIGN]
        name = printable(prefix + key)
        record: Mapping[str, Any] = {}
        if "json" in files:
            record = _record(_bytes(handle, files["json"], _LARGEST), rows)
        if not pictures:
            if (failure := _failure(record)) is not None:
                rows.picture(name, _uri(archive, name, prefix), None, None, *failure)
            else:
                rows.note("sample without a picture, whose words are about one of that name")
                self._read_words(name, handle, files, record, rows)
            return
        member = files[pictures[0]]
        name = posixpath.normpath(prefix + member.name)
        error = detail = None
        if not name.startswith(prefix) or printable(name) != name or "\0" in name:
            error, detail = "bad_name", "its name leads out of its tar, or is not UTF-8; rename it"
        elif f".{pictures[0]}" in FOREIGN:
            error, detail = "unsupported", f"Cutline does not read .{pictures[0]} files"
        name = printable(name)
        rows.picture(name, _uri(archive, name, prefix), member.size, mtime_ns, error, detail, offset=member.offset)
        words = self._read_words(name, handle, files, record, rows)
        for other in files:
            if other not in (pictures[0], words, "json"):
                rows.note(f"file not read: .{printable(other)}")
        for field in record.keys() - _RECORD:
            rows.note(f"field not read: {field}")

    def _read_words(
        self, name: str, handle: IO[bytes], files: dict[str, Member], record: Mapping[str, Any], rows: Rows
    ) -> str:
        """Add a sample's caption; the extension of the file that it stood in."""
        layer = f"captions/{self.layer}"
        words = next((kind for kind in ("txt", "caption") if kind in files), "")
        if words:
            rows.caption(layer, name, [sidecar.read(_bytes(handle, files[words], sidecar.LARGEST))])
        elif record.get("caption") is not None:
            rows.caption(layer, name, texts(record["caption"]))
        return words

    def _read_failures(self, archive: Path, prefix: str, there: set[str], rows: Rows) -> Iterator[Found]:
        """What img2dataset's Parquet file beside a tar says of samples that are not in it."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        file = archive.with_suffix(".parquet")
        if not file.is_file():
            return
        try:
            with pq.ParquetFile(file) as table:
                if not {"status", "key"} <= set(table.schema_arrow.names):
                    return
                wanted = ["key", "status", *{"error_message", "url"}.intersection(table.schema_arrow.names)]
                for batch in table.iter_batches(_BATCH, columns=wanted):
                    for record in batch.to_pylist():
                        error = _failure(record)
                        if error is not None and record["key"] not in there:
                            name = prefix + str(record["key"])
                            rows.picture(name, _uri(archive, name, prefix), None, None, *error)
                    yield from rows.full()
        except (OSError, pa.ArrowInvalid) as error:
            rows.note(f"{file.name} cannot be read: {error}")


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    for path, below, names in os.walk(folder, followlinks=True):
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield path, below, [name for name in names if not name.startswith(".")]


def _braces(pattern: str) -> list[str]:
    """The patterns that `{00000..00099}` and `{a,b}` stand for, as in a shell."""
    before, brace, rest = pattern.partition("{")
    inside, close, after = rest.partition("}")
    if not (brace and close):
        return [pattern]
    first, dots, last = inside.partition("..")
    if dots and first.isdigit() and last.isdigit():
        choices = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    else:
        choices = inside.split(",")
    return [before + choice + end for choice in choices for end in _braces(after)]


def _uri(archive: Path, name: str, prefix: str) -> str:
    return printable(f"{archive.as_posix()}/{name.removeprefix(prefix)}")


def _bytes(handle: IO[bytes], member: Member, largest: int) -> bytes:
    handle.seek(member.offset)
    return handle.read(min(member.size, largest + 1))


def _record(data: bytes, rows: Rows) -> Mapping[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        rows.note("json that cannot be read")
        return {}
    if not isinstance(value, dict):
        rows.note("json that is no object")
        return {}
    return value


def _failure(record: Mapping[str, Any]) -> tuple[str, str] | None:
    """The error and its detail, of a sample that img2dataset could not have."""
    status = record.get("status")
    if status in (None, "success"):
        return None
    reason = {"failed_to_download": "download_failed", "failed_to_resize": "not_an_image"}.get(str(status), "failed")
    where = f" ({record['url']})" if record.get("url") else ""
    return reason, f"{record.get('error_message') or status}{where}"
