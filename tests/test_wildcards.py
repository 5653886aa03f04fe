"""Wildcards are drawn as a plain reading of a text, brace by brace, draws them; however odd or long the text is."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cutline.compose import wildcards
from cutline.compose.wildcards import DEEPEST, Pick


def partner(text: str, place: int) -> int | None:
    """Where the brace at a place is closed."""
    depth = 0
    for end in range(place, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if not depth:
            return end
    return None


def choices(inside: str) -> list[str]:
    """What stands between two braces, cut at the bars that are in no other pair."""
    found, depth = [""], 0
    for character in inside:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "|" and not depth:
            found.append("")
        else:
            found[-1] += character
    return found


def plain(text: str, pick: Pick) -> str:
    said, place = "", 0
    while place < len(text):
        end = partner(text, place) if text[place] == "{" else None
        if end is None:
            said += text[place]
            place += 1
            continue
        inside = text[place + 1 : end]
        there = choices(inside)
        if len(there) > 1:
            said += plain(there[pick(len(there))], pick)
        else:
            if inside[:1] == "{" and partner(inside, 0) == len(inside) - 1:  # doubled
                inside = inside[1:-1]
            said += "{" + "|".join(plain(choice, pick) for choice in choices(inside)) + "}"
        place = end + 1
    return said


@given(text=st.text(alphabet="{}|ab", max_size=30), seed=st.integers(0, 9))
@example(text="{a|{b|a}|}{{a|b}}{a}|}{{b|a}|", seed=0)
@example(text="{{{a|b}}}|{{a|{b|a}}}", seed=1)
def test_drawn_as_a_plain_reading_draws(text: str, seed: int) -> None:
    assert wildcards.draw(text, random.Random(seed).randrange) == plain(text, random.Random(seed).randrange)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{a|b}" * 20_000, "{b" * 20_000),
        ("{a|b}}" * 20_000, "b}" * 20_000),
        ("{" * 100_000, "{" * 100_000),
        ("a|{" * 50_000 + "{a|b}", "a|{" * 50_000 + "b"),
        ("x" * 200_000, "x" * 200_000),
    ],
)
def test_long_texts_take_no_longer_by_the_brace(text: str, said: str) -> None:
    assert wildcards.draw(text, lambda count: count - 1) == said
    assert wildcards.flat(text)[0]


def test_what_lies_too_deep_is_text() -> None:
    def nested(depth: int) -> str:
        return "{a|" * depth + "b" + "}" * depth

    def last(count: int) -> int:
        return count - 1

    assert wildcards.draw(nested(DEEPEST), last) == "b"
    assert wildcards.draw(nested(DEEPEST + 2) + "{c|d}", last) == "{a|{a|b}}d"
    assert wildcards.draw(nested(5000), last) == nested(5000 - DEEPEST)
    assert wildcards.draw("{" * 5000 + "}" * 5000, last).count("{") >= 5000 - DEEPEST
    assert wildcards.flat(nested(5000)) == (nested(5000), False)
