"""A recipe says exactly one text for a picture: the same as a plain loop over its rows would."""

from __future__ import annotations

import math
import re
import time
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from cutline import schemas, tags
from cutline.compose.draws import Draws
from cutline.compose.recipe import Captions, Latents, Recipe, RecipeError, Tags, Text, default_recipe

FACES = ["^_^", "o_o", ">_<", "@_@", "=_=", "0_0", "u_u", "x_x", "|_|", "+_+", "||_||", "(o)_(o)", "<o>_<o>", "<|>_<|>"]
FACES += ["O_O"]  # in whatever case


def batch(**layers: list[dict[str, Any] | None]) -> pa.RecordBatch:
    """Rows as a scan gives them; `captions_blip` stands for captions/blip."""
    length = len(next(iter(layers.values())))
    columns: dict[str, pa.Array] = {"key": pa.array([f"{n:06}" for n in range(length)])}
    for given_name, rows in layers.items():
        name = given_name.replace("_", "/", 1)
        wanted = (*schemas.columns(name), "content", "error")
        columns[name] = pa.array(rows, pa.struct([field for field in schemas.schema(name) if field.name in wanted]))
    return pa.RecordBatch.from_pydict(columns)


def parse(text: str) -> Recipe:
    return Recipe.parse(tomllib.loads(text))


def test_first_caption_that_counts() -> None:
    rows = batch(
        captions_human=[
            {"texts": ["by hand"]},
            {"texts": ["by hand"], "error": "late"},
            {"texts": []},
            {"texts": None},
            {"texts": ["", "second"]},
            {"texts": ["refused"], "verdict": "rejected"},
            None,
            None,
            {"texts": ["mended"], "verdict": "repaired"},
        ],
        captions_blip=[{"texts": ["machine", "other"], "verdict": "good"}] * 7 + [None] * 2,
    )
    recipe = parse('[captions]\nfirst_of = ["captions/human", "captions/blip"]')
    texts = recipe.compose(rows, seed=0).to_pylist()
    assert texts == ["by hand", *["machine"] * 6, None, "mended"]
    assert recipe.layers == ("captions/human", "captions/blip")


def test_tags_in_order_and_faces_kept() -> None:
    rows = batch(
        tags_danbooru=[
            {"general": ["long_hair", "^_^"], "character": ["hatsune_miku"], "meta": ["highres"], "artist": []},
            {"general": ["solo"], "error": "lost"},
            None,
            {"general": [*FACES, "k-on!", "a_b_(c)"], "unsorted": ["", None, "x"]},
        ]
    )
    recipe = parse('[tags]\nfirst_of = ["tags/danbooru"]\nunderscores = "space"\nseparator = " | "')
    made = recipe.make(rows, seed=0)
    assert made.caption.to_pylist() == [None] * 4
    faces = " | ".join(FACES)
    assert made.tags.to_pylist() == [
        "hatsune miku | long hair | ^_^ | highres",
        None,
        None,
        f"{faces} | k-on! | a b (c) | x",
    ]
    some = parse('[tags]\nfirst_of = ["tags/danbooru"]\norder = ["meta", "general"]')
    assert some.compose(rows, seed=0).to_pylist()[0] == "highres, long_hair, ^_^"


def test_every_face_of_the_study_is_known() -> None:
    assert {face.lower() for face in FACES} <= tags.EMOTICONS
    assert tags.spaced(pa.array(["a_b", None, "", *FACES])).to_pylist() == ["a b", None, "", *FACES]


def test_what_is_missing_takes_its_separator_along() -> None:
    rows = batch(
        captions_a=[{"texts": ["c"]}, {"texts": ["c"]}, None, None],
        tags_b=[{"general": ["t"]}, None, {"general": ["t"]}, None],
    )
    both = '[captions]\nfirst_of = ["captions/a"]\n[tags]\nfirst_of = ["tags/b"]\n[text]\nseparator = "\\n"\n'
    assert parse(both).compose(rows, seed=0).to_pylist() == ["t\nc", "c", "t", None]
    assert parse(both + 'order = ["caption"]').compose(rows, seed=0).to_pylist() == ["c", "c", None, None]
    assert parse(both + 'order = ["caption", "tags"]').compose(rows, seed=3, epoch=9).to_pylist()[0] == "c\nt"


