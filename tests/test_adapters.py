"""Trained weights at work: runs and what they bring, adapters that others' scripts left, and merging into the base."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from asking import TAGS, say, scene_rows, words
from cutline import registry
from cutline.annotators.blip import Blip
from cutline.annotators.florence2 import BASE, Florence2
from cutline.annotators.image_text import ImageText
from cutline.annotators.session import Row
from cutline.cli.main import app
from cutline.dataset import Dataset
from cutline.options import CutlineError, OptionError, fill, identity
from cutline.training.merge import merge
from running import cutline

SEEDS_BLIP_MODULES = [
    *("self.query", "self.key", "self.value", "output.dense"),
    *("self_attn.qkv", "self_attn.projection", "mlp.fc1", "mlp.fc2"),
]
SEEDS_FLORENCE_MODULES = ["qkv", "proj", "k_proj", "v_proj", "q_proj", "out_proj"]
"""What caption-train's scripts adapt unless told otherwise."""

FAMILIES: dict[str, tuple[Any, str, list[str], dict[str, Any]]] = {
    "blip": (tiny.save_blip, "BlipForConditionalGeneration", SEEDS_BLIP_MODULES, {}),
    "florence2": (tiny.save_florence2, "Florence2ForConditionalGeneration", ["qkv", "q_proj", "v_proj"], {}),
    "image_text": (
        tiny.save_qwen2_vl,
        "Qwen2VLForConditionalGeneration",
        ["q_proj", "v_proj"],
        {"max_pixels": 2 * 28**2, "min_pixels": 28**2},
    ),
}
PROMPTS = {"blip": "a red", "florence2": "<CAPTION>", "image_text": "describe this picture in a few plain sentences"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: save(folder / name) for name, (save, *_) in FAMILIES.items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, bases: dict[str, Path]) -> dict[str, Path]:
    """A run of each family, as training leaves it."""
    found = {}
    for name, (_, kind, modules, options) in FAMILIES.items():
        found[name] = tmp_path_factory.mktemp("runs") / name
        step = tiny.save_adapter(found[name] / "models" / "step-000120", bases[name], kind, modules)
        leave_run(found[name], step, name, bases[name], options)
    return found


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return scene_rows(tmp_path_factory.mktemp("scenes"), 5)


def leave_run(run: Path, step: Path, annotator: str, base: Path, options: dict[str, Any]) -> None:
    """What stands in a run beside its weights."""
    (run / "run.json").write_text("{}")
    (run / "best").symlink_to(step.relative_to(run), target_is_directory=True)
    card = {"annotator": annotator, "base": str(base), "revision": None, "options": options, "step": 120}
    (step / "cutline.json").write_text(json.dumps(card))
    (step / "prompt.toml").write_text(f'user = "{PROMPTS[annotator]}"\n')


def made(annotator: str, **given: Any) -> Any:
    more: dict[str, Any] = {} if annotator == "blip" else {"tags": (TAGS,)}
    return fill(registry.load("annotators", annotator), {"max_tokens": 12, "beams": 1, **more, **given})


@pytest.mark.parametrize("annotator", FAMILIES)
def test_a_run_brings_its_weights_and_how_they_were_asked(
    annotator: str, runs: dict[str, Path], bases: dict[str, Path]
) -> None:
    run = runs[annotator]
    step = run / "models/step-000120"
    adapted = made(annotator, adapter=str(run))
    assert adapted.adapter == str(step), "a request says which weights it had"
    assert adapted.model == str(bases[annotator])
    assert identity(adapted) == identity(made(annotator, adapter=str(step)))
    asked = {"prompt": PROMPTS["blip"]} if annotator == "blip" else {"user": PROMPTS[annotator]}
    said = made(annotator, adapter=str(run), **asked, **FAMILIES[annotator][3])
    assert identity(adapted) == identity(said), "as if all of it had been said"
    assert identity(adapted) != identity(made(annotator, model=str(bases[annotator]), adapter=None))


def test_what_is_said_goes_before_what_was_trained(runs: dict[str, Path]) -> None:
    adapted = made("image_text", adapter=str(runs["image_text"]), prompt="joycaption-descriptive", max_pixels=9999)
    assert adapted.prompt == "joycaption-descriptive"
    assert (adapted.min_pixels, adapted.max_pixels) == (28**2, 9999)
    assert made("blip", adapter=str(runs["blip"]), prompt="").prompt == ""
    assert "OCR" in made("florence2", adapter=str(runs["florence2"]), user="<OCR>").asking.user


