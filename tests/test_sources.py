"""Other people's formats, read: every picture and every word is a row or a note, and nothing stops a read half-way."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cutline import schemas, tags
from cutline.dataset import Source
from cutline.formats import sidecar, stream
from cutline.options import CutlineError, OptionError, fill
from cutline.sources.detect import detect
from cutline.sources.folder import Folder
from cutline.sources.imagefolder import ImageFolder
from cutline.sources.kohya import Kohya


class Read:
    """All that a source finds: rows by layer and name, and notes."""

    def __init__(self, source: Source) -> None:
        self.rows: dict[str, dict[str, dict[str, Any]]] = {}
        self.notes: Counter[str] = Counter()
        self.batches: list[int] = []
        for found in source.read():
            self.batches.append(len(found.batch))
            types = schemas.schema(found.layer)
            for field in found.batch.schema:
                assert field.name == "name" or field.type == types.field(field.name).type
            layer = self.rows.setdefault(found.layer, {})
            for row in found.batch.to_pylist():
                assert row["name"] not in layer
                layer[row.pop("name")] = row
            self.notes.update(found.notes)

    def __getitem__(self, layer: str) -> dict[str, dict[str, Any]]:
        return self.rows[layer]

    def texts(self, layer: str) -> dict[str, Any]:
        return {name: row["error"] or row["texts"] for name, row in self.rows[layer].items()}

    def tags(self, layer: str) -> dict[str, Any]:
        return {name: row["error"] or row["unsorted"] for name, row in self.rows[layer].items()}


def make(folder: Path, *names: str) -> Path:
    """A folder of tiny pictures."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(path, "PNG")
    return folder


# -- the rule for texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "text", "reason", "error"),
    [
        (b"a cat", "a cat", "", None),
        (b"\xef\xbb\xbfa cat", "a cat", "bom", None),
        (b"a cat\n", "a cat", "", None),
        (b"a cat\r\n", "a cat", "", None),
        (b"a cat \n", "a cat", "outer_space", None),
        (b"\xef\xbb\xbf \xef\xbb\xbf a\r\ncat\rsat\n\n", "a\ncat\nsat", "bom, crlf, outer_space", None),
        ("a\u2028b\x85c\x1cd\x0be\x0cf".encode(), "a\u2028b\x85c\x1cd\x0be\x0cf", "", None),
        (b"", None, "", None),
        (b" \r\n\t", None, "crlf, outer_space", None),
        (b"caf\xe9", None, "", "not_utf8"),
        (b"a\0b", None, "", "not_utf8"),
        ("ab".encode("utf-16"), None, "", "not_utf8"),
        (b"\xed\xa0\x80", None, "", "not_utf8"),
        (b"x" * (sidecar.LARGEST + 1), None, "", "too_large"),
    ],
)
def test_text_rule(data: bytes, text: str | None, reason: str, error: str | None) -> None:
    found = sidecar.read(data)
    assert (found.text, found.reason, found.error) == (text, reason, error)
    assert found.raw == (data.decode() if reason else None)
    assert bool(found.detail) == bool(error)


@given(st.text(alphabet=st.one_of(st.sampled_from("\ufeff \r\n\t\u2028\x85\x1cab"), st.characters())))
def test_text_rule_settles(raw: str) -> None:
    found = sidecar.clean(raw)
    if found.text is not None:
        assert sidecar.clean(found.text) == sidecar.Text(found.text)
        assert sidecar.read(sidecar.write(found.text)) == sidecar.Text(found.text)
        if not found.reason:
            assert raw in [found.text + end for end in ("", "\n", "\r\n", "\r")]
    elif found.error:
        assert "\0" in raw or as_marked(raw) != raw
    else:
        assert not raw.strip("\ufeff \r\n\t\u2028\x85\x1c") or not raw.replace("\ufeff", "").strip()


def test_tags_are_split_and_kept_as_typed() -> None:
    assert tags.split("1girl, long_hair ,,^_^\nHatsune Miku,\t;d, ") == [
        "1girl",
        "long_hair",
        "^_^",
        "Hatsune Miku",
        ";d",
    ]
    assert tags.split(" ,\n") == []


