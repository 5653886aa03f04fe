"""A recipe in the words of kohya's trainers: metadata entries and subset options with which they draw its texts.

The trainers join, cut and shuffle by rules of their own (`compose.kohya`), and most of what a recipe says can be said
to them: what is fixed is written out; tags to shuffle or to drop stand between two `|||`, so that nothing else moves;
one of several texts is one of several lines, each as often as its weight asks for. What they cannot be told is named,
and so is each picture whose text they would misread.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cutline.compose import wildcards
from cutline.compose.caption_texts import candidates
from cutline.compose.columns import join
from cutline.compose.made import Draw, Made
from cutline.compose.recipe import Recipe, Text
from cutline.compose.tag_lists import TagLists, kept

KEEP = "|||"
"""The keep_tokens_separator."""

MOST_LINES = 64
"""Of one entry."""

SEVERAL = 'it has several lines, of which the trainer reads one: [captions] line_breaks = "space" makes them one'

_GAP = "\0"  # where the tags go that the trainer moves
_TAGS = re.compile(r"\{tags(\.\w+)?\}")
_BLANK = re.compile(r"[{|]\s*[|}]")  # a choice that is nothing
_JOINT = ", "  # what the trainer joins tags with, whatever caption_separator is


@dataclass(frozen=True)
class AsKohya:
    """A recipe as metadata and options. One that `cannot` be said has its texts of one epoch as entries."""

    recipe: Recipe
    output: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """The subset's options, by sd-scripts' names; those that are as by default are left out."""
        said: dict[str, Any] = {}
        if rate := self._text.dropout:
            said["caption_dropout_rate"] = rate
        if self.cannot:
            return said
        if self._lines:
            said["enable_wildcard"] = True
        if self._moving:
            tags = self.recipe.tags
            said |= {"shuffle_caption": True} if tags.shuffle else {}
            said |= {"caption_tag_dropout_rate": tags.dropout} if tags.dropout else {}
            said |= {"caption_separator": self._separator} if self._separator != "," else {}
            said["keep_tokens_separator"] = KEEP
        return said

    @cached_property
    def cannot(self) -> tuple[str, ...]:
        """What the trainer cannot be told, each as a sentence for people."""
        return tuple(self._cannot())

    def entries(self, made: Made) -> tuple[pa.StringArray, list[str]]:
        """The metadata's `caption` of each row, and for each why the trainer would misread it, or an empty text.

        Args:
            made: what the recipe makes of the rows; its seed and epoch count where the recipe `cannot` be said.

        Returns:
            The entries, null where there is nothing to say, and the reasons.
        """
        if self.cannot or not (self._lines or self._moving):
            texts = Draw(made, replace(self._text, dropout=0.0)).texts
            return texts, misread(texts)
        if not len(made.batch):
            return pa.array([], pa.string()), []
        still = Made(self.recipe.still, made.batch, 0, 0)
        places = None
        if self._moving:
            places = _Places(still.tag_lists, ~kept(self.recipe, still.tag_lists), self._separator)
        found = [self._line(still, places, *branch) for branch in self._branches(still)]
        if self._lines:
            return self._several(found)
        (line,) = found
        return line.texts, [one or other for one, other in zip(line.reasons, misread(line.texts), strict=True)]

    @cached_property
    def _text(self) -> Text:
        return self.recipe.text_of(self.output)

    @cached_property
    def _moving(self) -> bool:
        """Whether the trainer is to shuffle or drop tags."""
        tags = self.recipe.tags
        return bool(tags.shuffle or tags.dropout) and any(map(_is_tags, self._text.parts))

    @cached_property
    def _lines(self) -> bool:
        """Whether the trainer is to draw lines or wildcards."""
        captions = self.recipe.captions
        drawn = captions.texts == "draw" or captions.line_breaks == "draw" or captions.dropout > 0
        return (drawn and "caption" in self._text.parts) or len(self._text.orders) > 1 or self._text.wildcards

    @cached_property
    def _separator(self) -> str:
        """What the trainer splits at: a comma, unless there are sentences, whose commas are no borders."""
        plain = all(map(_is_tags, self._text.parts))
        ends = (self._text.prefix, self._text.suffix)
        return "," if plain and not self._text.template and all(_tidy(end, ",") for end in ends) else ";;;"

    def _cannot(self) -> Iterator[str]:
        tags, text, captions = self.recipe.tags, self._text, self.recipe.captions
        if self._moving:
            if tags.separator != _JOINT:
                yield f"it joins tags that it shuffles or drops with {_JOINT!r}, not with {tags.separator!r}"
            ends = text.prefix or text.suffix or any(len(order) > 1 for order in text.orders)
            if text.separator != _JOINT and ends:
                yield f"it puts {_JOINT!r} around tags that it shuffles or drops, not {text.separator!r}"
            if not self._together:
                yield "tags that it shuffles or drops stand in one place, and here they stand in several"
            if any(not _between(text.template, *gap.span()) for gap in _TAGS.finditer(text.template)):
                yield f"it puts {_JOINT!r} around tags that it shuffles or drops, and the template something else"
            if tags.dropout and text.template:
                yield "it drops tags after the template was filled, so that all may be gone where a condition saw some"
            if tags.dropout and len(text.orders) > 1:
                yield "it drops tags after it has drawn the order, so that all may be gone of one that has only tags"
        if self._lines and "caption" in self._text.parts:
            if captions.all_of and "draw" in (captions.texts, captions.line_breaks):
                yield "captions that are drawn in each of all_of"
            if captions.dropout and not _fine([Fraction(str(captions.dropout)), 1 - Fraction(str(captions.dropout))]):
                yield f"a caption dropout of {captions.dropout} would take more than {MOST_LINES} lines"
        doubled = "{{" in text.template or "}}" in text.template
        if self._lines and (doubled or "{" in text.separator or "}" in text.separator):
            yield "braces in the template or the separator, beside lines or wildcards that it draws"
        if self._lines and text.template.count("{caption}") > 1:
            yield "a caption that stands twice in the template, and would be drawn twice"
        weights = [Fraction(str(weight)) for weight in text.weights]
        if weights and not _fine([weight / sum(weights) for weight in weights]):
            yield f"weights of {list(text.weights)} would take more than {MOST_LINES} lines"
        if text.wildcards and not all(_flat(end) for end in (text.prefix, text.suffix)):
            yield "wildcards inside of wildcards, or beside braces, in prefix or suffix"

    @cached_property
    def _together(self) -> bool:
        """Whether the tags that may move stand in one place of each order."""
        said = self.recipe.tags
        if isinstance(said.keep, int):
            return all(part in ("tags", "caption") or part in self.recipe.words for part in self._text.parts)
        free = [f"tags.{name}" for name in said.order if name not in said.keep]
        return all(sum(part in free for part in order) <= 1 for order in self._text.orders or (self._text.parts,))

    def _branches(self, still: Made) -> Iterator[tuple[pa.StringArray | None, tuple[str, ...], Sequence[Fraction]]]:
        """Each text that a picture may have: its caption, its order, and of each row how likely it is."""
        count, text = len(still.batch), self._text
        orders = text.orders or ((),)
        weights = [Fraction(str(weight)) for weight in text.weights or (1,) * len(orders)]
        for caption, likely in self._captions(still):
            for order, weight in zip(orders, weights, strict=True):
                if len(orders) == 1:
                    yield caption, order, likely
                    continue
                can = [_there(still, one, caption) for one in orders]
                mine = can[orders.index(order)]
                whole = [[w for w, there in zip(weights, row, strict=True) if there] for row in zip(*can, strict=True)]
                shares = [_share(weight, those) for those in whole]
                yield (
                    caption,
                    order,
                    [
                        likely[row] * (shares[row] if mine[row] else Fraction(not whole[row] and order == orders[0]))
                        for row in range(count)
                    ],
                )

    def _captions(self, still: Made) -> Iterator[tuple[pa.StringArray | None, Sequence[Fraction]]]:
        """Each caption that a picture may have, and of each row how likely it is."""
        count = len(still.batch)
        if "caption" not in self._text.parts:
            yield None, [Fraction(1)] * count
            return
        if not self._lines:
            yield still.caption, [Fraction(1)] * count
            return
        found = candidates(self.recipe, still.batch)
        dropped = Fraction(str(self.recipe.captions.dropout))
        for number in range(max([len(row) for row in found], default=0)):
            texts = pa.array([(row[number][0] or None) if number < len(row) else None for row in found], pa.string())
            yield texts, [row[number][1] * (1 - dropped) if number < len(row) else Fraction(0) for row in found]
        if dropped or not all(found):
            yield pa.nulls(count, pa.string()), [dropped if row else Fraction(1) for row in found]

    def _line(
        self, still: Made, places: _Places | None, caption: pa.StringArray | None, order: tuple[str, ...], likely: Any
    ) -> _Line:
        """One text of each row as a line of its entry."""
        text, batch = self._text, still.batch
        reasons = [""] * len(batch)
        made = Made(still.recipe, batch, 0, 0)
        text = replace(text, order=order, either=(), weights=(), wildcards=False, dropout=0.0)
        if caption is not None:
            if self._lines:
                live, whole = self._text.wildcards, self._moving
                said = [_escaped(one, live=live, whole=whole) for one in caption.to_pylist()]
                caption = pa.array([one for one, _ in said], pa.string())
                reasons = [reason for _, reason in said]
            made.give("caption", caption)
        if self._lines:
            for part in self._text.parts:
                if part != "caption" and not (places and _is_tags(part)):
                    made.give(part, _doubled(still.part(part)))
            ends = (text.prefix, text.suffix)
            prefix, suffix = (_escaped(end, live=self._text.wildcards)[0] or "" for end in ends)
            text = replace(text, prefix=prefix, suffix=suffix)
        if places is None:
            return _Line(Draw(made, text).texts, reasons, likely)
        for part in filter(_is_tags, self._text.parts):
            fixed = places.fixed(part)
            made.give(part, _doubled(fixed) if self._lines else fixed)
        texts = Draw(made, text).texts
        if self.recipe.tags.dropout and (text.prefix or text.suffix):
            bare = Draw(made, replace(text, prefix="", suffix="")).texts
            alone = pc.fill_null(pc.equal(bare, _GAP), False).to_pylist()
            why = "prefix or suffix would stand alone when all of its tags are dropped"
            reasons = [why if one and not reason else reason for one, reason in zip(alone, reasons, strict=True)]
        return places.line(texts, reasons, likely, escape=self._lines, parts=self._text.parts)

    def _several(self, found: list[_Line]) -> tuple[pa.StringArray, list[str]]:
        """Entries of several lines, each as often as it is likely."""
        entries, reasons = list[str | None](), list[str]()
        columns = [line.texts.to_pylist() for line in found]
        for row in range(len(columns[0])):
            likely: Counter[str] = Counter()
            reason = ""
            for line, texts in zip(found, columns, strict=True):
                if line.likely[row]:
                    text = texts[row] or ""
                    likely[text] += line.likely[row]
                    reason = reason or line.reasons[row] or _misread_one(text) or _marked(text)
            counts = {} if set(likely) <= {""} else _counts(likely)
            if not counts and set(likely) > {""}:
                reason = reason or f"its texts would take more than {MOST_LINES} lines"
                counts = dict.fromkeys(likely, 1)
            entries.append("\n".join(text for text, count in counts.items() for _ in range(count)) or None)
            reasons.append(reason)
        return pa.array(entries, pa.string()), reasons


@dataclass(frozen=True)
class _Line:
    """One line of each row's entry."""

    texts: pa.StringArray
    reasons: list[str]
    likely: Any


