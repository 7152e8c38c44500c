"""Every published family as a random tiny model of its exact architecture, written by stock
transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BitNetConfig,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
)

CLASSES: dict[str, type[PreTrainedConfig]] = {
    "bitnet": BitNetConfig,
    "llama": LlamaConfig,
    "qwen3": Qwen3Config,
    "gemma3_text": Gemma3TextConfig,
}
SIZES: dict[str, Any] = {
    "vocab_size": 331,
    "num_hidden_layers": 2,
    "max_position_embeddings": 700,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
# The published shapes' proportions: head_dim of its own, groups of heads, tied or not, RoPE.
FAMILIES: dict[str, dict[str, Any]] = {
    "1bitLLM": {
        "model_type": "bitnet",
        "hidden_act": "silu",
        "hidden_size": 200,
        "intermediate_size": 540,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    },
    "Llama3-8B-1.58": {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 224,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
    },
    "Llama 3.1 fine-tuned": {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 224,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "rope_theta": 500000.0,
        "rope_scaling": LLAMA3,
    },
    "Falcon3": {
        "model_type": "llama",
        "hidden_size": 96,
        "intermediate_size": 720,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "rope_theta": 1000042.0,
    },
    "Falcon-E": {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "Qwen3 fine-tuned": {
        "model_type": "qwen3",
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
    },
    "Gemma3 fine-tuned": {
        "model_type": "gemma3_text",
        "hidden_size": 64,
        "intermediate_size": 204,
        "num_hidden_layers": 7,  # one of them global
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "query_pre_attn_scalar": 24,
        "sliding_window": 12,
    },
}
FAMILIES["BitNet-embedding-0.6B"] = FAMILIES["Qwen3 fine-tuned"]
FAMILIES["BitNet-embedding-270M"] = {
    **FAMILIES["Gemma3 fine-tuned"],
    "query_pre_attn_scalar": 32,
    "rope_theta": 10000.0,
}


def has_projection_norms(family: str) -> bool:
    return family.startswith("BitNet-embedding")


def random_masters(directory: Path, family: str) -> Path:
    """A float32 checkpoint as transformers writes it, marked as one of masters (online)."""
    torch.manual_seed(0)
    values = {**SIZES, **FAMILIES[family]}
    model = AutoModelForCausalLM.from_config(CLASSES[values["model_type"]](**values))
    gemma = values["model_type"] == "gemma3_text"
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:  # Gemma's multiply by one more than they hold
                weight.copy_(torch.exp(0.3 * torch.randn_like(weight)) - float(gemma))
            elif "proj" in name:
                weight.copy_(torch.randn_like(weight) * weight.shape[1] ** -0.5)
            else:
                spread = torch.exp(0.3 * torch.randn(len(weight), 1))
                weight.copy_(torch.randn_like(weight) * spread)
    model.save_pretrained(directory)
    if has_projection_norms(family):
        tensors = load_file(directory / "model.safetensors")
        for name in list(tensors):
            if "_proj.weight" in name:
                gain = torch.exp(0.3 * torch.randn(tensors[name].shape[1]))
                tensors[name.replace(".weight", ".rms_norm.weight")] = gain
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    declare(directory, "autobitlinear", "online", use_rms_norm=has_projection_norms(family))
    return directory


def declare(directory: Path, linear_class: str, mode: str, *, use_rms_norm: bool = False) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = {
        "quant_method": "bitnet",
        "linear_class": linear_class,
        "quantization_mode": mode,
        **({"use_rms_norm": True, "rms_norm_eps": 1e-6} if use_rms_norm else {}),
    }
    path.write_text(json.dumps(config))


def stock_model(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
