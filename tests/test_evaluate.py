"""`cutline evaluate`: which captions count, what is said and written, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cutline import sheet
from cutline.dataset import Dataset, KeyRule
from cutline.evaluation.layers import evaluate, extremes, held_out, write_files
from cutline.options import CutlineError, OptionError
from cutline.pictures import Picture
from cutline.sheet import Entry, contact_sheet
from running import cutline

TRUE, OLD, NEW = "captions/true", "captions/old", "captions/new"


def good(key: str, *texts: str) -> dict[str, Any]:
    return {"key": key, "texts": list(texts), "verdict": "good"}


@pytest.fixture
def photos(tmp_path: Path) -> Dataset:
    """Seven pictures known by name, `a` alone with a file; what two models say of them, and what is true."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (40, 30), (200, 0, 200)).save(folder / "a.png")
    made = Dataset(folder)
    made.create(KeyRule())
    file = {"uri": "a.png", "size": (folder / "a.png").stat().st_size}
    layers: dict[str, list[dict[str, Any]]] = {
        "pictures": [
            {"key": "a", "width": 40, **file},
            *({"key": key, "width": 10} for key in "bcdef"),
            {"key": "gone", "error": "vanished"},
        ],
        TRUE: [
            good("a", "a red cat sits on the mat", "the cat is red"),
            good("b", "a dog in the grass"),
            good("c", " ", "two birds"),
            {**good("d", "wrong"), "verdict": "rejected"},
            {"key": "e", "error": "timeout"},
            good("gone", "a ghost"),
        ],
        OLD: [good("a", "a blue dog sits on the mat"), good("b", "a dog in the grass"), good("c", "two birds")],
        NEW: [
            good("a", "the cat is red", "of no account"),
            good("b", "a cat in the grass"),
            {**good("c", "two birds"), "verdict": "rejected"},
            good("d", "a thing"),
            good("gone", "a ghost"),
        ],
        "captions/elsewhere": [good("f", "a thing")],
        "tags/mine": [{"key": "a", "general": ["cat"]}],
    }
    for name, rows in layers.items():
        with made.layer(name).write() as writer:
            for row in rows:
                writer.add(row)
    return made


def test_what_counts_is_what_is_good(photos: Dataset) -> None:
    found = evaluate(photos, NEW, TRUE)
    assert dict(found.references) == {
        "a": ["a red cat sits on the mat", "the cat is red"],
        "b": ["a dog in the grass"],
        "c": ["two birds"],
    }
    assert found.captions.said == {"a": "the cat is red", "b": "a cat in the grass"}
    assert (found.captions.missing, found.without_reference) == (1, 3)
    exact = {key: scores["exact"] for key, scores in found.captions.measured.each.items()}
    assert exact == {"a": 1, "b": 0, "c": 0}


def test_pictures_are_chosen_by_condition_and_by_key(photos: Dataset) -> None:
    assert list(evaluate(photos, NEW, TRUE, where="width > 20").references) == ["a"]
    assert list(evaluate(photos, NEW, TRUE, where='len("captions/true".texts) = 2').references) == ["a", "c"]
    found = evaluate(photos, NEW, TRUE, keys={"b", "d", "nowhere"})
    assert (list(found.references), found.without_reference) == (["b"], 1)


def test_a_baseline_is_measured_on_the_same_pictures(photos: Dataset) -> None:
    found = evaluate(photos, NEW, TRUE, baseline=OLD)
    assert found.baseline is not None
    assert found.baseline.measured.keys == found.captions.measured.keys == ("a", "b", "c")
    assert found.baseline.missing == 0
    value, low, high = found.differences["exact"]
    assert value == pytest.approx(1 / 3 - 2 / 3)
    assert low <= value <= high
    told = json.loads(json.dumps(found.as_dict()))
    assert told["baseline"]["scores"]["exact"]["score"] == pytest.approx(2 / 3)
    assert told["differences"]["exact"]["value"] == value


