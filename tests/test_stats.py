"""Counting tags and captions: against a truth made by hand, and against plain Python on rows drawn at random."""

from __future__ import annotations

import csv
import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cutline import schemas, statistics
from cutline.dataset import Dataset, KeyRule
from cutline.options import OptionError
from cutline.statistics import PERCENTILES, CaptionCounts, Spread, TagCounts, at_least, count, coverage
from running import cutline

TAGS, CAPTIONS = "tags/mine", "captions/mine"


def dataset(root: Path, pictures: Iterable[dict[str, Any]], **layers: Iterable[dict[str, Any]]) -> Dataset:
    """A dataset of nothing but rows; `tags` and `captions` fill a layer each."""
    root.mkdir(exist_ok=True)
    made = Dataset(root)
    made.create(KeyRule())
    for name, rows in {"pictures": pictures, **{f"{kind}/mine": rows for kind, rows in layers.items()}}.items():
        with made.layer(name).write() as writer:
            for row in rows:
                writer.add(row)
    return made


@pytest.fixture
def mine(tmp_path: Path) -> Dataset:
    """Five pictures, one of which has vanished, and rows of every sort."""
    made = dataset(
        tmp_path / "photos",
        [*({"key": key} for key in "abcd"), {"key": "gone", "error": "vanished"}],
        tags=[
            {"key": "a", "general": ["hat", "cat"], "artist": ["hat"], "rating": "g", "score": 3},
            {"key": "b", "general": ["cat", "", None], "rating": "e", "score": -1},
            {"key": "c", "rating": "g"},
            {"key": "d", "general": ["wrong"], "rating": "q", "score": 99},
            {"key": "gone", "general": ["cat", "ghost"], "rating": "g", "score": 50},
        ],
        captions=[
            {"key": "a", "texts": ["a  cat\non a hat", "cät"], "verdict": "good"},
            {"key": "b", "texts": [" one "], "verdict": "repaired"},
            {"key": "c", "verdict": "rejected"},
            {"key": "d", "error": "timeout"},
            {"key": "gone", "texts": ["a ghost"], "verdict": "good"},
        ],
    )
    with made.layer(TAGS).write() as writer:
        writer.delete("d")
    return made


def tags(found: dict[str, TagCounts | CaptionCounts]) -> TagCounts:
    counts = found[TAGS]
    assert isinstance(counts, TagCounts)
    return counts


def captions(found: dict[str, TagCounts | CaptionCounts]) -> CaptionCounts:
    counts = found[CAPTIONS]
    assert isinstance(counts, CaptionCounts)
    return counts


def pairs(spread: Spread) -> dict[int, int]:
    return dict(zip(spread.values.tolist(), spread.counts.tolist(), strict=True))


def frequencies(counts: TagCounts) -> dict[tuple[str, str], int]:
    return {(row["category"], row["tag"]): row["count"] for row in counts.frequencies.to_pylist()}


def test_tags_are_counted_as_by_hand(mine: Dataset) -> None:
    counts = tags(count(mine, TAGS))
    assert (counts.of.pictures, counts.of.rows, counts.of.errors) == (4, 3, {})
    assert counts.frequencies.to_pylist() == [
        {"tag": "cat", "category": "general", "count": 2},
        {"tag": "hat", "category": "artist", "count": 1},
        {"tag": "hat", "category": "general", "count": 1},
    ]
    assert {name: pairs(spread) for name, spread in counts.lengths.items()} == {
        "all": {0: 1, 1: 1, 3: 1},
        "artist": {0: 2, 1: 1},
        "general": {0: 1, 1: 1, 2: 1},
    }
    assert counts.ratings == {"g": 2, "e": 1}
    assert {name: pairs(spread) for name, spread in counts.scores.items()} == {
        "all": {-1: 1, 3: 1},
        "g": {3: 1},
        "e": {-1: 1},
    }


