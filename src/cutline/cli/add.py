"""`cutline add`: pictures and words from folders, Hugging Face imagefolders and kohya metadata."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from cutline.cli.common import DONE_IN_PART, AsJson, DatasetPath, Options, counted, print_json, say, unreadable_query


def run(
    dataset: DatasetPath,
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="PATH", help="What to add; the dataset's own folder by default.")
    ] = None,
    source: Annotated[
        str, typer.Option("--from", metavar="SOURCE", help="Its format, where the path does not tell.")
    ] = "",
    options: Options = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="RULE", help="First add: path (default), stem or a regular expression."),
    ] = None,
    prefix: Annotated[str, typer.Option(help="First add: what to put before every key, such as danbooru/.")] = "",
    allow_vanish: Annotated[bool, typer.Option("--allow-vanish", help="Let half or more of a folder vanish.")] = False,
    as_json: AsJson = False,
) -> None:
    """Add pictures and words. Run it again at any time: only what is new or changed is read."""
    from cutline import options as settings
    from cutline import registry
    from cutline.dataset import Dataset, KeyRule
    from cutline.sources.detect import detect

    opened = Dataset(dataset)
    rule = KeyRule(key or "path", prefix) if key or prefix else None
    given = settings.parse(options or [])
    if paths and "path" in given:
        raise settings.OptionError(f"the path is said twice: {paths[0]} and -o path={given['path']}")
    unreadable = 0
    for path in paths or [dataset]:
        name = source or detect(path)
        plugin = registry.load("sources", name)
        named = {"path": path} if "path" in {entry.name for entry in dataclasses.fields(plugin)} else {}
        report = opened.add(
            settings.fill(plugin, {**named, **given}),
            rule=rule,
            allow_vanish=allow_vanish,
            progress=_progress if sys.stderr.isatty() else None,
        )
        unreadable += report.unreadable
        if as_json:
            print_json({"path": str(path), "source": name, **report.as_dict()})
            continue
        pictures = {
            entry: getattr(report, entry)
            for entry in ("added", "changed", "moved", "unchanged", "vanished", "unreadable")
        }
        reasons = f" ({counted(report.reasons)})" if report.reasons else ""
        print(f"{path} ({name}): {counted(pictures) or 'no pictures'}{reasons}")
        for layer, count in report.words.items():
            print(f"  {layer}: {count:,} written")
        for note, count in sorted(report.notes.items()):
            print(f"  {count:,} × {note}")
    if unreadable:
        say(f"{unreadable:,} of these pictures cannot be read. Which: {unreadable_query(dataset)}")
        raise typer.Exit(DONE_IN_PART)


def _progress(done: int, total: int, bad: int) -> None:
    end = "\n" if done == total else ""
    print(f"\r{done:,} of {total:,} new or changed pictures looked at, {bad:,} unreadable", end=end, file=sys.stderr)
