"""What a recipe makes of some rows: their parts and their texts, each only when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cutline.compose import tag_lists, wildcards
from cutline.compose.caption_texts import captions
from cutline.compose.columns import counting, first, join, none_if_empty, rows_of
from cutline.compose.draws import Draws
from cutline.compose.recipe import Recipe, Text
from cutline.compose.tag_lists import TagLists
from cutline.tags import starts


class Made:
    """The parts and texts of some rows. Made with `Recipe.make`."""

    def __init__(self, recipe: Recipe, batch: pa.RecordBatch, seed: int, epoch: int) -> None:
        self.recipe, self.batch = recipe, batch
        self.draws = Draws(batch.column("key"), seed, epoch)
        self._parts: dict[str, pa.StringArray] = {}

    @cached_property
    def caption(self) -> pa.StringArray:
        """The caption of each row; null where there is none, or it is dropped. Wildcards stand in it as written."""
        texts = captions(self.recipe, self.batch, self.draws)
        if rate := self.recipe.captions.dropout:
            texts = pc.if_else(pa.array(self.draws.uniform("caption dropout") < rate), None, texts)
        return texts

    @cached_property
    def tags(self) -> pa.StringArray:
        """The tags of each row in one text; null where there are none."""
        return self.part("tags")

    @cached_property
    def tag_lists(self) -> TagLists:
        """The tags of each row, one by one."""
        return tag_lists.tag_lists(self.recipe, self.batch, self.draws)

    def part(self, name: str) -> pa.StringArray:
        """One of `Recipe.parts`, or a category of tags (`tags.artist`); null where a row has none."""
        if name not in self._parts:
            self._parts[name] = self._part(name)
        return self._parts[name]

    def give(self, name: str, column: pa.StringArray) -> None:
        """Put these texts in the place of a part."""
        self._parts[name] = column

    def _part(self, name: str) -> pa.StringArray:
        if name == "caption":
            return self.caption
        kind, _, category = name.partition(".")
        if kind == "tags":
            categories = [category] if category else []
            if tag_lists.plain(self.recipe):
                return tag_lists.quick(self.recipe, self.batch, *categories)
            return self.tag_lists.joined(self.recipe.tags.separator, *categories)
        return self._words(name)

    @cached_property
    def buckets(self) -> tuple[pa.Int32Array, pa.Int32Array]:
        """Width and height in pixels of each row's bucket (`train_resolution`); null where none is known."""
        layers = self.recipe.latents.first_of
        found = [rows for layer in layers if (rows := rows_of(self.batch, layer)) is not None]
        whole = [[pc.is_valid(pc.struct_field(rows, side)) for side in ("width", "height")] for rows in found]
        kept = [(rows, pc.and_(counting(rows), pc.and_(*sides))) for rows, sides in zip(found, whole, strict=True)]
        nothing = pa.nulls(len(self.batch), pa.int32())
        width, height = (
            pc.coalesce(*(pc.if_else(good, pc.struct_field(rows, side), None) for rows, good in kept), nothing)
            for side in ("width", "height")
        )
        return width, height

    def draw(self, output: str = "") -> Draw:
        """One text for each row. Raises RecipeError where the recipe has no such output."""
        return Draw(self, self.recipe.text_of(output))

    def _words(self, name: str) -> pa.StringArray:
        said, found = self.recipe.words[name], []
        for layer in self.recipe.tags.layers:
            rows = rows_of(self.batch, layer)
            if rows is None:
                continue
            if isinstance(said, str):
                table = self.recipe.tables[name]
                numbers = {field: pc.struct_field(rows, field) for field in (table.by, "rating")}
                words = table.words(numbers)
            else:
                place = pc.index_in(pc.struct_field(rows, "rating"), value_set=pa.array(said, pa.string()))
                words = pa.array(said.values(), pa.string()).take(place)
            found.append(none_if_empty(pc.if_else(counting(rows), words, None)))
        return first(found, len(self.batch))