def test_captions_are_counted_as_by_hand(mine: Dataset) -> None:
    counts = captions(count(mine, CAPTIONS))
    assert (counts.of.pictures, counts.of.rows, counts.of.errors) == (4, 3, {"timeout": 1})
    assert counts.verdicts == {"good": 1, "rejected": 1, "repaired": 1}
    assert pairs(counts.captions) == {0: 1, 1: 1, 2: 1}
    assert pairs(counts.characters) == {3: 1, 5: 1, 15: 1}
    assert pairs(counts.words) == {1: 2, 5: 1}


def test_coverage_and_cut_offs_as_by_hand() -> None:
    counts = np.array([50, 30, 10, 5, 5])
    assert coverage(counts, (1, 2, 4, 5, 9)) == [(1, 0.5), (2, 0.8), (4, 0.95), (5, 1.0)]
    assert at_least(counts, (1, 6, 30, 51)) == [(1, 5, 1.0), (6, 3, 0.9), (30, 2, 0.8)]
    assert coverage(counts[:0]) == []
    assert at_least(counts[:0]) == []


def test_percentiles_are_values_that_occur() -> None:
    spread = statistics._spread((value, 1) for value in range(1, 1001))
    assert spread.as_dict() == {
        "count": 1000,
        "mean": 500.5,
        "min": 1,
        **{name: max(1, thousandths) for name, thousandths in PERCENTILES.items()},
        "max": 1000,
    }
    assert statistics._spread([]).as_dict() == {"count": 0}


_WORDS = st.sampled_from(
    ["cat", "hat", "^_^", "tag with space", 'don\'t_say_"lazy"', "", "ü", "1girl", "a,b", "[bold]"]
)
_LISTS = st.none() | st.lists(st.none() | _WORDS, max_size=6)
_TAG_ROW = st.fixed_dictionaries(
    {
        **dict.fromkeys(schemas.TAG_CATEGORIES, _LISTS),
        "rating": st.none() | st.sampled_from("gsqe"),
        "score": st.none() | st.integers(-20, 20),
    }
)
_TEXT = st.text(alphabet="ab \t\n\r\f\vé漢", max_size=12)
_CAPTION_ROW = st.fixed_dictionaries(
    {
        "texts": st.none() | st.lists(st.none() | _TEXT, max_size=3),
        "verdict": st.none() | st.sampled_from(["good", "bad"]),
    }
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(_TAG_ROW, _CAPTION_ROW, st.sampled_from(["", "", "", "vanished"])), max_size=12))
def test_counts_are_those_of_plain_python(drawn: list[tuple[dict[str, Any], dict[str, Any], str]]) -> None:
    rows = [(f"p{number}", *entry) for number, entry in enumerate(drawn)]
    with tempfile.TemporaryDirectory() as folder:
        found = count(
            dataset(
                Path(folder),
                [{"key": "always"}, *({"key": key, "error": error or None} for key, _, _, error in rows)],
                tags=[{"key": "always"}, *({"key": key, **row} for key, row, _, _ in rows)],
                captions=[{"key": "always"}, *({"key": key, **row} for key, _, row, _ in rows)],
            )
        )
    tagged = [{}, *(row for _, row, _, error in rows if not error)]
    sets = [{name: [tag for tag in row.get(name) or [] if tag] for name in schemas.TAG_CATEGORIES} for row in tagged]
    counts = tags(found)
    assert frequencies(counts) == Counter((name, tag) for row in sets for name in row for tag in row[name])
    assert pairs(counts.lengths["all"]) == Counter(sum(map(len, row.values())) for row in sets)
    for name in counts.categories:
        assert pairs(counts.lengths[name]) == Counter(len(row[name]) for row in sets)
        assert counts.counts(name).sum() == sum(len(row[name]) for row in sets)
    assert counts.ratings == Counter(row.get("rating") or "unknown" for row in tagged)
    scores = sorted(row["score"] for row in tagged if row.get("score") is not None)
    assert pairs(counts.scores["all"]) == Counter(scores)
    for name, thousandths in PERCENTILES.items():
        if scores:
            rank = max(1, math.ceil(len(scores) * thousandths / 1000))
            assert counts.scores["all"].as_dict()[name] == scores[rank - 1]
    told = captions(found)
    texts = [
        [text for text in row.get("texts") or [] if text is not None] for row in [{}, *(r[2] for r in rows if not r[3])]
    ]
    assert pairs(told.captions) == Counter(map(len, texts))
    assert pairs(told.characters) == Counter(len(text) for row in texts for text in row)
    assert pairs(told.words) == Counter(len(text.split()) for row in texts for text in row)


