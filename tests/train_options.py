"""What can be seen of each option of `captioner`, and of the command `train`: for the walk in test_options.py.

Most are seen by teaching a tiny model for two steps: what its losses and its adapter then are. A run is done once,
whichever options ask for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import tiny
from cutline import options
from cutline.dataset import Dataset
from cutline.options import CutlineError
from cutline.training.captioner import Captioner, Report
from trainings import equal, make_scenes, weights

REQUIRED = {"annotator": "blip", "target_modules": "query"}


class World(Protocol):
    folder: Path
    photos: Path
    blip: Path
    adapter: Path

    def cli(self, *words: str | Path, code: int = 0) -> str: ...


Seen = Callable[[World], bool]


@dataclass
class Run:
    """A training, done."""

    report: Report
    events: list[dict[str, Any]]

    @property
    def losses(self) -> list[float]:
        return self._of("loss")

    @property
    def rates(self) -> list[float]:
        return self._of("learning_rate")

    def _of(self, name: str) -> list[float]:
        lines = map(json.loads, (self.report.run / "metrics.jsonl").read_text().splitlines())
        return [line[name] for line in lines if name in line]

    @property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = self.read("last/adapter_config.json")
        return found

    @property
    def weights(self) -> dict[str, Any]:
        return weights(self.report.run)

    def read(self, name: str) -> Any:
        return json.loads((self.report.run / name).read_text())

    def steps(self, event: str) -> list[int]:
        return [told["step"] for told in self.events if told["event"] == event]


class Lab:
    """A dataset of scenes that a tiny BLIP is taught, in one way or another."""

    labs: dict[Path, Lab] = {}  # noqa: RUF012  shared on purpose: one for each model

    def __init__(self, blip: Path) -> None:
        self.blip, self.folder = blip, blip.parent
        self.dataset = make_scenes(self.folder / f"{blip.name} scenes", 12)
        with self.dataset.layer("tags/x").write() as writer:
            for key in _keys(self.dataset):
                writer.add({"key": key, "general": ["cat"]})
        self.runs: dict[str, Run] = {}
        self.dry: list[tuple[list[dict[str, Any]], bool]] = []

    @classmethod
    def of(cls, world: World) -> Lab:
        if world.blip not in cls.labs:
            cls.labs[world.blip] = cls(world.blip)
        return cls.labs[world.blip]

    def settings(self, **given: Any) -> Captioner:
        always: dict[str, Any] = {
            "annotator": "blip",
            "model": str(self.blip),
            "recipe": str(self.recipe()),
            "target_modules": "query,value",
            "dropout": 0.0,
            "learning_rate": 1e-3,
            "batch_size": 2,
            "max_steps": 2,
            "validation": 0.0,
            "measured": 0,
            "samples": 0,
            "log_every_n_steps": 1,
        }
        if given.get("method") == "full":
            always = {name: value for name, value in always.items() if name not in ("target_modules", "dropout")}
        return options.fill(Captioner, {**always, **given})

    def run(self, **given: Any) -> Run:
        """Teach it with these options, unless that was done."""
        code = repr(sorted(given.items()))
        if code not in self.runs:
            events: list[dict[str, Any]] = []
            settings = self.settings(**{"name": f"run-{len(self.runs)}", **given})
            self.runs[code] = Run(settings.train(self.dataset, events=events.append), events)
        return self.runs[code]

    def ready(self, **given: Any) -> dict[str, Any]:
        """What is said before the first step."""
        events: list[dict[str, Any]] = []
        self.settings(**given).train(self.dataset, dry_run=True, events=events.append)
        return next(event for event in events if event["event"] == "ready")

    def recipe(self, text: str = '[captions]\nfirst_of = ["captions/sidecar"]\n') -> Path:
        path = self.folder / f"{options.digest({'recipe': text})}.toml"
        path.write_text(text)
        return path

    def qwen(self, **given: Any) -> Run:
        """A vision-language model taught for a step."""
        folder = self.folder / "qwen"
        if not folder.exists():
            tiny.save_qwen2_vl(folder)
        asked = {"annotator": "image_text", "model": str(folder), "target_modules": "q_proj,v_proj", "max_steps": 1}
        return self.run(**{**asked, "user": "say [{tags}]", **given})


def _keys(dataset: Dataset) -> list[str]:
    return [key for (key,) in dataset.sql("select key from pictures").fetchall()]


def says(world: World, hint: str, **given: Any) -> bool:
    """Whether these settings are refused before anything is loaded, in these words among others."""
    try:
        Lab.of(world).settings(**given).train(Lab.of(world).dataset, dry_run=True)
    except CutlineError as error:
        return hint in str(error)
    return False


def teaches_otherwise(**given: Any) -> Seen:
    """Whether these settings end with other weights."""
    return lambda w: not equal(Lab.of(w).run().weights, Lab.of(w).run(**given).weights)


def full_otherwise(also: dict[str, Any], **given: Any) -> Seen:
    """Whether all weights, where all are taught, end otherwise with these settings."""
    also = {"method": "full", **also}
    return lambda w: not equal(Lab.of(w).run(**also).weights, Lab.of(w).run(**also, **given).weights)


def configured(name: str, value: Any, **given: Any) -> Seen:
    """Whether the adapter's configuration says so, and its weights differ."""

    def act(w: World) -> bool:
        run, base = Lab.of(w).run(**given), Lab.of(w).run()
        return run.config[name] == value != base.config[name] and not equal(run.weights, base.weights)

    return act