@pytest.mark.parametrize(
    ("layer", "against", "baseline", "said"),
    [
        ("captions/nothing", TRUE, "", "it has: captions/elsewhere, captions/new, captions/old, captions/true"),
        (NEW, "captions/nothing", "", "has no captions captions/nothing"),
        (NEW, TRUE, "captions/nothing", "has no captions captions/nothing"),
        ("tags/mine", TRUE, "", "has no captions tags/mine"),
        (NEW, NEW, "", "cannot be held against itself"),
        (NEW, TRUE, NEW, "named twice"),
        (NEW, TRUE, TRUE, "named twice"),
    ],
)
def test_layers_are_captions_that_are_there_and_differ(
    photos: Dataset, layer: str, against: str, baseline: str, said: str
) -> None:
    with pytest.raises(OptionError, match=said):
        evaluate(photos, layer, against, baseline=baseline)


def test_nothing_in_common_is_no_zero(photos: Dataset) -> None:
    with pytest.raises(CutlineError, match="captions/elsewhere has no caption for any of the 3 pictures"):
        evaluate(photos, "captions/elsewhere", TRUE)
    with pytest.raises(CutlineError, match="captions/elsewhere has no caption for any"):
        evaluate(photos, NEW, TRUE, baseline="captions/elsewhere")
    with pytest.raises(CutlineError, match="none of the 2 pictures that were held out has a caption in captions/true"):
        evaluate(photos, NEW, TRUE, keys={"d", "e"})
    with pytest.raises(CutlineError, match="no picture was asked for"):
        evaluate(photos, NEW, TRUE, where="width > 1000")


def test_a_run_says_what_it_held_out(photos: Dataset, tmp_path: Path) -> None:
    run = photos.home / "runs" / "first"
    run.mkdir(parents=True)
    rows = {"key": ["a", "b", "c"], "part": ["train", "held_out", None]}
    pq.write_table(pa.table(rows), run / "rows.parquet")
    assert held_out(photos, "first") == held_out(photos, str(run)) == {"b"}
    with pytest.raises(OptionError, match="second is no run of a training"):
        held_out(photos, "second")
    pq.write_table(pa.table({**rows, "part": ["train"] * 3}), run / "rows.parquet")
    with pytest.raises(CutlineError, match="held no pictures out"):
        held_out(photos, "first")
    (run / "rows.parquet").write_bytes(b"no parquet")
    with pytest.raises(CutlineError, match="cannot be read"):
        held_out(photos, "first")


