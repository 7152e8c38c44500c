"""What turns gradients into steps: AdamW, or Muon for the matrices and AdamW for the rest.

Muon replaces a matrix' averaged gradient by the nearest matrix whose singular values are all about
1, so that no direction is left behind. Ternary masters must move far before a code changes, and
with it they need two to three times fewer tokens for the same loss.
Source: https://kellerjordan.github.io/posts/muon/, whose constants torch.optim.Muon has as well.
That one computes in bfloat16 whatever the machine: a processor without it takes 35 times as long.
Here it does where the recipe's products are of bfloat16, so that a run goes on as it began.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from trilobit.train.recipes import Recipe

# Of the quintic whose iterates reach 0.7 to 1.2 from the smallest singular values in five steps.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5
_MOMENTUM = 0.95
_EPSILON = 1e-7
_BETAS = (0.9, 0.95)


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are made orthogonal, for matrices only; decoupled weight decay.

    dtype: of the products that make them so. Momentum and weights keep their own.
    """

    def __init__(
        self, params: Any, lr: float, weight_decay: float, dtype: torch.dtype = torch.float32
    ) -> None:
        self._dtype = dtype
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._move(weight, weight.grad, group["lr"], group["weight_decay"])

    def _move(self, weight: Tensor, gradient: Tensor, rate: float, decay: float) -> None:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        momentum = state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
        step = _orthogonal_whole(torch.lerp(gradient, momentum, _MOMENTUM).to(self._dtype))
        rows, columns = weight.shape
        # A tall matrix' step is as long by output as a square one's.
        rate_of_shape = rate * math.sqrt(max(1.0, rows / columns))
        weight.mul_(1 - rate * decay).add_(step.to(weight.dtype), alpha=-rate_of_shape)


def orthogonal(matrix: Tensor) -> Tensor:
    """`U Vᵀ` of `matrix = U S Vᵀ`, about: the singular values come out between 0.7 and 1.2.

    The products are of the matrix' own type: bfloat16 will do, and is several times as fast where
    a machine multiplies it.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=_EPSILON)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.T if tall else x


def _orthogonal_whole(matrix: Tensor) -> Tensor:
    """`orthogonal`; of a matrix in shards all of it is, in every process, which keeps its part."""
    if not isinstance(matrix, DTensor):
        return orthogonal(matrix)
    whole = orthogonal(matrix.full_tensor())
    return distribute_tensor(whole, matrix.device_mesh, matrix.placements, src_data_rank=None)


class Together(torch.optim.Optimizer):
    """Several optimisers, each with parameters of its own, as one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of each."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of each."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.share_groups()

    def share_groups(self) -> None:
        """Take the parts' groups anew: loading a part makes others of them."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def parts_of(optimizer: torch.optim.Optimizer) -> tuple[torch.optim.Optimizer, ...]:
    """The optimisers of torch's kind that one of ours is made of."""
    return optimizer.parts if isinstance(optimizer, Together) else (optimizer,)


def optimizer_of(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """A recipe's optimiser of a model. The groups' `rate` multiplies the schedule's learning rate.

    Muon's matrices are the weights of all linear layers but the head. Weight decay is for
    matrices, embeddings among them.
    """
    schedule = recipe.schedule
    matrices = _matrices(model) if recipe.optimizer == "muon" else []
    taken = {id(weight) for weight in matrices}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": schedule.weight_decay},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=schedule.stage_1[0],
        betas=_BETAS,
        fused=True,
    )
    if not matrices:
        return adam
    decay = schedule.weight_decay
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    muon = Muon([{"params": matrices, "rate": schedule.muon_rate}], 0.0, decay, dtype)
    return Together(muon, adam)


def _matrices(model: nn.Module) -> list[Tensor]:
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return [
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head and module.weight.requires_grad
    ]
