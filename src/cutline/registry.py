"""Plug-ins by name. Nothing is imported until its name is asked for.

The built-in ones stand in the table below. Anyone else's register by entry point, in the groups `cutline.sources`,
`cutline.annotators`, `cutline.exports` and `cutline.trainings`; a built-in wins a name clash, and says so.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from cutline.options import CutlineError, OptionError

_BUILT_IN: dict[str, dict[str, str]] = {
    "sources": {
        "booru": "cutline.sources.booru:Booru",
        "coco": "cutline.sources.coco:Coco",
        "folder": "cutline.sources.folder:Folder",
        "imagefolder": "cutline.sources.imagefolder:ImageFolder",
        "kohya": "cutline.sources.kohya:Kohya",
        "kohya_toml": "cutline.sources.kohya_toml:KohyaToml",
        "webdataset": "cutline.sources.webdataset:WebDataset",
    },
    "annotators": {
        "blip": "cutline.annotators.blip:Blip",
        "echo": "cutline.annotators.echo:Echo",
        "facts": "cutline.annotators.facts:Facts",
        "florence2": "cutline.annotators.florence2:Florence2",
        "image_text": "cutline.annotators.image_text:ImageText",
        "server": "cutline.annotators.server:Server",
        "tag_to_text": "cutline.annotators.tag_to_text:TagToText",
    },
    "exports": {
        "kohya": "cutline.exports.kohya:Kohya",
        "metadata_jsonl": "cutline.exports.metadata_jsonl:MetadataJsonl",
        "sidecar": "cutline.exports.sidecar:Sidecar",
        "webdataset": "cutline.exports.webdataset:WebDataset",
    },
    "trainings": {
        "captioner": "cutline.training.captioner:Captioner",
    },
}


class UnknownPlugin(OptionError):
    """No plug-in of that name."""


def names(group: str) -> list[str]:
    """All names in a group (`sources`, `annotators`, `exports`, `trainings`), sorted."""
    return sorted({*_BUILT_IN[group], *_third_party(group)})


def load(group: str, name: str) -> type[Any]:
    """Import the plug-in class of that name. Raises UnknownPlugin, or CutlineError where its imports fail."""
    third_party = _third_party(group)
    if name in _BUILT_IN[group]:
        if name in third_party:
            print(
                f"warning: {third_party[name]} also calls itself {group[:-1]} '{name}'; the built-in one is used",
                file=sys.stderr,
            )
        target = _BUILT_IN[group][name]
    elif name in third_party:
        target = third_party[name]
    else:
        raise UnknownPlugin(f"no {group[:-1]} is called '{name}'; there are: {', '.join(names(group))}")
    module, _, attribute = target.partition(":")
    try:
        found: type[Any] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise CutlineError(f"{group[:-1]} '{name}' ({target}) cannot be loaded: {error}") from error
    return found


def _third_party(group: str) -> dict[str, str]:
    from importlib.metadata import entry_points

    return {point.name: point.value for point in entry_points(group=f"cutline.{group}")}
