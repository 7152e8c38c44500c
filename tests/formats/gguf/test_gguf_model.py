"""A GGUF file converts to the packed file of the checkpoint that it was made from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner
from gguf_image import F32, STRING, U32, array, pair, scalar
from gguf_models import RandomSource, tokens, whole_config, write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trilobit import LLM, FormatError, SamplingParams, UnsupportedModel
from trilobit.cli.info import command as info
from trilobit.conversion import convert
from trilobit.formats.dtypes import as_float32
from trilobit.formats.gguf import types
from trilobit.formats.gguf.container import GGUFFile
from trilobit.formats.gguf.reader import GGUFModel
from trilobit.formats.hf.reader import BitNetCheckpoint
from trilobit.formats.open import open_source
from trilobit.formats.packed.reader import PackedModel
from trilobit.formats.source import Source
from trilobit.model import tensor_names
from trilobit.model.rope import LinearScaling, Llama3Scaling, YarnScaling, frequencies
from trilobit.synth import synth


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> BitNetCheckpoint:
    """Random packed weights whose rows fill whole blocks, tables in bfloat16."""
    folder = tmp_path_factory.mktemp("gguf") / "source"
    synth(whole_config(), folder, seed=5)
    return BitNetCheckpoint(folder)


def arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    return PackedModel(path).arrays()


@pytest.mark.parametrize("ternary", [types.I2_S, types.TQ1_0, types.TQ2_0])
def test_gguf_becomes_the_packed_file_of_its_checkpoint(
    tmp_path: Path, source: BitNetCheckpoint, ternary: int
) -> None:
    write_gguf(tmp_path / "m.gguf", source, ternary=ternary, table=types.BF16)
    convert(tmp_path / "m.gguf", tmp_path / "from_gguf.trilobit")
    convert(source.directory, tmp_path / "from_hf.trilobit")
    ours, theirs = arrays(tmp_path / "from_gguf.trilobit"), arrays(tmp_path / "from_hf.trilobit")
    assert list(ours) == list(theirs)
    for name, array_ in ours.items():
        expected = theirs[name]
        if name.endswith("weight_scale") and ternary != types.I2_S:
            expected = expected.astype(np.float16).astype(np.float32)  # as the type has them
        assert np.array_equal(array_, expected), name
    config = PackedModel(tmp_path / "from_gguf.trilobit").config
    assert config == replace(source.config, bos_token_id=None, eos_token_ids=())


# The gguf package reads Q4_K and Q6_K but does not write them; test_gguf_types.py has them.
@pytest.mark.parametrize("table", [t for t in types.FLOATS if t not in (types.Q4_K, types.Q6_K)])
def test_tables_become_the_floats_of_the_gguf_package(
    tmp_path: Path, source: BitNetCheckpoint, table: int
) -> None:
    write_gguf(tmp_path / "m.gguf", source, table=table)
    convert(tmp_path / "m.gguf", tmp_path / "m.trilobit")
    packed = PackedModel(tmp_path / "m.trilobit")
    info = packed.file.info(tensor_names.EMBEDDING)
    assert info.dtype == {types.F16: "F16", types.BF16: "BF16"}.get(table, "F32")
    model = GGUFModel(tmp_path / "m.gguf")
    block = types.TYPES[table]
    data = model.file.data("token_embd.weight").reshape(320, -1, block.block_bytes)
    kind = gguf.GGMLQuantizationType(table)
    expected = gguf.dequantize(data.reshape(320, -1), kind).astype(np.float32)
    assert np.array_equal(
        as_float32(packed.file.array(tensor_names.EMBEDDING), info.dtype), expected
    )


def test_a_converted_gguf_runs(tmp_path: Path, source: BitNetCheckpoint) -> None:
    write_gguf(tmp_path / "m.gguf", source, table=types.BF16)
    convert(tmp_path / "m.gguf", tmp_path / "a.trilobit")
    convert(source.directory, tmp_path / "b.trilobit")
    params = SamplingParams(max_tokens=8, temperature=0)
    texts = [
        LLM(tmp_path / name, threads=1).generate([5, 6, 7], params).token_ids
        for name in ("a.trilobit", "b.trilobit")
    ]
    assert texts[0] == texts[1]


def test_a_gguf_runs_where_it_lies(
    tmp_path: Path, source: BitNetCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRILOBIT_HOME", str(tmp_path / "home"))
    path = tmp_path / "m.gguf"
    write_gguf(path, source)
    first = LLM(path, threads=1).logits([5, 6, 7])
    convert(path, tmp_path / "m.trilobit")
    assert np.array_equal(first, LLM(tmp_path / "m.trilobit", threads=1).logits([5, 6, 7]))


def facts(path: Path) -> dict[str, object]:
    result = CliRunner().invoke(info, [str(path), "--json"])
    assert result.exit_code == 0, result.output
    read: dict[str, object] = json.loads(result.stdout)
    return read


def test_info_explains_a_gguf_from_its_header(tmp_path: Path, source: BitNetCheckpoint) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, source)
    told = facts(path)
    assert told["kind"] == "gguf"
    assert told["architecture"] == "bitnet-b1.58"
    assert told["parameters"] == source.config.parameters
    assert told["bits_per_ternary_weight"] == pytest.approx(2, abs=0.01)  # and 32 bytes a tensor
    parts = told["bytes_by_part"]
    assert isinstance(parts, dict)
    assert sum(parts.values()) == path.stat().st_size
    assert parts["embedding"] == 320 * 256 * 2
    lines = CliRunner().invoke(info, [str(path)]).stdout
    assert "GGUF file" in lines
    assert f"Pack it: trilobit convert {path} m.trilobit" in lines


def test_a_name_from_the_file_is_printable(tmp_path: Path, source: BitNetCheckpoint) -> None:
    path = tmp_path / "m.gguf"
    name = pair("general.name", scalar(STRING, "\x1b[31mred\nline" + "x" * 5000))
    write_gguf(path, source, left_out=("general.name",), more=[name])
    assert GGUFModel(path).label.isprintable()
    assert len(GGUFModel(path).label) == 200
    assert CliRunner().invoke(info, [str(path)]).stdout.count("red") == 1
    assert "\x1b" not in CliRunner().invoke(info, [str(path)]).stdout


def test_info_reads_no_data(tmp_path: Path, source: BitNetCheckpoint) -> None:
    """Codes that are none: info does not see them, convert does."""
    path = tmp_path / "m.gguf"
    write_gguf(path, source)
    begin = GGUFFile(path).info("blk.0.attn_q.weight").begin
    content = path.read_bytes()
    path.write_bytes(content[:begin] + b"\xff" * (len(content) - begin))
    assert facts(path)["parameters"] == source.config.parameters


def test_info_explains_a_model_that_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, RandomSource(whole_config()), "mamba", ternary=types.Q8_0)
    told = facts(path)
    assert str(told["not_run"]).startswith("architecture 'mamba' is not supported")
    assert told["bytes_by_dtype"]
    assert "Trilobit does not run it: architecture" in CliRunner().invoke(info, [str(path)]).stdout


# ---- families -----------------------------------------------------------------------------------

GEMMA = {
    "hidden_act": "gelu_pytorch_tanh",
    "sub_norms": False,
    "qk_norms": True,
    "post_norms": True,
    "embedding_scale": 16.0,
    "query_pre_attn_scalar": 64.0,
    "num_hidden_layers": 7,
    "layer_types": ("sliding_attention",) * 5 + ("full_attention", "sliding_attention"),
    "sliding_window": 32,
    "rope_local_base_freq": 10000.0,
    "rope_theta": 1000000.0,
}
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "1bitLLM": ("bitnet", {"hidden_act": "silu"}),
    "first 2B": ("bitnet-25", {}),
    "2B-4T": ("bitnet-b1.58", {}),
    "llama": ("llama", {"hidden_act": "silu", "sub_norms": False, "tie_word_embeddings": False}),
    "qwen3": ("qwen3", {"hidden_act": "silu", "sub_norms": False, "qk_norms": True}),
    "qwen3 embedding": (
        "qwen3",
        {"hidden_act": "silu", "sub_norms": False, "qk_norms": True, "projection_norm_eps": 1e-5},
    ),
    "gemma3": ("gemma3", GEMMA),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_is_read_as_it_was(tmp_path: Path, family: str) -> None:
    architecture, changes = FAMILIES[family]
    source = RandomSource(whole_config(**changes))
    write_gguf(tmp_path / "m.gguf", source, architecture)
    model = open_source(tmp_path / "m.gguf")
    assert model.config == replace(source.config, bos_token_id=None, eos_token_ids=())
    assert_same(model, source)


def assert_same(model: Source, source: Source) -> None:
    """Codes, scales, gains and tables, all equal."""
    for name, _ in tensor_names.all_projections(source.config):
        for ours, theirs in zip(model.projection(name), source.projection(name), strict=True):
            assert np.array_equal(ours, theirs), name
    for name, _ in tensor_names.all_norms(source.config):
        assert np.array_equal(model.gain(name), source.gain(name)), name
    for name in tensor_names.float_tables(source.config):
        assert np.array_equal(model.table(name)[:], source.table(name)[:]), name


# ---- scales -------------------------------------------------------------------------------------


def test_scales_of_rows_and_groups_are_found(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for scales, ternary in [("row", types.IQ2_BN), ("group", types.Q2_0)]:
        source = RandomSource(whole_config(scales=scales))
        for name, _ in tensor_names.all_projections(source.config):  # a row of zeros has no scale
            codes, sizes = source.projection(name)
            codes[3], sizes[3] = 0, 0
        write_gguf(path, source, ternary=ternary)
        model = GGUFModel(path)
        assert model.config.scales == scales
        assert model.shape.scales == "tensor"
        assert_same(model, source)
        convert(path, tmp_path / "m.trilobit")
        assert PackedModel(tmp_path / "m.trilobit").config.scales == scales


@pytest.mark.parametrize("ternary", [types.IQ2_BN, types.Q2_0, types.TQ1_0])
def test_one_scale_everywhere_is_the_scale_of_the_tensor(tmp_path: Path, ternary: int) -> None:
    source = RandomSource(whole_config())
    codes, _ = source.projection("model.layers.1.mlp.up_proj")
    codes[5] = 0
    write_gguf(tmp_path / "m.gguf", source, ternary=ternary)
    model = GGUFModel(tmp_path / "m.gguf")
    assert model.config.scales == "tensor"
    assert_same(model, source)


def test_blocks_of_256_become_two_groups_of_128(tmp_path: Path) -> None:
    source = RandomSource(whole_config(scales="group"))
    for name, _ in tensor_names.all_projections(source.config):
        scales = source.projection(name)[1]
        scales[:, 1::2] = scales[:, ::2]
    write_gguf(tmp_path / "m.gguf", source, ternary=types.TQ2_0)
    model = GGUFModel(tmp_path / "m.gguf")
    assert model.config.scales == "group"
    assert_same(model, source)


def test_ternary_tables_are_read(tmp_path: Path) -> None:
    source = RandomSource(whole_config(scales="group", ternary_embeddings=True))
    write_gguf(tmp_path / "m.gguf", source, ternary=types.Q2_0)
    model = GGUFModel(tmp_path / "m.gguf")
    assert model.config.ternary_embeddings
    assert model.float_dtype == "F16"
    assert_same(model, source)


def test_a_scale_beside_the_tensor_multiplies(tmp_path: Path, source: BitNetCheckpoint) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, source, beside={"blk.1.ffn_up.scale": 0.5})
    name = "model.layers.1.mlp.up_proj"
    codes, scale = GGUFModel(path).projection(name)
    assert scale == source.projection(name)[1] / 2
    assert np.array_equal(codes, source.projection(name)[0])


# ---- what the keys say --------------------------------------------------------------------------

SCALED = {
    "linear": (
        [pair("llama.rope.scaling.type", scalar(STRING, "linear")),
         pair("llama.rope.scaling.factor", scalar(F32, 4.0))],
        LinearScaling(factor=4.0),
    ),
    "none": ([pair("llama.rope.scaling.type", scalar(STRING, "none"))], None),
    "yarn": (
        [pair("llama.rope.scaling.type", scalar(STRING, "yarn")),
         pair("llama.rope.scaling.factor", scalar(F32, 4.0)),
         pair("llama.rope.scaling.original_context_length", scalar(U32, 64))],
        YarnScaling(
            factor=4.0,
            original_max_position_embeddings=64,
            attention_factor=YarnScaling.default_attention_factor(4.0),
        ),
    ),
}  # fmt: skip
LLAMA = {"hidden_act": "silu", "sub_norms": False}


@pytest.mark.parametrize("kind", SCALED)
def test_rope_scaling_is_read(tmp_path: Path, kind: str) -> None:
    more, expected = SCALED[kind]
    write_gguf(tmp_path / "m.gguf", RandomSource(whole_config(**LLAMA)), "llama", more=more)
    assert GGUFModel(tmp_path / "m.gguf").config.rope_scaling == expected


def test_llama_3_scaling_is_known_by_its_factors(tmp_path: Path) -> None:
    scaling = Llama3Scaling(
        factor=32.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    path, source = tmp_path / "m.gguf", RandomSource(whole_config(**LLAMA, rope_theta=500000.0))
    plain = frequencies(64, 500000.0)
    factors = plain / scaling.apply(plain, 500000.0)
    write_gguf(path, source, "llama", beside={"rope_freqs.weight": factors})
    assert GGUFModel(path).config.rope_scaling == scaling
    write_gguf(path, source, "llama", beside={"rope_freqs.weight": np.ones(32)})
    assert GGUFModel(path).config.rope_scaling is None
    write_gguf(path, source, "llama", beside={"rope_freqs.weight": factors + 0.1})
    with pytest.raises(UnsupportedModel, match="none of the scalings of Llama 3"):
        GGUFModel(path)


# ---- mutations ----------------------------------------------------------------------------------


def small(path: Path) -> bytes:
    """A whole model of a few kilobytes, with a tokenizer."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 8}
    words = ["<s>", "</s>", "a", "b", "ab"]
    more = tokens(words, ["a b"], [0, 1])
    more += [pair("tokenizer.chat_template", scalar(STRING, "{{ messages }}"))]
    source = RandomSource(whole_config(**sizes, vocab_size=16))
    write_gguf(path, source, ternary=types.I2_S, more=more)
    return path.read_bytes()