@dataclass(frozen=True)
class _Places:
    """The tags of some pictures: those that stay where they are, and those that the trainer moves."""

    every: TagLists
    free: np.ndarray[Any, np.dtype[np.bool_]]
    separator: str

    def fixed(self, part: str) -> pa.StringArray:
        """A part's tags in one text, with one gap in the place of all that move."""
        mine = self._of(part)
        first = np.zeros(len(self.free), bool)
        moving = np.flatnonzero(mine & self.free)
        first[moving[np.unique(self.every.rows[moving], return_index=True)[1]]] = True
        shown = np.flatnonzero(mine & (first | ~self.free))
        lists = self.every.only(shown)
        names = pa.concat_arrays([self.every.names, pa.array([_GAP])])
        codes = np.where(first[shown], len(names) - 1, lists.codes)
        return replace(lists, names=names, codes=codes).joined(_JOINT)

    def line(
        self, texts: pa.StringArray, reasons: list[str], likely: Any, *, escape: bool, parts: Sequence[str]
    ) -> _Line:
        """Texts with gaps as lines in which the trainer moves the tags that stand in the gap."""
        mine = np.zeros(len(self.free), bool)
        for part in parts:
            if _is_tags(part):
                mine |= self._of(part) & self.free
        flexible = self.every.only(np.flatnonzero(mine)).lists().to_pylist()
        lines, why = list[str | None](), list[str]()
        between = ", " if self.separator == "," else f" {self.separator} "
        for row, (text, tags, reason) in enumerate(zip(texts.to_pylist(), flexible, reasons, strict=True)):
            if text is None:
                lines.append(None)
                why.append("")
                continue
            head, gap, tail = text.partition(_GAP)
            if gap and ((head and not head.endswith(_JOINT)) or (tail and not tail.startswith(_JOINT))):
                reason = reason or f"its tags do not stand between {_JOINT!r}"
            if _GAP in tail or head == _JOINT or tail == _JOINT:
                reason = reason or "its tags stand twice, or beside nothing"
            head, tail = (head.removesuffix(_JOINT), tail.removeprefix(_JOINT)) if gap else (text, "")
            moved = tags if gap else []
            if row in self.mixed:
                reason = reason or "tags that are kept stand among those that move"
            pieces = [head, tail, *moved]
            if any(KEEP in piece for piece in pieces):
                reason = reason or f"it holds {KEEP}"
            if not all(_tidy(piece, self.separator) for piece in (head, tail)):
                reason = reason or "the trainer would change its commas or spaces"
            if any(self.separator in tag or tag.strip() != tag for tag in moved):
                reason = reason or f"a tag of it holds {self.separator!r}"
            middle = between.join(moved)
            middle = wildcards.escaped(middle) if escape else middle
            lines.append(f"{head} {KEEP} {middle}".strip() + (f" {KEEP} {tail}" if tail else ""))
            why.append(reason)
        return _Line(pa.array(lines, pa.string()), why, likely)

    @cached_property
    def mixed(self) -> frozenset[int]:
        """The rows in which tags that are kept stand among those that move."""
        moving = np.flatnonzero(self.free)
        rows, first, counts = np.unique(self.every.rows[moving], return_index=True, return_counts=True)
        return frozenset(rows[moving[first + counts - 1] - moving[first] >= counts].tolist())

    def _of(self, part: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
        category = part.partition(".")[2]
        return self.every.of(category) if category else np.ones(len(self.free), bool)


def _there(still: Made, order: tuple[str, ...], caption: pa.StringArray | None) -> list[bool]:
    """In which rows an order has something to say."""
    columns = [caption if part == "caption" else still.part(part) for part in order]
    found: list[bool] = pc.is_valid(join([column for column in columns if column is not None], "")).to_pylist()
    return found


def _share(weight: Fraction, among: Sequence[Fraction]) -> Fraction:
    """How often one of some is drawn, by weight; where none has any, all as often."""
    return weight / sum(among) if sum(among) else Fraction(1, max(len(among), 1))


def _counts(likely: Counter[str]) -> dict[str, int]:
    """How often each line stands in an entry; none where that would be too many lines."""
    whole = sum(likely.values())
    shares = {text: Fraction(share) / whole for text, share in likely.items()}
    least = math.lcm(*(share.denominator for share in shares.values())) if shares else 1
    if least > MOST_LINES:
        return {}
    return {text: int(share * least) for text, share in shares.items()}


def _fine(shares: Sequence[Fraction]) -> bool:
    return math.lcm(*(share.denominator for share in shares)) <= MOST_LINES


def _tidy(piece: str, separator: str) -> bool:
    """Whether the trainer, which splits, strips and joins it again, leaves a piece as it is."""
    return _JOINT.join(one.strip() for one in piece.split(separator) if one.strip()) == piece


def misread(texts: pa.StringArray) -> list[str]:
    """For each text, that a trainer is given as it stands, why it would misread it; an empty one where it does not."""
    if not pc.any(pc.match_substring(texts, "\n")).as_py():
        return [""] * len(texts)
    return ["" if text is None else _misread_one(text) for text in texts.to_pylist()]


def _misread_one(text: str) -> str:
    return SEVERAL if "\n" in text else ""


def _marked(text: str) -> str:
    return "it holds ⦅ or ⦆, which the trainer uses itself" if "⦅" in text or "⦆" in text else ""


def _between(template: str, start: int, end: int) -> bool:
    """Whether a gap may stand between joints, as far as the template alone tells."""
    before, after = template[:start], template[end:]
    return before.endswith(("", _JOINT, "[", "]", "|")[bool(before) :]) and after.startswith(
        ("", _JOINT, "[", "]", "|")[bool(after) :]
    )


def _is_tags(part: str) -> bool:
    return part.partition(".")[0] == "tags"


def _doubled(texts: pa.StringArray) -> pa.StringArray:
    return pc.replace_substring(pc.replace_substring(texts, "{", "{{"), "}", "}}")


def _flat(text: str) -> bool:
    return not _escaped(text, live=True)[1]


def _escaped(text: str | None, *, live: bool, whole: bool = False) -> tuple[str | None, str]:
    """A text as the trainer's wildcards need it, and why that cannot be, or an empty text.

    Args:
        text: as it was written.
        live: whether its wildcards are to be drawn.
        whole: whether the trainer strips what stands at the ends, so that no choice may be nothing.
    """
    if text is None:
        return None, ""
    if "{" not in text and "}" not in text:
        return text, ""
    if not live:
        return wildcards.escaped(text), ""
    pieces, plain = wildcards.flat(text)
    plain = plain and not (whole and _BLANK.search(text))
    return (
        pieces,
        "" if plain else "its wildcards hold wildcards or braces, or stand beside some, or may leave nothing",
    )
