"""A dataset over time: pictures come, go, move and change between runs, and their words never end at another's."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpus import make_twins
from cutline import pictures
from cutline.dataset import Dataset, Found, KeyRule, gather
from cutline.dataset.gather import Report, Vanished
from cutline.dataset.query import QueryError
from cutline.options import CutlineError, OptionError
from cutline.sources.folder import Folder
from cutline.sources.kohya import Kohya
from running import CUTLINE, ECHO, captions, clear_leftovers, cutline, echo, leftovers, make_pictures, picture, sha256

SIDECAR = "captions/sidecar"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "photos"


@dataclass(frozen=True)
class Given:
    """A source of rows that a test says."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict, hash=False)
    notes: Mapping[str, int] = field(default_factory=dict, hash=False)

    def read(self) -> Iterator[Found]:
        for layer, rows in self.rows.items():
            yield Found(layer, pa.RecordBatch.from_pylist(rows), self.notes)


def add(dataset: Dataset, path: Path | None = None, **how: Any) -> Report:
    report: Report = dataset.add(Folder(path or dataset.root), **how)
    return report


def said(dataset: Dataset, layer: str = SIDECAR) -> dict[str, str]:
    return dict(dataset.sql(f'select key, coalesce(text, error) from "{layer}"').fetchall())


def errors(dataset: Dataset) -> dict[str, str]:
    return dict(dataset.sql("select key, error from pictures where error is not null").fetchall())


def true_words(dataset: Dataset) -> dict[str, str]:
    """What `echo` should say of every readable picture: its own bytes' hash."""
    return {key: sha256(dataset.path(uri)) for key, uri in _readable(dataset)}


def _readable(dataset: Dataset) -> list[tuple[str, str]]:
    return [(key, uri) for key, uri in dataset.sql("select key, uri from pictures where error is null").fetchall()]


def annotated(dataset: Dataset) -> int:
    """Caption what lacks one; how many that were. Afterwards every readable picture has its own caption."""
    done = echo(dataset).done
    assert captions(dataset) == true_words(dataset)
    assert dataset.missing(ECHO).count() == 0
    return done


# -- between runs -------------------------------------------------------------------------------------------------


def test_only_what_is_new_is_captioned(root: Path) -> None:
    make_pictures(root, 10)
    dataset = Dataset(root)
    assert add(dataset).added == 10
    assert annotated(dataset) == 10
    assert annotated(dataset) == 0

    (root / "new.png").write_bytes(picture(100))
    report = add(dataset)
    assert (report.added, report.unchanged) == (1, 10)
    assert annotated(dataset) == 1

    (root / "p0003.png").write_bytes(picture(101))
    report = add(dataset)
    assert (report.changed, report.unchanged) == (1, 10)
    assert annotated(dataset) == 1

    (root / "p0003.png").write_bytes(picture(3))  # as it was
    assert add(dataset).changed == 1
    assert captions(dataset) == true_words(dataset)
    assert annotated(dataset) == 0


def test_renamed_and_moved_pictures_keep_their_captions(root: Path) -> None:
    make_pictures(root, 10)
    dataset = Dataset(root)
    add(dataset)
    annotated(dataset)
    (root / "p0000.png").rename(root / "renamed.png")
    (root / "trip").mkdir()
    (root / "p0001.png").rename(root / "trip" / "p0001.png")
    report = add(dataset)
    assert (report.moved, report.added, report.vanished) == (2, 0, 0)
    assert captions(dataset) == true_words(dataset)
    assert set(captions(dataset)) == {
        "renamed.png",
        "trip/p0001.png",
        *(f"p{number:04d}.png" for number in range(2, 10)),
    }
    assert annotated(dataset) == 0
    assert errors(dataset) == {"p0000.png": "vanished", "p0001.png": "vanished"}


def test_swapped_pictures_swap_their_captions(root: Path) -> None:
    make_pictures(root, 6)
    dataset = Dataset(root)
    add(dataset)
    annotated(dataset)
    (root / "p0000.png").rename(root / "x")
    (root / "p0001.png").rename(root / "p0000.png")
    (root / "x").rename(root / "p0001.png")
    assert add(dataset).moved == 2
    assert captions(dataset) == true_words(dataset)
    assert annotated(dataset) == 0


def test_a_ring_of_names_turns_with_its_captions(root: Path) -> None:
    names = make_pictures(root, 30)
    dataset = Dataset(root)
    add(dataset)
    annotated(dataset)
    for _ in range(3):
        for name in names:
            (root / name).rename(root / f"{name}.was")
        for name, following in zip(names, [*names[1:], names[0]], strict=True):
            (root / f"{name}.was").rename(root / following)
        assert add(dataset).moved == 30
        assert captions(dataset) == true_words(dataset)
    assert annotated(dataset) == 0


def test_words_about_whatever_is_there_stay_with_their_picture(root: Path) -> None:
    """A person's rows may carry no content. They are about the picture that the person saw."""
    make_pictures(root, 6)
    dataset = Dataset(root)
    add(dataset)
    with dataset.layer("captions/human").write() as writer:
        for key in ("p0000.png", "p0001.png", "p0002.png"):
            writer.add({"key": key, "texts": [f"typed of {key}"]})
    (root / "p0000.png").rename(root / "moved.png")
    (root / "p0001.png").rename(root / "p0000.png")
    (root / "p0002.png").write_bytes(picture(77))
    add(dataset)
    assert captions(dataset, "captions/human") == {
        "moved.png": "typed of p0000.png",
        "p0000.png": "typed of p0001.png",
        "p0002.png": None,
        "p0003.png": None,
        "p0004.png": None,
        "p0005.png": None,
    }


