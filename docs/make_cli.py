"""Write docs/cli.md, what the command line says of itself: `.venv/bin/python docs/make_cli.py` after changing it."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

import typer.main

from cutline import registry
from cutline.cli.main import app

OPENING = """\
# The command line

*Made by `docs/make_cli.py` out of the commands themselves.*

Exit codes: 0 all done, 1 the command failed, 2 bad usage, 3 done in part (some pictures have errors: the last line says
how many and how to try them again), 130 interrupted.
"""


def main() -> None:
    Path(__file__).with_name("cli.md").write_text(reference(), encoding="utf-8")


def reference() -> str:
    """The whole page."""
    command: Any = typer.main.get_command(app)
    sections = [OPENING]
    with command.make_context("cutline", [], resilient_parsing=True) as context:
        for name, verb in command.commands.items():
            sections.append(f"## cutline {name}\n\n```text\n{_help(verb, context, name)}\n```\n")
    titles = {"sources": "Sources", "annotators": "Annotators", "exports": "Exports", "trainings": "Training"}
    for group, title in titles.items():
        sections.append(f"## {title}\n")
        sections += [_plugin(name, registry.load(group, name)) for name in registry.names(group)]
    return "\n".join(sections)


def _help(verb: Any, parent: Any, name: str) -> str:
    """A verb's `--help`, plain, for 100 columns."""
    verb.rich_markup_mode = None
    with verb.make_context(name, [], parent=parent, resilient_parsing=True, terminal_width=100) as context:
        return str(verb.get_help(context)).rstrip()


def _plugin(name: str, plugin: Any) -> str:
    lines = [f"### {name}", "", _first_paragraph(plugin), ""]
    if fields := dataclasses.fields(plugin):
        hints = typing.get_type_hints(plugin)
        lines += ["| option | default | |", "|---|---|---|"]
        for entry in fields:
            row = (f"`{entry.name}`", _default(entry), _choices(hints[entry.name]) + entry.metadata.get("help", ""))
            lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in row) + " |")
        lines.append("")
    return "\n".join(lines)


def _first_paragraph(plugin: Any) -> str:
    return " ".join((plugin.__doc__ or "").partition("\n\n")[0].split())


def _choices(hint: Any) -> str:
    if typing.get_origin(hint) is not typing.Literal:
        return ""
    return ", ".join(f"`{choice}`" for choice in typing.get_args(hint) if choice) + ": "


def _default(entry: dataclasses.Field[Any]) -> str:
    value = entry.default if entry.default is not dataclasses.MISSING else None
    if value is None or value == "":
        required = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        return "*required*" if required else ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    main()
