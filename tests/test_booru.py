"""The metadata tables of boorus, small ones with the shapes and the faults of the real ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutline.dataset import Dataset
from cutline.formats import booru, sidecar
from cutline.options import CutlineError, OptionError, fill
from cutline.sources import booru as source
from cutline.sources.booru import Booru
from cutline.sources.detect import detect
from test_sources import Read

CATEGORIES = ("general", "character", "copyright", "artist", "meta")

POST: dict[str, Any] = {
    "created_at": "2005-05-23T23:35:31.000-04:00",
    "score": 1519,
    "source": "https://example.org/1",
    "md5": "d34e4cf0a437a5d65f8e82b7bcd02606",
    "rating": "s",
    "image_width": 459,
    "image_height": 650,
    "tag_string": "x",
    "fav_count": 1833,
    "parent_id": None,
    "tag_count_general": 3,
    "tag_count_artist": 1,
    "tag_count_character": 1,
    "tag_count_copyright": 2,
    "tag_count_meta": 0,
    "tag_count": 7,
    "is_deleted": False,
    "is_banned": False,
    "updated_at": "2024-01-01T00:00:00.000-05:00",
    "tag_string_general": "1girl ^_^ long_hair",
    "tag_string_character": "kousaka_tamaki",
    "tag_string_copyright": "to_heart_(series) to_heart_2",
    "tag_string_artist": "kyogoku_shin",
    "tag_string_meta": "",
}


def danbooru(path: Path, *posts: dict[str, Any]) -> Path:
    """A Parquet table as pandas writes it: the ids are its index."""
    table = pa.Table.from_pylist([{**POST, **post} for post in posts])
    index = {"index_columns": ["id"], "columns": [{"name": "id", "field_name": "id", "pandas_type": "int64"}]}
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(index)}), path)
    return path


def read(path: Path, **given: Any) -> Read:
    return Read(fill(Booru, {"path": path, **given}))


def ratings(found: Read, layer: str = "tags/danbooru") -> dict[str, Any]:
    return {name: row["error"] or row["rating"] for name, row in rows(found, layer).items()}


def rows(found: Read, layer: str = "tags/danbooru") -> dict[str, dict[str, Any]]:
    empty = dict.fromkeys((*CATEGORIES, "rating", "score", "fav_count", "year", "error", "detail"))
    return {name: {**empty, **row} for name, row in found.rows.get(layer, {}).items()}


# -- tables that are as they should be ------------------------------------------------------------------------


def test_danbooru_parquet(tmp_path: Path) -> None:
    path = danbooru(tmp_path / "metadata.parquet", {"id": 1}, {"id": 2, "rating": "g", "score": -3})
    assert detect(path) == "booru"
    found = read(path)
    assert not found.notes
    assert rows(found)["1"] == {
        "general": ["1girl", "^_^", "long_hair"],
        "character": ["kousaka_tamaki"],
        "copyright": ["to_heart_(series)", "to_heart_2"],
        "artist": ["kyogoku_shin"],
        "meta": [],
        "rating": "s",
        "score": 1519,
        "fav_count": 1833,
        "year": 2005,
        "error": None,
        "detail": None,
    }
    assert (rows(found)["2"]["rating"], rows(found)["2"]["score"]) == ("g", -3)
    assert found["pictures"] == {name: {"width": 459, "height": 650} for name in ("1", "2")}


def test_a_table_makes_a_dataset_and_pictures_join_it_later(tmp_path: Path) -> None:
    path = danbooru(tmp_path / "metadata.parquet", {"id": 1}, {"id": 2})
    (tmp_path / "posts").mkdir()

    def cutline(*words: str | Path) -> str:
        command = [sys.executable, "-m", "cutline", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout

    said = cutline("add", tmp_path / "posts", path)
    assert "(booru): 2 added\n  tags/danbooru: 2 written\n" in said
    dataset = Dataset(tmp_path / "posts")
    assert dataset.key_rule.rule == "stem"
    assert dataset.sql("select key, uri, width from pictures").fetchall() == [("1", None, 459), ("2", None, 459)]
    assert "tags/danbooru: 0 written" in cutline("add", tmp_path / "posts", path)


def test_prompt_gen_parquet(tmp_path: Path) -> None:
    post = {
        "index": 42,
        "width": 100,
        "height": 200,
        "fav": 7,
        "quality": ["great quality"],
        "special": ["1girl", "solo"],
        "general": ["long hair", "(o) (o)", "looking at viewer"],
        "character": ["nakamura hisashi (a)"],
        "copyright": [],
        "artist": None,
        "meta": ["highres"],
        "year": ["newest"],
        "rating": ["nsfw", "explicit"],
        "phi3v_horny": " One.\r\nTwo. ",
        "pixtral_caption": "\ufeffwith a mark",
        "florence_short": "",
        "florence_long": None,
    }
    table = pa.Table.from_pylist([post, {**post, "index": 43, "rating": ["safe"], "florence_long": "long"}])
    pq.write_table(table, tmp_path / "x.parquet")
    found = read(tmp_path / "x.parquet")
    row = rows(found, "tags/danbooru2023")["42"]
    assert row["general"] == ["1girl", "solo", "long_hair", "(o)_(o)", "looking_at_viewer"]
    assert row["character"] == ["nakamura_hisashi_(a)"]
    assert (row["artist"], row["meta"], row["rating"], row["fav_count"]) == ([], ["highres", "newest"], "e", 7)
    assert rows(found, "tags/danbooru2023")["43"]["rating"] == "g"
    phi = found["captions/phi3v-horny"]["42"]
    assert (phi["texts"], phi["raw"], phi["reason"]) == (["One.\nTwo."], " One.\r\nTwo. ", "crlf, outer_space")
    assert found["captions/pixtral"]["42"]["reason"] == "bom"
    assert found["captions/florence-short"] == {}
    assert found["captions/florence-long"]["43"] == {
        "texts": ["long"],
        "raw": None,
        "verdict": "good",
        "reason": None,
        "error": None,
        "detail": None,
    }
    assert found.notes == {"captions/florence-short: empty caption": 2}


@given(
    st.lists(
        st.text(st.one_of(st.sampled_from("\ufeff \r\n\t\u2028\x85\x1cab\0"), st.characters(exclude_categories=["Cs"])))
    )
)
def test_captions_keep_the_rule_for_texts(texts: list[str]) -> None:
    known = booru.find("danbooru2023-prompt-gen")
    reader = source._Reader(Booru(Path()), known)
    names = [str(number) for number in range(len(texts))]
    found = reader._captions("captions/x", pa.array(names, pa.string()), pa.array(texts, pa.string())).batch.to_pylist()
    wanted = []
    for name, text in zip(names, texts, strict=True):
        clean = sidecar.clean(text)
        if clean.text or clean.error:
            wanted.append((name, [clean.text] if clean.text else None, clean.raw, clean.reason or None, clean.error))
    assert [(row["name"], row["texts"], row["raw"], row["reason"], row["error"]) for row in found] == wanted


HEAD = (
    "id,rating,score,tag_string_meta,tag_string_general,tag_string_artist,tag_string_copyright,tag_string_character\n"
)


def bigquery(path: Path, *lines: str, head: str = HEAD) -> Path:
    path.write_text(head + "".join(line + "\n" for line in lines), "utf-8")
    return path


def test_bigquery_csv(tmp_path: Path) -> None:
    line = '5730456,g,-2,"","1girl don\'t_say_""lazy"" solo","","k-on!",akiyama_mio'
    path = bigquery(tmp_path / "bq-results.csv", line)
    assert detect(path) == "booru"
    known = booru.detect(HEAD.strip().split(","))
    assert known is not None
    assert known.name == "bigquery"
    row = rows(read(path))["5730456"]
    assert row["general"] == ["1girl", 'don\'t_say_"lazy"', "solo"]
    assert (row["meta"], row["artist"], row["copyright"], row["character"]) == ([], [], ["k-on!"], ["akiyama_mio"])
    assert (row["rating"], row["score"], row["fav_count"], row["year"]) == ("g", -2, None, None)


def test_e621_csv_with_its_tag_table(tmp_path: Path) -> None:
    (tmp_path / "posts.csv").write_text(
        "id,created_at,md5,rating,image_width,image_height,tag_string,locked_tags,fav_count,description,updated_at,"
        "is_deleted,score\n"
        '7,2008-01-02 03:04:05.6,ab,s,10,20,"canine female hi_res jane new_tag","",9,"Two\nlines, ""quoted""",,f,12\n'
        '8,2008-01-02 03:04:05.6,ac,e,10,20,canine,"",9,"",,t,12\n'
    )
    (tmp_path / "tags.csv").write_text(
        "id,name,category,post_count\n1,canine,5,9\n2,female,0,8\n3,hi_res,7,7\n4,jane,4,1\n"
    )
    assert detect(tmp_path / "posts.csv") == "booru"
    plain = read(tmp_path / "posts.csv")
    assert plain["tags/e621"]["7"]["unsorted"] == ["canine", "female", "hi_res", "jane", "new_tag"]
    found = read(tmp_path / "posts.csv", vocabulary=tmp_path / "tags.csv")
    row = found["tags/e621"]["7"]
    assert {name: row[name] for name in (*CATEGORIES, "unsorted")} == {
        "general": ["canine", "female"],
        "character": ["jane"],
        "copyright": [],
        "artist": [],
        "meta": ["hi_res"],
        "unsorted": ["new_tag"],
    }
    assert (row["rating"], row["score"], row["year"]) == ("g", 12, 2008)
    assert found.notes == {"deleted or banned post, skipped": 1}