def test_layer_without_rows_is_a_column_of_nulls() -> None:
    rows = pa.RecordBatch.from_pydict({"key": ["a"], "captions/a": pa.nulls(1), "tags/b": pa.nulls(1, pa.int32())})
    recipe = parse('[captions]\nfirst_of = ["captions/a"]\n[tags]\nfirst_of = ["tags/b"]')
    assert recipe.compose(rows, seed=0).to_pylist() == [None]
    with pytest.raises(RecipeError, match="tags/b"):
        recipe.compose(rows.select(["key"]), seed=0)


WORDS = st.text(alphabet="ab_^,猫", max_size=4)
CAPTIONS = st.none() | st.fixed_dictionaries(
    {
        "texts": st.none() | st.lists(WORDS, max_size=2),
        "verdict": st.sampled_from([None, "good", "repaired", "rejected"]),
        "error": st.sampled_from([None, None, "late"]),
    }
)
TAGS = st.none() | st.fixed_dictionaries(
    {category: st.none() | st.lists(st.none() | WORDS, max_size=2) for category in ("general", "character", "meta")}
    | {"error": st.sampled_from([None, None, "late"])}
)


@given(
    rows=st.lists(st.tuples(CAPTIONS, CAPTIONS, TAGS, TAGS), min_size=1, max_size=6),
    order=st.sampled_from([("tags", "caption"), ("caption", "tags"), ("tags",)]),
    underscores=st.sampled_from(["keep", "space"]),
    start=st.integers(0, 3),
)
def test_compose_is_what_a_plain_loop_says(
    rows: list[tuple[Any, ...]], order: tuple[str, ...], underscores: Literal["keep", "space"], start: int
) -> None:
    first, second, third, fourth = (list(column) for column in zip(*rows, strict=True))
    scanned = batch(captions_a=first, captions_b=second, tags_a=third, tags_b=fourth).slice(start)
    recipe = Recipe(
        Captions(("captions/a", "captions/b")),
        Tags(("tags/a", "tags/b"), underscores=underscores),
        text=Text(order, separator="; "),
    )
    assert recipe.compose(scanned, seed=1).to_pylist() == [plain(row, order, underscores) for row in rows[start:]]


def plain(row: tuple[Any, ...], order: tuple[str, ...], underscores: str) -> str | None:
    caption = next(
        (
            said["texts"][0]
            for said in row[:2]
            if said and not said["error"] and said["verdict"] != "rejected" and said["texts"] and said["texts"][0]
        ),
        None,
    )
    tag_text = None
    for said in row[2:]:
        if tag_text or not said or said["error"]:
            continue
        found = [tag for name in ("character", "general", "meta") for tag in said[name] or [] if tag]
        if underscores == "space":
            found = [tag if tag in tags.EMOTICONS else tag.replace("_", " ") for tag in found]
        tag_text = ", ".join(found) or None
    parts = {"caption": caption, "tags": tag_text}
    return "; ".join(parts[name] for name in order if parts[name]) or None  # type: ignore[misc]


