"""Faults of a kohya run found before it: each in a tiny dataset that has it, and not in one that has not."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cutline.compose.buckets import Buckets
from cutline.options import CutlineError
from cutline.preview.lint import Lint, lint
from cutline.preview.lint_rules import RULES, Finding
from running import cutline

ORACLES = Path(__file__).parent / "oracles" / "kohya"


class World:
    """A folder `d` of pictures with sidecars, or a metadata file, and a config that names them by absolute paths."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "d"
        self.folder.mkdir()

    def picture(self, name: str, words: str | bytes | None = None, size: tuple[int, int] = (64, 48)) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path, "PNG")
        if words is not None:
            path.with_suffix(".txt").write_bytes(words if isinstance(words, bytes) else words.encode())
        return path

    def config(self, subset: str = "", *, dataset: str = "", extension: str = ".txt", image_dir: str = "") -> Path:
        text = (
            f"[[datasets]]\n{dataset}\n[[datasets.subsets]]\nimage_dir = {json.dumps(image_dir or str(self.folder))}\n"
        )
        text += f"caption_extension = '{extension}'\n{subset}\n"
        (self.root / "config.toml").write_text(text, encoding="utf-8")
        return self.root / "config.toml"

    def metadata(
        self, entries: object, subset: str = "", *, dataset: str = "", image_dir: bool = True, name: str = "m.json"
    ) -> Path:
        (self.root / name).write_text(entries if isinstance(entries, str) else json.dumps(entries), encoding="utf-8")
        text = f"[[datasets]]\n{dataset}\n[[datasets.subsets]]\nmetadata_file = {json.dumps(str(self.root / name))}\n"
        text += f"image_dir = {json.dumps(str(self.folder))}\n" if image_dir else ""
        (self.root / "config.toml").write_text(f"{text}{subset}\n", encoding="utf-8")
        return self.root / "config.toml"


@pytest.fixture
def tiny_world(tmp_path: Path) -> World:
    return World(tmp_path)


def found(path: Path, **given: Any) -> dict[str, Finding]:
    """The findings by their codes."""
    findings = lint(path, **given).findings
    assert len({finding.code for finding in findings}) == len(findings)
    for finding in findings:
        assert finding.where
        assert finding.way_out
    return {finding.code: finding for finding in findings}


# -- options and texts of folders -----------------------------------------------------------------------------

Make = Callable[[World], Path]


def words(text: str | bytes | None, subset: str = "", **given: str) -> Make:
    """A dataset of one picture."""

    def make(world: World) -> Path:
        world.picture("a.png", text)
        return world.config(subset, **given)

    return make


SHUFFLED = "shuffle_caption = true\n"
FOLDERS: dict[str, tuple[Make, Make, bool]] = {
    # code: a dataset with the fault, one without it, whether something is lost
    "keep_separator_leaks": (
        words("a ||| b", "keep_tokens_separator = '|||'"),
        words("a ||| b", f"{SHUFFLED}keep_tokens_separator = '|||'"),
        True,
    ),
    "keep_tokens_idle": (words("a, b", "keep_tokens = 1"), words("a, b", f"{SHUFFLED}keep_tokens = 1"), False),
    "keep_tokens_ignored": (
        words("a ||| b", f"{SHUFFLED}keep_tokens = 1\nkeep_tokens_separator = '|||'"),
        words("a, b", f"{SHUFFLED}keep_tokens = 1"),
        False,
    ),
    "prefix_fuses": (
        words("1girl, solo", "caption_prefix = 'masterpiece'"),
        words("1girl, solo", "caption_prefix = 'masterpiece, '\ncaption_suffix = ', from side'"),
        True,
    ),
    "prefix_first_line": (
        words("a\nb", "enable_wildcard = true\ncaption_prefix = 'best,'"),
        words("a", "enable_wildcard = true\ncaption_prefix = 'best,'"),
        True,
    ),
    "every_n_with_workers": (words("a", "caption_dropout_every_n_epochs = 1000"), words("a"), True),
    "separator_not_comma": (
        words("a; b", f"{SHUFFLED}caption_separator = ';'"),
        words("a, b", f"{SHUFFLED}caption_separator = ', '"),
        False,
    ),
    "separator_odd": (words("a; b", "caption_separator = ';'"), words("a, b", "caption_separator = ','"), False),
    "separator_empty": (
        words("a, b", f"{SHUFFLED}caption_separator = ''"),
        words("a, b", "caption_separator = ''"),
        True,
    ),
    "separator_backslash": (words("a", r"caption_separator = '\n'"), words("a", r'caption_separator = "\n"'), True),
    "lines_lost": (words("a\nb"), words("a\n\n"), True),
    "leftovers": (words("a {red|blue} cat"), words("a {red|blue} cat", "enable_wildcard = true"), True),
    "bom": (words(b"\xef\xbb\xbf1girl"), words(b"1girl"), True),
    "empty_first_line": (words("\na"), words("a"), True),
    "no_sidecar": (words(None), words(None, "class_tokens = 'sks'"), True),
    "extension_mismatch": (words("a", extension=".caption"), words("a", extension="txt"), True),
    "zero_byte": (words(b""), words(b"\n"), True),
    "not_utf8": (words(b"caf\xe9"), words("café"), True),
    "no_repeats": (words("a", "num_repeats = 0"), words("a", "num_repeats = 1"), True),
    "validation_overlap": (
        words("a", dataset="validation_split = 0.3"),
        words("a", dataset="validation_split = 0.3\nvalidation_seed = 7"),
        True,
    ),
    "cache_info_split": (
        words("a", "cache_info = true", dataset="validation_split = 0.3\nvalidation_seed = 7"),
        words("a", dataset="validation_split = 0.3\nvalidation_seed = 7"),
        True,
    ),
    "bucket_bounds": (
        words("a", dataset="resolution = 1536\nenable_bucket = true"),
        words("a", dataset="resolution = 1536\nenable_bucket = true\nmax_bucket_reso = 2048"),
        True,
    ),
    "no_resolution": (words("a"), words("a", dataset="resolution = 512"), False),
    "no_buckets": (
        words("a", dataset="resolution = 512"),
        words("a", dataset="resolution = [512, 384]"),
        False,
    ),
    "idle_key": (
        lambda world: _with_general(world.metadata({})),
        lambda world: _with_general(world.config()),
        False,
    ),
}


