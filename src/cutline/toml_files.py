"""TOML files: those that come with Cutline, by name (`presets/<kind>/<name>.toml`), and people's own, by path.

What Cutline writes as TOML is written here, too, value by value.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from cutline.options import OptionError


def kinds() -> list[str]:
    """What there are presets of: `prompts`, `recipes` …, sorted."""
    return sorted(entry.name for entry in (files("cutline") / "presets").iterdir() if entry.is_dir())


def presets(kind: str) -> list[str]:
    """The names of the presets of a kind, sorted."""
    folder = files("cutline") / "presets" / kind
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def text(kind: str, name: str) -> str:
    """A preset as it is written. Raises OptionError, naming those that there are."""
    if name not in (known := presets(kind)):
        raise OptionError(f"there is no '{name}' among {kind}. There are: {', '.join(known)}")
    return (files("cutline") / "presets" / kind / f"{name}.toml").read_text("utf-8")


def preset(kind: str, name: str) -> dict[str, Any]:
    """What a preset says. The name must be one of `presets(kind)`."""
    return tomllib.loads(text(kind, name))


def read(path: str | Path, what: str) -> dict[str, Any]:
    """What someone's own TOML file says. Raises OptionError, naming the file; `what` says what it should have been."""
    path = Path(path).expanduser()
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))  # Notepad writes a byte-order mark
    except OSError as error:
        raise OptionError(f"cannot read the {what} {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise OptionError(f"{path} is not TOML: {error}") from None


def find(kind: str, name: str, what: str) -> dict[str, Any]:
    """What the preset of that name says, or the TOML file at that path. Raises OptionError where there is neither."""
    known = presets(kind)
    if name in known:
        return preset(kind, name)
    if Path(name).suffix.lower() == ".toml":
        return read(name, what)
    raise OptionError(f"no {what} is called '{name}'. There are: {', '.join(known)}; or name a TOML file")


def lines(table: Mapping[str, Any]) -> list[str]:
    """Each key of a table with its value, as TOML writes them."""
    return [f"{_key(name)} = {value(said)}" for name, said in table.items()]


def value(said: Any) -> str:
    """A string, number, truth value, list or mapping as TOML writes it, on one line."""
    if isinstance(said, Mapping):
        return "{ " + ", ".join(lines(said)) + " }"
    if isinstance(said, list):
        return "[" + ", ".join(map(value, said)) + "]"
    return json.dumps(said, ensure_ascii=False).replace("\x7f", "\\u007f")  # else JSON's escapes are TOML's


def _key(name: str) -> str:
    return name if name.replace("_", "").isalnum() and name.isascii() else value(name)
