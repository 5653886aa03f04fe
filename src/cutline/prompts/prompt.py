"""A prompt: what a model is asked about a picture, and what becomes of its answer.

A prompt is a small TOML file, `presets/prompts/<name>.toml` or a user's own; `docs/prompting.md` says all that one can
say. Its texts are templates (see `cutline.template`) over what the dataset knows of the picture.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Literal

import pyarrow as pa
import xxhash

from cutline import options, schemas, tags, toml_files
from cutline.checks.judging import Policies
from cutline.options import CutlineError, OptionError, option
from cutline.template import Template

Row = Mapping[str, Any]

_template = functools.lru_cache(256)(Template.parse)

ANSWER = ("answer",)
_PLAIN = ("key", "width", "height")
_TAGS = ("tags", *(f"tags.{name}" for name in (*schemas.TAG_CATEGORIES, "rating", "year")))
_RATINGS = {"g": "general", "s": "sensitive", "q": "questionable", "e": "explicit"}
_CAPTIONS = "captions."


class PromptError(OptionError):
    """A prompt that says something which it cannot say."""


@dataclass(frozen=True)
class Prompt:
    """What is asked, and what is made of the answer."""

    system: str = option("", "what the model is told that it is; a template")
    user: str = option("", "what it is asked; a template")
    answer: Literal["text", "json"] = option("text", "json: the answer is parsed, and its texts become the caption")
    schema: dict[str, Any] = option({}, "for json: a JSON schema, for servers that can hold a model to it")
    around: str = option("{answer}", "what is written round the answer; a template, with tags always in plain words")
    underscores: Literal["keep", "space"] = option("space", "how tags are written in what is asked")
    weight: float = option(1.0, "in [[one_of]]: how often this one is drawn, in proportion")
    one_of: tuple[Prompt, ...] = ()
    """Several, of which one is drawn for each picture. Each says what it says differently from the rest."""
    checks: Policies = field(default_factory=Policies)
    """What is done about an answer with something wrong: `[checks]`."""

    def __post_init__(self) -> None:
        for name, text, more in (("system", self.system, ()), ("user", self.user, ()), ("around", self.around, ANSWER)):
            for gap in _template(text).names:
                _known(name, gap, more)
        if "answer" not in _template(self.around).names:
            raise PromptError("around has no {answer} in it, so what the model says would be lost")
        if self.schema and self.answer != "json":
            raise PromptError('schema has no effect without answer = "json"')
        if not 0 < self.weight < float("inf"):
            raise PromptError(f"weight = {self.weight} does not fit: it is more than 0")
        if not self.one_of and not self.user.strip():
            raise PromptError('the prompt asks nothing: give it a user = "…", or -o user=…')

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Prompt:
        """Make a prompt of what a TOML file says. Raises PromptError for anything unknown or that does not fit."""
        try:
            return _parse(dict(values))
        except PromptError:
            raise
        except CutlineError as error:
            raise PromptError(str(error)) from None

    def settings(self) -> dict[str, Any]:
        """All that it says, as plain JSON values: equal for prompts that ask and do the same."""
        said = options.settings(self)
        said["checks"] = options.settings(self.checks)
        said["one_of"] = [one.settings() for one in self.one_of]
        return said

    def said(self) -> dict[str, Any]:
        """The prompt as a file says it, without what is as it is by default: `parse` reads it back."""
        plain = Prompt(user="?")
        found = {**_said(self, plain), "user": self.user}
        if self.one_of:
            found = {"one_of": [{**_said(one, plain), "user": one.user} for one in self.one_of]}
        if checks := _said(self.checks, Policies()):
            found["checks"] = checks
        return found

    def draw(self, text: str) -> Prompt:
        """The one that is asked: of several, drawn by weight with xxh64 of `text`, seed 1."""
        if not self.one_of:
            return self
        drawn = xxhash.xxh64_intdigest(text.encode(), seed=1) / 2**64 * sum(one.weight for one in self.one_of)
        ends = accumulate(one.weight for one in self.one_of)
        return next((one for one, end in zip(self.one_of, ends, strict=True) if drawn < end), self.one_of[-1])

    @functools.cached_property
    def gaps(self) -> tuple[str, ...]:
        """The names in all its templates."""
        texts = [text for one in self.one_of or (self,) for text in (one.system, one.user, one.around)]
        return tuple(dict.fromkeys(name for text in texts for name in _template(text).names))

    @property
    def tags(self) -> bool:
        """Whether its templates name tags."""
        return any(gap in _TAGS for gap in self.gaps)

    @property
    def captions(self) -> tuple[str, ...]:
        """The caption layers that its templates name."""
        return tuple(gap.replace(".", "/", 1) for gap in self.gaps if gap.startswith(_CAPTIONS))

    def fill(self, text: str, row: Row, tag_layers: Sequence[str], *, spaces: bool, answer: str = "") -> str:
        """One of its templates, filled with what is known of a picture.

        Args:
            text: the template.
            row: the picture's own columns and, by name, its row in each layer that is read.
            tag_layers: of which the first that has tags for the picture counts.
            spaces: write `_` in tags as a space, except in faces.
            answer: what fills `{answer}`.
        """
        template = _template(text)
        found = tags_of(row, tag_layers)
        return template.say(
            {gap: answer if gap == "answer" else _value(gap, row, found, spaces) for gap in template.names}
        )


def find_prompt(name: str) -> Prompt:
    """The prompt preset of that name, or the prompt file at that path. Raises PromptError, naming it."""
    try:
        said = toml_files.find("prompts", name, "prompt")
    except CutlineError as error:
        words = " To ask just these words: -o user=…" if " " in name.strip() or name.startswith("<") else ""
        raise PromptError(f"{error}{words}") from None
    try:
        return Prompt.parse(said)
    except PromptError as error:
        raise PromptError(f"prompt {name}: {error}") from None


def tags_of(row: Row, layers: Sequence[str]) -> Row | None:
    """The picture's row in the first of these tag layers that has any tag for it."""
    for layer in layers:
        said = row.get(layer)
        if said and not said.get("error") and any(said.get(category) for category in schemas.TAG_CATEGORIES):
            return said  # type: ignore[no-any-return]
    return None


