"""A config is what its file says, of either generation of transformers, or one clear line."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from typing import Any

import pytest
from conftest import tiny_config
from hypothesis import given
from hypothesis import strategies as st
from transformers import BitNetConfig

from trilobit import FormatError, TrilobitError, UnsupportedModel
from trilobit.formats.hf.config import model_config
from trilobit.model.config import ModelConfig
from trilobit.model.shapes import SHAPES, shape

SOURCE = "some/config.json"

# config.json of microsoft/bitnet-b1.58-2B-4T, what of it describes the model
B2B4T: dict[str, Any] = {
    "architectures": ["BitNetForCausalLM"],
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "hidden_act": "relu2",
    "hidden_size": 2560,
    "initializer_range": 0.02,
    "intermediate_size": 6912,
    "max_position_embeddings": 4096,
    "model_type": "bitnet",
    "num_attention_heads": 20,
    "num_hidden_layers": 30,
    "num_key_value_heads": 5,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
NEEDED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)


def read(**changes: Any) -> ModelConfig:
    return model_config({**B2B4T, **changes}, SOURCE)


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in B2B4T.items() if name not in names}


# ---- reading ----------------------------------------------------------------------------------


def test_2b4t_is_read() -> None:
    assert read() == ModelConfig(
        vocab_size=128256,
        hidden_size=2560,
        intermediate_size=6912,
        num_hidden_layers=30,
        num_attention_heads=20,
        num_key_value_heads=5,
        head_dim=128,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        tie_word_embeddings=True,
        bos_token_id=128000,
        eos_token_ids=(128001,),
    )


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 12345.0},
        {"rope_theta": 12345.0, "rope_scaling": None},
        {"rope_theta": 12345, "rope_scaling": {"type": "default"}},
        {"rope_theta": 12345.0, "rope_scaling": {"rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 12345.0, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 12345.0}},
        {"rope_theta": 1.0, "rope_parameters": {"rope_theta": 12345.0, "rope_type": "default"}},
    ],
)
def test_rope_theta_of_transformers_4_and_5(spelling: dict[str, Any]) -> None:
    config = model_config({**without("rope_theta"), **spelling}, SOURCE)
    assert config.rope_theta == 12345.0


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("kind", ["rope_type", "type"])
def test_other_scalings_of_rope_are_unsupported(key: str, kind: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"{SOURCE}.*rope_type 'longrope'"):
        read(**{key: {kind: "longrope", "factor": 4.0, "rope_theta": 1e4}})


def test_what_is_left_out_takes_the_default_of_transformers() -> None:
    config = model_config({"model_type": "bitnet", **{k: B2B4T[k] for k in NEEDED}}, SOURCE)
    assert config.max_position_embeddings == 2048
    assert config.rms_norm_eps == 1e-5
    assert config.rope_theta == 500000.0
    assert config.tie_word_embeddings is False
    assert config.num_key_value_heads == 5
    assert config.head_dim == 128
    assert (config.bos_token_id, config.eos_token_ids) == (128000, (128001,))


def test_null_means_left_out() -> None:
    config = read(head_dim=None, num_key_value_heads=None, rope_scaling=None, rms_norm_eps=None)
    assert (config.head_dim, config.num_key_value_heads) == (128, 20)
    assert config.rms_norm_eps == 1e-5


def test_head_dim_may_differ_from_hidden_size_by_heads() -> None:
    assert read(head_dim=64).head_dim == 64


@pytest.mark.parametrize(
    ("eos", "ids"), [(None, ()), (7, (7,)), ([7, 9], (7, 9)), ([], ()), (999999, (999999,))]
)
def test_end_tokens_are_none_one_or_several(eos: Any, ids: tuple[int, ...]) -> None:
    assert read(eos_token_id=eos).eos_token_ids == ids


OPTIONAL: dict[str, list[Any]] = {
    "num_key_value_heads": [None, 4, 10],
    "hidden_act": ["relu2", "silu"],
    "max_position_embeddings": [512],
    "rms_norm_eps": [1e-6],
    "tie_word_embeddings": [True, False],
    "bos_token_id": [None, 0, 3],
    "eos_token_id": [None, 1, [1, 2]],
    "rope_theta": [10000.0, 77.0],
    "rope_scaling": [None, {"type": "default"}, {"rope_type": "default", "rope_theta": 55.0}],
    "rope_parameters": [None, {"rope_type": "default"}, {"rope_theta": 66.0}],
}


@given(st.fixed_dictionaries({}, optional={k: st.sampled_from(v) for k, v in OPTIONAL.items()}))
def test_whatever_is_left_out_or_null_means_what_it_means_to_transformers(
    optional: dict[str, Any],
) -> None:
    raw = {"model_type": "bitnet", **{k: B2B4T[k] for k in NEEDED}, **optional}
    theirs, ours = BitNetConfig(**copy.deepcopy(raw)), model_config(raw, SOURCE)
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    eos = theirs.eos_token_id if isinstance(theirs.eos_token_id, list) else [theirs.eos_token_id]
    assert list(ours.eos_token_ids) == [i for i in eos if i is not None]
    for name in (
        *NEEDED,
        "num_key_value_heads",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
        "bos_token_id",
    ):
        assert getattr(ours, name) == getattr(theirs, name), name


# ---- counting ---------------------------------------------------------------------------------


def test_2b4t_has_2_084_billion_ternary_weights() -> None:
    config = read()
    by_hand = 30 * (2560 * 2560 * 2 + 2560 * 640 * 2 + 3 * 2560 * 6912)
    assert config.ternary_parameters == by_hand == 2_084_044_800
    norms = 30 * (3 * 2560 + 6912) + 2560
    assert config.parameters == by_hand + norms + 128256 * 2560


def test_an_untied_head_counts() -> None:
    difference = read(tie_word_embeddings=False).parameters - read().parameters
    assert difference == 128256 * 2560


# ---- what cannot be ---------------------------------------------------------------------------

HUGE = 10**4000  # float() overflows
INTEGERS = (*NEEDED, "num_key_value_heads", "head_dim", "max_position_embeddings")


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize(
    "value",
    [0, -1, 1 << 40, HUGE, 128.0, float("nan"), float("inf"), "128", True, [128], {"a": 1}],
    ids=lambda value: repr(value)[:12],
)
def test_impossible_sizes_are_refused_by_name(name: str, value: Any) -> None:
    raw = {**B2B4T, "head_dim": 128, name: value}
    with pytest.raises(FormatError, match=f"^{SOURCE}: .*{name} is ") as error:
        model_config(raw, SOURCE)
    assert_one_line(error.value)


@pytest.mark.parametrize("name", ["hidden_size", "num_attention_heads"])
@pytest.mark.parametrize("value", [0, -1, 20.0, float("nan"), "20", [20]], ids=repr)
def test_impossible_sizes_are_refused_where_head_dim_must_be_derived(name: str, value: Any) -> None:
    with pytest.raises(FormatError, match=f"^{SOURCE}: {name} is "):
        read(**{name: value})


@pytest.mark.parametrize("name", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize(
    "value",
    [0, -1.0, float("nan"), float("inf"), 1e300, 1e-300, HUGE, "1e4", True, [1.0]],
    ids=lambda value: repr(value)[:12],
)
def test_impossible_numbers_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(FormatError, match=f"^{SOURCE}: config: {name} is ") as error:
        read(**{name: value})
    assert_one_line(error.value)


@pytest.mark.parametrize("value", ["false", 1, 0.0, [], {}])
def test_tied_is_true_or_false_and_nothing_that_looks_like_it(value: Any) -> None:
    with pytest.raises(FormatError, match=f"^{SOURCE}: .*tie_word_embeddings"):
        read(tie_word_embeddings=value)


@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id"])
@pytest.mark.parametrize(
    "value", [-1, 1 << 31, HUGE, 1.0, "1", True, {}], ids=lambda v: repr(v)[:9]
)
def test_impossible_token_ids_are_refused(name: str, value: Any) -> None:
    with pytest.raises(FormatError, match=f"^{SOURCE}: .*{name[:5]}") as error:
        read(**{name: value})
    assert_one_line(error.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_key_value_heads": 3}, "num_attention_heads 20 is not a multiple"),
        ({"num_attention_heads": 24}, "hidden_size 2560 is not a multiple"),
        ({"head_dim": 127}, "head_dim 127 is odd"),
        ({"rope_parameters": "default"}, "rope_parameters is 'default'"),
        ({"rope_parameters": {"rope_theta": "1e4"}}, "rope_theta is '1e4'"),
    ],
)
def test_values_that_do_not_go_together_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(FormatError, match=f"^{SOURCE}: .*{re.escape(reason)}") as error:
        read(**changes)
    assert str(error.value).count(SOURCE) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "mistral"}, "model_type 'mistral'"),
        ({"model_type": "qwen3_moe", "num_experts": 8}, "'qwen3_moe', a mixture of experts,"),
        ({"model_type": "gemma3", "vision_config": {}}, "'gemma3', which reads more than text,"),
        ({"model_type": None}, "model_type None"),
        ({"model_type": "x" * 10**6}, "model_type 'xx"),
        ({"model_type": "a\nb"}, r"model_type 'a\nb'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
    ],
)
def test_other_architectures_are_unsupported(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"^{SOURCE}: .*{re.escape(reason)}") as error:
        read(**changes)
    assert_one_line(error.value)


@pytest.mark.parametrize("name", NEEDED)
def test_missing_sizes_are_named(name: str) -> None:
    with pytest.raises(FormatError, match=f"^{SOURCE}: {name} missing"):
        model_config(without(name), SOURCE)


def assert_one_line(error: TrilobitError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 300


# ---- our own form -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_published_shapes_survive_json(name: str) -> None:
    config = shape(name)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_from_dict_inverts_to_dict() -> None:
    for config in (tiny_config(), tiny_config(bos_token_id=None, eos_token_ids=(1, 2, 3)), read()):
        assert ModelConfig.from_dict(config.to_dict()) == config


def test_missing_and_unknown_fields_are_named() -> None:
    values = tiny_config().to_dict()
    for name in values:
        with pytest.raises(FormatError, match=name):
            ModelConfig.from_dict({k: v for k, v in values.items() if k != name})
    with pytest.raises(FormatError, match="'colour'"):
        ModelConfig.from_dict({**values, "colour": 1})


@pytest.mark.parametrize(
    "value", [-1, HUGE, "x", float("nan"), {"a": None}], ids=lambda v: str(v)[:9]
)
@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(ModelConfig)])
def test_from_dict_refuses_impossible_values_by_name(name: str, value: Any) -> None:
    with pytest.raises(FormatError, match=name) as error:
        ModelConfig.from_dict({**tiny_config().to_dict(), name: value})
    assert_one_line(error.value)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_config().hidden_size = 4  # type: ignore[misc]