def test_files_hold_every_picture(photos: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    written = write_files(evaluate(photos, NEW, TRUE, baseline=OLD), out)
    assert [path.name for path in written] == ["evaluation.json", "pictures.csv", "wins.png", "losses.png"]
    assert sorted(out.iterdir()) == sorted(written)
    with (out / "pictures.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["key"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["a", "b", "c"]
    assert rows["a"]["references"].split("\n") == ["a red cat sits on the mat", "the cat is red"]
    assert (rows["c"]["caption"], rows["c"]["baseline_caption"]) == ("", "two birds")
    assert (float(rows["b"]["exact"]), float(rows["b"]["baseline_exact"])) == (0, 1)
    colours = {name: colours_of(out / f"{name}.png") for name in ("wins", "losses")}
    assert (200, 0, 200) in colours["wins"], "the picture that is told of better now"
    assert (200, 0, 200) not in colours["losses"]
    names = [path.name for path in write_files(evaluate(photos, NEW, TRUE), out)]
    assert names == ["evaluation.json", "pictures.csv", "best.png", "worst.png"]
    assert (200, 0, 200) in colours_of(out / "best.png")


def test_wins_and_losses_are_those_of_most_difference(tmp_path: Path) -> None:
    """Where only the order of words differs, which `lexical` does not see, it is ROUGE-L that tells."""
    made = Dataset(tmp_path)
    made.create(KeyRule())
    true = "a red star left of two dogs"
    swapped, near, far = "two dogs left of a red star", "a red star left of two cats", "nothing"
    rows = {  # key -> caption of the baseline, and of the layer
        "0 as good": (near, near),
        "1 lost little": (true, near),
        "2 won most": (far, true),
        "3 won by order": (swapped, true),
        "4 lost most": (true, far),
        "5 won": (far, near),
    }
    layers = {"pictures": [{"key": key} for key in rows], TRUE: [good(key, true) for key in rows]}
    layers |= {OLD: [good(key, old) for key, (old, _) in rows.items()]}
    layers |= {NEW: [good(key, new) for key, (_, new) in rows.items()]}
    for name, written in layers.items():
        with made.layer(name).write() as writer:
            for row in written:
                writer.add(row)
    found = extremes(evaluate(made, NEW, TRUE, baseline=OLD))
    assert found == {
        "wins": ("3 wins of 6: captions/new beside captions/old", ["2 won most", "5 won", "3 won by order"]),
        "losses": ("2 losses of 6: captions/new beside captions/old", ["4 lost most", "1 lost little"]),
    }
    title, best = extremes(evaluate(made, NEW, TRUE))["best"]
    assert (title, best) == ("best of the 6 captions of captions/new", ["2 won most", "3 won by order", "0 as good"])
    assert extremes(evaluate(made, NEW, TRUE))["worst"][1] == ["4 lost most", "5 won", "1 lost little"]
    write_files(evaluate(made, TRUE, NEW, baseline=OLD, keys=["0 as good"]), tmp_path / "out")
    with Image.open(tmp_path / "out" / "wins.png") as image:
        assert image.height < sheet.SIDE, "nothing was won: only that is said"


def test_what_cannot_be_opened_is_an_empty_frame(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    Image.new("RGB", (30, 30), (200, 0, 200)).save(tmp_path / "there.png")
    unreadable: list[Path | Picture | None] = [tmp_path / "broken.png", Picture(tmp_path / "gone.png"), None]
    size = contact_sheet([Entry(picture, "x", "x") for picture in unreadable], tmp_path / "sheet.png")
    assert size[0] == 2 * sheet.MARGIN + 3 * sheet.SIDE + 2 * sheet.GAP
    assert (200, 0, 200) not in colours_of(tmp_path / "sheet.png")
    contact_sheet([Entry(Picture(tmp_path / "there.png"), "x", "x")], tmp_path / "sheet.png")
    assert (200, 0, 200) in colours_of(tmp_path / "sheet.png")
    assert contact_sheet([], tmp_path / "none.png", title="nothing")[0] > 0


def test_texts_of_any_length_stay_below_their_picture(tmp_path: Path) -> None:
    """Words longer than a line are broken, and what does not end is cut."""
    short = contact_sheet([Entry(None, "a cat", "a dog")], tmp_path / "short.png")
    for text in ("word " * 500, "letters" * 500, "猫" * 2000):
        assert len(sheet._wrap(text)) == sheet.MOST_LINES
        tall = contact_sheet([Entry(None, text, text, False, (text,))], tmp_path / "long.png")
        assert tall[0] == short[0]
        assert tall[1] < short[1] + 3 * sheet.MOST_LINES * sheet.LINE
    assert " ".join(sheet._wrap("a cat  on\na mat that is red and blue")) == "a cat on a mat that is red and blue"
    assert sheet._wrap("") == [""]


def test_the_command_says_all_that(photos: Dataset, tmp_path: Path) -> None:
    words = [photos.root, NEW, "--against", TRUE]
    done = cutline("evaluate", *words, "--baseline", OLD, "--out", tmp_path / "out")
    lines = done.stdout.splitlines()
    assert lines[0] == "captions/new against captions/true: 3 pictures; 3 without a reference left out"
    assert lines[1] == "1 have no caption in captions/new: counted as empty ones"
    assert any(line.split()[:2] == ["exact", "0.333"] and "-0.333 [" in line for line in lines)
    assert lines[-1].startswith("semantic: lexical;")
    assert f"written: {tmp_path / 'out' / 'wins.png'}" in done.stderr
    told = json.loads(cutline("evaluate", *words, "--where", "width < 20", "--json").stdout)
    assert (told["layer"], told["against"], told["pictures"], told["embedder"]) == (NEW, TRUE, 2, "lexical")
    (tmp_path / "file").touch()
    assert "give a folder" in cutline("evaluate", *words, "--out", tmp_path / "file", code=2).stderr


def colours_of(png: Path) -> set[Any]:
    with Image.open(png) as image:
        return {colour for _, colour in image.convert("RGB").getcolors(1 << 20) or []}
