"""Tags of boorus: their names, and what a site knows of them, on hand-made tables."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutline import schemas
from cutline.options import CutlineError
from cutline.tags import EMOTICONS, SITES, Aliases, Implications, TagCycle, TagRows, Vocabulary, canonical, words

EARS = [
    ("cat_ears", "animal_ears"),
    ("lion_ears", "cat_ears"),
    ("striped_panties", "panties"),
    ("panties", "underwear"),
]


def lists(rows: list[list[str] | None]) -> pa.ListArray:
    return pa.array(rows, pa.list_(pa.string()))


def general(tags: TagRows) -> Any:
    return tags.lists("general")["general"].to_pylist()


def test_names_become_canonical() -> None:
    typed = ["Long Hair", " 1girl ", "two  spaces", "saber_(fate)", "^_^", "(O)_(O)", ":D", "cafe\u0301", "É", None]
    assert canonical(pa.array(typed)).to_pylist() == [
        "long_hair",
        "1girl",
        "two_spaces",
        "saber_(fate)",
        "^_^",
        "(o)_(o)",
        ":d",
        "café",
        "é",
        None,
    ]
    faces = pa.array(sorted(EMOTICONS))
    assert canonical(faces).equals(faces)


def test_a_tag_string_is_split_at_white_space() -> None:
    assert words(pa.array(["1girl solo", "", None, " a  b\tc\n"])).to_pylist()[0] == ["1girl", "solo"]
    rows = TagRows.of({"general": words(pa.array(["1girl solo", "", None, " a  b\tc\n"]))})
    assert general(rows) == [["1girl", "solo"], [], [], ["a", "b", "c"]]


def test_tags_are_distinct_and_keep_their_order() -> None:
    rows = TagRows.of(
        {
            "general": lists([["b", "a", "B", "c c", "c_c", ""], None, ["x"]]),
            "character": lists([["d", "a"], ["x"], []]),
        }
    )
    assert {name: column.to_pylist() for name, column in rows.lists("general", "character").items()} == {
        "general": [["b", "a", "c_c"], [], ["x"]],
        "character": [["d"], ["x"], []],
    }


@given(st.lists(st.lists(st.sampled_from(["a", "b", "lion_ears", "cat_ears", "animal_ears", "panties"]), max_size=6)))
def test_many_pictures_at_once_are_as_each_alone(rows: list[list[str]]) -> None:
    known = Implications(EARS)
    tags = TagRows.of({"general": lists([*rows, []])})
    assert general(tags) == [*(list(dict.fromkeys(row)) for row in rows), []]
    assert general(known.close(tags)) == [*(known.closure(row) for row in rows), []]
    assert general(known.drop(tags)) == [*(known.reduce(row) for row in rows), []]
    assert general(known.drop(known.close(tags))) == general(known.drop(tags))


def test_aliases_follow_chains() -> None:
    known = Aliases({"feline_ears": "neko_mimi", "neko_mimi": "cat_ears"})
    assert (known.alias("feline_ears"), known.alias("cat_ears"), known.alias("other")) == ("cat_ears",) * 2 + ("other",)
    tags = TagRows.of({"general": lists([["feline_ears", "solo", "cat_ears"], ["neko_mimi"], []])})
    assert general(known.apply(tags)) == [["cat_ears", "solo"], ["cat_ears"], []]


def test_implications_are_transitive() -> None:
    known = Implications(EARS)
    assert known.closure(["lion_ears", "solo"]) == ["lion_ears", "solo", "cat_ears", "animal_ears"]
    assert known.reduce(["animal_ears", "lion_ears", "solo", "underwear"]) == ["lion_ears", "solo", "underwear"]


@pytest.mark.parametrize("deep", [2, 5000])
def test_circles_are_refused_by_name(deep: int) -> None:
    pairs = [(f"t{n}", f"t{(n + 1) % deep}") for n in range(deep)]
    with pytest.raises(TagCycle, match=r"implications go round in a circle: t0 -> t1 -> .*t0$"):
        Implications(pairs)
    with pytest.raises(TagCycle, match=r"aliases go round in a circle: t0 -> t1 -> .*t0$"):
        Aliases(dict(pairs))
    with pytest.raises(TagCycle, match=r"circle: x -> x$"):
        Implications([("w", "x"), ("x", "x")])
    assert len(Implications(pairs[:-1]).closure(["t0"])) == deep


def test_what_is_implied_comes_into_its_own_column() -> None:
    known = Implications([("miku_(append)", "hatsune_miku"), ("hatsune_miku", "vocaloid"), ("a", "b")])
    names = Vocabulary(pa.array(["hatsune_miku", "vocaloid"]), pa.array(["character", "copyright"]))
    tags = TagRows.of({"general": lists([["a"]]), "character": lists([["miku_(append)"]]), "copyright": lists([[]])})
    found = known.close(tags, names).lists("general", "character", "copyright")
    assert {name: column.to_pylist() for name, column in found.items()} == {
        "general": [["a", "b"]],
        "character": [["miku_(append)", "hatsune_miku"]],
        "copyright": [["vocaloid"]],
    }


@pytest.mark.parametrize("form", ["json", "csv", "parquet"])
def test_tables_of_a_site_are_read(tmp_path: Path, form: str) -> None:
    pairs = [
        {"id": 1, "antecedent_name": "Neko Mimi", "consequent_name": "cat_ears", "status": "active"},
        {"id": 2, "antecedent_name": "cat_ears", "consequent_name": "neko_mimi", "status": "deleted"},
        {"id": 3, "antecedent_name": 'say_"lazy"', "consequent_name": "a,b", "status": "active"},
    ]
    tags = [
        {"name": "1girl", "category": 0, "post_count": 7},
        {"name": "hatsune_miku", "category": 4, "post_count": 5},
        {"name": "strange", "category": 9, "post_count": 1},
    ]
    for name, rows in (("pairs", pairs), ("tags", tags)):
        path = tmp_path / f"{name}.{form}"
        if form == "json":
            path.write_text(json.dumps(rows))
        elif form == "csv":
            with path.open("w", newline="") as handle:
                writer = csv.DictWriter(handle, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        else:
            pq.write_table(pa.Table.from_pylist(rows), path)
    aliases = Aliases.read(tmp_path / f"pairs.{form}")
    assert (dict(aliases.pairs), aliases.ignored) == ({"neko_mimi": "cat_ears", 'say_"lazy"': "a,b"}, 1)
    assert Implications.read(tmp_path / f"pairs.{form}").ignored == 1
    known = Vocabulary.read(tmp_path / f"tags.{form}")
    assert known.counts is not None
    assert known.counts.to_pylist() == [7, 5, 1]
    tags_found = known.sort(TagRows.of({"unsorted": lists([["hatsune_miku", "1girl", "new", "strange"]])}))
    assert {
        name: column.to_pylist() for name, column in tags_found.lists("general", "character", "unsorted").items()
    } == {
        "general": [["1girl"]],
        "character": [["hatsune_miku"]],
        "unsorted": [["new", "strange"]],
    }


def test_a_table_that_is_none_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "tags.csv").write_text("tag,category\n1girl,0\n")
    with pytest.raises(CutlineError, match=r"has no column name. It has: tag, category"):
        Vocabulary.read(tmp_path / "tags.csv")
    with pytest.raises(CutlineError, match=r"cannot read .*none.csv"):
        Aliases.read(tmp_path / "none.csv")
    with pytest.raises(CutlineError, match=r"is none of .csv"):
        Aliases.read(tmp_path / "tags.db")


def test_codes_are_those_of_the_layers_columns() -> None:
    for codes in SITES.values():
        assert set(codes.values()) <= set(schemas.TAG_CATEGORIES)
    assert SITES["danbooru"]["4"] == "character"
    assert SITES["kblueleaf"]["4"] == "meta"
    assert SITES["e621"]["5"] == "general"
