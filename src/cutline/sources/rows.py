"""What every source does with its rows: gather them into batches by layer, and count what it did not read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cutline import schemas, tags
from cutline.dataset import Found
from cutline.formats import sidecar

BATCH = 10_000
"""Rows."""

_COLUMNS = {
    "pictures": ("name", "uri", "offset", "size", "mtime_ns", "error", "detail"),
    "captions": ("name", "texts", "raw", "verdict", "reason", "error", "detail"),
    "tags": ("name", "unsorted", "error", "detail"),
    "latents": ("name", "width", "height", "uri", "error", "detail"),
}


class Rows:
    """Rows on their way into batches of at most `BATCH`, for the layers that a source speaks for."""

    def __init__(self, *layers: str) -> None:
        self._rows: dict[str, list[tuple[Any, ...]]] = {layer: [] for layer in layers}
        self._given: set[str] = set()
        self._notes: Counter[str] = Counter()

    def picture(
        self,
        name: str,
        uri: str | None,
        size: int | None = None,
        mtime_ns: int | None = None,
        error: str | None = None,
        detail: str | None = None,
        *,
        offset: int | None = None,
    ) -> None:
        """A picture that is there; without `uri`, one that is only known of."""
        self._rows["pictures"].append((name, uri, offset, size, mtime_ns, error, detail))

    def caption(self, layer: str, name: str, found: Sequence[sidecar.Text]) -> None:
        """One or more captions of a picture. Where they are all empty that is noted, and there is no row.

        One that cannot be read makes the row an error. Of several, `raw` keeps the originals as a JSON list.
        """
        if bad := next((text for text in found if text.error), None):
            self.failed(layer, name, bad.error, bad.detail)
            return
        texts = [text.text for text in found if text.text]
        if len(texts) < max(len(found), 1):
            self.note("empty caption", max(len(found), 1) - len(texts))
        if not texts:
            return
        reasons = dict.fromkeys(reason for text in found for reason in text.reason.split(", ") if reason)
        raw = None
        if reasons:
            originals = [text.raw or text.text or "" for text in found]
            raw = originals[0] if len(found) == 1 else json.dumps(originals, ensure_ascii=False)
        verdict = "repaired" if reasons else "good"
        self._rows[layer].append((name, texts, raw, verdict, ", ".join(reasons) or None, None, None))

    def rejected(self, layer: str, name: str, found: sidecar.Text, reason: str) -> None:
        """A text that is kept as what somebody said, and is no caption."""
        if found.error:
            self.failed(layer, name, found.error, found.detail)
        elif found.text:
            self._rows[layer].append((name, None, found.raw or found.text, "rejected", reason, None, None))
        else:
            self.note("empty caption")

    def plain_caption(self, layer: str, name: str, text: str) -> None:
        """A caption that is known to be clean."""
        self._rows[layer].append((name, [text], None, "good", None, None, None))

    def plain_tags(self, layer: str, name: str, text: str) -> None:
        """A text of tags that is known to be clean."""
        if unsorted := tags.tidied(text):
            self._rows[layer].append((name, unsorted, None, None))
        else:
            self.note("empty tags")

    def tags(self, layer: str, name: str, found: Sequence[sidecar.Text]) -> None:
        """A picture's tags, out of comma-separated texts. Where there are none, that is noted and there is no row."""
        if bad := next((text for text in found if text.error), None):
            self.failed(layer, name, bad.error, bad.detail)
            return
        for text in found:
            for reason in text.reason.split(", "):
                if reason in ("bom", "crlf"):
                    self.note(f"tags repaired: {reason}")
        self.plain_tags(layer, name, "\n".join(text.text for text in found if text.text))

    def latents(self, layer: str, name: str, width: int | None, height: int | None, uri: str | None) -> None:
        """What a trainer computed of a picture. The layer need not be among those named at first."""
        self._rows.setdefault(layer, []).append((name, width, height, uri, None, None))

    def failed(self, layer: str, name: str, error: str | None, detail: str | None) -> None:
        """Words that are there and cannot be read."""
        self._rows.setdefault(layer, []).append(
            (name, *[None] * (len(_COLUMNS[schemas.kind(layer)]) - 3), error, detail)
        )

    def note(self, what: str, count: int = 1) -> None:
        """Count a fact for people: what was seen and not read."""
        self._notes[what] += count

    def full(self) -> Iterator[Found]:
        """The batches that are full by now; call it after each picture or entry."""
        for layer, rows in self._rows.items():
            while len(rows) >= BATCH:
                yield self._found(layer, rows[:BATCH])
                del rows[:BATCH]

    def rest(self) -> Iterator[Found]:
        """What is left, with at least one batch for every layer, and the notes."""
        for layer, rows in self._rows.items():
            yield from self.full()
            if rows or layer not in self._given or self._notes:
                yield self._found(layer, rows)
                rows.clear()

    def _found(self, layer: str, rows: list[tuple[Any, ...]]) -> Found:
        self._given.add(layer)
        types = schemas.schema(layer)
        fields = [
            pa.field(column, pa.string() if column == "name" else types.field(column).type)
            for column in _COLUMNS[schemas.kind(layer)]
        ]
        values = zip(*rows, strict=True) if rows else [()] * len(fields)
        arrays = [_array(column, field) for column, field in zip(values, fields, strict=True)]
        notes, self._notes = {printable(note): count for note, count in self._notes.items()}, Counter[str]()
        return Found(layer, pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)), notes)


def _array(values: Sequence[Any], field: pa.Field) -> pa.Array:
    if field.name == "unsorted":  # one text each, with `, ` between its tags
        return pc.split_pattern(pa.array(values, pa.string()), ", ")
    return pa.array(values, field.type)


def printable(text: str) -> str:
    r"""A text in which what is no Unicode is written as `\ud800`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def texts(value: object) -> list[sidecar.Text]:
    """The texts in a field of someone's metadata: one text, a list of texts, or nothing. Anything else is an error."""
    if value is None:
        return []
    if isinstance(value, sidecar.Text):  # it could not be decoded
        return [value]
    if isinstance(value, str):
        return [sidecar.clean(value)]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return [sidecar.clean(item) for item in value]
    return [sidecar.Text(error="bad_value", detail=f"{json.dumps(value, default=str)[:200]} is no text")]
