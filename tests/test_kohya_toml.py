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
from cutline.compose.recipe import Recipe
from cutline.dataset import Dataset
from cutline.formats.kohya_toml import ConfigError, check, folder_config, read
from cutline.options import CutlineError
from cutline.sources.detect import detect
from cutline.sources.kohya_toml import KohyaToml


def config(folder: Path, text: str, name: str = "config.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problems(folder: Path, text: str) -> dict[str, str]:
    """What is said of each place in a config, with the code in front."""
    found = check(config(folder, text))[1]
    return {problem.where: f"{problem.code}: {problem.what}" for problem in found}


FOLDER = '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "d"\n'
CONTROLLED = f"{FOLDER}conditioning_data_dir = 'c'\n"
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
        "shuffle_caption": True,
        "keep_tokens": 3,
        "caption_prefix": "",
        "caption_extension": "txt",
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
        (f"{CONTROLLED}class_tokens = 'x'", "dataset 1, subset 1", "may not stand beside a conditioning_data_dir"),
        (f"{CONTROLLED}is_reg = true", "dataset 1, subset 1", "may not stand beside a conditioning_data_dir"),
        (
            CONTROLLED.replace("]]", "]]\nclass_tokens = 'x'", 1),
            "dataset 1",
            "not stand beside a conditioning_data_dir",
        ),
        (f"{METADATA}conditioning_data_dir = 'c'", "dataset 1, subset 1", "unknown_key: 'conditioning_data_dir'"),
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
        f"[general]\nclass_tokens = 'x'\n{CONTROLLED}",
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


# -- taken in -------------------------------------------------------------------------------------------------


class World:
    """Pictures in `d`, a config beside it, and the dataset that both are added to."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.dataset = Dataset(root / "dataset")
        self.dataset.root.mkdir()

    def picture(self, name: str, words: str | None = None, folder: str = "d", suffix: str = ".txt") -> Path:
        path = self.root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(path, "PNG")
        if words is not None:
            path.with_suffix(suffix).write_text(words, encoding="utf-8")
        return path

    def folder(self, options: dict[str, Any], folder: str = "d") -> str:
        """A subset of a folder, as TOML."""
        said = {"image_dir": str(self.root / folder), "caption_extension": ".txt", **options}
        return "[[datasets.subsets]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in said.items())

    def metadata(self, entries: object, options: dict[str, Any], name: str = "m.json") -> str:
        """A subset of metadata, as TOML."""
        (self.root / name).write_text(json.dumps(entries))
        said = {"metadata_file": str(self.root / name), "image_dir": str(self.root / "d"), **options}
        return "[[datasets.subsets]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in said.items())

    def add(self, *subsets: str) -> dict[str, int]:
        """Add a config of these subsets; the notes."""
        path = config(self.root, "".join(f"[[datasets]]\n{subset}" for subset in subsets), "mine.toml")
        assert detect(path) == "kohya_toml"
        return self.dataset.add(KohyaToml(path)).notes

    def recipes(self) -> dict[str, str]:
        """The texts of the dataset's recipes, by name."""
        return {path.stem: path.read_text("utf-8") for path in sorted((self.dataset.home / "recipes").glob("*"))}

    def texts(self, name: str = "mine", epoch: int = 0) -> dict[str, str | None]:
        """What a recipe makes of each picture, by the name of its file."""
        recipe = Recipe.from_toml(self.dataset.home / "recipes" / f"{name}.toml")
        texts: dict[str, str | None] = {}
        for batch in self.dataset.scan(*recipe.layers, fields=recipe.fields):
            composed = recipe.compose(batch, seed=0, epoch=epoch).to_pylist()
            texts |= dict(zip([Path(key).name for key in batch.column("key").to_pylist()], composed, strict=True))
        return texts

    def rows(self, layer: str, column: str) -> dict[str, Any]:
        found = self.dataset.sql(f'select key, {column} from "{layer}"').fetchall()
        return {Path(key).name: value for key, value in found}


@pytest.fixture
def tiny_world(tmp_path: Path) -> World:
    return World(tmp_path)


SIDECARS = {"a.png": "1girl, solo, long_hair", "b.png": "A cat sits; on a mat.", "c.png": "one line\nanother\n"}
FIXED: list[dict[str, Any]] = [
    {},
    {"caption_prefix": "masterpiece,"},
    {"caption_prefix": "A picture of"},
    {"caption_suffix": ", from side"},
    {"caption_prefix": "best", "caption_suffix": "end"},
    {"secondary_separator": ";"},
    {"class_tokens": "sks girl"},
    {"keep_tokens": 2},
]


@pytest.mark.parametrize("options", FIXED, ids=str)
def test_the_recipe_says_of_sidecars_what_the_trainer_says(options: dict[str, Any], tiny_world: World) -> None:
    for name, words in SIDECARS.items():
        tiny_world.picture(name, words)
    tiny_world.picture("none.png")
    tiny_world.add(tiny_world.folder(options))
    trainer = Subset(caption_extension=".txt", **options)
    texts = tiny_world.texts()
    for name in SIDECARS | ({"none.png": ""} if "class_tokens" in options else {}):
        loaded = trainer.load_image(tiny_world.root / "d" / name)
        assert texts[name] == trainer.draw(loaded, random.Random(0))


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle_caption": True},
        {"shuffle_caption": True, "keep_tokens": 2},
        {"shuffle_caption": True, "keep_tokens": 2, "caption_tag_dropout_rate": 0.3},
        {"shuffle_caption": True, "keep_tokens": 2, "caption_prefix": "best, new,"},
        {"shuffle_caption": True, "keep_tokens": 2, "caption_prefix": "best"},
        {"caption_tag_dropout_rate": 0.5},
        {"shuffle_caption": True, "secondary_separator": ";;;"},
        {"shuffle_caption": True, "caption_dropout_rate": 0.5},
    ],
    ids=str,
)
def test_what_is_drawn_by_the_recipe_the_trainer_draws(options: dict[str, Any], tiny_world: World) -> None:
    path = tiny_world.picture("a.png", "1girl, solo;;;day, hat, cat")
    tiny_world.add(tiny_world.folder(options))
    trainer, rng = Subset(caption_extension=".txt", **options), random.Random(0)
    loaded = trainer.load_image(path)
    drawn = {trainer.draw(loaded, rng) for _ in range(2000)}
    composed = {tiny_world.texts(epoch=epoch)["a.png"] or "" for epoch in range(30)}
    assert len(composed) > 1
    assert composed <= drawn
    assert tiny_world.rows("tags/kohya", "unsorted") == {
        "a.png": ["1girl", "solo,day" if "secondary_separator" in options else "solo;;;day", "hat", "cat"]
    }
    assert "captions/kohya" not in tiny_world.dataset.layers()


