"""`cutline show`: a picture's layers, its text, and what each text encoder keeps of it, for people and as JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cutline.compose import as_kohya
from cutline.compose.clip import ftfy_changes
from cutline.compose.recipe import Recipe
from cutline.compose.tokens import find_trainer
from cutline.dataset import Dataset
from cutline.options import CutlineError
from cutline.preview.picture import Text, look, rows_of, spoken, view
from running import cutline, environment

TAGS = ["1girl", "astolfo_(fate)", "long_hair", *(f"extraordinary_tag_{number}" for number in range(40))]
RECIPE = """
[tags]
first_of = ["tags/kohya"]
underscores = "space"
[captions]
first_of = ["captions/kohya"]
[text]
order = ["tags", "caption"]
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures: one with many tags and a caption, one with a caption, one without words, one unreadable."""
    root = tmp_path_factory.mktemp("show") / "photos"
    root.mkdir()
    for name in ("many_(tags).png", "said.png", "silent.png"):
        Image.new("RGB", (40, 30), "navy").save(root / name)
    (root / "broken.png").write_bytes(b"no picture")
    words = {
        "many_(tags).png": {"tags": ", ".join(TAGS), "caption": "she stands, at noon\nand waits"},
        "said.png": {"caption": 'a sign "OPEN" [bold] by \x1b[31mnight', "tags": "\u202ehat\x9b, solo"},
    }
    (root.parent / "words.json").write_text(json.dumps(words), "utf-8")
    (root.parent / "recipe.toml").write_text(RECIPE, "utf-8")
    cutline("add", root, code=3)
    cutline("add", root, "--from", "kohya", "-o", f"path={root.parent / 'words.json'}")
    return root


def shown(dataset: Path, *words: object, **settings: Any) -> str:
    return cutline("show", dataset, *words, "--recipe", dataset.parent / "recipe.toml", **settings).stdout


def read(dataset: Path, key: str, *words: object) -> Any:
    return json.loads(shown(dataset, key, *words, "--json"))


def test_the_layers_of_a_picture(dataset: Path) -> None:
    plain = cutline("show", dataset, "many_(tags).png").stdout
    assert plain.startswith("many_(tags).png\npictures\n  uri: many_(tags).png\n")
    assert "  width: 40\n  height: 30\n" in plain
    assert "captions/kohya\n  texts: she stands, at noon⏎and waits\n" in plain
    assert f"tags/kohya\n  unsorted: {', '.join(TAGS)}\n" in plain
    assert "epochs 0 to 2\n  1girl, astolfo_(fate), long_hair, extraordinary_tag_0" in plain
    assert "\x1b" not in plain
    whole = json.loads(cutline("show", dataset, "many_(tags).png", "--json").stdout)
    assert list(whole["layers"]) == ["pictures", "captions/kohya", "tags/kohya"]
    assert whole["layers"]["tags/kohya"]["unsorted"] == TAGS


def test_what_sdxl_keeps(dataset: Path) -> None:
    plain = shown(dataset, "many_(tags).png", "--trainer", "kohya-sdxl", "-o", "max_token_length=150")
    assert "\x1b" not in plain
    text = look(Dataset(dataset), "many_(tags).png", Recipe.from_toml(dataset.parent / "recipe.toml")).texts[0].text
    assert text
    first, second = find_trainer("kohya-sdxl", max_token_length=150).encoders
    reading = second.read(text)
    assert f"kohya-sdxl: clip-l and clip-g: {reading.count} tokens, it keeps 150 in 2 chunks" in plain
    painted = next(line for line in plain.splitlines() if "⟦chunk 2⟧" in line)
    assert painted.strip().replace("⟦chunk 2⟧", "").replace("⟦falls off⟧", "") == text.replace("\n", "⏎")
    assert painted.split("⟦chunk 2⟧")[0].strip() == text[: reading.tokens[75].start].strip()
    assert painted.split("⟦falls off⟧")[1] == reading.lost.replace("\n", "⏎")
    assert f"falls off: {reading.lost}".replace("\n", "⏎") in plain
    found = read(dataset, "many_(tags).png", "--trainer", "kohya-sdxl", "-o", "max_token_length=150")
    one = found["texts"][0]
    assert (one["text"], one["epochs"], one["cached"], found["trainer"]) == (text, [0, 1, 2], True, "kohya-sdxl")
    left, right = one["encoders"]
    assert (left["kept"] + left["lost"], left["count"], left["limit"]) == (text, reading.count, 150)
    assert left["rows"] == first.read(text).rows
    assert [token["chunk"] for token in left["tokens"]].count(1) == 75
    tags = [tag.replace("_", " ") for tag in TAGS]
    kept = [tag for tag in tags if text.index(tag) + len(tag) <= len(left["kept"])]
    assert left["lost_tags"] == tags[len(kept) :]
    assert f"first lost tag: {left['lost_tags'][0]}, and {len(left['lost_tags']) - 1} after it" in plain
    border = reading.tokens[75].start
    inside = [tag for tag in kept if text.index(tag) < border]
    assert left["split_tags"] == [tag for tag in inside if text.index(tag) + len(tag) > border]
    assert left["unpooled_tags"] == []  # clip-l has no pooled vector here
    assert right["unpooled_tags"] == kept[len(inside) :]
    unpooled = kept[len(inside) :]
    assert f"pooled vector of clip-g: {', '.join(unpooled[:10])}, and {len(unpooled) - 10} more\n" in plain


def test_a_tag_that_the_border_of_a_chunk_cuts() -> None:
    one = find_trainer("kohya-sdxl", max_token_length=150).encoders[1]
    text = "a " * 73 + ", long hair extraordinary, solo"  # the comma is token 73, long 74, hair 75
    found = view(one, text, ["long hair extraordinary", "solo"])
    assert (found.split_tags, found.unpooled_tags, found.lost_tags) == (("long hair extraordinary",), ("solo",), ())
    short = view(find_trainer("kohya-sdxl").encoders[1], text, ["long hair extraordinary", "solo"])
    assert short.lost_tags == ("long hair extraordinary", "solo")


def test_a_tag_is_looked_for_where_it_stands() -> None:
    """Not within a word, nor in the caption."""
    one = find_trainer("kohya-sd1").encoders[0]
    caption = "a chat " * 40
    assert view(one, f"{caption}. hat", ["hat"], caption, ". ").lost_tags == ("hat",)
    caption = "word " * 72 + "with a dog, cat, and more"
    tags = ["cat", "dog", "hat"]
    assert view(one, f"photo of, cat, dog, hat, {caption}", tags, caption).lost_tags == ()
    assert view(one, f"{caption}, cat, dog, hat", tags, caption).lost_tags == tuple(tags)
    assert view(one, "é " * 80 + ", ça", ["ça"], "é " * 80).lost_tags == ("ça",)


def test_a_terminal_gets_colours(dataset: Path) -> None:
    words = ("many_(tags).png", "--trainer", "kohya-sdxl", "-o", "max_token_length=150")
    coloured = shown(dataset, *words, env=environment(FORCE_COLOR=1, TERM="xterm", COLUMNS=100))
    assert "\x1b[32m1girl" in coloured  # the first chunk is green
    assert re.search(r"⟦chunk 2⟧\x1b\[0m\x1b\[34m", coloured)  # the second blue
    assert re.search(r"⟦falls off⟧\x1b\[0m\x1b\[9;31m", coloured)  # what is lost red and struck
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == shown(dataset, *words)


def test_what_weights_do(dataset: Path) -> None:
    words = ("many_(tags).png", "--trainer", "kohya-sdxl", "-o", "weighted_captions=true")
    plain = shown(dataset, *words)
    assert 'brackets eaten: astolfo (fate) is read as "astolfo fate"' in plain
    assert 'weights: "fate" 1.1\n' in plain
    encoder = read(dataset, *words)["texts"][0]["encoders"][0]
    assert (encoder["eaten"], encoder["weights"]) == ([["astolfo (fate)", "astolfo fate"]], [["fate", 1.1]])
    assert "brackets eaten" not in shown(dataset, *words[:3])


def test_the_trainer_stops_at_a_text(dataset: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    (tmp_path / "one.txt").write_text("(a:1.2.3)", "utf-8")
    cutline("add", tmp_path)
    words = ("show", tmp_path, "one.png", "--trainer", "kohya-sd1", "-o", "weighted_captions=true")
    assert "clip-l: the trainer stops at this text: ValueError: could not convert string" in cutline(*words).stdout


def test_a_tokenizer_that_is_not_here(dataset: Path, tmp_path: Path) -> None:
    here = environment(HF_HUB_CACHE=tmp_path)
    plain = shown(dataset, "said.png", "--trainer", "kohya-flux-dev", env=here)
    assert "kohya-flux-dev: clip-l: " in plain
    assert "clip-l gives the pooled vector only" in plain
    assert "t5-xxl: the tokenizer of t5-xxl is not here. Get it: hf download " in plain
    assert "-o t5xxl=PATH" in plain


def test_glyphs(dataset: Path, tmp_path: Path) -> None:
    plain = shown(dataset, "said.png", "--trainer", "kohya-hunyuan-image", env=environment(HF_HUB_CACHE=tmp_path))
    assert "byt5: 13 tokens, of 127" in plain
    assert "\x1b" not in plain  # of the caption
    assert "[bold] by ␛[31mnight" in plain
    assert r"  \u202ehat\x9b, solo, a sign" in plain
    recipe = dataset.parent / "recipe.toml"
    for printed in (plain, cutline("preview", dataset, "--recipe", recipe, "--trainer", "kohya-sd1").stdout):
        assert r"\u202ehat\x9b" in printed
        assert not {"\u202e", "\x9b"} & {*printed}


def test_nothing_to_say_and_nobody_to_say_it_of(dataset: Path) -> None:
    assert "epochs 0 to 2\n  (nothing: no layer of the recipe says anything)" in shown(dataset, "silent.png")
    assert read(dataset, "silent.png")["texts"] == [
        {"epochs": [0, 1, 2], "cached": False, "misread": False, "text": None}
    ]
    assert "error: not_an_image" in shown(dataset, "broken.png")
    assert "cannot be read: no trainer is given it" in shown(dataset, "broken.png")
    assert read(dataset, "broken.png")["texts"] == []


def test_without_a_recipe_that_is_obvious_the_layers_are_shown(dataset: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    cutline("add", tmp_path)
    done = cutline("show", tmp_path, "one.png")
    assert "width: 8" in done.stdout
    assert "no text is shown: there are no captions and no tags" in done.stderr
    assert "no captions and no tags" in cutline("show", tmp_path, "one.png", "--trainer", "kohya-sd1", code=1).stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["many tags.png"], 1, "Near it: many_(tags).png. All keys: cutline sql "),
        (["xyz"], 1, "has the key 'xyz'. All keys: cutline sql "),
        (["said.png", "--trainer", "sdxl"], 2, "There are: diffusers-flux, "),
        (
            ["said.png", "--trainer", "kohya-sd3", "-o", "max_token_length=150"],
            2,
            "It has: clip, t5xxl_max_token_length",
        ),
        (["said.png", "-o", "max_token_length=150"], 2, "give --trainer, too"),
        (["said.png", "--recipe", "nothing"], 1, "there is no recipe nothing"),
        (["said.png", "--recipe", "danbooru"], 1, "does not have. It has: captions/kohya, tags/kohya"),
        (["said.png", "--epochs", "0"], 2, "epochs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_says_what_to_type_next(dataset: Path, words: list[str], code: int, said: str) -> None:
    assert said in cutline("show", dataset, *words, code=code).stderr


def test_epochs_that_say_the_same_are_one() -> None:
    drawn = [Text((epoch,), False, text) for epoch, text in enumerate(["a", "b", "a", "", None])]
    texts = spoken([*drawn, Text((), True, "a")])
    assert [(text.epochs, text.cached, text.text) for text in texts] == [
        ((0, 2), True, "a"),
        ((1,), False, "b"),
        ((3, 4), False, ""),  # either way there is nothing
    ]
    assert [text.label for text in texts[:2]] == ["epochs 0, 2, and what a text encoder cache holds", "epoch 1"]
    assert Text((0, 1, 2, 3), False, "a").label == "epochs 0 to 3"
    other = spoken([*drawn[:1], Text((), True, "a\nb"), Text((), False, "a", misread=True)])
    assert [(text.label, text.text) for text in other] == [
        ("epoch 0, and what the trainer reads instead", "a"),
        ("what a text encoder cache holds", "a\nb"),
    ]


def recipe_file(path: Path, **lines: str) -> Path:
    text = RECIPE
    for table, line in lines.items():
        text = text.replace(f"[{table}]", f"[{table}]\n{line}")
    path.write_text(text, "utf-8")
    return path


def test_what_the_trainer_makes_of_a_recipe(dataset: Path, tmp_path: Path) -> None:
    def of(**lines: str) -> Any:
        path = recipe_file(tmp_path / "r.toml", **lines)
        words = ("many_(tags).png", "--recipe", path, "--trainer", "kohya-sd1", "--json")
        return json.loads(cutline("show", dataset, *words).stdout)

    fixed = of()
    assert [(text["epochs"], text["misread"], text["cached"]) for text in fixed["texts"]] == [
        ([0, 1, 2], False, True),
        ([], True, False),
    ]
    assert fixed["texts"][1]["text"] == fixed["texts"][0]["text"].partition("\n")[0]
    assert fixed["notes"] == [f"the trainer misreads this picture: {as_kohya.SEVERAL}"]
    told = of(captions='line_breaks = "space"', tags='dropout = 0.5\nseparator = "; "')
    assert told["notes"][0].startswith("the trainer cannot be told all of this recipe: it joins tags")
    assert told["notes"][1] == "so it is given the text of epoch 0 in every epoch, unless the export bakes in some more"
    assert told["texts"][0]["cached"]
    lines = of(captions='line_breaks = "draw"')
    assert lines["notes"] == []
    cache = lines["texts"][-1]
    assert (cache["epochs"], cache["cached"]) == ([], True)
    assert len(cache["text"].splitlines()) == 2  # the encoder reads all lines at once
    assert {text["text"] for text in lines["texts"][:-1]} <= set(cache["text"].splitlines())
    shuffled = of(tags="shuffle = true", captions='line_breaks = "space"')
    assert len(shuffled["texts"]) == 3  # one an epoch
    assert not any(text["cached"] for text in shuffled["texts"])
    assert shuffled["notes"] == ["the trainer caches no text encoder outputs: this recipe needs shuffle_caption"]
    for text in shuffled["texts"]:
        (encoder,) = text["encoders"]
        said = text["text"].split(", ")
        assert said[said.index(encoder["lost_tags"][0]) :][: len(encoder["lost_tags"])] == encoder["lost_tags"]
        assert encoder["lost_tags"][0].endswith(encoder["lost"].split(",")[0].strip())


def test_letters_that_ftfy_changes_are_told(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    (tmp_path / "one.txt").write_text(" it’s a “red” sign\n", "utf-8")
    cutline("add", tmp_path)
    plain = cutline("show", tmp_path, "one.png", "--trainer", "kohya-sdxl").stdout
    assert "clip-l and clip-g may count fewer tokens in sd-scripts' own environment" in plain
    assert "clip-l and clip-g: 11 tokens" in plain
    assert "raw:" not in plain  # the same but for white space
    for trainer in ("diffusers-sdxl", "kohya-lumina2"):
        assert "fewer tokens" not in cutline("show", tmp_path, "one.png", "--trainer", trainer).stdout
    assert not ftfy_changes("it's plain, 漢字 and é")


def test_a_key_in_another_form_is_found(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "caf\u00e9.png")
    cutline("add", tmp_path)
    assert rows_of(Dataset(tmp_path), "cafe\u0301.png")["pictures"]["key"] == "caf\u00e9.png"
    with pytest.raises(CutlineError, match=r"Near it: caf\u00e9\.png"):
        rows_of(Dataset(tmp_path), "cafe.png")
