"""`Dataset.add`: what a source finds becomes rows, and only what is new or changed is looked at.

First everything found is staged beside the dataset. Then pictures: those whose file is new or changed are opened,
hashed and published as they come, so that a killed `add` goes on where it stopped. A picture whose bytes were known
under another key, now gone, was moved: its words follow it before it appears itself. Words come last; only those that
differ from what the layer says are written.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from cutline import archives, pictures, schemas
from cutline.dataset.ahead import ahead
from cutline.dataset.cuts import PICTURES_PER_CUT, bounds_sql, read_cuts, refine, write_cut
from cutline.dataset.query import started
from cutline.files import storage_error, whole_file
from cutline.layer import (
    ROW_GROUP,
    Layer,
    LayerWriter,
    fit,
    heads_sql,
    identifier,
    quote,
    rank_sql,
    read_sql,
    row_id_sql,
    within,
)
from cutline.options import CutlineError

if TYPE_CHECKING:
    from cutline.dataset import Dataset, KeyRule, Source

_SUFFIXED = (
    rf"regexp_matches(lower(name), '({'|'.join(re.escape(suffix) for suffix in sorted(pictures.EXTENSIONS))})$')"
)
"""SQL: whether a name is that of a picture file, and not a bare id or stem."""

CHUNK = 1024
"""Pictures are inspected and published in chunks: a killed `add` has at most this many to do again."""

_FOUND = pa.schema(
    [
        ("name", pa.string()),
        ("uri", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("orientation", pa.int32()),
        ("content", pa.string()),
        ("error", pa.string()),
        ("detail", pa.string()),
    ]
)

Progress = Callable[[int, int, int], None]
"""Called with (pictures done, pictures to do, unreadable so far)."""


class Vanished(CutlineError):
    """Half or more of the pictures would vanish at once."""


@dataclass
class Report:
    """What an `add` did, in counts of pictures and of words written."""

    added: int = 0
    changed: int = 0
    moved: int = 0
    unchanged: int = 0
    vanished: int = 0
    unreadable: int = 0
    """Pictures of this source that cannot be read at present, whether found out now or before."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Why: how many of each typed error."""
    words: dict[str, int] = field(default_factory=dict)
    """Rows written, by layer."""
    notes: dict[str, int] = field(default_factory=dict)
    """What else was seen: counted facts for people."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def add(
    dataset: Dataset,
    source: Source,
    *,
    rule: KeyRule | None = None,
    allow_vanish: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Add what a source finds.

    Args:
        dataset: where to; its `.cutline` folder is made where there is none.
        source: what to read. Where it `covers` a folder, pictures gone from there become `vanished`.
        rule: how names become keys; fixed by the first add (the source's own, else `path`, unless said otherwise).
        allow_vanish: let half or more of the folder's pictures vanish.
        progress: called as pictures are inspected.

    Raises:
        Vanished: half or more would vanish; what is new has been added, nothing has been marked vanished.
        StorageError: a write was refused; nothing that was published is lost.
    """
    from cutline.dataset import KeyRule

    suggested: KeyRule = getattr(source, "rule", KeyRule())
    if dataset.exists and rule is not None:
        dataset.create(rule)  # it says so where another is fixed
    dataset.check_root()
    (rule or suggested).check()
    with _stage(dataset.home / "tmp") as folder:
        notes = _read(source, folder)
        if not dataset.exists:  # not before: what cannot be read fixes nothing
            dataset.create(rule or suggested)
        report = _Adding(dataset, source, folder, notes).run(allow_vanish, progress)
    recipes: Mapping[str, str] = getattr(source, "recipes", {})
    for name, text in recipes.items():
        report.notes[f"recipe kept, for --recipe {_keep_recipe(dataset.home / 'recipes', name, text)}"] = 1
    return report


