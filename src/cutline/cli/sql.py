"""`cutline sql`: every layer is a view."""

from __future__ import annotations

from typing import Annotated

import typer

from cutline.cli.common import AsJson, DatasetPath, print_json


def run(
    dataset: DatasetPath,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="""Such as 'select * from "captions/blip" limit 5'.""")],
    as_json: AsJson = False,
) -> None:
    """Ask in SQL (DuckDB's). Views: pictures, facts, "captions/blip" and so on; names with a slash in double quotes."""
    from cutline.dataset import Dataset

    relation = Dataset(dataset).sql(query)
    if as_json:
        for batch in relation.batches():
            for row in batch.to_pylist():
                print_json(row)
        return
    print(relation)
