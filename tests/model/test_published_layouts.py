"""Checkpoints laid out as published ones: their config keys, names, dtypes, extra tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from safetensors.torch import load_file, save_file
from torch import Tensor

from trilobit import LLM, SamplingParams
from trilobit.conversion import convert
from trilobit.formats.open import open_source
from trilobit.model import tensor_names
from trilobit.synth import synth

CONFIG = tiny_config(hidden_size=64, head_dim=16, num_attention_heads=4, intermediate_size=128)
Tensors = dict[str, Tensor]


def edit(
    directory: Path, changes: dict[str, Any], left_out: tuple[str, ...], tensors: Tensors
) -> None:
    raw = json.loads((directory / "config.json").read_text()) | changes
    raw = {key: value for key, value in raw.items() if key not in left_out}
    (directory / "config.json").write_text(json.dumps(raw))
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def halves(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    """Everything but codes in half the bytes: norms and scales too."""
    return {k: v if v.dtype == torch.uint8 else v.to(dtype) for k, v in tensors.items()}


def microsoft(directory: Path) -> None:
    """bitnet-b1.58-2B-4T: code to be run, which is not, and keys of training."""
    changes = {
        "auto_map": {"AutoModelForCausalLM": "modeling_bitnet.BitNetForCausalLM"},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "rope_scaling": None,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    tensors = load_file(directory / "model.safetensors")
    edit(directory, changes, (), halves(tensors, torch.bfloat16))


def one_bit_llm(directory: Path) -> None:
    """bitnet_b1_58-3B: a llama by its config, float16, a tied head that is stored, RoPE's too."""
    tensors = halves(load_file(directory / "model.safetensors"), torch.float16)
    tensors = {
        name.replace("attn_sub_norm", "inner_attn_ln").replace("ffn_sub_norm", "ffn_layernorm"): t
        for name, t in tensors.items()
    }
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    for layer in range(CONFIG.num_hidden_layers):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    changes = {
        "architectures": ["BitnetForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "weight_bits": 1,
        "input_bits": 8,
        "pretraining_tp": 1,
        "tie_word_embeddings": True,
    }
    edit(directory, changes, ("quantization_config", "head_dim"), tensors)


def falcon(directory: Path, quantization: dict[str, Any] | None = None) -> None:
    """Falcon3-1.58bit, Falcon-E, Llama3-8B-1.58: Llama's shape, scales that divide, in bfloat16."""
    tensors = load_file(directory / "model.safetensors")
    for name in tensors:
        if name.endswith("weight_scale"):
            tensors[name] = (1 / tensors[name].float()).reshape(1)
    tensors = {n: t for n, t in halves(tensors, torch.bfloat16).items() if "sub_norm" not in n}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    changes = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "mlp_bias": False,
        "pretraining_tp": 1,
        "tie_word_embeddings": False,
        "quantization_config": {"quant_method": "bitnet", **(quantization or {})},
    }
    edit(directory, changes, (), tensors)


LAYOUTS: dict[str, tuple[Any, Callable[[Path], None]]] = {
    "microsoft": ("packed", microsoft),
    "1bitLLM": ("bf16", one_bit_llm),
    "Llama3-8B-1.58": ("packed", lambda p: falcon(p, {"modules_to_not_convert": None})),
    "Falcon3": ("packed", lambda p: falcon(p, {"modules_to_not_convert": ["lm_head"]})),
    "Falcon-E": ("packed", lambda p: falcon(p, {"linear_class": "bitlinear"})),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_published_layout_is_the_model_it_was_made_of(tmp_path: Path, layout: str) -> None:
    form, change = LAYOUTS[layout]
    for name in ("plain", "published"):
        synth(CONFIG, tmp_path / name, seed=3, form=form)
    change(tmp_path / "published")
    convert(tmp_path / "published", tmp_path / "m.trilobit")
    plain, found = open_source(tmp_path / "plain"), open_source(tmp_path / "m.trilobit")
    assert found.config.hidden_act == ("relu2" if layout == "microsoft" else "silu")
    assert found.config.sub_norms == (layout in ("microsoft", "1bitLLM"))
    assert found.config.head_dim == CONFIG.head_dim
    for name, _ in tensor_names.all_projections(found.config):
        codes, scale = found.projection(name)
        expected, expected_scale = plain.projection(name)
        np.testing.assert_array_equal(codes, expected, name)
        # bfloat16 has 8 bits; the scales were rounded to it once.
        np.testing.assert_allclose(scale, expected_scale, rtol=2**-8, err_msg=name)
    for name, _ in tensor_names.all_norms(found.config):
        np.testing.assert_allclose(found.gain(name), plain.gain(name), rtol=2**-8, err_msg=name)
    done = LLM(tmp_path / "m.trilobit").generate([0, 5, 9], SamplingParams(max_tokens=3))
    assert done.prompt_tokens == 3
