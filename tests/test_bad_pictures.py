"""Pictures as they come, through the command line: those that cannot be read say why, the others get their words."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from corpus import make_bad_corpus, make_twins
from cutline.dataset import Dataset
from cutline.sources.folder import Folder
from running import ECHO, captions, cutline, echo, leftovers, make_pictures, sha256


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[Path, dict[str, str | None]]:
    root = tmp_path / "photos"
    return root, make_bad_corpus(root)


def rows(root: Path, query: str) -> list[dict[str, Any]]:
    """The rows of `cutline sql --json`: one line each, whatever is in a name."""
    return [json.loads(line) for line in cutline("sql", root, query, "--json").stdout.splitlines()]


def test_the_bad_corpus_goes_through(corpus: tuple[Path, dict[str, str | None]]) -> None:
    root, expected = corpus
    good = {name for name, error in expected.items() if error is None}
    bad = {name: error for name, error in expected.items() if error is not None}

    done = cutline("add", root, code=3)
    assert f"{len(expected)} added, {len(bad)} unreadable" in done.stdout
    assert f"{len(bad)} of these pictures cannot be read. Which: cutline sql" in done.stderr
    assert "1 × link to a folder that it is in" in done.stdout

    found = rows(root, "select * exclude (mtime_ns) from pictures")
    keys = {unicodedata.normalize("NFC", name): name for name in expected}
    assert {row["key"] for row in found} == set(keys)
    assert {keys[row["key"]]: row["error"] for row in found} == expected
    for row in found:
        name = keys[row["key"]]
        assert row["uri"] == name
        if row["error"] is None:
            assert row["content"] == sha256(root / name)
            assert row["width"] > 0
            assert row["height"] > 0
            assert row["format"]
            assert row["detail"] is None
        else:
            assert len(row["detail"]) > 10, "and says it for people"
            assert "\n" not in row["detail"]

    done = cutline("annotate", root, "echo", "-o", "says={content}", code=3)
    assert f"{len(good)} good" in done.stdout
    there = [name for name, error in bad.items() if error != "vanished"]  # a link that leads nowhere is not there
    assert f"{len(there)} of the pictures cannot be read and were left out" in done.stderr
    dataset = Dataset(root)
    assert captions(dataset) == {key: sha256(root / name) for key, name in keys.items() if name in good}

    counts = json.loads(cutline("status", root, "--json").stdout)["pictures"]
    assert counts == Counter(error or "readable" for error in expected.values())

    again = cutline("add", root, code=3).stdout
    assert "added" not in again
    assert " changed" not in again
    assert "nothing to do" in cutline("annotate", root, "echo", "-o", "says={content}", code=3).stdout
    assert leftovers(root) == []


def test_bad_pictures_mend_and_good_ones_break(corpus: tuple[Path, dict[str, str | None]]) -> None:
    root, _ = corpus
    dataset = Dataset(root)
    dataset.add(Folder(root))
    echo(dataset)
    whole = (root / "UPPER.JPG").read_bytes()
    (root / "truncated.jpg").write_bytes(whole)
    (root / "empty.jpg").write_bytes(whole + b" ")
    (root / "loop a.png").unlink()
    (root / "loop a.png").write_bytes((root / "palette with alpha.png").read_bytes())
    (root / "cmyk.jpg").write_bytes((root / "cmyk.jpg").read_bytes()[:300])
    (root / "Mixed.JpEg").write_bytes(b"")
    report = dataset.add(Folder(root))
    assert report.changed + report.moved + report.added >= 6
    echo(dataset)
    found = captions(dataset)
    errors = dict(dataset.sql("select key, error from pictures where error is not null").fetchall())
    for name in ("truncated.jpg", "empty.jpg", "loop a.png", "loop b.png"):
        assert found[name] == sha256(root / name)
    assert errors["cmyk.jpg"] == "truncated"
    assert errors["Mixed.JpEg"] == "empty"
    assert found.keys().isdisjoint(errors)


def test_a_picture_that_breaks_between_add_and_annotate_is_one_error_row(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    names = make_pictures(root, 6)
    Dataset(root).add(Folder(root))
    (root / names[1]).unlink()
    (root / names[2]).write_bytes(b"")
    (root / names[3]).write_bytes((root / names[4]).read_bytes())
    done = cutline("annotate", root, "echo", code=3)
    assert "3 good, 3 failed" in done.stdout
    assert "3 failed (1 vanished, 1 empty, 1 changed)" in done.stderr
    dataset = Dataset(root)
    assert dataset.add(Folder(root)).unreadable == 1
    assert dataset.missing(ECHO).fetchall()[0][0] == names[3], "what lies there now"


def test_twins_stand_for_none_until_one_goes(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    make_pictures(root, 2)
    composed, decomposed = make_twins(root)
    assert "1 duplicate_key" in cutline("add", root, code=3).stdout
    (row,) = rows(root, "select key, detail from pictures where error is not null")
    assert row["key"] == composed
    assert json.loads(row["detail"]) == sorted([composed, decomposed])
    assert "2 good" in cutline("annotate", root, "echo", "-o", "says={uri}", code=3).stdout
    (root / decomposed).unlink()
    dataset = Dataset(root)
    dataset.add(Folder(root))
    assert echo(dataset, says="{uri}").good == 1
    assert captions(dataset)[composed] == composed


def test_a_name_that_is_not_utf8_is_said(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    make_pictures(root, 3)
    try:
        (root / "p0000.png").rename(root / "caf\udce9.png")  # the byte E9, as Latin-1 has it
    except OSError as error:
        pytest.skip(f"cannot make a name that is not UTF-8 here: {error}")
    assert "1 bad_name" in cutline("add", root, code=3).stdout
    (row,) = rows(root, "select key, error, detail from pictures where error is not null")
    assert (row["key"], row["error"]) == (r"caf\xe9.png", "bad_name")
    dataset = Dataset(root)
    assert echo(dataset).good == 2
    (root / "caf\udce9.png").rename(root / "café.png")
    dataset.add(Folder(root))
    assert echo(dataset).good == 1


def test_a_dataset_in_an_odd_place(tmp_path: Path) -> None:
    """Quotes, spaces, brackets and non-Latin letters in the folder's own name."""
    root = tmp_path / 'it\'s a "folder" [1] {2} 100% 猫 *?' / "a;b--c"
    make_pictures(root, 4)
    cutline("add", root)
    echo(Dataset(root))
    for _ in range(2):
        assert captions(Dataset(root)) == {name: sha256(root / name) for name in (f"p{n:04d}.png" for n in range(4))}
        with Dataset(root).layer("captions/human").write() as writer:
            writer.add({"key": "p0000.png", "texts": ["typed"]})
        Dataset(root).compact()
    assert rows(root, 'select text from "captions/human"') == [{"text": "typed"}]
