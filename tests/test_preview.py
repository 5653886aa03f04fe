"""Preview: a dataset whose every number was worked out by hand, and plain Python on datasets drawn at random."""

from __future__ import annotations

import json
import tempfile
from collections import Counter as Tally
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from cutline.cli.preview import TrainingRun
from cutline.compose import as_kohya
from cutline.compose.buckets import Buckets
from cutline.compose.recipe import Recipe, RecipeError
from cutline.compose.tokens import Trainer, find_trainer
from cutline.dataset import Dataset
from cutline.options import CutlineError, OptionError, fill
from cutline.preview import places
from cutline.preview.drawn import normal
from cutline.preview.lengths import Counter, cuts_at_spaces
from cutline.preview.survey import Survey, survey
from cutline.statistics import Spread
from running import cutline, environment
from test_stats import dataset

CLIP = find_trainer("kohya-sd1").encoders[0]
WORD = "cat"  # one token, as are `,` and each of the words in TAGS
SMALL = replace(CLIP, limit=12, pad=None)
TAGS = ["hat", "cat", "dog", "red", "tree"]


def recipe(**tables: dict[str, Any]) -> Recipe:
    named = {"captions": {"first_of": ["captions/mine"]}, "tags": {"first_of": ["tags/mine"]}}
    return Recipe.parse({name: {**named.get(name, {}), **tables.get(name, {})} for name in (*named, *tables)})


def pairs(spread: Spread) -> dict[int, int]:
    return dict(zip(spread.values.tolist(), spread.counts.tolist(), strict=True))


def rows(table: pa.Table) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in table.to_pylist()]


def counts(found: dict[str, Any]) -> dict[str, int]:
    return {name: one.count for name, one in found.items() if one.count}


def looked_at(root: Path, general: list[str], caption: str, /, **tables: dict[str, Any]) -> Survey:
    """One picture, in one epoch of kohya-sd1."""
    made = dataset(
        root, [{"key": "a"}], tags=[{"key": "a", "general": general}], captions=[{"key": "a", "texts": [caption]}]
    )
    return survey(made, recipe(**tables), find_trainer("kohya-sd1"))


@pytest.fixture
def mine(tmp_path: Path) -> Dataset:
    """Eight pictures with rows of every sort."""
    return dataset(
        tmp_path / "photos",
        [
            {"key": "a", "width": 1000, "height": 1000},
            {"key": "b", "width": 2000, "height": 2000},
            {"key": "c", "width": 832, "height": 1216},
            *({"key": key} for key in "defgh"),
            {"key": "gone", "error": "vanished"},
        ],
        tags=[
            {"key": "a", "general": ["cat", "hat"]},  # cat, hat, <74 words>: 3 + 1 + 74 tokens
            {"key": "b", "general": ["cat", "Cat", "red_tree"]},  # cat, red_tree, cat: rules on tags say each once
            {"key": "c", "general": ["spam"]},  # blacklisted
            {"key": "d", "error": "boom"},
            {"key": "e", "general": []},
            {"key": "h", "general": ["Cat", "cat", "red tree"]},
            {"key": "gone", "general": ["ghost"]},
        ],
        captions=[
            {"key": "a", "texts": [" ".join([WORD] * 74)], "verdict": "good"},
            {"key": "b", "texts": ["cat"], "verdict": "good"},
            {"key": "f", "texts": ["no"], "verdict": "rejected"},
            {"key": "h", "texts": ["CAT"], "verdict": "good"},
        ],
    )


