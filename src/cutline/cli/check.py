"""`cutline check`: what is wrong with a layer of captions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cutline.cli.common import AsJson, DatasetPath, print_json, say, visible

if TYPE_CHECKING:
    from cutline.checks.layer import Report
    from cutline.dataset import Dataset

_EXCERPT = 90


def run(
    dataset: DatasetPath,
    layer: Annotated[str, typer.Argument(metavar="LAYER", help="Of captions, such as captions/blip.")],
    tags: Annotated[
        str, typer.Option(metavar="LAYER", help="The tags to hold captions against; by default the only ones.")
    ] = "",
    prompt: Annotated[
        str, typer.Option(metavar="PROMPT", help="Whose policies count; by default those of the prompt that made it.")
    ] = "",
    repair: Annotated[
        bool, typer.Option("--repair", help="Trim or reject captions as the policies say; nothing is lost.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look for faulty captions: loops, refusals, thoughts, cut ends, claims that the tags deny, one text for many."""
    from cutline.checks.layer import check, find_tags
    from cutline.dataset import Dataset
    from cutline.prompts.prompt import find_prompt

    opened = Dataset(dataset)
    opened.key_rule  # noqa: B018  where there is no dataset it says so
    policies = find_prompt(prompt).checks if prompt else None
    against = find_tags(opened, tags)
    with _shown(opened.sql("from pictures where error is null").count()) as progress:
        report = check(opened, layer, tags=against, policies=policies, repair=repair, progress=progress)
    if as_json:
        print_json({"layer": layer, "tags": against or None, **asdict(report), "findings": dict(report.findings)})
        return
    _print(report, layer, against)
    if repair:
        print(f"{report.repaired:,} repaired, {report.rejected:,} rejected")
        if report.rejected:
            say(f"To ask about the rejected ones again: cutline annotate {dataset} {_again(opened, layer)}")


def _again(dataset: Dataset, layer: str) -> str:
    """What one types to have the rejected captions of a layer made anew."""
    if dataset.layer(layer).info() is not None:
        return f"… --as {layer} --retry rejected"
    # A source filled it, so that no annotator may write there: it goes to the annotator's own layer.
    rejected = f"select key from \\\"{layer}\\\" where verdict = 'rejected'"
    return f'ANNOTATOR --where "key in ({rejected})"'


def _print(report: Report, layer: str, against: str) -> None:
    held = f"held against {against}" if against else "held against no tags, since there are none"
    print(f"{layer}: {report.checked:,} captions checked, {report.faulty:,} with findings; {held}")
    if report.skipped:
        print(f"{report.skipped:,} left out: rejected before")
    if report.coverage is not None:
        print(f"on average they tell {report.coverage:.0%} of the tags")
    width = max(map(len, report.findings), default=0)
    for kind, count in report.findings.most_common():
        example = report.examples[kind]
        caption = visible(example.caption)
        shown = caption if len(caption) <= _EXCERPT else caption[: _EXCERPT - 1] + "…"
        print(f"\n{kind:<{width}} {count:>9,}  {visible(example.key)}: {visible(example.detail)}")
        if shown:
            print(f"{'':<{width}} {'':>9}  {shown}")


@contextmanager
def _shown(total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, and nothing in a pipe."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("checking", total=total)
        yield lambda done: bar.update(task, completed=done)