def test_gelbooru(tmp_path: Path) -> None:
    post = {"id": 5, "created_at": "Sat Oct 21 06:27:46 -0500 2023", "score": "3", "width": 1, "height": 2, "md5": "a"}
    post |= {"directory": "ab/cd", "rating": "questionable", "change": 1697887666, "tags": "A b", "status": "active"}
    pq.write_table(pa.Table.from_pylist([post, {**post, "id": 6, "status": "deleted"}]), tmp_path / "x.parquet")
    found = read(tmp_path / "x.parquet")
    assert found["tags/gelbooru"]["5"]["unsorted"] == ["a", "b"]
    assert (rows(found, "tags/gelbooru")["5"]["year"], ratings(found, "tags/gelbooru")) == (2023, {"5": "q"})


def test_many_files_are_one_table(tmp_path: Path) -> None:
    bigquery(tmp_path / "1.csv", "1,g,1,,a,,,", "2,g,2,,b,,,")
    bigquery(tmp_path / "2.csv", "2,s,3,,c,,,", "3,q,4,,d,,,")
    for path in (tmp_path, tmp_path / "*.csv"):
        found = read(path)
        assert {name: row["general"] for name, row in rows(found).items()} == {"1": ["a"], "2": ["c"], "3": ["d"]}
        assert found.notes == {"row about a post that has a newer one": 1}


