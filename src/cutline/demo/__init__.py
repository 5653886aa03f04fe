"""The whole job in one to three minutes, offline, on two processor cores: `cutline demo`.

A small captioner learns to describe scenes of two shapes (`scenes`, `captioner`), captions a thousand that it never
saw, and is measured against what is true. A few damaged files lie among them, as they do in any real collection.
Everything after the training goes the way that a user's own pictures would go.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from cutline import options, registry
from cutline.compose.recipe import find_recipe
from cutline.dataset import Dataset
from cutline.demo.captioner import train_captioner
from cutline.demo.scenes import Scene, held_out, scenes
from cutline.engine.here import annotate
from cutline.engine.selection import Selection
from cutline.exports.export import export
from cutline.options import CutlineError
from cutline.sheet import Entry, choose, contact_sheet, exact_match

UNSEEN = 1_000
"""Scenes that are written as files and captioned; none of them is among those of the training."""
EXPORTS: dict[str, tuple[str, dict[str, Any]]] = {
    "sidecar": ("sidecars", {}),
    "kohya": ("kohya.json", {}),
    "metadata_jsonl": ("imagefolder", {"pictures": "link"}),
}
"""Export -> where it goes below `exports/`, and its options."""


def run(
    folder: Path,
    console: Console | None = None,
    *,
    unseen: int = UNSEEN,
    samples: int = 16_000,
    steps: int = 800,
    seed: int = 0,
) -> int:
    """Do the demo in `folder`, telling the story on `console`. Returns how many of the `unseen` captions are right.

    Given a folder that it was in before, it does what is left to do.

    Raises:
        CutlineError: torch and transformers are not installed, or the folder holds something else.
        KeyboardInterrupt: someone stopped it; what was done is kept.
    """
    console = console or Console(highlight=False)
    started = time.monotonic()
    pictures = folder / "pictures"
    if pictures.exists() and not (pictures / "scenes").is_dir():
        raise CutlineError(f"{pictures} is there already, and not the demo's. Give a new folder: cutline demo FOLDER")
    folder.mkdir(parents=True, exist_ok=True)

    def say(text: str = "") -> None:
        console.print(text, soft_wrap=True)

    say(f"The whole job, offline, in {escape(str(folder))}: one to three minutes on two processor cores.\n")

    say("[bold]1. Train[/bold] a captioner of half a million weights, from nothing.")
    captioner = folder / "captioner"
    if captioner.exists():
        say("   It is there from before.")
    else:
        with _bar(console, "training", steps) as show:
            train_captioner(
                captioner,
                samples=samples,
                steps=steps,
                seed=seed,
                progress=lambda step, _, loss: show(step, f"loss {loss:.3f}"),
            )
        say(f"   {samples:,} scenes drawn in memory, {steps} steps, {time.monotonic() - started:.0f} s.")

    say(f"[bold]2. Add[/bold] {unseen:,} scenes that it never saw, and four damaged files.")
    truth = write_scenes(pictures / "scenes", unseen, seed)
    write_damaged(pictures / "damaged")
    dataset = Dataset(pictures)
    dataset.add(options.fill(registry.load("sources", "folder"), {"path": str(pictures)}))
    for key, error in dataset.sql("select key, error from pictures where error is not null order by key").fetchall():
        say(f"   {key}: [red]{error}[/red]")

    say("[bold]3. Caption[/bold] every picture that has no caption yet.")
    settings = options.fill(registry.load("annotators", "blip"), {"model": str(captioner), "batch_size": 64})
    selection = Selection(dataset, settings, "captions/blip")
    with _bar(console, "captioning", selection.count()) as show:
        report = annotate(selection, events=lambda event: _show_progress(event, show))
    if report.interrupted:
        say("Interrupted: what is done is kept. To go on, give the same command again.")
        raise KeyboardInterrupt
    rate = f", {report.done / report.seconds:.0f} a second" if report.seconds else ""
    say(f"   {report.done:,} captioned{rate}. Stop it, kill it: the same command goes on where it was.")

    say("[bold]4. Measure[/bold] against what is true, letter for letter.")
    entries = compare(dataset, pictures / "scenes", truth)
    right, total = exact_match(entries)
    composed, untaught = exact_match([entry for entry in entries if held_out(entry.truth)])
    result = f"{right:,} of {total:,} captions exactly right ({right / total:.1%})"
    say(f"   [bold green]{result}[/bold green]")
    say(f"   {composed} of the {untaught} whose words, in that order, it was never taught")
    sheet = folder / "contact-sheet.png"
    contact_sheet(choose(entries), sheet, title=f"Cutline demo: {result}")
    say(f"   Look at {escape(str(sheet))}")

    say("[bold]5. Export[/bold] what trainers read.")
    recipe = find_recipe(dataset, "")
    for name, (out, chosen) in EXPORTS.items():
        where = folder / "exports" / out
        where.parent.mkdir(exist_ok=True)
        manifest = export(dataset, options.fill(registry.load("exports", name), chosen), where, recipe=recipe)
        say(f"   {name}: {escape(str(manifest.out))}")

    say(f"\nDone in {time.monotonic() - started:.0f} s. Next, with a folder of your own:")
    for command in ("add ~/photos", "annotate ~/photos blip", "export ~/photos sidecar ~/captions"):
        say(f"   [bold]cutline {command}[/bold]")
    return right


def write_scenes(folder: Path, count: int, seed: int = 0) -> dict[str, Scene]:
    """Draw scenes that no training draws, as PNG files; those that are there stay. Returns file name -> scene."""
    folder.mkdir(parents=True, exist_ok=True)
    truth = {f"{number:04}.png": scene for number, scene in enumerate(islice(scenes(f"unseen {seed}"), count))}
    for name, scene in truth.items():
        if not (folder / name).exists():
            scene.draw().save(folder / name)
    return truth


def write_damaged(folder: Path) -> None:
    """Write four files that are no pictures, though their names say so: what any real collection holds some of."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "cut-short.png"
    next(scenes("damaged")).draw().save(picture)
    whole = picture.read_bytes()
    picture.write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "web-page.jpg").write_bytes(b"<!doctype html><title>404 Not Found</title>")
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + whole[24:29]
    (folder / "bomb.png").write_bytes(whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:])


def compare(dataset: Dataset, folder: Path, truth: dict[str, Scene]) -> list[Entry]:
    """What the layer says of each scene, beside what is true; a scene without a good row has no caption."""
    said = dict(dataset.sql('select key, texts[1] from "captions/blip" where error is null').fetchall())
    return [Entry(folder / name, said.get(f"scenes/{name}"), scene.caption) for name, scene in truth.items()]


def _show_progress(event: dict[str, Any], show: Callable[[int, str], None]) -> None:
    if event["event"] == "progress":
        show(event["done"], f"{event['per_second']:.0f}/s")


@contextmanager
def _bar(console: Console, what: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A progress bar with the time that is left; nothing where there is no terminal."""
    columns: tuple[Any, ...] = (
        TextColumn("   {task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total, note="")
        yield lambda done, note: progress.update(task, completed=done, note=note)
