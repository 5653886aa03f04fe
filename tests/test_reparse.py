"""Reading once more what models said: a better parser or judge, and answers that came from elsewhere as rejected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cutline.annotators.image_text import ImageText
from cutline.dataset import Dataset
from cutline.engine.reparse import reparse
from cutline.engine.selection import Selection
from cutline.layer import IdentityError
from cutline.options import OptionError
from cutline.sources.folder import Folder
from cutline.sources.kohya import Kohya
from running import cutline, echo, make_pictures

LAYER = "captions/toriigate"

BAD = {
    "p0000.png": '```json\n{"character": "A girl.", "background": "Snow."}\n```',
    "p0001.png": '{"character": "A girl.", "background": "It is snow',
    "p0002.png": "# Markdown\n\n- a girl",
    "p0003.png": '{"character": "says "hi" loudly", "b": "z"}',
}


@pytest.fixture
def bad(tmp_path: Path) -> Dataset:
    """A dataset with the seed's kind of file of rejected answers, and an artist for one of the pictures."""
    make_pictures(tmp_path, 5)
    (tmp_path / "bad.json").write_text(json.dumps({key: {"caption": raw} for key, raw in BAD.items()}))
    dataset = Dataset(tmp_path)
    dataset.add(Folder(path=tmp_path))
    dataset.add(Kohya(path=tmp_path / "bad.json", image_dir=tmp_path, layer="toriigate", rejected=True))
    with dataset.layer("tags/danbooru").write() as writer:
        writer.add({"key": "p0000.png", "general": ["1girl"], "artist": ["some_artist"]})
    return dataset


def selection(dataset: Dataset, **narrow: object) -> Selection:
    return Selection(dataset, ImageText(prompt="toriigate-json", model="none"), LAYER, **narrow)  # type: ignore[arg-type]


def said(dataset: Dataset, layer: str = LAYER) -> dict[str, tuple[str, str | None, str | None, str]]:
    rows = dataset.sql(f'select key, verdict, text, reason, raw from "{layer}" order by key').fetchall()
    return {key: tuple(rest) for key, *rest in rows}


def test_files_of_rejected_answers_are_mended(bad: Dataset) -> None:
    assert {verdict for verdict, *_ in said(bad).values()} == {"rejected"}
    report = reparse(selection(bad))
    assert (report.read, report.changed, report.repaired, report.rejected) == (4, 4, 3, 1)
    found = said(bad)
    assert {key: raw for key, (*_, raw) in found.items()} == BAD  # what was said stays
    artist = "The image is a digital illustration by the artist some artist. "
    assert found["p0000.png"][:2] == ("repaired", artist + "A girl. Snow.")
    assert found["p0001.png"][0] == "repaired"
    assert str(found["p0001.png"][1]).startswith("A girl.")
    assert found["p0002.png"][:3] == ("rejected", None, "not_json")
    assert found["p0003.png"][1] == 'says "hi" loudly z'
    checks = dict(bad.sql('select key, findings from "checks/toriigate"').fetchall())
    assert checks["p0002.png"] == ["structure"]


def test_reading_again_changes_nothing_more(bad: Dataset) -> None:
    reparse(selection(bad))
    parts = bad.layer(LAYER).parts()
    report = reparse(selection(bad))
    assert (report.read, report.changed) == (1, 0)  # of a source's rows only those that are still rejected
    assert bad.layer(LAYER).parts() == parts


def test_what_was_mended_stays_so_when_the_file_is_added_again(bad: Dataset) -> None:
    reparse(selection(bad))
    found = said(bad)
    bad.add(Kohya(path=bad.root / "bad.json", image_dir=bad.root, layer="toriigate", rejected=True))
    assert said(bad) == found


def test_a_dry_run_writes_nothing(bad: Dataset) -> None:
    before = said(bad)
    report = reparse(selection(bad), dry_run=True)
    assert (report.read, report.changed) == (4, 4)
    assert said(bad) == before
    assert "checks/toriigate" not in bad.layers()


def test_it_can_be_narrowed(bad: Dataset) -> None:
    assert reparse(selection(bad, where="key < 'p0002'"), dry_run=True).read == 2
    assert reparse(selection(bad, limit=1), dry_run=True).read == 1


def test_people_who_wrote_captions_are_left_alone(bad: Dataset) -> None:
    with bad.layer("captions/human").write() as writer:
        writer.add({"key": "p0000.png", "texts": ["My words."], "raw": "{}", "verdict": "good"})
    report = reparse(Selection(bad, ImageText(prompt="toriigate-json", model="none"), "captions/human"))
    assert (report.read, report.changed) == (0, 0)


def test_what_cannot_be_read_again_is_refused(bad: Dataset) -> None:
    echo(bad)
    with pytest.raises(OptionError, match="no prompt"):
        reparse(Selection(bad, __import__("cutline.annotators.echo").annotators.echo.Echo(), "captions/echo"))
    with pytest.raises(OptionError, match="no layer captions/nothing"):
        reparse(Selection(bad, ImageText(model="none"), "captions/nothing"))
    with pytest.raises(IdentityError):
        reparse(Selection(bad, ImageText(model="none"), "captions/echo"))


def test_through_the_command_line(bad: Dataset) -> None:
    words = ("annotate", bad.root, "image_text", "-o", "model=none", "-o", "prompt=toriigate-json", "--as", LAYER)
    assert "4 would change (3 repaired, 1 rejected)" in cutline(*words, "--reparse", "--dry-run").stdout
    done = cutline(*words, "--reparse")
    assert "4 answers read again, 4 changed (3 repaired, 1 rejected)" in done.stdout
    assert "rejected: 1 not_json" in done.stderr
    assert "--retry has no effect" in cutline(*words, "--reparse", "--retry", "rejected", code=2).stderr
    assert json.loads(cutline(*words, "--reparse", "--log-json").stdout)["read"] == 1
