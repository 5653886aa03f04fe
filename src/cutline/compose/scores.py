"""Score tables: from a post's score, favourites or year to the word that a model was taught for it.

A table is data: the TOML files in `presets/scores`, or one of your own. It has words from the lowest up, and between
two words an edge. A value above an edge gets the upper word, a value on it the lower one. Edges stand in the table, or
it says percentiles and `fit` finds the edges in a tag layer. Absolute edges tell how popular a *rating* is as much as
how good a picture: edges within each rating do not. A post without the number or the rating gets no word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cutline import toml_files
from cutline.files import storage_error, whole_file
from cutline.layer import identifier
from cutline.options import CutlineError, OptionError

if TYPE_CHECKING:
    from cutline.dataset import Dataset

_BY = ("score", "fav_count", "year")
_KEYS = ("by", "within", "words", "percentiles", "edges")


@dataclass(frozen=True)
class ScoreTable:
    """A score table. Made with `find`, `parse` or `read`."""

    by: str
    """The column of a tag layer that counts: score, fav_count or year."""
    within: str
    """`rating` where every rating has edges of its own, else empty."""
    names: tuple[str, ...]
    """The words, from the lowest up."""
    percentiles: tuple[float, ...] = ()
    edges: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """By rating; under the empty string where ratings do not count. Empty until `fit`, where there are percentiles."""

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> ScoreTable:
        """Make a table of TOML's or JSON's values. Raises OptionError, saying what does not fit."""
        for key in values:
            if key not in _KEYS:
                raise OptionError(f"a score table says '{key}'; it can say: {', '.join(_KEYS)}")
        by, within, words = values.get("by"), values.get("within", ""), values.get("words")
        if by not in _BY:
            raise OptionError(f"by = {by!r} is none of {', '.join(_BY)}")
        if within not in ("", "rating"):
            raise OptionError(f"within = {within!r} is neither rating nor empty")
        if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
            raise OptionError(f"words = {words!r} is no list of words")
        given = values.get("edges", {})
        edges = given if isinstance(given, dict) else {"": given}
        if edges and ("" in edges) == bool(within):
            raise OptionError('edges are one list; with within = "rating" they are a list for each: [edges] g = […]')
        percentiles = _rising("percentiles", values.get("percentiles", []), len(words))
        if not percentiles and not edges:
            raise OptionError("it has neither edges nor percentiles")
        if any(not 0 < one < 100 for one in percentiles):
            raise OptionError(f"percentiles = {list(percentiles)}: they lie between 0 and 100")
        named = {
            key: _rising(f"edges {key}".strip(), one, len(words), level=bool(percentiles)) for key, one in edges.items()
        }
        return cls(by, within, tuple(words), percentiles, named)

    @classmethod
    def read(cls, path: str | Path) -> ScoreTable:
        """Read a table from a TOML file, or one that `save` wrote. Raises CutlineError, naming the file."""
        path = Path(path).expanduser()
        try:
            if path.suffix.lower() != ".json":
                return cls.parse(toml_files.read(path, "score table"))
            return cls.parse(json.loads(path.read_text("utf-8")))
        except OSError as error:
            raise CutlineError(f"cannot read the score table {path}: {error.strerror}") from None
        except OptionError as error:
            raise OptionError(f"{path}: {error}") from None
        except ValueError as error:
            raise CutlineError(f"{path} is no score table: {error}") from None

    def save(self, path: str | Path) -> None:
        """Write the table as JSON, with its edges, for `read`."""
        edges: Any = {key: list(one) for key, one in self.edges.items()}
        values: dict[str, Any] = {"by": self.by, "within": self.within, "words": list(self.names)}
        values |= {"percentiles": list(self.percentiles), "edges": edges if self.within else edges.get("", [])}
        path = Path(path).expanduser()
        try:
            with whole_file(path, "w") as handle:
                handle.write(json.dumps({key: one for key, one in values.items() if one}, indent=1, ensure_ascii=False))
        except OSError as error:
            raise storage_error(path, error) from error

    def fit(self, dataset: Dataset, layer: str) -> ScoreTable:
        """The table with edges at its percentiles of what is in a tag layer. One without percentiles stays as it is.

        An edge is a value that occurs: at least that part of the posts is on it or below.

        Raises:
            CutlineError: there is no such layer, or none of its posts has the number (and the rating).
        """
        if not self.percentiles:
            return self
        if layer not in dataset.layers():
            raise CutlineError(f"{dataset.root} has no layer {layer}; it has: {', '.join(dataset.layers())}")
        group = "rating" if self.within else "''"
        parts = ", ".join(str(one / 100) for one in self.percentiles)
        found = dataset.sql(f"""
            select {group} as name, quantile_disc({self.by}, [{parts}]) as edges from {identifier(layer)}
            where error is null and {self.by} is not null and {group} is not null group by 1 order by 1""").fetchall()
        if not found:
            raise CutlineError(f"no post in {layer} has a {self.by}{' and a rating' if self.within else ''}")
        return replace(self, edges={name: tuple(edges) for name, edges in found})

    def words(self, columns: pa.RecordBatch | pa.Table | Mapping[str, pa.Array]) -> pa.StringArray:
        """The word of each post; null where it lacks the number, or its rating has no edges.

        Args:
            columns: columns of a tag layer, of which `by` and, within ratings, `rating` are read.

        Raises:
            CutlineError: the table has percentiles and was not fitted.
        """
        if not self.edges:
            raise CutlineError("this score table says percentiles and has no edges yet: fit it to a tag layer")
        values = columns[self.by]
        numbers = pc.fill_null(values.cast(pa.float64()), 0.0).to_numpy()
        places = np.full(len(numbers), -1)
        for name, edges in self.edges.items():
            mine = (
                pc.fill_null(pc.equal(columns["rating"].cast(pa.string()), name), False).to_numpy(zero_copy_only=False)
                if name
                else slice(None)
            )
            places[mine] = np.searchsorted(edges, numbers[mine], side="left")
        places[values.is_null().to_numpy(zero_copy_only=False)] = -1
        return pa.array(self.names, pa.string()).take(pa.array(places, mask=places < 0))


def find(name: str) -> ScoreTable:
    """A table by its name, or by the path of a TOML or JSON file. Raises CutlineError where there is none."""
    if Path(name).suffix.lower() in (".toml", ".json"):
        return ScoreTable.read(name)
    return ScoreTable.parse(toml_files.find("scores", name, "score table"))


def _rising(what: str, given: object, words: int, *, level: bool = False) -> tuple[float, ...]:
    """Numbers that rise (or, fitted, at least do not fall), one between every two words."""
    if not isinstance(given, Sequence) or not all(isinstance(one, (int, float)) and one == one for one in given):
        raise OptionError(f"{what} = {given!r} is no list of numbers")
    if given and len(given) != words - 1:
        raise OptionError(f"{what} has {len(given)} numbers; between {words} words it has {words - 1}")
    if any(upper < lower or (upper == lower and not level) for lower, upper in pairwise(given)):
        raise OptionError(f"{what} = {list(given)} does not rise")
    return tuple(given)