@contextmanager
def counted(kind: type, name: str) -> Iterator[list[int]]:
    """The process numbers from which a method of a class is called meanwhile."""
    import multiprocessing
    import os

    act = getattr(kind, name)
    pipe: multiprocessing.SimpleQueue[int] = multiprocessing.SimpleQueue()
    calls: list[int] = []

    def watched(self: Any, *args: Any, **named: Any) -> Any:
        pipe.put(os.getpid())
        return act(self, *args, **named)

    setattr(kind, name, watched)
    try:
        yield calls
    finally:
        setattr(kind, name, act)
        while not pipe.empty():
            calls.append(pipe.get())


def annotator(w: World) -> bool:
    asked = Lab.of(w).settings(annotator="florence2", prompt="florence2-detailed").asking("cpu")
    return type(asked).__name__ == "Florence2" and says(w, "annotator='clip' does not fit", annotator="clip")


def recipe(w: World) -> bool:
    tags = Lab.of(w).recipe('[tags]\nfirst_of = ["tags/x"]\n')
    return bool(Lab.of(w).ready(recipe=str(tags))["first"]["text"] == "cat")


def prompt(w: World) -> bool:
    """What a caption begins with is not learnt: there are fewer words to learn, and the model's folder has them."""
    run, base = Lab.of(w).run(prompt="a"), Lab.of(w).run()
    said = (run.report.run / "last/prompt.toml").read_text()
    return run.losses != base.losses and 'user = "a"' in said and says(w, "has no option user", user="a")


def pictured(w: World, name: str, value: int) -> bool:
    """A picture that is larger, or smaller, for the model; its folder says so."""
    run = Lab.of(w).qwen(**{name: value})
    return run.losses != Lab.of(w).qwen().losses and run.read("last/cutline.json")["options"] == {name: value}


def target_modules(w: World) -> bool:
    lab = Lab.of(w)
    listed = lab.ready(target_modules="query,value")["layers"]
    regular = lab.ready(target_modules=r".*self\.(query|value)")["layers"]
    first = lab.ready(target_modules=r".*layer\.0\..*self\.query")["layers"]
    return (
        listed == regular != first
        and len(first) < len(listed)
        and says(w, "Layers that can: ", target_modules=".*nothing.*")
        and says(w, "no layer is called nothing. Layers that can: ", target_modules="query,nothing")
        and says(w, "no list of names and no regular expression", target_modules="(query")
        and says(w, "say which layers", target_modules="")
    )


