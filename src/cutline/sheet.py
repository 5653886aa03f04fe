"""A contact sheet: pictures in a grid with what a model said below, right ones ticked, wrong ones corrected.

A picture that cannot be opened, or has no file, is an empty frame: a sheet shows what there is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from cutline.files import whole_file
from cutline.pictures import Picture, PictureError

SIDE, GAP, MARGIN, INDENT = 192, 18, 36, 20
"""Pixels: a picture's side, the space between cells, about the sheet, and before a line of text."""
TEXT, LINE = 15, 19
"""Pixels: the size of a caption's letters, and from one line to the next."""

MOST_LINES = 14
"""Of one text; what is longer ends in an ellipsis."""
MOST_LETTERS = 1000
"""More than so many lines hold, however slim the letters."""

INK, FAINT, RIGHT, WRONG, FRAME, PAPER = "#1c2430", "#6b7685", "#1a7f37", "#c62828", "#d8dee6", "#ffffff"


@dataclass(frozen=True)
class Entry:
    """One picture of a contact sheet: what was said of it (None: nothing) and what is true."""

    picture: Path | Picture | None
    """Its file or bytes; None where only metadata tells of it."""
    caption: str | None
    truth: str
    ticked: bool | None = None
    """A tick or a cross; by default whether it is right."""
    notes: tuple[str, ...] = ()
    """What else is told below."""

    @property
    def right(self) -> bool:
        """Whether the caption is the truth, letter for letter."""
        return self.caption == self.truth

    @property
    def good(self) -> bool:
        """Whether it gets a tick."""
        return self.right if self.ticked is None else self.ticked


def exact_match(entries: Sequence[Entry]) -> tuple[int, int]:
    """How many captions are the truth, letter for letter, and of how many. A picture without a caption counts."""
    return sum(entry.right for entry in entries), len(entries)


def choose(entries: Sequence[Entry], count: int = 40, *, wrong: int = 8) -> list[Entry]:
    """Take `count` entries to show: up to `wrong` of the wrong ones first, then right ones, spread over all of them."""
    bad = [entry for entry in entries if not entry.right][:wrong]
    good = [entry for entry in entries if entry.right]
    room = min(count - len(bad), len(good))
    return bad + [good[position * len(good) // room] for position in range(room)]


def contact_sheet(
    entries: Sequence[Entry], out_png: Path, *, title: str = "", columns: int = 8, crosses: bool = True
) -> tuple[int, int]:
    """Draw a contact sheet into a PNG file. Returns its width and height in pixels.

    Without `crosses`, what has no tick is not called wrong: of prose, there is more than one that is right.
    """
    columns = max(1, min(columns, len(entries)))
    rows = [entries[start : start + columns] for start in range(0, len(entries), columns)]
    heights = [SIDE + 10 + LINE * max(len(_lines(entry)) for entry in row) + GAP for row in rows]
    top = MARGIN + (56 if title else 0)
    font = ImageFont.load_default(28)
    width = 2 * MARGIN + max(columns * (SIDE + GAP) - GAP, math.ceil(font.getlength(title)))
    height = top + max(0, sum(heights) - GAP) + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN - 6), title, fill=INK, font=font)
    for row, tall in zip(rows, heights, strict=True):
        for column, entry in enumerate(row):
            _draw(sheet, pen, entry, MARGIN + column * (SIDE + GAP), top, crosses)
        top += tall
    with whole_file(out_png) as file:
        sheet.save(file, "PNG", optimize=True)
    return width, height


def _draw(sheet: Image.Image, pen: ImageDraw.ImageDraw, entry: Entry, x: int, y: int, crosses: bool) -> None:
    if picture := _decode(entry.picture):
        picture = ImageOps.contain(picture, (SIDE, SIDE))
        sheet.paste(picture, (x + (SIDE - picture.width) // 2, y + (SIDE - picture.height) // 2))
    frame, line_width = (WRONG, 3) if crosses and not entry.good else (FRAME, 1)
    pen.rectangle((x - 1, y - 1, x + SIDE, y + SIDE), outline=frame, width=line_width)
    y += SIDE + 10
    if entry.good or crosses:
        _mark(pen, entry.good, x + 1, y + 2)
    for text, colour in _lines(entry):
        colour = INK if colour == WRONG and not crosses else colour
        pen.text((x + INDENT, y), text, fill=colour, font=ImageFont.load_default(TEXT))
        y += LINE


def _decode(picture: Path | Picture | None) -> Image.Image | None:
    if picture is None:
        return None
    try:
        return (picture if isinstance(picture, Picture) else Picture(picture)).decode()
    except PictureError:
        return None


def _lines(entry: Entry) -> list[tuple[str, str]]:
    """The lines below a picture, each with its colour: the caption, where it is wrong the truth, and the notes."""
    said = [(line, RIGHT if entry.good else WRONG) for line in _wrap(entry.caption or "(no caption)")]
    told = entry.notes if entry.right else (f"it is {entry.truth}", *entry.notes)
    return said + [(line, FAINT) for text in told for line in _wrap(text)]


def _wrap(text: str) -> list[str]:
    """Break text at spaces into lines that fit below a picture; a word that is longer than a line, anywhere."""
    font = ImageFont.load_default(TEXT)
    room = SIDE - INDENT
    lines = [""]
    for word in text[:MOST_LETTERS].split():
        if font.getlength(f"{lines[-1]} {word}") <= room:
            lines[-1] += f" {word}"
            continue
        if lines[-1]:
            lines.append("")
        for letter in word if font.getlength(word) > room else (word,):
            if font.getlength(lines[-1] + letter) > room:
                lines.append("")
            lines[-1] += letter
        if len(lines) > MOST_LINES:
            return [*map(str.strip, lines[: MOST_LINES - 1]), f"{lines[MOST_LINES - 1].strip()} …"]
    return [line.strip() for line in lines]


def _mark(pen: ImageDraw.ImageDraw, right: bool, x: int, y: int) -> None:
    """A tick or a cross, 12 pixels a side."""
    if right:
        pen.line([(x, y + 7), (x + 4, y + 11), (x + 12, y + 1)], fill=RIGHT, width=3, joint="curve")
    else:
        pen.line([(x + 1, y + 1), (x + 11, y + 11)], fill=WRONG, width=3)
        pen.line([(x + 1, y + 11), (x + 11, y + 1)], fill=WRONG, width=3)