def test_every_number_as_by_hand(mine: Dataset) -> None:
    made = recipe(tags={"blacklist": ["spam"]})
    found = survey(mine, made, find_trainer("kohya-sdxl"))
    assert (found.pictures, found.epochs, found.texts) == (8, 1, 8)

    # a: cat , hat , + 74; b: cat , red _ tree , cat; h: the same with a space; the others are empty
    for lengths in found.encoders:
        assert pairs(lengths.tokens) == {0: 5, 6: 1, 7: 1, 78: 1}
        assert [lengths.over(limit) for limit in (75, 150, 225)] == [1, 0, 0]
    assert [lengths.encoder.name for lengths in found.encoders] == ["clip-l", "clip-g"]

    assert rows(found.exposure.tags) == [
        ("cat", 2, 2, 3),  # in two texts; as Cat, another picture has it
        ("Cat", 1, 1, 3),
        ("hat", 1, 1, 1),
        ("red tree", 1, 1, 2),
        ("red_tree", 1, 1, 2),
    ]
    assert (found.exposure.lost, found.exposure.encoder) == (0, "clip-l")
    assert rows(found.exposure.never) == [("spam", 1)]
    assert rows(found.exposure.fixed) == []  # cat is not written so in h

    assert counts(found.empty) == {"no_row": 1, "error": 1, "rejected": 1, "nothing_said": 1, "left_out": 1}
    assert {cause: one.examples for cause, one in found.empty.items() if one.count} == {
        "no_row": ["g"],
        "error": ["d"],
        "rejected": ["f"],
        "nothing_said": ["e"],
        "left_out": ["c"],
    }
    assert pairs(found.distinct) == {0: 5, 1: 3}
    assert (found.said.same.count, found.said.alike.count) == (0, 1)  # b and h
    assert found.said.alike.examples == ["2 × cat, red_tree, cat"]
    assert (found.said.twice.count, found.said.twice_alike.count) == (0, 0)
    assert found.said.again.examples == ["a: cat", "b: cat", "h: Cat"]
    assert counts(found.leftovers) == {}
    assert found.fused.count == 0
    assert found.buckets == {(704, 1024): 1, (1024, 1024): 2, None: 5}  # no side is over 1024 by default
    assert found.losses() == [
        "clip-l cuts 1 of 8 texts at its 75 tokens",
        "clip-g cuts 1 of 8 texts at its 75 tokens",
        "5 of 8 texts are empty (no layer has a row: 1, the row is an error: 1, the caption was rejected: 1, "
        "the row says nothing: 1, the recipe leaves out all that there is: 1)",
    ]


def test_ways_to_join_as_by_hand(tmp_path: Path) -> None:
    """Seed 004's question: 75 tokens of tags and 200 words."""
    tags = ["cat", *TAGS * 7, "hat", "red"]  # 38 tags and 37 commas
    made = dataset(
        tmp_path / "photos",
        [{"key": "a"}, {"key": "b"}],
        tags=[{"key": "a", "general": tags}, {"key": "b", "general": ["hat"]}],
        captions=[{"key": "a", "texts": [" ".join([WORD] * 200)]}],
    )
    found = survey(made, recipe(), find_trainer("kohya-sdxl", max_token_length="225"))
    assert found.encoders[0].encoder.limit == 225
    told = {policy.name: policy for policy in found.policies}
    share = {name: {limit: policy.kept[limit] for limit in (75, 150, 225)} for name, policy in told.items()}
    of_tags = {75: 76 / 76, 150: 1.0, 225: 1.0}  # 75 tokens, and 1 of b
    assert share["tags, caption"] == {  # 75 of tags, then a comma
        75: (of_tags[75], 0.0),
        150: (1.0, 74 / 200),
        225: (1.0, 149 / 200),
    }
    assert share["caption, tags"] == {  # 200 words and a comma, then 24 tokens of tags
        75: (round(1 / 76, 6), 75 / 200),
        150: (round(1 / 76, 6), 150 / 200),
        225: (round((24 + 1) / 76, 6), 1.0),
    }
    assert share["either"] == {75: (1.0, 75 / 200), 150: (1.0, 150 / 200), 225: (1.0, 1.0)}
    assert share["caption only"][225] == (0.0, 1.0)
    assert share["tags only"][225] == (1.0, 0.0)
    assert {name: policy.seen for name, policy in told.items()} == {
        "tags, caption": (1.0, 1.0),
        "caption, tags": (1.0, 1.0),
        "either": (0.75, 0.5),  # b has tags alone, so they are always drawn
        "caption only": (0.0, 1.0),
        "tags only": (1.0, 0.0),
    }


