"""`cutline export`: what a trainer reads, written by a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cutline.cli.common import DatasetPath, Options, counted, say


def run(
    dataset: DatasetPath,
    format: Annotated[str, typer.Argument(metavar="FORMAT", help="sidecar, kohya, metadata_jsonl …")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file or folder to write.")],
    recipe: Annotated[
        str, typer.Option(metavar="RECIPE", help="A TOML file, or the name of one in .cutline/recipes.")
    ] = "",
    options: Options = None,
    seed: Annotated[int, typer.Option(help="What the recipe leaves to chance is drawn from it,")] = 0,
    epoch: Annotated[int, typer.Option(help="and from this, and from each picture's key.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing; show what would change.")] = False,
) -> None:
    """Write what a trainer reads. Without a recipe: a person's caption, else the only other layer's; the only tags."""
    from cutline import options as settings
    from cutline import registry
    from cutline.compose.recipe import find_recipe
    from cutline.dataset import Dataset
    from cutline.exports.export import export

    made = settings.fill(registry.load("exports", format), settings.parse(options or []))
    opened = Dataset(dataset)
    manifest = export(opened, made, out, recipe=find_recipe(opened, recipe), seed=seed, epoch=epoch, dry_run=dry_run)
    for line in manifest.diff:
        print(line)
    for note in manifest.notes:
        say(note)
    print(f"{'would write ' if dry_run else ''}{manifest.out}: {counted(manifest.counts)}")