@dataclass(frozen=True)
class Draw:
    """One text of each row, and what stands in it."""

    made: Made
    text: Text

    @cached_property
    def texts(self) -> pa.StringArray:
        """Null where there is nothing to say; empty where the text is dropped."""
        text, said = self.text, self._said
        if text.prefix or text.suffix:
            there = pc.is_valid(said)
            ends = [self._constant(one, name) for name, one in (("prefix", text.prefix), ("suffix", text.suffix))]
            said = pc.if_else(there, join([ends[0], said, ends[1]], text.separator), None)
        return pc.if_else(self._dropped, pc.if_else(pc.is_valid(said), "", None), said) if text.dropout else said

    @cached_property
    def caption(self) -> pa.StringArray:
        """The caption as it stands in each text; null where it does not."""
        return pc.if_else(self._holds("caption"), self._part("caption"), None)

    @cached_property
    def tags(self) -> pa.ListArray:
        """The tags that stand in each text, as written there and in that order. Empty where there are none."""
        every, rows, codes = self.made.tag_lists, [], []
        for number, order in enumerate(self._orders):
            for part in order:
                kind, _, category = part.partition(".")
                if kind == "tags":
                    mine = every.of(category) if category else np.ones(len(every.rows), bool)
                    where = pc.and_(self._holds(part), pc.equal(self._chosen, number))
                    here = np.flatnonzero(mine & where.to_numpy(zero_copy_only=False)[every.rows])
                    rows.append(every.rows[here])
                    codes.append(every.codes[here])
        row, code = (np.concatenate([np.zeros(0, np.int64), *columns]) for columns in (rows, codes))
        sort = np.argsort(row, kind="stable")
        offsets = starts(row, every.count)
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), every.names.take(pa.array(code[sort])))

    @cached_property
    def _orders(self) -> tuple[tuple[str, ...], ...]:
        return self.text.orders or (self.text.parsed.names,)

    @cached_property
    def _said(self) -> pa.StringArray:
        """The texts without prefix, suffix and dropout."""
        text = self.text
        if text.template:
            return text.parsed.fill(self._parts, len(self.made.batch))
        found = [join([self._part(name) for name in order], text.separator) for order in text.orders]
        return found[0] if len(found) == 1 else pc.choose(self._chosen, *found)

    @cached_property
    def _parts(self) -> dict[str, pa.StringArray]:
        return {name: self._part(name) for name in dict.fromkeys(self.text.parts)}

    def _part(self, name: str) -> pa.StringArray:
        return self._caption if name == "caption" and self.text.wildcards else self.made.part(name)

    @cached_property
    def _caption(self) -> pa.StringArray:
        return self._drawn(self.made.part("caption"), "caption wildcards")

    @cached_property
    def _chosen(self) -> pa.Int64Array:
        """Which of the orders each row's text has: one that has something to say, where there is one."""
        orders = self._orders
        if len(orders) == 1:
            return pa.array(np.zeros(len(self.made.batch), np.int64))
        some = [reduce(pc.or_, [pc.is_valid(self._part(name)) for name in order]) for order in orders]
        can = np.stack([one.to_numpy(zero_copy_only=False) for one in some])
        weights = np.array(self.text.weights or (1.0,) * len(orders))[:, None] * can
        weights = np.where(weights.sum(axis=0) > 0, weights, can)
        up_to = np.cumsum(weights, axis=0)
        chance = self.made.draws.uniform("order") * up_to[-1]
        return pa.array(np.minimum((up_to <= chance).sum(axis=0), len(orders) - 1))

    @cached_property
    def _dropped(self) -> pa.BooleanArray:
        return pa.array(self.made.draws.uniform("text dropout") < self.text.dropout)

    def _holds(self, name: str) -> pa.BooleanArray:
        """Whether a part stands in each text."""
        if self.text.template:
            written = self.text.parsed.written(self._parts, len(self.made.batch))
            there = written.get(name, pa.array(np.zeros(len(self.made.batch), bool)))
        else:
            having = pa.array([name in order for order in self._orders])
            there = pc.and_(having.take(self._chosen), pc.is_valid(self._part(name)))
        return pc.and_not(there, self._dropped) if self.text.dropout else there

    def _constant(self, text: str, name: str) -> pa.StringArray:
        """A prefix or suffix for each row."""
        column = pa.array([text or None], pa.string()).take(pa.array(np.zeros(len(self.made.batch), np.int64)))
        return self._drawn(column, f"{name} wildcards") if self.text.wildcards else column

    def _drawn(self, texts: pa.StringArray, purpose: str) -> pa.StringArray:
        """With wildcards drawn."""
        if not pc.any(pc.match_substring_regex(texts, "[{}]")).as_py():
            return texts
        drawn = [
            wildcards.draw(text, self.made.draws.picker(purpose, row)) if text else text
            for row, text in enumerate(texts.to_pylist())
        ]
        return pa.array([text or None for text in drawn], pa.string())
