"""Pictures inside tars: read in place, whatever befalls the tar."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from cutline import archives
from cutline.dataset import Dataset
from cutline.pictures import Picture, PictureError, inspect
from cutline.sources.folder import Folder
from cutline.sources.webdataset import WebDataset
from running import captions, cutline, echo, picture


def make_tar(path: Path, files: Mapping[str, bytes], *, kind: int = tarfile.PAX_FORMAT) -> Path:
    """A tar with these files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


NAMES = ["a.png", "./b.png", "deep/er/c.png", "n" * 200 + ".png", "猫 🐈.png"]


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_are_where_they_say(tmp_path: Path, kind: int) -> None:
    path = make_tar(tmp_path / "x.tar", {name: name.encode() * 40 for name in NAMES}, kind=kind)
    data = path.read_bytes()
    found = list(archives.members(path))
    assert [member.name for member in found] == [name.removeprefix("./") for name in NAMES]
    for member, name in zip(found, NAMES, strict=True):
        assert data[member.offset : member.offset + member.size] == name.encode() * 40


def test_only_files_are_members(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, kind in (("folder", tarfile.DIRTYPE), ("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.png"
            tar.addfile(info)
    assert list(archives.members(tmp_path / "x.tar")) == []


@pytest.mark.parametrize("cut", [1, 700, 1536, 2100])
def test_what_stands_before_the_cut_is_given_out(tmp_path: Path, cut: int) -> None:
    path = make_tar(tmp_path / "x.tar", {"a.png": b"x" * 900, "b.png": b"y" * 900})
    path.write_bytes(path.read_bytes()[:cut])
    walk = archives.members(path)
    if cut >= 1536:
        assert next(walk).name == "a.png"
    with pytest.raises(archives.Damaged, match=r"x\.tar is (cut off|damaged)"):
        next(walk)


def test_what_stands_before_garbage_is_given_out(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "x.tar", {"a.png": b"x" * 100, "b.png": b"y" * 100})
    data = bytearray(path.read_bytes())
    data[1024:1536] = os.urandom(512)
    path.write_bytes(data)
    walk = archives.members(path)
    assert next(walk).name == "a.png"
    with pytest.raises(archives.Damaged, match="damaged at byte 1,024"):
        next(walk)
    path.write_bytes(b"<html>" * 1000)
    with pytest.raises(archives.Damaged, match="no tar"):
        next(archives.members(path))


def test_holding(tmp_path: Path) -> None:
    make_tar(tmp_path / "odd.tar/x.TAR", {})
    assert archives.holding(tmp_path / "odd.tar/x.TAR/deep/a.png") == tmp_path / "odd.tar/x.TAR"
    assert archives.holding(tmp_path / "odd.tar/x.TAR") is None
    assert archives.holding(tmp_path / "gone.tar/a.png") is None


def test_a_picture_in_a_tar_is_read_and_watched(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "x.tar", {"a.png": picture(1), "b.png": picture(2)})
    member = list(archives.members(path))[1]
    seen = inspect(path / "b.png", member.offset, member.size)
    assert (seen.error, seen.width, seen.size) == (None, 8, member.size)
    known = Picture(path / "b.png", seen.size, seen.mtime_ns, seen.content, member.offset)
    assert known.read() == picture(2)
    assert known.decode().size == (8, 6)

    os.utime(path)  # touched, and still the same
    assert known.read() == picture(2)
    make_tar(path, {"a.png": picture(1) + b"longer" * 200, "b.png": picture(2)})
    with pytest.raises(PictureError, match="cutline add") as refusal:
        known.read()
    assert refusal.value.reason == "changed"
    path.write_bytes(path.read_bytes()[:100])
    for reason in ("truncated", "vanished"):
        with pytest.raises(PictureError) as refusal:
            known.read()
        assert refusal.value.reason == reason
        assert inspect(path / "b.png", member.offset, member.size).error == reason
        path.unlink(missing_ok=True)


def readable(dataset: Dataset) -> list[str]:
    return [key for (key,) in dataset.sql("select key from pictures where error is null order by key").fetchall()]


def test_members_come_and_go_with_their_tars(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    shards = tmp_path / "shards"
    make_tar(shards / "0.tar", {f"{n}.png": picture(n) for n in range(4)})
    make_tar(shards / "1.tar", {f"{n}.png": picture(n) for n in range(4, 9)})
    (tmp_path / "loose.png").write_bytes(picture(99))
    notes = dataset.add(Folder(tmp_path)).notes
    assert notes == {"tar, whose pictures are not read: add it, or a folder of tars, by its own name": 2}
    assert dataset.add(WebDataset(shards)).added == 9
    assert readable(dataset)[:2] == ["loose.png", "shards/0.tar/0.png"]
    assert dataset.picture("shards/1.tar/5.png").read() == picture(5)

    echo(dataset)
    said = captions(dataset)
    assert set(said) == set(readable(dataset))
    assert said["shards/0.tar/2.png"] == dataset.picture("shards/0.tar/2.png").content

    # Neither source has a say about what the other lists.
    assert dataset.add(Folder(tmp_path)).vanished == 0
    assert dataset.add(WebDataset(tmp_path)).as_dict()["unchanged"] == 9
    assert len(readable(dataset)) == 10

    # Made anew: one picture is other, one moved to another place in it, one is gone.
    make_tar(shards / "0.tar", {"9.png": picture(3), "0.png": picture(0), "1.png": picture(77)})
    report = dataset.add(WebDataset(shards))
    assert (report.changed, report.moved, report.vanished, report.unchanged) == (1, 1, 1, 6)
    assert captions(dataset)["shards/0.tar/9.png"] == said["shards/0.tar/3.png"]
    assert captions(dataset)["shards/0.tar/1.png"] is None

    (shards / "0.tar").unlink()
    report = dataset.add(WebDataset(shards))
    assert (report.vanished, report.unchanged) == (3, 5)
    assert len(readable(dataset)) == 6


def test_a_tar_that_was_cut_and_is_mended(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    path = make_tar(tmp_path / "0.tar", {f"{n}.png": picture(n) for n in range(6)})
    data = path.read_bytes()
    path.write_bytes(data[:6000])
    report = dataset.add(WebDataset(path))
    assert report.reasons == {"truncated": 1}
    assert report.added > 1
    assert any("0.tar is cut off" in note for note in report.notes)
    path.write_bytes(data)
    dataset.add(WebDataset(path))
    assert len(readable(dataset)) == 6


def test_the_command_line_knows_tars(tmp_path: Path) -> None:
    make_tar(tmp_path / "shards/0.tar", {"a.png": picture(1), "a.txt": b"a cat"})
    assert "shards (webdataset): 1 added" in cutline("add", tmp_path, tmp_path / "shards").stdout
    assert "(webdataset)" in cutline("add", tmp_path, tmp_path / "shards/0.tar").stdout
    (tmp_path / "x.tar.gz").write_bytes(b"\x1f\x8b")
    assert "gunzip" in cutline("add", tmp_path, tmp_path / "x.tar.gz", code=1).stderr
