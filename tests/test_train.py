"""A training used in odd ways: pictures that vanish, disks that are full, runs that are half gone, and two at once."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny
from cutline import options, registry
from cutline.dataset import Dataset
from cutline.options import CutlineError
from cutline.training.captioner import Captioner, Report
from cutline.training.runs import Run
from running import environment
from trainings import equal, make_scenes, weights

SMALL: dict[str, Any] = {
    "annotator": "blip",
    "target_modules": "query,value",
    "dropout": 0.0,
    "batch_size": 2,
    "max_steps": 2,
    "validation": 0.0,
    "measured": 0,
    "samples": 0,
    "log_every_n_steps": 1,
}


@pytest.fixture(scope="module")
def tiny_blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture
def scene_dataset(tmp_path: Path) -> Dataset:
    return make_scenes(tmp_path / "scenes", 8)


def small(model: Path, **given: Any) -> Captioner:
    return options.fill(Captioner, {**SMALL, "model": str(model), **given})


def teach(settings: Captioner, dataset: Dataset) -> tuple[Report, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    return settings.train(dataset, events=events.append), events


def metrics(report: Report, *names: str) -> list[dict[str, float]]:
    """These figures of each step."""
    lines = [line for line in Run(report.run).metrics() if "loss" in line]
    return [{name: line[name] for name in names} for line in lines]


def test_batches_that_make_a_step_teach_what_one_batch_does(tiny_blip: Path, scene_dataset: Dataset) -> None:
    """Captions of unequal lengths, and an epoch that ends amid a step: each token counts the same."""
    # An orthogonal beginning has both matrices other than 0: there is something that an error can be relative to.
    given: dict[str, Any] = {"init": "orthogonal", "max_steps": None, "epochs": 2, "validation": 0.01}
    one, _ = teach(small(tiny_blip, name="one", batch_size=6, **given), scene_dataset)
    given |= {"batch_size": 2, "gradient_accumulation_steps": 3}
    cut, _ = teach(small(tiny_blip, name="cut", **given), scene_dataset)
    found, expected = weights(cut.run), weights(one.run)
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() <= 1e-6 * tensor.abs().max(), name
    for mine, theirs in zip(metrics(cut, "loss", "grad_norm"), metrics(one, "loss", "grad_norm"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_picture_that_vanishes_on_the_way_teaches_nothing_more(
    workers: int, tiny_blip: Path, scene_dataset: Dataset
) -> None:
    events: list[dict[str, Any]] = []

    def vanish(event: dict[str, Any]) -> None:
        events.append(event)
        if event["event"] == "step" and event["step"] == 4:  # the end of the first epoch
            for name in ("001.png", "002.png"):
                (scene_dataset.root / name).unlink(missing_ok=True)

    report = small(tiny_blip, max_steps=12, workers=workers).train(scene_dataset, events=vanish)
    told = {event["key"]: event["error"] for event in events if event["event"] == "unreadable"}
    assert told == {"001.png": "vanished", "002.png": "vanished"}
    assert report.left_out == {"unreadable on the way": 2}
    assert report.step == 12


@pytest.mark.slow
def test_a_recipe_shuffles_and_drops_by_epoch_whoever_opens_the_pictures(
    tiny_blip: Path, scene_dataset: Dataset, tmp_path: Path
) -> None:
    with scene_dataset.layer("tags/x").write() as writer:
        for number in range(8):
            writer.add({"key": f"{number:03}.png", "general": ["red", "blue", "star", "circle"]})
    recipe = tmp_path / "mixed.toml"
    recipe.write_text('[tags]\nfirst_of = ["tags/x"]\nshuffle = true\n')
    given: dict[str, Any] = {"recipe": str(recipe), "epochs": 3, "max_steps": None, "batch_size": 8}
    alone, _ = teach(small(tiny_blip, name="alone", **given), scene_dataset)
    helped, _ = teach(small(tiny_blip, name="helped", workers=2, **given), scene_dataset)
    assert equal(weights(alone.run), weights(helped.run))
    still = tmp_path / "still.toml"
    still.write_text('[tags]\nfirst_of = ["tags/x"]\n')
    unmixed, _ = teach(small(tiny_blip, name="still", **{**given, "recipe": str(still)}), scene_dataset)
    # Without the rest of the training, the loss of an epoch would be that of the one before.
    assert metrics(alone, "loss") != metrics(unmixed, "loss")


def test_without_held_out_pictures_the_newest_model_is_the_best(tiny_blip: Path, scene_dataset: Dataset) -> None:
    report, _ = teach(small(tiny_blip, save_every_n_steps=1, max_steps=3), scene_dataset)
    assert (report.run / "best").resolve().name == "step-000003"
    assert [folder.name for folder in sorted((report.run / "models").iterdir())] == ["step-000002", "step-000003"]


def test_what_strict_refuses_leaves_nothing_behind(tiny_blip: Path, scene_dataset: Dataset) -> None:
    picture = scene_dataset.root / "003.png"
    kept = picture.read_bytes()
    picture.unlink()
    with pytest.raises(CutlineError, match=r"1 pictures cannot be opened, and strict=true refuses them: 003\.png$"):
        teach(small(tiny_blip, strict=True, name="mine"), scene_dataset)
    picture.write_bytes(kept)
    report, _ = teach(small(tiny_blip, strict=True, name="mine"), scene_dataset)
    assert report.left_out == {}
    assert report.step == 2


def test_a_run_is_for_one_command_at_a_time(tiny_blip: Path, scene_dataset: Dataset) -> None:
    folder = scene_dataset.home / "runs/mine"
    holding = (
        "import sys; from pathlib import Path; from cutline.training.runs import Run\n"
        "with Run(Path(sys.argv[1])).alone({}):\n    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holding, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(CutlineError, match=r"another process is at work in .*mine: wait for it, or stop it"):
            teach(small(tiny_blip, name="mine"), scene_dataset)
        assert not folder.exists()
        other.communicate()
    assert teach(small(tiny_blip, name="mine"), scene_dataset)[0].step == 2


@pytest.mark.slow
def test_a_run_of_which_files_are_gone_does_what_it_can(tiny_blip: Path, scene_dataset: Dataset) -> None:
    """A checkpoint that is not whole is none; what was said before is said again; without models all is done anew."""
    settings = small(tiny_blip, name="mine", save_every_n_steps=1, max_steps=3, validation=0.2, measured=1)
    run = scene_dataset.home / "runs/mine"

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "saved" and event["step"] == 2:
            raise KeyboardInterrupt

    whole = small(tiny_blip, name="whole", save_every_n_steps=1, max_steps=3, validation=0.2, measured=1)
    expected, _ = teach(whole, scene_dataset)
    for gone, start in (("captions-before.json", 2), ("checkpoints/step-000002/trainer_state.json", 0)):
        with pytest.raises(KeyboardInterrupt):
            settings.train(scene_dataset, events=stop)
        (run / gone).unlink()
        report, events = teach(settings, scene_dataset)
        assert next(event["step"] for event in events if event["event"] == "start") == start
        assert equal(weights(run), weights(expected.run))
        assert report.before == expected.before
        assert teach(settings, scene_dataset)[0].already
        for name in ("best", "last"):
            (run / name).unlink()
    _, events = teach(settings, scene_dataset)
    assert "its models are gone" in events[0]["text"]
    assert equal(weights(run), weights(expected.run))


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("cannot mount a disk of its own")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_a_disk_that_is_full_is_said_to_be_and_the_run_goes_on_later(tiny_blip: Path, full_disk: Path) -> None:
    dataset = make_scenes(full_disk / "scenes", 4)
    whole, _ = teach(small(tiny_blip, name="whole"), dataset)
    junk = full_disk / "junk"
    for left in (60_000, 90_000, 130_000):  # room for less than the adapter, than the optimizer's state, than all
        junk.unlink(missing_ok=True)
        with junk.open("wb") as handle:
            handle.write(bytes(shutil.disk_usage(full_disk).free - left))
        with pytest.raises(CutlineError, match=r"cannot write .*mine: No space left on device.*free some space"):
            teach(small(tiny_blip, name="mine"), dataset)
    junk.unlink()
    report, _ = teach(small(tiny_blip, name="mine"), dataset)
    assert equal(weights(report.run), weights(whole.run))


@pytest.mark.slow
def test_pictures_in_tars_teach_too(tiny_blip: Path, tmp_path: Path) -> None:
    loose = make_scenes(tmp_path / "loose", 6)
    packed = Dataset(tmp_path / "packed")
    packed.root.mkdir()
    with tarfile.open(packed.root / "0.tar", "w") as tar:
        for path in sorted(loose.root.iterdir()):
            if path.is_file():
                entry = tarfile.TarInfo(path.name)
                entry.size = path.stat().st_size
                tar.addfile(entry, io.BytesIO(path.read_bytes()))
    packed.add(options.fill(registry.load("sources", "webdataset"), {"path": packed.root}))
    report, events = teach(small(tiny_blip, workers=2), packed)
    assert report.step == 2
    assert next(event["train"] for event in events if event["event"] == "ready") == 6
    assert not [event for event in events if event["event"] == "unreadable"]


def test_there_may_be_one_picture_or_none(tiny_blip: Path, tmp_path: Path) -> None:
    one = make_scenes(tmp_path / "one", 1)
    report, _ = teach(small(tiny_blip, validation=0.05, measured=1, samples=1), one)
    assert (report.step, report.measured) == (2, 0)
    (one.root / "000.png").unlink()
    with pytest.raises(CutlineError, match="no picture is left to learn from"):
        teach(small(tiny_blip, seed=1), one)
    with pytest.raises(CutlineError, match="is no dataset yet"):
        teach(small(tiny_blip), Dataset(tmp_path))


def test_long_words_and_a_models_own_signs_are_text(tiny_blip: Path, tmp_path: Path) -> None:
    dataset = make_scenes(tmp_path / "scenes", 4)
    for number, text in enumerate(("a red circle " * 1667, "a [SEP] star", "</s> a", "<|im_end|> a")):
        (dataset.root / f"{number:03}.txt").write_text(text)
    dataset.add(options.fill(registry.load("sources", "folder"), {"path": str(dataset.root)}))
    report, events = teach(small(tiny_blip), dataset)
    tokens = next(event["tokens"] for event in events if event["event"] == "ready")
    assert (tokens["most"], tokens["cut"]) == (5002, 1)
    assert all(line["loss"] > 0 for line in metrics(report, "loss"))


@pytest.mark.slow
def test_wandb_is_told_without_a_network(tiny_blip: Path, scene_dataset: Dataset, monkeypatch: Any) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    report, _ = teach(small(tiny_blip, log_with="all"), scene_dataset)
    assert list(report.run.glob("wandb/offline-run-*/*.wandb"))
    assert list((report.run / "tensorboard").rglob("events.out.*"))
