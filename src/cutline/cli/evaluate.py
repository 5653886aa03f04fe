"""`cutline evaluate`: how near captions come to those that are taken for true."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cutline.cli.common import AsJson, DatasetPath, print_json, say

if TYPE_CHECKING:
    from cutline.evaluation.layers import Evaluation


def run(
    dataset: DatasetPath,
    layer: Annotated[str, typer.Argument(metavar="LAYER", help="Of captions, such as captions/blip.")],
    against: Annotated[
        str, typer.Option(metavar="LAYER", help="The captions that are taken for true; all texts of a row count.")
    ],
    baseline: Annotated[
        str, typer.Option(metavar="LAYER", help="Tell by how much LAYER is better than this one.")
    ] = "",
    where: Annotated[str, typer.Option(metavar="SQL", help="Only pictures that meet this condition.")] = "",
    held_out: Annotated[
        str, typer.Option(metavar="RUN", help="Only pictures that this training did not learn from.")
    ] = "",
    embedder: Annotated[
        str, typer.Option(metavar="NAME", help="A sentence-transformers model or folder; by default by spelling.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write the scores of each picture, and sheets.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure captions against others: BLEU-4, ROUGE-L, CIDEr-D, exact match and meaning, with 95 % intervals."""
    from cutline.dataset import Dataset
    from cutline.evaluation.layers import check_layers, evaluate, write_files
    from cutline.evaluation.layers import held_out as keys_held_out
    from cutline.options import OptionError

    if out and out.exists() and not out.is_dir():
        raise OptionError(f"--out {out} is a file; give a folder")
    opened = Dataset(dataset)
    opened.key_rule  # noqa: B018  where there is no dataset it says so
    check_layers(opened, layer, against, baseline)
    keys = keys_held_out(opened, held_out) if held_out else None
    found = evaluate(opened, layer, against, baseline=baseline, where=where, keys=keys, embedder=embedder)
    if as_json:
        print_json(found.as_dict())
    else:
        _print(found)
    if out:
        for path in write_files(found, out):
            say(f"written: {path}")


def _print(found: Evaluation) -> None:
    left_out = f"; {found.without_reference:,} without a reference left out" if found.without_reference else ""
    print(f"{found.captions.layer} against {found.against}: {len(found.references):,} pictures{left_out}")
    sets = [found.captions, *([found.baseline] if found.baseline else [])]
    for captions in sets:
        if captions.missing:
            print(f"{captions.missing:,} have no caption in {captions.layer}: counted as empty ones")
    print()
    rows = [["", *(captions.layer for captions in sets), *(["difference"] if found.baseline else [])]]
    for name in found.captions.measured.scores:
        cells = [_cell(captions.measured.scores[name], *captions.intervals[name]) for captions in sets]
        cells += [_cell(*found.differences[name], sign="+")] if found.baseline else []
        rows.append([name, *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        padded = (f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
        print(f"{first:<{widths[0]}}  {'  '.join(padded)}")
    print(f"\nsemantic: {found.captions.measured.embedder}; in brackets: 95 % of the resamples of the pictures")


def _cell(value: float, low: float, high: float, *, sign: str = "") -> str:
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"