def read_model(path: Path) -> None:
    """Everything that conversion reads."""
    model = open_source(path)
    assert model.config.vocab_size <= path.stat().st_size
    assert model.text.add_bos in (True, False)
    for name, _ in tensor_names.all_projections(model.config):
        codes, scales = model.projection(name)
        assert np.abs(codes).max() <= 1
        assert np.isfinite(scales).all()
    for name, _ in tensor_names.all_norms(model.config):
        assert np.isfinite(model.gain(name)).all()
    for name in tensor_names.float_tables(model.config):
        assert np.isfinite(as_float32(model.table(name)[:], model.float_dtype)).all()


def test_the_model_to_be_mutated_is_sound(tmp_path: Path) -> None:
    small(tmp_path / "m.gguf")
    read_model(tmp_path / "m.gguf")


@given(data=st.data())
@settings(max_examples=150)
def test_a_mutated_model_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated_model.gguf"
    content = bytearray(small(path))
    header = content.index(b"token_embd") + 500  # the rest is data, where most bytes are sound
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, header))
        if data.draw(st.booleans()):
            content[at] = data.draw(st.integers(0, 255))
        else:
            number = data.draw(st.sampled_from([0, 1, 7, 1 << 31, (1 << 64) - 1]))
            content[at : at + 8] = number.to_bytes(8, "little")
    path.write_bytes(content)
    try:
        read_model(path)
    except (FormatError, UnsupportedModel) as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017
        assert str(error).isprintable()  # noqa: PT017


