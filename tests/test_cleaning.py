"""Cleaning: what sd-scripts' cleaning sets out to do, done right; idempotent, reported, many pictures as one."""

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutline import tags
from cutline.compose.cleaning import Cleaning, find, presets
from cutline.options import CutlineError, OptionError

ORACLE = Path(__file__).parent / "oracles" / "kohya" / "clean_captions_and_tags.jsonl"
CASES = [json.loads(line) for line in ORACLE.read_text(encoding="utf-8").splitlines()]
RECORDED = {case["in"]: case["out"] for case in CASES}
KOHYA = find("kohya")

# What each recorded input should become, and why where that is not what sd-scripts made of it. Tags stay as they were
# typed: how they are written is for the recipe to say.
RIGHT_TAGS = {
    "1girl, long_hair, solo": "1girl, long_hair, solo",  # spelling is the recipe's
    "^_^, o_o, >_<, 1girl": "^_^, o_o, >_<, 1girl",  # it broke all faces but one
    "2girls, blue hair, smile": "2girls, blue hair, smile",
    "2girls, blue eyes, red eyes, long hair, short hair": "2girls",
    "white shirt, shirt, dress": "white shirt, dress",
    "hair, blue hair": "blue hair",
    "1girl, rating:explicit, solo": "1girl, solo",  # it lost all that stands after a rating
    "a, rating:s, b, rating:q": "a, b",  # so here
    "solo": "solo",
    "1girl,solo": "1girl, solo",  # it took this for one tag
    "hair ornament, flower hair ornament": "flower hair ornament",
    "bow, hair bow, red bow": "hair bow, red bow",
    "2boys, long sleeves, sleeveless, short sleeves": "2boys",
    "cowboy shot, shirt, t-shirt": "cowboy shot, shirt, t-shirt",
}
RIGHT_CAPTIONS = {
    "a anime girl standing": "a girl standing",
    "an anime woman with young lady": "a girl with girl",  # it left "an girl"
    "a woman and a person, many people": "a girl and a girl, many girls",
    "anime anime anime girl": "girl",
    "the lady is a cartoon figure": "the girl is a figure",
    "superwoman in womenswear": "superwoman in womenswear",  # it wrote "supergirl in girlsswear"
    "a salesperson at work": "a salesperson at work",  # it wrote "a salesgirl"
}


def test_every_recorded_case_has_a_right_answer() -> None:
    assert {*RIGHT_TAGS, *RIGHT_CAPTIONS} == set(RECORDED)


@pytest.mark.parametrize(("text", "right"), RIGHT_TAGS.items())
def test_recorded_tags_done_right(text: str, right: str) -> None:
    kept, dropped = KOHYA.tags(tags.split(text))
    assert ", ".join(kept) == right
    assert sorted([*kept, *(name for name, _ in dropped)]) == sorted(tags.split(text))


@pytest.mark.parametrize(("text", "right"), RIGHT_CAPTIONS.items())
def test_recorded_captions_done_right(text: str, right: str) -> None:
    cleaned, done = KOHYA.caption(text)
    assert cleaned == right
    assert bool(done) == (text != right)


# -- tags -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "dropped"),
    [
        # Ratings.
        ("Rating:Explicit, rating_safe, rating: q, rating system", {"ratings": 4}),
        ("explicit, general, rating", {}),
        # Families: only of several people, only two different tags, only of one family.
        ("1girl, blue eyes, red eyes, ponytail, twintails", {}),
        ("1girl, 1boy, blue eyes, red eyes", {}),
        ("Multiple_Girls, Blue_Eyes, red eyes", {"eye colour": 2}),
        ("6+girls, blue eyes, blue_eyes", {}),
        ("2girls, blue eyes, red hair, long sleeves, ponytail, long hair", {}),
        ("2girls, blue eyes, closed eyes", {}),
        ("3boys, french braid, single hair bun, white hair, black hair", {"hair style": 2, "hair colour": 2}),
        ("2others, bob cut, very long hair", {"hair length": 2}),
        ("cowgirls, blue eyes, red eyes", {}),
        # Redundant: by whole words, and the last ones.
        ("shirt, t-shirt, sweatshirt, shirtless", {}),
        ("dress shirt, dress", {}),
        ("bow, elbow", {}),
        ("hair, long_hair, very  long hair", {"redundant": 2}),
        ("SHIRT, white_shirt", {"redundant": 1}),
        ("shirt, shirt, white shirt", {"redundant": 2}),
        ("white shirt, white_shirt", {}),
        ("shoes, no shoes, no white shoes", {}),
        ("shoes, no shoes, white shoes", {"redundant": 1}),
        ("o_o, o, _, >_<, <", {}),
        ("_shirt_, shirt", {}),
        # What a family takes away cannot say anything more exactly.
        ("2girls, hair, red hair, blue hair", {"hair colour": 2}),
        ("2girls, hair, red hair", {"redundant": 1}),
    ],
)
def test_tags(names: str, dropped: dict[str, int]) -> None:
    kept, gone = KOHYA.tags(tags.split(names))
    rules = [rule for _, rule in gone]
    assert {rule: rules.count(rule) for rule in rules} == dropped
    assert KOHYA.tags(kept) == (kept, [])


