"""Florence-2 on a tiny real model: its tasks, what it does not take, and no signs in a caption."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from asking import TAGS, say, scene_rows, words
from cutline.annotators.florence2 import BASE, Florence2
from cutline.annotators.session import Row
from cutline.dataset import Dataset
from cutline.options import CutlineError, OptionError, digest, fill, identity
from running import cutline

PRESETS = {
    "florence2-caption": "What does the image describe?",
    "florence2-detailed": "Describe in detail what is shown in the image.",
    "florence2-more-detailed": "Describe with a paragraph what is shown in the image.",
}
"""Prompts, and the sentences that the model was trained with in their place."""


@pytest.fixture(scope="module")
def florence_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_florence2(tmp_path_factory.mktemp("florence2"))


@pytest.fixture(scope="module")
def adapter_folder(tmp_path_factory: pytest.TempPathFactory, florence_folder: Path) -> Path:
    names = ["qkv", "q_proj", "v_proj"]
    return tiny.save_adapter(
        tmp_path_factory.mktemp("adapter"), florence_folder, "Florence2ForConditionalGeneration", names
    )


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return scene_rows(tmp_path_factory.mktemp("scenes"))


def settings(model: Path, **given: Any) -> Florence2:
    return Florence2(**{"model": str(model), "tags": (TAGS,), "max_tokens": 12, **given})


@pytest.mark.parametrize("search", [{"beams": 1}, {}, {"sample": True}], ids=str)
def test_batch_and_order_change_nothing(search: dict[str, Any], florence_folder: Path, rows: list[Row]) -> None:
    one = settings(florence_folder, batch_size=1, **search)
    alone = say(one, rows)
    assert say(dataclasses.replace(one, batch_size=8), rows) == alone
    assert say(dataclasses.replace(one, batch_size=7, threads=1), rows[::-1]) == alone
    assert len(set(words(alone))) > 3, "the model says different things of different pictures"
    lengths = {answer["tokens_out"] for answer in alone.values()}
    assert len(lengths) > 1, "so some were padded"
    assert not any("<" in answer["raw"] for answer in alone.values()), "and no sign is in a caption"


def test_prompts_that_differ_within_a_batch_change_nothing(
    tmp_path: Path, florence_folder: Path, rows: list[Row]
) -> None:
    (tmp_path / "two.toml").write_text(
        '[[one_of]]\nuser = "<CAPTION>"\n[[one_of]]\nuser = "<MORE_DETAILED_CAPTION>"\n[checks]\ntries = 1\n'
    )
    one = settings(florence_folder, prompt=str(tmp_path / "two.toml"), batch_size=1)
    alone = say(one, rows)
    assert len({answer["tokens_in"] for answer in alone.values()}) == 2
    assert say(dataclasses.replace(one, batch_size=8), rows) == alone


@pytest.mark.parametrize("prompt", PRESETS)
def test_a_task_is_asked_by_its_sentence(prompt: str, florence_folder: Path, rows: list[Row]) -> None:
    session = settings(florence_folder, prompt=prompt).load()
    answer = next(iter(session(iter(rows[:1]))))
    sentence = session.tokenizer(PRESETS[prompt]).input_ids
    assert answer["tokens_in"] == 37 + 2 + len(sentence), "the picture, start and end, and the sentence"
    assert answer["request"] == digest(session.settings.request(rows[0]))


def test_spaces_round_a_task_are_nothing(florence_folder: Path, rows: list[Row]) -> None:
    plain = settings(florence_folder, user="<CAPTION>")
    spaced = settings(florence_folder, user=" <CAPTION>\n ")
    assert spaced.request(rows[0]) == plain.request(rows[0])
    assert say(spaced, rows) == say(plain, rows)


def test_tasks_of_fine_tuned_models_are_asked_as_they_are(florence_folder: Path, rows: list[Row]) -> None:
    asked = settings(florence_folder, user="<GENERATE_TAGS>")
    assert not any(answer.get("error") for answer in say(asked, rows[:2]).values())
    assert asked.request(rows[0])["task"] == "<GENERATE_TAGS>"


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "florence2-caption"},
        {"beams": 1},
        {"max_tokens": 4},
        {"min_tokens": 12},
        {"repetition_penalty": 3.0},
        {"sample": True},
        {"quantize": "nf4"},
    ],
    ids=str,
)
def test_every_setting_of_identity_changes_what_is_said(
    change: dict[str, Any], florence_folder: Path, rows: list[Row]
) -> None:
    plain, changed = settings(florence_folder), settings(florence_folder, **change)
    before, after = ([answer["raw"] for answer in say(one, rows).values()] for one in (plain, changed))
    assert before != after
    assert identity(changed) != identity(plain)


def test_an_adapter_speaks_and_brings_its_base(florence_folder: Path, adapter_folder: Path, rows: list[Row]) -> None:
    from peft import PeftModel
    from transformers import Florence2ForConditionalGeneration

    adapted = Florence2(adapter=str(adapter_folder), max_tokens=12, beams=1, tags=(TAGS,))
    assert adapted.model == str(florence_folder)
    merged = words(say(adapted, rows))
    assert merged != words(say(settings(florence_folder, beams=1), rows))
    attached = adapted.load()
    base = Florence2ForConditionalGeneration.from_pretrained(florence_folder)
    base.generation_config = attached.model.generation_config  # not what the file says of the search
    attached.model = PeftModel.from_pretrained(base, adapter_folder).eval()
    assert words({row["key"]: row for row in attached(iter(rows))}) == merged


def test_a_text_that_was_cut_says_so(florence_folder: Path, rows: list[Row]) -> None:
    said = json.loads((florence_folder / "generation_config.json").read_text())
    assert said["forced_eos_token_id"] is not None, "with which the last token is an end, whatever was to come"
    answers = say(settings(florence_folder, min_tokens=8, max_tokens=8), rows)
    assert {answer["finish_reason"] for answer in answers.values()} == {"length"}


def test_nothing_is_said_twice_in_threes(
    florence_folder: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = settings(florence_folder, min_tokens=30, max_tokens=30)
    assert asked.request(rows[0])["generation"]["no_repeat_ngram_size"] == 3
    said = words(say(asked, rows))
    monkeypatch.setattr("cutline.annotators.florence2.NGRAM", 0)
    assert words(say(asked, rows)) != said


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"user": "<OD>"}, "<OD> gives boxes"),
        ({"user": "<REGION_TO_CATEGORY><loc_1><loc_2>"}, "gives boxes or asks for them"),
        ({"user": "<OCR_WITH_REGION>"}, "gives boxes"),
        ({"user": "<CAPTION> of a cat"}, "stands alone"),
        ({"system": "You are an artist."}, "no place for a system prompt"),
        ({"prompt": "toriigate-json"}, "no place for a system prompt"),
        ({"model": "microsoft/Florence-2-large"}, "model=florence-community/Florence-2-large"),
        ({"beams": "0"}, "at least 1"),
        ({"temperature": "0.3"}, "no effect without"),
    ],
    ids=str,
)
def test_bad_values_are_refused_before_any_model_is_loaded(options: dict[str, str], problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        fill(Florence2, options)


def test_models_for_code_of_their_own_are_refused(tmp_path: Path, florence_folder: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({**json.loads((florence_folder / "config.json").read_text()), "auto_map": {"AutoConfig": "x.Y"}})
    )
    with pytest.raises(CutlineError, match=BASE):
        settings(tmp_path).load()
    (tmp_path / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(CutlineError, match="of type 'blip', not 'florence2'"):
        settings(tmp_path).load()
    with pytest.raises(CutlineError, match="max_tokens lower"):
        settings(florence_folder, max_tokens=256).load()


def test_a_prompt_that_tags_spoil_is_its_own_row(florence_folder: Path, rows: list[Row]) -> None:
    spoilt = {**rows[0], "key": "spoilt", TAGS: {"general": ["<OD>"]}}
    ended = {**rows[0], "key": "the end", TAGS: {"general": ["</s>"]}}
    answers = say(settings(florence_folder, user="about {tags}"), [*rows[:2], spoilt, ended])
    assert [answers[key].get("error") for key in sorted(answers)] == [None, None, "no_prompt", "special_token"]


@pytest.mark.slow
def test_the_command_line_captions_pictures(tmp_path: Path, florence_folder: Path, rows: list[Row]) -> None:
    for row in rows:
        (tmp_path / row["key"]).write_bytes(row["picture"].read())
    cutline("add", tmp_path)
    cutline("annotate", tmp_path, "florence2", "-o", f"model={florence_folder}", "-o", "max_tokens=12")
    said = dict(Dataset(tmp_path).sql('select key, raw from "captions/florence-2"').fetchall())
    assert said == {key: answer["raw"] for key, answer in say(settings(florence_folder), rows).items()}
