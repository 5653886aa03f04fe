"""The recipes that come with Cutline, all the way: what kohya's trainer makes of their export is what compose says."""

from __future__ import annotations

import functools
import json
import random
import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cutline import toml_files
from cutline.compose.as_kohya import AsKohya
from cutline.compose.kohya import Subset
from cutline.compose.recipe import Recipe, find_recipe
from cutline.dataset import Dataset
from running import cutline, make_pictures
from test_as_kohya import composed, same_distribution, trainer
from test_recipe import batch
from trainers import kohya_loads

COUNT = 1000
DRAWS = 2000

PRESETS = toml_files.presets("recipes")
RANDOM = [name for name in PRESETS if Recipe.parse(toml_files.preset("recipes", name)).random]
FIXED = [name for name in PRESETS if name not in RANDOM]

ORACLE = json.loads((Path(__file__).parent / "oracles/kohya/metadata_load_results.json").read_text("utf-8"))

NAMES = {
    "character": ["hatsune_miku", "saber_(fate)", "len_(vocaloid)", "c.c."],
    "copyright": ["vocaloid", "fate_(series)", "k-on!", 'don\'t_say_"lazy"'],
    "artist": ["someone", "ask_(askzy)", "猫_b"],
    "general": [
        "1girl",
        "solo",
        "long_hair",
        "^_^",
        ">_<",
        "|_|",
        "(o)_(o)",
        ":3",
        "hair_between_eyes",
        "50%_off",
        "!?",
    ],
    "meta": ["highres", "commentary_request", "photoshop_(medium)", "bad_pixiv_id"],
    "unsorted": ["my tag", "sks woman"],
}
SENTENCES = [
    "A girl, standing.",
    "She holds 1,000 {hats} | two.",
    "One line.\nAnother; a third one.\r\n\nAnd more",
    '猫 — café, "said" (she:1.2) \\(',
    "{red|blue} curtains ; ;; $1",
]


@functools.cache
def rows(kind: str) -> tuple[dict[str, Any] | None, ...]:
    """What one layer says of a thousand pictures: nothing of one in nine, and of the rest what one seed gives."""
    chance = random.Random(kind)
    found: list[dict[str, Any] | None] = []
    for number in range(COUNT):
        if chance.random() < 1 / 9:
            found.append(None)
        elif kind == "captions":
            found.append({"texts": [" ".join([f"Number {number}:", *chance.sample(SENTENCES, chance.randint(1, 3))])]})
        elif kind == "tags":
            said: dict[str, Any] = {
                name: chance.sample(tags, chance.randint(0, len(tags))) for name, tags in NAMES.items()
            }
            said |= {"rating": chance.choice(["g", "s", "q", "e", None]), "score": chance.randint(-9, 400)}
            found.append(said | {"fav_count": chance.randint(0, 300), "year": chance.choice([2007, 2012, 2019, 2024])})
        else:
            found.append({"width": 1024, "height": 768})
    return tuple(found)


@functools.cache
def scanned(name: str) -> tuple[Recipe, pa.RecordBatch]:
    """A preset, fitted, and a thousand pictures with every layer that it reads."""
    recipe = Recipe.parse(toml_files.preset("recipes", name))
    layers = {layer.replace("/", "_", 1): [*rows(layer.partition("/")[0])] for layer in recipe.layers}
    for layer, found in layers.items():  # those that come later say the same of other pictures
        shift = 100 * [*layers].index(layer)
        layers[layer] = found[shift:] + found[:shift]
    edges = {key: tuple(map(float, range(10, 10 + 10 * 9, 10))) for key in ("g", "s", "q", "e")}
    fitted = {
        word: replace(table, edges={key: few[: len(table.names) - 1] for key, few in edges.items()})
        for word, table in recipe.tables.items()
        if not table.edges
    }
    return replace(recipe, fitted=fitted), batch(**layers)