def test_what_is_dropped_is_named_as_it_was_typed() -> None:
    assert KOHYA.tags(["2girls", "Blue_Eyes", "shirt", "red  eyes", "rating:S", "White Shirt"]) == (
        ["2girls", "White Shirt"],
        [("Blue_Eyes", "eye colour"), ("shirt", "redundant"), ("red  eyes", "eye colour"), ("rating:S", "ratings")],
    )
    assert KOHYA.rules == (
        "ratings", "hair length", "eye colour", "sleeves", "hair style", "hair colour", "redundant",
    )  # fmt: skip
    assert KOHYA.tags([]) == ([], [])


def test_a_tag_of_two_families_is_of_the_first() -> None:
    both = Cleaning.parse({"tags": {"several": ["2girls"], "families": {"a": ["x", "y"], "b": ["y", "z"]}}})
    assert both.tags(["2girls", "x", "y", "z"]) == (["2girls", "z"], [("x", "a"), ("y", "a")])


WORDS = st.sampled_from([
    "2girls", "1girl", "multiple_girls", "shirt", "White Shirt", "white_shirt", "torn white shirt", "no shirt", "o_o",
    "O_O", "o", "blue eyes", "Blue_eyes", "red eyes", "closed eyes", "eyes", "hair", "long hair", "short hair",
    "blue hair", "red hair", "rating:s", "Rating_e", "sleeveless", "long sleeves", "wide sleeves", "", " ", "_", "猫",
])  # fmt: skip
CLEANINGS = st.sampled_from([
    KOHYA,
    Cleaning.parse({"tags": {"redundant": True}}),
    Cleaning.parse({"tags": {"ratings": ["*eyes"]}}),
    Cleaning.parse({"tags": {"several": ["2girls"], "families": {"of one": ["*girl*", "o*"], "x": ["*"]}}}),
    Cleaning.parse({"captions": {"words": {"a": "b"}}}),
])  # fmt: skip


@given(CLEANINGS, st.lists(st.lists(WORDS, max_size=8), max_size=6))
def test_many_pictures_at_once_as_one_by_one(cleaning: Cleaning, pictures: list[list[str]]) -> None:
    names = sorted({name for picture in pictures for name in picture})
    rows = np.array([row for row, picture in enumerate(pictures) for _ in picture], np.int64)
    codes = np.array([names.index(name) for picture in pictures for name in picture], np.int64)
    backwards = np.arange(len(rows))[::-1]  # in any order
    drops = np.empty(len(rows), np.int64)
    drops[backwards] = cleaning.drops(names, rows[backwards], codes[backwards])
    for row, picture in enumerate(pictures):
        mine = drops[rows == row].tolist()
        kept, dropped = cleaning.tags(picture)
        assert kept == [name for name, rule in zip(picture, mine, strict=True) if rule < 0]
        assert dropped == [(name, cleaning.rules[rule]) for name, rule in zip(picture, mine, strict=True) if rule >= 0]
        assert cleaning.tags(kept) == (kept, [])


