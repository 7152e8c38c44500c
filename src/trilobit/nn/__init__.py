"""BitLinear for torch, and the call that swaps it into a Hugging Face model."""

from trilobit.nn.bitlinear import BitLinear, absmax, absmean, sign
from trilobit.nn.swap import bit_linears, set_quantised_share, swap_linears

__all__ = [
    "BitLinear",
    "absmax",
    "absmean",
    "bit_linears",
    "set_quantised_share",
    "sign",
    "swap_linears",
]
