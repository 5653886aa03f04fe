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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cutline.compose.as_kohya import AsKohya
from cutline.compose.buckets import Buckets, sides
from cutline.compose.recipe import Recipe, Text, check_layers
from cutline.compose.tokens import Encoder, Trainer
from cutline.dataset import Dataset
from cutline.dataset.ahead import ahead
from cutline.dataset.query import Relation
from cutline.layer import quote
from cutline.options import OptionError
from cutline.preview import several
from cutline.preview.drawn import NONE, Counts, Drawn, Found, Histogram
from cutline.preview.exposure import Exposure, Tags
from cutline.preview.lengths import LIMITS, Counter
from cutline.preview.policies import Policies, Policy
from cutline.preview.texts import CAUSES, LEFTOVERS, EqualTexts, look_for_empty, look_for_leftovers
from cutline.statistics import Spread

_BOTH = "tags, caption"  # the name of an output in a copy of the recipe; no recipe's own can have a comma
_ROWS = 8192


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
        tokens = {**self.tokens.as_dict(), **({"p90": self.tokens.at(900)} if self.tokens.total else {})}
        return {**known, "tokens": tokens, "cut": cut, "stops": self.stops}


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

    trainer: str
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
    """Empty where the recipe has no tags or no captions, or no tokenizer is at hand."""
    said: Said
    cleaned: dict[str, Found]
    """By cleaning rule of the recipe, how many tags it drops from pictures, with some of them."""
    misread: dict[str, Found]
    """Why kohya's trainers would misread entries that the recipe makes, with keys. Empty for other trainers."""
    cannot: tuple[str, ...]
    """What kohya's trainers cannot be told of the recipe."""
    leftovers: dict[str, Found]
    """By name, a key of `LEFTOVERS`: texts that have it, with keys."""
    fused: Found
    """Tags that are not apart from what stands beside them, with what they became."""
    resolution: tuple[int, int]
    """Width and height in pixels that buckets are about the area of."""
    max_bucket_reso: int
    """Pixels of a bucket's side, at most."""
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
                share = f"{cut:,} of {several(self.texts, 'text')}"
                found.append(f"{lengths.encoder.name} cuts {share} at its {lengths.encoder.limit} tokens")
            if lengths.stops:
                found.append(f"the trainer would stop at {several(lengths.stops, 'text')} ({lengths.encoder.name})")
        if lost := self.exposure.lost:
            times = f"{lost:,} of {several(self.exposure.texts, 'time')}"
            found.append(f"a tag that is in the text falls off at {self.exposure.encoder}'s limit: {times}")
        for reason, one in self.misread.items():
            share = f"{one.count:,} of {several(self.pictures, 'entry')}"
            found.append(f"the trainer would misread {share}: {reason}")
        found += [f"the trainer cannot be told this part of the recipe: {sentence}" for sentence in self.cannot]
        causes = {cause: one.count for cause, one in self.empty.items() if one.count and cause != "dropped"}
        if causes:
            why = ", ".join(f"{CAUSES[cause]}: {count:,}" for cause, count in causes.items())
            count = sum(causes.values())
            share = f"{count:,} of {several(self.texts, 'text')}"
            found.append(f"{share} {'is' if count == 1 else 'are'} empty ({why})")
        return found

    def as_dict(self, top: int = 10) -> dict[str, Any]:
        """As JSON, with that many tags of each sort."""
        return {
            "trainer": self.trainer,
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
            "cleaned": {rule: one.as_dict() for rule, one in self.cleaned.items()},
            "misread": {reason: one.as_dict() for reason, one in self.misread.items()},
            "cannot": list(self.cannot),
            "leftovers": {name: one.as_dict() for name, one in self.leftovers.items()},
            "fused": self.fused.as_dict(),
            "resolution": list(self.resolution),
            "max_bucket_reso": self.max_bucket_reso,
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
        buckets: how the trainer sorts pictures by size; by default as it does at 1024 by 1024 with its own bounds.

    Raises:
        CutlineError: the recipe reads a layer that the dataset lacks, or has no such output.
    """
    if epochs < 1:
        raise OptionError(f"epochs = {epochs}: at least one")
    recipe.text_of(output)
    check_layers(recipe, dataset)
    counters: list[Counter] = []
    mine: dict[str, int] = {}  # encoder to counter: those that count alike share one
    for encoder in trainer.encoders:
        if encoder.problem:
            continue
        shared = next((n for n, counter in enumerate(counters) if encoder.keeps_as(counter.encoder)), None)
        mine[encoder.name] = len(counters) if shared is None else shared
        if shared is None:
            counters.append(Counter(encoder))
    # The least limit cuts first; what a quoted encoder reads is no text of tags.
    able = [encoder for encoder in trainer.encoders if encoder.name in mine and not encoder.quoted]
    least = min(able, key=lambda encoder: encoder.limit, default=None)
    cutter = mine[least.name] if least else -1

    only = _sample(dataset, sample, seed) if sample else None
    texts, exposure = EqualTexts(epochs), Tags(recipe, epochs)
    policies = Policies(counters[cutter]) if least and {"tags", "caption"} <= set(recipe.parts) else None
    sizes: dict[tuple[int, int] | None, int] = {}
    chosen = buckets or Buckets(max_size=1024)
    empty = {cause: Found() for cause in CAUSES}
    weighted = any(encoder.weighted for encoder in trainer.encoders)
    odd = {name: Found() for name in LEFTOVERS if weighted or name != "brackets read as weights"}
    lengths = [Histogram() for _ in counters]
    told = AsKohya(recipe, output) if trainer.name.startswith("kohya-") else None
    misread: dict[str, Found] = {}
    cleaned: dict[str, Found] = {}
    pictures = 0
    for drawn in ahead(_draws(dataset, recipe, output, epochs, seed, only, counters, policies is not None)):
        for histogram, measured in zip(lengths, drawn.measured, strict=True):
            histogram.add(measured.counts)
        look_for_empty(recipe, drawn, empty)
        look_for_leftovers(drawn, odd)
        texts.add(drawn)
        exposure.add(drawn, drawn.measured[cutter] if least else None)
        if drawn.epoch == 0:
            pictures += len(drawn.batch)
            _sort_by_size(drawn.batch, chosen, sizes)
            _look_for_cleaned(drawn, cleaned)
            if told:
                _look_for_misread(told, drawn, misread)
            if policies:
                policies.add(drawn)
    spreads = [histogram.spread() for histogram in lengths]
    nothing = Spread(NONE, NONE)
    return Survey(
        trainer=trainer.name,
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
        cleaned=cleaned,
        misread=misread,
        cannot=told.cannot if told else (),
        leftovers=odd,
        fused=exposure.fused,
        resolution=chosen.max_reso,
        max_bucket_reso=chosen.max_size,
        buckets=dict(sorted(sizes.items(), key=lambda item: (item[0] is None, item[0] or (0, 0)))),
    )


def placed(dataset: Dataset, buckets: Buckets) -> Iterator[tuple[str, tuple[int, int], tuple[int, int]]]:
    """Of every picture whose size is known its key, its width and height, and those of its bucket; in pixels."""
    for batch in dataset.scan(fields=("width", "height", "orientation")):
        found, known = _known_sides(batch)
        columns = [batch.column("key").filter(known).to_pylist()]
        columns += [side.tolist() for side in (*found, *buckets.choose_all(*found))]
        for key, width, height, across, up in zip(*columns, strict=True):
            yield key, (width, height), (across, up)


def _draws(
    dataset: Dataset,
    recipe: Recipe,
    output: str,
    epochs: int,
    seed: int,
    only: Relation | None,
    counters: list[Counter],
    both: bool,
) -> Iterator[Drawn]:
    """Compose and tokenise; meanwhile what was composed before is counted."""
    said = recipe.text_of(output)
    if both:
        together = Text(order=("tags", "caption"), separator=said.separator, wildcards=said.wildcards)
        recipe = dataclasses.replace(recipe, outputs={**recipe.outputs, _BOTH: together})
    for batch in dataset.scan(*recipe.layers, fields=(*recipe.fields, "orientation"), only=only, rows=_ROWS):
        for epoch in range(epochs):
            made = recipe.make(batch, seed=seed, epoch=epoch)
            draw = made.draw(output)
            texts = draw.texts
            parts = None
            if both and epoch == 0:
                each = made.draw(_BOTH)
                joined = pc.binary_join(each.tags, recipe.tags.separator)
                parts = (pc.if_else(pc.equal(joined, ""), None, joined), each.caption, said.separator)
            measured = [counter.measure(texts) for counter in counters]
            yield Drawn(made, epoch, texts, draw.caption, draw.tags, measured, parts)


def _look_for_cleaned(drawn: Drawn, found: dict[str, Found]) -> None:
    if drawn.made.recipe.tags.clean:
        for rule, dropped in drawn.made.tag_lists.cleaned.items():
            found.setdefault(rule, Found()).add(sum(dropped.values()), iter(dropped))


def _look_for_misread(told: AsKohya, drawn: Drawn, found: dict[str, Found]) -> None:
    reasons = np.array(told.entries(drawn.made)[1], object)
    for reason in set(reasons.tolist()) - {""}:
        found.setdefault(reason, Found()).add(int((reasons == reason).sum()), drawn.keys(reasons == reason))


def _sample(dataset: Dataset, count: int, seed: int) -> Relation:
    """So many pictures, the same for the same seed."""
    drawn = f"select key from pictures where error is null order by md5({quote(f'{seed}:')} || key) limit {count:d}"
    return dataset.sql(drawn)


def _known_sides(batch: pa.RecordBatch) -> tuple[list[Counts], pa.BooleanArray]:
    """The known ones of `sides`, and of which rows they are."""
    found = sides(batch)
    known = pc.and_(*(pc.fill_null(pc.greater(side, 0), False) for side in found))
    return [np.asarray(side.filter(known), np.int64) for side in found], known


def _sort_by_size(batch: pa.RecordBatch, buckets: Buckets, found: dict[tuple[int, int] | None, int]) -> None:
    known, _ = _known_sides(batch)
    if unknown := len(batch) - len(known[0]):
        found[None] = found.get(None, 0) + unknown
    wide, high = buckets.choose_all(*known)
    sizes, counts = np.unique(np.stack([wide, high], axis=1), axis=0, return_counts=True)
    for (across, up), count in zip(sizes.tolist(), counts.tolist(), strict=True):
        found[across, up] = found.get((across, up), 0) + count
