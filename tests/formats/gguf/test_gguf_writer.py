"""What is written as GGUF reads back, by us and by the gguf package, and is whole or not there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner
from gguf_models import RandomSource, floats, gguf_name, interleaved, whole_config
from gguf_models import write_gguf as as_converter
from test_gguf_model import FAMILIES, GEMMA, LLAMA, assert_same

from trilobit import OutputError, UnsupportedModel
from trilobit.bundled import DEFAULT, bundled_models
from trilobit.cli.convert import command
from trilobit.conversion import convert
from trilobit.formats.gguf.reader import GGUFModel
from trilobit.formats.gguf.ternary_blocks import I2SLayout
from trilobit.formats.gguf.writer import GGUFType, write_gguf
from trilobit.formats.hf.reader import BitNetCheckpoint
from trilobit.formats.open import open_source
from trilobit.formats.packed.reader import PackedModel
from trilobit.formats.source import Source
from trilobit.model import tensor_names
from trilobit.model.rope import LinearScaling, Llama3Scaling, YarnScaling

KINDS: tuple[GGUFType, ...] = ("i2_s", "tq1_0", "tq2_0")


def rewritten(path: Path, source: Source, kind: GGUFType = "i2_s") -> GGUFModel:
    write_gguf(source, path, ternary=kind)
    return GGUFModel(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reads_back_the_same(tmp_path: Path, family: str, kind: GGUFType) -> None:
    source = RandomSource(whole_config(**FAMILIES[family][1]))
    model = rewritten(tmp_path / "m.gguf", source, kind)
    assert model.config == source.config
    assert_same(model, source)


@pytest.mark.parametrize(
    ("bos", "ends"), [(None, ()), (7, (5, 319, 2)), (319, (2, 3, 4, 5)), (1, (2,))]
)
def test_a_model_without_a_tokenizer_keeps_its_ends(
    tmp_path: Path, bos: int | None, ends: tuple[int, ...]
) -> None:
    source = RandomSource(whole_config(bos_token_id=bos, eos_token_ids=ends))
    model = rewritten(tmp_path / "m.gguf", source)
    assert model.config == source.config
    assert model.text == source.text


def test_an_end_beyond_the_vocabulary_is_not_written(tmp_path: Path) -> None:
    source = RandomSource(whole_config(bos_token_id=320, eos_token_ids=(1, 320)))
    model = rewritten(tmp_path / "m.gguf", source)
    assert model.config == replace(source.config, bos_token_id=None, eos_token_ids=(1,))


@pytest.mark.parametrize("kind", ["tq1_0", "tq2_0"])
@pytest.mark.parametrize("architecture", ["bitnet-b1.58", "llama"])
def test_the_gguf_package_reads_the_same_weights(
    tmp_path: Path, architecture: str, kind: GGUFType
) -> None:
    changes = LLAMA if architecture == "llama" else {}
    source = RandomSource(whole_config(**changes, tie_word_embeddings=False))
    write_gguf(source, tmp_path / "m.gguf", ternary=kind)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    tensors = {t.name: t for t in reader.tensors}
    expected = {
        f"{gguf_name(n)}.weight": floats(source, n)
        for n, _ in tensor_names.all_projections(source.config)
    }
    for name, values in expected.items():
        if architecture == "llama" and ("attn_q" in name or "attn_k" in name):
            values = interleaved(values, source.config.head_dim)
        found = gguf.dequantize(tensors[name].data, tensors[name].tensor_type)
        assert np.array_equal(found, values), name
        assert tensors[name].tensor_type.name == kind.upper()
    for name, _ in tensor_names.all_norms(source.config):
        stored = tensors[f"{gguf_name(name.removesuffix('.weight'))}.weight"]
        assert np.array_equal(stored.data, source.gain(name))
    assert np.array_equal(tensors["token_embd.weight"].data, source.table(tensor_names.EMBEDDING))
    assert np.array_equal(tensors["output.weight"].data, source.table(tensor_names.HEAD))
    assert len(tensors) == len(expected) + len(list(tensor_names.all_norms(source.config))) + 2
    field = reader.get_field(f"{architecture}.attention.head_count_kv")
    assert field is not None
    assert field.contents() == source.config.num_key_value_heads


def test_tables_may_be_q8_0(tmp_path: Path) -> None:
    source = RandomSource(whole_config())
    write_gguf(source, tmp_path / "m.gguf", q8_tables=True)
    model = GGUFModel(tmp_path / "m.gguf")
    assert model.file.info("token_embd.weight").dtype == "Q8_0"
    kind = gguf.GGMLQuantizationType.Q8_0
    table = source.table(tensor_names.EMBEDDING).astype(np.float32)
    assert np.array_equal(
        model.table(tensor_names.EMBEDDING)[:], gguf.dequantize(gguf.quantize(table, kind), kind)
    )


def test_every_dtype_of_tables_is_kept(tmp_path: Path, checkpoint: Path) -> None:
    source = BitNetCheckpoint(checkpoint)  # bfloat16; its rows fill no blocks
    with pytest.raises(UnsupportedModel, match="rows of 60 weights, no multiple of 128, as I2_S"):
        write_gguf(source, tmp_path / "m.gguf")
    for dtype, expected in [("F32", "F32"), ("F16", "F16")]:
        random = RandomSource(whole_config())
        table = random.table(tensor_names.EMBEDDING)
        random._made[tensor_names.EMBEDDING] = table.astype({"F32": "<f4", "F16": "<f2"}[dtype])
        random.float_dtype = dtype
        model = rewritten(tmp_path / "m.gguf", random)
        assert model.file.info("token_embd.weight").dtype == expected
        assert_same(model, random)


def test_rows_with_scales_of_their_own_are_tq_only(tmp_path: Path) -> None:
    source = RandomSource(whole_config(scales="row", **LLAMA))
    model = rewritten(tmp_path / "m.gguf", source, "tq2_0")
    assert model.config.scales == "row"
    assert_same(model, source)
    with pytest.raises(UnsupportedModel, match="scales of their own, which I2_S cannot hold"):
        write_gguf(source, tmp_path / "x.gguf")


@pytest.mark.parametrize(
    "scaling",
    [
        LinearScaling(factor=2.0),
        Llama3Scaling(
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        ),
        YarnScaling(factor=4.0, original_max_position_embeddings=64, attention_factor=1.5),
    ],
)
def test_rope_scaling_is_kept(
    tmp_path: Path, scaling: LinearScaling | Llama3Scaling | YarnScaling
) -> None:
    source = RandomSource(whole_config(**LLAMA, rope_theta=500000.0, rope_scaling=scaling))
    found = rewritten(tmp_path / "m.gguf", source).config.rope_scaling
    if not isinstance(scaling, YarnScaling):
        assert found == scaling
        return
    assert isinstance(found, YarnScaling)
    assert replace(found, attention_factor=1.5) == scaling
    assert found.attention_factor == pytest.approx(1.5, rel=1e-6)  # a float32 of the file


@pytest.mark.parametrize("full", [(5,), (1, 3, 5), (0, 4)])
def test_any_pattern_of_sliding_layers_is_kept(tmp_path: Path, full: tuple[int, ...]) -> None:
    kinds = ("full_attention" if i in full else "sliding_attention" for i in range(7))
    source = RandomSource(whole_config(**{**GEMMA, "layer_types": tuple(kinds)}))
    model = rewritten(tmp_path / "m.gguf", source)
    assert model.config.layer_types == source.config.layer_types
    regular = full != (0, 4)
    assert model.file.is_array("gemma3.attention.sliding_window_pattern") != regular


IMPOSSIBLE: dict[str, tuple[dict[str, object], GGUFType, str]] = {
    "rows of I2_S": ({"intermediate_size": 200, "hidden_size": 132, "head_dim": 33 * 2}, "i2_s",
                     "no multiple of 128, as I2_S needs"),
    "rows of TQ1_0": ({"hidden_size": 128, "head_dim": 32}, "tq1_0",
                      "rows of 128 weights, no multiple of 256, as TQ1_0 needs; I2_S takes"),
    "groups": ({"scales": "group"}, "tq2_0", "scales are of 128 weights each, which TQ2_0"),
    "a shape without a name": ({**LLAMA, "hidden_act": "relu2"}, "i2_s", "no architecture of GGUF"),
}  # fmt: skip


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_gguf_cannot_hold_is_refused_before_anything_is_written(
    tmp_path: Path, case: str
) -> None:
    changes, kind, message = IMPOSSIBLE[case]
    with pytest.raises(UnsupportedModel, match=message) as error:
        write_gguf(RandomSource(whole_config(**changes)), tmp_path / "m.gguf", ternary=kind)
    assert str(error.value).isprintable()
    assert not list(tmp_path.iterdir())


def test_scales_beyond_float16_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    source = RandomSource(whole_config())
    source.projection("model.layers.1.mlp.down_proj")[1][:] = 1e-6
    with pytest.raises(UnsupportedModel, match="scale 1e-06, which float16 cannot hold; write I2"):
        write_gguf(source, tmp_path / "m.gguf", ternary="tq1_0")
    assert not list(tmp_path.iterdir())
    assert_same(rewritten(tmp_path / "m.gguf", source), source)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    source = RandomSource(whole_config())
    with pytest.raises(OutputError, match="cannot be written"):
        write_gguf(source, tmp_path / "none" / "m.gguf")
    with pytest.raises(OutputError, match="a directory, pipe or device"):
        write_gguf(source, tmp_path)


def test_convert_writes_every_form_of_gguf(tmp_path: Path) -> None:
    source = RandomSource(whole_config())
    write_gguf(source, tmp_path / "source.gguf")
    for form, projection, table in [
        (None, "I2_S", "F16"),
        ("gguf-q8", "I2_S", "Q8_0"),
        ("gguf-tq1_0", "TQ1_0", "F16"),
        ("gguf-tq2_0", "TQ2_0", "F16"),
    ]:
        out = tmp_path / f"{form}.gguf"
        convert(tmp_path / "source.gguf", out, form)  # type: ignore[arg-type]
        file = GGUFModel(out).file
        assert file.info("blk.0.attn_q.weight").dtype == projection
        assert file.info("token_embd.weight").dtype == table
        assert file.text("general.name") == "random"


def test_suffixes_in_capitals_name_the_same_forms(tmp_path: Path) -> None:
    write_gguf(RandomSource(whole_config()), tmp_path / "SOURCE.GGUF")
    for name in ("OUT.GGUF", "OUT.Trilobit"):
        convert(tmp_path / "SOURCE.GGUF", tmp_path / name)
    assert GGUFModel(tmp_path / "OUT.GGUF").file.info("blk.0.attn_q.weight").dtype == "I2_S"
    config = GGUFModel(tmp_path / "SOURCE.GGUF").config
    assert PackedModel(tmp_path / "OUT.Trilobit").config == config


def test_the_bundled_model_comes_back_byte_for_byte(tmp_path: Path) -> None:
    bundled = bundled_models()[DEFAULT]
    convert(bundled, tmp_path / "m.gguf")
    convert(tmp_path / "m.gguf", tmp_path / "m.trilobit")
    assert (tmp_path / "m.trilobit").read_bytes() == bundled.read_bytes()


@pytest.mark.parametrize("layout", ["arm", "rows"])
def test_convert_reads_i2_s_in_the_layout_that_it_is_told(
    tmp_path: Path, layout: I2SLayout
) -> None:
    source, path = RandomSource(whole_config()), tmp_path / "m.gguf"
    as_converter(path, source, layout=layout)
    args = [str(path), str(tmp_path / "m.trilobit"), "--i2s-layout", layout]
    assert CliRunner().invoke(command, args).exit_code == 0
    assert_same(open_source(tmp_path / "m.trilobit"), source)
    assert "i2s_layout is of GGUF files" in str(
        CliRunner().invoke(command, [args[1], str(tmp_path / "x.trilobit"), *args[2:]]).exception
    )


def test_the_arm_layout_is_known_where_no_other_fits(tmp_path: Path) -> None:
    """65 rows of 64 weights are no multiple of 128, so no x86 build wrote them."""
    sizes = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 64}
    source = RandomSource(whole_config(hidden_size=64, intermediate_size=65, **sizes))
    as_converter(tmp_path / "m.gguf", source, layout="arm")
    assert_same(GGUFModel(tmp_path / "m.gguf"), source)


def test_progress_counts_projections(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    source = RandomSource(whole_config())
    write_gguf(source, tmp_path / "m.gguf", progress=lambda *step: seen.append(step))
    assert seen == [(i + 1, 14) for i in range(14)]