def told(name: str) -> tuple[Subset, list[str | None]]:
    """The trainer with the options of a preset's export, and what it loads for each picture."""
    recipe, found = scanned(name)
    said = AsKohya(recipe)
    assert said.cannot == ()
    entries, reasons = said.entries(recipe.make(found, seed=0))
    assert {*reasons} == {""}, Counter(reasons)
    subset = Subset(**said.options)
    return subset, [None if entry is None else subset.load(entry) for entry in entries.to_pylist()]


def test_presets_are_what_they_are_said_to_be() -> None:
    assert RANDOM == ["either-or", "kohaku", "tags-shuffled"]
    for name in PRESETS:
        recipe = Recipe.parse(toml_files.preset("recipes", name))
        assert Recipe.parse(recipe.settings()) == Recipe.parse(tomllib.loads(recipe.toml())) == recipe


@pytest.mark.parametrize("name", FIXED)
def test_the_trainer_draws_the_text_of_every_picture(name: str) -> None:
    recipe, found = scanned(name)
    texts = recipe.compose(found, seed=0).to_pylist()
    assert len({*texts}) > COUNT / 4
    subset, loaded = told(name)
    rng = random.Random(0)
    drawn = [None if text is None else subset.draw(text, rng) for text in loaded]
    assert drawn == texts


def split(text: str | None) -> list[str]:
    return text.split(", ") if text else []


def free_tags(recipe: Recipe, found: pa.RecordBatch) -> tuple[list[str | None], list[list[str]]]:
    """The text of each picture without chance, and those tags in it that are not kept."""
    still = replace(recipe, tags=replace(recipe.tags, shuffle=False, keep=(), dropout=0.0))
    made = still.make(found, seed=0)
    assert isinstance(recipe.tags.keep, tuple)
    names = [name for name in recipe.tags.order if name not in recipe.tags.keep]
    return made.draw().texts.to_pylist(), made.tag_lists.lists(*names).to_pylist()


@pytest.mark.parametrize("name", ["kohaku", "tags-shuffled"])
def test_the_trainer_moves_and_drops_only_what_compose_may(name: str) -> None:
    recipe, found = scanned(name)
    subset, loaded = told(name)
    rng = random.Random(0)
    for text, whole, free in zip(loaded, *free_tags(recipe, found), strict=True):
        assert (text is None) == (whole is None)
        if text is None:
            continue
        said = split(whole)
        start = next(place for place in range(len(said) + 1) if said[place : place + len(free)] == free)
        head, tail = said[:start], said[start + len(free) :]
        for _ in range(20):
            drawn = split(subset.draw(text, rng))
            end = len(drawn) - len(tail)
            assert drawn[:start] == head
            assert drawn[end:] == tail
            assert not Counter(drawn[start:end]) - Counter(free)


def test_the_trainer_draws_caption_or_tags() -> None:
    recipe, found = scanned("either-or")
    subset, loaded = told("either-or")
    rng = random.Random(0)
    made = recipe.make(found, seed=0)
    for text, *either in zip(loaded, made.caption.to_pylist(), made.tags.to_pylist(), strict=True):
        drawn = set() if text is None else {subset.draw(text, rng) for _ in range(60)}
        assert drawn == {one for one in either if one}