def test_nothing_changes_where_nothing_was_trained(bases: dict[str, Path]) -> None:
    assert made("blip", model=str(bases["blip"])).prompt == ""
    assert made("florence2", model=str(bases["florence2"])).prompt == "florence2-detailed"
    assert made("image_text", model=str(bases["image_text"])).prompt == "plain"


def test_a_whole_model_of_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    step = tiny.save_florence2(run / "models" / "step-000120")
    leave_run(run, step, "florence2", tmp_path, {})
    tuned = made("florence2", model=str(run))
    assert tuned.model == str(step)
    assert tuned.asking.user == "<CAPTION>"
    with pytest.raises(OptionError, match=re.escape(f"is a whole model and no adapter: -o model={run}")):
        made("florence2", adapter=str(run))
    with pytest.raises(OptionError, match=f"cutline annotate DATASET florence2 -o model={re.escape(str(run))}"):
        made("image_text", model=str(run))
    with pytest.raises(OptionError, match=f"nothing to merge: use it by -o model={re.escape(str(run))}"):
        merge(run, tmp_path / "out")


def test_what_is_no_run_of_this_annotator_is_refused(tmp_path: Path, runs: dict[str, Path]) -> None:
    run = runs["florence2"]
    with pytest.raises(OptionError, match=f"cutline annotate DATASET florence2 -o adapter={re.escape(str(run))}"):
        Blip(adapter=str(run))
    with pytest.raises(OptionError, match=f"is an adapter and no whole model: -o adapter={re.escape(str(run))}"):
        Florence2(model=str(run))
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(OptionError, match="without best weights yet"):
        Blip(adapter=str(tmp_path))
    (tmp_path / "best").mkdir()
    for broken in ("[]", "{", "{}"):
        (tmp_path / "best" / "cutline.json").write_text(broken)
        with pytest.raises(CutlineError, match=r"cutline\.json is not what a training writes"):
            Blip(adapter=str(tmp_path))


def test_a_dry_run_shows_the_trained_prompt(tmp_path: Path, runs: dict[str, Path]) -> None:
    scene_rows(tmp_path, 1)
    Dataset(tmp_path).add(registry.load("sources", "folder")(path=tmp_path))
    said = cutline("annotate", tmp_path, "florence2", "-o", f"adapter={runs['florence2']}", "--dry-run").stdout
    assert '"task": "<CAPTION>"' in said


def test_adapters_lie_where_other_scripts_left_them(tmp_path: Path, bases: dict[str, Path]) -> None:
    def leave(*names: str) -> None:
        for name in names:
            (tmp_path / name).mkdir(parents=True)
            (tmp_path / name / "adapter_config.json").write_text("{}")

    leave("late/_epoch-2", "late/_epoch-10", "early_step-5", "git/CausalLM-LoRA")
    for name, expected in {
        "late": "late/_epoch-10",  # the last
        "early": "early_step-5",
        "git": "git/CausalLM-LoRA",
    }.items():
        with pytest.raises(CutlineError, match=f"-o adapter={re.escape(str(tmp_path / expected))}$"):
            Blip(adapter=str(tmp_path / name))
    with pytest.raises(CutlineError, match="hf download"):
        Blip(adapter=str(tmp_path / "none"))


def test_a_blip_adapter_of_the_seeds_script(tmp_path: Path, bases: dict[str, Path], rows: list[Row]) -> None:
    tiny.save_adapter(tmp_path, bases["blip"], "BlipForConditionalGeneration", SEEDS_BLIP_MODULES)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    # What PEFT 0.7 wrote, and none of what has come since.
    old = "base_model_name_or_path bias fan_in_fan_out inference_mode init_lora_weights lora_alpha lora_dropout"
    old += " modules_to_save peft_type r rank_pattern revision target_modules task_type"
    config = {name: config[name] for name in old.split()}
    assert config["task_type"] is None
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    names = {name.split(".lora_")[0].rpartition("layers.0.")[2] for name in load_file(weights(tmp_path))}
    assert {"self_attn.qkv", "self_attn.projection", "mlp.fc1", "mlp.fc2"} <= names
    adapted = say(made("blip", adapter=str(tmp_path)), rows)
    assert words(adapted) != words(say(made("blip", model=str(bases["blip"])), rows))


