"""Scenes of two coloured shapes, with the one right caption of each: pictures whose words are known.

There are 1,152 captions: 6 colours x 4 shapes, twice, x {left of, above}. A caption is canonical: it begins with the
left-most or the top-most shape, so a caption is right or wrong, and nothing in between. Everything is drawn from a
seed. A tenth of the captions (by a hash of their text) are `held_out`: training never sees them, so a captioner that
gets them right has learned to compose.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import xxhash
from PIL import Image, ImageDraw

COLOURS = {
    "red": (214, 40, 40),
    "orange": (247, 140, 20),
    "yellow": (245, 215, 50),
    "green": (52, 160, 70),
    "blue": (40, 90, 200),
    "purple": (140, 60, 170),
}
SHAPES = ("circle", "square", "triangle", "star")
RELATIONS = ("left of", "above")
OTHER_NAMES = {"circle": "disc", "square": "box", "triangle": "wedge", "star": "spark"}
"""Shape -> another name for it. No caption has one of them, until somebody teaches a captioner to say so: `rename`."""
WORDS = ("a", "an", *COLOURS, *SHAPES, "left", "of", "above", *OTHER_NAMES.values())
"""What the demo's captioner has a token for."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Scene:
    """Two shapes, the left-most or top-most first, each with its centre and radius as shares of the picture's side."""

    colours: tuple[str, str]
    shapes: tuple[str, str]
    relation: str
    centres: tuple[Point, Point]
    radii: tuple[float, float]
    paper: tuple[int, int, int]

    @property
    def caption(self) -> str:
        """The words of this scene: "an orange star left of a green triangle"."""
        first, second = (
            f"{'an' if colour == 'orange' else 'a'} {colour} {shape}"
            for colour, shape in zip(self.colours, self.shapes, strict=True)
        )
        return f"{first} {self.relation} {second}"

    @property
    def held_out(self) -> bool:
        """Whether training must never see this caption."""
        return held_out(self.caption)

    def draw(self, side: int = 192) -> Image.Image:
        """Draw it as an RGB picture of `side` x `side` pixels."""
        image = Image.new("RGB", (side, side), self.paper)
        pen = ImageDraw.Draw(image)
        for colour, shape, (x, y), radius in zip(self.colours, self.shapes, self.centres, self.radii, strict=True):
            points = [(side * px, side * py) for px, py in _outline(shape, x, y, radius)]
            if shape == "circle":
                pen.ellipse(points, fill=COLOURS[colour])
            else:
                pen.polygon(points, fill=COLOURS[colour])
        return image


def held_out(caption: str) -> bool:
    """Whether a caption is among the tenth that training never sees: xxh64 of its text, modulo 10, is 0."""
    return xxhash.xxh64_intdigest(caption.encode()) % 10 == 0


def rename(caption: str) -> str:
    """The same caption with the other names of the shapes: "an orange spark left of a green wedge"."""
    return " ".join(OTHER_NAMES.get(word, word) for word in caption.split())


def scenes(seed: int | str) -> Iterator[Scene]:
    """Endless scenes; the same seed gives the same ones on any machine."""
    chance = random.Random(f"cutline scenes {seed}")
    while True:
        relation = chance.choice(RELATIONS)
        # Along the relation the two stay a quarter of the picture apart; across it they may drift.
        near, far = chance.uniform(0.23, 0.3), chance.uniform(0.7, 0.77)
        drift = chance.uniform(0.35, 0.65), chance.uniform(0.35, 0.65)
        along = relation == "left of"
        yield Scene(
            colours=(chance.choice(list(COLOURS)), chance.choice(list(COLOURS))),
            shapes=(chance.choice(SHAPES), chance.choice(SHAPES)),
            relation=relation,
            centres=((near, drift[0]), (far, drift[1])) if along else ((drift[0], near), (drift[1], far)),
            radii=(chance.uniform(0.11, 0.2), chance.uniform(0.11, 0.2)),
            paper=(chance.randint(232, 255), chance.randint(232, 255), chance.randint(232, 255)),
        )


def _outline(shape: str, x: float, y: float, radius: float) -> list[Point]:
    """The corners of a shape about (x, y); of a circle, those of its bounding box."""
    if shape == "circle":
        return [(x - radius, y - radius), (x + radius, y + radius)]
    if shape == "square":
        half = 0.85 * radius
        return [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
    spikes, inner = (3, 0.5) if shape == "triangle" else (5, 0.42)
    return [
        (x + length * math.sin(angle), y - length * math.cos(angle))
        for step in range(2 * spikes)
        for angle in [step * math.pi / spikes]
        for length in [radius * (inner if step % 2 else 1.0)]
    ]
