"""Faults that a reader found, each with its guard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cutline.annotators.session import Batched, Row
from cutline.compose.recipe import Recipe
from cutline.dataset import Dataset, Found, KeyRule
from cutline.layer import publish, ranked, retire
from cutline.options import CutlineError, OptionError
from cutline.sources.folder import Folder
from cutline.sources.imagefolder import ImageFolder
from cutline.sources.kohya import Kohya
from running import cutline, make_pictures, picture


def say(dataset: Dataset, key: str, text: str) -> None:
    with dataset.layer("captions/human").write() as rows:
        rows.add({"key": key, "texts": [text], "verdict": "good"})


def said(dataset: Dataset, layer: str) -> dict[str, str]:
    if layer not in dataset.layers():
        return {}
    query = f'select key, text from "{layer}" join pictures using (key) where pictures.error is null'
    return dict(dataset.sql(query).fetchall())


def test_words_follow_a_picture_that_moves_twice(tmp_path: Path) -> None:
    make_pictures(tmp_path, 4)
    dataset = Dataset(tmp_path)
    dataset.add(Folder(tmp_path))
    for step, prefix in enumerate(("a", "zz", "m")):
        for path in sorted(tmp_path.glob("*.png")):
            path.rename(tmp_path / f"{prefix}{path.name[-8:]}")
        assert dataset.add(Folder(tmp_path)).moved == 4
        if step == 0:
            say(dataset, "a0002.png", "the third")
    assert said(dataset, "captions/human") == {"m0002.png": "the third"}


def test_words_about_one_of_two_rivals_reach_neither(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    make_pictures(photos / "a", 1)
    make_pictures(photos / "b", 1, first=9)
    (photos / "b" / "p0009.png").rename(photos / "b" / "p0000.png")
    dataset = Dataset(photos)
    dataset.add(Folder(photos), rule=KeyRule("stem"))
    (tmp_path / "meta.json").write_text(json.dumps({"b/p0000.png": {"caption": "about b"}}))
    report = dataset.add(Kohya(tmp_path / "meta.json"))
    assert any("several pictures have the key" in note for note in report.notes)
    (photos / "b" / "p0000.png").unlink()
    dataset.add(Folder(photos))
    assert dataset.sql("select key, error from pictures").fetchall() == [("p0000", None)]
    assert said(dataset, "captions/kohya") == {}


def test_words_of_a_picture_that_is_not_there_reach_no_other(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    make_pictures(photos, 1)
    make_pictures(photos / "trip", 1, first=5)
    (photos / "trip" / "metadata.jsonl").write_text(json.dumps({"file_name": "p0000.png", "text": "of the trip"}))
    (tmp_path / "meta.json").write_text(json.dumps({"p0000.png": {"caption": "of the trip"}}))
    dataset = Dataset(photos)
    dataset.add(Folder(photos))
    dataset.add(ImageFolder(photos / "trip"))
    dataset.add(Kohya(tmp_path / "meta.json", image_dir=photos / "trip"))
    assert said(dataset, "captions/imagefolder") == said(dataset, "captions/kohya") == {}


def test_a_batch_that_loses_a_row_shifts_no_answer() -> None:
    class Losing(Batched):
        batch_size = 3

        def prepare(self, row: Row) -> Any:
            return row["key"]

        def batch(self, rows: list[Row], prepared: list[Any]) -> list[Row]:
            return [{"texts": [key]} for key in prepared if key != "b"]

    answers = {row["key"]: row.get("texts") or row["error"] for row in Losing()(iter([{"key": key} for key in "abc"]))}
    assert answers == {"a": ["a"], "b": "failed", "c": ["c"]}


def test_a_way_back_in_the_path_changes_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pictures(tmp_path / "photos" / "new", 1)
    (tmp_path / "photos" / "p0000.png").write_bytes(picture(3))
    monkeypatch.chdir(tmp_path / "photos")
    cutline("add", "../photos")
    cutline("add", "../photos", "../photos/new")
    assert sorted(Dataset("../photos").sql("select key, uri from pictures").fetchall()) == [
        ("new/p0000.png", "new/p0000.png"),
        ("p0000.png", "p0000.png"),
    ]


def test_no_layer_is_called_retired(tmp_path: Path) -> None:
    with pytest.raises(CutlineError, match="no layer name"):
        Dataset(tmp_path).layer("facts/retired")


def test_a_layer_of_any_name_stands_beside_a_condition(tmp_path: Path) -> None:
    make_pictures(tmp_path, 2)
    dataset = Dataset(tmp_path)
    dataset.add(Folder(tmp_path))
    with dataset.layer("captions/c+++").write() as rows:
        rows.add({"key": "p0000.png", "texts": ["x"]})
    assert dataset.missing("captions/c+++", where="width > 1").count() == 1


def test_a_dry_run_refuses_what_the_run_would(tmp_path: Path) -> None:
    make_pictures(tmp_path, 2)
    cutline("add", tmp_path)
    cutline("annotate", tmp_path, "echo")
    assert "--as" in cutline("annotate", tmp_path, "echo", "-o", "says=b", "--dry-run", code=1).stderr


def test_a_key_rule_that_cannot_work_is_not_fixed(tmp_path: Path) -> None:
    make_pictures(tmp_path, 1)
    cutline("add", tmp_path, "--key", r"(?<=p)\d+", code=2)
    cutline("add", tmp_path, "--key", r"p(\d+)")
    assert Dataset(tmp_path).sql("select key from pictures").fetchall() == [("0000",)]


def test_errors_of_earlier_runs_still_count(tmp_path: Path) -> None:
    make_pictures(tmp_path, 2)
    cutline("add", tmp_path)
    (tmp_path / "p0000.png").write_bytes(picture(7) + b"changed")
    cutline("annotate", tmp_path, "echo", code=3)
    again = cutline("annotate", tmp_path, "echo", code=3)
    assert "nothing to do" in again.stdout
    assert "1 failed in earlier runs" in again.stderr


def test_a_path_is_said_once(tmp_path: Path) -> None:
    make_pictures(tmp_path, 1)
    assert "said twice" in cutline("add", tmp_path, tmp_path, "-o", f"path={tmp_path}", code=2).stderr


def test_compact_refuses_a_layer_that_is_not_there(tmp_path: Path) -> None:
    make_pictures(tmp_path, 1)
    cutline("add", tmp_path)
    assert "no layer captions/nope" in cutline("compact", tmp_path, "captions/nope", code=1).stderr


def test_a_file_that_an_export_replaces_is_kept(tmp_path: Path) -> None:
    make_pictures(tmp_path, 1)
    mine = json.dumps({"file_name": "p0000.png", "text": "mine", "author": "me"})
    (tmp_path / "metadata.jsonl").write_text(mine)
    cutline("add", tmp_path)
    said = cutline("export", tmp_path, "metadata_jsonl", tmp_path).stderr
    kept = list((tmp_path / ".cutline" / "exports" / "replaced").iterdir())
    assert [path.read_text() for path in kept] == [mine]
    assert str(kept[0]) in said
    (tmp_path / "p0000.png").write_bytes(picture(4))
    cutline("add", tmp_path)
    cutline("export", tmp_path, "metadata_jsonl", tmp_path)
    assert list((tmp_path / ".cutline" / "exports" / "replaced").iterdir()) == kept, "its own it may replace"


def test_an_empty_layer_does_not_make_an_export_ask(tmp_path: Path) -> None:
    make_pictures(tmp_path, 1)
    (tmp_path / "p0000.txt").write_text("mine")
    cutline("add", tmp_path)
    cutline("annotate", tmp_path, "echo", "--limit", "0")
    cutline("export", tmp_path, "sidecar", tmp_path / "out")
    assert (tmp_path / "out" / "p0000.txt").read_text() == "mine"


def test_a_dead_worker_is_seen_although_its_child_lives(tmp_path: Path) -> None:
    from cutline.engine.here import annotate
    from cutline.engine.selection import Selection
    from processes import Forking

    make_pictures(tmp_path, 1)
    dataset = Dataset(tmp_path)
    dataset.add(Folder(tmp_path))
    report = annotate(Selection(dataset, Forking(), "captions/forking"), workers=1)
    assert report.errors == {"crashed_worker": 1}


def test_unknown_names_are_bad_usage() -> None:
    from cutline import registry

    with pytest.raises(OptionError):
        registry.load("sources", "nothing")


class Told:
    """Pictures that only metadata tells of, with what is said of them."""

    rule = KeyRule("stem")

    def __init__(self, tags: dict[str, str], sizes: dict[str, tuple[int | None, int | None]] | None = None) -> None:
        self.tags, self.sizes = tags, sizes or {}

    def read(self) -> Iterator[Found]:
        names = pa.array([*self.tags], pa.string())
        sides = [
            pa.array([self.sizes.get(name, (None, None))[side] for name in self.tags], pa.int32()) for side in (0, 1)
        ]
        yield Found("pictures", pa.RecordBatch.from_arrays([names, *sides], ["name", "width", "height"]))
        general = pa.array([text.split() for text in self.tags.values()], pa.list_(pa.string()))
        yield Found("tags/told", pa.RecordBatch.from_arrays([names, general], ["name", "general"]))


def tags_of(dataset: Dataset) -> dict[str, list[str]]:
    return dict(dataset.sql('select key, general from "tags/told" where error is null order by key').fetchall())


def test_a_compact_retires_only_what_it_rewrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An annotator folds two of three parts between the compact's look at them and its query."""
    from cutline.dataset import compact

    dataset = Dataset(tmp_path)
    dataset.create(KeyRule())
    for key in "abc":
        say(dataset, key, key * 2)
    with dataset.layer("pictures").write() as rows:
        for key in "abc":
            rows.add({"key": key, "uri": key})
    layer, real = dataset.layer("captions/human"), compact._kept
    folded = iter([True])

    def kept(*args: Any) -> str:
        if next(folded, False):
            two = layer.parts()[:2]
            publish(layer.folder, pa.concat_tables(ranked(part) for part in two))
            retire(two)
        return real(*args)

    monkeypatch.setattr(compact, "_kept", kept)
    dataset.compact("captions/human")
    monkeypatch.undo()
    dataset.compact("captions/human")
    assert said(Dataset(tmp_path), "captions/human") == {"a": "aa", "b": "bb", "c": "cc"}


