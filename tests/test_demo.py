"""The demo's parts: scenes whose words are known, a captioner that learns them, and a sheet that shows both."""

from __future__ import annotations

import io
import json
import re
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from cutline import sheet
from cutline.demo import run
from cutline.demo.captioner import train_captioner
from cutline.demo.scenes import COLOURS, RELATIONS, SHAPES, WORDS, held_out, scenes
from cutline.options import CutlineError
from cutline.sheet import Entry, choose, contact_sheet, exact_match


def test_scenes_come_from_their_seed() -> None:
    first, again, other = (list(islice(scenes(seed), 50)) for seed in (1, 1, 2))
    assert first == again
    assert [scene.caption for scene in first] != [scene.caption for scene in other]
    assert first[0].draw(64).tobytes() == again[0].draw(64).tobytes()
    assert first[0].caption == "a green star left of a purple star", "and on any machine"


def test_captions_are_canonical() -> None:
    for scene in islice(scenes(3), 2000):
        (x1, y1), (x2, y2) = scene.centres
        across, down = x2 - x1, y2 - y1
        assert (across if scene.relation == "left of" else down) >= 0.4, "the first is left of, or above, the second"
        assert abs(down if scene.relation == "left of" else across) <= 0.3, "and nobody can read it the other way"
        assert set(scene.caption.split()) <= set(WORDS)


def test_a_tenth_of_all_captions_is_held_out() -> None:
    captions = {
        f"{'an' if c1 == 'orange' else 'a'} {c1} {s1} {relation} {'an' if c2 == 'orange' else 'a'} {c2} {s2}"
        for c1 in COLOURS
        for s1 in SHAPES
        for relation in RELATIONS
        for c2 in COLOURS
        for s2 in SHAPES
    }
    assert len(captions) == 1152
    assert 80 <= sum(held_out(caption) for caption in captions) <= 150
    assert {scene.caption for scene in islice(scenes(4), 20_000)} == captions


def test_the_picture_shows_what_the_caption_says() -> None:
    for scene in islice(scenes(5), 50):
        image = scene.draw(100)
        seen = [image.getpixel((int(100 * x), int(100 * y))) for x, y in scene.centres]
        assert seen == [COLOURS[colour] for colour in scene.colours]


def test_exact_match_counts_every_picture() -> None:
    entries = [Entry(Path("x.png"), caption, "a red star") for caption in ("a red star", "a red star ", "a star", None)]
    assert exact_match(entries) == (1, 4)


def test_the_sheet_shows_wrong_ones_first_and_spreads_the_rest() -> None:
    entries = [Entry(Path(f"{number}.png"), "no" if number % 10 == 0 else "yes", "yes") for number in range(200)]
    shown = choose(entries, 40, wrong=8)
    assert [entry.right for entry in shown] == [False] * 8 + [True] * 32
    assert len(set(shown)) == 40
    assert str(shown[-1].picture) > "190.png"
    assert choose(entries[:5], 40) == entries[:5]


def test_a_contact_sheet_is_a_png_of_the_right_size(tmp_path: Path) -> None:
    entries = []
    for number, scene in enumerate(islice(scenes(6), 5)):
        scene.draw(64).save(tmp_path / f"{number}.png")
        entries.append(Entry(tmp_path / f"{number}.png", None if number == 4 else scene.caption, scene.caption))
    size = contact_sheet(entries, tmp_path / "sheet.png", title="5 scenes", columns=3)
    with Image.open(tmp_path / "sheet.png") as image:
        assert (image.format, image.size) == ("PNG", size)
        assert size[0] == 2 * sheet.MARGIN + 3 * sheet.SIDE + 2 * sheet.GAP
        assert size[1] > 2 * (sheet.SIDE + sheet.GAP)
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20) or []}
    assert {(26, 127, 55), (198, 40, 40)} <= colours, "a green tick and a red cross"


def test_training_learns_reports_and_saves(tmp_path: Path) -> None:
    told: list[tuple[int, int, float]] = []
    out = train_captioner(tmp_path / "model", samples=256, steps=30, progress=lambda *step: told.append(step))
    assert [step for step, _, _ in told] == [10, 20, 30]
    assert told[-1][2] < told[0][2]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in out.iterdir()}
    assert list(tmp_path.iterdir()) == [out]


def test_the_demo_goes_all_the_way_and_again(tmp_path: Path) -> None:
    """With hardly any training, so nothing is right; and a second time, with nothing left to do."""
    folder = tmp_path / "demo"
    told = [tell(folder, unseen=20, samples=64, steps=2), tell(folder, unseen=20, samples=64, steps=2)]
    for error in ("bomb.png: too_large", "cut-short.png: truncated", "empty.jpg: empty", "web-page.jpg: not_an_image"):
        assert all(error in text for text in told)
    assert "20 captioned" in told[0]
    assert "It is there from before" in told[1]
    assert "0 captioned." in told[1]
    assert all("0 of 20 captions exactly right" in text for text in told)
    with Image.open(folder / "contact-sheet.png") as image:
        assert image.format == "PNG"


def test_the_demo_keeps_out_of_other_peoples_folders(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(CutlineError, match="Give a new folder"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


@pytest.mark.slow
def test_the_demo_is_right(whole_demo: tuple[Path, str]) -> None:
    """The full size: more than nine in ten, also of the captions that training never saw."""
    folder, text = whole_demo
    found = re.search(r"([\d,]+) of 1,000 captions exactly right", text)
    assert found, text
    assert int(found[1]) > 900
    composed = re.search(r"(\d+) of the (\d+) whose words", text)
    assert composed, text
    assert int(composed[1]) > 0.9 * int(composed[2]) > 50
    captions = json.loads((folder / "exports" / "kohya.json").read_text())
    assert len(captions) == 1000


def tell(folder: Path, **how: int) -> str:
    """Run the demo; what it said."""
    console = Console(file=io.StringIO(), width=80)
    run(folder, console, **how)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
