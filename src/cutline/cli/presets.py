"""`cutline presets`: what comes with Cutline as TOML files."""

from __future__ import annotations

from typing import Annotated

import typer


def run(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="Only these: prompts, recipes, trainers …")] = "",
    name: Annotated[str, typer.Argument(metavar="NAME", help="Print this one, to copy and change.")] = "",
) -> None:
    """List the presets; with a kind and a name, print one: a start for a file of your own."""
    from cutline import toml_files
    from cutline.options import OptionError

    kinds = toml_files.kinds()
    if kind and kind not in kinds:
        raise OptionError(f"there are no presets called '{kind}'; there are: {', '.join(kinds)}")
    if name:
        print(toml_files.text(kind, name), end="")
        return
    for each in [kind] if kind else kinds:
        for known in toml_files.presets(each):
            first = toml_files.text(each, known).partition("\n")[0]
            print(f"{each:<10} {known:<28} {first.removeprefix('#').strip() if first.startswith('#') else ''}".rstrip())