def test_a_hundred_thousand_rows_take_no_time() -> None:
    count = 100_000
    row = {"general": [f"tag_{n}" for n in range(30)], "character": ["someone"]}
    scanned = batch(captions_a=[{"texts": ["a caption"]}] * count, tags_b=[row] * count)
    recipe = Recipe(Captions(("captions/a",)), Tags(("tags/b",), underscores="space"), text=Text(("tags", "caption")))
    loop = time.perf_counter()
    for _ in range(count // 10):
        ", ".join(tag.replace("_", " ") for tag in [*row["character"], *row["general"]] if tag not in tags.EMOTICONS)
    loop = (time.perf_counter() - loop) * 10
    took = time.perf_counter()
    assert recipe.compose(scanned, seed=0).null_count == 0
    took = time.perf_counter() - took
    assert took < 2 * loop + 1, f"{took:.2f} s for {count:,} rows; a loop over Python values takes {loop:.2f} s"


# -- rules ----------------------------------------------------------------------------------------------------


def texts(recipe: str, rows: pa.RecordBatch, **given: Any) -> list[str | None]:
    found: list[str | None] = parse(recipe).compose(rows, **{"seed": 0, **given}).to_pylist()
    return found


TAGS_A = '[tags]\nfirst_of = ["tags/a"]\n'


def test_tags_after_rules_and_the_others_as_typed(tmp_path: Path) -> None:
    (tmp_path / "aliases.csv").write_text("antecedent_name,consequent_name\nlong_hair_girl,long_hair\n")
    (tmp_path / "implied.csv").write_text("antecedent_name,consequent_name\ncat_ears,animal_ears\n")
    (tmp_path / "tags.csv").write_text("name,category\nhatsune_miku,4\nhighres,5\n")
    rows = batch(
        tags_a=[
            {"unsorted": ["Hatsune Miku", "cat ears", "Long_Hair_Girl", "Sks Woman", "highres", "ladybug", "lady"]},
            {"unsorted": ["long hair", "long_hair", "LONG HAIR"]},
        ]
    )

    def after(rules: str) -> list[str | None]:
        (tmp_path / "r.toml").write_text(TAGS_A + rules)
        said: list[str | None] = Recipe.from_toml(tmp_path / "r.toml").compose(rows, seed=0).to_pylist()
        return said

    assert after('vocabulary = "tags.csv"\norder = ["character", "unsorted"]') == [
        "Hatsune Miku, cat ears, Long_Hair_Girl, Sks Woman, ladybug, lady",
        "long hair",
    ]
    assert after('aliases = "aliases.csv"\nunderscores = "space"')[0] == (
        "Hatsune Miku, cat ears, long hair, Sks Woman, highres, ladybug, lady"
    )
    assert after('implications = "implied.csv"')[0] == (
        "Hatsune Miku, cat ears, Long_Hair_Girl, Sks Woman, highres, ladybug, lady, animal_ears"
    )
    assert after('blacklist = ["lady*", "highres", "sks_woman"]')[0] == "Hatsune Miku, cat ears, Long_Hair_Girl"
    assert after('replace = { lady = "ladybug", ladybug = "lady", highres = "" }')[0] == (
        "Hatsune Miku, cat ears, Long_Hair_Girl, Sks Woman, lady, ladybug"
    )
    assert after("distinct = true")[1] == "long hair"
    assert after("")[1] == "long hair, long_hair, LONG HAIR"


def test_tags_of_all_layers_each_once() -> None:
    rows = batch(
        tags_a=[{"general": ["solo", "hat"], "artist": ["x"]}, None, {"general": ["lost"], "error": "late"}],
        tags_b=[{"general": ["Hat", "red"]}, {"general": ["b"]}, {"general": ["c"]}],
    )
    both = '[tags]\nall_of = ["tags/a", "tags/b"]\norder = ["artist", "general"]'
    assert texts(both, rows) == ["x, solo, hat, red", "b", "c"]


def test_escaped_parentheses() -> None:
    rows = batch(tags_a=[{"general": ["saber_(fate)", ":)"]}])
    assert texts(TAGS_A + 'escape = true\nunderscores = "space"', rows) == [r"saber \(fate\), :\)"]


def test_single_categories_are_parts_and_the_first_layer_with_any_tag_counts() -> None:
    rows = batch(
        tags_a=[{"general": ["solo"], "artist": ["x"]}, {"general": ["a"]}],
        tags_b=[{"general": ["b"], "artist": ["y"]}, {"artist": ["z"]}],
    )
    by = '[tags]\nfirst_of = ["tags/a", "tags/b"]\n{}[text]\ntemplate = "{{tags.general}}[ by {{tags.artist}}]"'
    assert texts(by.format(""), rows) == ["solo by x", "a"]
    assert texts(by.format("distinct = true\n"), rows) == ["solo by x", "a"]


def test_words_of_scores_and_ratings() -> None:
    rows = batch(
        tags_a=[
            {"general": ["solo"], "rating": "g", "score": 200, "year": 2008},
            {"general": ["solo"], "rating": "e", "score": -300, "year": 2022},
            {"general": ["solo"]},
            {"rating": "e", "error": "late"},
        ]
    )
    recipe = TAGS_A + '[words]\nquality = "animagine-3.0"\nperiod = "years"\nsafety = { g = "safe", e = "nsfw" }\n'
    assert texts(recipe, rows) == [
        "masterpiece, oldest, safe, solo",
        "worst quality, newest, nsfw, solo",
        "solo",
        None,
    ]
    assert texts(recipe + '[text]\ntemplate = "{tags}[, {quality}][, {safety}]"', rows)[2] == "solo"


def test_template_with_conditions() -> None:
    rows = batch(
        captions_a=[{"texts": ["A girl."]}, None, None],
        tags_a=[{"general": ["solo"], "character": ["miku"]}, {"general": ["hat"]}, None],
    )
    recipe = (
        '[captions]\nfirst_of = ["captions/a"]\n[tags]\nfirst_of = ["tags/a"]\n'
        '[text]\ntemplate = "[{caption}|A picture][ of {tags.character}]. Tags: [[{tags.general}]]"'
    )
    assert texts(recipe, rows) == ["A girl. of miku. Tags: [solo]", "A picture. Tags: [hat]", None]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("[x [[{tags}]]]", "x [t]"),
        ("[[[{tags}]]]", "[t]"),
        ("[[{tags}]]", "[t]"),
        ("[a [b {tags}]]", "a b t"),
        ("[a [[b [c [[{tags}]]]]]]", "a [b c [t]]"),
        ("[{caption}[[|[[{tags}]]]", "[t]"),
    ],
)
def test_brackets_inside_of_conditions(template: str, said: str) -> None:
    rows = batch(captions_a=[None], tags_a=[{"general": ["t"]}])
    both = '[captions]\nfirst_of = ["captions/a"]\n' + TAGS_A
    assert texts(f'{both}[text]\ntemplate = "{template}"', rows) == [said]


