"""Wildcards: `{a|b}` in a text is one of its choices. They may hold wildcards; `{{` and `}}` are braces.

A brace that has no partner stands for itself, as does a pair without `|`: nothing that people wrote goes missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_TOKEN = re.compile(r"\{\{|\}\}|[{}|]|[^{}|]+")

Pick = Callable[[int], int]
"""Given a number of choices, a number from 0 up to it."""


def draw(text: str, pick: Pick) -> str:
    """The text with one choice in the place of each wildcard, drawn from the left, the outer before the inner."""
    tokens = _TOKEN.findall(text)
    partner = _partners(tokens)
    return _drawn(tokens, 0, len(tokens), partner, pick)


def _partners(tokens: list[str]) -> dict[int, list[int]]:
    """For each `{` that is a wildcard's, the places of its bars and of its `}`."""
    opened: list[list[int]] = []
    found = {}
    for place, token in enumerate(tokens):
        if token == "{":
            opened.append([place])
        elif token == "|" and opened:
            opened[-1].append(place)
        elif token == "}" and opened:
            start, *bars = opened.pop()
            if bars:
                found[start] = [*bars, place]
    return found


def _drawn(tokens: list[str], start: int, end: int, partner: dict[int, list[int]], pick: Pick) -> str:
    pieces = []
    place = start
    while place < end:
        token = tokens[place]
        if token == "{" and place in partner:
            ends = partner[place]
            starts = [place, *ends[:-1]]
            chosen = pick(len(ends))
            pieces.append(_drawn(tokens, starts[chosen] + 1, ends[chosen], partner, pick))
            place = ends[-1]
        else:
            pieces.append(token[0] if token in ("{{", "}}") else token)
        place += 1
    return "".join(pieces)
