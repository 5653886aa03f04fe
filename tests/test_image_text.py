"""image_text on tiny real models of many families: one way for all, and padding, batch and order change no word."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from asking import TAGS, say, scene_rows, words
from cutline.annotators.image_text import ImageText
from cutline.annotators.session import Row
from cutline.dataset import Dataset
from cutline.options import CutlineError, OptionError, digest, fill, identity
from cutline.pictures import Picture
from running import cutline

FAMILIES: dict[str, Callable[..., Path]] = {
    "llava": tiny.save_llava,
    "qwen2_vl": tiny.save_qwen2_vl,
    "qwen2_5_vl": lambda folder: tiny.save_qwen2_vl(folder, version="Qwen2_5_VL"),
    "qwen3_vl": lambda folder: tiny.save_qwen2_vl(folder, version="Qwen3VL"),
    "smolvlm": tiny.save_smolvlm,
    "idefics3": lambda folder: tiny.save_smolvlm(folder, family="Idefics3"),
    "paligemma": tiny.save_paligemma,
    "gemma3": tiny.save_gemma3,
    "blip_2": tiny.save_blip2,
}

ASK = "describe this picture[ of {tags}] in a few plain sentences"

Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The folder of a family's model, made when it is first asked for."""
    made: dict[str, Path] = {}

    def find(family: str) -> Path:
        if family not in made:
            made[family] = FAMILIES[family](tmp_path_factory.mktemp(family))
        return made[family]

    return find


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return scene_rows(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A prompt whose answers are kept as they are, but for empty ones."""
    path = tmp_path_factory.mktemp("prompts") / "once.toml"
    path.write_text(f'user = "{ASK}"\n[checks]\nloop = "keep"\ncut = "keep"\ntries = 1\n')
    return str(path)


def settings(model: Path, prompt: str, **given: Any) -> ImageText:
    return ImageText(**{"model": str(model), "prompt": prompt, "tags": (TAGS,), "max_tokens": 10, **given})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "search", [{"beams": 1}, {"beams": 3}, pytest.param({"sample": True}, marks=pytest.mark.slow)], ids=str
)
def test_batch_and_order_change_nothing(
    family: str, search: dict[str, Any], model_of: Made, rows: list[Row], once: str
) -> None:
    one = settings(model_of(family), once, batch_size=1, **search)
    alone = say(one, rows)
    assert say(dataclasses.replace(one, batch_size=8), rows) == alone
    assert say(dataclasses.replace(one, batch_size=7, threads=1), rows[::-1]) == alone
    assert not any(answer.get("error") for answer in alone.values())
    if family != "gemma3":  # a random one says the same of anything
        assert len(set(words(alone))) > 2, "the model says different things of different pictures"
    for answer in alone.values():
        assert "<" not in re.sub(r"<(loc|seg)\d+>", "", answer["raw"]), "signs stay out; PaliGemma's places are words"
        assert answer["tokens_out"] == 10 or answer["finish_reason"] == "stop"


def test_a_row_says_how_it_came_about(model_of: Made, rows: list[Row], once: str) -> None:
    asked = settings(model_of("qwen2_vl"), once, system="a cat")
    answers = say(asked, rows)
    for row in rows:
        answer = answers[row["key"]]
        assert answer["request"] == digest(asked.request(row))
        assert answer["attempt"] == 1
        assert answer["texts"] == ([answer["raw"].strip()] if answer["verdict"] == "good" else [])
    first, second = (asked.request(row) for row in rows[:2])
    assert [message["role"] for message in first["messages"]] == ["system", "user"]
    assert first["messages"][1]["content"] == "describe this picture of cat, red dog in a few plain sentences"
    assert second["messages"][1]["content"] == "describe this picture in a few plain sentences"
    assert first["picture"] == rows[0]["uri"]
    assert first["generation"]["num_beams"] == 1
    assert "sampling" not in first


def test_longer_prompts_and_larger_pictures_are_more_tokens(model_of: Made, rows: list[Row], once: str) -> None:
    answers = say(settings(model_of("qwen2_vl"), once), rows)
    assert answers[rows[0]["key"]]["tokens_in"] > answers[rows[1]["key"]]["tokens_in"], "tags are told"
    assert answers[rows[2]["key"]]["tokens_in"] > answers[rows[4]["key"]]["tokens_in"], "it is wider"


@pytest.mark.parametrize(
    "change",
    [
        {"system": "a red cat"},
        {"user": "cat"},
        {"beams": 4},
        {"sample": True},
        {"min_tokens": 30},
        {"max_tokens": 15},
        {"repetition_penalty": 3.0},
        {"dtype": "bfloat16"},
        {"min_pixels": 9000},
        {"max_pixels": 3136},
        {"quantize": "int8"},
        {"quantize": "nf4"},
    ],
    ids=str,
)
def test_every_setting_of_identity_changes_what_is_said(
    change: dict[str, Any], model_of: Made, rows: list[Row], once: str
) -> None:
    plain = settings(model_of("qwen2_vl"), once, min_tokens=15, max_tokens=30)
    changed = dataclasses.replace(plain, **change)
    assert words(say(changed, rows)) != words(say(plain, rows))
    assert identity(changed) != identity(plain)


@pytest.mark.parametrize("change", [{"temperature": 3.0}, {"top_p": 0.2}, {"top_k": 1}, {"min_p": 1.0}, {"seed": 1}])
def test_every_setting_of_sampling_changes_what_is_said(
    change: dict[str, Any], model_of: Made, rows: list[Row], once: str
) -> None:
    plain = settings(model_of("llava"), once, sample=True)
    assert words(say(dataclasses.replace(plain, **change), rows)) != words(say(plain, rows))


def test_a_draw_among_the_likeliest_alone_is_greedy(model_of: Made, rows: list[Row], once: str) -> None:
    greedy = words(say(settings(model_of("llava"), once), rows))
    assert words(say(settings(model_of("llava"), once, sample=True, top_k=1), rows)) == greedy
    assert words(say(settings(model_of("llava"), once, sample=True, min_p=1.0), rows)) == greedy


def test_attention_is_computed_as_asked(model_of: Made, rows: list[Row], once: str) -> None:
    said = {}
    for attention in ("sdpa", "eager"):
        session = settings(model_of("qwen3_vl"), once, attention=attention).load()
        assert session.model.config._attn_implementation == attention
        said[attention] = [answer["raw"] for answer in session(iter(rows))]
    assert said["sdpa"] == said["eager"], "two ways to the same numbers, here in float32"


def test_a_prompt_may_ask_again_until_it_is_answered_well(tmp_path: Path, model_of: Made, rows: list[Row]) -> None:
    # A random model that is cut off has hardly any whole sentence; each try draws other words.
    (tmp_path / "again.toml").write_text(f'user = "{ASK}"\n[checks]\nloop = "keep"\ncut = "again"\ntries = 4\n')
    asked = settings(model_of("llava"), str(tmp_path / "again.toml"), max_tokens=6)
    answers = say(asked, rows)
    attempts = {answer["attempt"] for answer in answers.values()}
    assert 1 in attempts < {1, 2, 3, 4, 5}
    assert max(attempts) > 1
    for row in rows:
        answer = answers[row["key"]]
        if answer["verdict"] == "rejected":
            assert answer["attempt"] == 4, "all tries are used up"
        request = asked.request({**row, "attempt": answer["attempt"]})
        assert answer["request"] == digest(request)
        assert ("sampling" in request) == (answer["attempt"] > 1)
        if answer["attempt"] > 1:
            assert request["sampling"]["temperature"] == 0.7
            assert request["sampling"]["seed"] != asked.ask(row, 1).seed
    assert say(dataclasses.replace(asked, batch_size=1), rows) == answers, "whoever else is asked again"
    later = {**rows[0], "attempt": 3}
    mixed = say(asked, [later, *rows[1:]])
    assert mixed[rows[0]["key"]]["attempt"] >= 3, "a retry goes on where it left off"
    assert {key: row for key, row in mixed.items() if key != rows[0]["key"]} == {
        key: row for key, row in answers.items() if key != rows[0]["key"]
    }


def test_a_picture_or_prompt_that_cannot_be_is_its_own_row(
    tmp_path: Path, model_of: Made, rows: list[Row], once: str
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    tagged = {"general": ["<image>", "</s>"]}
    odd = [
        {"key": "bad.png", "uri": "bad.png", "picture": Picture(bad), "attempt": 1, TAGS: None},
        {**rows[0], "key": "sign", TAGS: tagged},
    ]
    answers = say(settings(model_of("llava"), once), [*rows[:2], *odd])
    assert answers["bad.png"]["error"] == "not_an_image"
    assert answers["sign"]["error"] == "special_token"
    assert "'</s>'" in answers["sign"]["detail"]
    assert not any(answers[row["key"]].get("error") for row in rows[:2])
    nothing = say(settings(model_of("llava"), once, user="[{tags}]"), rows[:2])
    assert [nothing[row["key"]].get("error") for row in rows[:2]] == [None, "no_prompt"]


# -- how a model is spoken to -----------------------------------------------------------------------------------

BARE = tiny.TEXT.replace("{% if message.role == 'user' %}IMAGE{% endif %}", "")
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
DEAF = tiny.PARTS.replace("{% for message in messages %}", "{% for message in messages if message.role == 'user' %}", 1)


@pytest.mark.parametrize(
    ("template", "reads"),
    [
        (tiny.PARTS, "<|im_start|>user\n<image>cat<|im_end|>\n<|im_start|>assistant\n"),
        (tiny.TEXT, "<|im_start|>user\n<image>cat<|im_end|>\n<|im_start|>assistant\n"),
        (BARE, "<|im_start|>user\n<image>\ncat<|im_end|>\n<|im_start|>assistant\n"),
        (None, "<image>cat"),
    ],
    ids=["parts", "text with a picture", "text alone", "none"],
)
def test_each_template_is_spoken_to_in_its_way(
    tmp_path: Path, template: str | None, reads: str, rows: list[Row], once: str
) -> None:
    session = settings(tiny.save_llava(tmp_path, template=template), once).load()
    assert session.chat.render("", "cat") == reads
    assert not any(answer.get("error") for answer in session(iter(rows[:2])))


@pytest.mark.parametrize("template", [tiny.PARTS, tiny.TEXT, BARE], ids=["parts", "text with a picture", "text alone"])
def test_a_system_prompt_goes_where_the_template_has_it(tmp_path: Path, template: str, once: str) -> None:
    session = settings(tiny.save_llava(tmp_path, template=template), once, system="a dog").load()
    said = session.chat.render("a dog", "cat")
    assert said.startswith("<|im_start|>system\na dog<|im_end|>\n<|im_start|>user\n<image>")


@pytest.mark.parametrize(
    ("template", "given", "says"),
    [
        (NO_SYSTEM + tiny.PARTS, {"system": "a dog"}, "takes no system prompt; leave it empty with -o system="),
        (DEAF, {"system": "a dog"}, "takes no system prompt"),
        (None, {"system": "a dog"}, "no chat template, and so no place for a system prompt"),
        ("{{ messages[0].role }}", {}, "cannot be asked"),
        ("{{ raise_exception('no texts please') }}", {}, "no texts please"),
        (tiny.PARTS.replace("IMAGE", "IMAGEIMAGE"), {}, "cannot be asked"),
    ],
    ids=["refuses system", "drops system", "no template", "drops the text", "refuses all", "two pictures"],
)
def test_templates_that_cannot_say_it_are_refused(
    tmp_path: Path, template: str | None, given: dict[str, str], says: str, once: str
) -> None:
    model = tiny.save_llava(tmp_path, template=template)
    with pytest.raises(CutlineError, match=re.escape(says)):
        settings(model, once, **given).load()


def test_a_template_without_system_prompts_works_without_one(tmp_path: Path, rows: list[Row], once: str) -> None:
    model = tiny.save_llava(tmp_path, template=NO_SYSTEM + tiny.PARTS)
    assert not any(answer.get("error") for answer in say(settings(model, once), rows[:2]).values())


def test_a_template_is_not_told_what_day_it_is(tmp_path: Path, rows: list[Row], once: str) -> None:
    dated = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %} {{ strftime_now('%Y-%m-%d') }} "
    session = settings(tiny.save_llava(tmp_path, template="\n" + dated + tiny.PARTS), once).load()
    assert session.chat.render("", "cat").startswith("\n26 Jul 2024 2024-07-26 <|im_start|>user\n<image>cat")


def test_thoughts_that_the_template_begins_are_no_caption(tmp_path: Path, rows: list[Row], once: str) -> None:
    template = tiny.PARTS.replace("assistant\n", "assistant\n<think>\n")
    answers = say(settings(tiny.save_llava(tmp_path, template=template), once, min_tokens=10), rows)
    for answer in answers.values():
        assert answer["finish_reason"] == "length", "it was cut while it thought"
        assert answer["raw"].startswith("<think>\n")
        assert answer["verdict"] == "rejected"
        assert answer["texts"] == []


def test_signs_that_a_tokenizer_lists_but_does_not_name_are_signs(tmp_path: Path, rows: list[Row], once: str) -> None:
    session = settings(tiny.save_llava(tmp_path), once).load()
    assert "<global-img>" not in session.tokenizer.all_special_tokens
    injected = {**rows[0], TAGS: {"general": ["cat<global-img>"]}}
    (answer,) = session(iter([injected]))
    assert answer["error"] == "special_token"


LEAKS: list[dict[str, Any]] = [
    {"do_sample": True, "temperature": 0.1, "top_p": 0.001, "top_k": 1, "repetition_penalty": 1.5},
    {"no_repeat_ngram_size": 1},
    {"forced_eos_token_id": 3},
    {"num_beams": 2, "num_return_sequences": 2, "length_penalty": 5.0},
    {"return_dict_in_generate": True, "output_scores": True},
    {"stop_strings": ["red"]},
    {"max_time": 1e-9},
    {"guidance_scale": 2.0},
    {"exponential_decay_length_penalty": [1, 9.0]},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"min_length": 60, "max_length": 5},
]


@pytest.mark.parametrize("leak", LEAKS, ids=str)
def test_what_a_file_says_of_the_search_changes_nothing(
    leak: dict[str, Any], tmp_path: Path, model_of: Made, rows: list[Row], once: str
) -> None:
    for file in model_of("llava").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **leak}))
    for search in ({"beams": 1}, {"beams": 2}, {"sample": True}):
        expected = say(settings(model_of("llava"), once, **search), rows[:4])
        found = say(settings(tmp_path, once, **search), rows[:4])
        for key, answer in found.items():
            assert {**answer, "request": None} == {**expected[key], "request": None}


# -- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "moondream1", "auto_map": {"AutoConfig": "x.Y"}}, "type 'moondream1', for which transformers"),
        ({"model_type": "moondream1"}, "see the annotator server"),
        ({"model_type": "llama"}, "does not answer texts about pictures"),
        ({"model_type": "blip"}, "use the annotator blip"),
        ({"model_type": "florence2"}, "use the annotator florence2"),
        ({"model_type": "t5gemma2"}, "an encoder with a decoder"),
        ({"model_type": "llava"}, "cannot be loaded"),
        ({}, "cannot be loaded"),
    ],
    ids=str,
)
def test_models_that_are_none_are_refused_by_name(tmp_path: Path, config: dict[str, Any], says: str, once: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CutlineError, match=says):
        settings(tmp_path, once).load()


def test_the_processor_is_the_one_that_the_files_name(tmp_path: Path, once: str) -> None:
    model = tiny.save_llava(tmp_path)
    for name in ("processor_config.json", "tokenizer_config.json"):
        path = model / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "processor_class": "PixtralProcessor"}))
    with pytest.raises(CutlineError, match="PixtralProcessor requires the Torchvision library"):
        settings(model, once).load()  # and not with LLaVA's, which would leave out Pixtral's signs


@pytest.mark.parametrize("family", ["llava", "smolvlm", "paligemma", "gemma3"])
def test_size_limits_are_refused_where_they_have_no_effect(family: str, model_of: Made, once: str) -> None:
    with pytest.raises(CutlineError, match="max_pixels has no effect on"):
        settings(model_of(family), once, max_pixels=10_000).load()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"model": ""}, "needs a model"),
        ({"min_pixels": "0"}, "at least 1"),
        ({"max_pixels": "-5"}, "at least 1"),
        ({"min_pixels": "20", "max_pixels": "10"}, "is more than max_pixels"),
        ({"top_k": "5"}, "no effect without -o sample=true"),
        ({"min_p": "0.1"}, "no effect without"),
        ({"sample": "true", "top_k": "0"}, "at least 1"),
        ({"sample": "true", "min_p": "1.5"}, "at most 1"),
        ({"sample": "true", "beams": "2"}, "no meaning with sample=true"),
        ({"batch_size": "0"}, "at least 1"),
        ({"batch_size": "many"}, "does not fit"),
        ({"quantize": "int4"}, "does not fit"),
        ({"attention": "flash"}, "does not fit"),
        ({"attention": "flash_attention_2", "dtype": "float32"}, "does not work in float32"),
        ({"dtype": "float8"}, "does not fit"),
        ({"prompt": "no-such-prompt"}, "no-such-prompt"),
        ({"user": "about {nobody}"}, "nobody"),
        ({"tags": "captions/x"}, "no tag layer"),
    ],
    ids=str,
)
def test_bad_values_are_refused_before_any_model_is_loaded(options: dict[str, str], problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        fill(ImageText, {"model": "no/such-model", **options})


@pytest.mark.slow
def test_settings_are_light_and_a_session_is_quiet(model_of: Made, rows: list[Row], once: str) -> None:
    code = f"""
import sys
from pathlib import Path
from cutline.annotators.image_text import ImageText
from cutline.annotators.florence2 import Florence2
from cutline.options import OptionError
from cutline.pictures import Picture
settings = ImageText(model={str(model_of("qwen2_vl"))!r}, max_tokens=5)
Florence2()
row = {{"key": "a", "uri": "a", "picture": Picture(Path({str(rows[0]["picture"].path)!r})), "attempt": 1}}
settings.request(row)
for bad in ({{"beams": 0}}, {{"max_pixels": 0}}, {{"prompt": "none"}}, {{"batch_size": 0}}, {{"top_p": 0.5}}):
    try:
        ImageText(model="x", **bad)
    except OptionError:
        continue
    raise SystemExit(f"{{bad}} was taken")
assert not {{"torch", "transformers", "peft", "bitsandbytes", "PIL"}} & set(sys.modules)
print(*(answer.get("verdict") for answer in settings.load()(iter([row]))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("good", "repaired", "rejected")
    assert done.stderr == ""


# -- end to end -------------------------------------------------------------------------------------------------


def test_the_command_line_captions_pictures(tmp_path: Path, model_of: Made, rows: list[Row], once: str) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for row in rows:
        (pictures / row["key"]).write_bytes(row["picture"].read())
    cutline("add", pictures)
    options = ["-o", f"model={model_of('smolvlm')}", "-o", f"prompt={once}", "-o", "max_tokens=10"]
    dry = cutline("annotate", pictures, "image_text", *options, "--dry-run", "--limit", 1).stdout
    assert "describe this picture in a few plain sentences" in dry
    cutline("annotate", pictures, "image_text", *options)
    said = dict(Dataset(pictures).sql('select key, raw from "captions/image_text"').fetchall())
    plain = [{**row, TAGS: None} for row in rows]
    expected = say(settings(model_of("smolvlm"), once), plain)
    assert said == {key: answer["raw"] for key, answer in expected.items()}
