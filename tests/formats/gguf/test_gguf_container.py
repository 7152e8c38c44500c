"""The GGUF reader takes sound files and refuses every hostile one by name, at once."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_image import (
    ARRAY,
    BOOL,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    STRING,
    U8,
    U16,
    U32,
    U64,
    array,
    image,
    pair,
    scalar,
    string,
    tensor,
    u32,
    u64,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from trilobit import FormatError, UnsupportedModel
from trilobit.formats.gguf import types
from trilobit.formats.gguf.container import GGUFFile

ARCH = pair("general.architecture", scalar(STRING, "bitnet-b1.58"))
A = tensor("a", [2], types.F32, 0)
B = tensor("b", [3], types.F32, 32)
SOUND = image([ARCH], [A, B], bytes(32 + 12))


def refusal(path: Path, kind: type[Exception] = FormatError) -> str:
    """The message of the refused file: one line that begins with its name."""
    with pytest.raises(kind) as error:
        GGUFFile(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < len(str(path)) + 400
    return message


# ---- sound files --------------------------------------------------------------------------------


def test_values_of_every_type_are_read(tmp_path: Path) -> None:
    numbers = {U8: 200, I8: -3, U16: 60000, I16: -300, U32: 1 << 31, I32: -5, U64: 1 << 63, I64: -9}
    pairs = [pair(f"n{kind}", scalar(kind, value)) for kind, value in numbers.items()]
    pairs += [
        pair("f", scalar(F32, 0.5)),
        pair("d", scalar(F64, 1e300)),
        pair("b", scalar(BOOL, 1)),
    ]
    pairs += [pair("s", scalar(STRING, "naïve 🐚")), pair("empty", scalar(STRING, ""))]
    pairs += [pair("as", array(STRING, ["", "x", "🐚"])), pair("af", array(F32, [1.5, -2.0]))]
    pairs += [pair("none", array(STRING, []))]
    path = tmp_path / "values.gguf"
    path.write_bytes(image(pairs))
    file = GGUFFile(path)
    assert {kind: file.integer(f"n{kind}") for kind in numbers} == numbers
    assert (file.number("f"), file.number("d"), file.number("n0")) == (0.5, 1e300, 200.0)
    assert file.boolean("b") is True
    assert (file.text("s"), file.text("empty")) == ("naïve 🐚", "")
    assert (file.strings("as"), file.strings("none"), file.length("as")) == (["", "x", "🐚"], [], 3)
    floats = file.numbers("af")
    assert floats is not None
    assert floats.tolist() == [1.5, -2.0]
    assert "s" in file
    assert [file.integer("?"), file.number("?"), file.boolean("?")] == [None] * 3
    assert [file.text("?"), file.strings("?"), file.numbers("?"), file.length("?")] == [None] * 4


def test_a_value_of_another_type_is_refused_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "values.gguf"
    path.write_bytes(image([pair("i", scalar(U32, 1)), pair("a", array(U32, [1]))]))
    file = GGUFFile(path)
    for ask, what in [(file.text, "a string"), (file.boolean, "true or false")]:
        with pytest.raises(FormatError, match=f"'i' is not {what}"):
            ask("i")
    for ask, what in [(file.integer, "an integer"), (file.number, "a number"),
                      (file.strings, "an array of strings")]:  # fmt: skip
        with pytest.raises(FormatError, match=f"'a' is not {what}"):
            ask("a")


@pytest.mark.parametrize("version", [2, 3])
def test_tensors_are_views_in_row_major_order(tmp_path: Path, version: int) -> None:
    data = np.arange(6, dtype="<f4").tobytes() + bytes(8) + np.float32(7).tobytes()
    path = tmp_path / "a.gguf"
    tensors = [tensor("a", [3, 2], types.F32, 0), tensor("b", [1], types.F32, 32)]
    path.write_bytes(image([], tensors, data, version=version))
    file = GGUFFile(path)
    assert file.version == version
    assert file.info("a").shape == (2, 3)
    assert file.info("a").dtype == "F32"
    assert file.data("a").view("<f4").tolist() == [0, 1, 2, 3, 4, 5]
    assert file.data("b").view("<f4").tolist() == [7]
    assert not file.data("a").flags.writeable
    file.forget()
    assert file.data("b").view("<f4").tolist() == [7]
    with pytest.raises(FormatError, match="tensor 'c' is missing"):
        file.info("c")


def test_files_of_the_gguf_package_are_read(tmp_path: Path) -> None:
    path = tmp_path / "package.gguf"
    random = np.random.default_rng(0)
    a, b = random.standard_normal((2, 3, 64), dtype=np.float32)
    writer = gguf.GGUFWriter(path, "bitnet-b1.58")
    writer.add_custom_alignment(128)
    writer.add_context_length(99)
    writer.add_token_list(["a", "bc", "<|d|>"])
    writer.add_tensor("a", a)
    q = gguf.quantize(b, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("b", q, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(path)
    assert file.text("general.architecture") == "bitnet-b1.58"
    assert file.integer("bitnet-b1.58.context_length") == 99
    assert file.strings("tokenizer.ggml.tokens") == ["a", "bc", "<|d|>"]
    assert np.array_equal(file.data("a").view("<f4"), a.reshape(-1))
    assert file.info("b").shape == (3, 64)
    assert file.data("b").tobytes() == q.tobytes()


def test_sizes_of_types_are_those_of_the_gguf_package() -> None:
    for kind, (block, block_bytes) in gguf.GGML_QUANT_SIZES.items():
        if kind == gguf.GGMLQuantizationType.MXFP4:  # TL2 of bitnet.cpp has its id
            continue
        ours = types.TYPES[kind]
        assert (ours.name, ours.block, ours.block_bytes) == (kind.name, block, block_bytes)


@pytest.mark.parametrize("group", [64, 128])
def test_the_group_of_q2_0_is_found_by_what_adds_up(tmp_path: Path, group: int) -> None:
    size = 2048 // group * (2 + group // 4)
    path = tmp_path / "q2.gguf"
    tensors = [tensor("a", [256, 8], types.Q2_0, 0), tensor("b", [2], types.F32, size)]
    path.write_bytes(image([], tensors, bytes(size + 8)))
    file = GGUFFile(path)
    assert file.q2_0_group == group
    assert file.info("a").size_bytes == size


# ---- hostile files ------------------------------------------------------------------------------

HUGE = 1 << 40
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too few"),
    "only a magic": (b"GGUF", "too few"),
    "another magic": (image([ARCH], magic=b"GGML"), "not a GGUF file"),
    "safetensors": ((30).to_bytes(8, "little") + b"{}" + b" " * 28, "not a GGUF file"),
    "reversed magic": (image([ARCH], magic=b"FUGG"), "big-endian"),
    "version of a big-endian machine": (image([ARCH], version=3 << 24), "big-endian"),
    "version 0": (image([ARCH], version=0), "version 0 of GGUF"),
    "version 1": (image([ARCH], version=1), "version 1 of GGUF.*convert the model again"),
    "version 4": (image([ARCH], version=4), "version 4 of GGUF.*upgrade"),
    "2^40 tensors": (image([ARCH], counts=(HUGE, 1)), f"{HUGE} tensors; at most"),
    "2^63 keys": (image([ARCH], counts=(0, 1 << 63)), "keys; at most"),
    "more keys than bytes": (image([ARCH], counts=(0, 4000)), "4000 keys takes .* cut off"),
    "more tensors than bytes": (image([ARCH], counts=(9000, 1)), "9000 tensors takes .* cut off"),
    "a key of 2^40 bytes": (image([u64(HUGE) + b"k" + u32(U32) + u32(1)]), "name of a key has"),
    "an empty key": (image([pair("", scalar(U32, 1))]), "name of a key has 0 bytes"),
    "a key behind the end": (image([u64(60000) + b"key" + scalar(U32, 1)]), "name of a key takes"),
    "a key that is not UTF-8": (image([pair(b"\xff\xfe", scalar(U32, 1))]), "key is not UTF-8"),
    "a key with a newline": (image([pair("a\nb", scalar(U32, 1))]), "'a\\?b' holds characters"),
    "a key twice": (image([ARCH, ARCH]), "'general.architecture' is there twice"),
    "a value of unknown type": (image([pair("k", u32(13) + bytes(9))]), "the unknown type 13"),
    "a value cut off": (image([pair("k", u32(F64) + bytes(2))], alignment=1), "'k' takes 8 bytes"),
    "a bool of 2": (image([pair("k", u32(BOOL) + b"\2")]), "'k' is 2, not true or false"),
    "a string of 2^40 bytes": (
        image([pair("k", u32(STRING) + u64(HUGE) + b"text")]),
        f"'k' takes {HUGE} bytes",
    ),
    "a string of 2^64 - 1 bytes": (
        image([pair("k", u32(STRING) + u64((1 << 64) - 1) + b"text")]),
        "takes 18446744073709551615 bytes",
    ),
    "a string that is not UTF-8": (image([pair("k", scalar(STRING, b"\xc3("))]), "is not UTF-8"),
    "a string that ends inside a character": (
        image([pair("k", scalar(STRING, b"caf\xc3"))]),
        "'k' is not UTF-8",
    ),
    "an array of 2^40 bytes": (
        image([pair("k", u32(ARRAY) + u32(U8) + u64(HUGE))]),
        f"'k' has {HUGE} items; at most",
    ),
    "an array of 2^40 strings": (
        image([pair("k", u32(ARRAY) + u32(STRING) + u64(HUGE) + string("a"))]),
        f"'k' has {HUGE} items; at most",
    ),
    "an array behind the end": (
        image([pair("k", u32(ARRAY) + u32(U64) + u64(1 << 20))]),
        "'k' takes 8388608 bytes",
    ),
    "strings behind the end": (
        image([pair("k", u32(ARRAY) + u32(STRING) + u64(3) + string("a") + string("b") + u64(99))]),
        "'k' ends behind the file",
    ),
    "a string of an array of 2^63 bytes": (
        image([pair("k", u32(ARRAY) + u32(STRING) + u64(2) + u64(1 << 63) + bytes(16))]),
        "'k' ends behind the file",
    ),
    "an array of arrays": (
        image([pair("k", u32(ARRAY) + u32(ARRAY) + u64(1) + u32(U8) + u64(1) + b"\0")]),
        "'k' is an array of arrays",
    ),
    "arrays a thousand deep": (
        image([pair("k", u32(ARRAY) + (u32(ARRAY) + u64(1)) * 1000)]),
        "'k' is an array of arrays",
    ),
    "an array of unknown type": (
        image([pair("k", u32(ARRAY) + u32(99) + u64(1) + bytes(8))]),
        "items of unknown type 99",
    ),
    "alignment 0": (image([pair("general.alignment", scalar(U32, 0))]), "alignment' is 0"),
    "alignment 24": (image([pair("general.alignment", scalar(U32, 24))]), "alignment' is 24"),
    "alignment 2^31": (image([pair("general.alignment", scalar(U32, 1 << 31))]), "power of two"),
    "alignment a string": (
        image([pair("general.alignment", scalar(STRING, "32"))]),
        "'general.alignment' is not an integer",
    ),
    "a tensor twice": (image([], [A, A], bytes(8)), "tensor 'a' is there twice"),
    "a tensor without a name": (image([], [tensor("", [2], 0, 0)], bytes(8)), "a tensor has 0"),
    "a tensor's name of 65 bytes": (
        image([], [tensor("n" * 65, [2], 0, 0)], bytes(8)),
        "name of a tensor has 65 bytes",
    ),
    "a tensor's name of NUL": (
        image([], [tensor("a\0b", [2], 0, 0)], bytes(8)),
        "'a\\?b' holds characters",
    ),
    "a tensor's name that is not UTF-8": (
        image([], [tensor(b"a\xff", [2], 0, 0)], bytes(8)),
        "tensor is not UTF-8",
    ),
    "no dimensions": (image([], [tensor("a", [], 0, 0)] * 2, bytes(8)), "has 0 dimensions"),
    "five dimensions": (image([], [tensor("a", [1] * 5, 0, 0)], bytes(8)), "has 5 dimensions"),
    "2^32 - 1 dimensions": (
        image([], [string("a") + u32((1 << 32) - 1) + bytes(64)]),
        "has 4294967295 dimensions",
    ),
    "a dimension of 0": (image([], [tensor("a", [2, 0], 0, 0)], bytes(8)), "impossible shape"),
    "a dimension of 2^63": (image([], [tensor("a", [1 << 63], 0, 0)], bytes(8)), "impossible"),
    "a shape that wraps 64 bits": (
        image([], [tensor("a", [1 << 32, 1 << 32], 0, 0)], bytes(8)),
        "tensor 'a' ends at byte .* cut off",
    ),
    "a shape that fills no blocks": (
        image([], [tensor("a", [100], types.Q4_K, 0)], bytes(99)),
        "does not fill blocks of 256 weights, as Q4_K needs",
    ),
    "three weights of I2_S": (
        image([], [tensor("a", [3], types.I2_S, 0)], bytes(99)),
        "does not fill blocks of 4",
    ),
    "tensors cut off": (SOUND[:-1], "tensor 'b' ends at byte .* cut off"),
    "tensors cut off in the header": (SOUND[:-70], "tensor|takes"),
    "trailing bytes": (SOUND + bytes(33), "the tensors end at byte"),
    "an overlap": (image([], [A, tensor("b", [2], 0, 0)], bytes(40)), "'b' overlaps another"),
    "a hole": (image([], [A, tensor("b", [3], 0, 64)], bytes(64 + 12)), "'b' leaves a hole"),
    "a hole at the start": (image([], [tensor("a", [2], 0, 32)], bytes(40)), "'a' leaves a hole"),
    "an offset not aligned": (image([], [tensor("a", [2], 0, 4)], bytes(12)), "no multiple"),
    "an offset of 2^63": (image([], [tensor("a", [2], 0, 1 << 63)], bytes(8)), "leaves a hole"),
    "Q2_0 that adds up in no way": (
        image([], [tensor("a", [256, 4], types.Q2_0, 0)], bytes(100)),
        "neither groups of 64 nor of 128",
    ),
    "Q2_0 that adds up in both ways": (
        image([], [tensor("a", [128], types.Q2_0, 0)], bytes(36)),
        "both groups of 64 and of 128",
    ),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "LFS"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_by_name(tmp_path: Path, case: str) -> None:
    content, message = HOSTILE[case]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    assert re.search(message, refusal(path)), message


UNKNOWN = {
    "TL1": (types.TL1, "is TL1, .* take the I2_S file"),
    "TL2": (types.TL2, "is TL2 .* take the I2_S file"),
    "PQ2_0": (142, "is PQ2_0"),
    "IQ2_BN_R4": (335, "take the IQ2_BN file"),
    "a removed type": (4, "unknown type 4"),
    "a type of the future": (1000, "unknown type 1000"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_types_of_unknown_size_are_named_with_the_remedy(tmp_path: Path, case: str) -> None:
    type_id, message = UNKNOWN[case]
    path = tmp_path / "unknown.gguf"
    path.write_bytes(image([], [tensor("blk.0.attn_q.weight", [256], type_id, 0)], bytes(64)))
    assert re.search(message, refusal(path, UnsupportedModel))


@pytest.mark.parametrize("case", [case for case in HOSTILE if "2^" in case])
def test_a_huge_claim_costs_no_memory(tmp_path: Path, case: str) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(HOSTILE[case][0])
    tracemalloc.start()
    try:
        refusal(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_opening_20_gb_reads_the_header_alone(tmp_path: Path) -> None:
    """A sparse file: read whole, its zeros would take 20 GB of memory."""
    path = tmp_path / "large.gguf"
    columns, rows = 1 << 16, 40_000
    size = columns * rows * 4
    tensors = [
        tensor("a", [columns, rows], types.F32, 0),
        tensor("b", [columns, rows], types.F32, size),
    ]
    path.write_bytes(image([ARCH], tensors))
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size + 2 * size)
    before = resident_bytes()
    opened = GGUFFile(path)
    assert opened.size_bytes > 20e9
    assert opened.info("b").end == opened.size_bytes
    assert not opened.data("b")[:4].any()
    assert resident_bytes() - before < 16_000_000


def resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


# ---- mutations ----------------------------------------------------------------------------------

GOOD = image(
    [
        ARCH,
        pair("general.alignment", scalar(U32, 32)),
        pair("names", array(STRING, ["a", "bc", "🐚"])),
        pair("scores", array(F32, [1.0, 2.0])),
        pair("flag", scalar(BOOL, 0)),
    ],
    [
        tensor("a", [256, 2], types.TQ1_0, 0),
        tensor("b", [128], types.I2_S, 128),
        tensor("c", [64, 2], types.IQ1_BN, 192),
        tensor("d", [3], types.F32, 224),
    ],
    bytes(224 + 12),
)


def read_all(path: Path) -> None:
    """Everything that a header tells, and every byte of the data."""
    file = GGUFFile(path)
    for key in file:
        for ask in (file.integer, file.number, file.boolean, file.text, file.length,
                    file.strings, file.numbers):  # fmt: skip
            try:
                ask(key)
            except FormatError as error:
                assert "is not" in str(error)  # noqa: PT017
    for name, info in file.tensors.items():
        assert file.data(name).size == info.size_bytes
        assert info.end <= file.size_bytes


def test_the_file_to_be_mutated_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(GOOD)
    read_all(path)


@given(data=st.data())
@settings(max_examples=400)
def test_a_mutated_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["set", "delete", "insert", "cut", "number"])):
            case "set":
                content[at] = data.draw(st.integers(0, 255))
            case "delete":
                del content[at : at + data.draw(st.integers(1, 16))]
            case "insert":
                content[at:at] = data.draw(st.binary(min_size=1, max_size=16))
            case "cut":
                del content[at:]
            case "number":
                number = data.draw(
                    st.sampled_from([0, 1, 1 << 31, 1 << 40, 1 << 63, (1 << 64) - 1])
                )
                content[at : at + 8] = number.to_bytes(8, "little")
        if not content:
            break
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    path.write_bytes(content)
    try:
        read_all(path)
    except (FormatError, UnsupportedModel) as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017
        assert str(error).isprintable()  # noqa: PT017