def test_tags_behind_a_long_caption_fall_off(tmp_path: Path) -> None:
    """72 words and a comma leave two tokens: a tag, and its comma. The third tag's name is cut in its middle."""
    caption = " ".join([WORD] * 72)
    found = looked_at(tmp_path / "photos", ["hat", "red_tree"], caption, text={"order": ["caption", "tags"]})
    assert pairs(found.encoders[0].tokens) == {72 + 1 + 1 + 1 + 3: 1}
    assert rows(found.exposure.tags) == [("hat", 1, 1, 1), ("red_tree", 1, 0, 1)]
    assert found.exposure.lost == 1
    assert "a tag that is in the text falls off at clip-l's limit: 1 of 2 times" in found.losses()


def test_epochs_exposure_and_distinct_texts(tmp_path: Path) -> None:
    made = dataset(
        tmp_path / "photos",
        [{"key": "a"}, {"key": "b"}],
        tags=[
            {"key": "a", "artist": ["me"], "general": ["cat", "hat", "dog"]},
            {"key": "b", "artist": ["me"], "general": ["cat"]},
        ],
    )
    kept = Recipe.parse(
        {"tags": {"first_of": ["tags/mine"], "order": ["artist", "general"], "shuffle": True, "keep": ["artist"]}}
    )
    found = survey(made, kept, find_trainer("kohya-sd1"), epochs=60)
    assert rows(found.exposure.tags) == [
        ("cat", 120, 120, 2),
        ("me", 120, 120, 2),
        ("dog", 60, 60, 1),
        ("hat", 60, 60, 1),
    ]
    assert rows(found.exposure.fixed) == [("me", 120, 0)]
    assert pairs(found.distinct) == {1: 1, 6: 1}
    assert found.policies == ()  # there are no captions


def test_a_text_that_is_dropped_is_no_loss(tmp_path: Path) -> None:
    found = looked_at(tmp_path / "photos", ["cat"], "hat", text={"dropout": 1.0})
    assert counts(found.empty) == {"dropped": 1}
    assert (found.losses(), rows(found.exposure.never)) == ([], [("cat", 1)])


def test_a_text_whose_tags_are_all_dropped_is_no_loss(tmp_path: Path) -> None:
    assert counts(looked_at(tmp_path / "p", ["cat"], "", tags={"dropout": 1.0}).empty) == {"dropped": 1}
    assert "left_out" in counts(
        looked_at(tmp_path / "q", ["cat"], "", captions={"dropout": 0.5}, tags={"blacklist": ["cat"]}).empty
    )


def test_what_rarely_is_meant_is_found(tmp_path: Path) -> None:
    texts = {
        "a": "{cat|dog}",
        "b": "a cat\nsits",
        "c": "\ufeffcat\r",
        "d": "cat,hat and 1,000 dogs",
        "e": "1,000 dogs, sitting,",
        "f": "a ||| b ;;; c",
        "g": "fine",
    }
    made = dataset(
        tmp_path / "photos",
        [{"key": key} for key in texts],
        captions=[{"key": key, "texts": [text]} for key, text in texts.items()],
    )
    found = survey(made, Recipe.parse({"captions": {"first_of": ["captions/mine"]}}), find_trainer("kohya-sd1"))
    assert {name: one.examples for name, one in found.leftovers.items() if one.count} == {
        "{": ["a"],
        "|": ["a", "f"],
        "}": ["a"],
        "|||": ["f"],
        ";;;": ["f"],
        "line break": ["b"],
        "carriage return": ["c"],
        "byte-order mark": ["c"],
        ", without a space": ["d"],
    }
    lines = as_kohya.SEVERAL
    assert found.losses() == [f"the trainer would misread 1 of 7 entries: {lines}"]
    assert (found.misread[lines].examples, found.cannot) == (["b"], ())
    other = survey(made, Recipe.parse({"captions": {"first_of": ["captions/mine"]}}), find_trainer("diffusers-sd1"))
    assert other.losses() == []


def test_what_cleaning_drops_is_told_by_rule(tmp_path: Path) -> None:
    found = looked_at(tmp_path / "photos", ["shirt", "white shirt", "rating:s", "hat"], "x", tags={"clean": "kohya"})
    told = {rule: (one.count, one.examples) for rule, one in found.cleaned.items()}
    assert told == {"ratings": (1, ["rating:s"]), "redundant": (1, ["shirt"])}
    assert [tag for tag, *_ in rows(found.exposure.tags)] == ["hat", "white shirt"]


