"""The files that users of kohya's tools and of the captioning scripts around them have: all of them come in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cutline.dataset import Dataset, KeyRule
from cutline.formats import kohya as kohya_format
from cutline.formats import stream
from cutline.options import CutlineError
from cutline.sources.detect import detect
from cutline.sources.kohya import Kohya
from test_sources import Read


def write(path: Path, entries: Any) -> Path:
    path.write_text(json.dumps(entries, indent=2))
    return path


def test_latents_of_a_merged_file(tmp_path: Path) -> None:
    path = write(
        tmp_path / "meta_lat.json",
        {
            "7": {"tags": "1girl", "caption": "a girl", "train_resolution": [1024, 960]},
            "8": {"tags": "solo", "train_resolution": [1024]},
            "9": {"tags": "solo", "train_resolution": ["a", True]},
        },
    )
    rows = Read(Kohya(path, layer="mine"))["latents/mine"]
    assert rows["7"] == {"width": 1024, "height": 960, "uri": None, "error": None, "detail": None}
    assert rows["8"]["error"] == rows["9"]["error"] == "bad_value"
    assert "[1024]" in rows["8"]["detail"]


def test_a_folder_of_latents(tmp_path: Path) -> None:
    folder = tmp_path / "latents"
    (folder / "more").mkdir(parents=True)
    for name in ("7.npz", "8_1024x0960_sdxl.npz", "8_0512x0512_sdxl.npz", "more/a_b.npz", "notes.txt"):
        (folder / name).write_bytes(b"x")
    path = write(
        tmp_path / "meta.json", {"7": {"tags": "x", "train_resolution": [640, 512]}, "x/8.webp": {"tags": "y"}}
    )
    found = Read(Kohya(path, latents=folder))
    assert {name: (row["width"], row["uri"]) for name, row in found["latents/kohya"].items()} == {
        "7": (640, f"{folder}/7.npz"),
        "x/8.webp": (None, f"{folder}/8_0512x0512_sdxl.npz"),
        "a_b": (None, f"{folder}/more/a_b.npz"),
    }
    assert found.notes == {"file of latents not read, since its picture has another": 1}


def test_a_list_of_what_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "missing.json", {"tags": ["7", "8"], "caption": ["7", 9, None, "a\0b"], "latent": []})
    assert detect(path) == "kohya"
    found = Read(Kohya(path))
    assert {name: row["uri"] for name, row in found["pictures"].items()} == {"7": None, "8": None, "9": None}
    assert [row["error"] for row in found["captions/kohya"].values()] == ["bad_name", "bad_name"]
    assert not found["tags/kohya"]
    assert found.notes == {
        "picture that a list says has no tags": 2,
        "picture that a list says has no caption": 2,
        "entry that cannot be read: bad_name": 2,
    }


def test_answers_that_were_found_bad(tmp_path: Path) -> None:
    path = write(
        tmp_path / "bad.json", {"7": {"caption": '```json\n{"a": '}, "8": {"caption": ""}, "9": {"caption": 3}}
    )
    found = Read(Kohya(path, layer="toriigate", rejected=True))
    rows = found["captions/toriigate"]
    assert rows.keys() == {"7", "9"}
    assert rows["7"] == {
        "texts": None,
        "raw": '```json\n{"a": ',
        "verdict": "rejected",
        "reason": "bad_answer",
        "error": None,
        "detail": None,
    }
    assert rows["9"]["error"] == "bad_value"
    assert found.notes == {"empty caption": 1}


def test_a_field_that_is_no_unicode_is_noted_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text('{"7": {"caption": "x", "\\ud800y": 1}}')
    assert Read(Kohya(path)).notes == {"field not read: \\ud800y": 1}


def test_entries_become_posts_when_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "meta_cap_dd.json", {"7": {"tags": "1girl"}, "danbooru/8": {"tags": "solo"}})
    assert not Read(Kohya(path))["pictures"]
    assert {name: row["uri"] for name, row in Read(Kohya(path, posts=True))["pictures"].items()} == {
        "7": None,
        "danbooru/8": None,
    }


def test_ids_match_pictures_by_their_stem_in_a_new_dataset(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    for name in ("7.webp", "sub/8.webp"):
        Image.new("RGB", (4, 3)).save(photos / name)
    dataset = Dataset(photos)
    dataset.add(Kohya(write(tmp_path / "meta_cap.json", {"7": {"caption": "a girl"}, "8": {"caption": "a boy"}})))
    assert dataset.key_rule == KeyRule("stem")
    from cutline.sources.folder import Folder

    dataset.add(Folder(photos))
    said = 'select key, text from "captions/kohya" join pictures using (key) where pictures.error is null order by key'
    assert dataset.sql(said).fetchall() == [("7", "a girl"), ("8", "a boy")]


@pytest.mark.parametrize(
    ("names", "given", "rule"),
    [
        ({"7": {}}, {}, "stem"),
        ({"danbooru/7": {}}, {}, "stem"),
        ({"a/7.webp": {}}, {}, "path"),
        ({"7": {}}, {"image_dir": Path()}, "path"),
        ({}, {}, "path"),
        ({"caption": ["7"]}, {}, "stem"),
    ],
)
def test_the_rule_is_what_the_names_are(tmp_path: Path, names: Any, given: Any, rule: str) -> None:
    assert Kohya(write(tmp_path / "m.json", names), **given).rule == KeyRule(rule)


# -- large and broken files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "where", "what"),
    [
        (b'{"a": {}, "b": {"x": 1,}}', "after entry 1, 'a'", "double quotes"),
        (b'{"a": {}, "b": {"x": "1', "after entry 1, 'a'", "ends in the middle"),
        (b'{"a": {}', "after entry 1, 'a'", "ends in the middle"),
        (b'{"a": {}} x', "after entry 1, 'a'", "the end should follow"),
        (b'{"a": {} "b": {}}', "after entry 1, 'a'", "',' should follow"),
        (b'{"a" {}}', "after its start", "':' should follow"),
        (b'{"a": {"caption": "x"}, "b": {"caption": "caf\xe9"}}', "after entry 1, 'a'", "byte 45 is not UTF-8"),
        (b'{"a": {}, "b": ' + b"[" * 200_000, "after entry 1, 'a'", "too deeply"),
        (b'{"a": {"caption": "two\nlines"}}', "after its start", "control character"),
    ],
)
def test_broken_json_says_what_and_where(tmp_path: Path, data: bytes, where: str, what: str) -> None:
    path = tmp_path / "meta.json"
    path.write_bytes(data)
    with pytest.raises(CutlineError) as refusal:
        list(kohya_format.read(path))
    assert where in str(refusal.value)
    assert what in str(refusal.value)


def test_an_entry_without_end_is_broken_before_memory_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "LARGEST", 1 << 20)
    monkeypatch.setattr(stream, "_CHUNK", 1 << 12)
    path = tmp_path / "meta.json"
    with path.open("w") as handle:
        handle.write('{"a": {"caption": "x"}, "b": {"caption": "')
        for _ in range(100):
            handle.write("lost quotation mark " * 5000)
    with pytest.raises(CutlineError, match=r"after entry 1, 'a': what follows is longer than 1 MiB"):
        list(kohya_format.read(path))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_chunks_cut_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(stream, "_CHUNK", chunk)
    entries = {"猫🐈": {"caption": "café \ud83d half", "n": [1, -2.5e3, True, None]}, "b": {"n": 12345}, "c": {}}
    data = json.dumps(entries, ensure_ascii=False, indent=1).replace("\ud83d", "\\ud83d")
    (tmp_path / "m.json").write_text("\ufeff" + data)
    found = list(kohya_format.read(tmp_path / "m.json"))
    assert [(entry.name, entry.fields) for entry in found] == list(entries.items())