def test_the_command_prints_counts_and_says_how_many_it_leaves_out(mine: Dataset) -> None:
    printed = cutline("stats", mine.root, "--top", "1").stdout
    assert "tags/mine: 3 rows for 4 pictures" in printed
    assert "captions/mine: 3 rows for 4 pictures; errors: 1 timeout" in printed
    assert "general: the 1 commonest of 2" in printed
    found = json.loads(cutline("stats", mine.root, "--top", "1", "--json").stdout)
    assert list(found) == [CAPTIONS, TAGS]
    general = found[TAGS]["categories"]["general"]
    assert (general["tags"], general["uses"], general["top"]) == (2, 3, [{"tag": "cat", "count": 2}])
    assert found[TAGS]["coverage"] == [{"size": 3, "share": 1.0}]
    assert found[TAGS]["at_least"] == [
        {"times": 1, "tags": 3, "share": 1.0},
        {"times": 2, "tags": 1, "share": 0.5},
    ]
    assert found[CAPTIONS]["words"]["max"] == 5


def test_tags_that_look_like_markup_are_printed_as_they_are(tmp_path: Path) -> None:
    odd = ["[bold]", ":smile:", "[/]", ":d"]
    made = dataset(tmp_path, [{"key": "a"}], tags=[{"key": "a", "general": odd}])
    printed = cutline("stats", made.root).stdout
    assert all(tag in printed for tag in odd)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_every_tag_is_written_for_a_vocabulary(mine: Dataset, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"tags.{ending}"
    cutline("stats", mine.root, TAGS, "--tags", out)
    if ending == "csv":
        rows = [(row["tag"], row["category"], int(row["count"])) for row in csv.DictReader(out.open())]
    else:
        rows = [tuple(row.values()) for row in pq.read_table(out).to_pylist()]
    assert rows == [("cat", "general", 2), ("hat", "artist", 1), ("hat", "general", 1)]


def test_plots_are_pictures(mine: Dataset, tmp_path: Path) -> None:
    cutline("stats", mine.root, "--plots", tmp_path / "plots")
    drawn = sorted((tmp_path / "plots").iterdir())
    assert [path.name for path in drawn] == [
        "captions-mine-lengths.png",
        "tags-mine-coverage.png",
        "tags-mine-frequency.png",
        "tags-mine-lengths.png",
        "tags-mine-scores.png",
    ]
    for path in drawn:
        with Image.open(path) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 5


def test_a_layer_without_any_rows_is_counted_and_drawn(tmp_path: Path) -> None:
    made = dataset(
        tmp_path / "photos",
        [{"key": "a"}],
        tags=[{"key": "a", "error": "timeout"}],
        captions=[{"key": "b", "texts": ["of no picture"]}],
    )
    assert "0 rows for 1 pictures; errors: 1 timeout" in cutline("stats", made.root).stdout
    cutline("stats", made.root, "--plots", tmp_path / "plots")
    assert not list((tmp_path / "plots").iterdir())


def test_what_cannot_be_counted_is_refused(mine: Dataset, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"there are: captions/mine, tags/mine"):
        count(mine, "pictures")
    assert ".csv or .parquet" in cutline("stats", mine.root, "--tags", "tags.txt", code=2).stderr
    assert "say which" in cutline("stats", mine.root, CAPTIONS, "--tags", tmp_path / "tags.csv", code=2).stderr
    bare = dataset(tmp_path / "bare", [{"key": "a"}])
    assert "cutline status" in cutline("stats", bare.root, code=1).stderr
