"""Optimizers go on bit for bit after a stop; schedules are a function of the step; what cannot be is refused."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from cutline.options import CutlineError, OptionError, fill, option
from cutline.training.flora import Accumulation, draw_basis, project, unproject
from cutline.training.optimizing import LEARNING_RATES, Optimising, averaged, rate_now

transformers: Any = import_module("transformers")


@dataclass(frozen=True)
class Settings(Optimising):
    """As little of a trainer as the options of optimizing need."""

    method: Literal["lora", "full"] = option("lora")
    precision: Literal["float32", "bfloat16", "float16"] = option("float32")
    gradient_accumulation_steps: int = option(1)
    max_steps: int | None = option(None)
    seed: int = option(0)
    deepspeed: str | None = option(None)
    fsdp: str | None = option(None)


def given(**options: Any) -> Settings:
    return fill(Settings, options)


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adamw_8bit": {},
    "adafactor": {},
    "prodigy": {},
    "schedule_free": {"warmup_steps": 2},
    "flora": {"method": "full"},
    "flora with momentum": {"method": "full", "optimizer_rank": 32},
}


def settings_of(name: str, **more: Any) -> Settings:
    return given(
        optimizer=name.split()[0], learning_rate=1.0 if name == "prodigy" else 0.01, **OPTIMIZERS[name], **more
    )


def make_model(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(1)
    # 64 * 64 numbers are the fewest that the 8-bit optimizer keeps in 8 bits.
    linear = torch.nn.Linear
    return torch.nn.Sequential(linear(64, 64), torch.nn.LayerNorm(64), linear(64, 64), linear(64, 2)).to(dtype)


def loss_of(model: torch.nn.Module, step: int) -> torch.Tensor:
    weight = next(model.parameters())
    pictures = torch.randn(16, 64, generator=torch.Generator().manual_seed(step)).to(weight.dtype)
    answers: torch.Tensor = model(pictures).sum(dim=1)
    return (answers - pictures[:, 0]).pow(2).mean()


def train(model: torch.nn.Module, optimizer: Any, scheduler: Any, steps: range) -> list[float]:
    losses = []
    for step in steps:
        loss = loss_of(model, step)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_optimizer_goes_on_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    settings = settings_of(name)

    def start() -> tuple[torch.nn.Module, Any, Any]:
        model = make_model(dtype)
        optimizer = settings.make_optimizer(model)
        return model, optimizer, settings.make_scheduler(optimizer, 6)

    whole = start()
    losses = train(*whole, range(6))
    first = start()
    train(*first, range(3))
    states = through_a_file([part.state_dict() for part in first])
    resumed = start()
    for part, state in zip(resumed, states, strict=True):
        part.load_state_dict(state)
    assert train(*resumed, range(3, 6)) == losses[3:]
    for ours, theirs in zip(resumed[0].parameters(), whole[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)
    start_weight, end_weight = next(make_model(dtype).parameters()), next(whole[0].parameters())
    assert not torch.equal(start_weight, end_weight)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns(name: str) -> None:
    settings = settings_of(name)
    model = make_model()
    optimizer = settings.make_optimizer(model)
    losses = train(model, optimizer, settings.make_scheduler(optimizer, 60), range(60))
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


@pytest.mark.parametrize("scheduler", ["constant", "linear", "cosine", "onecycle"])
@pytest.mark.parametrize("warmup", [0, 3])
def test_a_rate_rises_and_falls(scheduler: str, warmup: int) -> None:
    settings = given(scheduler=scheduler, warmup_steps=warmup)
    trace = [settings.rate(step, 20) for step in range(20)]
    assert all(0 < rate <= 1 for rate in trace)
    if warmup or scheduler != "onecycle":
        assert max(trace) == trace[warmup] == 1
        assert trace[: warmup + 1] == sorted(trace[: warmup + 1])
    falls = trace[trace.index(max(trace)) :]
    assert falls == sorted(falls, reverse=True)
    assert (falls[-1] < 0.1) == (scheduler != "constant")


@pytest.mark.parametrize(("steps", "warmup"), [(100, 0), (10, 0), (7, 0), (2, 0), (100, 9), (12, 11)])
def test_onecycle_is_torchs(steps: int, warmup: int) -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    share = (warmup + 1) / steps if warmup else 0.3
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=steps, pct_start=share, cycle_momentum=False
    )
    settings = given(scheduler="onecycle", warmup_steps=warmup)
    for step in range(steps):
        assert settings.rate(step, steps) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        if step < steps - 1:
            theirs.step()


def test_every_optimizer_has_a_rate_of_its_own() -> None:
    for name, rates in LEARNING_RATES.items():
        for method, rate in rates.items():
            assert given(optimizer=name, method=method).learning_rate == rate
    assert given(learning_rate=0.5).learning_rate == 0.5


def test_vectors_do_not_decay_and_lora_b_is_faster() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["0", "3"], use_dora=True))
    settings = given(lora_plus_ratio=16, learning_rate=1e-3, weight_decay=0.1)
    names = {id(weight): name for name, weight in model.named_parameters()}
    seen = {}
    for group in settings.make_optimizer(model).param_groups:
        for weight in group["params"]:
            seen[names[id(weight)].split("model.")[-1]] = (group["lr"], group["weight_decay"])
    for layer in "03":
        assert seen[f"{layer}.lora_A.default.weight"] == (1e-3, 0.1)
        assert seen[f"{layer}.lora_B.default.weight"] == (16e-3, 0.1)
        assert seen[f"{layer}.lora_magnitude_vector.default.weight"] == (1e-3, 0.0)
    assert len(seen) == 6


def test_schedule_free_is_looked_at_without_being_changed() -> None:
    settings = settings_of("schedule_free")
    model = make_model()
    optimizer = settings.make_optimizer(model)
    train(model, optimizer, settings.make_scheduler(optimizer, 9), range(5))
    before = [weight.detach().clone() for weight in model.parameters()]
    with averaged(optimizer):
        assert not torch.equal(next(model.parameters()), before[0])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert optimizer.param_groups[0]["train_mode"]
    other = settings_of("adamw").make_optimizer(model)
    with averaged(other):
        assert torch.equal(next(model.parameters()), before[0])


def test_schedule_frees_warm_up_is_its_own() -> None:
    """Ours comes by the schedule, so that the log shows it; its own has the same steps, counted from 1."""
    ours, theirs = make_model(), make_model()
    settings = settings_of("schedule_free")
    optimizer = settings.make_optimizer(ours)
    train(ours, optimizer, settings.make_scheduler(optimizer, 6), range(6))
    own = import_module("schedulefree").AdamWScheduleFree(
        [{"params": [weight], "weight_decay": 0.01 * (weight.ndim > 1)} for weight in theirs.parameters()],
        lr=0.01,
        warmup_steps=settings.warmup_steps + 1,
    )
    own.train()
    train(theirs, own, given(scheduler="constant").make_scheduler(own, 6), range(6))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def test_prodigys_rate_is_what_it_found() -> None:
    model = make_model()
    settings = settings_of("prodigy")
    optimizer = settings.make_optimizer(model)
    assert rate_now(optimizer) == pytest.approx(1e-6)
    train(model, optimizer, settings.make_scheduler(optimizer, 40), range(20))
    assert 1e-5 < rate_now(optimizer) < 1


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"lora_plus_ratio": 16, "method": "full"}, "without LoRA"),
    ({"lora_plus_ratio": 16, "optimizer": "prodigy"}, "one rate for all"),
    ({"optimizer": "flora"}, "saves nothing and adds noise"),
    ({"accumulation_rank": 4}, "saves nothing and adds noise"),
    ({"accumulation_rank": 4, "method": "full", "gradient_accumulation_steps": 2}, "optimizer=flora alone"),
    ({"accumulation_rank": 4, "method": "full", "optimizer": "flora"}, "gradient_accumulation_steps=2"),
    ({"optimizer_rank": 4}, "without -o optimizer=flora"),
    ({"optimizer": "schedule_free", "scheduler": "cosine"}, "leave it out"),
    ({"warmup_steps": 10, "max_steps": 10}, "leaves no step"),
    ({"learning_rate": 0}, "more than 0"),
    ({"learning_rate": float("nan")}, "more than 0"),
    ({"lora_plus_ratio": -1}, "more than 0"),
    ({"weight_decay": -1}, "at least 0"),
    ({"max_grad_norm": float("inf")}, "at least 0"),
    ({"warmup_steps": -1}, "at least 0"),
    ({"optimizer": "flora", "method": "full", "optimizer_rank": 0}, "at least 1"),
    ({"optimizer": "adam"}, "does not fit"),
]
COMPRESSED = {"accumulation_rank": 4, "method": "full", "optimizer": "flora", "gradient_accumulation_steps": 2}
REFUSED += [
    ({**COMPRESSED, "max_grad_norm": 1.0}, "no moment has all gradients"),
    ({**COMPRESSED, "precision": "float16"}, "scaled gradients"),
    ({**COMPRESSED, "deepspeed": "zero.json"}, "deepspeed"),
    ({**COMPRESSED, "fsdp": "full_shard"}, "fsdp"),
]


@pytest.mark.parametrize(("options", "why"), REFUSED)
def test_what_has_no_effect_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(OptionError, match=why):
        given(**options)


def test_compressed_accumulation_is_refused_to_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    given(**COMPRESSED)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match="several processes"):
        given(**COMPRESSED)


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("adamw_8bit", "bitsandbytes.optim", "quant"),
        ("prodigy", "prodigyopt", "train"),
        ("schedule_free", "schedulefree", "train"),
        ("flora", "flora_opt.optimizers.torch.flora", "flora"),
    ],
)
def test_a_lacking_package_is_named(monkeypatch: pytest.MonkeyPatch, name: str, module: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CutlineError, match=rf"optimizer={name} needs .*pip install 'cutline\[{extra}\]'"):
        settings_of(name).make_optimizer(make_model())


def test_what_the_model_shows_to_have_no_effect_is_refused() -> None:
    model = make_model()
    with pytest.raises(CutlineError, match="optimizer_rank=65 shrinks no weight"):
        given(optimizer="flora", method="full", optimizer_rank=65).make_optimizer(model)
    with pytest.raises(CutlineError, match="no LoRA B"):
        given(lora_plus_ratio=4).make_optimizer(model)
    late = given(warmup_steps=5)
    optimizer = late.make_optimizer(model)
    with pytest.raises(CutlineError, match="the run has 5"):
        late.make_scheduler(optimizer, 5)
    compressed = given(**{**COMPRESSED, "accumulation_rank": 64})
    with pytest.raises(CutlineError, match="accumulation_rank=64 shrinks no gradient"):
        compressed.attach(model, compressed.make_optimizer(model), step=lambda: 0, sync=lambda: True)
    model.requires_grad_(False)
    with pytest.raises(CutlineError, match="no weight"):
        given().make_optimizer(model)


class Toy(transformers.Trainer):  # type: ignore[misc]
    """transformers' Trainer, with optimizer, schedule and accumulation as a captioner has them."""

    def __init__(self, settings: Settings, folder: Path, *, steps: int, batch_size: int) -> None:
        self.settings = settings
        self.live: list[int] = []
        count = steps * batch_size * settings.gradient_accumulation_steps
        rows = torch.randn(count, 64, generator=torch.Generator().manual_seed(7))
        arguments = transformers.TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=1,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=settings.gradient_accumulation_steps,
            max_grad_norm=settings.max_grad_norm,
            save_steps=3,
            logging_steps=1,
            use_cpu=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            report_to=[],
            disable_tqdm=True,
        )
        super().__init__(make_model(), arguments, train_dataset=[{"pictures": row} for row in rows])

    def create_optimizer(self, model: Any = None) -> Any:
        for weight in self.model.parameters():
            weight.register_post_accumulate_grad_hook(lambda _: self.live.append(self.count()))
        self.optimizer = self.settings.make_optimizer(self.model)
        self.compressed: Accumulation | None = self.settings.attach(
            self.model,
            self.optimizer,
            step=lambda: self.state.global_step,
            sync=lambda: self.accelerator.sync_gradients,
        )
        return self.optimizer

    def count(self) -> int:
        """The numbers of all gradients that are alive, whole or compressed."""
        sums = self.compressed.sums if self.compressed else {}
        whole = [weight.grad for weight in self.model.parameters() if weight.grad is not None]
        return sum(held.numel() for held in (*whole, *sums.values()))

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        self.lr_scheduler = self.settings.make_scheduler(optimizer or self.optimizer, num_training_steps)
        return self.lr_scheduler

    def compute_loss(self, model: Any, inputs: Any, *_: Any, num_items_in_batch: Any = None, **__: Any) -> Any:
        pictures = inputs["pictures"]
        return (model(pictures).sum(dim=1) - pictures[:, 0]).pow(2).mean()

    def rates(self) -> list[float]:
        return [line["learning_rate"] for line in self.state.log_history if "learning_rate" in line]

    def losses(self) -> list[float]:
        return [line["loss"] for line in self.state.log_history if "loss" in line]


