"""Accumulation compression: gradients are summed over micro-batches without ever being whole (Flora).

Accumulating gradients in full fine-tuning takes as much memory as the weights. Flora (Hao et al. 2024,
arXiv:2402.03293) keeps instead of a matrix's gradient G (M, N) its product with a random matrix P of few columns: r
numbers a row where N were. After the last micro-batch the sum is multiplied by P's transpose, which on average gives
the true sum back, and the weight is changed at once, within the backward pass: no two gradients are whole at a time.
Another P for each step and each weight lets the errors of single steps cancel out over many.

P is not Flora's own matrix of Gaussian numbers but an orthonormal basis of what that spans, which is as likely to
point anywhere and errs less: for the side S that is shrunk, the squared error is S/r - 1 times that of the gradient
instead of (S + 1)/r, and none where r = S.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from cutline.annotators.session import seed_number

if TYPE_CHECKING:
    import torch


def shrinks(weight: torch.Tensor, rank: int) -> bool:
    """Whether a gradient in the shape of this weight takes less memory at this rank: its sides are both longer."""
    return weight.ndim > 1 and min(weight.shape[0], weight[0].numel()) > rank


class Accumulation:
    """Sums the gradients of weights in projections of rank r, and changes each weight after its last micro-batch.

    Weights that are no matrices, or no wider than the rank, are not touched: their gradients add up as ever and are
    the business of `optimizer.step()`. Nothing is kept from one step to the next, so that a checkpoint between two
    steps is whole without it.

    Each weight's gradient must come once in a backward pass (so activation checkpointing is to be the non-reentrant)
    and be the final one: it works in one process, without a scaler of gradients, and nothing can clip them.

    Shapes: G (M, N) a gradient, with all but its first dimension as one; S the shorter of M and N; P (S, r).
    """

    def __init__(
        self,
        weights: Mapping[str, torch.nn.Parameter],
        optimizer: torch.optim.Optimizer,
        change: Callable[[torch.optim.Optimizer, dict[str, Any], torch.Tensor, torch.Tensor], None],
        *,
        rank: int,
        seed: int,
        step: Callable[[], int],
        sync: Callable[[], bool],
    ) -> None:
        """Hook the weights.

        Args:
            weights: those that are trained, by name.
            optimizer: it has them, in its groups.
            change: does the optimizer's step for one weight: `change(optimizer, group, weight, gradient)`.
            rank: r.
            seed: with the step and the weight's name, what P follows from.
            step: says how many steps were done.
            sync: says whether this is a step's last micro-batch.
        """
        self.optimizer, self.change, self.rank, self.seed = optimizer, change, rank, seed
        self.step, self.sync = step, sync
        self.sums: dict[str, torch.Tensor] = {}
        # A group is looked up when it is needed: a loaded state replaces the groups.
        places = {id(held): place for place, group in enumerate(optimizer.param_groups) for held in group["params"]}
        self._hooks = [
            weight.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                partial(self._take, name, places[id(weight)])
            )
            for name, weight in weights.items()
            if shrinks(weight, rank)
        ]

    def remove(self) -> None:
        """Leave the weights alone from now on."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self.sums = [], {}

    def _take(self, name: str, place: int, weight: torch.Tensor) -> None:
        import torch

        with torch.no_grad():
            assert weight.grad is not None
            gradient = weight.grad.flatten(1).float()
            weight.grad = None
            basis = draw_basis(min(gradient.shape), self.rank, f"{self.seed}/{self.step()}/{name}", weight.device)
            small = project(gradient, basis)
            shape = gradient.shape
            del gradient
            if name in self.sums:
                small += self.sums.pop(name)
            if not self.sync():
                self.sums[name] = small
                return
            whole = unproject(small, basis, shape).to(weight.dtype).view_as(weight)
            self.change(self.optimizer, self.optimizer.param_groups[place], weight, whole)


def draw_basis(side: int, rank: int, seed: str, device: torch.device) -> torch.Tensor:
    """A random P (S, r) with orthonormal columns, float32; the same for the same seed."""
    import torch

    generator = torch.Generator(device).manual_seed(seed_number(seed))
    basis: torch.Tensor = torch.linalg.qr(torch.randn(side, rank, generator=generator, device=device)).Q
    return basis


def project(gradient: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """G (M, N) with its shorter side shrunk to r: (r, N) or (M, r)."""
    return basis.T @ gradient if gradient.shape[0] < gradient.shape[1] else gradient @ basis


def unproject(small: torch.Tensor, basis: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A guess (M, N) at the gradient that `project` shrank, right on average over all bases."""
    whole = basis @ small if shape[0] < shape[1] else small @ basis.T
    return whole.mul_(basis.shape[0] / basis.shape[1])
