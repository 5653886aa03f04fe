"""Tags: split out of one text and joined into one, and what boorus know of theirs.

Inside a dataset a tag is kept as it was typed; those of a booru have its own, canonical names. How a tag looks in a
prompt is decided when a text is composed, here. What rewrites tags works on the tags of many pictures at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cutline import schemas
from cutline.options import CutlineError

Numbers = npt.NDArray[np.int64]

_FACES = r"""
    ^_^ ^_~ ^_- -_- =_= >_< >_> <_< >_o o_o o_0 0_o 0_0 3_3 6_9 @_@ +_+ +_- *_* $_$ ._. ;_; t_t n_n u_u x_x
    |_| ||_|| (o)_(o) \(o\)_\(o\) <o>_<o> <|>_<|>
"""
EMOTICONS = frozenset(_FACES.split())
"""Tags, in lower case, whose underscore is part of a face and never stands for a space."""


def split(text: str) -> list[str]:
    """The tags of a comma-separated text, as typed; a line break separates too, and empty ones are dropped."""
    return [tag for piece in text.replace("\n", ",").split(",") if (tag := piece.strip())]


def tidied(text: str) -> str:
    """The tags of a comma-separated text in one text, with `, ` between them and nowhere else."""
    if (
        text.isascii()
        and text.count(",") == text.count(", ")
        and "  " not in text
        and " ," not in text
        and len(text.splitlines()) == 1
        and "\t" not in text
        and "\x1f" not in text
        and text[0] not in " ,"
        and text[-1] not in " ,"
    ):
        return text  # it is so already, as most are
    return ", ".join(split(text))


def spaced(tags: pa.StringArray) -> pa.StringArray:
    """Write `_` as a space, except in `EMOTICONS`: `long_hair` becomes `long hair`, `^_^` stays."""
    faces = pc.is_in(pc.ascii_lower(tags), value_set=pa.array(sorted(EMOTICONS)))
    return pc.if_else(faces, tags, pc.replace_substring(tags, "_", " "))


def joined(tags: pa.ListArray, separator: str, *, spaces: bool = False) -> pa.StringArray:
    """Each row's tags as one text; null where it has none. Null and empty tags count for nothing.

    Args:
        tags: lists of strings, which may be dictionary-coded, as `Dataset.scan` gives them.
        separator: what stands between two.
        spaces: write them `spaced`.
    """
    offsets = tags.offsets
    begin, end = offsets[0].as_py(), offsets[-1].as_py()
    values = tags.values.slice(begin, end - begin)
    if not pa.types.is_dictionary(values.type):
        values = values.dictionary_encode()
    names = values.dictionary
    if names.null_count or values.null_count or pc.any(pc.equal(names, "")).as_py():
        return joined(_without_empty(tags), separator, spaces=spaces)
    strings = (spaced(names) if spaces else names).take(values.indices)
    nothing = pc.invert(pc.fill_null(pc.greater(pc.list_value_length(tags), 0), False))
    return pc.binary_join(pa.ListArray.from_arrays(pc.subtract(offsets, begin), strings, mask=nothing), separator)


def parents(lists: pa.ListArray) -> Numbers:
    """Of each of the values that `lists.flatten()` gives, which list it is of. Nulls may have values behind them."""
    return np.repeat(np.arange(len(lists)), pc.fill_null(pc.list_value_length(lists), 0))


def starts(rows: Numbers, count: int) -> Numbers:
    """The other way round: where each of `count` lists begins among values whose `parents` rise, and where all end."""
    return np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))])


def _without_empty(tags: pa.ListArray) -> pa.ListArray:
    return pa.array([row and [tag for tag in row if tag] for row in tags.to_pylist()], pa.list_(pa.string()))


# -- names ----------------------------------------------------------------------------------------------------

SITES: dict[str, dict[str, str]] = {
    "danbooru": {"0": "general", "1": "artist", "3": "copyright", "4": "character", "5": "meta"},
    # Its 6 is deprecated.
    "gelbooru": {"0": "general", "1": "artist", "3": "copyright", "4": "character", "5": "meta", "6": "unsorted"},
    # A species can be seen; a contributor (2) and lore (8) cannot. Its 6 is invalid.
    "e621": {
        "0": "general",
        "1": "artist",
        "2": "meta",
        "3": "copyright",
        "4": "character",
        "5": "general",
        "6": "unsorted",
        "7": "meta",
        "8": "meta",
    },
    "kblueleaf": {"0": "general", "1": "artist", "2": "character", "3": "copyright", "4": "meta"},
}
"""What each site's category codes are in a tag layer."""

_CATEGORY_WORDS = {
    "tag": "general",
    "species": "general",
    "contributor": "meta",
    "lore": "meta",
    "metadata": "meta",
    "deprecated": "unsorted",
    "invalid": "unsorted",
    **{name: name for name in schemas.TAG_CATEGORIES},
}


