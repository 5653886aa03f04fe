"""What a trainer will see of a whole dataset: lengths, what is cut, how often each tag is seen, what is empty or odd.

One pass over the dataset composes the text of every picture in every epoch asked for, as an export and a training
would, and counts them as the trainer's text encoders do. Memory does not grow with the texts: what is kept is a number
for each tag and each length, and 16 bytes for each picture, by which equal texts are found.

A text is what one picture says in one epoch; where nothing else is said, texts are counted. A tag is as it is written
in the text. Where tags are compared they are normalised: no case, `_` as a space, runs of white space as one, no
backslash before a parenthesis.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from cutline.compose.buckets import Buckets
from cutline.compose.recipe import Recipe, Text
from cutline.compose.tokens import Encoder, Trainer
from cutline.dataset import Dataset
from cutline.dataset.ahead import ahead
from cutline.layer import quote
from cutline.options import CutlineError, OptionError
from cutline.preview import places
from cutline.preview.lengths import Counter, Measured, same_counts
from cutline.statistics import Spread

Counts = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

LIMITS = (75, 150, 225, 256, 512)
"""Tokens: those of CLIP in one, two and three rows, and those of T5 and its like."""

CAUSES = {
    "no_row": "no layer has a row",
    "error": "the row is an error",
    "rejected": "the caption was rejected",
    "nothing_said": "the row says nothing",
    "left_out": "the recipe leaves out all that there is",
    "dropped": "dropped by dropout",
    "blank": "blanks alone",
}
"""Why a text is empty, in the words of a report."""

LEFTOVERS = {
    "{": r"\{",
    "|": r"\|",
    "}": r"\}",
    "|||": r"\|\|\|",
    ";;;": ";;;",
    "line break": "\n",
    "carriage return": "\r",
    "byte-order mark": "\ufeff",
    ", without a space": r"[^0-9],[^\s,]|[0-9],[^\s,0-9]",
}
"""What rarely is meant to stand in a text that is trained on, as regular expressions."""

POLICIES = ("tags, caption", "caption, tags", "either", "caption only", "tags only")
"""Ways to make one text of tags and a caption."""

_BOTH = "tags, caption"  # the name of an output in a copy of the recipe; no recipe's own can have a comma
_ROWS = 8192
_EXAMPLES = 3
_PUNCTUATION = str.maketrans(dict.fromkeys("_" + string.punctuation, " "))
_NONE = np.zeros(0, np.int64)


@dataclass
class Found:
    """How many there are of something, and a few of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, count: int, examples: Iterator[str]) -> None:
        """Count more of them; of the examples those that there is room for are taken."""
        self.count += count
        while len(self.examples) < _EXAMPLES and (example := next(examples, None)) is not None:
            self.examples.append(example)

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Lengths:
    """The texts as one encoder counts them."""

    encoder: Encoder
    tokens: Spread
    """Of each text, before any cut."""
    stops: int
    """Texts at which the trainer would stop."""

    def over(self, limit: int) -> int:
        """How many texts have more tokens."""
        return int(self.tokens.counts[self.tokens.values > limit].sum())

    @property
    def limits(self) -> tuple[int, ...]:
        """Those to look at, ascending: the usual ones and its own."""
        return tuple(sorted({*LIMITS, self.encoder.limit}))

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        known = {"limit": self.encoder.limit, "chunk": self.encoder.chunk}
        if self.encoder.problem:
            return {**known, "problem": self.encoder.problem}
        cut = {str(limit): self.over(limit) for limit in self.limits}
        return {**known, "tokens": self.tokens.as_dict(), "cut": cut, "stops": self.stops}


