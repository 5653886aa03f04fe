"""The metadata tables of boorus: which tags, rating and score each post has, by the million.

Nothing here goes through posts one by one. CSV files become Parquet first, in a temporary folder; DuckDB then finds the
newest row of every post and streams what is wanted, and the tags of many posts are rewritten together (`tags.TagRows`).
"""

from __future__ import annotations

import glob
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cutline import schemas
from cutline.dataset import Found, KeyRule
from cutline.dataset.query import bound
from cutline.files import storage_error
from cutline.formats import booru, delimited, sidecar
from cutline.layer import identifier, quote
from cutline.options import CutlineError, option
from cutline.tags import Aliases, Implications, TagRows, Vocabulary, words

FORMS = (".parquet", ".csv", ".csv.gz", ".tsv", ".tsv.gz")
"""How the names of tables end."""

BATCH = 50_000
"""Posts."""

_SPACE = "".join(character for character in map(chr, range(0x3001)) if character.isspace())


@dataclass(frozen=True)
class Booru:
    """Posts out of a booru's metadata tables: Parquet, CSV or TSV files. A picture's key is its post's id."""

    rule: ClassVar[KeyRule] = KeyRule("stem")

    path: Path = option(help="a table, a folder of tables, or a pattern such as 'pages/*.csv'")
    map: str = option("", "what its columns mean: the name of a column map or a TOML file; else told by their names")
    layer: str = option("", "the tags go to tags/<layer>; by default the map says")
    vocabulary: Path | None = option(None, "a table of tags with their categories, for tags that come without")
    aliases: Path | None = option(None, "a table of tag aliases: tags get the names that count")
    implications: Path | None = option(None, "a table of tag implications: what a post's tags imply is added")
    old_ratings: bool = option(False, "the table is from before February 2022, when s meant safe: s becomes g")
    deleted: Literal["skip", "keep"] = option("skip", "what becomes of posts that are deleted or banned")

    def read(self) -> Iterator[Found]:
        """Stream the posts: what cannot be read of CSV files first, then table by table."""
        paths = _tables(self.path)
        known = self._map(paths[0])
        reader = _Reader(self, known)
        with tempfile.TemporaryDirectory(prefix="cutline-") as folder, duckdb.connect() as con:
            bound(con, Path(folder))
            con.execute("set timezone = 'UTC'")
            tables = []
            for number, path in enumerate(paths):
                if lacks := known.missing(there := columns(path)):
                    raise CutlineError(
                        f"{path} has no column {' and '.join(lacks)}, which the map {known.name} needs. "
                        f"It has: {', '.join(there) or 'none'}. Another map: -o map=…"
                    )
                parquet = path
                if not path.name.lower().endswith(".parquet"):
                    parquet = Path(folder) / f"{number}.parquet"
                    yield from reader.unpack(path, parquet)
                tables.append(_Table(con, number, path, parquet, known))
            reader.find_doubles(con, tables)
            for table in tables:
                yield from reader.posts(con, table)

    def _map(self, path: Path) -> booru.ColumnMap:
        if self.map:
            return booru.find(self.map)
        if found := booru.detect(there := columns(path)):
            return found
        raise CutlineError(
            f"cannot tell what the columns of {path} mean: {', '.join(there) or 'there are none'}. "
            f"Say it: -o map={' | '.join(booru.presets())}, or a TOML file of your own"
        )


def _tables(path: Path) -> list[Path]:
    """The files that a path, a folder or a pattern names, sorted."""
    path = path.expanduser()
    if path.is_dir():
        found = [file for file in path.iterdir() if file.name.lower().endswith(FORMS) and file.is_file()]
    elif path.exists():
        found = [path]
    else:
        found = [Path(name) for name in glob.glob(str(path), recursive=True)]
    if not found:
        raise CutlineError(f"there is no {path}" + (f" with {', '.join(FORMS)}" if path.is_dir() else ""))
    for file in found:
        if not file.name.lower().endswith(FORMS):
            raise CutlineError(f"{file} is none of {', '.join(FORMS)}, which are the tables that can be read")
    return sorted(found)


