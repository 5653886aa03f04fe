"""COCO's captions: one JSON file that lists images, and captions about them."""

from __future__ import annotations

import itertools
import json
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from cutline.dataset import Found
from cutline.formats.entries import opened
from cutline.formats.sidecar import Text
from cutline.formats.stream import BrokenJson, Stream
from cutline.options import CutlineError, option
from cutline.sources.listing import absolute, printable
from cutline.sources.rows import Rows, texts

_BATCH = 10_000  # captions

_OTHER = ("bbox", "segmentation", "category_id", "keypoints", "segments_info")
"""Fields of annotations that are no captions."""

_SAID = pa.schema([("image", pa.string()), ("id", pa.int64()), ("line", pa.int64()), ("caption", pa.string())])


@dataclass(frozen=True)
class Coco:
    """The captions of a COCO file (`captions_val2017.json`), several to a picture, in the order of their ids."""

    path: Path = option(help="the JSON file")
    image_dir: Path | None = option(None, "the folder that its file names are relative to; its pictures are added too")
    layer: str = option("coco", "the words go to captions/<layer>")
    joined: bool = option(False, "make one text of a picture's captions, as trainers of label predictors read them")

    @property
    def base(self) -> Path | None:
        """What the images' names are relative to, if that is known."""
        return absolute(self.image_dir) if self.image_dir else None

    def read(self) -> Iterator[Found]:
        """Stream the pictures, then their captions. The captions are held in memory, as text and nothing more."""
        layer = f"captions/{self.layer}"
        rows = Rows("pictures", layer)
        names, said = self._load(rows)
        folder = self.base
        for name in dict.fromkeys(names.values()):
            if folder is not None:
                _picture(name, folder, rows)
            yield from rows.full()
        table = said.sort_by([("image", "ascending"), ("id", "ascending"), ("line", "ascending")])
        lines = (line for batch in table.select(["image", "caption"]).to_batches(_BATCH) for line in batch.to_pylist())
        for image, captions in itertools.groupby(lines, key=lambda line: str(line["image"])):
            found = [json.loads(line["caption"]) for line in captions]
            about = names.pop(image, None)
            if about is None:
                rows.note("caption about an image that the file does not list", len(found))
            else:
                self._caption(layer, about, [text for one in found for text in (texts(one) or [Text()])], rows)
            yield from rows.full()
        if names:
            rows.note("image without a caption", len(names))
        yield from rows.rest()

    def _caption(self, layer: str, name: str, found: list[Text], rows: Rows) -> None:
        if self.joined and not any(text.error for text in found):
            found = [Text(" ".join(text.text for text in found if text.text) or None)]
        rows.caption(layer, name, found)

    def _load(self, rows: Rows) -> tuple[dict[str, str], pa.Table]:
        """Names of pictures by the ids of images, and all captions. Either section may come first."""
        path = Path(os.path.abspath(self.path.expanduser()))
        names: dict[str, str] = {}
        batches: list[pa.RecordBatch] = []
        lines: list[tuple[str, int | None, int, str]] = []
        sections = set()
        with opened(path) as handle:
            stream = Stream(handle)
            try:
                if (first := stream.peek()) != "{":
                    raise CutlineError(f"{path} is not a COCO file: it starts with {first!r}")
                for section in stream.pairs():
                    sections.add(section)
                    if stream.peek() != "[":
                        stream.value()
                        continue
                    for number, item in enumerate(stream.items()):
                        if section == "images":
                            _image(item, names, rows)
                        elif section == "annotations":
                            self._annotation(path, item, number, lines, rows)
                            if len(lines) == _BATCH:
                                batches.append(_packed(lines))
            except BrokenJson as error:
                raise CutlineError(f"{path} is broken JSON: {error}. Mend it, and add it again.") from None
        if not {"images", "annotations"} <= sections:
            raise CutlineError(
                f"{path} is not a COCO file of captions: it has no "
                f"{' and no '.join(sorted({'images', 'annotations'} - sections))}"
            )
        return names, pa.Table.from_batches([*batches, _packed(lines)], _SAID)

    @staticmethod
    def _annotation(
        path: Path, item: Any, number: int, lines: list[tuple[str, int | None, int, str]], rows: Rows
    ) -> None:
        if not isinstance(item, dict) or "image_id" not in item:
            rows.note("annotation that names no image")
        elif "caption" in item:
            order = item.get("id")
            lines.append(
                (str(item["image_id"]), order if type(order) is int else None, number, json.dumps(item["caption"]))
            )
        elif kind := next((field for field in _OTHER if field in item), None):
            raise CutlineError(
                f"{path} holds boxes or labels ({kind}), which Cutline does not read yet. "
                "COCO's captions are in files called captions_….json."
            )
        else:
            rows.note("annotation without a caption")


def is_coco(path: Path) -> bool:
    """Whether a JSON file has lists of images or annotations, by its first sections."""
    with opened(path) as handle:
        stream = Stream(handle)
        try:
            if stream.peek() == "{":
                for section in itertools.islice(stream.pairs(), 6):
                    if section in ("images", "annotations") and stream.peek() == "[":
                        return True
                    stream.value()
        except BrokenJson:
            return False
    return False


def _packed(lines: list[tuple[str, int | None, int, str]]) -> pa.RecordBatch:
    columns = list(zip(*lines, strict=True)) or [()] * len(_SAID)
    lines.clear()
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _SAID, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=_SAID)


def _image(item: Any, names: dict[str, str], rows: Rows) -> None:
    name = item.get("file_name") if isinstance(item, dict) else None
    if not isinstance(name, str) or not name or "id" not in item:
        rows.note("image without an id or a file name")
        return
    name = posixpath.normpath(name)
    if printable(name) != name or "\0" in name or name.startswith(("../", "/")):
        rows.note("image whose file name leads out of the folder, or is no Unicode")
        return
    if names.setdefault(str(item["id"]), name) != name:
        rows.note("image whose id another has")


def _picture(name: str, folder: Path, rows: Rows) -> None:
    path = folder / name
    try:
        status = path.stat()
    except OSError:
        rows.note("image whose picture is not there")
        return
    rows.picture(name, printable(str(path)), status.st_size, status.st_mtime_ns)