def test_one_of_several_lines_and_of_wildcards_is_drawn(tiny_world: World) -> None:
    path = tiny_world.picture("a.png", "a {red|blue} cat\n\n  a dog\n")
    tiny_world.add(tiny_world.folder({"enable_wildcard": True}))
    composed = {tiny_world.texts(epoch=epoch)["a.png"] for epoch in range(60)}
    trainer, rng = Subset(caption_extension=".txt", enable_wildcard=True), random.Random(0)
    assert composed == {trainer.draw(trainer.load_image(path), rng) for _ in range(200)}
    assert len(composed) == 3


def test_lines_that_the_trainer_does_not_read_are_further_captions(tiny_world: World) -> None:
    tiny_world.picture("c.png", SIDECARS["c.png"])
    tiny_world.add(tiny_world.folder({}))
    assert tiny_world.rows("captions/kohya", "texts") == {"c.png": ["one line", "another"]}


@pytest.mark.parametrize("options", [{}, {"shuffle_caption": True}], ids=str)
def test_a_blank_first_line_is_told(options: dict[str, Any], tiny_world: World) -> None:
    tiny_world.picture("a.png", "\nx")
    tiny_world.picture("b.png", " b\n\n")
    notes = tiny_world.add(tiny_world.folder(options))
    assert notes["text whose first line is blank, so that kohya's trainers read nothing of it"] == 1
    assert "# It cannot say: a text whose first line is blank is empty" in tiny_world.recipes()["mine"]


