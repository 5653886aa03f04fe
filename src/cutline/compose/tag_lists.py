"""The tags of each picture, in the order and the writing that a recipe's `[tags]` says.

They lie in one long table, a line for each tag of each picture: rules, shuffling and dropout work on whole columns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cutline import schemas, tags
from cutline.compose.columns import counting, first, join, rows_of
from cutline.compose.draws import Draws
from cutline.compose.recipe import Recipe
from cutline.tags import Numbers, TagRows

_CATEGORIES = {name: place for place, name in enumerate(schemas.TAG_CATEGORIES)}
_ROW_BITS = 20
"""Of a 64-bit number that sorts tags by picture and then at random: the quick way, where there are not too many."""


@dataclass(frozen=True)
class TagLists:
    """The tags of some pictures, those of one picture after those of the one before, as they are written."""

    count: int
    """Pictures."""
    names: pa.StringArray
    """Every tag that occurs, as it is written."""
    rows: Numbers
    """Of each tag of each picture: which picture, rising,"""
    columns: Numbers
    """which category (a place in `schemas.TAG_CATEGORIES`),"""
    codes: Numbers
    """and which of `names`."""
    cleaned: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By cleaning rule, which tags it dropped from how many pictures; under their canonical names."""

    def lists(self, *categories: str) -> pa.ListArray:
        """The tags of each picture as a list: all, or those of these categories. Empty where there are none."""
        mine = self.only(np.flatnonzero(self.of(*categories))) if categories else self
        offsets = tags.starts(mine.rows, self.count)
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), self.names.take(pa.array(mine.codes)))

    def joined(self, separator: str, *categories: str) -> pa.StringArray:
        """The tags of each picture in one text; null where it has none."""
        lists = self.lists(*categories)
        text = pc.binary_join(lists, separator)
        return pc.if_else(pc.equal(pc.list_value_length(lists), 0), None, text)

    def only(self, places: npt.NDArray[np.int64]) -> TagLists:
        """Some of the tags, by their places in the table."""
        return replace(self, rows=self.rows[places], columns=self.columns[places], codes=self.codes[places])

    @property
    def numbers(self) -> Numbers:
        """The place of each tag among those of its picture, from 0."""
        found: Numbers = np.arange(len(self.rows)) - tags.starts(self.rows, self.count)[self.rows]
        return found

    def of(self, *categories: str) -> npt.NDArray[np.bool_]:
        """Which tags are of these categories."""
        return np.isin(self.columns, [_CATEGORIES[name] for name in categories])


def plain(recipe: Recipe) -> bool:
    """Whether the tags are those of a layer as they stand, so that `quick` can write them."""
    said = recipe.tags
    return not (said.all_of or said.escape or said.shuffle or said.dropout or _ruled(recipe))


def quick(recipe: Recipe, batch: pa.RecordBatch, *categories: str) -> pa.StringArray:
    """`joined` of a `plain` recipe's tags, without the table. Of several layers the first with any tag counts."""
    said, found = recipe.tags, []
    free = None
    for layer in said.first_of:
        rows = rows_of(batch, layer)
        if rows is None:
            continue
        spaces = said.underscores == "space"
        several = len(said.first_of) > 1  # then a layer counts where it has any tag, not only such
        texts = {
            name: tags.joined(pc.struct_field(rows, name), said.separator, spaces=spaces)
            for name in (said.order if several or not categories else categories)
        }
        text = join([texts[name] for name in categories or said.order], said.separator)
        good = counting(rows)
        text = pc.if_else(good, text, None) if pc.any(pc.invert(good)).as_py() else text
        if categories and several:
            some = pc.and_(reduce(pc.or_, map(pc.is_valid, texts.values())), good)
            text = text if free is None else pc.if_else(free, text, None)
            free = pc.invert(some) if free is None else pc.and_not(free, some)
        found.append(text)
    return first(found, len(batch))


def tag_lists(recipe: Recipe, batch: pa.RecordBatch, draws: Draws) -> TagLists:
    """The tags of each row: gathered, put right by the recipe's rules, ordered, drawn, written."""
    said = recipe.tags
    found = _gathered(recipe, batch)
    if said.all_of or _ruled(recipe):
        found = _put_right(recipe, found)
    found = _ordered(recipe, found)
    if said.dropout or said.shuffle:
        found = _drawn(recipe, found, draws)
    return replace(found, names=_written(recipe, found.names))


def _gathered(recipe: Recipe, batch: pa.RecordBatch) -> TagLists:
    """The tags as they were typed, layer by layer and category by category."""
    said = recipe.tags
    wanted = (*said.order, *(["unsorted"] if said.vocabulary and "unsorted" not in said.order else []))
    taken = np.zeros(len(batch), bool)
    values, rows, columns = list[pa.Array](), list[Numbers](), list[Numbers]()
    for layer in said.layers:
        found = rows_of(batch, layer)
        if found is None:
            continue
        free = counting(found).to_numpy(zero_copy_only=False) & (True if said.all_of else ~taken)
        for name in wanted:
            lists = pc.struct_field(found, name)
            here = tags.parents(lists)
            flat = lists.flatten()
            flat = flat if pa.types.is_dictionary(flat.type) else flat.dictionary_encode()
            empty = pc.index(flat.dictionary, "").as_py()
            there = free[here] & pc.is_valid(flat).to_numpy(zero_copy_only=False)
            if empty >= 0:
                there &= pc.fill_null(pc.not_equal(flat.indices, empty), False).to_numpy(zero_copy_only=False)
            if not there.all():
                flat, here = flat.filter(pa.array(there)), here[there]
            values.append(flat)
            rows.append(here)
            columns.append(np.full(len(here), _CATEGORIES[name]))
            taken[here] = True
    if not values:
        nothing = np.zeros(0, np.int64)
        return TagLists(len(batch), pa.array([], pa.string()), nothing, nothing, nothing)
    whole = pa.chunked_array(values).unify_dictionaries()
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in whole.chunks]).astype(np.int64)
    names = whole.chunk(0).dictionary.cast(pa.string())
    return TagLists(len(batch), names, np.concatenate(rows), np.concatenate(columns), codes)