def test_what_the_trainer_cannot_be_told_is_a_loss(tmp_path: Path) -> None:
    found = looked_at(tmp_path / "photos", ["hat", "cat"], "x", tags={"shuffle": True, "separator": " "})
    assert any("joins tags" in loss for loss in found.losses())


def test_tags_that_stick_to_what_is_beside_them(tmp_path: Path) -> None:
    apart = looked_at(tmp_path / "one", ["cat", "hat"], "a dog.")
    assert apart.fused.count == 0
    beside = looked_at(tmp_path / "two", ["cat", "hat"], "a dog.", text={"separator": " "})
    assert (beside.fused.count, beside.fused.examples) == (1, ["a: hat a dog."])
    before = looked_at(
        tmp_path / "three", ["cat", "hat"], "a", text={"prefix": "best", "suffix": "x", "separator": " "}
    )
    assert before.fused.examples == ["a: best cat", "a: hat a x"]
    template = looked_at(tmp_path / "four", ["cat", "hat"], "x", text={"template": "{tags}[, by {caption}]"})
    assert template.fused.count == 0


def test_a_tag_that_is_said_twice(tmp_path: Path) -> None:
    once = looked_at(tmp_path / "one", ["cat", "hat"], "dogs. Tree", text={"order": ["tags"]})
    assert (once.said.twice.count, once.said.twice_alike.count, once.said.again.count) == (0, 0, 0)
    alike = looked_at(tmp_path / "two", ["red_tree", "Red Tree"], "a dog")
    assert (alike.said.twice.count, alike.said.twice_alike.examples) == (0, ["a: Red Tree"])
    twice = looked_at(tmp_path / "three", ["hat", "cat", "hat"], "a RED-TREE, and that.")
    assert (twice.said.twice.examples, twice.said.twice_alike.count) == (["a: hat"], 1)
    assert rows(twice.exposure.tags) == [("cat", 1, 1, 1), ("hat", 1, 1, 1)]
    again = looked_at(
        tmp_path / "four", ["red_tree", "^_^", "at", "saber_(fate)"], "a RED-TREE, and that: Saber (Fate)!"
    )
    assert again.said.again.examples == ["a: red_tree, saber_(fate)"]


def test_equal_texts_are_counted(tmp_path: Path) -> None:
    said = ["a cat", "a cat", "A  cat", "a_cat", "a dog", "a dog", "a dog", "one"]
    made = dataset(
        tmp_path / "photos",
        [{"key": f"{number}"} for number in range(9)],
        captions=[{"key": f"{number}", "texts": [text]} for number, text in enumerate(said)],
    )
    words = Recipe.parse({"captions": {"first_of": ["captions/mine"]}})
    found = survey(made, words, find_trainer("kohya-sd1"))
    assert (found.said.same.count, found.said.same.examples) == (1 + 2, ["3 × a dog", "2 × a cat"])
    assert (found.said.alike.count, found.said.alike.examples) == (3 + 2, ["4 × a cat", "3 × a dog"])
    some = survey(made, words, find_trainer("kohya-sd1"), sample=9)
    assert some.said == found.said


def test_a_sample_is_the_same_again(tmp_path: Path) -> None:
    made = dataset(
        tmp_path / "photos",
        [{"key": f"{number}"} for number in range(40)],
        captions=[{"key": f"{number}", "texts": [f"cat {number}"]} for number in range(40)],
    )
    words = Recipe.parse({"captions": {"first_of": ["captions/mine"]}})
    first, again, other = (
        survey(made, words, find_trainer("kohya-sd1"), sample=7, seed=seed).as_dict() for seed in (1, 1, 2)
    )
    assert first["pictures"] == 7
    assert first == again
    assert other["pictures"] == 7


def test_an_encoder_without_tokenizer_counts_nothing(mine: Dataset) -> None:
    found = survey(mine, recipe(), find_trainer("kohya-lumina2"))
    assert not found.encoders[0].tokens.total
    assert found.encoders[0].encoder.problem
    assert found.policies == ()
    assert found.exposure.tags["kept"].null_count == len(found.exposure.tags)
    assert not [loss for loss in found.losses() if "cuts" in loss or "falls off" in loss]