def _with_general(path: Path) -> Path:
    path.write_text(f"[general]\ncaption_extension = '.txt'\n{path.read_text()}")
    return path


@pytest.mark.parametrize("code", FOLDERS)
def test_a_fault_is_found_where_it_is(code: str, tiny_world: World) -> None:
    finding = found(FOLDERS[code][0](tiny_world))[code]
    assert finding.lost is FOLDERS[code][2]


@pytest.mark.parametrize("code", FOLDERS)
def test_and_not_where_it_is_not(code: str, tiny_world: World) -> None:
    assert code not in found(FOLDERS[code][1](tiny_world))


def test_a_dataset_without_a_fault_has_no_finding(tiny_world: World) -> None:
    for name in "abc":
        tiny_world.picture(f"{name}.png", "1girl, solo, :|, |_|")
    config = tiny_world.config(SHUFFLED, dataset="resolution = 64\nenable_bucket = true\nmin_bucket_reso = 32")
    assert lint(config).findings == ()


def test_a_fault_without_a_case_among_the_texts_is_no_loss(tiny_world: World) -> None:
    tiny_world.picture("a.png", "a cat on a mat")
    made = found(tiny_world.config("caption_prefix = 'A picture of'\nkeep_tokens_separator = '|||'"))
    assert not made["prefix_fuses"].lost
    assert not made["keep_separator_leaks"].lost


def test_a_prefix_before_a_sentence_is_no_loss(tiny_world: World) -> None:
    tiny_world.picture("a.png", "a dog on a beach, at night")
    fuses = "caption_prefix = 'a photo of'\n"
    assert not found(tiny_world.config(fuses))["prefix_fuses"].lost
    assert found(tiny_world.config(f"{fuses}{SHUFFLED}"))["prefix_fuses"].lost


def test_bucket_steps_of_nothing(tiny_world: World) -> None:
    dataset = "resolution = 512\nenable_bucket = true\nbucket_reso_steps = 0"
    assert "bucket_reso_steps to 64" in found(tiny_world.config(dataset=dataset))["bucket_bounds"].way_out


@pytest.mark.parametrize(
    ("text", "subset", "signs"),
    [
        ("a ||| b", "", r"\|\|\|"),
        ("a;;;b", "", ";;;"),
        ("red | blue", "", r"\|"),
        (r"one\nline", "", r"\\n"),
        (r"A cat.\n\nIt sleeps", "", r"\\n"),
        ("a {red} cat", "", r"\{ \}"),
        ("{red, green|blue}", "", r"\{"),
        ("{a|{b|c} dog}", "enable_wildcard = true", r"\}"),
        ("{a|{b|c}}", "enable_wildcard = true", r"\{"),
    ],
)
def test_signs_that_nothing_reads(tiny_world: World, text: str, subset: str, signs: str) -> None:
    tiny_world.picture("a.png", text)
    assert re.search(rf"a\.png \({signs}", found(tiny_world.config(subset))["leftovers"].what)


