"""Wildcards: `{a|b}` in a text is one of its choices. They may hold wildcards; `{{a|b}}` is `{a|b}` as it stands.

A brace that has no partner stands for itself, as does a pair without `|`: nothing that people wrote goes missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

Pick = Callable[[int], int]
"""Given a number of choices, a number from 0 up to it."""


@dataclass
class _Pair:
    """What stands between two braces, cut at its bars."""

    start: int
    choices: list[list[str | _Pair]] = field(default_factory=lambda: [[]])
    end: int = -1

    @property
    def doubled(self) -> _Pair | None:
        """The pair inside of doubled braces."""
        only = self.choices[0]
        if len(self.choices) == 1 and len(only) == 1 and isinstance(inner := only[0], _Pair):
            return inner
        return None


def draw(text: str, pick: Pick) -> str:
    """The text with one choice in the place of each wildcard, drawn from the left, the outer before the inner."""
    return _drawn(_parsed(text), pick)


def flat(text: str) -> tuple[str, bool]:
    """A text for readers that know no wildcards within wildcards: braces that are none's doubled.

    Returns:
        The text, and whether such a reader draws the same from it: not where wildcards hold wildcards or braces, where
        braces stand beside them, or where all that there is may be left out.
    """
    pieces, good, said, nothing = list[str](), True, False, False
    for part in _parsed(text):
        if isinstance(part, str):
            pieces.append(part.replace("{", "{{").replace("}", "}}"))
            said |= bool(part.strip())
        elif len(part.choices) > 1:
            pieces.append(_written(part))
            good &= not any(isinstance(one, _Pair) or "{" in one or "}" in one for row in part.choices for one in row)
            good &= text[part.start - 1 : part.start] not in ("{", "}") and text[part.end + 1 : part.end + 2] not in (
                "{",
                "}",
            )
            nothing |= any(not "".join(map(str, row)).strip() for row in part.choices)
        else:
            inner = part.doubled or part
            plain = "|".join("".join(one if isinstance(one, str) else "\0" for one in row) for row in inner.choices)
            good &= "\0" not in plain
            pieces.append("{{" + plain.replace("{", "{{").replace("}", "}}") + "}}")
            said = True
    return "".join(pieces), good and (said or not nothing)


def _parsed(text: str) -> list[str | _Pair]:
    whole = _Pair(-1)
    open_ = [whole]
    for place, character in enumerate(text):
        if character == "{":
            open_.append(_Pair(place))
        elif character == "|" and len(open_) > 1:
            open_[-1].choices.append([])
        elif character == "}" and len(open_) > 1:
            pair = open_.pop()
            pair.end = place
            open_[-1].choices[-1].append(pair)
        else:
            _add(open_[-1].choices[-1], character)
    while len(open_) > 1:  # those without a partner, as they were written
        pair = open_.pop()
        _add(open_[-1].choices[-1], "{")
        for number, row in enumerate(pair.choices):
            for part in (*(["|"] if number else []), *row):
                _add(open_[-1].choices[-1], part)
    return whole.choices[0]


def _add(row: list[str | _Pair], part: str | _Pair) -> None:
    if isinstance(part, str) and row and isinstance(last := row[-1], str):
        row[-1] = last + part
    else:
        row.append(part)


def _drawn(parts: list[str | _Pair], pick: Pick) -> str:
    pieces = []
    for part in parts:
        if isinstance(part, str):
            pieces.append(part)
        elif len(part.choices) > 1:
            pieces.append(_drawn(part.choices[pick(len(part.choices))], pick))
        else:
            inner = part.doubled or part
            pieces.append("{" + "|".join(_drawn(row, pick) for row in inner.choices) + "}")
    return "".join(pieces)


def _written(pair: _Pair) -> str:
    rows = ("".join(part if isinstance(part, str) else _written(part) for part in row) for row in pair.choices)
    return "{" + "|".join(rows) + "}"
