"""The metadata file that kohya's trainers load, and the dataset config to go with it."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cutline import toml_files
from cutline.compose.as_kohya import AsKohya
from cutline.compose.buckets import sides
from cutline.exports.manifest import Manifest, Rows
from cutline.exports.writing import refuse, shortened, write_file
from cutline.files import storage_error
from cutline.formats import json_columns
from cutline.options import CutlineError, OptionError, option

_MARK = "# Written by Cutline."
"""How a dataset config of ours begins."""

_SIZE = pa.list_(pa.int32(), 2)


@dataclass(frozen=True)
class Kohya:
    """One `.json`, `.jsonl` or `.parquet` file with the text of every picture, as kohya's trainers load it.

    The first two are for a trainer's `metadata_file`; beside them stands a dataset config of the same name (`.toml`)
    with the options under which the trainer draws the recipe's texts. Where it cannot be told a part of the recipe,
    that is said, and the texts are those of one epoch. A picture is named by its path relative to the dataset, which is
    the trainer's `image_dir`; one that lies elsewhere by its absolute path; one that is known from metadata only by its
    key. Where the recipe reads latents, each entry has its `train_resolution`. What a picture lacks of all that is
    listed in `missing.json`, beside the file.
    """

    image_size: bool = option(
        True, "write each picture's size as the trainer sees it, which ignores EXIF; without, it opens every picture"
    )
    output: str = option("", "which of the recipe's outputs; by default its text")
    bake_epochs: int = option(0, "write so many files, x-1.json and so on, each with the texts of that epoch")
    apart: bool = option(False, "write caption and tags in fields of their own, which the trainer then joins itself")
    legacy: bool = option(
        False, "for old tools: as apart, and pictures named by their bare stems, which today's trainers cannot load"
    )
    caption_from_tags: bool = option(False, "with apart: let the tags stand in for a caption that is missing")
    missing: bool = option(True, "list in missing.json, beside the file, which pictures lack tags, caption or latent")

    def __post_init__(self) -> None:
        for name in ("bake_epochs", "output"):
            if getattr(self, name) and self._apart:
                raise OptionError(f"kohya: apart and legacy write caption and tags; {name} is for the recipe's texts")
        if self.caption_from_tags and not self._apart:
            raise OptionError("kohya: caption_from_tags is for -o apart=true or -o legacy=true")
        if self.bake_epochs < 0:
            raise OptionError(f"kohya: bake_epochs={self.bake_epochs}: a number of epochs")

    @property
    def _apart(self) -> bool:
        return self.apart or self.legacy

    @property
    def columns(self) -> tuple[str, ...]:
        """What it wants of the rows."""
        pictures = ("uri", "offset", "width", "height", "orientation", "train_width", "train_height")
        parts = ("caption", "tags") if self._apart or self.missing else ()
        texts = () if self._apart else ("text", "misread") if self.bake_epochs else ("entry", "misread")
        return (*pictures, *parts, *texts)

    def beside(self, out: Path) -> list[Path]:
        """The files that it may write beside `out`."""
        more = [path for path, _ in self._files(out) if path != out]
        config = [out.with_suffix(".toml")] if not self._apart and out.suffix != ".parquet" else []
        return [*more, *config, *([out.with_name("missing.json")] if self.missing else [])]

    def write(self, rows: Iterator[pa.RecordBatch], out: Path, *, dry_run: bool = False) -> Manifest:
        """Write the files, each whole or not at all; pictures without words are left out and counted."""
        if out.suffix not in (".json", ".jsonl", ".parquet") or out.is_dir():
            raise OptionError(f"kohya writes one file: {out} must end with .json, .jsonl or .parquet")
        if out.name == "missing.json" and self.missing:
            raise OptionError("missing.json is where kohya lists what is missing; call the file something else")
        counts = Counter(written=0, unchanged=0, without_text=0)
        lacking, misread = _Lacking(), _Misread(bool(self.bake_epochs))
        hashes: dict[str, str] = {}
        diff: list[str] = []
        config = out.with_suffix(".toml")
        if config in self.beside(out):
            _refuse_foreign(config)
        for path, epoch in self._files(out):
            given = rows if epoch is None else cast(Rows, rows).epoch(epoch)
            found = Counter[str]()
            hashes[path.name], changed, differs = _written(
                path,
                self._entries(given, found, *((lacking, misread) if epoch in (None, 1) else ())),
                dry_run,
            )
            entries = found.pop("entries", 0)
            found["written" if changed else "unchanged"] = entries
            for name, count in found.items():
                counts[name] = max(counts[name], count)
            diff += differs
        first = self._files(out)[0][0]
        xxh128 = hashes.pop(first.name)
        notes = misread.notes()
        if not self._apart and isinstance(rows, Rows):
            told = AsKohya(rows.recipe, self.output)
            notes = [*self._cannot(told), *notes]
            if config in self.beside(out):
                lines = self._config(told, rows.root, out)
                hashes[config.name], _, differs = write_file(config, partial(_write_config, lines), dry_run=dry_run)
                diff += differs
                notes.append(f"for the trainer: --dataset_config {config}")
        if self.missing and not dry_run:
            hashes["missing.json"], _, _ = write_file(out.with_name("missing.json"), lacking.write, dry_run=False)
        if archived := counts.pop("archived", 0):
            notes.append(f"{archived:,} of these pictures are inside archives, where no trainer of kohya's finds them")
        return Manifest("kohya", first, dict(counts) | lacking.counts(), xxh128, hashes, shortened(diff), notes)

    def _files(self, out: Path) -> list[tuple[Path, int | None]]:
        """The files, and the epoch of each; none where it is the given one."""
        if not self.bake_epochs:
            return [(out, None)]
        return [(out.with_name(f"{out.stem}-{n}{out.suffix}"), n) for n in range(1, self.bake_epochs + 1)]

    def _cannot(self, told: AsKohya) -> list[str]:
        if self.bake_epochs or not told.cannot:
            return []
        return [f"the trainer cannot be told this part of the recipe: {reason}" for reason in told.cannot] + [
            "so these are the texts of one epoch, the same in every epoch of a run. For others: -o bake_epochs=N"
        ]

    def _config(self, told: AsKohya, root: Path, out: Path) -> list[bytes]:
        """The dataset config, line by line."""
        options = {} if self.bake_epochs else told.options
        lines = [f"{_MARK} Resolution, batch size and the like are yours to add, here or on the command line."]
        if self.bake_epochs > 1:
            lines += [
                f"# One epoch of the trainer goes through all {self.bake_epochs} epochs of the recipe. Do not let it",
                "# cache text encoder outputs on the disk: those go by the picture, which has other texts in each.",
            ]
        for path, _ in self._files(out):  # each a dataset, since in one dataset a picture has one text
            said = {"metadata_file": os.path.abspath(path), "image_dir": str(root), **options}
            lines += [
                "",
                "[[datasets]]",
                "enable_bucket = true",
                "",
                "[[datasets.subsets]]",
                *(f"{key} = {_toml(value)}" for key, value in said.items()),
            ]
        return [f"{line}\n".encode() for line in lines]

    def _entries(
        self,
        rows: Iterator[pa.RecordBatch],
        counts: Counter[str],
        lacking: _Lacking | None = None,
        misread: _Misread | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """name, caption, tags, image_size, train_resolution of those pictures that have words."""
        text = "text" if self.bake_epochs else "entry"
        given: list[pa.RecordBatch] = []
        renamed = False
        for batch in rows:
            uri = batch.column("uri")
            name = _stems(uri) if self.legacy else uri
            if lacking is not None and self.missing:
                parts = {part: batch.column(part) for part in ("tags", "caption")}
                lacking.add(name, **parts, latent=batch.column("train_width"))
            if self._apart:
                caption, tags = (batch.column(part).cast(pa.string()) for part in ("caption", "tags"))
            else:
                caption, tags = batch.column(text), pa.nulls(len(batch), pa.string())
                if misread is not None:
                    misread.add(name, batch.column("misread"))
            if self.caption_from_tags:
                caption = pc.coalesce(caption, tags)
            width, height = sides(batch)
            if not self.image_size:
                width = height = pa.nulls(len(batch), pa.int32())
            columns = [name, caption, tags, width, height]
            columns += [batch.column(side).cast(pa.int32()) for side in ("train_width", "train_height")]
            made = pa.RecordBatch.from_arrays(columns, names=list(_ENTRY))
            said = pc.or_(pc.is_valid(caption), pc.is_valid(tags))
            if not pc.all(said, min_count=0).as_py():
                made = made.filter(said)
            counts["without_text"] += len(batch) - len(made)
            counts["entries"] += len(made)
            counts["archived"] += len(batch) - batch.column("offset").null_count
            renamed |= name is not uri
            if self.legacy:
                given.append(pa.RecordBatch.from_arrays([name, uri], names=["name", "uri"]))
            yield made
        if renamed:
            _refuse_shared(pa.Table.from_batches(given))


_ENTRY = ("name", "caption", "tags", "width", "height", "train_width", "train_height")


def _fields(batch: pa.RecordBatch) -> dict[str, Any]:
    """What an entry says."""
    return {
        "caption": batch.column("caption"),
        "tags": batch.column("tags"),
        "image_size": (batch.column("width"), batch.column("height")),
        "train_resolution": (batch.column("train_width"), batch.column("train_height")),
    }


def _write_object(handle: IO[bytes], batches: Iterator[pa.RecordBatch]) -> None:
    """One object, with an entry on each line."""
    between = b"{\n"
    for batch in batches:
        if len(batch):
            lines = json_columns.lines(_fields(batch), name=batch.column("name"), before=",\n")
            handle.write(between)
            handle.write(json_columns.text(lines)[2:])
            between = b",\n"
    handle.write(b"{}\n" if between == b"{\n" else b"\n}\n")


def _write_lines(handle: IO[bytes], batches: Iterator[pa.RecordBatch]) -> None:
    for batch in batches:
        if not len(batch):
            continue
        fields = {"image_path": batch.column("name"), **_fields(batch)}
        handle.write(json_columns.text(json_columns.lines(fields, after="\n")))


def _write_parquet(handle: IO[bytes], batches: Iterator[pa.RecordBatch]) -> None:
    """The columns of the JSON lines."""
    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("image_path", "caption", "tags")),
            *((name, _SIZE) for name in ("image_size", "train_resolution")),
        ]
    )
    with pq.ParquetWriter(handle, schema, compression="zstd") as writer:
        for batch in batches:
            columns = [batch.column(name) for name in ("name", "caption", "tags")]
            columns += [_pair(batch, "width", "height"), _pair(batch, "train_width", "train_height")]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def _pair(batch: pa.RecordBatch, first: str, second: str) -> pa.FixedSizeListArray:
    sides = [batch.column(first), batch.column(second)]
    count = len(batch)
    mixed = pa.concat_arrays(sides).take(pa.array([side * count + row for row in range(count) for side in (0, 1)]))
    absent = pc.or_(pc.is_null(sides[0]), pc.is_null(sides[1]))
    return pa.FixedSizeListArray.from_arrays(mixed, 2, mask=absent)


def _stems(uris: pa.StringArray) -> pa.StringArray:
    """Names without folder and extension."""
    if pc.any(pc.match_substring(uris, "/")).as_py():
        uris = pc.replace_substring_regex(uris, "^.*/", "")
    if pc.any(pc.match_substring(uris, ".")).as_py():
        uris = pc.replace_substring_regex(uris, r"([^.])\.[^.]*$", r"\1")
    return uris


def _refuse_shared(given: pa.Table) -> None:
    shared = duckdb.connect().sql(
        "select name, string_agg(uri, ', ' order by uri) from given group by name having count(*) > 1 order by name"
    )
    refuse(
        [f"{name}: {uris}" for name, uris in shared.limit(1000).fetchall()],
        "with legacy=true these pictures would share a name",
        "Leave legacy=true out.",
    )


def _written(path: Path, entries: Iterator[pa.RecordBatch], dry_run: bool) -> tuple[str, bool, list[str]]:
    writer = {".json": _write_object, ".jsonl": _write_lines, ".parquet": _write_parquet}[path.suffix]
    return write_file(path, lambda handle: writer(handle, entries), dry_run=dry_run)


def _toml(value: Any) -> str:
    text = toml_files.value(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise CutlineError(f"{text} cannot be named in TOML, which is UTF-8; rename the folder") from None
    return text


def _refuse_foreign(config: Path) -> None:
    """Refuse to write over a file that may be someone's recipe."""
    try:
        with config.open("rb") as handle:
            ours = handle.read(len(_MARK)) == _MARK.encode()
    except FileNotFoundError:
        return
    except OSError as error:
        raise storage_error(config, error) from error
    if not ours:
        raise CutlineError(
            f"nothing was written: the dataset config would take the place of {config}, which is not Cutline's. "
            "Choose another name for the metadata file"
        )


