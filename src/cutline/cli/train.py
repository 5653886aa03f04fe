"""`cutline train`: teach a model what a dataset says."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from cutline.cli.common import (
    DONE_IN_PART,
    INTERRUPTED,
    DatasetPath,
    Options,
    counted,
    print_json,
    progress_bar,
    say,
    visible,
)


def run(
    dataset: DatasetPath,
    preset: Annotated[
        str, typer.Argument(metavar="PRESET", help="`cutline presets training` lists them; or a TOML file.")
    ],
    options: Options = None,
    where: Annotated[str, typer.Option(metavar="SQL", help="Only pictures that meet this condition.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Load the model, say what would be learnt, stop.")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="One line of JSON per event.")] = False,
) -> None:
    """Teach a model what the dataset says of its pictures. Stop it, kill it, start it again: it goes on."""
    from cutline import options as settings
    from cutline import registry, toml_files
    from cutline.dataset import Dataset

    values = dict(toml_files.find("training", preset, "preset of training"))
    trains = values.pop("trains", None)
    if not isinstance(trains, str):
        raise settings.OptionError(f'{preset} does not say what it trains: trains = "captioner"')
    made = settings.fill(registry.load("trainings", trains), {**values, **settings.parse(options or [])})
    name = Path(preset).stem
    with _Shown(log_json) as events:
        report = made.train(Dataset(dataset), preset=name, where=where, dry_run=dry_run, events=events)
    if log_json and events.told:  # of several processes, one speaks
        from dataclasses import asdict

        print_json({"event": "end", **asdict(report)})
    elif events.told:
        _say_end(report, dry_run, dataset, made)
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)
    if any(report.left_out.get(why) for why in ("unreadable", "unreadable on the way")):
        raise typer.Exit(DONE_IN_PART)


def _say_end(report: Any, dry_run: bool, dataset: Path, made: Any) -> None:
    if dry_run:
        return
    if report.interrupted:
        say(
            f"interrupted at step {report.step:,} of {report.steps:,}, which is saved in {report.run}. To go on, give "
            "the same command again."
        )
        return
    if report.already:
        say("This is finished; with other settings, or other words, it is another run. Or give it a name: -o name=…")
    if report.after:
        pictures = "picture" if report.measured == 1 else "pictures"
        print(f"{report.measured:,} held-out {pictures}, before -> after (meaning by: {report.embedder})")
        for name, after in report.after.items():
            print(f"  {name:<20} {report.before[name]:8.3f} -> {after:.3f}")
    if report.measured < FEW:
        few = (
            "so few pictures say little" if report.measured else "nothing was measured, so nothing shows that it helped"
        )
        say(f"{few}: -o validation=0.2 holds out a fifth of them, and -o measured=… says how many are captioned")
    best = f", the best of them at step {report.best:,}" if report.best not in (None, report.step) else ""
    print(f"{report.run}: {report.step:,} steps{best}")
    how = "adapter" if made.method == "lora" else "model"
    print(
        f"To caption with it: cutline annotate {dataset} {made.annotator} -o {how}={report.run} --as captions/NAME\n"
        f"To measure that: cutline evaluate {dataset} captions/NAME --against LAYER --held-out {report.run.name}"
    )


FEW = 30
"""Pictures; scores of fewer are mostly chance."""


class _Shown:
    """How a training is shown: JSON lines, a bar on a terminal, a line now and then in a pipe."""

    EVERY = 30.0
    """Seconds between lines in a pipe."""

    def __init__(self, as_json: bool) -> None:
        self.as_json, self.told = as_json, False
        self.bar: Any = None
        self.metrics: dict[str, Any] = {}
        self.last = time.monotonic()

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        """Show what happens."""
        self.told = True
        if self.as_json:
            print_json(event)
            return
        act = getattr(self, f"_{event['event']}", None)
        if act:
            act(event)

    def _remark(self, event: dict[str, Any]) -> None:
        self._line(event["text"])

    def _ready(self, event: dict[str, Any]) -> None:
        tokens = event["tokens"]
        self._line(f"{event['train']:,} pictures to learn from, {event['held_out']:,} held out to measure on")
        if event["left_out"]:
            self._line(f"left out: {counted(event['left_out'])}")
        self._line(
            f"tokens of a text: {tokens['least']} to {tokens['most']}, half at most {tokens['median']}, 95 % at most "
            f"{tokens['most_of_95_percent']}"
        )
        if tokens["cut"]:
            self._line(f"{tokens['cut']:,} texts are cut after {tokens['limit']} tokens: set -o max_tokens higher")
        if event["layers"]:
            count = sum(event["layers"].values())
            self._line(f"the adapter is on {count} layers, {event['trainable']:,} weights:")
            for name, count in sorted(event["layers"].items()):
                self._line(f"  {name}" + (f"  x {count}" if count > 1 else ""))
        else:
            self._line(f"all {event['trainable']:,} weights are taught")
        first = event["first"]
        if first["asked"]:
            self._line(f"it is asked: {visible(first['asked'])[:200]}")
        self._line(f"for example {first['key']}: {visible(first['text'])[:200]}")
        self._line(
            f"{event['steps']:,} steps, {event['steps_per_epoch']:,} in an epoch, learning rate "
            f"{event['learning_rate']:g}, in {event['run']}"
        )

    def _start(self, event: dict[str, Any]) -> None:
        if event["step"]:
            self._line(f"going on from step {event['step']:,}")
        if sys.stderr.isatty():
            self.bar = progress_bar("note")
            self.bar.start()
            self.task = self.bar.add_task(
                "training", total=event["steps"], completed=event["step"], rate="", note="measuring what it says now"
            )

    def _step(self, event: dict[str, Any]) -> None:
        rate = f"{event['per_second']:.2f} steps/s"
        if self.bar is not None:
            self.bar.update(self.task, completed=event["step"], rate=rate, note=self._note())
        elif time.monotonic() - self.last > self.EVERY:
            self.last = time.monotonic()
            seconds = (event["steps"] - event["step"]) / event["per_second"]
            left = f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
            told = [f"step {event['step']:,} of {event['steps']:,}", rate, f"{left} left", self._note()]
            say(", ".join(filter(None, told)))

    def _metrics(self, event: dict[str, Any]) -> None:
        self.metrics |= event
        if self.bar is None and "held_out_loss" in event:
            say(f"step {event['step']:,}: {self._note()}")

    def _note(self) -> str:
        names = {"loss": "loss", "held_out_loss": "held-out loss"}
        return ", ".join(f"{said} {self.metrics[name]:.3f}" for name, said in names.items() if name in self.metrics)

    def _unreadable(self, event: dict[str, Any]) -> None:
        self._line(f"{event['key']} cannot be opened any more ({event['error']}) and teaches nothing from here on")

    def _stopping(self, event: dict[str, Any]) -> None:
        self._line("saving after this step; Ctrl-C again stops at once")

    def _line(self, text: str) -> None:
        if self.bar is not None:
            self.bar.console.print(text, markup=False, soft_wrap=True)
        else:
            say(text)
