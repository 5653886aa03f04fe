"""The kinds of fault that a caption can have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import xxhash

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


def checked(findings: Sequence[Finding], coverage: float | None, texts: Sequence[str]) -> dict[str, Any]:
    """The columns of a row of the checks layer: what was found in these texts of a picture."""
    return {
        "findings": [finding.kind for finding in findings],
        "details": [finding.detail for finding in findings],
        "coverage": coverage,
        "caption": hash_of(texts),
    }


def together(*reasons: str | None) -> str | None:
    """Reasons as one: kinds with `, ` between them, each once, and after `lost: ` what was lost."""
    known = dict.fromkeys(kind for reason in reasons for kind in kinds_of(reason))
    lost = "; ".join(told for reason in reasons if (told := (reason or "").partition("lost: ")[2]))
    return "; ".join(filter(None, [", ".join(known), f"lost: {lost}" if lost else ""])) or None


def kinds_of(reason: str | None) -> list[str]:
    """The kinds in a reason, without what was lost."""
    kinds = (reason or "").partition("lost: ")[0].removesuffix("; ")
    return kinds.split(", ") if kinds else []


def hash_of(texts: Sequence[str]) -> str:
    """By which one can tell whether a row of the checks layer is about these texts: xxh64, 16 hexadecimal digits."""
    return xxhash.xxh64_hexdigest("\0".join(texts).encode())


@dataclass(frozen=True)
class Fault:
    """A finding in a text, and what is left of the text without it; empty where nothing can be left."""

    finding: Finding
    rest: str
