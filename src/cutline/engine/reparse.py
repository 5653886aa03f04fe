"""Reading once more what models have said: a better parser or judge is applied to a layer, without the model.

Each row of captions keeps what the model said (`raw`). Rows of which something else is made today are written anew;
those that came in from files of rejected answers are mended in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from cutline.annotators.prompted import Asking
from cutline.annotators.session import RowError
from cutline.engine.selection import Selection
from cutline.options import OptionError

_MADE = ("texts", "verdict", "reason")


@dataclass
class Report:
    """What reading once more came to."""

    read: int = 0
    changed: int = 0
    good: int = 0
    repaired: int = 0
    rejected: int = 0
    """Of those that changed, by what they are now."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Why the rejected ones still are, of all that were read."""


def reparse(selection: Selection, *, dry_run: bool = False) -> Report:
    """Apply the annotator's parser and checks to what its layer says that a model said.

    In a layer that a source filled only rejected rows are read: what else stands there is not a model's answer.

    Raises:
        OptionError: the annotator asks nothing, or the layer is not there.
        IdentityError: the layer was made with other settings.
    """
    asking = selection.annotator
    if not isinstance(asking, Asking):
        raise OptionError(f"{selection.name} has no prompt, so there is no answer of its to read again")
    dataset, name = selection.dataset, selection.layer
    if name not in dataset.layers():
        raise OptionError(f"there is no layer {name} to read again; say which with --as captions/…")
    ours = dataset.layer(name).info() is not None
    if ours:
        selection.check()
    report = Report()
    layers = tuple(layer for layer in asking.reads if layer not in ("pictures", name))
    with selection.checks() as checks, dataset.layer(name).amend() as writer:
        batches = dataset.scan(*layers, name, where=selection.where)
        wanted = (row for batch in batches for row in batch.to_pylist() if _is_answer(row, row[name], selection, ours))
        for row in islice(wanted, selection.limit):
            said = row[name]
            try:
                asked = asking.ask(row, said["attempt"] or 1)
            except RowError:  # what it was asked is no longer known, so what it said stands
                continue
            answer = asking.answer(row, asked, said["raw"], finish_reason=said["finish_reason"])
            made = {column: answer.columns[column] for column in _MADE}
            report.read += 1
            if made["verdict"] == "rejected":
                reason = made["reason"].partition(";")[0]
                report.reasons[reason] = report.reasons.get(reason, 0) + 1
            if all((said[column] or None) == (made[column] or None) for column in _MADE):
                continue
            report.changed += 1
            setattr(report, made["verdict"], getattr(report, made["verdict"]) + 1)
            if not dry_run:
                known = {"key": row["key"], "content": said["content"]}
                checks.add({**answer.columns["checks"], **known})
                writer.add({**said, **made, **known, "mended": "reparse"})
    return report


def _is_answer(row: dict[str, Any], said: dict[str, Any] | None, selection: Selection, ours: bool) -> bool:
    if said is None or said["error"] or not said["raw"]:
        return False
    if selection.shard is not None and not selection.shard.has(row["key"]):
        return False
    return ours or said["verdict"] == "rejected"
