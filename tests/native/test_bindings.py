"""The native module refuses arguments that make no sense, and stays usable."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trilobit import _native
from trilobit.engine.native import rotary_frequencies
from trilobit.formats.packed.reader import PackedModel
from trilobit.layouts import native_layout
from trilobit.model import tensor_names
from trilobit.model.packing import LAYOUTS

BATCH_TOKENS, BLOCKS = 40, 3
Parts = dict[str, Any]


@pytest.fixture(scope="module")
def model(model_file: Path) -> PackedModel:
    return PackedModel(model_file)


def parts(model: PackedModel) -> Parts:
    return {
        "config": model.config.to_dict(),
        "tensors": model.arrays(),
        "inv_freq": rotary_frequencies(model.config),
        "threads": 1,
        "max_batch_tokens": BATCH_TOKENS,
        "kv_blocks": BLOCKS,
    }


def ids(*values: int) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


@pytest.mark.parametrize("layout", [4, "2-bit", None])
def test_a_layout_is_one_of_the_enum(layout: Any) -> None:
    block = np.zeros(64, np.uint8)
    with pytest.raises(TypeError):
        _native.check_codes(block, 1, layout)
    with pytest.raises(TypeError):
        _native.repacked(block, 16, 16, _native.Layout.two_bit, layout)


def test_every_layout_of_files_is_one_of_the_native_module() -> None:
    assert {native_layout(layout) for layout in LAYOUTS} == set(_native.Layout)


# ---- a decoder --------------------------------------------------------------------------------

Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: p.update(threads=0), "threads must be 1 to 1024"),
        (lambda p: p.update(threads=1025), "threads must be 1 to 1024"),
        (lambda p: p.update(max_batch_tokens=0), "max_batch_tokens must be 1 to 1048576"),
        (lambda p: p.update(kv_blocks=0), "kv_blocks must be positive"),
        (lambda p: p.update(kv_dtype="f8"), "kv_dtype must be 'f16', 'f32' or 'i8'"),
        (lambda p: p.update(inv_freq=p["inv_freq"][0, :-1]), "inv_freq must have head_dim / 2"),
        (lambda p: p["config"].pop("hidden_size"), "config: hidden_size is missing"),
        (lambda p: p["config"].pop("embedding_scale"), "config: embedding_scale is missing"),
        (lambda p: p["config"].update(vocab_size=0), "config: vocab_size must be 1 to 2^24"),
        (lambda p: p["config"].update(hidden_size=2**31 - 1), "config: hidden_size must be"),
        (lambda p: p["config"].update(head_dim=9), "head_dim must be even"),
        (lambda p: p["config"].update(num_attention_heads=2**17), "num_attention_heads must be"),
        (lambda p: p["config"].update(num_key_value_heads=4), "is not a multiple of"),
        (lambda p: p["config"].update(hidden_act="tanh"), "hidden_act 'tanh' is unknown"),
        (lambda p: p["config"].update(layer_types=["full_attention"]), "must name every layer"),
        (
            lambda p: p["config"].update(layer_types=["sliding_attention"] * 2),
            "sliding_window must be positive",
        ),
        (lambda p: p["config"].update(ternary_embeddings=True), "need scales by group"),
        (
            lambda p: p["config"].update(scales="group", projection_norm_eps=1e-5),
            "projection norms with scales by group",
        ),
        (
            lambda p: (p.update(layout=_native.Layout.base3), p["config"].update(scales="group")),
            "scales by group need the 2-bit layout",
        ),
        (lambda p: p["tensors"].pop(f"{Q_PROJ}.weight"), f"'{Q_PROJ}.weight' is missing"),
        (
            lambda p: p["tensors"].update({f"{Q_PROJ}.weight": np.zeros(16, np.uint8)}),
            f"'{Q_PROJ}.weight' is not 1024 packed bytes",
        ),
        (
            lambda p: p["tensors"].update({"model.norm.weight": np.ones(61, np.float32)}),
            "'model.norm.weight' is not float32 of 60 elements",
        ),
        (
            lambda p: p["tensors"].update({"model.norm.weight": np.ones(60, np.float64)}),
            "'model.norm.weight' is not float32 of 60 elements",
        ),
        (
            lambda p: p["tensors"].update({tensor_names.EMBEDDING: np.ones((330, 60), np.float32)}),
            f"'{tensor_names.EMBEDDING}' is not [331, 60]",
        ),
        (
            lambda p: p["tensors"].update({tensor_names.EMBEDDING: np.ones((331, 60), np.int16)}),
            f"'{tensor_names.EMBEDDING}' is not float32, float16 or bfloat16",
        ),
        (
            lambda p: p["tensors"].update({"lm_head.screen.coarse.codes": np.ones(7, np.uint8)}),
            "'lm_head.screen.coarse.codes' is not",
        ),
    ],
)
def test_a_decoder_refuses(
    model: PackedModel, change: Callable[[Parts], object], reason: str
) -> None:
    given = parts(model)
    change(given)
    with pytest.raises(ValueError, match=re.escape(reason)):
        _native.Decoder(**given)


# ---- its calls --------------------------------------------------------------------------------


def batch() -> Parts:
    """Two tokens of one sequence and one of another; logits of the last of each are wanted."""
    return {
        "token_ids": ids(5, 6, 7),
        "positions": ids(0, 1, 32),
        "sequence": ids(0, 0, 1),
        "block_tables": np.array([[0, 0], [2, 1]], dtype=np.int32),
        "output_rows": ids(1, 2),
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"token_ids": ids()}, "a batch must have 1 to max_batch_tokens"),
        ({"token_ids": ids(*[1] * (BATCH_TOKENS + 1))}, "a batch must have 1 to max_batch_tokens"),
        ({"positions": ids(0, 1)}, "must have the same length"),
        ({"sequence": ids(0, 1)}, "must have the same length"),
        ({"token_ids": ids(5, 331, 7)}, "token id 331 is outside the vocabulary"),
        ({"token_ids": ids(-1, 6, 7)}, "token id -1 is outside the vocabulary"),
        ({"sequence": ids(0, 0, 2)}, "sequence index outside block_tables"),
        ({"sequence": ids(-1, 0, 1)}, "sequence index outside block_tables"),
        ({"positions": ids(0, 1, 64)}, "position outside block_tables"),
        ({"positions": ids(-1, 0, 1)}, "position outside block_tables"),
        ({"positions": ids(0, 2, 32)}, "must follow one another"),
        ({"block_tables": np.array([[0, 0], [2, BLOCKS]], dtype=np.int32)}, "does not exist"),
        ({"block_tables": np.array([[0, 0], [-1, 1]], dtype=np.int32)}, "does not exist"),
        ({"output_rows": ids(0, 1, 2, 2)}, "more output rows than tokens"),
        ({"output_rows": ids(3)}, "output row outside the batch"),
        ({"output_rows": ids(-1)}, "output row outside the batch"),
    ],
)
def test_forward_refuses_and_goes_on(model: PackedModel, change: Parts, reason: str) -> None:
    decoder = _native.Decoder(**parts(model))
    decoder.forward(**batch())
    before = decoder.logits()
    with pytest.raises(ValueError, match=re.escape(reason)):
        decoder.forward(**{**batch(), **change})
    decoder.forward(**batch())
    np.testing.assert_array_equal(decoder.logits(), before)


def test_samplers_are_one_a_row_each_by_itself(model: PackedModel) -> None:
    decoder = _native.Decoder(**parts(model))
    decoder.forward(**batch())
    one, other = _native.Sampler(temperature=0.0), _native.Sampler(temperature=0.0)
    bad: dict[str, list[Any]] = {
        "None": [one, None],
        "twice": [one, one],
    }
    for reason, samplers in bad.items():
        with pytest.raises(ValueError, match=re.escape(reason)):
            decoder.verify(samplers, [[], []])
    with pytest.raises(ValueError, match="one draft for each sampler"):
        decoder.verify([one, other], [[]])
    with pytest.raises(ValueError, match="each token of a draft"):
        decoder.verify([one, other], [[], [1]])
    chosen = decoder.logits().argmax(axis=1).tolist()
    assert decoder.verify([one, other], [[], []]) == [[token_id] for token_id in chosen]


def test_rows_of_the_outputs_are_those_asked_for(model: PackedModel) -> None:
    decoder = _native.Decoder(**parts(model))
    decoder.forward(**batch())
    for rows in (decoder.logits, decoder.hidden):
        whole = rows()
        assert len(whole) == 2
        for first in range(3):
            np.testing.assert_array_equal(rows(first), whole[first:])
            for count in range(3 - first):
                np.testing.assert_array_equal(rows(first, count), whole[first : first + count])
        for first, count in ((-1, 1), (0, 3), (2, 1), (3, None), (0, -1)):
            with pytest.raises(ValueError, match="rows outside the output rows"):
                rows(first, count)


# ---- functions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: _native.kernel_norm_quantise("mmx", np.ones(4), np.ones(4), 0.0), "'mmx' is not"),
        (lambda: _native.linear_seconds("mmx", 8, 8, 1), "'mmx' is not available"),
        (lambda: _native.linear_seconds("", 0, 8, 1), "must be positive"),
        (lambda: _native.linear_seconds("", 8, 2**16 + 1, 1), "are beyond"),
        (lambda: _native.screen_seconds("", 8, 8, 1, repeats=0), "repeats must be positive"),
        (lambda: _native.dram_read_gb_per_s(0), "threads must be 1 to 1024"),
        (lambda: _native.int8_gmac_per_s(1, 0), "repeats must be positive"),
        (lambda: _native.check_codes(np.zeros(4, np.uint8), 0), "threads must be 1 to 1024"),
        (
            lambda: _native.repacked(
                np.zeros(5, np.uint8), 8, 8, _native.Layout.two_bit, _native.Layout.base3
            ),
            "does not have the size",
        ),
        (
            lambda: _native.kernel_linear(
                "", np.zeros(5, np.uint8), 8, 8, np.zeros((1, 8), np.int8)
            ),
            "does not have the size",
        ),
        (lambda: _native.Sampler().sample(np.zeros(0, np.float32)), "no logits"),
    ],
)
def test_functions_refuse(call: Callable[[], object], reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        call()
