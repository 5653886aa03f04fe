"""Dataset configs of kohya's trainers: read as they read them, refused where they refuse them, and taken in."""

from __future__ import annotations

import json
import random
import tomllib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cutline.compose.kohya import Subset
from cutline.dataset import Dataset
from cutline.formats.kohya_toml import ConfigError, check, folder_config, read
from cutline.options import CutlineError


def config(folder: Path, text: str, name: str = "config.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problems(folder: Path, text: str) -> dict[str, str]:
    """What is said of each place in a config, with the code in front."""
    found = check(config(folder, text))[1]
    return {problem.where: f"{problem.code}: {problem.what}" for problem in found}


FOLDER = '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "d"\n'
METADATA = '[[datasets]]\n[[datasets.subsets]]\nmetadata_file = "m.json"\n'


# -- levels ---------------------------------------------------------------------------------------------------


def test_a_setting_is_looked_up_from_near_to_far(tmp_path: Path) -> None:
    text = """
    [general]
    shuffle_caption = true
    keep_tokens = 1
    caption_prefix = "far"
    caption_extension = "txt"
    resolution = 512
    [[datasets]]
    keep_tokens = 2
    resolution = [768, 1024]
    enable_bucket = true
    validation_split = 0.25
    [[datasets.subsets]]
    image_dir = "one"
    keep_tokens = 3
    caption_prefix = ""
    num_repeats = 5
    [[datasets.subsets]]
    image_dir = "two"
    [[datasets]]
    [[datasets.subsets]]
    metadata_file = "m.json"
    """
    first, second = read(config(tmp_path, text)).datasets
    one, two = first.subsets
    assert (first.resolution, second.resolution) == ((768, 1024), (512, 512))
    assert (first.enable_bucket, first.validation_split, second.validation_split) == (True, 0.25, 0.0)
    assert one.options == {
        **{"shuffle_caption": True, "keep_tokens": 3, "caption_prefix": "", "caption_extension": "txt"},
    }
    assert one.others == {"num_repeats": 5}
    assert (two.options["keep_tokens"], two.options["caption_prefix"]) == (2, "far")
    assert (one.extension, two.where, second.where) == (".txt", "dataset 1, subset 2", "dataset 2")
    (metadata,) = second.subsets
    assert (metadata.kind, metadata.metadata_file, metadata.image_dir) == ("metadata", "m.json", None)
    assert "caption_extension" not in metadata.options
    for subset in (one, two, metadata):
        Subset(**subset.options)


def test_json_is_read_as_toml_is(tmp_path: Path) -> None:
    values = tomllib.loads(FOLDER)
    assert read(config(tmp_path, json.dumps(values), "c.json")).datasets == read(config(tmp_path, FOLDER)).datasets


def test_what_has_no_effect_in_general_is_told(tmp_path: Path) -> None:
    general = '[general]\ncaption_extension = ".txt"\n'
    assert read(config(tmp_path, general + METADATA)).idle == ("caption_extension in [general]",)
    assert read(config(tmp_path, general + FOLDER)).idle == ()


# -- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "where", "says"),
    [
        (f"{FOLDER}shufle_caption = true", "dataset 1, subset 1", "do you mean shuffle_caption?"),
        (f"{FOLDER}resolution = 512", "dataset 1, subset 1", "it may stand in [general] and [[datasets]]"),
        (f"[general]\nimage_dir = 'd'\n{FOLDER}", "[general]", "it may stand in [[datasets.subsets]]"),
        (f"[general]\nmax_token_length = 225\n{FOLDER}", "[general]", "--max_token_length 150 or 225"),
        (f"{METADATA}caption_extension = '.txt'", "dataset 1, subset 1", "unknown_key: 'caption_extension'"),
        (f"{METADATA}class_tokens = 'x'", "dataset 1, subset 1", "unknown_key: 'class_tokens'"),
        ('[[datasets]]\ncache_info = true\n[[datasets.subsets]]\nmetadata_file = "m"', "dataset 1", "no meaning"),
        (f"{METADATA}is_reg = true", "dataset 1, subset 1", "of pictures in folders"),
        (f"[general]\nvalidation_split = 0\n{FOLDER}", "[general]", "validation_split is 0, and must be a number with"),
        (f"{FOLDER}keep_tokens = 1.0", "dataset 1, subset 1", "must be a whole number"),
        (f"{FOLDER}shuffle_caption = 1", "dataset 1, subset 1", "must be true or false"),
        (f"{FOLDER}caption_prefix = 1", "dataset 1, subset 1", "must be text"),
        (f"{FOLDER}caption_dropout_rate = '0.1'", "dataset 1, subset 1", "must be a number"),
        (f"[general]\nresolution = [512]\n{FOLDER}", "[general]", "a list of two, [width, height]"),
        ("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 1", "dataset 1, subset 1", "missing_key: it has no image"),
        (f"{FOLDER}[[datasets.subsets]]\nmetadata_file = 'm'", "dataset 1", "mixed_subsets: "),
        ("[[datasets]]\nbatch_size = 1", "dataset 1", "nothing_to_train: it has no subsets"),
        ("[general]\nbatch_size = 1", "the top of the file", "nothing_to_train: it has no [[datasets]]"),
        (f"[genaral]\n{FOLDER}", "the top of the file", "do you mean general?"),
        ("datasets = 3", "datasets", "must be a list of tables"),
        ("general = 3", "[general]", "must be a table"),
    ],
)
def test_a_fault_is_named_with_its_place(tmp_path: Path, text: str, where: str, says: str) -> None:
    assert says in problems(tmp_path, text)[where]


