"""Templates: a text with gaps for what is known of a picture, and with pieces that stand or fall with it.

`{name}` is a gap. `[…]` is a piece that is written only where every gap in it has something to fill it, and `[…|…]` is
the first of several such pieces that can be written: `a picture[ by {tags.artist}| by nobody known]`. Pieces may hold
pieces. `{{ }} [[ ]] ||` are these characters themselves; within a piece, `]]` is only where it closes a `[[` of that
piece, and else ends two pieces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc

from cutline.options import OptionError

_TOKEN = re.compile(r"\{\{|\}\}|\[\[|\|\||\{[^{}\[\]|]*\}|[\[\]{}|]|[^\[\]{}|]+")


@dataclass(frozen=True)
class _Gap:
    name: str


@dataclass(frozen=True)
class _Choice:
    """Pieces of which the first that can be written is."""

    pieces: tuple[tuple[_Part, ...], ...]


_Part = str | _Gap | _Choice


@dataclass(frozen=True)
class Template:
    """A parsed template. Made with `parse`."""

    parts: tuple[_Part, ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Parse a template. Raises OptionError where brackets or braces do not pair up, saying where."""
        tokens = list(_TOKEN.finditer(text))
        parts, place = _parts(text, tokens, 0)
        if place < len(tokens):
            raise _unpaired(text, tokens[place])
        return cls(parts)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all gaps, each once."""
        return tuple(dict.fromkeys(_names(self.parts)))

    def fill(self, columns: Mapping[str, pa.StringArray], length: int) -> pa.StringArray:
        """The text of each row; null where it has gaps and none of those that are written has something to fill it.

        Args:
            columns: a text, or null, for each name and row. A gap outside of all brackets that is null is left empty.
            length: rows.
        """
        text, written = _fill(self.parts, columns, length)
        return pc.if_else(reduce(pc.or_, written.values()), text, None) if written else text

    def say(self, values: Mapping[str, str | None]) -> str:
        """The text for one row, whether or not anything fills its gaps; an empty value is as good as none."""
        return "".join(_say(self.parts, values))

    def written(self, columns: Mapping[str, pa.StringArray], length: int) -> dict[str, pa.BooleanArray]:
        """For each name, in which rows it is written and not empty."""
        return _fill(self.parts, columns, length)[1]


def _say(parts: tuple[_Part, ...], values: Mapping[str, str | None]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, str):
            yield part
        elif isinstance(part, _Gap):
            yield values[part.name] or ""
        else:
            for piece in part.pieces:
                if all(values[gap.name] for gap in piece if isinstance(gap, _Gap)):
                    yield from _say(piece, values)
                    break


def _fill(
    parts: tuple[_Part, ...], columns: Mapping[str, pa.StringArray], length: int
) -> tuple[pa.StringArray, dict[str, pa.BooleanArray]]:
    """The text of each row, and where each gap in it is filled."""
    pieces: list[pa.StringArray] = [_empty(length)]
    written: dict[str, pa.BooleanArray] = {}
    for part in parts:
        filled: dict[str, pa.BooleanArray] = {}
        if isinstance(part, str):
            pieces.append(pa.scalar(part))
        elif isinstance(part, _Gap):
            pieces.append(pc.fill_null(columns[part.name], ""))
            filled = {part.name: pc.is_valid(columns[part.name])}
        else:
            text, filled = _choose(part, columns, length)
            pieces.append(text)
        for name, where in filled.items():
            written[name] = pc.or_(written[name], where) if name in written else where
    return pc.binary_join_element_wise(*pieces, ""), written


def _choose(
    choice: _Choice, columns: Mapping[str, pa.StringArray], length: int
) -> tuple[pa.StringArray, dict[str, pa.BooleanArray]]:
    text, open_ = _empty(length), pc.is_valid(_empty(length))
    written: dict[str, pa.BooleanArray] = {}
    for piece in choice.pieces:
        here, filled = _fill(piece, columns, length)
        gaps = [pc.is_valid(columns[part.name]) for part in piece if isinstance(part, _Gap)]
        chosen = reduce(pc.and_, gaps, open_)
        text = pc.if_else(chosen, here, text)
        for name, where in filled.items():
            where = pc.and_(where, chosen)
            written[name] = pc.or_(written[name], where) if name in written else where
        open_ = pc.and_not(open_, chosen)
    return text, written


def _empty(length: int) -> pa.StringArray:
    return pc.fill_null(pa.nulls(length, pa.string()), "")


def _parts(text: str, tokens: list[re.Match[str]], place: int, inside: bool = False) -> tuple[tuple[_Part, ...], int]:
    """The parts from a place on, up to the end of the piece that they are in."""
    parts: list[_Part] = []
    doubled = 0  # [[ in this piece that no ]] has closed
    while place < len(tokens):
        token = tokens[place][0]
        after = tokens[place + 1][0] if place + 1 < len(tokens) else ""
        if token == after == "]" and (doubled or not inside):
            token, place, doubled = "]]", place + 1, doubled - 1
        if inside and token in ("]", "|"):
            break
        doubled += token == "[["
        if token == "[":
            choice, place = _choice(text, tokens, place)
            parts.append(choice)
            continue
        if token in ("{{", "}}", "[[", "]]", "||"):
            parts.append(token[0])
        elif token[0] == "{" and len(token) > 2:
            parts.append(_Gap(token[1:-1].strip()))
        elif token in ("]", "|", "{", "}", "{}"):
            raise _unpaired(text, tokens[place])
        else:
            parts.append(token)
        place += 1
    return tuple(parts), place


def _choice(text: str, tokens: list[re.Match[str]], place: int) -> tuple[_Choice, int]:
    opening, pieces = tokens[place], list[tuple[_Part, ...]]()
    while True:
        piece, place = _parts(text, tokens, place + 1, inside=True)
        pieces.append(piece)
        if place == len(tokens):
            raise _unpaired(text, opening)
        if tokens[place][0] == "]":
            return _Choice(tuple(pieces)), place + 1


def _names(parts: tuple[_Part, ...]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, _Gap):
            yield part.name
        elif isinstance(part, _Choice):
            for piece in part.pieces:
                yield from _names(piece)


def _unpaired(text: str, token: re.Match[str]) -> OptionError:
    return OptionError(
        f"the template {text!r} has a {token[0]!r} at character {token.start() + 1} that stands for nothing. "
        "Gaps are {name}, conditions [like {this}|or that]; double the character to have it as it is"
    )
