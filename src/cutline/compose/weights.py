"""What `--weighted_captions` of sd-scripts makes of a caption: pieces of text, each with a weight.

The syntax is that of AUTOMATIC1111's web UI. `(a)` is a at 1.1 times its weight, `[a]` at 1/1.1 of it, `(a:1.3)` at 1.3
times it, and brackets nest. One that is never closed reaches to the end; a closing one that was never opened is plain
text. A backslash makes the bracket or backslash after it plain text, and any other backslash goes. The brackets
themselves are eaten, and with them those that belong to a tag: `astolfo_(fate)` is read as `astolfo_fate`.
"""

from __future__ import annotations

import re

from cutline.compose.kohya import TrainerError

_ROUND = 1.1
_SQUARE = 1 / 1.1

_PIECE = re.compile(
    r"\\[()\[\]\\]?"  # an escape
    r"|[()\[\]]"
    r"|:([+-]?[.\d]+)\)"  # a weight, and what closes its bracket
    r"|[^\\()\[\]:]+"
    r"|:"
)


def weighted(text: str) -> list[tuple[str, float]]:
    """The pieces of a caption and the weight of each, as sd-scripts parses them (library/strategy_base.py).

    Returns:
        At least one piece; neighbours of equal weight are one.

    Raises:
        TrainerError: a weight is no number, `(a:1.2.3)`: the trainer stops there, too.
    """
    return [(piece, weight) for piece, weight, _ in weighted_pieces(text)]


def weighted_pieces(text: str) -> list[tuple[str, float, list[int]]]:
    """As `weighted`, each piece with the place in `text` that each of its characters has."""
    pieces: list[tuple[str, int]] = []  # what is said, and where it stands
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}  # the number of the first piece inside

    def close(bracket: str, factor: float) -> None:
        for number in range(opened[bracket].pop(), len(pieces)):
            weights[number] *= factor

    for found in _PIECE.finditer(text):
        piece, weight = found[0], found[1]
        if piece in opened:
            opened[piece].append(len(pieces))
        elif weight and opened["("]:
            close("(", _number(weight))
        elif piece == ")" and opened["("]:
            close("(", _ROUND)
        elif piece == "]" and opened["["]:
            close("[", _SQUARE)
        else:
            escape = piece.startswith("\\")
            pieces.append((piece[escape:], found.start() + escape))
            weights.append(1.0)
    for bracket, factor in (("(", _ROUND), ("[", _SQUARE)):
        while opened[bracket]:
            close(bracket, factor)
    merged: list[tuple[str, float, list[int]]] = []
    for (piece, start), weight in zip(pieces, weights, strict=True):
        places = list(range(start, start + len(piece)))
        if merged and merged[-1][1] == weight:
            before, _, there = merged[-1]
            merged[-1] = (before + piece, weight, there + places)
        else:
            merged.append((piece, weight, places))
    return merged or [("", 1.0, [])]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise TrainerError("ValueError", str(error)) from None
