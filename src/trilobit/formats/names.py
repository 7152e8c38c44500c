"""Names and shapes of a BitNet model's tensors, as Hugging Face checkpoints and our file have them.

Our packed file keeps Hugging Face's names, so one table serves both.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..config import ModelConfig

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
FINAL_NORM = "model.norm.weight"
TOKENIZER = "tokenizer.json"
# The four-bit copy of the head (see screen.py); of the embedding where that is the head.
SCREEN_CODES = "lm_head.screen.codes"
SCREEN_SCALES = "lm_head.screen.scales"
SCREEN_RESIDUALS = "lm_head.screen.residuals"
SCREEN = (SCREEN_CODES, SCREEN_SCALES, SCREEN_RESIDUALS)


def norms(config: ModelConfig, layer: int) -> dict[str, int]:
    """RMSNorm gains of a layer, name -> length."""
    prefix = f"model.layers.{layer}."
    return {
        f"{prefix}input_layernorm.weight": config.hidden_size,
        f"{prefix}self_attn.attn_sub_norm.weight": config.num_attention_heads * config.head_dim,
        f"{prefix}post_attention_layernorm.weight": config.hidden_size,
        f"{prefix}mlp.ffn_sub_norm.weight": config.intermediate_size,
    }


def projections(config: ModelConfig, layer: int) -> dict[str, tuple[int, int]]:
    """Ternary projections of a layer, name without `.weight` -> (outputs, inputs)."""
    prefix = f"model.layers.{layer}."
    hidden, ffn = config.hidden_size, config.intermediate_size
    q = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    return {
        f"{prefix}self_attn.q_proj": (q, hidden),
        f"{prefix}self_attn.k_proj": (kv, hidden),
        f"{prefix}self_attn.v_proj": (kv, hidden),
        f"{prefix}self_attn.o_proj": (hidden, q),
        f"{prefix}mlp.gate_proj": (ffn, hidden),
        f"{prefix}mlp.up_proj": (ffn, hidden),
        f"{prefix}mlp.down_proj": (hidden, ffn),
    }


def all_projections(config: ModelConfig) -> Iterator[tuple[str, tuple[int, int]]]:
    """`projections` of every layer, in order."""
    for layer in range(config.num_hidden_layers):
        yield from projections(config, layer).items()


def all_norms(config: ModelConfig) -> Iterator[tuple[str, int]]:
    """Every RMSNorm gain, the final one last."""
    for layer in range(config.num_hidden_layers):
        yield from norms(config, layer).items()
    yield FINAL_NORM, config.hidden_size
