"""What annotators share that put a question to a model: what each picture is asked, and what is made of the answer.

There is one way to build a question and one to judge an answer. A dry run, a batch, another try and `--reparse` all
take them, so what is shown is what is done.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from cutline import schemas
from cutline.annotators.session import Row, RowError, seed_number, seed_text
from cutline.checks.findings import Finding, checked, kinds_of, together
from cutline.checks.judging import judge
from cutline.options import OptionError, option
from cutline.prompts import structured
from cutline.prompts.prompt import Prompt, find_prompt, tags_of

AGAIN_TEMPERATURE = 0.7
"""From the second try on, a search that would give the same answer again draws its words at this temperature."""


@dataclass(frozen=True)
class Asked:
    """What a model is asked about one picture."""

    prompt: Prompt
    """The one of several that was drawn."""
    system: str
    user: str
    seed: int
    """For random draws: 0 to 2**63 - 1, of the settings' seed, the picture's key and the attempt."""


@dataclass(frozen=True)
class Answer:
    """What is made of what a model said."""

    columns: Row
    """Of the captions layer: texts, raw, verdict, reason, finish_reason; and `checks`, a row of the checks layer."""
    again: bool
    """Something is wrong that another try may mend, and there is one left."""


@runtime_checkable
class Asking(Protocol):
    """An annotator that asks, and can judge an answer without the model."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The layers that it is given."""
        ...

    def ask(self, row: Row, attempt: int) -> Any:
        """What is asked about this picture."""
        ...

    def answer(self, row: Row, asked: Any, raw: str, *, finish_reason: str | None, tries: int = 1) -> Answer:
        """What is made of what the model said."""
        ...


