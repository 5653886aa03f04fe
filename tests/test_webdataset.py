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

from cutline.compose.recipe import Recipe, find_recipe
from cutline.dataset import Dataset
from cutline.exports.export import export
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
    assert found.texts("captions/webdataset") == {
        "0.tar/a.jpg": ["from txt"],
        "0.tar/sub/b.png": ["one", "two"],
        "0.tar/c": ["without a picture"],
    }
    assert found.notes == {
        "field not read: url": 1,
        "file not read: .cls": 1,
        "file not read: .seg.png": 1,
        "json that cannot be read": 1,
        "json that is no object": 1,
        "sample without a picture, whose words are about one of that name": 1,
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


def test_tars_of_words_alone_match_pictures_by_their_stem(tmp_path: Path) -> None:
    """Some pack only the captions of millions of pictures, by their ids."""
    from cutline.dataset import KeyRule

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/7001.png").write_bytes(picture(1))
    dataset = Dataset(tmp_path / "photos")
    dataset.add(Folder(tmp_path / "photos"), rule=KeyRule("stem"))
    dataset.add(WebDataset(make_tar(tmp_path / "0001.tar", {"7001.caption": b"a cat", "8001.caption": b"unknown"})))
    said = 'select key, text from "captions/webdataset" join pictures using (key)'
    assert dataset.sql(said).fetchall() == [("7001", "a cat")]


def test_names_that_lead_out_of_their_tar(tmp_path: Path) -> None:
    make_tar(tmp_path / "0.tar", {"../../x.png": picture(1), "a/../b.png": picture(2)})
    found = Read(WebDataset(tmp_path))["pictures"]
    assert {row["error"] for row in found.values()} == {"bad_name", None}


# -- export ---------------------------------------------------------------------------------------------------


def captioned(folder: Path, count: int) -> Dataset:
    """A dataset of that many pictures with a caption each."""
    for number, name in enumerate(make_pictures(folder, count)):
        (folder / name).with_suffix(".txt").write_text(f"number {number}, 猫")
    dataset = Dataset(folder)
    dataset.add(Folder(folder))
    return dataset


def write(dataset: Dataset, out: Path, **given: Any) -> Manifest:
    return export(dataset, WebDatasetExport(**given), out, recipe=find_recipe(dataset, ""))


def tars(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.tar"))}


def read_back(out: Path) -> list[dict[str, Any]]:
    """The samples as WebDataset's own library gives them."""
    import webdataset

    urls = [str(path) for path in sorted(out.glob("*.tar"))]
    return list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))