# -- folders --------------------------------------------------------------------------------------------------

HARD_NAMES = [
    "a.jpg",
    "trip/a.jpg",
    "x.v2.jpg",
    "x.v3.jpg",
    "with space.PNG",
    "two\nlines.webp",
    "cat 🐈.jpeg",
    "猫.jpg",
    "cafe\u0301.jpg",
    "caf\u00e9.jpg",
    "[dir]/[1] *?.jpg",
    "col:on.jpg",
    "quo\"te's.jpg",
    "back\\slash.jpg",
    "n" * 246 + ".jpg",
]


def test_folder_keeps_every_name(tmp_path: Path) -> None:
    make(tmp_path, *HARD_NAMES)
    for name in HARD_NAMES:
        (tmp_path / os.path.splitext(name)[0]).with_name(Path(name).stem + ".txt").write_text(f"words of {name!r}")
    source = Folder(tmp_path)
    found = Read(source)
    assert set(found["pictures"]) == set(HARD_NAMES)
    assert found.texts("captions/sidecar") == {name: [f"words of {name!r}"] for name in HARD_NAMES}
    assert not found.notes
    assert source.covers == tmp_path
    row = found["pictures"]["trip/a.jpg"]
    status = (tmp_path / "trip/a.jpg").stat()
    assert row == {
        "uri": f"{tmp_path}/trip/a.jpg",
        "offset": None,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "error": None,
        "detail": None,
    }


def test_folder_reports_what_it_repairs(tmp_path: Path) -> None:
    make(tmp_path, "bom.jpg", "empty.jpg", "good.jpg", "latin.jpg", "none.jpg")
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\r\n")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "good.TXT").write_bytes(b"good")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    found = Read(Folder(tmp_path))
    layer = found["captions/sidecar"]
    assert set(layer) == {"bom.jpg", "good.jpg", "latin.jpg"}
    assert layer["bom.jpg"]["verdict"] == "repaired"
    assert layer["bom.jpg"]["reason"] == "bom, crlf"
    assert layer["bom.jpg"]["raw"] == "\ufeffa\r\nb\r\n"
    assert (layer["good.jpg"]["verdict"], layer["good.jpg"]["raw"]) == ("good", None)
    assert layer["latin.jpg"]["error"] == "not_utf8"
    assert found.notes == {"empty caption": 1}


@pytest.mark.parametrize(("kind", "words"), [("captions", "from caption"), ("tags", "from txt")])
def test_folder_reads_one_sidecar_and_notes_the_rest(tmp_path: Path, kind: str, words: str) -> None:
    make(tmp_path, "x.jpg", "x.png", "x_generated.jpg")
    (tmp_path / "x.txt").write_text("from txt")
    (tmp_path / "x.TXT").write_text("from TXT")
    (tmp_path / "x.caption").write_text("from caption")
    (tmp_path / "y.txt").write_text("nobody's")
    (tmp_path / "x_combined.txt").write_text("nobody's")
    found = Read(fill(Folder, {"path": str(tmp_path), "sidecars": kind}))
    read = found.texts if kind == "captions" else found.tags
    assert read(f"{kind}/sidecar") == {"x.jpg": [words], "x.png": [words]}
    assert found.notes == {
        "sidecar not read, since the picture has another": 2,
        "sidecar without a picture": 2,
        "sidecar shared by pictures of one name": 1,
    }


