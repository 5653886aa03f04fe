"""A recipe: how the layers of a picture become the one text that a trainer is given.

[captions]
first_of = ["captions/human", "captions/blip"]   # the first that has a caption for the picture; or
# all_of = ["captions/pixtral", "captions/blip"] # what all of them say, one after the other
# separator = " "                                # what stands between those
line_breaks = "keep"                             # or "space": then a caption is one line

[tags]
first_of = ["tags/danbooru"]
order = ["character", "copyright", "artist", "general", "meta", "unsorted"]   # these categories, in this order
separator = ", "
underscores = "space"                            # or "keep"

[latents]
first_of = ["latents/kohya"]                     # the first that knows the bucket a trainer put the picture into

[text]
order = ["tags", "caption"]                      # what is missing is left out, with its separator
separator = ", "
"""

from __future__ import annotations

import functools
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cutline import schemas, tags
from cutline.options import CutlineError

_PARTS = ("tags", "caption")
_KEPT = ("keep", "space")


class RecipeError(CutlineError):
    """A recipe that says something which it cannot say."""


@dataclass(frozen=True)
class Recipe:
    """How layers become one text. Made with `from_toml` or `parse`."""

    captions: tuple[str, ...] = ()
    """Layers; the first that has a caption for the picture gives it."""
    tags: tuple[str, ...] = ()
    """Layers; the first that has tags for the picture gives them."""
    tag_order: tuple[str, ...] = schemas.TAG_CATEGORIES
    tag_separator: str = ", "
    underscores: str = "keep"
    order: tuple[str, ...] = _PARTS
    separator: str = ", "
    latents: tuple[str, ...] = ()
    """Layers; the first that has a bucket for the picture gives it. No part of the text."""
    all_captions: bool = False
    """Whether all layers of captions give what they have, and not the first that has one."""
    caption_separator: str = " "
    line_breaks: str = "keep"

    @classmethod
    def from_toml(cls, path: str | Path) -> Recipe:
        """Read a recipe file. Raises RecipeError, naming the file and what is wrong in it."""
        path = Path(path)
        try:
            return cls.parse(tomllib.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise RecipeError(f"cannot read the recipe {path}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path} is not TOML: {error}") from None
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from None

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Recipe:
        """Make a recipe of TOML's tables. Raises RecipeError for anything unknown, naming what is known."""
        _known("the recipe", values, ("captions", "tags", "latents", "text"))
        captions = _table(values, "captions", ("first_of", "all_of", "separator", "line_breaks"))
        tag = _table(values, "tags", ("first_of", "order", "separator", "underscores"))
        text = _table(values, "text", ("order", "separator"))
        present = tuple(part for part, table in zip(_PARTS, ("tags", "captions"), strict=True) if table in values)
        recipe = cls(
            captions=_layers(captions, "captions"),
            all_captions="all_of" in captions,
            caption_separator=_string("[captions] separator", captions.get("separator", " ")),
            line_breaks=_string("[captions] line_breaks", captions.get("line_breaks", "keep")),
            tags=_layers(tag, "tags"),
            tag_order=_choices("[tags] order", tag.get("order", schemas.TAG_CATEGORIES), schemas.TAG_CATEGORIES),
            tag_separator=_string("[tags] separator", tag.get("separator", ", ")),
            underscores=_string("[tags] underscores", tag.get("underscores", "keep")),
            order=_choices("[text] order", text.get("order", present or _PARTS), _PARTS),
            separator=_string("[text] separator", text.get("separator", ", ")),
            latents=_layers(_table(values, "latents", ("first_of",)), "latents"),
        )
        if not present:
            raise RecipeError('it reads no layer. Name one: [captions] first_of = ["captions/…"]')
        for where, value in (
            ("[tags] underscores", recipe.underscores),
            ("[captions] line_breaks", recipe.line_breaks),
        ):
            if value not in _KEPT:
                raise RecipeError(f"{where} is {' or '.join(_KEPT)}, not {value!r}")
        if "separator" in captions and not recipe.all_captions:
            raise RecipeError("[captions] separator stands between those of all_of, and there is none")
        for part in recipe.order:
            if part not in present:
                raise RecipeError(
                    f"[text] order names {part}, and there is no [{'captions' if part == 'caption' else part}]"
                )
        return recipe

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that it reads."""
        return (*self.captions, *self.tags, *self.latents)

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns of those layers that it reads, for `Dataset.scan(*recipe.layers, fields=recipe.fields)`."""
        return ("texts", "verdict", *self.tag_order, "width", "height")

    def settings(self) -> dict[str, dict[str, Any]]:
        """The recipe as the tables that `parse` reads back."""
        tables: dict[str, dict[str, Any]] = {}
        if self.captions:
            tables["captions"] = {"first_of": list(self.captions), "line_breaks": self.line_breaks}
            if self.all_captions:
                tables["captions"] = {
                    "all_of": list(self.captions),
                    "separator": self.caption_separator,
                    "line_breaks": self.line_breaks,
                }
        if self.tags:
            tables["tags"] = {
                "first_of": list(self.tags),
                "order": list(self.tag_order),
                "separator": self.tag_separator,
                "underscores": self.underscores,
            }
        if self.latents:
            tables["latents"] = {"first_of": list(self.latents)}
        tables["text"] = {"order": list(self.order), "separator": self.separator}
        return tables

    def toml(self) -> str:
        """The recipe as the text of a file that `from_toml` reads back."""
        return "\n".join(
            f"[{name}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in table.items())
            for name, table in self.settings().items()
        )

    def parts(self, batch: pa.RecordBatch) -> tuple[pa.StringArray, pa.StringArray]:
        """The caption and the tags of each row, as one text each; null where there are none.

        Args:
            batch: rows as `Dataset.scan(*recipe.layers)` gives them.
        """
        found = [_captions(batch, layer) for layer in self.captions]
        captions = _join(found, self.caption_separator) if self.all_captions else _first(found, len(batch))
        if self.line_breaks == "space" and pc.any(pc.match_substring_regex(captions, r"[\r\n]")).as_py():
            captions = pc.utf8_trim_whitespace(pc.replace_substring_regex(captions, r"\s*[\r\n]\s*", " "))
            captions = _none_if_empty(captions)
        tag_texts = _first([self._tags(batch, layer) for layer in self.tags], len(batch))
        return captions, tag_texts

    def buckets(self, batch: pa.RecordBatch) -> tuple[pa.Int32Array, pa.Int32Array]:
        """Width and height in pixels of each row's bucket (`train_resolution`); null where none is known."""
        found = [rows for layer in self.latents if (rows := _struct(batch, layer)) is not None]
        whole = [[pc.is_valid(pc.struct_field(rows, side)) for side in ("width", "height")] for rows in found]
        kept = [(rows, pc.and_(_counts(rows), pc.and_(*sides))) for rows, sides in zip(found, whole, strict=True)]
        nothing = pa.nulls(len(batch), pa.int32())
        width, height = (
            pc.coalesce(*(pc.if_else(good, pc.struct_field(rows, side), None) for rows, good in kept), nothing)
            for side in ("width", "height")
        )
        return width, height

    def compose(self, batch: pa.RecordBatch, *, seed: int, epoch: int = 0) -> pa.StringArray:
        """The text of each row; null where there is nothing to say.

        Args:
            batch: rows as `Dataset.scan(*recipe.layers)` gives them.
            seed: what random choices are drawn from, with epoch and key. A recipe has none yet: it changes nothing.
            epoch: as seed.
        """
        return self.joined(*self.parts(batch))

    def joined(self, caption: pa.StringArray, tag_texts: pa.StringArray) -> pa.StringArray:
        """The text of each row out of its `parts`."""
        ordered = [{"caption": caption, "tags": tag_texts}[part] for part in self.order]
        return _join(ordered, self.separator)

    def _tags(self, batch: pa.RecordBatch, layer: str) -> pa.StringArray:
        rows = _struct(batch, layer)
        if rows is None:
            return pa.nulls(len(batch), pa.string())
        spaces = self.underscores == "space"
        categories = [
            tags.joined(pc.struct_field(rows, name), self.tag_separator, spaces=spaces) for name in self.tag_order
        ]
        text = _join(categories, self.tag_separator)
        errors = pc.struct_field(rows, "error")
        return text if errors.null_count == len(errors) else pc.if_else(pc.is_null(errors), text, None)


def default_recipe(layer_names: Iterable[str]) -> Recipe:
    """The recipe that needs no choosing: what people wrote first, then the only other layer, of captions and of tags.

    Raises:
        RecipeError: there are no words, or more than one layer to choose from: with a recipe ready to paste.
    """
    captions, unclear = _only(layer_names, "captions")
    tag_layers, unclear_tags = _only(layer_names, "tags")
    latents, unclear_latents = _only(layer_names, "latents")
    recipe = Recipe(
        captions,
        tag_layers,
        order=tuple(part for part, layers in zip(_PARTS, (tag_layers, captions), strict=True) if layers),
        latents=latents,
    )
    if not captions and not tag_layers:
        raise RecipeError("there are no captions and no tags. Add some (cutline add), or make some (cutline annotate)")
    several = {"captions": unclear, "tags": unclear_tags, "latents": unclear_latents}
    if any(several.values()):
        choice = " and ".join(kind for kind, more in several.items() if more)
        raise RecipeError(
            f"more than one layer has {choice}, and only you know which comes first. "
            f"Save this as recipe.toml, put its layers in your order, and add --recipe recipe.toml:\n\n{recipe.toml()}"
        )
    return recipe


def _only(layer_names: Iterable[str], kind: str) -> tuple[tuple[str, ...], bool]:
    """All layers of a kind, people's first, and whether their order is anyone's guess."""
    human = f"{kind}/human"
    layers = sorted(name for name in layer_names if name.startswith(f"{kind}/"))
    others = [name for name in layers if name != human]
    return (*(name for name in layers if name == human), *others), len(others) > 1


# Reading a batch. Every function below works on whole columns.


def _captions(batch: pa.RecordBatch, layer: str) -> pa.StringArray:
    """The first text of each row that counts."""
    rows = _struct(batch, layer)
    if rows is None:
        return pa.nulls(len(batch), pa.string())
    texts = pc.struct_field(rows, "texts")
    kept = pc.fill_null(pc.not_equal(pc.struct_field(rows, "verdict"), "rejected"), True)
    some = pc.fill_null(pc.greater(pc.list_value_length(texts), 0), False)
    said = pc.and_(pc.and_(_counts(rows), kept), some)
    one_each = pc.max(pc.list_value_length(texts)).as_py() == 1 and not texts.values.null_count and said.equals(some)
    if one_each:
        return _none_if_empty(_only_ones(texts, said))
    return _none_if_empty(texts.values.take(pc.if_else(said, texts.offsets[:-1], None)))


def _only_ones(texts: pa.ListArray, said: pa.BooleanArray) -> pa.StringArray:
    """Lists of one text, or none, as texts, over the same bytes."""
    values = texts.values
    places = np.frombuffer(values.buffers()[1], np.int32)[values.offset : values.offset + len(values) + 1]
    offsets = places[texts.offsets.to_numpy()]
    valid = pa.array(said.to_numpy(zero_copy_only=False)).buffers()[1]
    return pa.StringArray.from_buffers(len(texts), pa.py_buffer(offsets), values.buffers()[2], valid)


def _struct(batch: pa.RecordBatch, layer: str) -> pa.StructArray | None:
    if layer not in batch.schema.names:
        raise RecipeError(f"the recipe reads layer {layer}, which these rows do not have: scan(*recipe.layers)")
    column = batch.column(layer)
    return column if pa.types.is_struct(column.type) else None  # a layer that nobody wrote yet is a column of nulls


def _counts(rows: pa.StructArray) -> pa.BooleanArray:
    """Which rows hold an answer and no error."""
    return pc.and_(pc.is_valid(rows), pc.is_null(pc.struct_field(rows, "error")))


def _first(columns: list[pa.StringArray], length: int) -> pa.StringArray:
    return pc.coalesce(*columns) if columns else pa.nulls(length, pa.string())


def _join(columns: list[pa.StringArray], separator: str) -> pa.StringArray:
    """The texts of each row that are not null, joined; null where all are."""
    if len(columns) == 1:
        return columns[0]
    nothing = functools.reduce(pc.and_, map(pc.is_null, columns))
    if not pc.any(nothing).as_py():
        return pc.binary_join_element_wise(*columns, separator, null_handling="skip")
    first = pc.if_else(nothing, "", columns[0])  # pyarrow 26 loses the rows that are null in every column
    whole = pc.binary_join_element_wise(first, *columns[1:], separator, null_handling="skip")
    return pc.if_else(nothing, None, whole)


def _none_if_empty(texts: pa.StringArray) -> pa.StringArray:
    empty = pc.equal(texts, "")
    return pc.if_else(empty, None, texts) if pc.any(empty).as_py() else texts


# Reading a TOML file.


def _known(where: str, values: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in values:
        if key not in known:
            raise RecipeError(f"{where} has no '{key}'; it has: {', '.join(known)}")


def _table(values: Mapping[str, Any], name: str, known: tuple[str, ...]) -> Mapping[str, Any]:
    table = values.get(name, {})
    if not isinstance(table, Mapping):
        raise RecipeError(f"{name} is a table: [{name}]")
    _known(f"[{name}]", table, known)
    if name in values and "first_of" in known and not table.get("first_of") and not table.get("all_of"):
        raise RecipeError(f'[{name}] needs first_of = ["{name}/…"]')
    if "first_of" in table and "all_of" in table:
        raise RecipeError(f"[{name}] has first_of and all_of; it can do one of the two")
    return table


def _layers(table: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    which = "all_of" if "all_of" in table else "first_of"
    layers = _strings(f"[{kind}] {which}", table.get(which, []))
    for layer in layers:
        if not layer.startswith(f"{kind}/"):
            raise RecipeError(f"[{kind}] {which} names '{layer}'; a layer that it can read starts with {kind}/")
    return layers


def _choices(where: str, value: object, known: tuple[str, ...]) -> tuple[str, ...]:
    chosen = _strings(where, value)
    for choice in chosen:
        if choice not in known:
            raise RecipeError(f"{where} names '{choice}'; there are: {', '.join(known)}")
    if not chosen:
        raise RecipeError(f"{where} is empty; there are: {', '.join(known)}")
    return chosen


def _strings(where: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise RecipeError(f"{where} is a list of strings, not {value!r}")
    if len(set(value)) < len(value):
        raise RecipeError(f"{where} names something twice: {', '.join(value)}")
    return tuple(value)


def _string(where: str, value: object) -> str:
    if not isinstance(value, str):
        raise RecipeError(f"{where} is a string, not {value!r}")
    return value


def _toml(value: str | list[str]) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # else JSON's escapes are TOML's