def quantize(w: World) -> bool:
    """Both formats are taught, sampled and measured on the way; the adapter differs from that of the whole base."""
    dense: dict[str, Any] = {"validation": 0.2, "samples": 1, "sample_every_n_steps": 1, "save_every_n_steps": 1}
    dense["max_steps"] = 3
    whole = Lab.of(w).run(**dense)
    runs = [Lab.of(w).run(quantize=kind, **dense) for kind in ("int8", "nf4")]
    fewer = Lab.of(w).run(quantize="nf4", **{**dense, "sample_every_n_steps": 9, "save_every_n_steps": 9})
    return (
        all(run.report.step == 3 and not equal(run.weights, whole.weights) for run in runs)
        and equal(fewer.weights, runs[1].weights)  # looking changes nothing
        and says(w, "quantize needs method=lora", method="full", quantize="nf4")
    )


def attention(w: World) -> bool:
    lab = Lab.of(w)
    lab.qwen()
    kinds = []
    for kind in (None, "eager"):
        settings = lab.settings(
            annotator="image_text", model=str(lab.folder / "qwen"), attention=kind, user="say", target_modules="q_proj"
        )
        kinds.append(settings.asking("cpu").load().model.config._attn_implementation)
    return kinds == ["sdpa", "eager"] and says(w, "attention=sdpa is not to be had", attention="sdpa")


def activation_checkpointing(w: World) -> bool:
    """What is in each layer runs twice, and teaches the same."""
    kind = import_module("transformers.models.blip.modeling_blip_text").BlipTextSelfAttention
    with counted(kind, "forward") as once:
        plain = Lab.of(w).run(learning_rate=9e-4)
    with counted(kind, "forward") as twice:
        again = Lab.of(w).run(learning_rate=9e-4, activation_checkpointing=True)
    return len(twice) == 2 * len(once) > 0 and _near(plain.losses, again.losses)


def torch_compile(w: World) -> bool:
    """Frames are compiled, sampling and measuring on the way go on, and the losses are the same."""
    import torch._dynamo.utils as dynamo

    dense: dict[str, Any] = {"validation": 0.2, "samples": 1, "sample_every_n_steps": 1, "save_every_n_steps": 1}
    dynamo.counters.clear()
    plain = Lab.of(w).run(**dense)
    assert not dynamo.counters["frames"]
    compiled = Lab.of(w).run(torch_compile="eager", **dense)
    done = dynamo.counters["frames"]["ok"] > 0 and _near(plain.losses, compiled.losses)
    return done and says(w, "no backend; there are", torch_compile="nonsense")


def workers(w: World) -> bool:
    """Pictures are opened in so many other processes, and teach the same."""
    import os

    from cutline.training.loop import Job

    with counted(Job, "collate") as calls:
        run = Lab.of(w).run(workers=2)
    return len(set(calls) - {os.getpid()}) == 2 and equal(run.weights, Lab.of(w).run().weights)


def max_tokens(w: World) -> bool:
    short = Lab.of(w).ready(max_tokens=3)["tokens"]
    return (short["limit"], short["cut"]) == (3, 12) and says(w, "set -o max_tokens lower", max_tokens=1000)


def embedder(w: World) -> bool:
    return (
        Lab.of(w).run(validation=0.2, measured=1).read("evaluation.json")["embedder"] == "lexical"
        and says(w, "no folder /nowhere", embedder="/nowhere", validation=0.2, measured=1)
        and says(w, "embedder has no effect", embedder="/nowhere")
    )


def keep(w: World) -> bool:
    often: dict[str, Any] = {"save_every_n_steps": 1, "max_steps": 4}
    kept = [sorted((Lab.of(w).run(keep=count, **often).report.run / "models").iterdir()) for count in (1, 3)]
    return [[folder.name for folder in folders] for folders in kept] == [
        ["step-000004"],
        ["step-000002", "step-000003", "step-000004"],
    ]


