"""Pictures that a dataset has more than once, out of layer `facts`: the same file, the same pixels, nearly the same.

Each kind leaves out what an earlier one has told: a group of equal pixels holds at least two different files, and a
group of near pictures at least two different sets of pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cutline import near
from cutline.dataset import Dataset
from cutline.options import CutlineError, OptionError

DISTANCE = 6
"""How many of 64 bits near pictures may differ in. Copies that were scaled or compressed again differ in a few;
unrelated pictures in about 32, and in 6 or fewer once in ten thousand million pairs."""

_LOOKED_AT = """
    (select facts.* from facts semi join (select key from pictures where error is null) as readable using (key)
    where facts.error is null) as facts"""


@dataclass(frozen=True)
class Duplicates:
    """The groups of a dataset; each is streamed, sorted by the first of its keys."""

    dataset: Dataset
    distance: int = DISTANCE

    def __post_init__(self) -> None:
        if not 0 <= self.distance <= near.FARTHEST:
            raise OptionError(f"--distance is from 0 to {near.FARTHEST} bits, not {self.distance}")
        if "facts" not in self.dataset.layers():
            root = self.dataset.root
            raise CutlineError(f"duplicates are found by layer facts; make it: cutline annotate {root} facts")

    def without_facts(self) -> int:
        """How many pictures cannot be compared, since nothing has looked at them."""
        pictures = self.dataset.sql("from pictures where error is null").count()
        return pictures - self.dataset.sql(f"from {_LOOKED_AT}").count()

    def exact(self) -> Iterator[list[str]]:
        """Keys of equal files."""
        return self._groups("sha256", "true")

    def pixels(self) -> Iterator[list[str]]:
        """Keys of pictures that are equal when decoded, though their files differ."""
        return self._groups("pixels", "count(distinct sha256) > 1")

    def near(self) -> Iterator[list[str]]:
        """Keys of pictures whose perceptual hashes differ in few bits, though their pixels differ.

        A chain of near pairs is one group: its ends may be further apart.
        """
        known = self.dataset.sql(f"select distinct phash from {_LOOKED_AT} where phash is not null").arrow()
        hashes = np.asarray(known["phash"], dtype=np.uint64)
        first = hashes[near.groups(hashes, self.distance)]
        moved = first != hashes
        cursor = self.dataset.views.cursor()
        cursor.register("near", pa.table({"phash": hashes[moved], "first": first[moved]}))
        grouped = _grouped("coalesce(first, phash)", "count(distinct pixels) > 1", join="left join near using (phash)")
        found = self.dataset.views.again(lambda: cursor.sql(grouped).to_arrow_table())
        return _keys(found.to_batches())

    def _groups(self, by: str, having: str) -> Iterator[list[str]]:
        return _keys(self.dataset.sql(_grouped(by, having)).batches())


def _grouped(by: str, having: str, join: str = "") -> str:
    return f"""
        select list(key order by key) as keys from {_LOOKED_AT} {join} where {by} is not null
        group by {by} having count(*) > 1 and {having} order by keys[1]"""


def _keys(batches: Iterable[pa.RecordBatch]) -> Iterator[list[str]]:
    for batch in batches:
        yield from batch["keys"].to_pylist()
