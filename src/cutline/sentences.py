"""Where sentences end: enough to cut a text back to its last whole one, in Latin and in Chinese and Japanese script.

A stop ends a sentence where a space and no small letter follows, or nothing; `。` and its kin always do. The stop of an
abbreviation (`Dr.`), of an initial (`J. Smith`) and of a number in a list (`1. a hat`) ends none, and a decimal point
has no space after it. Quotes and brackets that close right after the stop belong to the sentence.
"""

from __future__ import annotations

import re
from itertools import pairwise

_CLOSERS = "\"'”’»)\\]}」』）】〉》*_"
_END = re.compile(rf"[.!?…‽]+[{_CLOSERS}]*(?=\s|$)|[。！？｡]+[{_CLOSERS}]*")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"“‘'])(?:dr|mrs?|ms|mx|st|jr|sr|prof|vs|vol|fig|approx|ca|cf|e\.g|i\.e|inc|ltd|co|mt|ft|gen|col|capt"
    r"|lt|sgt|rev|hon|[a-z])\.$",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\bno\.$", re.IGNORECASE)
_NUMBERED = re.compile(r"(?:^|\n)\s*\d+\.$")
_PAIRS = ('""', "“”", "「」", "『』")
_NEXT = re.compile(r"\s*(\S)")
_ENDS = re.compile(rf"[.!?…‽。！？｡][{_CLOSERS}]*$")


def ends(text: str) -> list[int]:
    """Where sentences end: the places after each one's stop and what closes right after it, ascending."""
    found = []
    for match in _END.finditer(text):
        stop, after = match[0], _NEXT.match(text, match.end())
        before = text[max(0, match.start() - 15) : match.start() + 1]
        goes_on = after and (after[1].islower() or (after[1].isdigit() and _NUMBER.search(before)))
        short = stop == "." and (_ABBREVIATION.search(before) or _NUMBERED.search(before))
        if stop[0] in "。！？｡" or not (goes_on or short):
            found.append(match.end())
    return found


def ended(text: str) -> bool:
    """Whether a text ends as sentences do."""
    return _ENDS.search(text.rstrip()) is not None


def split(text: str) -> list[str]:
    """The sentences of a text, and at the end what is no whole one."""
    places = [0, *ends(text), len(text)]
    return [found for begin, end in pairwise(places) if (found := text[begin:end].strip())]


def whole(text: str) -> str:
    """A text that was cut somewhere, back to the end of its last whole sentence; empty where it has none.

    It is not cut within quotes that were opened, unless there is nowhere else. A number and a stop at the very end may
    be half a decimal, and are no end.
    """
    text = text.strip()
    found = ends(text)
    if found and found[-1] == len(text) and re.search(r"\d\.$", text):
        found.pop()
    if not found:
        return ""
    return text[: (outside_quotes(text, found) or found)[-1]]


def outside_quotes(text: str, places: list[int]) -> list[int]:
    """Those of ascending places in a text where every double quote that was opened before is closed."""
    kept, open_quotes, at = [], dict.fromkeys(_PAIRS, 0), 0
    for place in places:
        for pair in _PAIRS:
            opened, closed = text.count(pair[0], at, place), text.count(pair[1], at, place)
            open_quotes[pair] = (
                (open_quotes[pair] + opened) % 2 if pair == '""' else open_quotes[pair] + opened - closed
            )
        at = place
        if not any(open_quotes.values()):
            kept.append(place)
    return kept