@dataclass(frozen=True)
class Exposure:
    """How often each tag is seen over the run."""

    encoder: str
    """Whose limit `kept` is about; empty where no tokenizer is at hand."""
    tags: pa.Table
    """tag, texts (that have it), kept (of those, with the tag within the limit; null where nothing is counted),
    pictures (that have it in a layer or a text): the commonest first."""
    never: pa.Table
    """tag, pictures: in a layer, and in no text. By pictures, descending."""
    fixed: pa.Table
    """tag, texts, place (0 for the first of a text's tags): in every text, and two at least, of the pictures that have
    it, always at this place. By texts, descending."""

    @property
    def lost(self) -> int:
        """How often a tag is in a text and falls off."""
        return _total(self.tags["texts"]) - _total(self.tags["kept"]) if self.encoder else 0

    def as_dict(self, top: int) -> dict[str, Any]:
        """As JSON, with that many tags of each sort."""
        return {
            "encoder": self.encoder,
            "tags": len(self.tags),
            "texts": _total(self.tags["texts"]),
            "lost": self.lost,
            "commonest": self.tags.slice(0, top).to_pylist(),
            "rarest": self.tags.slice(max(len(self.tags) - top, 0)).to_pylist()[::-1],
            "never": {"tags": len(self.never), "commonest": self.never.slice(0, top).to_pylist()},
            "fixed": {"tags": len(self.fixed), "commonest": self.fixed.slice(0, top).to_pylist()},
        }


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


