"""TIPO's format: golden prompts for every task, and a reader that keeps all that a model wrote."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cutline.options import OptionError
from cutline.prompts.tipo import FIELDS, LENGTHS, MARKERS, METADATA, TASKS, TipoPrompt, UnfitText, read, tag_line

TAGS = ("long_hair", "1girl", "smile")
SHORT = "A girl smiles."
LONG = "A girl with long hair.\nShe smiles."

GOLDEN: list[tuple[dict[str, Any], str]] = [
    (
        {"task": "tag_to_long", "tags": TAGS},
        "target: <|long|> <|tag_to_long|>\ntag: 1girl, long hair, smile\nlong:",
    ),
    (
        {"task": "tag_to_long", "tags": TAGS, "expand": True, "length": "very_short"},
        "target: <|very_short|> <|tag_to_long|>\ntag: 1girl, long hair, smile",
    ),
    (
        {"task": "long_to_tag", "long": LONG},
        "target: <|long|> <|long_to_tag|>\nlong: A girl with long hair.\nShe smiles.\ntag:",
    ),
    (
        {"task": "short_to_tag", "short": SHORT, "length": "short"},
        "target: <|short|> <|short_to_tag|>\nshort: A girl smiles.\ntag:",
    ),
    (
        {"task": "short_to_long", "short": SHORT},
        "target: <|short_to_long|>\nshort: A girl smiles.\nlong:",
    ),
    (
        {"task": "tag_to_short_to_long", "tags": TAGS, "length": "very_long"},
        "target: <|very_long|> <|tag_to_short_to_long|>\ntag: 1girl, long hair, smile\nshort:",
    ),
    (
        {"task": "tag_to_short_to_long", "tags": TAGS, "short": SHORT},
        "target: <|long|> <|tag_to_short_to_long|>\ntag: 1girl, long hair, smile\nshort: A girl smiles.\nlong:",
    ),
    (
        {"task": "short_to_tag_to_long", "short": SHORT},
        "target: <|long|> <|short_to_tag_to_long|>\nshort: A girl smiles.\ntag:",
    ),
    (
        {"task": "short_to_tag_to_long", "short": SHORT, "tags": TAGS},
        "target: <|long|> <|short_to_tag_to_long|>\nshort: A girl smiles.\ntag: 1girl, long hair, smile\nlong:",
    ),
    (
        {"task": "short_to_long_to_tag", "short": SHORT},
        "target: <|long|> <|short_to_long_to_tag|>\nshort: A girl smiles.\nlong:",
    ),
    (
        {"task": None, "tags": TAGS, "expand": True},
        "target: <|long|>\ntag: 1girl, long hair, smile",
    ),
    (
        {"task": "tag_to_long", "tags": TAGS, "gen_meta": True, "metadata": {"rating": "safe"}},
        "rating: safe\ntarget: <|long|> <|tag_to_long|> <|gen_meta|>\ntag: 1girl, long hair, smile\nlong:",
    ),
    (
        {"task": None, "tags": TAGS, "expand": True, "gen_meta": True, "length": "short"},
        "target: <|short|> <|gen_meta|>\ntag: 1girl, long hair, smile",
    ),
]


@pytest.mark.parametrize(("given_", "text"), GOLDEN, ids=[str(text.splitlines()[-2:]) for _, text in GOLDEN])
def test_golden_prompts(given_: dict[str, Any], text: str) -> None:
    assert str(TipoPrompt(**given_)) == text


def test_every_trained_task_has_a_golden_prompt_and_there_are_13_markers() -> None:
    assert {one.get("task") for one, _ in GOLDEN} == {*TASKS, None}
    assert len(MARKERS) == len(set(MARKERS)) == 13
    said = " ".join(text for _, text in GOLDEN)
    assert [marker for marker in MARKERS if marker not in said] == ["<|empty|>"]


def test_metadata_stands_in_one_order_and_what_is_not_known_is_left_out() -> None:
    known = {
        "quality": "masterpiece",
        "copyrights": "vocaloid",
        "aspect ratio": "0.7",
        "characters": "hatsune miku",
        "artist": "",
        "meta": "highres, absurdres",
        "rating": "nsfw, explicit",
    }
    assert str(TipoPrompt(tags=["1girl"], metadata=known)) == (
        "meta: highres, absurdres\nrating: nsfw, explicit\ncharacters: hatsune miku\ncopyrights: vocaloid\n"
        "quality: masterpiece\naspect ratio: 0.7\ntarget: <|long|> <|tag_to_long|>\ntag: 1girl\nlong:"
    )
    backwards = dict(reversed(known.items()))
    assert str(TipoPrompt(tags=["1girl"], metadata=backwards)) == str(TipoPrompt(tags=["1girl"], metadata=known))


def test_tags_are_written_with_spaces_and_who_there_is_comes_first() -> None:
    tags = ["^_^", "saber_(fate)", "solo", "t-shirt", "thighhighs", "multiple_girls", "6+girls", "||_||", "long_hair"]
    assert tag_line(tags) == "multiple girls, 6+girls, ^_^, saber (fate), solo, t-shirt, thighhighs, ||_||, long hair"
    assert tag_line([]) == ""


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"task": "tag_to_short", "tags": TAGS}, "no marker for it.*tag_to_long, long_to_tag, short_to_tag"),
        ({"task": "tag_to_long_to_short", "tags": TAGS}, "no marker for it.*short_to_long_to_tag"),
        ({"length": "longest", "tags": TAGS}, "very_short, short, long, very_long"),
        ({"task": "short_to_long", "short": SHORT, "length": "long"}, "no effect on short_to_long"),
        ({"metadata": {"aspect_ratio": "1.0"}, "tags": TAGS}, "'aspect_ratio' is no metadata.*aspect ratio"),
        ({"task": "short_to_long", "tags": TAGS}, "begins with short, and tag was given"),
        ({"tags": TAGS, "short": SHORT}, "begins with tag, and tag and short was given"),
        ({}, "begins with tag, and none was given"),
        ({"tags": TAGS, "long": LONG}, "nothing left to write"),
        ({"task": None, "tags": TAGS}, "nothing left to write"),
    ],
    ids=str,
)
def test_what_tipo_was_not_trained_on_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        TipoPrompt(**wrong)


@pytest.mark.parametrize(
    ("unfit", "says"),
    [
        ({"tags": ["<|long|>"]}, "the tag has the marker <|long|> in it"),
        ({"tags": ["</s>"]}, "the tag has the marker </s>"),
        ({"tags": ["a\nb"]}, "the tag has a line break"),
        ({"tags": ["a"], "metadata": {"artist": "x\nrating: safe"}}, "the artist has a line break"),
        ({"task": "short_to_long", "short": "One.\ntag: two"}, "begins with 'tag:'"),
        ({"task": "long_to_tag", "long": "One.\naspect ratio: 1.0"}, "begins with 'aspect ratio:'"),
    ],
    ids=str,
)
def test_text_that_would_be_taken_for_the_form_is_refused(unfit: dict[str, Any], says: str) -> None:
    with pytest.raises(UnfitText) as caught:
        TipoPrompt(**unfit)
    assert says in str(caught.value)


def test_a_face_of_marks_is_a_tag_like_others() -> None:
    assert str(TipoPrompt(tags=["<|>_<|>", "1girl"])).endswith("\ntag: 1girl, <|>_<|>\nlong:")


# -- reading --------------------------------------------------------------------------------------------------


def is_text(text: str) -> bool:
    return not any(line.startswith(f"{key}:") for line in text.split("\n") for key in (*FIELDS, *METADATA, "target"))


TEXTS = st.text(st.sampled_from("ab.:,\n\r <|>_\u2028\xe9long tag") | st.characters(codec="utf-8"), max_size=60)
TEXTS = TEXTS.filter(is_text)


@given(TEXTS, st.lists(st.tuples(st.sampled_from((*FIELDS, *METADATA)), TEXTS), max_size=4))
@example(" two spaces ", [("short", "a\n\n"), ("tag", "")])
@example("In the back: a tree.\nlonging: for more", [])
def test_any_text_without_a_key_line_comes_back_as_it_was(first: str, others: list[tuple[str, str]]) -> None:
    said = "\n".join([f" {first}", *(f"{key}: {text}" for key, text in others)])
    assert read(said, "long") == (("long", first), *others)


@given(TEXTS)
def test_a_text_that_was_given_comes_back_from_the_whole_form(text: str) -> None:
    if text and not any(marker in text for marker in (*MARKERS, "<s>", "</s>", "<unk>")):
        prompt = str(TipoPrompt("short_to_long", short=text)) + " the end"
        assert read(prompt.partition("short:")[2], "short") == (("short", text), ("long", "the end"))


def written(completion: str, **given_: Any) -> dict[str, str]:
    prompt = TipoPrompt(**{"tags": TAGS, **given_})
    return dict(prompt.read(completion).fields)


# What KGen does to each of these: study/booru.md, section 3.4.


def test_a_line_with_a_colon_that_is_no_key_stays_in_the_text() -> None:
    text = "A girl.\nIn the back: a tree.\nHer shirt says: long: not short.\nLong: is a word"
    assert written(f" {text}") == {"long": text}


def test_sentences_are_neither_split_nor_shuffled_nor_left_out() -> None:
    text = "She wears a 2.5 inch heel. Dr. Who stands. She wears a hat. Dr. Who stands. Etc. ..."
    assert written(f" {text}") == {"long": text}


def test_the_last_letter_of_the_last_tag_stays() -> None:
    assert written(", solo focus, thighhighs", expand=True) == {
        "tag": "1girl, long hair, smile, solo focus, thighhighs"
    }
    assert written(" 1girl, thighhighs", task="short_to_tag", short=SHORT, tags=()) == {"tag": "1girl, thighhighs"}


def test_tags_with_brackets_and_backslashes_stay() -> None:
    assert written(r", saber \(fate\), (o)_(o)", expand=True)["tag"].endswith(r"smile, saber \(fate\), (o)_(o)")


def test_a_short_text_can_come_from_tags_alone() -> None:
    assert written(" A girl.\nlong: A girl smiles.\n\nShe has a hat.", task="tag_to_short_to_long") == {
        "short": "A girl.",
        "long": "A girl smiles.\n\nShe has a hat.",
    }


def test_what_was_given_stays_as_it_was_where_the_model_goes_on() -> None:
    given_ = "She stands. Dr. Who sits. A 2.5 inch heel"
    said = written(" is seen.", task="long_to_tag", long=given_, tags=(), expand=True)
    assert said == {"long": f"{given_} is seen."}


def test_as_many_tags_stay_as_were_written() -> None:
    many = [f"tag{number}" for number in range(80)]
    assert written(" " + ", ".join(many), task="short_to_tag", short=SHORT, tags=())["tag"].split(", ") == many


def test_metadata_that_was_asked_for_is_read() -> None:
    said = written(" A girl.\naspect ratio: 0.7\nartist: a, b", gen_meta=True)
    assert said == {"long": "A girl.", "aspect ratio": "0.7", "artist": "a, b"}


def test_a_field_that_comes_twice_is_there_twice_and_the_first_counts() -> None:
    said = TipoPrompt(tags=TAGS).read(" One.\nlong: Two.", finish_reason="length")
    assert said.fields == (("long", "One."), ("long", "Two."))
    assert (said.get("long"), said.get("short"), said.cut) == ("One.", "", None), "the first is whole"


def test_only_a_length_cuts_and_only_the_last_field() -> None:
    prompt = TipoPrompt("short_to_long_to_tag", short=SHORT)
    assert prompt.read(" One. Tw", finish_reason="stop").cut is None
    assert prompt.read(" One. Tw", finish_reason="length").cut == "long"
    assert prompt.read(" One.\ntag: 1gi", finish_reason="length").cut == "tag"


# -- where to stop --------------------------------------------------------------------------------------------


def stopping(last: str = "", **given_: Any) -> set[str]:
    """The keys at which a model does not stop."""
    stops = TipoPrompt(**given_).stops(last)
    assert all(stop[0] == "\n" and stop[-1] == ":" for stop in stops)
    return {*FIELDS, *METADATA, "target"} - {stop[1:-1] for stop in stops}


def test_a_model_stops_at_every_key_but_those_that_it_is_to_write() -> None:
    assert stopping(tags=TAGS) == set()
    assert stopping(tags=TAGS, expand=True) == {"long"}
    assert stopping(tags=TAGS, gen_meta=True) == set(METADATA)
    assert stopping(task="tag_to_short_to_long", tags=TAGS) == {"long"}
    assert stopping(task="short_to_long_to_tag", short=SHORT) == {"tag"}
    assert stopping(task="short_to_long_to_tag", short=SHORT, last="long") == set()
    assert stopping(task="short_to_tag_to_long", short=SHORT, last="long") == {"long"}


def test_the_end_is_where_something_begins_that_is_not_asked_for() -> None:
    two = TipoPrompt("tag_to_short_to_long", tags=TAGS)
    assert two.end(" One.\nlong: Two.\nOn it: three") is None
    assert two.end(" One.\nlong: Two.\nlong: Three.") == len(" One.\nlong: Two.")
    assert two.end(" One.\ntag: two") == len(" One.")
    assert two.end(" One.\nlong: Two.", "short") == len(" One.")
    assert TipoPrompt(tags=TAGS, gen_meta=True).end(" One.\nrating: safe\nrating: safe") == len(" One.\nrating: safe")
    assert TipoPrompt(tags=TAGS).end(" One.\nlongest: two") is None


def test_lengths_are_written_as_markers() -> None:
    for length in LENGTHS:
        assert f"<|{length}|>" in MARKERS
        assert str(TipoPrompt(tags=TAGS, length=length)).startswith(f"target: <|{length}|> <|tag_to_long|>")
