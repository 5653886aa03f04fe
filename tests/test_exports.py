"""What exports write is what the other program loads; nothing is lost, doubled, or replaced unasked."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cutline.compose.recipe import Recipe
from cutline.dataset import Dataset
from cutline.exports.export import export
from cutline.exports.kohya import Kohya
from cutline.exports.manifest import COLUMNS, PICTURE, Export, Manifest
from cutline.exports.metadata_jsonl import MetadataJsonl
from cutline.exports.sidecar import Sidecar
from cutline.formats import sidecar as sidecar_format
from cutline.options import CutlineError, OptionError, fill
from cutline.registry import load, names
from cutline.sources.folder import Folder
from cutline.sources.imagefolder import ImageFolder
from cutline.sources.kohya import Kohya as KohyaSource
from trainers import kohya_loads

SCHEMA = pa.schema(
    [
        (name, pa.int64() if name in (*PICTURE[:-1], "train_height") else pa.string())
        for name in COLUMNS
        if name != "train_width"
    ]
    + [("train_width", pa.null())]  # as where a recipe reads no latents
)


def rows(root: Path, texts: Mapping[str, str | None], *, size: int = 3, **parts: Any) -> Iterator[pa.RecordBatch]:
    """Rows as `export` gives them: each picture's uri, and its text."""
    listed: list[dict[str, Any]] = []
    for uri in sorted(texts):
        key = uri.rsplit("/", 1)[-1] if uri.startswith("/") else uri
        row = dict.fromkeys(COLUMNS) | {"key": key, "uri": uri, "path": str(root / uri), "width": 4, "height": 3}
        listed.append(row | dict.fromkeys(("caption", "text", "entry"), texts[uri]) | parts)
    listed.sort(key=lambda row: row["key"])
    for start in range(0, len(listed), size):
        yield pa.RecordBatch.from_pylist(listed[start : start + size], SCHEMA)


def make(folder: Path, *uris: str) -> Path:
    for uri in uris:
        path = folder / uri
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(path, "PNG")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def texts_of(source: Any) -> dict[str, str]:
    return {
        row["name"]: row["texts"][0]
        for found in source.read()
        if found.layer.startswith("captions/")
        for row in found.batch.to_pylist()
    }


TEXTS = {
    "a/x.jpg": "plain",
    "b/x.jpg": "two\nlines",
    "x.v2.jpg": "U+2028 \u2028 in",
    "x.v3.jpg": 'quote " and \\',
    "with space.png": "🐈",
    "two\nlines.jpg": "猫 — café",
    "🐈.webp": "a, b, c",
    "猫.jpg": "{json}",
    "cafe\u0301.jpg": "x" * 5000,
    "[1] *?.jpg": "a\x85 in",
    "col:on.jpg": "tab\tin",
    "back\\slash.jpg": "a\x1cb",
    "n" * 246 + ".jpg": "last",
}
NAMES = list(TEXTS)


# -- every export ---------------------------------------------------------------------------------------------


def plugin_and_out(name: str, folder: Path) -> tuple[Export, Path]:
    outs = {"kohya": folder / "meta.json", "metadata_jsonl": folder / "metadata.jsonl", "sidecar": folder}
    outs["webdataset"] = folder / "out"
    return load("exports", name)(), outs[name]


@pytest.mark.parametrize("name", names("exports"))
def test_export_contract(tmp_path: Path, name: str) -> None:
    """A dry run writes nothing and shows the change; a second run changes nothing; an empty one is no failure."""
    make(tmp_path, "a.jpg", "sub/b.jpg", "c.jpg")
    plugin, out = plugin_and_out(name, tmp_path)
    before = tree(tmp_path)
    texts = {"a.jpg": "a cat", "sub/b.jpg": "a dog", "c.jpg": None}

    dry = plugin.write(rows(tmp_path, texts), out, dry_run=True)
    assert tree(tmp_path) == before
    assert any(line.startswith("+") and "a cat" in line for line in dry.diff)

    first = plugin.write(rows(tmp_path, texts), out)
    assert isinstance(first, Manifest)
    assert first.format == name
    assert (first.counts["written"], first.counts["without_text"]) == (2, 1)
    assert first.diff == []
    assert first.xxh128 == dry.xxh128
    written = {path: data for path, data in tree(tmp_path).items() if path not in before}
    assert written
    assert {path: data for path, data in tree(tmp_path).items() if path in before} == before

    times = {path: (tmp_path / path).stat().st_mtime_ns for path in written}
    second = plugin.write(rows(tmp_path, texts), out)
    assert second.counts["unchanged"] == 2
    assert not second.counts.get("written")
    assert second.xxh128 == first.xxh128
    assert {path: (tmp_path / path).stat().st_mtime_ns for path in written} == times
    assert plugin.write(rows(tmp_path, texts), out, dry_run=True).diff == []

    nothing = plugin.write(iter(()), out, dry_run=True)
    assert not nothing.counts.get("written")


