"""Counting the words of a dataset: how often each tag is used, how long sets and captions are, how scores lie.

Counted are the good rows of the readable pictures: no errors, no deleted rows, nothing of pictures that vanished. The
database does the counting and hands over only what is small: a line for each tag, each length, each score.

A tag is a spelling in a category: `saber` the character and `saber` the weapon are two. Null and empty tags count for
nothing. A percentile is a value that occurs: the least one that so many of a hundred do not exceed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from cutline import schemas
from cutline.dataset import Dataset
from cutline.files import whole_file
from cutline.layer import identifier, quote
from cutline.options import OptionError

Counts = npt.NDArray[np.int64]

PERCENTILES = {"p1": 10, "p5": 50, "p25": 250, "median": 500, "p75": 750, "p95": 950, "p99": 990, "p99.9": 999}
"""What is told of a spread between its least and its greatest value, in thousandths."""

SIZES = (1_000, 2_000, 5_000, 10_000, 20_000, 32_768, 65_536, 131_072, 262_144, 524_288, 1_048_576)
"""Sizes of vocabularies to look at."""

TIMES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
"""How often a tag has to occur to be in a vocabulary."""

UNKNOWN = "unknown"
"""The rating of a picture to which nobody gave one."""

_RATINGS = "gsqe"
_BLANK = r"e'\t\n\r\f\x0b'"
_UNEVEN = r"'[\t\n\r\f\v]|  |^ | $|^$'"  # where words are not simply one more than spaces, which are quick to count


@dataclass(frozen=True)
class Spread:
    """How often each value occurs; the values ascend."""

    values: Counts
    counts: Counts

    @property
    def total(self) -> int:
        """How many there are."""
        return int(self.counts.sum())

    def at(self, thousandths: int) -> int:
        """The least value that so many thousandths do not exceed."""
        rank = max(1, -(-self.total * thousandths // 1000))
        return int(self.values[np.searchsorted(np.cumsum(self.counts), rank)])

    def as_dict(self) -> dict[str, int | float]:
        """Count, mean, least, percentiles, greatest; of nothing only the count."""
        if not self.total:
            return {"count": 0}
        mean = float((self.values * self.counts).sum() / self.total)
        inner = {name: self.at(thousandths) for name, thousandths in PERCENTILES.items()}
        ends = int(self.values[0]), int(self.values[-1])
        return {"count": self.total, "mean": round(mean, 3), "min": ends[0], **inner, "max": ends[1]}


@dataclass(frozen=True)
class Rows:
    """What is counted of every layer."""

    layer: str
    pictures: int
    """Those that are readable, whether the layer has a row for them or not."""
    rows: int
    errors: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"pictures": self.pictures, "rows": self.rows, "errors": self.errors}


@dataclass(frozen=True)
class TagCounts:
    """What is counted of a tag layer."""

    of: Rows
    frequencies: pa.Table
    """tag, category, count: the commonest first, equally common ones by category and spelling."""
    lengths: dict[str, Spread]
    """Tags in a row: `all`, and for each category that is in use."""
    ratings: dict[str, int]
    scores: dict[str, Spread]
    """Of `all` rows with a score, and by rating."""

    @property
    def categories(self) -> list[str]:
        """Those in use, in their usual order."""
        return [name for name in self.lengths if name != "all"]

    def counts(self, category: str = "all") -> Counts:
        """How often each tag is used, descending."""
        found = self.frequencies["count"]
        if category != "all":
            found = found.filter(pc.equal(self.frequencies["category"], category))
        return np.asarray(found, dtype=np.int64)

    def top(self, count: int, category: str) -> list[dict[str, Any]]:
        """The commonest tags of a category."""
        mine = self.frequencies.filter(pc.equal(self.frequencies["category"], category))
        rows: list[dict[str, Any]] = mine.select(["tag", "count"]).slice(0, count).to_pylist()
        return rows

    def as_dict(self, top: int) -> dict[str, Any]:
        """As JSON, with that many tags of each category."""
        return {
            **self.of.as_dict(),
            **self._vocabulary("all"),
            "categories": {name: {**self._vocabulary(name), "top": self.top(top, name)} for name in self.categories},
            "ratings": self.ratings,
            "scores": {name: spread.as_dict() for name, spread in self.scores.items()},
        }

    def _vocabulary(self, category: str) -> dict[str, Any]:
        counts = self.counts(category)
        return {
            "tags": len(counts),
            "uses": int(counts.sum()),
            "coverage": [{"size": size, "share": round(share, 6)} for size, share in coverage(counts)],
            "at_least": [
                {"times": times, "tags": tags, "share": round(share, 6)} for times, tags, share in at_least(counts)
            ],
            "lengths": self.lengths[category].as_dict(),
        }


@dataclass(frozen=True)
class CaptionCounts:
    """What is counted of a caption layer."""

    of: Rows
    verdicts: dict[str, int]
    captions: Spread
    """Captions in a row."""
    characters: Spread
    """In each caption, as many as there are."""
    words: Spread
    """Between blanks and line breaks."""

    def as_dict(self, top: int = 0) -> dict[str, Any]:
        """As JSON."""
        return {
            **self.of.as_dict(),
            "verdicts": self.verdicts,
            "captions": self.captions.as_dict(),
            "characters": self.characters.as_dict(),
            "words": self.words.as_dict(),
        }


def count(dataset: Dataset, layer: str = "") -> dict[str, TagCounts | CaptionCounts]:
    """Count this layer, or every layer of tags or captions.

    Raises:
        OptionError: for a layer that is not there, or has neither tags nor captions.
    """
    countable = [name for name in dataset.layers() if schemas.kind(name) in ("tags", "captions")]
    if layer and layer not in countable:
        there = ", ".join(countable) or "none yet"
        raise OptionError(f"{layer} is no layer of tags or captions of {dataset.root}; there are: {there}")
    pictures = dataset.sql("from pictures where error is null").count()
    found: dict[str, TagCounts | CaptionCounts] = {}
    for name in [layer] if layer else countable:
        by_error = dict(_tally(dataset, f"select error from {_rows(name)}"))
        rows = Rows(name, pictures, by_error.pop(None, 0), by_error)
        found[name] = _tags(dataset, rows) if schemas.kind(name) == "tags" else _captions(dataset, rows)
    return found


def coverage(counts: Counts, sizes: Iterable[int] = SIZES) -> list[tuple[int, float]]:
    """What share of all uses the n commonest tags keep, for vocabularies of n that are smaller than all, and for all.

    Args:
        counts: how often each tag is used, descending.
        sizes: the numbers of tags to look at, ascending.
    """
    if not len(counts):
        return []
    kept = np.cumsum(counts) / counts.sum()
    return [(size, float(kept[size - 1])) for size in (*(n for n in sizes if n < len(counts)), len(counts))]


def at_least(counts: Counts, times: Iterable[int] = TIMES) -> list[tuple[int, int, float]]:
    """How many tags are used so many times or more, and what share of all uses they keep; up to the most used one."""
    return [
        (least, int((counts >= least).sum()), float(counts[counts >= least].sum() / counts.sum()))
        for least in times
        if len(counts) and least <= counts[0]
    ]


def _rows(layer: str) -> str:
    """SQL of a layer's rows that are about readable pictures."""
    readable = "(select key from pictures where error is null)"
    return f"(select mine.* from {identifier(layer)} as mine semi join {readable} as readable using (key)) as mine"


