"""Asking a dataset: every layer a DuckDB view of its rows that count, and answers that survive a compact.

The connection is in memory and only reads. A view names the parts there were when it was made; where a compact or
a fold has since moved one away, the answer is asked for again over the new parts.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from cutline import schemas
from cutline.dataset.cuts import bounds_sql, read_cuts
from cutline.layer import (
    disjoint,
    extent,
    heads_sql,
    identifier,
    layers_below,
    quote,
    rank_sql,
    read_sql,
    row_id_sql,
    within,
)
from cutline.options import CutlineError

T = TypeVar("T")
TRIES = 20
BATCH_ROWS = 2048


class QueryError(CutlineError):
    """The database refused a query: its own words, made short."""


def bound(connection: duckdb.DuckDBPyConnection, spill: Path) -> None:
    """Keep a connection within memory: what does not fit goes to the `spill` folder, or where CUTLINE_SPILL says.

    CUTLINE_MEMORY sets how much it may take (`8GB`); by default a quarter of the machine's, but at most 768 MiB.

    Raises:
        CutlineError: CUTLINE_MEMORY says nothing that is an amount.
    """
    quarter = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    memory = os.environ.get("CUTLINE_MEMORY") or f"{min(quarter, 768 << 20)}B"
    try:
        connection.execute(f"set memory_limit = {quote(memory)}")
    except duckdb.Error:
        raise CutlineError(f"CUTLINE_MEMORY={memory} is no amount of memory; one looks like 4GB") from None
    connection.execute(f"set temp_directory = {quote(os.environ.get('CUTLINE_SPILL') or str(spill))}")


class Views:
    """One DuckDB connection with a view per layer, kept in step with the parts on disk."""

    def __init__(self, home: Path, spill: Path) -> None:
        self.home = home
        self._connection = duckdb.connect()
        bound(self._connection, spill)
        self._connection.execute("set preserve_insertion_order = false")
        self._known: dict[str, list[Path]] = {}
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Make the views again whose parts have changed."""
        with self._lock:
            found = {layer.name: layer.parts() for layer in layers_below(self.home)}
            found.setdefault("pictures", [])
            moved = found["pictures"] != self._known.get("pictures")
            before, self._known = self._known, found
            try:
                for name, parts in found.items():
                    if moved or parts != before.get(name):
                        self._connection.execute(f"create or replace view {identifier(name)} as {self.view(name)}")
                for name in before.keys() - found.keys():
                    self._connection.execute(f"drop view {identifier(name)}")
            except BaseException:
                self._known = before  # not all views are over these parts: they are made again
                raise

    def view(self, name: str, low: str | None = None, high: str | None = None) -> str:
        """SQL for the rows of a layer that count, with keys from `low` up to, and without, `high`."""
        columns = [field.name for field in schemas.schema(name) if field.name not in schemas.BOOKKEEPING]
        extra = ", texts[1] as text" if schemas.kind(name) == "captions" else ""
        parts = self._within(name, low, high)
        if not parts:
            typed = ", ".join(
                f"null::{_sql_type(schemas.schema(name).field(column).type)} as {identifier(column)}"
                for column in columns
            )
            return f"select *{extra} from (select {typed}) where false"
        names = ", ".join(identifier(column) for column in columns)
        now = self.now(low, high) if name != "pictures" and any(extent(part).tied for part in parts) else ""
        rows, bounds = read_sql(parts), bounds_sql(low, high)
        if not disjoint(parts):
            heads = heads_sql(parts, now=now, only=bounds)
            return f"select {names}{extra} from {rows} where {bounds} and {row_id_sql()} in ({heads})"
        if not now:
            return f"select {names}{extra} from {rows} where {bounds}"
        return f"""select said.*{extra} from (select {names} from {rows} where {bounds}) as said
            left join ({now}) as now using (key)
            where said.content is null or now.content is null or said.content = now.content"""

    def now(self, low: str | None = None, high: str | None = None) -> str:
        """SQL of (key, content): what each picture is at present. Empty where no picture's content is known."""
        parts = self._within("pictures", low, high)
        if not any(extent(part).tied for part in parts):
            return ""
        bounds = bounds_sql(low, high)
        heads = "" if disjoint(parts) else f"and {row_id_sql()} in ({heads_sql(parts, only=bounds)})"
        return f"select key, content from {read_sql(parts)} where {bounds} {heads}"

    def _within(self, name: str, low: str | None, high: str | None) -> list[Path]:
        parts = self._known.get(name, [])
        return parts if low is None and high is None else within(parts, low, high)

    def slices(self) -> list[tuple[str | None, str | None]]:
        """The ranges of keys to walk through, one after the other, that together hold all."""
        ends = [None, *read_cuts(self.home), None]
        return list(pairwise(ends))

    def names(self) -> list[str]:
        """The layers that the views were made over."""
        return list(self._known)

    def reader(self, sql: str) -> pa.RecordBatchReader:
        """The answer to a query over the views as they are, as a stream; for use within `again`."""
        return self._connection.cursor().sql(sql).to_arrow_reader(65_536)

    def table(self, sql: str) -> pa.Table:
        """The answer to a query over the views as they are; for use within `again`."""
        return self._connection.cursor().sql(sql).to_arrow_table()

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
            except FileNotFoundError:  # a footer was to be read
                if attempt == TRIES - 1:
                    raise
            except RuntimeError as error:
                if "interrupted" not in str(error).lower():
                    raise
                raise KeyboardInterrupt from None  # DuckDB heard Ctrl-C first
        raise AssertionError("unreachable")

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of one's own to the same views, for temporary tables."""
        return self.again(lambda: self._connection.cursor())


def started(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """A stream whose first batch is fetched at once, so that what can fail for a vanished part fails here.

    The query must end in an `order by`: then nothing is read later.
    """
    first = next(reader, None)
    return chain([] if first is None else [first], reader)


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

        The query should end in an `order by` (that of `missing` does): then everything has been read before
        the first batch comes, and no compact can break it off in the middle.
        """

        yield from self._views.ask(self._sql, lambda done: started(done.to_arrow_reader(rows)))

    def keys(self) -> pa.LargeStringArray:
        """The column `key` of the answer, sorted, each once."""
        table = Relation(self._views, lambda: f"select distinct key from ({self._sql()}) order by key").arrow()
        return table.column("key").cast(pa.large_string()).combine_chunks()

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