# -- captions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "cleaned", "done"),
    [
        ("Woman standing", "Girl standing", ["woman -> girl"]),
        ("AN ANIME WOMAN", "A GIRL", ["woman -> girl", "- anime"]),
        ("Young woman. Anime girl.", "Girl. Girl.", ["woman -> girl", "- young", "- anime"]),
        ("An Anime girl", "A girl", ["- anime"]),
        ("women's clothes, a lady's hat", "girls' clothes, a girl's hat", ["women -> girls", "lady -> girl"]),
        ("women’s clothes", "girls’ clothes", ["women -> girls"]),
        ("watching anime, anime style, young man", "watching anime, anime style, young man", []),
        ("a half-woman, woman-like, her_woman", "a half-woman, woman-like, her_woman", []),
        ("an old woman", "an old girl", ["woman -> girl"]),
        ("a anime\nwoman", "a anime\ngirl", ["woman -> girl"]),  # lines stay lines
        ("an  anime   girl", "a  girl", ["- anime"]),
        ("", "", []),
    ],
)
def test_captions(text: str, cleaned: str, done: list[str]) -> None:
    assert KOHYA.caption(text) == (cleaned, done)
    assert KOHYA.caption(cleaned) == (cleaned, [])


def test_an_article_before_a_vowel() -> None:
    elves = Cleaning.parse({"captions": {"words": {"woman": "elf"}}})
    assert elves.caption("A woman, a woman, the woman, woman, a tall woman")[0] == (
        "An elf, an elf, the elf, elf, a tall elf"
    )


def test_only_what_stands_in_front_goes() -> None:
    rules = Cleaning.parse({"captions": {"dropped": ["old", "very"], "before": ["man"]}})
    assert rules.caption("a very old man, a very tall man, old and very man") == (
        "a man, a very tall man, old and man",
        ["- very", "- old"],
    )
    assert rules.rules == ()
    assert rules.tags(["a", "b"]) == (["a", "b"], [])


@given(st.lists(st.sampled_from(
    ["a", "an", "An", "anime", "Young", "woman", "women's", "lady", "girl", "figure", ",", "\n", "superwoman", "-"]
), max_size=10))  # fmt: skip
def test_a_clean_caption_is_clean(pieces: list[str]) -> None:
    cleaned, _ = KOHYA.caption(" ".join(pieces))
    assert KOHYA.caption(cleaned) == (cleaned, [])
    assert cleaned.count("\n") == pieces.count("\n")


# -- rules as data --------------------------------------------------------------------------------------------


def test_presets_are_found_by_name_and_by_path(tmp_path: Path) -> None:
    assert presets() == ["kohya"]
    (tmp_path / "mine.toml").write_text("[tags]\nredundant = true\n", encoding="utf-8")
    assert find(str(tmp_path / "mine.toml")).rules == ("redundant",)
    with pytest.raises(OptionError, match=r"no cleaning is called 'koya'\. There are: kohya"):
        find("koya")
    with pytest.raises(CutlineError, match="cannot read"):
        find(str(tmp_path / "none.toml"))
    for text, problem in (("[tags]\nrating = []", r"mine\.toml: \[tags\] has no 'rating'"), ("[tags", "is no TOML")):
        (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
        with pytest.raises(CutlineError, match=problem):
            find(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        ("", "does nothing"),
        ("tag = 1", "has no 'tag'; it has: tags, captions"),
        ("tags = 1", "is a table"),
        ("[tags]\nratings = 'rating'", "no list of words"),
        ("[tags]\nredundant = 'yes'", "true or false"),
        ("[tags]\nseveral = ['2girls']", "give both"),
        ("[tags.families]\na = ['x']", "give both"),
        ("[tags]\nnot_after = ['no']", "add redundant = true"),
        ("[tags]\nseveral = ['2girls']\nfamilies = { ratings = ['x'] }", "another rule"),
        ("[captions]\ndropped = ['anime']", "give both"),
        ("[captions.words]\nwoman = 'young girl'", "not one word"),
        ("[captions.words]\nwoman = 'Girl'", "lower case"),
        ("[captions.words]\nwoman = ''", "no list of words"),
        ("[captions.words]\nwoman = 'lady'\nlady = 'girl'", "'lady' is written 'girl'"),
        ("[captions]\ndropped = ['old']\nbefore = ['woman']\nwords = { woman = 'girl' }", "'woman' is written 'girl'"),
        ("[captions]\ndropped = ['old']\nbefore = ['girl']\nwords = { woman = 'old' }", "'old' is dropped"),
    ],
)
def test_rules_without_effect_or_end_are_refused(rules: str, problem: str) -> None:
    values: dict[str, Any] = tomllib.loads(rules)
    with pytest.raises(OptionError, match=problem):
        Cleaning.parse(values)