# ---- refusals -----------------------------------------------------------------------------------


def test_models_that_do_not_add_up_are_refused_by_name(tmp_path: Path) -> None:
    path, config = tmp_path / "m.gguf", whole_config()
    source = RandomSource(config)
    llama = RandomSource(whole_config(**LLAMA))
    gemma = RandomSource(whole_config(**GEMMA))

    def refusal(kind: type[Exception] | tuple[type[Exception], ...]) -> str:
        with pytest.raises(kind) as error:
            GGUFModel(path).projection("model.layers.0.mlp.up_proj")
        assert str(error.value).startswith(f"{path}: ")
        assert str(error.value).isprintable()
        return str(error.value)

    write_gguf(path, source, "mamba")
    assert "architecture 'mamba' is not supported; supported: bitnet," in refusal(UnsupportedModel)
    write_gguf(path, source, "llama")
    assert "'blk.0.attn_sub_norm.weight' is not part of" in refusal(UnsupportedModel)
    write_gguf(path, llama)
    assert "tensor 'blk.0.attn_sub_norm.weight' is missing" in refusal(FormatError)
    write_gguf(path, source, left_out=("block_count",))
    assert "'bitnet-b1.58.block_count' is missing" in refusal(FormatError)
    write_gguf(path, source, left_out=("general.architecture",))
    assert "'general.architecture' is missing" in refusal(FormatError)
    write_gguf(path, source, left_out=("output_norm",))
    assert "tensor 'output_norm.weight' is missing" in refusal(FormatError)
    write_gguf(path, source, left_out=("token_embd",))
    assert "tensor 'token_embd.weight' is missing" in refusal(FormatError)
    write_gguf(path, source, ternary=types.F16)
    assert "is F16; supported there: I2_S, TQ1_0" in refusal(UnsupportedModel)
    write_gguf(path, gemma, "gemma3", left_out=("attention.sliding_window",))
    assert "sliding_window' is missing, so nothing tells" in refusal(UnsupportedModel)
    write_gguf(path, source, more=[pair("split.count", scalar(U32, 3))])
    assert "one of 3 parts; join them" in refusal(UnsupportedModel)
    changed = {
        "attention.head_count_kv": (array(U32, [4, 2]), "head_count_kv' differs from layer to"),
        "feed_forward_length": (scalar(U32, 768), "the keys ask for"),
        "attention.layer_norm_rms_epsilon": (scalar(F32, -1.0), "rms_norm_eps is -1.0"),
        "rope.dimension_count": (scalar(U32, 32), "dimension_count is 32, heads have 64"),
    }
    for key, (value, message) in changed.items():
        more = [pair(f"bitnet-b1.58.{key}", value)]
        write_gguf(path, source, left_out=(key,), more=more)
        assert message in refusal((FormatError, UnsupportedModel))
    write_gguf(path, source, beside={"blk.0.ffn_up.scale": np.ones(2)})
    assert "'blk.0.ffn_up.scale' is F32 [2]; expected F32 [1]" in refusal(FormatError)
    write_gguf(path, source, beside={"blk.0.ffn_up.scale": float("inf")})
    assert "the scale of 'blk.0.ffn_up.weight' is inf" in refusal(FormatError)
    name = "model.layers.0.mlp.up_proj"
    source.projection(name)[0][:] = 1
    source.projection(name)[1][:] = np.inf
    write_gguf(path, source)
    assert "'blk.0.ffn_up.weight': a scale is negative, infinite or NaN" in refusal(FormatError)


