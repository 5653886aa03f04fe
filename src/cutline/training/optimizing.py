"""How a training changes the weights: which optimizer, at which rate, and how the rate moves from step to step.

A trainer takes the options of `Optimising` by subclassing it. A *step* here is always one change of the weights,
however many micro-batches were accumulated for it, so a schedule is the same whatever the accumulation.

What would have no effect, or cannot be, is refused when the options are read, long before a model is loaded. All
optimizers here keep a state that survives `torch.save` and `torch.load(weights_only=True)`: a run that is resumed
goes on bit for bit as if it had never stopped.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from cutline.options import CutlineError, OptionError, called, option
from cutline.training.flora import Accumulation, shrinks

if TYPE_CHECKING:
    import torch

Optimizer = Literal["adamw", "adamw_8bit", "adafactor", "prodigy", "schedule_free", "flora"]

LEARNING_RATES: dict[str, dict[str, float]] = {
    # LoRA: Hu et al. 2021 (arXiv:2106.09685) adapt GPT-2 at 2e-4; Dettmers et al. 2023 (QLoRA, arXiv:2305.14314) take
    # 2e-4 for smaller and 1e-4 for larger models. Full: BLIP was tuned for captions at 1e-5 (Li et al. 2022,
    # configs/caption_coco.yaml). Adafactor and Flora change weights by about the rate itself, as Adam does, since
    # neither is scaled by the weights here.
    "adamw": {"lora": 1e-4, "full": 1e-5},
    "adamw_8bit": {"lora": 1e-4, "full": 1e-5},
    "adafactor": {"lora": 1e-4, "full": 1e-5},
    "flora": {"full": 1e-5},
    # Its README: 1 to 10 times the rate of AdamW with a schedule (Defazio et al. 2024, arXiv:2405.15682).
    "schedule_free": {"lora": 3e-4, "full": 3e-5},
    # It finds the rate by itself and multiplies it by this (Mishchenko and Defazio 2023, arXiv:2306.06101).
    "prodigy": {"lora": 1.0, "full": 1.0},
}
"""The learning rate where none is given, by optimizer and method."""

LEAST_PRODIGY = 0.05
"""What is less than this was meant for another optimizer, and would teach next to nothing."""

FLORA_MOMENTUM = 0.9
"""The share of the old in Flora's momentum: that of Adam."""


SINGLE = "cannot be with several processes, whose gradients are not whole before the step; leave it out"


