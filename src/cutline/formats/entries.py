"""Entries: what every metadata file holds, one per picture, and how JSON lines are read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, NamedTuple

from cutline.options import CutlineError


class Entry(NamedTuple):
    """One record of a metadata file, or the reason why it is none."""

    where: str
    """For people: `line 7 of metadata.jsonl`."""
    name: str | None = None
    """What the file calls the picture; null where it does not say."""
    fields: Mapping[str, object] = MappingProxyType({})
    error: str | None = None
    detail: str | None = None


def json_lines(path: Path, name_field: str) -> Iterator[Entry]:
    """Read a file of one JSON object per line. A line that is none is an entry with an error, and the next is read.

    Raises:
        CutlineError: there is no such file.
    """
    with opened(path) as handle:
        for number, line in enumerate(handle, 1):  # a binary file's lines end with LF and nothing else
            where = f"line {number} of {path.name}"
            line = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
            if not line:
                continue
            try:
                value = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                yield Entry(where, error="not_utf8", detail=f"byte {error.start} is not UTF-8")
            except (ValueError, RecursionError) as error:
                yield Entry(where, error="bad_json", detail=str(error))
            else:
                yield entry(where, value, name_field)


def entry(where: str, value: object, name_field: str) -> Entry:
    """The entry of one record, its name taken out of `name_field`."""
    if not isinstance(value, dict):
        return Entry(where, error="bad_value", detail=f"it is {kind(value)}, not an object")
    name = value.pop(name_field, None)
    if not isinstance(name, str) or not name:
        return Entry(where, error="bad_name", detail=f"it has no {name_field}; it has: {', '.join(value) or 'nothing'}")
    return named(where, name, value)


def named(where: str, name: str, fields: Mapping[str, object]) -> Entry:
    """An entry of that name, unless it is a name that no text column can hold."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return Entry(where, error="bad_name", detail=f"{name!r} is not Unicode")
    if "\0" in name:
        return Entry(where, error="bad_name", detail=f"{name!r} holds NUL or half of a surrogate pair")
    return Entry(where, name, fields)


def opened(path: Path) -> BinaryIO:
    """Open someone's file to read bytes. Raises CutlineError where that cannot be."""
    try:
        return path.open("rb")
    except OSError as error:
        raise CutlineError(f"cannot read {path}: {error.strerror}") from None


def kind(value: object) -> str:
    """What a JSON value is, in words."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")