def every(what: str) -> tuple[Seen, Seen]:
    """What the options of how often something is done do, in steps and in epochs."""
    event = {"save": "saved", "sample": "sample"}[what]
    some: dict[str, Any] = {"samples": 1, "epochs": 4, "max_steps": None, "batch_size": 6}

    def in_steps(w: World) -> bool:
        both: dict[str, Any] = {f"{what}_every_n_steps": 1, f"{what}_every_n_epochs": 1}
        steps = set(Lab.of(w).run(**some, save_every_n_steps=3, sample_every_n_steps=3).steps(event))
        return steps - {0} == {3, 6, 8} and says(w, "are both given", samples=1, **both)

    def in_epochs(w: World) -> bool:
        steps = set(Lab.of(w).run(**some, save_every_n_epochs=3, sample_every_n_epochs=3).steps(event))
        return steps - {0} == {6, 8}

    return in_steps, in_epochs


def log_with(w: World) -> bool:
    reading = import_module("tensorboard.backend.event_processing.event_accumulator")
    run = Lab.of(w).run(log_with="tensorboard")
    read = reading.EventAccumulator(str(next((run.report.run / "tensorboard").rglob("events.out.*")).parent))
    read.Reload()
    return _near([event.value for event in read.Scalars("train/loss")], run.losses)


def strict(w: World) -> bool:
    dataset = make_scenes(w.folder / "strict", 4)
    (dataset.root / "000.png").unlink()
    (dataset.root / "001.png").write_bytes(b"\x89PNG")
    events: list[dict[str, Any]] = []
    Lab.of(w).settings().train(dataset, dry_run=True, events=events.append)
    try:
        Lab.of(w).settings(strict=True).train(dataset)
    except CutlineError as error:
        refused = "2 pictures cannot be opened, and strict=true refuses them: 000.png, 001.png" in str(error)
        return refused and events[-1]["left_out"] == {"unreadable": 2} and not list((dataset.home / "runs").glob("*/*"))
    return False


def given_file(w: World, name: str, hint: str) -> bool:
    config, broken = w.folder / "config.json", w.folder / "broken.json"
    config.write_text("{}")
    broken.write_text("{")
    return (
        says(w, hint, **{name: str(config)})
        and says(w, "set samples=0 and measured=0", samples=1, **{name: str(config)})
        and says(w, f"{name}={broken} is no JSON", **{name: str(broken)})
        and says(w, f"{name}={w.folder / 'x'}: No such file", **{name: str(w.folder / "x")})
    )


def optimizer(w: World) -> bool:
    rates = {"adamw": 1e-2, "adamw_8bit": 1e-2, "adafactor": 1e-2, "prodigy": 1.0, "schedule_free": 1e-2}
    found = [Lab.of(w).run(optimizer=kind, learning_rate=rate).weights for kind, rate in rates.items()]
    return not any(equal(one, other) for place, one in enumerate(found) for other in found[:place])


def scheduler(w: World) -> bool:
    traces = [Lab.of(w).run(scheduler=kind).rates for kind in ("constant", "linear", "cosine", "onecycle")]
    return len({tuple(trace) for trace in traces}) >= 3 and traces[0] == [1e-3, 1e-3]


def _near(one: list[float], other: list[float]) -> bool:
    pairs = zip(one, other, strict=True)
    return bool(one) and all(abs(first - second) <= 1e-5 * abs(first) for first, second in pairs)


FLORA: dict[str, Any] = {"optimizer": "flora", "gradient_accumulation_steps": 2, "max_grad_norm": 0}