def test_what_the_trainer_loses_of_metadata_in_lines_is_told(tiny_world: World) -> None:
    for name in ("a.png", "b.png"):
        tiny_world.picture(name)
    entries = {"a.png": {"caption": "l1\nl2", "tags": "x"}, "b.png": {"caption": "\nx"}}
    notes = tiny_world.add(tiny_world.metadata(entries, {}))
    lost = "caption of several lines, of which kohya's trainers read the first, and no tags of its entry"
    assert notes[lost] == 1
    assert notes["text whose first line is blank, so that kohya's trainers read nothing of it"] == 1
    head = tiny_world.recipes()["mine"].partition("[")[0]
    assert "first line is blank" in head
    assert "loses its tags" in head
    assert lost not in tiny_world.add(tiny_world.metadata(entries, {"enable_wildcard": True}))


def test_texts_of_tags_that_have_wildcards_stay_whole(tiny_world: World) -> None:
    tiny_world.picture("a.png", "1girl, {red|blue} hat")
    tiny_world.picture("b.png", "1girl, solo")
    tiny_world.add(tiny_world.folder({"enable_wildcard": True, "shuffle_caption": True}))
    assert tiny_world.rows("captions/kohya", "texts") == {"a.png": ["1girl, {red|blue} hat"]}
    assert tiny_world.rows("tags/kohya", "unsorted") == {"b.png": ["1girl", "solo"]}
    assert "# It cannot say: the pieces of a caption" in tiny_world.recipes()["mine"]


ENTRIES = {
    "a.png": {"caption": "a girl", "tags": "1girl, solo"},
    "b.png": {"tags": "1girl, solo"},
    "c.png": {"caption": "a cat\nmore of it"},
}


@pytest.mark.parametrize("options", [{}, {"caption_separator": ", "}, {"caption_separator": "; "}], ids=str)
def test_the_recipe_says_of_metadata_what_the_trainer_says(options: dict[str, Any], tiny_world: World) -> None:
    for name in ENTRIES:
        tiny_world.picture(name)
    tiny_world.add(tiny_world.metadata(ENTRIES, options))
    trainer, texts = Subset(**options), tiny_world.texts()
    for name, entry in ENTRIES.items():
        assert texts[name] == trainer.draw(trainer.load(**entry), random.Random(0))


def test_metadata_with_lines_and_wildcards(tiny_world: World) -> None:
    tiny_world.picture("a.png")
    entry = {"caption": "a {big|small} cat\na dog", "tags": "cat"}
    tiny_world.add(tiny_world.metadata({"a.png": entry}, {"enable_wildcard": True}))
    trainer, rng = Subset(enable_wildcard=True), random.Random(0)
    composed = {tiny_world.texts(epoch=epoch)["a.png"] for epoch in range(60)}
    assert composed == {trainer.draw(trainer.load(**entry), rng) for _ in range(200)}


def test_signs_of_the_trainer_are_taken_out_of_metadata(tiny_world: World) -> None:
    tiny_world.picture("a.png")
    entries = {"a.png": {"caption": "a girl ||| standing", "tags": "solo, a;;;b"}}
    options = {"keep_tokens_separator": "|||", "secondary_separator": ";;;", "shuffle_caption": True}
    tiny_world.add(tiny_world.metadata(entries, options))
    assert tiny_world.rows("captions/kohya", "texts") == {"a.png": ["a girl, standing"]}
    assert tiny_world.rows("tags/kohya", "unsorted") == {"a.png": ["solo", "a,b"]}


