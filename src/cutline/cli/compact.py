"""`cutline compact`: many small parts become few."""

from __future__ import annotations

from typing import Annotated

import typer

from cutline.cli.common import DatasetPath


def run(
    dataset: DatasetPath,
    layers: Annotated[list[str] | None, typer.Argument(metavar="LAYER", help="All of them by default.")] = None,
) -> None:
    """Merge the parts of layers. Safe at any time, beside writers and readers; what rows say does not change."""
    from cutline.dataset import Dataset

    for name, (before, after) in Dataset(dataset).compact(*(layers or [])).items():
        print(f"{name}: {before} parts -> {after}")