def columns(path: Path) -> list[str]:
    """The names of a table's columns."""
    if not path.name.lower().endswith(".parquet"):
        return delimited.header(path)
    try:
        return list(pq.read_schema(path).names)
    except (OSError, pa.ArrowInvalid) as error:
        raise CutlineError(f"cannot read {path}: {error}") from None


class _Table:
    """One table, and how its columns are asked for in SQL."""

    def __init__(self, con: duckdb.DuckDBPyConnection, number: int, path: Path, parquet: Path, known: booru.ColumnMap):
        self.number, self.path, self.known = number, path, known
        self.sql = f"read_parquet({quote(str(parquet))}, file_row_number = true)"
        try:
            types = con.sql(f"select column_name, column_type from (describe from {self.sql})").fetchall()
        except duckdb.Error as error:
            raise CutlineError(f"cannot read {path}: {error}") from None
        self.types: dict[str, str] = dict(types)
        self.place = "'line ' || line" if path != parquet else "'row ' || (file_row_number + 1)"

    def name(self) -> str:
        """SQL for the name of a post: its id as text; null where it has none."""
        column = str(self.known.column("id", self.types))
        name, kind = identifier(column), self.types[column]
        if kind in ("DOUBLE", "FLOAT"):  # what pandas makes of whole numbers among nulls
            return f"case when isfinite({name}) and {name} = trunc({name}) then {name}::hugeint::varchar end"
        if kind == "VARCHAR":
            text = f"trim({name}, E' \\t\\r\\n')"
            header = quote(column)  # pages joined with their headers
            return f"case when not regexp_matches({text}, '[\\x00\\n]') then nullif(nullif({text}, {header}), '') end"
        if "INT" not in kind or "[" in kind:
            raise CutlineError(f"{self.path}: the ids in its column {column} are {kind}, and neither text nor numbers")
        return f"{name}::varchar"

    def updated(self) -> str:
        """SQL for when a post was changed last, as a number."""
        column = self.known.column("updated", self.types)
        if column is None:
            return "null::bigint"
        text = f"{identifier(column)}::varchar"
        return f"coalesce(epoch_us(try_cast({text} as timestamptz)), try_cast({text} as bigint))"

    def number_of(self, meaning: str, kind: str) -> tuple[str, str]:
        """SQL for a number, and for whether something else stands in its place."""
        column = self.known.column(meaning, self.types)
        if column is None:
            return f"null::{kind}", "false"
        if self.types[column] in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT"):
            value = f"try_cast({identifier(column)} as {kind})"
            return value, f"{value} is null and {identifier(column)} is not null"
        text = f"trim({identifier(column)}::varchar)"
        whole = rf"regexp_full_match({text}, '[+-]?\d+(\.0*)?')"
        value = f"case when {whole} then try_cast(split_part({text}, '.', 1) as {kind}) end"
        return value, f"coalesce(lower({text}), '') not in ('', 'nan', 'null') and ({value}) is null"

    def rating(self, old: bool) -> tuple[str, str]:
        """SQL for g, s, q or e, and for whether there is something else."""
        column = self.known.column("rating", self.types)
        if column is None:
            return "null::varchar", "false"
        said = f"[{identifier(column)}::varchar]"
        if self.types[column].endswith("[]"):
            said = f"coalesce({identifier(column)}::varchar[], [])"
        said = f"[lower(trim(x)) for x in {said} if trim(x) <> '']"
        cases = " ".join(
            f"when list_contains({said}, {quote(word)}) then {quote('g' if old and rating == 's' else rating)}"
            for word, rating in self.known.ratings.items()
        )
        return f"case {cases} end", f"(case {cases} end) is null and len({said}) > 0"

    def deleted(self) -> str:
        """SQL for whether a post is gone from its booru."""
        flags = [name for name in self.known.columns.get("deleted", ()) if name in self.types]
        said = (f"lower({identifier(name)}::varchar) in ('true', 't', '1', 'yes', 'deleted')" for name in flags)
        return " or ".join(f"coalesce({one}, false)" for one in said) or "false"

    def tags(self, columns: tuple[str, ...]) -> str:
        """SQL for the tags in these columns together: one text, or a list."""
        kinds = {self.types[name] for name in columns}
        if kinds <= {"VARCHAR", '"NULL"'}:
            return f"concat_ws(' ', {', '.join(f'{identifier(name)}::varchar' for name in columns)})"
        if kinds <= {"VARCHAR[]", '"NULL"[]', '"NULL"'}:
            return " || ".join(f"coalesce({identifier(name)}::varchar[], [])" for name in columns)
        raise CutlineError(f"{self.path}: the tags in {' and '.join(columns)} are {', '.join(sorted(kinds))}, not text")

    def query(self, old_ratings: bool) -> str:
        """SQL for all that is wanted of the newest row of each post, and of rows without an id."""
        there = self.types
        asked = {"name": self.name(), "place": self.place, "deleted": self.deleted()}
        asked["rating"], asked["bad rating"] = self.rating(old_ratings)
        for meaning, kind in (
            ("score", "bigint"),
            ("fav_count", "bigint"),
            ("width", "integer"),
            ("height", "integer"),
        ):
            asked[meaning], asked[f"bad {meaning}"] = self.number_of(meaning, kind)
        asked["year"] = "null::integer"
        if posted := self.known.column("posted", there):
            text = f"{identifier(posted)}::varchar"
            asked["year"] = rf"try_cast(nullif(regexp_extract({text}, '\b((?:19|20)\d\d)\b', 1), '') as integer)"
        for category, columns in self.known.tags.items():
            asked[f"tags {category}"] = self.tags(columns)
        for category, name in self.known.counts.items():
            if name in there:
                asked[f"count {category}"] = f"try_cast({identifier(name)} as bigint)"
        for layer, name in self.known.captions.items():
            if name in there:
                asked[f"caption {layer}"] = f"{identifier(name)}::varchar"
        columns_sql = ", ".join(f"{sql} as {identifier(name)}" for name, sql in asked.items())
        return f"""select {columns_sql} from {self.sql} as post
            where not exists (from doubles where doubles.file = {self.number} and doubles.row = post.file_row_number)"""


