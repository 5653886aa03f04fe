"""From a dataset and a recipe to an export: the one way from rows to other people's files."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from cutline import options
from cutline.compose.as_kohya import AsKohya, misread
from cutline.compose.recipe import Recipe, check_layers
from cutline.dataset import Dataset
from cutline.dataset.ahead import ahead
from cutline.exports.manifest import COLUMNS, Export, Manifest, Rows
from cutline.exports.writing import make_folder
from cutline.files import storage_error, whole_file
from cutline.options import OptionError

BATCH = 16_384
"""Rows, of the batches that exports are given: few enough to stay in a processor's cache."""


def export(
    dataset: Dataset,
    plugin: Export,
    out: Path,
    *,
    recipe: Recipe,
    seed: int = 0,
    epoch: int = 0,
    dry_run: bool = False,
) -> Manifest:
    """Write every readable picture's text in the export's format. The manifest is kept in `.cutline/exports`.

    Args:
        dataset: whose pictures.
        plugin: which format.
        out: the file or folder to write.
        recipe: what the texts are.
        seed: what the recipe leaves to chance is drawn from it,
        epoch: and from this.
        dry_run: write nothing; the manifest's `diff` says what would change.

    Raises:
        CutlineError: for a layer that the recipe names and the dataset lacks, and what the export itself refuses.
    """
    check_layers(recipe, dataset)
    if epoch and getattr(plugin, "bake_epochs", 0):
        raise OptionError("bake_epochs writes the epochs from 1 on; leave --epoch out")
    folder = dataset.home / "exports"
    kept: list[Path] = []
    if not dry_run:
        make_folder(folder)
        beside = plugin.beside(out) if hasattr(plugin, "beside") else []
        kept = _keep([out / "metadata.jsonl" if out.is_dir() else out, *beside], folder)
    wanted = getattr(plugin, "columns", COLUMNS[:-2])
    opens = getattr(plugin, "files", False)
    where = "uri is not null" if opens else ""
    output = getattr(plugin, "output", "")

    def made(number: int | None) -> Iterator[pa.RecordBatch]:
        drawn = epoch if number is None else number
        return ahead(rows(dataset, recipe, wanted, where=where, seed=seed, epoch=drawn, output=output))

    manifest = plugin.write(Rows(recipe, dataset.root, made), out, dry_run=dry_run)
    if opens and (absent := dataset.count_without_file()):
        manifest.counts["without_file"] = absent
    manifest.notes.extend(
        f"the {path.name.partition('-')[2]} that was there is not this dataset's; it is kept as {path}" for path in kept
    )
    manifest.notes.extend(recipe.remarks(dataset))
    inside = Path(os.path.abspath(out)).is_relative_to(dataset.root)
    if inside and not dry_run and manifest.format not in ("kohya", "webdataset"):
        manifest.notes.append(
            "these words now lie among the dataset's own files: the next `cutline add` reads them as words of yours"
        )
    if not dry_run:
        said = {key: value for key, value in asdict(manifest).items() if key != "diff"}
        said["options"] = options.settings(plugin)
        said |= {"recipe": recipe.settings(), "seed": seed, "epoch": epoch}
        with whole_file(folder / f"{said['format']}-{secrets.token_hex(3)}.json", "w") as handle:
            handle.write(json.dumps(said, indent=2, ensure_ascii=False, default=str) + "\n")
    return manifest


def _keep(files: list[Path], folder: Path) -> list[Path]:
    """Keep copies of files that an export may replace, unless an earlier export of this dataset wrote them."""
    manifests = [json.loads(path.read_bytes()) for path in folder.glob("*.json")]
    ours = {xxh128 for said in manifests for xxh128 in (said.get("xxh128"), *said.get("beside", {}).values())}
    copies = []
    for there in filter(Path.is_file, files):
        with there.open("rb") as handle:
            xxh128 = hashlib.file_digest(handle, xxhash.xxh3_128).hexdigest()
        kept = folder / "replaced" / f"{xxh128[:8]}-{there.name}"
        if xxh128 in ours or kept.exists():
            continue
        make_folder(kept.parent)
        try:
            shutil.copy2(there, kept)
        except OSError as error:
            kept.unlink(missing_ok=True)
            raise storage_error(kept, error) from error
        copies.append(kept)
    return copies


def rows(
    dataset: Dataset,
    recipe: Recipe,
    columns: Sequence[str] = COLUMNS,
    *,
    where: str = "",
    seed: int = 0,
    epoch: int = 0,
    output: str = "",
) -> Iterator[pa.RecordBatch]:
    """The batches that exports are given, with these of `manifest.COLUMNS`, sorted by key."""
    root = dataset.root.as_posix().rstrip("/") + "/"
    told, still = AsKohya(recipe, output), recipe.still
    read = {
        "caption": recipe.captions.layers,
        "tags": recipe.tags.layers,
        "train_width": recipe.latents.first_of,
    }
    for batch in dataset.scan(*recipe.layers, where=where, fields=(*columns, *recipe.fields), rows=BATCH):
        found = {name: batch.column(name) for name in columns if name in batch.schema.names}
        made = recipe.make(batch, seed=seed, epoch=epoch)
        outputs: dict[str, pa.StringArray] = {}
        found["uri"] = pc.coalesce(batch.column("uri"), batch.column("key"))
        if "path" in columns:
            uri = batch.column("uri")
            below = pc.binary_join_element_wise(root, uri, "")
            found["path"] = pc.if_else(pc.starts_with(uri, "/"), uri, below)
        if not {"caption", "tags"}.isdisjoint(columns):
            whole = still.make(batch, seed=seed) if recipe.random else made
            parts = {"caption": whole.caption, "tags": whole.tags}
            found |= {name: column for name, column in parts.items() if name in columns}
        if "text" in columns:
            found["text"] = made.draw(output).texts
            outputs = {f"text.{name}": made.draw(name).texts for name in recipe.outputs}
        if "entry" in columns:
            found["entry"], reasons = told.entries(made)
        elif "misread" in columns:
            said = still.make(batch, seed=seed).draw(output).texts if recipe.random else found["text"]
            found["text"] = pc.if_else(pc.is_valid(said), pc.fill_null(found["text"], ""), None)
            reasons = misread(found["text"])
        if "misread" in columns:
            found["misread"] = pa.array([reason or None for reason in reasons], pa.string())
        if "train_width" in columns:
            found["train_width"], found["train_height"] = made.buckets
        for name in columns:
            if not read.get(name, True):
                found[name] = pa.nulls(len(batch))
        names = [*columns, *outputs]
        found |= outputs
        yield pa.RecordBatch.from_arrays([found[name] for name in names], names=names)
