"""`cutline status`: what a dataset has, what it lacks, and what it has more than once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cutline.cli.common import AsJson, DatasetPath, print_json, say

if TYPE_CHECKING:
    from cutline.dataset import Dataset
    from cutline.duplicates import Duplicates

_COLUMNS = ("rows", "missing", "errors", "rejected", "parts")


def run(
    dataset: DatasetPath,
    missing: Annotated[bool, typer.Option("--missing", help="List the keys that each layer lacks.")] = False,
    duplicates: Annotated[
        bool, typer.Option("--duplicates", help="List equal and nearly equal pictures, by layer facts.")
    ] = False,
    distance: Annotated[
        int | None,
        typer.Option(help="With --duplicates: in how many bits near pictures may differ (6).", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say how many pictures there are, what each layer has, lacks and could not do."""
    from cutline.dataset import Dataset
    from cutline.options import OptionError

    if distance is not None and not duplicates:
        raise OptionError("--distance is for --duplicates: give both")
    opened = Dataset(dataset)
    twice = _duplicates(opened, distance) if duplicates else None
    errors = opened.sql(
        "select coalesce(error, 'readable'), count(*) from pictures group by all order by all"
    ).fetchall()
    layers = {name: _count(opened, name) for name in opened.layers() if name != "pictures"}
    found: dict[str, Any] = {"pictures": dict(errors), "layers": layers}
    if as_json:
        if missing:
            found["missing"] = {name: _missing(opened, name) for name in layers}
        if twice:
            found["duplicates"] = {
                "distance": twice.distance,
                "without_facts": twice.without_facts(),
                "exact": ([group] for group in twice.exact()),
                "pixels": ([group] for group in twice.pixels()),
                "near": ([group] for group in twice.near()),
            }
        print_json(found)
        return
    _print(found)
    if missing:
        for name in layers:
            for keys in _missing(opened, name):
                print("\n".join([f"{name}\t{key}" for key in keys]))
    if twice:
        _print_duplicates(twice)


def _count(dataset: Dataset, name: str) -> dict[str, int]:
    from cutline import schemas
    from cutline.layer import identifier

    judged = "verdict" in schemas.columns(name)
    good, bad, rejected = dataset.sql(
        f"""select count(*) filter (error is null), count(*) filter (error is not null),
            {"count(*) filter (verdict = 'rejected')" if judged else "0"} from {identifier(name)}"""
    ).fetchall()[0]
    lacks, parts = dataset.missing(name).count(), len(dataset.layer(name).parts())
    entry = {"rows": good, "errors": bad, "missing": lacks, "parts": parts}
    return {**entry, "rejected": rejected} if judged else entry


def _missing(dataset: Dataset, name: str) -> Iterator[list[str]]:
    for batch in dataset.missing(name).batches():
        yield batch["key"].to_pylist()


def _duplicates(dataset: Dataset, distance: int | None) -> Duplicates:
    from cutline.duplicates import DISTANCE, Duplicates

    return Duplicates(dataset, DISTANCE if distance is None else distance)


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print("pictures: " + ", ".join(f"{count:,} {name}" for name, count in found["pictures"].items()))
    table = Table("layer", *_COLUMNS, box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, entry in found["layers"].items():
        table.add_row(name, *(f"{entry[column]:,}" if column in entry else "" for column in _COLUMNS))
    if found["layers"]:
        console.print(table)


def _print_duplicates(found: Duplicates) -> None:
    """A line for each picture: which kind, which group of it, its key."""
    for kind, groups in (("exact", found.exact()), ("pixels", found.pixels()), ("near", found.near())):
        pictures = number = 0
        for number, keys in enumerate(groups, 1):
            pictures += len(keys)
            print("\n".join([f"{kind}\t{number}\t{key}" for key in keys]))
        say(f"{kind}: {pictures:,} pictures in {number:,} group{'' if number == 1 else 's'}")
    if lack := found.without_facts():
        root = found.dataset.root
        say(f"{lack:,} pictures without facts were not looked at: cutline annotate {root} facts")