def _tally(dataset: Dataset, query: str) -> list[tuple[Any, ...]]:
    """What a query gives, with how often, in ascending order."""
    return dataset.sql(f"select *, count(*) from ({query}) as asked group by all order by all").fetchall()


def _tags(dataset: Dataset, rows: Rows) -> TagCounts:
    good = f"from {_rows(rows.layer)} where error is null"
    names = [quote(name) for name in schemas.TAG_CATEGORIES]
    lists = [identifier(name) for name in schemas.TAG_CATEGORIES]
    frequencies = dataset.sql(f"""
        select tag, category, count(*) as count from (
            select category, unnest(tags) as tag from (
                select unnest([{", ".join(names)}]) as category, unnest([{", ".join(lists)}]) as tags {good}))
        where tag <> '' group by all order by count desc, category, tag""").arrow()
    sizes = [f"len(list_filter(coalesce({column}, []), lambda tag: tag <> ''))" for column in lists]
    lengths = _tally(
        dataset,
        f"""select unnest(['all', {", ".join(names)}]) as category,
            unnest(list_prepend(list_sum(sizes)::bigint, sizes)) as size
            from (select [{", ".join(sizes)}] as sizes {good})""",
    )
    used = {"all", *pc.unique(frequencies["category"]).to_pylist()}
    scores = _tally(dataset, f"select coalesce(rating, {quote(UNKNOWN)}) as rating, score {good}")
    ratings = sorted({rating for rating, _, _ in scores}, key=_rating)
    scored = [row for row in scores if row[1] is not None]
    return TagCounts(
        rows,
        frequencies,
        {
            name: _spread((size, many) for category, size, many in lengths if category == name)
            for name in ("all", *schemas.TAG_CATEGORIES)
            if name in used
        },
        {name: sum(many for rating, _, many in scores if rating == name) for name in ratings},
        {
            name: _spread((score, many) for rating, score, many in scored if name in ("all", rating))
            for name in ("all", *ratings)
        },
    )


def _rating(name: str) -> tuple[int, str]:
    return (_RATINGS.index(name) if name in _RATINGS else len(_RATINGS), name)


def _captions(dataset: Dataset, rows: Rows) -> CaptionCounts:
    good = f"from {_rows(rows.layer)} where error is null"
    text = f"select unnest(texts) as text {good}"
    pieces = f"string_split(translate(text, {_BLANK}, '     '), ' ')"
    words = f"""case when regexp_matches(text, {_UNEVEN}) then len(list_filter({pieces}, lambda word: word <> ''))
        else strlen(text) - strlen(replace(text, ' ', '')) + 1 end"""
    lengths = _tally(
        dataset,
        f"select unnest(['characters', 'words']) as what, unnest([length(text), {words}]) as size "
        f"from ({text}) where text is not null",
    )
    return CaptionCounts(
        rows,
        dict(_tally(dataset, f"select coalesce(verdict, 'none') {good}")),
        _spread(_tally(dataset, f"select coalesce(list_count(texts), 0) {good}")),
        *(_spread((size, many) for what, size, many in lengths if what == name) for name in ("characters", "words")),
    )


def _spread(pairs: Iterable[tuple[Any, ...]]) -> Spread:
    """Of values with how often each occurs; a value may come more than once."""
    found = np.array(list(pairs), np.int64).reshape(-1, 2)
    values, which = np.unique(found[:, 0], return_inverse=True)
    counts = np.zeros(len(values), np.int64)
    np.add.at(counts, which, found[:, 1])
    return Spread(values, counts)


def write_frequencies(counts: TagCounts, path: Path) -> None:
    """Write every tag with its category and count, the commonest first, to a `.csv` or `.parquet` file."""
    with whole_file(path) as handle:
        if path.suffix == ".csv":
            pyarrow.csv.write_csv(counts.frequencies, handle)
        else:
            pq.write_table(counts.frequencies, handle, compression="zstd")
