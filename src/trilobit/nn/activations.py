"""What a BitLinear rounds its inputs to, for torch: `trilobit.model.ternary` and `.activations`."""

# T tokens (all leading dimensions), I in_features

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

# Of one layer: b1.58's; 4 bits by the mean; int8 of the larger half, zeros for the rest.
Activations = Literal["int8", "int4", "larger half"]

# The smallest mean and maximum that are divided by, as published.
EPSILON = 1e-5


def absmax(x: Tensor) -> tuple[Tensor, Tensor]:
    """Int8 codes of activations and their scale by token (float32, last dimension dropped)."""
    return input_codes(x, "int8")


def input_codes(
    x: Tensor, activations: Activations, *, hadamard: bool = False
) -> tuple[Tensor, Tensor]:
    """What a layer makes of its inputs: int8 codes, and their scale by token as of `absmax`."""
    wide = hadamard_transform(x.float()) if hadamard else x.float()
    codes, t = QUANTISERS[activations](wide)
    return codes.to(torch.int8), 1.0 / t[..., 0]


def hadamard_transform(wide: Tensor) -> Tensor:
    """`x H` over the last dimension, by blocks of the largest power of two that divides it."""
    columns = wide.shape[-1]
    block = columns & -columns
    half = 1
    turned = wide
    while half < block:
        pairs = turned.reshape(*wide.shape[:-1], columns // (2 * half), 2, half)
        first, second = pairs.unbind(dim=-2)
        turned = torch.stack((first + second, first - second), dim=-2).reshape(wide.shape)
        half *= 2
    return turned * (1 / math.sqrt(block))


def _int8(wide: Tensor) -> tuple[Tensor, Tensor]:
    # abs().amax() is 16 times faster than an infinity norm on a CPU (torch 2.13).
    t_T1 = _over(127.0, wide.abs().amax(dim=-1, keepdim=True))
    return (wide * t_T1).round_().clamp_(-128, 127), t_T1


def _int4(wide: Tensor) -> tuple[Tensor, Tensor]:
    # In float64, as the definition has it: the sum must not depend on its order.
    mean_T1 = wide.abs().mean(dim=-1, keepdim=True, dtype=torch.float64).float()
    t_T1 = _over(math.sqrt(7), mean_T1)
    return (wide * t_T1).round_().clamp_(-8, 7), t_T1


def _larger_half(wide: Tensor) -> tuple[Tensor, Tensor]:
    size = wide.abs()
    least_T1 = size.kthvalue(wide.shape[-1] // 2 + 1, dim=-1, keepdim=True).values
    return _int8(torch.where(size >= least_T1, wide, 0.0))


def _over(most: float, size: Tensor) -> Tensor:
    # Not `most / size`, which torch computes as a reciprocal times most and so rounds twice.
    return torch.full_like(size, most).div_(size.clamp_(min=EPSILON))


# Floats to codes, floats too, and to what they were multiplied with, `[T, 1]`.
QUANTISERS: dict[Activations, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "int8": _int8,
    "int4": _int4,
    "larger half": _larger_half,
}
