"""From a dataset and a recipe to an export: the one way from rows to other people's files."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from cutline import options
from cutline.compose.recipe import Recipe, default_recipe
from cutline.dataset import Dataset
from cutline.exports.manifest import COLUMNS, Export, Manifest
from cutline.exports.writing import make_folder
from cutline.files import whole_file
from cutline.options import CutlineError


def find_recipe(dataset: Dataset, name: str) -> Recipe:
    """A recipe by path or by its name in the dataset's `recipes` folder; without one, the obvious one or a refusal."""
    if not name:
        return default_recipe([layer for layer in dataset.layers() if dataset.layer(layer).parts()])
    for path in (Path(name), dataset.home / "recipes" / f"{name}.toml"):
        if path.is_file():
            return Recipe.from_toml(path)
    raise CutlineError(f"there is no recipe {name}, neither as a file nor as {dataset.home}/recipes/{name}.toml")


def export(dataset: Dataset, plugin: Export, out: Path, *, recipe: Recipe, dry_run: bool = False) -> Manifest:
    """Write every readable picture's text in the export's format. The manifest is kept in `.cutline/exports`.

    Raises:
        CutlineError: for a layer that the recipe names and the dataset lacks, and what the export itself refuses.
    """
    known = dataset.layers()
    if lacking := [name for name in recipe.layers if name not in known]:
        there = ", ".join(name for name in known if name != "pictures") or "none"
        raise CutlineError(
            f"the recipe reads {', '.join(lacking)}, which {dataset.root} does not have. It has: {there}"
        )
    manifest = plugin.write(rows(dataset, recipe), out, dry_run=dry_run)
    if not dry_run:
        folder = dataset.home / "exports"
        make_folder(folder)
        said = {key: value for key, value in asdict(manifest).items() if key != "diff"}
        said["options"] = options.settings(plugin)
        said["recipe"] = recipe.settings()
        with whole_file(folder / f"{said['format']}-{secrets.token_hex(3)}.json", "w") as handle:
            handle.write(json.dumps(said, indent=2, ensure_ascii=False, default=str) + "\n")
    return manifest


def rows(dataset: Dataset, recipe: Recipe) -> Iterator[pa.RecordBatch]:
    """The batches that exports are given (`manifest.COLUMNS`), sorted by key."""
    root = dataset.root.as_posix().rstrip("/") + "/"
    for batch in dataset.scan(*recipe.layers):
        caption, tags = recipe.parts(batch)
        uris = batch.column("uri").to_pylist()
        paths = pa.array([uri if uri.startswith("/") else root + uri for uri in uris], pa.string())
        text = recipe.compose(batch, seed=0)
        columns = [batch.column(name) for name in ("key", "uri")] + [paths]
        columns += [batch.column(name) for name in ("width", "height", "orientation")] + [caption, tags, text]
        yield pa.RecordBatch.from_arrays(columns, names=list(COLUMNS))
