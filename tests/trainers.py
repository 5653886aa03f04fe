"""The other programs, as far as loading goes: what today's kohya trainers make of a metadata file."""

from __future__ import annotations

import json
import os
from pathlib import Path

from PIL import Image


def kohya_loads(path: Path, image_dir: Path | None) -> dict[str, str]:
    """Captions by file as the trainer would have them, after the recorded oracle; what it fails at, fails here."""
    if path.suffix == ".jsonl":
        entries = {}
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line:
                record = json.loads(line)
                entries[record.pop("image_path")] = record
    else:
        entries = json.loads(path.read_text(encoding="utf-8"))
    loaded = {}
    for key, entry in entries.items():
        assert os.path.isabs(key) or image_dir, "image_dir is required when image paths are relative"
        file = os.path.join(image_dir or "", key)
        caption, tags = entry.get("caption") or "", entry.get("tags")
        assert isinstance(caption, str)
        assert tags is None or isinstance(tags, str)
        if "image_size" in entry:
            assert Image.open(file).size == tuple(entry["image_size"])
        else:
            Image.open(file)
        loaded[key] = caption + ("," if caption and tags else "") + (tags or "")
    return loaded
