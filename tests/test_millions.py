"""Adding and exporting many posts, killed again and again: nothing is lost, and nothing half-done has its name."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from running import CUTLINE, cutline

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import make_booru

POSTS = 150_000
KILLS = 5


def killed(seconds: float, *args: object) -> bool:
    """Run a command and kill it after so many seconds; whether it was still at work."""
    process = subprocess.Popen([*CUTLINE, *map(str, args)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        return process.wait(seconds) != 0
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True


def timed(*args: object) -> float:
    start = time.perf_counter()
    cutline(*args)
    return time.perf_counter() - start


@pytest.mark.slow
def test_adds_and_exports_that_are_killed(tmp_path: Path) -> None:
    make_booru.write(tmp_path, POSTS)
    (tmp_path / "captions.toml").write_text('[columns]\nid = ["index"]\n[captions]\nflorence-long = "florence_long"\n')
    (tmp_path / "recipe.toml").write_text(
        '[tags]\nfirst_of = ["tags/danbooru"]\n[captions]\nfirst_of = ["captions/florence-long"]\n'
        '[latents]\nfirst_of = ["latents/kohya"]\n'
    )
    adds = (
        (tmp_path / "metadata.parquet",),
        (tmp_path / "captions.parquet", "--from", "booru", "-o", f"map={tmp_path / 'captions.toml'}"),
        (tmp_path / "latents.json", "-o", "layer=kohya"),
    )
    quiet, hurt = tmp_path / "quiet", tmp_path / "hurt"
    quiet.mkdir()
    hurt.mkdir()
    rng = random.Random(5)
    for add in adds:
        takes = timed("add", quiet, *add)
        for _ in range(KILLS):
            killed(rng.uniform(0.3, 1.0) * takes, "add", hurt, *add)
        cutline("add", hurt, *add)
    export = ("--recipe", tmp_path / "recipe.toml", "-o", "legacy=true")
    takes = timed("export", quiet, "kohya", tmp_path / "quiet.json", *export)
    for _ in range(KILLS):
        out = tmp_path / "hurt" / "hurt.json"
        killed(rng.uniform(0.3, 0.9) * takes, "export", hurt, "kohya", out, *export)
        assert not out.exists() or out.read_bytes() == (tmp_path / "quiet.json").read_bytes(), "whole or not at all"
        out.unlink(missing_ok=True)
    cutline("export", hurt, "kohya", out, *export)
    assert out.read_bytes() == (tmp_path / "quiet.json").read_bytes()

    said = json.loads(out.read_text("utf-8"))
    assert len(said) == POSTS
    table = next(make_booru.chunks(POSTS))
    for row in table.slice(0, 500).to_pylist():
        entry = said[str(row["id"])]
        assert entry.get("caption") == row["caption"]
        assert entry["train_resolution"] == [row["width"], row["height"]]
        tags = {tag for group in make_booru.CATEGORIES for tag in row[f"tag_string_{group}"].split()}
        assert set(entry["tags"].split(", ")) == tags
    cutline("compact", hurt)
    cutline("export", hurt, "kohya", tmp_path / "compacted.json", *export)
    assert (tmp_path / "compacted.json").read_bytes() == out.read_bytes()