def test_a_florence_adapter_of_the_code_that_came_with_the_model(
    tmp_path: Path, bases: dict[str, Path], rows: list[Row]
) -> None:
    native, old = tmp_path / "native", tmp_path / "old"
    modules = [*SEEDS_FLORENCE_MODULES, "conv", "fc1", "fc2", "lm_head"]
    tiny.save_adapter(native, bases["florence2"], "Florence2ForConditionalGeneration", modules)
    old.mkdir()
    save_file({as_there(name): weight for name, weight in load_file(weights(native)).items()}, weights(old))
    there = set(load_file(weights(old)))
    for name in (
        "language_model.model.decoder.layers.0.encoder_attn.k_proj",
        "language_model.lm_head",
        "vision_tower.convs.1.proj",
        "vision_tower.blocks.0.0.spatial_block.window_attn.fn.qkv",
        "vision_tower.blocks.1.0.channel_block.channel_attn.fn.proj",
        "vision_tower.blocks.1.0.channel_block.ffn.fn.net.fc2",
    ):
        assert f"base_model.model.{name}.lora_A.weight" in there, "a name of that code"
    config = json.loads((native / "adapter_config.json").read_text())
    config |= {
        "base_model_name_or_path": "microsoft/Florence-2-base-ft",
        "revision": "refs/pr/1",
        "target_modules": [*SEEDS_FLORENCE_MODULES, "fc1", "fc2", "lm_head"],
        "auto_mapping": {
            "base_model_class": "Florence2ForConditionalGeneration",
            "parent_library": "transformers_modules.microsoft.Florence-2-base-ft.modeling_florence2",
        },
    }
    (old / "adapter_config.json").write_text(json.dumps(config))

    settings = Florence2(adapter=str(old))
    assert (settings.model, settings.revision) == (BASE, None), "the same weights, for the class in transformers"
    assert settings.prompt == "florence2-detailed", "nobody knows what was asked in training"
    base = {"model": str(bases["florence2"])}
    found = say(made("florence2", **base, adapter=str(old)), rows)
    expected = say(made("florence2", **base, adapter=str(native)), rows)
    assert words(found) == words(expected)
    assert words(found) != words(say(made("florence2", **base), rows))


def test_names_of_the_code_that_came_with_the_model(bases: dict[str, Path]) -> None:
    settings = made("florence2", model=str(bases["florence2"]))
    block = "vision_tower.blocks.2.8"
    for there, here in {
        f"{block}.spatial_block.conv1.fn.dw.lora_A": f"model.{block}.spatial_block.conv1.lora_A",
        f"{block}.spatial_block.window_attn.norm": f"model.{block}.spatial_block.norm1",
        f"{block}.channel_block.channel_attn.fn.qkv": f"model.{block}.channel_block.channel_attn.qkv",
        f"{block}.channel_block.ffn.norm": f"model.{block}.channel_block.norm2",
        f"{block}.channel_block.ffn.fn.net.fc1": f"model.{block}.channel_block.ffn.fc1",
        "vision_tower.convs.0.norm": "model.vision_tower.convs.0.norm",
        "image_proj_norm.weight": "model.multi_modal_projector.image_proj_norm.weight",
        "image_pos_embed.row_embeddings": "model.multi_modal_projector.image_position_embed.row_embeddings",
        "language_model.model.shared": "model.language_model.shared",
        "model.language_model.shared": "model.language_model.shared",  # as it is
    }.items():
        assert settings.renamed(f"base_model.model.{there}") == f"base_model.model.{here}"
    assert settings.renamed("vision_tower.convs.0.proj") == "vision_tower.convs.0.proj", "no adapter's weight"


def test_an_adapter_that_cannot_be_put_into_its_base_is_refused(tmp_path: Path, bases: dict[str, Path]) -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny._quiet().Florence2ForConditionalGeneration.from_pretrained(bases["florence2"])
    grouped = "model.vision_tower.blocks.0.0.spatial_block.conv1"
    get_peft_model(model, LoraConfig(r=32, target_modules=[grouped])).save_pretrained(str(tmp_path))
    with pytest.raises(CutlineError, match="cannot be put into"):
        made("florence2", adapter=str(tmp_path)).load()


def as_there(weight: str) -> str:
    """The name that a weight of transformers' Florence-2 has in the code that comes with the model."""
    for here, there in (
        (r"model\.model\.language_model\.", "model.language_model.model."),
        (r"model\.lm_head\.", "model.language_model.lm_head."),
        (r"model\.model\.vision_tower\.", "model.vision_tower."),
        (r"(convs\.\d+)\.conv\.", r"\1.proj."),
        (r"(window|channel)_attn\.", r"\1_attn.fn."),
        (r"ffn\.", "ffn.fn.net."),
    ):
        weight = re.sub(here, there, weight)
    return weight


def weights(folder: Path) -> Path:
    return folder / "adapter_model.safetensors"


