"""What the counts of a survey share: some pictures in one epoch, and the plain ways to count."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cutline.compose.made import Made
from cutline.preview.lengths import Measured
from cutline.statistics import Spread

Counts = npt.NDArray[np.int64]

EXAMPLES = 3
"""How many cases of anything are named."""

NONE: Counts = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Drawn:
    """Some pictures in one epoch."""

    made: Made
    epoch: int
    texts: pa.StringArray
    caption: pa.StringArray
    tags: pa.ListArray
    measured: list[Measured]
    parts: tuple[pa.StringArray, pa.StringArray, str] | None
    """Tags and caption as one text each, null where there are none, and what stands between them."""

    @property
    def batch(self) -> pa.RecordBatch:
        """The rows."""
        return self.made.batch

    def keys(self, mask: Any) -> Iterator[str]:
        """Of the rows that a mask chooses."""
        return (self.batch.column("key")[int(row)].as_py() for row in np.flatnonzero(np.asarray(mask)))


@dataclass
class Found:
    """How many there are of something, and a few of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, count: int, examples: Iterator[str]) -> None:
        """Count more of them; of the examples those that there is room for are taken."""
        self.count += count
        while len(self.examples) < EXAMPLES and (example := next(examples, None)) is not None:
            if example not in self.examples:
                self.examples.append(example)

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)


class Histogram:
    """How often each number from 0 up occurs."""

    def __init__(self) -> None:
        self.counts, self.stops = NONE, 0

    def add(self, numbers: Counts) -> None:
        """Count them; those below 0 apart."""
        self.stops += int((numbers < 0).sum())
        more = np.bincount(numbers[numbers >= 0], minlength=len(self.counts))
        more[: len(self.counts)] += self.counts
        self.counts = more

    def spread(self) -> Spread:
        """What was counted, without those below 0."""
        values = np.flatnonzero(self.counts)
        return Spread(values, self.counts[values])


def normal(text: str) -> str:
    """A tag or text without what rarely makes a difference to people."""
    return " ".join(text.lower().replace("_", " ").replace("\\(", "(").replace("\\)", ")").split())
