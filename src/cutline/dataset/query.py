"""Asking a dataset: every layer a DuckDB view of its rows that count, and answers that survive a compact.

The connection is in memory and only reads. A view names the parts there were when it was made; where a compact or
a fold has since moved one away, the answer is asked for again over the new parts.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from cutline import schemas
from cutline.layer import Layer, heads_sql, identifier, layers_below, quote, rank_sql, read_sql, row_id_sql
from cutline.options import CutlineError

T = TypeVar("T")
TRIES = 20
BATCH_ROWS = 2048


class QueryError(CutlineError):
    """The database refused a query: its own words, made short."""


class Views:
    """One DuckDB connection with a view per layer, kept in step with the parts on disk."""

    def __init__(self, home: Path, spill: Path) -> None:
        self.home = home
        self._connection = duckdb.connect()
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
        self._connection.execute(f"set memory_limit = '{max(memory, 1 << 30)}B'")
        self._connection.execute(f"set temp_directory = {quote(str(spill))}")
        self._connection.execute("set preserve_insertion_order = false")
        self._known: dict[str, list[Path]] = {}
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Make the views again whose parts have changed."""
        with self._lock:
            found = {layer.name: layer.parts() for layer in layers_below(self.home)}
            found.setdefault("pictures", [])
            moved = found["pictures"] != self._known.get("pictures")
            for name, parts in found.items():
                if moved or parts != self._known.get(name):
                    self._connection.execute(f"create or replace view {identifier(name)} as {self._view(name, found)}")
            for name in self._known.keys() - found.keys():
                self._connection.execute(f"drop view {identifier(name)}")
            self._known = found

    def _view(self, name: str, parts: dict[str, list[Path]]) -> str:
        columns = [field.name for field in schemas.schema(name) if field.name not in schemas.BOOKKEEPING]
        extra = ", texts[1] as text" if schemas.kind(name) == "captions" else ""
        if not parts[name]:
            typed = ", ".join(
                f"null::{_sql_type(schemas.schema(name).field(column).type)} as {identifier(column)}"
                for column in columns
            )
            return f"select *{extra} from (select {typed}) where false"
        names = ", ".join(identifier(column) for column in columns)
        heads = heads_sql(parts[name], now=self.now(parts) if name != "pictures" else "")
        return f"select {names}{extra} from {read_sql(parts[name])} where {row_id_sql()} in ({heads})"

    def now(self, parts: dict[str, list[Path]] | None = None) -> str:
        """SQL of (key, content): what each picture is at present. Empty where there are no pictures."""
        pictures = (parts or self._known).get("pictures")
        if not pictures:
            return ""
        return f"select key, content from {read_sql(pictures)} where {row_id_sql()} in ({heads_sql(pictures)})"

    def parts(self, layer: str) -> list[Path]:
        """The parts that the views were made over."""
        return self._known.get(layer, [])

    def ask(self, sql: Callable[[], str], fetch: Callable[[duckdb.DuckDBPyRelation], T]) -> T:
        """Run what `sql()` gives and fetch its answer; where a part has vanished meanwhile, once more.

        Raises:
            QueryError: in the database's words, for a query that it cannot understand or do.
        """

        def once() -> T:
            answer = self._connection.cursor().sql(sql())
            if answer is None:
                raise QueryError("that statement has no answer; ask with select, from, describe or summarize")
            return fetch(answer)

        return self.again(once)

    def again(self, once: Callable[[], T]) -> T:
        """Do something over fresh views; where a part has vanished meanwhile, do it again. Raises QueryError."""
        for attempt in range(TRIES):
            try:
                self.refresh()
                return once()
            except duckdb.IOException as error:
                if not _vanished(error) or attempt == TRIES - 1:
                    raise QueryError(str(error)) from error
            except duckdb.Error as error:
                raise QueryError(str(error)) from None
            except RuntimeError as error:
                if "interrupted" not in str(error).lower():
                    raise
                raise KeyboardInterrupt from None  # DuckDB heard Ctrl-C first
        raise AssertionError("unreachable")

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of one's own to the same views, for temporary tables."""
        return self.again(lambda: self._connection.cursor())


def _vanished(error: Exception) -> bool:
    text = str(error)
    return "No such file" in text or "No files found" in text or "Cannot open file" in text


def _sql_type(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return _sql_type(kind.value_type) + "[]"
    return {
        pa.string(): "varchar",
        pa.int32(): "integer",
        pa.int64(): "bigint",
        pa.uint64(): "ubigint",
        pa.float64(): "double",
    }[kind]


class Relation:
    """A question that has not been asked yet. Each method asks it anew, over the layers as they then are."""

    def __init__(self, views: Views, sql: Callable[[], str]) -> None:
        self._views = views
        self._sql = sql

    @property
    def columns(self) -> list[str]:
        """The names of the answer's columns."""
        return self._views.ask(lambda: f"select * from ({self._sql()}) limit 0", lambda done: list(done.columns))

    def fetchall(self) -> list[tuple[Any, ...]]:
        """All rows, as tuples."""
        return self._views.ask(self._sql, lambda done: done.fetchall())

    def fetchone(self) -> tuple[Any, ...] | None:
        """The first row, or None."""
        return next(iter(self._views.ask(self._sql, lambda done: done.limit(1).fetchall())), None)

    def arrow(self) -> pa.Table:
        """All rows, as an Arrow table."""
        return self._views.ask(self._sql, lambda done: done.to_arrow_table())

    to_arrow_table = arrow

    def count(self) -> int:
        """How many rows there are."""
        return int(self._views.ask(lambda: f"select count(*) from ({self._sql()})", lambda done: done.fetchall())[0][0])

    def batches(self, rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """The rows as a stream of record batches, in bounded memory.

        The query should end in an `order by` (those of `scan` and `missing` do): then everything has been read before
        the first batch comes, and no compact can break it off in the middle.
        """

        def start(done: duckdb.DuckDBPyRelation) -> tuple[pa.RecordBatchReader, pa.RecordBatch | None]:
            reader = done.to_arrow_reader(rows)
            return reader, next(reader, None)

        reader, first = self._views.ask(self._sql, start)
        if first is not None:
            yield first
            yield from reader

    def __str__(self) -> str:
        """The answer as a table, shortened to the terminal."""
        return self._views.ask(self._sql, str)

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Give itself to anything that reads Arrow (`pa.table(relation)`, pandas, Polars)."""
        return self.arrow().__arrow_c_stream__(requested_schema)


def done_sql(parts: list[Path], *, condition: str) -> str:
    """SQL of (key, content) for which a layer has any row that counts and meets `condition`."""
    if not parts:
        return "select null::varchar as key, null::varchar as content where false"
    ranked = rank_sql(parts)
    source = read_sql(parts)
    return f"""
        select key, content from (select *, {ranked} as ranked from {source}) as rows
        left join (select key, max({ranked}) as cut from {source} where deleted group by key) using (key)
        where (cut is null or ranked >= cut) and not (coalesce(deleted, false) and error is null) and ({condition})"""


def layer_struct(layer: Layer | str) -> str:
    """SQL that packs a layer's columns into one struct."""
    name = layer if isinstance(layer, str) else layer.name
    fields = ", ".join(
        f"{identifier(column)} := {identifier(column)}" for column in [*schemas.columns(name), "content", "error"]
    )
    return f"struct_pack({fields})"
