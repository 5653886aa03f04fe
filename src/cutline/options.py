"""The settings of plug-ins: a frozen dataclass that text can fill.

A source, annotator or export is a frozen dataclass whose fields are made with `option`. From that one
declaration follow the command line (`-o key=value`), the TOML presets, the help text and the identity of
the layer that an annotator writes: the hash of those settings that can change what a row says.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class CutlineError(Exception):
    """A mistake or mishap that a user can act on: its text says what, where, and what to type next."""


class OptionError(CutlineError):
    """An option that does not exist, or a value that does not fit it."""


class UnknownOption(OptionError):
    """A name that is none of the options of a plug-in."""

    def __init__(self, plugin: str, named: str, known: Collection[str]) -> None:
        near = difflib.get_close_matches(named, known, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        super().__init__(f"{plugin} has no option '{named}'.{meant} It has: {', '.join(sorted(known)) or 'none'}.")
        self.plugin, self.named, self.known = plugin, named, known


def option(default: Any = dataclasses.MISSING, help: str = "", *, identity: bool = True, files: bool = False) -> Any:
    """Return a dataclass field that is also an option.

    Args:
        default: its value where none is given; a list or dict is copied for each instance. Without one, it is required.
        help: one line for people.
        identity: whether it can change what a row says. Batch size, device and the like cannot.
        files: it may name a local file or folder (a model, an adapter), whose bytes then are its identity.
    """
    metadata = {"help": help, "identity": identity, "files": files}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def fill(plugin: type[T], values: Mapping[str, Any], *, name: str = "") -> T:
    """Make an instance of `plugin` from names and values, which may be text (`"8"`, `"true"`, `"a,b"` for a list).

    Args:
        plugin: a frozen dataclass whose fields are options.
        values: text or values by name.
        name: what it is called in errors; by default as the registry does.

    Raises:
        OptionError: naming the option, what is wrong with it and what would be right.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    fields = {field.name: field for field in dataclasses.fields(plugin) if field.init}  # type: ignore[arg-type]
    name = name or called(plugin)
    for key in values:
        if key not in fields:
            raise UnknownOption(name, key, fields.keys())
    hints = _hints(plugin)
    made: dict[str, Any] = {}
    for key, value in values.items():
        hint = hints[key]
        if isinstance(value, str) and getattr(hint, "__origin__", None) in (list, tuple):
            value = [piece.strip() for piece in value.split(",") if piece.strip()]
        try:
            adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
            made[key] = adapter.validate_python(value)
        except ValidationError as error:
            problem = error.errors()[0]["msg"].removeprefix("Value error, ").rstrip(".") + "." + _meant(value, hint)
            help_text = fields[key].metadata.get("help", "")
            raise OptionError(f"{name}: option {key}={value!r} does not fit: {problem} {key}: {help_text}") from None
        texts = made[key] if isinstance(made[key], (list, tuple)) else [made[key]]
        if any(isinstance(text, str) and text.encode("utf-8", "ignore").decode() != text for text in texts):
            raise OptionError(f"{name}: option {key}={value!r} is no UTF-8 text; write it in a terminal set to UTF-8")
    try:
        return plugin(**made)
    except TypeError:
        missing = [
            key
            for key, field in fields.items()
            if key not in made and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        ]
        if not missing:
            raise
        raise OptionError(f"{name} needs option {missing[0]}: -o {missing[0]}=…") from None


def _meant(value: Any, hint: Any) -> str:
    """Which of the values that an option takes was most likely meant: `AdamW8bit` is adamw_8bit."""
    import typing

    known = [text for part in (hint, *typing.get_args(hint)) for text in typing.get_args(part) if isinstance(text, str)]
    plain = {re.sub(r"[\W_]", "", text).lower(): text for text in known}
    near = difflib.get_close_matches(re.sub(r"[\W_]", "", str(value)).lower(), plain, n=1)
    return f" Did you mean {plain[near[0]]}?" if near else ""


def called(plugin: type) -> str:
    """What a plug-in is called: its class's name as the registry writes it, `ImageText` as `image_text`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", plugin.__name__).lower()


def _hints(plugin: type) -> dict[str, Any]:
    import typing

    return typing.get_type_hints(plugin)


def parse(pairs: list[str]) -> dict[str, str]:
    """Turn `["key=value", …]` into a dict. Raises OptionError for text without `=` and for a key said twice."""
    values: dict[str, str] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not sign or not key:
            raise OptionError(f"-o {pair!r} is not of the form key=value")
        if key in values:
            raise OptionError(f"-o {key}=… is given twice")
        values[key] = value
    return values


def settings(plugin: Any) -> dict[str, Any]:
    """All settings of a plug-in as plain JSON values."""
    return {field.name: _plain(getattr(plugin, field.name)) for field in dataclasses.fields(plugin) if field.init}


def identity(plugin: Any) -> dict[str, Any]:
    """The settings that can change what a row says, with local models replaced by the hash of their files.

    A plug-in that knows more of itself than its fields say (what a preset that one of them names holds) has a method
    `identify(found) -> found`.
    """
    found: dict[str, Any] = {}
    for field in dataclasses.fields(plugin):
        if not field.init or not field.metadata.get("identity", True):
            continue
        value = getattr(plugin, field.name)
        if field.metadata.get("files") and value and Path(value).expanduser().exists():
            found[field.name] = {"files": hash_files(Path(value).expanduser())}
        else:
            found[field.name] = _plain(value)
    return plugin.identify(found) if hasattr(plugin, "identify") else found


def canonical(value: Mapping[str, Any]) -> str:
    """JSON with sorted keys and no spaces: equal settings give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Mapping[str, Any]) -> str:
    """The first 16 hexadecimal digits of the sha256 of `canonical(value)`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def hash_files(path: Path) -> str:
    """sha256 over the names and bytes of a file, or of all files below a folder, in sorted order (16 hex digits)."""
    total = hashlib.sha256()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        name = file.name if file == path else file.relative_to(path).as_posix()
        with file.open("rb") as handle:
            total.update(f"{name}\0{hashlib.file_digest(handle, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return Path(value).as_posix()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