def test_a_copy_is_a_picture_of_its_own(root: Path, tmp_path: Path) -> None:
    make_pictures(root, 4)
    dataset = Dataset(root)
    add(dataset)
    annotated(dataset)
    shutil.copy(root / "p0000.png", root / "copy.png")
    report = add(dataset)
    assert (report.added, report.moved) == (1, 0)
    assert annotated(dataset) == 1
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(root / "p0001.png", elsewhere / "another copy.png")
    report = add(dataset, elsewhere)
    assert (report.added, report.moved) == (1, 0)
    assert add(dataset).vanished == 0
    (root / "p0001.png").unlink()
    assert add(dataset).vanished == 1


def test_a_picture_moved_to_another_folder_keeps_its_words(root: Path, tmp_path: Path) -> None:
    make_pictures(root, 4)
    dataset = Dataset(root)
    add(dataset)
    annotated(dataset)
    other = tmp_path / "other"
    other.mkdir()
    (root / "p0000.png").rename(other / "there.png")
    report = add(dataset, other)
    assert (report.added, report.moved) == (0, 1)
    assert captions(dataset)["there.png"] == sha256(other / "there.png")
    add(dataset)
    assert annotated(dataset) == 0
    assert "p0000.png" not in captions(dataset)


def test_words_come_back_with_content_that_was_gone_for_a_while(root: Path) -> None:
    make_pictures(root, 6)
    dataset = Dataset(root)
    add(dataset)
    annotated(dataset)
    old = (root / "p0000.png").read_bytes()
    (root / "p0000.png").write_bytes(picture(50))  # what was there exists nowhere now
    add(dataset)
    assert annotated(dataset) == 1
    (root / "from the backup.png").write_bytes(old)
    assert add(dataset).moved == 1
    assert annotated(dataset) == 0


def test_a_touched_file_is_read_and_keeps_its_caption(root: Path) -> None:
    make_pictures(root, 5)
    dataset = Dataset(root)
    add(dataset)
    annotated(dataset)
    os.utime(root / "p0000.png", (1, 1))
    before = len(dataset.layer(ECHO).parts())
    report = add(dataset)
    assert (report.unchanged, report.changed, report.moved, report.added) == (5, 0, 0, 0)
    assert annotated(dataset) == 0
    assert len(dataset.layer(ECHO).parts()) == before
    parts = len(dataset.layer("pictures").parts())
    assert add(dataset).unchanged == 5
    assert len(dataset.layer("pictures").parts()) == parts, "nothing was looked at again"


def test_a_changed_file_that_was_not_added_again_is_not_captioned_as_the_old_one(root: Path) -> None:
    make_pictures(root, 3)
    dataset = Dataset(root)
    add(dataset)
    (root / "p0001.png").write_bytes(picture(9))
    report = echo(dataset)
    assert report.errors == {"changed": 1}
    add(dataset)
    assert annotated(dataset) == 1


def test_half_of_a_folder_gone_is_refused(root: Path, tmp_path: Path) -> None:
    names = make_pictures(root, 8)
    dataset = Dataset(root)
    add(dataset)
    annotated(dataset)
    (tmp_path / "away").mkdir()
    for name in names[:4]:
        (root / name).rename(tmp_path / "away" / name)
    with pytest.raises(Vanished, match=r"4 of 8 pictures below .* are gone.*--allow-vanish"):
        add(dataset)
    (root / names[4]).rename(tmp_path / "away" / names[4])
    (root / "new.png").write_bytes(picture(100))
    with pytest.raises(Vanished, match=r"of 8 pictures below .* are gone"):  # of the five, one might be the new one
        add(dataset)
    assert errors(dataset) == {}
    assert "of 8 pictures" in cutline("add", root, code=1).stderr, "and it is said again"
    report = add(dataset, allow_vanish=True)
    assert (report.vanished, report.unchanged, report.added) == (5, 3, 1)
    assert set(captions(dataset)) == {*names[5:], "new.png"}
    assert errors(dataset) == dict.fromkeys(names[:5], "vanished")
    assert annotated(dataset) == 1
    for name in names[:5]:
        (tmp_path / "away" / name).rename(root / name)
    report = add(dataset)
    assert (report.added, report.vanished, report.unchanged) == (5, 0, 4)
    assert annotated(dataset) == 0
    assert errors(dataset) == {}


def test_less_than_half_gone_is_told_and_comes_back(root: Path) -> None:
    names = make_pictures(root, 8)
    dataset = Dataset(root)
    add(dataset)
    annotated(dataset)
    data = {name: (root / name).read_bytes() for name in names[:3]}
    for name in data:
        (root / name).unlink()
    assert add(dataset).vanished == 3
    assert add(dataset).vanished == 0, "told once"
    assert dataset.missing(ECHO).count() == 0
    for name, content in data.items():
        (root / name).write_bytes(content)
    assert add(dataset).added == 3
    assert annotated(dataset) == 0


def test_the_whole_folder_moved_is_no_vanishing(root: Path) -> None:
    make_pictures(root / "a", 8)
    dataset = Dataset(root)
    add(dataset)
    annotated(dataset)
    (root / "a").rename(root / "b")
    report = add(dataset)
    assert (report.moved, report.vanished) == (8, 0)
    assert annotated(dataset) == 0


def test_a_subfolder_vanishes_only_for_who_lists_it(root: Path) -> None:
    make_pictures(root / "a", 4)
    make_pictures(root / "b", 4, first=4)
    dataset = Dataset(root)
    add(dataset)
    (root / "a" / "p0000.png").unlink()
    assert add(dataset, root / "b").vanished == 0
    assert add(dataset, root / "a").vanished == 1
    assert errors(dataset) == {"a/p0000.png": "vanished"}
    shutil.rmtree(root / "a")
    with pytest.raises(CutlineError, match="no folder"):
        add(dataset, root / "a")
    assert add(dataset, root / "b").vanished == 0


