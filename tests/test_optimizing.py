"""Optimizers go on bit for bit after a stop; schedules are a function of the step; what cannot be is refused."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch

from cutline.options import CutlineError, OptionError, fill, option
from cutline.training.optimizing import LEARNING_RATES, Optimising, averaged, rate_now


@dataclass(frozen=True)
class Trainer(Optimising):
    """As little of a trainer as the options of optimizing need."""

    method: Literal["lora", "full"] = option("lora")
    precision: Literal["float32", "bfloat16", "float16"] = option("float32")
    gradient_accumulation_steps: int = option(1)
    max_steps: int | None = option(None)
    seed: int = option(0)
    deepspeed: str | None = option(None)
    fsdp: str | None = option(None)


def given(**options: Any) -> Trainer:
    return fill(Trainer, options)


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "adamw_8bit": {},
    "adafactor": {},
    "prodigy": {},
    "schedule_free": {"warmup_steps": 2},
    "flora": {"method": "full"},
    "flora with momentum": {"method": "full", "optimizer_rank": 32},
}


def settings_of(name: str, **more: Any) -> Trainer:
    return given(
        optimizer=name.split()[0], learning_rate=1.0 if name == "prodigy" else 0.01, **OPTIMIZERS[name], **more
    )


def make_model(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(1)
    # 64 * 64 numbers are the fewest that the 8-bit optimizer keeps in 8 bits.
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.LayerNorm(64), torch.nn.Linear(64, 2)).to(dtype)


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

    model = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["0", "2"], use_dora=True))
    settings = given(lora_plus_ratio=16, learning_rate=1e-3, weight_decay=0.1)
    names = {id(weight): name for name, weight in model.named_parameters()}
    seen = {}
    for group in settings.make_optimizer(model).param_groups:
        for weight in group["params"]:
            seen[names[id(weight)].split("model.")[-1]] = (group["lr"], group["weight_decay"])
    for layer in "02":
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
    model.requires_grad_(False)
    with pytest.raises(CutlineError, match="no weight"):
        given().make_optimizer(model)
