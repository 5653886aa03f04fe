"""transformers' Trainer, with what is ours put in its place: loss, order, optimizer, held-out loss and checkpoints."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from cutline.training.examples import FILLER
from cutline.training.families import loss
from cutline.training.optimizing import averaged, rate_now

if TYPE_CHECKING:
    from cutline.training.loop import Job

NOTED = ("loss", "learning_rate", "grad_norm", "held_out_loss")
"""What of the Trainer's figures metrics.jsonl has."""


class CaptionTrainer(transformers.Trainer):
    """transformers' Trainer with our loss, order, optimizer and checkpoints."""

    def __init__(self, job: Job, arguments: Any) -> None:
        self.job = job
        self.compressed: Any = None
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
            settings, trained = self.job.settings, self.model if model is None else model
            assert trained is not None
            self.optimizer = settings.make_optimizer(trained)
            self.compressed = settings.attach(
                trained,
                self.optimizer,
                step=lambda: self.state.global_step,
                sync=lambda: self.accelerator.sync_gradients,
            )
        return self.optimizer

    def train(self, *given: Any, **more: Any) -> Any:
        """Train, and leave nothing on the model that would keep all this alive."""
        try:
            return super().train(*given, **more)
        finally:
            if self.compressed:
                self.compressed.remove()

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The scheduler of the settings."""
        if self.lr_scheduler is None:
            changed: Any = optimizer or self.optimizer
            self.lr_scheduler = self.job.settings.make_scheduler(changed, num_training_steps)
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
        with job.proof.aside(self):
            for batch in mine.tolist():
                inputs: Any = self._prepare_inputs(job.collate(job.held_out, job.held_out.still, batch))
                job.note_unreadable(inputs.pop("unreadable"))
                labels = inputs.pop("labels")
                with self.compute_loss_context_manager():
                    found = loss(self.model_wrapped(**inputs), labels, 1)
                total += torch.tensor([float(found), int((labels != -100).sum())], dtype=torch.float64)
        if world > 1:
            total = self.accelerator.reduce(total.to(self.args.device), "sum").cpu()
        held_out_loss = float(total[0] / total[1].clamp(min=1))
        best = self.state.best_metric
        if self.state.global_step and (best is None or math.isnan(best) or held_out_loss < best):
            self.state.best_metric, self.state.best_global_step = held_out_loss, self.state.global_step
        self.log({"held_out_loss": held_out_loss})
        return {"eval_loss": held_out_loss}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """To metrics.jsonl, and whoever else is to be told."""
        super().log(logs, start_time)
        if not self.accelerator.is_main_process or "train_runtime" in logs:
            return
        told = {"step": self.state.global_step, "epoch": round(self.state.epoch or 0, 4)}
        told |= {name: value for name, value in logs.items() if name in NOTED}
        settings = self.job.settings
        if settings.optimizer == "prodigy" and "learning_rate" in told:
            told["learning_rate"] = rate_now(self.optimizer)  # what it has found
        if settings.accumulation_rank:
            told.pop("grad_norm", None)  # it is of the few gradients that are not compressed
        self.job.run.note(told)
        self.job.tell({"event": "metrics", **told})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.job.settings.method == "full" and not self.is_fsdp_enabled:
            load_whole(self.job.family.session.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

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


def load_whole(model: Any, folder: Path) -> None:
    """Give a model all the weights that were saved in a folder.

    Their names there may be others than the model's own (those of older files, which transformers keeps to), so that
    it is transformers that reads them: the Trainer would pass over what it does not know by name.
    """
    saved = type(model).from_pretrained(folder, dtype=model.dtype)
    model.load_state_dict(saved.state_dict())


class Cadence(transformers.TrainerCallback):
    """When to measure, sample, save and stop."""

    def __init__(self, job: Job, trainer: CaptionTrainer) -> None:
        self.job, self.trainer = job, trainer
        self.started = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        if not state.global_step:
            self.trainer.evaluate()  # what there is to be better than
        self.started, self.first = time.monotonic(), state.global_step

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say which epoch it is, before anything of it is asked for."""
        self.job.epoch = state.global_step // self.job.epoch_steps
        self.job.learnt.texts(self.job.epoch)  # once, and not in each process that opens pictures

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask the Trainer for what is due."""
        job, step = self.job, state.global_step
        last = step >= job.steps
        stopping = self._stopping()
        seconds = time.monotonic() - self.started
        job.tell({"event": "step", "step": step, "steps": job.steps, "per_second": (step - self.first) / seconds})
        if last or stopping or self._due("save", step):
            control.should_save = control.should_log = True
        if last or self._due("save", step):
            control.should_evaluate = True
        if stopping:
            control.should_training_stop = True
        if job.samples and (last or self._due("sample", step)):
            job.proof.sample(self.trainer)

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
        batch: int = self.job.settings.batch_size * self.job.state.num_processes
        return -(-len(self.job.learnt) // batch) * batch
