"""What tests of models share: rows of little drawn scenes, some with tags, and what a model says of them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from cutline.annotators.session import Row
from cutline.demo.scenes import scenes
from cutline.pictures import Picture

TAGS = "tags/x"


def scene_rows(folder: Path, count: int = 10) -> list[Row]:
    """Rows of scenes in several sizes. Every third has tags, so that prompts differ in length."""
    rows = []
    for number, scene in enumerate(islice(scenes("test"), count)):
        path = folder / f"{number:02}.png"
        scene.draw(64).resize((64 + 16 * (number % 4), 64)).save(path)
        tags = {"general": ["cat", "red dog"]} if number % 3 == 0 else None
        rows.append({"key": path.name, "uri": path.name, "picture": Picture(path), "attempt": 1, TAGS: tags})
    return rows


def say(settings: Any, rows: list[Row]) -> dict[str, Row]:
    """Answer these rows: key -> row, without the time it took."""
    answers = list(settings.load()(iter(rows)))
    assert len(answers) == len(rows)
    assert all(answer.pop("seconds") > 0 for answer in answers if not answer.get("error"))
    return {answer["key"]: answer for answer in answers}


def words(answers: dict[str, Row]) -> list[str]:
    """What the model said, by key."""
    return [answers[key]["raw"] for key in sorted(answers)]