@pytest.mark.parametrize(
    "text",
    [
        f"[general]\nvalidation_split = 0.0\nvalidation_seed = 1\n{FOLDER}",
        f"{FOLDER}caption_dropout_rate = 1\ntoken_warmup_step = 0.5\nkeep_tokens = true",
        f"{FOLDER}custom_attributes = {{ a = 1 }}\nface_crop_aug_range = [1.0, 2.0]\nalpha_mask = true\nis_reg = true",
        f"{METADATA}image_dir = 'd'\nalpha_mask = true",
        f"[general]\nclass_tokens = 'x'\ncaption_extension = '.txt'\ncache_info = true\n{METADATA}",
        f"{FOLDER}conditioning_data_dir = 'c'",
    ],
)
def test_what_the_trainers_allow_is_allowed(tmp_path: Path, text: str) -> None:
    assert problems(tmp_path, text) == {}


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    path = config(tmp_path, f"top = 1\n[general]\nkeep_tokens = 'x'\n{FOLDER}nothing = 1")
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert len(caught.value.problems) == 3
    assert all(place in str(caught.value) for place in ("'top'", "keep_tokens is", "dataset 1, subset 1: 'nothing'"))


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("c.toml", b"[[datasets", "is not TOML"),
        ("c.toml", b"a = '\xff'", "is not TOML"),
        ("c.json", b"{", "is not JSON"),
        ("c.json", b"[]", "not a JSON object"),
        ("c.yaml", b"", "by its suffix"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CutlineError, match=says):
        read(tmp_path / name)


def test_a_config_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CutlineError, match="cannot read"):
        read(tmp_path / "no.toml")


# -- folders --------------------------------------------------------------------------------------------------


def test_a_folder_is_what_train_data_dir_makes_of_it(tmp_path: Path) -> None:
    for name in ("10_sks girl", "3_", "words", "0_none", "2_a_b"):
        (tmp_path / name).mkdir()
    (dataset,) = folder_config(tmp_path).datasets
    assert [(subset.image_dir, dict(subset.options), dict(subset.others)) for subset in dataset.subsets] == [
        (str(tmp_path / "10_sks girl"), {"class_tokens": "sks girl"}, {"num_repeats": 10}),
        (str(tmp_path / "2_a_b"), {"class_tokens": "a_b"}, {"num_repeats": 2}),
        (str(tmp_path / "3_"), {}, {"num_repeats": 3}),
    ]


def test_a_plain_folder_is_one_subset(tmp_path: Path) -> None:
    (tmp_path / "words").mkdir()
    (subset,) = folder_config(tmp_path).datasets[0].subsets
    assert (subset.kind, subset.image_dir, subset.options) == ("folder", str(tmp_path), {})
    with pytest.raises(CutlineError, match="cannot read"):
        folder_config(tmp_path / "nothing")
