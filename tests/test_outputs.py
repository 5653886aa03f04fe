"""Several texts of each picture: what `[outputs.NAME]` of a recipe becomes in each export."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from cutline.compose.recipe import Recipe, find_recipe
from cutline.dataset import Dataset
from cutline.exports.export import export
from cutline.exports.manifest import Export, Manifest
from cutline.exports.metadata_jsonl import MetadataJsonl
from cutline.exports.sidecar import Sidecar
from cutline.exports.webdataset import WebDataset
from cutline.options import CutlineError
from running import cutline, make_pictures
from test_exports import tree

WORDS: dict[str, tuple[str, list[str]]] = {
    "p0000": ("A cat, sitting.", ["cat", "solo"]),
    "p0001": ("A dog.", []),
    "p0002": ("", ["bird"]),
    "p0003": ("", []),
}
TEXTS = {"captions": {"first_of": ["captions/human"]}, "tags": {"first_of": ["tags/danbooru"]}}
SEVERAL = {**TEXTS, "text": {"order": ["caption"]}, "outputs": {"tags": {"order": ["tags"]}, "all": {}}}


@pytest.fixture
def photos(tmp_path: Path) -> Dataset:
    """Four pictures: one with caption and tags, one with each, one with nothing."""
    folder = tmp_path / "photos"
    make_pictures(folder, 4)
    cutline("add", folder)
    dataset = Dataset(folder)
    with dataset.layer("captions/human").write() as captions, dataset.layer("tags/danbooru").write() as tags:
        for key, (caption, tag_list) in WORDS.items():
            if caption:
                captions.add({"key": f"{key}.png", "texts": [caption]})
            if tag_list:
                tags.add({"key": f"{key}.png", "general": tag_list})
    return dataset


def write(dataset: Dataset, plugin: Export, out: Path, said: dict[str, Any] = SEVERAL, **given: Any) -> Manifest:
    return export(dataset, plugin, out, recipe=Recipe.parse(said), **given)


def test_sidecar_writes_a_file_for_each_output(photos: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dry = write(photos, Sidecar(), out, dry_run=True)
    assert not out.exists()
    assert {line for line in dry.diff if line.startswith("+") and line[1] != "+"} == {
        "+A cat, sitting.",
        "+cat, solo",
        "+cat, solo, A cat, sitting.",
        "+A dog.",
        "+bird",
    }
    first = write(photos, Sidecar(), out)
    assert tree(out) == {
        "p0000.txt": b"A cat, sitting.",
        "p0000.tags": b"cat, solo",
        "p0000.all": b"cat, solo, A cat, sitting.",
        "p0001.txt": b"A dog.",
        "p0001.all": b"A dog.",
        "p0002.tags": b"bird",  # it has no text, and gets what it has
        "p0002.all": b"bird",
    }
    assert first.counts == dry.counts == {"written": 3, "unchanged": 0, "skipped": 0, "without_text": 1}
    assert first.xxh128 == dry.xxh128
    again = write(photos, Sidecar(), out)
    assert again.counts == {"written": 0, "unchanged": 3, "skipped": 0, "without_text": 1}


def test_sidecar_treats_outputs_as_it_does_the_text(photos: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "p0000.tags").write_text("mine")
    (out / "p0001.txt").write_text("mine")
    (out / "p0001.all").write_text("mine")
    found = write(photos, Sidecar(), out)
    assert (out / "p0000.tags").read_text() == "mine"
    # The first had one file written, the second none.
    assert found.counts == {"written": 2, "unchanged": 0, "skipped": 1, "without_text": 1}
    write(photos, Sidecar(mode="append"), out)
    assert (out / "p0000.tags").read_text() == "mine, cat, solo"
    assert (out / "p0001.all").read_text() == "mine, A dog."
    write(photos, Sidecar(mode="overwrite"), out)
    assert (out / "p0000.tags").read_text() == "cat, solo"
    (out / "p0000.all").write_bytes(b"\xff\xfe\xff")
    assert write(photos, Sidecar(mode="append"), out).counts["unreadable"] == 1


@pytest.mark.parametrize("name", ["png", "JPG", "txt", "TXT"])
def test_sidecar_refuses_an_output_named_like_a_picture_or_the_text(photos: Dataset, tmp_path: Path, name: str) -> None:
    before = tree(photos.root)
    with pytest.raises(CutlineError, match=rf"(?s)becomes its files' extension.*outputs\.{name}\].*in the recipe"):
        write(photos, Sidecar(mode="overwrite"), photos.root, {**TEXTS, "outputs": {name: {}}}, dry_run=True)
    assert tree(photos.root) == before


def test_sidecar_refuses_files_that_pictures_would_share(photos: Dataset, tmp_path: Path) -> None:
    make_pictures(photos.root / "more", 1)
    (photos.root / "more" / "p0000.png").rename(photos.root / "p0000.jpg")
    cutline("add", photos.root)
    with photos.layer("tags/danbooru").write() as tags:
        tags.add({"key": "p0000.jpg", "general": ["x"]})
    with pytest.raises(CutlineError, match=r"p0000\.tags: p0000\.jpg, p0000\.png"):
        write(photos, Sidecar(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sidecar_refuses_names_that_are_too_long(photos: Dataset, tmp_path: Path) -> None:
    with pytest.raises(CutlineError, match="longer than 255 bytes"):
        write(photos, Sidecar(), tmp_path / "out", {**TEXTS, "outputs": {"o" * 250: {"order": ["tags"]}}})
    assert not (tmp_path / "out").exists()


def test_metadata_jsonl_has_a_field_for_each_output(photos: Dataset) -> None:
    manifest = write(photos, MetadataJsonl(), photos.root)
    lines = [json.loads(line) for line in (photos.root / "metadata.jsonl").read_text().splitlines()]
    assert lines == [
        {"file_name": "p0000.png", "text": "A cat, sitting.", "tags": "cat, solo", "all": "cat, solo, A cat, sitting."},
        {"file_name": "p0001.png", "text": "A dog.", "tags": None, "all": "A dog."},
        {"file_name": "p0002.png", "text": None, "tags": "bird", "all": "bird"},
    ]
    assert (manifest.counts["written"], manifest.counts["without_text"]) == (3, 1)


def test_datasets_loads_the_fields(photos: Dataset, tmp_path: Path) -> None:
    from datasets import load_dataset

    write(photos, MetadataJsonl(pictures="link"), tmp_path / "out")
    rows = load_dataset("imagefolder", data_dir=str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["tags"][:] == ["cat, solo", None, "bird"]
    assert rows["text"][:] == ["A cat, sitting.", "A dog.", None]


@pytest.mark.parametrize("name", ["text", "file_name", "mask_file_name", "image", "label"])
def test_metadata_jsonl_refuses_names_that_datasets_uses(photos: Dataset, name: str) -> None:
    with pytest.raises(CutlineError, match=r"datasets has a use of its own"):
        write(photos, MetadataJsonl(), photos.root, {**TEXTS, "outputs": {name: {}}})


def members(tar: Path) -> dict[str, bytes]:
    with tarfile.open(tar) as found:
        return {info.name: found.extractfile(info).read() for info in found}  # type: ignore[union-attr]


def test_webdataset_has_a_member_for_each_output(photos: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dry = write(photos, WebDataset(), out, dry_run=True)
    assert "+ 00000.tar: p0002.tags: bird" in dry.diff
    manifest = write(photos, WebDataset(), out)
    found = members(out / "00000.tar")
    assert [*found] == [
        *(f"p0000.{ending}" for ending in ("png", "json", "txt", "tags", "all")),
        *(f"p0001.{ending}" for ending in ("png", "json", "txt", "all")),
        *(f"p0002.{ending}" for ending in ("png", "json", "tags", "all")),
    ]
    assert found["p0002.tags"] == b"bird"
    assert manifest.counts == {"written": 3, "unchanged": 0, "without_text": 1}
    assert manifest.xxh128 == dry.xxh128


def test_webdataset_writes_anew_where_an_output_changes(photos: Dataset, tmp_path: Path) -> None:
    def exported(outputs: dict[str, Any]) -> tuple[int, str, str]:
        manifest = write(photos, WebDataset(), tmp_path / "out", {**SEVERAL, "outputs": outputs})
        tar = tmp_path / "out" / "00000.tar"
        made_of = json.loads((tmp_path / "out" / "manifest.json").read_text())["tars"]["00000.tar"]["made_of"]
        return manifest.counts["written"], made_of, hashlib.sha256(tar.read_bytes()).hexdigest()

    tags = {"order": ["tags"]}
    first = exported({"tags": tags})
    assert exported({"tags": tags}) == (0, *first[1:])
    for other in ({"tags": {**tags, "suffix": "x"}}, {"words": tags}, {}):
        written, made_of, sha256 = exported(other)
        assert written == (3 if other else 2)
        assert made_of != first[1]
        assert sha256 != first[2]
    assert exported({"tags": tags}) == first


@pytest.mark.parametrize("name", ["txt", "json", "png", "JPEG", "__key__"])
def test_webdataset_refuses_names_that_a_sample_has_already(photos: Dataset, tmp_path: Path, name: str) -> None:
    with pytest.raises(CutlineError, match="becomes an ending in the tars"):
        write(photos, WebDataset(), tmp_path / "out", {**TEXTS, "outputs": {name: {}}})
    with pytest.raises(CutlineError, match=r"outputs\.a\]\n  \[outputs\.A\]"):
        write(photos, WebDataset(), tmp_path / "out", {**TEXTS, "outputs": {"a": {}, "A": {}}})


def test_presets_read_the_layers_that_are_there_and_ones_own_recipe_all_that_it_names(
    photos: Dataset, tmp_path: Path
) -> None:
    preset = find_recipe(photos, "sdxl-tags-and-caption")
    assert preset.layers == ("captions/human", "tags/danbooru")
    cutline("export", photos.root, "sidecar", tmp_path / "out", "--recipe", "sdxl-tags-and-caption")
    assert (tmp_path / "out" / "p0000.txt").read_text() == "cat, solo, A cat, sitting."
    (tmp_path / "own.toml").write_text('[captions]\nfirst_of = ["captions/human", "captions/humen"]\n')
    refused = cutline("export", photos.root, "sidecar", tmp_path / "o", "--recipe", tmp_path / "own.toml", code=1)
    assert "reads captions/humen, which" in refused.stderr
    refused = cutline("export", photos.root, "kohya", tmp_path / "o.json", "--recipe", "danbooru", code=1)
    assert "captions/phi3v-horny, captions/pixtral" in refused.stderr
    assert "reads tags/danbooru" not in refused.stderr