class Life:
    """Random changes to a folder of pictures, and what should have become of every caption."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random, self.count = root, random.Random(seed), 0
        self.bin: list[bytes] = []
        self.added: set[str] = set()
        make_pictures(root, 12)
        self.count = 12

    def files(self) -> list[Path]:
        return sorted(path for path in self.root.rglob("*.png") if ".cutline" not in path.parts)

    def fresh(self) -> bytes:
        self.count += 1
        return picture(self.count)

    def name(self) -> Path:
        folder = self.root / self.random.choice(["", "a", "b/c"])
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{self.random.choice('xyz')}{self.random.randrange(1000)}.png"

    def change(self) -> str:
        files = self.files()
        what = self.random.choice(["add", "add", "replace", "rename", "swap", "delete", "restore", "touch", "over"])
        one, other = self.random.sample(files, 2)
        if what == "add":
            self.name().write_bytes(self.fresh())
        elif what == "replace":
            self.bin.append(one.read_bytes())
            one.write_bytes(self.fresh())
        elif what == "rename":
            target = self.name()
            if not target.exists():
                one.rename(target)
        elif what == "swap":
            data = one.read_bytes()
            one.write_bytes(other.read_bytes())
            other.write_bytes(data)
        elif what == "delete" and len(files) > 8:
            self.bin.append(one.read_bytes())
            one.unlink()
        elif what == "restore" and self.bin:
            target = self.random.choice([self.name(), one])
            if target.exists():
                self.bin.append(target.read_bytes())
            target.write_bytes(self.bin.pop(self.random.randrange(len(self.bin))))
        elif what == "touch":
            os.utime(one, (self.random.randrange(10**9),) * 2)
        elif what == "over":  # one takes another's place
            self.bin.append(other.read_bytes())
            one.rename(other)
        return what


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 10))])
def test_any_changes_between_runs(seed: int) -> None:
    """No two files are alike here, so what was ever captioned is never captioned again, wherever it went."""
    with tempfile.TemporaryDirectory() as folder:
        life = Life(Path(folder) / "photos", seed)
        dataset = Dataset(life.root)
        captioned: set[str] = set()
        for run in range(8):
            changes = [life.change() for _ in range(life.random.randrange(1, 6))]
            if seed % 2 and life.random.random() < 0.3:
                dataset = Dataset(life.root)
            add(dataset, allow_vanish=True)
            present = {sha256(path) for path in life.files()}
            assert set(true_words(dataset).values()) == present, changes
            shown = {key: text for key, text in captions(dataset).items() if text is not None}
            assert shown.items() <= true_words(dataset).items(), f"run {run}: {changes}"
            done = annotated(dataset)
            assert done == len(present - captioned), f"run {run}: {changes}"
            captioned |= present
            assert leftovers(life.root) == []


# -- keys ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "prefix", "expected"),
    [
        ("path", "", {"a.b.png", "trip/7866720.png", "trip/x.PNG"}),
        ("path", "danbooru/", {"danbooru/a.b.png", "danbooru/trip/7866720.png", "danbooru/trip/x.PNG"}),
        ("stem", "", {"a.b", "7866720", "x"}),
        ("stem", 'é"\\\x7f', {'é"\\\x7fa.b', 'é"\\\x7f7866720', 'é"\\\x7fx'}),
        (r"(\d+)\.png$", "danbooru/", {"danbooru/7866720", "a.b.png", "trip/x.PNG"}),
        (r"[a-z.]+$", "", {"a.b.png", ".png", "x.PNG", "trip/x.PNG"}),
    ],
)
def test_key_rules(root: Path, rule: str, prefix: str, expected: set[str]) -> None:
    for name in ("a.b.png", "trip/7866720.png", "trip/x.PNG"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(len(name)))
    dataset = Dataset(root)
    dataset.add(Folder(root), rule=KeyRule(rule, prefix))
    keys = {key for (key,) in dataset.sql("select key from pictures").fetchall()}
    assert keys <= expected
    assert len(keys) == 3
    uris = {uri for (uri,) in dataset.sql("select uri from pictures").fetchall()}
    assert uris == {"a.b.png", "trip/7866720.png", "trip/x.PNG"}
    with pytest.raises(CutlineError, match="fixed when it was made"):
        dataset.add(Folder(root), rule=KeyRule("stem", "other"))
    assert add(dataset).unchanged == 3
    reopened = Dataset(root)
    assert reopened.key_rule == KeyRule(rule, prefix)


def test_a_name_that_the_rule_does_not_match_is_said(root: Path) -> None:
    make_pictures(root, 2)
    (root / "kitten.png").write_bytes(picture(9))
    dataset = Dataset(root)
    report = dataset.add(Folder(root), rule=KeyRule(r"p(\d+)"))
    assert (report.added, report.unreadable, report.reasons) == (3, 1, {"no_key": 1})
    found = dataset.sql("select key, uri, error, detail from pictures where error is not null").fetchall()
    assert found == [("kitten.png", "kitten.png", "no_key", r"the key rule p(\d+) does not match kitten.png")]
    report = add(dataset)
    assert (report.unchanged, report.reasons) == (3, {"no_key": 1})
    (root / "kitten.png").rename(root / "p0009.png")
    assert add(dataset).reasons == {}
    assert set(captions(dataset)) == {"0000", "0001", "0009"}


def test_a_bad_rule_is_refused_before_anything_is_made(root: Path) -> None:
    make_pictures(root, 1)
    with pytest.raises(CutlineError, match="neither path, stem nor a regular expression"):
        KeyRule("(")
    cutline("add", root, "--key", "(", code=1)
    assert not (root / ".cutline").exists()


def test_twins_by_unicode_form_name_each_other(root: Path) -> None:
    composed, decomposed = make_twins(root)
    assert len(list(root.iterdir())) == 2
    make_pictures(root, 3)
    dataset = Dataset(root)
    report = add(dataset)
    assert (report.added, report.reasons) == (3, {"duplicate_key": 1})
    ((key, uri, detail),) = dataset.sql(
        "select key, uri, detail from pictures where error = 'duplicate_key'"
    ).fetchall()
    assert key == unicodedata.normalize("NFC", key)
    assert json.loads(detail) == sorted([composed, decomposed])
    assert uri in (composed, decomposed)
    parts = len(dataset.layer("pictures").parts())
    assert add(dataset).reasons == {"duplicate_key": 1}
    assert len(dataset.layer("pictures").parts()) == parts, "said once"
    assert annotated(dataset) == 3
    (root / composed).unlink()
    assert add(dataset).reasons == {}
    assert dataset.sql(f"select uri from pictures where key = '{key}'").fetchall() == [(decomposed,)]
    assert annotated(dataset) == 1
    assert captions(dataset)[key] == sha256(root / decomposed)


def test_a_name_in_the_decomposed_form_alone_is_found(root: Path) -> None:
    name = unicodedata.normalize("NFD", "café.png")
    root.mkdir()
    (root / name).write_bytes(picture(1))
    dataset = Dataset(root)
    add(dataset)
    assert annotated(dataset) == 1
    ((key, uri),) = _readable(dataset)
    assert (key, uri) == (unicodedata.normalize("NFC", name), name)
    assert dataset.picture(key).decode().size == (8, 6)


def test_stems_that_collide_name_each_other_and_heal(root: Path) -> None:
    make_pictures(root, 4)
    dataset = Dataset(root)
    dataset.add(Folder(root), rule=KeyRule("stem"))
    assert annotated(dataset) == 4
    first = sha256(root / "p0000.png")
    (root / "p0000.webp").write_bytes(picture(50))
    (root / "deep").mkdir()
    (root / "deep" / "p0000.png").write_bytes(picture(51))
    report = add(dataset)
    assert report.reasons == {"duplicate_key": 1}
    ((detail,),) = dataset.sql("select detail from pictures where key = 'p0000'").fetchall()
    assert json.loads(detail) == ["deep/p0000.png", "p0000.png", "p0000.webp"]
    assert set(captions(dataset)) == {"p0001", "p0002", "p0003"}
    assert dataset.missing(ECHO).count() == 0
    (root / "p0000.webp").unlink()
    add(dataset)
    ((detail,),) = dataset.sql("select detail from pictures where key = 'p0000'").fetchall()
    assert json.loads(detail) == ["deep/p0000.png", "p0000.png"]
    (root / "deep" / "p0000.png").rename(root / "deep" / "q.png")
    report = add(dataset)
    assert report.reasons == {}
    assert captions(dataset)["p0000"] == first, "its caption was kept"
    assert annotated(dataset) == 1


def test_a_collision_of_two_folders_is_seen_and_heals(root: Path, tmp_path: Path) -> None:
    make_pictures(root, 3)
    dataset = Dataset(root)
    add(dataset)
    make_pictures(tmp_path / "other", 1, first=0)
    (tmp_path / "other" / "p0000.png").write_bytes(picture(60))
    assert add(dataset, tmp_path / "other").reasons == {"duplicate_key": 1}
    ((detail,),) = dataset.sql("select detail from pictures where key = 'p0000.png'").fetchall()
    assert json.loads(detail) == sorted(["p0000.png", str(tmp_path / "other" / "p0000.png")])
    assert add(dataset).reasons == {"duplicate_key": 1}, "whichever is listed"
    (tmp_path / "other" / "p0000.png").unlink()
    assert add(dataset).reasons == {}
    assert annotated(dataset) == 3


def test_both_of_a_collision_gone_and_back(root: Path) -> None:
    make_pictures(root, 6)
    (root / "p0000.webp").write_bytes(picture(50))
    dataset = Dataset(root)
    dataset.add(Folder(root), rule=KeyRule("stem"))
    assert errors(dataset) == {"p0000": "duplicate_key"}
    data = (root / "p0000.png").read_bytes()
    (root / "p0000.webp").unlink()
    (root / "p0000.png").unlink()
    add(dataset)
    assert errors(dataset) == {"p0000": "vanished"}
    (root / "p0000.png").write_bytes(data)
    add(dataset)
    assert errors(dataset) == {}
    assert annotated(dataset) == 6


# -- asking -------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(root: Path) -> Dataset:
    make_pictures(root, 5)
    (root / "bad.jpg").write_bytes(b"")
    dataset = Dataset(root)
    add(dataset)
    with dataset.layer("captions/a-b.c+d").write() as writer:
        writer.add({"key": "p0000.png", "texts": ["one", "two"], "verdict": "good"})
        writer.add({"key": "p0001.png", "texts": ["it's"], "verdict": "rejected"})
        writer.add({"key": "p0002.png", "error": "failed"})
    with dataset.layer("tags/danbooru").write() as writer:
        writer.add({"key": "p0003.png", "general": ["cat", "dog"], "score": 7})
    return dataset


def test_sql_has_a_view_for_every_layer(asked: Dataset) -> None:
    relation = asked.sql('select key, text, texts from "captions/a-b.c+d" where error is null order by key;')
    assert relation.columns == ["key", "text", "texts"]
    assert relation.fetchall() == [("p0000.png", "one", ["one", "two"]), ("p0001.png", "it's", ["it's"])]
    assert relation.fetchone() == ("p0000.png", "one", ["one", "two"])
    assert relation.count() == 2
    table = relation.arrow()
    assert isinstance(table, pa.Table)
    assert table.to_pylist()[1] == {"key": "p0001.png", "text": "it's", "texts": ["it's"]}
    assert pa.table(relation).equals(table)
    assert sum(batch.num_rows for batch in relation.batches(1)) == 2
    assert "it's" in str(relation)
    assert asked.sql("select count(*) from pictures").fetchall() == [(6,)]
    names = {row[0] for row in asked.sql("show tables").fetchall()}
    assert names == {"pictures", "captions/a-b.c+d", "tags/danbooru", SIDECAR} & names
    assert {"pictures", "captions/a-b.c+d", "tags/danbooru"} <= names
    columns = set(asked.sql('from "tags/danbooru"').columns)
    assert not columns & {"rank", "deleted"}
    assert asked.sql("select 1 where false").fetchone() is None


def test_a_query_that_makes_no_sense_is_said_in_a_line(asked: Dataset) -> None:
    for query in ("select nonsense from pictures", "selec", 'from "captions/none"', ""):
        with pytest.raises(QueryError) as refused:
            asked.sql(query).fetchall()
        assert "Traceback" not in str(refused.value)
    assert "nonsense" in cutline("sql", asked.root, "select nonsense from pictures", code=1).stderr
    assert "is no dataset yet" in cutline("sql", asked.root.parent, "from pictures", code=1).stderr


def test_views_follow_what_is_written(asked: Dataset) -> None:
    count = asked.sql('select count(*) from "captions/a-b.c+d"')
    assert count.fetchall() == [(3,)]
    other = Dataset(asked.root)
    with other.layer("captions/a-b.c+d").write() as writer:
        writer.add({"key": "p0004.png", "texts": ["new"]})
    assert count.fetchall() == [(4,)]
    other.compact()
    assert count.fetchall() == [(4,)]
    shutil.rmtree(asked.layer("tags/danbooru").folder)
    with pytest.raises(QueryError):
        asked.sql('from "tags/danbooru"').fetchall()
    assert "tags/danbooru" not in asked.layers()


def test_scan_joins_layers_to_readable_pictures(asked: Dataset) -> None:
    rows = [
        row
        for batch in asked.scan("captions/a-b.c+d", "tags/danbooru", "tags/none", "pictures")
        for row in batch.to_pylist()
    ]
    assert [row["key"] for row in rows] == [f"p{number:04d}.png" for number in range(5)]
    assert rows[0]["captions/a-b.c+d"]["texts"] == ["one", "two"]
    assert rows[2]["captions/a-b.c+d"]["error"] == "failed"
    assert rows[4]["captions/a-b.c+d"] is None
    assert rows[3]["tags/danbooru"]["general"] == ["cat", "dog"]
    assert all(row["tags/none"] is None for row in rows)
    assert (rows[0]["width"], rows[0]["height"], rows[0]["format"]) == (8, 6, "PNG")


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("width > 8", []),
        ("key < 'p0002'", ["p0000.png", "p0001.png"]),
        ('"tags/danbooru".score > 5', ["p0003.png"]),
        ("list_contains(\"tags/danbooru\".general, 'cat') and width = 8", ["p0003.png"]),
        ("\"captions/a-b.c+d\".text = 'it''s'", ["p0001.png"]),
        ('"captions/a-b.c+d".key is null or "tags/danbooru".score = 7', ["p0003.png", "p0004.png"]),
        ("key like '%1.png' -- a remark", ["p0001.png"]),
    ],
)
def test_where_looks_at_pictures_and_layers(asked: Dataset, where: str, expected: list[str]) -> None:
    found = [row["key"] for batch in asked.scan(where=where) for row in batch.to_pylist()]
    assert found == expected
    assert [row[0] for row in asked.missing("captions/new", where=where).fetchall()] == expected


def test_missing_and_retry(asked: Dataset) -> None:
    def keys(retry: str = "", **more: Any) -> list[str]:
        return [row[0][1:5] for row in asked.missing("captions/a-b.c+d", retry=retry, **more).fetchall()]

    assert keys() == ["0003", "0004"]
    assert keys("errors") == ["0002", "0003", "0004"]
    assert keys("rejected") == ["0001", "0003", "0004"]
    assert keys("errors", where="key < 'p0004'") == ["0002", "0003"]
    with asked.layer("captions/a-b.c+d").write() as writer:
        writer.add({"key": "p0001.png", "error": "failed"})  # a try that failed leaves the rejected row in place
        writer.add({"key": "p0002.png", "texts": ["at last"]})
    assert keys("errors") == ["0003", "0004"]
    assert keys("rejected") == ["0001", "0003", "0004"]
    with pytest.raises(OptionError, match="errors or rejected"):
        asked.missing("captions/a-b.c+d", retry="all")
    with pytest.raises(OptionError, match="no verdicts"):
        asked.missing("tags/danbooru", retry="rejected")
    assert [row[0][1:5] for row in asked.missing("tags/danbooru").fetchall()] == ["0000", "0001", "0002", "0004"]
    assert asked.missing("captions/never").count() == 5
    table = pa.Table.from_batches(asked.scan("pictures", "tags/danbooru", only=asked.missing("captions/never")))
    assert table.column("tags/danbooru").to_pylist()[3]["score"] == 7


def test_picture_by_key(asked: Dataset) -> None:
    assert asked.picture("p0002.png").read() == picture(2)
    with pytest.raises(CutlineError, match=r"no picture of .* has the key 'p0002'"):
        asked.picture("p0002")


def test_a_dataset_of_another_version_is_refused(root: Path) -> None:
    make_pictures(root, 1)
    add(Dataset(root))
    toml = root / ".cutline" / "dataset.toml"
    toml.write_text(toml.read_text().replace("version = 1", "version = 2"))
    for verb in ("add", "status"):
        assert "version 2" in cutline(verb, root, code=1).stderr
    toml.write_text("version = [")
    assert "cannot be read" in cutline("status", root, code=1).stderr


# -- words of a source --------------------------------------------------------------------------------------------


def test_words_are_written_only_where_they_changed(root: Path) -> None:
    make_pictures(root, 5)
    for number in range(4):
        (root / f"p{number:04d}.txt").write_text(f"words {number}")
    dataset = Dataset(root)
    assert add(dataset).words == {SIDECAR: 4}
    parts = dataset.layer(SIDECAR).parts()
    assert add(dataset).words == {SIDECAR: 0}
    assert dataset.layer(SIDECAR).parts() == parts
    (root / "p0001.txt").write_text("other words")
    assert add(dataset).words == {SIDECAR: 1}
    assert said(dataset)["p0001.png"] == "other words"
    os.utime(root / "p0002.txt", (1, 1))
    assert add(dataset).words == {SIDECAR: 0}
    (root / "p0003.txt").unlink()
    add(dataset)
    assert set(said(dataset)) == {"p0000.png", "p0001.png", "p0002.png"}
    assert add(dataset).words == {SIDECAR: 0}
    (root / "p0003.txt").write_text("words 3")
    assert add(dataset).words == {SIDECAR: 1}
    assert said(dataset)["p0003.png"] == "words 3"
    (root / "p0003.txt").write_text("")
    add(dataset)
    assert "p0003.png" not in said(dataset)


def test_words_move_with_their_picture(root: Path) -> None:
    make_pictures(root, 6)
    for number in range(3):
        (root / f"p{number:04d}.txt").write_text(f"words {number}")
    dataset = Dataset(root)
    add(dataset)
    (root / "p0000.png").rename(root / "alone.png")  # its sidecar stays behind
    (root / "p0001.png").rename(root / "both.png")
    (root / "p0001.txt").rename(root / "both.txt")
    for _ in range(3):
        add(dataset)
        assert {key: text for key, text in captions(dataset, SIDECAR).items() if text} == {
            "alone.png": "words 0",
            "both.png": "words 1",
            "p0002.png": "words 2",
        }
    (root / "alone.txt").write_text("its own now")
    add(dataset)
    assert captions(dataset, SIDECAR)["alone.png"] == "its own now"
    (root / "alone.txt").unlink()
    add(dataset)
    assert captions(dataset, SIDECAR)["alone.png"] is None
    (root / "both.png").rename(root / "p0001.png")  # and back, leaving both.txt
    add(dataset)
    assert captions(dataset, SIDECAR)["p0001.png"] == "words 1"


def test_words_that_were_changed_elsewhere_come_back_changed(root: Path) -> None:
    """The newest words about a picture go with it, also to where it was before."""
    make_pictures(root, 4)
    dataset = Dataset(root)
    add(dataset)

    def type_in(key: str, text: str) -> None:
        content = dict(dataset.sql("select key, content from pictures").fetchall())[key]
        with dataset.layer("captions/human").write() as writer:
            writer.add({"key": key, "texts": [text], "content": content})

    type_in("p0000.png", "first")
    (root / "p0000.png").rename(root / "b.png")
    add(dataset)
    assert captions(dataset, "captions/human")["b.png"] == "first"
    type_in("b.png", "second")
    (root / "b.png").rename(root / "p0000.png")
    assert add(dataset).moved == 1
    assert captions(dataset, "captions/human")["p0000.png"] == "second"
    (root / "p0000.png").rename(root / "b.png")
    add(dataset)
    assert captions(dataset, "captions/human")["b.png"] == "second"


def test_words_without_content_stay_with_their_picture_through_errors(root: Path) -> None:
    """While a key is held by two files or by a damaged one, what was typed of it still is about the first."""
    make_pictures(root, 4)
    dataset = Dataset(root)
    dataset.add(Folder(root), rule=KeyRule("stem"))
    with dataset.layer("captions/human").write() as writer:
        for key in ("p0000", "p0001"):
            writer.add({"key": key, "texts": [f"typed of {key}"]})
    (root / "p0000.webp").write_bytes(picture(50))
    data = (root / "p0001.png").read_bytes()
    (root / "p0001.png").unlink()
    (root / "p0001.png").symlink_to("nowhere")
    add(dataset)
    assert errors(dataset) == {"p0000": "duplicate_key", "p0001": "vanished"}
    (root / "p0000.png").rename(root / "moved.png")
    (root / "p0001.png").unlink()
    (root / "p0001.png").write_bytes(picture(51))
    add(dataset)
    assert captions(dataset, "captions/human") == {
        "moved": "typed of p0000",
        "p0000": None,
        "p0001": None,
        "p0002": None,
        "p0003": None,
    }
    (root / "p0001.png").write_bytes(data)
    add(dataset)
    assert captions(dataset, "captions/human")["p0001"] == "typed of p0001"


def test_swapped_pictures_take_the_words_that_now_stand_beside_them(root: Path) -> None:
    """A sidecar is about the picture of its name: what stands there now counts."""
    make_pictures(root, 4)
    for number in range(2):
        (root / f"p{number:04d}.txt").write_text(f"words {number}")
    dataset = Dataset(root)
    add(dataset)
    first, second = (root / "p0000.png").read_bytes(), (root / "p0001.png").read_bytes()
    (root / "p0000.png").write_bytes(second)
    (root / "p0001.png").write_bytes(first)
    for _ in range(2):
        add(dataset)
        assert said(dataset) == {"p0000.png": "words 0", "p0001.png": "words 1"}


def test_words_of_a_vanished_picture_come_back(root: Path) -> None:
    make_pictures(root, 5)
    (root / "p0000.txt").write_text("words")
    dataset = Dataset(root)
    add(dataset)
    data = (root / "p0000.png").read_bytes()
    (root / "p0000.png").unlink()
    (root / "p0000.txt").unlink()
    add(dataset)
    add(dataset)
    (root / "p0000.png").write_bytes(data)
    dataset.add(Given({"pictures": [{"name": "p0000.png", "uri": str(root / "p0000.png"), "size": 1, "mtime_ns": 1}]}))
    assert captions(dataset, SIDECAR)["p0000.png"] == "words"


def test_kohya_words_find_their_pictures(root: Path, tmp_path: Path) -> None:
    make_pictures(root / "trip", 4)
    (root / "solo.png").write_bytes(picture(90))
    (root / "double.png").write_bytes(picture(91))
    (root / "trip" / "double.png").write_bytes(picture(92))
    dataset = Dataset(root)
    add(dataset)
    metadata = {
        str(root / "trip" / "p0000.png"): {"caption": "by absolute path"},
        "trip/p0001.png": {"caption": "by relative path"},
        "trip/p0002": {"caption": "by path without extension"},
        "p0003": {"caption": "by stem", "tags": "cat, dog"},
        "solo": {"caption": "by stem at the root"},
        "double": {"caption": "the root's, by its path without extension, or nobody's"},
        "nobody": {"caption": "about no picture"},
    }
    file = tmp_path / "meta.json"
    file.write_text(json.dumps(metadata))
    report = dataset.add(Kohya(file))
    found = {key: text for key, text in captions(dataset, "captions/kohya").items() if text}
    assert {key: text for key, text in found.items() if "double" not in key} == {
        "trip/p0000.png": "by absolute path",
        "trip/p0001.png": "by relative path",
        "trip/p0002.png": "by path without extension",
        "trip/p0003.png": "by stem",
        "solo.png": "by stem at the root",
    }
    assert "trip/double.png" not in found, "an ambiguous name is nobody's"
    assert dataset.sql("select unsorted from \"tags/kohya\" where key = 'trip/p0003.png'").fetchall() == [
        (["cat", "dog"],)
    ]
    assert any("about no readable picture" in note for note in report.notes)
    assert dataset.add(Kohya(file)).words == {"captions/kohya": 0, "tags/kohya": 0}
    # What it does not name keeps its words: a metadata file lists words, not pictures.
    file.write_text(json.dumps({"p0003": {"caption": "other"}}))
    assert dataset.add(Kohya(file)).words["captions/kohya"] == 1
    assert captions(dataset, "captions/kohya")["trip/p0000.png"] == "by absolute path"
    file.write_text(json.dumps({"x1": {"caption": "a"}, "x2": {"caption": "b"}}))
    assert any("NONE" in note for note in dataset.add(Kohya(file)).notes)


def test_a_source_that_says_nonsense_is_refused(root: Path) -> None:
    make_pictures(root, 2)
    dataset = Dataset(root)
    add(dataset)
    with pytest.raises(CutlineError, match=r"columns that its layer does not have: \['nonsense'\]"):
        dataset.add(Given({"captions/x": [{"name": "p0000.png", "nonsense": 1}]}))
    assert list((root / ".cutline" / "tmp").iterdir()) == []
    report = dataset.add(Given({"captions/x": [{"name": "p0000.png", "texts": ["a"]}]}, {"seen": 2}))
    assert report.words == {"captions/x": 1}
    assert report.notes["seen"] == 2
    last = dataset.add(Given({"captions/x": [{"name": "p0000.png", "texts": [text]} for text in "bcd"]}))
    assert said(dataset, "captions/x") == {"p0000.png": "d"}
    assert any("said again later" in note for note in last.notes)


def test_words_with_an_error_replace_what_was_there(root: Path) -> None:
    make_pictures(root, 2)
    dataset = Dataset(root)
    add(dataset)
    dataset.add(Given({"captions/x": [{"name": "p0000.png", "texts": ["good"]}]}))
    dataset.add(Given({"captions/x": [{"name": "p0000.png", "error": "bad_value", "detail": "it is a number"}]}))
    assert said(dataset, "captions/x") == {"p0000.png": "bad_value"}
    dataset.add(Given({"captions/x": [{"name": "p0000.png", "texts": ["good"]}]}))
    assert said(dataset, "captions/x") == {"p0000.png": "good"}


# -- killed, and at once ------------------------------------------------------------------------------------------


def kill_add(root: Path, seconds: float) -> bool:
    """Start an `add` and kill it after so long; whether it was still at work."""
    child = subprocess.Popen([*CUTLINE, "add", str(root)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
    return child.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_add_loses_no_moved_words(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 400
    names = make_pictures(root, count)
    for number, name in enumerate(names[: count // 2]):
        (root / name).with_suffix(".txt").write_text(f"words {number}")
    dataset = Dataset(root)
    add(dataset)
    annotated(dataset)
    words = {sha256(root / name): f"words {number}" for number, name in enumerate(names[: count // 2])}
    for name in names[: count // 2]:
        (root / name).with_suffix(".txt").unlink()
    chance = random.Random(5)
    killed = 0
    for turn in range(3):
        # The first half goes to new names, the second half turns round by one place.
        half, rest = [f"t{turn}-{number:04d}.png" for number in range(count // 2)], names[count // 2 :]
        files = sorted(path.name for path in root.glob("*.png") if path.name not in rest)
        for old, new in zip(files, half, strict=True):
            (root / old).rename(root / new)
        for name in rest:
            (root / name).rename(root / f"{name}.was")
        for name, following in zip(rest, [*rest[1:], rest[0]], strict=True):
            (root / f"{name}.was").rename(root / following)
        for _ in range(5):
            killed += kill_add(root, 0.35 + chance.random() * 0.6)
            fresh = Dataset(root)
            shown = {key: text for key, text in captions(fresh).items() if text}
            known = dict(fresh.sql("select key, content from pictures").fetchall())
            assert all(text == known[key] for key, text in shown.items())
        report = add(Dataset(root))
        assert report.vanished + report.moved + report.unchanged >= 0
        fresh = Dataset(root)
        assert fresh.missing(ECHO).count() == 0, f"turn {turn}: every caption has moved with its picture"
        assert captions(fresh) == true_words(fresh)
        by_content = {true_words(fresh)[key]: text for key, text in captions(fresh, SIDECAR).items() if text}
        assert by_content == words
    assert killed >= 5
    assert list((root / ".cutline" / "tmp").iterdir()) == [], "what killed ones left is cleared away"
    clear_leftovers(dataset)
    assert dataset.missing(ECHO).count() == 0


CHUNKED = """
import os, signal, sys
from pathlib import Path
from cutline.dataset import Dataset, gather
from cutline.sources.folder import Folder
gather.CHUNK, steps = 7, int(sys.argv[2])
real = os.rename
def rename(old, new):
    global steps
    if str(new).endswith(".parquet"):
        if steps == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        steps -= 1
    real(old, new)
