"""GGUF files as the converters out there write them, with the gguf package's own writer.

Keys, their order, types of tensors and what is left out are those of published files, as
llama.cpp lists them when it loads one; only sizes are small.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from conftest import TEXT
from gguf.gguf_writer import TensorInfo
from gguf_models import RandomSource, floats, gguf_name, interleaved, packed, whole_config
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

from trilobit import LLM, Embedder, UnsupportedModel
from trilobit.conversion import convert
from trilobit.formats.dtypes import as_float32
from trilobit.formats.gguf import types
from trilobit.formats.gguf.reader import GGUFModel
from trilobit.formats.gguf.writer import write_gguf
from trilobit.formats.pooling import Pooling
from trilobit.formats.text_files import TextFiles
from trilobit.model import tensor_names
from trilobit.model.config import ModelConfig
from trilobit.model.rope import scaling_from_dict
from trilobit.text.tokenizer import Tokenizer

BOS, EOS = "<|begin_of_text|>", "<|eot_id|>"
# The template that bitnet.cpp's converter put into the official 2B-4T file begins so.
OLD_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{{ message['content'] }}{% endfor %}{{ 'BITNETAssistant: ' }}"
)
LLAMA3 = scaling_from_dict(
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
)


def byte_level() -> Library:
    """Tokens and merges of the kind that Llama 3, Falcon and Qwen have."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=310,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    library.train_from_iterator([TEXT], trainer)
    library.add_special_tokens([BOS, EOS])
    return library


LIBRARY = byte_level()


def vocabulary(config: ModelConfig) -> tuple[list[str], list[int], list[str]]:
    """Tokens padded to the model's vocabulary, their types, and merges."""
    of_id = {i: token for token, i in LIBRARY.get_vocab().items()}
    tokens = [of_id.get(i, f"[PAD{i}]") for i in range(config.vocab_size)]
    control, unused, normal = gguf.TokenType.CONTROL, gguf.TokenType.UNUSED, gguf.TokenType.NORMAL
    kinds = [
        int(unused if i not in of_id else control if of_id[i] in (BOS, EOS) else normal)
        for i in range(config.vocab_size)
    ]
    state = json.loads(LIBRARY.to_str())
    return tokens, kinds, [" ".join(merge) for merge in state["model"]["merges"]]


def add_text(writer: gguf.GGUFWriter, config: ModelConfig, pre: str | None) -> None:
    tokens, kinds, merges = vocabulary(config)
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index(BOS))
    writer.add_eos_token_id(tokens.index(EOS))


def add_shape(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)


def add_raw(
    writer: gguf.GGUFWriter,
    name: str,
    shape: tuple[int, ...],
    kind: int,
    data: np.ndarray[Any, Any],
) -> None:
    """A tensor of any type: the package does not know those of bitnet.cpp."""
    if not writer.tensors:
        writer.tensors.append({})
    writer.tensors[0][name] = TensorInfo(shape, kind, data.nbytes, data)  # type: ignore[arg-type]


def add_model(
    writer: gguf.GGUFWriter, source: RandomSource, ternary: int, table: int, norm: int = types.F32
) -> None:
    config = source.config
    for name, shape in tensor_names.all_projections(config):
        values = floats(source, name)
        if writer.arch == "llama" and name.endswith(("q_proj", "k_proj")):
            values = interleaved(values, config.head_dim)
        add_raw(writer, f"{gguf_name(name)}.weight", shape, ternary, packed(ternary, values))
    for name, length in tensor_names.all_norms(config):
        stored = f"{gguf_name(name.removesuffix('.weight'))}.weight"
        add_raw(writer, stored, (length,), norm, packed(norm, source.gain(name)))
    for name in tensor_names.float_tables(config):
        values = as_float32(source.table(name)[:], source.float_dtype)
        stored = f"{gguf_name(name.removesuffix('.weight'))}.weight"
        add_raw(writer, stored, values.shape, table, packed(table, values))


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def official_2b4t(path: Path) -> RandomSource:
    """microsoft/bitnet-b1.58-2B-4T-gguf: no pre-tokenizer, scores beside merges, old template."""
    source = RandomSource(whole_config(eos_token_ids=(1,)))
    writer = gguf.GGUFWriter(path, "bitnet-b1.58")
    writer.add_name("bitnet2b")
    add_shape(writer, source.config)
    writer.add_add_bos_token(True)
    writer.add_file_type(40)
    add_text(writer, source.config, None)
    writer.add_token_scores([0.0] * source.config.vocab_size)
    writer.add_pad_token_id(1)
    writer.add_chat_template(OLD_TEMPLATE)
    writer.add_quantization_version(2)
    add_model(writer, source, types.I2_S, types.F16)
    finish(writer)
    return source


