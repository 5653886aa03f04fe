"""The corpus of damaged, odd and oddly named files through the command line: each ends as what it is."""

from __future__ import annotations

import json
from pathlib import Path

import corpus
from cutline.dataset import Dataset
from running import cutline


def test_every_bad_picture_ends_as_one_typed_reason(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    expected = corpus.make_bad_corpus(photos)
    bad = {name: error for name, error in expected.items() if error is not None}
    report = json.loads(cutline("add", photos, "--json", code=3).stdout)
    assert report["unreadable"] == len(bad)

    dataset = Dataset(photos)
    found = dict(dataset.sql("select key, error from pictures").fetchall())
    assert {name: found.get(name) for name in expected} == expected
    for key, detail in dataset.sql("select key, detail from pictures where error is not null").fetchall():
        assert detail, f"{key} says why, for people"

    last = cutline("annotate", photos, "echo", "-o", "says={key}", code=3).stderr
    assert "cannot be read" in last
    cutline("annotate", photos, "facts", code=3)
    captions = dict(dataset.sql('select key, text from "captions/echo"').fetchall())
    good = {key for key, error in found.items() if error is None}
    assert captions == {key: key for key in good}
    assert dataset.sql("select key from facts where error is null").count() == len(good)

    again = json.loads(cutline("add", photos, "--json", code=3).stdout)
    assert (again["added"], again["changed"], again["unreadable"]) == (0, 0, len(bad))
    assert "nothing to do" in cutline("annotate", photos, "echo", "-o", "says={key}", code=3).stdout


def test_twins_are_one_row_that_names_both(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    names = corpus.make_twins(photos)
    cutline("add", photos, code=3)
    rows = Dataset(photos).sql("select error, detail from pictures where error is not null").fetchall()
    assert [error for error, _ in rows] == ["duplicate_key"]
    assert sorted(json.loads(rows[0][1])) == sorted(names)
    cutline("annotate", photos, "echo", code=3)
    (photos / names[1]).unlink()
    cutline("add", photos)
    cutline("annotate", photos, "echo")
    assert Dataset(photos).sql('from "captions/echo"').count() == 1
