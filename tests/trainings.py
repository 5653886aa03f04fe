"""What tests of training share: a dataset of scenes, settings in a few words, and processes to be killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import tiny
from cutline import options, registry, toml_files
from cutline.dataset import Dataset
from cutline.demo.scenes import scenes
from cutline.training.captioner import Captioner

FAMILIES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "blip": ("blip-lora", tiny.save_blip),
    "florence2": ("florence2-lora", tiny.save_florence2),
    "llava": ("image-text-lora", tiny.save_llava),
    "qwen2_vl": ("qwen-vl-lora", tiny.save_qwen2_vl),
}
"""Family -> its preset of training, and what saves a tiny model of it."""

QUICK = {
    "log_every_n_steps": 1,
    "samples": 0,
    "measured": 0,
    "gradient_accumulation_steps": 1,
    "batch_size": 4,
    "max_tokens": 40,
}

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["cutline.training.loop"])  # torch is loaded once, not for each process


def make_scenes(folder: Path, count: int = 24) -> Dataset:
    """A dataset of small scenes, some of which have long captions beside them."""
    folder.mkdir(parents=True)
    for number, scene in enumerate(islice(scenes("training test"), count)):
        scene.draw(48).save(folder / f"{number:03}.png")
        more = ", " + scene.caption if number % 3 == 0 else ""
        (folder / f"{number:03}.txt").write_text(scene.caption + more)
    dataset = Dataset(folder)
    dataset.add(options.fill(registry.load("sources", "folder"), {"path": str(folder)}))
    return dataset


def captioner(preset: str, model: Path | str, **given: Any) -> Captioner:
    """Settings of a training that does as little as there is."""
    values = {name: value for name, value in toml_files.preset("training", preset).items() if name != "trains"}
    return options.fill(Captioner, {**values, **QUICK, "model": str(model), **given})


class Training:
    """A training in a process of its own, whose events come as they happen."""

    def __init__(self, settings: Captioner, root: Path) -> None:
        self.events, theirs = _CONTEXT.Pipe(duplex=False)
        self.process = _CONTEXT.Process(target=_train, args=(settings, root, theirs))
        self.process.start()
        theirs.close()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            try:
                yield self.events.recv()
            except (EOFError, ConnectionResetError):
                return

    def stop_at(self, step: int, number: signal.Signals) -> int:
        """Let it go until that step is done, send it a signal, and wait for its end. Returns the exit code."""
        for event in self:
            if event["event"] == "step" and event["step"] >= step:
                os.kill(self.process.pid or 0, number)
                break
        return self.end()

    def end(self) -> int:
        """Wait for its end. Returns the exit code."""
        for _ in self:
            pass
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode


def _train(settings: Captioner, root: Path, pipe: Any) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    report = settings.train(Dataset(root), events=pipe.send)
    os._exit(130 if report.interrupted else 0)


def weights(run: Path, which: str = "last") -> dict[str, Any]:
    """The weights that a run has saved, by name."""
    from safetensors.torch import load_file

    found = {
        name: tensor for file in sorted((run / which).glob("*.safetensors")) for name, tensor in load_file(file).items()
    }
    assert found
    return found


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether all weights are the same, bit for bit."""
    import torch

    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
