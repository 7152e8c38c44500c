"""The reader refuses every hostile file by name; the writer leaves a whole file or nothing."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trilobit import FormatError, OutputError
from trilobit.formats.safetensors import Checkpoint, SafetensorsFile, SafetensorsWriter
from trilobit.formats.whole_file import check_space


def tensor(dtype: str, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def image(header: object, data: bytes = b"") -> bytes:
    """A file of this header, whatever it says."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


A = {"a": tensor("F32", [2], 0, 8)}
SOUND = image(A, bytes(8))


def refusal(path: Path) -> str:
    """The message of the refused file: one line that begins with its name."""
    with pytest.raises(FormatError) as error:
        SafetensorsFile(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < len(str(path)) + 300
    return message


# ---- hostile files ----------------------------------------------------------------------------

NESTED = 100_000
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "one byte": (b"\x01", "too few"),
    "short": (b"\x02\0\0\0\0\0\0\0{", "too few"),
    "header longer than the file": (SOUND[:20], "cut off"),
    "header length near 2^64": (b"\xff" * 7 + b"\x7f" + SOUND, "cut off"),
    "header length 2^40": ((1 << 40).to_bytes(8, "little") + SOUND[8:], "cut off"),
    "five bytes": (SOUND[:5], "5 bytes are too few .*; download or convert it again"),
    "truncated data": (SOUND[:-1], "cut off"),
    "trailing bytes": (SOUND + b"\0", "but the file has"),
    "not JSON": (image(b"{'a': 1}  "), "not JSON"),
    "empty header": (image(b"", bytes(8)), "not JSON"),
    "not UTF-8": (image(b'{"\xff\xfe": {}}'), "not UTF-8"),
    "deep lists": (image(b"[" * NESTED + b"]" * NESTED), "not JSON"),
    "deep objects": (image(b'{"a":' * NESTED + b"1" + b"}" * NESTED), "not JSON"),
    "deep shape": (
        image(
            b'{"a":{"dtype":"U8","shape":' + b"[" * 950 + b"]" * 950 + b',"data_offsets":[0,0]}}'
        ),
        "shape|not JSON",  # as the recursion limit has it
    ),
    "a number too long to read": (image(b'{"a": ' + b"9" * 9999 + b"}"), "expected dtype"),
    "many empty lists": (image(b"[" + b"[]," * 3_000_000 + b"[]]"), "more than 2,000,000 values"),
    "a list": (image([A, A]), "not a JSON object"),
    "a string": (image("0123456789"), "not a JSON object"),
    "null": (image(b"      null"), "not a JSON object"),
    "duplicate tensor": (
        image(b'{"a": ' + json.dumps(A["a"]).encode() + b', "a": {}}', bytes(8)),
        "names 'a' twice",
    ),
    "duplicate key of a tensor": (
        image(b'{"a": {"dtype": "F32", "dtype": "U8"}}'),
        "names 'dtype' twice",
    ),
    "overlap": (image({**A, "b": tensor("F32", [2], 4, 12)}, bytes(12)), "'b' overlaps"),
    "same place": (image({**A, "b": tensor("F32", [2], 0, 8)}, bytes(8)), "overlaps"),
    "hole": (image({**A, "b": tensor("F32", [1], 12, 16)}, bytes(16)), "'b' leaves a hole"),
    "hole at the start": (image({"a": tensor("U8", [4], 4, 8)}, bytes(8)), "'a' leaves a hole"),
    "unknown dtype": (image({"a": tensor("F33", [2], 0, 8)}, bytes(8)), "unknown dtype 'F33'"),
    "dtype a number": (image({"a": tensor(7, [2], 0, 8)}, bytes(8)), "unknown dtype 7"),  # type: ignore[arg-type]
    "dtype a list": (image({"a": tensor([], [2], 0, 8)}, bytes(8)), "unknown dtype"),  # type: ignore[arg-type]
    "negative shape": (image({"a": tensor("F32", [-2], 0, 8)}, bytes(8)), "impossible shape"),
    "two negatives": (image({"a": tensor("F32", [-1, -2], 0, 8)}, bytes(8)), "impossible shape"),
    "float shape": (image({"a": tensor("F32", [2.0], 0, 8)}, bytes(8)), "impossible shape"),
    "bool shape": (image({"a": tensor("F64", [True], 0, 8)}, bytes(8)), "impossible shape"),
    "string shape": (image({"a": tensor("F32", "2", 0, 8)}, bytes(8)), "impossible shape"),
    "NaN shape": (image({"a": tensor("F32", [float("nan")], 0, 8)}, bytes(8)), "impossible shape"),
    "too many dimensions": (image({"a": tensor("U8", [1] * 99, 0, 1)}, b"0"), "impossible shape"),
    "huge shape": (image({"a": tensor("F32", [1 << 61], 0, 8)}, bytes(8)), "does not fill"),
    "shape that wraps 64 bits": (
        image({"a": tensor("F32", [1 << 61, 1 << 61], 0, 0)}),
        "does not fill",
    ),
    "shape beyond 64 bits": (image({"a": tensor("F32", [10**30], 0, 8)}, bytes(8)), "impossible"),
    "shape smaller": (image({"a": tensor("F32", [1], 0, 8)}, bytes(8)), "does not fill 8 bytes"),
    "offsets backwards": (image({"a": tensor("F32", [2], 8, 0)}, bytes(8)), "impossible offsets"),
    "offsets negative": (image({"a": tensor("F32", [2], -8, 0)}, bytes(8)), "impossible offsets"),
    "offsets of one": (
        image({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8]}}, bytes(8)),
        "impossible offsets",
    ),
    "offsets null": (
        image({"a": {"dtype": "F32", "shape": [2], "data_offsets": None}}, bytes(8)),
        "impossible offsets",
    ),
    "offsets past the end": (image({"a": tensor("U8", [99], 0, 99)}, bytes(8)), "cut off"),
    "tensor without shape": (image({"a": {"dtype": "F32"}}), "expected dtype, shape"),
    "tensor with more": (image({"a": {**A["a"], "x": 1}}, bytes(8)), "expected dtype, shape"),
    "tensor a list": (image({"a": ["F32", [2], [0, 8]]}, bytes(8)), "expected dtype, shape"),
    "metadata a list": (image({"__metadata__": [], **A}, bytes(8)), "__metadata__"),
    "metadata of numbers": (image({"__metadata__": {"a": 1}, **A}, bytes(8)), "__metadata__"),
    "a name of a million letters": (image({"x" * 10**6: 0}), "'xxx"),
    "a name that is no text": (image(b'{"a\\n\\u001b[2J\\ud800": 0}'), r"'a\?\?\[2J\?'"),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(100), "GGUF"),
    "pickle": (pickle.dumps({"a": [1.0] * 99}, protocol=2), "pickled"),
    "pickle, newest": (pickle.dumps({"a": [1.0] * 99}), "pickled"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "text": (b"<!DOCTYPE html><html>not found</html>", "not a safetensors file"),
    "zeros": (bytes(4096), "not JSON"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_file_is_refused(case: str, tmp_path: Path) -> None:
    data, reason = HOSTILE[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=reason):
        SafetensorsFile(path)
    refusal(path)


def test_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(100))
    assert "pickled" in refusal(path)


def test_directory_is_refused(tmp_path: Path) -> None:
    assert "a directory" in refusal(tmp_path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.safetensors")
    assert "no such file" in refusal(tmp_path / "none" / "none.safetensors")


def test_impossible_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="File name too long"):
        SafetensorsFile(tmp_path / ("x" * 5000))
    with pytest.raises(FormatError, match="not a possible file name"):
        SafetensorsFile("a\0b")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names on this system")
def test_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert "pipe" in refusal(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for size in range(len(SOUND)):
        path.write_bytes(SOUND[:size])
        refusal(path)
    path.write_bytes(SOUND)
    assert SafetensorsFile(path).array("a").tolist() == [0, 0]


@settings(max_examples=300, deadline=None)
@given(
    data=st.one_of(
        st.binary(max_size=99).map(image),
        st.builds(
            lambda at, byte: SOUND[:at] + bytes([byte]) + SOUND[at + 1 :],
            st.integers(0, len(SOUND) - 1),
            st.integers(0, 255),
        ),
    )
)
def test_no_bytes_raise_anything_but_a_format_error(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(data)
    with suppress(FormatError):
        file = SafetensorsFile(path)
        assert sum(file.array(name).nbytes for name in file.tensors) <= len(data)


# ---- sound files ------------------------------------------------------------------------------

ARRAYS: dict[str, NDArray[Any]] = {
    "f32": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "f16": np.array([1.5, -2], dtype=np.float16),
    "f64": np.array([[np.pi]], dtype=np.float64),
    "u8": np.arange(7, dtype=np.uint8),  # what follows is not aligned
    "i8": np.array([-128, 127], dtype=np.int8),
    "i16": np.array([-300], dtype=np.int16),
    "i64": np.array([1 << 60], dtype=np.int64),
    "bool": np.array([True, False]),
    "scalar": np.array(4.25, dtype=np.float32),
    "nothing": np.zeros((0, 5), dtype=np.float32),
}


def test_files_of_the_public_library_are_read_equal(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(ARRAYS, path, metadata={"format": "pt", "é": "雪"})
    file = SafetensorsFile(path)
    assert file.metadata == {"format": "pt", "é": "雪"}
    assert set(file.tensors) == set(ARRAYS)
    for name, array in ARRAYS.items():
        got = file.array(name)
        assert got.dtype == array.dtype
        assert got.shape == array.shape
        assert got.tobytes() == array.tobytes()


@pytest.mark.parametrize("length", [0x80, 0x280, 0x480, 0x4B50])
def test_a_header_length_that_spells_a_foreign_magic_is_sound(length: int, tmp_path: Path) -> None:
    # 0x80 begins a pickle of protocol 2 (0x280) or 4 (0x480), 0x4B50 is "PK"
    path = tmp_path / "model.safetensors"
    path.write_bytes(image(json.dumps(A).encode().ljust(length), bytes(8)))
    assert SafetensorsFile(path).array("a").tolist() == [0, 0]


def test_bf16_is_read_as_its_bits_and_as_float32(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    bits = np.array([0x3F80, 0xC000, 0x7F80], dtype="<u2")
    path.write_bytes(image({"a": tensor("BF16", [3], 0, 6)}, bits.tobytes()))
    file = SafetensorsFile(path)
    assert file.array("a").tolist() == bits.tolist()
    assert file.float32("a").tolist() == [1.0, -2.0, float("inf")]


def test_arrays_cannot_be_written_to(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(SOUND)
    with pytest.raises(ValueError, match="read-only"):
        SafetensorsFile(path).array("a")[0] = 1


def test_a_missing_tensor_and_an_integer_one_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(image({"a": tensor("U8", [1], 0, 1)}, b"\0"))
    with pytest.raises(FormatError, match="'b' is missing"):
        SafetensorsFile(path).array("b")
    with pytest.raises(FormatError, match="'a' is U8"):
        SafetensorsFile(path).float32("a")


# ---- writing ----------------------------------------------------------------------------------

TYPES = {"float32": "F32", "float16": "F16", "float64": "F64", "uint8": "U8", "int8": "I8"}
TYPES |= {"int16": "I16", "int64": "I64", "bool": "BOOL"}
DECLARED = [(name, TYPES[str(a.dtype)], a.shape) for name, a in ARRAYS.items()]
METADATA = {"source": 'a "quoted" \n name', "é": "雪"}


def test_the_public_library_reads_our_files_equal(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with SafetensorsWriter(path, DECLARED, METADATA) as file:
        for name, array in ARRAYS.items():
            file.write(name, array)
    assert path.stat().st_size == file.size_bytes
    with safetensors.safe_open(path, framework="numpy") as public:
        assert public.metadata() == METADATA
        assert set(public.keys()) == set(ARRAYS)
        for name, array in ARRAYS.items():
            got = public.get_tensor(name)
            assert (got.dtype, got.shape) == (array.dtype, array.shape)
            assert got.tobytes() == array.tobytes()
    assert SafetensorsFile(path).metadata == METADATA
    assert os.listdir(tmp_path) == [path.name]


def test_a_header_that_no_reader_takes_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trilobit.formats.safetensors.MAX_HEADER_BYTES", 1000)
    with pytest.raises(OutputError, match="more than readers take"):
        SafetensorsWriter(tmp_path / "x", [], {"chat_template": "x" * 1000})
    assert os.listdir(tmp_path) == []


def test_data_is_aligned(tmp_path: Path) -> None:
    for letters in range(70):
        path = tmp_path / "model.safetensors"
        with SafetensorsWriter(path, [("a", "U8", (1,))], {"name": "x" * letters}) as file:
            file.write("a", np.zeros(1, dtype=np.uint8))
        assert SafetensorsFile(path).info("a").begin % 64 == 0  # as docs/format.md says


def write_until(path: Path, error: BaseException) -> None:
    """Two tensors declared, one written, then the error."""
    size = 1 << 20
    with SafetensorsWriter(path, [("a", "U8", (size,)), ("b", "U8", (1,))], {}) as file:
        file.write("a", np.zeros(size, dtype=np.uint8))
        assert any(name.endswith(".part") for name in os.listdir(path.parent))
        raise error


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(2), FormatError("x"), MemoryError()], ids=repr
)
def test_nothing_is_left_of_an_interrupted_file(error: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught:
        write_until(tmp_path / "model.safetensors", error)
    assert caught.value is error
    assert os.listdir(tmp_path) == []


def test_an_interrupted_file_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_until(path, KeyboardInterrupt())
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [path.name]


def test_a_file_short_of_a_tensor_never_appears(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="not all declared"),
        SafetensorsWriter(tmp_path / "x", [("a", "U8", (1,))], {}),
    ):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
@pytest.mark.parametrize("sizes", [[3_000_000], [400_000] * 5, [900_000, 130_000]])
def test_nothing_is_left_on_a_full_disk(sizes: list[int], tmp_path: Path) -> None:
    program = (
        "import resource, sys, numpy as np\n"
        "from trilobit import OutputError\n"
        "from trilobit.formats.safetensors import SafetensorsWriter\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "sizes = [int(n) for n in sys.argv[2:]]\n"
        "declared = [(str(i), 'U8', (n,)) for i, n in enumerate(sizes)]\n"
        "try:\n"
        "    with SafetensorsWriter(sys.argv[1], declared, {}) as file:\n"
        "        for i, n in enumerate(sizes):\n"
        "            file.write(str(i), np.zeros(n, dtype=np.uint8))\n"
        "except OutputError as error:\n"
        "    print(error)\n"
    )
    path = tmp_path / "model.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path), *map(str, sizes)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"{path}: cannot be written (File too large)")
    assert done.stdout.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_file_larger_than_the_disk_is_refused_before_the_work(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"needs [\d.]+ GB, and the disk has [\d.]+ GB free"),
        SafetensorsWriter(tmp_path / "x", [("a", "F64", (1 << 55,))], {}),
    ):
        pass
    assert os.listdir(tmp_path) == []


def test_a_small_disk_is_measured_in_megabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SimpleNamespace(total=2_000_000, free=1_500_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    with pytest.raises(OutputError, match=r"needs 3\.73 MB, and the disk has 1\.50 MB free;"):
        check_space(tmp_path / "x", 3_730_000)


def test_a_place_without_a_disk_says_its_own_reason() -> None:
    if not os.path.exists("/proc/self"):
        pytest.skip("Linux only")
    writer = SafetensorsWriter(Path("/proc/x"), [("a", "F64", (1,))], {})
    with pytest.raises(OutputError, match="cannot be written"), writer:
        pass


def test_a_place_that_is_no_file_is_refused_and_stays(tmp_path: Path) -> None:
    places: list[tuple[str, Callable[[Path], object]]] = [("folder", Path.mkdir)]
    if hasattr(os, "mkfifo"):
        places.append(("pipe", os.mkfifo))
    for name, make in places:
        make(tmp_path / name)
        with (
            pytest.raises(OutputError, match="choose another place"),
            SafetensorsWriter(tmp_path / name, [], {}),
        ):
            pass
        assert not (tmp_path / name).is_file()
    with (
        pytest.raises(OutputError, match="cannot be written"),
        SafetensorsWriter(tmp_path / "none" / "x", [], {}),
    ):
        pass
    assert sorted(os.listdir(tmp_path)) == sorted(name for name, _ in places)


# ---- directories ------------------------------------------------------------------------------


def shards(directory: Path, weight_map: object) -> Path:
    safetensors.numpy.save_file({"a": ARRAYS["f32"]}, directory / "1.safetensors")
    safetensors.numpy.save_file({"b": ARRAYS["f16"]}, directory / "2.safetensors")
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return directory


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    shards(tmp_path, {"a": "1.safetensors", "b": "2.safetensors"})
    checkpoint = Checkpoint(tmp_path)
    assert sorted(checkpoint) == ["a", "b"]
    assert checkpoint.file("b").array("b").tolist() == ARRAYS["f16"].tolist()
    with pytest.raises(FormatError, match="'c' is missing"):
        checkpoint.file("c")


@pytest.mark.parametrize(
    ("weight_map", "reason"),
    [
        ({"a": "../1.safetensors"}, "not a plain file name"),
        ({"a": "/etc/passwd"}, "not a plain file name"),
        ({"a": 1}, "not a plain file name"),
        ({"a": ".."}, "a directory"),
        ({"a": "3.safetensors"}, "3.safetensors: no such file"),
        ({"a": ["1.safetensors"]}, "not an index"),
        ({"a": 1, "b": "2.safetensors"}, "not an index"),
        ([], "not an index"),
    ],
)
def test_impossible_index_is_refused(weight_map: object, reason: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=reason):
        Checkpoint(shards(tmp_path, weight_map))


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    shards(tmp_path, {"a": "1.safetensors", "b": "2.safetensors"})
    safetensors.numpy.save_file({"a": ARRAYS["f32"]}, tmp_path / "2.safetensors")
    with pytest.raises(FormatError, match="'a' is in two shards"):
        Checkpoint(tmp_path)


def test_a_directory_of_pickles_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"no model\.safetensors"):
        Checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FormatError, match="can run code"):
        Checkpoint(tmp_path)
