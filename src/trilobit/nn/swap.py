"""Turn a Hugging Face causal language model into one that trains in ternary.

One call, `swap_linears`, replaces the linear layers in place, keeping their weights and
their names, so that the checkpoint stays a plain one. The head stays float, as published.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from trilobit.nn.bitlinear import BitLinear, Weights


def swap_linears(
    model: nn.Module,
    *,
    keep: tuple[str, ...] = ("lm_head",),
    rms_norm_eps: float | None = None,
    weights: Weights = "absmean",
) -> int:
    """Replace every `nn.Linear` of the model by a BitLinear with the same weights.

    keep: modules whose name, or a part of it between dots, is listed stay as they are. The
        output embeddings of a Hugging Face model always stay.
    Returns the number of layers swapped.
    """
    output_embeddings = getattr(model, "get_output_embeddings", lambda: None)
    head = output_embeddings()
    chosen = [
        (name, module)
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and module is not head
        and name not in keep
        and not set(name.split(".")) & set(keep)
    ]
    for name, linear in chosen:
        with torch.device("meta"):
            bit = BitLinear(
                linear.in_features,
                linear.out_features,
                bias=linear.bias is not None,
                dtype=linear.weight.dtype,
                weights=weights,
            )
        bit.weight, bit.bias = linear.weight, linear.bias
        if rms_norm_eps is not None:
            bit.rms_norm = nn.RMSNorm(
                linear.in_features,
                eps=rms_norm_eps,
                device=linear.weight.device,
                dtype=linear.weight.dtype,
            )
        model.set_submodule(name, bit.train(linear.training))
    return len(chosen)


def bit_linears(model: nn.Module) -> Iterator[tuple[str, BitLinear]]:
    """The name and the module of every BitLinear of a model."""
    for name, module in model.named_modules():
        if isinstance(module, BitLinear):
            yield name, module


def set_quantised_share(model: nn.Module, share: float) -> None:
    """Let every BitLinear compute `x + λ(q(x) - x)` with λ = share, from 0 (float) to 1."""
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share is {share}; it must lie between 0 and 1")
    for _, module in bit_linears(model):
        module.quantised_share = share