def test_several_outputs() -> None:
    rows = batch(captions_a=[{"texts": ["c"]}], tags_a=[{"general": ["t"]}])
    recipe = (
        '[captions]\nfirst_of = ["captions/a"]\n[tags]\nfirst_of = ["tags/a"]\n[outputs.caption]\norder = ["caption"]\n'
    )
    assert texts(recipe, rows) == ["t, c"]
    assert texts(recipe, rows, output="caption") == ["c"]
    with pytest.raises(RecipeError, match=r"no output 'x'\. It has: caption"):
        texts(recipe, rows, output="x")


# -- chance ---------------------------------------------------------------------------------------------------

COUNT = 4000


def many(**layers: dict[str, Any]) -> pa.RecordBatch:
    return batch(**{name: list[dict[str, Any] | None]([row]) * COUNT for name, row in layers.items()})


def near(found: float, expected: float) -> bool:
    """Within five standard deviations of a share of COUNT."""
    return abs(found - expected) < 5 * math.sqrt(expected * (1 - expected) / COUNT)


def share(found: list[Any], value: Any) -> float:
    return found.count(value) / len(found)


def test_every_order_of_shuffled_tags_comes_as_often() -> None:
    found = texts(TAGS_A + "shuffle = true", many(tags_a={"general": ["a", "b", "c"]}))
    for order in ("a, b, c", "a, c, b", "b, a, c", "b, c, a", "c, a, b", "c, b, a"):
        assert near(share(found, order), 1 / 6)


def test_kept_tags_stay_where_they_are() -> None:
    rows = many(tags_a={"character": ["miku"], "general": ["a", "b"], "meta": ["highres"]})
    found = texts(TAGS_A + 'shuffle = true\ndropout = 0.5\nkeep = ["character", "meta"]', rows)
    assert {*found} == {
        "miku, a, b, highres",
        "miku, b, a, highres",
        "miku, a, highres",
        "miku, b, highres",
        "miku, highres",
    }
    assert near(share(found, "miku, highres"), 0.25)
    first = texts(TAGS_A + "shuffle = true\nkeep = 2", rows)
    assert {*first} == {"miku, a, b, highres", "miku, a, highres, b"}