def falcon_e(path: Path) -> RandomSource:
    """tiiuae/Falcon-E-1B-Instruct-GGUF: Llama's shape, a pre-tokenizer of its own name."""
    config = whole_config(
        hidden_act="silu", sub_norms=False, tie_word_embeddings=False, rms_norm_eps=1e-6
    )
    source = RandomSource(config)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Falcon-E-1B-Instruct")
    add_shape(writer, config)
    writer.add_file_type(40)
    add_text(writer, config, "falcon_e")
    writer.add_chat_template("{{ messages[0]['content'] }}")
    writer.add_quantization_version(2)
    add_model(writer, source, types.I2_S, types.F16)
    finish(writer)
    return source


def llama_cpp(path: Path) -> RandomSource:
    """A Llama 3.1 by llama.cpp's convert_hf_to_gguf.py --outtype tq2_0, with all it adds."""
    config = whole_config(
        hidden_act="silu",
        sub_norms=False,
        tie_word_embeddings=False,
        rope_theta=500000.0,
        rope_scaling=LLAMA3,
    )
    source = RandomSource(config)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("model")
    writer.add_name("Llama3 8B 1.58 100B Tokens")
    writer.add_basename("Llama3")
    writer.add_size_label("8B")
    writer.add_license("llama3")
    writer.add_tags(["1.58", "text-generation"])
    writer.add_languages(["en"])
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, "Meta Llama 3 8B Instruct")
    add_shape(writer, config)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_file_type(37)
    add_text(writer, config, "llama-bpe")
    writer.add_quantization_version(2)
    writer.add_custom_alignment(64)
    add_model(writer, source, types.TQ2_0, types.F16)
    plain = 500000.0 ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
    assert LLAMA3 is not None
    factors = (plain / LLAMA3.apply(plain, 500000.0)).astype("<f4")
    add_raw(writer, "rope_freqs.weight", factors.shape, types.F32, factors)
    finish(writer)
    return source


def embedding(path: Path, pooling: gguf.PoolingType = gguf.PoolingType.LAST) -> RandomSource:
    """BitNet-embedding-0.6B by bitnet.cpp's converter: every gain in F16, no head, EOS added."""
    config = whole_config(
        hidden_act="silu", sub_norms=False, qk_norms=True, projection_norm_eps=1e-5
    )
    source = RandomSource(config)
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_name("bitnet-embeddings-0.6b")
    add_shape(writer, config)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_file_type(40)
    writer.add_pooling_type(pooling)
    add_text(writer, config, "qwen2")
    writer.add_add_eos_token(True)
    add_model(writer, source, types.I2_S, types.F16, types.F16)
    finish(writer)
    return source


FILES: dict[str, Callable[[Path], RandomSource]] = {
    "official 2B-4T": official_2b4t,
    "Falcon-E": falcon_e,
    "llama.cpp": llama_cpp,
    "embedding": embedding,
}