def test_code_3_is_refused_with_its_tensor(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, RandomSource(whole_config()))
    model = GGUFModel(path)
    content = bytearray(path.read_bytes())
    content[model.file.info("blk.1.attn_k.weight").begin + 7] = 0xFF
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"'blk\.1\.attn_k\.weight': a weight has code 3"):
        convert(path, tmp_path / "m.trilobit")
    assert not (tmp_path / "m.trilobit").exists()


def test_a_matrix_of_zeros_has_the_smallest_scale(tmp_path: Path) -> None:
    source = RandomSource(whole_config())
    source.projection("model.layers.0.mlp.up_proj")[0][:] = 0
    write_gguf(tmp_path / "m.gguf", source)
    codes, scale = GGUFModel(tmp_path / "m.gguf").projection("model.layers.0.mlp.up_proj")
    assert not codes.any()
    assert scale == np.float32(1e-5)


def test_tables_with_nan_are_refused(tmp_path: Path) -> None:
    source = RandomSource(whole_config())
    source.table(tensor_names.EMBEDDING)[7, 9] = np.nan
    write_gguf(tmp_path / "m.gguf", source)
    with pytest.raises(FormatError, match=r"'token_embd\.weight' holds NaN"):
        convert(tmp_path / "m.gguf", tmp_path / "m.trilobit")
