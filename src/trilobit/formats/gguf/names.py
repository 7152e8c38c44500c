"""GGUF's names of our tensors (`model/tensor_names.py`)."""

from __future__ import annotations

import re

from trilobit.model import tensor_names
from trilobit.model.config import ModelConfig

_WHOLE = {
    tensor_names.EMBEDDING: "token_embd.weight",
    tensor_names.HEAD: "output.weight",
    tensor_names.FINAL_NORM: "output_norm.weight",
}
# Within a layer, without `.weight`.
_PROJECTIONS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    **{f"{ours}.rms_norm": f"{theirs}_norm_in" for ours, theirs in _PROJECTIONS.items()},
}
# Gemma3 has a norm behind the attention and two around the MLP.
_POST_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_IN_LAYER = re.compile(r"model\.layers\.(\d+)\.(.*)\.weight")


def gguf_name(name: str, config: ModelConfig) -> str:
    """The name of a tensor of ours, `.weight` and all, in a GGUF file."""
    if name in _WHOLE:
        return _WHOLE[name]
    match = _IN_LAYER.fullmatch(name)
    assert match, name
    layer, rest = match.groups()
    table = {**_PROJECTIONS, **_NORMS, **(_POST_NORMS if config.post_norms else {})}
    return f"blk.{layer}.{table[rest]}.weight"
