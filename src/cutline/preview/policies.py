"""Tags, a caption, or both: what an encoder keeps of each, were they joined in one way or another.

Which way is best is for people to say; what each costs are numbers. Looked at are the tags and the caption of each
picture as the recipe writes them in the first epoch, and nothing else of the text: no words, prefix or template.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from cutline.compose.columns import join
from cutline.preview.drawn import Drawn
from cutline.preview.lengths import LIMITS, Counter

POLICIES = ("tags, caption", "caption, tags", "either", "caption only", "tags only")
"""Ways to make one text of tags and a caption; either is one of the two, each half of the times."""


@dataclass(frozen=True)
class Policy:
    """One way to make a text of tags and a caption, and what becomes of them."""

    name: str
    seen: tuple[float, float]
    """How often a picture's tags, and its caption, are in its text; from 0 to 1."""
    kept: dict[int, tuple[float, float]]
    """By limit, which share of the tokens of tags, and of captions, that are in a text is within the limit."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        kept = {str(limit): {"tags": tags, "caption": caption} for limit, (tags, caption) in self.kept.items()}
        return {"seen": {"tags": self.seen[0], "caption": self.seen[1]}, "kept": kept}


class Policies:
    """What becomes of tags and captions, were they joined in one way or another."""

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        self._limits = sorted({*LIMITS, counter.encoder.limit})
        self._tokens = np.zeros(2, np.int64)  # of tags, of captions
        self._first = np.zeros((len(self._limits), 2), np.int64)  # kept of what comes first, or is alone
        self._second = np.zeros((len(self._limits), 2), np.int64)  # kept of what comes second
        self._having, self._having_both = np.zeros(2, np.int64), 0  # pictures

    def add(self, drawn: Drawn) -> None:
        """Look at some pictures in their first epoch."""
        assert drawn.parts is not None
        *parts, separator = drawn.parts
        there = [np.asarray(pc.is_valid(part)) for part in parts]
        alone = [np.maximum(self.counter.counts(part), 0) for part in parts]
        both = there[0] & there[1]
        self._having += [column.sum() for column in there]
        self._having_both += int(both.sum())
        self._tokens += [counts.sum() for counts in alone]
        for second, ordered in ((1, parts), (0, parts[::-1])):
            joined = join(ordered, separator)
            whole = np.where(both, np.maximum(self.counter.counts(joined), 0), alone[second])
            before = whole - alone[second]  # tokens of the other one and of what stands between
            for number, limit in enumerate(self._limits):
                self._first[number, second] += np.minimum(alone[second], limit).sum()
                self._second[number, second] += np.clip(limit - before, 0, alone[second]).sum()

    def told(self) -> tuple[Policy, ...]:
        """The ways, in the order of `POLICIES`; none where there is no text at all."""

        def shares(*kept: Any) -> dict[int, tuple[float, float]]:
            return {
                limit: (_share(tags[number, 0], self._tokens[0]), _share(captions[number, 1], self._tokens[1]))
                for number, limit in enumerate(self._limits)
                for tags, captions in [kept]
            }

        if not self._tokens.any():
            return ()
        first, second, none = self._first, self._second, np.zeros_like(self._first)
        tags, caption = (float(having > 0) for having in self._having)
        half = [1 - _share(self._having_both / 2, having) if having else 0.0 for having in self._having]
        told = (
            ((tags, caption), shares(first, second)),
            ((tags, caption), shares(second, first)),
            ((half[0], half[1]), shares(first, first)),
            ((0.0, caption), shares(none, first)),
            ((tags, 0.0), shares(first, none)),
        )
        return tuple(Policy(name, seen, kept) for name, (seen, kept) in zip(POLICIES, told, strict=True))


def _share(part: Any, whole: Any) -> float:
    return round(float(part) / float(whole), 6) if whole else 0.0
