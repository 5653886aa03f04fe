"""The files that seed 000's scripts make of danbooru, made with the command line, against a truth written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pyarrow as pa
import pyarrow.parquet as pq

from running import cutline

GROUPS = ("artist", "character", "copyright", "general", "meta")


def posts(*rows: tuple[int, str, str, str, str, str]) -> pa.Table:
    """Danbooru's Parquet as pandas wrote it: id, artist, character, copyright, general, meta."""
    columns: dict[str, Any] = {"id": [row[0] for row in rows]}
    for place, group in enumerate(GROUPS, 1):
        tags = [str(row[place]) for row in rows]
        columns[f"tag_string_{group}"] = tags
        columns[f"tag_count_{group}"] = [len(text.split()) for text in tags]
    columns["tag_count"] = [sum(len(str(text).split()) for text in row[1:]) for row in rows]
    columns |= {"rating": ["g", "s", "q", "e", "g"][: len(rows)], "score": list(range(len(rows)))}
    return pa.table(columns)


def captions(*rows: tuple[int, str | None, str | None, str | None, str | None]) -> pa.Table:
    """What danbooru2023-prompt-gen-data.parquet has of captions: phi3v, pixtral, short and long ones of Florence."""
    names = ("phi3v_horny", "pixtral_caption", "florence_short", "florence_long")
    columns = {name: pa.array([row[place] for row in rows], pa.string()) for place, name in enumerate(names, 1)}
    lists = ("quality", "special", "general", "character", "copyright", "artist", "meta", "year", "rating")
    empty = {name: pa.array([[]] * len(rows), pa.list_(pa.string())) for name in lists}
    return pa.table({"index": [row[0] for row in rows], **columns, **empty})


def made(folder: Path) -> Path:
    """A dataset of all three sources."""
    pq.write_table(
        posts(
            (1, "kyogoku_shin", "kousaka_tamaki", "to_heart_(series) to_heart_2", "1girl ^_^ long_hair", "bad_id"),
            (9, "", "", "", "no_humans scenery", ""),
            (10, "a b", "", "original", 'don\'t_say_"lazy" o_o', "commentary highres"),
            (7866720, "", "saber_(fate)", "fate_(series)", "solo", ""),
            (8005009, "", "", "", "", ""),  # nothing at all is known of it
        ),
        folder / "metadata.parquet",
    )
    pq.write_table(
        captions(
            (1, "A girl.\nShe smiles.", None, "Short.", "Long text."),
            (9, None, None, None, None),
            (10, None, "Two.", None, 'They play "K-On".'),
            (7866720, None, None, "A knight.", None),
        ),
        folder / "danbooru2023-prompt-gen-data.parquet",
    )
    (folder / "meta_lat.json").write_text(
        json.dumps({"1": {"tags": "old", "train_resolution": [832, 1216]}, "10": {"train_resolution": [1024, 1024]}})
    )
    dataset = folder / "posts"
    dataset.mkdir()
    cutline("add", dataset, folder / "metadata.parquet")
    cutline("add", dataset, folder / "danbooru2023-prompt-gen-data.parquet")
    cutline("add", dataset, folder / "meta_lat.json", "-o", "layer=kohya")
    return dataset


TAGS = {
    "1": "kyogoku_shin, kousaka_tamaki, to_heart_(series), to_heart_2, 1girl, ^_^, long_hair, bad_id",
    "9": "no_humans, scenery",
    "10": 'a, b, original, don\'t_say_"lazy", o_o, commentary, highres',
    "7866720": "saber_(fate), fate_(series), solo",
}
CAPTIONS = {
    "1": "A girl. She smiles. Short. Long text.",  # the script deletes the line break: "A girl.She smiles."
    "10": 'Two. They play "K-On".',
    "7866720": "A knight.",
}
SIZES = {"1": [832, 1216], "10": [1024, 1024]}


def test_the_files_of_seed_000(tmp_path: Path) -> None:
    dataset = made(tmp_path)

    def export(name: str, recipe: str, *more: str) -> Any:
        cutline("export", dataset, "kohya", tmp_path / name, "--recipe", recipe, "-o", "legacy=true", *more)
        return json.loads((tmp_path / name).read_text("utf-8"))

    assert export("meta_cap_dd.json", "danbooru-tags") == {key: {"tags": text} for key, text in TAGS.items()}
    missing = json.loads((tmp_path / "missing.json").read_text())
    assert missing == {"tags": ["8005009"], "caption": [], "latent": []}

    assert export("meta_cap.json", "danbooru2023-captions") == {
        key: {"caption": text} for key, text in CAPTIONS.items()
    }

    whole = {
        key: {
            **({"caption": CAPTIONS[key]} if key in CAPTIONS else {}),
            "tags": TAGS[key],
            **({"train_resolution": SIZES[key]} if key in SIZES else {}),
        }
        for key in TAGS
    }
    assert export("meta_lat_v2.json", "danbooru") == whole
    assert json.loads((tmp_path / "missing.json").read_text()) == {
        "tags": ["8005009"],
        "caption": ["8005009", "9"],  # sorted as text, as keys are
        "latent": ["7866720", "8005009", "9"],
    }
    stands_in = {key: {"caption": TAGS[key], **entry} for key, entry in whole.items()}
    assert export("as_the_script.json", "danbooru", "-o", "caption_from_tags=true") == stands_in

    assert list(export("meta.json", "danbooru")) == sorted(TAGS)
    cutline("export", dataset, "kohya", tmp_path / "meta.jsonl", "--recipe", "danbooru", "-o", "apart=true")
    lines = [json.loads(line) for line in (tmp_path / "meta.jsonl").read_text("utf-8").splitlines()]
    assert lines == [{"image_path": key, **whole[key]} for key in sorted(whole)]


def test_the_parquet_loads_in_pandas(tmp_path: Path) -> None:
    dataset = made(tmp_path)
    cutline("export", dataset, "kohya", tmp_path / "meta.parquet", "--recipe", "danbooru", "-o", "apart=true")
    frame = pandas.read_parquet(tmp_path / "meta.parquet").set_index("image_path")
    assert list(frame.columns) == ["caption", "tags", "image_size", "train_resolution"]
    assert dict(frame["tags"]) == TAGS
    assert dict(frame["caption"].dropna()) == CAPTIONS
    assert {key: list(size) for key, size in frame["train_resolution"].dropna().items()} == SIZES
    assert frame["image_size"].isna().all()


def test_what_comes_out_goes_in(tmp_path: Path) -> None:
    """The seed's files as a source of another dataset, and out again."""
    dataset = made(tmp_path)
    out = tmp_path / "meta_lat.json"
    cutline("export", dataset, "kohya", out, "--recipe", "danbooru", "-o", "legacy=true")
    first = json.loads(out.read_text("utf-8"))
    again = tmp_path / "again"
    again.mkdir()
    cutline("add", again, out, "-o", "posts=true")
    cutline("export", again, "kohya", tmp_path / "second.json", "-o", "legacy=true")
    assert json.loads((tmp_path / "second.json").read_text("utf-8")) == first
