"""What several verbs take and print."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

DONE_IN_PART = 3
INTERRUPTED = 130

_PICTURES = {code: chr(0x2400 + code) for code in range(32)} | {ord("\n"): "⏎", 127: "␡"}
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINERS = "\u200c\u200d"  # within words and emoji

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


def progress_bar(*fields: str) -> Any:
    """A bar on standard error: what is done, of how many, `rate`, the time that is left, and these fields."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        *(TextColumn(f"{{task.fields[{field}]}}") for field in fields),
        console=Console(stderr=True),
    )


def counted(counts: Mapping[str, int]) -> str:
    """`{"empty": 1, "truncated": 2}` as `1 empty, 2 truncated`."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


def say(text: str) -> None:
    """A line for people, beside the output."""
    print(text, file=sys.stderr, flush=True)


def visible(text: str) -> str:
    """Someone's text on one line and with nothing that a terminal obeys: control characters, changes of direction."""
    if text.isprintable():
        return text
    return "".join(
        _PICTURES.get(ord(letter), letter.encode("unicode_escape").decode())
        if unicodedata.category(letter) in _UNSEEN and letter not in _JOINERS
        else letter
        for letter in text
    )


def unreadable_query(dataset: Path) -> str:
    """What to type to see which pictures cannot be read, and why."""
    return f'cutline sql {dataset} "select key, error, detail from pictures where error is not null"'
