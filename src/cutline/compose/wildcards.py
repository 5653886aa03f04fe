"""Wildcards: `{a|b}` in a text is one of its choices. They may hold wildcards; `{{a|b}}` is `{a|b}` as it stands.

A brace that has no partner stands for itself, as does a pair without `|`, and whatever lies in more than a hundred
pairs: nothing that people wrote goes missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

Pick = Callable[[int], int]
"""Given a number of choices, a number from 0 up to it."""

DEEPEST = 100
"""Pairs of braces within each other; those further in are text."""

_PIECE = re.compile(r"[{|}]|[^{|}]+")


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
            pieces.append(escaped(part))
            said |= bool(part.strip())
        elif len(part.choices) > 1:
            pieces.append(_written(part))
            good &= not any(isinstance(one, _Pair) or "{" in one or "}" in one for row in part.choices for one in row)
            good &= text[part.start - 1 : part.start] not in ("{", "}") and text[part.end + 1 : part.end + 2] not in (
                "{",
                "}",
            )
            nothing |= any(all(isinstance(one, str) and not one.strip() for one in row) for row in part.choices)
        else:
            inner = part.doubled or part
            plain = "|".join("".join(one if isinstance(one, str) else "\0" for one in row) for row in inner.choices)
            good &= "\0" not in plain
            pieces.append(escaped("{" + plain + "}"))
            said = True
    return "".join(pieces), good and (said or not nothing)


def escaped(text: str) -> str:
    """A text whose braces stand for themselves, for such readers: doubled."""
    return text.replace("{", "{{").replace("}", "}}")


def _parsed(text: str) -> list[str | _Pair]:
    pieces = list(_PIECE.finditer(text))
    paired = _paired(pieces)
    whole = _Pair(-1)
    open_, deeper = [whole], 0
    for number, piece in enumerate(pieces):
        character = piece[0]
        brace = number in paired
        if brace and (deeper or (character == "{" and len(open_) > DEEPEST)):
            deeper += 1 if character == "{" else -1
            brace = False
        if brace and character == "{":
            open_.append(_Pair(piece.start()))
        elif brace:
            pair = open_.pop()
            pair.end = piece.start()
            open_[-1].choices[-1].append(pair)
        elif character == "|" and len(open_) > 1 and not deeper:
            open_[-1].choices.append([])
        else:
            open_[-1].choices[-1].append(character)
    return whole.choices[0]


def _paired(pieces: list[re.Match[str]]) -> set[int]:
    """Which pieces are braces that have a partner."""
    found, open_ = set[int](), list[int]()
    for number, piece in enumerate(pieces):
        if piece[0] == "{":
            open_.append(number)
        elif piece[0] == "}" and open_:
            found |= {open_.pop(), number}
    return found


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
