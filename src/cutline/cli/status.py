"""`cutline status`: what a dataset has and what it lacks."""

from __future__ import annotations

from typing import Annotated

import typer

from cutline.cli.common import AsJson, DatasetPath, print_json


def run(
    dataset: DatasetPath,
    missing: Annotated[bool, typer.Option("--missing", help="List the keys that each layer lacks.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say how many pictures there are, what each layer has, lacks and could not do."""
    from cutline import schemas
    from cutline.dataset import Dataset
    from cutline.layer import identifier

    opened = Dataset(dataset)
    errors = opened.sql(
        "select coalesce(error, 'readable'), count(*) from pictures group by all order by all"
    ).fetchall()
    layers = {}
    for name in opened.layers():
        if name == "pictures":
            continue
        good, bad = opened.sql(
            f"select count(*) filter (error is null), count(*) filter (error is not null) from {identifier(name)}"
        ).fetchall()[0]
        lacks = opened.missing(name)
        entry = {"rows": good, "errors": bad, "missing": lacks.count(), "parts": len(opened.layer(name).parts())}
        if "verdict" in schemas.columns(name):
            entry["rejected"] = opened.sql(
                f"select count(*) from {identifier(name)} where verdict = 'rejected'"
            ).fetchall()[0][0]
        if missing:
            entry["missing_keys"] = [
                row["key"] for batch in lacks.batches() for row in batch.select(["key"]).to_pylist()
            ]
        layers[name] = entry
    found = {"pictures": dict(errors), "layers": layers}
    if as_json:
        print_json(found)
        return
    _print(found)


def _print(found: dict) -> None:  # type: ignore[type-arg]
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print("pictures: " + ", ".join(f"{count:,} {name}" for name, count in found["pictures"].items()))
    table = Table("layer", *(("rows", "missing", "errors", "rejected", "parts")), box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, entry in found["layers"].items():
        table.add_row(
            name,
            *(
                f"{entry[column]:,}" if column in entry else ""
                for column in ("rows", "missing", "errors", "rejected", "parts")
            ),
        )
    if found["layers"]:
        console.print(table)
    for name, entry in found["layers"].items():
        for key in entry.get("missing_keys", []):
            print(f"{name}\t{key}")