@pytest.mark.parametrize("scheduler", ["constant", "linear", "cosine", "onecycle"])
def test_a_schedule_goes_by_steps_whatever_is_accumulated(tmp_path: Path, scheduler: str) -> None:
    traces = []
    for accumulated in (1, 4):
        settings = given(
            method="full",
            scheduler=scheduler,
            warmup_steps=2,
            gradient_accumulation_steps=accumulated,
            learning_rate=0.01,
        )
        toy = Toy(settings, tmp_path / str(accumulated), steps=10, batch_size=4 // accumulated)
        toy.train()
        traces.append(toy.rates())
        assert toy.rates() == pytest.approx([0.01 * settings.rate(step, 10) for step in range(10)])
    assert traces[0] == traces[1]


def compressed(folder: Path, *, rank: int | None, seed: int = 0, resume: bool = False, steps: int = 6) -> Toy:
    settings = given(
        method="full",
        optimizer="flora",
        learning_rate=0.01,
        optimizer_rank=8,
        accumulation_rank=rank,
        gradient_accumulation_steps=4,
        max_grad_norm=0.0,
        seed=seed,
    )
    toy = Toy(settings, folder, steps=steps, batch_size=8)
    toy.train(resume_from_checkpoint=str(folder / "checkpoint-3") if resume else None)
    return toy


def same(one: Toy, other: Toy) -> bool:
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    return all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_compressed_accumulation_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = compressed(tmp_path, rank=8)
    resumed = compressed(tmp_path, rank=8, resume=True)
    assert same(resumed, whole)
    assert same(compressed(tmp_path / "again", rank=8), whole)
    assert not same(compressed(tmp_path / "other", rank=8, seed=1), whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_trainer_resumes_every_optimizer_bit_for_bit(tmp_path: Path, name: str) -> None:
    whole, resumed = (Toy(settings_of(name), tmp_path, steps=6, batch_size=8) for _ in range(2))
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert same(resumed, whole)


def test_compressed_accumulation_holds_fewer_numbers_and_learns(tmp_path: Path) -> None:
    dense, small = (compressed(tmp_path / str(rank), rank=rank, steps=40) for rank in (None, 8))
    weights = list(dense.model.parameters())
    assert max(dense.live) == sum(weight.numel() for weight in weights)
    narrow = [weight.numel() for weight in weights if weight.ndim < 2 or min(weight.shape) <= 8]
    assert len(weights) - len(narrow) == 2
    # One matrix at a time is whole, also at a step's last micro-batch.
    assert max(small.live) == 64 * 64 + 2 * 64 * 8 + sum(narrow)
    assert small.compressed is not None
    assert small.compressed.sums == {}
    for toy in (dense, small):
        assert sum(toy.losses()[-5:]) < 0.8 * sum(toy.losses()[:5])


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_a_projection_is_right_on_average_and_exact_at_full_rank(shape: tuple[int, int]) -> None:
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    cpu = torch.device("cpu")

    def guess(rank: int, seed: int) -> torch.Tensor:
        basis = draw_basis(12, rank, str(seed), cpu)
        small = project(gradient, basis)
        assert sorted(small.shape) == sorted((rank, 40))
        return unproject(small, basis, shape)

    assert torch.allclose(guess(12, 0), gradient, atol=1e-5)
    guesses = torch.stack([guess(3, seed) for seed in range(2000)])
    errors = (guesses - gradient).pow(2).sum(dim=(1, 2)) / gradient.pow(2).sum()
    assert errors.mean().item() == pytest.approx(12 / 3 - 1, rel=0.05)
    assert torch.allclose(guesses.mean(dim=0), gradient, atol=0.2)


def test_a_weight_is_changed_by_the_sum_of_its_micro_batches() -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    weights = dict(model.named_parameters())
    done: list[tuple[int, torch.Tensor]] = []
    at: dict[str, Any] = {"step": 4, "last": False}
    accumulation = Accumulation(
        weights,
        optimizer,
        lambda _, group, weight, gradient: done.append((id(weight), gradient * group["lr"])),
        rank=8,
        seed=3,
        step=lambda: at["step"],
        sync=lambda: at["last"],
    )
    optimizer.load_state_dict(optimizer.state_dict())  # which replaces the groups
    optimizer.param_groups[0]["lr"] = 2.0
    total = torch.autograd.grad(loss_of(model, 0) + loss_of(model, 1), weights["0.weight"])[0]
    for number in range(2):
        at["last"] = number == 1
        assert not done
        loss_of(model, number).backward()  # type: ignore[no-untyped-call]
    assert {number for number, _ in done} == {id(weights["0.weight"]), id(weights["2.weight"])}
    basis = draw_basis(64, 8, "3/4/0.weight", torch.device("cpu"))
    expected = 2.0 * unproject(project(total, basis), basis, (64, 64))
    assert torch.allclose(dict(done)[id(weights["0.weight"])], expected, atol=1e-5)
    assert [name for name, weight in weights.items() if weight.grad is None] == ["0.weight", "2.weight"]
    accumulation.remove()
    loss_of(model, 2).backward()  # type: ignore[no-untyped-call]
    assert weights["0.weight"].grad is not None
