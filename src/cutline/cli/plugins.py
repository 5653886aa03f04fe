"""`cutline plugins`: the sources, annotators, exports and trainings there are, and their options."""

from __future__ import annotations

from typing import Annotated

import typer


def run(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Show only this one, with its options.")] = "",
) -> None:
    """List sources, annotators, exports and trainings; with a name, its options."""
    from cutline import registry

    found = False
    for group in ("sources", "annotators", "exports", "trainings"):
        for known in registry.names(group):
            if name and known != name:
                continue
            plugin = registry.load(group, known)
            found = True
            summary = (plugin.__doc__ or "").partition("\n")[0]
            print(f"{group[:-1]:<10} {known:<16} {summary}")
            if name:
                _options(plugin)
    if not found:
        raise registry.UnknownPlugin(f"nothing is called '{name}'; `cutline plugins` lists all there is")


def _options(plugin: type) -> None:
    import dataclasses

    for entry in dataclasses.fields(plugin):
        if entry.default is not dataclasses.MISSING:
            default = repr(entry.default)
        elif entry.default_factory is not dataclasses.MISSING:
            default = repr(entry.default_factory())
        else:
            default = "required"
        print(f"  -o {entry.name}={default}  {entry.metadata.get('help', '')}")