@dataclass(frozen=True)
class Said:
    """What is said more than once."""

    same: Found
    """Pictures whose text in the first epoch an earlier picture has, too; with the commonest texts."""
    alike: Found
    """The same after normalising."""
    twice: Found
    """Texts in which a tag stands twice."""
    twice_alike: Found
    """The same after normalising."""
    again: Found
    """Texts in which the caption says a tag again, word for word but for case and punctuation."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {name.name: getattr(self, name.name).as_dict() for name in dataclasses.fields(self)}


@dataclass(frozen=True)
class Survey:
    """Everything that is told of a dataset."""

    pictures: int
    epochs: int
    seed: int
    encoders: tuple[Lengths, ...]
    exposure: Exposure
    empty: dict[str, Found]
    """By cause, a key of `CAUSES`: empty texts, with keys."""
    distinct: Spread
    """Different texts of a picture, empty ones apart."""
    policies: tuple[Policy, ...]
    """None where the recipe has no tags or no captions, or no tokenizer is at hand."""
    said: Said
    leftovers: dict[str, Found]
    """By name, a key of `LEFTOVERS`: texts that have it, with keys."""
    fused: Found
    """Tags that are not apart from what stands beside them, with what they became."""
    buckets: dict[tuple[int, int] | None, int]
    """Pictures by the width and height in pixels of their bucket; None: nobody knows their size. By size."""

    @property
    def texts(self) -> int:
        """How many texts were looked at."""
        return self.pictures * self.epochs

    def losses(self) -> list[str]:
        """What will be lost, in words; nothing where all is well. What a recipe drops on purpose is no loss."""
        found = []
        for lengths in self.encoders:
            if cut := lengths.over(lengths.encoder.limit):
                share = f"{cut:,} of {self.texts:,} texts"
                found.append(f"{lengths.encoder.name} cuts {share} at its {lengths.encoder.limit} tokens")
            if lengths.stops:
                found.append(f"the trainer would stop at {lengths.stops:,} texts ({lengths.encoder.name})")
        if lost := self.exposure.lost:
            times = f"{lost:,} of {_total(self.exposure.tags['texts']):,} times"
            found.append(f"a tag that is in the text falls off at {self.exposure.encoder}'s limit: {times}")
        causes = {cause: one.count for cause, one in self.empty.items() if one.count and cause != "dropped"}
        if causes:
            why = ", ".join(f"{CAUSES[cause]}: {count:,}" for cause, count in causes.items())
            found.append(f"{sum(causes.values()):,} of {self.texts:,} texts are empty ({why})")
        return found

    def as_dict(self, top: int = 10) -> dict[str, Any]:
        """As JSON, with that many tags of each sort."""
        return {
            "pictures": self.pictures,
            "epochs": self.epochs,
            "seed": self.seed,
            "texts": self.texts,
            "losses": self.losses(),
            "encoders": {lengths.encoder.name: lengths.as_dict() for lengths in self.encoders},
            "exposure": self.exposure.as_dict(top),
            "empty": {cause: one.as_dict() for cause, one in self.empty.items()},
            "distinct": self.distinct.as_dict(),
            "policies": {policy.name: policy.as_dict() for policy in self.policies},
            "said": self.said.as_dict(),
            "leftovers": {name: one.as_dict() for name, one in self.leftovers.items()},
            "fused": self.fused.as_dict(),
            "buckets": {
                "unknown" if size is None else f"{size[0]}x{size[1]}": count for size, count in self.buckets.items()
            },
        }


def survey(
    dataset: Dataset,
    recipe: Recipe,
    trainer: Trainer,
    *,
    output: str = "",
    epochs: int = 1,
    seed: int = 0,
    sample: int = 0,
    buckets: Buckets | None = None,
) -> Survey:
    """Look at what a trainer will see of every picture in every epoch.

    Args:
        dataset: where the words are.
        recipe: how they become texts.
        trainer: whose encoders count them. Those without a tokenizer count nothing.
        output: which of the recipe's outputs; by default its `text`.
        epochs: how many; epochs count from 0, as in `Recipe.compose`.
        seed: what random choices are drawn from, as in `Recipe.compose`.
        sample: look at so many pictures alone, drawn by the seed; 0 for all.
        buckets: how the trainer sorts pictures by size; by default as it does at 1024 by 1024.

    Raises:
        CutlineError: the recipe reads a layer that the dataset lacks, or has no such output.
    """
    if epochs < 1:
        raise OptionError(f"epochs = {epochs}: at least one")
    recipe.text_of(output)
    known = dataset.layers()
    if lacking := [name for name in recipe.layers if name not in known]:
        there = ", ".join(name for name in known if name != "pictures") or "none"
        raise CutlineError(
            f"the recipe reads {', '.join(lacking)}, which {dataset.root} does not have. It has: {there}"
        )
    counters: list[Counter] = []
    mine: dict[str, int] = {}  # encoder to counter: those that count alike share one
    for encoder in trainer.encoders:
        if encoder.problem:
            continue
        shared = next((n for n, counter in enumerate(counters) if same_counts(counter.encoder, encoder)), None)
        mine[encoder.name] = len(counters) if shared is None else shared
        if shared is None:
            counters.append(Counter(encoder))
    # The least limit cuts first; what a quoted encoder reads is no text of tags.
    able = [encoder for encoder in trainer.encoders if encoder.name in mine and not encoder.quoted]
    least = min(able, key=lambda encoder: encoder.limit, default=None)
    cutter = Counter(least) if least and counters[mine[least.name]].encoder.limit != least.limit else None
    if least and cutter is None:
        cutter = counters[mine[least.name]]
    elif cutter:
        counters.append(cutter)

    only = _sample(dataset, sample, seed) if sample else None
    texts, exposure = _Texts(epochs), _Tags(recipe, epochs)
    policies = _Policies(cutter) if cutter and {"tags", "caption"} <= set(recipe.parts) else None
    sizes: dict[tuple[int, int] | None, int] = {}
    chosen = buckets or Buckets()
    empty = {cause: Found() for cause in CAUSES}
    odd = {name: Found() for name in LEFTOVERS}
    lengths = [_Histogram() for _ in counters]
    pictures = 0
    for drawn in ahead(_draws(dataset, recipe, output, epochs, seed, only, counters, policies is not None)):
        for histogram, measured in zip(lengths, drawn.measured, strict=True):
            histogram.add(measured.counts)
        kept = drawn.measured[counters.index(cutter)] if cutter else None
        _look_for_empty(recipe, drawn, empty)
        _look_for_leftovers(drawn, odd)
        texts.add(drawn)
        exposure.add(drawn, kept)
        if drawn.epoch == 0:
            pictures += len(drawn.batch)
            _sort_by_size(drawn.batch, chosen, sizes)
            if policies:
                policies.add(drawn)
    spreads = [histogram.spread() for histogram in lengths]
    nothing = Spread(_NONE, _NONE)
    return Survey(
        pictures=pictures,
        epochs=epochs,
        seed=seed,
        encoders=tuple(
            Lengths(one, spreads[mine[one.name]], lengths[mine[one.name]].stops)
            if one.name in mine
            else Lengths(one, nothing, 0)
            for one in trainer.encoders
        ),
        exposure=exposure.told(least.name if least else ""),
        empty=empty,
        distinct=texts.distinct.spread(),
        policies=policies.told() if policies else (),
        said=Said(
            *texts.told(dataset, recipe, output, seed, only), exposure.twice, exposure.twice_alike, exposure.again
        ),
        leftovers=odd,
        fused=exposure.fused,
        buckets=dict(sorted(sizes.items(), key=lambda item: (item[0] is None, item[0] or (0, 0)))),
    )


# One pass.


@dataclass(frozen=True)
class _Drawn:
    """Some pictures in one epoch."""

    batch: pa.RecordBatch
    epoch: int
    texts: pa.StringArray
    caption: pa.StringArray
    tags: pa.ListArray
    measured: list[Measured]
    parts: tuple[pa.StringArray, pa.StringArray, str] | None
    """Tags and caption as one text each, null where there are none, and what stands between them."""

    def keys(self, mask: Any) -> Iterator[str]:
        """Of the rows that a mask chooses."""
        return (self.batch.column("key")[int(row)].as_py() for row in np.flatnonzero(np.asarray(mask)))


def _draws(
    dataset: Dataset,
    recipe: Recipe,
    output: str,
    epochs: int,
    seed: int,
    only: Any,
    counters: list[Counter],
    both: bool,
) -> Iterator[_Drawn]:
    """Compose and tokenise; meanwhile what was composed before is counted."""
    separator = recipe.text_of(output).separator
    if both:
        together = Text(order=("tags", "caption"), separator=separator)
        recipe = dataclasses.replace(recipe, outputs={**recipe.outputs, _BOTH: together})
    for batch in dataset.scan(*recipe.layers, fields=recipe.fields, only=only, rows=_ROWS):
        for epoch in range(epochs):
            made = recipe.make(batch, seed=seed, epoch=epoch)
            draw = made.draw(output)
            texts = draw.texts
            parts = None
            if both and epoch == 0:
                each = made.draw(_BOTH)
                joined = pc.binary_join(each.tags, recipe.tags.separator)
                parts = (pc.if_else(pc.equal(joined, ""), None, joined), each.caption, separator)
            measured = [counter.measure(texts) for counter in counters]
            yield _Drawn(batch, epoch, texts, draw.caption, draw.tags, measured, parts)


def _sample(dataset: Dataset, count: int, seed: int) -> Any:
    """So many pictures, the same for the same seed."""
    drawn = f"select key from pictures where error is null order by md5({quote(f'{seed}:')} || key) limit {count:d}"
    return dataset.sql(drawn)


class _Histogram:
    """How often each number from 0 up occurs."""

    def __init__(self) -> None:
        self.counts, self.stops = _NONE, 0

    def add(self, numbers: Counts) -> None:
        self.stops += int((numbers < 0).sum())
        more = np.bincount(numbers[numbers >= 0], minlength=len(self.counts))
        more[: len(self.counts)] += self.counts
        self.counts = more

    def spread(self) -> Spread:
        values = np.flatnonzero(self.counts)
        return Spread(values, self.counts[values])


# Texts.


def _look_for_empty(recipe: Recipe, drawn: _Drawn, found: dict[str, Found]) -> None:
    """Sort empty texts by their cause."""
    bare = pc.utf8_trim_whitespace(drawn.texts)
    nothing = pc.fill_null(pc.equal(bare, ""), True)
    if not pc.any(nothing).as_py():
        return
    rows = drawn.batch.filter(nothing)
    texts = drawn.texts.filter(nothing).to_pylist()
    captions, tags = recipe.captions, recipe.tags
    layers = [*(captions.first_of or captions.all_of), *tags.layers]
    said = [rows.column(layer).to_pylist() for layer in layers]
    keys = rows.column("key").to_pylist()
    for row, text in enumerate(texts):
        cause = _cause(text, [column[row] for column in said], recipe.tags.order)
        found[cause].add(1, iter([keys[row]]))


def _cause(text: str | None, rows: list[dict[str, Any] | None], categories: tuple[str, ...]) -> str:
    if text is not None:
        return "blank" if text else "dropped"
    there = [row for row in rows if row is not None]
    good = [row for row in there if row["error"] is None]
    rejected = [row for row in good if row.get("verdict") == "rejected"]
    lists = [row.get(name) or [] for row in good for name in ("texts", *categories) if row not in rejected]
    if any(one for some in lists for one in some):
        return "left_out"
    if rejected:
        return "rejected"
    if len(good) < len(there):
        return "error"
    return "nothing_said" if there else "no_row"


def _look_for_leftovers(drawn: _Drawn, found: dict[str, Found]) -> None:
    data = places.data(drawn.texts).tobytes()
    for name, pattern in LEFTOVERS.items():
        literal = pattern.replace("\\", "")
        if name != ", without a space" and literal.encode() not in data:
            continue
        has = pc.fill_null(pc.match_substring_regex(drawn.texts, pattern), False)
        if count := pc.sum(has).as_py():
            found[name].add(count, drawn.keys(has))


class _Texts:
    """Equal texts: of one picture over the epochs, and of several pictures."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.distinct = _Histogram()
        self._rows: list[Hashes] = []
        self._first: list[Hashes] = []
        self._alike: list[Hashes] = []

    def add(self, drawn: _Drawn) -> None:
        texts = drawn.texts.to_pylist()
        hashes = _hashes(texts)
        self._rows.append(hashes)
        if drawn.epoch == 0:
            self._first.append(hashes)
            self._alike.append(_hashes([text and normal(text) for text in texts]))
        if drawn.epoch == self.epochs - 1:
            ordered = np.sort(np.stack(self._rows), axis=0)
            changes = (np.diff(ordered, axis=0, prepend=np.uint64(0)) != 0).sum(axis=0)  # a 0 says nothing
            self.distinct.add(changes)
            self._rows.clear()

    def told(self, dataset: Dataset, recipe: Recipe, output: str, seed: int, only: Any) -> tuple[Found, Found]:
        """Pictures that say what an earlier one says; the commonest such texts are looked up again."""

        def found(pieces: list[Hashes]) -> Found:
            whole = np.concatenate([np.zeros(0, np.uint64), *pieces])
            values, first, counts = np.unique(whole[whole != 0], return_index=True, return_counts=True)
            several = counts > 1
            commonest = np.flatnonzero(several)[np.argsort(-counts[several], kind="stable")][:_EXAMPLES]
            rows = np.flatnonzero(whole != 0)[first[commonest]].tolist()
            shown = _texts_of(dataset, recipe, output, seed, only, rows) if rows else []
            examples = [f"{count:,} × {text}" for count, text in zip(counts[commonest].tolist(), shown, strict=True)]
            return Found(int((counts[several] - 1).sum()), examples)

        return found(self._first), found(self._alike)


