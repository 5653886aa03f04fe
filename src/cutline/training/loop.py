"""The training of a captioner, by transformers' Trainer and PEFT: what `Captioner.train` does once it knows what is asked.

What is ours and not the Trainer's: the loss (`families.loss`, over the caption's tokens alone, weighted by token
however a step is cut into batches), the order of the pictures (`examples`), how a checkpoint appears (whole, by one
rename), and that measuring on the way changes nothing of the training: random states are put back.

A run that was killed goes on from its newest checkpoint and ends with the same weights, bit for bit, on a CPU.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import random
import re
import shutil
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import peft
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers

from cutline import options, toml_files
from cutline.annotators.session import Row, RowError
from cutline.compose.recipe import Recipe
from cutline.dataset import Dataset
from cutline.evaluation.captions import measure
from cutline.evaluation.embedders import Embedder, find_embedder
from cutline.files import whole_file
from cutline.options import CutlineError
from cutline.pictures import PictureError
from cutline.sheet import Entry, contact_sheet
from cutline.training import examples as learning
from cutline.training.captioner import Captioner, Events
from cutline.training.examples import FILLER, Examples
from cutline.training.families import Family, loss, open_family
from cutline.training.optimizing import averaged
from cutline.training.runs import Run

ROOM = 16
"""Tokens that a sampled caption may have beyond the longest one that is learnt."""


@dataclass
class Report:
    """What came of a run."""

    run: Path
    step: int = 0
    steps: int = 0
    best: int | None = None
    """The step of the model with the lowest held-out loss."""
    interrupted: bool = False
    before: dict[str, float] = field(default_factory=dict)
    """Caption metrics on held-out pictures; so is `after`, of the best model."""
    after: dict[str, float] = field(default_factory=dict)
    embedder: str = ""
    measured: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    already: bool = False
    """It was finished before, and nothing was done."""


def train(settings: Captioner, dataset: Dataset, *, preset: str, where: str, dry_run: bool, events: Events) -> Report:
    """See `Captioner.train`."""
    _quieten()
    state = accelerate.PartialState(cpu=settings.device == "cpu" or not torch.cuda.is_available())
    first = state.is_main_process
    tell = events if first else _silent
    recipe = settings.find_recipe(dataset)
    asking = _asking(settings, dataset, state)
    examples = learning.gather(dataset, recipe, asking.reads, where=where, seed=settings.seed)
    identity = _identity(settings, recipe, asking, examples, state.num_processes)
    run, remarks = Run.find(dataset, preset, settings.name, identity)
    for remark in remarks:
        tell({"event": "remark", "text": remark})
    said = run.said()
    if said and said.get("finished") and not dry_run:
        return _finished(run, said)
    job = Job(settings, dataset, run, recipe, asking, examples, state, tell, identity, preset)
    job.load()
    job.look(write=not dry_run)
    job.say_ready(dry_run)
    if dry_run:
        return Report(run.folder, steps=job.steps, left_out=job.examples.left_out)
    if first:
        job.claim()
    state.wait_for_everyone()
    return job.go()


class Job:
    """One run, on one of its processes."""

    def __init__(
        self,
        settings: Captioner,
        dataset: Dataset,
        run: Run,
        recipe: Recipe,
        asking: Any,
        examples: Examples,
        state: Any,
        tell: Events,
        identity: dict[str, Any],
        preset: str,
    ) -> None:
        self.settings, self.dataset, self.run, self.recipe, self.asking = settings, dataset, run, recipe, asking
        self.examples, self.state, self.tell, self.identity, self.preset = examples, state, tell, identity, preset
        self.stop = threading.Event()
        self.epoch = 0
        self.unreadable: set[str] = set()
        self.layers: Counter[str] = Counter()
        self.embedder: Embedder = find_embedder(settings.embedder)

    # Before the first step.

    def load(self) -> None:
        """Load the model, put the adapter beside it, and count what there is to learn."""
        settings = self.settings
        transformers.set_seed(settings.seed)
        self.family: Family = open_family(self.asking, max_tokens=settings.max_tokens)
        session = self.family.session
        if settings.method == "lora":
            session.model = self._adapted(session.model)
        else:
            session.model.requires_grad_(True)
        self.lengths = [self.family.length(text) for text in self.examples.still]
        longest = min(max(self.lengths), self.family.limit)
        session.settings = replace(session.settings, max_tokens=min(longest + ROOM, self.family.limit))
        trained = [parameter for parameter in session.model.parameters() if parameter.requires_grad]
        self.trainable = sum(parameter.numel() for parameter in trained)

    def _adapted(self, model: Any) -> Any:
        settings = self.settings
        given = settings.target_modules
        if not isinstance(given, str):
            names = [name for name, _ in model.named_modules()]
            for target in given:
                if not any(name == target or name.endswith(f".{target}") for name in names):
                    raise CutlineError(f"captioner: target_modules: no layer is called {target}. {_layers(model)}")
        if settings.quantize:
            model = peft.prepare_model_for_kbit_training(
                model, use_gradient_checkpointing=settings.activation_checkpointing
            )
        config = peft.LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            use_rslora=settings.rslora,
            use_dora=settings.dora,
            init_lora_weights=True if settings.init == "default" else settings.init,
            target_modules=given if isinstance(given, str) else list(given),
            revision=self.asking.revision,
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about what PEFT will rename
                adapted = peft.get_peft_model(model, config)
        except ValueError as error:  # no layer matches, or one of a kind that cannot have an adapter
            raise CutlineError(f"captioner: target_modules={given} does not fit: {error} {_layers(model)}") from None
        self.layers = Counter(re.sub(r"\b\d+\b", "*", name) for name in adapted.targeted_module_names)
        config = adapted.peft_config["default"]
        if Path(str(self.asking.model)).expanduser().exists():
            config.base_model_name_or_path = str(Path(self.asking.model).expanduser().resolve())
        return adapted

    def look(self, *, write: bool) -> None:
        """Decide which pictures are held out, having looked at all of them; as before, where this run goes on."""
        table = self._rows(write)
        parts = dict(zip(table["key"].to_pylist(), table["part"].to_pylist(), strict=True))
        keys = self.examples.keys.to_pylist()
        unreadable = [place for place, key in enumerate(keys) if parts.get(key) is None]
        if unreadable and self.settings.strict:
            names = ", ".join(keys[place] for place in unreadable[:5])
            raise CutlineError(
                f"{len(unreadable):,} pictures cannot be opened, and strict=true refuses them: {names} …"
            )
        if unreadable:
            self.examples.left_out["unreadable"] = self.examples.left_out.get("unreadable", 0) + len(unreadable)
        sides = {side: [place for place, key in enumerate(keys) if parts.get(key) == side] for side in _SIDES}
        if not sides["train"]:
            raise CutlineError("no picture is left to learn from: none of them can be opened")
        self.learnt, self.held_out = (self.examples.take(sides[side]) for side in _SIDES)
        held = self.held_out.keys.to_pylist()
        self.measured = learning.spread(range(len(held)), held, self.settings.measured)
        self.shown, shown_keys = (self.held_out, held) if held else (self.learnt, self.learnt.keys.to_pylist())
        self.samples = learning.spread(range(len(shown_keys)), shown_keys, self.settings.samples)
        settings, world = self.settings, self.state.num_processes
        self.step_size = settings.batch_size * settings.gradient_accumulation_steps * world
        order = self.learnt.order(0, step=self.step_size, batch=settings.batch_size * world)
        batches = -(-len(order) // (settings.batch_size * world))
        self.epoch_steps = -(-batches // settings.gradient_accumulation_steps)
        self.steps = settings.max_steps or settings.epochs * self.epoch_steps
        self.spare = self._find_spare()

    def _rows(self, write: bool) -> pa.Table:
        path = self.run.folder / "rows.parquet"
        if self.state.is_main_process and not path.exists():
            self.tell({"event": "looking", "pictures": len(self.examples)})
            found = learning.hashes_of(
                self.examples, self.dataset, lambda done: self.tell({"event": "looked", "done": done})
            )
            keys = self.examples.keys.to_pylist()
            good = [place for place, one in enumerate(found) if not isinstance(one, PictureError)]
            out = learning.hold_out(
                [keys[place] for place in good],
                [int(found[place]) for place in good],
                self.settings.validation,  # type: ignore[arg-type]
            )
            side = {place: _SIDES[held] for place, held in zip(good, out, strict=True)}
            errors = [one if isinstance(one, PictureError) else None for one in found]
            table = pa.table(
                {
                    "key": self.examples.keys,
                    "part": pa.array([side.get(place) for place in range(len(keys))], pa.string()),
                    "tokens": pa.array(self.lengths, pa.int32()),
                    "text": pa.array(self.examples.still, pa.string()),
                    "error": pa.array([error and error.reason for error in errors], pa.string()),
                    "detail": pa.array([error and str(error) for error in errors], pa.string()),
                }
            )
            if not write:
                return table
            self.run.make()
            with whole_file(path) as handle:
                pq.write_table(table, handle, compression="zstd")
        self.state.wait_for_everyone()
        if not path.exists():  # a dry run of several processes
            raise CutlineError("a dry run is for one process: leave accelerate launch or torchrun out")
        return pq.read_table(path)

    def _find_spare(self) -> tuple[Row, Any]:
        """A row that can be asked about, with a white picture: it stands in where there is none, and teaches nothing."""
        for place in range(len(self.learnt)):
            row = self.learnt.row(place, self.dataset)
            with suppress(RowError):
                blank = self.family.blank(row)
                self.family.tensors([row], [blank], [None])
                return row, blank
        raise CutlineError(
            "none of the pictures can be asked about: see what the prompt needs, with --dry-run of annotate"
        )

    def say_ready(self, dry_run: bool) -> None:
        """Report what is about to be learnt."""
        self.tell(
            {
                "event": "ready",
                "run": str(self.run.folder),
                "dry_run": dry_run,
                "train": len(self.learnt),
                "held_out": len(self.held_out),
                "left_out": self.examples.left_out,
                "tokens": learning.describe(self.lengths, self.family.limit),
                "layers": dict(self.layers),
                "trainable": self.trainable,
                "steps": self.steps,
                "steps_per_epoch": self.epoch_steps,
                "first": {"key": self.learnt.keys[0].as_py(), "text": self.learnt.still[0]},
                "learning_rate": self.settings.learning_rate,
            }
        )

    def claim(self) -> None:
        """Write run.json, unless it is there."""
        if self.run.said():
            return
        self.run.write(
            "run.json",
            {
                "trains": "captioner",
                "preset": self.preset,
                "identity": self.identity,
                "options": options.settings(self.settings),
                "recipe": self.recipe.settings(),
                "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
                "rows": {"train": len(self.learnt), "held_out": len(self.held_out), **self.examples.left_out},
                "tokens": learning.describe(self.lengths, self.family.limit),
                "layers": dict(self.layers),
                "trainable": self.trainable,
                "steps": self.steps,
                "finished": None,
            },
        )

    # The run.

    def go(self) -> Report:
        """Train, from the newest checkpoint where there is one, and measure what came of it."""
        checkpoint = self.run.checkpoint()
        start = int(checkpoint.name.partition("-")[2]) if checkpoint else 0
        if self.state.is_main_process:
            self.run.go_on_from(start)
        self.state.wait_for_everyone()
        trainer = self._trainer()
        self.tell({"event": "start", "step": start, "steps": self.steps})
        if checkpoint is None:
            self._measure_first()
        with self._signals():
            if start < self.steps:
                transformers.set_seed(self.settings.seed)  # as if nothing had been measured
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
                if trainer.state.global_step < self.steps:
                    return Report(
                        self.run.folder,
                        step=trainer.state.global_step,
                        steps=self.steps,
                        interrupted=True,
                        left_out=self._all_left_out(),
                    )
            report = self._measure_last()
        self.state.wait_for_everyone()
        return report

    def _trainer(self) -> CaptionTrainer:
        settings = self.settings
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(self.run.folder / "tensorboard")
        os.environ.setdefault("WANDB_PROJECT", "cutline")
        os.environ.setdefault("WANDB_DIR", str(self.run.folder))
        workers = settings.workers
        if workers is None:
            workers = 4 if self.state.device.type == "cuda" else 0
        if workers:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # it does not go together with processes
        precision = _precision(settings, self.state)
        try:
            arguments = transformers.TrainingArguments(
                str(self.run.staging),
                max_steps=self.steps,
                per_device_train_batch_size=settings.batch_size,
                gradient_accumulation_steps=settings.gradient_accumulation_steps,
                max_grad_norm=settings.max_grad_norm,
                learning_rate=settings.learning_rate,
                seed=settings.seed,
                bf16=precision == "bfloat16",
                fp16=precision == "float16",
                use_cpu=self.state.device.type == "cpu",
                activation_checkpointing=settings.activation_checkpointing,
                activation_checkpointing_kwargs={"use_reentrant": False} if settings.activation_checkpointing else None,
                torch_compile=bool(settings.torch_compile),
                torch_compile_backend=settings.torch_compile or None,
                deepspeed=settings.deepspeed or None,
                fsdp=True if settings.fsdp else None,
                fsdp_config=settings.fsdp or None,
                dataloader_num_workers=workers,
                dataloader_pin_memory=self.state.device.type == "cuda",
                logging_strategy="steps",
                logging_steps=settings.log_every_n_steps,
                logging_nan_inf_filter=False,
                save_strategy="no",  # `Cadence` says when
                report_to=list(settings.trackers) or "none",
                run_name=self.run.folder.name,
                remove_unused_columns=False,
                label_names=["labels"],
                disable_tqdm=True,
                ddp_find_unused_parameters=False,
            )
        except (ImportError, ValueError) as error:
            raise CutlineError(f"captioner: {str(error).strip().partition(chr(10))[0]}") from None
        return CaptionTrainer(self, arguments)

    def collate(self, examples: Examples, texts: Sequence[str | None], places: Sequence[int]) -> dict[str, Any]:
        """The tensors of a batch, and under `unreadable` the keys of pictures that cannot be opened any more."""
        rows, prepared, said, unreadable = [], [], [], []
        for place in places:
            row, blank = self.spare
            text = None
            if place != FILLER:
                mine = examples.row(place, self.dataset)
                try:
                    blank, row, text = self.family.prepare(mine), mine, texts[place]
                except (PictureError, RowError) as error:
                    unreadable.append((mine["key"], error.reason, str(error)))
            rows.append(row)
            prepared.append(blank)
            said.append(text)
        return {**self.family.tensors(rows, prepared, said), "unreadable": unreadable}

    def note_unreadable(self, found: Sequence[tuple[str, str, str]]) -> None:
        """Say once of each picture that it cannot be opened any more; it teaches nothing from then on."""
        for key, reason, detail in found:
            if key not in self.unreadable:
                self.unreadable.add(key)
                self.tell({"event": "unreadable", "key": key, "error": reason, "detail": detail})

    def _all_left_out(self) -> dict[str, int]:
        more = {"unreadable on the way": len(self.unreadable)} if self.unreadable else {}
        return {**self.examples.left_out, **more}

    # Measuring.

    @contextmanager
    def aside(self, trainer: CaptionTrainer | None = None) -> Iterator[Any]:
        """The model as it is used rather than taught; what is done in here leaves the training as it was."""
        model = self.family.session.model
        numbers = random.getstate(), np.random.get_state(), torch.get_rng_state()
        devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
        model.eval()
        for part in model.modules():
            if type(part).__name__ == "Linear4bit":
                part.training = True  # in its other mode bitsandbytes packs the weights anew, and cannot be taught then
        try:
            with torch.no_grad(), averaged(trainer.optimizer) if trainer else nullcontext():
                yield model
        finally:
            random.setstate(numbers[0])
            np.random.set_state(numbers[1])
            torch.set_rng_state(numbers[2])
            if devices is not None:
                torch.cuda.set_rng_state_all(devices)

    def captions(self, examples: Examples, places: Sequence[int]) -> dict[str, str | None]:
        """What the model says of these pictures; None where that is nothing, or nothing that `annotate` would keep."""
        rows = (examples.row(place, self.dataset) for place in places)
        said: dict[str, str | None] = {}
        for answer in self.family.session(rows):
            texts = answer.get("texts") or []
            said[answer["key"]] = texts[0] if texts else None
        return said

    def sheet(self, said: dict[str, str | None], step: int) -> None:
        """Draw what was said of the samples, beside what is true."""
        entries = []
        for place in self.samples:
            row = self.shown.row(place, self.dataset)
            entries.append(Entry(row["picture"], said.get(row["key"]), self.shown.still[place]))
        if entries:
            folder = self.run.folder / "samples"
            folder.mkdir(exist_ok=True)
            path = folder / f"step-{step:06}.png"
            contact_sheet(entries, path, title=f"{self.run.folder.name}, step {step:,}", columns=4)
            self.tell({"event": "sample", "step": step, "sheet": str(path)})

    def sample(self, trainer: CaptionTrainer) -> None:
        """Caption the samples and draw the sheet."""
        if self.samples and self.state.is_main_process:
            with self.aside(trainer):
                said = self.captions(self.shown, self.samples)
            self.sheet(said, trainer.state.global_step)
        self.state.wait_for_everyone()

    def _measure_first(self) -> None:
        """What the model says before it is taught anything."""
        if self.state.is_main_process and self.run.read("captions-before.json") is None:
            with self.aside():
                said = self.captions(self.held_out, self.measured)
                shown = said if len(self.held_out) else self.captions(self.learnt, self.samples)
                missing = [place for place in self.samples if self.shown.keys[place].as_py() not in shown]
                shown = {**shown, **self.captions(self.shown, missing)}
            self.run.write("captions-before.json", said)
            self.sheet(shown, 0)
        self.state.wait_for_everyone()

    def _measure_last(self) -> Report:
        """What the best model says, and how far that is better."""
        metrics = self.run.metrics()
        losses = {line["step"]: line["held_out_loss"] for line in metrics if "held_out_loss" in line}
        best = min(losses, key=losses.__getitem__) if losses else self.steps
        report = Report(self.run.folder, self.steps, self.steps, best, left_out=self._all_left_out())
        if not self.state.is_main_process:
            return report
        self._load_weights(self.run.folder / "best")
        if self.measured:
            with self.aside():
                after = self.captions(self.held_out, self.measured)
            truth = {self.held_out.keys[place].as_py(): [self.held_out.still[place]] for place in self.measured}
            before = measure(self.run.read("captions-before.json"), truth, self.embedder)
            found = measure(after, truth, self.embedder)
            report.before, report.after, report.embedder = before.scores, found.scores, self.embedder.name
            report.measured = len(truth)
            self.run.write("captions-after.json", after)
            self.run.write(
                "evaluation.json",
                {
                    "pictures": len(truth),
                    "embedder": self.embedder.name,
                    "before": before.scores,
                    "after": found.scores,
                    "before_intervals": before.intervals(),
                    "after_intervals": found.intervals(),
                },
            )
        self._draw()
        self.run.finish({"step": self.steps, "best": best, "held_out_loss": losses.get(best)})
        return report

    def _load_weights(self, folder: Path) -> None:
        model = self.family.session.model
        from safetensors.torch import load_file

        if self.settings.method == "lora":
            peft.set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
            return
        weights = {
            name: tensor for file in folder.glob("model*.safetensors") for name, tensor in load_file(file).items()
        }
        model.load_state_dict(weights, strict=False)  # weights that are tied are stored once

    def _draw(self) -> None:
        """Loss and learning rate, as PNG."""
        try:
            from cutline.plots import draw_training
        except CutlineError as error:
            self.tell({"event": "remark", "text": str(error)})
            return
        draw_training(self.run.metrics(), self.run.folder)

    # Saving.

    def save(self, trainer: CaptionTrainer, staged: Path) -> None:
        """Publish what the Trainer has left in `staged`."""
        step = trainer.state.global_step
        if self.state.is_main_process:
            separate = staged.with_name("model")
            self._describe(separate if separate.exists() else staged, step)
            self.run.publish(staged, step, best=trainer.state.best_global_step, keep=self.settings.keep)
            self._draw()
            self.tell({"event": "saved", "step": step, "folder": str(self.run.folder / "models" / f"step-{step:06}")})
        self.state.wait_for_everyone()

    def _describe(self, folder: Path, step: int) -> None:
        """Write what was asked in training, and where this model comes from, beside it."""
        session = self.family.session
        if self.settings.method == "full":
            for name in ("processor", "image_processor", "tokenizer"):
                if hasattr(session, name):
                    getattr(session, name).save_pretrained(folder)
        losses = [line for line in self.run.metrics() if line.get("step") == step and "held_out_loss" in line]
        told = {
            "annotator": self.settings.annotator,
            "base": self.asking.model,
            "revision": self.asking.revision,
            "options": {
                name: value for name in ("min_pixels", "max_pixels") if (value := getattr(self.asking, name, None))
            },
            "recipe": self.recipe.settings(),
            "data": self.identity["data"],
            "step": step,
            "metrics": {"held_out_loss": losses[-1]["held_out_loss"]} if losses else {},
        }
        prompt = {"user": self.asking.prompt} if self.settings.annotator == "blip" else self.asking.asking.said()
        lines = ["# What the model was asked in training.", *toml_files.lines(prompt)]
        (folder / "cutline.json").write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", "utf-8")
        (folder / "prompt.toml").write_text("\n".join(lines) + "\n", "utf-8")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C, and the wish of a machine to stop, save first; a second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: Any) -> None:
            if self.stop.is_set():
                raise KeyboardInterrupt
            self.stop.set()
            self.tell({"event": "stopping"})

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class CaptionTrainer(transformers.Trainer):  # type: ignore[misc]
    """transformers' Trainer with our loss, order, optimizer and checkpoints."""

    def __init__(self, job: Job, arguments: Any) -> None:
        self.job = job
        super().__init__(
            model=job.family.session.model,
            args=arguments,
            train_dataset=_Places(len(job.learnt)),
            data_collator=lambda places: job.collate(job.learnt, job.learnt.texts(job.epoch), places),
            compute_loss_func=loss,
            callbacks=[Cadence(job, self)],
        )
        self.remove_callback(transformers.PrinterCallback)
        self._loss_shifts_labels = False  # ours are aligned with the logits, and all of them count

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return _Order(self.job)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The cross entropy of a batch's labels, divided by those of the whole step."""
        self.job.note_unreadable(inputs.pop("unreadable"))
        labels = inputs.pop("labels")
        with_processes = 1 if num_items_in_batch is None else self.accelerator.num_processes  # gradients are averaged
        return loss(model(**inputs), labels, num_items_in_batch) * with_processes

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted."""
        return 0

    def create_optimizer(self, model: Any = None) -> Any:
        """The optimizer of the settings."""
        if self.optimizer is None:
            self.optimizer = self.job.settings.make_optimizer(self.model if model is None else model)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The scheduler of the settings."""
        if self.lr_scheduler is None:
            self.lr_scheduler = self.job.settings.make_scheduler(optimizer or self.optimizer, num_training_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The held-out loss by token, and which step has the lowest."""
        job = self.job
        if not len(job.held_out):
            return {}
        size, world = job.settings.batch_size, self.accelerator.num_processes
        places = np.argsort([len(text) for text in job.held_out.still], kind="stable")
        places = np.concatenate([places, np.full(-len(places) % (size * world), FILLER, np.int64)])
        mine = places.reshape(-1, world, size)[:, self.accelerator.process_index]
        total = torch.zeros(2, dtype=torch.float64)
        with job.aside(self):
            for batch in mine.tolist():
                inputs = self._prepare_inputs(job.collate(job.held_out, job.held_out.still, batch))
                job.note_unreadable(inputs.pop("unreadable"))
                labels = inputs.pop("labels")
                with self.compute_loss_context_manager():
                    found = loss(self.model_wrapped(**inputs), labels, 1)
                total += torch.tensor([float(found), int((labels != -100).sum())], dtype=torch.float64)
        if world > 1:
            total = self.accelerator.reduce(total.to(self.args.device), "sum").cpu()
        held_out_loss = float(total[0] / total[1].clamp(min=1))
        best = self.state.best_metric
        if best is None or held_out_loss < best:
            self.state.best_metric, self.state.best_global_step = held_out_loss, self.state.global_step
        self.log({"held_out_loss": held_out_loss})
        return {"eval_loss": held_out_loss}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """To metrics.jsonl, and whoever else is to be told."""
        super().log(logs, start_time)
        if not self.accelerator.is_main_process or "train_runtime" in logs:
            return
        told = {"step": self.state.global_step, "epoch": round(self.state.epoch or 0, 4)}
        told |= {name: value for name, value in logs.items() if name in _NOTED}
        self.job.run.note(told)
        self.job.tell({"event": "metrics", **told})

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.job.run.staging)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        staging = self.job.run.staging
        if self.accelerator.is_main_process:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
        self.job.state.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        if self.job.settings.optimizer == "schedule_free":  # the weights that are used are not those that are taught
            with averaged(self.optimizer):
                self.save_model(str(staging / "model"), _internal_call=True)
        self.job.state.wait_for_everyone()
        self.job.save(self, staging / f"checkpoint-{self.state.global_step}")


class Cadence(transformers.TrainerCallback):  # type: ignore[misc]
    """When to measure, sample, save and stop."""

    def __init__(self, job: Job, trainer: CaptionTrainer) -> None:
        self.job, self.trainer = job, trainer
        self.started = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self.started, self.first = time.monotonic(), state.global_step

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say which epoch it is, before anything of it is asked for."""
        self.job.epoch = state.global_step // self.job.epoch_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask the Trainer for what is due."""
        job, step = self.job, state.global_step
        last = step >= job.steps
        stopping = self._stopping()
        seconds = time.monotonic() - self.started
        job.tell({"event": "step", "step": step, "steps": job.steps, "per_second": (step - self.first) / seconds})
        if stopping and not last:
            control.should_save = control.should_training_stop = control.should_log = True
            return
        if last or self._due("save", step):
            control.should_save = control.should_evaluate = control.should_log = True
        if last or self._due("sample", step):
            job.sample(self.trainer)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Nothing is due: what was, was asked for at the last step."""
        control.should_save = control.should_evaluate = control.should_log = False

    def _due(self, what: str, step: int) -> bool:
        settings = self.job.settings
        every = getattr(settings, f"{what}_every_n_steps")
        every = every or getattr(settings, f"{what}_every_n_epochs") * self.job.epoch_steps
        return bool(step % every == 0)

    def _stopping(self) -> bool:
        stop = self.job.stop.is_set()
        if self.job.state.num_processes > 1:  # one is enough, and all have to know
            flag = torch.tensor([float(stop)], device=self.job.state.device)
            torch.distributed.all_reduce(flag)
            stop = bool(flag.item())
        return stop


class _Places(torch.utils.data.Dataset[int]):
    """Places of pictures: what is in them is opened by `Job.collate`."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> int:
        return place


class _Order(torch.utils.data.Sampler[int]):
    """The places of this epoch."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def _places(self) -> list[int]:
        job = self.job
        batch = job.settings.batch_size * job.state.num_processes
        return job.learnt.order(job.epoch, step=job.step_size, batch=batch).tolist()  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[int]:
        return iter(self._places())

    def __len__(self) -> int:
        batch = self.job.settings.batch_size * self.job.state.num_processes
        return -(-len(self.job.learnt) // batch) * batch


_SIDES = ("train", "held_out")
_VERSIONS = ("cutline", "torch", "transformers", "peft", "accelerate")
_NOTED = ("loss", "learning_rate", "grad_norm", "held_out_loss")


def _asking(settings: Captioner, dataset: Dataset, state: Any) -> Any:
    """The annotator's settings on this process's device, its layers of tags chosen."""
    precision = _precision(settings, state)
    dtype = precision if settings.method == "lora" else "float32"
    device = str(state.device)
    length = {"max_tokens": settings.max_tokens} if settings.max_tokens else {}
    made = settings.asking(device, dtype=dtype, batch_size=max(8, settings.batch_size), **length)
    return made.fit(dataset.layers()) if hasattr(made, "fit") else made


def _precision(settings: Captioner, state: Any) -> str:
    if settings.precision:
        return settings.precision
    cuda = state.device.type == "cuda" and torch.cuda.is_bf16_supported()
    return "bfloat16" if cuda else "float32"


def _identity(settings: Captioner, recipe: Recipe, asking: Any, examples: Examples, processes: int) -> dict[str, Any]:
    """What a run is known by: what is learnt, and all that can change what comes of it."""
    asked = options.identity(asking)
    chosen = {name: value for name, value in options.identity(settings).items() if name not in ("recipe", "prompt")}
    names = ("prompt", "user", "system", "tags")
    found = {
        "trains": "captioner",
        "options": chosen,
        "recipe": recipe.settings(),
        "asked": {name: asked[name] for name in names if name in asked},
        "data": examples.fingerprint(),
        "processes": processes,
    }
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]  # as it is read back


def _finished(run: Run, said: dict[str, Any]) -> Report:
    told = run.read("evaluation.json") or {}
    return Report(
        run.folder,
        said["finished"]["step"],
        said["steps"],
        said["finished"]["best"],
        before=told.get("before", {}),
        after=told.get("after", {}),
        embedder=told.get("embedder", ""),
        measured=told.get("pictures", 0),
        already=True,
    )


def _layers(model: Any) -> str:
    """Which layers could have an adapter, in words."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Embedding)
    ends = Counter(name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, kinds))
    return "Layers that can: " + ", ".join(f"{name} ({count})" for name, count in ends.most_common(20))


def _silent(event: Any) -> None:
    pass


def _quieten() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"torch\.utils\.data.*|torch\.optim.*|peft.*")