@pytest.mark.parametrize("name", RANDOM)
def test_the_trainer_draws_each_tag_as_often_as_compose(name: str) -> None:
    from scipy.stats import chi2  # comes with scikit-learn

    recipe, found = scanned(name)
    _, free = free_tags(recipe, found)
    for row in [number for number, tags in enumerate(free) if len(tags) > 3][:5]:
        one = found.slice(row, 1)
        drawn, expected = trainer(recipe, one, 0, DRAWS), composed(recipe, one, 0, DRAWS)
        if name == "either-or":
            assert same_distribution(drawn, expected)
            continue
        counts = [Counter[str](), Counter[str]()]
        starts = [Counter[str](), Counter[str]()]
        for number, texts in enumerate((drawn, expected)):
            for text, often in texts.items():
                moved = [tag for tag in split(text) if tag in free[row]]
                starts[number][moved[0] if moved else ""] += often
                counts[number].update(dict.fromkeys(split(text), often))
        assert {*counts[0]} == {*counts[1]}
        statistic, tags = 0.0, 0
        for tag in counts[0]:
            mine, theirs = counts[0][tag], counts[1][tag]
            share = (mine + theirs) / (2 * DRAWS)
            if share == 1:  # it is kept
                continue
            statistic += (mine - theirs) ** 2 / (2 * DRAWS * share * (1 - share))
            tags += 1
        assert tags == len(free[row])
        assert chi2.sf(statistic, tags) > 1e-6, (counts, statistic)
        assert same_distribution(*starts)  # and each comes first as often


# -- through the command line ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["illustrious", "sdxl-tags-and-caption"])
def test_the_export_loads_by_every_rule_and_draws_the_texts(name: str, tmp_path: Path) -> None:
    root, out = tmp_path / "photos", tmp_path / "out.json"
    keys = [*make_pictures(root, COUNT // 2), *(f"sub/{key}" for key in make_pictures(root / "sub", COUNT // 2))]
    cutline("add", root)
    dataset = Dataset(root)
    for layer, kind in (("tags/danbooru", "tags"), ("captions/human", "captions")):
        with dataset.layer(layer).write() as lines:
            for key, said in zip(keys, rows(kind), strict=True):
                if said is not None:
                    lines.add({"key": key, **said})
    cutline("export", root, "kohya", out, "--recipe", name)
    recipe = find_recipe(dataset, name)
    texts: dict[str, str] = {}
    for found in dataset.scan(*recipe.layers, fields=("uri", *recipe.fields)):
        pairs = zip(found.column("uri").to_pylist(), recipe.compose(found, seed=0).to_pylist(), strict=True)
        texts |= {key: text for key, text in pairs if text}
    assert len(texts) > COUNT / 2

    options = tomllib.loads(out.with_suffix(".toml").read_text("utf-8"))["datasets"][0]["subsets"][0]
    assert Path(options["metadata_file"]) == out
    entries = json.loads(out.read_text("utf-8"))
    loads_by_the_oracle(entries, options["image_dir"])
    assert {*kohya_loads(out, Path(options["image_dir"]))} == {*texts}  # it opens every picture, and compares sizes
    subset, rng = Subset(**options), random.Random(0)
    drawn = {
        key: subset.draw(subset.load(entry.get("caption"), entry.get("tags")), rng) for key, entry in entries.items()
    }
    assert drawn == texts


def loads_by_the_oracle(entries: dict[str, Any], image_dir: str | None) -> None:
    """Each case of the recorded loads is one rule: what those have in common that failed is not so here.

    Relative keys need an image_dir; a key is a file's name whole, not its stem, so that the trainer, which opens what
    has no size, finds it; sizes stand in the entry; texts are texts.
    """
    failed = {case["case"]: case["error"] for case in ORACLE if not case["ok"]}
    assert any("image_dir is required" in error for error in failed.values())
    assert any("FileNotFoundError" in error for error in failed.values())
    loaded = [case for case in ORACLE if case["ok"]]
    assert loaded
    for case in loaded:  # the cases that loaded keep these rules, so they are the rules
        for key in case["registered"]:
            assert Path(key).suffix
            assert Path(key).is_absolute() or case["image_dir"]
    for key, entry in entries.items():
        assert Path(image_dir or "/nowhere", key).is_file()
        assert Path(key).suffix
        assert Path(key).is_absolute() or image_dir
        assert [type(side) for side in entry["image_size"]] == [int, int]
        assert all(isinstance(entry[field], str) for field in ("caption", "tags") if field in entry)
