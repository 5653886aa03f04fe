"""A dataset: a folder of pictures, and in its `.cutline` folder everything that is known about them.

Everything is a row in a layer, keyed by the picture's key. Sources, models and people only add rows (`add`,
`layer(...).write()`); everyone else only reads them (`scan`, `missing`, `sql`).
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from cutline import schemas
from cutline.dataset.query import BATCH_ROWS, Relation, Views, done_sql
from cutline.dataset.walk import walk
from cutline.files import storage_error, whole_file
from cutline.layer import Layer, identifier, layers_below, quote
from cutline.options import CutlineError, OptionError
from cutline.pictures import Picture

if TYPE_CHECKING:
    from cutline.dataset.gather import Progress, Report

VERSION = 1


@dataclass(frozen=True)
class Found:
    """Some rows of one layer, as a source found them.

    `batch` has the column `name` (what the source calls the picture; the dataset's rule makes it the key) and columns
    of the layer. In layer `pictures` it has `uri`, `size` and `mtime_ns` of a local file (with `offset`, of a member of
    an archive), which the dataset then inspects itself, or an `error` known already. A picture without `uri` is known
    from metadata only; what was known of its file before stays.
    """

    layer: str
    batch: pa.RecordBatch
    notes: Mapping[str, int] = field(default_factory=dict)
    """Counted facts for people: what was seen and not read."""


class Source(Protocol):
    """A plug-in that reads other people's formats: a frozen dataclass with one verb.

    Where it has a `covers: Path`, it lists every picture below that folder: what is gone from there has vanished, and
    a listed picture without words has lost those it had from this source. Where it has a `rule: KeyRule`, that is the
    key rule of a dataset that it is the first to fill, unless the user gives another. Where its `archived: bool` is
    true, what it lists is the pictures in the archives there, and not the files beside them. Its `recipes`, name ->
    TOML text, are asked for at the end and kept with the dataset's.
    """

    def read(self) -> Iterator[Found]:
        """Stream what there is, in batches."""
        ...


@dataclass(frozen=True)
class KeyRule:
    """How a picture's name becomes its key: fixed by the first `add`, applied by every one."""

    rule: str = "path"
    """`path` (POSIX, relative, with extension), `stem`, or a regular expression (its first group, or all of it)."""
    prefix: str = ""

    def __post_init__(self) -> None:
        if self.rule not in ("path", "stem"):
            try:
                re.compile(self.rule)
            except re.error as error:
                raise CutlineError(
                    f"key rule '{self.rule}' is neither path, stem nor a regular expression: {error}"
                ) from None

    def check(self) -> None:
        """Raise OptionError for a regular expression that Python knows and DuckDB (RE2) does not."""
        try:
            duckdb.connect().execute(f"select {self.sql(quote('name'))}").fetchall()
        except duckdb.Error as error:
            raise OptionError(f"key rule '{self.rule}' cannot be used: {error}") from None

    def sql(self, name: str) -> str:
        """SQL for the key of the name in that column; null where a regular expression does not match."""
        if self.rule == "path":
            key = name
        elif self.rule == "stem":
            key = rf"regexp_replace(regexp_extract({name}, '[^/]*$'), '(.)\.[^.]*$', '\1', 's')"
        else:
            group = 1 if re.compile(self.rule).groups else 0
            key = f"nullif(regexp_extract({name}, {quote(self.rule)}, {group}), '')"
        return f"nfc_normalize({quote(self.prefix)} || {key})"


class Dataset:
    """A folder of pictures and their words. Opening one reads nothing; `add` makes its `.cutline` folder."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(os.path.abspath(Path(root).expanduser()))
        self.home = self.root / ".cutline"

    def __repr__(self) -> str:
        return f"Dataset({str(self.root)!r})"

    @property
    def exists(self) -> bool:
        """Whether anything was ever added."""
        return (self.home / "dataset.toml").exists()

    @property
    def key_rule(self) -> KeyRule:
        """The rule that the first `add` fixed.

        Raises:
            CutlineError: there is no dataset here, or a newer Cutline made it.
        """
        try:
            found = tomllib.loads((self.home / "dataset.toml").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CutlineError(f"{self.root} is no dataset yet. Make it one: cutline add {self.root}") from None
        except NotADirectoryError:
            raise CutlineError(f"{self.root} is a file; a dataset is the folder that is named to cutline add") from None
        except tomllib.TOMLDecodeError as error:
            raise CutlineError(f"{self.home / 'dataset.toml'} cannot be read: {error}") from None
        if found.get("version") != VERSION:
            raise CutlineError(f"{self.root} has format version {found.get('version')}; this Cutline reads {VERSION}")
        return KeyRule(found["key"], found["prefix"])

    def create(self, rule: KeyRule) -> None:
        """Fix the key rule. Does nothing where the same one is fixed; raises CutlineError where another is."""
        if self.exists:
            if (fixed := self.key_rule) != rule:
                raise CutlineError(
                    f"{self.root} names its pictures by key={fixed.rule} prefix={fixed.prefix!r}, as fixed when it was "
                    "made. Leave those options out, or make another dataset."
                )
            return
        from cutline.toml_files import value

        self.check_root()
        rule.check()
        try:
            self.home.mkdir(exist_ok=True)
        except OSError as error:
            raise storage_error(self.home, error) from error
        with whole_file(self.home / "dataset.toml", "w") as handle:
            handle.write(
                "# A Cutline dataset. Layers are Parquet below layers/; this file only fixes how pictures are named.\n"
                f"version = {VERSION}\nkey = {value(rule.rule)}\nprefix = {value(rule.prefix)}\n"
            )

    def check_root(self) -> None:
        """Raise CutlineError where there is no such folder."""
        if not self.root.is_dir():
            raise CutlineError(f"there is no folder {self.root}")

    def layer(self, name: str) -> Layer:
        """One layer by name, such as `captions/blip`; it need not exist yet."""
        return Layer(self.home / "layers", name)

    def layers(self) -> list[str]:
        """The names of all layers that exist, sorted."""
        return [layer.name for layer in layers_below(self.home / "layers")]

    @cached_property
    def views(self) -> Views:
        """The database behind `sql`, `scan` and `missing`."""
        self.key_rule  # noqa: B018  it says so where there is no dataset
        return Views(self.home / "layers", self.home / "tmp")

    def sql(self, query: str) -> Relation:
        """Ask in SQL; every layer is a view: `pictures`, `facts`, `"captions/blip"`. See `Relation` for the answer."""
        return Relation(self.views, lambda: query.strip().rstrip(";"))

    def scan(
        self,
        *layers: str,
        where: str = "",
        only: Relation | None = None,
        fields: Sequence[str] | None = None,
        rows: int = BATCH_ROWS,
    ) -> Iterator[pa.RecordBatch]:
        """Stream the readable pictures, joined with layers, sorted by key, in bounded memory.

        Columns: those of `pictures`, and for each layer a struct column of its name (null where it has no row), whose
        lists of tags are dictionary-coded.

        Args:
            layers: which to join.
            where: an SQL condition over `pictures` and any layers that it names in double quotes.
            only: the pictures whose keys it has, such as `missing("captions/blip")`.
            fields: which columns of the layers to read; by default all. Key, content and error come always.
            rows: of a batch, at most.
        """
        keys = only.keys() if only is not None else None
        if where:
            chosen = Relation(self.views, lambda: self._pictures(where)).keys()
            keys = chosen if keys is None else keys.filter(pc.is_in(keys, value_set=chosen))
        yield from walk(self.views, layers, keys=keys, fields=fields, rows=rows)

    def missing(self, layer: str, *, where: str = "", retry: str = "") -> Relation:
        """The readable pictures whose present content has no row in `layer`, sorted by key.

        Args:
            layer: the layer to look at; it need not exist.
            where: as in `scan`.
            retry: `errors` counts rows with an error as missing, `rejected` those with the verdict rejected.

        Raises:
            CutlineError: for another `retry`, or `rejected` in a layer without verdicts.
        """
        schemas.kind(layer)
        if retry not in ("", "errors", "rejected"):
            raise OptionError(f"retry is errors or rejected, not {retry!r}")
        if retry == "rejected" and "verdict" not in schemas.columns(layer):
            raise OptionError(f"layer {layer} has no verdicts, so nothing in it was rejected")

        def sql() -> str:
            parts = self.views.parts(layer)
            done = done_sql(parts, condition="error is null" if retry == "errors" else "true")
            if retry == "rejected" and parts:  # here it matters which of several good rows counts
                done = f"""
                    select key, null::varchar as content from {identifier(layer)}
                    where verdict is distinct from 'rejected'"""
            return f"""
                select todo.* from ({self._pictures(where)}) as todo
                anti join ({done}) as done on done.key = todo.key and coalesce(done.content = todo.content, true)
                order by todo.key"""

        return Relation(self.views, sql)

    def _pictures(self, where: str) -> str:
        joins = "".join(
            f" left join {identifier(name)} using (key)"
            for name in self.layers()
            if name != "pictures" and (identifier(name) in where or re.search(rf"\b{re.escape(name)}\.", where))
        )
        condition = f"and ({where}\n)" if where else ""  # the new line ends a remark
        return f"select pictures.* from pictures{joins} where pictures.error is null {condition}"

    def path(self, uri: str) -> Path:
        """Where the bytes of a `uri` are on this machine."""
        return self.root / uri

    def picture(self, key: str) -> Picture:
        """One picture's bytes. Raises CutlineError where no picture has that key."""
        known = 'uri, size, mtime_ns, content, "offset"'
        found = self.sql(f"select {known} from pictures where key = {quote(key)}").fetchone()
        if found is None:
            raise CutlineError(
                f"no picture of {self.root} has the key {key!r}. Keys: cutline sql {self.root} 'from pictures'"
            )
        if found[0] is None:
            raise CutlineError(f"only metadata tells of {key!r}. Add the folder or archive that holds its file")
        uri, size, mtime_ns, content, offset = found
        return Picture(self.path(uri), size=size, mtime_ns=mtime_ns, content=content, offset=offset)

    def count_without_file(self) -> int:
        """How many pictures only metadata tells of."""
        return self.sql("from pictures where uri is null and error is null").count()

    def add(
        self,
        source: Source,
        *,
        rule: KeyRule | None = None,
        allow_vanish: bool = False,
        progress: Progress | None = None,
    ) -> Report:
        """Add what a source finds: see `gather.add`."""
        from cutline.dataset.gather import add

        return add(self, source, rule=rule, allow_vanish=allow_vanish, progress=progress)

    def compact(self, *layers: str) -> dict[str, tuple[int, int]]:
        """Merge the parts of these layers (or of all). See `compact.compact`."""
        from cutline.dataset.compact import compact

        return compact(self, layers or tuple(self.layers()))