def _write_config(lines: list[bytes], handle: IO[bytes]) -> None:
    handle.write(b"".join(lines))


class _Misread:
    """Which texts the trainer would misread, by reason."""

    def __init__(self, baked: bool) -> None:
        self.baked = baked
        self._counts: Counter[str] = Counter()
        self._example: dict[str, str] = {}

    def add(self, names: pa.StringArray, reasons: pa.StringArray) -> None:
        """Count the pictures of a batch that have a reason."""
        if reasons.null_count < len(reasons):
            for name, reason in zip(names.to_pylist(), reasons.to_pylist(), strict=True):
                if reason:
                    self._counts[reason] += 1
                    self._example.setdefault(reason, name)

    def notes(self) -> list[str]:
        """A line for each reason, the commonest first."""
        found = [
            f"the trainer would misread {count:,} text{'s' if count > 1 else ''}: {reason} "
            f"({self._example[reason]}{' …' if count > 1 else ''})"
            for reason, count in self._counts.most_common()
        ]
        if found and not self.baked:
            found.append(
                "whole texts, epoch by epoch, it reads as they are, unless they have several lines: -o bake_epochs=N"
            )
        return found


class _Lacking:
    """The names of pictures that lack something that the recipe reads, in the shape of seed 000's missing.json."""

    def __init__(self) -> None:
        self._names: dict[str, list[pa.StringArray]] = {"tags": [], "caption": [], "latent": []}

    def add(self, names: pa.StringArray, **columns: pa.Array) -> None:
        for kind, column in columns.items():
            if column.null_count and not pa.types.is_null(column.type):  # of that type, the recipe reads none
                self._names[kind].append(names.filter(pc.is_null(column)))

    def counts(self) -> dict[str, int]:
        """How many lack what."""
        return {f"without_{kind}": sum(map(len, found)) for kind, found in self._names.items() if found}

    def write(self, handle: IO[bytes]) -> None:
        """One object of three lists."""
        between = b"{"
        for kind, found in self._names.items():
            handle.write(between + json.dumps(kind).encode() + b": [")
            skip = 2  # the first comma
            for names in found:
                listed = pc.binary_join_element_wise(', "', json_columns.escaped(names), '"', "")
                handle.write(json_columns.text(listed)[skip:])
                skip = 0
            between = b"], "
        handle.write(b"]}\n")
