"""What composing does with whole columns of texts: which rows count, the first that is there, joining."""

from __future__ import annotations

import functools

import pyarrow as pa
import pyarrow.compute as pc

from cutline.compose.recipe import RecipeError


def rows_of(batch: pa.RecordBatch, layer: str) -> pa.StructArray | None:
    """A layer's rows; none where nobody wrote it yet. Raises RecipeError where the batch was read without it."""
    if layer not in batch.schema.names:
        raise RecipeError(f"the recipe reads layer {layer}, which these rows do not have: scan(*recipe.layers)")
    column = batch.column(layer)
    return column if pa.types.is_struct(column.type) else None  # a layer that nobody wrote yet is a column of nulls


def counting(rows: pa.StructArray) -> pa.BooleanArray:
    """Which rows hold an answer and no error."""
    return pc.and_(pc.is_valid(rows), pc.is_null(pc.struct_field(rows, "error")))


def first(columns: list[pa.StringArray], length: int) -> pa.StringArray:
    """Of each row the first that is not null."""
    return pc.coalesce(*columns) if columns else pa.nulls(length, pa.string())


def join(columns: list[pa.StringArray], separator: str) -> pa.StringArray:
    """The texts of each row that are not null, joined; null where all are."""
    if len(columns) == 1:
        return columns[0]
    nothing = functools.reduce(pc.and_, map(pc.is_null, columns))
    if not pc.any(nothing).as_py():
        return pc.binary_join_element_wise(*columns, separator, null_handling="skip")
    first = pc.if_else(nothing, "", columns[0])  # pyarrow 26 loses the rows that are null in every column
    whole = pc.binary_join_element_wise(first, *columns[1:], separator, null_handling="skip")
    return pc.if_else(nothing, None, whole)


def none_if_empty(texts: pa.StringArray) -> pa.StringArray:
    """Null in the place of empty texts."""
    empty = pc.equal(texts, "")
    return pc.if_else(empty, None, texts) if pc.any(empty).as_py() else texts
