"""The config.json of every family means to us what it means to its class in transformers."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BitNetConfig,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from trilobit import FormatError, TrilobitError, UnsupportedModel
from trilobit.formats.hf.config import model_config, to_hf, with_projection_norms
from trilobit.model.config import ModelConfig
from trilobit.model.rope import frequencies

CLASSES: dict[str, type[PreTrainedConfig]] = {
    "bitnet": BitNetConfig,
    "llama": LlamaConfig,
    "qwen3": Qwen3Config,
    "gemma3_text": Gemma3TextConfig,
}
SIZES = {
    "vocab_size": 331,
    "hidden_size": 64,
    "intermediate_size": 140,
    "num_hidden_layers": 7,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16384}
# What a file may say beside its sizes; null is left out to transformers 5 as to us.
VARIATIONS: list[dict[str, Any]] = [
    {},
    {"rope_theta": 1000042.0, "rms_norm_eps": 1e-5, "max_position_embeddings": 32768},
    {"head_dim": 256, "num_key_value_heads": 32, "tie_word_embeddings": True},
    {"bos_token_id": None, "eos_token_id": [5, 6], "rope_scaling": None},
    {"rope_theta": 5e5, "rope_scaling": LLAMA3, "max_position_embeddings": 131072},
    {"rope_theta": 1e6, "rope_scaling": YARN, "max_position_embeddings": 65536},
    {"rope_scaling": {"rope_type": "linear", "factor": 8}},
    {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 7e4}},
    {"sliding_window": 32, "use_sliding_window": True, "max_window_layers": 3},
    {"sliding_window": 512, "use_sliding_window": False},
    {"sliding_window": 9, "sliding_window_pattern": 2, "rope_local_base_freq": 5e3},
    {"hidden_act": "silu", "hidden_activation": "silu", "query_pre_attn_scalar": 168},
]


def theirs(values: dict[str, Any]) -> PreTrainedConfig:
    return CLASSES[values["model_type"]](**copy.deepcopy(values))


@pytest.mark.parametrize("variation", VARIATIONS, ids=lambda v: ",".join(v) or "defaults")
@pytest.mark.parametrize("family", CLASSES)
def test_a_config_means_what_it_means_to_transformers(
    family: str, variation: dict[str, Any]
) -> None:
    if family == "gemma3_text" and "rope_parameters" in variation:
        pytest.skip("Gemma3 has parameters for each type of layer; the next test")
    raw = {"model_type": family, **SIZES, **variation}
    stock, ours = theirs(raw), model_config(raw, "config.json")
    assert_same(ours, stock)
    # And back: our config is written as one that says the same.
    again = to_hf(ours)
    assert model_config(again, "again") == ours
    assert_same(ours, theirs(again))


def assert_same(ours: ModelConfig, stock: PreTrainedConfig) -> None:
    for name in (*SIZES, "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"):
        assert getattr(ours, name) == getattr(stock, name), name
    assert ours.head_dim == getattr(stock, "head_dim", None) or 64 // 32
    assert ours.bos_token_id == stock.bos_token_id
    eos = stock.eos_token_id
    assert list(ours.eos_token_ids) == (eos if isinstance(eos, list) else [eos] * (eos is not None))
    assert ours.hidden_act == getattr(stock, "hidden_activation", getattr(stock, "hidden_act", 0))
    types = getattr(stock, "layer_types", None) or ["full_attention"] * ours.num_hidden_layers
    assert [ours.slides(n) for n in range(len(types))] == [t == "sliding_attention" for t in types]
    if "sliding_attention" in types:
        assert ours.sliding_window == stock.sliding_window
    assert ours.model_type == stock.model_type
    assert_same_angles(ours, stock)


def assert_same_angles(ours: ModelConfig, stock: PreTrainedConfig) -> None:
    """Frequencies of float32 to 4 units in the last place, as powers are of libraries."""
    ours_full = frequencies(ours.head_dim, ours.rope_theta, ours.rope_scaling)
    if stock.model_type == "gemma3_text":
        rotary = Gemma3RotaryEmbedding(stock)
        full, factor = rotary.full_attention_inv_freq, rotary.full_attention_attention_scaling
        if ours.rope_local_base_freq is not None:
            local = frequencies(ours.head_dim, ours.rope_local_base_freq)
            np.testing.assert_allclose(local, rotary.sliding_attention_inv_freq, rtol=2**-21)
    else:
        if not hasattr(stock, "head_dim"):
            stock.head_dim = ours.head_dim
        rotary = LlamaRotaryEmbedding(stock)
        full, factor = rotary.inv_freq, rotary.attention_scaling
    np.testing.assert_allclose(ours_full, full, rtol=2**-21)
    assert factor == pytest.approx(getattr(ours.rope_scaling, "attention_factor", 1.0), rel=1e-12)


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_stretched_frequencies_are_those_of_transformers_for_a_whole_head(kind: str) -> None:
    scaling = {"linear": {"rope_type": "linear", "factor": 4.0}, "llama3": LLAMA3, "yarn": YARN}
    raw = {"model_type": "llama", **SIZES, "head_dim": 128, "rope_theta": 5e5}
    raw["rope_scaling"] = scaling[kind]
    wanted, _ = ROPE_INIT_FUNCTIONS[kind](theirs(raw), torch.device("cpu"))
    ours = model_config(raw, "config.json")
    found = frequencies(128, ours.rope_theta, ours.rope_scaling)
    plain = frequencies(128, ours.rope_theta)
    assert found.dtype == np.float32
    assert (found <= plain).all()
    assert (found < plain).any()
    np.testing.assert_allclose(found, wanted, rtol=2**-21)


def test_gemma_of_transformers_5_has_parameters_for_each_type_of_layer() -> None:
    raw = {
        "model_type": "gemma3_text",
        **SIZES,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 123.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 45.0},
        },
    }
    ours = model_config(raw, "config.json")
    assert_same(ours, theirs(raw))
    assert (ours.rope_theta, ours.rope_local_base_freq) == (123.0, 45.0)


def test_gemma_scales_embeddings_and_queries() -> None:
    ours = model_config({"model_type": "gemma3_text", **SIZES}, "config.json")
    assert (ours.embedding_scale, ours.query_pre_attn_scalar) == (8.0, 256.0)
    assert (ours.post_norms, ours.qk_norms, ours.sub_norms) == (True, True, False)


# What tells 1bitLLM's models (of its own code) from Microsoft's and from Llama's
ONE_BIT = {
    "architectures": ["BitnetForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 3200,
    "input_bits": 8,
    "weight_bits": 1,
    "intermediate_size": 8640,
    "max_position_embeddings": 2048,
    "num_attention_heads": 32,
    "num_hidden_layers": 26,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "vocab_size": 32002,
}


def test_1bitllm_is_bitnet_with_silu() -> None:
    ours = model_config(ONE_BIT, "config.json")
    assert (ours.model_type, ours.hidden_act, ours.sub_norms) == ("bitnet", "silu", True)
    assert (ours.head_dim, ours.bos_token_id, ours.eos_token_ids) == (100, 1, (2,))
    assert to_hf(ours)["architectures"] == ["BitNetForCausalLM"]
    with pytest.raises(UnsupportedModel, match="weight_bits 2 and input_bits 8"):
        model_config({**ONE_BIT, "weight_bits": 2}, "config.json")


def test_projections_have_norms_where_the_config_or_the_tensors_say_so() -> None:
    raw = {"model_type": "qwen3", **SIZES}
    plain = model_config(raw, "config.json")
    assert plain.projection_norm_eps is None
    used = {"quant_method": "bitnet", "use_rms_norm": True}
    assert model_config({**raw, "quantization_config": used}, "").projection_norm_eps == 1e-6
    used["rms_norm_eps"] = 1e-5
    assert model_config({**raw, "quantization_config": used}, "").projection_norm_eps == 1e-5
    seen = with_projection_norms(plain, ["layers.0.self_attn.q_proj.norm.weight"])
    assert seen.projection_norm_eps == plain.rms_norm_eps
    assert with_projection_norms(plain, ["layers.0.self_attn.q_norm.weight"]) == plain


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("qwen3", {"attention_bias": True}, "attention_bias is true"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ("llama", {"rope_scaling": {**YARN, "mscale": 1.0}}, "with mscale"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ],
)
def test_switches_of_no_ternary_model_are_unsupported(
    family: str, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UnsupportedModel, match=f"^config.json: .*{reason}"):
        model_config({"model_type": family, **SIZES, **changes}, "config.json")


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "factor is None"),
        ("llama", {"rope_scaling": {**LLAMA3, "factor": float("nan")}}, "factor is nan"),
        ("llama", {"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "not below"),
        ("llama", {"rope_scaling": {**YARN, "factor": -1}}, "factor is -1"),
        ("llama", {"rope_scaling": {**YARN, "factor": 10**400}}, "factor is"),
        ("llama", {"rope_theta": 1, "rope_scaling": YARN}, "rope_theta is 1.0"),
        ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
        ("gemma3_text", {"sliding_window": -1}, "sliding_window is -1"),
        ("gemma3_text", {"layer_types": ["sliding_attention"]}, "layer_types is"),
        ("gemma3_text", {"layer_types": [{}] * 7}, "layer_types is"),
        ("gemma3_text", {"layer_types": ["conv"] * 7}, "layer_types is"),
        ("gemma3_text", {"query_pre_attn_scalar": "x"}, "query_pre_attn_scalar is 'x'"),
        ("gemma3_text", {"rope_parameters": {"full_attention": 3}}, "rope_parameters is 3"),
    ],
)
def test_impossible_values_are_refused(family: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(FormatError, match=f"^config.json: .*{reason}") as error:
        model_config({"model_type": family, **SIZES, **changes}, "config.json")
    assert "\n" not in str(error.value)


HOSTILE: list[Any] = [
    None, 0, -1, 1 << 40, 10**4000, 0.5, float("nan"), float("inf"), "", "x", "a\nb", True, [], [1],
    [[]], {}, {"a": 1}, {"rope_type": []}, {"full_attention": []}, ["full_attention"] * 7,
    {"rope_type": "yarn", "factor": "x"}, {"rope_type": "llama3", "factor": 1.0},
]  # fmt: skip
COMPLETE: dict[str, Any] = {
    **SIZES,
    "architectures": ["X"],
    "bos_token_id": 1,
    "eos_token_id": [1],
    "head_dim": 2,
    "hidden_act": "silu",
    "hidden_activation": "silu",
    "layer_types": None,
    "max_position_embeddings": 64,
    "max_window_layers": 2,
    "original_max_position_embeddings": 32,
    "quantization_config": {"use_rms_norm": True, "rms_norm_eps": 1e-6},
    "query_pre_attn_scalar": 2,
    "rms_norm_eps": 1e-5,
    "rope_local_base_freq": 1e4,
    "rope_parameters": None,
    "rope_scaling": None,
    "rope_theta": 1e4,
    "sliding_window": 4,
    "sliding_window_pattern": 2,
    "tie_word_embeddings": True,
    "use_sliding_window": True,
    "input_bits": 8,
}


@pytest.mark.parametrize("family", [*CLASSES, "1bitLLM"])
def test_whatever_a_file_says_is_read_or_refused_in_one_line(family: str) -> None:
    raw = {"model_type": family, **COMPLETE}
    if family == "1bitLLM":
        raw |= {"model_type": "llama", "architectures": ["BitnetForCausalLM"]}
    model_config(raw, "config.json")
    refusals = []
    for name in raw:
        for value in HOSTILE:
            try:
                model_config({**raw, name: value}, "config.json")
            except TrilobitError as error:
                refusals.append(str(error))
    assert len(refusals) > 100
    for message in refusals:
        assert message.startswith("config.json: ")
        assert "\n" not in message
        assert len(message) < 300
