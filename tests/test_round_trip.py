"""Sidecar -> dataset -> kohya JSON -> dataset -> metadata.jsonl -> dataset -> sidecar is the identity."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cutline.compose.recipe import find_recipe
from cutline.dataset import Dataset
from cutline.exports.export import export
from cutline.exports.kohya import Kohya as KohyaExport
from cutline.exports.metadata_jsonl import MetadataJsonl
from cutline.exports.sidecar import Sidecar
from cutline.sources.folder import Folder
from cutline.sources.imagefolder import ImageFolder
from cutline.sources.kohya import Kohya

storable = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
texts = st.text(storable, min_size=1, max_size=40)
kept = texts.filter(lambda text: text == text.strip() and "\r" not in text and not text.startswith("\ufeff") and text)


def carry(captions: list[str | None], work: Path) -> tuple[list[str | None], Dataset]:
    """Send captions along the whole chain; what the sidecars then say, and the first dataset."""
    photos = work / "photos"
    photos.mkdir()
    for number, caption in enumerate(captions):
        Image.new("RGB", (8, 8), (number * 20 % 256, number, 0)).save(photos / f"{number}.png")
        if caption is not None:
            (photos / f"{number}.txt").write_bytes(caption.encode())
    first = Dataset(photos)
    first.add(Folder(photos))
    out = work / "out"
    export(first, KohyaExport(), out / "meta.json", recipe=find_recipe(first, ""))

    (work / "second").mkdir()
    second = Dataset(work / "second")
    second.add(Kohya(out / "meta.json", image_dir=photos))
    where = MetadataJsonl(pictures="link")
    export(second, where, out / "imagefolder", recipe=find_recipe(second, ""))

    (work / "third").mkdir()
    third = Dataset(work / "third")
    third.add(ImageFolder(out / "imagefolder"))
    export(third, Sidecar(), out / "sidecars", recipe=find_recipe(third, ""))
    files = [out / "sidecars" / f"{number}.txt" for number in range(len(captions))]
    return [file.read_bytes().decode() if file.exists() else None for file in files], first


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(kept, min_size=1, max_size=5))
def test_clean_captions_come_back_letter_for_letter(captions: list[str]) -> None:
    with tempfile.TemporaryDirectory() as work:
        arrived, _ = carry(list(captions), Path(work))
    assert arrived == captions


@pytest.mark.slow
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts)
def test_whatever_is_changed_is_reported(caption: str) -> None:
    with tempfile.TemporaryDirectory() as work:
        arrived, dataset = carry([caption, "a cat"], Path(work))
        rows = dict(dataset.sql('select key, verdict from "captions/sidecar"').fetchall())
    assert arrived[1] == "a cat"
    if arrived[0] != caption:
        assert rows.get("0.png") != "good", "changed without a word"
    else:
        assert rows["0.png"] == "good"
