"""`cutline merge`: an adapter into its base, for good."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer


def run(
    adapter: Annotated[Path, typer.Argument(metavar="RUN", help="A run, or the folder of a PEFT adapter.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder for the model.")],
    model: Annotated[
        str, typer.Option(metavar="BASE", help="Hub name or folder of the base, if not what the adapter names.")
    ] = "",
) -> None:
    """Put an adapter into its base: a whole model, for `annotate -o model=OUT` and for other programs."""
    merging: Any = import_module("cutline.training.merge")  # by name, as it brings torch, which data commands never do
    made = merging.merge(adapter, out, model=model or None)
    annotator = merging.trained.read(made).annotator
    print(f"{made}: a whole model. Caption with it: cutline annotate DATASET {annotator} -o model={made}")