def _keep_recipe(folder: Path, name: str, text: str) -> str:
    """Write a recipe, unless it is there; another of its name stays. Returns the name that it has."""
    number, free = 1, name
    while (there := folder / f"{free}.toml").exists():
        if there.read_bytes() == text.encode():
            return free
        number += 1
        free = f"{name}-{number}"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise storage_error(folder, error) from error
    with whole_file(there, "w") as handle:
        handle.write(text)
    return free


def _read(source: Source, folder: Path) -> Counter[str]:
    """Write all that the source finds to one Parquet file per layer."""
    notes: Counter[str] = Counter()
    writers: dict[str, pq.ParquetWriter] = {}
    try:
        for found in ahead(source.read()):
            notes.update(found.notes)
            layout = _layout(found.layer)
            table = _fit(found.batch, layout)
            try:
                if found.layer not in writers:
                    path = folder / f"{len(writers)}.parquet"
                    writers[found.layer] = pq.ParquetWriter(path, layout.with_metadata({"layer": found.layer}))
                writers[found.layer].write_table(table)
            except OSError as error:
                raise storage_error(folder, error) from error
    finally:
        for writer in writers.values():
            with contextlib.suppress(OSError):
                writer.close()
    return notes


def _layout(layer: str) -> pa.Schema:
    if layer == "pictures":
        return _FOUND
    full = schemas.schema(layer)
    return pa.schema(
        [
            ("name", pa.string()),
            *(full.field(column) for column in schemas.columns(layer)),
            ("error", pa.string()),
            ("detail", pa.string()),
        ]
    )


def _fit(batch: pa.RecordBatch, layout: pa.Schema) -> pa.Table:
    unknown = set(batch.schema.names) - set(layout.names)
    if unknown:
        raise CutlineError(f"a source gave columns that its layer does not have: {sorted(unknown)}")
    return pa.Table.from_batches([fit(batch, layout)])


@contextlib.contextmanager
def _stage(tmp: Path) -> Iterator[Path]:
    """A folder of this process's own; those that killed processes of this machine left are removed."""
    host = re.sub(r"\W", "_", socket.gethostname())
    for left in tmp.glob(f"add-{host}-*"):
        pid = int(left.name.rsplit("-", 2)[1])
        if pid != os.getpid() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = tmp / f"add-{host}-{os.getpid()}-{secrets.token_hex(3)}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise storage_error(folder, error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not (tmp.parent / "dataset.toml").exists():
            for left in (tmp, tmp.parent):
                with contextlib.suppress(OSError):
                    left.rmdir()


@dataclass(frozen=True)
class _Origin:
    """A key under which some content was known."""

    key: str
    uri: str
    present: bool
    """Whether that is the last that was known of it, so that words without content are about it."""
    listed: bool
    """Whether its file is there and is looked at in this add."""


