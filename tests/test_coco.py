"""COCO's captions come in, and go out as the tars that trainers of labels read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cutline.dataset import Dataset
from cutline.options import CutlineError
from cutline.sources.coco import Coco
from cutline.sources.detect import detect
from running import cutline, make_pictures
from test_sources import Read

CAPTIONS = [
    (30, 1, "the fifth, by its id"),
    (11, 1, "the first "),
    (12, 1, "the second"),
    (13, 1, "the third"),
    (14, 1, "the fourth"),
    (5, 2, "a dog"),
    (6, 99, "about nothing that is listed"),
    (7, 3, ""),
    (8, 4, ["no", 7]),
]


def coco(path: Path, *, first: str = "images", **more: Any) -> Path:
    images = [
        {"id": number, "file_name": f"p{number:04d}.png", "width": 8, "height": 6, "coco_url": "http://x"}
        for number in (1, 2, 3, 4, 5)
    ]
    said = [{"id": own, "image_id": image, "caption": caption} for own, image, caption in CAPTIONS]
    sections = {"images": images, "annotations": said}
    order = [first, *(name for name in sections if name != first)]
    path.write_text(json.dumps({"info": {"year": 2017}, "licenses": [{}], **{n: sections[n] for n in order}, **more}))
    return path


@pytest.mark.parametrize("first", ["images", "annotations"])
def test_captions_stand_in_the_order_of_their_ids(tmp_path: Path, first: str) -> None:
    path = coco(tmp_path / "captions_val2017.json", first=first)
    assert detect(path) == "coco"
    make_pictures(tmp_path / "val2017", 4)  # p0000 to p0003
    found = Read(Coco(path, image_dir=tmp_path / "val2017"))
    assert set(found["pictures"]) == {"p0001.png", "p0002.png", "p0003.png"}
    assert found.texts("captions/coco") == {
        "p0001.png": ["the first", "the second", "the third", "the fourth", "the fifth, by its id"],
        "p0002.png": ["a dog"],
        "p0004.png": "bad_value",
    }
    assert found.notes == {
        "image whose picture is not there": 2,
        "caption about an image that the file does not list": 1,
        "empty caption": 1,
        "image without a caption": 1,
    }


def test_what_is_no_captions_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for data, message in (
        ("[]", "not a COCO file"),
        ('{"images": []}', "no annotations"),
        ('{"images": [], "annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}]}', "boxes or labels"),
        ('{"images": [], "annotations": [', "broken JSON: the file ends"),
    ):
        path.write_text(data)
        with pytest.raises(CutlineError, match=message):
            list(Coco(path).read())
    path.write_text('{"images": [7, {"id": 1}, {"id": 1, "file_name": "../x"}], "annotations": [7, {"image_id": 1}]}')
    assert Read(Coco(path)).notes == {
        "image without an id or a file name": 2,
        "image whose file name leads out of the folder, or is no Unicode": 1,
        "annotation that names no image": 1,
        "annotation without a caption": 1,
    }


def test_batches_of_captions(tmp_path: Path) -> None:
    count = 25_000
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(count)]
    said = [{"id": -n, "image_id": n % count, "caption": f"c {n}"} for n in range(2 * count)]
    (tmp_path / "c.json").write_text(json.dumps({"annotations": said, "images": images}))
    found = Read(Coco(tmp_path / "c.json"))
    assert len(found["captions/coco"]) == count
    assert found.texts("captions/coco")["7.jpg"] == [f"c {count + 7}", "c 7"]


def test_packing_coco_into_tars(tmp_path: Path) -> None:
    """From annotations and images to tars, as the recipes for label predictors want them: two commands."""
    path = coco(tmp_path / "captions_val2017.json")
    photos = tmp_path / "val2017"
    make_pictures(photos, 4)
    cutline("add", photos, path, "-o", f"image_dir={photos}")
    assert Dataset(photos).sql('select len(texts) from "captions/coco" order by key').fetchall()[0] == (5,)
    cutline("add", photos, path, "-o", f"image_dir={photos}", "-o", "joined=true")
    cutline("export", photos, "webdataset", tmp_path / "coco_valid")
    import webdataset

    found = list(webdataset.WebDataset(str(tmp_path / "coco_valid/00000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in found] == ["p0001", "p0002"]
    assert found[0]["txt"].decode() == "the first the second the third the fourth the fifth, by its id"
    assert json.loads(found[0]["json"])["key"] == "p0001.png"
    assert found[1]["png"] == (photos / "p0002.png").read_bytes()