def canonical(tags: pa.StringArray) -> pa.StringArray:
    """Tags as boorus name them: NFC, lower case, stripped, `_` for space. `Long Hair` becomes `long_hair`."""
    plain = pc.utf8_trim_whitespace(pc.utf8_lower(pc.utf8_normalize(tags, form="NFC")))
    return pc.replace_substring_regex(plain, r"\s+", "_")


def words(texts: pa.StringArray) -> pa.ListArray:
    """The tags of texts like a booru's `tag_string`, which white space separates; none for a null."""
    return pc.ascii_split_whitespace(pc.fill_null(texts, ""))


@dataclass(frozen=True)
class TagRows:
    """The tags of many pictures in one long table: how tags are rewritten without a loop over pictures."""

    count: int
    """Pictures."""
    names: pa.StringArray
    """Every tag that occurs, once."""
    rows: Numbers
    """Of each tag of each picture: which picture,"""
    columns: Numbers
    """which column of the layer (a place in `schemas.TAG_CATEGORIES`),"""
    codes: Numbers
    """and which of `names`."""
    origins: Numbers
    """The place of each in the lists that it was read from, one list after the other; -1 where it was not there so."""

    @classmethod
    def of(cls, lists: Mapping[str, pa.ListArray]) -> TagRows:
        """The tags of list columns of one length, under their canonical names, empty and repeated ones dropped.

        Where a picture has a tag in two columns, it stays in the first.
        """
        flat = pa.concat_arrays([column.flatten().cast(pa.string()) for column in lists.values()])
        rows = np.concatenate([parents(column) for column in lists.values()])
        places = [schemas.TAG_CATEGORIES.index(name) for name in lists]
        columns = np.repeat(places, [len(column.flatten()) for column in lists.values()])
        typed = pc.fill_null(flat, "").dictionary_encode()
        return cls.typed(len(next(iter(lists.values()))), typed.dictionary, rows, columns, _codes(typed.indices))

    @classmethod
    def typed(cls, count: int, names: pa.StringArray, rows: Numbers, columns: Numbers, codes: Numbers) -> TagRows:
        """As `of`, of tags that are in one long table already, under the names as they were typed."""
        found = canonical(names).dictionary_encode()
        codes = _codes(found.indices)[codes]
        kept = np.flatnonzero(codes != pc.index(found.dictionary, "").as_py())
        return cls(count, found.dictionary, rows[kept], columns[kept], codes[kept], kept).distinct()

    def distinct(self) -> TagRows:
        """Each tag once for each picture: its first."""
        places = self.rows * len(self.names) + self.codes
        small = self.count * len(self.names) < 1 << 32  # half the bytes are sorted in half the time
        ordered = np.sort(places.astype(np.uint32) if small else places)
        if not np.any(ordered[1:] == ordered[:-1]):
            return self
        return self.only(np.sort(np.unique(places, return_index=True)[1]))

    def lists(self, *names: str) -> dict[str, pa.ListArray]:
        """These columns as lists, one for each picture."""
        found = {}
        for name in names:
            mine = np.flatnonzero(self.columns == schemas.TAG_CATEGORIES.index(name))
            mine = mine[np.argsort(self.rows[mine], kind="stable")]
            offsets = starts(self.rows[mine], self.count)
            values = self.names.take(pa.array(self.codes[mine]))
            found[name] = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
        return found

    def having(self, pattern: str) -> Numbers:
        """The pictures, as row numbers, that have a tag with this piece of text in it."""
        return np.unique(self.rows[_mask(pc.match_substring(self.names, pattern))[self.codes]])

    def renamed(self, names: pa.StringArray) -> TagRows:
        """With other names in the place of `names`."""
        merged = names.dictionary_encode()
        same = _mask(pc.equal(names, self.names))[self.codes]
        return replace(
            self,
            names=merged.dictionary,
            codes=_codes(merged.indices)[self.codes],
            origins=np.where(same, self.origins, -1),
        ).distinct()

    def only(self, places: Numbers) -> TagRows:
        """Some of these tags, by their places in the table."""
        return replace(
            self,
            rows=self.rows[places],
            columns=self.columns[places],
            codes=self.codes[places],
            origins=self.origins[places],
        )


# -- what a site knows of its tags ----------------------------------------------------------------------------


class TagCycle(CutlineError):
    """Tags that lead back to themselves, by aliases or implications."""