@pytest.mark.parametrize(
    ("text", "subset"),
    [
        (">:|, |_|, ||_||, \\||/", ""),
        (r"1girl, \n/, \m/, solo, :{, {}, ;}, hat", ""),
        (r"she does \n/ with both hands, a face :{ and {} here", "enable_wildcard = true"),
        ("{{literal}} {a|b}", "enable_wildcard = true"),
        ("a ||| b, c", f"{SHUFFLED}keep_tokens_separator = '|||'"),
        ("a;;;b", "secondary_separator = ';;;'"),
    ],
)
def test_signs_that_are_tags_or_are_read(tiny_world: World, text: str, subset: str) -> None:
    tiny_world.picture("a.png", text)
    assert "leftovers" not in found(tiny_world.config(subset))


def test_workers(tiny_world: World) -> None:
    tiny_world.picture("a.png", "a, b")
    path = tiny_world.config(f"{SHUFFLED}caption_dropout_every_n_epochs = 2")
    assert "every_n_with_workers" not in found(path, workers=0)
    assert "shared_random" not in found(path, workers=1)
    assert "4 workers" in found(path, workers=4)["shared_random"].what


@pytest.mark.parametrize("given", [75, 255, 0])
def test_token_lengths_that_no_trainer_knows(tiny_world: World, given: int) -> None:
    path = tiny_world.config()
    assert str(given) in found(path, max_token_length=given)["max_token_length"].what
    assert "max_token_length" not in found(path, max_token_length=225)


# -- text-encoder caches --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "subset",
    [
        "enable_wildcard = true",
        "caption_prefix = 'a,'",
        "caption_suffix = ', a'",
        "caption_dropout_every_n_epochs = 2",
        "secondary_separator = ';;;'",
        "keep_tokens_separator = '|||'",
    ],
)
def test_what_a_text_encoder_cache_ignores(tiny_world: World, subset: str) -> None:
    tiny_world.picture("a.png", "a")
    path = tiny_world.config(subset)
    finding = found(path, cache_text=True)["te_cache_ignores"]
    assert (finding.lost, subset.split()[0] in finding.what) == (True, True)
    assert "te_cache_ignores" not in found(path)


@pytest.mark.parametrize("subset", [SHUFFLED, "caption_dropout_rate = 0.1", "token_warmup_step = 5"])
def test_what_the_trainers_refuse_beside_a_text_encoder_cache(tiny_world: World, subset: str) -> None:
    tiny_world.picture("a.png", "a")
    path = tiny_world.config(subset)
    assert "te_cache_refused" in found(path, cache_text=True)
    assert "te_cache_refused" not in found(path)


def test_lines_in_a_text_encoder_cache(tiny_world: World) -> None:
    tiny_world.picture("a.png")
    path = tiny_world.metadata({"a.png": {"caption": "one\ntwo"}})
    assert found(path, cache_text=True)["te_cache_lines"].lost
    assert "te_cache_lines" not in found(path)


@pytest.mark.parametrize("cache", ["a_te_outputs.npz", "a_flux_te.npz", "a_sd3_te.npz"])
def test_a_stale_text_encoder_cache(tiny_world: World, cache: str) -> None:
    picture = tiny_world.picture("a.png", "edited")
    path = tiny_world.config()
    assert not {"te_cache_older", "te_cache_unknown"} & set(found(path, cache_text=True))
    (tiny_world.folder / cache).write_bytes(b"")
    os.utime(tiny_world.folder / cache, ns=(1000, picture.with_suffix(".txt").stat().st_mtime_ns - 1))
    assert found(path, cache_text=True)["te_cache_older"].lost
    assert not found(path)["te_cache_older"].lost
    os.utime(tiny_world.folder / cache, ns=(1000, picture.with_suffix(".txt").stat().st_mtime_ns + 1))
    assert "te_cache_unknown" in found(path, cache_text=True)


def test_of_several_text_encoder_caches_the_stale_one_is_told(tiny_world: World) -> None:
    picture = tiny_world.picture("a.png", "edited")
    tiny_world.picture("a_flux.png", "edited")
    edited = picture.with_suffix(".txt").stat().st_mtime_ns
    for cache, age in (("a_sd3_te", 1), ("a_te_outputs", -1), ("a_flux_te", 1), ("a_flux_te_outputs", 10**12)):
        (tiny_world.folder / f"{cache}.npz").write_bytes(b"")
        os.utime(tiny_world.folder / f"{cache}.npz", ns=(1000, edited + age))
    made = found(tiny_world.config(), cache_text=True)
    assert made["te_cache_older"].what.endswith(": a_te_outputs.npz")
    assert made["te_cache_unknown"].what.endswith(": a_flux_te_outputs.npz")  # of a_flux.png


def test_a_text_encoder_cache_older_than_the_metadata(tiny_world: World) -> None:
    tiny_world.picture("a.png")
    path = tiny_world.metadata({"a.png": {"caption": "a"}})
    cache = tiny_world.folder / "a_te_outputs.npz"
    cache.write_bytes(b"")
    os.utime(cache, ns=(0, 0))
    assert found(path, cache_text=True)["te_cache_older"].lost


