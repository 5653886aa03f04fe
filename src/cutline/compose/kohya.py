"""What kohya-ss/sd-scripts does to a caption, bit for bit: from loading to the text that one training step is given.

A `Subset` has the options of a `[[datasets.subsets]]` table of sd-scripts' dataset config, under their names there. It
loads a text as the trainer does, from a metadata entry (`load`) or from the file beside a picture (`load_image`), and
draws what the trainer makes of that text each time it fetches the picture (`draw`). Given a `random.Random(seed)`, it
makes the draws of a trainer after `random.seed(seed)`, in number and order. Its faults are the trainer's, on purpose:
tags that are lost, separators that leak, prefixes that grow together with a tag. What a text should be is said by a
recipe, not here. Modelled on sd-scripts 0.10.1 (`DreamBoothDataset`, `FineTuningDataset` and `process_caption` of
`library/train_util.py`).
"""

from __future__ import annotations

import dataclasses
import math
import os
import random
import re
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cutline.formats import kohya_toml
from cutline.options import CutlineError, OptionError

_GROUP = re.compile(r"\{([^}]+)\}")  # ends at the first brace, so groups do not nest
_EMPTY = "caption file is empty / キャプションファイルが空です: "

NEVER_CACHED = ("shuffle_caption", "caption_dropout_rate", "caption_tag_dropout_rate", "token_warmup_step")
"""Options with which sd-scripts refuses to cache what its text encoders give."""

NOT_IN_CACHE = (
    *("enable_wildcard", "caption_prefix", "caption_suffix", "caption_dropout_every_n_epochs"),
    *("secondary_separator", "keep_tokens_separator"),
)
"""Options that it allows beside such a cache, which knows nothing of them."""


class TrainerError(CutlineError):
    """The trainer stops here, with an exception of this type and text."""

    def __init__(self, type: str, text: str) -> None:
        super().__init__(type, text)
        self.type = type
        """Name of the exception, such as `TypeError`."""
        self.text = text

    def __str__(self) -> str:
        return f"{self.type}: {self.text}"