def test_posts_find_the_pictures_that_are_known_by_their_paths(tmp_path: Path) -> None:
    make_pictures(tmp_path / "sub", 3)
    dataset = Dataset(tmp_path)
    dataset.add(Folder(tmp_path))
    report = dataset.add(Told({"p0001": "cat dog", "p0002": "cat", "new": "bird"}))
    assert (report.added, report.unchanged) == (1, 2)
    assert tags_of(dataset) == {"new": ["bird"], "sub/p0001.png": ["cat", "dog"], "sub/p0002.png": ["cat"]}


def test_half_a_size_is_no_size(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    dataset.add(Told(dict.fromkeys("abc", "cat"), {"a": (640, None), "b": (None, 480), "c": (640, 480)}))
    with dataset.layer("latents/one").write() as rows:
        rows.add({"key": "a", "width": 512})
    with dataset.layer("latents/two").write() as rows:
        rows.add({"key": "a", "width": 768, "height": 768})
    text = '[tags]\nfirst_of = ["tags/told"]\n[latents]\nfirst_of = ["latents/one", "latents/two"]\n'
    (tmp_path / "r.toml").write_text(text)
    cutline("export", tmp_path, "kohya", tmp_path / "m.json", "--recipe", tmp_path / "r.toml", "-o", "apart=true")
    assert json.loads((tmp_path / "m.json").read_text()) == {
        "a": {"tags": "cat", "train_resolution": [768, 768]},
        "b": {"tags": "cat"},
        "c": {"tags": "cat", "image_size": [640, 480]},
    }


def test_a_slice_of_which_a_layer_has_nothing(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    dataset.create(KeyRule())
    with dataset.layer("pictures").write() as rows:
        for key in "abcmnz":
            rows.add({"key": key, "uri": key})
    (dataset.home / "cuts.json").write_text('["b", "n"]')
    with dataset.layer("captions/human").write() as rows:
        for key in "az":
            rows.add({"key": key, "texts": [key]})
    found = [row for batch in dataset.scan("captions/human") for row in batch.to_pylist()]
    assert [row["key"] for row in found if row["captions/human"]] == ["a", "z"]
    assert len(found) == 6


def test_a_post_whose_pictures_are_rivals(tmp_path: Path) -> None:
    make_pictures(tmp_path, 2)
    (tmp_path / "p0001.png").rename(tmp_path / "p0000.webp")
    dataset = Dataset(tmp_path)
    dataset.add(Folder(tmp_path), rule=KeyRule("stem"))
    dataset.add(Told({"p0000": "cat", "other": "dog"}))
    assert dict(dataset.sql("select key, error from pictures").fetchall()) == {"p0000": "duplicate_key", "other": None}


def test_posts_that_would_share_a_key_are_rivals(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    dataset.add(Told({"a/1": "cat", "b/1": "dog", "2": "bird"}), rule=KeyRule(r"(\d+)"))
    assert dict(dataset.sql("select key, error from pictures").fetchall()) == {"1": "duplicate_key", "2": None}
    assert tags_of(dataset) == {"2": ["bird"]}


def test_views_that_could_not_all_be_made_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset(tmp_path)
    dataset.create(KeyRule())
    for name in ("captions/x", "captions/y"):
        with dataset.layer(name).write() as rows:
            rows.add({"key": "a", "texts": ["one"]})
    assert dataset.sql('from "captions/y"').count() == 1
    for name in ("captions/x", "captions/y"):
        with dataset.layer(name).write() as rows:
            rows.add({"key": "b", "texts": ["two"]})
    real, failures = dataset.views.view, iter([True])

    def view(name: str, *bounds: str | None) -> str:
        if name == "captions/x" and next(failures, False):
            raise FileNotFoundError(name)
        return real(name, *bounds)

    monkeypatch.setattr(dataset.views, "view", view)
    assert dataset.sql('from "captions/y"').count() == 2


def test_a_parquet_without_latents(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    dataset.add(Told({"1": "cat"}))
    cutline("export", tmp_path, "kohya", tmp_path / "m.parquet", "-o", "apart=true")
    assert pq.read_table(tmp_path / "m.parquet").to_pylist() == [
        {"image_path": "1", "caption": None, "tags": "cat", "image_size": None, "train_resolution": None}
    ]


def test_a_bare_id_and_a_stem_may_not_share_a_name(tmp_path: Path) -> None:
    make_pictures(tmp_path / "d", 2)
    dataset = Dataset(tmp_path)
    dataset.add(Folder(tmp_path))
    with dataset.layer("pictures").write() as rows:
        rows.add({"key": "p0001"})
    with dataset.layer("captions/human").write() as rows:
        for key in ("p0001", "d/p0001.png"):
            rows.add({"key": key, "texts": [key]})
    refused = cutline("export", tmp_path, "kohya", tmp_path / "m.json", "-o", "legacy=true", code=1)
    assert "would share a name" in refused.stderr
    assert not (tmp_path / "m.json").exists()


def test_newer_words_of_a_post_stay_when_its_file_comes(tmp_path: Path) -> None:
    (tmp_path / "dup.png").write_bytes(picture(1))
    dataset = Dataset(tmp_path)
    dataset.add(Folder(tmp_path), rule=KeyRule("stem"))
    dataset.add(Told({"dup": "of_dup"}))
    dataset.add(Told({"1": "of_1"}))
    (tmp_path / "dup.png").rename(tmp_path / "1.png")
    dataset.add(Folder(tmp_path), allow_vanish=True)
    assert tags_of(dataset)["1"] == ["of_1"]


def test_line_breaks_become_spaces_and_nothing_else(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    dataset.add(Told({"1": "cat", "2": "dog"}))
    with dataset.layer("captions/human").write() as rows:
        rows.add({"key": "1", "texts": ["\none \r\n two\rthree\n"]})
        rows.add({"key": "2", "texts": ["\n"]})
    recipe = Recipe.parse({"captions": {"first_of": ["captions/human"], "line_breaks": "space"}})
    (batch,) = dataset.scan(*recipe.layers)
    assert recipe.make(batch, seed=0).caption.to_pylist() == ["one two three", None]


def test_a_run_that_never_began_makes_no_layer(tmp_path: Path) -> None:
    make_pictures(tmp_path, 2)
    cutline("add", tmp_path)
    (tmp_path / "no model").mkdir()
    failed = cutline("annotate", tmp_path, "blip", "-o", f"model={tmp_path / 'no model'}", code=1)
    assert "no model" in failed.stderr
    assert Dataset(tmp_path).layers() == ["pictures"]
    assert Dataset(tmp_path).layer("captions/blip").info() is None


def test_an_add_that_failed_fixes_no_key_rule(tmp_path: Path) -> None:
    make_pictures(tmp_path, 1)
    (tmp_path / "table.csv").write_text("what,is,this\n1,2,3\n")
    cutline("add", tmp_path, tmp_path / "table.csv", "--from", "booru", code=1)
    assert not (tmp_path / ".cutline").exists()
    cutline("add", tmp_path)
    assert Dataset(tmp_path).sql("select key from pictures").fetchall() == [("p0000.png",)]


def test_an_export_of_nothing_says_that_there_is_no_dataset(tmp_path: Path) -> None:
    assert "is no dataset yet" in cutline("export", tmp_path, "sidecar", tmp_path / "out", code=1).stderr
