"""One layer of captions against another: which pictures count, what came of it, and the files that show it.

The captions that count are those that are used elsewhere, too: no errors, nothing rejected, the first of a row's texts.
Of the layer that is taken for true, all of a row's texts are references.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cutline import schemas
from cutline.dataset import Dataset
from cutline.evaluation.captions import Difference, Measured, measure, paired
from cutline.evaluation.embedders import find_embedder
from cutline.evaluation.words import words
from cutline.files import storage_error, whole_file
from cutline.options import CutlineError, OptionError
from cutline.pictures import Picture
from cutline.sheet import Entry, contact_sheet

SHOWN = 24
"""Pictures of a sheet."""


@dataclass(frozen=True)
class Captions:
    """The captions of one layer, measured."""

    layer: str
    said: Mapping[str, str]
    """Key -> caption; not every picture need have one."""
    measured: Measured
    missing: int
    """Pictures with a reference and without a caption: they count as empty captions."""

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Of each score, 95 %."""
        return self.measured.intervals()

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        scores = {
            name: {"score": score, "low": self.intervals[name][0], "high": self.intervals[name][1]}
            for name, score in self.measured.scores.items()
        }
        return {"layer": self.layer, "without_caption": self.missing, "scores": scores}


@dataclass(frozen=True)
class Evaluation:
    """What holding one or two layers of captions against a third came to."""

    dataset: Dataset
    against: str
    references: Mapping[str, Sequence[str]]
    """Key -> what is taken for true; every picture that was compared."""
    captions: Captions
    baseline: Captions | None
    without_reference: int
    """Pictures that were asked for and have none: they are not compared."""

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """By how much each score is above the baseline's; empty without one."""
        return paired(self.captions.measured, self.baseline.measured) if self.baseline else {}

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        found = {
            "against": self.against,
            "pictures": len(self.references),
            "without_reference": self.without_reference,
            "embedder": self.captions.measured.embedder,
            **self.captions.as_dict(),
        }
        if self.baseline:
            differences = {name: difference._asdict() for name, difference in self.differences.items()}
            found |= {"baseline": self.baseline.as_dict(), "differences": differences}
        return found


def evaluate(
    dataset: Dataset,
    layer: str,
    against: str,
    *,
    baseline: str = "",
    where: str = "",
    keys: Collection[str] | None = None,
    embedder: str = "",
) -> Evaluation:
    """Measure the captions of one layer against those of another.

    Args:
        dataset: whose layers.
        layer: what is measured.
        against: what is taken for true.
        baseline: a third layer, to tell by how much the first is better than it.
        where: an SQL condition, as in `Dataset.scan`.
        keys: only these pictures.
        embedder: the name of the one by which meaning is compared, as in `find_embedder`; loaded last.

    Raises:
        OptionError: a layer that is not there, holds no captions, or is named twice.
        CutlineError: no picture has both a caption and a reference, or the embedder cannot be had.
    """
    check_layers(dataset, layer, against, baseline)
    named = [name for name in (layer, baseline) if name]
    said: dict[str, dict[str, str]] = {name: {} for name in named}
    references: dict[str, list[str]] = {}
    without = 0
    wanted = None if keys is None else set(keys)
    for batch in dataset.scan(*named, against, where=where, fields=("texts", "verdict")):
        columns = {name: batch.column(name).to_pylist() for name in (*named, against)}
        for number, key in enumerate(batch.column("key").to_pylist()):
            if wanted is not None and key not in wanted:
                continue
            texts = [text for text in _texts(columns[against][number]) if words(text)]
            if not texts:
                without += 1
                continue
            references[key] = texts
            for name in named:
                if caption := next(iter(_texts(columns[name][number])), ""):
                    said[name][key] = caption
    if not references:
        chosen = "asked for" if keys is None else "held out"
        asked = f"none of the {without:,} pictures that were {chosen}" if without else f"no picture was {chosen} that"
        raise CutlineError(
            f"{asked} has a caption in {against} to be held against. See what there is: cutline status {dataset.root}"
        )
    for name in named:
        if not said[name]:
            raise CutlineError(
                f"{name} has no caption for any of the {len(references):,} pictures "
                f"that have one in {against}. See what there is: cutline status {dataset.root}"
            )
    meanings = find_embedder(embedder)
    made = [
        Captions(name, said[name], measure(said[name], references, meanings), len(references) - len(said[name]))
        for name in named
    ]
    return Evaluation(dataset, against, references, made[0], made[1] if baseline else None, without)


def held_out(dataset: Dataset, run: str) -> set[str]:
    """The keys that a training left out to be measured on.

    Args:
        dataset: whose run it may be.
        run: the run's folder, or its name among the dataset's.

    Raises:
        CutlineError: it is no run, or nothing was held out.
    """
    folders = [Path(run).expanduser(), dataset.home / "runs" / run]
    file = next((path for folder in folders if (path := folder / "rows.parquet").is_file()), None)
    if file is None:
        raise OptionError(
            f"--held-out {run} is no run of a training: there is no {folders[0] / 'rows.parquet'}, nor one in "
            f"{dataset.home / 'runs'}"
        )
    try:
        rows = pq.read_table(file, columns=["key", "part"])
    except (pa.ArrowException, OSError) as error:
        raise CutlineError(f"{file} cannot be read: {error}") from None
    found = set(rows.filter(pc.equal(rows.column("part"), "held_out")).column("key").to_pylist())
    if not found:
        raise CutlineError(f"{file}: that training held no pictures out")
    return found


