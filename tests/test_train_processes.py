"""One training by several processes: they agree with each other, with a single one, and after one of them has died."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from cutline import options
from cutline.training.captioner import Captioner
from running import environment, events
from trainings import make_scenes

RANKS = """
import json, os, signal, sys
from pathlib import Path
from safetensors.torch import save_file
from cutline import options
from cutline.dataset import Dataset
from cutline.training.captioner import Captioner
from cutline.training.trainer import Cadence, CaptionTrainer

dataset, given, out, victim, at, number = sys.argv[1:]
rank = os.environ["RANK"]
train, step_end = CaptionTrainer.train, Cadence.on_step_end

def watched(self, *args, **named):
    done = train(self, *args, **named)
    model = self.accelerator.unwrap_model(self.model)
    taught = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}
    save_file(taught, f"{out}-{rank}.safetensors")
    return done

def killing(self, args, state, control, **named):
    if (rank, state.global_step) == (victim, int(at)):
        if int(number) == signal.SIGKILL:
            os.kill(os.getpid(), signal.SIGKILL)
        os.kill(os.getppid(), int(number))  # the launcher, which passes it on
        assert self.job.stop.wait(60)
    return step_end(self, args, state, control, **named)

CaptionTrainer.train, Cadence.on_step_end = watched, killing
made = options.fill(Captioner, json.loads(given))
with open(f"{out}-{rank}.jsonl", "w") as told:
    report = made.train(Dataset(Path(dataset)), events=lambda event: told.write(json.dumps(event) + "\\n"))
    told.write(json.dumps({"event": "end", "interrupted": report.interrupted}) + "\\n")
"""
"""Teaches as the command does, keeps what each rank has learnt, and may send one of them a signal at a step."""

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")
"""By `--cpu`, accelerate would start several processes by MPI alone; without GPUs, ours run on processors anyway."""

# An orthogonal beginning has both matrices other than 0: there is something that an error can be relative to.
GIVEN = {
    "target_modules": "query,value",
    "init": "orthogonal",
    "dropout": 0.0,
    "batch_size": 1,
    "gradient_accumulation_steps": 2,
    "max_steps": 6,
    "save_every_n_steps": 2,
    "validation": 0.2,
    "measured": 0,
    "samples": 1,
    "log_every_n_steps": 1,
    "device": "cpu",
}


@pytest.mark.slow
def test_two_processes_agree_with_one_and_go_on_when_one_has_died(tmp_path: Path) -> None:
    base = tiny.save_blip(tmp_path / "base")
    dataset = make_scenes(tmp_path / "scenes", 15)  # of which 4 at once is no whole number of steps
    pictures = dataset.root
    given = {"annotator": "blip", "model": str(base), **GIVEN}
    launcher = tmp_path / "ranks.py"
    launcher.write_text(RANKS)

    def launch(name: str, out: str, victim: str = "", at: int = 0, number: int = 0) -> subprocess.CompletedProcess[str]:
        words = (launcher, pictures, json.dumps({**given, "name": name}), tmp_path / out, victim, at, number)
        return _run(*TORCHRUN, *words)

    # Two ranks end alike, and as one process does that has all the pictures of a step in one batch.
    done = launch("whole", "whole")
    assert done.returncode == 0, done.stderr
    told, silent = (events((tmp_path / f"whole-{rank}.jsonl").read_text()) for rank in (0, 1))
    assert [event["event"] for event in silent] == ["end"]
    assert [event["step"] for event in told if event["event"] == "step"] == [1, 2, 3, 4, 5, 6]
    first, second = (load_file(tmp_path / f"whole-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)

    single = options.fill(Captioner, {**given, "name": "one", "batch_size": 4, "gradient_accumulation_steps": 1})
    one = single.train(dataset).run
    runs = one.parent
    weights, expected = (load_file(_adapter(runs / name)) for name in ("whole", "one"))
    for name, tensor in expected.items():
        assert (weights[name] - tensor).abs().max() <= 1e-6 * tensor.abs().max(), name
    # The optimizer hides how long gradients are, so these are compared too (what differs in the last place grows).
    pairs = list(zip(_metrics(runs / "whole"), _metrics(one), strict=True))
    assert [mine["step"] for mine, _ in pairs] == [0, 1, 2, 3, 4, 5, 6]
    for mine, theirs in pairs:
        assert mine["step"] == 0 or {"loss", "grad_norm"} <= mine.keys()
        assert mine == pytest.approx({**theirs, "epoch": mine["epoch"]}, rel=1e-5)

    # A rank dies: the launcher ends the other. Another time a machine is taken away: all ranks save and stop.
    died = launch("torn", "torn", "1", 3, signal.SIGKILL)
    assert died.returncode != 0
    assert (runs / "torn/checkpoints/step-000002").exists()
    launch("torn", "torn", "1", 4, signal.SIGTERM)
    told, silent = (events((tmp_path / f"torn-{rank}.jsonl").read_text()) for rank in (0, 1))
    assert told[-1]["interrupted"]
    assert silent[-1]["interrupted"]
    assert next(event["step"] for event in told if event["event"] == "start") == 2
    assert (runs / "torn/checkpoints/step-000004").exists()

    # The command goes on with it, by another launcher, to the same bytes.
    preset = tmp_path / "tiny.toml"
    preset.write_text('trains = "captioner"\n')
    pairs_given = [word for name, value in given.items() for word in ("-o", f"{name}={value}")]
    words = ("-m", "cutline", "train", pictures, preset, "--log-json", "-o", "name=torn", *pairs_given)
    ended = _run(*ACCELERATE, *words)
    assert ended.returncode == 0, ended.stderr
    told = events(ended.stdout)
    assert [event["step"] for event in told if event["event"] == "step"] == [5, 6]
    assert [event["event"] for event in told].count("end") == 1
    assert _adapter(runs / "torn").read_bytes() == _adapter(runs / "whole").read_bytes()


def test_the_slurm_script_is_one() -> None:
    script = Path(__file__).parent.parent / "examples/train.slurm"
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text("utf-8")
    assert re.search(r"^#SBATCH --requeue$", text, re.M)
    assert re.search(r"^#SBATCH --signal=B:TERM@\d+$", text, re.M)


def _run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=environment(ACCELERATE_CONFIG_FILE=os.devnull),
    )


def _adapter(run: Path) -> Path:
    return run / "last/adapter_model.safetensors"


def _metrics(run: Path) -> list[dict[str, Any]]:
    """What is told of each step, as one."""
    found: dict[int, dict[str, Any]] = {}
    for line in (run / "metrics.jsonl").read_text("utf-8").splitlines():
        told = json.loads(line)
        found.setdefault(told["step"], {}).update(told)
    return [found[step] for step in sorted(found)]