def test_what_a_recipe_cannot_say_stands_at_its_head(tiny_world: World) -> None:
    tiny_world.picture("a.png", "a ||| b, c")
    options = {
        "caption_dropout_every_n_epochs": 2,
        "token_warmup_step": 0.5,
        "keep_tokens_separator": "|||",
        "num_repeats": 10,
        "caption_suffix": "end",
    }
    notes = tiny_world.add(tiny_world.folder(options))
    text = tiny_world.recipes()["mine"]
    head = text.partition("[")[0]
    assert all(name in head for name in options)
    assert "# Not about texts: num_repeats = 10" in text
    Recipe.parse(tomllib.loads(text))
    said = [note for note in notes if note.startswith("not in the recipe: ")]
    assert len(said) == 4


@pytest.mark.parametrize("options", [{}, {"shuffle_caption": True}], ids=str)
def test_only_layers_with_words_are_spoken_of(options: dict[str, Any], tiny_world: World) -> None:
    tiny_world.picture("a.png", "a cat")
    path = config(tiny_world.root, f"[[datasets]]\n{tiny_world.folder(options)}")
    assert tiny_world.dataset.add(KohyaToml(path)).words == {"tags/kohya" if options else "captions/kohya": 1}


def test_without_words_there_is_no_recipe(tiny_world: World) -> None:
    tiny_world.picture("a.png")
    tiny_world.add(tiny_world.folder({"caption_prefix": "best,"}))
    assert tiny_world.rows("pictures", "error") == {"a.png": None}
    assert tiny_world.recipes() == {}


def test_subsets_that_agree_share_a_recipe(tiny_world: World) -> None:
    for folder in "de":
        tiny_world.picture("a.png", f"{folder}, words", folder)
    notes = tiny_world.add(tiny_world.folder({}), tiny_world.folder({}, "e"))
    assert list(tiny_world.recipes()) == ["mine"]
    assert notes["recipe kept, for --recipe mine"] == 1
    assert sorted(tiny_world.dataset.sql('select text from "captions/kohya"').fetchall()) == [
        ("d, words",),
        ("e, words",),
    ]


def test_subsets_that_differ_have_one_each(tiny_world: World) -> None:
    for folder in "de":
        tiny_world.picture("a.png", "one, two", folder)
    tiny_world.add(tiny_world.folder({}), tiny_world.folder({"shuffle_caption": True}, "e"))
    assert list(tiny_world.recipes()) == ["mine-1", "mine-2"]
    assert "dataset 2, subset 1" in tiny_world.recipes()["mine-2"]
    assert tiny_world.dataset.layers() == ["captions/kohya", "pictures", "tags/kohya"]


def test_a_folder_of_several_datasets_is_read_once(tiny_world: World) -> None:
    tiny_world.picture("a.png", "one, two")
    subsets = [
        tiny_world.folder({}),
        tiny_world.folder({"num_repeats": 2}),
        tiny_world.folder({"shuffle_caption": True}),
    ]
    tiny_world.add(*subsets)
    assert tiny_world.rows("pictures", "error") == {"a.png": None}
    assert tiny_world.rows("captions/kohya", "texts") == {"a.png": ["one, two"]}
    assert tiny_world.rows("tags/kohya", "unsorted") == {"a.png": ["one", "two"]}
    assert len(tiny_world.recipes()) == 3


def test_folders_and_metadata_name_the_same_pictures(tiny_world: World) -> None:
    for name in "ab":
        tiny_world.picture(f"{name}.png", "words")
    tiny_world.picture("c.png", "words", "e")
    tiny_world.add(tiny_world.metadata({"a.png": {"tags": "x"}, "b": {"tags": "y"}}, {}), tiny_world.folder({}, "e"))
    assert tiny_world.rows("tags/kohya", "unsorted") == {"a.png": ["x"], "b": ["y"]}
    tiny_world.add(tiny_world.folder({}), tiny_world.metadata({"a.png": {"tags": "z"}}, {}))
    # Now of one folder alone, so that keys are relative to that one.
    tags = dict(tiny_world.dataset.sql('select key, unsorted from "tags/kohya"').fetchall())
    assert tags["a.png"] == ["z"]
    assert tiny_world.dataset.sql("select count(*) from pictures where error is null").fetchall()[0][0] >= 3