class _Adding:
    """One `add` in progress: temporary tables `found` (keyed) and `known` (the pictures layer before)."""

    def __init__(self, dataset: Dataset, source: Source, folder: Path, notes: Counter[str]) -> None:
        self.dataset = dataset
        self.covers: Path | None = getattr(source, "covers", None)
        self.base: Path | None = getattr(source, "base", self.covers)
        self.archived: bool = getattr(source, "archived", False)
        self.staged = {pq.read_schema(path).metadata[b"layer"].decode(): path for path in folder.glob("*.parquet")}
        self.notes = notes
        self.report = Report()
        self.con = dataset.views.cursor()

    def run(self, allow_vanish: bool, progress: Progress | None) -> Report:
        try:
            self._tables()
            self._duplicates()
            self._inspect_all(allow_vanish, progress)
            self._vanish(allow_vanish)
            self._words()
        except duckdb.Error as error:
            raise CutlineError(f"add failed in the database: {error}") from error
        self.report.notes = dict(self.notes)
        self._count_unreadable()
        return self.report

    # -- pictures ---------------------------------------------------------------------------------------------

    def _tables(self) -> None:
        """`found`: what the source lists, with key and stored uri; `known`: what the layer says."""
        root = self.dataset.root.as_posix().rstrip("/") + "/"
        inside = f"starts_with(uri, {quote(root)})"
        uri = f"case when {inside} then substr(uri, {len(root) + 1}) else uri end"
        name = f"case when {inside} then substr(uri, {len(root) + 1}) else name end"
        staged = self.staged.get("pictures")
        source = read_sql([staged]) if staged else f"(select {_typed(_FOUND)} where false)"
        self.con.execute(f"""
            create temp table found as
            select coalesce({self.dataset.key_rule.sql("shown")}, shown) as key, * exclude (shown),
                {self.dataset.key_rule.sql("shown")} is null as nameless
            from (select {uri} as uri, {name} as shown, * exclude (uri) from {source})""")
        self._again("create or replace temp table known as select * from pictures")
        new = "found.uri is null and found.key not in (select key from known)"
        if self._one(f"select count(*) from found where {new}"):  # a bare id may be a picture that is known by its path
            self._alias("known where uri is not null")
            self.con.execute(
                f"update found set key = aliases.key from aliases where {new} and found.key = aliases.alias"
            )

    def _duplicates(self) -> None:
        """Keys that more than one file has: one row each, which names them all and stands for none."""
        rivals: dict[str, set[str]] = {
            key: set(uris)
            for key, uris in self.con.execute(
                """select key, list(distinct coalesce(uri, name)) from found group by key
                having count(distinct uri) > 1 or (count(uri) = 0 and count(distinct name) > 1)"""
            ).fetchall()
        }
        others = self.con.execute("""
            select found.key, found.uri, known.uri, known.error, known.detail from found join known using (key)
            where known.error is distinct from 'vanished' and (known.uri <> found.uri or known.error = 'duplicate_key')
                and known.uri is not null and found.uri is not null""").fetchall()
        listed: set[str] = set()
        if others:
            known_uris = "select uri from found where uri is not null and key in (select key from known)"
            listed = {uri for (uri,) in self.con.execute(known_uris).fetchall()}
        for key, uri, other, error, detail in others:
            before = json.loads(detail) if error == "duplicate_key" else [other]
            still = {
                one
                for one in before
                if one in listed or (not self._covered(one) and not self._is_lost(self.dataset.path(one)))
            }
            if still - {uri}:
                rivals.setdefault(key, {uri}).update(still)
        known = {
            key: detail
            for key, error, detail in self.con.execute(
                "select key, error, detail from known where error = 'duplicate_key'"
            ).fetchall()
        }
        self.con.execute("create temp table rivals (key varchar)")
        if rivals:
            self.con.register("rival_keys", pa.table({"key": sorted(rivals)}))
            self.con.execute("insert into rivals select key from rival_keys")
        told = "select key, content from known where content is not null and key in (from rivals)"
        self._carry_all({}, dict(self.con.execute(told).fetchall()))
        with LayerWriter(self.dataset.layer("pictures")) as writer:
            for key, uris in sorted(rivals.items()):
                detail = json.dumps(sorted(uris), ensure_ascii=False)
                if known.get(key) != detail:
                    writer.add(
                        {"key": key, "uri": min(uris), "error": "duplicate_key", "detail": detail, "deleted": True}
                    )

    def _covered(self, uri: str) -> bool:
        path = self.dataset.path(uri)
        below = self.covers is not None and path.is_relative_to(self.covers.absolute())
        return below and (archives.holding(path) is not None) == self.archived

    def _is_lost(self, path: Path) -> bool:
        """Whether a picture that the source did not list is gone; one in an archive, if it lists what is in those."""
        archive = archives.holding(path)
        return _is_gone(path) if archive is None else self.archived and os.access(archive, os.R_OK)

    def _inspect_all(self, allow_vanish: bool, progress: Progress | None) -> None:
        same = """(found.uri is not null or found.error is not null)
            and known.uri is not distinct from found.uri and known.size is not distinct from found.size
            and known.mtime_ns is not distinct from found.mtime_ns
            and known."offset" is not distinct from found."offset"
            and (known.error is null or known.error not in ('vanished', 'permission', 'duplicate_key', 'bad_name'))
            and (found.content is null or found.content = known.content)
            and (found.error is null or found.error is not distinct from known.error)
            or found.uri is null and found.error is null and (
                known.uri is not null or known.error is null
                and coalesce(known.width = found.width and known.height = found.height, found.width is null))"""
        self.con.execute(f"""
            create temp table todo as select found.*, known.key is not null as was,
                known.content as content_was, known.error as error_was, known.uri as uri_was
            from found left join known using (key)
            where key not in (from rivals) and (known.key is null or not ({same}))""")
        total = self._one("select count(*) from todo")
        self.report.unchanged = self._one("select count(*) from found where key not in (from rivals)") - total
        self._refuse_early(total, allow_vanish)
        self._publish_told()
        gone = self._gone_contents()
        self.moved_from: set[str] = set()
        done = bad = 0
        last = time.monotonic()
        writer = LayerWriter(self.dataset.layer("pictures"))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for chunk in self._todo():
                batch = []
                for row, seen in zip(chunk, pool.map(self._look, chunk), strict=True):
                    batch.append((row, seen))
                    done += 1
                    bad += seen["error"] is not None
                    if progress and time.monotonic() - last > 0.1:
                        last = time.monotonic()
                        progress(done, total, bad)
                self._publish(batch, gone, writer)
        if progress:
            progress(done, total, bad)

    def _publish_told(self) -> None:
        """Publish the pictures that only metadata tells of: there is nothing to look at, so they go as columns."""
        told = "uri is null and error is null and not nameless"
        for was, count in self.con.sql(f"select was, count(*) from todo where {told} group by was").fetchall():
            if was:
                self.report.changed += count
            else:
                self.report.added += count
        layer = self.dataset.layer("pictures")
        if self._one("select count(*) from todo") > PICTURES_PER_CUT:
            keys = self.con.sql("select key from found union select key from known order by key").to_arrow_table()
            refine(layer.home, keys.column("key").cast(pa.large_string()).combine_chunks())
        columns = ", ".join(identifier(name) for name in _FOUND.names if name != "name")
        rows = self.con.sql(f"select key, {columns} from todo where {told} order by key").to_arrow_reader(50_000)
        write_cut(layer, rows, read_cuts(layer.home))
        self.con.execute(f"delete from todo where {told}")

    def _gone_contents(self) -> dict[str, list[_Origin]]:
        """Where contents were that may be elsewhere now, by content.

        What a picture was at an earlier add counts too: the add that was to see where it went may have been killed.
        Of several places, where it was last comes first.
        """

        def question() -> list[tuple[Any, ...]]:
            parts = self.dataset.views.parts("pictures")
            return self.con.execute(f"""
                select was.content, was.key, known.uri, was.content is not distinct from known.content,
                    was.key in (select key from todo)
                from (select key, content, {rank_sql(parts)} as rank from {read_sql(parts)}) as was
                join known using (key)
                where was.content is not null and (
                    was.content is distinct from known.content or known.error = 'vanished'
                    or was.key in (select key from todo) or was.key not in (select key from found))
                group by was.content, was.key, known.uri, known.content, known.error
                order by known.error is not distinct from 'vanished', max(was.rank) desc, was.key""").fetchall()

        gone: dict[str, list[_Origin]] = defaultdict(list)
        if self._one("select count(*) from todo") and self._one("select count(*) from known"):
            for content, *origin in self.dataset.views.again(question):
                gone[content].append(_Origin(*origin))
        return gone

    def _todo(self) -> Iterator[list[dict[str, Any]]]:
        table = self.con.sql("from todo order by key").to_arrow_table()
        for batch in table.to_batches(CHUNK):
            yield batch.to_pylist()

    def _look(self, row: dict[str, Any]) -> dict[str, Any]:
        """The pictures row of one found file."""
        seen: dict[str, Any] = {name: row[name] for name in ("key", *_FOUND.names) if name != "name"}
        if row["nameless"]:
            seen.update(
                error="no_key", detail=f"the key rule {self.dataset.key_rule.rule} does not match {row['name']}"
            )
        elif row["error"] is None and row["content"] is None and row["uri"] is not None:
            inside = () if row["offset"] is None else (row["offset"], row["size"])
            found = pictures.inspect(self.dataset.path(row["uri"]), *inside)
            seen.update(asdict(found))
        seen["deleted"] = seen["error"] is not None or None
        return seen

    def _publish(
        self,
        batch: list[tuple[dict[str, Any], dict[str, Any]]],
        gone: dict[str, list[_Origin]],
        writer: LayerWriter,
    ) -> None:
        """Count, let words follow moved pictures, then publish a chunk of pictures rows."""
        moves: dict[str, tuple[_Origin, str]] = {}
        changed: dict[str, str] = {}
        told = {row["key"] for row, _ in batch if row["was"] and row["content_was"] is None}
        for row, seen in batch:
            content, before = seen["content"], row["content_was"]
            origin = None
            if seen["error"] is None and content is not None and (content != before or row["error_was"] == "vanished"):
                there = [entry for entry in gone.get(content, []) if not (entry.listed and content == before)]
                origin = next((entry for entry in there if self._came_from(entry, row)), None)
            if before is not None and content != before:
                changed[row["key"]] = before
            if origin is not None:
                gone[content].remove(origin)
                self.moved_from.add(origin.key)
                moves[row["key"]] = (origin, content)
                self.report.moved += 1
            elif row["was"] and seen["error"] is not None and seen["error"] == row["error_was"]:
                self.report.unchanged += 1
            elif not row["was"]:
                self.report.added += 1
            elif row["uri_was"] != row["uri"] and content == before:
                self.report.moved += 1
            elif row["error_was"] in ("vanished", "permission", "duplicate_key") and content == before:
                self.report.added += 1
            elif content == before:
                self.report.unchanged += 1
            else:
                self.report.changed += 1
        self._carry_all(moves, changed, told)
        for _, seen in batch:
            writer.add(seen)
        writer.flush()

    def _came_from(self, origin: _Origin, row: dict[str, Any]) -> bool:
        """Whether a found picture was moved from there, and is no copy of what still is there."""
        gone = origin.listed or not origin.present or self._is_lost(self.dataset.path(origin.uri))
        return gone and origin.key != row["key"]

    def _carry_all(
        self, moves: dict[str, tuple[_Origin, str]], changed: dict[str, str], told: Collection[str] = ()
    ) -> None:
        if moves or changed:
            for name in self.dataset.layers():
                if name != "pictures":
                    self._carry(self.dataset.layer(name), moves, changed, told)

    def _carry(
        self, layer: Layer, moves: dict[str, tuple[_Origin, str]], changed: dict[str, str], told: Collection[str]
    ) -> None:
        """Write moved pictures' words under their new key; tie words without content to what they were about.

        A row without content goes for whatever is under its key. When another picture comes under that key, the
        row would end at the wrong one; so it is written again with the content that it was about.
        """
        rows = self._rows(layer, sorted({*moves, *changed, *(origin.key for origin, _ in moves.values())}))
        out: list[dict[str, Any]] = []
        for key, content in changed.items():
            own = rows.get(key, [])
            if any(row["content"] is None for row in own):
                out.append({"key": key, "deleted": True})
                out += [{**row, "content": row["content"] or content} for row in sorted(own, key=_order)]
        for new, (origin, content) in moves.items():
            theirs = _newest(rows.get(origin.key, []), content, or_none=origin.present)
            ours = _newest(rows.get(new, []), content, or_none=new in told or changed.get(new) == content)
            if theirs is not None and (ours is None or _order(theirs) > _order(ours)):
                moved = f"moved here with its picture from {origin.key}"
                out.append({**theirs, "key": new, "content": content, "detail": theirs["detail"] or moved})
        if out:
            with LayerWriter(layer) as writer:
                for row in out:
                    writer.add({**row, "rank": None})

    def _rows(self, layer: Layer, keys: list[str]) -> dict[str, list[dict[str, Any]]]:
        """The best row of each content of these keys, good or not, by key; with the rank of each."""

        def question() -> str:
            parts = self.dataset.views.parts(layer.name)
            if not parts:
                return "select 1 where false"
            only = f"key in ({', '.join(quote(key) for key in keys)})"
            heads = heads_sql(parts, per_content=True, only=only)
            return (
                "select * exclude (rank, deleted), "
                f"{rank_sql(parts)} as rank "
                f"from {read_sql(parts)} where {only} and {row_id_sql()} in ({heads})"
            )

        found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in self.dataset.views.ask(question, lambda done: done.to_arrow_table()).to_pylist():
            found[row["key"]].append(row)
        return found

    # -- what is gone -----------------------------------------------------------------------------------------

    def _gone_sql(self) -> str:
        """Known pictures below the covered folder that the source did not list."""
        if self.covers is None:
            return "select key, uri, error from known where false"
        return f"""select known.key, known.uri, known.error from known where {self._scope()}
            and known.error is distinct from 'vanished' and known.key not in (select key from found)"""

    def _scope(self) -> str:
        assert self.covers is not None
        folder = self.covers.absolute()
        kind = f"""(known."offset" is not null) = {self.archived}"""
        if folder == self.dataset.root:
            return f"not starts_with(known.uri, '/') and {kind}"
        if folder.is_relative_to(self.dataset.root):
            folder_uri = folder.relative_to(self.dataset.root).as_posix() + "/"
        else:
            folder_uri = folder.as_posix() + "/"
        return f"starts_with(known.uri, {quote(folder_uri)}) and {kind}"

    def _refuse_early(self, new: int, allow_vanish: bool) -> None:
        """Refuse before anything is written, where not even all new files could be the ones that are gone."""
        gone = self._one(f"select count(*) from ({self._gone_sql()}) where error is null")
        self._refuse(gone - new, allow_vanish)

    def _refuse(self, gone: int, allow_vanish: bool) -> None:
        if gone <= 0 or allow_vanish:
            return
        before = self._one(f"select count(*) from known where {self._scope()} and error is null")
        if 2 * gone >= before:
            raise Vanished(
                f"{gone} of {before} pictures below {self.covers} are gone. Is a disk not mounted? Nothing was marked "
                "as vanished. If they are really gone, add them with --allow-vanish (their words are kept)."
            )

    def _vanish(self, allow_vanish: bool) -> None:
        listed = self.con.sql(f"from ({self._gone_sql()})").fetchall()
        gone = [entry for entry in listed if self._is_lost(self.dataset.path(entry[1]))]
        self._refuse(sum(error is None and key not in self.moved_from for key, _, error in gone), allow_vanish)
        if not gone:
            return
        keys = {key for key, _, _ in gone}
        self.con.register("gone_keys", pa.table({"key": sorted(keys)}))
        table = self.con.sql("from known where key in (from gone_keys)").to_arrow_table()
        with LayerWriter(self.dataset.layer("pictures")) as writer:
            for batch in table.to_batches(10_000):
                for row in batch.to_pylist():
                    row.update(error="vanished", detail=f"{row['uri']} was there at an earlier add", deleted=True)
                    writer.add(row)
        self.report.vanished = sum(error is None and key not in self.moved_from for key, _, error in gone)

    # -- words ------------------------------------------------------------------------------------------------

    def _words(self) -> None:
        layers = [name for name in self.staged if name != "pictures"]
        if not layers:
            return
        self._again("create or replace temp table now as select key, uri, content from pictures where error is null")
        self._again("create or replace temp table doubled as select key from pictures where error = 'duplicate_key'")
        for name in layers:
            self._write_words(name, self.staged[name])

    def _write_words(self, name: str, staged: Path) -> None:
        """Write those rows that differ from what the layer says of the picture as it is now."""
        self.dataset.layer(name).write()  # it says so where an annotator fills the layer
        known = name in self.dataset.layers()
        self._name_keys(staged)
        claimed = self._one("select count(*) from named where key in (from doubled)")
        self._note(f"{name}: not written, since several pictures have the key", claimed)
        self.con.execute("delete from named where key in (from doubled)")
        self._note_words(name, staged)
        layer = self.dataset.layer(name)
        written = 0
        for low, high, fresh in self._fresh(staged):
            written += write_cut(layer, self._different(name, fresh, low, high), [])
        if self.covers is not None and known:
            stale = f"""select key from {identifier(name)} where key in (select key from found)
                and key not in (select key from named) and key not in (from doubled)
                and (detail is null or error is not null)"""
            with layer.write() as writer:
                for (key,) in self._again(stale).fetchall():  # words that moved here with their picture are kept
                    writer.delete(key)
            written += writer.published
        self.report.words[name] = written

    def _fresh(self, staged: Path) -> Iterator[tuple[str | None, str | None, str]]:
        """The staged words, the last of each key, slice by slice: the bounds, and SQL for the rows."""
        cuts = read_cuts(self.dataset.home / "layers")
        newest = "select key, max(line) as line from named group by key"
        rows = f"""select named.key, staged.* exclude (name) from {read_sql([staged])} as staged
            join ({newest}) as named on staged.file_row_number = named.line"""
        if not cuts or self._one("select count(*) from named") < PICTURES_PER_CUT:
            yield None, None, rows
            return
        whole = staged.with_suffix(".sorted.parquet")
        self.con.execute(f"copy ({rows} order by key) to {quote(str(whole))} (row_group_size {ROW_GROUP})")
        staged.unlink()
        for low, high in pairwise([None, *cuts, None]):
            yield low, high, f"select * from {read_sql([whole])} where {bounds_sql(low, high)}"
        whole.unlink()

    def _different(self, name: str, fresh: str, low: str | None, high: str | None) -> Iterator[pa.RecordBatch]:
        """Those rows of a slice that differ from what the layer says, sorted by key."""
        columns = [*schemas.columns(name), "error", "detail"]
        packed = ", ".join(f"{identifier(column)} := {identifier(column)}" for column in columns)
        said = ", ".join(f"fresh.said.{identifier(column)}" for column in columns)
        views, bounds = self.dataset.views, bounds_sql(low, high)
        mended = "false"
        if schemas.kind(name) == "captions":  # what was mended here stays so, as long as the source says the same
            said_there = "coalesce(fresh.said.raw, array_to_string(fresh.said.texts, chr(10)))"
            mended = f"coalesce(cur.said.mended is not null and cur.said.raw = {said_there}, false)"

        def question() -> Iterator[pa.RecordBatch]:
            now = f"(select key, content from now where {bounds}) as now"
            if not within(views.parts(name), low, high):
                query = f"""
                    select fresh.*, now.content, case when error is not null then true end as deleted
                    from ({fresh}) as fresh left join {now} using (key)"""
            else:
                current = f"select key, content, struct_pack({packed}) as said from ({views.view(name, low, high)})"
                query = f"""
                    select fresh.key, now.content, {said},
                        case when fresh.said.error is not null then true end as deleted
                    from (select key, struct_pack({packed}) as said from ({fresh})) as fresh
                    left join {now} using (key) left join ({current}) as cur using (key)
                    where cur.key is null or (cur.said is distinct from fresh.said and not {mended})
                        or cur.content is distinct from now.content"""
            return started(self.con.sql(f"{query} order by key").to_arrow_reader(50_000))

        return views.again(question)

    def _note_words(self, name: str, staged: Path) -> None:
        said = self._one("select count(*) from named")
        keys = self._one("select count(distinct key) from named")
        strangers = self._one("select count(distinct key) from named where key not in (select key from now)")
        rule = self.dataset.key_rule.rule
        self._note(f"{name}: said again later in the same source; the last one counts", said - keys)
        if strangers < keys:
            self._note(f"{name}: rows about no readable picture of this dataset", strangers)
        else:
            self._note(f"{name}: rows, NONE of them about a picture of this dataset (key rule: {rule})", strangers)
        for column in ("reason", "error"):
            if column in _layout(name).names:
                for reason, count in self.con.execute(
                    f"select {column}, count(*) from {read_sql([staged])} where {column} is not null group by {column}"
                ).fetchall():
                    self._note(f"{name}: {reason}", count)

    def _note(self, text: str, count: int) -> None:
        if count:
            self.notes[text] += count

    def _name_keys(self, staged: Path) -> None:
        """Temporary table `named` (key, line): which picture each staged row is about.

        In turn: a picture that this add itself listed under that name; the dataset's key rule; the picture's uri; a
        name without extension that only one picture has.
        """
        root = self.dataset.root.as_posix().rstrip("/") + "/"
        rule = self.dataset.key_rule
        full = "name"
        if self.base is not None:  # so the name of a picture that is not there never means one elsewhere
            folder = quote(self.base.as_posix().rstrip("/") + "/")
            full = f"case when starts_with(name, '/') or not {_SUFFIXED} then name else {folder} || name end"
        relative = f"case when starts_with({full}, {quote(root)}) then substr({full}, {len(root) + 1}) else {full} end"
        self.con.execute(f"""
            create or replace temp table named as
            select coalesce(listed.key, {rule.sql("said.short")}, said.short) as key, line, short,
                listed.key is not null as sure, suffixed
            from (
                select name, {relative} as short, {_SUFFIXED} as suffixed, file_row_number as line
                from {read_sql([staged])}
            ) as said
            left join (select name, any_value(key) as key from found group by name) as listed
                on listed.name = said.name""")
        self.con.execute("update named set sure = true where key in (select key from now)")
        if not self._one("select count(*) from named where not sure"):
            return
        self._alias("now")
        self.con.execute("""
            update named set key = aliases.key from aliases
            where not sure and (named.short = aliases.alias or nfc_normalize(named.short) = aliases.alias)
                and (aliases.whole or not suffixed)""")

    def _alias(self, table: str) -> None:
        """Temporary table `aliases` (alias, key, whole): other names that only one of these pictures has."""
        bare = r"regexp_replace(key, '(.)\.[^./]*$', '\1', 's')"
        self.con.execute(f"""
            create or replace temp table aliases as
            select alias, any_value(key) as key, bool_or(whole) as whole from (
                select uri as alias, key, true as whole from {table}
                union select {bare}, key, false from {table}
                union select regexp_extract({bare}, '[^/]*$'), key, false from {table}
            ) group by alias having count(distinct key) = 1""")

    # -- the end ----------------------------------------------------------------------------------------------

    def _count_unreadable(self) -> None:
        rows = self._again("""
            select error, count(*) from pictures where error is not null
                and key in (select key from found) group by error order by error""").fetchall()
        self.report.reasons = dict(rows)
        self.report.unreadable = sum(self.report.reasons.values())

    def _again(self, sql: str) -> duckdb.DuckDBPyConnection:
        """Execute what reads layers, over the parts that there are now."""
        return self.dataset.views.again(lambda: self.con.execute(sql))

    def _one(self, sql: str) -> int:
        return int(self.con.sql(sql).fetchall()[0][0])


def _newest(rows: list[dict[str, Any]], content: str, *, or_none: bool) -> dict[str, Any] | None:
    """The row that counts of those about this content (or about no content in particular)."""
    about = [row for row in rows if row["content"] == content or (or_none and row["content"] is None)]
    return max(about, key=_order, default=None)


def _order(row: dict[str, Any]) -> tuple[bool, int]:
    return row["error"] is None, row["rank"]


def _is_gone(path: Path) -> bool:
    """Whether a file is really not there, and not merely out of reach (a folder that may not be read)."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _typed(schema: pa.Schema) -> str:
    names = {pa.string(): "varchar", pa.int32(): "integer", pa.int64(): "bigint"}
    return ", ".join(f"null::{names[entry.type]} as {identifier(entry.name)}" for entry in schema)
