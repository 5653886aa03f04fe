"""An adapter put into its base for good: a whole model that other programs load, and that captions no differently.

The annotator itself loads base and adapter, as `annotate` does, so that what is written is what was captioned with;
beside the weights go the base's own files (tokenizer, processor, generation_config.json) as they are.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from cutline import registry
from cutline.annotators import trained
from cutline.annotators.image_text import ImageText
from cutline.annotators.local import load_config
from cutline.options import CutlineError, OptionError, fill

OWN = ("blip", "florence2")
"""Types of model that have an annotator of their own, of the same name; any other is image_text's."""

KEPT = (".json", ".jinja", ".model", ".txt")
"""Ends of the names of a model's files that are no weights."""


def merge(adapter: Path, out: Path, *, model: str | None = None) -> Path:
    """Write the adapter's base with the adapter in it as the folder `out`: all of it, or nothing.

    Args:
        adapter: a run of `cutline train`, or a PEFT adapter's folder.
        out: a new folder. It holds model.safetensors and config.json, the base's other files, cutline.json, and
            prompt.toml where the training left one.
        model: the base, where the adapter's own word of it is not to be taken.

    Returns:
        `out`.

    Raises:
        CutlineError: `out` is there already, the adapter is none, or it does not fit the base.
    """
    out = out.expanduser()
    if out.exists():
        raise OptionError(f"{out} is there already; give a new folder")
    given = adapter.expanduser()
    folder = trained.weights_of(given)
    if (folder / "config.json").is_file() and not (folder / trained.ADAPTER).is_file():
        raise OptionError(f"{given} is a whole model, and there is nothing to merge: use it by -o model={given}")
    card = trained.read(folder)
    config = trained.read_adapter(folder)
    name = card.annotator if card else _annotator_of(model or config["base_model_name_or_path"])
    # On the processor, as a base that fits no GPU may fit there; nothing is said, so that one token is plenty.
    settings = fill(
        registry.load("annotators", name),
        {"adapter": str(folder), "device": "cpu", "max_tokens": 1, **({"model": model} if model else {})},
    )
    merged = settings.load().model
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        whole = Path(scratch) / "model"
        merged.save_pretrained(whole)
        copy_rest(settings, whole)
        _tell(settings, folder, whole)
        whole.rename(out)
    return out


def _annotator_of(base: str | None) -> str:
    """Which annotator runs the model of this name or folder."""
    if not base:
        raise OptionError("the adapter does not say which model it was trained on: --model BASE")
    if card := trained.read(trained.weights_of(Path(base).expanduser())):
        return card.annotator
    if registry.load("annotators", "florence2").native(base) != base:  # whose configuration asks for code to be run
        return "florence2"
    kind = load_config(ImageText(model=base)).model_type
    return kind if kind in OWN else "image_text"


def copy_rest(settings: Any, whole: Path) -> None:
    """Copy what the base has beside its weights, such as its tokenizer."""
    hub: Any = import_module("transformers.utils.hub")
    base = Path(settings.model).expanduser()
    if not base.exists():
        base = Path(hub.cached_file(settings.model, "config.json", revision=settings.revision)).parent
    for path in base.iterdir():
        weights = path.name.endswith(".index.json")
        kept = path.suffix in KEPT or path.name.startswith(("LICENSE", "NOTICE"))
        # What the model says of itself is what was saved with it, but of how words are searched it was told to forget.
        ours = path.name in ("config.json", trained.CARD, trained.PROMPT, trained.ADAPTER)
        if path.is_file() and kept and not weights and not ours:
            shutil.copyfile(path, whole / path.name)
    if (base / "additional_chat_templates").is_dir():
        shutil.copytree(base / "additional_chat_templates", whole / "additional_chat_templates")


def _tell(settings: Any, folder: Path, whole: Path) -> None:
    """Write beside the weights what stood beside the adapter: by which annotator they are used, and how asked."""
    card = folder / trained.CARD
    try:
        said = json.loads(card.read_text("utf-8")) if card.is_file() else {}
    except (OSError, ValueError) as error:
        raise CutlineError(f"{card} cannot be read: {error}") from None
    told = {
        **said,
        "annotator": settings.called,
        "base": settings.model,
        "revision": settings.revision,
        "merged": True,
    }
    (whole / trained.CARD).write_text(json.dumps(told, ensure_ascii=False, indent=2) + "\n", "utf-8")
    if (folder / trained.PROMPT).is_file():
        shutil.copyfile(folder / trained.PROMPT, whole / trained.PROMPT)