@dataclass(frozen=True)
class Aliases:
    """Other names of tags: `antecedent` is written `consequent`. Chains are followed when it is made.

    Raises:
        TagCycle: naming the tags that lead back to the first.
    """

    pairs: Mapping[str, str]
    ignored: int = 0
    """Rows of the table that are not active."""

    def __post_init__(self) -> None:
        for start in self.pairs:
            path = [start]
            while path[-1] in self.pairs:
                path.append(self.pairs[path[-1]])
                if path[-1] in path[:-1]:
                    raise TagCycle(f"aliases go round in a circle: {' -> '.join(path[path.index(path[-1]) :])}")

    @classmethod
    def read(cls, path: str | Path) -> Aliases:
        """Read a table with `antecedent_name`, `consequent_name` and perhaps `status`: JSON, CSV or Parquet."""
        pairs, ignored = _read_pairs(Path(path))
        return cls(dict(pairs), ignored)

    def alias(self, tag: str) -> str:
        """The name that counts."""
        while tag in self.pairs:
            tag = self.pairs[tag]
        return tag

    def apply(self, tags: TagRows) -> TagRows:
        """All tags under the names that count, each once."""
        found = pc.index_in(tags.names, value_set=self._antecedents)
        return tags.renamed(pc.coalesce(self._consequents.take(found), tags.names))

    @cached_property
    def _antecedents(self) -> pa.StringArray:
        return pa.array(self.pairs, pa.string())

    @cached_property
    def _consequents(self) -> pa.StringArray:
        return pa.array([self.alias(tag) for tag in self.pairs], pa.string())