# -- folders --------------------------------------------------------------------------------------------------


def test_a_sidecar_of_another_name(tiny_world: World) -> None:
    tiny_world.picture("x_y_z_w_v/img1.png")
    folder = tiny_world.folder / "x_y_z_w_v"
    (tiny_world.folder / "x.txt").write_text("unrelated")
    finding = found(tiny_world.config(image_dir=str(folder)))["underscore_fallback"]
    assert (finding.lost, "x.txt" in finding.what) == (True, True)
    (folder / "img1.txt").write_text("own")
    assert "underscore_fallback" not in found(tiny_world.config(image_dir=str(folder)))


def test_a_cut_out_face_has_the_words_of_its_picture(tiny_world: World) -> None:
    tiny_world.picture("img_10_20_30_40.png")
    (tiny_world.folder / "img.txt").write_text("from base name")
    assert not found(tiny_world.config())["underscore_fallback"].lost


def test_pictures_that_the_trainers_do_not_see(tiny_world: World) -> None:
    for name in ("a.png", "b.PNG", "c.Png", "d.gif"):
        tiny_world.picture(name, "a")
    finding = found(tiny_world.config())["missed_extension"]
    assert finding.what.startswith("2 pictures")
    assert "c.Png; d.gif" in finding.what
    assert lint(tiny_world.config()).pictures == 2


def test_sub_folders_are_not_read(tiny_world: World) -> None:
    tiny_world.picture("a.png", "a")
    (tiny_world.folder / "empty").mkdir()
    assert "subfolders" not in found(tiny_world.config())
    tiny_world.picture("deep/er/b.png", "b")
    assert "1 sub-folder with pictures that are not read" in found(tiny_world.config())["subfolders"].what


def test_a_picture_that_cannot_be_opened(tiny_world: World) -> None:
    tiny_world.picture("a.png", "a")
    assert "unreadable_picture" not in found(tiny_world.config())
    (tiny_world.folder / "b.png").write_bytes(b"no picture")
    assert found(tiny_world.config())["unreadable_picture"].lost


def test_folders_for_train_data_dir(tiny_world: World) -> None:
    for name in ("10_sks girl/a.png", "others/b.png", "c.png"):
        tiny_world.picture(name, "1girl")
    made = found(tiny_world.folder)
    assert "others" in made["subfolders"].what
    assert "c.png" in made["beside_numbered"].what
    assert "extension_mismatch" in made  # without --caption_extension they look for .caption
    assert lint(tiny_world.folder).pictures == 1


def test_a_plain_folder(tiny_world: World) -> None:
    tiny_world.picture("a.png").with_suffix(".caption").write_text("a cat")
    assert set(found(tiny_world.folder)) == {"no_resolution"}
    assert lint(tiny_world.folder, resolution=(64, 48)).findings == ()


def test_a_plain_folder_of_another_extension(tiny_world: World) -> None:
    tiny_world.picture("a.png", "1girl")
    assert "extension_mismatch" in found(tiny_world.folder)
    assert lint(tiny_world.folder, resolution=(64, 48), caption_extension="txt").findings == ()
    with pytest.raises(CutlineError, match="is for a folder"):
        lint(tiny_world.config(), caption_extension=".txt")


def test_an_empty_folder_and_a_missing_one(tiny_world: World) -> None:
    assert "no_pictures" in found(tiny_world.config())
    assert "missing_folder" in found(tiny_world.config(image_dir=str(tiny_world.root / "nothing")))


