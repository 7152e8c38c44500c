"""Write a model as a Hugging Face directory in the published BitNet layout.

Two forms. *Online*: the float32 masters, which a reader ternarises at load; training can go
on from it. They stay float32 because bfloat16 masters would round to other codes.
*Offline*: the codes, four rows a byte, with `weight_scale` = mean|W| beside them, as
`microsoft/bitnet-b1.58-2B-4T` is published; a reader multiplies. The codes come straight
from the masters: absmean of an already ternary tensor would shrink its scale.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trilobit.errors import RecipeError
from trilobit.nn import bit_linears


def save_masters(model: Any, tokenizer: Any, folder: Path) -> None:
    """The model with its float32 masters ("online"), or as it is if nothing is ternary."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _complete_config(model, folder, "online")


def save_packed(model: Any, tokenizer: Any, folder: Path) -> None:
    """The model with its codes packed ("offline"). Sign weights pack like ternary ones.

    Raises RecipeError when the model has no quantised layers.
    """
    layers = dict(bit_linears(model))
    if not layers:
        raise RecipeError("a model without quantised layers has no packed form; export masters")
    codes_and_scales = {name: module.codes() for name, module in layers.items()}
    state: dict[str, Tensor] = {}
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    for name, tensor in model.state_dict().items():
        if name in tied and model.config.tie_word_embeddings:
            continue
        layer, _, kind = name.rpartition(".")
        if layer not in layers:
            state[name] = tensor.detach().contiguous()
            continue
        codes, scale = codes_and_scales[layer]
        if kind == "weight":
            state[name] = pack_published(codes)
            state[f"{name}_scale"] = scale.reshape(1)
        else:  # a bias, which transformers adds before it multiplies by the scale
            state[name] = tensor.detach() / scale
    # Config and generation config by transformers, the weights by us: packed tensors have
    # other shapes and types than the model's parameters.
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _complete_config(model, folder, "offline")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def pack_published(codes: Tensor) -> Tensor:
    """Codes `[O, I]` as published: uint8 `[O/4, I]`, bits 2i of row r hold row i·O/4 + r."""
    rows = codes.shape[0]
    if rows % 4:
        raise RecipeError(f"a weight has {rows} rows; the packed form needs a multiple of 4")
    quarters = (codes + 1).to(torch.uint8).reshape(4, rows // 4, *codes.shape[1:])
    return quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6


def _complete_config(model: Any, folder: Path, mode: str) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["use_cache"] = True  # the Trainer turns it off, but whoever generates wants it
    if quantisation := _quantisation(model, mode):
        config["quantization_config"] = quantisation
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _quantisation(model: Any, mode: str) -> dict[str, object]:
    """How to read the weights, in the words of stock transformers; empty for a float model."""
    layers = [module for _, module in bit_linears(model)]
    if not layers:
        return {}
    method = "bitnet"
    if mode == "online" and layers[0].weights == "sign":
        # Readers know only one way from masters to codes, absmean: rather none than that.
        method = "bitnet_sign"
    quantisation: dict[str, object] = {
        "quant_method": method,
        "linear_class": "autobitlinear",
        "quantization_mode": mode,
    }
    norms = {module.rms_norm.eps for module in layers if module.rms_norm is not None}
    if norms:
        quantisation |= {"use_rms_norm": True, "rms_norm_eps": norms.pop()}
    floats = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    head = model.get_output_embeddings()
    if any(module is not head for module in floats.values()):
        # The head stays float by itself, but not if others are named.
        quantisation["modules_to_not_convert"] = list(floats)
    return quantisation
