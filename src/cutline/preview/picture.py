"""One picture as training will see it: its layers, its texts, and what each text encoder keeps of them.

`look` gathers it all. Which texts a trainer is given is said in one place, `spoken`; what becomes of a text in an
encoder in another, `view`.
"""

from __future__ import annotations

import dataclasses
import random
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from cutline.compose.as_kohya import AsKohya
from cutline.compose.clip import ftfy_changes
from cutline.compose.kohya import NEVER_CACHED, Subset, TrainerError
from cutline.compose.recipe import Recipe, check_layers
from cutline.compose.tokens import Encoder, Reading, Trainer
from cutline.compose.weights import weighted_pieces
from cutline.dataset import Dataset
from cutline.layer import identifier, quote
from cutline.options import CutlineError
from cutline.preview import places

Row = dict[str, Any]

_YET_CACHED = ("kohya-anima", "caption_dropout_rate")
"""Of `NEVER_CACHED`, what this trainer caches, since it drops embeddings."""


@dataclass(frozen=True)
class Text:
    """A text that a trainer's encoders are given, and when."""

    epochs: tuple[int, ...]
    """The epochs whose text it is, from 0."""
    cached: bool
    """Whether it is what the trainer's cache of text encoder outputs would hold, for all epochs."""
    text: str | None
    """Empty where it was dropped, null where there is nothing to say."""
    tags: tuple[str, ...] = ()
    """The tags in it, as written there and in that order."""
    caption: str = ""
    """The caption as it stands in it; empty where there is none."""
    misread: bool = False
    """Whether it is what the trainer makes of a picture whose entry it misreads."""

    @property
    def label(self) -> str:
        """When it is given, for people: `epochs 0 to 2, and what a text encoder cache holds`."""
        said = [_listed(self.epochs)] if self.epochs else []
        said += ["what the trainer reads instead"] if self.misread else []
        said += ["what a text encoder cache holds"] if self.cached else []
        return ", and ".join(said)


@dataclass(frozen=True)
class View:
    """What one encoder makes of one text."""

    encoder: Encoder
    reading: Reading | None
    """None where there is a problem."""
    problem: str = ""
    """Its tokenizer is not at hand, or the trainer stops at this text."""
    lost_tags: tuple[str, ...] = ()
    """Tags that are not kept whole, the first lost one first."""
    split_tags: tuple[str, ...] = ()
    """Tags that a border between two chunks cuts."""
    unpooled_tags: tuple[str, ...] = ()
    """Kept tags outside the first chunk, where that alone makes the pooled vector."""
    weights: tuple[tuple[str, float], ...] = ()
    """Pieces of the text that weigh other than 1."""
    eaten: tuple[tuple[str, str], ...] = ()
    """What stands between two commas and loses brackets to its weights, and what is read of it."""

    def as_dict(self) -> Row:
        """As plain JSON values."""
        encoder, reading = self.encoder, self.reading
        found: Row = {"name": encoder.name, "limit": encoder.limit, "chunk": encoder.chunk, "note": encoder.note}
        if reading is None:
            return found | {"problem": self.problem}
        return found | {
            "count": reading.count,
            "kept": reading.kept,
            "lost": reading.lost,
            "lost_tags": list(self.lost_tags),
            "split_tags": list(self.split_tags),
            "unpooled_tags": list(self.unpooled_tags),
            "weights": [list(piece) for piece in self.weights],
            "eaten": [list(pair) for pair in self.eaten],
            "tokens": [dataclasses.asdict(token) for token in reading.tokens],
            "rows": reading.rows,
        }


@dataclass(frozen=True)
class Look:
    """All that is known of one picture and will be read of it."""

    key: str
    layers: dict[str, Row]
    """What each layer says of it: the columns that are not null."""
    texts: list[Text]
    """Each distinct text once. None without a recipe, and where the picture cannot be read: nobody is given it then."""
    views: list[list[View]]
    """For each text, what each encoder makes of it; empty without a trainer."""
    notes: tuple[str, ...] = ()
    """What the trainer cannot be told, or misreads, each as a sentence for people."""

    def as_dict(self) -> Row:
        """As plain JSON values."""
        texts: list[Row] = [
            {"epochs": list(text.epochs), "cached": text.cached, "misread": text.misread, "text": text.text}
            for text in self.texts
        ]
        for text, views in zip(texts, self.views, strict=bool(self.views)):
            text["encoders"] = [view.as_dict() for view in views]
        return {"key": self.key, "layers": self.layers, "texts": texts, "notes": list(self.notes)}


