"""Names and shapes of a model's tensors, as Hugging Face checkpoints and our file have them.

Our packed file keeps Hugging Face's names, so one table serves both.
"""

from __future__ import annotations

from collections.abc import Iterator

from trilobit.model import ternary
from trilobit.model.config import ModelConfig
from trilobit.model.packing import Order

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
FINAL_NORM = "model.norm.weight"
TOKENIZER = "tokenizer.json"
CHECKSUMS = "checksums"  # of a packed file, see checksums.py
# The planes of the head's screen (see model/screen.py); of the embedding where that is the head.
SCREEN = tuple(
    f"lm_head.screen.{plane}.{part}"
    for plane in ("coarse", "fine")
    for part in ("codes", "scales", "residuals")
)
FINE_CODES = "lm_head.screen.fine.codes"
# What files had instead up to version 4, with four bits a code: read by nobody now.
OLD_SCREEN = tuple(f"lm_head.screen.{part}" for part in ("codes", "scales", "residuals"))

# Shorter rows and columns of weights are not read sooner alone than all of them together: one line
# of 2,048 weights is eight cache lines. Models that caches hold have shorter ones.
_LONG_LINE = 2048


def norms(config: ModelConfig, layer: int) -> dict[str, int]:
    """RMSNorm gains of a layer, name -> length."""
    prefix, hidden = f"model.layers.{layer}.", config.hidden_size
    gains = {
        f"{prefix}input_layernorm.weight": hidden,
        f"{prefix}post_attention_layernorm.weight": hidden,
    }
    if config.post_norms:
        gains[f"{prefix}pre_feedforward_layernorm.weight"] = hidden
        gains[f"{prefix}post_feedforward_layernorm.weight"] = hidden
    if config.sub_norms:
        gains[f"{prefix}self_attn.attn_sub_norm.weight"] = config.query_size
        gains[f"{prefix}mlp.ffn_sub_norm.weight"] = config.intermediate_size
    if config.qk_norms:
        gains[f"{prefix}self_attn.q_norm.weight"] = config.head_dim
        gains[f"{prefix}self_attn.k_norm.weight"] = config.head_dim
    if config.projection_norm_eps is not None:
        for name, (_, columns) in projections(config, layer).items():
            gains[f"{name}.rms_norm.weight"] = columns
    return gains


def projections(config: ModelConfig, layer: int) -> dict[str, tuple[int, int]]:
    """Ternary projections of a layer, name without `.weight` -> (outputs, inputs)."""
    prefix = f"model.layers.{layer}."
    hidden, ffn = config.hidden_size, config.intermediate_size
    return {
        f"{prefix}self_attn.q_proj": (config.query_size, hidden),
        f"{prefix}self_attn.k_proj": (config.kv_size, hidden),
        f"{prefix}self_attn.v_proj": (config.kv_size, hidden),
        f"{prefix}self_attn.o_proj": (hidden, config.query_size),
        f"{prefix}mlp.gate_proj": (ffn, hidden),
        f"{prefix}mlp.up_proj": (ffn, hidden),
        f"{prefix}mlp.down_proj": (hidden, ffn),
    }


def order(config: ModelConfig, name: str) -> Order:
    """How we write the packed bytes of a projection: `alone` where that pays, else in groups."""
    return alone(config, name) if config.hidden_size >= _LONG_LINE else "groups"


def alone(config: ModelConfig, name: str) -> Order:
    """How a projection lies of which single rows or columns are read; "groups": that is none.

    Behind relu² most rows of `up_proj` and columns of `down_proj` meet a zero and are skipped.
    Scales by group need groups.
    """
    if config.hidden_act == "relu2" and config.scales != "group":
        if name.endswith(".up_proj"):
            return "rows"
        if name.endswith(".down_proj"):
            return "columns"
    return "groups"


def tables(config: ModelConfig) -> list[str]:
    """Embedding and, where it is another one, head; the last is the head either way."""
    return [EMBEDDING] if config.tie_word_embeddings else [EMBEDDING, HEAD]


def float_tables(config: ModelConfig) -> list[str]:
    """`tables`, unless they are ternary."""
    return [] if config.ternary_embeddings else tables(config)


def all_projections(config: ModelConfig) -> Iterator[tuple[str, tuple[int, int]]]:
    """Every ternary matrix in order: `projections` of every layer, then ternary tables."""
    for layer in range(config.num_hidden_layers):
        yield from projections(config, layer).items()
    if config.ternary_embeddings:
        for name in tables(config):
            yield name.removesuffix(".weight"), (config.vocab_size, config.hidden_size)


def scale_shape(config: ModelConfig, rows: int, columns: int) -> tuple[int, ...]:
    """Shape of the `.weight_scale` of a ternary matrix."""
    if config.scales == "group":
        return rows, -(-columns // ternary.SCALE_COLUMNS)
    return (rows,) if config.scales == "row" else (1,)


def all_norms(config: ModelConfig) -> Iterator[tuple[str, int]]:
    """`norms` of every layer and the final one."""
    for layer in range(config.num_hidden_layers):
        yield from norms(config, layer).items()
    yield FINAL_NORM, config.hidden_size