@pytest.mark.parametrize("annotator", FAMILIES)
def test_a_merged_model_says_what_the_adapter_said(
    annotator: str, tmp_path: Path, runs: dict[str, Path], bases: dict[str, Path], rows: list[Row]
) -> None:
    out = tmp_path / "merged"
    generation = bases[annotator] / "generation_config.json"
    before = generation.read_text()
    assert merge(runs[annotator], out) == out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged"]
    merged, adapted = made(annotator, model=str(out)), made(annotator, adapter=str(runs[annotator]))
    if annotator == "blip":
        assert merged.prompt == adapted.prompt
    else:
        assert merged.asking == adapted.asking
    assert words(say(merged, rows)) == words(say(adapted, rows))
    assert words(say(made(annotator, model=str(bases[annotator])), rows)) != words(say(adapted, rows))
    assert (out / "generation_config.json").read_text() == before
    card = json.loads((out / "cutline.json").read_text())
    assert (card["annotator"], card["step"], card["merged"]) == (annotator, 120, True)
    assert not list(out.glob("adapter*"))


def test_a_foreign_adapter_is_merged_into_the_base_it_is_told(
    tmp_path: Path, bases: dict[str, Path], rows: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, out = tmp_path / "adapter", tmp_path / "deep" / "out"
    tiny.save_blip_adapter(adapter, bases["blip"])
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": None}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(OptionError, match="--model BASE"):
        merge(adapter, out)
    app(["merge", str(adapter), str(out), "--model", str(bases["blip"])], standalone_mode=False)
    assert f"cutline annotate DATASET blip -o model={out}" in capsys.readouterr().out
    assert words(say(made("blip", model=str(out)), rows)) == words(
        say(made("blip", model=str(bases["blip"]), adapter=str(adapter)), rows)
    )
    assert not (out / "prompt.toml").exists(), "nobody knows what was asked"


def test_a_merge_is_whole_or_not_at_all(tmp_path: Path, runs: dict[str, Path], bases: dict[str, Path]) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(OptionError, match="is there already"):
        merge(runs["blip"], tmp_path / "there")
    other = tmp_path / "other"
    tiny.save_adapter(other, bases["florence2"], "Florence2ForConditionalGeneration", ["q_proj"])
    with pytest.raises(CutlineError, match="does not fit"):
        merge(other, tmp_path / "out", model=str(bases["blip"]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "there"]


@pytest.mark.slow
def test_half_precision_is_kept_in_a_merge(tmp_path: Path, rows: list[Row]) -> None:
    transformers = tiny._quiet()
    base = tiny.save_florence2(tmp_path / "base")
    kind = transformers.Florence2ForConditionalGeneration
    kind.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    adapter = tiny.save_adapter(tmp_path / "adapter", base, kind.__name__, ["q_proj", "v_proj"])
    out = merge(adapter, tmp_path / "out")
    assert {weight.dtype for weight in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert words(say(made("florence2", model=str(out)), rows)) == words(
        say(made("florence2", adapter=str(adapter)), rows)
    )


@pytest.mark.slow
def test_a_merged_model_is_a_base_too(tmp_path: Path, runs: dict[str, Path], rows: list[Row]) -> None:
    base = merge(runs["image_text"], tmp_path / "base")
    adapter = tiny.save_adapter(tmp_path / "adapter", base, "Qwen2VLForConditionalGeneration", ["q_proj"])
    adapted = ImageText(adapter=str(adapter))
    assert (adapted.model, adapted.max_pixels) == (str(base), 2 * 28**2), "what its base was trained with"
    assert adapted.asking.user == PROMPTS["image_text"]


@pytest.mark.slow
def test_an_adapter_of_a_weight_that_two_layers_share_changes_one(tmp_path: Path) -> None:
    """As in PEFT's own model, where it stands beside the lm_head, and what reads tokens has the base's weight."""
    from peft import PeftModel

    kind = tiny._quiet().Florence2ForConditionalGeneration
    base = tiny.save_florence2(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True  # as in the published ones
    (base / "config.json").write_text(json.dumps(config))
    adapter = tiny.save_adapter(tmp_path / "adapter", base, kind.__name__, ["q_proj", "lm_head"])
    told = {"input_ids": torch.tensor([[5, 6, 7, 2]]), "decoder_input_ids": torch.tensor([[2, 0, 9, 8, 7]])}
    out = merge(adapter, tmp_path / "out")
    models = (
        PeftModel.from_pretrained(kind.from_pretrained(base), str(adapter)).eval(),
        Florence2(adapter=str(adapter), device="cpu", max_tokens=20).load().model,
        Florence2(model=str(out), device="cpu", max_tokens=20).load().model,
    )
    with torch.inference_mode():
        expected, *found = (model(**told).logits for model in models)
    for logits in found:
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