def look(
    dataset: Dataset,
    key: str,
    recipe: Recipe | None,
    *,
    output: str = "",
    trainer: Trainer | None = None,
    epochs: int = 3,
    seed: int = 0,
) -> Look:
    """Everything about one picture.

    Args:
        dataset: where it is.
        key: its key.
        recipe: what makes its text; None for none.
        output: which output of the recipe; by default its text.
        trainer: whose encoders read the text; None for none.
        epochs: how many, from epoch 0 on.
        seed: of the recipe's draws.

    Raises:
        CutlineError: no picture has that key (it names near ones), or the recipe reads a layer that is not there.
    """
    layers = rows_of(dataset, key)
    if not recipe or "error" in layers["pictures"]:
        return Look(layers["pictures"]["key"], layers, [], [])
    batch = _row(dataset, layers["pictures"]["key"], recipe)
    drawn = [_draw(recipe, batch, output=output, seed=seed, epoch=epoch) for epoch in range(epochs)]
    texts = spoken(drawn)
    notes: list[str] = []
    if trainer and trainer.name.startswith("kohya-"):
        others, notes = of_kohya(recipe, batch, output=output, epochs=epochs, seed=seed, trainer=trainer.name)
        texts = spoken([*drawn, *others])
        clips = [encoder.name for encoder in trainer.encoders if encoder.pad is not None]
        if clips and any(ftfy_changes(text.text or "") for text in texts):
            notes.append(
                f"{' and '.join(clips)} may count fewer tokens in sd-scripts' own environment, where ftfy makes this "
                "text's curly quotes straight and its wide letters plain"
            )
    views: list[list[View]] = []
    if trainer:
        between = recipe.tags.separator
        views = [
            [view(encoder, text.text or "", text.tags, text.caption, between) for encoder in trainer.encoders]
            for text in texts
        ]
    return Look(layers["pictures"]["key"], layers, texts, views, tuple(notes))


def rows_of(dataset: Dataset, key: str) -> dict[str, Row]:
    """What each layer says of a picture, `pictures` first. Raises CutlineError where there is none of that key."""
    wanted = quote(unicodedata.normalize("NFC", key))
    found: dict[str, Row] = {}
    for name in sorted({"pictures", *dataset.layers()}, key=lambda name: (name != "pictures", name)):
        rows = dataset.sql(f"from {identifier(name)} where key = {wanted}").batches()
        row: Row | None = next((row for batch in rows for row in batch.to_pylist()), None)
        if row is not None:
            row.pop("text", None)  # a view of captions has it beside texts
            found[name] = {column: value for column, value in row.items() if value is not None and value != []}
        elif name == "pictures":
            raise CutlineError(_no_such_key(dataset, key))
    return found


def _no_such_key(dataset: Dataset, key: str) -> str:
    near = dataset.sql(
        f"""select key from pictures where jaro_winkler_similarity(key, {quote(key)}) > 0.8
        order by jaro_winkler_similarity(key, {quote(key)}) desc, key limit 3"""
    ).fetchall()
    meant = f"Near it: {', '.join(name for (name,) in near)}. " if near else ""
    keys = f"cutline sql {dataset.root} 'select key from pictures'"
    return f"no picture of {dataset.root} has the key {key!r}. {meant}All keys: {keys}"


def _row(dataset: Dataset, key: str, recipe: Recipe) -> pa.RecordBatch:
    """The one row of a picture, as recipes read it."""
    check_layers(recipe, dataset)
    return next(iter(dataset.scan(*recipe.layers, where=f"pictures.key = {quote(key)}", fields=recipe.fields)))


def _draw(recipe: Recipe, batch: pa.RecordBatch, *, output: str, seed: int, epoch: int) -> Text:
    draw = recipe.make(batch, seed=seed, epoch=epoch).draw(output)
    return Text((epoch,), False, draw.texts[0].as_py(), tuple(draw.tags[0].as_py()), draw.caption[0].as_py() or "")