@pytest.mark.parametrize("kind", FILES)
def test_a_converter_s_file_is_the_model_it_was_made_of(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.gguf"
    source = FILES[kind](path)
    model = GGUFModel(path)
    for field in ("hidden_act", "sub_norms", "qk_norms", "projection_norm_eps", "rope_scaling"):
        assert getattr(model.config, field) == getattr(source.config, field), field
    assert model.config.tie_word_embeddings == source.config.tie_word_embeddings
    for name, _ in tensor_names.all_projections(source.config):
        codes, scale = model.projection(name)
        expected, expected_scale = source.projection(name)
        np.testing.assert_array_equal(codes, expected, name)
        np.testing.assert_array_equal(scale, expected_scale, name)
    for name, _ in tensor_names.all_norms(source.config):
        stored_as_float16 = kind == "embedding"
        gain = source.gain(name)
        expected_gain = gain.astype(np.float16) if stored_as_float16 else gain
        np.testing.assert_array_equal(model.gain(name), expected_gain.astype(np.float32), name)
    data = model.text.tokenizer
    assert data is not None
    tokenizer = Tokenizer(data, kind)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.encode(f"a{EOS}", special=True)[-1] == tokenizer.token_id(EOS)


def test_the_official_2b4t_file_chats_as_its_repository_says(tmp_path: Path) -> None:
    official_2b4t(tmp_path / "model.gguf")
    convert(tmp_path / "model.gguf", tmp_path / "model.trilobit")
    model = LLM(tmp_path / "model.trilobit")
    user = {"role": "user", "content": " Hi "}
    template = GGUFModel(tmp_path / "model.gguf").text.chat_template
    assert template is not None
    ids = model.tokenizer.encode_chat(template, [user])
    assert model.tokenizer.decode(ids) == "User: HiAssistant: "
    assert ids.count(model.tokenizer.token_id(EOS)) == 1


def test_falcon_e_splits_digits_by_three_as_llama_3_does(tmp_path: Path) -> None:
    """Falcon-E's tokenizer is Falcon-H1's: converters know both by the same hash of their ids."""
    falcon_e(tmp_path / "model.gguf")
    data = GGUFModel(tmp_path / "model.gguf").text.tokenizer
    assert data is not None
    splits = Library.from_str(data.decode()).pre_tokenizer.pre_tokenize_str("12345 DON'T")
    assert [text for text, _ in splits] == ["123", "45", "ĠDON", "'T"]


def test_an_embedding_model_pools_as_its_file_says(tmp_path: Path) -> None:
    embedding(tmp_path / "model.gguf")
    read = GGUFModel(tmp_path / "model.gguf").text
    assert read.tokenizer is not None
    end = Tokenizer(read.tokenizer, "read").token_id(EOS)
    assert end is not None
    assert read.pooling == Pooling(mode="last", end_ids=(end,))
    convert(tmp_path / "model.gguf", tmp_path / "model.trilobit")
    embedder = Embedder(tmp_path / "model.trilobit")
    assert embedder.pooling == read.pooling
    assert np.isfinite(embedder.encode(["a red ball"])).all()


def test_pooling_goes_into_a_gguf_and_back(tmp_path: Path) -> None:
    embedding(tmp_path / "model.gguf")
    source = RandomSource(GGUFModel(tmp_path / "model.gguf").config)
    for mode, end_ids in (("mean", ()), ("last", (1,)), ("mean", (1,))):
        pooling = Pooling(mode=mode, end_ids=end_ids)  # type: ignore[arg-type]
        source.text = TextFiles(tokenizer=LIBRARY.to_str().encode(), pooling=pooling)
        source.config = replace(source.config, eos_token_ids=(1,))
        write_gguf(source, tmp_path / "written.gguf")
        assert GGUFModel(tmp_path / "written.gguf").text.pooling == pooling


def test_other_ways_to_pool_are_refused(tmp_path: Path) -> None:
    embedding(tmp_path / "model.gguf", gguf.PoolingType.CLS)
    with pytest.raises(UnsupportedModel, match="pooling_type is 2; Trilobit pools by"):
        _ = GGUFModel(tmp_path / "model.gguf").text
