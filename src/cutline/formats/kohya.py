"""The metadata files of kohya's trainers: one JSON object `{picture: {"caption", "tags", …}}`, or JSON lines.

Today's trainers read `caption` and `tags`, which must be text, and `image_size`; a picture is named by an absolute
path, or by one relative to their `image_dir`, with its extension. Older tools name it by its bare stem; the trainers
can no longer load that, and Cutline reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from cutline.formats.entries import Entry, json_lines, kind, named, opened
from cutline.options import CutlineError

FIELDS = ("caption", "tags", "image_size", "train_resolution", "latents")
"""What entries of such a file hold; the last two by older tools."""

_CHUNK = 1 << 20


def read(path: Path) -> Iterator[Entry]:
    """Stream the entries of a metadata file, by its suffix JSON lines or one object, in bounded memory.

    Raises:
        CutlineError: there is no such file, or it is not a JSON object, saying where it breaks.
    """
    if path.suffix.lower() == ".jsonl":
        return json_lines(path, "image_path")
    return _read_object(path)


def _read_object(path: Path) -> Iterator[Entry]:
    import ijson

    with opened(path) as handle:
        count, name = 0, ""
        if handle.read(3) != b"\xef\xbb\xbf":
            handle.seek(0)
        try:
            source = _Marked(handle)
            if source.first != b"{":
                raise CutlineError(f"{path} is not a JSON object of pictures: it starts with {source.first!r}")
            for name, value in ijson.kvitems(source, "", use_float=True, buf_size=_CHUNK):
                count += 1
                where = f"{name!r} in {path.name}"
                if isinstance(value, dict):
                    yield named(where, name, value)
                else:
                    yield Entry(where, name, error="bad_value", detail=f"it is {kind(value)}, not an object")
        except (ijson.JSONError, ValueError) as error:
            problem = " ".join(str(error).partition("(right here)")[0].split())
            last = f"entry {count}, {name!r}" if count else "its start"
            raise CutlineError(
                f"{path} is broken JSON after {last}: {problem}. Mend it there, or make it anew, and add it again."
            ) from None


class _Marked:
    r"""A JSON file, in which a lone half of a surrogate pair (`\ud800`) is replaced by `\u0000`.

    The parser that ijson runs on would put a question mark in its place, and nobody would know. A NUL is refused.
    """

    _LONE = re.compile(  # begins with plain bytes, which makes the search fast
        rb"\\u[dD](?:[89abAB]..(?!\\u[dD][c-fC-F])|[c-fC-F](?<!\\u[dD][89abAB]..\\u[dD].))", re.DOTALL
    )
    _ESCAPE = re.compile(rb"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u[dD][89a-fA-F]..|\\.", re.DOTALL)

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self._ready = b""
        self._held = b""
        self._fill(_CHUNK)
        self.first = self._ready.lstrip()[:1]

    def read(self, size: int = -1) -> bytes:
        """Up to about `size` bytes; none at the end."""
        if size == 0:
            return b""
        if not self._ready:
            self._fill(size)
        data, self._ready = self._ready, b""
        return data

    def _fill(self, size: int) -> None:
        while not self._ready:
            data = self._handle.read(max(size, _CHUNK))
            whole = self._held + data
            # No escape reaches over a quotation mark, so that is where to cut.
            cut = whole.rfind(b'"') + 1 if data else len(whole)
            self._ready, self._held = whole[:cut], whole[cut:]
            if not data:
                break
        if self._LONE.search(self._ready):
            self._ready = self._ESCAPE.sub(self._mark, self._ready)

    @staticmethod
    def _mark(escape: re.Match[bytes]) -> bytes:
        found = escape.group()
        return b"\\u0000" if len(found) == 6 else found


def write(handle: IO[bytes], entries: Iterator[tuple[str, dict[str, Any]]], *, lines: bool) -> None:
    """Stream names and their fields into a metadata file: JSON lines, or one object with an entry on each line."""
    if lines:
        for name, fields in entries:
            handle.write(_json({"image_path": name, **fields}) + b"\n")
        return
    between = b"{\n"
    for name, fields in entries:
        handle.write(between + _json(name) + b": " + _json(fields))
        between = b",\n"
    handle.write(b"{}\n" if between == b"{\n" else b"\n}\n")


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8")
