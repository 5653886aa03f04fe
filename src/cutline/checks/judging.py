"""Judging one caption: every check in turn, and for each finding what its policy says.

A policy is `again` (ask once more with another seed; rejected where nobody does), `reject`, `trim` (leave the faulty
part out and go on with the rest, which is then `repaired`) or `keep` (only note it). Where trimming leaves nothing
whole, the caption is rejected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cutline import sentences
from cutline.checks import evidence, texts
from cutline.checks.findings import Fault, Finding
from cutline.options import OptionError, option

Policy = Literal["again", "trim", "reject", "keep"]

_NO_TRIM = ("empty", "same_text", "coverage")  # there is no faulty part that could be left out


@dataclass(frozen=True)
class Policies:
    """What is done about each kind of finding: the `[checks]` table of a prompt. Raises OptionError for bad values."""

    empty: Policy = option("again", "for a caption that says nothing: again or reject")
    structure: Policy = option("again", "for an answer that is no JSON, where JSON was asked for: again or reject")
    loop: Policy = option("again", "for words over and over; trim cuts where they begin again")
    cut: Policy = option(
        "trim", "for an answer that its limit of tokens cut; trim goes back to the last whole sentence"
    )
    refusal: Policy = option("again", "for an answer that begins by declining; trim leaves those sentences out")
    thinking: Policy = option("trim", "for thoughts in the answer; trim leaves them out")
    prompt_echo: Policy = option("again", "for an answer that repeats what was asked; trim leaves those sentences out")
    same_text: Policy = option("keep", "for a text that many pictures have, which only `cutline check` sees")
    count: Policy = option("keep", "for other numbers of people than the tags say; trim leaves those sentences out")
    watermark: Policy = option("keep", "for a watermark that the tags do not know; trim leaves those sentences out")
    text: Policy = option("keep", "for text in the picture that the tags do not know; trim leaves those sentences out")
    coverage: Policy = option("keep", "for a caption that covers less of the tags than least_coverage")
    tries: int = option(3, "how often a picture is asked about, at most")
    least_coverage: float = option(0.0, "the share of the given tags, 0 to 1, that a caption has to cover")

    def __post_init__(self) -> None:
        for kind in _NO_TRIM:
            if self.of(kind) == "trim":
                raise OptionError(f"checks: {kind}='trim' cannot be done, since nothing in it could be left out")
        if self.empty == "keep":
            raise OptionError("checks: empty='keep' cannot be done: what is empty is never good. It is again or reject")
        if self.structure in ("keep", "trim"):
            raise OptionError(
                f"checks: structure={self.structure!r} cannot be done: there is no caption. It is again or reject"
            )
        if self.tries < 1:
            raise OptionError(f"checks: tries={self.tries}: a picture is asked about once or more")
        if not 0 <= self.least_coverage <= 1:
            raise OptionError(f"checks: least_coverage={self.least_coverage}: it is a share, from 0 to 1")

    def of(self, kind: str) -> Policy:
        """The policy for a kind of finding."""
        policy: Policy = getattr(self, kind)
        return policy


@dataclass(frozen=True)
class Judged:
    """What becomes of a caption."""

    text: str
    """The caption; empty where it is rejected."""
    verdict: Literal["good", "repaired", "rejected"]
    reason: str | None
    """The kinds of finding that made it repaired or rejected, joined with `, `."""
    findings: tuple[Finding, ...]
    """All, also those whose policy is to keep the caption."""
    coverage: float | None
    """The share of the given tags that it covers, 0 to 1; None where no tags were given."""
    again: bool
    """A finding's policy is to ask once more. It is for the caller to count the tries."""


def judge(
    text: str,
    *,
    policies: Policies,
    finish_reason: str | None = None,
    asked: str = "",
    tags: Mapping[str, Sequence[str]] | None = None,
    whole: bool = False,
) -> Judged:
    """Look for every kind of fault but `same_text`, which takes more than one caption to see.

    What is rejected is not held against the tags.

    Args:
        text: the caption as the model said it; of an answer in JSON, what `structured.parse` made of it.
        policies: what is done about each kind.
        finish_reason: as the server or model gave it; `length` is what makes a caption `cut`.
        asked: all the text that the model was given.
        tags: those of the picture by category (`general`, `character` …); no tags are no evidence.
        whole: the caption was cut back already, as `structured.parse` does, so that trimming `cut` leaves it as it is.
    """
    left, known, done = text.strip(), evidence.Tags.of(tags or {}), list[Finding]()
    while True:  # what trimming leaves is looked at as if the model had said just that
        once = _look(left, policies, finish_reason, asked, known, whole)
        found = (*done, *once.findings)
        if once.verdict != "repaired":
            break
        done += [finding for finding in once.findings if policies.of(finding.kind) == "trim"]
        left, finish_reason = once.text, None
    verdict = "repaired" if done and once.verdict == "good" else once.verdict
    kinds = ", ".join(dict.fromkeys(finding.kind for finding in found if policies.of(finding.kind) != "keep"))
    return replace(once, verdict=verdict, reason=kinds or None, findings=tuple(dict.fromkeys(found)))


def _look(
    text: str, policies: Policies, finish_reason: str | None, asked: str, known: evidence.Tags, whole: bool
) -> Judged:
    left, found = text, list[Finding]()
    rejected = again = trimmed = False

    def act(fault: Fault | None) -> None:
        nonlocal left, rejected, again, trimmed
        if fault is None:
            return
        found.append(fault.finding)
        policy = policies.of(fault.finding.kind)
        again |= policy == "again"
        rejected |= policy in ("again", "reject")
        if policy == "trim":
            left, trimmed = fault.rest, True

    act(texts.thinking(left))
    act(nothing := texts.empty(left))
    if nothing is None:
        act(texts.refusal(left))
        act(texts.prompt_echo(left, asked))
        act(texts.loop(left))
        if finish_reason == "length":
            act(Fault(Finding("cut", "finish_reason is length"), left if whole else sentences.whole(left)))
    coverage = None
    if known and not rejected and not texts.empty(left):
        for check in (evidence.count, evidence.watermark, evidence.text):
            act(check(left, known))
        coverage, missing = evidence.coverage(left, known)
        if coverage is not None and coverage < policies.least_coverage and not trimmed:
            detail = f"{coverage:.0%} of the tags are told, less than {policies.least_coverage:.0%}; not: "
            act(Fault(Finding("coverage", detail + ", ".join(missing)), ""))
    if rejected or texts.empty(left):
        return Judged("", "rejected", None, tuple(found), None, again)
    return Judged(left, "repaired" if trimmed else "good", None, tuple(found), coverage, False)
