"""Which source reads a path, when nobody says."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

from cutline import archives
from cutline.formats import booru, kohya, metadata_jsonl
from cutline.formats.entries import opened
from cutline.options import CutlineError
from cutline.pictures import EXTENSIONS
from cutline.registry import names
from cutline.sources.booru import FORMS, columns
from cutline.sources.coco import is_coco


def detect(path: Path) -> str:
    """The name of the source for a folder or file, by its form.

    Raises:
        CutlineError: there is nothing, or nothing that is known, naming what `--from` can say.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        if any((path / file).is_file() for file in metadata_jsonl.FILES):
            return "imagefolder"
        suffixes = {os.path.splitext(entry.name)[1].lower() for entry in os.scandir(path)}
        return "webdataset" if archives.SUFFIX in suffixes and not suffixes & EXTENSIONS else "folder"
    if path.name.lower().endswith((archives.SUFFIX, *archives.COMPRESSED)):
        return "webdataset"
    if not path.exists():
        raise CutlineError(f"there is no {path}")
    if path.suffix.lower() == ".toml" and _names_datasets(path):
        return "kohya_toml"
    reason = ""
    if path.suffix.lower() == ".json" and is_coco(path):
        return "coco"
    try:
        fields = _first_fields(path)
    except CutlineError as error:
        fields, reason = set(), f" ({error})"
    if "image_path" in fields or (path.suffix.lower() == ".json" and fields.intersection({*kohya.FIELDS, kohya.LACKS})):
        return "kohya"
    if booru.detect(fields):
        return "booru"
    if path.name in metadata_jsonl.FILES:
        return "imagefolder"
    if path.name.lower().endswith(FORMS) and not reason:
        reason = f" (no column map knows a table with the columns {', '.join(sorted(fields)) or 'that it has: none'})"
    raise CutlineError(f"cannot tell what {path} is{reason}. Say it: --from {' | '.join(names('sources'))}")


def _names_datasets(path: Path) -> bool:
    """Whether a TOML file is a dataset config of kohya's trainers."""
    with opened(path) as handle:
        try:
            return "datasets" in tomllib.load(handle)
        except ValueError:  # no TOML, or no UTF-8
            return False


def _first_fields(path: Path) -> set[str]:
    """The fields of the first records of a JSON file, whatever it is, or the columns of a table."""
    suffix = path.suffix.lower()
    if path.name.lower().endswith(FORMS):
        return set(columns(path))
    if suffix == ".json":
        return set(next((entry.fields for entry in kohya.read(path) if entry.fields or entry.error), ()))
    if suffix == ".jsonl":
        with opened(path) as handle:
            try:
                first = json.loads(handle.readline(1 << 20).decode("utf-8-sig"))
            except ValueError:
                return set()
        return set(first) if isinstance(first, dict) else set()
    return set()