def test_a_recipe_of_someone_is_never_overwritten(tiny_world: World) -> None:
    tiny_world.picture("a.png", "a cat")
    tiny_world.add(tiny_world.folder({}))
    first = tiny_world.recipes()["mine"]
    assert tiny_world.add(tiny_world.folder({}))["recipe kept, for --recipe mine"] == 1
    assert tiny_world.recipes() == {"mine": first}
    (tiny_world.dataset.home / "recipes" / "mine.toml").write_text("# mine\n")
    assert tiny_world.add(tiny_world.folder({}))["recipe kept, for --recipe mine-2"] == 1
    assert tiny_world.recipes() == {"mine": "# mine\n", "mine-2": first}


def test_faces_have_the_words_of_their_picture_and_underscores_of_folders_count(tiny_world: World) -> None:
    tiny_world.picture("img_1_2_3_4.png")
    (tiny_world.root / "d" / "img.txt").write_text("of the whole")
    tiny_world.picture("b.png", None, "x_1_2_3_4")
    (tiny_world.root / "x.txt").write_text("unrelated")
    tiny_world.add(tiny_world.folder({}), tiny_world.folder({}, "x_1_2_3_4"))
    assert Subset().load_image(tiny_world.root / "x_1_2_3_4" / "b.png") == "unrelated"
    assert tiny_world.rows("captions/kohya", "texts") == {"img_1_2_3_4.png": ["of the whole"], "b.png": ["unrelated"]}


def test_pictures_that_the_trainer_does_not_see_are_counted(tiny_world: World) -> None:
    for name in ("a.png", "b.Png", "deep/c.png"):
        tiny_world.picture(name, "words")
    notes = tiny_world.add(tiny_world.folder({}))
    assert list(tiny_world.rows("pictures", "error")) == ["a.png"]
    assert notes["picture of a kind that kohya's trainers do not see, so not read"] == 1


def test_sidecars_that_cannot_be_read_are_rows(tiny_world: World) -> None:
    tiny_world.picture("a.png").with_suffix(".txt").write_bytes(b"caf\xe9")
    tiny_world.picture("b.png").with_suffix(".txt").write_bytes(b"")
    notes = tiny_world.add(tiny_world.folder({}))
    assert tiny_world.rows("captions/kohya", "error") == {"a.png": "not_utf8"}
    assert notes["empty caption"] == 1


def test_relative_paths_begin_where_the_trainer_is_started(tiny_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_world.picture("a.png", "a cat", suffix=".caption")
    path = config(tiny_world.root, FOLDER)
    monkeypatch.chdir(tiny_world.root.parent)
    with pytest.raises(CutlineError, match=f"-o relative_to={tiny_world.root}"):
        tiny_world.dataset.add(KohyaToml(path))
    assert not tiny_world.dataset.exists
    tiny_world.dataset.add(KohyaToml(path, relative_to=tiny_world.root))
    assert tiny_world.rows("captions/kohya", "texts") == {"a.png": ["a cat"]}
    monkeypatch.chdir(tiny_world.root)
    assert tiny_world.dataset.add(KohyaToml(path)).unchanged == 1


def test_a_config_that_the_trainers_refuse_is_not_added(tiny_world: World) -> None:
    with pytest.raises(ConfigError):
        tiny_world.add(tiny_world.folder({"shufle_caption": True}))
    with pytest.raises(CutlineError, match="there is no folder"):
        tiny_world.add(tiny_world.folder({}))
    assert not tiny_world.dataset.exists


def test_other_toml_files_are_not_taken_for_configs(tmp_path: Path) -> None:
    for text in ("a = 1", "not TOML"):
        with pytest.raises(CutlineError, match="cannot tell"):
            detect(config(tmp_path, text))