def _texts_of(dataset: Dataset, recipe: Recipe, output: str, seed: int, only: Any, rows: list[int]) -> list[str]:
    """The texts of pictures by their number among those that were looked at, sorted by key."""
    keys = only.keys() if only is not None else None
    found = []
    for row in rows:
        known = "select key from pictures where error is null order by key"
        key = keys[row].as_py() if keys is not None else dataset.sql(f"{known} limit 1 offset {row}").fetchall()[0][0]
        wanted = dataset.sql(f"select key from pictures where key = {quote(key)}")
        (batch,) = dataset.scan(*recipe.layers, fields=recipe.fields, only=wanted)
        found.append(str(recipe.compose(batch, seed=seed, output=output)[0].as_py()))
    return found


def _hashes(texts: list[str | None]) -> Hashes:
    """64 bits for each text; 0 where it is empty."""
    hashed = xxhash.xxh3_64_intdigest
    return np.fromiter((hashed(text) or 1 if text else 0 for text in texts), np.uint64, len(texts))


def normal(text: str) -> str:
    """A tag or text without what rarely makes a difference to people."""
    return " ".join(text.lower().replace("_", " ").replace("\\(", "(").replace("\\)", ")").split())


def _plain(text: str) -> str:
    """The words of a text, each between spaces, without punctuation and case: what can be found in another."""
    return f" {' '.join(text.lower().translate(_PUNCTUATION).split())} "