SEEN: dict[str, Seen] = {
    "annotator": annotator,
    "model": lambda w: (
        Lab.of(w).run(model=str(tiny.save_blip(w.folder / "other", seed=3))).losses != Lab.of(w).run().losses
    ),
    "revision": lambda w: says(w, "revision", revision="main"),
    "recipe": recipe,
    "prompt": prompt,
    "user": lambda w: Lab.of(w).qwen(user="a").losses != Lab.of(w).qwen(user="a cat").losses,
    "system": lambda w: Lab.of(w).qwen(system="a").losses != Lab.of(w).qwen().losses,
    "tags": lambda w: says(w, "tags/none", annotator="image_text", user="[{tags}]", tags="tags/none"),
    "min_pixels": lambda w: pictured(w, "min_pixels", 80 * 80),
    "max_pixels": lambda w: pictured(w, "max_pixels", 30 * 30),
    "max_tokens": max_tokens,
    "method": lambda w: (
        (Lab.of(w).run(method="full").report.run / "last/model.safetensors").exists()
        and says(w, "rank is of an adapter", method="full", rank=4)
    ),
    "rank": configured("r", 4, rank=4),
    "alpha": configured("lora_alpha", 8.0, alpha=8.0),
    "dropout": configured("lora_dropout", 0.5, dropout=0.5),
    "rslora": configured("use_rslora", True, rslora=True),
    "dora": configured("use_dora", True, dora=True),
    "init": configured("init_lora_weights", "gaussian", init="gaussian"),
    "target_modules": target_modules,
    "quantize": quantize,
    "precision": teaches_otherwise(precision="bfloat16"),
    "attention": attention,
    "activation_checkpointing": activation_checkpointing,
    "torch_compile": torch_compile,
    "batch_size": lambda w: Lab.of(w).ready(batch_size=3)["steps_per_epoch"] == 4,
    "gradient_accumulation_steps": lambda w: Lab.of(w).ready(gradient_accumulation_steps=3)["steps_per_epoch"] == 2,
    "epochs": lambda w: Lab.of(w).ready(max_steps=None, epochs=3)["steps"] == 18,
    "max_steps": lambda w: Lab.of(w).ready(max_steps=7)["steps"] == 7,
    "seed": lambda w: len({tuple(Lab.of(w).run(**given).losses) for given in ({}, {"seed": 1}, {"seed": 2})}) == 3,
    "validation": lambda w: Lab.of(w).ready(validation=0.5)["held_out"] > Lab.of(w).ready(validation=0.1)["held_out"],
    "measured": lambda w: (
        Lab.of(w).run(validation=0.2, measured=1).read("evaluation.json")["pictures"] == 1
        and not (Lab.of(w).run().report.run / "evaluation.json").exists()
    ),
    "samples": lambda w: (
        Lab.of(w).run(samples=1).steps("sample") == [0, 2]
        and not Lab.of(w).run().steps("sample")
        and says(w, "has no effect with samples=0", sample_every_n_steps=1)
    ),
    "embedder": embedder,
    "sample_every_n_steps": every("sample")[0],
    "sample_every_n_epochs": every("sample")[1],
    "save_every_n_steps": every("save")[0],
    "save_every_n_epochs": every("save")[1],
    "keep": keep,
    "log_every_n_steps": lambda w: len(Lab.of(w).run(log_every_n_steps=2).losses) == 1,
    "log_with": log_with,
    "name": lambda w: Lab.of(w).run(name="mine").report.run.name == "mine" and says(w, "no name", name="../mine"),
    "strict": strict,
    "workers": workers,
    "device": lambda w: says(w, "does not work on a CPU", device="cpu", precision="float16"),
    "deepspeed": lambda w: given_file(w, "deepspeed", "pip install deepspeed"),
    "fsdp": lambda w: given_file(w, "fsdp", "start it by torchrun"),
    "optimizer": optimizer,
    "learning_rate": lambda w: Lab.of(w).run(learning_rate=0.5, scheduler="constant").rates == [0.5, 0.5],
    "weight_decay": teaches_otherwise(weight_decay=0.9),
    "max_grad_norm": teaches_otherwise(max_grad_norm=1e-6),
    "lora_plus_ratio": teaches_otherwise(lora_plus_ratio=16.0),
    "scheduler": scheduler,
    "warmup_steps": lambda w: (
        Lab.of(w).run(warmup_steps=1, scheduler="constant").rates == [5e-4, 1e-3]
        and says(w, "leaves no step after it", warmup_steps=99, max_steps=None, epochs=1)
    ),
    "optimizer_rank": full_otherwise({"optimizer": "flora"}, optimizer_rank=4),
    "accumulation_rank": full_otherwise(FLORA, accumulation_rank=4),
}
SEEN = {f"trainings captioner {name}": act for name, act in SEEN.items()}


