"""Folders of weights that were trained: what a run left, what stands beside its weights, where others left theirs.

`cutline train` leaves a run, a folder with `run.json`, whose `best` are the weights to use. Beside weights that were
trained here stand `cutline.json`, which says by which annotator, on which base and with what options, and
`prompt.toml`, which says what was asked. Folders that PEFT alone wrote have neither.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cutline.options import CutlineError, OptionError

RUN = "run.json"
BEST = "best"
CARD = "cutline.json"
PROMPT = "prompt.toml"
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Trained:
    """What stands beside weights that were trained here."""

    annotator: str
    """The one that they were trained for, by its name."""
    base: str | None = None
    """The model that was trained on, and its revision."""
    revision: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the annotator by which pictures were made ready, such as max_pixels."""
    prompt: Path | None = None
    """The file that says what was asked, where there is one."""


def weights_of(folder: Path) -> Path:
    """The folder of weights that this folder means: of a run its best, else itself.

    Raises OptionError for a run that has no best weights yet.
    """
    if not (folder / RUN).is_file():
        return folder
    best = folder / BEST
    if not best.exists():
        raise OptionError(
            f"{folder} is a run without best weights yet: let it go on until it has saved, by the same `cutline train`"
        )
    # The step itself: what is asked of a model says which weights it had, though another step be the best tomorrow.
    return folder / os.readlink(best) if best.is_symlink() else best


def read(folder: Path) -> Trained | None:
    """What stands beside these weights; None where nothing does. Raises CutlineError where it cannot be read."""
    card = folder / CARD
    if not card.is_file():
        return None
    try:
        said = json.loads(card.read_text("utf-8"))
        prompt = folder / PROMPT
        return Trained(
            said["annotator"],
            said.get("base"),
            said.get("revision"),
            dict(said.get("options") or {}),
            prompt if prompt.is_file() else None,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CutlineError(f"{card} is not what a training writes ({type(error).__name__}: {error})") from None


def read_adapter(folder: Path) -> dict[str, Any]:
    """What a PEFT adapter says of itself. Raises CutlineError, naming the adapters that there are, if it is none."""
    path = folder / ADAPTER
    if not folder.exists() and not _adapters_near(folder):
        raise CutlineError(
            f"there is no folder {folder}. Runs lie in DATASET/.cutline/runs; an adapter on the hub comes here by: "
            f"hf download {folder} --local-dir FOLDER"
        )
    if not path.is_file() and (near := _adapters_near(folder)):
        several = f" ({len(near)} in all)" if len(near) > 1 else ""
        raise CutlineError(
            f"{folder} has no {ADAPTER} of its own, but {near[0]} has one{several}. Take one: -o adapter={near[-1]}"
        )
    try:
        said = json.loads(path.read_text("utf-8"))
        said["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CutlineError(
            f"{folder} is no folder of a PEFT adapter ({path.name}: {error}). One on the hub comes here by: "
            f"hf download {folder} --local-dir FOLDER"
        ) from None
    return said  # type: ignore[no-any-return]


def _adapters_near(folder: Path) -> list[Path]:
    """Adapters in folders just below this one (`_epoch-3`, `CausalLM-LoRA`) or named after it (`NAME_step-200`)."""
    found = [*folder.glob(f"*/{ADAPTER}")] if folder.is_dir() else []
    if folder.parent.is_dir():
        beside = (path for path in folder.parent.iterdir() if path.name.startswith(folder.name + "_"))
        found += [path / ADAPTER for path in beside if (path / ADAPTER).is_file()]
    return sorted((path.parent for path in found), key=_by_number)


def _by_number(path: Path) -> tuple[str, int]:
    name, _, number = path.name.rpartition("-")
    return (f"{path.parent}/{name}", int(number)) if number.isdigit() else (str(path), 0)
