"""From a dataset and a recipe to an export: the one way from rows to other people's files."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from cutline import options
from cutline.compose.recipe import Recipe, default_recipe
from cutline.dataset import Dataset
from cutline.exports.manifest import COLUMNS, PICTURE, Export, Manifest
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
    folder = dataset.home / "exports"
    kept = None
    if not dry_run:
        make_folder(folder)
        kept = _keep(out / "metadata.jsonl" if out.is_dir() else out, folder)
    manifest = plugin.write(rows(dataset, recipe), out, dry_run=dry_run)
    if kept and manifest.counts.get("written"):
        manifest.notes.append(
            f"the {kept.name.partition('-')[2]} that was there is not Cutline's; it is kept as {kept}"
        )
    if manifest.format not in ("kohya", "webdataset") and Path(os.path.abspath(out)).is_relative_to(dataset.root):
        manifest.notes.append(
            "these words now lie among the dataset's own files: the next `cutline add` reads them as words of yours"
        )
    if not dry_run:
        said = {key: value for key, value in asdict(manifest).items() if key != "diff"}
        said["options"] = options.settings(plugin)
        said["recipe"] = recipe.settings()
        with whole_file(folder / f"{said['format']}-{secrets.token_hex(3)}.json", "w") as handle:
            handle.write(json.dumps(said, indent=2, ensure_ascii=False, default=str) + "\n")
    return manifest


def _keep(there: Path, folder: Path) -> Path | None:
    """Keep a copy of a file that an export is about to replace, unless an earlier export of this dataset wrote it."""
    if not there.is_file():
        return None
    data = there.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    if any(json.loads(path.read_bytes()).get("sha256") == sha256 for path in folder.glob("*.json")):
        return None
    kept = folder / "replaced" / f"{sha256[:8]}-{there.name}"
    make_folder(kept.parent)
    with whole_file(kept) as handle:
        handle.write(data)
    return kept


def rows(dataset: Dataset, recipe: Recipe) -> Iterator[pa.RecordBatch]:
    """The batches that exports are given (`manifest.COLUMNS`), sorted by key."""
    root = dataset.root.as_posix().rstrip("/") + "/"
    for batch in dataset.scan(*recipe.layers):
        caption, tags = recipe.parts(batch)
        uris = batch.column("uri").to_pylist()
        paths = pa.array([uri if uri.startswith("/") else root + uri for uri in uris], pa.string())
        text = recipe.compose(batch, seed=0)
        columns = [batch.column(name) for name in ("key", "uri")] + [paths]
        columns += [batch.column(name) for name in PICTURE] + [caption, tags, text]
        yield pa.RecordBatch.from_arrays(columns, names=list(COLUMNS))