@dataclass(frozen=True)
class Implications:
    """Tags that follow from tags: a picture with `cat_ears` has `animal_ears`, and what follows from that.

    Raises:
        TagCycle: naming the tags that lead back to the first.
    """

    pairs: Sequence[tuple[str, str]]
    """(antecedent, consequent)."""
    ignored: int = 0
    """Rows of the table that are not active."""

    def __post_init__(self) -> None:
        _ = self._all

    @classmethod
    def read(cls, path: str | Path) -> Implications:
        """Read a table with `antecedent_name`, `consequent_name` and perhaps `status`: JSON, CSV or Parquet."""
        return cls(*_read_pairs(Path(path)))

    def closure(self, tags: Sequence[str]) -> list[str]:
        """The tags, and after them all that follow from them."""
        return list(dict.fromkeys([*tags, *(implied for tag in tags for implied in self._all.get(tag, ()))]))

    def reduce(self, tags: Sequence[str]) -> list[str]:
        """The tags that do not follow from others among them."""
        implied = {other for tag in tags for other in self._all.get(tag, ())}
        return [tag for tag in dict.fromkeys(tags) if tag not in implied]

    def close(self, tags: TagRows, vocabulary: Vocabulary | None = None) -> TagRows:
        """`closure` of every picture. What is added comes into its antecedent's column, or where a vocabulary says."""
        names, source, codes = self._implied(tags)
        columns = tags.columns[source]
        if vocabulary is not None:
            known = vocabulary.places(names)[codes]
            columns = np.where(known == _UNSORTED, columns, known)
        return TagRows(
            tags.count,
            names,
            np.concatenate([tags.rows, tags.rows[source]]),
            np.concatenate([tags.columns, columns]),
            np.concatenate([tags.codes, codes]),
            np.concatenate([tags.origins, np.full(len(codes), -1)]),
        ).distinct()

    def drop(self, tags: TagRows) -> TagRows:
        """`reduce` of every picture."""
        names, source, codes = self._implied(tags)
        implied = np.isin(tags.rows * len(names) + tags.codes, tags.rows[source] * len(names) + codes)
        return tags.only(np.flatnonzero(~implied))

    def _implied(self, tags: TagRows) -> tuple[pa.StringArray, Numbers, Numbers]:
        """The names with those implied behind them; for every implied tag, whose place it follows from and its code."""
        antecedents, offsets, consequents = self._flat
        merged = pa.concat_arrays([tags.names, consequents]).dictionary_encode()
        consequent_codes = _codes(merged.indices)[len(tags.names) :]
        which = pc.fill_null(pc.index_in(tags.names, value_set=antecedents), len(antecedents)).to_numpy()
        lengths = np.append(np.diff(offsets), 0)[which][tags.codes]
        source = np.repeat(np.arange(len(tags.codes)), lengths)
        within = np.arange(len(source)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return merged.dictionary, source, consequent_codes[offsets[which[tags.codes[source]]] + within]

    @cached_property
    def _all(self) -> dict[str, tuple[str, ...]]:
        """Everything that follows from a tag, near before far."""
        direct: dict[str, list[str]] = {}
        for antecedent, consequent in self.pairs:
            direct.setdefault(antecedent, []).append(consequent)
        done: dict[str, tuple[str, ...]] = {}
        for start in direct:
            path, todo = [start], [iter(direct[start])]
            while path:  # by hand, since chains may be deeper than Python's stack
                following = next((tag for tag in todo[-1] if tag in direct and tag not in done), None)
                if following is None:
                    tag = path.pop()
                    todo.pop()
                    near = direct[tag]
                    done[tag] = tuple(dict.fromkeys([*near, *(far for one in near for far in done.get(one, ()))]))
                elif following in path:
                    circle = [*path[path.index(following) :], following]
                    raise TagCycle(f"implications go round in a circle: {' -> '.join(circle)}")
                else:
                    path.append(following)
                    todo.append(iter(direct[following]))
        return done

    @cached_property
    def _flat(self) -> tuple[pa.StringArray, Numbers, pa.StringArray]:
        offsets = np.cumsum([0, *(len(implied) for implied in self._all.values())])
        implied = [tag for tags in self._all.values() for tag in tags]
        return pa.array(self._all, pa.string()), offsets, pa.array(implied, pa.string())


@dataclass(frozen=True)
class Vocabulary:
    """Which category each tag is of, and on how many posts it is."""

    names: pa.StringArray
    categories: pa.StringArray
    """Columns of a tag layer."""
    counts: pa.Int64Array | None = None

    @classmethod
    def read(cls, path: str | Path, site: str = "danbooru") -> Vocabulary:
        """Read a table with `name`, `category` and perhaps `post_count`: CSV, JSON or Parquet.

        Args:
            path: the table. A tag that stands there twice is what its first row says.
            site: whose codes the categories are, where they are numbers (see `SITES`).
        """
        table = _read_table(Path(path), ("name", "category"))
        known = {**_CATEGORY_WORDS, **SITES[site]}
        spoken = pc.utf8_lower(pc.utf8_trim_whitespace(table["category"]))
        found = pc.index_in(spoken, value_set=pa.array(known, pa.string()))
        categories = pc.fill_null(pa.array(known.values(), pa.string()).take(found), "unsorted")
        counts = None
        if "post_count" in table.column_names:
            digits = pc.match_substring_regex(table["post_count"], r"^\d{1,18}$")
            counts = pc.if_else(digits, table["post_count"], None).cast(pa.int64()).combine_chunks()
        return cls(canonical(table["name"]).combine_chunks(), categories.combine_chunks(), counts)

    def places(self, names: pa.StringArray) -> Numbers:
        """Of each name its column, as a place in `schemas.TAG_CATEGORIES`; that of `unsorted` where it is unknown."""
        mine = np.append(_codes(pc.index_in(self.categories, value_set=pa.array(schemas.TAG_CATEGORIES))), _UNSORTED)
        found: Numbers = mine[pc.fill_null(pc.index_in(names, value_set=self.names), len(mine) - 1).to_numpy()]
        return found

    def sort(self, tags: TagRows) -> TagRows:
        """Unsorted tags in the columns that they belong in."""
        known = self.places(tags.names)[tags.codes]
        return replace(tags, columns=np.where(tags.columns == _UNSORTED, known, tags.columns))


_UNSORTED = schemas.TAG_CATEGORIES.index("unsorted")


def _codes(indices: pa.Array) -> Numbers:
    codes: Numbers = indices.to_numpy().astype(np.int64)
    return codes


def _mask(flags: pa.BooleanArray) -> Any:
    return flags.to_numpy(zero_copy_only=False)


def _read_pairs(path: Path) -> tuple[list[tuple[str, str]], int]:
    """Active pairs of canonical names, and how many others there are."""
    table = _read_table(path, ("antecedent_name", "consequent_name"))
    every = table.num_rows
    if "status" in table.column_names:
        table = table.filter(pc.fill_null(pc.equal(table["status"], "active"), False))
    sides = [canonical(table[name]).to_pylist() for name in ("antecedent_name", "consequent_name")]
    pairs = [(one, other) for one, other in zip(*sides, strict=True) if one and other]
    return pairs, every - len(pairs)


def _read_table(path: Path, needed: Sequence[str]) -> pa.Table:
    """A small table of text columns, whatever its format."""
    import duckdb

    name = "'" + str(path.expanduser()).replace("'", "''") + "'"
    form = Path(path.name.lower().removesuffix(".gz")).suffix
    dialect = """header=true, all_varchar=true, quote='"', escape='"'"""
    readers = {".csv": f"read_csv({{}}, delim=',', {dialect})", ".tsv": f"read_csv({{}}, delim='\t', {dialect})"}
    readers |= {".json": "read_json({})", ".jsonl": "read_json({})", ".parquet": "read_parquet({})"}
    if form not in readers:
        raise CutlineError(f"{path} is none of {', '.join(readers)}, so its tags cannot be read")
    try:
        con = duckdb.connect()
        table = con.sql(f"select columns(*)::varchar from {readers[form].format(name)}").to_arrow_table()
    except duckdb.Error as error:
        raise CutlineError(f"cannot read {path}: {error}") from None
    if missing := [column for column in needed if column not in table.column_names]:
        raise CutlineError(f"{path} has no column {' and '.join(missing)}. It has: {', '.join(table.column_names)}")
    return table
