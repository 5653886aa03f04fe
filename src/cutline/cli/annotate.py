"""`cutline annotate`: fill a layer with what it lacks."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cutline.cli.common import (
    DONE_IN_PART,
    INTERRUPTED,
    DatasetPath,
    Options,
    counted,
    print_json,
    progress_bar,
    say,
    unreadable_query,
)

if TYPE_CHECKING:
    from cutline.engine.selection import Selection


def run(
    dataset: DatasetPath,
    annotator: Annotated[str, typer.Argument(metavar="ANNOTATOR", help="`cutline plugins` lists them.")],
    preset: Annotated[Path | None, typer.Argument(metavar="PRESET", help="A TOML file of its options.")] = None,
    options: Options = None,
    layer: Annotated[
        str, typer.Option("--as", metavar="LAYER", help="Write to this layer instead of its usual one.")
    ] = "",
    where: Annotated[str, typer.Option(metavar="SQL", help="Only pictures that meet this condition.")] = "",
    retry: Annotated[str, typer.Option(metavar="errors|rejected", help="Do these again too.")] = "",
    limit: Annotated[int | None, typer.Option(min=0, help="At most this many pictures.")] = None,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Only shard I (from 0) of N.")] = "",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one per device or core by default.")] = None,
    reparse: Annotated[
        bool, typer.Option("--reparse", help="Read again what the model said, without the model.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; show the first request.")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="One line of JSON per event.")] = False,
) -> None:
    """Ask an annotator about every picture that its layer lacks. Stop it, kill it, start it again: it goes on."""
    from cutline import options as settings
    from cutline import registry, toml_files
    from cutline.dataset import Dataset
    from cutline.engine.here import annotate
    from cutline.engine.selection import Selection, Shard
    from cutline.layer import identifier

    plugin = registry.load("annotators", annotator)
    values: dict[str, Any] = {}
    if preset is not None:
        values = toml_files.read(preset, "preset of options")
        if {"around", "answer", "one_of", "checks"} & values.keys():
            raise settings.OptionError(f"{preset} is a prompt, and no preset of options. Say so: -o prompt={preset}")
    made = settings.fill(plugin, {**values, **settings.parse(options or [])})
    opened = Dataset(dataset)
    selection = Selection(
        opened, made, layer or plugin.writes, where, retry, limit, Shard.parse(shard) if shard else None
    )
    if reparse:
        if retry or workers:
            raise settings.OptionError(f"--{'retry' if retry else 'workers'} has no effect with --reparse")
        _reparse(selection, dry_run, log_json)
        return
    if dry_run:
        selection.check()
        found = {"layer": selection.layer, "todo": selection.count(), "first": selection.first_request()}
        if log_json:
            print_json({"event": "dry_run", **found})
            return
        print(f"{found['todo']:,} pictures to do in {selection.layer}")
        if found["first"]:
            import json

            print(json.dumps(found["first"], indent=2, ensure_ascii=False))
        return
    with _events(log_json) as events:
        report = annotate(selection, workers=workers, events=events)
    unreadable = opened.sql("select count(*) from pictures where error is not null and error <> 'vanished'").fetchall()[
        0
    ][0]
    again = _again(dataset, annotator)
    if not log_json:
        counts = {
            "good": report.good,
            "repaired": report.repaired,
            "rejected": report.rejected,
            "failed": report.failed,
        }
        print(f"{selection.layer}: {counted(counts) or 'nothing to do'} in {report.seconds:.1f} s")
    if report.interrupted:
        say(
            f"interrupted; {report.done:,} of {report.todo:,} are done and kept. To go on, give the same command again."
        )
        raise typer.Exit(INTERRUPTED)
    if report.rejected:
        which = _query(dataset, "key, reason, raw", selection.layer, "verdict = $$rejected$$")
        say(
            f"{report.rejected:,} rejected ({counted(report.reasons)}): their words are kept apart, as raw. "
            f"Which: {which}\n"
            f"To ask again: {again} --retry rejected"
        )
    if report.failed:
        which = _query(dataset, "key, error, detail", selection.layer, "error is not null")
        say(
            f"{report.failed:,} failed ({counted(report.errors)}). Which: {which}\n"
            f"To try them again: {again} --retry errors"
        )
    if unreadable:
        say(f"{unreadable:,} of the pictures cannot be read and were left out. Which: {unreadable_query(dataset)}")
    if absent := selection.without_file():
        say(f"{absent:,} are known from metadata only and were left out. Add the folder or tars that hold their files")
    left = 0
    if selection.layer in opened.layers():
        left = opened.sql(
            f"from {identifier(selection.layer)} as made join pictures using (key) "
            "where made.error is not null and pictures.error is null"
        ).count()
    if left > report.failed:
        say(f"{left - report.failed:,} failed in earlier runs. To try them again: {again} --retry errors")
    if left or report.failed or unreadable:
        raise typer.Exit(DONE_IN_PART)


def _again(dataset: Path, annotator: str) -> str:
    """The command that was given, without its --retry."""
    given = sys.argv[1:]
    if given[:1] != ["annotate"]:  # it was not given as a command
        return f"cutline annotate {dataset} {annotator} …"
    words = [word for place, word in enumerate(given) if "--retry" not in (word, *given[place - 1 : place])]
    return shlex.join(["cutline", *(word for word in words if not word.startswith("--retry="))])


def _query(dataset: Path, columns: str, layer: str, where: str) -> str:
    """What to type to see these rows of a layer."""
    return shlex.join(["cutline", "sql", str(dataset), f'select {columns} from "{layer}" where {where}'])


def _reparse(selection: Selection, dry_run: bool, log_json: bool) -> None:
    from cutline.engine.reparse import reparse

    report = reparse(selection, dry_run=dry_run)
    if log_json:
        print_json({"event": "reparse", **asdict(report)})
        return
    counts = {name: getattr(report, name) for name in ("good", "repaired", "rejected")}
    would = "would change" if dry_run else "changed"
    changed = f" ({counted(counts)})" if report.changed else ""
    print(f"{selection.layer}: {report.read:,} answers read again, {report.changed:,} {would}{changed}")
    if report.reasons:
        say(f"rejected: {counted(report.reasons)}")


class _events:
    """How a run is shown: JSON lines, a progress bar on a terminal, or nothing in a pipe."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.bar: Any = None

    def __enter__(self) -> Any:
        if self.as_json:
            return print_json
        if not sys.stderr.isatty():
            return self._warn
        self.bar = progress_bar("counts")
        self.bar.start()
        self.task = self.bar.add_task("loading", total=None, rate="", counts="")
        return self._show

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def _warn(self, event: dict[str, Any]) -> None:
        if event["event"] == "stopping":
            say("finishing what is in hand; Ctrl-C again stops at once")
        if event["event"] == "worker_died":
            say(f"a worker died ({event['how']}) with {event['in_hand']} pictures in hand; they are tried again")

    def _show(self, event: dict[str, Any]) -> None:
        if event["event"] == "start":
            self.bar.update(self.task, total=event["todo"])
        elif event["event"] in ("progress", "end"):
            counts = {name: event[name] for name in ("good", "repaired", "rejected", "failed")}
            self.bar.update(
                self.task,
                description="captioning" if event["event"] == "progress" else "done",
                completed=event["done"],
                rate=f"{event['per_second']:.1f}/s",
                counts=counted(counts),
            )
        elif event["event"] == "stopping":
            self.bar.console.print("finishing what is in hand; Ctrl-C again stops at once")
        else:
            self._warn(event)
