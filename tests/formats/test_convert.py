"""Checkpoints in, one packed file out: every form, and every way to be bad.

Codes and scales are compared with those of stock transformers' layers here, logits in
test_parity.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stock
import torch
from conftest import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from transformers import BitNetConfig, BitNetForCausalLM

from trilobit import (
    LLM,
    FormatError,
    OutputError,
    RequestError,
    SamplingParams,
    TrilobitError,
    UnsupportedModel,
)
from trilobit.conversion import FORMS, Form, convert
from trilobit.formats.hf.config import to_hf
from trilobit.formats.hf.reader import pack_hf, unpack_hf
from trilobit.formats.packed.reader import PackedModel
from trilobit.model import packing, tensor_names, ternary
from trilobit.progress import Progress
from trilobit.synth import synth

Q_PROJ = "model.layers.0.self_attn.q_proj"
Tensors = dict[str, NDArray[Any]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A packed checkpoint of float32 tensors, to be damaged."""
    folder = tmp_path / "source"
    random = np.random.default_rng(0)
    config = tiny_config()
    synth(config, folder)
    tensors: Tensors = {}
    for name, (rows, columns) in tensor_names.all_projections(config):
        tensors[f"{name}.weight"] = pack_hf(random.integers(-1, 2, (rows, columns), dtype=np.int8))
        tensors[f"{name}.weight_scale"] = np.array([random.uniform(0.01, 1)], np.float32)
    for name, length in tensor_names.all_norms(config):
        tensors[name] = random.uniform(0.5, 2, length).astype(np.float32)
    table = (config.vocab_size, config.hidden_size)
    tensors[tensor_names.EMBEDDING] = random.standard_normal(table).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    change_config(folder, torch_dtype="float32")
    return folder


