"""Checking a whole layer of captions, streamed: what is found goes to `checks/<name>`, and what policies say is done.

A row of the checks layer is about the very texts it was made from (`caption`). Only rows that say something new are
written, so that checking again writes nothing. Rejected captions are not looked at: they are no captions any more, and
why is in their `reason`. What only the moment of captioning knows, that a caption repeats what was asked, stays in the
row as long as the caption does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from cutline import options, schemas
from cutline.checks.findings import Finding, checked, hash_of, kinds_of, together
from cutline.checks.judging import Judged, Policies, judge
from cutline.dataset import Dataset
from cutline.layer import identifier
from cutline.options import OptionError

SAME_TEXT = 3
"""More pictures than these with one text are a finding."""

Row = dict[str, Any]
_ABOUT = ("findings", "details", "coverage", "caption")
_UNSEEN = "prompt_echo"


@dataclass(frozen=True)
class Example:
    """A caption that has a finding."""

    key: str
    detail: str
    caption: str


@dataclass
class Report:
    """What checking a layer came to."""

    checked: int = 0
    """Pictures whose captions were looked at."""
    faulty: int = 0
    """Those with a finding."""
    skipped: int = 0
    """Pictures whose caption was rejected before."""
    findings: Counter[str] = field(default_factory=Counter)
    """How many pictures have a finding of this kind."""
    examples: dict[str, Example] = field(default_factory=dict)
    """The first of each kind, by key."""
    coverage: float | None = None
    """The mean over all captions of pictures with tags; None without any."""
    written: int = 0
    """Rows of the checks layer that said something new."""
    repaired: int = 0
    rejected: int = 0
    """Captions that were, by their policies."""


def find_tags(dataset: Dataset, named: str = "") -> str:
    """The tag layer to hold captions against: the one named, or the dataset's only one; empty where it has none.

    Raises:
        OptionError: there is none of that name, or there are several and none is named.
    """
    there = [name for name in dataset.layers() if schemas.kind(name) == "tags"]
    if named:
        if named not in there:
            raise OptionError(f"{dataset.root} has no tag layer {named}; it has: {', '.join(there) or 'none'}")
        return named
    if len(there) > 1:
        raise OptionError(f"{dataset.root} has several tag layers: {', '.join(there)}. Say which: --tags {there[0]}")
    return there[0] if there else ""


def policies_of(dataset: Dataset, layer: str) -> Policies:
    """The policies of the prompt that made a layer; the usual ones where none did."""
    prompt = ((dataset.layer(layer).info() or {}).get("settings") or {}).get("prompt")
    return options.fill(Policies, prompt.get("checks", {}), name="[checks]") if isinstance(prompt, dict) else Policies()


def check(
    dataset: Dataset,
    layer: str,
    *,
    tags: str = "",
    policies: Policies | None = None,
    repair: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Report:
    """Check the captions of all readable pictures, and write what was found to `checks/<name>`.

    Args:
        dataset: whose.
        layer: of captions.
        tags: the tag layer to hold them against; without one, nothing is.
        policies: what counts as too little coverage, and with `repair` what is done about findings; by default those
            of the prompt that made the layer.
        repair: trim and reject captions, as the policies say, by adding rows to the layer: `again` rejects, for
            `annotate --retry rejected` to do it again.
        progress: called with the number of pictures that are done so far.

    Raises:
        OptionError: there is no such layer of captions, or people wrote what is to be repaired.
    """
    if schemas.kind(layer) != "captions" or layer not in dataset.layers():
        there = ", ".join(name for name in dataset.layers() if schemas.kind(name) == "captions") or "none yet"
        raise OptionError(f"{layer} is no layer of captions of {dataset.root}; there are: {there}")
    if repair and layer == "captions/human":
        raise OptionError("captions/human is what people wrote, which no machine changes; leave out --repair")
    about = f"checks/{layer.partition('/')[2]}"
    judging = _Judging(layer, tags, policies or policies_of(dataset, layer))
    report, total, with_tags = Report(), 0.0, 0
    fields = [*schemas.columns(layer), *schemas.TAG_CATEGORIES, *_ABOUT]
    many = _Many(dataset, layer)
    amending = dataset.layer(layer).amend() if repair else nullcontext()
    done = 0
    with amending as writer, dataset.layer(about).write() as notes:  # what is found is on disk before what is done
        for batch in dataset.scan(layer, *filter(None, [tags]), about, fields=fields):
            for row in batch.to_pylist():
                said = row[layer]
                if not said or said["error"]:
                    continue
                if said["verdict"] == "rejected":
                    report.skipped += 1
                    continue
                found = judging.look(row, many.of(row["key"]), row[about])
                _count(report, row["key"], said, found)
                if found.coverage is not None:
                    total, with_tags = total + found.coverage, with_tags + 1
                if writer is not None and found.verdict != "good":
                    made = _mended(said, found)
                    writer.add({"key": row["key"], **made})
                    setattr(report, found.verdict, getattr(report, found.verdict) + 1)
                    if found.verdict == "repaired":  # what is noted is about the caption as it is now
                        row = {**row, layer: {**said, **made}}
                        found = judging.look(row, 0, None)
                        said = row[layer]
                note = checked(found.findings, found.coverage, _texts(said))
                if _news(note, row[about]):
                    notes.add({"key": row["key"], "content": said["content"], **note})
                    report.written += 1
            done += batch.num_rows
            notes.tick()
            progress(done)
    report.coverage = total / with_tags if with_tags else None
    return report


@dataclass(frozen=True)
class _Found:
    """What is wrong with a picture's captions, and what becomes of them."""

    texts: list[str]
    verdict: str
    reason: str | None
    findings: tuple[Finding, ...]
    coverage: float | None