# -- tables with faults ---------------------------------------------------------------------------------------


def test_the_newest_row_of_a_post_counts(tmp_path: Path) -> None:
    old, new = "2023-12-31T23:30:00.000-05:00", "2024-01-01T04:31:00.000+00:00"  # as texts, the other way round
    path = danbooru(
        tmp_path / "x.parquet",
        {"id": 1, "updated_at": new, "rating": "q"},
        {"id": 1, "updated_at": old, "rating": "e"},
        {"id": 1, "updated_at": None, "rating": "e"},
        {"id": 2, "updated_at": None, "rating": "e"},
        {"id": 2, "updated_at": None, "rating": "g"},
        {"id": 3, "updated_at": old, "rating": "g"},
        {"id": 3, "updated_at": new, "rating": "g", "is_deleted": True},
    )
    found = read(path)
    assert ratings(found) == {"1": "q", "2": "g"}
    assert found.notes == {"row about a post that has a newer one": 4, "deleted or banned post, skipped": 1}
    assert set(ratings(read(path, deleted="keep"))) == {"1", "2", "3"}


def test_values_of_the_wrong_type_are_counted_and_the_post_is_there(tmp_path: Path) -> None:
    lines = ["1,x,many,,a,,,", "2,,,,a,,,", "3,G,1.0,,a,,,", "4,q,1e9,,a,,,", "5,q,99999999999999999999,,a,,,"]
    found = read(bigquery(tmp_path / "x.csv", *lines))
    assert {name: (row["rating"], row["score"]) for name, row in rows(found).items()} == {
        "1": (None, None),
        "2": (None, None),
        "3": ("g", 1),
        "4": ("q", None),
        "5": ("q", None),
    }
    assert found.notes == {
        "rating that is none; the post is there, without it": 1,
        "score that is none; the post is there, without it": 3,
    }