def _ruled(recipe: Recipe) -> bool:
    said = recipe.tags
    return bool(
        said.distinct
        or said.aliases
        or said.implications
        or said.vocabulary
        or said.replace
        or said.blacklist
        or said.clean
    )


def _put_right(recipe: Recipe, found: TagLists) -> TagLists:
    """The tags after the recipe's rules, each once. Those that no rule touched are as they were typed."""
    found = _ordered(recipe, found, all_of=True)
    cleaned: dict[str, Mapping[str, int]] = {}
    rows = TagRows.typed(found.count, found.names, found.rows, found.columns, found.codes)
    if recipe.aliases is not None:
        rows = recipe.aliases.apply(rows)
    if recipe.vocabulary is not None:
        rows = recipe.vocabulary.sort(rows)
    if recipe.implications is not None:
        implied = recipe.implications
        rows = implied.drop(rows) if recipe.tags.implied == "drop" else implied.close(rows, recipe.vocabulary)
    if recipe.tag_cleaning is not None:
        names = rows.names.to_pylist()
        rules = recipe.tag_cleaning.drops(names, rows.rows, rows.codes)
        for place in np.unique(rules[rules >= 0]).tolist():
            codes, counts = np.unique(rows.codes[rules == place], return_counts=True)
            by_tag = {names[code]: count for code, count in zip(codes.tolist(), counts.tolist(), strict=True)}
            cleaned[recipe.tag_cleaning.rules[place]] = by_tag
        rows = rows.only(np.flatnonzero(rules < 0))
    if recipe.tags.blacklist:
        rows = rows.only(np.flatnonzero(~_listed(rows.names, recipe.tags.blacklist)[rows.codes]))
    if recipe.tags.replace:
        known = tags.canonical(pa.array(recipe.tags.replace, pa.string()))
        by = pa.array(recipe.tags.replace.values(), pa.string())
        rows = rows.renamed(pc.coalesce(by.take(pc.index_in(rows.names, value_set=known)), rows.names))
        rows = rows.only(np.flatnonzero(rows.codes != pc.index(rows.names, "").as_py()))
        alike = tags.canonical(rows.names).dictionary_encode().indices.to_numpy()[rows.codes].astype(np.int64)
        rows = rows.only(np.sort(np.unique(rows.rows * (len(rows.names) + 1) + alike, return_index=True)[1]))
    typed = found.codes[rows.origins]
    codes = np.where(rows.origins < 0, len(found.names) + rows.codes, typed)
    return TagLists(found.count, pa.concat_arrays([found.names, rows.names]), rows.rows, rows.columns, codes, cleaned)


def _listed(names: pa.StringArray, patterns: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    """Which names are on a list, in which `*` stands for anything."""
    canonical = tags.canonical(pa.array(patterns)).to_pylist()
    rule = "|".join(".*".join(map(re.escape, pattern.split("*"))) for pattern in canonical)
    listed: npt.NDArray[np.bool_] = pc.match_substring_regex(names, f"^(?:{rule})$").to_numpy(zero_copy_only=False)
    return listed


def _ordered(recipe: Recipe, found: TagLists, *, all_of: bool = False) -> TagLists:
    """By picture, then by category in the recipe's order; those of no wanted category go, unless `all_of`."""
    order = recipe.tags.order
    places = np.full(len(_CATEGORIES), len(order) if all_of else -1)
    places[[_CATEGORIES[name] for name in order]] = np.arange(len(order))
    mine = places[found.columns]
    if mine.min(initial=0) < 0:
        found = found.only(np.flatnonzero(mine >= 0))
        mine = places[found.columns]
    keys = found.rows * (len(order) + 1) + mine
    return found if np.all(keys[1:] >= keys[:-1]) else found.only(np.argsort(keys, kind="stable"))


def kept(recipe: Recipe, found: TagLists) -> npt.NDArray[np.bool_]:
    """Which tags, of those before shuffling and dropout, stay where they are."""
    keep = recipe.tags.keep
    return found.numbers < keep if isinstance(keep, int) else found.of(*keep)


def _drawn(recipe: Recipe, found: TagLists, draws: Draws) -> TagLists:
    """With some tags dropped, and the rest mixed; those that are kept stay where they are among the rest."""
    said = recipe.tags
    numbers, stays = found.numbers, kept(recipe, found)
    if said.dropout:
        left = stays | (draws.uniform("tag dropout", found.rows, numbers) >= said.dropout)
        found, stays, numbers = found.only(np.flatnonzero(left)), stays[left], numbers[left]
    if said.shuffle:
        free = np.flatnonzero(~stays)
        rows = found.rows[free]
        spare = np.uint64(64 - _ROW_BITS)
        chances = draws.integers("tag shuffle", rows, numbers[free]) >> np.uint64(_ROW_BITS)
        if found.count < 1 << _ROW_BITS:
            mixed = np.argsort((rows.astype(np.uint64) << spare) | chances)
        else:
            mixed = np.lexsort((chances, rows))
        order = np.arange(len(found.rows))
        order[free] = free[mixed]
        found = found.only(order)
    return found


def _written(recipe: Recipe, names: pa.StringArray) -> pa.StringArray:
    if recipe.tags.underscores == "space":
        names = tags.spaced(names)
    return pc.replace_substring_regex(names, r"([()])", r"\\\1") if recipe.tags.escape else names
