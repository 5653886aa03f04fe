"""Real photographs, which come inside well-known wheels: added, measured, captioned, exported, and loaded again."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import tiny
from cutline.dataset import Dataset
from cutline.demo.captioner import train_captioner
from trainers import kohya_loads

PHOTOS = {
    "skimage": ["data/astronaut.png", "data/coffee.png", "data/chelsea.png", "data/rocket.jpg"],
    "sklearn": ["datasets/images/china.jpg", "datasets/images/flower.jpg"],
}


def copy_photos(folder: Path) -> Path:
    """Six photographs, and one of them on its side with the EXIF tag that says so."""
    folder.mkdir(parents=True)
    for package, names in PHOTOS.items():
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        for name in names:
            shutil.copy(Path(spec.origin).parent / name, folder)
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "turned").mkdir()
    Image.open(folder / "china.jpg").rotate(90, expand=True).save(folder / "turned" / "china.jpg", exif=exif)
    return folder


def cutline(*words: str | Path) -> str:
    command = [sys.executable, "-m", "cutline", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def walk(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> dict[str, str]:
    """The whole way from photographs to what other programs load; key -> caption."""
    blip = ("blip", "-o", f"model={model}", "-o", "max_tokens=20", *options)
    photos = copy_photos(tmp_path / "photos")
    assert "7 added" in cutline("add", photos)
    assert "7 good" in cutline("annotate", photos, "facts")
    assert "7 good" in cutline("annotate", photos, *blip)
    dataset = Dataset(photos)
    sizes = dict(dataset.sql("select key, (width, height) from pictures").fetchall())
    assert sizes["china.jpg"] == sizes["turned/china.jpg"] == (640, 427)
    facts = {key: (phash, tags) for key, phash, tags in dataset.sql("select key, phash, tags from facts").fetchall()}
    assert (facts["china.jpg"][0] ^ facts["turned/china.jpg"][0]).bit_count() <= 6, "one picture, saved twice"
    assert (facts["china.jpg"][0] ^ facts["coffee.png"][0]).bit_count() >= 16
    assert all("greyscale" not in tags for _, tags in facts.values())
    captions = dict(dataset.sql('select key, text from "captions/blip"').fetchall())
    assert set(captions) == set(sizes)
    assert all(captions.values())

    cutline("export", photos, "kohya", tmp_path / "meta.json")
    assert kohya_loads(tmp_path / "meta.json", photos) == captions
    cutline("export", photos, "metadata_jsonl", photos)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", os.fspath(tmp_path / "cache"))
    from datasets import load_dataset

    loaded = load_dataset("imagefolder", data_dir=str(photos), split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(loaded["text"]) == sorted(captions.values())
    assert cutline("annotate", photos, *blip).startswith("captions/blip: nothing to do")
    return captions


def test_photographs_all_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Random weights repeat themselves, which would be found out.
    model = tiny.save_blip(tmp_path / "model", seed=2, end=4)
    walk(tmp_path, model, monkeypatch, "-o", "repetition_penalty=3", "-o", "min_tokens=2")


@pytest.mark.slow
def test_photographs_captioned_by_the_demos_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_captioner(tmp_path / "model", samples=4000, steps=200)
    captions = walk(tmp_path, tmp_path / "model", monkeypatch)
    assert captions["china.jpg"] == captions["turned/china.jpg"], "upright for the model too"
    assert all("left of" in caption or "above" in caption for caption in captions.values()), "all it ever learnt to say"