def test_a_text_at_which_the_trainer_stops(tmp_path: Path) -> None:
    made = dataset(tmp_path / "photos", [{"key": "a"}, {"key": "b"}], captions=[{"key": "a", "texts": ["(a:1.2.3)"]}])
    words = Recipe.parse({"captions": {"first_of": ["captions/mine"]}})
    found = survey(made, words, find_trainer("kohya-sd1", weighted_captions="true"))
    assert found.encoders[0].stops == 1
    assert counts(found.leftovers) == {"brackets read as weights": 1}
    assert "the trainer would stop at 1 text (clip-l)" in found.losses()


def test_what_it_cannot_do_is_said(mine: Dataset) -> None:
    with pytest.raises(RecipeError, match="no output 'other'"):
        survey(mine, recipe(), find_trainer("kohya-sd1"), output="other")
    with pytest.raises(CutlineError, match=r"captions/other, which .* does not have"):
        survey(mine, Recipe.parse({"captions": {"first_of": ["captions/other"]}}), find_trainer("kohya-sd1"))


def test_buckets_are_those_asked_for(mine: Dataset) -> None:
    found = survey(mine, recipe(), find_trainer("kohya-sd1"), buckets=Buckets((512, 512)))
    assert found.buckets == {(384, 640): 1, (512, 512): 2, None: 5}


# -- lengths --------------------------------------------------------------------------------------------------

WORDS = r"a É e@ @ ﬁ 🎉 日本 1girl 1 saber_(fate) <|endoftext|> <| |> ' ΑΣ İ \( :d ^_^ cat ! ) ( 's it's , ,"
PIECES = st.sampled_from([*WORDS.replace("@", "\u0301").split(), *"\n\t\u3000\u2028\u00a0   ", ", ", ", "])
TEXTS = st.lists(PIECES, max_size=60).map("".join)


@given(st.lists(TEXTS, min_size=1, max_size=6))
@settings(max_examples=300, deadline=None)
def test_words_add_up_to_texts(texts: list[str]) -> None:
    """Counted word by word or as a whole, a text of CLIP's has the same length."""
    assert cuts_at_spaces(CLIP)
    assert Counter(CLIP).counts(pa.array(texts)).tolist() == CLIP.counts(texts).tolist()


@given(st.lists(TEXTS.filter(bool), min_size=1, max_size=4), st.data(), st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_where_the_limit_falls(texts: list[str], data: st.DataObject, limit: int) -> None:
    """What is kept is what the encoder itself says of each text, wherever one looks."""
    small = replace(CLIP, limit=limit, pad=None)
    row = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=20))
    ends = [data.draw(st.integers(1, len(texts[number]))) for number in row]
    places_ = [len(texts[number][:end].encode()) for number, end in zip(row, ends, strict=True)]
    found = Counter(small).measure(pa.array(texts)).keeps(np.array(row, np.int64), np.array(places_, np.int64))
    for number, end, kept in zip(row, ends, found.tolist(), strict=True):
        assert kept == (end <= len(small.read(texts[number]).kept))


def trained(folder: Path) -> Path:
    """A tokenizer that is not known to cut at spaces: each token is a character."""
    letters = [*"abcdefghijklmnopqrstuvwxyz ,._0123456789"]
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="never")
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_an_encoder_that_sees_whole_texts(tmp_path: Path) -> None:
    """Counted in characters: 60 and `, ` leave 13, of which `hat, dog, ` are 10."""
    trainer = find_trainer("kohya-sd1", clip=str(trained(tmp_path)))
    assert not cuts_at_spaces(trainer.encoders[0])
    made = dataset(
        tmp_path / "photos",
        [{"key": "a"}],
        tags=[{"key": "a", "general": ["hat", "dog", "tree"]}],
        captions=[{"key": "a", "texts": ["x" * 60]}],
    )
    found = survey(made, recipe(text={"order": ["caption", "tags"]}), trainer)
    assert pairs(found.encoders[0].tokens) == {60 + 2 + 3 + 2 + 3 + 2 + 4: 1}
    assert rows(found.exposure.tags) == [("dog", 1, 1, 1), ("hat", 1, 1, 1), ("tree", 1, 0, 1)]
    shares = {policy.name: policy.kept[75] for policy in found.policies}
    assert shares["caption, tags"] == (round(13 / 14, 6), 1.0)
    assert shares["tags, caption"] == (1.0, round(59 / 60, 6))