def test_dropouts_come_as_often_as_they_say() -> None:
    rows = many(captions_a={"texts": ["c"]}, tags_a={"general": ["t"]})
    recipe = '[captions]\nfirst_of = ["captions/a"]\ndropout = 0.3\n[tags]\nfirst_of = ["tags/a"]\ndropout = 0.2\n'
    recipe += "[text]\ndropout = 0.1"
    found = texts(recipe, rows)
    assert near(share(found, ""), 0.1 * (1 - 0.2 * 0.3))
    assert near(share(found, None), 0.2 * 0.3)
    assert near(share(found, "t, c"), 0.9 * 0.8 * 0.7)


def test_either_by_weight_and_never_what_is_not_there() -> None:
    either = (
        '[captions]\nfirst_of = ["captions/a"]\n[tags]\nfirst_of = ["tags/a"]\n'
        '[text]\neither = [["tags"], ["caption"], ["caption", "tags"]]\nweights = [1, 3, 0]'
    )
    found = texts(either, many(captions_a={"texts": ["c"]}, tags_a={"general": ["t"]}))
    assert near(share(found, "t"), 0.25)
    assert near(share(found, "c"), 0.75)
    assert {*texts(either, many(captions_a={"texts": []}, tags_a={"general": ["t"]}))} == {"t"}


def test_wildcards_lines_and_texts_are_drawn() -> None:
    rows = many(captions_a={"texts": ["a {red|{big|small} blue} {{hat}} {x}", "two\n\n  three"]})
    recipe = '[captions]\nfirst_of = ["captions/a"]\ntexts = "draw"\nline_breaks = "draw"\n'
    recipe += '[text]\nwildcards = true\nprefix = "{P|Q}"'
    found = [str(text)[3:] for text in texts(recipe, rows)]
    assert near(share(found, "a red {hat} {x}"), 1 / 4)
    assert near(share(found, "a small blue {hat} {x}"), 1 / 8)
    assert near(share(found, "three"), 1 / 4)
    assert {*found} == {"a red {hat} {x}", "a big blue {hat} {x}", "a small blue {hat} {x}", "two", "three"}


def test_chance_is_of_seed_epoch_and_key_alone() -> None:
    rows = many(tags_a={"general": ["a", "b", "c", "d"]}, captions_a={"texts": ["x {1|2}"]})
    recipe = parse(
        '[captions]\nfirst_of = ["captions/a"]\ndropout = 0.5\n'
        '[tags]\nfirst_of = ["tags/a"]\nshuffle = true\ndropout = 0.3\n'
        '[text]\neither = [["tags"], ["caption", "tags"]]\nwildcards = true'
    )
    whole = recipe.compose(rows, seed=7, epoch=2).to_pylist()
    pieces = [recipe.compose(rows.slice(start, 999), seed=7, epoch=2).to_pylist() for start in range(0, COUNT, 999)]
    assert [text for piece in pieces for text in piece] == whole
    assert recipe.compose(rows, seed=7, epoch=3).to_pylist() != whole
    assert recipe.compose(rows, seed=8, epoch=2).to_pylist() != whole
    # These few are fixed for ever: whoever baked epochs yesterday gets the same today.
    assert whole[:4] == ["a, d, b", "x 2, b, c", "a, c", "d, c, b, a"]


@given(seed=st.integers(-5, 1 << 40), epoch=st.integers(0, 99), key=st.text(max_size=9), number=st.integers(0, 1 << 40))
def test_draws_are_what_their_page_says(seed: int, epoch: int, key: str, number: int) -> None:
    start = xxhash.xxh3_64_intdigest(f"{seed}:{epoch}:{key}".encode()) ^ xxhash.xxh3_64_intdigest(b"shuffle")
    mixed = (start + 0x9E3779B97F4A7C15 * (number + 1)) % 2**64
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
    mixed ^= mixed >> 31
    draws = Draws(pa.array(["other", key]), seed, epoch)
    assert draws.integers("shuffle", np.array([1]), number).tolist() == [mixed]
    assert draws.uniform("shuffle", None, number)[1] == (mixed >> 11) / 2**53


