"""Writing files so that a reader, a crash or a full disk never meets half of one."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from cutline.options import CutlineError


class StorageError(CutlineError):
    """The file system refused a write."""


@contextmanager
def whole_file(path: Path, mode: str = "wb", *, durable: bool = True) -> Iterator[IO[Any]]:
    """Open a file that appears under its name only when it is complete; text mode is UTF-8 with LF.

    The bytes go to a hidden neighbour, are synced, and one rename publishes them (the folder is synced too).
    On any error the neighbour is removed and what was there before stays. `durable=False` leaves out the two syncs,
    for the many small files of an export that can be made again.

    Raises:
        StorageError: no space, a size limit, a read-only or missing folder: naming the file and what to do.
    """
    hidden = path.with_name(f".cutline-{secrets.token_hex(6)}.tmp")
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with hidden.open(mode, **text) as handle:
            yield handle
            handle.flush()
            if durable:
                os.fsync(handle.fileno())
        os.replace(hidden, path)
        if durable:
            sync(path.parent)
    except OSError as error:
        if error.errno in _REFUSALS:
            raise storage_error(path, error) from error
        raise
    finally:
        with suppress(OSError):
            hidden.unlink()


def sync(path: Path) -> None:
    """Make the bytes of a file, or the renames in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def storage_error(path: Path, error: OSError) -> StorageError:
    """Say in words why `path` could not be written, and what to do."""
    reason = error.strerror or str(error)
    advice = {
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some of your quota",
        errno.EFBIG: "raise the file-size limit (ulimit -f)",
        errno.EROFS: "make the file system writable",
        errno.EACCES: "make the folder writable",
        errno.EPERM: "make the folder writable",
    }.get(error.errno or 0, "mend that")
    return StorageError(
        f"cannot write {path}: {reason}. Nothing that was written before is lost: {advice}, "
        "then give the same command again; it goes on where it stopped."
    )


_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
