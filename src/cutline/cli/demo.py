"""`cutline demo`: the whole job, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder to work in.")] = Path("cutline-demo"),
) -> None:
    """Draw pictures, teach a small captioner, caption, measure, export: offline, about three minutes on two cores."""
    from cutline.demo import run as demo

    demo(folder)
