"""WebDataset: tars in which the files of one sample stand next to each other and share all of their name but the end.

A file's key is its path up to the first dot of its last part; what follows is its extension. `a/1.jpg`, `a/1.txt` and
`a/1.seg.png` belong to the sample `a/1`, with the extensions `jpg`, `txt` and `seg.png`.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator

from cutline.archives import Member


def key_and_extension(name: str) -> tuple[str, str]:
    """The two halves of a member's name; no extension where there is no dot, or only one in front."""
    folder, slash, file = name.rpartition("/")
    stem, dot, extension = file.partition(".")
    return (folder + slash + stem, extension.lower()) if dot and stem else (name, "")


def safe_key(name: str) -> str:
    """A key out of a picture's path: without its extension, and with `_` for every dot that would end it early."""
    folder, file = posixpath.split(posixpath.splitext(name)[0])
    return posixpath.join(folder, file.replace(".", "_"))


def samples(members: Iterable[Member]) -> Iterator[tuple[str, dict[str, Member]]]:
    """Group members into samples as they stand; of a sample that is torn apart, each piece is one."""
    key, files = "", dict[str, Member]()
    for member in members:
        of, extension = key_and_extension(member.name)
        if not extension:
            continue
        if files and (of != key or extension in files):
            yield key, files
            files = {}
        key = of
        files[extension] = member
    if files:
        yield key, files
