"""The metadata file that kohya's trainers load."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cutline.exports.manifest import Manifest
from cutline.exports.writing import refuse, write_file
from cutline.formats import json_columns
from cutline.options import OptionError, option

_SIZE = pa.list_(pa.int32(), 2)


@dataclass(frozen=True)
class Kohya:
    """One `.json`, `.jsonl` or `.parquet` file with the caption and the tags of every picture.

    The first two are for a trainer's `metadata_file`. A picture is named by its path relative to the dataset, which is
    the trainer's `image_dir`; one that lies elsewhere by its absolute path; one that is known from metadata only by its
    key. The recipe's text is not used: the trainer joins caption and tags itself. Where the recipe reads latents, each
    entry has its `train_resolution`. What a picture lacks of all that is listed in `missing.json`, beside the file.
    """

    image_size: bool = option(
        True, "write each picture's size as the trainer sees it, which ignores EXIF; without, it opens every picture"
    )
    legacy: bool = option(False, "name pictures by their bare stems, for old tools; today's trainers cannot load that")
    caption_from_tags: bool = option(False, "let the tags stand in for a caption that is missing")
    missing: bool = option(True, "list in missing.json, beside the file, which pictures lack tags, caption or latent")

    beside: ClassVar[tuple[str, ...]] = ("missing.json",)
    columns: ClassVar[tuple[str, ...]] = (
        *("uri", "offset", "width", "height", "orientation", "caption", "tags", "train_width", "train_height"),
    )

    def write(self, rows: Iterator[pa.RecordBatch], out: Path, *, dry_run: bool = False) -> Manifest:
        """Write the file, whole or not at all; pictures without words are left out and counted."""
        if out.suffix not in (".json", ".jsonl", ".parquet") or out.is_dir():
            raise OptionError(f"kohya writes one file: {out} must end with .json, .jsonl or .parquet")
        if out.name == "missing.json" and self.missing:
            raise OptionError("missing.json is where kohya lists what is missing; call the file something else")
        counts = Counter(written=0, unchanged=0, without_text=0)
        lacking = _Lacking()

        def produce(handle: IO[bytes]) -> None:
            writer = {".json": _write_object, ".jsonl": _write_lines, ".parquet": _write_parquet}[out.suffix]
            writer(handle, self._entries(rows, counts, lacking))

        xxh128, changed, diff = write_file(out, produce, dry_run=dry_run)
        beside: dict[str, str] = {}
        if self.missing and not dry_run:
            beside["missing.json"], _, _ = write_file(out.with_name("missing.json"), lacking.write, dry_run=False)
        counts["written" if changed else "unchanged"] = counts.pop("entries", 0)
        notes = []
        if archived := counts.pop("archived", 0):
            notes.append(f"{archived:,} of these pictures are inside archives, where no trainer of kohya's finds them")
        return Manifest("kohya", out, dict(counts) | lacking.counts(), xxh128, beside, diff, notes)

    def _entries(
        self, rows: Iterator[pa.RecordBatch], counts: Counter[str], lacking: _Lacking
    ) -> Iterator[pa.RecordBatch]:
        """name, caption, tags, image_size, train_resolution of those pictures that have words."""
        given: list[pa.RecordBatch] = []
        renamed = False
        for batch in rows:
            caption, tags = batch.column("caption"), batch.column("tags")
            uri = batch.column("uri")
            name = _stems(uri) if self.legacy else uri
            lacking.add(name, tags=tags, caption=caption, latent=batch.column("train_width"))
            caption, tags = caption.cast(pa.string()), tags.cast(pa.string())
            if self.caption_from_tags:
                caption = pc.coalesce(caption, tags)
            turned = pc.fill_null(pc.greater_equal(batch.column("orientation"), 5), False)
            width, height = batch.column("width"), batch.column("height")
            if pc.any(turned).as_py():
                width, height = pc.if_else(turned, height, width), pc.if_else(turned, width, height)
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