def change_tensors(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in values.items():
        if value is None:
            config.pop(key, None)
        elif isinstance(value, dict) and isinstance(config.get(key), dict):
            config[key] |= value
        else:
            config[key] = value
    path.write_text(json.dumps(config))


def codes_and_scale(file: Path, name: str = Q_PROJ) -> tuple[NDArray[np.int8], float]:
    model = PackedModel(file)
    shape = dict(tensor_names.all_projections(model.config))[name]
    packed = model.file.array(f"{name}.weight")
    codes = packing.unpack(packed, *shape, "2-bit", model.order(name))
    return codes, float(model.file.array(f"{name}.weight_scale")[0])


# ---- as stock transformers has it -------------------------------------------------------------


def reference(layer: Any) -> tuple[NDArray[np.int8], torch.Tensor]:
    """Codes and scale (of one element) that a layer of transformers multiplies with."""
    from transformers.integrations.bitnet import BitLinear, WeightQuant, unpack_weights

    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        if isinstance(layer, BitLinear):
            codes, scale = unpack_weights(layer.weight, dtype=torch.float32), 1 / layer.weight_scale
        elif layer.online_quant:
            quantised = WeightQuant.apply(layer.weight)
            codes, scale = quantised.sign(), quantised.abs().max()
        else:
            codes, scale = layer.weight, layer.weight_scale
    return codes.to(torch.int8).numpy(), scale.reshape(())


def assert_as_transformers(folder: Path, scale_ulps: int = 0) -> None:
    """Every projection has transformers' codes, and its scale but for units in the last place."""
    file = folder.parent / "out.trilobit"
    config = convert(folder, file)
    model = stock.load(folder)
    for name, _ in tensor_names.all_projections(config):
        wanted_codes, wanted_scale = reference(model.get_submodule(name))
        codes, scale = codes_and_scale(file, name)
        assert np.array_equal(codes, wanted_codes)
        # In the type that transformers computes in, which has no more digits than ours.
        ours = torch.tensor(scale, dtype=wanted_scale.dtype)
        assert abs(ours / wanted_scale - 1) <= scale_ulps * torch.finfo(ours.dtype).eps


def save_masters(folder: Path, dtype: torch.dtype, *, on_a_grid: bool) -> None:
    """A random model of transformers, saved by it, marked as trained in ternary."""
    values = to_hf(tiny_config())
    del values["head_dim"]
    torch.manual_seed(6)
    model = BitNetForCausalLM(BitNetConfig(**values)).to(dtype)
    if on_a_grid:
        for parameter in model.parameters():
            grid = torch.randint(-100, 100, parameter.shape)
            parameter.data = (grid / 128).to(dtype)
    model.save_pretrained(folder)
    quantization = {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "online",
    }
    change_config(folder, quantization_config=quantization)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_masters_have_the_codes_and_scales_of_transformers(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    # Sums of multiples of 2^-7 are exact in float32, in any order: the scales must be equal.
    save_masters(tmp_path / "grid", dtype, on_a_grid=True)
    assert_as_transformers(tmp_path / "grid")
    # Other sums are rounded: transformers adds up in float32, the definition in float64.
    save_masters(tmp_path / "normal", dtype, on_a_grid=False)
    assert_as_transformers(tmp_path / "normal", scale_ulps=2)


@pytest.mark.parametrize("linear_class", ["autobitlinear", "bitlinear", None])
def test_packed_weights_have_the_codes_and_scales_of_transformers(
    source: Path, linear_class: str | None
) -> None:
    quantization = {"quant_method": "bitnet", "quantization_mode": "offline"}
    if linear_class:
        quantization["linear_class"] = linear_class
    change_config(source, quantization_config=None)
    change_config(source, quantization_config=quantization)
    assert_as_transformers(source)


def test_codes_saved_as_floats_are_not_quantised_again(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "packed.trilobit")

    def unpack(tensors: Tensors) -> None:
        for name, (rows, _) in tensor_names.all_projections(tiny_config()):
            codes = unpack_hf(tensors[f"{name}.weight"], rows)
            tensors[f"{name}.weight"] = codes.astype(np.float32)

    change_tensors(source, unpack)
    assert_as_transformers(source)
    assert (tmp_path / "packed.trilobit").read_bytes() == (tmp_path / "out.trilobit").read_bytes()


@pytest.mark.parametrize("form", ["packed", "bf16"])
def test_random_checkpoints_are_read_alike_by_transformers(tmp_path: Path, form: str) -> None:
    synth(tiny_config(), tmp_path / "hf", form=form, seed=2)  # type: ignore[arg-type]
    assert_as_transformers(tmp_path / "hf", scale_ulps=0 if form == "packed" else 1)


# ---- what comes out ---------------------------------------------------------------------------


@pytest.mark.parametrize("linear_class", ["autobitlinear", "bitlinear", None])
def test_scale_means_what_its_linear_class_means(
    source: Path, tmp_path: Path, linear_class: str | None
) -> None:
    stored = load_file(source / "model.safetensors")
    quantization = {"quant_method": "bitnet", "quantization_mode": "offline"}
    if linear_class:
        quantization["linear_class"] = linear_class
    change_config(source, quantization_config=None)
    change_config(source, quantization_config=quantization)
    convert(source, tmp_path / "out.trilobit")
    codes, scale = codes_and_scale(tmp_path / "out.trilobit")
    rows = codes.shape[0]
    weight = stored[f"{Q_PROJ}.weight"]
    # Row i·(rows / 4) + r lies in bits 2i of stored row r.
    for row in (0, 1, rows // 4, rows - 1):
        quarter, r = divmod(row, rows // 4)
        assert (codes[row] == (weight[r] >> 2 * quarter & 3).astype(np.int8) - 1).all()
    value = stored[f"{Q_PROJ}.weight_scale"][0]
    # Without a class transformers takes BitLinear, which divides.
    wanted = value if linear_class == "autobitlinear" else np.float32(1) / value
    assert scale == wanted


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_masters_become_the_codes_of_the_definition(tmp_path: Path, dtype: str) -> None:
    folder = tmp_path / "masters"
    synth(tiny_config(), folder, form="bf16", seed=4)
    if dtype != "BF16":
        type_ = {"F32": np.float32, "F16": np.float16}[dtype]
        random = np.random.default_rng(1)
        tensors = {
            f"{name}.weight": random.standard_normal(shape).astype(type_)
            for name, shape in tensor_names.all_projections(tiny_config())
        }
        for name, length in tensor_names.all_norms(tiny_config()):
            tensors[name] = np.ones(length, type_)
        tensors[tensor_names.EMBEDDING] = random.standard_normal((331, 60)).astype(type_)
        save_file(tensors, folder / "model.safetensors")
    convert(folder, tmp_path / "out.trilobit")
    from trilobit.formats.safetensors import SafetensorsFile

    master = SafetensorsFile(folder / "model.safetensors").float32(f"{Q_PROJ}.weight")
    codes, scale = ternary.absmean_ternary(master)
    got, got_scale = codes_and_scale(tmp_path / "out.trilobit")
    assert (got == codes).all()
    assert got_scale == scale
    assert PackedModel(tmp_path / "out.trilobit").file.info(tensor_names.EMBEDDING).dtype == dtype


def test_shards_equal_one_file(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "one.trilobit")
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    weight_map = {}
    for part in range(3):
        file = f"model-{part + 1:05}-of-00003.safetensors"
        chosen = dict(list(tensors.items())[part::3])
        save_file(chosen, source / file)
        weight_map |= dict.fromkeys(chosen, file)
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    convert(source, tmp_path / "shards.trilobit")
    assert (tmp_path / "one.trilobit").read_bytes() == (tmp_path / "shards.trilobit").read_bytes()


def test_a_single_file_comes_before_an_index(source: Path, tmp_path: Path) -> None:
    # So it is in transformers; the index is what was left of an earlier save.
    (source / "model.safetensors.index.json").write_text("{}")
    convert(source, tmp_path / "out.trilobit")
    assert PackedModel(tmp_path / "out.trilobit").arrays()


def test_configs_of_transformers_4_and_5_are_one(source: Path, tmp_path: Path) -> None:
    change_config(source, rope_theta=12345.0)
    assert convert(source, tmp_path / "4.trilobit").rope_theta == 12345
    change_config(source, rope_theta=None)
    change_config(source, rope_parameters={"rope_type": "default", "rope_theta": 12345.0})
    convert(source, tmp_path / "5.trilobit")
    assert (tmp_path / "4.trilobit").read_bytes() == (tmp_path / "5.trilobit").read_bytes()


def test_untied_head_is_kept_apart(source: Path, tmp_path: Path) -> None:
    head = np.random.default_rng(5).standard_normal((331, 60)).astype(np.float32)
    change_tensors(source, lambda t: t.update({tensor_names.HEAD: head}))
    change_config(source, tie_word_embeddings=False)
    convert(source, tmp_path / "out.trilobit")
    assert (PackedModel(tmp_path / "out.trilobit").file.array(tensor_names.HEAD) == head).all()


@pytest.mark.parametrize("tied", [True, False])
def test_odd_tables_of_two_bytes_convert(tmp_path: Path, tied: bool) -> None:
    config = tiny_config(
        vocab_size=37, hidden_size=11, head_dim=6, num_attention_heads=3, num_key_value_heads=1,
        tie_word_embeddings=tied,
    )  # fmt: skip
    synth(config, tmp_path / "hf", form="bf16")
    convert(tmp_path / "hf", tmp_path / "out.trilobit")
    assert np.isfinite(LLM(tmp_path / "out.trilobit").logits([1, 2, 36])).all()


def test_a_packed_file_is_a_source_too(source: Path, tmp_path: Path, tokenizer_json: Path) -> None:
    shutil.copy(tokenizer_json, source / "tokenizer.json")
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    convert(source, tmp_path / "one.trilobit")
    convert(tmp_path / "one.trilobit", tmp_path / "two.trilobit")
    assert (tmp_path / "one.trilobit").read_bytes() == (tmp_path / "two.trilobit").read_bytes()


def test_a_model_is_not_written_over_itself(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out.trilobit")
    before = (tmp_path / "out.trilobit").read_bytes()
    with pytest.raises(OutputError, match="the model itself"):
        convert(tmp_path / "out.trilobit", tmp_path / "out.trilobit")
    assert (tmp_path / "out.trilobit").read_bytes() == before


def test_links_as_in_a_download_cache_are_followed(source: Path, tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    for path in source.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    convert(tmp_path / "snapshot", tmp_path / "out.trilobit")
    assert PackedModel(tmp_path / "out.trilobit").arrays()


def test_a_name_that_is_not_unicode_is_only_shown(source: Path, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/na\xffme"))
    try:
        source.rename(folder)
    except OSError:
        pytest.skip("this file system takes only Unicode")
    convert(folder, tmp_path / "out.trilobit")
    assert PackedModel(tmp_path / "out.trilobit").file.metadata["source"] == "na?me"


def test_without_a_tokenizer_it_runs_on_ids(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out.trilobit")
    llm = LLM(tmp_path / "out.trilobit")
    assert llm.tokenizer is None
    assert len(llm.generate([1, 2], SamplingParams(max_tokens=3, ignore_eos=True)).token_ids) == 3


def test_ends_of_both_configs_count(source: Path, tmp_path: Path) -> None:
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 9]}))
    assert convert(source, tmp_path / "out.trilobit").eos_token_ids == (1, 9)


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja"])
def test_chat_template_comes_along(
    source: Path, tmp_path: Path, tokenizer_json: Path, place: str
) -> None:
    shutil.copy(tokenizer_json, source / "tokenizer.json")
    template = "{{ messages[0].content }}!"
    text = template if place.endswith("jinja") else json.dumps({"chat_template": template})
    (source / place).write_text(text)
    convert(source, tmp_path / "out.trilobit")
    assert PackedModel(tmp_path / "out.trilobit").text.chat_template == template


@pytest.mark.parametrize(
    ("settings_", "wanted"),
    [
        (
            {
                "chat_template": [
                    {"name": "x", "template": "b"},
                    {"name": "default", "template": "a"},
                ]
            },
            "a",
        ),
        ({"chat_template": [{"name": ["default"], "template": "b"}, 7, {}]}, None),
        ({"chat_template": [{"name": "default", "template": 7}]}, None),
        ({"chat_template": 7}, None),
        ({"chat_template": "a\ud800b"}, "a?b"),
        ({}, None),
    ],
)
def test_chat_template_is_the_default_one_if_any(
    source: Path, tokenizer_json: Path, settings_: dict[str, Any], wanted: str | None
) -> None:
    shutil.copy(tokenizer_json, source / "tokenizer.json")
    (source / "tokenizer_config.json").write_text(json.dumps(settings_))
    convert(source, source.parent / "out.trilobit")
    assert PackedModel(source.parent / "out.trilobit").text.chat_template == wanted


# ---- what is refused --------------------------------------------------------------------------


def set_(name: str, value: Any) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: value})


def scaled(value: float) -> Callable[[Tensors], object]:
    return set_(f"{Q_PROJ}.weight_scale", np.array([value], np.float32))


def code_3(tensors: Tensors) -> None:
    tensors[f"{Q_PROJ}.weight"][2, 5] |= 0x30


BAD_TENSORS: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "scale_0": (scaled(0), r"q_proj.weight_scale' is \[0.0\]; expected one positive number"),
    "scale_nan": (scaled(float("nan")), "expected one positive number"),
    "scale_inf": (scaled(float("inf")), "expected one positive number"),
    "scale_negative": (scaled(-1), "expected one positive number"),
    "scale_beyond_float32": (scaled(1e-38), "expected one positive number"),
    "scales_two": (
        set_(f"{Q_PROJ}.weight_scale", np.ones(2, np.float32)),
        "expected one positive number",
    ),
    "scale_integer": (set_(f"{Q_PROJ}.weight_scale", np.ones(1, np.int32)), "weight_scale' is I32"),
    "scale_missing": (
        lambda t: t.pop(f"{Q_PROJ}.weight_scale"),
        "weight_scale' is missing; if the weights are",
    ),
    "code_3": (code_3, "q_proj.weight': .* has code 3, .*download"),
    "weight_missing": (lambda t: t.pop(f"{Q_PROJ}.weight"), "q_proj.weight' is missing"),
    "norm_missing": (lambda t: t.pop("model.norm.weight"), "model.norm.weight' is missing"),
    "norm_nan": (
        set_("model.norm.weight", np.full(60, np.nan, np.float32)),
        "model.norm.weight' holds NaN",
    ),
    "wrong_shape": (
        set_("model.norm.weight", np.ones(61, np.float32)),
        r"'model.norm.weight' is \[61\]; the config asks for \[60\]",
    ),
    "master_nan": (
        set_(f"{Q_PROJ}.weight", np.full((60, 60), np.nan, np.float32)),
        "NaN or infinity",
    ),
    "masters_beside_a_scale": (
        set_(f"{Q_PROJ}.weight", np.full((60, 60), 0.5, np.float32)),
        "not all -1, 0 or 1, though it has a scale; .*quantization_mode to online",
    ),
    "weight_integer": (
        set_(f"{Q_PROJ}.weight", np.ones((60, 60), np.int8)),
        "q_proj.weight' is I8",
    ),
    "weight_of_other_rows": (
        set_(f"{Q_PROJ}.weight", np.zeros((16, 60), np.uint8)),
        r"q_proj.weight' is \[16, 60\]; the config asks for \[15, 60\]",
    ),
    "embedding_missing": (
        lambda t: t.pop(tensor_names.EMBEDDING),
        "embed_tokens.weight' is missing",
    ),
    "embedding_of_other_rows": (
        set_(tensor_names.EMBEDDING, np.zeros((330, 60), np.float32)),
        r"embed_tokens.weight' is \[330, 60\]",
    ),
    "embedding_nan": (
        lambda t: t[tensor_names.EMBEDDING].__setitem__((330, 59), np.nan),
        "embed_tokens.weight' holds NaN or infinity",
    ),
    "embedding_infinite_in_float16": (
        set_(tensor_names.EMBEDDING, np.full((331, 60), np.inf, np.float16)),
        "embed_tokens.weight' holds NaN or infinity",
    ),
    "head_of_another_type": (
        set_(tensor_names.HEAD, np.ones((331, 60), np.float16)),
        "lm_head.weight' is F16, the embedding is F32",
    ),
    "integer_embedding": (
        set_(tensor_names.EMBEDDING, np.zeros((331, 60), np.int32)),
        "expected a float",
    ),
    "other_head_though_tied": (
        set_(tensor_names.HEAD, np.ones((331, 60), np.float32)),
        "tie_word_embeddings is true, but lm_head.weight differs",
    ),
}


def refused(source: Path, kind: type[Exception], message: str) -> None:
    """One line, and nothing left behind."""
    out = source.parent / "out.trilobit"
    with pytest.raises(kind, match=message) as caught:
        convert(source, out)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < len(str(source)) + 300
    assert str(source) in str(caught.value)
    assert [path.name for path in source.parent.iterdir()] == [source.name]


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_bad_tensors_are_refused(source: Path, case: str) -> None:
    change, message = BAD_TENSORS[case]
    change_tensors(source, change)
    refused(source, FormatError, message)


def test_a_missing_head_is_refused(source: Path) -> None:
    change_config(source, tie_word_embeddings=False)
    refused(source, FormatError, "lm_head.weight' is missing")


def test_what_the_header_shows_is_refused_before_the_work(source: Path) -> None:
    change_tensors(source, lambda t: t.pop("model.norm.weight"))

    def progress(progress: Progress) -> None:
        raise AssertionError("the work had begun")

    with pytest.raises(FormatError, match=r"model\.norm\.weight' is missing"):
        convert(source, source.parent / "out.trilobit", progress=progress)


def test_codes_and_masters_are_not_mistaken_for_each_other(source: Path) -> None:
    change_config(source, quantization_config={"quantization_mode": "online"})
    refused(source, FormatError, "has packed codes, but quantization_mode is online")
    change_tensors(source, set_(f"{Q_PROJ}.weight", np.ones((60, 60), np.float32)))
    refused(source, FormatError, "has a scale, but quantization_mode is online")
    change_config(source, quantization_config={"quantization_mode": "offline"})
    change_tensors(source, lambda t: t.pop(f"{Q_PROJ}.weight_scale"))
    refused(source, FormatError, "q_proj.weight_scale' is missing")


def test_tensors_that_would_be_ignored_are_refused(source: Path) -> None:
    change_tensors(source, set_("model.layers.0.self_attn.q_proj.bias", np.ones(60, np.float32)))
    refused(source, UnsupportedModel, "q_proj.bias' is not part of a bitnet model")


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"model_type": "mamba"}, "model_type 'mamba' is not supported"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    "biases": ({"attention_bias": True}, "attention_bias is true"),
    "rope": ({"rope_scaling": {"type": "longrope"}}, "rope_type 'longrope'"),
    "method": ({"quantization_config": {"quant_method": "gptq"}}, "quant_method 'gptq'"),
    "class": ({"quantization_config": {"linear_class": "linear"}}, "linear_class 'linear'"),
    "mode": ({"quantization_config": {"quantization_mode": "half"}}, "quantization_mode 'half'"),
    "float projections": (
        {"quantization_config": {"modules_to_not_convert": ["model.layers.0.mlp.up_proj"]}},
        "keeps a projection in float",
    ),
    "class a list": ({"quantization_config": {"linear_class": [1]}}, r"linear_class \[1\]"),
    "mode a number": ({"quantization_config": {"quantization_mode": 1}}, "quantization_mode 1"),
    "method a long text": (
        {"quantization_config": {"quant_method": "x" * 10**6}},
        "quant_method 'x",
    ),
    "quantization a text": ({"quantization_config": "bitnet"}, "quant_method None"),
    "float model": ({"quantization_config": None}, "this is a float model"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_configs_we_cannot_run_are_refused(source: Path, case: str) -> None:
    values, message = BAD_CONFIGS[case]
    change_config(source, **values)
    refused(source, UnsupportedModel, message)


@pytest.mark.parametrize("text", ["", "[", "[]", "\xff", "[" * 100_000])
def test_config_that_is_no_object_is_refused(source: Path, text: str) -> None:
    (source / "config.json").write_bytes(text.encode("latin-1"))
    refused(source, FormatError, "config.json: is not")


def test_a_config_of_wrong_types_is_refused(source: Path) -> None:
    change_config(source, quantization_config={"modules_to_not_convert": 5})
    refused(source, FormatError, "modules_to_not_convert is 5; expected a list")


TEXT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


@pytest.mark.parametrize("name", TEXT_FILES)
@pytest.mark.parametrize("kind", ["a directory", "a pipe", "no text"])
def test_places_of_text_that_hold_none_are_refused(
    source: Path, tokenizer_json: Path, name: str, kind: str
) -> None:
    shutil.copy(tokenizer_json, source / "tokenizer.json")
    path = source / name
    path.unlink(missing_ok=True)
    if kind == "a directory":
        path.mkdir()
    elif kind == "no text":
        path.write_bytes(b"\xff\xfe{\x00}\x00")
    elif hasattr(os, "mkfifo"):
        os.mkfifo(path)
    else:
        pytest.skip("no pipes with names on this system")
    refused(source, FormatError, f"{name}: .*{'not' if kind == 'no text' else kind}")


@contextmanager
def nobody() -> Iterator[None]:
    """Not root, to whom nothing is forbidden."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="no permissions of this kind")
@pytest.mark.parametrize("name", [*TEXT_FILES, "model.safetensors"])
def test_forbidden_files_are_refused(source: Path, tokenizer_json: Path, name: str) -> None:
    with tempfile.TemporaryDirectory() as open_to_all:
        os.chmod(open_to_all, 0o755)
        folder = Path(open_to_all) / "hf"
        shutil.copytree(source, folder)
        shutil.copy(tokenizer_json, folder / "tokenizer.json")
        (folder / name).touch()
        for path in folder.iterdir():
            path.chmod(0 if path.name == name else 0o644)
        with nobody():
            refused(folder, FormatError, rf"{name}: cannot be read \(Permission denied\)")


@settings(max_examples=60)
@given(data=st.data())
def test_any_changed_byte_of_a_text_file_converts_or_is_refused(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("changed")
    for path in checkpoint.iterdir():
        (folder / path.name).symlink_to(path)
    name = data.draw(st.sampled_from(["config.json", "tokenizer.json"]))
    text = bytearray((checkpoint / name).read_bytes())
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    (folder / name).unlink()
    (folder / name).write_bytes(text)
    with suppress(TrilobitError):
        convert(folder, folder / "out.trilobit")
        PackedModel(folder / "out.trilobit").arrays()
    shutil.rmtree(folder)


def test_missing_parts_are_named(source: Path) -> None:
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    refused(source, FormatError, "pickled weights only")
    (source / "pytorch_model.bin").unlink()
    refused(source, FormatError, "no model.safetensors here")
    (source / "config.json").unlink()
    refused(source, FormatError, "has no config.json; give the directory")


def test_shard_outside_the_directory_is_refused(source: Path) -> None:
    (source / "model.safetensors").unlink()
    index = source / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    refused(source, FormatError, "not a plain file name")


def test_missing_shard_is_refused(source: Path) -> None:
    (source / "model.safetensors").unlink()
    index = source / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    refused(source, FormatError, "model-1.safetensors: no such file")


@pytest.mark.parametrize("text", [b"", b"{}", b"\xff\xfe", b'{"model": 3}'])
def test_damaged_tokenizer_is_refused(source: Path, text: bytes) -> None:
    (source / "tokenizer.json").write_bytes(text)
    refused(source, FormatError, "tokenizer.json")


def test_tokenizer_of_another_model_is_refused(source: Path, tokenizer_json: Path) -> None:
    tokenizer = json.loads(tokenizer_json.read_text())
    tokenizer["model"]["vocab"]["zzz"] = 331
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(source, FormatError, "has ids up to 331, the model's vocabulary ends at 330")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"source": None}, "source is None; give the file or folder of a model"),
        ({"source": ""}, "source is ''; give the file or folder of a model"),
        ({"source": "a\0b"}, "not a possible file name"),
        ({"out": None}, "out is None; give the name of a file or folder to be written"),
        ({"out": ""}, "out is ''; give the name"),
        ({"out": "a\0b.trilobit"}, "not a possible file name"),
        ({"to": "gguf-q9"}, "to is 'gguf-q9'; expected one of packed, hf, hf-bf16, gguf"),
        ({"layout": "9-bit"}, "layout is '9-bit'; expected 2-bit, 1.6-bit or auto"),
    ],
)
def test_what_cannot_be_converted_is_told_in_a_line(
    source: Path, tmp_path: Path, given: Any, reason: str
) -> None:
    with pytest.raises(RequestError, match=re.escape(reason)) as error:
        convert(**{"source": source, "out": tmp_path / "m.trilobit"} | given)
    assert "\n" not in str(error.value)
    assert list(tmp_path.glob("*.trilobit")) == []


# ---- the output -------------------------------------------------------------------------------


def test_directory_as_output_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="is a directory; give a file name"):
        convert(source, tmp_path / "folder", "packed")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_the_checkpoint_is_not_overwritten(source: Path, name: str) -> None:
    before = (source / name).read_bytes()
    with pytest.raises(OutputError, match="a file of the checkpoint itself"):
        convert(source, source / name, "packed")
    assert (source / name).read_bytes() == before
    convert(source, source / "model.trilobit")
    convert(source, source / "model.trilobit")


def test_missing_output_folder_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        convert(source, tmp_path / "no" / "out.trilobit")


def test_interrupt_leaves_nothing_and_keeps_the_earlier_file(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.trilobit"
    out.write_text("earlier")

    def interrupt(progress: Progress) -> None:
        if progress.done == progress.total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, out, progress=interrupt)
    assert out.read_text() == "earlier"
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out.trilobit"}


LIMITED = """
import resource, signal, sys
from trilobit import OutputError
from trilobit.conversion import convert
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
try:
    convert(sys.argv[1], sys.argv[2])
except OutputError as error:
    print(error)
"""


def test_full_disk_leaves_nothing(source: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(source), str(tmp_path / "out.trilobit")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "out.trilobit: cannot be written" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


MEASURED = """
import sys
from trilobit.conversion import convert
from trilobit.machine import peak_rss_mb
convert(sys.argv[1], sys.argv[2])
before = peak_rss_mb()
convert(sys.argv[3], sys.argv[4])
print(before, peak_rss_mb())
"""


@pytest.mark.parametrize("form", ["bf16", "packed"])
def test_memory_stays_below_two_layers_and_the_head(tmp_path: Path, form: str) -> None:
    """Forty layers of 6.3 MB as bfloat16, after a tiny model has loaded what convert needs."""
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "head_dim": 64}
    large = tiny_config(num_hidden_layers=40, num_attention_heads=8, vocab_size=4000, **sizes)
    paths = []
    for name, config in (("tiny", tiny_config()), ("large", large)):
        synth(config, tmp_path / name, form=form)  # type: ignore[arg-type]
        paths += [tmp_path / name, tmp_path / f"{name}.trilobit"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = map(float, done.stdout.split())
    layer_mb = 2 * large.ternary_parameters / 40 / 1e6
    head_mb = 2 * large.vocab_size * large.hidden_size / 1e6
    whole_mb = sum(path.stat().st_size for path in (tmp_path / "large").iterdir()) / 1e6
    assert whole_mb > 2 * (2 * layer_mb + head_mb)
    assert after - before < 2 * layer_mb + head_mb


@pytest.mark.parametrize("form", FORMS[:4])
def test_damage_is_not_given_sums_of_its_own(model_file: Path, tmp_path: Path, form: Form) -> None:
    damaged = tmp_path / "damaged.trilobit"
    data = bytearray(model_file.read_bytes())
    info = PackedModel(model_file).file.info("model.norm.weight")
    data[info.begin] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(FormatError, match=r"model\.norm\.weight has changed since .*; copy or"):
        convert(damaged, tmp_path / "out", form)
    assert list(tmp_path.iterdir()) == [damaged]
