"""TIPO's format: the text that its models continue, and the reading of what they wrote.

TIPO (KBlueLeaf; https://arxiv.org/abs/2411.08127) is a family of small language models that were trained on one form:
a line for each thing that is known of a picture, a target, then the fields of a task, one after the other.

    rating: safe
    aspect ratio: 0.7
    target: <|long|> <|tag_to_long|>
    tag: 1girl, long hair, smile
    long: A girl with long hair smiles at …

A prompt is the beginning of such a form, and the model writes on from there. The form is that of the training code
(KohakuBlueleaf/UwULLM, src/dataset/tipo), not that of the KGen program, which differs from it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from cutline.options import CutlineError, OptionError
from cutline.tags import spaced

TASKS = (
    "tag_to_long",
    "long_to_tag",
    "short_to_tag",
    "short_to_long",
    "tag_to_short_to_long",
    "short_to_tag_to_long",
    "short_to_long_to_tag",
)
"""The tasks that were trained: which fields, in which order. KGen lists others, for which there is no marker."""

LENGTHS = ("very_short", "short", "long", "very_long")
"""For tags up to 18, 36, 48, 72; for text up to 1 paragraph of 2 or of 4 sentences, 2 of 4, 3 of 6."""

MARKERS = ("<|empty|>", *(f"<|{name}|>" for name in (*LENGTHS, *TASKS, "gen_meta")))
"""The 13 markers. Each is one token of a TIPO model: spelt out in several, they mean nothing to it."""

METADATA = ("meta", "rating", "artist", "characters", "copyrights", "quality", "aspect ratio")
"""What can be said of a picture before the target, in the order in which it is. In training the order was random, so
none is better than another; a fixed one gives the same prompt for the same picture."""

FIELDS = ("tag", "short", "long")

_KEYS = (*FIELDS, *METADATA, "target")
_KEY = re.compile(f"({'|'.join(_KEYS)}):")
_KEY_LINE = re.compile(f"\n{_KEY.pattern}")
_RESERVED = (*MARKERS, "<s>", "</s>", "<unk>")

SPECIAL = frozenset(
    f"{count} {who}s" if count == "multiple" else f"{count}{who}{'' if count == '1' else 's'}"
    for who in ("girl", "boy", "other")
    for count in ("1", "2", "3", "4", "5", "6+", "multiple")
) | {"male focus"}
"""Tags that say how many there are. They come first."""


class UnfitText(CutlineError):
    """A text that the format cannot hold: it would be taken for a part of the form itself."""


@dataclass(frozen=True)
class TipoPrompt:
    """A prompt; its text is `str(prompt)`.

    The fields that are given come first in the task's order. The prompt ends with the key of the next one (`long:`);
    with `expand`, in the midst of the last one given, which the model then continues.

    Raises:
        OptionError: the task or length does not exist, or the fields do not suit the task.
        UnfitText: a text has a line that begins with a key of the format, or a marker in it.
    """

    task: str | None = "tag_to_long"
    """One of `TASKS`; None for tags alone, which are expanded."""
    length: str | None = None
    """One of `LENGTHS`, for a task that has one (`has_length`); None is "long" there."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Lines by `METADATA` key; an empty one is left out, as it was in training."""
    tags: Sequence[str] = ()
    """With underscores or spaces, in any order: those in `SPECIAL` are put first."""
    short: str | None = None
    long: str | None = None
    expand: bool = False
    gen_meta: bool = False
    """Ask for the metadata that is not given; the model writes it after the last field."""

    def __post_init__(self) -> None:
        check_task(self.task)
        if self.length is not None and self.length not in LENGTHS:
            raise OptionError(f"length={self.length} does not fit: TIPO knows {', '.join(LENGTHS)}")
        if self.length is not None and not has_length(self.task):
            raise OptionError(f"length={self.length} has no effect on {self.task}, which was trained without a length")
        if unknown := [key for key in self.metadata if key not in METADATA]:
            raise OptionError(f"'{unknown[0]}' is no metadata of TIPO's; it has: {', '.join(METADATA)}")
        given = [name for name, text in self._texts.items() if text is not None]
        expected = self.order[: len(given)]
        if set(given) != set(expected):
            said = " and ".join(given) or "nothing"
            raise OptionError(f"{self.task or 'tags alone'} begins with {self.order[0]}, and {said} was given")
        if not given:
            raise OptionError(f"{self.task or 'tags alone'} begins with {self.order[0]}, and none was given")
        if len(given) == len(self.order) and not self.expand:
            raise OptionError(f"{self.order[-1]} is given already, so there is nothing left to write; or set expand")
        for key, text in {**self.metadata, **self._texts}.items():
            if text is not None:
                _check_text(key, text)

    def __str__(self) -> str:
        lines = [f"{key}: {self.metadata[key]}" for key in METADATA if self.metadata.get(key)]
        lines.append(f"target: {' '.join(f'<|{marker}|>' for marker in self._target())}")
        lines += [f"{key}: {text}" for key in self.order if (text := self._texts[key]) is not None]
        if not self.expand:
            lines.append(f"{self.opening}:")
        return "\n".join(lines)

    @property
    def order(self) -> tuple[str, ...]:
        """The fields of the task."""
        return tuple(self.task.split("_to_")) if self.task else ("tag",)

    @property
    def opening(self) -> str:
        """The field that the completion begins in."""
        given = sum(text is not None for text in self._texts.values())
        return self.order[given - self.expand]

    def stops(self, last: str = "") -> tuple[str, ...]:
        """Where to stop a model: a line break and the key of whatever is not asked for.

        Args:
            last: the last field that is wanted; by default all of the task's.
        """
        wanted = (*self._to_come(last), *(METADATA if self.gen_meta else ()))
        return tuple(f"\n{key}:" for key in _KEYS if key not in wanted)

    def end(self, completion: str, last: str = "") -> int | None:
        """Where in a completion something begins that is not asked for, or that is there already; None if nowhere.

        Args:
            completion: what was written so far.
            last: as for `stops`, which see less: they do not count.
        """
        wanted = {*self._to_come(last), *(METADATA if self.gen_meta else ())}
        for line in _KEY_LINE.finditer(completion):
            if line[1] not in wanted:
                return line.start()
            wanted.remove(line[1])
        return None

    def _to_come(self, last: str) -> tuple[str, ...]:
        """The fields after the one that is open, up to `last`."""
        end = self.order.index(last) + 1 if last else None
        return self.order[self.order.index(self.opening) + 1 : end]

    def read(self, completion: str, *, finish_reason: str | None = None) -> Written:
        """Read what the model wrote after this prompt. Where it continued a field, the field is whole in the answer.

        Args:
            completion: the new text alone.
            finish_reason: "length" where it was cut by its length.
        """
        given = f" {self._texts[self.opening]}" if self.expand else ""
        fields = read(given + completion, self.opening)
        last = fields[-1][0]
        whole = finish_reason != "length" or any(key == last for key, _ in fields[:-1])
        return Written(fields, cut=None if whole else last)

    def _target(self) -> list[str]:
        target = [self.length or "long"] if has_length(self.task) else []
        return [*target, *([self.task] if self.task else []), *(["gen_meta"] if self.gen_meta else [])]

    @functools.cached_property
    def _texts(self) -> dict[str, str | None]:
        return {"tag": tag_line(self.tags) or None, "short": self.short or None, "long": self.long or None}