# -- the command ----------------------------------------------------------------------------------------------


def command(w: World, *more: str, code: int = 0) -> str:
    lab = Lab.of(w)
    (w.folder / "mine.toml").write_text('trains = "captioner"\nannotator = "blip"\ntarget_modules = "query"\n')
    return w.cli("train", lab.dataset.root, w.folder / "mine.toml", "-o", f"model={lab.blip}", *more, code=code)


def dry_run(w: World) -> tuple[list[dict[str, Any]], bool]:
    """What is told of a run that is not done, of half of the pictures; and whether nothing was written."""
    lab = Lab.of(w)
    if not lab.dry:
        before = sorted((lab.dataset.home / "runs").rglob("*"))
        given = ("--dry-run", "--log-json", "--where", "key < '006'", "-o", f"recipe={lab.recipe()}")
        told = list(map(json.loads, command(w, *given).splitlines()))
        lab.dry.append((told, before == sorted((lab.dataset.home / "runs").rglob("*"))))
    return lab.dry[0]


def evaluated(w: World, *more: str, code: int = 0) -> dict[str, Any]:
    """What is measured of what echo says of the pictures, or what is said instead."""
    w.cli("add", w.photos)
    w.cli("annotate", w.photos, "echo")
    if "--baseline" in more:
        w.cli("annotate", w.photos, "echo", "-o", "says=a dog", "--as", "captions/other")
    said = w.cli("evaluate", w.photos, "captions/echo", "--against", "captions/sidecar", "--json", *more, code=code)
    found: dict[str, Any] = json.loads(said) if code == 0 else {"said": said}
    return found


def merged(w: World, base: str) -> bool:
    """Whether an adapter and this base become a whole model."""
    out = w.folder / f"merged {Path(base).name}"
    w.cli("merge", w.adapter, out, "--model", base, code=0 if base == str(w.blip) else 1)
    return (out / "model.safetensors").exists()


COMMANDS: dict[str, Seen] = {
    "train dataset": lambda w: "is no dataset yet" in w.cli("train", w.folder, "blip-lora", code=1),
    "train preset": lambda w: "blip-lora" in w.cli("train", Lab.of(w).dataset.root, "nothing", code=2),
    "train options": lambda w: "rank=0 does not fit: it is at least 1" in command(w, "-o", "rank=0", code=2),
    "train where": lambda w: [(told["train"], told["held_out"]) for told in dry_run(w)[0][-2:-1]] == [(5, 1)],
    "train dry_run": lambda w: dry_run(w)[1],
    "train log_json": lambda w: [told["event"] for told in dry_run(w)[0][-2:]] == ["ready", "end"],
    "evaluate dataset": lambda w: "is no dataset yet" in w.cli("evaluate", w.folder, "a", "--against", "b", code=1),
    "evaluate layer": lambda w: evaluated(w)["layer"] == "captions/echo",
    "evaluate against": lambda w: evaluated(w)["against"] == "captions/sidecar",
    "evaluate baseline": lambda w: "captions/other" in str(evaluated(w, "--baseline", "captions/other")),
    "evaluate where": lambda w: evaluated(w, "--where", "key < 'c'")["pictures"] == 2,
    "evaluate held_out": lambda w: "is no run" in evaluated(w, "--held-out", str(w.folder), code=2)["said"],
    "evaluate embedder": lambda w: "/nowhere" in evaluated(w, "--embedder", "/nowhere", code=1)["said"],
    "evaluate out": lambda w: bool(evaluated(w, "--out", str(w.folder / "out"))) and any((w.folder / "out").iterdir()),
    "evaluate as_json": lambda w: evaluated(w)["pictures"] == 4,
    "merge adapter": lambda w: "adapter" in w.cli("merge", w.folder, w.folder / "out", code=2),
    "merge out": lambda w: merged(w, str(w.blip)),
    "merge model": lambda w: merged(w, str(w.blip)) and not merged(w, str(w.folder)),
}
