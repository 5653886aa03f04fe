"""Where tags stand in texts, in bytes of UTF-8, and whether they stand apart from what is beside them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cutline.tags import parents

Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def data(texts: pa.StringArray) -> npt.NDArray[np.uint8]:
    """All texts, one after the other, as bytes."""
    offsets = _offsets(texts)
    buffer = texts.buffers()[2]
    whole = np.frombuffer(buffer, np.uint8) if buffer is not None else np.zeros(0, np.uint8)
    return whole[offsets[0] : offsets[-1]]


def _offsets(texts: pa.StringArray) -> Counts:
    if not len(texts):
        return np.zeros(1, np.int64)
    found = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return found.astype(np.int64)


def locate(
    texts: pa.StringArray, captions: pa.StringArray, tags: pa.ListArray, separator: str
) -> tuple[Counts, Counts]:
    """Where each tag begins and ends in its text; -1 where it does not stand there as it is.

    Args:
        texts: with the tags and captions in them.
        captions: as they stand in the texts; null where they do not.
        tags: as they stand in the texts, in that order.
        separator: what stands between two.
    """
    rows = parents(tags)
    flat = pc.list_flatten(tags)
    if not len(rows):
        return rows, rows
    lengths = pc.binary_length(flat).to_numpy().astype(np.int64)
    after = np.cumsum(lengths + len(separator.encode()))
    bounds = np.searchsorted(rows, np.arange(len(texts) + 1))
    before = after - lengths - len(separator.encode())
    starts = before - before[bounds[rows]]
    columns = (texts, captions, pc.binary_join(tags, separator))
    for row, (text, caption, joined) in enumerate(
        zip(*(column.cast(pa.binary()).to_pylist() for column in columns), strict=True)
    ):
        begin, end = bounds[row], bounds[row + 1]
        if begin == end:
            continue
        at = _together(text or b"", caption or b"", joined)
        if at >= 0:
            starts[begin:end] += at
        else:
            mine = flat.slice(begin, end - begin).cast(pa.binary()).to_pylist()
            starts[begin:end] = list(_one_by_one(text or b"", caption or b"", mine))
    return starts, np.where(starts < 0, -1, starts + lengths)


def _together(text: bytes, caption: bytes, joined: bytes) -> int:
    """Where all tags stand, one after the other, beside the caption; -1 where they do not."""
    if text.startswith(joined) and (not caption or text.find(caption, len(joined)) >= 0):
        return 0
    if text.endswith(joined) and (not caption or text.find(caption, 0, len(text) - len(joined)) >= 0):
        return len(text) - len(joined)
    at = text.find(caption) if caption else -1
    while at >= 0:  # a tag may say what the caption says
        before, after = text.find(joined, 0, at), text.find(joined, at + len(caption))
        if max(before, after) >= 0:
            return before if before >= 0 else after
        at = text.find(caption, at + 1)
    return text.find(joined)


def _one_by_one(text: bytes, caption: bytes, tags: list[bytes]) -> Iterator[int]:
    """Where tags stand that are parted by more than a separator. None begins or ends within a word."""
    skipped = text.find(caption) if caption else -1
    begin = 0
    for tag in tags:
        first = at = text.find(tag, begin)
        while at >= 0 and not _apart(text, at, at + len(tag), skipped, skipped + len(caption)):
            at = text.find(tag, at + 1)
        at = first if at < 0 else at
        yield at
        begin = at + len(tag) if at >= 0 else begin


def _apart(text: bytes, start: int, end: int, low: int, high: int) -> bool:
    letters = (text[start - 1 : start] + text[end : end + 1]).decode("ascii", "replace")
    return not any(letter.isalnum() for letter in letters) and not low <= start < high


def fused(texts: pa.StringArray, rows: Counts, starts: Counts, ends: Counts, border: str) -> Flags:
    """Which tags have no border on one of their sides: something else sticks to them.

    Args:
        texts: with the tags in them.
        rows: number of the text, of each tag.
        starts: as `locate` gives them.
        ends: as `locate` gives them.
        border: what stands between two tags, without spaces. A line break and the ends of a text are borders, too.
    """
    bytes_ = np.concatenate([data(texts), np.zeros(2, np.uint8)])
    offsets = _offsets(texts)
    offsets = offsets - offsets[0]
    first, last = (np.frombuffer(border.encode(), np.uint8)[place] for place in (0, -1))
    low, high = offsets[rows], offsets[rows + 1]
    start, end = low + starts, low + ends

    def at(place: Counts, step: int, border_byte: np.uint8) -> Flags:
        outside = (place < low) | (place >= high)
        near = np.where(outside, border_byte, bytes_[np.clip(place, 0, len(bytes_) - 1)])
        beyond = place + step
        outside = (beyond < low) | (beyond >= high)
        far = np.where(outside, border_byte, bytes_[np.clip(beyond, 0, len(bytes_) - 1)])
        apart: Flags = _either(near, border_byte) | ((near == 32) & _either(far, border_byte))
        return apart

    found: Flags = (starts >= 0) & ~(at(start - 1, -1, last) & at(end, 1, first))
    return found


def _either(letters: npt.NDArray[np.uint8], border: np.uint8) -> Flags:
    found: Flags = (letters == border) | (letters == 10)
    return found


def between(text: str, start: int, border: str) -> str:
    """What stands between the borders on both sides of a place, in bytes; a long one is shortened."""
    place = len(text.encode()[:start].decode(errors="ignore"))
    begin = max(text.rfind(border, 0, place) + len(border), 0) if border in text[:place] else 0
    end = text.find(border, place)
    piece = text[begin : end if end >= 0 else len(text)].strip()
    return piece if len(piece) <= 80 else f"{piece[:77]}…"
