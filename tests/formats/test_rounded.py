"""Float32 tables that become float16 in a packed file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trilobit import FormatError, RequestError
from trilobit.bundled import DEFAULT, bundled_models
from trilobit.conversion import convert
from trilobit.formats.packed.source import PackedSource
from trilobit.formats.rounded import HalfTable
from trilobit.model import tensor_names
from trilobit.model.screen import screen


@pytest.fixture(scope="module")
def whole() -> PackedSource:
    if DEFAULT not in bundled_models():
        pytest.skip("no bundled model in this installation")
    return PackedSource(bundled_models()[DEFAULT])


@pytest.fixture(scope="module")
def half(whole: PackedSource, tmp_path_factory: pytest.TempPathFactory) -> PackedSource:
    out = tmp_path_factory.mktemp("rounded") / "half.trilobit"
    convert(whole.path, out, half_tables=True)
    return PackedSource(out)


def test_the_table_is_the_nearest_float16_and_its_screen_is_made_of_that(
    whole: PackedSource, half: PackedSource
) -> None:
    name = tensor_names.EMBEDDING
    table = half.table(name)
    assert half.float_dtype == "F16"
    assert np.array_equal(table, whole.table(name).astype(np.float16))
    planes = screen(table.astype(np.float32))
    parts = [part for plane in planes.values() for part in plane]
    for name, part in zip(tensor_names.SCREEN, parts, strict=True):
        assert np.array_equal(half.file.array(name).reshape(part.shape), part), name
    spared = 2 * table.size
    assert whole.path.stat().st_size - half.path.stat().st_size in range(spared, spared + 64)


def test_all_but_tables_and_screen_stays_as_it_is(whole: PackedSource, half: PackedSource) -> None:
    changed = {tensor_names.EMBEDDING, tensor_names.CHECKSUMS, *tensor_names.SCREEN}
    names = [name for name in whole.file.tensors if name not in changed]
    assert len(names) > 50
    for name in names:
        assert np.array_equal(half.file.array(name), whole.file.array(name)), name


def test_a_rounded_model_becomes_any_other_form_and_itself_again(
    half: PackedSource, tmp_path: Path
) -> None:
    convert(half.path, tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "wide.trilobit")  # gains and scales are float32
    convert(tmp_path / "wide.trilobit", tmp_path / "again.trilobit", half_tables=True)
    assert (tmp_path / "again.trilobit").read_bytes() == half.path.read_bytes()


def test_only_float32_tables_of_packed_files_are_rounded(
    half: PackedSource, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match="its tables are F16, and only float32 is rounded"):
        convert(half.path, tmp_path / "again.trilobit", half_tables=True)
    with pytest.raises(RequestError, match=r"half_tables .* is of packed files, and this is to be"):
        convert(half.path, tmp_path / "model.gguf", half_tables=True)
    assert not list(tmp_path.iterdir())


def test_numbers_beyond_float16_are_refused() -> None:
    table = HalfTable(np.array([[1.0], [70_000.0]], np.float32), "model: 'table'")
    assert table[0:1] == np.float16(1)
    with pytest.raises(FormatError, match="'table' has numbers beyond 65,504"):
        table[0:2]
