"""A captioner is taught: what, in what order, and that a run that was killed ends as it would have without."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cutline import options, registry
from cutline.dataset import Dataset
from cutline.options import CutlineError, OptionError
from cutline.training import examples as learning
from cutline.training.captioner import Captioner
from cutline.training.examples import FILLER
from cutline.training.runs import Run
from running import cutline
from trainings import FAMILIES, Training, captioner, equal, make_scenes, weights


@pytest.fixture(scope="module")
def scene_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("models")

    def find(family: str) -> Path:
        if not (folder / family).exists():
            FAMILIES[family][1](folder / family)
        return folder / family

    return find


@pytest.fixture
def scene_dataset(tmp_path: Path) -> Dataset:
    return make_scenes(tmp_path / "scenes")


@pytest.mark.parametrize(
    "family", ["blip", *(pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES if family != "blip")]
)
def test_the_losses_of_three_steps_are_those_worked_out_by_hand(
    family: str, scene_dataset: Dataset, scene_models: Callable[[str], Path], tmp_path: Path
) -> None:
    """Captions of unequal lengths, two batches to a step: the sum over tokens, divided by their number."""
    import peft
    import torch
    import transformers

    model = _without_dropout(scene_models(family), tmp_path / "model")
    given: dict[str, Any] = {"dropout": 0.0, "scheduler": "constant", "weight_decay": 0.0, "max_grad_norm": 0}
    given |= {"learning_rate": 0.003, "gradient_accumulation_steps": 2, "max_steps": 3, "validation": 0.0}
    settings = captioner(FAMILIES[family][0], model, **given)
    report = settings.train(scene_dataset)
    found = [line["loss"] for line in Run(report.run).metrics() if "loss" in line]

    from cutline.training.families import open_family

    taught = learning.gather(scene_dataset, settings.find_recipe(scene_dataset), ())
    transformers.set_seed(settings.seed)
    asking = settings.asking("cpu", max_tokens=40, dtype="float32")
    family_of = open_family(asking, max_tokens=40)
    target = settings.target_modules
    config = peft.LoraConfig(
        r=16, lora_alpha=32, target_modules=target if isinstance(target, str) else list(target), lora_dropout=0.0
    )
    network = peft.get_peft_model(family_of.session.model, config).train()
    optimizer = torch.optim.AdamW(
        [one for one in network.parameters() if one.requires_grad], lr=0.003, weight_decay=0.0
    )
    by_hand = []
    for step in range(3):
        places = taught.order(0, step=8, batch=4)[8 * step : 8 * step + 8]
        total, tokens = torch.zeros(()), 0
        for place in places:
            row = taught.row(int(place), scene_dataset)
            batch = family_of.tensors([row], [family_of.prepare(row)], [taught.still[int(place)]])
            labels = batch.pop("labels")
            logits = network(**batch).logits
            for at, label in enumerate(labels[0].tolist()):
                if label != -100:
                    total = total - logits[0, at].log_softmax(-1)[label]
                    tokens += 1
        torch.autograd.backward(total / tokens)
        by_hand.append(total.item() / tokens)
        optimizer.step()
        optimizer.zero_grad()
    assert found == pytest.approx(by_hand, rel=1e-4)
    assert len({round(loss, 3) for loss in found}) == 3


def _without_dropout(model: Path, out: Path) -> Path:
    """A copy of a model that leaves nothing to chance when it is taught."""
    shutil.copytree(model, out)
    config = (out / "config.json").read_text()
    (out / "config.json").write_text(re.sub(r'("\w*(?:dropout|drop_path)\w*": )[0-9.]+', r"\g<1>0.0", config))
    return out


ROOM = 16
"""Tokens that a sampled caption may have beyond the longest one learnt, as `loop.ROOM`, which would load torch."""


def whole_run(settings: Any, dataset: Dataset, name: str) -> Path:
    training = Training(_named(settings, name), dataset.root)
    assert training.end() == 0
    return dataset.home / "runs" / name


def _named(settings: Any, name: str) -> Any:
    from dataclasses import replace

    return replace(settings, name=name)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kills"), [("blip", 5), ("florence2", 1), ("llava", 1), ("qwen2_vl", 1)])
def test_a_run_that_is_killed_ends_with_the_same_weights(
    family: str, kills: int, scene_dataset: Dataset, scene_models: Callable[[str], Path]
) -> None:
    given = {"epochs": 3, "save_every_n_steps": 2, "measured": 4, "validation": 0.2}
    settings = captioner(FAMILIES[family][0], scene_models(family), **given)
    whole = whole_run(settings, scene_dataset, "whole")
    steps = (Run(whole).said() or {})["steps"]
    for step in sorted(random.Random(family).sample(range(1, steps), kills)):
        killed = Training(_named(settings, "killed"), scene_dataset.root)
        assert killed.stop_at(step, signal.SIGKILL) == -signal.SIGKILL
    killed_run = whole_run(settings, scene_dataset, "killed")
    assert equal(weights(whole), weights(killed_run))
    assert equal(weights(whole, "best"), weights(killed_run, "best"))
    assert (whole / "metrics.jsonl").read_text() == (killed_run / "metrics.jsonl").read_text()
    before = json.loads((killed_run / "evaluation.json").read_text())
    assert before == json.loads((whole / "evaluation.json").read_text())

    # In a fresh process, by the run's folder and nothing else, the adapter says what the run measured.
    said = Run(killed_run).said() or {}
    longest = min(said["tokens"]["most"] + ROOM, said["tokens"]["limit"])
    asked = ("-o", f"adapter={killed_run}", "-o", "beams=1", "-o", f"max_tokens={longest}", "--as", "captions/after")
    cutline("annotate", scene_dataset.root, settings.annotator, *asked)
    texts = dict(Dataset(scene_dataset.root).sql('select key, texts[1] from "captions/after"').fetchall())
    noted = json.loads((killed_run / "captions-after.json").read_text())
    assert noted
    assert {key: texts[key] for key in noted} == noted


@pytest.mark.slow
def test_all_weights_of_a_model_whose_files_have_older_names_go_on_too(
    scene_dataset: Dataset, scene_models: Callable[[str], Path]
) -> None:
    given: dict[str, Any] = {"annotator": "image_text", "user": "say", "method": "full", "max_tokens": 40}
    given |= {"model": str(scene_models("qwen2_vl")), "max_steps": 4, "save_every_n_steps": 2, "samples": 0}
    settings = options.fill(Captioner, {**given, "measured": 1, "learning_rate": 1e-3, "device": "cpu"})
    whole = whole_run(settings, scene_dataset, "whole")
    assert Training(_named(settings, "killed"), scene_dataset.root).stop_at(3, signal.SIGKILL) == -signal.SIGKILL
    assert equal(weights(whole), weights(whole_run(settings, scene_dataset, "killed")))


@pytest.mark.slow
def test_ctrl_c_saves_first_and_the_same_command_goes_on(
    scene_dataset: Dataset, scene_models: Callable[[str], Path]
) -> None:
    """Saved in the middle of an epoch, of schedule-free's two sets of weights the right one."""
    settings = captioner(
        "blip-lora", scene_models("blip"), epochs=2, optimizer="schedule_free", validation=0.2, workers=1
    )
    whole = whole_run(settings, scene_dataset, "whole")
    stopped = Training(_named(settings, "stopped"), scene_dataset.root)
    assert stopped.stop_at(2, signal.SIGINT) == 130
    run = Run(scene_dataset.home / "runs" / "stopped")
    checkpoint = run.checkpoint()
    assert checkpoint is not None
    assert checkpoint.name in ("step-000003", "step-000004")
    assert (run.folder / "last").exists()
    again = whole_run(settings, scene_dataset, "stopped")
    assert equal(weights(whole), weights(again))
    assert (whole / "metrics.jsonl").read_text() == (again / "metrics.jsonl").read_text()
    assert not (again / "checkpoints").exists()


