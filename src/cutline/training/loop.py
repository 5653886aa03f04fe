"""One training of a captioner: the model loaded, the pictures looked at, the Trainer run, the folder kept.

What is ours and not the Trainer's: the loss (`families.loss`, over the caption's tokens alone, weighted by token
however a step is cut into batches), the order of the pictures (`examples`), how a checkpoint appears (whole, by one
rename), and that measuring on the way changes nothing of the training: random states are put back.

A run that was killed goes on from its newest checkpoint and ends with the same weights, bit for bit, on a CPU.
"""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate
import peft
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers

from cutline import options, toml_files
from cutline.annotators.session import Row, RowError
from cutline.compose.recipe import Recipe
from cutline.dataset import Dataset
from cutline.files import storage_error, whole_file
from cutline.options import CutlineError, OptionError
from cutline.pictures import PictureError
from cutline.prompts import structured
from cutline.training import examples as learning
from cutline.training.captioner import Captioner, Events, Report
from cutline.training.examples import FILLER, Examples
from cutline.training.families import Family, open_family
from cutline.training.merge import copy_rest
from cutline.training.proof import Proof
from cutline.training.runs import Run
from cutline.training.trainer import CaptionTrainer

LOOKED_AT = 100
"""Texts that are looked at to know whether they are JSON."""
ROOM = 16
"""Tokens that a sampled caption may have beyond the longest one that is learnt."""


def train(settings: Captioner, dataset: Dataset, *, preset: str, where: str, dry_run: bool, events: Events) -> Report:
    """See `Captioner.train`."""
    _quieten()
    with _handling(signal.default_int_handler, signal.SIGTERM):  # as Ctrl-C, until there is something to save first
        return _train(settings, dataset, preset, where, dry_run, events)