def of_kohya(
    recipe: Recipe, batch: pa.RecordBatch, *, output: str, epochs: int, seed: int, trainer: str
) -> tuple[list[Text], list[str]]:
    """What sd-scripts makes of a picture that was exported by a recipe, where that is not what the recipe says.

    Returns:
        What its cache of text encoder outputs would hold, where it does not refuse one, and what it reads of an entry
        that it misreads; and what people should know.
    """
    said = AsKohya(recipe, output)
    made = recipe.make(batch, seed=seed)
    entries, reasons = said.entries(made)
    notes = [f"the trainer cannot be told all of this recipe: {sentence}" for sentence in said.cannot]
    if said.cannot:
        notes.append("so it is given the text of epoch 0 in every epoch, unless the export bakes in some more")
    subset = Subset(**said.options)
    loaded = subset.load(caption=entries[0].as_py())
    draw = made.draw(output)
    tags, caption = tuple(draw.tags[0].as_py()), draw.caption[0].as_py() or ""
    texts: list[Text] = []
    if reasons[0]:
        notes.append(f"the trainer misreads this picture: {reasons[0]}")
        rng = random.Random(seed)
        drawn = [subset.draw(loaded, rng, epoch=epoch + 1) for epoch in range(epochs)]
        texts += [Text((), False, text, tags, caption, misread=True) for text in drawn]
    if refused := [name for name in said.options if name in NEVER_CACHED and (trainer, name) != _YET_CACHED]:
        notes.append(f"the trainer caches no text encoder outputs: this recipe needs {', '.join(refused)}")
    else:
        texts.append(Text((), True, subset.cached(loaded), tags, caption))
    return texts, notes


def spoken(texts: Iterable[Text]) -> list[Text]:
    """The texts that a trainer's encoders are given, each distinct one once, in the order in which they come."""
    found: dict[str, Text] = {}
    for one in texts:
        same = found.setdefault(one.text or "", one)
        found[one.text or ""] = replace(
            same,
            epochs=tuple(dict.fromkeys((*same.epochs, *one.epochs))),
            cached=same.cached or one.cached,
            misread=same.misread or one.misread,
        )
    return list(found.values())


def view(encoder: Encoder, text: str, tags: Sequence[str] = (), caption: str = "", separator: str = ", ") -> View:
    """What an encoder makes of a text.

    Args:
        encoder: one of a trainer.
        text: what it is given.
        tags: those in the text, as written there and in that order.
        caption: as it stands in the text; empty for none.
        separator: what stands between two tags.
    """
    if encoder.problem:
        return View(encoder, None, encoder.problem)
    try:
        reading = encoder.read(text)
    except TrainerError as error:
        return View(encoder, None, f"the trainer stops at this text: {error}")
    lost, split, unpooled = [], [], []
    for tag, start, end in _places(text, tags, caption, separator):
        chunks = {token.chunk for token in reading.tokens if token.start < end and token.end > start}
        if -1 in chunks:
            lost.append(tag)
        elif len(chunks) > 1:
            split.append(tag)
        if encoder.pooled and encoder.chunk and min(chunks, default=0) > 0:
            unpooled.append(tag)
    pieces = weighted_pieces(text) if encoder.weighted else []
    return View(
        encoder,
        reading,
        lost_tags=tuple(lost),
        split_tags=tuple(split),
        unpooled_tags=tuple(unpooled),
        weights=tuple((piece, weight) for piece, weight, _ in pieces if weight != 1),
        eaten=_eaten(text, {place for _, _, mine in pieces for place in mine}) if encoder.weighted else (),
    )


def _listed(epochs: tuple[int, ...]) -> str:
    first, last, many = epochs[0], epochs[-1], len(epochs)
    if many > 2 and last - first == many - 1:
        return f"epochs {first} to {last}"
    return f"epoch{'s' * (many > 1)} {', '.join(map(str, epochs))}"


def _places(text: str, tags: Sequence[str], caption: str, separator: str) -> Iterator[tuple[str, int, int]]:
    """Where each tag starts and ends, in their order. One that does not stand there as it is is left out."""
    columns = pa.array([text]), pa.array([caption or None], pa.string())
    starts, ends = places.locate(*columns, pa.array([tags], pa.list_(pa.string())), separator)
    data = text.encode()
    for tag, start, end in zip(tags, starts.tolist(), ends.tolist(), strict=True):
        if start >= 0:
            yield tag, len(data[:start].decode()), len(data[:end].decode())


def _pieces(text: str) -> list[tuple[str, int, int]]:
    """What stands between commas and line breaks, and where each starts and ends."""
    return [(found[0], *found.span()) for found in re.finditer(r"[^,\s](?:[^,\n\r]*[^,\s])?", text)]


def _eaten(text: str, read: set[int]) -> tuple[tuple[str, str], ...]:
    """The pieces that lose a bracket, each once, and what is left of them; `read` is the places that are not eaten."""
    found = {
        piece: "".join(text[place] for place in range(start, end) if place in read)
        for piece, start, end in _pieces(text)
        if any(text[place] in "()[]" and place not in read for place in range(start, end))
    }
    return tuple(found.items())