def write_files(evaluation: Evaluation, out: Path) -> list[Path]:
    """Write `evaluation.json`, `pictures.csv` and two sheets into a folder, which is made. Returns the files.

    The sheets show where the baseline lost most and where it won most, or without a baseline the best and the worst
    captions: by the F1 of meaning, and where that is equal (a lexical embedder knows no order) by ROUGE-L. Every
    picture's CIDEr-D hangs on how rare the words of all others are, and is often 0: in the table, but no guide.

    Raises:
        StorageError: the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(out, error) from error
    with whole_file(out / "evaluation.json", "w") as handle:
        handle.write(json.dumps(evaluation.as_dict(), ensure_ascii=False, indent=2) + "\n")
    with whole_file(out / "pictures.csv", "w") as handle:
        _write_csv(evaluation, csv.writer(handle, lineterminator="\n"))
    for name, (title, keys) in (sheets := extremes(evaluation)).items():
        entries = [_entry(evaluation, key, ticked=name in ("wins", "best")) for key in keys[:SHOWN]]
        contact_sheet(entries, out / f"{name}.png", title=title, columns=6)
    return [out / name for name in ("evaluation.json", "pictures.csv", *(f"{name}.png" for name in sheets))]


def extremes(evaluation: Evaluation) -> dict[str, tuple[str, list[str]]]:
    """The sheets of an evaluation: name -> (title, keys, the greatest difference first).

    With a baseline all wins and all losses; without one, the better and the worse half.
    """
    gains = {key: _gain(evaluation, key) for key in evaluation.references}
    ordered = sorted(gains, key=lambda key: (*(-gain for gain in gains[key]), key))
    layer = evaluation.captions.layer
    if evaluation.baseline:
        won = [key for key in ordered if gains[key] > (0, 0)]
        lost = [key for key in reversed(ordered) if gains[key] < (0, 0)]
        beside = f"of {len(ordered):,}: {layer} beside {evaluation.baseline.layer}"
        shown = f"(the first {SHOWN} shown) "
        titles = [
            f"{len(keys):,} {name} {shown if len(keys) > SHOWN else ''}{beside}"
            for name, keys in (("wins", won), ("losses", lost))
        ]
        return {"wins": (titles[0], won), "losses": (titles[1], lost)}
    half = -(-len(ordered) // 2)
    beside = f"of the {len(ordered):,} captions of {layer}"
    return {"best": (f"best {beside}", ordered[:half]), "worst": (f"worst {beside}", ordered[half:][::-1])}


def check_layers(dataset: Dataset, layer: str, against: str, baseline: str) -> None:
    """Raise OptionError unless these are different layers of captions that exist."""
    there = [name for name in dataset.layers() if schemas.kind(name) == "captions"]
    for name in (layer, against, *([baseline] if baseline else [])):
        if name not in there:
            raise OptionError(f"{dataset.root} has no captions {name}; it has: {', '.join(there) or 'none'}")
    if layer == against:
        raise OptionError(
            f"{layer} cannot be held against itself; --against names the captions that are taken for true"
        )
    if baseline in (layer, against):
        raise OptionError(f"--baseline {baseline} is named twice; it is a third layer, to which {layer} is compared")


def _texts(row: Mapping[str, Any] | None) -> list[str]:
    """What a row says, where it counts."""
    if row is None or row["error"] is not None or row["verdict"] == "rejected":
        return []
    return [text for text in row["texts"] or () if text and text.strip()]


def _gain(evaluation: Evaluation, key: str) -> tuple[float, float]:
    """By how much a picture's caption is nearer to its references than the baseline's, or is near without one."""
    names = ("semantic_f1", "rouge_l")
    scores = evaluation.captions.measured.each[key]
    before = evaluation.baseline.measured.each[key] if evaluation.baseline else dict.fromkeys(names, 0.0)
    first, second = (round(scores[name] - before[name], 6) for name in names)  # of no account: the rounding of float32
    return first, second


def _entry(evaluation: Evaluation, key: str, *, ticked: bool) -> Entry:
    scores = evaluation.captions.measured.each[key]
    notes = [f"F1 {scores['semantic_f1']:.2f}"]
    if evaluation.baseline:
        notes.insert(0, f"before: {evaluation.baseline.said.get(key, '(no caption)')}")
        notes[-1] += f", before {evaluation.baseline.measured.each[key]['semantic_f1']:.2f}"
    caption = evaluation.captions.said.get(key)
    truth = caption if caption in evaluation.references[key] else evaluation.references[key][0]
    return Entry(_picture(evaluation.dataset, key), caption, str(truth), ticked, (*notes, key))


def _picture(dataset: Dataset, key: str) -> Picture | None:
    try:
        return dataset.picture(key)
    except CutlineError:
        return None  # only metadata tells of it


def _write_csv(evaluation: Evaluation, writer: Any) -> None:
    """A line for each picture: its texts (references on lines of their own) and its scores."""
    sets = [("", evaluation.captions)]
    if evaluation.baseline:
        sets.append(("baseline_", evaluation.baseline))
    scored = list(next(iter(evaluation.captions.measured.each.values())))
    columns = [f"{prefix}{name}" for prefix, _ in sets for name in ("caption", *scored)]
    writer.writerow(["key", "references", *columns])
    for key, references in evaluation.references.items():
        cells: list[str] = []
        for _, captions in sets:
            scores = captions.measured.each[key]
            cells += [captions.said.get(key, ""), *(f"{scores[name]:.6g}" for name in scored)]
        writer.writerow([key, "\n".join(references), *cells])