def test_rows_without_an_id_are_errors(tmp_path: Path) -> None:
    found = read(
        bigquery(
            tmp_path / "x.csv", '1,g,1,,"a\nb",,,', ",g,1,,a,,,", '" ",g,1,,a,,,', "x7,g,1,,a,,,", '"8\n9",g,1,,a,,,'
        )
    )
    bad = {f"line {number} of x.csv": "bad_name" for number in (4, 5, 7)}
    assert ratings(found) == {"1": "g", "x7": "g", **bad}
    joined = read(bigquery(tmp_path / "y.csv", "1,g,1,,a,,,", HEAD.strip(), "2,g,1,,a,,,"))
    assert ratings(joined) == {"1": "g", "line 3 of y.csv": "bad_name", "2": "g"}
    path = danbooru(tmp_path / "x.parquet", {"id": 1.0}, {"id": None}, {"id": 2.5}, {"id": float("nan")})
    assert ratings(read(path)) == {
        "1": "s",
        **{f"row {number} of x.parquet": "bad_name" for number in (2, 3, 4)},
    }
    with pytest.raises(CutlineError, match="ids in its column id are BIGINT\\[\\], and neither text nor numbers"):
        read(danbooru(tmp_path / "x.parquet", {"id": [1]}))


def test_broken_lines_are_named_and_the_others_read(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(
        b"\xef\xbb\xbf" + HEAD.encode() + b"1,g,1,,a,,,\n2,g,1,,a\n3,g,1,,caf\xe9,,,\n4,g,1,,a\0,,,\n"
        b'5,g,1,,"open,,,\n6,g,1,,a,,,,too many\n7,g,1,,last,,,'
    )
    dataset = Dataset(tmp_path / "posts")
    dataset.root.mkdir()
    report = dataset.add(Booru(path))
    assert report.added == 2
    assert dataset.sql('select key, error from "tags/danbooru" order by key').fetchall() == [
        ("1", None),
        ("7", None),
        ("line 3 of x", "bad_csv"),
        ("line 4 of x", "not_utf8"),
        ("line 5 of x", "not_utf8"),
        ("line 6 of x", "bad_csv"),
        ("line 7 of x", "bad_csv"),
    ]
    assert report.notes["tags/danbooru: bad_csv"] == 3


def test_a_nul_in_parquet_spoils_its_own_row(tmp_path: Path) -> None:
    path = danbooru(tmp_path / "x.parquet", {"id": 1}, {"id": 2, "tag_string_general": "a\0b"}, {"id": 3})
    assert ratings(read(path)) == {"1": "s", "2": "not_utf8", "3": "s"}


def test_counts_are_checked(tmp_path: Path) -> None:
    path = danbooru(tmp_path / "x.parquet", {"id": 1, "tag_count": 9}, {"id": 2, "tag_count_general": 2}, {"id": 3})
    assert read(path).notes == {
        "post whose number of all tags is not what the table says": 1,
        "post whose number of general tags is not what the table says": 1,
    }


def test_columns_may_lack_or_must_not(tmp_path: Path) -> None:
    path = bigquery(tmp_path / "x.csv", "1,a", head="id,tag_string_general\n")
    with pytest.raises(CutlineError, match=r"x.csv mean: id, tag_string_general. Say it: -o map=bigquery \| danbooru"):
        read(path)
    with pytest.raises(CutlineError, match=r"no column tag_string_char.* map bigquery needs. It has: id, tag_st"):
        read(path, map="bigquery")
    (tmp_path / "mine.toml").write_text('[columns]\nid = "id"\n[tags]\ngeneral = "tag_string_general"\n')
    assert rows(read(path, map=str(tmp_path / "mine.toml")), "tags/mine")["1"]["general"] == ["a"]


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("[tags]\ngeneral = 'a'", "needs columns for the id and for tags"),
        ("[columns]\nid = 'a'\nmd5 = 'b'\n[tags]\ngeneral = 'a'", r"\[columns\] says 'md5'; it can say: id, rating"),
        ("site = 'x'\n[columns]\nid = 'a'\n[tags]\ngeneral = 'a'", "there are danbooru"),
        ("[columns]\nid = 'a'\n[tags]\ngeneral = 5", "general = 5 is no list of columns"),
        ("[columns]\nid = 'a'\n[tags]\ngeneral = 'a'\n[ratings]\nx = 'z'", "'z' is none of g, s, q, e"),
        ("tags = 3", "tags is a table"),
        ("[", "is not TOML"),
    ],
)
def test_maps_that_are_none(tmp_path: Path, toml: str, says: str) -> None:
    (tmp_path / "x.toml").write_text(toml)
    with pytest.raises(CutlineError, match=says):
        booru.find(str(tmp_path / "x.toml"))