def test_their_library_and_our_source_read_what_is_exported(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    captioned(photos, 5)
    (photos / "a trip").mkdir()
    (photos / "a trip/x.v2 🐈.PNG").write_bytes(picture(77))
    (photos / "a trip/x.v2 🐈.txt").write_text("two\nlines")
    dataset = Dataset(photos)
    dataset.add(Folder(photos))
    manifest = write(dataset, tmp_path / "out", count=4)
    assert manifest.counts == {"written": 6, "unchanged": 0, "without_text": 0}
    assert list(tars(tmp_path / "out")) == ["00000.tar", "00001.tar"]
    found = read_back(tmp_path / "out")
    assert [sample["__key__"] for sample in found] == ["a trip/x_v2 🐈", *(f"p{number:04d}" for number in range(5))]
    assert (found[0]["png"], found[0]["txt"].decode()) == (picture(77), "two\nlines")
    assert json.loads(found[1]["json"]) == {
        "key": "p0000.png",
        "caption": "number 0, 猫",
        "tags": None,
        "width": 8,
        "height": 6,
    }
    second = Dataset(tmp_path / "out")
    second.add(WebDataset(tmp_path / "out"))
    said = second.sql('select key, text from "captions/webdataset" order by key').fetchall()
    assert said[0] == ("00000.tar/a trip/x_v2 🐈.png", "two\nlines")
    assert len(said) == 6

    # And once more, out of the tars.
    write(second, tmp_path / "again", names="number")
    assert [sample["png"] for sample in read_back(tmp_path / "again")] == [sample["png"] for sample in found]
    assert [sample["txt"] for sample in read_back(tmp_path / "again")] == [sample["txt"] for sample in found]


def test_the_same_pictures_make_the_same_tars(tmp_path: Path) -> None:
    write(captioned(tmp_path / "a", 9), tmp_path / "out a", count=4)
    time.sleep(1.1)
    shutil.copytree(tmp_path / "a", tmp_path / "b", ignore=shutil.ignore_patterns(".cutline"))
    again = Dataset(tmp_path / "b")
    again.add(Folder(tmp_path / "b"))
    write(again, tmp_path / "out b", count=4)
    assert tars(tmp_path / "out a") == tars(tmp_path / "out b")
    with tarfile.open(tmp_path / "out a/00000.tar") as tar:
        assert {(info.mtime, info.uid, info.gid, info.uname) for info in tar} == {(0, 0, 0, "")}


def test_tars_are_closed_by_number_and_by_size(tmp_path: Path) -> None:
    dataset = captioned(tmp_path / "a", 7)
    write(dataset, tmp_path / "by count", count=3)
    assert len(tars(tmp_path / "by count")) == 3
    write(dataset, tmp_path / "by size", size=3 * 6 * 512)
    assert [len(read_back_one) for read_back_one in _samples(tmp_path / "by size")] == [3, 3, 1]
    write(dataset, tmp_path / "tiny", size=1)
    assert len(tars(tmp_path / "tiny")) == 7


def _samples(out: Path) -> list[list[str]]:
    found = []
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            found.append([name for name in tar.getnames() if name.endswith(".txt")])
    return found


def test_only_what_changed_is_written_again(tmp_path: Path) -> None:
    dataset = captioned(tmp_path / "a", 9)
    out = tmp_path / "out"
    write(dataset, out, count=3)
    times = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert write(dataset, out, count=3).counts == {"written": 0, "unchanged": 9, "without_text": 0}
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == times

    (tmp_path / "a/p0004.txt").write_text("another")
    dataset.add(Folder(tmp_path / "a"))
    assert write(dataset, out, count=3).counts["written"] == 3
    changed = {path.name for path in out.iterdir() if path.stat().st_mtime_ns != times[path.name]}
    assert changed == {"00001.tar", "manifest.json"}

    data = bytearray((out / "00002.tar").read_bytes())
    data[600] ^= 1
    (out / "00002.tar").write_bytes(data)
    assert write(dataset, out, count=3).counts["written"] == 3

    assert write(dataset, out, count=5).counts["written"] == 9
    assert list(tars(out)) == ["00000.tar", "00001.tar"], "one is left over from before"


def test_a_killed_export_leaves_whole_tars_and_goes_on(tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for number in range(40):
        (photos / f"{number:02d}.png").write_bytes(picture(number) + os.urandom(1 << 21))
        (photos / f"{number:02d}.txt").write_text("x")
    cutline("add", photos)
    words = ["export", str(photos), "webdataset", str(out), "-o", "count=4"]
    killed = 0
    for _ in range(12):
        before = len(tars(out)) if out.exists() else 0
        run = subprocess.Popen([*CUTLINE, *words], stdout=subprocess.DEVNULL, env=environment())
        while run.poll() is None and (len(list(out.glob("*.tar"))) if out.exists() else 0) <= before:
            time.sleep(0.005)
        time.sleep(0.01)
        if run.poll() is None:
            run.send_signal(signal.SIGKILL)
            killed += 1
        run.wait()
        for path in out.glob("*.tar"):
            with tarfile.open(path) as tar:
                assert len(tar.getnames()) == 12, path
        if len(list(out.glob("*.tar"))) > 6:
            break
    assert killed
    standing = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert len(standing) >= killed
    cutline(*words)
    assert leftovers(out) == []
    assert len(tars(out)) == 10
    kept = {name for name, mtime in standing.items() if (out / name).stat().st_mtime_ns == mtime}
    assert kept == set(standing), "what stood was not written again"
    fresh = tmp_path / "fresh"
    cutline("export", photos, "webdataset", fresh, "-o", "count=4")
    assert tars(fresh) == tars(out)


def test_what_cannot_be_read_is_left_out_and_counted(tmp_path: Path) -> None:
    dataset = captioned(tmp_path / "a", 6)
    (tmp_path / "a/p0001.png").unlink()
    (tmp_path / "a/p0004.png").write_bytes(picture(1000))
    out = tmp_path / "out"
    manifest = write(dataset, out, count=3)
    assert manifest.counts == {"written": 4, "unchanged": 0, "without_text": 0, "vanished": 1, "changed": 1}
    assert len(read_back(out)) == 4
    (tmp_path / "a/p0001.png").write_bytes(picture(1))
    (tmp_path / "a/p0004.png").write_bytes(picture(4))
    assert write(dataset, out, count=3).counts["written"] == 6


def test_names_that_would_collide_are_refused(tmp_path: Path) -> None:
    photos = tmp_path / "a"
    dataset = captioned(photos, 0)
    (photos / "b").mkdir()
    for number, name in enumerate(("x.v2.png", "x_v2.png", "b/c.png", "b_c.png", "d.png", "d.webp")):
        (photos / name).write_bytes(picture(number))
        (photos / name).with_suffix(".txt").write_text("x")
    dataset.add(Folder(photos))
    with pytest.raises(CutlineError, match=r"(?s)nothing was written.*  d: d.png, d.webp.*names=number"):
        write(dataset, tmp_path / "out")
    with pytest.raises(CutlineError, match=r"  b_c: b/c.png, b_c.png"):
        write(dataset, tmp_path / "out", names="flat")
    assert not (tmp_path / "out").exists()
    assert write(dataset, tmp_path / "out", names="number").counts["written"] == 6
    assert read_back(tmp_path / "out")[0]["__key__"] == "000000000"


def test_tars_of_others_are_never_replaced(tmp_path: Path) -> None:
    dataset = captioned(tmp_path / "a", 2)
    make_tar(tmp_path / "out/00000.tar", {})
    before = tars(tmp_path / "out")
    with pytest.raises(CutlineError, match=r"00000\.tar"):
        write(dataset, tmp_path / "out")
    assert tars(tmp_path / "out") == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other/manifest.json").write_text('{"start_url": "/"}')
    with pytest.raises(CutlineError, match="empty folder"):
        write(dataset, tmp_path / "other")


def test_a_recipe_decides_the_text(tmp_path: Path) -> None:
    dataset = captioned(tmp_path / "a", 1)
    path = tmp_path / "r.toml"
    path.write_text('[captions]\nfirst_of = ["captions/sidecar"]\n[text]\norder = ["caption"]\n')
    export(dataset, WebDatasetExport(), tmp_path / "out", recipe=Recipe.from_toml(path))
    assert read_back(tmp_path / "out")[0]["txt"].decode() == "number 0, 猫"


def test_exports_that_name_files_say_so_of_archives(tmp_path: Path) -> None:
    from cutline.exports.kohya import Kohya
    from cutline.exports.metadata_jsonl import MetadataJsonl

    make_tar(tmp_path / "0.tar", {"a.png": picture(1), "a.txt": b"a cat"})
    dataset = Dataset(tmp_path)
    dataset.add(WebDataset(tmp_path))
    with pytest.raises(CutlineError, match="Export webdataset"):
        export(dataset, MetadataJsonl(pictures="copy"), tmp_path / "out", recipe=find_recipe(dataset, ""))
    manifest = export(dataset, Kohya(), tmp_path / "m.json", recipe=find_recipe(dataset, ""))
    assert "1 of these pictures are inside archives" in manifest.notes[0]