@pytest.mark.parametrize("name", names("exports"))
def test_export_failure_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    make(tmp_path, "a.jpg", "b.jpg")
    plugin, out = plugin_and_out(name, tmp_path)
    plugin.write(rows(tmp_path, {"a.jpg": "old"}), out)
    before = tree(tmp_path)

    def broken() -> Iterator[pa.RecordBatch]:
        yield from rows(tmp_path, {"a.jpg": "new"})
        raise CutlineError("the disk is on fire")

    with pytest.raises(CutlineError, match="on fire"):
        plugin.write(broken(), out)
    assert tree(tmp_path) == before


# -- sidecars -------------------------------------------------------------------------------------------------


def test_sidecars_of_every_name_come_back(tmp_path: Path) -> None:
    make(tmp_path, *NAMES)
    manifest = Sidecar().write(rows(tmp_path, TEXTS), tmp_path)
    assert manifest.counts == {"written": len(NAMES), "unchanged": 0, "skipped": 0, "without_text": 0}
    assert texts_of(Folder(tmp_path)) == TEXTS
    assert (tmp_path / "a/x.txt").read_bytes() == b"plain"
    lines = sorted(
        (f"{os.path.splitext(name)[0]}.txt".encode(), xxhash.xxh3_128(text.encode()).hexdigest())
        for name, text in TEXTS.items()
    )
    listed = b"".join(code.encode() + b"  " + name + b"\n" for name, code in lines)
    assert manifest.xxh128 == xxhash.xxh3_128(listed).hexdigest()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(raw=st.text(min_size=1))
def test_any_text_survives_every_format(tmp_path: Path, raw: str) -> None:
    text = sidecar_format.clean(raw).text
    if not text:
        return
    make(tmp_path, "a.jpg")
    texts = {"a.jpg": text}
    Sidecar(mode="overwrite").write(rows(tmp_path, texts), tmp_path)
    assert texts_of(Folder(tmp_path)) == texts
    for out in (tmp_path / "m.json", tmp_path / "m.jsonl"):
        Kohya().write(rows(tmp_path, texts), out)
        assert texts_of(KohyaSource(out)) == texts
    MetadataJsonl().write(rows(tmp_path, texts), tmp_path)
    assert texts_of(ImageFolder(tmp_path)) == texts


@pytest.mark.parametrize("extension", ["caption", ".caption"])
def test_sidecar_extension(tmp_path: Path, extension: str) -> None:
    Sidecar(extension).write(rows(tmp_path, {"x.v2.jpg": "t"}), tmp_path / "out")
    assert tree(tmp_path) == {"out/x.v2.caption": b"t"}


@pytest.mark.parametrize("extension", ["jpg", ".PNG", "webp", "mp4", "", ".", "a/b", "txt."])
def test_sidecar_extension_that_would_replace_pictures(extension: str) -> None:
    with pytest.raises(OptionError, match="extension"):
        fill(Sidecar, {"extension": extension})


@pytest.mark.parametrize(
    ("mode", "there", "then", "count"),
    [
        ("skip", b"old", b"old", "skipped"),
        ("skip", b"new", b"new", "unchanged"),
        ("overwrite", b"old", b"new", "written"),
        ("append", b"old\n", b"old; new", "written"),
        ("append", b"", b"new", "written"),
        ("append", b"new", b"new", "unchanged"),
        ("prepend", b"\xef\xbb\xbfold", b"new; old", "written"),
        ("append", b"caf\xe9", b"caf\xe9", "unreadable"),
    ],
)
def test_sidecar_modes(tmp_path: Path, mode: Any, there: bytes, then: bytes, count: str) -> None:
    (tmp_path / "a.txt").write_bytes(there)
    plugin = Sidecar(mode=mode, separator="; ")
    manifest = plugin.write(rows(tmp_path, {"a.jpg": "new"}), tmp_path)
    assert (tmp_path / "a.txt").read_bytes() == then
    assert manifest.counts[count] == 1
    plugin.write(rows(tmp_path, {"a.jpg": "new"}), tmp_path)
    assert (tmp_path / "a.txt").read_bytes() == then  # twice is once