os.rename = rename
Dataset(sys.argv[1]).add(Folder(Path(sys.argv[1])))
"""
"""An `add` in chunks of seven pictures that dies just before it publishes its n-th part."""


@pytest.mark.slow
def test_an_add_killed_before_any_part_loses_no_moved_words(root: Path, tmp_path: Path) -> None:
    import sys

    names = make_pictures(root, 30)
    dataset = Dataset(root)
    add(dataset)
    annotated(dataset)
    with dataset.layer("captions/human").write() as writer:
        for name in names:
            writer.add({"key": name, "texts": [sha256(root / name)]})
    for name in names:
        (root / name).rename(root / f"{name}.was")
    for name, following in zip(names, [*names[1:], names[0]], strict=True):
        (root / f"{name}.was").rename(root / following)
    for step in range(40):
        copy = tmp_path / f"killed at {step}"
        shutil.copytree(root, copy)
        done = subprocess.run(
            [sys.executable, "-c", CHUNKED, str(copy), str(step)], timeout=60, check=False, capture_output=True
        )
        once = Dataset(copy)
        for layer in (ECHO, "captions/human"):
            shown = {key: text for key, text in captions(once, layer).items() if text}
            known = dict(once.sql("select key, content from pictures").fetchall())
            assert all(text == known[key] for key, text in shown.items()), f"killed before part {step}"
        add(once)
        assert captions(once) == true_words(once), f"killed before part {step}"
        assert captions(once, "captions/human") == true_words(once), f"killed before part {step}"
        shutil.rmtree(copy)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert step > 10


def test_two_adds_at_once_agree(root: Path) -> None:
    make_pictures(root, 60)
    children = [subprocess.Popen([*CUTLINE, "add", str(root)], stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [child.wait(100) for child in children] == [0, 0]
    dataset = Dataset(root)
    assert len(_readable(dataset)) == 60
    assert add(dataset).unchanged == 60
    assert annotated(dataset) == 60


@pytest.mark.slow
def test_adding_beside_compacts(root: Path) -> None:
    """An `add` may run while others compact: nothing fails and nothing is lost."""
    names = make_pictures(root, 40)
    for number, name in enumerate(names):
        (root / name).with_suffix(".txt").write_text(f"words {number}")
    dataset = Dataset(root)
    add(dataset)
    echo(dataset)
    loop = "import sys; from cutline.dataset import Dataset\nwhile True: Dataset(sys.argv[1]).compact()"
    child = subprocess.Popen([CUTLINE[0], "-c", loop, str(root)], stderr=subprocess.PIPE, text=True)
    try:
        for turn in range(1, 9):
            name = names[turn % 40]
            (root / name).rename(root / f"turn {turn} {name}")
            (root / f"turn {turn} {name}").rename(root / name) if turn % 2 else None
            (root / names[(turn + 1) % 40]).with_suffix(".txt").write_text(f"turn {turn}")
            names = sorted(path.name for path in root.glob("*.png"))
            add(dataset)
            assert len(captions(dataset)) == 40
            assert captions(dataset) == true_words(dataset)
        assert child.poll() is None, child.communicate()[1]
    finally:
        child.kill()
        child.communicate()


@pytest.mark.slow
def test_parts_of_a_killed_writer_are_whole(root: Path) -> None:
    make_pictures(root, 300)
    for seconds in (0.3, 0.5, 0.7):
        kill_add(root, seconds)
        for part in (root / ".cutline").rglob("*.parquet"):
            if "tmp" not in part.parts:
                pq.read_table(part)
    dataset = Dataset(root)
    add(dataset)
    assert len(_readable(dataset)) == 300


def test_an_add_goes_on_where_it_stopped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "CHUNK", 10)
    make_pictures(root, 45)
    dataset = Dataset(root)
    looked: list[str] = []

    def look(path: Path) -> pictures.Inspection:
        if len(looked) == 25:
            raise KeyboardInterrupt
        looked.append(path.name)
        return real(path)

    real = pictures.inspect
    monkeypatch.setattr(pictures, "inspect", look)
    with pytest.raises(KeyboardInterrupt):
        add(dataset)
    assert len(_readable(dataset)) == 20
    first = set(looked[:20])
    looked[:] = [""] * 26
    assert add(dataset).unchanged == 20
    assert first.isdisjoint(looked)
    assert len(looked) == 26 + 25
    assert annotated(dataset) == 45
