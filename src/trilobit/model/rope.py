"""Rotary position embedding: how fast each pair of dimensions turns, and how that is stretched.

Pair i of a head turns by `position * frequency[i]`. Models that were trained on short texts and
then adapted to long ones slow some pairs down; the three published ways are below. The arithmetic
is float32 in the order of transformers' `modeling_rope_utils`, so that angles are the same, and
`theta ** exponent` is torch's own (see `_powers`): an ulp of a frequency is an error of the angle
that grows with the position. Nothing here depends on the machine or its libraries.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import FormatError

Frequencies = NDArray[np.float32]

# Of torch's float32 exp (SLEEF's `expkf`): ln 2 in two parts, the first of few bits, so that its
# products are exact; and the series behind 1 + x.
_LN2 = (0.693145751953125, np.float32(1.428606765330187045e-06))
_SERIES = np.array(
    [0.00136324647, 0.00836596917, 0.0416710824, 0.166665524, 0.499999851], dtype=np.float32
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScaling:
    """Every pair turns `factor` times slower."""

    factor: float

    def apply(self, frequencies: Frequencies, theta: float) -> Frequencies:
        """Frequencies for long texts from those of `theta`."""
        slower: Frequencies = frequencies / np.float32(self.factor)
        return slower


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1: slow pairs turn `factor` times slower, fast ones as before, some in between.

    A pair is slow when fewer than `low_freq_factor` of its turns fit into the original context,
    fast when more than `high_freq_factor` do.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def apply(self, frequencies: Frequencies, theta: float) -> Frequencies:
        """Frequencies for long texts from those of `theta`."""
        context, factor = self.original_max_position_embeddings, np.float32(self.factor)
        low, high = self.low_freq_factor, self.high_freq_factor
        one = np.float32(1)  # torch divides a number by a tensor so: its inverse, times the number
        wavelengths = one / frequencies * np.float32(2 * math.pi)
        slow = wavelengths > np.float32(context / low)
        fast = wavelengths < np.float32(context / high)
        smooth = (one / wavelengths * np.float32(context) - np.float32(low)) / np.float32(
            high - low
        )
        between = (one - smooth) * frequencies / factor + smooth * frequencies
        between[slow] = (frequencies / factor)[slow]
        between[fast] = frequencies[fast]
        stretched: Frequencies = between
        return stretched


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnScaling:
    """YaRN (arXiv:2309.00071): a ramp over the pairs from as before to `factor` times slower.

    The ramp begins where `beta_fast` turns fit into the original context and ends at `beta_slow`;
    cosines and sines are multiplied by `attention_factor`.
    """

    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def apply(self, frequencies: Frequencies, theta: float) -> Frequencies:
        """Frequencies for long texts from those of `theta`."""
        half = len(frequencies)
        low = max(math.floor(self._pair(self.beta_fast, theta, half)), 0)
        high = min(math.ceil(self._pair(self.beta_slow, theta, half)), 2 * half - 1)
        width = high - low or 0.001
        ramp = (np.arange(half, dtype=np.float32) - np.float32(low)) / np.float32(width)
        kept = 1 - np.clip(ramp, 0, 1)
        slower = np.float32(1) / (np.float32(self.factor) * _powers(2 * half, theta))
        ramped: Frequencies = slower * (1 - kept) + frequencies * kept
        return ramped

    @staticmethod
    def default_attention_factor(factor: float) -> float:
        """What transformers takes where a config names none."""
        return 0.1 * _log(factor) + 1 if factor > 1 else 1.0

    def _pair(self, turns: float, theta: float, half: int) -> float:
        """The pair of which so many turns fit into the original context."""
        context = self.original_max_position_embeddings
        return 2 * half * _log(context / (turns * 2 * math.pi)) / (2 * _log(theta))


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling
_KINDS: dict[str, type[LinearScaling] | type[Llama3Scaling] | type[YarnScaling]] = {
    "linear": LinearScaling,
    "llama3": Llama3Scaling,
    "yarn": YarnScaling,
}
SCALINGS = tuple(_KINDS)


def scaling_from_dict(raw: Mapping[str, Any]) -> RopeScaling:
    """Inverse of `scaling_to_dict`; FormatError names what is missing, unknown or impossible."""
    values = dict(raw)
    kind = values.pop("rope_type", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise FormatError(f"rope_scaling: rope_type {kind!r:.40}; expected {', '.join(SCALINGS)}")
    fields = dataclasses.fields(_KINDS[kind])
    needed = {field.name for field in fields if field.default is dataclasses.MISSING}
    wrong = needed - set(values) | set(values) - {field.name for field in fields}
    if wrong:
        raise FormatError(
            f"rope_scaling: missing or unknown fields: {', '.join(sorted(map(str, wrong)))[:80]}"
        )
    for name, value in values.items():
        whole = name == "original_max_position_embeddings"
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise FormatError(f"rope_scaling: {name} is {value!r:.40}; expected a number")
        if not 0 < value <= (1 << 24 if whole else 1e6):  # NaN is in no range
            raise FormatError(f"rope_scaling: {name} is {value!r:.40}; that cannot be")
        values[name] = value if whole else float(value)
    if kind == "llama3" and values["low_freq_factor"] >= values["high_freq_factor"]:
        raise FormatError("rope_scaling: low_freq_factor is not below high_freq_factor")
    return _KINDS[kind](**values)


def scaling_to_dict(scaling: RopeScaling) -> dict[str, Any]:
    """Plain JSON values, `rope_type` first, as transformers names them."""
    kind = next(name for name, type_ in _KINDS.items() if isinstance(scaling, type_))
    return {"rope_type": kind, **dataclasses.asdict(scaling)}


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Frequencies:
    """theta ** (-2i / head_dim), i < head_dim / 2, stretched by `scaling`."""
    plain: Frequencies = np.float32(1) / _powers(head_dim, theta)
    return plain if scaling is None else scaling.apply(plain, theta)


def _powers(head_dim: int, theta: float) -> Frequencies:
    """theta ** (2i / head_dim), i < head_dim / 2, to the bit as torch's vector code has it.

    That is SLEEF's `powf`, good to an ulp and not always the nearest float: the exponential of
    exponent · ln theta, which it knows to some 45 bits, by a short series in float32. Only the
    series is rounded coarsely enough to show, so the rest is float64 here. Where head_dim / 2 is no
    multiple of 16 (with AVX-512, of 32) torch takes the C library's `powf` for the pairs that are
    left over, and so differs from itself on another machine.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = _log(float(np.float32(theta))) * exponents.astype(np.float64)
    twos = np.rint(powers.astype(np.float32) * np.float32(1 / math.log(2)))
    rest = powers - twos.astype(np.float64) * _LN2[0] - (twos * _LN2[1]).astype(np.float64)
    x = rest.astype(np.float32).astype(np.float64)
    series = np.full_like(twos, _SERIES[0])
    for term in _SERIES[1:]:
        series = (series * x + np.float64(term)).astype(np.float32)  # rounded once: fused
    mantissas = (1 + (rest + rest * rest * series.astype(np.float64))).astype(np.float32)
    result: Frequencies = np.ldexp(mantissas, twos.astype(np.int32))
    return result


def _log(number: float) -> float:
    """The float64 nearest to the logarithm; a C library's is another one on another machine."""
    return float(Context(prec=28).ln(Decimal(number)))
