"""BLIP on tiny real models: what is said of a picture depends on the picture and the settings, and on nothing else."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from cutline.annotators.blip import BASE, Blip
from cutline.annotators.local import Draw
from cutline.annotators.session import Row
from cutline.demo.scenes import scenes
from cutline.options import CutlineError, OptionError, digest, fill, identity
from cutline.pictures import Picture


@pytest.fixture(scope="module")
def blip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def adapter_folder(tmp_path_factory: pytest.TempPathFactory, blip_folder: Path) -> Path:
    return tiny.save_blip_adapter(tmp_path_factory.mktemp("adapter"), blip_folder)


@pytest.fixture(scope="module")
def scene_rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    folder = tmp_path_factory.mktemp("scenes")
    rows = []
    for number, scene in enumerate(islice(scenes("test"), 20)):
        path = folder / f"{number:02}.png"
        scene.draw(64).save(path)
        rows.append({"key": path.name, "uri": path.name, "picture": Picture(path), "attempt": 1})
    return rows


def say(settings: Blip, rows: list[Row]) -> dict[str, Row]:
    """Answer these rows: key -> row, without the time it took."""
    answers = list(settings.load()(iter(rows)))
    assert all(answer.pop("seconds") > 0 for answer in answers if not answer.get("error"))
    assert len(answers) == len(rows)
    return {answer["key"]: answer for answer in answers}


def words(answers: dict[str, Row]) -> list[str]:
    return [answers[key]["raw"] for key in sorted(answers)]


@pytest.mark.parametrize("settings", [{"beams": 1}, {"beams": 3}, {"sample": True}, {"sample": True, "top_p": 1.0}])
def test_batch_and_order_change_nothing(blip_folder: Path, scene_rows: list[Row], settings: dict[str, Any]) -> None:
    one = Blip(model=str(blip_folder), max_tokens=16, batch_size=1, **settings)
    alone = say(one, scene_rows)
    assert say(dataclasses.replace(one, batch_size=8), scene_rows) == alone
    assert say(dataclasses.replace(one, batch_size=7, threads=1), scene_rows[::-1]) == alone
    assert len(set(words(alone))) > 10, "the model says different things of different pictures"


def test_a_row_says_how_it_came_about(blip_folder: Path, scene_rows: list[Row]) -> None:
    settings = Blip(model=str(blip_folder), prompt="a red", beams=1, max_tokens=24)
    answers = say(settings, scene_rows)
    assert {row["verdict"] for row in answers.values()} <= {"good", "rejected"}
    for row in scene_rows:
        answer = answers[row["key"]]
        assert answer["request"] == digest(settings.request(row))
        assert answer["tokens_in"] == 3  # the start and two words
        assert answer["tokens_out"] == 24 or answer["finish_reason"] == "stop"
        if answer["verdict"] == "good":
            assert answer["texts"] == [answer["raw"].strip()]
            assert answer["texts"][0].startswith("a red ")
            assert "[" not in answer["raw"], "special tokens stay out"


def test_the_request_names_model_prompt_settings_and_picture() -> None:
    settings = Blip(prompt="a photo of", beams=5, min_tokens=4, max_tokens=9, repetition_penalty=1.2)
    row = {"key": "cat.jpg", "uri": "cat.jpg", "attempt": 1}
    asked = settings.request(row)
    assert asked["model"] == BASE
    assert asked["prompt"] == "a photo of"
    assert asked["picture"] == "cat.jpg"
    assert asked["generation"] == {
        "do_sample": False,
        "num_beams": 5,
        "min_new_tokens": 4,
        "max_new_tokens": 9,
        "repetition_penalty": 1.2,
    }
    drawn = Blip(sample=True, seed=7)
    assert drawn.request(row)["sampling"]["seed"] == "7/cat.jpg"
    assert drawn.request({**row, "attempt": 2})["sampling"]["seed"] == "7.2/cat.jpg"


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a blue"},
        {"beams": 4},
        {"sample": True},
        {"min_tokens": 24},
        {"max_tokens": 5},
        {"repetition_penalty": 3.0},
        {"dtype": "bfloat16"},
        {"dtype": "float16"},
    ],
    ids=str,
)
def test_every_setting_of_identity_changes_what_is_said(
    blip_folder: Path, scene_rows: list[Row], change: dict[str, Any]
) -> None:
    plain: dict[str, Any] = {"model": str(blip_folder), "max_tokens": 30}
    before, after = say(Blip(**plain), scene_rows), say(Blip(**{**plain, **change}), scene_rows)
    assert words(before) != words(after)
    assert identity(Blip(**plain)) != identity(Blip(**{**plain, **change}))


@pytest.mark.parametrize("change", [{"temperature": 3.0}, {"top_p": 0.2}, {"seed": 1}], ids=str)
def test_every_setting_of_sampling_changes_what_is_said(
    blip_folder: Path, scene_rows: list[Row], change: dict[str, Any]
) -> None:
    plain: dict[str, Any] = {"model": str(blip_folder), "max_tokens": 12, "sample": True}
    assert words(say(Blip(**plain), scene_rows)) != words(say(Blip(**{**plain, **change}), scene_rows))


def test_a_draw_hangs_on_seed_and_key_and_a_retry_draws_anew(blip_folder: Path, scene_rows: list[Row]) -> None:
    settings = Blip(model=str(blip_folder), sample=True, temperature=2.0, max_tokens=12)
    picture = {name: scene_rows[0][name] for name in ("uri", "picture")}
    a, b, again = ({"key": key, "attempt": 1, **picture} for key in ("a", "b", "a"))
    first = say(settings, [a, b])
    assert first["a"]["raw"] != first["b"]["raw"], "one picture under two keys"
    assert say(settings, [again])["a"]["raw"] == first["a"]["raw"]
    assert say(settings, [{**again, "attempt": 2}])["a"]["raw"] != first["a"]["raw"]


def test_a_search_that_comes_again_says_something_else(blip_folder: Path, scene_rows: list[Row]) -> None:
    settings = Blip(model=str(blip_folder), max_tokens=12)
    mixed = [{**row, "attempt": 1 + number % 2} for number, row in enumerate(scene_rows)]
    first, second = say(settings, scene_rows), say(settings, mixed)
    assert {key: row["request"] for key, row in second.items()} == {
        row["key"]: digest(settings.request(row)) for row in mixed
    }
    changed = {row["key"] for row in mixed if first[row["key"]]["raw"] != second[row["key"]]["raw"]}
    assert changed
    assert changed <= {row["key"] for row in mixed if row["attempt"] == 2}


def test_draws_are_distributed_as_the_model_says() -> None:
    chances = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    draw = Draw([f"0/{number}" for number in range(4000)])
    tokens = draw(torch.empty(4000, 0), chances.log().expand(4000, -1)).argmax(dim=-1)
    assert torch.allclose(torch.bincount(tokens, minlength=5) / 4000, chances, atol=0.03)


def test_an_adapter_speaks_and_brings_its_base(blip_folder: Path, adapter_folder: Path, scene_rows: list[Row]) -> None:
    adapted = Blip(adapter=str(adapter_folder), max_tokens=12)
    assert adapted.model == str(blip_folder), "the adapter names its base"
    plain = Blip(model=str(blip_folder), max_tokens=12)
    assert words(say(adapted, scene_rows)) != words(say(plain, scene_rows))
    assert identity(adapted) != identity(plain)


def test_a_merged_adapter_says_what_an_attached_one_says(
    blip_folder: Path, adapter_folder: Path, scene_rows: list[Row]
) -> None:
    from peft import PeftModel
    from transformers import BlipForConditionalGeneration

    settings = Blip(adapter=str(adapter_folder), max_tokens=12, beams=1)
    attached = settings.load()
    base = BlipForConditionalGeneration.from_pretrained(blip_folder)
    attached.model = PeftModel.from_pretrained(base, adapter_folder).eval()
    assert [row["raw"] for row in attached(iter(scene_rows))] == words(say(settings, scene_rows))


def test_an_adapter_of_another_model_is_refused(tmp_path: Path, blip_folder: Path, adapter_folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = adapter_folder / "adapter_model.safetensors"
    (tmp_path / "adapter_config.json").write_text((adapter_folder / "adapter_config.json").read_text())
    # A deeper model has layers that this one lacks. PEFT alone would leave them out without a word.
    save_file(
        {name.replace("layers.0.", "layers.9."): value for name, value in load_file(weights).items()},
        tmp_path / weights.name,
    )
    with pytest.raises(CutlineError, match="does not fit"):
        Blip(model=str(blip_folder), adapter=str(tmp_path)).load()


def test_saying_nothing_is_rejected(tmp_path: Path, scene_rows: list[Row]) -> None:
    silent = Blip(model=str(tiny.save_blip(tmp_path, end=100.0)), beams=1)
    for answer in say(silent, scene_rows[:3]).values():
        assert answer["texts"] == []
        assert (answer["verdict"], answer["reason"], answer["finish_reason"]) == ("rejected", "empty", "stop")
    prompted = say(dataclasses.replace(silent, prompt="a red"), scene_rows[:3])
    assert {answer["reason"] for answer in prompted.values()} == {"empty"}, "a prompt alone is no caption"


def test_a_caption_that_does_not_end_is_cut(tmp_path: Path, scene_rows: list[Row]) -> None:
    endless = Blip(model=str(tiny.save_blip(tmp_path, end=-100.0)), max_tokens=6)
    for answer in say(endless, scene_rows[:3]).values():
        assert (answer["finish_reason"], answer["tokens_out"]) == ("length", 6)


def test_a_bad_picture_is_its_own_row(tmp_path: Path, blip_folder: Path, scene_rows: list[Row]) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    rows = [*scene_rows[:2], {"key": "bad.png", "uri": "bad.png", "picture": Picture(bad), "attempt": 1}]
    answers = say(Blip(model=str(blip_folder), max_tokens=6), rows)
    assert answers["bad.png"]["error"] == "not_an_image"
    assert words({key: answer for key, answer in answers.items() if key != "bad.png"})


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"seed": "1"}, "no effect without -o sample=true"),
        ({"temperature": "0.5"}, "no effect without"),
        ({"top_p": "0.5"}, "no effect without"),
        ({"sample": "true", "beams": "3"}, "no meaning with sample=true"),
        ({"sample": "true", "temperature": "0"}, "more than 0"),
        ({"sample": "true", "top_p": "1.5"}, "at most 1"),
        ({"beams": "0"}, "at least 1"),
        ({"max_tokens": "0"}, "at least 1"),
        ({"min_tokens": "80"}, "0 to max_tokens"),
        ({"repetition_penalty": "0"}, "more than 0"),
        ({"batch_size": "0"}, "at least 1"),
        ({"dtype": "int8"}, "does not fit"),
        ({"beam": "3"}, "no option"),
    ],
    ids=str,
)
def test_options_that_would_have_no_effect_are_refused(options: dict[str, str], problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        fill(Blip, options)


def test_open_options_are_filled_in_once() -> None:
    for settings in (Blip(), Blip(sample=True)):
        assert dataclasses.replace(settings, device="cpu") == dataclasses.replace(settings, device="cpu", batch_size=16)
    assert (Blip().beams, Blip(sample=True).beams) == (3, 1)


def test_mistakes_say_what_to_type_next(tmp_path: Path, blip_folder: Path) -> None:
    with pytest.raises(CutlineError, match="-o model=FOLDER"):
        Blip(model=str(tmp_path)).load()
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(CutlineError, match="of type 'clip'"):
        Blip(model=str(tmp_path)).load()
    with pytest.raises(CutlineError, match="hf download"):
        Blip(adapter=str(tmp_path / "none"))
    with pytest.raises(CutlineError, match="-o device=cpu"):
        Blip(model=str(blip_folder), device="gpu").load()
    with pytest.raises(CutlineError, match="max_tokens lower"):
        Blip(model=str(blip_folder), max_tokens=200).load()
    with pytest.raises(OptionError, match="local folder"):
        Blip(model=str(blip_folder), revision="main")


def test_a_blip_without_a_text_decoder_is_refused(tmp_path: Path, blip_folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in blip_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    kept = {name: value for name, value in load_file(weights).items() if name.startswith("vision_model.")}
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(CutlineError, match="weights are missing"):
        Blip(model=str(tmp_path)).load()


def test_settings_are_light_and_a_session_is_quiet(blip_folder: Path, scene_rows: list[Row]) -> None:
    path = str(scene_rows[0]["picture"].path)
    code = f"""
import sys
from pathlib import Path
from cutline.annotators.blip import Blip
from cutline.pictures import Picture
settings = Blip(model={str(blip_folder)!r}, sample=True, max_tokens=5)
assert not {{"torch", "transformers", "peft"}} & set(sys.modules)
row = {{"key": "a", "uri": "a", "picture": Picture(Path({path!r})), "attempt": 1}}
print(*(answer.get("verdict") for answer in settings.load()(iter([row]))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("good", "rejected")
    assert done.stderr == ""