def test_sidecar_collisions_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    texts: dict[str, str | None] = {f"{n:03}.jpg": "x" for n in range(20)}
    texts |= {"sub/a.jpg": "one", "sub/a.png": "two", "b.jpg": "has", "b.png": None}
    with pytest.raises(CutlineError, match="nothing was written") as refusal:
        Sidecar().write(rows(tmp_path, texts), tmp_path / "out")
    assert "sub/a.txt: sub/a.jpg, sub/a.png" in str(refusal.value)
    assert "b.txt" not in str(refusal.value)
    assert tree(tmp_path) == {}
    with pytest.raises(CutlineError, match="shorter extension"):
        Sidecar("caption").write(rows(tmp_path, {"a.jpg": "x", "n" * 250 + ".jpg": "x"}), tmp_path)
    assert tree(tmp_path) == {}


def test_sidecars_stay_inside_their_folder(tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere/7.webp"
    Sidecar().write(rows(tmp_path, {str(outside): "from elsewhere"}), tmp_path / "out")
    assert tree(tmp_path) == {"out/7.txt": b"from elsewhere"}
    batch = next(rows(tmp_path, {"7.webp": "x"})).set_column(0, "key", pa.array(["danbooru/7"]))
    batch = batch.set_column(1, "uri", pa.array([str(outside)]))
    Sidecar().write(iter([batch]), tmp_path / "mirror")
    assert (tmp_path / "mirror/danbooru/7.txt").read_text() == "x"
    with pytest.raises(CutlineError, match="no place"):
        Sidecar().write(rows(tmp_path, {"../up.jpg": "x"}), tmp_path / "out")
    assert not (tmp_path / "up.txt").exists()


def test_sidecar_dry_run_is_readable(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old line\nsame")
    manifest = Sidecar(mode="overwrite").write(rows(tmp_path, {"a.jpg": "new line\nsame"}), tmp_path, dry_run=True)
    assert manifest.diff == ["--- a.txt", "+++ a.txt", "@@ -1,2 +1,2 @@", "-old line", "+new line", " same"]


# -- kohya ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_kohya_loads_in_todays_trainer(tmp_path: Path, suffix: str) -> None:
    images = make(tmp_path / "imgs", *NAMES, "none.jpg")
    outside = make(tmp_path, "outside/z.png") / "outside/z.png"
    texts = TEXTS | {"none.jpg": None, str(outside): "elsewhere"}
    manifest = Kohya(apart=True).write(rows(images, texts, tags="t_1, ^_^"), tmp_path / f"m.{suffix}")
    loaded = kohya_loads(tmp_path / f"m.{suffix}", images)
    assert loaded == {**{name: f"{text},t_1, ^_^" for name, text in TEXTS.items()}, str(outside): "elsewhere,t_1, ^_^",
                      "none.jpg": "t_1, ^_^"}  # fmt: skip
    assert manifest.counts == {"written": len(texts), "unchanged": 0, "without_text": 0, "without_caption": 1}
    assert json.loads((tmp_path / "missing.json").read_text()) == {"tags": [], "caption": ["none.jpg"], "latent": []}
    assert manifest.xxh128 == xxhash.xxh3_128((tmp_path / f"m.{suffix}").read_bytes()).hexdigest()


def test_kohya_fields_and_order(tmp_path: Path) -> None:
    Kohya().write(rows(tmp_path, {"b.jpg": "bee", "a.jpg": None, "é.jpg": "\u2028"}, tags=None), tmp_path / "m.json")
    assert (tmp_path / "m.json").read_text(encoding="utf-8") == (
        '{\n"b.jpg": {"caption": "bee", "image_size": [4, 3]},\n'
        '"é.jpg": {"caption": "\u2028", "image_size": [4, 3]}\n}\n'
    )
    Kohya(image_size=False).write(rows(tmp_path, {"b.jpg": "bee"}), tmp_path / "m.jsonl")
    assert (tmp_path / "m.jsonl").read_text() == '{"image_path": "b.jpg", "caption": "bee"}\n'
    Kohya().write(iter(()), tmp_path / "none.json")
    assert json.loads((tmp_path / "none.json").read_text()) == {}
    with pytest.raises(OptionError, match=r"\.json, \.jsonl or \.parquet"):
        Kohya().write(iter(()), tmp_path / "m.txt")


def test_kohya_legacy_ids(tmp_path: Path) -> None:
    Kohya(legacy=True).write(rows(tmp_path, {"dir/7866720.webp": "x"}), tmp_path / "m.json")
    assert list(json.loads((tmp_path / "m.json").read_text())) == ["7866720"]
    with pytest.raises(CutlineError, match=r"x: a/x\.jpg, b/x\.png"):
        Kohya(legacy=True).write(rows(tmp_path, {"a/x.jpg": "1", "b/x.png": "2"}), tmp_path / "n.json")
    assert not (tmp_path / "n.json").exists()


def test_kohya_dry_run_shows_the_entries_that_change(tmp_path: Path) -> None:
    texts = {f"{n}.jpg": f"c{n}" for n in range(10)}
    out = tmp_path / "m.json"
    Kohya(image_size=False).write(rows(tmp_path, texts), out)
    diff = (
        Kohya(image_size=False).write(rows(tmp_path, texts | {"3.jpg": "new", "9.jpg": None}), out, dry_run=True).diff
    )
    assert diff == [
        '- "3.jpg": {"caption": "c3"}',
        '+ "3.jpg": {"caption": "new"}',
        '- "9.jpg": {"caption": "c9"}',
    ]


# -- metadata.jsonl -------------------------------------------------------------------------------------------


def hub_loads(folder: Path, tmp_path: Path, **how: Any) -> dict[str, str]:
    """What the datasets library makes of a folder: text by picture."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    import datasets

    datasets.disable_progress_bars()
    cache = tmp_path / "cache"
    loaded = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(cache), **how)
    return {
        os.path.relpath(row["image"]["path"], folder): row["text"]
        for split in loaded.values()
        for row in split.cast_column("image", datasets.Image(decode=False))
    }


def test_metadata_jsonl_loads_as_an_imagefolder(tmp_path: Path) -> None:
    folder = make(tmp_path / "data", *NAMES, "sub/untold.jpg", ".cutline/x.jpg")
    with pytest.raises(CutlineError, match=r"backslash.*\n  back\\slash\.jpg"):
        MetadataJsonl().write(rows(folder, TEXTS), folder)
    texts = {name: text for name, text in TEXTS.items() if "\\" not in name}
    (folder / "a/x.txt").write_text("a sidecar")
    (folder / ".cutline/part.parquet").write_bytes(b"not ours to read")
    manifest = MetadataJsonl().write(rows(folder, texts | {"sub/untold.jpg": None}), folder)
    assert manifest.counts == {"written": len(texts), "unchanged": 0, "without_text": 1}
    assert manifest.out == folder / "metadata.jsonl"
    assert manifest.notes == []
    assert hub_loads(folder, tmp_path) == texts
    first = json.loads((folder / "metadata.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert list(first) == ["file_name", "text"]


def test_metadata_jsonl_above_the_dataset(tmp_path: Path) -> None:
    dataset = make(tmp_path / "data/photos", "a.jpg", "trip/b.jpg")
    texts = {"a.jpg": "a", "trip/b.jpg": "b"}
    MetadataJsonl().write(rows(dataset, texts), tmp_path / "data/metadata.jsonl")
    assert hub_loads(tmp_path / "data", tmp_path) == {"photos/a.jpg": "a", "photos/trip/b.jpg": "b"}


@pytest.mark.parametrize("how", ["link", "copy"])
def test_metadata_jsonl_brings_pictures_along(tmp_path: Path, how: Any) -> None:
    dataset = make(tmp_path / "photos", "a.jpg", "trip/b.jpg", "untold.jpg")
    outside = make(tmp_path, "else/c.jpg") / "else/c.jpg"
    texts = {"a.jpg": "a", "trip/b.jpg": "b", "untold.jpg": None, str(outside): "c"}
    out = tmp_path / "out"
    with pytest.raises(CutlineError, match="-o pictures=link") as refusal:
        MetadataJsonl().write(rows(dataset, texts), out)
    assert "trip/b.jpg" in str(refusal.value)
    dry = MetadataJsonl(how).write(rows(dataset, texts), out, dry_run=True)
    assert dry.counts["pictures"] == 3
    assert not out.exists()
    manifest = MetadataJsonl(how).write(rows(dataset, texts), out)
    assert manifest.counts == {"pictures": 3, "written": 3, "unchanged": 0, "without_text": 1}
    assert hub_loads(out, tmp_path) == {"a.jpg": "a", "trip/b.jpg": "b", "c.jpg": "c"}
    assert os.path.samefile(dataset / "a.jpg", out / "a.jpg") == (how == "link")
    again = MetadataJsonl(how).write(rows(dataset, texts), out)
    assert again.counts == {"pictures": 0, "written": 0, "unchanged": 3, "without_text": 1}


def test_metadata_jsonl_replaces_no_picture(tmp_path: Path) -> None:
    dataset = make(tmp_path / "photos", "a.jpg", "b.jpg")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.jpg").write_bytes(b"someone else's")
    before = tree(tmp_path)
    with pytest.raises(CutlineError, match="other files already stand") as refusal:
        MetadataJsonl("copy").write(rows(dataset, {"a.jpg": "a", "b.jpg": "b"}), tmp_path / "out")
    assert "a.jpg" in str(refusal.value)
    assert tree(tmp_path) == before
    outside = [str(make(tmp_path, f"{n}/same.jpg") / f"{n}/same.jpg") for n in range(2)]
    with pytest.raises(CutlineError, match="share a file name"):
        MetadataJsonl("link").write(rows(tmp_path, dict.fromkeys(outside, "x")), tmp_path / "two")
    with pytest.raises(OptionError, match=r"metadata\.jsonl"):
        MetadataJsonl().write(iter(()), tmp_path / "words.jsonl")


SPLIT_NAMES = ["my-train.jpg", "test.jpg", "a/val 2/b.jpg", "dev/c.jpg", "x.eval.png", "holiday_testing_1.jpg"]
OTHER_NAMES = ["strain.jpg", "latest.jpg", "contest/b.jpg", "Train.jpg", "testimony.jpg", "a/devil.png", "trains.jpg"]


@pytest.mark.parametrize("name", [*SPLIT_NAMES, *OTHER_NAMES])
def test_metadata_jsonl_warns_of_names_that_datasets_takes_for_splits(tmp_path: Path, name: str) -> None:
    """`datasets` sorts such files into splits and then leaves the metadata out: the texts would be lost in silence."""
    folder = make(tmp_path / "data", "other.jpg", name)
    texts = {"other.jpg": "o", name: "n"}
    manifest = MetadataJsonl().write(rows(folder, texts), folder)
    assert bool(manifest.notes) == (name in SPLIT_NAMES)
    if manifest.notes:
        with pytest.raises(KeyError, match="text"):
            hub_loads(folder, tmp_path)
        assert 'data_files="**"' in manifest.notes[0]
        assert hub_loads(folder, tmp_path, data_files="**") == texts
    else:
        assert hub_loads(folder, tmp_path) == texts


# -- kohya by a recipe ----------------------------------------------------------------------------------------


def words(root: Path, count: int = 3) -> Dataset:
    """Pictures with a caption and two tags each."""
    make(root, *(f"{number}.png" for number in range(count)))
    dataset = Dataset(root)
    dataset.add(Folder(root))
    with dataset.layer("captions/human").write() as rows:
        for number in range(count):
            rows.add({"key": f"{number}.png", "texts": [f"caption {number}"]})
    with dataset.layer("tags/human").write() as rows:
        for number in range(count):
            rows.add({"key": f"{number}.png", "general": ["one", "two"]})
    return dataset


def by_recipe(dataset: Dataset, out: Path, tables: dict[str, Any], dry_run: bool = False, **given: Any) -> Manifest:
    named = {"captions": {"first_of": ["captions/human"]}, "tags": {"first_of": ["tags/human"]}}
    recipe = Recipe.parse({name: {**named.get(name, {}), **tables.get(name, {})} for name in (*named, *tables)})
    return export(dataset, Kohya(**given), out, recipe=recipe, dry_run=dry_run)


def test_a_recipe_is_not_written_over(tmp_path: Path) -> None:
    dataset = words(tmp_path / "photos")
    (tmp_path / "meta.toml").write_text('[tags]\nfirst_of = ["tags/human"]\n')
    recipe = Recipe.from_toml(tmp_path / "meta.toml")
    with pytest.raises(CutlineError, match="nothing was written: the dataset config would take the place of"):
        export(dataset, Kohya(), tmp_path / "meta.json", recipe=recipe)
    assert not (tmp_path / "meta.json").exists()
    assert Recipe.from_toml(tmp_path / "meta.toml") == recipe


def test_baked_epochs_are_what_compose_says(tmp_path: Path) -> None:
    dataset = words(tmp_path / "photos", 20)
    tables: dict[str, Any] = {
        "tags": {"first_of": ["tags/human"], "shuffle": True, "dropout": 0.4},
        "captions": {"first_of": ["captions/human"], "dropout": 0.5},
        "text": {"dropout": 0.2},
    }
    manifest = by_recipe(dataset, tmp_path / "m.json", tables, bake_epochs=3)
    recipe = Recipe.parse(tables)
    (batch,) = dataset.scan(*recipe.layers)
    for epoch in (1, 2, 3):
        found = json.loads((tmp_path / f"m-{epoch}.json").read_text())
        texts = [text or "" for text in recipe.compose(batch, seed=0, epoch=epoch).to_pylist()]
        assert {key: entry["caption"] for key, entry in found.items()} == dict(
            zip(batch["key"].to_pylist(), texts, strict=True)
        )
    assert manifest.counts == {"written": 20, "unchanged": 0, "without_text": 0}
    config = tomllib.loads((tmp_path / "m.toml").read_text())
    assert [len(one["subsets"]) for one in config["datasets"]] == [1, 1, 1]  # in one, the last file's texts would win
    assert json.loads((tmp_path / "missing.json").read_text()) == {"tags": [], "caption": [], "latent": []}
    with pytest.raises(OptionError, match="leave --epoch out"):
        export(dataset, Kohya(bake_epochs=2), tmp_path / "m.json", recipe=recipe, epoch=4)


def test_a_foreign_file_in_the_place_of_the_first_epoch_is_kept(tmp_path: Path) -> None:
    dataset = words(tmp_path / "photos")
    for name in ("m-1.json", "m-2.json"):
        (tmp_path / name).write_text(f"somebody's {name}")
    by_recipe(dataset, tmp_path / "m.json", {}, bake_epochs=2)
    kept = (dataset.home / "exports" / "replaced").iterdir()
    assert sorted(path.read_text() for path in kept) == ["somebody's m-1.json", "somebody's m-2.json"]


def test_a_dry_run_shows_other_options(tmp_path: Path) -> None:
    dataset = words(tmp_path / "photos")
    by_recipe(dataset, tmp_path / "m.json", {"text": {"dropout": 0.1}})
    dry = by_recipe(dataset, tmp_path / "m.json", {"text": {"dropout": 0.2}}, dry_run=True)
    assert dry.diff == ["- caption_dropout_rate = 0.1", "+ caption_dropout_rate = 0.2"]
    assert by_recipe(dataset, tmp_path / "m.json", {"text": {"dropout": 0.1}}, dry_run=True).diff == []


def test_apart_leaves_nothing_to_chance(tmp_path: Path) -> None:
    dataset = words(tmp_path / "photos")
    by_recipe(dataset, tmp_path / "m.json", {"captions": {"first_of": ["captions/human"], "dropout": 1.0}}, apart=True)
    assert {entry["caption"] for entry in json.loads((tmp_path / "m.json").read_text()).values()} == {
        "caption 0",
        "caption 1",
        "caption 2",
    }


def test_what_a_recipe_does_not_find_is_said(tmp_path: Path) -> None:
    make(tmp_path / "photos", "a.png", "b.png")
    for name in "ab":
        (tmp_path / "photos" / f"{name}.txt").write_text("one, two")
    dataset = Dataset(tmp_path / "photos")
    dataset.add(Folder(tmp_path / "photos", sidecars="tags"))
    tags: dict[str, Any] = {"first_of": ["tags/sidecar"], "order": ["character", "general"]}
    manifest = export(dataset, Kohya(), tmp_path / "m.json", recipe=Recipe.parse({"tags": tags}))
    assert manifest.counts["without_text"] == 2
    assert any("no tags but unsorted ones" in note for note in manifest.notes)
    tags = {"first_of": ["tags/sidecar"], "shuffle": True, "keep": ["character"]}
    manifest = export(dataset, Kohya(), tmp_path / "n.json", recipe=Recipe.parse({"tags": tags}))
    assert any("keeps nothing: no picture has a tag in character" in note for note in manifest.notes)
    assert not any("unsorted" in note for note in manifest.notes)


def test_sidecars_of_before_are_named(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "b.png")
    Sidecar().write(rows(tmp_path, {"a.png": "one", "b.png": "two"}), tmp_path / "out")
    again = Sidecar(mode="overwrite").write(rows(tmp_path, {"a.png": "new", "b.png": None}), tmp_path / "out")
    assert (again.counts["written"], again.counts["without_text"]) == (1, 1)
    assert "b.txt" in again.notes[0]
    skipped = Sidecar().write(rows(tmp_path, {"a.png": "newer", "b.png": "two"}), tmp_path / "out")
    assert "-o mode=overwrite" in skipped.notes[0]
