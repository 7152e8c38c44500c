"""A linear layer that trains in ternary: BitLinear, for torch.

The layer keeps float master weights. Every forward pass multiplies what inference will
multiply: weights of one scale times {-1, 0, +1}, inputs rounded to int8 by token. The
backward pass treats both roundings as the identity (straight-through estimator), so the
small steps of the optimiser add up in the masters until a weight changes its code.

The maths is that of `trilobit.model.ternary` and, of 4-bit inputs, `trilobit.model.activations`,
integer for integer. Stock transformers' `AutoBitLinear` says the same but rounds its scales once
more, by less than 2^-22: only a weight or an input that lies that close to the middle of two codes
can get another one.
Source: BitNet b1.58 (arXiv 2402.17764), BitNet (arXiv 2310.11453) for sign weights.
"""

# T tokens (all leading dimensions), I in_features, O out_features

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from trilobit.nn.activations import (
    EPSILON,
    QUANTISERS,
    Activations,
    hadamard_transform,
    input_codes,
)

Weights = Literal["absmean", "sign", "fixed"]

# Whether products are of the codes, as exact integers, like the engine's. With VNNI that is five
# times float32's rate (Zen 4), without it a fortieth (Zen 3). A step in bfloat16 gains nothing.
_INTEGERS_PAY = bool(torch.cpu.get_capabilities().get("avx512_vnni"))

# Of weights that are zero everywhere, whose scale is nothing.
_LEAST_SCALE = 1e-30