def caption_of(row: Row, layer: str) -> str | None:
    """The picture's caption in that layer; None where there is none, or only one that was rejected."""
    said = row.get(layer) or {}
    good = said.get("texts") and not said.get("error") and said.get("verdict") != "rejected"
    return str(said["texts"][0]) if good else None


def _said(one: Prompt | Policies, plain: Prompt | Policies) -> dict[str, Any]:
    """The settings in which one differs from a plain one."""
    known = options.settings(plain)
    said = options.settings(one)
    return {name: value for name, value in said.items() if value != known[name] and name not in ("one_of", "checks")}


def _parse(values: dict[str, Any]) -> Prompt:
    checks = values.pop("checks", {})
    several = values.pop("one_of", [])
    if not isinstance(checks, dict):
        raise PromptError("checks is a table: [checks]")
    if not isinstance(several, list) or not all(isinstance(entry, dict) for entry in several):
        raise PromptError("one_of is a list of tables: [[one_of]]")
    if several and "weight" in values:
        raise PromptError("weight has an effect within [[one_of]] alone")
    if nested := [name for entry in several for name in ("one_of", "checks") if name in entry]:
        raise PromptError(f"[[one_of]] has no {nested[0]} of its own; it stands at the top")
    policies = options.fill(Policies, checks, name="[checks]")
    if not several:
        if "weight" in values:
            raise PromptError("weight has an effect within [[one_of]] alone")
        return replace(options.fill(Prompt, values, name="prompt"), checks=policies)
    made = tuple(options.fill(Prompt, {**values, **entry}, name="[[one_of]]") for entry in several)
    if idle := [name for name in values if all(name in entry for entry in several)]:
        raise PromptError(f"{idle[0]} at the top has no effect: each [[one_of]] says its own")
    return Prompt(one_of=made, checks=policies)


def _known(where: str, gap: str, more: Sequence[str]) -> None:
    if gap in (*_PLAIN, *_TAGS, *more) or (gap.startswith(_CAPTIONS) and len(gap) > len(_CAPTIONS)):
        return
    known = " ".join(f"{{{name}}}" for name in (*more, *_TAGS, *_PLAIN))
    raise PromptError(f"{where} has a gap {{{gap}}}, which nothing fills. There are: {known} and {{captions.LAYER}}")


def _value(gap: str, row: Row, found: Row | None, spaces: bool) -> str | None:
    if gap in _PLAIN:
        return None if row.get(gap) is None else str(row[gap])
    if gap.startswith(_CAPTIONS):
        return caption_of(row, gap.replace(".", "/", 1))
    if found is None:
        return None
    if gap == "tags.rating":
        return _RATINGS.get(found.get("rating") or "")
    if gap == "tags.year":
        return None if found.get("year") is None else str(found["year"])
    # What nobody has sorted is most likely general, and a model is better told of it than not.
    several = {"tags": schemas.TAG_CATEGORIES, "tags.general": ("general", "unsorted")}
    wanted = several.get(gap) or (gap.removeprefix("tags."),)
    names = [tag for category in wanted for tag in found.get(category) or () if tag]
    return ", ".join(tags.spaced(pa.array(names, pa.string())).to_pylist() if spaces else names) or None
