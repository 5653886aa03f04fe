"""WebDataset, both ways: what others pack comes in, and what is exported their own library reads."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cutline.compose.recipe import Recipe
from cutline.dataset import Dataset
from cutline.exports.export import export, find_recipe
from cutline.exports.manifest import Manifest
from cutline.exports.webdataset import WebDataset as WebDatasetExport
from cutline.formats.webdataset import key_and_extension
from cutline.options import CutlineError
from cutline.sources.detect import detect
from cutline.sources.folder import Folder
from cutline.sources.webdataset import WebDataset
from running import CUTLINE, cutline, environment, leftovers, make_pictures, picture
from test_archives import make_tar
from test_sources import Read


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("a.jpg", ("a", "jpg")),
        ("x.y/a.seg.PNG", ("x.y/a", "seg.png")),
        ("a", ("a", "")),
        ("x.y/a", ("x.y/a", "")),
        (".hidden", (".hidden", "")),
    ],
)
def test_keys_end_at_the_first_dot(name: str, wanted: tuple[str, str]) -> None:
    assert key_and_extension(name) == wanted


def test_samples_and_their_words(tmp_path: Path) -> None:
    make_tar(
        tmp_path / "0.tar",
        {
            "a.jpg": picture(1),
            "a.txt": b"from txt\n",
            "a.json": json.dumps({"caption": "from json", "url": "http://x"}).encode(),
            "sub/b.seg.png": picture(9),
            "sub/b.png": picture(2),
            "sub/b.json": json.dumps({"caption": ["one", "two"], "status": "success"}).encode(),
            "sub/b.cls": b"7",
            "c.txt": b"without a picture",
            "d.webp": picture(3),
            "d.json": b"[1]",
            "e.webp": picture(4),
            "e.json": b"{",
            "film.mp4": b"x",
            "f.json": json.dumps({"status": "failed_to_download", "error_message": "404"}).encode(),
        },
    )
    found = Read(WebDataset(tmp_path))
    assert {name: row["error"] for name, row in found["pictures"].items()} == {
        "0.tar/a.jpg": None,
        "0.tar/sub/b.png": None,
        "0.tar/d.webp": None,
        "0.tar/e.webp": None,
        "0.tar/film.mp4": "unsupported",
        "0.tar/f": "download_failed",
    }
    assert found.texts("captions/webdataset") == {"0.tar/a.jpg": ["from txt"], "0.tar/sub/b.png": ["one", "two"]}
    assert found.notes == {
        "field not read: url": 1,
        "file not read: .cls": 1,
        "file not read: .seg.png": 1,
        "json that cannot be read": 1,
        "json that is no object": 1,
        "sample without a picture": 1,
    }


def test_what_img2dataset_could_not_download_is_an_error(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    records = []
    for number in range(4):
        key, failed = f"{number:09d}", number % 2
        records.append(
            {
                "key": key,
                "url": f"http://x/{key}",
                "caption": f"c {number}",
                "status": "failed_to_download" if failed else "success",
                "error_message": "HTTP Error 404: Not Found" if failed else None,
            }
        )
    good = [record for record in records if record["status"] == "success"]
    files = {}
    for number, record in enumerate(good):
        files[f"{record['key']}.jpg"] = picture(number)
        files[f"{record['key']}.txt"] = str(record["caption"]).encode()
        files[f"{record['key']}.json"] = json.dumps(record).encode()
    make_tar(shards / "00000.tar", files)
    pq.write_table(pa.Table.from_pylist(records), shards / "00000.parquet")
    (shards / "00000_stats.json").write_text("{}")
    dataset = Dataset(tmp_path)
    report = dataset.add(WebDataset(shards))
    assert report.reasons == {"download_failed": 2}
    rows = dataset.sql("select key, error, detail from pictures order by key").fetchall()
    assert rows[1] == (
        "shards/00000.tar/000000001",
        "download_failed",
        "HTTP Error 404: Not Found (http://x/000000001)",
    )
    assert [key for key, error, _ in rows if not error] == [
        "shards/00000.tar/000000000.jpg",
        "shards/00000.tar/000000002.jpg",
    ]
    again = dataset.add(WebDataset(shards))
    assert (again.unchanged, again.added, again.changed) == (4, 0, 0)


def test_patterns_and_what_is_no_tar(tmp_path: Path) -> None:
    for number in range(4):
        make_tar(tmp_path / f"s-{number:02d}.tar", {f"{number}.png": picture(number)})
    found = Read(WebDataset(tmp_path / "s-{01..02}.tar"))
    assert set(found["pictures"]) == {"s-01.tar/1.png", "s-02.tar/2.png"}
    assert len(Read(WebDataset(tmp_path / "s-*.tar"))["pictures"]) == 4
    assert WebDataset(tmp_path / "s-*.tar").covers is None
    assert detect(tmp_path) == detect(tmp_path / "s-00.tar") == "webdataset"
    with pytest.raises(CutlineError, match="there is no tar"):
        list(WebDataset(tmp_path / "none*.tar").read())
    (tmp_path / "z.tar.gz").write_bytes(b"x")
    assert Read(WebDataset(tmp_path)).notes == {"compressed tar, not read (decompress it)": 1}
    with pytest.raises(CutlineError, match="gunzip"):
        list(WebDataset(tmp_path / "z.tar.gz").read())


def test_two_shards_with_one_sample_under_the_rule_stem(tmp_path: Path) -> None:
    from cutline.dataset import KeyRule

    for number in range(2):
        make_tar(tmp_path / f"{number}.tar", {"same.png": picture(number), "same.txt": b"words"})
    dataset = Dataset(tmp_path)
    report = dataset.add(WebDataset(tmp_path), rule=KeyRule("stem"))
    assert report.reasons == {"duplicate_key": 1}
    ((detail,),) = dataset.sql("select detail from pictures").fetchall()
    assert json.loads(detail) == ["0.tar/same.png", "1.tar/same.png"]


def test_names_that_lead_out_of_their_tar(tmp_path: Path) -> None:
    make_tar(tmp_path / "0.tar", {"../../x.png": picture(1), "a/../b.png": picture(2)})
    found = Read(WebDataset(tmp_path))["pictures"]
    assert {row["error"] for row in found.values()} == {"bad_name", None}
