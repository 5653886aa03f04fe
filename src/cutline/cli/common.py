"""What several verbs take and print."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

DONE_IN_PART = 3
INTERRUPTED = 130

DatasetPath = Annotated[Path, typer.Argument(metavar="DATASET", help="The dataset's folder.", show_default=False)]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "-o", "--option", metavar="KEY=VALUE", help="A setting of the plug-in; `cutline plugins NAME` lists them."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_json(value: Any) -> None:
    """One line of JSON on standard output. An iterator of lists in it is one list, written as they come."""
    for piece in _json(value):
        sys.stdout.write(piece)
    print(flush=True)


def _json(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for number, (name, entry) in enumerate(value.items()):
            yield f"{', ' if number else '{'}{json.dumps(str(name), ensure_ascii=False)}: "
            yield from _json(entry)
        yield "}" if value else "{}"
    elif isinstance(value, Iterator):
        gap = "["
        for piece in value:
            if piece:
                yield gap + json.dumps(piece, ensure_ascii=False)[1:-1]
                gap = ", "
        yield "[]" if gap == "[" else "]"
    else:
        yield json.dumps(value, ensure_ascii=False, default=str)


def counted(counts: Mapping[str, int]) -> str:
    """`{"empty": 1, "truncated": 2}` as `1 empty, 2 truncated`."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


def say(text: str) -> None:
    """A line for people, beside the output."""
    print(text, file=sys.stderr, flush=True)


def unreadable_query(dataset: Path) -> str:
    """What to type to see which pictures cannot be read, and why."""
    return f'cutline sql {dataset} "select key, error, detail from pictures where error is not null"'