@dataclass(frozen=True)
class _Judging:
    layer: str
    tags: str
    policies: Policies

    def look(self, row: Row, pictures: int, before: Row | None) -> _Found:
        """Judge every caption of a picture. Of several, those that are rejected fall away; the first tells coverage."""
        said, policies = row[self.layer], self.policies
        texts = _texts(said) or [""]
        cut_already = "cut" in kinds_of(said["reason"])
        known = (row[self.tags] if self.tags else None) or {}
        judged = [
            judge(
                text,
                policies=policies,
                finish_reason=None if cut_already else said["finish_reason"],
                tags={category: known.get(category) or () for category in schemas.TAG_CATEGORIES},
            )
            for text in texts
        ]
        more = []
        if pictures > SAME_TEXT:
            more.append(Finding("same_text", f"{pictures:,} pictures have this very text"))
        if before and before["caption"] == hash_of(_texts(said)):
            more += [
                Finding(kind, detail)
                for kind, detail in zip(before["findings"], before["details"], strict=True)
                if kind == _UNSEEN
            ]
        return _gathered(judged, more, policies)


def _gathered(judged: list[Judged], more: list[Finding], policies: Policies) -> _Found:
    findings = tuple(dict.fromkeys([finding for one in judged for finding in one.findings] + more))
    kept = [one.text for one in judged if one.verdict != "rejected"]
    acted = [finding.kind for finding in more if policies.of(finding.kind) in ("again", "reject")]
    reasons = [one.reason for one in judged if one.reason] + acted
    reason = ", ".join(dict.fromkeys(kind for reason in reasons for kind in reason.split(", "))) or None
    if not kept or acted:
        return _Found([], "rejected", reason, findings, judged[0].coverage)
    good = len(kept) == len(judged) and all(one.verdict == "good" for one in judged)
    return _Found(kept, "good" if good else "repaired", reason, findings, judged[0].coverage)


def _count(report: Report, key: str, said: Row, found: _Found) -> None:
    report.checked += 1
    report.faulty += bool(found.findings)
    texts = _texts(said)
    for kind, detail in {finding.kind: finding.detail for finding in reversed(found.findings)}.items():
        report.findings[kind] += 1
        report.examples.setdefault(kind, Example(key, detail, texts[0] if texts else ""))


def _mended(said: Row, found: _Found) -> Row:
    """The caption row as it is to be: what the model said stays, or is what stood there."""
    raw = said["raw"]
    if raw is None:
        raw = "\n".join(_texts(said))
    kept = {name: value for name, value in said.items() if name not in ("error", "detail")}
    reason = found.reason if found.verdict == "rejected" else together(said["reason"], found.reason)
    return {
        **kept,
        "texts": found.texts or None,
        "raw": raw,
        "verdict": found.verdict,
        "reason": reason,
        "mended": "check",
    }


def _texts(said: Row) -> list[str]:
    return [text for text in said["texts"] or [] if text is not None]


def _news(note: Row, before: Row | None) -> bool:
    return before is None or any(before[name] != note[name] for name in _ABOUT)


class _Many:
    """How many pictures share a picture's caption, in the order of keys: two sorted streams side by side."""

    def __init__(self, dataset: Dataset, layer: str) -> None:
        same = f"""
            with said as (
                select key, hash(lower(trim(regexp_replace(text, '\\s+', ' ', 'g')))) as text
                from {identifier(layer)}
                semi join (select key from pictures where error is null) as readable using (key)
                where error is null and verdict is distinct from 'rejected' and trim(text) <> ''
            ), many as (select text, count(*) as pictures from said group by text having count(*) > {SAME_TEXT})
            select key, pictures from said join many using (text) order by key"""
        self._rows: Iterator[tuple[str, int]] = (
            (row["key"], row["pictures"]) for batch in dataset.sql(same).batches() for row in batch.to_pylist()
        )
        self._next = next(self._rows, None)

    def of(self, key: str) -> int:
        """For this key, not less than the last: how many have its text; 0 where no more than `SAME_TEXT` do."""
        while self._next is not None and self._next[0] < key:
            self._next = next(self._rows, None)
        return self._next[1] if self._next is not None and self._next[0] == key else 0
