"""Checksums and dead tensors: what `verify`, `pull` and `convert` see of a damaged packed file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from program import trilobit

from trilobit.bundled import DEFAULT, bundled_models
from trilobit.conversion import convert
from trilobit.formats.dead_tensors import Judge
from trilobit.formats.packed.checksums import HEADER, damaged_parts
from trilobit.formats.packed.source import PackedSource
from trilobit.formats.packed.writer import write_packed
from trilobit.formats.safetensors import SafetensorsFile
from trilobit.model import tensor_names

LAYER = "model.layers.1.mlp.gate_proj"


@pytest.fixture(scope="module")
def sound() -> Path:
    path = bundled_models().get(DEFAULT)
    if path is None:
        pytest.skip("no bundled model in this installation")
    return path


class Changed(PackedSource):
    """A packed file, some tensor of which is read otherwise."""

    def __init__(self, path: Path, changes: dict[str, Callable[[NDArray[Any]], object]]) -> None:
        super().__init__(path)
        self._changes = changes

    def _change(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        array = np.array(array)
        if name in self._changes:
            self._changes[name](array)
        return array

    def projection(self, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        codes, scales = super().projection(name)
        if self._changes.get("copy") and name == LAYER:
            codes = super().projection(LAYER.replace("1", "2"))[0]
        return self._change(name, codes), scales

    def gain(self, name: str) -> NDArray[np.float32]:
        return self._change(name, super().gain(name))

    def table(self, name: str) -> NDArray[Any]:
        return self._change(name, super().table(name))


def _half(array: NDArray[Any]) -> None:
    array[: len(array) // 2] = 0


def _sparse(array: NDArray[Any]) -> None:
    array[:, : array.shape[1] * 9 // 10] = 0


DEAD: dict[str, tuple[dict[str, Callable[[NDArray[Any]], object]], str]] = {
    "zeros": ({LAYER: lambda a: a.fill(0)}, f"'{LAYER}' is all 0"),
    "ones": ({LAYER: lambda a: a.fill(1)}, f"'{LAYER}' is all 1"),
    # The other half may have some of its own.
    "half the rows": ({LAYER: _half}, f"'{LAYER}' has [56].% rows of zeros"),
    "few weights": ({LAYER: _sparse}, f"'{LAYER}' has 9.% of 0, the others"),
    "norm": ({tensor_names.FINAL_NORM: lambda a: a.fill(0)}, "'model.norm.weight' is 100% zeros"),
    "embedding": (
        {tensor_names.EMBEDDING: _half},
        f"'{tensor_names.EMBEDDING}' has 50% rows of zeros",
    ),
    "one row": (
        {tensor_names.EMBEDDING: lambda a: a.__setitem__(slice(None), a[5])},
        "same numbers in every row",
    ),
    "copy": ({"copy": lambda a: None}, f"is a copy of '{LAYER}'"),
}


@pytest.mark.parametrize("kind", DEAD)
def test_verify_names_a_dead_tensor(sound: Path, tmp_path: Path, kind: str) -> None:
    changes, words = DEAD[kind]
    path = tmp_path / "m.trilobit"
    write_packed(Changed(sound, changes), path)
    done = trilobit("verify", path)
    assert done.returncode == 1
    assert re.search(f"tensors +wrong.*{words}", done.stdout, re.IGNORECASE), done.stdout
    told: list[str] = []
    convert(path, tmp_path / "again.trilobit", told=told.append)
    assert len(told) == 1
    assert re.search(words, told[0])


def test_info_names_a_dead_tensor(sound: Path, tmp_path: Path) -> None:
    changes, words = DEAD["half the rows"]
    path = tmp_path / "m.trilobit"
    write_packed(Changed(sound, changes), path)
    done = trilobit("info", path)
    assert done.returncode == 0
    assert re.search(f"  looks damaged    {words}", done.stdout)
    damage = json.loads(trilobit("info", path, "--json").stdout)["damage"]
    assert re.fullmatch(words, damage[0])
    assert "damaged" not in trilobit("info", sound).stdout


def test_an_all_zero_final_norm_makes_constant_logits_an_error(sound: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.trilobit"
    write_packed(Changed(sound, {tensor_names.FINAL_NORM: lambda a: a.fill(0)}), path)
    assert "the same for every token" in trilobit("verify", path).stdout


def test_random_matrices_are_not_dead() -> None:
    judge, random = Judge(), np.random.default_rng(0)
    for shape in ((16, 16), (64, 256), (300, 100)):
        codes = random.integers(-1, 2, shape, dtype=np.int8)
        judge.projection(str(shape), codes, np.ones(1, np.float32))
    assert judge.dead() == []


def test_every_flipped_byte_is_found(model_file: Path, tmp_path: Path) -> None:
    data = model_file.read_bytes()
    file = SafetensorsFile(model_file)
    assert damaged_parts(file) == []
    path = tmp_path / "m.trilobit"
    for name, info in file.tensors.items():
        for place in {info.begin, info.end - 1}:
            changed = bytearray(data)
            changed[place] ^= 1
            path.write_bytes(changed)
            found = damaged_parts(SafetensorsFile(path))
            assert found, name
            assert name in (found[0], tensor_names.CHECKSUMS)
    changed = bytearray(data)
    place = data.index(b'"source"') + 12  # of the label, which nothing else checks
    changed[place] ^= 1
    path.write_bytes(changed)
    assert damaged_parts(SafetensorsFile(path)) == [HEADER]


def test_verify_finds_a_flipped_byte(sound: Path, tmp_path: Path) -> None:
    data = bytearray(sound.read_bytes())
    info = SafetensorsFile(sound).info(f"{LAYER}.weight")
    data[info.begin + 100] ^= 0b01 if data[info.begin + 100] & 0b11 == 0 else 0
    data[info.begin + 101] ^= 0b10000000 if data[info.begin + 101] >> 6 == 0 else 0
    if bytes(data) == sound.read_bytes():  # those weights were none
        data[info.end - 1] ^= 1
    path = tmp_path / "m.trilobit"
    path.write_bytes(data)
    done = trilobit("verify", path)
    assert done.returncode == 1
    assert f"{LAYER}.weight: changed since" in done.stdout
