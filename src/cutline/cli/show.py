"""`cutline show`: one picture, and what training will see of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cutline.cli.common import AsJson, DatasetPath, print_json, say, visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from cutline.preview.picture import Look, View

_CHUNK_STYLES = ("green", "blue")  # in turn
_LOST_STYLE = "strike red"
_TAGS = 10  # of a long list, those that are named
_UNSHOWN = ("key", "content", "request", "mtime_ns", "offset")  # of a layer's row: the store's, and long


def run(
    dataset: DatasetPath,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Of the picture.")],
    recipe: Annotated[
        str, typer.Option(metavar="RECIPE", help="A TOML file, or the name of one in .cutline/recipes.")
    ] = "",
    output: Annotated[str, typer.Option(metavar="NAME", help="Which output of the recipe.", show_default=False)] = "",
    trainer: Annotated[
        str, typer.Option(metavar="TRAINER", help="Show what its text encoders keep: kohya-sdxl, …")
    ] = "",
    options: Annotated[
        list[str] | None,
        typer.Option(
            "-o", "--option", metavar="KEY=VALUE", help="A setting of the trainer, such as max_token_length=225."
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="The text of how many epochs.")] = 3,
    seed: Annotated[int, typer.Option(help="What random choices are drawn from.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show one picture: its layers, its text, the tokens of it that a trainer keeps, and what falls off."""
    from cutline import options as settings
    from cutline.compose.recipe import RecipeError, find_recipe
    from cutline.compose.tokens import find_trainer
    from cutline.dataset import Dataset
    from cutline.options import OptionError
    from cutline.preview.picture import look

    if options and not trainer:
        raise OptionError("-o is a setting of a trainer: give --trainer, too")
    reader = find_trainer(trainer, **settings.parse(options or [])) if trainer else None
    opened, made, unclear = Dataset(dataset), None, ""
    try:
        made = find_recipe(opened, recipe)
    except RecipeError as error:
        if recipe or output or reader:
            raise
        unclear = str(error)
    found = look(opened, key, made, output=output, trainer=reader, epochs=epochs, seed=seed)
    if as_json:
        print_json(found.as_dict() | ({"trainer": trainer} if trainer else {}))
    else:
        _print(found, trainer)
    if unclear:
        say(f"no text is shown: {unclear}")


def _print(found: Look, trainer: str) -> None:
    from rich.console import Console

    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)  # a text may look like either
    console.print(visible(found.key), style="bold")
    for name, row in found.layers.items():
        console.print(visible(name), style="bold")
        for column, value in row.items():
            if column in _UNSHOWN or (column == "raw" and _says_the_same(value, row.get("texts", ()))):
                continue
            console.print(f"  {column}: {_said(value)}")
    if "error" in found.layers["pictures"]:
        console.print("\nThis picture cannot be read: no trainer is given it, and it has no text.")
    for note in found.notes:
        console.print(f"\n{visible(note)}")
    for number, text in enumerate(found.texts):
        console.print(f"\n{text.label}", style="bold")
        if text.text is None:
            console.print("  (nothing: no layer of the recipe says anything)")
        elif not text.text:
            console.print("  (dropped: an empty text)")
        else:
            console.print(f"  {visible(text.text)}")
        if found.views:
            _print_views(console, trainer, text.text or "", found.views[number])


def _print_views(console: Console, trainer: str, text: str, views: list[View]) -> None:
    """What the encoders make of a text; those that keep the same of it together."""
    groups: list[list[View]] = []
    for one in views:
        if groups and one.encoder.keeps_as(groups[-1][0].encoder):
            groups[-1].append(one)
        else:
            groups.append([one])
    for group in groups:
        first = group[0]
        names = f"  {trainer}: {' and '.join(one.encoder.name for one in group)}"
        if first.reading is None:
            console.print(f"{names}: {visible(first.problem)}")
            continue
        reading = first.reading
        rows = reading.limit // first.encoder.chunk if first.encoder.chunk else 1
        chunks = f" in {rows} chunks" if rows > 1 else ""
        room = f"it keeps {reading.limit}{chunks}" if reading.lost else f"of {reading.limit}{chunks}"
        console.print(f"{names}: {reading.count} tokens, {room}")
        if reading.tokens:
            console.print(_painted(text, first))
        if reading.lost:
            console.print(f"    falls off: {visible(reading.lost)}", style="red")
        if first.lost_tags:
            more = f", and {len(first.lost_tags) - 1} after it" if first.lost_tags[1:] else ""
            console.print(f"    first lost tag: {visible(first.lost_tags[0])}{more}")
        if first.split_tags:
            console.print(f"    cut by the border of a chunk: {visible(', '.join(first.split_tags))}")
        if first.weights:
            said = ", ".join(f'"{visible(piece)}" {weight:.4g}' for piece, weight in first.weights)
            console.print(f"    weights: {said}")
        if first.eaten:
            said = ", ".join(f'{piece} is read as "{left}"' for piece, left in first.eaten)
            console.print(f"    brackets eaten: {visible(said)}")
        for one in group:
            if tags := one.unpooled_tags:
                more = f", and {len(tags) - _TAGS:,} more" if len(tags) > _TAGS else ""
                said = visible(", ".join(tags[:_TAGS]))
                console.print(f"    no part in the pooled vector of {one.encoder.name}: {said}{more}")
            if one.encoder.note and not (one.encoder.pooled and one.encoder.chunk):
                console.print(f"    {one.encoder.name} {one.encoder.note}")


def _painted(text: str, view: View) -> Text:
    """The text with its tokens coloured by chunk; a mark says where a chunk begins, and where the text falls off."""
    from rich.text import Text

    painted, end = Text("    "), 0
    assert view.reading
    if view.encoder.quoted:  # it reads the quotations in an order of its own
        painted.append(visible(view.reading.kept), style=_CHUNK_STYLES[0])
        if view.reading.lost:
            painted.append("⟦falls off⟧", style="dim")
            painted.append(visible(view.reading.lost), style=_LOST_STYLE)
        return painted
    for chunk, group in itertools.groupby(view.reading.tokens, lambda token: token.chunk):
        tokens = list(group)
        start = max(tokens[0].start, end)
        painted.append(visible(text[end:start]))
        if chunk != 0:
            painted.append("⟦falls off⟧" if chunk < 0 else f"⟦chunk {chunk + 1}⟧", style="dim")
        end = max(tokens[-1].end, start)
        style = _LOST_STYLE if chunk < 0 else _CHUNK_STYLES[chunk % len(_CHUNK_STYLES)]
        painted.append(visible(text[start:end]), style=style)
    painted.append(visible(text[end:]))
    return painted


def _says_the_same(raw: str, texts: Sequence[str]) -> bool:
    """Whether an original differs in white space alone."""
    return any(raw.split() == text.split() for text in texts)


def _said(value: Any) -> str:
    said = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return visible(said)
