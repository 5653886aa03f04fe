"""Which pictures a run is about: what its layer lacks, narrowed by `--where`, `--shard` and `--limit`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import xxhash

from cutline import options, schemas
from cutline.annotators.session import Annotator, Row, RowError
from cutline.dataset import Dataset
from cutline.dataset.query import Relation
from cutline.layer import Layer, LayerWriter
from cutline.options import OptionError


@dataclass(frozen=True)
class Shard:
    """Shard `index` (from 0) of `count`: the keys whose xxh64, seed 0, leaves that rest. Any machine can tell."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `i/n`. Raises OptionError unless 0 <= i < n."""
        first, _, second = text.partition("/")
        if not (first.isdecimal() and second.isdecimal() and int(first) < int(second)):
            raise OptionError(f"--shard {text}: write i/n with i from 0 to n-1, such as 0/4")
        return cls(int(first), int(second))

    def has(self, key: str) -> bool:
        """Whether this shard does that picture."""
        return xxhash.xxh64_intdigest(key.encode()) % self.count == self.index


@dataclass(frozen=True)
class Selection:
    """The pictures that one run of an annotator is to do."""

    dataset: Dataset
    annotator: Annotator
    layer: str
    where: str = ""
    retry: str = ""
    limit: int | None = None
    shard: Shard | None = None

    def __post_init__(self) -> None:
        self.dataset.key_rule  # noqa: B018  where there is no dataset it says so, before anything is made
        if hasattr(self.annotator, "fit"):
            object.__setattr__(self, "annotator", self.annotator.fit(self.dataset.layers()))
        wanted, got = schemas.kind(type(self.annotator).writes), schemas.kind(self.layer)
        if wanted != got:
            raise OptionError(f"{self.name} writes {wanted}, so a layer called {wanted}/…, not {self.layer}")

    @property
    def name(self) -> str:
        """The annotator's name in `layer.json` and in messages."""
        return options.called(type(self.annotator))

    def check(self) -> None:
        """Raise IdentityError where the layer has other settings; write nothing."""
        self.dataset.layer(self.layer).check(self.name, options.identity(self.annotator))

    def writer(self) -> LayerWriter:
        """Open the layer, claiming it for this annotator's settings. Raises IdentityError where it has others."""
        layer: Layer = self.dataset.layer(self.layer)
        return layer.write(self.name, options.identity(self.annotator))

    def checks(self) -> LayerWriter:
        """Open the layer that says what is wrong with the captions of this one; nothing is made until it has a row."""
        return self.dataset.layer(f"checks/{self.layer.partition('/')[2] or self.layer}").write()

    def rows(self) -> Iterator[Row]:
        """The pictures to do, sorted by key, with the layers that the annotator reads and which `attempt` this is."""
        return islice(self._rows(), self.limit)

    def _rows(self) -> Iterator[Row]:
        reads = self.annotator.reads
        wanted = (*reads, self.layer) if self.retry else tuple(name for name in reads if name != "pictures")
        missing = self._missing()
        for batch in self.dataset.scan(*wanted, only=missing) if wanted else missing.batches():
            for row in batch.to_pylist():
                if self.shard is None or self.shard.has(row["key"]):
                    before = (row.get(self.layer) or {}).get("attempt") or 0
                    yield {**row, "attempt": before + 1}

    def count(self) -> int:
        """How many there are to do at present."""
        if self.shard is None:
            total = self._missing().count()
        else:
            total = sum(
                self.shard.has(key.as_py()) for batch in self._missing().batches() for key in batch.column("key")
            )
        return total if self.limit is None else min(total, self.limit)

    def _missing(self) -> Relation:
        where = f"({self.where}\n)" if self.where else ""
        if self._opens:
            where = f"{where} and uri is not null" if where else "uri is not null"
        return self.dataset.missing(self.layer, where=where, retry=self.retry)

    @property
    def _opens(self) -> bool:
        opens: bool = getattr(self.annotator, "opens", True)
        return opens

    def without_file(self) -> int:
        """How many pictures are left out since only metadata tells of them, and the annotator would open them."""
        if not self._opens:
            return 0
        return self.dataset.count_without_file()

    def first_request(self) -> dict[str, Any] | None:
        """What would be asked for the first picture about which something can be; `hash` is what its row will carry."""
        render = getattr(self.annotator, "request", None)
        for row in self.rows():
            if render is None:
                return {"key": row["key"], "uri": row["uri"], "settings": options.settings(self.annotator)}
            with suppress(RowError):  # there is nothing to ask about this one
                request = render(row)
                return {"key": row["key"], "request": request, "hash": options.digest(request)}
        return None
