"""Shapes of published models, by short names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trilobit.errors import RequestError
from trilobit.model.config import ModelConfig


def _bitnet(
    hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, vocab: int
) -> ModelConfig:
    return ModelConfig(
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        vocab_size=vocab,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_ids=(1,),
    )


def _one_bit(*sizes: int) -> ModelConfig:
    """1bitLLM's reproduction of the b1.58 paper."""
    return replace(
        _bitnet(*sizes),
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_ids=(2,),
        hidden_act="silu",
    )


def _falcon(*sizes: int, head_dim: int) -> ModelConfig:
    return replace(
        _bitnet(*sizes),
        head_dim=head_dim,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_theta=1000042.0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_ids=(11,),
        hidden_act="silu",
        sub_norms=False,
    )


def _bonsai(*sizes: int, tied: bool) -> ModelConfig:
    """Qwen3's shape; embedding and head are ternary as well."""
    return replace(
        _bitnet(*sizes),
        head_dim=128,
        max_position_embeddings=32768,
        rms_norm_eps=1e-6,
        rope_theta=1000000.0,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_ids=(151645,),
        hidden_act="silu",
        sub_norms=False,
        qk_norms=True,
        scales="group",
        ternary_embeddings=True,
    )


_LLAMA3_8B = replace(
    _bitnet(4096, 14336, 32, 32, 8, 128256),
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    tie_word_embeddings=False,
    bos_token_id=128000,
    eos_token_ids=(128001, 128009),
    hidden_act="silu",
    sub_norms=False,
)
_EMBEDDING_06B = replace(
    _bitnet(1024, 3072, 28, 16, 8, 151936),
    head_dim=128,
    max_position_embeddings=32768,
    rms_norm_eps=1e-6,
    rope_theta=1000000.0,
    tie_word_embeddings=True,
    bos_token_id=None,
    eos_token_ids=(151643,),
    hidden_act="silu",
    sub_norms=False,
    qk_norms=True,
    projection_norm_eps=1e-6,
)
_EMBEDDING_270M = replace(
    _bitnet(640, 2048, 18, 4, 1, 262144),
    head_dim=256,
    max_position_embeddings=32768,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    tie_word_embeddings=True,
    bos_token_id=2,
    eos_token_ids=(1,),
    hidden_act="gelu_pytorch_tanh",
    sub_norms=False,
    qk_norms=True,
    post_norms=True,
    projection_norm_eps=1e-6,
    embedding_scale=640**0.5,
    query_pre_attn_scalar=256.0,
    layer_types=tuple(
        "full_attention" if layer % 6 == 5 else "sliding_attention" for layer in range(18)
    ),
    sliding_window=512,
    rope_local_base_freq=10000.0,
)

# hidden, ffn, layers, heads, kv heads, vocabulary. 700m, 3b and 2b4t are published models, 8b is
# BitNet in the size of Llama 3; the others without a family's name are those of bitnet.cpp's
# generate-dummy-bitnet-model.py, which made the models of its speed tables (arXiv:2410.16144).
_SHAPES: dict[str, ModelConfig] = {
    "125m": _bitnet(768, 3072, 11, 12, 12, 32002),
    "350m": _bitnet(1024, 3072, 24, 16, 16, 32002),
    "700m": _bitnet(1536, 4096, 24, 16, 16, 32002),
    "1b": _bitnet(2048, 3584, 24, 32, 32, 32002),
    "1.5b": _bitnet(1536, 9216, 28, 32, 32, 32002),
    "2b4t": _bitnet(2560, 6912, 30, 20, 5, 128256),
    "3b": _bitnet(3200, 8640, 26, 32, 32, 32002),
    "3.8b": _bitnet(3840, 8192, 24, 32, 32, 32002),
    "7b": _bitnet(4096, 12032, 32, 32, 32, 32002),
    "8b": _bitnet(4096, 14336, 32, 32, 8, 128256),
    "13b": _bitnet(5120, 13824, 40, 40, 40, 32002),
    "30b": _bitnet(6656, 16384, 60, 52, 52, 32002),
    "70b": _bitnet(8192, 24576, 80, 64, 64, 32002),
    "100b": _bitnet(8192, 45568, 72, 64, 64, 32002),
    "1bitllm-large": _one_bit(1536, 4096, 24, 16, 16, 32002),
    "1bitllm-xl": _one_bit(2048, 5460, 24, 32, 32, 32002),
    "1bitllm-3b": _one_bit(3200, 8640, 26, 32, 32, 32002),
    "llama3-8b": _LLAMA3_8B,
    "falcon3-1b": _falcon(2048, 8192, 18, 8, 4, 131072, head_dim=256),
    "falcon3-3b": _falcon(3072, 9216, 22, 12, 4, 131072, head_dim=256),
    "falcon3-7b": _falcon(3072, 23040, 28, 12, 4, 131072, head_dim=256),
    "falcon3-10b": _falcon(3072, 23040, 40, 12, 4, 131072, head_dim=256),
    "falcon-e-3b": _falcon(2048, 13312, 32, 16, 2, 32768, head_dim=128),
    "bonsai-1.7b": _bonsai(2048, 6144, 28, 16, 8, 151936, tied=True),
    "bonsai-4b": _bonsai(2560, 9728, 36, 32, 8, 151936, tied=True),
    "bonsai-8b": _bonsai(4096, 12288, 36, 32, 8, 151936, tied=False),
    "embedding-0.6b": _EMBEDDING_06B,
    "embedding-270m": _EMBEDDING_270M,
}
SHAPES = tuple(_SHAPES)


def shape(name: str) -> ModelConfig:
    """The config of a published shape; RequestError names the known ones."""
    if name not in _SHAPES:
        raise RequestError(f"unknown shape {name!r}; known: {', '.join(SHAPES)}")
    return _SHAPES[name]


def resized(config: ModelConfig, sizes: Mapping[str, int]) -> ModelConfig:
    """A shape with other sizes, and what follows from them in its family.

    FormatError for sizes that do not go together.
    """
    layers, hidden = (
        sizes.get(name, getattr(config, name)) for name in ("num_hidden_layers", "hidden_size")
    )
    changes: dict[str, Any] = dict(sizes)
    if config.layer_types and layers > 0:
        changes["layer_types"] = (config.layer_types * layers)[:layers]
    if config.embedding_scale == config.hidden_size**0.5 and hidden > 0:
        changes["embedding_scale"] = hidden**0.5
    return replace(config, **changes)