@dataclass(init=False)
class Subset:
    """The pictures under one set of options, which are sd-scripts' own. None stands for the default, as it does there.

    One object stands for one training run: a fractional `token_warmup_step` is replaced by a number of steps when it
    is first needed, as the trainer does.

    Raises:
        OptionError: a name that sd-scripts does not know in a subset, or a value of another type than it takes.
    """

    # What becomes of a caption.
    shuffle_caption: bool = False
    enable_wildcard: bool = False
    caption_separator: str = ","
    keep_tokens: int = 0
    keep_tokens_separator: str = ""
    secondary_separator: str | None = None
    caption_prefix: str | None = None
    caption_suffix: str | None = None
    caption_dropout_rate: int | float = 0.0
    caption_dropout_every_n_epochs: int = 0
    caption_tag_dropout_rate: int | float = 0.0
    token_warmup_min: int = 1
    token_warmup_step: int | float = 0

    # Where it comes from: sidecars, or a metadata file.
    image_dir: str | Path | None = None
    caption_extension: str = ".txt"
    """What taggers write. A dataset config that does not say it means `.caption`: `SubsetConfig.extension`."""
    class_tokens: str | None = None
    metadata_file: str | Path | None = None

    # What the trainer takes as well, and what changes no text.
    num_repeats: int = 1
    is_reg: bool = False
    cache_info: bool = False
    alpha_mask: bool = False
    conditioning_data_dir: str | Path | None = None
    color_aug: bool = False
    flip_aug: bool = False
    random_crop: bool = False
    face_crop_aug_range: list | tuple | None = None  # type: ignore[type-arg]  # isinstance needs it bare
    resize_interpolation: str | None = None
    custom_attributes: dict = field(default_factory=dict)  # type: ignore[type-arg]

    def __init__(self, **options: Any) -> None:
        hints = typing.get_type_hints(Subset)
        for name, value in options.items():
            if name not in hints:
                raise OptionError(f"a subset has no option '{name}'. It has: {', '.join(sorted(hints))}")
            if value is not None and not isinstance(value, hints[name]):
                wanted = getattr(hints[name], "__name__", str(hints[name]))
                raise OptionError(f"subset: {name} = {value!r} does not fit: it is of type {wanted}")
        for option in dataclasses.fields(self):
            value = options.get(option.name)
            if value is None:
                value = {} if option.name == "custom_attributes" else option.default
            setattr(self, option.name, value)
        if self.caption_extension and not self.caption_extension.startswith("."):
            self.caption_extension = "." + self.caption_extension

    # -- loading, once ----------------------------------------------------------------------------------------

    def load(self, caption: Any = None, tags: Any = None) -> str:
        """The text that the trainer holds for a metadata entry with these values, absent ones as None.

        Raises:
            TrainerError: a value that is no text, where the trainer notices it (it takes a list for the caption, and
                stops when it draws).
        """
        with _as_trainer():
            text: str = "" if caption is None else caption
            if tags is None:
                return text
            separator = self.caption_separator
            if self.enable_wildcard:  # every line gets the tags; without a line they are lost
                tags = tags.replace("\n", separator)
                return "\n".join(f"{line}{separator}{tags}" for line in text.split("\n") if line.strip())
            if len(tags) == 0:
                return text
            if len(text) > 0:
                text = text + separator
            return typing.cast(str, text + tags)

    def load_image(self, path: str | os.PathLike[str]) -> str:
        """The text that the trainer holds for a picture with a file beside it; `class_tokens` or nothing without one.

        Raises:
            TrainerError: the file is empty, or not UTF-8.
        """
        found = kohya_toml.sidecar_of(os.fspath(path), self.caption_extension)
        if found is None:
            return self.class_tokens or ""
        with _as_trainer(), open(found[0], encoding="utf-8") as handle:  # a byte-order mark stays
            lines = handle.readlines()
        if not lines:
            raise TrainerError("AssertionError", f"{_EMPTY}{found[0]}")
        if self.enable_wildcard:
            return "\n".join(line.strip() for line in lines if line.strip())
        return lines[0].strip()

    def cached(self, text: str) -> str:
        """What a text-encoder cache encodes for a loaded text: that text, with nothing of `draw` done to it."""
        return text

    # -- drawing, every time a picture is fetched -------------------------------------------------------------

    def draw(
        self,
        text: str,
        rng: random.Random,
        *,
        epoch: int = 1,
        step: int = 0,
        max_train_steps: int = 0,
        replacements: Mapping[str, str | list[str]] | None = None,
    ) -> str:
        """One text for training, made of a loaded one. `flip_aug`, which the trainer draws before it, is not drawn.

        Args:
            text: as `load` or `load_image` gives it.
            rng: what the trainer's `random` module is; shared by all draws of a process.
            epoch: from 1; 0 is what caching and fresh data-loader workers see.
            step: steps done so far.
            max_train_steps: what a fractional `token_warmup_step` is a fraction of.
            replacements: of textual inversion: a text -> what is written for it; "" -> the whole text, or several to
                draw from.

        Raises:
            TrainerError: where the trainer stops: an empty `caption_separator`, or a text that is none.
        """
        with _as_trainer():
            if self.caption_prefix:
                text = self.caption_prefix + " " + text
            if self.caption_suffix:
                text = text + " " + self.caption_suffix
            if self._dropped(rng, epoch):
                return ""
            text = _expanded(text, rng) if self.enable_wildcard else text.split("\n")[0]
            if self.shuffle_caption or self.token_warmup_step > 0 or self.caption_tag_dropout_rate > 0:
                text = self._tags_drawn(text, rng, step, max_train_steps)
            if self.secondary_separator:
                text = text.replace(self.secondary_separator, self.caption_separator)
            return _replaced(text, rng, replacements or {})

    def _dropped(self, rng: random.Random, epoch: int) -> bool:
        by_chance = self.caption_dropout_rate > 0 and rng.random() < self.caption_dropout_rate
        every = self.caption_dropout_every_n_epochs
        return by_chance or (every > 0 and epoch % every == 0)

    def _tags_drawn(self, text: str, rng: random.Random, step: int, max_train_steps: int) -> str:
        first, flexible, last = self._parts(text)
        if self.token_warmup_step < 1:
            self.token_warmup_step = math.floor(self.token_warmup_step * max_train_steps)
        if step < self.token_warmup_step:
            a_step = (len(flexible) - self.token_warmup_min) / self.token_warmup_step  # divided first: floats differ
            flexible = flexible[: math.floor(step * a_step) + self.token_warmup_min]
        if self.shuffle_caption:
            rng.shuffle(flexible)
        if self.caption_tag_dropout_rate > 0:
            flexible = [tag for tag in flexible if rng.random() >= self.caption_tag_dropout_rate]
        return ", ".join(first + flexible + last)  # whatever caption_separator is

    def _parts(self, text: str) -> tuple[list[str], list[str], list[str]]:
        """The tags that stay in front, those that may move or go, and those that stay at the end."""
        mark = self.keep_tokens_separator
        if mark and mark in text:
            first, *rest = text.split(mark, 2)
            flexible, last = rest if len(rest) == 2 else (rest[0], "")
            return self._split(first), self._split(flexible), self._split(last)
        tags = [tag.strip() for tag in text.strip().split(self.caption_separator)]  # empty ones count here
        kept = max(self.keep_tokens, 0)
        return tags[:kept], tags[kept:], []

    def _split(self, text: str) -> list[str]:
        return [tag.strip() for tag in text.split(self.caption_separator) if tag.strip()]


def _expanded(text: str, rng: random.Random) -> str:
    """One of the lines, and one text for each `{a|b}` in it."""
    if "\n" in text:
        text = rng.choice(text.split("\n"))
    opened, closed = "⦅", "⦆"  # stand for {{ and }}, and grow until the text has no such piece
    while opened in text or closed in text:
        opened, closed = opened + "⦅", closed + "⦆"
    text = text.replace("{{", opened).replace("}}", closed)
    text = _GROUP.sub(lambda group: rng.choice(group[1].split("|")), text)
    return text.replace(opened, "{").replace(closed, "}")


def _replaced(text: str, rng: random.Random, replacements: Mapping[str, str | list[str]]) -> str:
    for old, new in replacements.items():
        if old:
            text = text.replace(old, new)  # type: ignore[arg-type]  # a list is the TypeError that the trainer has
            continue
        text = rng.choice(new) if isinstance(new, list) else new
    return text


@contextmanager
def _as_trainer() -> Iterator[None]:
    """What Python raises for values that the trainer never checks, as the trainer's error."""
    try:
        yield
    except (TypeError, AttributeError, ValueError, IndexError, OSError) as error:
        raise TrainerError(type(error).__name__, str(error)) from None
