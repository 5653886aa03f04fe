"""What tests of the store and the engine share: tiny pictures, the real command line, and looking at a dataset."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from cutline.annotators.echo import Echo
from cutline.dataset import Dataset
from cutline.engine.here import Report, annotate
from cutline.engine.selection import Selection, Shard

CUTLINE = [sys.executable, "-m", "cutline"]

SOON = [
    sys.executable,
    "-c",
    "import sys; from cutline.layer import LayerWriter; LayerWriter.__init__.__kwdefaults__['flush_seconds'] = 0.1\n"
    "from cutline.cli.main import main; main()",
]
"""The same command line, which publishes ten times a second instead of every ten seconds."""

ECHO = "captions/echo"


def picture(number: int) -> bytes:
    """A tiny PNG, another one for each number."""
    out = BytesIO()
    Image.new("RGB", (8, 6), (number >> 16 & 255, number >> 8 & 255, number & 255)).save(out, "PNG")
    return out.getvalue()


def make_pictures(folder: Path, count: int, *, first: int = 0) -> list[str]:
    """Write pictures called `p0000.png` and so on; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"p{number:04d}.png" for number in range(first, first + count)]
    for number, name in enumerate(names, first):
        (folder / name).write_bytes(picture(number))
    return names


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cutline(
    *args: object, code: int = 0, command: Sequence[str] = CUTLINE, timeout: float = 120, **settings: Any
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end and hold it to this exit code; never does it show a traceback."""
    done = subprocess.run(
        [*command, *map(str, args)], capture_output=True, text=True, timeout=timeout, check=False, **settings
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


def environment(**changes: object) -> dict[str, str]:
    return {**os.environ, **{name: str(value) for name, value in changes.items()}}


def echo(dataset: Dataset, *, says: str = "{content}", layer: str = ECHO, shard: str = "", **narrow: Any) -> Report:
    """Run the echo annotator here: each caption says by itself which bytes it is about."""
    selection = Selection(dataset, Echo(says=says), layer, shard=Shard.parse(shard) if shard else None, **narrow)
    return annotate(selection, workers=1)


def captions(dataset: Dataset, layer: str = ECHO) -> dict[str, str | None]:
    """What the layer says of the readable pictures: key -> its caption, `error: …`, or None where there is no row."""
    found: dict[str, str | None] = {}
    for batch in dataset.scan(layer):
        for row in batch.to_pylist():
            said = row[layer]
            if said is None:
                found[row["key"]] = None
            else:
                found[row["key"]] = f"error: {said['error']}" if said["error"] else said["texts"][0]
    return found


def raw_rows(dataset: Dataset, layer: str = ECHO) -> list[dict[str, Any]]:
    """Every row of every part, whether it counts or not. Reading each part whole shows that none is torn."""
    return [row for part in dataset.layer(layer).parts() for row in pq.read_table(part).to_pylist()]


def leftovers(folder: Path) -> list[str]:
    """Files that a write left half-way."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.tmp"))


def clear_leftovers(dataset: Dataset) -> None:
    """What a kill in the middle of a write left goes with a compact, once it is a day old."""
    for name in leftovers(dataset.root):
        assert Path(name).name.startswith(".part-")
        os.utime(dataset.root / name, (1e9, 1e9))
    dataset.compact()
    assert leftovers(dataset.root) == []


def events(text: str) -> list[dict[str, Any]]:
    """The events of `--log-json`, one per line."""
    return [json.loads(line) for line in text.splitlines()]
