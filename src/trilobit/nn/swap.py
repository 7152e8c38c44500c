"""Turn a Hugging Face causal language model into one that trains in ternary.

One call, `swap_linears`, replaces the linear layers in place, keeping their weights and
their names, so that the checkpoint stays a plain one. The head stays float, as published.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from trilobit.nn.bitlinear import BitLinear, Weights

_HEAD = "lm_head"
# The layers that are given what lies within attention and feed-forward, where outliers are.
_INNER = ("o_proj", "down_proj")

# Of all layers of a model: b1.58's; 4 bits everywhere; 4 bits, but int8 of the larger half within.
ModelActivations = Literal["int8", "int4", "a4.8"]


def swap_linears(
    model: nn.Module,
    *,
    keep: tuple[str, ...] = (_HEAD,),
    rms_norm_eps: float | None = None,
    weights: Weights = "absmean",
    hadamard: bool = False,
) -> int:
    """Replace every `nn.Linear` of the model by a BitLinear with the same weights.

    keep: modules whose name, or a part of it between dots, is listed stay as they are. The
        output embeddings of a Hugging Face model always stay.
    hadamard: let those named o_proj and down_proj turn their inputs, as BitNet v2 does.
    Returns the number of layers swapped. Raises ValueError, before anything is swapped, for a
    name in `keep` that no linear layer has, for layers of a kind of their own that multiply too
    (GPT-2's Conv1D, whose weights lie the other way), for a model without linear layers, and
    where nothing is named so.
    """
    output_embeddings = getattr(model, "get_output_embeddings", lambda: None)
    head = output_embeddings()
    linears = {name: module for name, module in model.named_modules() if _multiplies(module)}
    _check_keep(keep, linears)
    chosen = {
        name: module
        for name, module in linears.items()
        if module is not head and name not in keep and not set(name.split(".")) & set(keep)
    }
    foreign = next((name for name, module in chosen.items() if type(module) is not nn.Linear), None)
    if foreign is not None:
        kind = type(chosen[foreign]).__name__
        raise ValueError(
            f"'{foreign}' is a {kind}, which cannot be swapped: only torch.nn.Linear can; name it "
            "in keep, or take a model without such layers"
        )
    if not linears:
        raise ValueError(f"{type(model).__name__} has no torch.nn.Linear to swap")
    if hadamard:
        _check_inner(chosen)
    for name, linear in chosen.items():
        assert isinstance(linear, nn.Linear)
        with torch.device("meta"):
            bit = BitLinear(
                linear.in_features,
                linear.out_features,
                bias=linear.bias is not None,
                dtype=linear.weight.dtype,
                weights=weights,
                hadamard=hadamard and _is_inner(name),
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
    shares: dict[torch.device, Tensor] = {}
    for _, module in bit_linears(model):
        device = module.weight.device
        if share < 1.0 and device not in shares:
            shares[device] = torch.tensor(share, device=device)
        module.quantised_share = shares.get(device)


def set_activations(model: nn.Module, activations: ModelActivations) -> None:
    """Let every BitLinear round its inputs so from now on.

    Raises ValueError for "a4.8" where no layer is named o_proj or down_proj.
    """
    layers = dict(bit_linears(model))
    if activations == "a4.8":
        _check_inner(layers)
    for name, module in layers.items():
        if activations == "a4.8":
            module.activations = "larger half" if _is_inner(name) else "int4"
        else:
            module.activations = activations


def _is_inner(name: str) -> bool:
    return name.rpartition(".")[2] in _INNER


def _check_inner(layers: Iterable[str]) -> None:
    if not any(map(_is_inner, layers)):
        raise ValueError(f"no linear layer is named {' or '.join(_INNER)}")


def _multiplies(module: nn.Module) -> bool:
    """Whether a module holds a matrix, or a stack of them, to multiply with."""
    if isinstance(module, BitLinear):
        return False
    # Conv1D by name, for transformers need not be there; stacks are the experts of a layer.
    return (
        isinstance(module, nn.Linear)
        or type(module).__name__ == "Conv1D"
        or (
            not type(module).__module__.startswith("torch.nn.")
            and any(parameter.ndim == 3 for parameter in module.parameters(recurse=False))
        )
    )


def _check_keep(keep: tuple[str, ...], linears: dict[str, nn.Module]) -> None:
    if isinstance(keep, str):
        raise ValueError(f"keep is the text {keep!r}; give a tuple of names")
    known = set(linears)
    for name in linears:
        known.update(name.split("."))
    # The default stands for the head, which a model need not have.
    if unknown := [name for name in keep if name not in known and name != _HEAD]:
        raise ValueError(
            f"keep names {unknown[0]!r}, which is no part of a linear layer's name; some are: "
            f"{', '.join(list(linears)[:3])}"
        )
