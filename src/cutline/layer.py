"""A layer: everything that one annotator, source or person ever said about the pictures of a dataset.

A layer is a folder of immutable Parquet parts. Nothing is edited: a writer adds parts, each written whole and
published by one rename, and a reader takes for each picture the newest good row. So many processes may write
at once without a lock, and killing any of them leaves whole parts or none.

A part is called `<n>-<random>.parquet`, n one above the highest there was: no clock decides what is newest. A row's
rank is that of the part it was first written in, and it keeps it when parts are folded or compacted, so that neither
ever changes which row wins.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cutline import __version__, schemas
from cutline.files import storage_error, sync, whole_file
from cutline.options import CutlineError, canonical, digest

FLUSH_ROWS = 50_000
FOLD_AT = 32
"""A writer folds its own parts once this many of a size exist; a size is a power of this number."""
FOLD_BELOW = 1_000_000
"""Parts of this many rows are large enough to stay as they are."""

ROW_GROUP = 16_384
"""Rows. A reader that wants some keys reads only the row groups that may hold them."""

_PART = re.compile(r"(\d+)-([0-9a-f]{6})\.parquet")
_LAYER_NAME = re.compile(r"[a-z]+(/[\w.+-]+)*")
_METADATA = b"cutline"


class IdentityError(CutlineError):
    """The layer was made with other settings."""


@dataclass(frozen=True)
class Layer:
    """One layer below a dataset's `.cutline/layers` folder. Making one touches no disk."""

    home: Path
    name: str

    def __post_init__(self) -> None:
        schemas.kind(self.name)
        if not _LAYER_NAME.fullmatch(self.name) or {"retired", ".", ".."} & set(self.name.split("/")):
            raise CutlineError(f"'{self.name}' is no layer name; one looks like captions/florence-2")

    @property
    def folder(self) -> Path:
        """Where its parts are."""
        return self.home / self.name

    def parts(self) -> list[Path]:
        """The published parts, oldest first."""
        try:
            found = [name for name in os.listdir(self.folder) if _PART.fullmatch(name)]
        except FileNotFoundError:
            return []
        return [self.folder / name for name in sorted(found, key=lambda name: rank(Path(name)))]

    def info(self) -> dict[str, Any] | None:
        """What `layer.json` says: annotator, settings, identity. None for a layer that sources or people fill."""
        try:
            found: dict[str, Any] = json.loads((self.folder / "layer.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return found

    def write(self, annotator: str = "", settings: Mapping[str, Any] | None = None) -> LayerWriter:
        """Open the layer for adding rows. It becomes the annotator's with its first part.

        Args:
            annotator: who writes; with it, `settings` become the layer's identity.
            settings: those that can change what a row says (see `options.identity`).

        Raises:
            IdentityError: the layer was made by another annotator or with other settings.
        """
        if annotator:
            self.check(annotator, settings or {})
            return LayerWriter(self, claim=partial(self._claim, annotator, settings or {}))
        if (info := self.info()) is not None:
            raise IdentityError(
                f"layer {self.name} is written by {info['annotator']}; rows from elsewhere need a layer of their own"
            )
        return LayerWriter(self)

    def amend(self) -> LayerWriter:
        """Open the layer for rows that mend some of those it has, whoever wrote them."""
        return LayerWriter(self)

    def check(self, annotator: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Raise IdentityError where `write` would, and write nothing. Returns what `layer.json` has to say."""
        wanted: dict[str, Any] = {"annotator": annotator, "settings": dict(settings)}
        wanted["identity"] = digest(wanted)
        filled = bool(self.parts())  # asked first: an annotator's layer has its file before its first part
        found = self.info()
        if found is None and filled:
            raise IdentityError(
                f"layer {self.name} was filled by a source or a person; no annotator writes into it.\n"
                f"Write to a layer of your own: --as {self.name}-{annotator}"
            )
        if found is not None and found["identity"] != wanted["identity"]:
            raise IdentityError(self._difference(found, wanted))
        return wanted

    def _claim(self, annotator: str, settings: Mapping[str, Any]) -> None:
        """Make `layer.json`, or check that ours is the same."""
        wanted = self.check(annotator, settings)
        if self.info() is None:
            self._stand(wanted)
        self.check(annotator, settings)  # another may have come first, just now

    def _stand(self, wanted: dict[str, Any]) -> None:
        """Publish `layer.json`; of two that come at once, the first one's stands."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(self.folder, error) from error
        text = json.dumps({**wanted, "cutline": __version__}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        draft = self.folder / f".layer-{secrets.token_hex(6)}.json"
        with whole_file(draft, "w") as handle:
            handle.write(text)
        try:
            os.link(draft, self.folder / "layer.json")
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            os.replace(draft, self.folder / "layer.json")
        draft.unlink(missing_ok=True)

    def _difference(self, found: dict[str, Any], wanted: dict[str, Any]) -> str:
        lines = []
        if found["annotator"] != wanted["annotator"]:
            lines.append(f"  annotator: {found['annotator']} made it, now {wanted['annotator']}")
        else:
            before, now = _flat(found["settings"]), _flat(wanted["settings"])
            lines += [
                f"  {name}: {canonical_value(before.get(name))} made it, now {canonical_value(now.get(name))}"
                for name in sorted({*before, *now})
                if before.get(name) != now.get(name)
            ]
        return (
            f"layer {self.name} was made with other settings, and rows of two kinds never mix:\n"
            + "\n".join(lines)
            + f"\nGive the new rows a layer of their own: --as {self.name}-b"
        )


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings with those of tables within them beside the others, `prompt.user`, so that a difference is small."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, dict) and value else {before + name: value}
    return flat


def canonical_value(value: Any) -> str:
    """A setting as people read it in an error."""
    return canonical({"": value})[4:-1]


def rank(part: Path) -> int:
    """The order of parts as one number, from the name alone: n, then the random digits (which break a tie).

    Below 2**60 for any n that a folder of files can reach.
    """
    match = _PART.fullmatch(part.name)
    if match is None:
        raise ValueError(f"{part} is not the name of a part")
    return int(match[1]) << 24 | int(match[2], 16)


def publish(folder: Path, table: pa.Table) -> Path:
    """Write one part, sorted by key, durable when this returns. Raises StorageError and leaves nothing torn."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(folder, error) from error
    order = pc.sort_indices(table, sort_keys=[("key", "ascending")])
    table = table.take(order)
    return publish_file(folder, lambda path: write_part(path, table.schema, table.to_batches(ROW_GROUP)))


def write_part(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write batches, sorted by key, as the file of a part; its footer says whether it is `plain`."""
    plain, last = True, None
    with pq.ParquetWriter(path, schema.remove_metadata(), compression="zstd") as writer:
        for batch in _regrouped(batches):
            keys = batch.column("key")
            plain = plain and not pc.any(batch.column("deleted")).as_py() and keys[0].as_py() != last
            plain = plain and not pc.any(pc.equal(keys.slice(1), keys.slice(0, len(keys) - 1))).as_py()
            last = keys[-1].as_py()
            writer.write_table(batch, row_group_size=ROW_GROUP)
        writer.add_key_value_metadata({_METADATA: json.dumps(_provenance() | {"plain": plain})})


def fit(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """A batch with the columns of a schema, those that it lacks null."""
    arrays = [
        batch.column(field.name).cast(field.type)
        if field.name in batch.schema.names
        else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _regrouped(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The rows of a stream in tables of `ROW_GROUP` rows."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        waiting.append(batch)
        rows += batch.num_rows
        while rows >= ROW_GROUP:
            table = pa.Table.from_batches(waiting)
            yield table.slice(0, ROW_GROUP).combine_chunks()
            waiting = table.slice(ROW_GROUP).to_batches()
            rows -= ROW_GROUP
    if rows:
        yield pa.Table.from_batches(waiting).combine_chunks()


@dataclass(frozen=True)
class Extent:
    """What a part's footer says, so that many parts need not be opened."""

    first: str
    last: str
    plain: bool
    """Each key stands once in it, and it deletes nothing: beside no other part, its rows are those that count."""
    tied: bool
    """Some of its rows are about a certain content."""
    rows: int


@lru_cache(maxsize=65_536)
def extent(part: Path) -> Extent:
    """The extent of a part; a part never changes. Raises FileNotFoundError where it has gone."""
    footer = pq.read_metadata(part)
    groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
    ends = [group.column(0).statistics for group in groups]
    said = json.loads((footer.metadata or {}).get(_METADATA, b"{}"))
    known = bool(ends) and all(end is not None and end.has_min_max for end in ends)
    columns = {footer.row_group(0).column(i).path_in_schema: i for i in range(footer.num_columns)} if groups else {}
    tied = any(
        (found := group.column(columns["content"]).statistics) is None or found.null_count < group.num_rows
        for group in groups
    )
    return Extent(
        first=min(end.min for end in ends) if known else "",
        last=max(end.max for end in ends) if known else chr(0x10FFFF),
        plain=bool(said.get("plain")) and known,
        tied=tied,
        rows=footer.num_rows,
    )


def within(parts: Iterable[Path], low: str | None, high: str | None) -> list[Path]:
    """The parts that may hold keys from `low` up to, and without, `high`. None is no bound."""
    found = ((part, extent(part)) for part in parts)
    return [
        part for part, there in found if (high is None or there.first < high) and (low is None or there.last >= low)
    ]


def disjoint(parts: Iterable[Path]) -> bool:
    """Whether all parts are plain and no two share keys: then every row counts."""
    extents = sorted((extent(part) for part in parts), key=lambda there: there.first)
    return all(there.plain for there in extents) and all(
        before.last < after.first for before, after in pairwise(extents)
    )


def publish_file(folder: Path, write: Any) -> Path:
    """Publish as a new part what `write(path)` puts at a hidden path. The part's number is chosen at the rename."""
    hidden = folder / f".part-{secrets.token_hex(6)}.tmp"
    try:
        write(hidden)
        with hidden.open("rb") as handle:
            os.fsync(handle.fileno())
        path = folder / _next_name(folder)
        os.rename(hidden, path)
        sync(folder)
    except OSError as error:
        raise storage_error(folder, error) from error
    finally:
        with contextlib.suppress(OSError):
            hidden.unlink()
    return path


def _next_name(folder: Path) -> str:
    numbers = [int(match[1]) for name in os.listdir(folder) if (match := _PART.fullmatch(name))]
    return f"{max(numbers, default=0) + 1:06d}-{secrets.token_hex(3)}.parquet"


def _provenance() -> dict[str, str]:
    import platform

    return {"cutline": __version__, "machine": platform.node(), "python": platform.python_version()}


def retire(parts: Iterable[Path]) -> list[Path]:
    """Move parts whose rows live on elsewhere into `retired/`, where a scan that has them open may finish."""
    moved = []
    for part in parts:
        retired = part.parent / "retired"
        try:
            retired.mkdir(exist_ok=True)
        except OSError as error:
            raise storage_error(retired, error) from error
        with contextlib.suppress(FileNotFoundError):  # another process was first
            os.rename(part, retired / part.name)
            moved.append(retired / part.name)
    return moved


class LayerWriter:
    """Adds rows to a layer: `add` gathers, `flush` publishes one part. A context manager that flushes at its end.

    It flushes by itself every `FLUSH_ROWS` rows, and `tick` does so ten seconds after the first waiting row.
    """

    def __init__(self, layer: Layer, *, flush_seconds: float = 10.0, claim: Callable[[], None] = lambda: None) -> None:
        self.layer = layer
        self._claim = claim
        self.flush_seconds = flush_seconds
        self.published = 0
        self._schema = schemas.schema(layer.name)
        self._columns = set(self._schema.names)
        self._rows: dict[str, dict[tuple[bool, str | None], dict[str, Any]]] = {}
        """Waiting rows: key -> (whether it deletes, content) -> row."""
        self.waiting = 0
        """Rows added and not yet published."""
        self._since = 0.0
        self._own: dict[int, list[Path]] = {}
        self._retired: dict[int, list[Path]] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Add one row (`key` and any columns of the layer's kind); it is on disk after the next flush.

        Raises:
            CutlineError: for a column that this kind of layer does not have.
        """
        if unknown := row.keys() - self._columns:
            names = ", ".join(schemas.columns(self.layer.name))
            raise CutlineError(f"layer {self.layer.name} has no column {sorted(unknown)}; it has: key, {names}")
        if not self._rows:
            self._since = time.monotonic()
        mine = self._rows.setdefault(row["key"], {})
        self.waiting -= len(mine)
        if row.get("deleted"):  # a part is one moment: what it deletes and what comes after are told apart here
            mine.clear()
        content = None if self.layer.name == "pictures" else row.get("content")  # a picture is one thing at a time
        slot = (bool(row.get("deleted")), content)
        if row.get("error") is None or slot not in mine or mine[slot].get("error") is not None:
            mine[slot] = dict(row)
        self.waiting += len(mine)
        if self.waiting >= FLUSH_ROWS:
            self.flush()

    def delete(self, key: str) -> None:
        """Clear a key: what earlier parts say about it is forgotten."""
        self.add({"key": key, "deleted": True})

    def tick(self) -> bool:
        """Flush if the oldest waiting row has waited long enough; whether it did."""
        if self._rows and time.monotonic() - self._since >= self.flush_seconds:
            self.flush()
            return True
        return False

    def flush(self) -> None:
        """Publish the waiting rows as one part. Raises StorageError; the rows then wait on."""
        if self._rows:
            self.add_table(_table([row for mine in self._rows.values() for row in mine.values()], self._schema))
            self._rows.clear()
            self.waiting = 0

    def add_table(self, table: pa.Table) -> None:
        """Publish a table as one part at once. Columns that it lacks are null."""
        if table.num_rows == 0:
            return
        table = pa.Table.from_batches([fit(batch, self._schema) for batch in table.to_batches()])
        self._claim()
        part = publish(self.layer.folder, table)
        self.published += table.num_rows
        self._fold(part, table.num_rows)

    def _fold(self, part: Path, rows: int) -> None:
        """Keep the number of small parts down: 32 of a size become one of the next."""
        size = 0
        while FOLD_AT ** (size + 1) <= rows:
            size += 1
        same = self._own.setdefault(size, [])
        same.append(part)
        if len(same) < FOLD_AT or rows >= FOLD_BELOW:
            return
        self._own[size] = []
        try:
            table = pa.concat_tables(ranked(path) for path in same)
        except FileNotFoundError:  # a compact took some of them meanwhile; it has done the work
            return
        folded = publish(self.layer.folder, table)
        for old in self._retired.get(size, []):
            with contextlib.suppress(FileNotFoundError):
                old.unlink()
        self._retired[size] = retire(same)
        self._fold(folded, table.num_rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.flush()
        except CutlineError:
            if error is None:  # otherwise the first error is the one to tell
                raise


def ranked(part: Path) -> pa.Table:
    """A part's rows, each with its rank written out."""
    table = pq.ParquetFile(part).read()
    index = table.schema.get_field_index("rank")
    return table.set_column(index, "rank", pc.fill_null(table.column("rank"), rank(part)))


def _table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table; one that does not fit the schema becomes a row with the error `bad_row`."""
    try:
        return pa.Table.from_pylist(rows, schema=schema)
    except (pa.ArrowException, UnicodeError, TypeError, ValueError, OverflowError):
        return pa.concat_tables(_one_row(row, schema) for row in rows)


def _one_row(row: dict[str, Any], schema: pa.Schema) -> pa.Table:
    try:
        return pa.Table.from_pylist([row], schema=schema)
    except (pa.ArrowException, UnicodeError, TypeError, ValueError, OverflowError) as error:
        key = str(row["key"]).encode("utf-8", "replace").decode()
        bad = {"key": key, "content": row.get("content"), "error": "bad_row", "detail": ascii(str(error))}
        return pa.Table.from_pylist([bad], schema=schema)


def heads_sql(parts: Sequence[Path], *, per_content: bool = False, now: str = "", only: str = "true") -> str:
    """SQL for which rows of these parts count: one column `id`, the row's place (`row_id_sql`).

    Of a key's rows, those of earlier parts than its newest `deleted` row are forgotten; a row without error beats
    one with; then the higher rank wins. Texts take no part in this, only keys and ranks.

    Args:
        parts: the parts to look at; the order must be that of the query that uses the ids.
        per_content: keep the best row of each (key, content) instead of each key.
        now: SQL of (key, content) that says what each picture is now; rows about another content do not count.
        only: an SQL condition over `key`: which keys to look at.
    """
    join = f"left join ({now}) as now using (key)" if now else ""
    match = "and (rows.content is null or now.content is null or rows.content = now.content)" if now else ""
    group = "rows.key, rows.content" if per_content else "rows.key"
    tie = "case when rows.content is not null then 2 else 0 end + case when deleted then 0 else 1 end"  # in one part
    return f"""
        with rows as (
            select key, content, error is null as good, coalesce(deleted, false) as deleted,
                {rank_sql(parts)} as rank, {row_id_sql()} as id
            from {read_sql(parts)} where {only}
        ), cuts as (select key, max(rank) as cut from rows where deleted group by key)
        select arg_max(id, (good::bigint << 62) + (rows.rank << 2) + {tie}) as id
        from rows left join cuts using (key) {join}
        where (cut is null or rows.rank >= cut) and not (deleted and good) {match}
        group by {group}"""


def rank_sql(parts: Sequence[Path]) -> str:
    """SQL for a row's rank: its own, or that of the part it is in."""
    ranks = ", ".join(str(rank(part)) for part in parts)
    return f"coalesce(rank, ([{ranks}]::bigint[])[file_index::bigint + 1])"


def row_id_sql() -> str:
    """SQL for a row's place among the parts of one query: which part, which row."""
    return "((file_index::bigint << 40) + file_row_number::bigint)"


def read_sql(parts: Sequence[Path]) -> str:
    """SQL that reads these parts."""
    names = ", ".join(quote(str(part)) for part in parts)
    return f"read_parquet([{names}])"


def quote(text: str) -> str:
    """A string as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def layers_below(home: Path) -> Iterator[Layer]:
    """All layers in a dataset's layers folder, sorted by name."""
    for folder, folders, files in os.walk(home):
        folders.sort()
        if "retired" in folders:
            folders.remove("retired")
        name = Path(folder).relative_to(home).as_posix()
        if "layer.json" in files or any(_PART.fullmatch(file) for file in files):
            with contextlib.suppress(CutlineError):  # a folder that somebody else put there
                yield Layer(home, name)