@given(
    rows=st.lists(st.tuples(CAPTIONS, TAGS, TAGS), min_size=1, max_size=6),
    shuffle=st.booleans(),
    keep=st.sampled_from([0, 1, ["character"]]),
    dropout=st.sampled_from([0.0, 0.5]),
    separator=st.sampled_from([", ", " | ", "\n"]),
    epoch=st.integers(0, 9),
)
def test_nothing_is_lost_doubled_or_leaked(
    rows: list[tuple[Any, ...]], shuffle: bool, keep: Any, dropout: float, separator: str, epoch: int
) -> None:
    caption, first, second = (list(column) for column in zip(*rows, strict=True))
    scanned = batch(captions_a=caption, tags_a=first, tags_b=second)
    said: dict[str, Any] = {"first_of": ["tags/a", "tags/b"], "separator": separator, "shuffle": shuffle}
    if shuffle or dropout:
        said |= {"keep": keep, "dropout": dropout}
    recipe = Recipe.parse({"captions": {"first_of": ["captions/a"]}, "tags": said, "text": {"separator": separator}})
    plain = Recipe.parse(
        {
            "captions": {"first_of": ["captions/a"]},
            "tags": {**said, "shuffle": False, "keep": 0, "dropout": 0.0},
            "text": {"separator": separator},
        }
    )
    drawn = recipe.make(scanned, seed=3, epoch=epoch).draw()
    whole = plain.make(scanned, seed=3, epoch=epoch).draw()
    for text, tag_list, caption_text, every, quick in zip(
        drawn.texts.to_pylist(),
        drawn.tags.to_pylist(),
        drawn.caption.to_pylist(),
        whole.tags.to_pylist(),
        whole.texts.to_pylist(),
        strict=True,
    ):
        assert text == (separator.join([*tag_list, *([caption_text] if caption_text else [])]) or None)
        assert quick == (separator.join([*every, *([caption_text] if caption_text else [])]) or None)
        if dropout:
            assert not Counter(tag_list) - Counter(every)
        else:
            assert Counter(tag_list) == Counter(every)
        if keep == 1 and (shuffle or dropout):
            assert tag_list[:1] == every[:1]


# -- the file -------------------------------------------------------------------------------------------------