def _train(settings: Captioner, dataset: Dataset, preset: str, where: str, dry_run: bool, events: Events) -> Report:
    state = accelerate.PartialState(cpu=settings.device == "cpu" or not torch.accelerator.is_available())
    first = state.is_main_process
    tell = events if first else _silent
    if dry_run and state.num_processes > 1:
        raise CutlineError("a dry run is for one process: leave accelerate launch or torchrun out")
    _refuse_setup(settings, state)
    recipe = settings.find_recipe(dataset)
    asking = _asking(settings, dataset, state)
    examples = learning.gather(dataset, recipe, asking.reads, where=where, seed=settings.seed)
    _refuse_texts(asking, examples)
    identity = _identity(settings, recipe, asking, examples, state.num_processes)
    found = [Run.find(dataset, preset, settings.name, identity)] if first else [None]
    if state.num_processes > 1:  # the first process decides, or another might meet the folder that it has just made
        accelerate.utils.broadcast_object_list(found)
    run, remarks = found[0] or (Run(dataset.home), [])
    for remark in remarks:
        tell({"event": "remark", "text": remark})
    said = run.said()
    if said and said.get("finished") and dry_run:
        tell({"event": "remark", "text": f"{run.folder} is finished: without --dry-run, nothing is done"})
    if said and said.get("finished") and not dry_run:
        if (run.folder / "best").exists():
            tell({"event": "finished", "run": str(run.folder)})
            return _finished(run, said)
        tell({"event": "remark", "text": f"{run.folder} is finished, but its models are gone: it is taught anew"})
    job = Job(settings, dataset, run, recipe, asking, examples, state, tell, identity, preset)
    with run.alone(identity) if first and not dry_run else nullcontext():
        return job.do(dry_run)


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
        self.proof = Proof(self)

    def do(self, dry_run: bool) -> Report:
        """All of it, or with `dry_run` what comes before anything is written."""
        self.load()
        self.look(write=not dry_run)
        self.say_ready(dry_run)
        if dry_run:
            return Report(self.run.folder, steps=self.steps, left_out=self.examples.left_out)
        if self.state.is_main_process:
            self.claim()
        self.state.wait_for_everyone()
        try:
            with self._told_where():
                return self.go()
        except CutlineError:
            raise
        except Exception as error:
            if type(error).__module__.startswith("wandb."):
                raise CutlineError(f"wandb: {error} To keep what it is told here: WANDB_MODE=offline") from None
            if not _is_full(error):
                raise
            raise storage_error(self.run.folder, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from error

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
            prepare: Any = peft.prepare_model_for_kbit_training
            model = prepare(model, use_gradient_checkpointing=False)  # the Trainer sees to that
        config = peft.LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]  # 1.5 is as good as 2
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
        saved = adapted.peft_config["default"]
        saved.base_model_name_or_path = self._base()
        return adapted

    def look(self, *, write: bool) -> None:
        """Decide which pictures are held out, having looked at all of them; as before, where this run goes on."""
        table = self._rows(write)
        parts = dict(zip(table["key"].to_pylist(), table["part"].to_pylist(), strict=True))
        keys = self.examples.keys.to_pylist()
        unreadable = [key for key in keys if parts.get(key) is None]
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
        batches = -(-len(self.learnt) // (settings.batch_size * world))
        self.epoch_steps = -(-batches // settings.gradient_accumulation_steps)
        self.steps = settings.max_steps or settings.epochs * self.epoch_steps
        self.spare = self._find_spare()
        settings.make_scheduler(settings.make_optimizer(self.family.session.model), self.steps)  # it is refused now

    def _rows(self, write: bool) -> pa.Table:
        path = self.run.folder / "rows.parquet"
        if self.state.is_main_process and not (path.exists() and self.run.said()):  # else it may be another run's
            self.tell({"event": "looking", "pictures": len(self.examples)})
            found = learning.hashes_of(
                self.examples,
                self.dataset,
                lambda done: self.tell({"event": "looked", "done": done}) if done % 1000 == 0 else None,
            )
            keys = self.examples.keys.to_pylist()
            hashes = {place: one for place, one in enumerate(found) if not isinstance(one, PictureError)}
            out = learning.hold_out([keys[place] for place in hashes], list(hashes.values()), self.settings.validation)
            side = {place: _SIDES[held] for place, held in zip(hashes, out, strict=True)}
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
            if self.settings.strict:
                self._refuse_unreadable([key for place, key in enumerate(keys) if place not in side])
            if not write:
                return table
            self.run.make()
            with whole_file(path) as handle:
                pq.write_table(table, handle, compression="zstd")
        self.state.wait_for_everyone()
        return pq.read_table(path)

    def _refuse_unreadable(self, more: list[str]) -> None:
        """Refuse pictures that could not be opened when they were added, or cannot be now."""
        known = self.dataset.sql("select key from pictures where error is not null and error <> 'vanished'").fetchall()
        found = [*(key for (key,) in known), *more]
        if found:
            names = ", ".join(found[:5]) + (" …" if len(found) > 5 else "")
            raise CutlineError(f"{len(found):,} pictures cannot be opened, and strict=true refuses them: {names}")

    def _find_spare(self) -> tuple[Row, Any]:
        """A row that can be asked about, and a white picture: they stand in where there is none, and teach nothing."""
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
                "first": {
                    "key": self.learnt.keys[0].as_py(),
                    "asked": self._asked(self.learnt.row(0, self.dataset)),
                    "text": self.learnt.still[0],
                },
                "learning_rate": self.settings.learning_rate,
            }
        )

    def _asked(self, row: Row) -> str:
        """What the model is asked about a picture; of BLIP, with what its caption begins."""
        if self.settings.annotator == "blip":
            return str(self.asking.prompt or "")
        with suppress(RowError):
            asked = self.asking.ask(row, 1)
            return f"{asked.system}\n{asked.user}".strip()
        return ""

    def claim(self) -> None:
        """Write run.json, unless it is there."""
        said = self.run.said()
        if said and not said.get("finished"):
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
        self.proof.first()
        with self._signals():
            if start < self.steps:
                transformers.set_seed(self.settings.seed)  # as if nothing had been measured
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
                if trainer.state.global_step < self.steps:
                    done, left_out = trainer.state.global_step, self.all_left_out()
                    return Report(self.run.folder, done, self.steps, interrupted=True, left_out=left_out)
        report = self.proof.last()
        self.state.wait_for_everyone()
        return report

    @contextmanager
    def _told_where(self) -> Iterator[None]:
        """Trackers are told by the environment where to write; another run of this process is another place."""
        before = dict(os.environ)
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(self.run.folder / "tensorboard")
        os.environ.setdefault("WANDB_PROJECT", "cutline")
        os.environ.setdefault("WANDB_DIR", str(self.run.folder))
        try:
            yield
        finally:
            for name in ("TENSORBOARD_LOGGING_DIR", "WANDB_PROJECT", "WANDB_DIR"):
                os.environ.pop(name)
                if name in before:
                    os.environ[name] = before[name]

    def _trainer(self) -> CaptionTrainer:
        settings = self.settings
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
                max_grad_norm=settings.max_grad_norm or 0.0,
                learning_rate=settings.learning_rate or 0.0,
                seed=settings.seed,
                bf16=precision == "bfloat16",
                fp16=precision == "float16",
                use_cpu=self.state.device.type == "cpu",
                activation_checkpointing=settings.activation_checkpointing,
                activation_checkpointing_kwargs={"use_reentrant": False} if settings.activation_checkpointing else None,
                torch_compile=bool(settings.torch_compile),
                torch_compile_backend=settings.torch_compile or None,
                deepspeed=settings.deepspeed or None,
                fsdp="full_shard" if settings.fsdp else None,
                fsdp_config=settings.fsdp or None,
                dataloader_num_workers=workers,
                dataloader_multiprocessing_context="fork" if workers else None,  # the model is not copied to them
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
        arguments._n_gpu = min(1, arguments.n_gpu)  # several are for several processes
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

    def all_left_out(self) -> dict[str, int]:
        """Why pictures are not learnt from -> how many."""
        found = self.unreadable
        if self.state.num_processes > 1:
            found = set(accelerate.utils.gather_object(sorted(found)))
        more = {"unreadable on the way": len(found)} if found else {}
        return {**self.examples.left_out, **more}

    # Saving.

    def draw(self) -> None:
        """Loss and learning rate, as PNG."""
        try:
            from cutline.plots import draw_training
        except CutlineError as error:
            self.tell({"event": "remark", "text": str(error)})
            return
        draw_training(self.run.metrics(), self.run.folder)

    def save(self, trainer: CaptionTrainer, staged: Path) -> None:
        """Publish what the Trainer has left in `staged`."""
        step = trainer.state.global_step
        if self.state.is_main_process:
            separate = staged.with_name("model")
            self._describe(separate if separate.exists() else staged, step)
            self.run.publish(staged, step, best=trainer.state.best_global_step, keep=self.settings.keep)
            self.draw()
            self.tell({"event": "saved", "step": step, "folder": str(self.run.folder / "models" / f"step-{step:06}")})
        self.state.wait_for_everyone()

    def _base(self) -> str:
        """The model that is taught; a folder by its whole path, as captions may be asked for from another folder."""
        there = Path(self.asking.model).expanduser()
        return str(there.resolve() if there.exists() else self.asking.model)

    def _describe(self, folder: Path, step: int) -> None:
        """Write what was asked in training, and where this model comes from, beside it."""
        if self.settings.method == "full":
            copy_rest(self.asking, folder)
        losses = [line for line in self.run.metrics() if line.get("step") == step and "held_out_loss" in line]
        told = {
            "annotator": self.settings.annotator,
            "base": self._base(),
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
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's form, which says nothing
        (folder / "cutline.json").write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", "utf-8")
        (folder / "prompt.toml").write_text("\n".join(lines) + "\n", "utf-8")

    def _signals(self) -> AbstractContextManager[None]:
        """Ctrl-C, and the wish of a machine to stop, save first; a second Ctrl-C stops at once."""
        own = os.getpid()

        def stop(number: int, frame: Any) -> None:
            if os.getpid() != own:  # one that opens pictures: a terminal tells it too, but it goes on until it is ended
                if number == signal.SIGTERM:
                    os._exit(128 + number)
                return
            if self.stop.is_set():
                if number == signal.SIGINT:
                    raise KeyboardInterrupt
                return  # launchers pass SIGTERM on to those who have had it already
            self.stop.set()
            self.tell({"event": "stopping"})

        return _handling(stop, signal.SIGINT, signal.SIGTERM)


_SIDES = ("train", "held_out")
_VERSIONS = ("cutline", "torch", "transformers", "peft", "accelerate")


def _asking(settings: Captioner, dataset: Dataset, state: Any) -> Any:
    """The annotator's settings on this process's device, its layers of tags chosen."""
    precision = _precision(settings, state)
    dtype = precision if settings.method == "lora" else "float32"
    device = str(state.device)
    length = {"max_tokens": settings.max_tokens} if settings.max_tokens else {}
    made = settings.asking(device, dtype=dtype, batch_size=max(8, settings.batch_size), **length)
    return made.fit(dataset.layers()) if hasattr(made, "fit") else made


def _refuse_texts(asking: Any, examples: Examples) -> None:
    """Refuse to teach texts that would all be rejected as answers: that are no JSON, where the prompt asks for it."""
    prompt = getattr(asking, "asking", None)  # blip has none
    if prompt is None or all(one.answer != "json" for one in prompt.one_of or (prompt,)):
        return
    texts = [text for text in examples.still if text][:LOOKED_AT]
    if texts and all(structured.parse(text).verdict == "rejected" for text in texts):
        raise OptionError(
            f"captioner: prompt={asking.prompt} asks for JSON, and the texts to be learnt are none (such as: "
            f"{texts[0]:.60}), so that whatever was learnt would be rejected; take a prompt that asks for text, such "
            "as -o prompt=plain"
        )


def _precision(settings: Captioner, state: Any) -> str:
    if settings.precision:
        return settings.precision
    cuda = state.device.type == "cuda" and torch.cuda.is_bf16_supported()
    return "bfloat16" if cuda else "float32"


def _is_full(error: Exception) -> bool:
    """Whether there was no space to write: safetensors and torch say so in words of their own."""
    words = ("No space left on device", "inline_container")
    return getattr(error, "errno", None) == errno.ENOSPC or any(word in str(error) for word in words)


def _refuse_setup(settings: Captioner, state: Any) -> None:
    """Refuse what cannot be on these devices, or with these packages, before anything is loaded."""
    if settings.precision == "float16" and state.device.type == "cpu":
        raise CutlineError("captioner: precision=float16 does not work on a CPU; take bfloat16 or float32")
    if settings.fsdp and (state.num_processes == 1 or state.device.type == "cpu"):  # where it would be passed over
        raise CutlineError(
            "captioner: fsdp shares a model among several GPUs, with a process for each: start it by torchrun "
            "--nproc_per_node 2 -m cutline train …, or leave fsdp out"
        )
    needed = dict.fromkeys(settings.trackers, f"log_with={settings.log_with}")
    if settings.deepspeed:
        needed["deepspeed"] = "deepspeed"
    for package, what in needed.items():
        if importlib.util.find_spec(package) is None:
            raise CutlineError(f"captioner: {what} needs a package that is not here: pip install {package}")
    if settings.torch_compile and settings.torch_compile not in torch.compiler.list_backends(exclude_tags=()):
        known = ", ".join(torch.compiler.list_backends())
        raise CutlineError(f"captioner: torch_compile={settings.torch_compile} is no backend; there are {known}")


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
        "data": examples.fingerprint(asking.reads),
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


@contextmanager
def _handling(handler: Callable[[int, Any], None], *numbers: signal.Signals) -> Iterator[None]:
    """Within, these signals call that; outside of the main thread, where nobody may say so, all is as it was."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _silent(event: Any) -> None:
    pass


def _quieten() -> None:
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"torch\.utils\.data.*|torch\.optim.*|peft.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers.*")  # of what PEFT still calls
