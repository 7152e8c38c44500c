"""Ternary matrices in shards, gathered as codes: two bits a weight instead of thirty-two.

What FSDP2 gathers is asked of a parameter's own class (`fsdp_pre_all_gather` and its like), as
torchao does for float8. Each process rounds its rows by the mean |W| of all rows, which is measured
before a forward pass, by one sum over processes for all matrices. Behind the gathering stand the
rounded weights, exactly those that BitLinear makes of masters, in both passes; gradients are of the
masters, as by the straight-through estimator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.distributed.tensor import DTensor
from torch.utils import _pytree as pytree

from trilobit.nn import BitLinear, bit_linears
from trilobit.nn.activations import EPSILON

# O out_features, or those of one process; I in_features

_aten = torch.ops.aten
# What FSDP does with a parameter while it is taken apart. Of all else come plain tensors.
_KEEPING = {
    _aten._to_copy.default,
    _aten.as_strided.default,
    _aten.detach.default,
    _aten.new_zeros.default,
    _aten.slice.Tensor,
    _aten.split.Tensor,
    _aten.view.default,
}
_CODES_A_BYTE = 4


class Masters(Tensor):
    """Float32 masters `[O, I]` that are gathered as codes.

    inverse_mean: 1 / mean |W| of the whole matrix, no dimensions; shared by its parts.
    """

    plain: Tensor
    inverse_mean: Tensor

    @staticmethod
    def __new__(cls, plain: Tensor, inverse_mean: Tensor) -> Masters:
        """Of a plain tensor, whose memory it has."""
        made: Masters = Tensor._make_wrapper_subclass(
            cls,
            plain.size(),
            strides=plain.stride(),
            storage_offset=plain.storage_offset(),
            dtype=plain.dtype,
            device=plain.device,
            requires_grad=plain.requires_grad,
        )
        made.plain, made.inverse_mean = plain, inverse_mean
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """What `func` gives of plain tensors."""
        first = next(x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Masters))
        args, kwargs = pytree.tree_map_only(Masters, lambda x: x.plain, (args, kwargs or {}))
        given = func(*args, **kwargs)
        if func not in _KEEPING:
            return given
        mean = first.inverse_mean  # follows its matrix to another device
        return pytree.tree_map_only(Tensor, lambda x: Masters(x, mean.to(x.device)), given)

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """The tensors that it is made of; torch asks when it moves one to a device."""
        return ["plain", "inverse_mean"], None

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Tensor], context: None, outer_size: Any, outer_stride: Any
    ) -> Masters:
        return Masters(inner["plain"], inner["inverse_mean"])

    def fsdp_pre_all_gather(
        self, mesh: Any, outer_size: Any, outer_stride: Any, module: Any, mp_policy: Any
    ) -> tuple[tuple[Tensor], Tensor]:
        """What is sent: uint8 `[O, I / 4]`; and what the others need beside it, and have."""
        codes = (self.plain * self.inverse_mean).round_().clamp_(-1, 1).add_(1).to(torch.uint8)
        a, b, c, d = codes.view(*codes.shape[:-1], -1, _CODES_A_BYTE).unbind(-1)
        return (a | b << 2 | c << 4 | d << 6,), self.inverse_mean

    def fsdp_post_all_gather(
        self,
        gathered: tuple[Tensor],
        inverse_mean: Tensor,
        param_dtype: torch.dtype,
        *,
        out: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor]] | None:
        """The rounded weights of all processes, into `out` if it is there."""
        (packed,) = gathered
        shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=packed.device)
        codes = packed.unsqueeze(-1).bitwise_right_shift(shifts).bitwise_and_(3).flatten(-2)
        rounded = codes.to(param_dtype).sub_(1).div_(inverse_mean)
        if out is None:
            return rounded, (rounded,)
        # It is what the forward pass kept: in the backward pass the same numbers stand there again.
        with torch.no_grad(), _unsafe_preserve_version_counter(out):
            out.copy_(rounded)
        return None


def gather_codes(model: nn.Module) -> Callable[[], None]:
    """Let the matrices of a model that is not in shards yet be gathered as codes.

    Those whose weights are ternary, and whose rows all processes have equally many of. Returns
    what must be called before each forward pass. One process alone has nothing to gather.
    """
    processes = dist.get_world_size()
    layers = [layer for _, layer in bit_linears(model) if _fits(layer, processes)]
    if processes == 1 or not layers:
        return lambda: None
    for layer in layers:
        unknown = torch.ones((), device=layer.weight.device)
        layer.weight = nn.Parameter(Masters(layer.weight.detach(), unknown))
        layer.rounded = True
    return lambda: _measure(layers)


def plain(tensor: Any) -> Any:
    """The same numbers, in the same memory, as a tensor of torch's own kind."""
    local = _local(tensor)
    if not isinstance(local, Masters):
        return tensor
    return DTensor.from_local(
        local.plain,
        tensor.device_mesh,
        tensor.placements,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def _local(tensor: Any) -> Any:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _fits(layer: BitLinear, processes: int) -> bool:
    rows, columns = layer.weight.shape
    return layer.weights == "absmean" and not rows % processes and not columns % _CODES_A_BYTE


@torch.no_grad()
def _measure(layers: Sequence[BitLinear]) -> None:
    parts: list[Any] = [_local(layer.weight) for layer in layers]
    # In float64, as the definition has it: the sum must not depend on its order.
    sums = torch.stack([part.plain.abs().sum(dtype=torch.float64) for part in parts])
    dist.all_reduce(sums)
    counts = torch.tensor([layer.weight.numel() for layer in layers], device=sums.device)
    inverses = 1.0 / (sums / counts).float().clamp_(min=EPSILON)
    for part, inverse in zip(parts, inverses, strict=True):
        part.inverse_mean.copy_(inverse)