EITHER = '[text]\neither = [["tags"], ["tags.artist"]]\nweights = '


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "reads no layer"),
        ("[caption]\n", "has no 'caption'; it has: captions, tags, latents, text, words, outputs"),
        (
            '[captions]\nfirst_of = ["captions/a"]\nsecond_of = []',
            r"\[captions\] has no option 'second_of'. It has: all_of",
        ),
        ("[captions]\n", "reads no layer"),
        ('[captions]\ntexts = "draw"', r"needs first_of = \[\"captions/…\"\]"),
        ('[captions]\nfirst_of = "captions/a"', "is a list of strings"),
        ('[captions]\nfirst_of = ["tags/a"]', "starts with captions/"),
        ('[captions]\nfirst_of = ["captions/a", "captions/a"]', "twice"),
        ('[captions]\nfirst_of = ["captions/a"]\nall_of = ["captions/b"]', "one of the two"),
        ('[captions]\nfirst_of = ["captions/a"]\nseparator = "x"', "between those of all_of"),
        ('[captions]\nfirst_of = ["captions/a"]\ndropout = 1.5', "not between 0 and 1"),
        ('[tags]\nfirst_of = ["tags/a"]\norder = ["general", "people"]', "'people'; there are: character, copyright"),
        ('[tags]\nfirst_of = ["tags/a"]\norder = []', "is empty"),
        ('[tags]\nfirst_of = ["tags/a"]\nunderscores = "drop"', "Input should be 'keep' or 'space'"),
        ('[tags]\nfirst_of = ["tags/a"]\nseparator = 3', "separator=3 does not fit"),
        ('[tags]\nfirst_of = ["tags/a"]\nkeep = 3', "neither"),
        ('[tags]\nfirst_of = ["tags/a"]\nimplied = "drop"', "name their table"),
        (
            '[tags]\nfirst_of = ["tags/a"]\n[text]\norder = ["caption"]',
            r"names 'caption'; there are: tags, tags.character",
        ),
        ('[tags]\nfirst_of = ["tags/a"]\n[text]\norder = ["tags", "tags.artist"]', "say them twice"),
        ('[tags]\nfirst_of = ["tags/a"]\n[text]\norder = ["tags"]\ntemplate = "{tags}"', "order and template"),
        ('[tags]\nfirst_of = ["tags/a"]\n[text]\ntemplate = "{tags"', "stands for nothing"),
        ('[tags]\nfirst_of = ["tags/a"]\n[text]\neither = [["tags"]]\nweights = [1, 2]', "one for each of either"),
        ('[tags]\nfirst_of = ["tags/a"]\n[words]\nquality = "best"', "no score table is called 'best'"),
        ('[tags]\nfirst_of = ["tags/a"]\n[words]\nsafety = { x = "y" }', "rating 'x'; there are: g, s, q, e"),
        ('[captions]\nfirst_of = ["captions/a"]\n[words]\nquality = "kohaku"', r"name some in \[tags\]"),
        ('[tags]\nfirst_of = ["tags/a"]\n[outputs."a/b"]\norder = ["tags"]', "becomes an extension"),
        ('text = "tags"\n[tags]\nfirst_of = ["tags/a"]', "text is a table"),
        (TAGS_A + "dropout = true", r"\[tags\] dropout is a number, not True"),
        (TAGS_A + "dropout = nan", "not between 0 and 1"),
        (TAGS_A + 'shuffle = "no"', "shuffle is true or false, not 'no'"),
        (TAGS_A + "shuffle = true\nkeep = true", "keep is a number of tags, or a list of categories, not True"),
        (TAGS_A + 'shuffle = true\nkeep = "2"', "keep is a number of tags, or a list of categories, not '2'"),
        (TAGS_A + 'shuffle = true\norder = ["general"]\nkeep = ["artist"]', "'artist', which order leaves out"),
        (TAGS_A + 'blacklist = ["a", " "]', "blacklist has an empty pattern"),
        (TAGS_A + '[text]\neither = [["tags"], ["tags"]]', "either says an order twice: .* weights"),
        (TAGS_A + EITHER + "[nan, 1]", r"weights = \[nan, 1.0\]: one for each of either, finite"),
        (TAGS_A + EITHER + "[inf, 1]", "one for each of either, finite"),
        (TAGS_A + EITHER + "[1e308, 1e308]", "one for each of either, finite"),
        (TAGS_A + EITHER + "[-1, 2]", "from 0 up"),
        (TAGS_A + EITHER + "[true, 2]", "weights is a list of numbers"),
        (TAGS_A + '[text]\ntemplate = "{tags}"\nseparator = "; "', r"\[text\] separator does nothing"),
        (TAGS_A + '[outputs.x]\ntemplate = "{tags}"\nseparator = "; "', r"\[outputs.x\] separator does nothing"),
        (TAGS_A + 'clean = "none"', r"\[tags\] clean: no cleaning is called 'none'. There are: "),
        ('[captions]\nfirst_of = ["captions/a"]\nclean = "no.toml"', r"\[captions\] clean: .*cannot read the cleaning"),
        (TAGS_A + 'aliases = "none.csv"', r"\[tags\] aliases: cannot read none.csv"),
        (TAGS_A + 'implications = "none.txt"', r"\[tags\] implications: none.txt is none of .csv"),
        (TAGS_A + 'vocabulary = "none.json"', r"\[tags\] vocabulary: cannot read none.json"),
    ],
)
def test_recipe_refuses_what_it_does_not_know(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(RecipeError, match=message) as refusal:
        Recipe.from_toml(tmp_path / "r.toml")
    assert "r.toml" in str(refusal.value)


@pytest.mark.parametrize("ending", ["", ".csv", ".toml", ".json"])
@pytest.mark.parametrize("key", ["[tags] aliases", "[tags] implications", "[tags] clean", "[words] quality"])
def test_name_too_long_for_a_file_is_refused(tmp_path: Path, key: str, ending: str) -> None:
    table, name = key.split()
    said = f'{name} = "{"x" * 5000}{ending}"\n'
    (tmp_path / "r.toml").write_text(TAGS_A + (f"[words]\n{said}" if table == "[words]" else said))
    with pytest.raises(RecipeError, match=re.escape(key)):
        Recipe.from_toml(tmp_path / "r.toml")


def test_recipe_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        Recipe.from_toml(tmp_path / "none.toml")
    (tmp_path / "r.toml").write_text("[captions\n")
    with pytest.raises(RecipeError, match="is not TOML"):
        Recipe.from_toml(tmp_path / "r.toml")
    said = {
        "captions": {"all_of": ["captions/a", "captions/b"], "separator": '"\n\x7f', "dropout": 0.25},
        "tags": {"first_of": ["tags/b"], "order": ["meta"], "replace": {"a b": "c"}, "shuffle": True, "keep": ["meta"]},
        "words": {"quality": "kohaku", "safety": {"g": "safe"}},
        "latents": {"first_of": ["latents/x"]},
        "text": {"either": [["tags"], ["caption", "quality"]], "weights": [1.0, 2.0], "separator": "\\"},
        "outputs": {"short-one": {"template": "{tags}[ {safety}]"}},
    }
    recipe = Recipe.parse(said)
    (tmp_path / "r.toml").write_text(recipe.toml())
    assert Recipe.from_toml(tmp_path / "r.toml") == recipe == Recipe.parse(recipe.settings())
    assert recipe.settings() == said


def test_recipe_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(TAGS_A, "utf-8-sig")
    assert Recipe.from_toml(tmp_path / "r.toml") == parse(TAGS_A)


def test_recipe_of_tables_is_the_one_of_their_file() -> None:
    rows = batch(captions_a=[{"texts": ["c"]}], tags_a=[{"general": ["t"]}])
    made = Recipe(Captions(("captions/a",)), Tags(("tags/a",)), outputs={"x": Text(prefix="p")})
    read = parse('[captions]\nfirst_of = ["captions/a"]\n' + TAGS_A + '[outputs.x]\nprefix = "p"')
    for output in ("", "x"):
        assert made.text_of(output) == read.text_of(output)
        assert made.compose(rows, seed=0, output=output).equals(read.compose(rows, seed=0, output=output))
    assert made.compose(rows, seed=0).to_pylist() == ["t, c"]
    with pytest.raises(RecipeError, match="reads no layer"):
        Recipe().compose(rows, seed=0)


def test_default_recipe_guesses_nothing() -> None:
    blip = default_recipe(["captions/blip", "facts", "pictures"])
    assert blip == Recipe(Captions(("captions/blip",)), text=Text(("caption",)))
    assert default_recipe(["captions/blip", "captions/human", "tags/danbooru", "latents/kohya"]) == Recipe(
        Captions(("captions/human", "captions/blip")),
        Tags(("tags/danbooru",)),
        latents=Latents(("latents/kohya",)),
        text=Text(("tags", "caption")),
    )
    assert default_recipe(["tags/danbooru"]).text.order == ("tags",)
    with pytest.raises(RecipeError, match="cutline add"):
        default_recipe(["pictures"])
    with pytest.raises(RecipeError, match="more than one layer has captions") as refusal:
        default_recipe(["captions/a", "captions/human", "captions/b", "tags/x"])
    pasted = parse(str(refusal.value).partition("\n\n")[2])
    assert pasted.layers == ("captions/human", "captions/a", "captions/b", "tags/x")


def test_a_recipe_that_nests_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "deep.toml").write_text("a = " + "[" * 100_000)
    with pytest.raises(RecipeError, match=r"deep\.toml is not TOML"):
        Recipe.from_toml(tmp_path / "deep.toml")