def test_folder_tags(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf1girl, long_hair ,, Solo\r\n")
    (tmp_path / "b.txt").write_text(" , ")
    (tmp_path / "c.txt").write_bytes(b"\xff")
    found = Read(Folder(tmp_path, sidecars="tags"))
    assert found.tags("tags/sidecar") == {"a.jpg": ["1girl", "long_hair", "Solo"], "c.jpg": "not_utf8"}
    assert found.notes == {"tags repaired: bom": 1, "empty tags": 1}


def test_folder_walks_links_and_skips_the_hidden(tmp_path: Path) -> None:
    make(tmp_path / "in", "a.jpg", ".git/b.jpg", ".cutline/c.jpg", "._a.jpg")
    make(tmp_path / "out", "d.jpg", "deep/e.jpg")
    (tmp_path / "in/linked").symlink_to(tmp_path / "out")
    (tmp_path / "out/deep/up").symlink_to(tmp_path / "in")
    (tmp_path / "in/gone.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "in/folder.jpg").mkdir()
    found = Read(Folder(tmp_path / "in"))
    errors = {name: row["error"] for name, row in found["pictures"].items()}
    assert errors == {"a.jpg": None, "gone.jpg": "vanished", "linked/d.jpg": None, "linked/deep/e.jpg": None}
    assert found.notes == {"hidden picture": 1, "link to a folder that it is in": 1}


def test_folder_lists_what_cannot_be_read(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    (tmp_path / "film.MP4").write_bytes(b"x")
    (tmp_path / "film.txt").write_text("a film")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb") as handle:
        handle.write(b"x")
    (tmp_path / "notes.md").write_text("no picture")
    found = Read(Folder(tmp_path))
    errors = {name: row["error"] for name, row in found["pictures"].items()}
    assert errors == {"a.jpg": None, "film.MP4": "unsupported", "caf\\xe9.jpg": "bad_name"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folder_notes_a_folder_it_may_not_read(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "shut/b.jpg")
    (tmp_path / "shut").chmod(0)
    try:
        found = Read(Folder(tmp_path))
    finally:
        (tmp_path / "shut").chmod(0o700)
    assert set(found["pictures"]) == {"a.jpg"}
    assert list(found.notes) == ["folder that cannot be read (Permission denied): shut/"]


def test_every_layer_gets_a_batch(tmp_path: Path) -> None:
    assert {found.layer: len(found.batch) for found in Folder(tmp_path).read()} == {
        "pictures": 0,
        "captions/sidecar": 0,
    }
    (tmp_path / "metadata.jsonl").write_text("")
    layers = {found.layer for found in ImageFolder(tmp_path).read()}
    assert layers == {"pictures", "captions/imagefolder", "tags/imagefolder"}
    (tmp_path / "x.json").write_text("{}")
    layers = {found.layer for found in Kohya(tmp_path / "x.json", layer="old").read()}
    assert layers == {"pictures", "captions/old", "tags/old"}


def test_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(CutlineError, match="there is no folder"):
        list(Folder(tmp_path / "no").read())
    with pytest.raises(OptionError, match="sidecars"):
        fill(Folder, {"path": str(tmp_path), "sidecars": "poems"})


# -- imagefolder ----------------------------------------------------------------------------------------------

RECORDS = [
    {"file_name": "a.jpg", "text": 'one\nline, "quoted"', "label": "7"},
    {"file_name": "sub/b.jpg", "text": "NA", "label": "8"},
    {"file_name": "c.jpg", "text": " 123 ", "label": "9"},
    {"file_name": "gone.jpg", "text": "words all the same", "label": "1"},
    {"file_name": "a 🐈.jpg", "text": "", "label": "2"},
]


def write_metadata(path: Path, records: list[dict[str, Any]]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8-sig", newline="") as handle:
            writer = csv.DictWriter(handle, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    else:
        pq.write_table(pa.Table.from_pylist(records), path)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_imagefolder_is_the_same_in_every_form(tmp_path: Path, suffix: str) -> None:
    make(tmp_path, "a.jpg", "sub/b.jpg", "c.jpg", "a 🐈.jpg", "unlisted.jpg")
    (tmp_path / "a.txt").write_text("sidecars are not its business")
    write_metadata(tmp_path / f"metadata.{suffix}", RECORDS)
    source = ImageFolder(tmp_path)
    found = Read(source)
    assert source.covers == tmp_path
    assert set(found["pictures"]) == {"a.jpg", "sub/b.jpg", "c.jpg", "a 🐈.jpg", "unlisted.jpg"}
    assert found.texts("captions/imagefolder") == {
        "a.jpg": ['one\nline, "quoted"'],
        "sub/b.jpg": ["NA"],
        "c.jpg": ["123"],
        "gone.jpg": ["words all the same"],
    }
    assert found["captions/imagefolder"]["c.jpg"]["raw"] == " 123 "
    assert found.notes == {
        "column not read: label": 5,
        "metadata record whose picture is not there": 1,
        "empty caption": 1,
    }
    assert Read(ImageFolder(tmp_path / f"metadata.{suffix}")).rows == found.rows


def test_imagefolder_lists_tags_and_subfolders(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "sub/b.jpg", "sub/c.jpg")
    write_metadata(
        tmp_path / "metadata.jsonl",
        [{"file_name": "a.jpg", "captions": ["one ", "", "two"], "tags": ["x", "y, z"]}],
    )
    write_metadata(
        tmp_path / "sub/metadata.jsonl",
        [{"file_name": "b.jpg", "caption": "bee", "tags": "p, q"}, {"file_name": "..\\sub\\c.jpg", "text": "sea"}],
    )
    write_metadata(tmp_path / "sub/metadata.csv", [{"file_name": "b.jpg", "text": "not read"}])
    found = Read(ImageFolder(tmp_path))
    assert found.texts("captions/imagefolder") == {"a.jpg": ["one", "two"], "sub/b.jpg": ["bee"], "sub/c.jpg": ["sea"]}
    assert found.tags("tags/imagefolder") == {"a.jpg": ["x", "y", "z"], "sub/b.jpg": ["p", "q"]}
    assert json.loads(found["captions/imagefolder"]["a.jpg"]["raw"]) == ["one ", "", "two"]
    assert found.notes == {
        "metadata file not read, since its folder has another": 1,
        "empty caption": 1,
        "file name with backslashes": 1,
    }


def test_imagefolder_errors_are_rows(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg")
    lines = [
        b'\xef\xbb\xbf{"file_name": "a.jpg", "text": "fine"}',
        b'{"file_name": "b.jpg", "text": ',
        b"",
        b'{"file_name": "b.jpg", "text": {"not": "text"}}',
        b'["a.jpg"]',
        b'{"text": "whose?"}',
        b'{"file_name": "../../x.jpg", "text": "outside"}',
        b'{"file_name": "c.jpg", "text": "\\ud800 half"}',
        b'{"file_name": "\\ud800.jpg", "text": "no name"}',
        b'{"file_name": "d.jpg", "text": "caf\xe9"}',
        b'{"file_name": "e.jpg", "text": null}',
        b"[" * 100_000,
    ]
    (tmp_path / "metadata.jsonl").write_bytes(b"\n".join(lines))
    found = Read(ImageFolder(tmp_path))
    assert found.texts("captions/imagefolder") == {
        "a.jpg": ["fine"],
        "line 2 of metadata.jsonl": "bad_json",
        "b.jpg": "bad_value",
        "line 5 of metadata.jsonl": "bad_value",
        "line 6 of metadata.jsonl": "bad_name",
        "line 7 of metadata.jsonl": "bad_name",
        "c.jpg": "not_utf8",
        "line 9 of metadata.jsonl": "bad_name",
        "line 10 of metadata.jsonl": "not_utf8",
        "line 12 of metadata.jsonl": "bad_json",
    }
    assert found.notes["metadata record without a text"] == 1
    details = [row["detail"] for row in found["captions/imagefolder"].values() if row["error"]]
    assert all(details)


def test_imagefolder_csv_errors_are_rows(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    (tmp_path / "metadata.csv").write_bytes(b"file_name,text\na.jpg,fine\nb.jpg,caf\xe9\nc.jpg\nd.jpg,ok\n")
    found = Read(ImageFolder(tmp_path))
    texts = found.texts("captions/imagefolder")
    assert texts.pop("row 4 of metadata.csv") == "bad_csv"
    assert texts == {"a.jpg": ["fine"], "b.jpg": "not_utf8", "d.jpg": ["ok"]}


def test_imagefolder_column(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    write_metadata(tmp_path / "metadata.jsonl", [{"file_name": "a.jpg", "prompt": "p", "text": "t"}])
    assert Read(ImageFolder(tmp_path, text_column="prompt")).texts("captions/imagefolder") == {"a.jpg": ["p"]}
    with pytest.raises(CutlineError, match=r"no column blurb\. It has: prompt, text"):
        list(ImageFolder(tmp_path, text_column="blurb").read())
    write_metadata(tmp_path / "metadata.jsonl", [{"file_name": "a.jpg", "prompt": "p"}])
    with pytest.raises(CutlineError, match="-o text_column"):
        list(ImageFolder(tmp_path).read())
    (tmp_path / "metadata.jsonl").unlink()
    with pytest.raises(CutlineError, match="--from folder"):
        list(ImageFolder(tmp_path).read())
    (tmp_path / "metadata.parquet").write_bytes(b"PAR")
    with pytest.raises(CutlineError, match=r"cannot read .*metadata\.parquet"):
        list(ImageFolder(tmp_path).read())


# -- kohya ----------------------------------------------------------------------------------------------------


def kohya_file(path: Path, entries: dict[str, Any]) -> Path:
    """A metadata file as the merge scripts write it, or as JSON lines."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"image_path": key, **value}) + "\n" for key, value in entries.items()))
    else:
        path.write_text(json.dumps(entries, indent=2))
    return path


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_kohya_metadata(tmp_path: Path, suffix: str) -> None:
    make(tmp_path / "imgs", "1001.webp", "sub/img 3.jpg")
    path = kohya_file(
        tmp_path / f"meta.{suffix}",
        {
            "1001.webp": {"caption": "a girl\nsecond line ", "tags": "1girl, aqua_hair,^_^", "image_size": [4, 3]},
            str(tmp_path / "imgs/sub/img 3.jpg"): {"tags": "no_humans"},
            "gone.png": {"caption": "gone", "train_resolution": [64, 64]},
            "7866720": {"caption": "by its id"},
            "empty.png": {},
            "null.png": {"caption": None, "tags": ""},
            "list.png": {"caption": "fine", "tags": ["a", "b"]},
            "half.png": {"caption": "\ud83d half", "tags": "whole 🐈"},
        },
    )
    found = Read(Kohya(path, image_dir=tmp_path / "imgs"))
    assert set(found["pictures"]) == {"1001.webp", "sub/img 3.jpg"}
    assert found["pictures"]["sub/img 3.jpg"]["uri"] == f"{tmp_path}/imgs/sub/img 3.jpg"
    assert found.texts("captions/kohya") == {
        "1001.webp": ["a girl\nsecond line"],
        "gone.png": ["gone"],
        "7866720": ["by its id"],
        "list.png": ["fine"],
        "half.png": "not_utf8",
    }
    assert found.tags("tags/kohya") == {
        "1001.webp": ["1girl", "aqua_hair", "^_^"],
        "sub/img 3.jpg": ["no_humans"],
        "list.png": "bad_value",
        "half.png": ["whole 🐈"],
    }
    assert found.notes == {
        "entry without words": 1,
        "empty tags": 1,
        "field not read: image_size": 1,
        "entry whose picture is not there": 5,
        "entry named without a picture's extension, so not looked for": 1,
    }


def test_kohya_without_a_folder(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    path = kohya_file(tmp_path / "m.json", {"danbooru/7": {"caption": "x"}, str(tmp_path / "a.jpg"): {"caption": "y"}})
    found = Read(Kohya(path))
    assert set(found["pictures"]) == {str(tmp_path / "a.jpg")}
    assert set(found["captions/kohya"]) == {"danbooru/7", str(tmp_path / "a.jpg")}


def test_kohya_entries_of_wrong_shape(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text(
        '{"a.jpg": "a text", "b.jpg": ["x"], "c\\u0000.jpg": {"caption": "x"}, "d.jpg": {"caption": "fine"}}'
    )
    found = Read(Kohya(path))
    assert [row["error"] for row in found["captions/kohya"].values()] == ["bad_value", "bad_value", "bad_name", None]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": {"caption": "x"}, "b": {"caption": }}', "after entry 1, 'a'"),
        (b'{"a": {"caption": "x"}, "b": {"capt', "after entry 1, 'a'"),
        (b'{"a": {"caption": "caf\xe9"}}', "after its start"),
        (b'[{"caption": "x"}]', "not a JSON object"),
        (b"", "not a JSON object"),
    ],
)
def test_kohya_broken_json_is_refused_with_its_place(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(data)
    with pytest.raises(CutlineError, match=message) as refusal:
        list(Kohya(path).read())
    assert str(path) in str(refusal.value)


def test_kohya_broken_line_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(
        b'{"image_path": "a.jpg", "caption": "x"}\n{"image_path": \n{"image_path": "b.jpg", "caption": "y"}\n'
    )
    found = Read(Kohya(path))
    assert found.texts("captions/kohya") == {"a.jpg": ["x"], "line 2 of m.jsonl": "bad_json", "b.jpg": ["y"]}


def test_batches_are_bounded(tmp_path: Path) -> None:
    path = kohya_file(tmp_path / "m.json", {f"{n}.jpg": {"caption": f"c {n}", "tags": f"t{n}"} for n in range(25_000)})
    found = Read(Kohya(path))
    assert max(found.batches) == 10_000
    assert len(found["captions/kohya"]) == len(found["tags/kohya"]) == 25_000


@given(
    values=st.dictionaries(
        st.text(), st.text(alphabet=st.characters() | st.sampled_from('\ud800\udc00\udfff\udbff\\"u🐈'))
    ),
    ascii_only=st.booleans(),
    chunk=st.integers(1, 40),
)
def test_an_object_comes_in_whole_wherever_it_is_cut(values: dict[str, str], ascii_only: bool, chunk: int) -> None:
    text = json.dumps(values)
    if not ascii_only:
        text = text.replace("\\\\", "\\u005c").replace("\\ud83d\\udc08", "🐈")
    size, stream._CHUNK = stream._CHUNK, chunk
    try:
        reader = stream.Stream(io.BytesIO(text.encode()))
        assert [(name, reader.value()) for name in reader.pairs()] == list(json.loads(text).items())
        reader.end()
    finally:
        stream._CHUNK = size


def as_marked(text: str) -> str:
    return "".join("\0" if "\ud800" <= character <= "\udfff" else character for character in text)


# -- which source ---------------------------------------------------------------------------------------------


def test_detect(tmp_path: Path) -> None:
    plain, hub = make(tmp_path / "plain", "a.jpg"), make(tmp_path / "hub", "a.jpg")
    write_metadata(hub / "metadata.csv", [{"file_name": "a.jpg", "text": "x"}])
    assert detect(plain) == "folder"
    assert detect(hub) == detect(hub / "metadata.csv") == "imagefolder"
    assert detect(kohya_file(tmp_path / "meta_cap.json", {"a": {"caption": "x"}})) == "kohya"
    assert detect(kohya_file(tmp_path / "metadata.jsonl", {"a.jpg": {"caption": "x"}})) == "kohya"
    write_metadata(tmp_path / "metadata.jsonl", [{"file_name": "a.jpg", "text": "x"}])
    assert detect(tmp_path / "metadata.jsonl") == "imagefolder"


@pytest.mark.parametrize(
    ("name", "content"),
    [("coco.json", '{"info": {"year": 2017}}'), ("list.json", "[]"), ("x.csv", "a,b"), ("y.jsonl", "{}")],
)
def test_detect_says_what_can_be_said(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CutlineError, match=r"--from booru \| coco \| folder \| imagefolder \| kohya"):
        detect(tmp_path / name)
    with pytest.raises(CutlineError, match="there is no"):
        detect(tmp_path / "nothing")
