"""Names of options in the scripts that people come from: each is refused, with words that are right to type here."""

from __future__ import annotations

import dataclasses
import re
import sys

import pytest

from cutline import registry
from cutline.cli import former
from cutline.cli.main import main

TRAIN_BLIP = (
    "--device --model_id --rank --alpha --dropout --target_modules --learning_rate --weight_decay --batch_size --epochs"
)
TRAIN_FLORENCE = (
    "--dataset_dir --output_dir --device --model_id --seed --log_with --name --rank --alpha --dropout --target_modules "
    "--learning_rate --weight_decay --batch_size --gradient_accumulation_steps --epochs --gradient_checkpointing "
    "--quantize --accumulation_compression --rslora --sample_every_n_epochs --sample_every_n_steps "
    "--save_every_n_epochs --save_every_n_steps --optimizer_name --scheduler --accumulation_rank -ac "
    "--activation_checkpointing --accumulation-rank --optimizer_rank"
)
INFERENCE_BLIP = (
    "--base_model --peft_model --images --beams --seed --save_captions --caption_extension --max_token_length "
    "--overwrite"
)
INFERENCE_FLORENCE = (
    "--base_model --peft_model --images --seed --batch_size --save_captions --overwrite --caption_extension "
    "--max_token_length --task"
)
COMPILE_CAPTIONS = "--dataset_dir --output_dir"
ELSEWHERE = (
    "lr num_train_epochs train_batch_size network_dim network_alpha max_train_steps mixed_precision optimizer_type "
    "lr_scheduler lr_warmup_steps xformers sdpa dynamo_backend zero_stage"
)
"""Of kohya's and of transformers."""

TRAINING = {field.name for field in dataclasses.fields(registry.load("trainings", "captioner"))}


def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    """What the command line says as it refuses these words with code 2, in one line."""
    monkeypatch.setattr(sys, "argv", ["cutline", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def options_of(group: str, name: str) -> set[str]:
    return {field.name for field in dataclasses.fields(registry.load(group, name))}


def hold(error: str, own: set[str]) -> None:
    """Each option that a hint names is there, and it says one or names a command, or that nothing is needed."""
    hint = error.partition("Here: ")[2]
    named = set(re.findall(r"-o (\w+)=", hint))
    there = options_of("exports", "sidecar") if "cutline export DATASET sidecar" in hint else own
    assert named <= (TRAINING if "cutline train" in hint else there), hint
    assert named or re.search(r"cutline (add|export|annotate|train) |nothing: |said (first|third)", hint), error


@pytest.mark.parametrize(
    ("annotator", "flag"),
    [("blip", flag) for flag in INFERENCE_BLIP.split()] + [("florence2", flag) for flag in INFERENCE_FLORENCE.split()],
)
def test_options_of_the_captioning_scripts(
    annotator: str, flag: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = options_of("annotators", annotator)
    hold(said(capsys, monkeypatch, "annotate", "photos", annotator, flag, "value"), own)
    hold(said(capsys, monkeypatch, "annotate", f"{flag}=value", "photos", annotator), own)
    name = flag.lstrip("-")
    if name not in own:
        hold(said(capsys, monkeypatch, "annotate", "photos", annotator, "-o", f"{name}=value"), own)


@pytest.mark.parametrize("flag", [*TRAIN_BLIP.split(), *TRAIN_FLORENCE.split(), *ELSEWHERE.split()])
def test_options_of_the_training_scripts(
    flag: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = flag if flag.startswith("-") else f"--{flag}"
    hold(said(capsys, monkeypatch, "train", "photos", "blip-lora", flag, "value", "more"), TRAINING)
    hold(said(capsys, monkeypatch, "train", f"{flag}=value"), TRAINING)
    name = flag.lstrip("-").replace("-", "_")
    if name not in TRAINING:
        hold(said(capsys, monkeypatch, "train", "photos", "blip-lora", "-o", f"{name}=value"), TRAINING)
    if name not in former.HINTS["annotate"]:  # typed at the wrong command, it says which is the right one
        hint = former.hint("train", flag)
        assert hint
        assert hint in said(capsys, monkeypatch, "annotate", "photos", "blip", flag, "value")


def test_options_of_the_script_that_compiles_captions(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for flag in COMPILE_CAPTIONS.split():
        hold(said(capsys, monkeypatch, "add", "photos", flag, "out"), options_of("sources", "folder"))
        hold(said(capsys, monkeypatch, "export", "photos", "sidecar", "out", flag, "x"), set())


def test_what_was_typed_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for words, expected in {
        "annotate photos blip --peft_model lora": "cutline annotate has no --peft_model. Here: -o adapter=…",
        "annotate photos blip --beams=10": "cutline annotate has no --beams. Here: -o beams=…",
        "annotate photos blip -ac": "no -ac. Here: at `cutline train`, -o activation_checkpointing=true",
        "annotate photos blip -o peft_model=lora": "blip has no option 'peft_model'. Here: -o adapter=…",
        "export photos sidecar out -o caption_extension=.caption": "Here: -o extension=…",
        "export photos sidecar out --overwrite": "Here: -o mode=overwrite",
        "annotate photos blip --save_captions": "cutline export DATASET sidecar OUT",
    }.items():
        assert expected in said(capsys, monkeypatch, *words.split())


def test_a_hint_is_given_only_where_it_would_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in ("annotate photos server -o num_beams=3", "export photos sidecar out -o seed=1"):
        error = said(capsys, monkeypatch, *words.split())
        assert "It has: " in error
        assert "Here: " not in error


def test_every_hint_of_training_names_its_options() -> None:
    for name, hint in former.HINTS["train"].items():
        hold(f"Here: {hint}", TRAINING)
        assert name not in TRAINING or f"-o {name}=" in hint
