"""What `cutline train` is for, proved: a captioner learns other words for what it sees, from some 200 pictures.

The demo's captioner says circle, square, triangle and star. It is taught to say disc, box, wedge and spark: tokens that
it has, but that no caption of its own training held. Pictures, words and numbers go the ways of a user's own, by the
commands in `docs/learning-example.md`, each in a process of its own.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cutline.dataset import Dataset
from cutline.demo import write_scenes
from cutline.demo.scenes import rename
from running import captions, cutline

TEACH = {
    "target_modules": "self.query,self.key,self.value,output.dense",  # what writes: seeing is nothing new
    "learning_rate": "3e-3",
    "epochs": 10,
    "validation": 0.5,
    "measured": 400,
    "sample_every_n_epochs": 5,
    "save_every_n_epochs": 5,
    "name": "renamed",
}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_adapter_teaches_other_words(whole_demo: tuple[Path, str], tmp_path: Path) -> None:
    captioner, root = whole_demo[0] / "captioner", tmp_path / "renamed"
    truth = {name: rename(scene.caption) for name, scene in write_scenes(root, 400, seed=1).items()}
    for name, words in truth.items():
        (root / name).with_suffix(".txt").write_text(words, "utf-8")
    cutline("add", root)

    given = [f"-o{name}={value}" for name, value in {"model": captioner, **TEACH}.items()]
    cutline("train", root, "blip-lora", *given, timeout=400)
    run = root / ".cutline" / "runs" / "renamed"
    measured = json.loads((run / "evaluation.json").read_text("utf-8"))
    rows = pq.read_table(run / "rows.parquet").to_pylist()
    learnt = {row["text"] for row in rows if row["part"] == "train"}
    held_out = {row["key"] for row in rows if row["part"] == "held_out"}
    assert sum(row["part"] == "train" for row in rows) <= 210, "from some 200 pictures"
    assert measured["pictures"] == len(held_out) >= 180

    # In processes of their own, from the run's folder alone, the adapter says what the run measured.
    cutline("annotate", root, "blip", "-o", f"model={captioner}", "-o", "beams=1", "--as", "captions/before")
    cutline("annotate", root, "blip", "-o", f"adapter={run}", "-o", "beams=1", "--as", "captions/after")
    for layer in ("before", "after"):
        said = captions(Dataset(root), f"captions/{layer}")
        noted = json.loads((run / f"captions-{layer}.json").read_text("utf-8"))
        assert {key: said[key] for key in held_out} == noted

    asked = ("--against", "captions/sidecar", "--baseline", "captions/before", "--held-out", "renamed", "--json")
    found = json.loads(cutline("evaluate", root, "captions/after", *asked).stdout)
    for before, after in (
        (measured["before"]["exact"], measured["after"]["exact"]),
        (found["baseline"]["scores"]["exact"]["score"], found["scores"]["exact"]["score"]),
    ):
        assert before < 0.1
        assert after > 0.85
    assert found["differences"]["exact"]["low"] > 0.75

    unseen = [key for key in held_out if truth[key] not in learnt]
    right = sum(said[key] == truth[key] for key in unseen)
    assert right > 0.85 * len(unseen) > 100, "also of captions that no picture to learn from has: it composes"