def test_a_relative_path_that_leads_nowhere_from_here(tiny_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_world.picture("a.png", "a")
    path = tiny_world.config(image_dir="d")
    monkeypatch.chdir(tiny_world.root.parent)
    made = lint(path)
    assert "relative_path" in {finding.code for finding in made.findings}
    assert made.pictures == 1
    monkeypatch.chdir(tiny_world.root)
    assert "relative_path" not in found(path)


def test_a_subset_said_twice(tiny_world: World) -> None:
    tiny_world.picture("a.png", "a")
    path = tiny_world.config()
    assert "subset_twice" not in found(path)
    path.write_text(f"{path.read_text()}\n[[datasets.subsets]]\nimage_dir = {json.dumps(str(tiny_world.folder))}\n")
    assert "subset_twice" in found(path)
    assert lint(path).pictures == 1


def test_a_picture_in_two_subsets_of_a_dataset(tiny_world: World) -> None:
    tiny_world.picture("a.png")
    first = tiny_world.metadata({"a.png": {"caption": "a"}, "b.png": {"caption": "b"}}).read_text()
    second = tiny_world.metadata({"a.png": {"tags": "cat"}, "c.png": {"tags": "c"}}, name="n.json")
    apart = f"{first}{second.read_text()}"
    second.write_text(apart)
    assert "same_picture" not in found(second)
    second.write_text(apart.replace("[[datasets]]", "").join(("[[datasets]]", "")))
    finding = found(second)["same_picture"]
    assert (finding.lost, finding.where) == (True, "dataset 1, subset 2")
    assert "1 picture that" in finding.what
    assert finding.what.endswith(": a.png")


def test_a_folder_written_in_two_ways(tiny_world: World) -> None:
    tiny_world.picture("a.png", "a")
    path = tiny_world.config()
    path.write_text(f"{path.read_text()}\n[[datasets.subsets]]\nimage_dir = {json.dumps(f'{tiny_world.folder}/')}\n")
    assert found(path)["same_picture"].lost


# -- metadata_cache.json and validation -----------------------------------------------------------------------


def cache_of(world: World, **texts: str) -> None:
    entries = {
        str(world.folder / f"{name}.png"): {"caption": text, "resolution": [64, 48]} for name, text in texts.items()
    }
    (world.folder / "metadata_cache.json").write_text(json.dumps(entries))


def test_metadata_cache(tiny_world: World) -> None:
    for name in "abc":
        tiny_world.picture(f"{name}.png", f"caption of {name}")
    path = tiny_world.config("cache_info = true")
    codes = {"cache_info_stale", "cache_info_part", "cache_info_gone", "cache_info_split"}
    assert not codes & set(found(path))
    cache_of(tiny_world, a="caption of a", b="caption of b", c="caption of c")
    assert not codes & set(found(path))
    cache_of(tiny_world, a="before it was edited", b="caption of b", d="gone")
    made = found(path)
    assert {code: made[code].what.rpartition(": ")[2] for code in codes & set(made)} == {
        "cache_info_stale": "a.png",
        "cache_info_part": "c.png",
        "cache_info_gone": "d.png",
    }
    assert not codes & set(found(tiny_world.config("cache_info = false")))
    split = tiny_world.config("cache_info = true", dataset="validation_split = 0.3\nvalidation_seed = 7")
    assert "is there already" in found(split)["cache_info_split"].what


@pytest.mark.parametrize(
    ("count", "share", "overlap"),
    [(10, 0.15, True), (10, 0.3, False), (10, 0.25, False), (3, 0.2, True), (4, 0.5, False)],
)
def test_validation_rounded_twice(tiny_world: World, count: int, share: float, overlap: bool) -> None:
    for number in range(count):
        tiny_world.picture(f"{number}.png", "a")
    made = found(tiny_world.config(dataset=f"validation_split = {share}\nvalidation_seed = 7"))
    assert ("validation_rounding" in made) is overlap
    regularisation = tiny_world.config("is_reg = true", dataset=f"validation_split = {share}\nvalidation_seed = 7")
    assert "validation_rounding" not in found(regularisation)


@pytest.mark.parametrize(
    ("share", "code"), [(0.05, "validation_none"), (1.5, "validation_share"), (-0.5, "validation_share")]
)
def test_a_share_by_which_nothing_is_validated(tiny_world: World, share: float, code: str) -> None:
    for number in range(10):
        tiny_world.picture(f"{number}.png", "a")
    seed = "validation_seed = 7"
    assert found(tiny_world.config(dataset=f"validation_split = {share}\n{seed}"))[code].lost
    assert code not in found(tiny_world.config(dataset=f"validation_split = 0.1\n{seed}"))


# -- metadata -------------------------------------------------------------------------------------------------

A = {"image_size": [64, 48]}
METADATA: dict[str, tuple[Any, Any, str, bool]] = {
    # code: an entry of a.png with the fault, one without it, options of the subset, whether something is lost
    "wildcard_tag_only": ({"tags": "a, b"}, {"caption": "a", "tags": "b"}, "enable_wildcard = true", True),
    "tags_after_newline": ({"caption": "a\nb", "tags": "c"}, {"caption": "a b", "tags": "c"}, "", True),
    "lines_lost": ({"caption": "a\nb"}, {"caption": "a\n"}, "", True),
    "blank_line_drawn": ({"caption": "a\n\nb"}, {"caption": "a\nb"}, "enable_wildcard = true", True),
    "trailing_separator": ({"caption": "a", "tags": ""}, {"caption": "a"}, "enable_wildcard = true", False),
    "leftovers": ({"caption": "a\rb"}, {"caption": "a b"}, "", True),
    "doubled": ({"caption": "a, b", "tags": "a,b"}, {"caption": "a, b", "tags": "b"}, "", True),
    "empty_entry": ({}, {"caption": "a"}, "", True),
    "empty_first_line": ({"caption": "\na"}, {"caption": "a"}, "", True),
    "not_text": ({"tags": ["a", "b"]}, {"tags": "a, b"}, "", True),
    "bad_image_size": ({"caption": "a", "image_size": [64]}, {"caption": "a"}, "", True),
    "ignored_fields": ({"caption": "a", "train_resolution": [64, 64]}, {"caption": "a"}, "", False),
    "no_image_size": ({"caption": "a", "image_size": None}, {"caption": "a"}, "", False),
}


@pytest.mark.parametrize("code", METADATA)
def test_a_fault_of_an_entry_is_found(code: str, tiny_world: World) -> None:
    tiny_world.picture("a.png")
    bad, good, subset, lost = METADATA[code]
    finding = found(tiny_world.metadata({"a.png": {**A, **bad}}, subset))[code]
    assert finding.lost is lost
    lines = json.dumps({"image_path": "a.png", **A, **bad})
    assert code in found(tiny_world.metadata(lines, subset, name="m.jsonl"))
    assert code not in found(tiny_world.metadata({"a.png": {**A, **good}}, subset))


def test_metadata_without_a_fault(tiny_world: World) -> None:
    tiny_world.picture("a.png")
    path = tiny_world.metadata({"a.png": {"caption": "a cat", "tags": "cat", **A}}, dataset="resolution = [64, 48]")
    assert set(found(path, cache_latents=True)) == {"memory"}


def test_a_line_break_as_separator_means_one_or_the_other(tiny_world: World) -> None:
    tiny_world.picture("a.png")
    entries = {"a.png": {"caption": "a cat", "tags": "cat"}}
    assert "tags_after_newline" in found(tiny_world.metadata(entries, r'caption_separator = "\n"'))
    drawn = tiny_world.metadata(entries, 'caption_separator = "\\n"\nenable_wildcard = true')
    assert "tags_after_newline" not in found(drawn)


def test_latents_must_be_cached(tiny_world: World) -> None:
    tiny_world.picture("a.png", "a")
    path = tiny_world.metadata({"a.png": {"caption": "a"}})
    assert found(path)["no_latents_cache"].lost
    assert "no_latents_cache" not in found(path, cache_latents=True)
    assert "no_latents_cache" not in found(tiny_world.config())


def test_validation_of_metadata_is_ignored(tiny_world: World) -> None:
    tiny_world.picture("a.png")
    path = tiny_world.metadata({"a.png": {"caption": "a"}}, dataset="validation_split = 0.5")
    made = found(path)
    assert made["validation_ignored"].lost
    assert "validation_overlap" not in made


def test_memory_and_time_are_told(tiny_world: World) -> None:
    entries = {f"{number}.png": {"caption": "a"} for number in range(9000)}
    for number in range(9000):
        (tiny_world.folder / f"{number}_0064x0064_sdxl.npz").touch()
    made = found(tiny_world.metadata(entries))
    assert "10.7 MB (while loading 19.3 MB)" in made["memory"].what
    assert "about 1 s" in made["no_image_size"].what
    sized = found(tiny_world.metadata({name: {**entry, **A} for name, entry in entries.items()}))
    assert "no_image_size" not in sized


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"a.png": {"caption": "a"', "broken_metadata"),
        ("[]", "broken_metadata"),
        ('\ufeff{"a.png": {"caption": "a"}}', "metadata_bom"),
        ('{"a.png": "a"}', "bad_entries"),
        ('{"caption": ["a"]}', "bad_entries"),
        ("{}", "no_pictures"),
    ],
)
def test_metadata_that_no_trainer_loads(tiny_world: World, text: str, code: str) -> None:
    tiny_world.picture("a.png")
    assert found(tiny_world.metadata(text))[code].lost
    assert code not in found(tiny_world.metadata({"a.png": {"caption": "a"}}))