def absmean(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Ternary codes (int8) and their scale (float32, no dimensions) of a weight."""
    s = _inverse_mean(weight)
    codes = (weight.float() * s).round_().clamp_(-1, 1)
    return codes.to(torch.int8), 1.0 / s


def sign(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes -1 or +1 (int8) around the mean, and their scale mean|W|: the original BitNet."""
    wide = weight.float()
    codes = torch.where(wide - wide.mean(dtype=torch.float64).float() >= 0, 1, -1)
    scale = wide.abs().mean(dtype=torch.float64).float().clamp_(min=EPSILON)
    return codes.to(torch.int8), scale


def fixed(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scale of a weight that is -s, 0 or +s everywhere: nothing is rounded."""
    return weight.sign().to(torch.int8), weight.abs().amax().float().clamp_(min=_LEAST_SCALE)


class BitLinear(nn.Linear):
    """`nn.Linear` with ternary (or sign) weights and rounded inputs in the product.

    rms_norm_eps: if given, an RMSNorm of the input, with learned weights, comes first.
    weights: "absmean" is b1.58, "sign" is the original 1-bit BitNet, "fixed" takes weights that are
        ternary already, and are not trained.
    activations: what inputs are rounded to. May be changed between two steps.
    hadamard: turn the inputs by a Hadamard matrix before they are rounded: v2's H-BitLinear.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rms_norm_eps: float | None = None,
        weights: Weights = "absmean",
        activations: Activations = "int8",
        hadamard: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.weights: Weights = weights
        self.activations: Activations = activations
        self.hadamard = hadamard
        # None quantises fully; a warm-up raises it from 0. Not of the state: it is a matter of the
        # training step. A tensor, because torch.compile compiles a float anew with every value.
        self.quantised_share: Tensor | None = None
        # Whether `forward` finds weights that are rounded already: those of a model in shards.
        self.rounded = False
        self.rms_norm: nn.RMSNorm | None = None
        if rms_norm_eps is not None:
            self.rms_norm = nn.RMSNorm(in_features, eps=rms_norm_eps, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        """`[..., I]` to `[..., O]`, as quantised as `quantised_share` says."""
        if self.rms_norm is not None:
            input = self.rms_norm(input)
        output: Tensor = _QuantisedProduct.apply(  # type: ignore[no-untyped-call]
            input,
            self.weight,
            self.bias,
            "fixed" if self.rounded else self.weights,
            self.activations,
            self.hadamard,
            self.quantised_share,
        )
        return output

    def codes(self) -> tuple[Tensor, Tensor]:
        """The int8 codes `[O, I]` and the float32 scale that inference multiplies with.

        Of a weight in shards all processes must ask.
        """
        weight: Any = self.weight.detach()
        if hasattr(weight, "full_tensor"):  # a DTensor, whose module takes a second to load
            weight = weight.full_tensor()
        return _WEIGHT_QUANTISERS[self.weights](weight)

    def input_codes(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """The int8 codes `[..., I]` that are multiplied for an input, and their scale by token."""
        if self.rms_norm is not None:
            input = self.rms_norm(input)
        return input_codes(input, self.activations, hadamard=self.hadamard)

    def extra_repr(self) -> str:
        """What printing the module shows."""
        more = f"weights={self.weights}, activations={self.activations}, hadamard={self.hadamard}"
        return f"{super().extra_repr()}, {more}"


_WEIGHT_QUANTISERS = {"absmean": absmean, "sign": sign, "fixed": fixed}


class _QuantisedProduct(torch.autograd.Function):
    """`x̂ ŵᵀ + b` with `x̂ = x + λ(q(x) - x)`, and backward as if x̂ were x and ŵ were w.

    With a Hadamard matrix H, x is x H everywhere, and `∂x = ∂y ŵ H`.

    A function of its own because of what it keeps for the backward pass, `∂x = ∂y ŵ`,
    `∂w = ∂yᵀ x̂`: the parameter itself, whose rounding is done again there, and x̂ as int8 codes and
    their scales (as floats while λ < 1). The roundings run in place on one copy. They are done in
    float32 whatever the types; the products are of autocast's type where autocast is on. But of a
    CPU with VNNI the forward one in float32 is the integers', and equals
    `trilobit.model.ternary.bit_linear` bit for bit.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        weights: Weights,
        activations: Activations,
        hadamard: bool,
        share: Tensor | None,
    ) -> Tensor:
        device = x.device.type
        autocast = torch.is_autocast_enabled(device)
        ctx.dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
        ctx.weights, ctx.hadamard = weights, hadamard
        wide = hadamard_transform(x.float()) if hadamard else x.float()
        codes_TI, t_T1 = QUANTISERS[activations](wide)
        if share is None:
            kept_TI = codes_TI.to(torch.int8)
            ctx.save_for_backward(weight, kept_TI, t_T1)
            if _INTEGERS_PAY and device == "cpu" and ctx.dtype == torch.float32:
                y_TO = _integer_product(kept_TI, t_T1, weight, weights)
                return (y_TO if bias is None else y_TO + bias).to(ctx.dtype)
            x_TI = codes_TI.div_(t_T1).to(ctx.dtype)
        else:
            x_TI = torch.lerp(wide, codes_TI.div_(t_T1), share).to(ctx.dtype)
            ctx.save_for_backward(weight, x_TI, share)
        return linear(x_TI, _rounded(weight, weights, share, ctx.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        weight, x_TI, other = ctx.saved_tensors
        share = None if x_TI.dtype == torch.int8 else other
        grad_x = grad_w = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_y @ _rounded(weight, ctx.weights, share, ctx.dtype)
            if ctx.hadamard:
                grad_x = hadamard_transform(grad_x.float()).to(grad_x.dtype)
        grad_y = grad_y.reshape(-1, weight.shape[0])
        if ctx.needs_input_grad[1]:
            if share is None:
                x_TI = x_TI.float().div_(other).to(ctx.dtype)
            grad_w = grad_y.T @ x_TI.reshape(-1, weight.shape[1])
        if ctx.needs_input_grad[2]:
            grad_b = grad_y.sum(dim=0)
        return grad_x, grad_w, grad_b, None, None, None, None


def _integer_product(codes_TI: Tensor, t_T1: Tensor, weight: Tensor, weights: Weights) -> Tensor:
    codes_OI, scale = _WEIGHT_QUANTISERS[weights](weight)
    dots_TO = torch._int_mm(codes_TI.reshape(-1, codes_TI.shape[-1]), codes_OI.T)
    return dots_TO.float().view(*codes_TI.shape[:-1], len(weight)) * (1.0 / t_T1 * scale)


def _rounded(weight: Tensor, weights: Weights, share: Tensor | None, dtype: torch.dtype) -> Tensor:
    """ŵ, which the forward and the backward pass must have alike."""
    w_OI = _dequantised_weights(weight, weights)
    return (w_OI if share is None else torch.lerp(weight.float(), w_OI, share)).to(dtype)


def _inverse_mean(weight: Tensor) -> Tensor:
    # In float64, as the definition has it: the sum must not depend on its order.
    mean = weight.float().abs().mean(dtype=torch.float64).float()
    return 1.0 / mean.clamp_(min=EPSILON)


def _dequantised_weights(weight: Tensor, weights: Weights) -> Tensor:
    if weights == "fixed":
        return weight.float()
    if weights == "sign":
        codes, scale = sign(weight)
        return codes * scale
    s = _inverse_mean(weight)
    return (weight.float() * s).round_().clamp_(-1, 1).div_(s)
