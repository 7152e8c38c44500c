"""What a Hugging Face `config.json` says of how its matrices are stored."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from trilobit.errors import FormatError, UnsupportedModel
from trilobit.formats.hf.config import is_one_bit
from trilobit.formats.hf.group_scales import GROUP
from trilobit.model.config import ModelConfig

# What the matrices of a checkpoint are: float masters; codes whose scale multiplies, or divides;
# floats that are ternary already; MLX's words.
Form = Literal["masters", "codes", "divided codes", "floats", "mlx"]


def quantization_form(raw: Mapping[str, Any], config: ModelConfig, where: Path) -> Form | None:
    """What the matrices are by the config; None where it does not say."""
    quantization = raw.get("quantization_config")
    if quantization is None or "quantization" in raw:  # MLX writes its own twice
        # 1bitLLM's and BitNet-embedding's models: their code ternarises whatever is loaded.
        if is_one_bit(raw) or config.projection_norm_eps:
            return "masters"
        return _mlx_form(raw["quantization"], where) if "quantization" in raw else None
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    if method != "bitnet":
        raise UnsupportedModel(
            f"{where}: quant_method {reprlib.repr(method)} is not supported; supported: 'bitnet'"
        )
    skipped = quantization.get("modules_to_not_convert") or []
    if not isinstance(skipped, list):
        raise FormatError(
            f"{where}: modules_to_not_convert is {reprlib.repr(skipped)}; expected a list"
        )
    if any(str(module).split(".")[-1].endswith("_proj") for module in skipped):
        raise UnsupportedModel(f"{where}: modules_to_not_convert keeps a projection in float")
    # What is left out takes the default of transformers' BitNetQuantConfig.
    linear_class = quantization.get("linear_class", "bitlinear")
    if linear_class not in ("bitlinear", "autobitlinear"):
        raise UnsupportedModel(f"{where}: unknown linear_class {reprlib.repr(linear_class)}")
    mode = quantization.get("quantization_mode", "offline")
    if mode not in ("online", "offline"):
        raise UnsupportedModel(f"{where}: unknown quantization_mode {reprlib.repr(mode)}")
    # BitLinear has codes whatever the mode and divides by its scale, 1/mean|W|; AutoBitLinear
    # multiplies, by mean|W|.
    if linear_class == "bitlinear":
        return "divided codes"
    return "codes" if mode == "offline" else "masters"


def _mlx_form(quantization: Any, where: Path) -> Form:
    values = quantization if isinstance(quantization, Mapping) else {}
    bits, size = values.get("bits"), values.get("group_size")
    if (bits, size) != (2, GROUP):
        raise UnsupportedModel(
            f"{where}: MLX's {reprlib.repr(bits)} bits in groups of {reprlib.repr(size)} are not "
            f"supported; supported: ternary weights in 2 bits and groups of {GROUP}"
        )
    return "mlx"