def test_metadata_that_is_not_there(tiny_world: World) -> None:
    path = tiny_world.metadata({})
    (tiny_world.root / "m.json").unlink()
    assert "missing_metadata" in found(path)


# -- which metadata can be loaded -----------------------------------------------------------------------------

PICTURES = {"1001.webp": (1024, 768), "img 3.jpg": (300, 200), "1002.png": (640, 1280), "sub/2001.png": (512, 512)}
STOPS = {"stem_keys", "no_image_dir", "missing_pictures", "npz_opened_as_image", "not_text", "broken_metadata"}
CASES = json.loads((ORACLES / "metadata_load_results.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_what_the_trainers_can_load(tiny_world: World, case: dict[str, Any]) -> None:
    """The files of the oracle, made again around pictures of the sizes that it was recorded with."""
    for name, size in PICTURES.items():
        tiny_world.picture(name, size=size)
    keys = {
        "02_caption_and_tags_stem.json": ["img 3", "1001", "1002"],
        "09_lat_stem.json": ["img 3", "1001", "1002"],
        "04_caption_and_tags_full.json": [str(tiny_world.folder / name) for name in PICTURES],
        "06_relative_full.json": [name for name in PICTURES if "/" not in name],
    }[case["file"]]
    for name, (width, height) in list(PICTURES.items())[:3]:
        if "old style" in case["case"]:
            (tiny_world.folder / name).with_suffix(".npz").touch()
        elif "new style" in case["case"]:
            (tiny_world.folder / f"{Path(name).stem}_{width:04}x{height:04}_sdxl.npz").touch()
    path = tiny_world.metadata(
        {key: {"caption": "a girl", "tags": "1girl"} for key in keys},
        dataset="resolution = 1024\nenable_bucket = true\nmax_bucket_reso = 1024",
        image_dir=case["image_dir"] is not None,
    )
    placed: dict[str, list[int]] = {}
    cached = "no latents strategy" not in case["case"]
    made = lint(path, cache_latents=cached, each=lambda name, _, bucket: placed.update({name: list(bucket)}))
    stops = {finding.code for finding in made.findings if finding.lost} & {*STOPS, "no_latents_cache"}
    assert bool(stops) is not case["ok"], stops
    if case["ok"]:
        folder = str(tiny_world.folder)
        recorded = {name.replace("/data/imgs", folder): bucket for name, bucket in case["buckets"].items()}
        assert placed == recorded


def test_stems_with_sizes_and_latents_can_be_loaded(tiny_world: World) -> None:
    (tiny_world.folder / "7_0064x0048_sdxl.npz").touch()
    path = tiny_world.metadata({"7": {"caption": "a", **A}})
    assert "stem_keys" not in found(path)
    (tiny_world.folder / "7_0064x0048_sdxl.npz").unlink()
    assert "stem_keys" in found(path)


def test_latents_in_the_place_of_a_picture(tiny_world: World) -> None:
    picture = tiny_world.picture("a.png")
    latents = tiny_world.folder / "a_0064x0048_flux.npz"
    latents.touch()
    path = tiny_world.metadata({str(picture): {"caption": "a"}})
    assert found(path)["npz_opened_as_image"].lost
    assert "npz_opened_as_image" not in found(tiny_world.metadata({str(picture): {"caption": "a", **A}}))
    assert "npz_opened_as_image" not in found(tiny_world.metadata({"a.png": {"caption": "a"}}))
    other = tiny_world.folder / "a_0064x0048_sdxl.npz"
    other.touch()
    assert "flux" in found(tiny_world.metadata({str(picture): {"caption": "a"}}))["npz_opened_as_image"].what
    latents.unlink()
    made = found(tiny_world.metadata({str(picture): {"caption": "a"}}))
    assert "npz_opened_as_image" not in made
    assert not made["npz_replaces_picture"].lost


def test_a_picture_that_is_not_there(tiny_world: World) -> None:
    assert found(tiny_world.metadata({"a.png": {"caption": "a", **A}}))["missing_pictures"].lost
    tiny_world.picture("a.png")
    assert "missing_pictures" not in found(tiny_world.metadata({"a.png": {"caption": "a", **A}}))


# -- all together ---------------------------------------------------------------------------------------------


def test_one_finding_for_a_rule_with_three_cases(tiny_world: World) -> None:
    for number in range(5):
        tiny_world.picture(f"{number}.png", b"")
    finding = found(tiny_world.config())["zero_byte"]
    assert finding.what == "5 sidecars of 0 bytes, at which the trainers stop: 0.txt; 1.txt; 2.txt …"
    assert finding.where == "dataset 1, subset 1"


def test_names_that_are_not_utf8_can_be_printed(tiny_world: World) -> None:
    tiny_world.picture(os.fsdecode(b"caf\xe9.png"))
    finding = found(tiny_world.config())["no_sidecar"]
    assert r"caf\xe9.png" in finding.what
    assert finding.what.encode()


def test_names_that_a_terminal_would_obey_are_printed_as_escapes(tiny_world: World) -> None:
    tiny_world.picture("\x1b[31m\u202e.png")
    printed = cutline("preview", tiny_world.config()).stdout
    assert r"␛[31m\u202e.png" in printed
    assert "\x1b" not in printed


def test_faults_of_a_config_are_findings_and_the_rest_is_looked_at(tiny_world: World) -> None:
    tiny_world.picture("a.png", b"")
    made = found(tiny_world.config("shufle_caption = true"))
    assert made["unknown_key"].where == "dataset 1, subset 1"
    assert "zero_byte" in made


def test_buckets_are_counted(tiny_world: World) -> None:
    sizes = [(1024, 1024), (1024, 1024), (768, 1024), (200, 300)]
    for number, size in enumerate(sizes):
        tiny_world.picture(f"{number}.png", "a", size)
    made = lint(tiny_world.config(dataset="resolution = 512\nenable_bucket = true"))
    trainers = Buckets((512, 512), 256, 1024, 64)
    chosen = [trainers.choose(*size) for size in sizes]
    assert {(one.width, one.height): one.pictures for one in made.buckets} == {
        (bucket.width, bucket.height): chosen.count(bucket) if bucket == chosen[0] else 1 for bucket in chosen
    }
    assert {one.dataset for one in made.buckets} == {"dataset 1"}
    assert json.loads(json.dumps(made.as_dict()))["buckets"][0]["pictures"] in (1, 2)


def test_a_picture_without_a_bucket(tiny_world: World) -> None:
    tiny_world.picture("a.png", "a", (200, 20))
    bucketed = "resolution = 512\nenable_bucket = true"
    assert found(tiny_world.config(dataset=f"{bucketed}\nbucket_no_upscale = true"))["no_bucket"].lost
    assert "no_bucket" not in found(tiny_world.config(dataset=bucketed))


def test_without_buckets_everything_has_one_size(tiny_world: World) -> None:
    tiny_world.picture("a.png", "a", (300, 200))
    placed: list[tuple[int, int]] = []
    made = lint(tiny_world.config(), resolution=(512, 512), each=lambda _, __, bucket: placed.append(bucket))
    assert [(one.width, one.height, one.pictures) for one in made.buckets] == [(512, 512, 1)]
    assert placed == [(512, 512)]


def test_a_picture_is_opened_only_without_image_size(tiny_world: World) -> None:
    tiny_world.picture("a.png", size=(64, 64))
    sizes: list[tuple[int, int]] = []
    for entry in ({}, {"image_size": [640, 480]}):
        path = tiny_world.metadata({"a.png": {"caption": "a", **entry}}, dataset="resolution = 512")
        lint(path, each=lambda _, size, __: sizes.append(size))
    assert sizes == [(64, 64), (640, 480)]


def test_losses_come_first_and_are_known(tiny_world: World) -> None:
    tiny_world.picture("a.png", b"")
    made: Lint = lint(tiny_world.config("keep_tokens = 1"))
    assert [finding.lost for finding in made.findings] == sorted((one.lost for one in made.findings), reverse=True)
    assert made.lost
    (tiny_world.folder / "a.txt").write_text("a")
    assert not lint(tiny_world.config("keep_tokens = 1")).lost


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CutlineError, match="cannot read"):
        lint(tmp_path / "no.toml")
    with pytest.raises(CutlineError, match="by its suffix"):
        lint(tmp_path / "no.txt")


def test_every_rule_is_tested() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert [code for code in RULES if f'"{code}"' not in text] == []


def test_every_measured_fault_of_the_data_side_has_its_rules() -> None:
    """Which rules stand for the faults that a preview must warn about."""
    rules = {
        "d1": ["validation_overlap"],
        "d2": ["validation_rounding"],
        "d3": ["cache_info_split"],
        "d4": ["cache_info_part"],
        "d5": ["cache_info_stale"],
        "d6": ["no_latents_cache"],
        "d7": ["stem_keys"],
        "d8": ["npz_opened_as_image"],
        "d13": ["no_image_size"],
        "d14": ["memory"],
        "d18": ["validation_ignored"],
        "d19": ["doubled"],
        "d20": ["te_cache_older", "te_cache_unknown"],
        "d21": ["te_cache_ignores", "te_cache_lines"],
    }
    known = {fault["id"] for fault in json.loads((ORACLES / "dataset_defects.json").read_text())}
    of_other_tools = {"d9", "d10", "d11", "d12", "d15", "d16", "d17"}
    assert rules.keys() == known - of_other_tools
    assert {code for codes in rules.values() for code in codes} <= RULES.keys()


def test_what_export_writes_is_no_fault(tmp_path: Path) -> None:
    """Its separators are taken out again by the trainer."""
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "m.json").write_text(
        json.dumps({"a.png": {"caption": "x ||| a b ;;; c ||| A girl, standing.", "image_size": [64, 64]}})
    )
    (tmp_path / "m.toml").write_text(
        "[general]\nresolution = 512\n[[datasets]]\n[[datasets.subsets]]\nshuffle_caption = true\n"
        f'metadata_file = "{tmp_path}/m.json"\nimage_dir = "{tmp_path}"\n'
        'caption_separator = ";;;"\nkeep_tokens_separator = "|||"\n'
    )
    assert [finding.code for finding in lint(tmp_path / "m.toml", cache_latents=True).findings if finding.lost] == []


def test_a_recipe_is_no_config(tiny_world: World) -> None:
    path = tiny_world.root / "recipe.toml"
    path.write_text('[tags]\nfirst_of = ["tags/a"]\n')
    said = cutline("preview", path, code=2)
    assert f"cutline preview DATASET --recipe {path}" in said.stderr