# -- against plain Python ---------------------------------------------------------------------------------------

NAMES = st.sampled_from(["cat", "red tree", "red_tree", "hat", "Hat", "saber_(fate)", "at", "^_^", "é", "cat ear"])
ROW = st.none() | st.lists(NAMES, max_size=6)
CAPTION = st.none() | st.lists(NAMES | st.sampled_from(["a", "on.", "the,"]), max_size=12).map(" ".join)
TABLES = st.fixed_dictionaries(
    {
        "tags": st.fixed_dictionaries(
            {},
            optional={
                "shuffle": st.just(True),
                "dropout": st.just(0.4),
                "underscores": st.just("space"),
                "blacklist": st.just(["cat"]),
                "escape": st.just(True),
            },
        ),
        "text": st.sampled_from(
            [
                {},
                {"order": ["caption", "tags"]},
                {"either": [["tags"], ["caption"]]},
                {"prefix": "best"},
                {"template": "{tags}. [{caption}]"},
                {"separator": " ", "dropout": 0.3},
            ]
        ),
    }
)


@given(st.lists(st.tuples(ROW, CAPTION), min_size=1, max_size=16), TABLES, st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_against_plain_python(given_: list[tuple[list[str] | None, str | None]], tables: Any, epochs: int) -> None:
    given_ = [*given_, (["zed"], "zed")]  # without any row there is no layer
    with tempfile.TemporaryDirectory() as folder:
        keys = [f"{number}" for number in range(len(given_))]
        made = dataset(
            Path(folder) / "photos",
            [{"key": key} for key in keys],
            tags=[
                {"key": key, "general": tags} for key, (tags, _) in zip(keys, given_, strict=True) if tags is not None
            ],
            captions=[{"key": key, "texts": [said]} for key, (_, said) in zip(keys, given_, strict=True) if said],
        )
        words = recipe(**tables)
        found = survey(made, words, Trainer("small", (SMALL,)), epochs=epochs)
        expected = plainly(made, words, epochs)
    assert pairs(found.encoders[0].tokens) == expected["tokens"]
    assert {row[0]: row[1] for row in rows(found.exposure.tags)} == expected["texts"]
    assert {row[0]: row[2] for row in rows(found.exposure.tags) if row[2]} == expected["kept"]
    assert found.said.twice.count == expected["twice"]
    assert found.said.twice_alike.count == expected["twice_alike"]
    assert pairs(found.distinct) == expected["distinct"]
    assert sum(one.count for one in found.empty.values()) == expected["empty"]
    assert found.said.same.count == expected["same"]
    assert {row[0] for row in rows(found.exposure.fixed)} == expected["fixed"]
    assert {row[0]: row[1] for row in rows(found.exposure.never)} == expected["never"]


def plainly(made: Dataset, words: Recipe, epochs: int) -> dict[str, Any]:
    """The same, a picture and a text at a time."""
    tokens, texts, kept, twice, twice_alike, empty = Tally[int](), Tally[str](), Tally[str](), 0, 0, 0
    by_picture: dict[str, set[str]] = {}
    first: Tally[str] = Tally()
    where: dict[str, set[int]] = {}
    having: dict[str, set[str]] = {}
    layer: dict[str, set[str]] = {}
    spelt: dict[str, str] = {}
    for batch in made.scan(*words.layers, fields=words.fields):
        for row, key in enumerate(batch.column("key").to_pylist()):
            tagged = (
                batch.column("tags/mine")[row].as_py() if pa.types.is_struct(batch.column("tags/mine").type) else {}
            )
            for tag in (tagged or {}).get("general") or []:
                layer.setdefault(normal(tag), set()).add(key)
                having.setdefault(normal(tag), set()).add(key)
                spelt.setdefault(normal(tag), tag)
            for epoch in range(epochs):
                draw = words.make(batch, seed=0, epoch=epoch).draw()
                text, tags = draw.texts[row].as_py() or "", draw.tags[row].as_py()
                tokens[int(CLIP.counts([text])[0])] += 1
                texts.update(set(tags))
                one = draw.texts.slice(row, 1), draw.caption.slice(row, 1), draw.tags.slice(row, 1)
                end = dict(zip(tags[::-1], places.locate(*one, ", ")[1].tolist()[::-1], strict=True))  # of its first
                kept.update(tag for tag in end if end[tag] <= len(SMALL.read(text).kept.encode()))
                twice += len(set(tags)) < len(tags)
                twice_alike += len(set(map(normal, tags))) < len(tags)
                empty += not text.strip()
                by_picture.setdefault(key, set()).update({text} - {""})
                if epoch == 0 and text:
                    first[text] += 1
                for place, tag in enumerate(tags):
                    where.setdefault(tag, set()).add(place)
                    having.setdefault(normal(tag), set()).add(key)
    fixed = {tag for tag, many in texts.items() if len(where[tag]) == 1 and many == epochs * len(having[normal(tag)])}
    return {
        "tokens": dict(tokens),
        "texts": dict(texts),
        "kept": dict(kept),
        "twice": twice,
        "twice_alike": twice_alike,
        "empty": empty,
        "distinct": dict(Tally(len(said) for said in by_picture.values())),
        "same": sum(count - 1 for count in first.values()),
        "fixed": {tag for tag in fixed if texts[tag] > 1},
        "never": {spelt[tag]: len(keys) for tag, keys in layer.items() if tag not in set(map(normal, texts))},
    }


@given(st.lists(NAMES, max_size=6), CAPTION, st.sampled_from(["{t}, {c}", "{c}, {t}", "best {t}. {c}", "{t}"]))
def test_tags_are_found_where_they_stand(tags: list[str], caption: str | None, form: str) -> None:
    said = caption if "{c}" in form else None
    text = form.format(t=", ".join(tags), c=said or "")
    starts, ends = places.locate(
        pa.array([text]), pa.array([said], pa.string()), pa.array([tags], pa.list_(pa.string())), ", "
    )
    data = text.encode()
    assert [data[start:end].decode() for start, end in zip(starts, ends, strict=True)] == tags
    assert starts.tolist() == sorted(starts.tolist())


def test_what_stands_behind_a_null_is_no_tag() -> None:
    offsets, mask = pa.array([0, 1, 2, 3], pa.int32()), pa.array([False, True, False])
    tags = pa.ListArray.from_arrays(offsets, pa.array(["cat", "ghost", "dog"]), mask=mask)
    starts, ends = places.locate(pa.array(["cat", "ghost", "a dog"]), pa.array([None] * 3, pa.string()), tags, ", ")
    assert (starts.tolist(), ends.tolist()) == ([0, 2], [3, 5])


@pytest.mark.parametrize("given", ["-5,-5", "0,512", "0,0", "1,2,3"])
def test_a_resolution_that_is_none(given: str) -> None:
    with pytest.raises(OptionError, match=f"resolution={given}: one number of pixels from 1 up, or two"):
        fill(TrainingRun, {"resolution": given})
    assert fill(TrainingRun, {"resolution": "512"}).size == (512, 512)
    assert fill(TrainingRun, {"resolution": "512,768"}).size == (512, 768)
    assert fill(TrainingRun, {}).size is None


# -- the command line -------------------------------------------------------------------------------------------


def test_the_command_line_tells_people_and_programs(mine: Dataset, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(
        '[captions]\nfirst_of = ["captions/mine"]\n[tags]\nfirst_of = ["tags/mine"]\nblacklist = ["spam"]\n', "utf-8"
    )
    chosen = (mine.root, "--recipe", tmp_path / "recipe.toml")
    wide = environment(COLUMNS=120)
    said = cutline("preview", *chosen, env=wide).stdout
    for line in (
        "8 pictures, as kohya-sdxl reads them",
        " clip-l     0       0   78   78   78     75 ",
        "in a layer, and in no text (pictures): 1 tag: spam (1)",
        "  clip-l cuts 1 of 8 texts at its 75 tokens",
        "1  2 × cat, red_tree, cat",
    ):
        assert line.rstrip() in "\n".join(row.rstrip() for row in said.splitlines()), said
    told = json.loads(cutline("preview", *chosen, "--json", "--trainer", "kohya-sd3").stdout)
    assert told["trainer"] == "kohya-sd3"
    assert told["encoders"]["clip-l"]["cut"]["75"] == 1
    assert (told["encoders"]["clip-l"]["tokens"]["p90"], told["encoders"]["clip-l"]["tokens"]["median"]) == (78, 0)
    assert "hf download" in told["encoders"]["t5-xxl"]["problem"]
    assert told["exposure"]["commonest"][0] == {"tag": "cat", "texts": 2, "kept": 2, "pictures": 3}
    strict = cutline("preview", *chosen, "--strict", code=3)
    assert "lost: clip-l cuts 1 of 8 texts at its 75 tokens" in strict.stderr
    longer = cutline("preview", *chosen, "--strict", "-o", "max_token_length=150", code=3)  # some are empty
    assert "cuts" not in longer.stderr


def test_what_is_not_counted_is_not_called_kept(tmp_path: Path) -> None:
    made = dataset(tmp_path / "photos", [{"key": "a"}], captions=[{"key": "a", "texts": ["a cat"]}])
    said = cutline("preview", made.root, "--strict", "--trainer", "kohya-lumina2")
    assert "nothing lost was found, without gemma-2-2b" in said.stdout
    assert said.stderr.startswith("not counted: the tokenizer of gemma-2-2b is not here")


def test_nothing_to_look_at(tmp_path: Path) -> None:
    made = dataset(
        tmp_path / "photos",
        [{"key": "a", "error": "vanished"}],
        tags=[{"key": "a", "general": ["cat"]}],
        captions=[{"key": "a", "texts": ["a cat"]}],
    )
    found = survey(made, recipe(), find_trainer("kohya-sd1"))
    assert (found.pictures, found.policies, found.losses(), found.buckets) == (0, (), [], {})
    assert "0 pictures" in cutline("preview", made.root, "--epochs", 2).stdout


def test_nothing_lost_is_no_error(tmp_path: Path) -> None:
    made = dataset(tmp_path / "photos", [{"key": "a"}], captions=[{"key": "a", "texts": ["a cat"]}])
    assert "nothing will be lost" in cutline("preview", made.root, "--strict").stdout


def test_plots_are_drawn(mine: Dataset, tmp_path: Path) -> None:
    cutline("preview", mine.root, "--plots", tmp_path / "plots")
    drawn = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert drawn == ["tokens-clip-g.png", "tokens-clip-l.png", "ways-to-join.png"]
    for name in drawn:
        with Image.open(tmp_path / "plots" / name) as picture:
            assert picture.size[0] > 500
            assert len(set(np.asarray(picture.convert("L")).ravel().tolist())) > 10


def test_files_of_a_trainer_are_looked_at(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (832, 1216)).save(folder / "a.png")
    (folder / "a.txt").write_text("a cat ||| a hat", "utf-8")
    config = tmp_path / "config.toml"
    config.write_text(
        "[general]\nresolution = 1024\nenable_bucket = true\n[[datasets]]\n[[datasets.subsets]]\n"
        f'image_dir = "{folder.as_posix()}"\ncaption_extension = ".txt"\ncaption_prefix = "best"\n'
        'keep_tokens_separator = "|||"\n',
        "utf-8",
    )
    said = cutline("preview", config).stdout
    assert said.index("keep_separator_leaks") < said.index("prefix_fuses")  # what is lost comes first
    assert "way out: end the prefix with the separator" in said
    assert "704x1024" in said
    assert cutline("preview", config, "--strict", code=3).stderr.startswith("lost: keep_separator_leaks")
    told = json.loads(cutline("preview", config, "--json").stdout)
    assert [bucket["pictures"] for bucket in told["buckets"]] == [1]
    refused = cutline("preview", config, "--trainer", "kohya-sd1", "--sample", 3, code=2).stderr
    assert "--trainer, --sample is about datasets of Cutline" in refused
    assert "no option 'steps'" in cutline("preview", config, "-o", "steps=3", code=2).stderr
    assert "--top is about datasets of Cutline" in cutline("preview", config, "--top", 0, code=2).stderr
    assert "1 picture that a trainer would load" in cutline("preview", folder).stdout
    assert "no dataset yet" in cutline("preview", tmp_path / "nothing", code=1).stderr
