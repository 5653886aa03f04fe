"""The proof that a training helped: what the model says of pictures that it does not learn from, before and after.

Looking changes nothing: the states of all random numbers are put back, and so are weights that are averaged to be used.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import peft
import torch
from safetensors.torch import load_file

from cutline.evaluation.captions import measure
from cutline.evaluation.embedders import Embedder, find_embedder
from cutline.options import CutlineError
from cutline.sheet import Entry, contact_sheet
from cutline.training.captioner import Report
from cutline.training.examples import Examples
from cutline.training.optimizing import averaged
from cutline.training.trainer import load_whole

if TYPE_CHECKING:
    from cutline.training.loop import Job
    from cutline.training.trainer import CaptionTrainer


class Proof:
    """What is measured on the way and at the end of a job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.embedder: Embedder = find_embedder(job.settings.embedder)

    @contextmanager
    def aside(self, trainer: CaptionTrainer | None = None) -> Iterator[Any]:
        """The model as it is used rather than taught; what is done in here leaves the training as it was."""
        job = self.job
        model = job.family.session.model
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
        job = self.job
        rows = (examples.row(place, job.dataset) for place in places)
        said: dict[str, str | None] = {}
        for answer in job.family.session(rows):
            texts = answer.get("texts") or []
            said[answer["key"]] = texts[0] if texts else None
        return said

    def sheet(self, said: dict[str, str | None], step: int) -> None:
        """Draw what was said of the samples, beside what is true."""
        job = self.job
        entries = []
        for place in job.samples:
            row = job.shown.row(place, job.dataset)
            entries.append(Entry(row["picture"], said.get(row["key"]), job.shown.still[place]))
        if entries:
            folder = job.run.folder / "samples"
            folder.mkdir(exist_ok=True)
            path = folder / f"step-{step:06}.png"
            contact_sheet(entries, path, title=f"{job.run.folder.name}, step {step:,}", columns=4, crosses=False)
            job.tell({"event": "sample", "step": step, "sheet": str(path)})

    def sample(self, trainer: CaptionTrainer) -> None:
        """Caption the samples and draw the sheet."""
        job = self.job
        if job.samples and job.state.is_main_process:
            with self.aside(trainer):
                said = self.captions(job.shown, job.samples)
            self.sheet(said, trainer.state.global_step)
        job.state.wait_for_everyone()

    def first(self) -> None:
        """What the model says before it is taught anything."""
        job = self.job
        if job.state.is_main_process and job.run.read("captions-before.json") is None:
            with self.aside():
                said = self.captions(job.held_out, job.measured)
                missing = [place for place in job.samples if job.shown.keys[place].as_py() not in said]
                shown = {**said, **self.captions(job.shown, missing)}
            self.sheet(shown, 0)
            job.run.write("captions-before.json", said)
        job.state.wait_for_everyone()

    def last(self) -> Report:
        """What the best model says, and how far that is better."""
        job = self.job
        metrics = job.run.metrics()
        taught = [line for line in metrics if "held_out_loss" in line and line["step"]]  # at step 0 no model was saved
        losses = {line["step"]: line["held_out_loss"] for line in taught}
        best = min(losses, key=losses.__getitem__) if losses else job.steps
        report = Report(job.run.folder, job.steps, job.steps, best, left_out=job.all_left_out())
        if not job.state.is_main_process:
            return report
        if job.measured:
            self._load_weights(job.run.folder / "best")
            with self.aside():
                after = self.captions(job.held_out, job.measured)
            truth = {job.held_out.keys[place].as_py(): [job.held_out.still[place]] for place in job.measured}
            job.run.write("captions-after.json", after)
            try:
                before = measure(job.run.read("captions-before.json"), truth, self.embedder)
            except CutlineError as error:  # texts of nothing but signs
                job.tell({"event": "remark", "text": str(error)})
                truth = {}
        if job.measured and truth:
            found = measure(after, truth, self.embedder)
            report.before, report.after, report.embedder = before.scores, found.scores, self.embedder.name
            report.measured = len(truth)
            job.run.write(
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
        job.draw()
        job.run.finish({"step": job.steps, "best": best, "held_out_loss": losses.get(best)})
        return report

    def _load_weights(self, folder: Path) -> None:
        job = self.job
        model = job.family.session.model
        if job.settings.method == "lora":
            peft.set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
        else:
            load_whole(model, folder)