@dataclass(frozen=True)
class Prompted:
    """The options of an annotator that asks."""

    default_prompt: ClassVar[str] = "plain"
    """Where none is given, and no weights bring one."""

    prompt: str | None = option("plain", "a prompt (`cutline presets prompts` lists them), or a TOML file")
    user: str | None = option(None, "what is asked, in place of the prompt's: a template such as 'Describe {tags}.'")
    system: str | None = option(None, "what the model is told that it is, in place of the prompt's")
    tags: tuple[str, ...] = option(
        (), "tag layers, of which the first that has tags for a picture counts; by default the dataset's only one"
    )
    seed: int = option(0, "another number, other draws: of prompts, and of words where they are drawn")

    def __post_init__(self) -> None:
        """Fill in what was left open and refuse a prompt that cannot be."""
        if self.prompt is None:
            object.__setattr__(self, "prompt", self.default_prompt)
        self.asking  # noqa: B018  which reads it
        for layer in self.tags:
            if not layer.startswith("tags/"):
                raise OptionError(f"tags={layer} is no tag layer; one looks like tags/danbooru")

    @functools.cached_property
    def asking(self) -> Prompt:
        """The prompt, with what `user` and `system` put in place of its own."""
        found = find_prompt(str(self.prompt))
        given = {name: text for name in ("user", "system") if (text := getattr(self, name)) is not None}
        if given and found.one_of:
            raise OptionError(
                f"prompt {self.prompt} draws one of several; {next(iter(given))}=… has no place in it. Write a prompt "
                "file of your own, or choose another with -o prompt=…"
            )
        return replace(found, **given) if given else found

    @property
    def reads(self) -> tuple[str, ...]:
        """The layers that it is given."""
        return ("pictures", *self.tags, *self.asking.captions)

    def fit(self, layers: Sequence[str]) -> Self:
        """Choose the tag layer where none is named. Raises OptionError for a layer that there is not."""
        for name in (*self.tags, *self.asking.captions):
            if name not in layers:
                kind = name.partition("/")[0]
                there = ", ".join(found for found in layers if found.startswith(kind + "/")) or "none"
                raise OptionError(
                    f"the prompt reads {name}, which this dataset does not have; of its kind there is: {there}"
                )
        found = tuple(name for name in layers if name.startswith("tags/"))
        if self.tags or not found:
            return self
        if len(found) > 1:
            if self._grounded:
                raise OptionError(
                    f"prompt {self.prompt} is about tags, and there are several layers of them: {', '.join(found)}. "
                    f"Say which: -o tags={found[0]}"
                )
            return self
        return replace(self, tags=found)

    @property
    def _grounded(self) -> bool:
        """Whether tags can change what a row says, rather than what is noted of it in the checks layer."""
        policies = self.asking.checks
        weighed = any(policies.of(kind) != "keep" for kind in ("count", "watermark", "text"))
        return self.asking.tags or weighed or (policies.coverage != "keep" and policies.least_coverage > 0)

    def identify(self, found: dict[str, Any]) -> dict[str, Any]:
        """The settings by which a layer is known: what the prompt says and not what it is called."""
        rest = {name: value for name, value in found.items() if name not in ("user", "system", "tags")}
        return {**rest, "prompt": self.asking.settings(), **({"tags": list(self.tags)} if self._grounded else {})}

    def ask(self, row: Row, attempt: int) -> Asked:
        """What is asked about this picture at this attempt (from 1). Raises RowError where that is nothing at all."""
        key = row["key"]
        prompt = self.asking.draw(f"{self.seed}/{key}")
        spaces = prompt.underscores == "space"
        system, user = (prompt.fill(text, row, self.tags, spaces=spaces) for text in (prompt.system, prompt.user))
        if not user.strip():
            raise RowError("no_prompt", "nothing is known of the picture that the prompt could be made of")
        return Asked(prompt, system, user, seed_number(seed_text(self.seed, key, attempt)))

    def answer(self, row: Row, asked: Asked, raw: str, *, finish_reason: str | None, tries: int = 1) -> Answer:
        """Make a caption of what the model said, and say what is wrong with it.

        Args:
            row: the picture, and its rows in the layers that are read.
            asked: what `ask` gave.
            raw: what the model said.
            finish_reason: `stop`, or `length` where it was cut; None where nobody knows.
            tries: how often this picture has been asked in this run.
        """
        prompt, policies = asked.prompt, self.asking.checks
        parsed = structured.parse(raw) if prompt.answer == "json" else None
        unread = parsed.reason if parsed and parsed.verdict == "rejected" else None
        thought = parsed is not None and not unread and "thinking" in kinds_of(parsed.reason)
        said = tags_of(row, self.tags) or {}
        judged = judge(
            parsed.text if parsed and not unread else raw,
            policies=policies,
            finish_reason=finish_reason,
            asked=self._own_words(row, asked),
            tags={category: said.get(category) or () for category in schemas.TAG_CATEGORIES},
            whole=parsed is not None,
        )
        verdicts = {judged.verdict, *([parsed.verdict] if parsed else [])}
        if thought and policies.thinking in ("again", "reject"):
            verdicts.add("rejected")
        verdict = next(one for one in ("rejected", "repaired", "good") if one in verdicts)
        # What was mended, or lost, of an answer that is rejected for its words is not why it is.
        read = parsed.reason if parsed and (unread or verdict != "rejected") else None
        reason = together("thinking" if thought else None, judged.reason, read)
        texts = []
        if verdict != "rejected":
            texts = [prompt.fill(prompt.around, row, self.tags, spaces=True, answer=judged.text)]
        findings = list(judged.findings)
        if unread:
            findings.insert(0, Finding("structure", unread))
        if thought:
            findings.insert(0, Finding("thinking", "thoughts before the JSON"))
        columns = {
            "texts": texts,
            "raw": raw,
            "verdict": verdict,
            "reason": reason,
            "finish_reason": finish_reason,
            "checks": checked(findings, judged.coverage, texts),
        }
        again = judged.again or (unread is not None and policies.structure == "again")
        again |= thought and policies.thinking == "again"
        return Answer(columns, again and tries < policies.tries)

    def _own_words(self, row: Row, asked: Asked) -> str:
        """What was asked but for captions of the picture: who is to better one may well say much of it again."""
        prompt = asked.prompt
        if not prompt.captions:
            return f"{asked.system}\n{asked.user}"
        rest = {name: said for name, said in row.items() if not name.startswith("captions/")}
        spaces = prompt.underscores == "space"
        return "\n".join(prompt.fill(text, rest, self.tags, spaces=spaces) for text in (prompt.system, prompt.user))