class _Reader:
    """One reading of tables: what is known of tags, and the notes."""

    def __init__(self, source: Booru, known: booru.ColumnMap) -> None:
        self.source, self.known = source, known
        self.layer = f"tags/{source.layer or known.layer}" if known.tags else f"captions/{next(iter(known.captions))}"
        self.aliases = Aliases.read(source.aliases) if source.aliases else None
        self.implications = Implications.read(source.implications) if source.implications else None
        self.vocabulary = Vocabulary.read(source.vocabulary, known.site) if source.vocabulary else None
        self.columns = schemas.TAG_CATEGORIES if self.vocabulary else tuple(known.tags)
        self.notes: Counter[str] = Counter()
        for what, table in (("alias", self.aliases), ("implication", self.implications)):
            if table and table.ignored:
                self.notes[f"{what} that is not active, and not followed"] += table.ignored

    def unpack(self, path: Path, parquet: Path) -> Iterator[Found]:
        """Write a CSV file's columns as Parquet; what cannot be read of it is found at once."""
        wanted = [name for name in dict.fromkeys(columns(path)) if name in self.known.names]
        schema = pa.schema([*((name, pa.string()) for name in wanted), ("line", pa.int64())])
        try:
            with pq.ParquetWriter(parquet, schema, compression="lz4", use_dictionary=False) as writer:
                for rows in delimited.read(path, wanted):
                    if rows.table.num_rows:
                        writer.write_table(rows.table)
                    if rows.faults:
                        yield self._failed(
                            [f"line {fault.line} of {path.name}" for fault in rows.faults],
                            [fault.error for fault in rows.faults],
                            [fault.detail for fault in rows.faults],
                        )
        except OSError as error:
            raise storage_error(parquet.parent, error) from error

    def find_doubles(self, con: duckdb.DuckDBPyConnection, tables: list[_Table]) -> None:
        """Temporary table `doubles`: the rows of posts that have a newer one. Only ids and times are looked at."""

        def every(*, times: bool) -> str:
            return " union all ".join(
                f"select {table.number} as file, file_row_number as row, {table.name()} as name, "
                f"{table.updated() if times else 'null'} as updated from {table.sql}"
                for table in tables
            )

        try:
            con.execute(f"""
                create temp table double_names as
                select name from ({every(times=False)}) where name is not null group by name having count(*) > 1""")
            con.execute(f"""
                create temp table doubles as
                select file, row from (
                    select file, row, row_number() over (
                        partition by name order by updated desc nulls last, file desc, row desc) as nth
                    from ({every(times=True)}) semi join double_names using (name)
                ) where nth > 1""")
        except duckdb.Error as error:
            raise CutlineError(f"cannot read the ids of {self.source.path}: {error}") from None
        self._note("row about a post that has a newer one", con.sql("select count(*) from doubles").fetchall()[0][0])

    def posts(self, con: duckdb.DuckDBPyConnection, table: _Table) -> Iterator[Found]:
        """Stream a table."""
        try:
            for batch in con.sql(table.query(self.source.old_ratings)).to_arrow_reader(BATCH):
                yield from self._batch(table, batch)
        except duckdb.Error as error:
            raise CutlineError(f"cannot read {table.path}: {error}") from None
        notes, self.notes = dict(self.notes), Counter()
        yield Found(self.layer, pa.RecordBatch.from_pydict({"name": pa.array([], pa.string())}), notes)

    def _batch(self, table: _Table, batch: pa.RecordBatch) -> Iterator[Found]:
        if bad := pc.sum(pc.is_null(batch["name"])).as_py():
            nameless = batch.filter(pc.is_null(batch["name"]))
            where = [f"{place} of {table.path.name}" for place in nameless["place"].to_pylist()]
            yield self._failed(where, ["bad_name"] * bad, ["it has no id that is text or a whole number"] * bad)
            batch = batch.filter(pc.is_valid(batch["name"]))
        if self.source.deleted == "skip":
            self._note("deleted or banned post, skipped", pc.sum(batch["deleted"]).as_py())
            batch = batch.filter(pc.invert(batch["deleted"]))
        if self.known.tags:
            yield from self._tags(table, batch)
        if len(batch):
            yield Found("pictures", batch.select(["name", "width", "height"]))
        for name in _starting(batch, "caption "):
            yield self._captions(f"captions/{name.removeprefix('caption ')}", batch["name"], batch[name])

    def _tags(self, table: _Table, batch: pa.RecordBatch) -> Iterator[Found]:
        rows = TagRows.of({name.removeprefix("tags "): _lists(batch[name]) for name in _starting(batch, "tags ")})
        broken = rows.having("\0")
        if len(broken):
            names = batch["name"].take(pa.array(broken)).to_pylist()
            yield self._failed(names, ["not_utf8"] * len(names), ["there is a NUL in its tags"] * len(names))
            kept = np.ones(len(batch), bool)
            kept[broken] = False
            yield from self._tags(table, batch.filter(pa.array(kept)))
            return
        self._check(batch, rows)
        if len(batch):
            lists = self._rewritten(rows).lists(*self.columns)
            plain = ("name", "rating", "score", "fav_count", "year")
            yield Found(self.layer, pa.RecordBatch.from_pydict({**{name: batch[name] for name in plain}, **lists}))

    def _rewritten(self, rows: TagRows) -> TagRows:
        if self.aliases:
            rows = self.aliases.apply(rows)
        if self.vocabulary:
            rows = self.vocabulary.sort(rows)
        return self.implications.close(rows, self.vocabulary) if self.implications else rows

    def _check(self, batch: pa.RecordBatch, rows: TagRows) -> None:
        """Count what does not agree, or is not what it should be."""
        for name in _starting(batch, "bad "):
            what = name.removeprefix("bad ")
            self._note(f"{what} that is none; the post is there, without it", pc.sum(batch[name]).as_py())
        for name in _starting(batch, "count "):
            category = name.removeprefix("count ")
            mine = rows.rows
            if category != "all":
                mine = mine[rows.columns == schemas.TAG_CATEGORIES.index(category)]
            there = pa.array(np.bincount(mine, minlength=len(batch)))
            what = "all tags" if category == "all" else f"{category} tags"
            self._note(
                f"post whose number of {what} is not what the table says", _true(pc.not_equal(batch[name], there))
            )

    def _captions(self, layer: str, names: pa.StringArray, raw: pa.StringArray) -> Found:
        """Captions by the rule of `sidecar.clean`, many at once."""
        there = pc.is_valid(raw)
        names, raw = names.filter(there), raw.filter(there)
        bare = pc.replace_substring_regex(raw, r"(?:\r?\n|\r)\z", "")
        lines = pc.replace_substring(pc.replace_substring(bare, "\r\n", "\n"), "\r", "\n")
        text = pc.utf8_trim(lines, characters=_SPACE)
        crlf, space = pc.match_substring(bare, "\r"), pc.not_equal(text, lines)
        reason = pc.if_else(
            crlf, pc.if_else(space, "crlf, outer_space", "crlf"), pc.if_else(space, "outer_space", None)
        )
        odd = pc.or_(pc.match_substring(raw, "\ufeff"), pc.match_substring(raw, "\0"))
        table: dict[str, pa.Array] = {"name": names, "texts": text, "raw": raw, "reason": reason}
        table |= {"error": pa.nulls(len(raw), pa.string()), "detail": pa.nulls(len(raw), pa.string())}
        if _true(odd):
            cleaned = [sidecar.clean(one) for one in raw.filter(odd).to_pylist()]
            for name, values in {
                "texts": [one.text for one in cleaned],
                "reason": [one.reason or None for one in cleaned],
                "error": [one.error for one in cleaned],
                "detail": [one.detail for one in cleaned],
            }.items():
                table[name] = pc.replace_with_mask(table[name], odd, pa.array(values, pa.string()))
        empty = pc.and_(pc.is_null(table["error"]), pc.equal(pc.fill_null(table["texts"], ""), ""))
        batch = pa.RecordBatch.from_pydict(table).filter(pc.invert(empty))
        good = pc.is_null(batch["error"])
        verdict = pc.if_else(good, pc.if_else(pc.is_null(batch["reason"]), "good", "repaired"), None)
        kept = pc.if_else(pc.is_null(batch["reason"]), None, batch["raw"])
        one_each = pa.ListArray.from_arrays(pa.array(range(len(batch) + 1), pa.int32()), batch["texts"])
        texts = pc.if_else(good, one_each, pa.scalar(None, one_each.type))
        columns = {"name": batch["name"], "texts": texts, "raw": kept, "verdict": verdict, "reason": batch["reason"]}
        columns |= {"error": batch["error"], "detail": batch["detail"]}
        count = _true(empty)
        return Found(layer, pa.RecordBatch.from_pydict(columns), {f"{layer}: empty caption": count} if count else {})

    def _failed(self, names: list[str], errors: list[str], details: list[str]) -> Found:
        columns = {"name": names, "error": errors, "detail": details}
        return Found(self.layer, pa.RecordBatch.from_pydict({k: pa.array(v, pa.string()) for k, v in columns.items()}))

    def _note(self, what: str, count: int | None) -> None:
        if count:
            self.notes[what] += count


def _starting(batch: pa.RecordBatch, prefix: str) -> list[str]:
    return [name for name in batch.schema.names if name.startswith(prefix)]


def _lists(column: pa.Array) -> Any:
    return column if pa.types.is_list(column.type) else words(column)


def _true(flags: pa.BooleanArray) -> int:
    return pc.sum(flags).as_py() or 0
