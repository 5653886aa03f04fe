"""The folder of a training run, and how it is found again: `.cutline/runs/NAME`.

A run is known by what it learns and how (`identity`): the same command on the same words goes on with it, and another
makes a new one. What is saved appears whole or not at all: a checkpoint is written beside, synced, and renamed.

    run.json            what was asked for, what it amounts to, and whether it is finished
    rows.parquet        which pictures, and on which side they are: train or held_out
    metrics.jsonl       loss, learning rate, held-out loss, step by step
    checkpoints/        what a run goes on from
    models/             models by the step at which they were saved
    best, last          links to two of those
    samples/            what was said of the same pictures, over time
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cutline import options
from cutline.dataset import Dataset
from cutline.files import storage_error, sync, whole_file
from cutline.options import CutlineError, OptionError

_NEEDED = ("trainer_state.json", "scheduler.pt", "rng_state*", "*.safetensors")

STATE = ("optimizer.pt", "scheduler.pt", "scaler.pt", "trainer_state.json")
"""What a checkpoint holds beside a model; so do rng_state*.pth and folders."""


class Run:
    """One training run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def find(cls, dataset: Dataset, preset: str, name: str, identity: Mapping[str, Any]) -> tuple[Run, list[str]]:
        """The run that these settings go on with, or the folder of a new one; and remarks for people.

        Raises:
            OptionError: the run of that name has other settings.
        """
        runs = dataset.home / "runs"
        known = {folder.name: found for folder in sorted(runs.glob("*")) if (found := cls(folder).said())}
        mine = options.canonical(identity)
        same = [one for one, said in known.items() if options.canonical(said["identity"]) == mine]
        if name:
            if name in known and name not in same:
                raise OptionError(
                    f"there is a run {name} with other settings ({_differences(known[name]['identity'], identity)}). "
                    "Give this one another name: -o name=…"
                )
            return cls(runs / name), []
        if same:
            return cls(runs / same[-1]), []
        remarks = [
            f"the unfinished run {one} stays as it is: this one differs in {_differences(said['identity'], identity)}"
            for one, said in known.items()
            if not said.get("finished") and said["preset"] == preset
        ]
        first = f"{time.strftime('%Y-%m-%d')}-{preset}"
        names = [first, *(f"{first}-{number}" for number in range(2, len(known) + 3))]
        return cls(runs / next(one for one in names if one not in known)), remarks[-1:]

    def said(self) -> dict[str, Any] | None:
        """What run.json says; None where there is none."""
        try:
            found = json.loads((self.folder / "run.json").read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and "identity" in found else None

    def write(self, name: str, value: Any) -> None:
        """Write a JSON file of the run, whole."""
        self.make()
        with whole_file(self.folder / name, "w") as handle:
            handle.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")

    def read(self, name: str) -> Any:
        """What a JSON file of the run holds; None where there is none."""
        path = self.folder / name
        return json.loads(path.read_bytes()) if path.exists() else None

    def make(self) -> None:
        """Make the folder."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(self.folder, error) from error

    @property
    def staging(self) -> Path:
        """Where what is being saved is written first. Hidden, and removed when a run goes on."""
        return self.folder / ".saving"

    def checkpoint(self) -> Path | None:
        """The newest checkpoint; one of which files are gone is none."""
        whole = [one for one in self._steps("checkpoints") if all(any(one.glob(name)) for name in _NEEDED)]
        return whole[-1] if whole else None

    @contextmanager
    def alone(self, identity: Mapping[str, Any]) -> Iterator[None]:
        """Keep other processes from this run meanwhile.

        Raises:
            CutlineError: another process has it, or has just made one of this name with other settings.
        """
        path = self.folder.with_name(f".{self.folder.name}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = path.open("w")
        except OSError as error:
            raise storage_error(self.folder, error) from error
        with handle:
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # that of a process: its workers do not have it
            except (BlockingIOError, PermissionError):
                raise CutlineError(
                    f"another process is at work in {self.folder}: wait for it, or stop it; or give this run another "
                    "name: -o name=…"
                ) from None
            if (said := self.said()) and options.canonical(said["identity"]) != options.canonical(identity):
                raise CutlineError(f"another process has just made {self.folder}: give the same command again")
            yield

    def publish(self, staged: Path, step: int, *, best: int | None, keep: int) -> None:
        """Make what lies in `staged` a checkpoint, and the model in it (or in `model` beside it) that of this step.

        Args:
            staged: a whole checkpoint, beside the run's other files.
            step: at which optimizer step it was saved.
            best: the step of the best model so far; None where nothing is held out, and the newest is taken for it.
            keep: how many models are kept beside the best one; of checkpoints it is the newest alone.
        """
        name = f"step-{step:06}"
        model = staged.with_name("model")
        for folder in (staged, model):
            with suppress(FileNotFoundError):
                (folder / "training_args.bin").unlink()  # a pickle, which nobody reads
        for file in sorted(staged.parent.rglob("*")):
            if file.is_file():
                sync(file)
        if not model.exists():
            model.mkdir()
            for file in sorted(staged.iterdir()):
                if file.is_file() and file.name not in STATE and not file.name.startswith("rng_state"):
                    _link(file, model / file.name)
        for source, kind in ((model, "models"), (staged, "checkpoints")):
            target = self.folder / kind / name
            target.parent.mkdir(exist_ok=True)
            if target.exists():  # of a run that was stopped at this step and went on from an earlier one
                _remove(target)
            sync(source)
            source.rename(target)
            sync(target.parent)
        self._link_models(step, best)
        self._rotate(keep)

    def _link_models(self, step: int, best: int | None) -> None:
        name = f"models/step-{step:06}"
        measured = best is not None and (self.folder / "models" / f"step-{best:06}").exists()
        _point(self.folder / "last", name)
        _point(self.folder / "best", f"models/step-{best:06}" if measured else name)

    def _rotate(self, keep: int) -> None:
        for old in self._steps("checkpoints")[:-1]:
            _remove(old)
        used = {(self.folder / name).resolve() for name in ("best", "last")}
        for old in self._steps("models")[:-keep]:
            if old.resolve() not in used:
                _remove(old)

    def _steps(self, kind: str) -> list[Path]:
        """The checkpoints, or models, from old to new."""
        return sorted((self.folder / kind).glob("step-*"), key=lambda found: int(found.name.partition("-")[2]))

    def finish(self, told: Mapping[str, Any]) -> None:
        """Say in run.json that the run is finished, and remove what it would go on from."""
        self.write("run.json", {**(self.said() or {}), "finished": dict(told)})
        for folder in (self.folder / "checkpoints", self.staging):
            shutil.rmtree(folder, ignore_errors=True)

    def metrics(self) -> list[dict[str, Any]]:
        """What metrics.jsonl says, line by line."""
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []

    def go_on_from(self, step: int) -> None:
        """Forget what was noted after this step, and whatever was half saved or half removed."""
        for left in (self.staging, *self.folder.glob("*/.step-*.old")):
            shutil.rmtree(left, ignore_errors=True)
        state = self.folder / "checkpoints" / f"step-{step:06}" / "trainer_state.json"
        if state.exists():  # it may have been stopped before its links were made
            self._link_models(step, json.loads(state.read_bytes())["best_global_step"])
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text("utf-8").splitlines():
            with suppress(ValueError):  # one that was cut short
                if step and json.loads(line).get("step", 0) <= step:
                    kept.append(line + "\n")
        with whole_file(path, "w") as handle:
            handle.writelines(kept)

    def note(self, told: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(told, ensure_ascii=False) + "\n")


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What differs between two identities, in words."""
    flat_old, flat_new = _flat(old), _flat(new)
    names = [name for name in {**flat_old, **flat_new} if flat_old.get(name) != flat_new.get(name)]
    if names == ["data"]:
        return "the pictures or their words, which have changed"
    shown = [
        f"another {name}"
        if isinstance(flat_new.get(name), dict)
        else f"{name}={flat_old.get(name)} there, {flat_new.get(name)} here"
        for name in names
        if name != "data"
    ]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in identity.items() if name != "options"}
    return {**identity.get("options", {}), **rest}


def _point(link: Path, target: str) -> None:
    """Make a symbolic link point there, in one step."""
    new = link.with_name(f".{link.name}.new")
    with suppress(FileNotFoundError):
        new.unlink()
    new.symlink_to(target)
    new.replace(link)
    sync(link.parent)


def _remove(folder: Path) -> None:
    """Remove a folder so that half of it is never met under its name."""
    hidden = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _link(file: Path, other: Path) -> None:
    """The same file under another name; where the file system knows no such thing, a copy."""
    try:
        os.link(file, other)
    except OSError:
        shutil.copy2(file, other)
        sync(other)