def test_unknown_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"no column map is called 'danboru'. There are: bigquery, danbooru"):
        read(bigquery(tmp_path / "x.csv"), map="danboru")
    with pytest.raises(CutlineError, match=r"there is no .*none.csv"):
        read(tmp_path / "none.csv")
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(CutlineError, match=r"x.json is none of .parquet"):
        read(tmp_path / "x.json")
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(CutlineError, match=r"cannot read .*bad.parquet"):
        read(tmp_path / "bad.parquet")


# -- options --------------------------------------------------------------------------------------------------


def test_aliases_and_implications_are_applied(tmp_path: Path) -> None:
    path = bigquery(tmp_path / "x.csv", "1,g,1,,neko_mimi solo cat_ears,,,")
    (tmp_path / "aliases.csv").write_text(
        "antecedent_name,consequent_name,status\nneko_mimi,cat_ears,active\nsolo,alone,deleted\n"
    )
    (tmp_path / "implications.json").write_text(
        json.dumps([{"antecedent_name": "cat_ears", "consequent_name": "animal_ears", "status": "active"}])
    )
    found = read(path, aliases=tmp_path / "aliases.csv", implications=tmp_path / "implications.json")
    assert rows(found)["1"]["general"] == ["cat_ears", "solo", "animal_ears"]
    assert found.notes == {"alias that is not active, and not followed": 1}


def test_old_ratings(tmp_path: Path) -> None:
    path = bigquery(tmp_path / "x.csv", "1,s,1,,a,,,", "2,q,1,,a,,,", "3,e,1,,a,,,")
    assert ratings(read(path)) == {"1": "s", "2": "q", "3": "e"}
    assert ratings(read(path, old_ratings=True)) == {"1": "g", "2": "q", "3": "e"}