@pytest.fixture(scope="module")
def taught_once(
    tmp_path_factory: pytest.TempPathFactory, scene_models: Callable[[str], Path]
) -> tuple[Dataset, Any, Any, list[dict[str, Any]]]:
    """A run of four steps, with all that it leaves."""
    dataset = make_scenes(tmp_path_factory.mktemp("taught") / "scenes")
    model = os.path.relpath(scene_models("blip"))  # as it may be typed
    settings = captioner("blip-lora", model, max_steps=4, samples=3, measured=2, save_every_n_steps=2)
    told: list[dict[str, Any]] = []
    report = settings.train(dataset, preset="blip-lora", events=told.append)
    return dataset, settings, report, told


def test_a_run_leaves_all_that_tells_of_it(
    taught_once: tuple[Dataset, Any, Any, list[dict[str, Any]]], scene_models: Callable[[str], Path]
) -> None:
    dataset, _, report, told = taught_once
    run = report.run
    names = {path.relative_to(run).as_posix() for path in run.rglob("*")}
    assert {"run.json", "rows.parquet", "metrics.jsonl", "evaluation.json", "loss.png", "learning-rate.png"} <= names
    assert {"samples/step-000000.png", "samples/step-000004.png", "best", "last"} <= names
    assert {path.name for path in (run / "best").iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "cutline.json", "prompt.toml")
    }
    said = json.loads((run / "best" / "cutline.json").read_text())
    assert said["annotator"] == "blip"
    assert said["base"] == str(scene_models("blip").resolve()), "from anywhere"
    rows = pq.read_table(run / "rows.parquet").to_pylist()
    assert len(rows) == 24
    assert {row["part"] for row in rows} == {"train", "held_out"}
    metrics = Run(run).metrics()
    assert [line["step"] for line in metrics if "loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in metrics if "held_out_loss" in line] == [0, 2, 4]
    ready = next(event for event in told if event["event"] == "ready")
    assert ready["tokens"]["most"] > ready["tokens"]["least"]
    assert sum(ready["layers"].values()) == 17
    assert set(report.after) == set(report.before) >= {"exact", "cider_d", "semantic_f1"}
    assert report.embedder == "lexical"
    assert dataset.layers() == ["captions/sidecar", "pictures"]


def test_a_finished_run_is_not_run_again_and_other_words_make_another(
    taught_once: tuple[Dataset, Any, Any, list[dict[str, Any]]],
) -> None:
    dataset, settings, report, _ = taught_once
    told: list[dict[str, Any]] = []
    again = settings.train(dataset, preset="blip-lora", events=told.append)
    assert again.already
    assert [one["event"] for one in told] == ["finished"]  # else the command line would say nothing
    assert again.run == report.run
    assert again.after == report.after
    folder = options.fill(registry.load("sources", "folder"), {"path": str(dataset.root)})
    words = dataset.root / "001.txt"
    before = words.read_text()
    words.write_text("a red star")
    dataset.add(folder)
    other = settings.train(dataset, preset="blip-lora", dry_run=True)
    assert other.run != report.run
    with pytest.raises(OptionError, match=r"pictures or their words, which have changed.*-o name="):
        _named(settings, report.run.name).train(dataset)
    words.write_text(before)
    dataset.add(folder)
    assert settings.train(dataset, preset="blip-lora").already


def test_what_is_refused_before_the_first_step_leaves_nothing_behind(
    scene_dataset: Dataset, scene_models: Callable[[str], Path]
) -> None:
    def settings(**given: Any) -> Any:
        return captioner("blip-lora", scene_models("blip"), name="mine", max_steps=None, epochs=1, **given)

    with pytest.raises(CutlineError, match=r"warmup_steps=20 leaves no step after it: the run has 6"):
        settings(warmup_steps=20).train(scene_dataset, dry_run=True)
    hurt = scene_dataset.root / "001.png"
    whole, was = hurt.read_bytes(), hurt.stat()
    hurt.write_bytes(b"no picture")
    with pytest.raises(CutlineError, match="strict=true"):
        settings(strict=True).train(scene_dataset)
    hurt.write_bytes(whole)
    os.utime(hurt, ns=(was.st_atime_ns, was.st_mtime_ns))
    told: list[dict[str, Any]] = []
    settings(strict=True, max_tokens=9).train(scene_dataset, events=told.append)
    assert next(event for event in told if event["event"] == "ready")["left_out"] == {}


def test_texts_are_not_taught_to_a_prompt_that_would_reject_them(scene_dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    settings = captioner("qwen-vl-lora", tmp_path / "nothing", prompt="toriigate-json")
    with pytest.raises(OptionError, match="toriigate-json asks for JSON, and the texts to be learnt are none"):
        settings.train(scene_dataset, dry_run=True)
    for file in scene_dataset.root.glob("*.txt"):
        file.write_text(json.dumps({"caption": file.read_text()}))
    scene_dataset.add(options.fill(registry.load("sources", "folder"), {"path": str(scene_dataset.root)}))
    with pytest.raises(CutlineError, match="nothing is a folder, but cannot be loaded"):
        settings.train(scene_dataset, dry_run=True)


def test_an_order_has_each_picture_once_and_steps_that_batches_do_not_change(scene_dataset: Dataset) -> None:
    recipe = captioner_recipe(scene_dataset)
    found = learning.gather(scene_dataset, recipe, ())
    for epoch in (0, 1):
        order = found.order(epoch, step=8, batch=8)
        assert sorted(order.tolist()) == list(range(24))
        fine = found.order(epoch, step=8, batch=2)
        assert order.tolist() == fine.tolist()
    assert found.order(0, step=8, batch=8).tolist() != found.order(1, step=8, batch=8).tolist()
    filled = found.take(range(21)).order(0, step=8, batch=8)
    assert (filled == FILLER).sum() == 3
    assert filled[-1] == FILLER
    lengths = np.array([len(text) for text in found.still])
    steps = found.order(0, step=8, batch=8).reshape(-1, 8)
    spread = np.ptp(lengths[steps], axis=1).mean()
    assert spread < np.ptp(lengths) / 2


def captioner_recipe(dataset: Dataset) -> Any:
    from cutline.compose.recipe import find_recipe

    return find_recipe(dataset, "")


def test_near_pictures_are_held_out_together_and_stay_there() -> None:
    draw = random.Random(1)
    keys = [f"{number:04}" for number in range(600)]
    hashes = [draw.getrandbits(64) for _ in keys]
    for number in range(0, 200, 2):
        hashes[number + 1] = hashes[number] ^ 0b10001  # a copy that was compressed again
    out = learning.hold_out(keys, hashes, 0.1)
    assert 30 < sum(out) < 90
    assert all(out[number] == out[number + 1] for number in range(0, 200, 2))
    more = learning.hold_out([*keys, "new"], [*hashes, draw.getrandbits(64)], 0.1)
    assert more[:600] == out
    assert sum(learning.hold_out(keys[:3], hashes[:3], 0.01)) in (1, 2)
    assert learning.hold_out(keys[:1], hashes[:1], 0.5) == [False]
    assert not any(learning.hold_out(keys, hashes, 0.0))


def _stage(run: Run, step: int, best: int | None) -> None:
    staged = run.staging / f"checkpoint-{step}"
    staged.mkdir(parents=True)
    for name in ("scheduler.pt", "rng_state.pth", "adapter_model.safetensors"):
        (staged / name).write_bytes(b"x")
    (staged / "trainer_state.json").write_text(json.dumps({"best_global_step": best}))
    run.publish(staged, step, best=best, keep=1)
    shutil.rmtree(run.staging)


def test_a_run_that_was_killed_before_its_links_were_made_has_them_when_it_goes_on(tmp_path: Path) -> None:
    """Else the measures at its end, and who captions with it, would take older weights for the best."""
    run = Run(tmp_path)
    _stage(run, 999_999, 999_999)
    _stage(run, 1_000_000, 1_000_000)  # newer, though it sorts before
    newest = run.checkpoint()
    assert newest is not None
    assert newest.name == "step-1000000"
    for name in ("best", "last"):
        (tmp_path / name).unlink()
    (tmp_path / "models/.step-000007.old").mkdir()
    run.go_on_from(1_000_000)
    assert [os.readlink(tmp_path / name) for name in ("best", "last")] == ["models/step-1000000"] * 2
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["step-1000000"]