# Tags.


class _Tags:
    """Where each tag is seen. Tags, and what is left of them after normalising, are numbered as they come."""

    def __init__(self, recipe: Recipe, epochs: int) -> None:
        self.recipe, self.epochs = recipe, epochs
        self.twice, self.twice_alike, self.again, self.fused = Found(), Found(), Found(), Found()
        self._codes: dict[str, int] = {}
        self._normal: dict[str, int] = {}
        self._first_spelling: list[str] = []  # of each normal one
        self._plain: list[str] = []  # of each tag
        self._normal_of = _NONE  # each tag
        self._texts, self._kept = _NONE, _NONE
        self._low, self._high = _NONE, _NONE  # its places in texts
        self._in_layer, self._with = _NONE, _NONE  # of each normal one: pictures
        self._pairs = _NONE  # of the batch in hand: row and normal tag
        self._counted = False

    def add(self, drawn: _Drawn, measured: Measured | None) -> None:
        rows, codes, place = self._flat(drawn.tags)
        if drawn.epoch == 0:
            layer_rows, layer_codes = self._layers(drawn.batch)
            pairs = np.unique(_pairs(layer_rows, layer_codes))
            self._in_layer = _counted(self._in_layer, _second(pairs), len(self._normal))
            self._pairs = pairs
        self._pairs = np.union1d(self._pairs, _pairs(rows, self._normal_of[codes]))
        if drawn.epoch == self.epochs - 1:
            self._with = _counted(self._with, _second(self._pairs), len(self._normal))
        each, first = np.unique(_pairs(rows, codes), return_index=True)
        self._texts = _counted(self._texts, _second(each), len(self._codes))
        np.minimum.at(self._low, codes, place)
        np.maximum.at(self._high, codes, place)
        self._doubles(drawn, rows, codes, place)
        self._say_again(drawn, rows, codes)
        starts, ends = places.locate(drawn.texts, drawn.caption, drawn.tags, self.recipe.tags.separator)
        self._look_for_fused(drawn, rows, starts, ends)
        if measured is not None:
            self._counted = True
            whole = pc.binary_length(drawn.texts).fill_null(0).to_numpy()[rows]  # of a tag that is not found as it is
            kept = measured.keeps(rows[first], np.where(ends < 0, whole, ends)[first])
            self._kept = _counted(self._kept, codes[first][kept], len(self._codes))

    def told(self, encoder: str) -> Exposure:
        count = len(self._codes)
        names = np.array(list(self._codes), object)
        texts, kept = (_counted(numbers, _NONE, count) for numbers in (self._texts, self._kept))
        having = _counted(self._with, _NONE, len(self._normal))
        pictures = having[self._normal_of] if count else _NONE
        order = np.lexsort((names.astype(str), -texts)) if count else _NONE
        fixed = (texts > 1) & (self._low == self._high) & (texts == pictures * self.epochs)
        fixed = order[fixed[order]] if count else _NONE
        in_layer = _counted(self._in_layer, _NONE, len(self._normal))
        seen = np.zeros(len(self._normal), bool)
        seen[self._normal_of] = True
        spelt = np.array(self._first_spelling, object)
        never = np.flatnonzero((in_layer > 0) & ~seen)
        never = never[np.lexsort((spelt[never].astype(str), -in_layer[never]))] if len(never) else _NONE
        return Exposure(
            encoder,
            pa.table(
                {
                    "tag": pa.array(names[order], pa.string()),
                    "texts": texts[order],
                    "kept": pa.array(kept[order] if encoder else [None] * count, pa.int64()),
                    "pictures": pictures[order],
                }
            ),
            pa.table({"tag": pa.array(spelt[never], pa.string()), "pictures": in_layer[never]}),
            pa.table(
                {"tag": pa.array(names[fixed], pa.string()), "texts": texts[fixed], "place": self._low[fixed]}
            ),
        )

    def _flat(self, lists: pa.ListArray) -> tuple[Counts, Counts, Counts]:
        """Row, number of the tag, and place among the row's tags, of every tag in every text."""
        rows = np.asarray(pc.list_parent_indices(lists), np.int64)
        coded = _coded(pc.list_flatten(lists))
        numbers = np.fromiter((self._code(tag) for tag in coded.dictionary.to_pylist()), np.int64)
        place = np.arange(len(rows)) - np.searchsorted(rows, rows)
        grown = len(self._codes) - len(self._low)
        self._low = np.concatenate([self._low, np.full(grown, np.iinfo(np.int64).max)])
        self._high = np.concatenate([self._high, np.full(grown, -1)])
        self._normal_of = np.concatenate([self._normal_of, self._new_normal])
        self._new_normal = []
        return rows, numbers[np.asarray(coded.indices)] if len(rows) else _NONE, place

    _new_normal: list[int]

    def _code(self, tag: str) -> int:
        if (found := self._codes.get(tag)) is None:
            found = self._codes[tag] = len(self._codes)
            self._new_normal.append(self._normal_code(tag))
            self._plain.append(_plain(tag))
        return found

    def _normal_code(self, tag: str) -> int:
        name = normal(tag)
        if (found := self._normal.get(name)) is None:
            found = self._normal[name] = len(self._normal)
            self._first_spelling.append(tag)
        return found

    def _layers(self, batch: pa.RecordBatch) -> tuple[Counts, Counts]:
        """Row and number after normalising of every tag in the layers that the recipe reads."""
        rows, codes = [_NONE], [_NONE]
        for layer in self.recipe.tags.layers:
            column = batch.column(layer)
            if not pa.types.is_struct(column.type):  # nobody wrote it yet
                continue
            for category in self.recipe.tags.order:
                lists = pc.struct_field(column, category)
                coded = _coded(pc.list_flatten(lists))
                names = coded.dictionary.to_pylist()
                numbers = np.fromiter((self._normal_code(tag) if tag else -1 for tag in names), np.int64, len(names))
                mine = np.asarray(pc.list_parent_indices(lists), np.int64)
                some = np.asarray(pc.is_valid(coded.indices))
                code = numbers[np.asarray(coded.indices.filter(pa.array(some)))] if len(names) else _NONE
                rows.append(mine[some][code >= 0])
                codes.append(code[code >= 0])
        return np.concatenate(rows), np.concatenate(codes)

    def _doubles(self, drawn: _Drawn, rows: Counts, codes: Counts, place: Counts) -> None:
        names = list[str]()
        for found, numbers in ((self.twice, codes), (self.twice_alike, self._normal_of[codes])):
            pairs = _pairs(rows, numbers)
            order = np.argsort(pairs, kind="stable")
            again = order[1:][pairs[order][1:] == pairs[order][:-1]]
            if len(again):
                names = names or list(self._codes)
                keys = drawn.batch.column("key")
                told = (f"{keys[int(rows[at])].as_py()}: {names[codes[at]]}" for at in again)
                found.add(len(np.unique(rows[again])), told)

    def _say_again(self, drawn: _Drawn, rows: Counts, codes: Counts) -> None:
        """Look for tags in captions."""
        bounds = np.searchsorted(rows, np.arange(len(drawn.texts) + 1)).tolist()
        listed, plain = codes.tolist(), self._plain
        names = list[str]()
        for row, caption in enumerate(drawn.caption.to_pylist()):
            begin, end = bounds[row], bounds[row + 1]
            if not caption or begin == end:
                continue
            words = _plain(caption)
            said = [code for code in listed[begin:end] if plain[code] in words and len(plain[code]) > 2]
            if said:
                self.again.count += 1
                if len(self.again.examples) < _EXAMPLES:
                    names = names or list(self._codes)
                    tags = ", ".join(names[code] for code in said)
                    self.again.examples.append(f"{drawn.batch.column('key')[row].as_py()}: {tags}")

    def _look_for_fused(self, drawn: _Drawn, rows: Counts, starts: Counts, ends: Counts) -> None:
        border = self.recipe.tags.separator.strip()
        if not border:  # every space parts two tags, or none does: nothing can be told
            return
        fused = places.fused(drawn.texts, rows, starts, ends, border)
        if fused.any():
            keys = drawn.batch.column("key")
            told = (
                f"{keys[int(rows[at])].as_py()}: {places.between(drawn.texts[int(rows[at])].as_py(), starts[at], border)}"
                for at in np.flatnonzero(fused)
            )
            self.fused.add(int(fused.sum()), told)


