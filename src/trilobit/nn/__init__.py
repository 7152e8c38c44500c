"""BitLinear for torch, and the call that swaps it into a Hugging Face model."""

from trilobit.nn.activations import absmax
from trilobit.nn.bitlinear import BitLinear, absmean, sign
from trilobit.nn.swap import (
    ModelActivations,
    bit_linears,
    set_activations,
    set_quantised_share,
    swap_linears,
)

__all__ = [
    "BitLinear",
    "ModelActivations",
    "absmax",
    "absmean",
    "bit_linears",
    "set_activations",
    "set_quantised_share",
    "sign",
    "swap_linears",
]
