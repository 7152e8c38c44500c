"""Rows and columns that meet zeros are left out of a whole model: no bit of it changes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import ALL, random_adapter
from numpy.typing import NDArray

from trilobit import _native
from trilobit.engine.native import rotary_frequencies
from trilobit.formats.adapter import Adapter
from trilobit.formats.packed.reader import PackedModel
from trilobit.layouts import native_layout
from trilobit.model import packing, tensor_names
from trilobit.model.packing import LAYOUTS, Layout

TOKENS = 70  # more than take rows and columns of their own


def laid_out(model: PackedModel, layout: Layout, *, alone: bool) -> dict[str, NDArray[Any]]:
    """The arrays of a model with its matrices in groups, or those alone that may be."""
    arrays = model.arrays()
    for name, (rows, columns) in tensor_names.all_projections(model.config):
        packed = arrays[f"{name}.weight"]
        codes = packing.unpack(packed, rows, columns, model.layout, model.order(name))
        order = tensor_names.alone(model.config, name) if alone else "groups"
        arrays[f"{name}.weight"] = packing.pack(codes, layout, order)
    return arrays


def decoder_of(
    model: PackedModel, arrays: dict[str, NDArray[Any]], layout: Layout, threads: int = 2
) -> _native.Decoder:
    return _native.Decoder(
        model.config.to_dict(),
        arrays,
        rotary_frequencies(model.config),
        threads,
        TOKENS,
        -(-2 * TOKENS // _native.Decoder.BLOCK),
        "f32",
        layout=native_layout(layout),
    )


def steps(decoder: _native.Decoder, cuts: list[int]) -> NDArray[np.float32]:
    """Logits of one sequence, cut into steps of so many tokens."""
    found, begin = [], 0
    table = np.arange(-(-2 * TOKENS // _native.Decoder.BLOCK), dtype=np.int32)[None]
    for count in cuts:
        positions = np.arange(begin, begin + count, dtype=np.int32)
        decoder.forward(
            positions * 7 % 300,
            positions,
            np.zeros(count, dtype=np.int32),
            table,
            np.arange(count, dtype=np.int32),
        )
        found.append(decoder.logits())
        begin += count
    return np.concatenate(found)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_models_laid_out_alone_have_the_bits_of_those_in_groups(
    layout: Layout, model_file: Path
) -> None:
    model = PackedModel(model_file)
    cuts = [1, 2, 5, 17, TOKENS, 1]
    both = [decoder_of(model, laid_out(model, layout, alone=a), layout) for a in (False, True)]
    groups, alone = (steps(decoder, cuts) for decoder in both)
    np.testing.assert_array_equal(alone, groups)
    assert both[0].activity == both[1].activity
    for gates, codes in both[1].activity:
        assert 0 < codes < gates < 1


def test_layers_in_different_orders_are_refused(model_file: Path) -> None:
    model = PackedModel(model_file)
    arrays, others = (laid_out(model, "2-bit", alone=alone) for alone in (False, True))
    for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        with pytest.raises(ValueError, match=re.escape("in groups in some layers")):
            decoder_of(model, {**arrays, name: others[name]}, "2-bit")


@pytest.mark.parametrize("targets", [("down_proj",), ("up_proj",), ("gate_proj",), ALL])
def test_adapters_add_the_same_where_matrices_lie_alone(
    targets: tuple[str, ...], model_file: Path, tmp_path: Path
) -> None:
    model = PackedModel(model_file)
    folder = random_adapter(tmp_path / "adapter", model.config, targets=targets)
    beside = Adapter(folder, model.config, model.file.float32).arrays
    found = []
    for alone in (False, True):
        decoder = decoder_of(model, {**laid_out(model, "2-bit", alone=alone), **beside}, "2-bit")
        found.append((steps(decoder, [1, 2, 5, 17, TOKENS, 1]), decoder.activity))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    plain = steps(decoder_of(model, model.arrays(), "2-bit"), [1, 2, 5, 17, TOKENS, 1])
    assert np.abs(plain - found[0][0]).max() > 0.1