_WIDE = np.int64(1 << 32)


def _pairs(rows: Counts, codes: Counts) -> Counts:
    """Row and number as one number."""
    return rows * _WIDE + codes


def _second(pairs: Counts) -> Counts:
    found: Counts = pairs % _WIDE
    return found


def _counted(counts: Counts, numbers: Counts, length: int) -> Counts:
    """How often each number came, with those that came before."""
    more = np.bincount(numbers, minlength=length).astype(np.int64)
    more[: len(counts)] += counts
    return more


def _coded(values: pa.Array) -> pa.DictionaryArray:
    return values if pa.types.is_dictionary(values.type) else values.dictionary_encode()


def _total(column: pa.ChunkedArray) -> int:
    return int(pc.sum(column).as_py() or 0)


# Ways to join.


class _Policies:
    """What becomes of tags and captions, were they joined in one way or another."""

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        self._limits = sorted({*LIMITS, counter.encoder.limit})
        self._tokens = np.zeros(2, np.int64)  # of tags, of captions
        self._first = np.zeros((len(self._limits), 2), np.int64)  # kept of what comes first, or is alone
        self._second = np.zeros((len(self._limits), 2), np.int64)  # kept of what comes second
        self._having, self._having_both = np.zeros(2, np.int64), 0  # pictures

    def add(self, drawn: _Drawn) -> None:
        assert drawn.parts is not None
        *parts, separator = drawn.parts
        there = [np.asarray(pc.is_valid(part)) for part in parts]
        alone = [np.maximum(self.counter.counts(part), 0) for part in parts]
        both = there[0] & there[1]
        self._having += [column.sum() for column in there]
        self._having_both += int(both.sum())
        self._tokens += [counts.sum() for counts in alone]
        for second, ordered in ((1, parts), (0, parts[::-1])):
            joined = pc.binary_join_element_wise(*ordered, separator, null_handling="skip")
            whole = np.where(both, np.maximum(self.counter.counts(joined), 0), alone[second])
            before = whole - alone[second]  # tokens of the other one and of what stands between
            for number, limit in enumerate(self._limits):
                self._first[number, second] += np.minimum(alone[second], limit).sum()
                self._second[number, second] += np.clip(limit - before, 0, alone[second]).sum()

    def told(self) -> tuple[Policy, ...]:
        def shares(*kept: Any) -> dict[int, tuple[float, float]]:
            return {
                limit: (_share(tags[number, 0], self._tokens[0]), _share(captions[number, 1], self._tokens[1]))
                for number, limit in enumerate(self._limits)
                for tags, captions in [kept]
            }

        first, second, none = self._first, self._second, np.zeros_like(self._first)
        half = tuple(1 - _share(self._having_both / 2, having) if having else 0.0 for having in self._having)
        told = (
            ((1.0, 1.0), shares(first, second)),
            ((1.0, 1.0), shares(second, first)),
            ((half[0], half[1]), shares(first, first)),
            ((0.0, 1.0), shares(none, first)),
            ((1.0, 0.0), shares(first, none)),
        )
        return tuple(Policy(name, seen, kept) for name, (seen, kept) in zip(POLICIES, told, strict=True))


def _share(part: float, whole: float) -> float:
    return round(float(part) / float(whole), 6) if whole else 0.0


# Buckets.


def _sort_by_size(batch: pa.RecordBatch, buckets: Buckets, found: dict[tuple[int, int] | None, int]) -> None:
    width, height = (batch.column(side) for side in ("width", "height"))
    known = pc.and_(pc.is_valid(width), pc.is_valid(height))
    if unknown := len(batch) - (pc.sum(known).as_py() or 0):
        found[None] = found.get(None, 0) + unknown
    sides = [np.asarray(side.filter(known), np.int64) for side in (width, height)]
    sizes, counts = np.unique(np.stack(sides, axis=1), axis=0, return_counts=True)
    for (wide, high), count in zip(sizes.tolist(), counts.tolist(), strict=True):
        bucket = buckets.choose(wide, high)
        size = (bucket.width, bucket.height)
        found[size] = found.get(size, 0) + count
