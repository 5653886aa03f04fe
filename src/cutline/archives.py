"""Pictures inside uncompressed tar files, read in place.

A picture in an archive is named as if the tar were a folder, `shards/00000.tar/cat.jpg`, and by where its bytes begin
in it. So a tar is walked once, header by header, and from then on every picture is one seek away.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cutline.options import CutlineError

SUFFIX = ".tar"

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
"""Suffixes of tars in which nothing can be found without unpacking all before it."""


@dataclass(frozen=True)
class Member:
    """A file in a tar."""

    name: str
    """As the tar has it, without `./` in front; bytes that are not UTF-8 are lone surrogates, as in file names."""
    offset: int
    size: int


class Damaged(CutlineError):
    """A tar that is cut off, or holds something else; whatever stood before that was given out."""


def holding(path: Path) -> Path | None:
    """The tar that a picture's path leads into, if that is there."""
    text = os.fspath(path)
    at = text.lower().find(SUFFIX + "/")
    while at >= 0:
        archive = Path(text[: at + len(SUFFIX)])
        if archive.is_file():
            return archive
        at = text.lower().find(SUFFIX + "/", at + 1)
    return None


def members(archive: Path) -> Iterator[Member]:
    """Walk through the regular files of a tar, in its order, reading headers only.

    Raises:
        Damaged: after the last whole file.
        OSError: it cannot be read.
    """
    with archive.open("rb") as handle:
        length = os.fstat(handle.fileno()).st_size
        if not length:
            raise Damaged(f"{archive} is empty (0 bytes)")
        try:
            with tarfile.open(fileobj=handle, mode="r:", errorlevel=0) as tar:
                while (found := tar.next()) is not None:
                    vars(tar)["members"].clear()  # it would keep them all
                    if not found.isreg() or found.issparse():
                        continue
                    end = found.offset_data + found.size
                    if end > length:
                        raise Damaged(f"{archive} is cut off in {found.name!r}")
                    yield Member(found.name.removeprefix("./"), found.offset_data, found.size)
                _check_end(archive, tar.offset, length)
        except (tarfile.TarError, EOFError) as error:
            raise Damaged(f"{archive} is cut off, damaged or no tar: {error}") from None


def _check_end(archive: Path, offset: int, length: int) -> None:
    """Raise Damaged where a tar ends without the block of zeros that ends one, or with other things in its place."""
    with archive.open("rb") as handle:
        handle.seek(offset)
        block = handle.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise Damaged(f"{archive} is cut off: it ends at byte {length:,}, without the mark at a tar's end")
    if block.strip(b"\0"):
        raise Damaged(f"{archive} is damaged at byte {offset:,}: there stands no file's header")