@dataclass(frozen=True)
class Optimising:
    """The options of how weights are changed. A subclass's `__post_init__` calls that of this class."""

    if TYPE_CHECKING:  # options of the class that takes these in

        @property
        def method(self) -> str:
            """lora or full."""

        @property
        def precision(self) -> str | None:
            """The number format of computing."""

        @property
        def gradient_accumulation_steps(self) -> int:
            """Micro-batches of a step."""

        @property
        def max_steps(self) -> int | None:
            """Steps of the whole run, where given."""

        @property
        def seed(self) -> int:
            """What chance follows from."""

    optimizer: Optimizer = option(
        "adamw", "adamw; adamw_8bit and adafactor keep less; prodigy finds its rate; schedule_free; flora (method=full)"
    )
    learning_rate: float | None = option(
        None, "1e-4 (method=full: 1e-5); schedule_free 3e-4 (3e-5); prodigy 1.0, by which its own finding is multiplied"
    )
    weight_decay: float = option(0.01, "share of each weight, times the rate, taken off at each step")
    max_grad_norm: float | None = option(None, "longer gradients are cut to this; 1.0; 0: none are")
    lora_plus_ratio: float | None = option(None, "LoRA+: the rate of a LoRA B is so many times that of its A, say 16")
    scheduler: Literal["constant", "linear", "cosine", "onecycle"] | None = option(
        None, "how the rate moves after warm-up; cosine, which falls to 0; with schedule_free: constant"
    )
    warmup_steps: int = option(0, "steps in which the rate rises; onecycle without it: 30 % of all")
    optimizer_rank: int | None = option(None, "flora: keep a momentum, in a random projection of this rank")
    accumulation_rank: int | None = option(None, "flora: accumulate gradients in random projections of this rank")

    def __post_init__(self) -> None:
        """Fill in what was left open and refuse what would have no effect or cannot be."""
        self._refuse_numbers()
        if self.optimizer == "flora" or self.accumulation_rank is not None:
            self._refuse_flora()
        if self.optimizer != "flora" and self.optimizer_rank is not None:
            self._refuse("optimizer_rank", "has no effect without -o optimizer=flora -o method=full")
        if self.lora_plus_ratio is not None and self.method != "lora":
            self._refuse("lora_plus_ratio", "has no effect without LoRA; leave it out, or set -o method=lora")
        if self.optimizer == "prodigy" and self.learning_rate is not None and self.learning_rate < LEAST_PRODIGY:
            self._refuse("learning_rate", "is no rate for prodigy, which multiplies its own by it; set it to 1.0")
        if self.lora_plus_ratio is not None and self.optimizer == "prodigy":
            self._refuse("lora_plus_ratio", "cannot be: prodigy finds one rate for all weights; set -o optimizer=adamw")
        if self.optimizer == "schedule_free" and self.scheduler not in (None, "constant"):
            self._refuse("scheduler", "cannot be with schedule_free, which averages instead; leave it out")
        if self.max_steps and self.warmup_steps >= self.max_steps:
            self._refuse("warmup_steps", f"leaves no step after it of max_steps={self.max_steps}; set it lower")
        for name, value in (
            ("learning_rate", LEARNING_RATES[self.optimizer][self.method]),
            ("scheduler", "constant" if self.optimizer == "schedule_free" else "cosine"),
            ("max_grad_norm", 0.0 if self.accumulation_rank else 1.0),
        ):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def _refuse_numbers(self) -> None:
        for name in ("learning_rate", "lora_plus_ratio"):
            if (given := getattr(self, name)) is not None and not 0 < given < math.inf:
                self._refuse(name, "does not fit: it is more than 0")
        for name in ("weight_decay", "max_grad_norm", "warmup_steps"):
            if (given := getattr(self, name)) is not None and not 0 <= given < math.inf:
                self._refuse(name, "does not fit: it is at least 0")
        for name in ("optimizer_rank", "accumulation_rank"):
            if (given := getattr(self, name)) is not None and given < 1:
                self._refuse(name, "does not fit: it is at least 1")

    def _refuse_flora(self) -> None:
        name = "optimizer" if self.accumulation_rank is None else "accumulation_rank"
        if self.method != "full":
            self._refuse(
                name,
                "means nothing to LoRA: one side of its matrices already is a rank, so that projecting them saves "
                "nothing and adds noise; set -o method=full, or leave it out",
            )
        if self.accumulation_rank is None:
            return
        if self.optimizer != "flora":
            self._refuse(name, "works with -o optimizer=flora alone, whose step can be done weight by weight")
        if self.gradient_accumulation_steps <= 1:
            self._refuse(name, "has no effect without accumulation: set -o gradient_accumulation_steps=2 or more")
        if self.max_grad_norm:
            self._refuse("max_grad_norm", f"cannot be with {name}: no moment has all gradients; set it to 0")
        if self.precision == "float16":
            self._refuse("precision", f"cannot be with {name}: its scaled gradients need all of them at once")
        if int(os.environ.get("WORLD_SIZE") or 1) > 1:  # what torchrun and accelerate launch say
            self._refuse(name, SINGLE)
        for other in ("deepspeed", "fsdp"):
            if getattr(self, other, None):
                self._refuse(name, f"cannot be with {other}, which has the gradients to itself; leave one of them out")

    def _refuse(self, name: str, why: str) -> NoReturn:
        raise OptionError(f"{called(type(self))}: {name}={getattr(self, name)} {why}")

    def make_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """The optimizer of those of the model's weights that are trained.

        Biases, norms and other vectors do not decay, as is the custom since GPT; with LoRA+ (Hayou et al. 2024,
        arXiv:2402.12354) the matrices B are a group of their own. The order of weights is the model's own.

        Raises:
            CutlineError: a package is lacking, nothing is trained, or a rank is too high to shrink any weight.
        """
        name = called(type(self))
        trained = [(key, weight) for key, weight in model.named_parameters() if weight.requires_grad]
        if not trained:
            raise CutlineError(f"{name}: no weight of the model is trained; name others by -o target_modules=…")
        rate = self.learning_rate
        assert rate is not None
        groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
        for key, weight in trained:
            faster = self.lora_plus_ratio if _is_lora_b(key) else None
            decay = self.weight_decay if weight.ndim > 1 else 0.0
            groups.setdefault((rate * (faster or 1.0), decay), []).append(weight)
        if self.lora_plus_ratio is not None and not any(_is_lora_b(key) for key, _ in trained):
            raise CutlineError(f"{name}: lora_plus_ratio={self.lora_plus_ratio} has no effect: no LoRA B is trained")
        if self.optimizer_rank is not None and not any(_momentum_shrinks(w, self.optimizer_rank) for _, w in trained):
            raise CutlineError(f"{name}: optimizer_rank={self.optimizer_rank} shrinks no weight of the model; lower it")
        return self._optimizer([{"params": held, "lr": lr, "weight_decay": d} for (lr, d), held in groups.items()])

    def _optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        import torch

        made: torch.optim.Optimizer
        match self.optimizer:
            case "adamw":
                return torch.optim.AdamW(groups)
            case "adamw_8bit":  # weights of less than 4096 numbers keep a state of 32 bits
                made = self._package("bitsandbytes.optim", "quant").AdamW8bit(groups)
            case "prodigy":  # its safeguard is for schedules that begin low
                safe = self.warmup_steps > 0 or self.scheduler == "onecycle"
                made = self._package("prodigyopt", "train").Prodigy(groups, safeguard_warmup=safe)
            case "schedule_free":  # warm-up comes by `rate`: the same steps as by its own, and the log shows them
                made = self._package("schedulefree", "train").AdamWScheduleFree(groups)
                made.train()  # type: ignore[attr-defined]
            case "adafactor":
                adafactor = self._package("transformers.optimization", "models").Adafactor
                made = adafactor(groups, lr=self.learning_rate, scale_parameter=False, relative_step=False)
                _keep_formats(made)
            case "flora":
                made = self._package("flora_opt.optimizers.torch.flora", "flora").Flora(
                    groups,
                    lr=self.learning_rate,
                    rank=self.optimizer_rank,
                    beta1=FLORA_MOMENTUM if self.optimizer_rank else None,  # without it, a rank does nothing
                    scale_parameter=False,
                    seed=self.seed,
                )
                _keep_formats(made)
        return made

    def _package(self, module: str, extra: str) -> Any:
        try:
            return import_module(module)
        except ImportError as error:
            raise CutlineError(
                f"{called(type(self))}: optimizer={self.optimizer} needs a package that is not here ({error}): "
                f"pip install 'cutline[{extra}]'"
            ) from None

    def attach(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        step: Callable[[], int],
        sync: Callable[[], bool],
    ) -> Accumulation | None:
        """Have gradients accumulate compressed where accumulation_rank says so, until `remove()` of what this returns.

        Args:
            model: the one that is trained.
            optimizer: what `make_optimizer` made of it, not wrapped.
            step: says how many steps were done: transformers' `trainer.state.global_step`.
            sync: says whether a micro-batch is its step's last: transformers' `trainer.accelerator.sync_gradients`.

        Raises:
            CutlineError: the rank is too high to shrink any gradient, or several processes share the gradients.
        """
        import torch

        if self.accumulation_rank is None:
            return None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self._refuse("accumulation_rank", SINGLE)
        weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        if not any(shrinks(weight, self.accumulation_rank) for weight in weights.values()):
            raise CutlineError(
                f"{called(type(self))}: accumulation_rank={self.accumulation_rank} shrinks no gradient of the model; "
                "set it lower"
            )
        change = self._package("flora_opt.optimizers.torch.flora", "flora").flora_step_
        return Accumulation(
            weights, optimizer, change, rank=self.accumulation_rank, seed=self.seed, step=step, sync=sync
        )

    def rate(self, step: int, steps: int) -> float:
        """The factor, 0 to 1, of the learning rate at `step` (from 0) of `steps`.

        With w = warmup_steps, the rate rises in a line from 1/(w+1) and is whole at step w: no step is done at rate
        0. From there it stays (constant), or falls to 0 in a line or half a cosine, which it would reach at `steps`.
        onecycle is that of torch (Smith and Topin 2019, arXiv:1708.07120): half a cosine from 1/25 up to 1 at step w
        (without w: after 30 % of the steps), and half a cosine down to 1/25/10,000 at the last step.
        """
        warmup = self.warmup_steps
        if self.scheduler == "onecycle":
            return _onecycle(step, steps, warmup if warmup else 0.3 * steps - 1)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        if self.scheduler == "linear":
            return 1.0 - done
        if self.scheduler == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        return 1.0

    def make_scheduler(self, optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
        """What sets the optimizer's rates to `rate`, if stepped after each of `steps` steps.

        Raises:
            CutlineError: the warm-up is not shorter than the whole run.
        """
        from torch.optim.lr_scheduler import LambdaLR

        if self.warmup_steps >= steps:
            raise CutlineError(
                f"{called(type(self))}: warmup_steps={self.warmup_steps} leaves no step after it: the run has {steps}; "
                "set it lower, or train for more -o epochs=…"
            )
        return LambdaLR(optimizer, lambda step: self.rate(step, steps))


@contextmanager
def averaged(optimizer: Any) -> Iterator[None]:
    """Within, the weights are those to be used and kept, which schedule-free tells from those that it trains.

    It averages: the average is what is good (what captions are sampled, evaluated and saved with), while gradients
    are taken elsewhere. Afterwards all is bit for bit as before, so that looking does not change a training. Other
    optimizers have one set of weights, and nothing happens.
    """
    import torch

    if not any(group.get("train_mode") for group in optimizer.param_groups):
        yield
        return
    kept = [(weight, weight.detach().clone()) for group in optimizer.param_groups for weight in group["params"]]
    optimizer.eval()
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, values in kept:
                weight.copy_(values)
        for group in optimizer.param_groups:
            group["train_mode"] = True


def rate_now(optimizer: Any) -> float:
    """The learning rate of the next step, of the first group of weights: with prodigy, what it has found so far."""
    group = optimizer.param_groups[0]
    return float(group["lr"] * group.get("d", 1.0))


def _onecycle(step: int, steps: int, peak: float) -> float:
    low = 1 / 25
    last = steps - 1
    step = min(step, last)
    if step <= peak:
        start, end, done = low, 1.0, step / peak if peak else 1.0
    else:
        start, end, done = 1.0, low / 1e4, (step - peak) / (last - peak)
    return end + (start - end) / 2 * (1 + math.cos(math.pi * done))


def _is_lora_b(name: str) -> bool:
    return "lora_B." in name or "lora_embedding_B." in name


def _momentum_shrinks(weight: torch.Tensor, rank: int) -> bool:
    """Whether Flora projects this weight's momentum: a matrix no narrower than the rank, and no embedding."""
    return weight.ndim == 2 and min(weight.shape) >= rank and max(weight.shape) <= 4 * min(weight.shape)


def _keep_formats(optimizer: torch.optim.Optimizer) -> None:
    """Have a loaded state keep its number formats.

    torch casts it to the weights' own, while Adafactor and Flora keep theirs in float32 beside weights in bfloat16:
    without this, such a run would not go on as it was.
    """
    import torch

    loading: dict[str, Any] = {}

    def before(_: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        loading.update(state)

    def after(optimizer: torch.optim.Optimizer) -> None:
        numbers = [number for group in loading["param_groups"] for number in group["params"]]
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        for number, weight in zip(numbers, weights, strict=True):
            for name, value in loading["state"].get(number, {}).items():
                if isinstance(value, torch.Tensor) and optimizer.state[weight][name].dtype != value.dtype:
                    optimizer.state[weight][name] = value.to(weight.device, copy=True)
        loading.clear()

    optimizer.register_load_state_dict_pre_hook(before)
    optimizer.register_load_state_dict_post_hook(after)
