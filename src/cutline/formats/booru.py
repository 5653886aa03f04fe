"""What the columns of a booru's metadata table mean: a column map, a small TOML file.

Those of well-known tables come with Cutline, in `presets/booru`; `danbooru.toml` there explains what a map can say.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cutline import schemas, tags, toml_files
from cutline.options import OptionError

COLUMNS = ("id", "rating", "score", "fav_count", "posted", "updated", "width", "height", "deleted")
"""What a map's `[columns]` may say: only `id` must be there."""

_RATINGS = {
    "e": "e",
    "explicit": "e",
    "q": "q",
    "questionable": "q",
    "s": "s",
    "sensitive": "s",
    "g": "g",
    "general": "g",
}


@dataclass(frozen=True)
class ColumnMap:
    """A column map. Made with `find` or `parse`."""

    name: str
    site: str
    layer: str
    known_by: tuple[str, ...]
    """A table that has all of these columns is one of this kind."""
    columns: Mapping[str, tuple[str, ...]]
    tags: Mapping[str, tuple[str, ...]]
    """For each column of a tag layer the table's columns whose tags come there."""
    counts: Mapping[str, str] = field(default_factory=dict)
    captions: Mapping[str, str] = field(default_factory=dict)
    """The part of a caption layer's name behind `captions/` -> the table's column."""
    ratings: Mapping[str, str] = field(default_factory=lambda: _RATINGS)
    """The table's word -> g, s, q or e. Of several words in one row, the first of these counts."""

    @classmethod
    def parse(cls, name: str, values: Mapping[str, Any]) -> ColumnMap:
        """Make a map of TOML's tables. Raises OptionError for anything that no map says, naming what one can say."""
        parts = ("columns", "tags", "counts", "captions", "ratings")
        _known(f"the map {name}", values, ("site", "layer", "known_by", *parts))
        columns, lists = _lists(values, "columns", COLUMNS), _lists(values, "tags", schemas.TAG_CATEGORIES)
        counts, captions, ratings = (_texts(values, part) for part in parts[2:])
        _known("[counts]", counts, (*schemas.TAG_CATEGORIES, "all"))
        site = values.get("site", "danbooru")
        if site not in tags.SITES:
            raise OptionError(f"site = {site!r}: there are {', '.join(tags.SITES)}")
        if not columns.get("id") or not (lists or captions):
            raise OptionError(
                "a map needs columns for the id and for tags or captions: "
                '[columns] id = ["id"], [tags] general = […], [captions] name = "column"'
            )
        if wrong := sorted({*ratings.values()} - set("gsqe")):
            raise OptionError(f"[ratings] {wrong[0]!r} is none of g, s, q, e")
        known_by = _lists({"": values}, "", ("known_by",), others=True).get("known_by", ())
        layer = values.get("layer", name)
        if not isinstance(layer, str):
            raise OptionError(f"layer = {layer!r} is no name")
        return cls(name, site, layer, known_by, columns, lists, counts, captions, ratings or _RATINGS)

    @property
    def names(self) -> set[str]:
        """Every column of a table that is read."""
        groups = (*self.columns.values(), *self.tags.values(), self.counts.values(), self.captions.values())
        return {name for group in groups for name in group}

    def column(self, meaning: str, there: Collection[str]) -> str | None:
        """The table's column that says this, if it has one."""
        return next((name for name in self.columns.get(meaning, ()) if name in there), None)

    def missing(self, there: Collection[str]) -> list[str]:
        """What a table with these columns lacks so that nothing can be read."""
        lacks = [] if self.column("id", there) else [" or ".join(self.columns["id"])]
        return lacks + [name for names in self.tags.values() for name in names if name not in there]

    def matched(self, there: Collection[str]) -> tuple[int, float]:
        """How many of the columns that it names are there, and how large a part of them that is."""
        found = len(self.names.intersection(there))
        return found, found / len(self.names)


def presets() -> dict[str, ColumnMap]:
    """The maps that come with Cutline, by name."""
    return {name: ColumnMap.parse(name, toml_files.preset("booru", name)) for name in toml_files.presets("booru")}


def find(name: str) -> ColumnMap:
    """A map by its name, or the path of a TOML file of one's own. Raises CutlineError where there is none."""
    try:
        return ColumnMap.parse(Path(name).stem, toml_files.find("booru", name, "column map"))
    except OptionError as error:
        raise OptionError(f"{name}: {error}" if name.endswith(".toml") else str(error)) from None


def detect(there: Collection[str]) -> ColumnMap | None:
    """The map that knows a table with these columns best, if any does."""
    fitting = [
        known
        for known in presets().values()
        if known.known_by and {*known.known_by} <= {*there} and not known.missing(there)
    ]
    return max(fitting, key=lambda known: known.matched(there), default=None)


def _known(where: str, table: Mapping[str, Any], names: Collection[str]) -> None:
    for name in table:
        if name not in names:
            raise OptionError(f"{where} says '{name}'; it can say: {', '.join(names)}")


def _table(values: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    table = values.get(part, {})
    if not isinstance(table, dict):
        raise OptionError(f"{part} is a table: [{part}]")
    return table


def _lists(
    values: Mapping[str, Any], part: str, names: Collection[str], *, others: bool = False
) -> dict[str, tuple[str, ...]]:
    """Names of columns, one or a list of them, under each of these names."""
    table = _table(values, part)
    if not others:
        _known(f"[{part}]", table, names)
    found = {}
    for name in names:
        given = table.get(name, [])
        given = [given] if isinstance(given, str) else given
        if not isinstance(given, list) or not all(isinstance(item, str) for item in given):
            raise OptionError(f"{name} = {given!r} is no list of columns")
        if given:
            found[name] = tuple(given)
    return found


def _texts(values: Mapping[str, Any], part: str) -> dict[str, str]:
    table = _table(values, part)
    for name, given in table.items():
        if not isinstance(given, str):
            raise OptionError(f"[{part}] {name} = {given!r} is no text")
    return dict(table)
