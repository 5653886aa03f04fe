"""The kinds of fault that a caption can have."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = {
    "empty": "nothing is said: no letters, or only None and the like",
    "structure": "it is no JSON, where JSON was asked for",
    "loop": "the same words over and over",
    "cut": "the model was stopped by its limit of tokens (finish_reason length)",
    "refusal": "it begins with the model declining to do it",
    "thinking": "the model's thoughts stand in it",
    "prompt_echo": "it says again, word for word, what was asked",
    "same_text": "many pictures have this very text",
    "count": "it counts girls, boys or people otherwise than the tags do",
    "watermark": "it claims a watermark, signature or web address, or denies one, against the tags",
    "text": "it claims text in the picture, or denies it, against the tags",
    "coverage": "it tells of too few of the given tags",
}

DETAIL = 200
"""Characters that a detail has at most."""


@dataclass(frozen=True)
class Finding:
    """One fault of a caption."""

    kind: str
    """One of `KINDS`."""
    detail: str
    """A short sentence for people, at most 200 characters."""

    def __post_init__(self) -> None:
        if len(self.detail) > DETAIL:
            object.__setattr__(self, "detail", self.detail[: DETAIL - 1] + "…")


@dataclass(frozen=True)
class Fault:
    """A finding in a text, and what is left of the text without it; empty where nothing can be left."""

    finding: Finding
    rest: str