@dataclass(frozen=True)
class Written:
    """What a model wrote."""

    fields: tuple[tuple[str, str], ...]
    """Key and text, in the order in which they were written; a key may come twice."""
    cut: str | None = None
    """The field whose text is not whole, since it was cut by its length."""

    def get(self, key: str) -> str:
        """The text of a field, the first where there are two; empty where there is none."""
        return next((text for name, text in self.fields if name == key), "")


def read(completion: str, opening: str) -> tuple[tuple[str, str], ...]:
    """Split a completion into its fields. All of its text is there, as it was written and in its order.

    Args:
        completion: what follows a key and its colon.
        opening: that key.

    Returns:
        Key and text of each. A line begins a field when it begins with one of the format's own keys and a colon; any
        other line, with or without a colon, belongs to the text before it. One space after the colon is the format's.
    """
    first, *lines = completion.split("\n")
    fields: list[tuple[str, list[str]]] = [(opening, [first.removeprefix(" ")])]
    for line in lines:
        if key := _KEY.match(line):
            fields.append((key[1], [line[key.end() :].removeprefix(" ")]))
        else:
            fields[-1][1].append(line)
    return tuple((key, "\n".join(text)) for key, text in fields)


def check_task(task: str | None) -> None:
    """Raise OptionError for a task that TIPO was not trained on."""
    if task is not None and task not in TASKS:
        raise OptionError(
            f"task={task} does not fit: TIPO has no marker for it, so it would read the name letter by letter. "
            f"It was trained on: {', '.join(TASKS)}"
        )


def has_length(task: str | None) -> bool:
    """Whether a task's target names a length: those that read or write tags do."""
    return task is None or task.startswith("tag_to") or "to_tag" in task


def tag_line(tags: Sequence[str]) -> str:
    """Tags as TIPO reads them: with spaces (but `^_^` as it is), with commas between, those in `SPECIAL` first."""
    names = spaced(pa.array([tag for tag in tags if tag], pa.string())).to_pylist()
    return ", ".join(sorted(names, key=lambda name: name not in SPECIAL))


def _check_text(key: str, text: str) -> None:
    if marker := next((marker for marker in _RESERVED if marker in text), ""):
        raise UnfitText(f"the {key} has the marker {marker} in it, which a TIPO model takes for its own")
    if key not in ("short", "long") and "\n" in text:
        raise UnfitText(f"the {key} has a line break in it, which would end its line")
    if line := next((line for line in text.split("\n")[1:] if _KEY.match(line)), ""):
        raise UnfitText(f"the {key} has a line that begins with '{line.partition(':')[0]}:', a key of TIPO's format")
