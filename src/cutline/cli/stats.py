"""`cutline stats`: the words of a dataset, counted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cutline.cli.common import AsJson, DatasetPath, counted, print_json, say

if TYPE_CHECKING:
    from rich.console import Console

    from cutline.statistics import CaptionCounts, Spread, TagCounts


def run(
    dataset: DatasetPath,
    layer: Annotated[str, typer.Argument(metavar="LAYER", help="All tags and captions by default.")] = "",
    top: Annotated[int, typer.Option(min=0, help="How many tags of each category to name.")] = 10,
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="Draw pictures of it into this folder.")] = None,
    tags: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every tag with its count to this .csv or .parquet.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Count tags and captions: frequencies, what a vocabulary would cover, lengths, ratings, scores."""
    from cutline.dataset import Dataset
    from cutline.options import CutlineError, OptionError
    from cutline.statistics import TagCounts, count, write_frequencies

    if plots:
        from cutline.plots import draw  # says at once where it cannot
    if tags and tags.suffix not in (".csv", ".parquet"):
        raise OptionError(f"--tags writes .csv or .parquet, not {tags}")
    found = count(Dataset(dataset), layer)
    if not found:
        raise CutlineError(f"{dataset} has no tags or captions to count. What it has: cutline status {dataset}")
    if tags:
        tagged = [counts for counts in found.values() if isinstance(counts, TagCounts)]
        if len(tagged) != 1:
            names = ", ".join(counts.of.layer for counts in tagged) or "none"
            raise OptionError(f"--tags writes one layer of tags; say which: cutline stats {dataset} LAYER ({names})")
        write_frequencies(tagged[0], tags)
        say(f"{tags}: {tagged[0].frequencies.num_rows:,} tags")
    if as_json:
        print_json({name: counts.as_dict(top) for name, counts in found.items()})
    else:
        _print(found, top)
    if plots:
        for path in draw(found, plots):
            say(f"drawn: {path}")


def _print(found: dict[str, TagCounts | CaptionCounts], top: int) -> None:
    from rich.console import Console

    from cutline.statistics import TagCounts

    console = Console(markup=False, emoji=False, highlight=False)  # a tag may look like either
    for number, (name, counts) in enumerate(found.items()):
        errors = f"; errors: {counted(counts.of.errors)}" if counts.of.errors else ""
        gap = "\n" if number else ""
        console.print(f"{gap}{name}: {counts.of.rows:,} rows for {counts.of.pictures:,} pictures{errors}")
        if isinstance(counts, TagCounts):
            _print_tags(console, counts, top)
        else:
            console.print(f"verdicts: {counted(counts.verdicts) or 'none'}")
            rows = {"captions": counts.captions, "characters": counts.characters, "words": counts.words}
            _print_spreads(console, rows)


def _print_tags(console: Console, counts: TagCounts, top: int) -> None:
    from cutline.statistics import at_least, coverage

    columns = ["all", *counts.categories]
    by_column = {name: counts.counts(name) for name in columns}
    numbers = [("tags", *(f"{len(by_column[name]):,}" for name in columns))]
    numbers.append(("uses", *(f"{int(by_column[name].sum()):,}" for name in columns)))
    _print_table(console, ["", *columns], numbers)
    console.print("\ntags of a picture")
    _print_spreads(console, counts.lengths)
    if len(by_column["all"]):
        sizes = [size for size, _ in coverage(by_column["all"])]
        kept = {name: dict(coverage(by_column[name], sizes)) for name in columns}
        rows = [(f"{size:,}", *(f"{100 * kept[name].get(size, 1):.2f} %" for name in columns)) for size in sizes]
        console.print("\nuses that the commonest tags keep")
        _print_table(console, ["tags", *columns], rows)
        least = {name: {times: tags for times, tags, _ in at_least(by_column[name])} for name in columns}
        rows = [(f"{times:,}", *(f"{least[name].get(times, 0):,}" for name in columns)) for times in least["all"]]
        console.print("\ntags that are used so many times or more")
        _print_table(console, ["times", *columns], rows)
    if top:
        for name in counts.categories:
            shown = counts.top(top, name)
            console.print(f"\n{name}: the {len(shown):,} commonest of {len(by_column[name]):,}")
            _print_table(console, ["tag", "uses"], [(row["tag"], f"{row['count']:,}") for row in shown])
    if set(counts.ratings) != {"unknown"} or counts.scores["all"].total:
        console.print(f"\nratings: {counted(counts.ratings)}")
    if counts.scores["all"].total:
        console.print("\nscores")
        _print_spreads(console, counts.scores)


def _print_spreads(console: Console, spreads: dict[str, Spread]) -> None:
    rows = [(name, spread.as_dict()) for name, spread in spreads.items() if spread.total]
    if rows:
        columns = list(rows[0][1])[2:]
        cells = [(name, f"{row['mean']:,.1f}", *(f"{row[key]:,}" for key in columns)) for name, row in rows]
        _print_table(console, ["", "mean", *columns], cells)


def _print_table(console: Console, columns: list[str], rows: list[Any]) -> None:
    from rich.table import Table

    table = Table(*columns, box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console.print(table)
