"""Scanning walks the keys slice by slice; whatever lies on the disk, it gives what one big join would give."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cutline.annotators.echo import Echo
from cutline.compose.recipe import default_recipe
from cutline.dataset import Dataset, Found, KeyRule
from cutline.dataset.cuts import read_cuts
from cutline.engine.here import annotate
from cutline.engine.selection import Selection
from cutline.exports.export import export
from cutline.exports.kohya import Kohya
from cutline.exports.metadata_jsonl import MetadataJsonl
from cutline.sources.folder import Folder

LAYERS = ("captions/x", "tags/y", "captions/never")


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    """Slices of three pictures, in row groups of two."""
    with (
        patch("cutline.dataset.cuts.PICTURES_PER_CUT", 3),
        patch("cutline.dataset.gather.PICTURES_PER_CUT", 3),
        patch("cutline.layer.ROW_GROUP", 2),
    ):
        yield


class Posts:
    """Pictures that only metadata tells of, and their words, in this order."""

    rule = KeyRule("stem")

    def __init__(self, words: dict[str, str | None], tags: dict[str, list[str]] | None = None) -> None:
        self.words, self.tags = words, tags

    def read(self) -> Iterator[Found]:
        names = pa.array([*self.words], pa.string())
        yield Found("pictures", pa.RecordBatch.from_arrays([names], ["name"]))
        said = {name: text for name, text in self.words.items() if text}
        columns = [pa.array([*said], pa.string()), pa.array([[text] for text in said.values()], pa.list_(pa.string()))]
        yield Found("captions/x", pa.RecordBatch.from_arrays(columns, ["name", "texts"]))
        if self.tags is not None:
            columns = [pa.array([*self.tags], pa.string()), pa.array([*self.tags.values()], pa.list_(pa.string()))]
            yield Found("tags/y", pa.RecordBatch.from_arrays(columns, ["name", "general"]))


def joined(dataset: Dataset) -> dict[str, tuple[Any, Any]]:
    """What one big join in the database says."""
    rows = dataset.sql("""
        select key, c.texts, t.general from pictures left join "captions/x" c using (key)
        left join "tags/y" t using (key) where pictures.error is null order by key""").fetchall()
    return {key: (texts, general) for key, texts, general in rows}


def scanned(dataset: Dataset, **options: Any) -> dict[str, tuple[Any, Any]]:
    found = {}
    keys = []
    for batch in dataset.scan(*LAYERS, **options):
        for row in batch.to_pylist():
            keys.append(row["key"])
            assert row["captions/never"] is None
            caption, tags = row["captions/x"] or {}, row["tags/y"] or {}
            found[row["key"]] = (caption.get("texts"), tags.get("general"))
    assert keys == sorted(set(keys), key=str.encode)
    return found


key = st.sampled_from([f"{number}" for number in range(14)] + ["é", "z", "猫"])
content = st.sampled_from([None, "c0", "c1"])
row = st.fixed_dictionaries(
    {"key": key, "content": content, "kind": st.sampled_from(["good", "good", "error", "delete"])}
)
step = st.one_of(
    st.tuples(st.just("pictures"), st.lists(row, min_size=1, max_size=8)),
    st.tuples(st.just("captions/x"), st.lists(row, min_size=1, max_size=8)),
    st.tuples(st.just("tags/y"), st.lists(row, min_size=1, max_size=8)),
    st.tuples(st.sampled_from(["compact", "compact pictures", "compact captions/x"]), st.none()),
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(step, max_size=12))
def test_a_scan_is_one_big_join(steps: list[tuple[str, Any]]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").exists() else None) as root:
        dataset = Dataset(root)
        dataset.create(KeyRule())
        for number, (name, rows) in enumerate(steps):
            if name.startswith("compact"):
                if dataset.layers():
                    wanted = [layer for layer in name.split()[1:] if layer in dataset.layers()]
                    before = joined(dataset) if {"captions/x", "tags/y"} <= set(dataset.layers()) else None
                    dataset.compact(*wanted)
                    assert before is None or joined(dataset) == before
                continue
            with dataset.layer(name).write() as writer:
                for entry in {entry["key"]: entry for entry in rows}.values():  # of one moment, one row for each key
                    say: dict[str, Any] = {"key": entry["key"], "content": entry["content"]}
                    if entry["kind"] == "delete":
                        writer.delete(entry["key"])
                        continue
                    if entry["kind"] == "error":
                        say["error"] = "failed"
                    elif name == "captions/x":
                        say["texts"] = [f"text {number}", "more"]
                    elif name == "tags/y":
                        say["general"] = [f"tag_{number}", "solo"]
                    else:
                        say["uri"] = entry["key"]
                    writer.add(say)
        for name in ("captions/x", "tags/y"):
            with dataset.layer(name).write() as writer:
                writer.add({"key": "no picture"})
        truth = joined(dataset)
        assert scanned(dataset) == truth
        assert scanned(dataset, rows=1) == truth
        some = {name: said for name, said in truth.items() if name > "3"}
        assert scanned(dataset, where="key > '3'") == some
        lacking = {entry[0] for entry in dataset.missing("captions/x").fetchall()}
        assert set(scanned(dataset, only=dataset.missing("captions/x"), where="key > '3'")) == lacking & set(some)


def test_what_only_metadata_tells_of(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    words = {str(number): f"caption {number}" if number % 5 else None for number in range(40, 0, -1)}
    tags = {str(number): [f"tag_{number}", "solo"] for number in range(1, 41)}
    report = dataset.add(Posts(words, tags))
    assert (report.added, report.words) == (40, {"captions/x": 32, "tags/y": 40})
    assert len(read_cuts(dataset.home / "layers")) > 5
    assert len(dataset.layer("tags/y").parts()) == len(read_cuts(dataset.home / "layers")) + 1
    assert scanned(dataset) == {name: (text and [text], tags[name]) for name, text in sorted(words.items())}

    again = dataset.add(Posts(words, tags))
    assert (again.unchanged, again.added, again.changed) == (40, 0, 0)
    assert again.words == {"captions/x": 0, "tags/y": 0}
    assert len(dataset.layer("tags/y").parts()) == len(read_cuts(dataset.home / "layers")) + 1

    changed = dataset.add(Posts({**words, "7": "seven", "99": "new"}, tags))
    assert (changed.added, changed.words["captions/x"]) == (1, 2)
    assert scanned(dataset)["7"] == (["seven"], tags["7"])
    assert scanned(dataset)["99"] == (["new"], None)
    dataset.compact()
    assert scanned(dataset)["7"] == (["seven"], tags["7"])


def test_a_post_gets_its_file_later(tmp_path: Path) -> None:
    """Words that metadata brought stay with the post when the folder with the files is added."""
    dataset = Dataset(tmp_path)
    dataset.add(Posts({"1": "one", "2": "two", "3": "three"}))
    for number in (1, 2, 4):
        Image.new("RGB", (8, 8), (number * 50, 0, 0)).save(tmp_path / f"{number}.png")
    report = dataset.add(Folder(tmp_path))
    assert (report.added, report.changed, report.vanished) == (1, 2, 0)
    assert {name: said[0] for name, said in scanned_captions(dataset).items()} == {
        "1": ["one"], "2": ["two"], "3": ["three"], "4": None,
    }  # fmt: skip
    out = tmp_path / "out"
    manifest = export(dataset, MetadataJsonl(pictures="link"), out, recipe=default_recipe(["captions/x"]))
    assert manifest.counts == {"written": 2, "unchanged": 0, "pictures": 2, "without_text": 1, "without_file": 1}
    manifest = export(dataset, Kohya(), out / "m.json", recipe=default_recipe(["captions/x"]))
    assert manifest.counts == {"written": 3, "unchanged": 0, "without_text": 1, "without_caption": 1}
    assert json.loads((out / "m.json").read_text())["3"] == {"caption": "three"}
    shutil.rmtree(out)
    for opens, todo in ((True, 3), (False, 4)):
        selection = Selection(dataset, Echo(open=opens), "captions/echo")
        assert (selection.count(), selection.without_file()) == (todo, 4 - todo)
    ran = annotate(Selection(dataset, Echo(open=False), "captions/echo"), workers=1)
    assert (ran.good, ran.failed) == (4, 0)

    before = dataset.sql("select key, uri, content from pictures order by key").fetchall()
    assert [uri for _, uri, _ in before] == ["1.png", "2.png", None, "4.png"]
    dataset.add(Posts({"1": "one", "2": "zwei", "3": "three"}))  # what is known of the files stays
    assert dataset.sql("select key, uri, content from pictures order by key").fetchall() == before
    assert scanned_captions(dataset)["2"][0] == ["zwei"]


def scanned_captions(dataset: Dataset) -> dict[str, tuple[Any]]:
    return {
        row["key"]: ((row["captions/x"] or {}).get("texts"),)
        for batch in dataset.scan("captions/x")
        for row in batch.to_pylist()
    }
