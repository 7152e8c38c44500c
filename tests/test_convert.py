"""Checkpoints in, one packed file out: every form, and every way to be bad.

That the codes mean what stock transformers computes is shown by test_parity.py and test_export.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_config
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from trilobit import LLM, FormatError, OutputError, SamplingParams, UnsupportedModel, ternary
from trilobit.convert import convert, pack_hf
from trilobit.formats import names
from trilobit.formats.packed import PackedModel
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
    for name, (rows, columns) in names.all_projections(config):
        tensors[f"{name}.weight"] = pack_hf(random.integers(-1, 2, (rows, columns), dtype=np.int8))
        tensors[f"{name}.weight_scale"] = np.array([random.uniform(0.01, 1)], np.float32)
    for name, length in names.all_norms(config):
        tensors[name] = random.uniform(0.5, 2, length).astype(np.float32)
    table = (config.vocab_size, config.hidden_size)
    tensors[names.EMBEDDING] = random.standard_normal(table).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
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
    shape = dict(names.all_projections(model.config))[name]
    packed = model.file.array(f"{name}.weight")
    return ternary.unpack(packed, *shape), float(model.file.array(f"{name}.weight_scale")[0])


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
            for name, shape in names.all_projections(tiny_config())
        }
        for name, length in names.all_norms(tiny_config()):
            tensors[name] = np.ones(length, type_)
        tensors[names.EMBEDDING] = random.standard_normal((331, 60)).astype(type_)
        save_file(tensors, folder / "model.safetensors")
    convert(folder, tmp_path / "out.trilobit")
    from trilobit.formats.safetensors import SafetensorsFile

    master = SafetensorsFile(folder / "model.safetensors").float32(f"{Q_PROJ}.weight")
    codes, scale = ternary.absmean_ternary(master)
    got, got_scale = codes_and_scale(tmp_path / "out.trilobit")
    assert (got == codes).all()
    assert got_scale == scale
    assert PackedModel(tmp_path / "out.trilobit").file.info(names.EMBEDDING).dtype == dtype


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


def test_configs_of_transformers_4_and_5_are_one(source: Path, tmp_path: Path) -> None:
    change_config(source, rope_theta=12345.0)
    assert convert(source, tmp_path / "4").rope_theta == 12345
    change_config(source, rope_theta=None)
    change_config(source, rope_parameters={"rope_type": "default", "rope_theta": 12345.0})
    convert(source, tmp_path / "5")
    assert (tmp_path / "4").read_bytes() == (tmp_path / "5").read_bytes()


def test_untied_head_is_kept_apart(source: Path, tmp_path: Path) -> None:
    head = np.random.default_rng(5).standard_normal((331, 60)).astype(np.float32)
    change_tensors(source, lambda t: t.update({names.HEAD: head}))
    change_config(source, tie_word_embeddings=False)
    convert(source, tmp_path / "out.trilobit")
    assert (PackedModel(tmp_path / "out.trilobit").file.array(names.HEAD) == head).all()


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
    "scale_missing": (lambda t: t.pop(f"{Q_PROJ}.weight_scale"), "weight_scale' is missing"),
    "code_3": (code_3, "weight code 3"),
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
    "integer_embedding": (set_(names.EMBEDDING, np.zeros((331, 60), np.int32)), "expected a float"),
    "other_head_though_tied": (
        set_(names.HEAD, np.ones((331, 60), np.float32)),
        "tie_word_embeddings is true, but lm_head.weight differs",
    ),
}


def refused(source: Path, kind: type[Exception], message: str) -> None:
    """One line, and nothing left behind."""
    out = source.parent / "out.trilobit"
    with pytest.raises(kind, match=message) as caught:
        convert(source, out)
    assert "\n" not in str(caught.value)
    assert str(source) in str(caught.value)
    assert [path.name for path in source.parent.iterdir()] == [source.name]


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_bad_tensors_are_refused(source: Path, case: str) -> None:
    change, message = BAD_TENSORS[case]
    change_tensors(source, change)
    refused(source, FormatError, message)


def test_tensors_that_would_be_ignored_are_refused(source: Path) -> None:
    change_tensors(source, set_("model.layers.0.self_attn.q_proj.bias", np.ones(60, np.float32)))
    refused(source, UnsupportedModel, "q_proj.bias' is not part of a BitNet model")


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"model_type": "mamba"}, "model_type 'mamba' is not supported"),
    "activation": ({"hidden_act": "silu"}, "hidden_act 'silu'"),
    "biases": ({"attention_bias": True}, "attention_bias is true"),
    "rope": ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_type 'yarn'"),
    "method": ({"quantization_config": {"quant_method": "gptq"}}, "quant_method 'gptq'"),
    "class": ({"quantization_config": {"linear_class": "linear"}}, "linear_class 'linear'"),
    "mode": ({"quantization_config": {"quantization_mode": "half"}}, "quantization_mode 'half'"),
    "norms": ({"quantization_config": {"use_rms_norm": True}}, "use_rms_norm"),
    "float projections": (
        {"quantization_config": {"modules_to_not_convert": ["model.layers.0.mlp.up_proj"]}},
        "keeps a projection in float",
    ),
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
    refused(source, FormatError, "config.json: not")


def test_missing_parts_are_named(source: Path) -> None:
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    refused(source, FormatError, "pickled weights only")
    (source / "pytorch_model.bin").unlink()
    refused(source, FormatError, "no model.safetensors here")
    (source / "config.json").unlink()
    refused(source, FormatError, "config.json: missing; give the directory")


def test_shard_outside_the_directory_is_refused(source: Path) -> None:
    index = source / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    refused(source, FormatError, "not a plain file name")


def test_missing_shard_is_refused(source: Path) -> None:
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


# ---- the output -------------------------------------------------------------------------------


def test_directory_as_output_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="is a directory; give a file name"):
        convert(source, tmp_path / "folder")


def test_missing_output_folder_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        convert(source, tmp_path / "no" / "out.trilobit")


def test_interrupt_leaves_nothing_and_keeps_the_earlier_file(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.trilobit"
    out.write_text("earlier")

    def interrupt(done: int, total: int) -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, out, progress=interrupt)
    assert out.read_text() == "earlier"
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out.trilobit"}


LIMITED = """
import resource, signal, sys
from trilobit import OutputError
from trilobit.convert import convert
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
from trilobit.convert import convert
from trilobit.engine.machine import peak_rss_mb
convert(sys.argv[1], sys.argv[2])
before = peak_rss_mb()
convert(sys.argv[3], sys.argv[4])
print(before, peak_rss_mb())
"""


def test_memory_does_not_grow_with_the_number_of_layers(tmp_path: Path) -> None:
    """Two layers against forty, of 6.3 MB each as bfloat16: at most two layers more memory."""
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "head_dim": 64}
    paths = []
    for layers in (2, 40):
        config = tiny_config(num_hidden_layers=layers, num_attention_heads=8, **sizes)
        synth(config, tmp_path / str(layers), form="bf16")
        paths += [tmp_path / str(layers), tmp_path / f"{layers}.trilobit"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = map(float, done.stdout.split())
    layer_mb = 2 * config.ternary_parameters / 40 / 1e6
    assert (tmp_path / "40" / "model.safetensors").stat().st_size > 30 * layer_mb * 1e6
    assert after - before < 2 * layer_mb
