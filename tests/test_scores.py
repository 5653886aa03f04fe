"""Score tables: which word a score gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cutline.compose import scores
from cutline.compose.scores import ScoreTable
from cutline.dataset import Dataset
from cutline.options import CutlineError
from cutline.sources.booru import Booru
from cutline.toml_files import presets


def words(table: ScoreTable, *posts: tuple[str | None, int | None]) -> list[str | None]:
    ratings, numbers = zip(*posts, strict=True)
    columns = {"rating": pa.array(ratings, pa.string()), table.by: pa.array(numbers, pa.int64())}
    found: list[str | None] = table.words(columns).to_pylist()
    return found


def test_kohaku_has_edges_of_its_own_for_each_rating() -> None:
    table = scores.find("kohaku")
    assert words(table, ("g", 38), ("s", 38), ("q", 38), ("e", 38)) == [
        "masterpiece",
        "great quality",
        "normal quality",
        "normal quality",
    ]
    assert words(table, ("g", 37), ("g", 1), ("g", 2), ("g", 0)) == [
        "best quality",
        "worst quality",
        "low quality",
        "worst quality",
    ]
    assert words(table, ("g", None), (None, 5), ("x", 5)) == [None, None, None]


def test_absolute_scores_and_years() -> None:
    table = scores.find("animagine-3.0")
    assert words(table, *(("g", n) for n in (151, 150, 100, 25, 0, -5, -6))) == [
        "masterpiece",
        "best quality",
        "high quality",
        "normal quality",
        "low quality",
        "low quality",
        "worst quality",
    ]
    years = words(scores.find("years"), *((None, n) for n in (2005, 2010, 2011, 2014, 2017, 2020, 2021, None)))
    assert years == ["oldest", "oldest", "early", "early", "mid", "recent", "newest", None]


@pytest.fixture
def posts(tmp_path: Path) -> Dataset:
    """4,000 posts; explicit ones score five times as much as general ones."""
    random = np.random.default_rng(0)
    ratings = np.repeat(list("gsqe"), 1000)
    number = np.repeat([1, 2, 4, 5], 1000) * random.exponential(1000, 4000)
    table = {"id": np.arange(4000), "rating": ratings, "score": number.astype(int), "tag_string": ["a"] * 4000}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    (tmp_path / "map.toml").write_text(
        '[columns]\nid = "id"\nrating = "rating"\nscore = "score"\n[tags]\ngeneral = "tag_string"\n'
    )
    dataset = Dataset(tmp_path / "posts")
    dataset.root.mkdir()
    dataset.add(Booru(tmp_path / "x.parquet", map=str(tmp_path / "map.toml"), layer="x"))
    return dataset


@pytest.mark.parametrize("name", ["animagine-3.1", "noobai", "illustrious"])
def test_fitted_words_do_not_depend_on_the_rating(posts: Dataset, tmp_path: Path, name: str) -> None:
    table = scores.find(name)
    with pytest.raises(CutlineError, match="fit it"):
        words(table, ("g", 1))
    fitted = table.fit(posts, "tags/x")
    shares = np.diff([0, *table.percentiles, 100]) / 100
    found = posts.sql('select rating, score from "tags/x"').fetchall()
    said = words(fitted, *found)
    for rating in "gsqe":
        mine = [word for word, (of, _) in zip(said, found, strict=True) if of == rating]
        for word, share in zip(table.names, shares, strict=True):
            assert abs(mine.count(word) / len(mine) - share) < 0.01
    absolute = words(scores.find("animagine-3.0"), *found)
    general, explicit = absolute[:1000], absolute[3000:]
    assert general.count("masterpiece") < explicit.count("masterpiece")
    fitted.save(tmp_path / "fitted.json")
    assert scores.find(str(tmp_path / "fitted.json")) == fitted
    assert words(fitted, (None, 5), ("g", None)) == [None, None]


def test_equal_scores_share_a_word(tmp_path: Path, posts: Dataset) -> None:
    table = ScoreTable.parse({"by": "score", "words": ["low", "middle", "high"], "percentiles": [10, 20]})
    fitted = ScoreTable(table.by, "", table.names, table.percentiles, {"": (3.0, 3.0)})
    assert words(fitted, (None, 3), (None, 4)) == ["low", "high"]
    fitted.save(tmp_path / "x.json")
    assert ScoreTable.read(tmp_path / "x.json") == fitted
    assert set(table.fit(posts, "tags/x").edges) == {""}
    with pytest.raises(CutlineError, match=r"has no layer tags/y; it has: pictures, tags/x"):
        table.fit(posts, "tags/y")
    favourites = ScoreTable.parse({"by": "fav_count", "words": ["a", "b"], "percentiles": [50]})
    with pytest.raises(CutlineError, match=r"no post in tags/x has a fav_count"):
        favourites.fit(posts, "tags/x")


GOOD: dict[str, Any] = {"by": "score", "words": ["a", "b"], "edges": [1]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"by": "luck"}, "by = 'luck' is none of score, fav_count, year"),
        ({"words": "a"}, "is no list of words"),
        ({"edges": [1, 2]}, "edges has 2 numbers; between 2 words it has 1"),
        ({"words": ["a", "b", "c"], "edges": [2, 2]}, "does not rise"),
        ({"edges": {"g": [1]}}, "edges are one list"),
        ({"within": "rating"}, "a list for each"),
        ({"within": "day"}, "neither rating nor empty"),
        ({"edges": {}}, "neither edges nor percentiles"),
        ({"percentiles": [100]}, "between 0 and 100"),
        ({"edges": ["x"]}, "is no list of numbers"),
        ({"edge": [1]}, "says 'edge'; it can say"),
    ],
)
def test_tables_that_are_none(change: dict[str, Any], says: str) -> None:
    assert ScoreTable.parse(GOOD).names == ("a", "b")
    with pytest.raises(CutlineError, match=says):
        ScoreTable.parse({**GOOD, **change})


def test_every_preset_is_a_table() -> None:
    assert presets("scores") == [
        "animagine-3.0",
        "animagine-3.1",
        "illustrious",
        "kohaku",
        "kohaku-years",
        "noobai",
        "years",
    ]
    for name in presets("scores"):
        assert scores.find(name).names
    with pytest.raises(CutlineError, match=r"no score table is called 'novelai'. There are: animagine-3.0"):
        scores.find("novelai")
