"""A packed file gives back what went in, and any damage to it is one clear line."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from conftest import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from trilobit import LLM, FormatError, SamplingParams, TrilobitError
from trilobit.conversion import convert
from trilobit.formats.dtypes import DTYPES
from trilobit.formats.packed import reader
from trilobit.formats.packed.form import bytes_by_part, declare
from trilobit.formats.packed.reader import PackedModel
from trilobit.formats.packed.writer import packed_writer, write_screen
from trilobit.formats.safetensors import SafetensorsFile
from trilobit.formats.text_files import TextFiles
from trilobit.model import packing, screen, tensor_names
from trilobit.model.config import ModelConfig
from trilobit.model.rope import LinearScaling, Llama3Scaling, YarnScaling

CONFIG = tiny_config(
    vocab_size=37,
    hidden_size=11,  # with an odd vocabulary: tables of an odd number of bfloat16
    intermediate_size=134,
    num_hidden_layers=1,
    num_attention_heads=3,
    num_key_value_heads=1,
    head_dim=6,
    max_position_embeddings=64,
    tie_word_embeddings=False,
)
# Whose rows of up_proj and columns of down_proj lie alone
WIDE = dataclasses.replace(CONFIG, hidden_size=2049, hidden_act="relu2")
TEXT = TextFiles(tokenizer='{"é": 1}'.encode(), chat_template="{{ 雪 }}\n", add_bos=True)
LAYER = "model.layers.0."
WEIGHT = f"{LAYER}self_attn.v_proj.weight"  # [6, 11]: padded in both directions
SCALE = f"{LAYER}mlp.up_proj.weight_scale"
NORM = f"{LAYER}self_attn.attn_sub_norm.weight"


# ---- what goes in comes out -------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """A random model, before packing."""

    config: ModelConfig
    codes: dict[str, NDArray[np.int8]] = field(default_factory=dict)
    floats: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # norms, scales
    tables: dict[str, NDArray[Any]] = field(default_factory=dict)

    def write(self, path: Path, float_dtype: str, text: TextFiles) -> None:
        head = self.tables.get(tensor_names.tables(self.config)[-1])
        with packed_writer(path, self.config, float_dtype, text, "by hand") as file:
            for name, _, _ in declare(self.config, float_dtype, text):
                if name in self.codes:
                    order = tensor_names.order(self.config, name.removesuffix(".weight"))
                    file.write(name, packing.pack(self.codes[name], "2-bit", order))
                elif name == tensor_names.SCREEN[0]:
                    assert head is not None
                    write_screen(file, head, float_dtype)
                elif name == tensor_names.TOKENIZER:
                    file.write(name, np.frombuffer(text.tokenizer or b"", dtype=np.uint8))
                elif name not in tensor_names.SCREEN:
                    file.write(name, {**self.floats, **self.tables}[name])


def random_parts(config: ModelConfig, float_dtype: str = "BF16", seed: int = 0) -> Parts:
    random = np.random.default_rng(seed)
    parts = Parts(config)
    for name, shape in tensor_names.all_projections(config):
        parts.codes[f"{name}.weight"] = random.integers(-1, 2, shape, dtype=np.int8)
        scales = random.uniform(0.1, 1, tensor_names.scale_shape(config, *shape)).astype(np.float32)
        grouped = config.scales == "group"
        parts.floats[f"{name}.weight_scale"] = stored(scales, float_dtype) if grouped else scales
    for name, length in tensor_names.all_norms(config):
        parts.floats[name] = random.standard_normal(length).astype(np.float32)
    for name in tensor_names.float_tables(config):
        table = random.standard_normal((config.vocab_size, config.hidden_size), dtype=np.float32)
        parts.tables[name] = stored(table, float_dtype)
    return parts


def stored(values: NDArray[np.float32], float_dtype: str) -> NDArray[Any]:
    bits = (values.view(np.uint32) >> 16).astype("<u2")
    return bits if float_dtype == "BF16" else values.astype(DTYPES[float_dtype])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("float_dtype", reader.FLOATS)
@pytest.mark.parametrize("text", [TEXT, TextFiles()], ids=["text", "no text"])
def test_what_went_in_comes_out(
    tied: bool, float_dtype: str, text: TextFiles, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, tie_word_embeddings=tied, eos_token_ids=(1, 2))
    assert_round_trip(config, float_dtype, text, tmp_path)


# What the published families have beside 2B4T's.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_act": "silu",
        "sub_norms": False,
        "rope_scaling": Llama3Scaling(
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        ),
    },
    "rows": {"scales": "row", "tie_word_embeddings": False},
    "bonsai": {
        "hidden_act": "silu",
        "sub_norms": False,
        "qk_norms": True,
        "scales": "group",
        "ternary_embeddings": True,
        "rope_scaling": YarnScaling(
            factor=4.0, original_max_position_embeddings=16384, attention_factor=1.1
        ),
    },
    "untied bonsai": {"scales": "group", "ternary_embeddings": True, "tie_word_embeddings": False},
    "groups, float tables": {"scales": "group"},
    "gemma": {
        "hidden_act": "gelu_pytorch_tanh",
        "sub_norms": False,
        "qk_norms": True,
        "post_norms": True,
        "projection_norm_eps": 1e-6,
        "embedding_scale": 3.3,
        "query_pre_attn_scalar": 256.0,
        "rope_scaling": LinearScaling(factor=8.0),
        "layer_types": ("sliding_attention",),
        "sliding_window": 512,
        "rope_local_base_freq": 1e4,
    },
}


@pytest.mark.parametrize("float_dtype", reader.FLOATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_families_come_out_as_they_went_in(family: str, float_dtype: str, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, **FAMILIES[family])
    assert_round_trip(config, float_dtype, TEXT, tmp_path)
    assert PackedModel(tmp_path / "m").has_screen != config.ternary_embeddings


def test_a_file_may_be_written_without_a_screen(tmp_path: Path) -> None:
    parts = random_parts(CONFIG)
    with packed_writer(tmp_path / "m", CONFIG, "BF16", TEXT, "", screened=False) as file:
        for name, _, _ in declare(CONFIG, "BF16", TEXT, screened=False):
            if name in parts.codes:
                order = tensor_names.order(CONFIG, name.removesuffix(".weight"))
                file.write(name, packing.pack(parts.codes[name], "2-bit", order))
            elif name == tensor_names.TOKENIZER:
                file.write(name, np.frombuffer(TEXT.tokenizer or b"", dtype=np.uint8))
            else:
                file.write(name, {**parts.floats, **parts.tables}[name])
    assert not PackedModel(tmp_path / "m").has_screen


def assert_round_trip(
    config: ModelConfig, float_dtype: str, text: TextFiles, tmp_path: Path
) -> None:
    parts = random_parts(config, float_dtype)
    parts.write(tmp_path / "m", float_dtype, text)
    model = PackedModel(tmp_path / "m")
    assert model.config == config
    assert model.text == text
    arrays = model.arrays()
    for name, codes in parts.codes.items():
        order = tensor_names.order(config, name.removesuffix(".weight"))
        assert np.array_equal(packing.unpack(arrays[name], *codes.shape, "2-bit", order), codes)
    for name, array in {**parts.floats, **parts.tables}.items():
        assert arrays[name].dtype == array.dtype
        assert np.array_equal(arrays[name], array)
    assert set(arrays) == {*parts.codes, *parts.floats, *parts.tables}


def test_the_bytes_by_part_are_those_of_all_tensors(model_file: Path) -> None:
    tensors = PackedModel(model_file).file.tensors
    parts = bytes_by_part(tensors)
    assert sum(parts.values()) == sum(info.size_bytes for info in tensors.values())
    assert parts["tokenizer"] == tensors[tensor_names.TOKENIZER].size_bytes
    assert parts["screen"] == sum(tensors[name].size_bytes for name in tensor_names.SCREEN)


def read_as_documented(path: Path) -> dict[str, NDArray[Any]]:
    """A reader of the file that knows docs/format.md, numpy and the public library only."""
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        assert (metadata["format"], metadata["version"]) == ("trilobit", "5")
        c = json.loads(metadata["config"])
        h, f = c["hidden_size"], c["intermediate_size"]
        q, kv = (c[f"num_{kind}_heads"] * c["head_dim"] for kind in ("attention", "key_value"))
        shapes = {
            "self_attn.q_proj": (q, h),
            "self_attn.k_proj": (kv, h),
            "self_attn.v_proj": (kv, h),
            "self_attn.o_proj": (h, q),
            "mlp.gate_proj": (f, h),
            "mlp.up_proj": (f, h),
            "mlp.down_proj": (h, f),
        }
        weights = {}
        for n, (name, (rows, columns)) in itertools.product(
            range(c["num_hidden_layers"]), shapes.items()
        ):
            name = f"model.layers.{n}.{name}"
            packed = file.get_tensor(f"{name}.weight")
            r, k = np.ogrid[:rows, :columns]
            if packed.ndim == 2 and name.endswith("up_proj"):
                codes = packed[r, k // 16 * 4 + k % 4] >> (2 * (k % 16 // 4)) & 3
            elif packed.ndim == 2 and name.endswith("down_proj"):
                codes = packed[k, r // 16 * 4 + r % 4] >> (2 * (r % 16 // 4)) & 3
            else:
                codes = packed[r // 16, k // 16, r % 16, k % 4] >> (2 * (k % 16 // 4)) & 3
            weights[name] = (codes.astype(np.float32) - 1) * file.get_tensor(f"{name}.weight_scale")
        return weights


@pytest.mark.parametrize("config", [CONFIG, WIDE], ids=["narrow", "wide"])
def test_the_description_suffices_to_read_the_weights(config: ModelConfig, tmp_path: Path) -> None:
    parts = random_parts(config)
    parts.write(tmp_path / "m", "BF16", TEXT)
    weights = read_as_documented(tmp_path / "m")
    assert {f"{name}.weight" for name in weights} == set(parts.codes)
    for name, weight in weights.items():
        scale = parts.floats[f"{name}.weight_scale"]
        assert np.array_equal(weight, parts.codes[f"{name}.weight"] * scale)


def test_the_description_suffices_to_read_a_converted_checkpoint(
    checkpoint: Path, model_file: Path
) -> None:
    source = SafetensorsFile(checkpoint / "model.safetensors")
    for name, weight in read_as_documented(model_file).items():
        rows = source.array(f"{name}.weight")  # transformers: four rows a byte, a quarter apart
        codes = np.concatenate([rows >> 2 * i & 3 for i in range(4)])[: len(weight)]
        scale = source.float32(f"{name}.weight_scale")
        assert np.array_equal(weight, (codes.astype(np.float32) - 1) * scale)


def rewritten(path: Path, out: Path, version: str, alone: bool) -> None:
    """The same model with the matrices in groups, or those alone that may be, and an old screen."""
    model = PackedModel(path)
    tensors = load_file(path)
    for name in (tensor_names.CHECKSUMS, *tensor_names.SCREEN):
        del tensors[name]
    for name in tensor_names.OLD_SCREEN:
        tensors[name] = np.zeros(64, dtype=np.uint8)
    for name, (rows, columns) in tensor_names.all_projections(model.config):
        codes = packing.unpack(tensors[f"{name}.weight"], rows, columns, "2-bit", model.order(name))
        order = tensor_names.alone(model.config, name) if alone else "groups"
        tensors[f"{name}.weight"] = packing.pack(codes, "2-bit", order)
    save_file(tensors, out, {**model.file.metadata, "version": version})


@pytest.mark.parametrize("config", [CONFIG, WIDE], ids=["narrow", "wide"])
@pytest.mark.parametrize(("version", "alone"), [("2", False), ("3", False), ("4", True)])
def test_files_in_other_orders_run_and_are_converted(
    config: ModelConfig, version: str, alone: bool, tmp_path: Path
) -> None:
    random_parts(config, "F32").write(tmp_path / "new", "F32", TextFiles())
    rewritten(tmp_path / "new", tmp_path / "old", version, alone)
    new, old = (PackedModel(tmp_path / name).arrays() for name in ("new", "old"))
    assert new.keys() == old.keys()
    for name in new:
        assert np.array_equal(new[name], old[name]), name
    with pytest.raises(FormatError, match="older version; convert it again: trilobit convert"):
        LLM(tmp_path / "old", head="screened")
    params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
    said = LLM(tmp_path / "old", threads=1).generate([1, 2], params).token_ids
    convert(tmp_path / "old", tmp_path / "anew.trilobit")
    assert PackedModel(tmp_path / "anew.trilobit").file.metadata["version"] == "5"
    for name, array in PackedModel(tmp_path / "anew.trilobit").arrays().items():
        assert np.array_equal(array, new[name]), name
    anew = LLM(tmp_path / "anew.trilobit", threads=1, head="screened")
    assert anew.generate([1, 2], params).token_ids == said


def test_the_documents_example_is_true() -> None:
    page = Path(__file__).parents[3] / "docs" / "format.md"
    codes = np.zeros((16, 16), dtype=np.int8)
    codes[1, [2, 6, 10, 14]] = 1, 0, -1, 1
    byte = packing.pack(codes)[0, 0, 1, 2]
    assert f"`packed[0, 0, 1, 2] = 2 | 1 << 2 | 0 << 4 | 2 << 6 = {byte:#x}`" in page.read_text(
        encoding="utf-8"
    )


# ---- damage -----------------------------------------------------------------------------------

Header = dict[str, Any]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "model.trilobit"
    random_parts(CONFIG).write(path, "BF16", TEXT)
    return path


@dataclass
class Loose:
    """A packed file taken apart: change it, then write it as a sound safetensors file."""

    metadata: dict[str, str]
    tensors: dict[str, tuple[str, list[int], bytes]]  # dtype, shape, data

    @classmethod
    def take(cls, path: Path) -> Loose:
        file = SafetensorsFile(path)
        return cls(
            dict(file.metadata),
            {
                name: (info.dtype, list(info.shape), file.array(name).tobytes())
                for name, info in file.tensors.items()
            },
        )

    def write(self, path: Path) -> Path:
        header: Header = {"__metadata__": self.metadata}
        end = 0
        for name, (dtype, shape, data) in self.tensors.items():
            offsets = [end, end := end + len(data)]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        raw = json.dumps(header).encode()
        raw += b" " * (-(8 + len(raw)) % 64)
        data = b"".join(data for _, _, data in self.tensors.values())
        path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
        return path

    def poke(self, name: str, at: int, value: bytes) -> None:
        dtype, shape, data = self.tensors[name]
        self.tensors[name] = dtype, shape, data[:at] + value + data[at + len(value) :]

    def set_float(self, name: str, at: int, value: float) -> None:
        self.poke(name, 4 * at, np.float32(value).tobytes())

    def set_config(self, **changes: object) -> None:
        config = {**json.loads(self.metadata["config"]), **changes}
        self.metadata["config"] = json.dumps(config)

    def drop_config(self, name: str) -> None:
        config = json.loads(self.metadata["config"])
        del config[name]
        self.metadata["config"] = json.dumps(config)

    def first(self, name: str, tensor: tuple[str, list[int], bytes]) -> None:
        self.tensors = {name: tensor, **self.tensors}


def reshaped(loose: Loose, name: str, dtype: str, shape: list[int]) -> None:
    size = int(np.prod(shape)) * DTYPES[dtype].itemsize
    loose.tensors[name] = dtype, shape, bytes(size)


CONVERT = "convert"
# What is done to the file -> what the message names, the remedy last.
DAMAGE: dict[str, tuple[Callable[[Loose], object], tuple[str, ...]]] = {
    "older version": (
        lambda f: f.metadata.update(version="0"),
        ("version '0'", "reads 2", "upgrade", CONVERT),
    ),
    "newer version": (lambda f: f.metadata.update(version="6"), ("version '6'", "upgrade")),
    "version 1": (lambda f: f.metadata.update(version="1"), ("version '1'", CONVERT)),
    "no version": (lambda f: f.metadata.pop("version"), ("version None", CONVERT)),
    "hostile version": (lambda f: f.metadata.update(version="1\n" * 10**5), ("version", CONVERT)),
    "foreign": (lambda f: f.metadata.update(format="pt"), ("not a packed", "trilobit convert")),
    "no metadata": (lambda f: f.metadata.clear(), ("not a packed", "trilobit convert")),
    "no config": (lambda f: f.metadata.pop("config"), ("config", CONVERT)),
    "config no JSON": (lambda f: f.metadata.update(config="{'a': 1}"), ("config", CONVERT)),
    "config too deep": (lambda f: f.metadata.update(config="[" * 10**5), ("config", CONVERT)),
    "config a list": (lambda f: f.metadata.update(config="[1]"), ("not an object", CONVERT)),
    "config lacks a field": (lambda f: f.drop_config("rope_theta"), ("rope_theta", CONVERT)),
    "config has one more": (lambda f: f.set_config(colour=1), ("'colour'", CONVERT)),
    "config impossible": (lambda f: f.set_config(head_dim=7), ("head_dim 7 is odd", CONVERT)),
    "config of strings": (lambda f: f.set_config(hidden_size="11"), ("hidden_size is '11'",)),
    "config with NaN": (
        lambda f: f.set_config(rms_norm_eps=float("nan")),
        ("rms_norm_eps is nan",),
    ),
    "config overflows": (lambda f: f.set_config(rope_theta=10**999), ("rope_theta", CONVERT)),
    "config of another model": (
        lambda f: f.set_config(intermediate_size=300),
        (f"'{LAYER}mlp.", "the config asks for", CONVERT),
    ),
    "fewer layers in the config": (
        lambda f: f.set_config(num_hidden_layers=2),
        ("'model.layers.1.", "is missing", CONVERT),
    ),
    "tied in the config": (
        lambda f: f.set_config(tie_word_embeddings=True),
        ("unknown tensor 'lm_head.weight'", CONVERT),
    ),
    "extra tensor": (
        lambda f: f.tensors.update({f"{LAYER}bias": ("U8", [1], b"0")}),
        (f"unknown tensor '{LAYER}bias'", CONVERT),
    ),
    "extra tensor of a hostile name": (
        lambda f: f.tensors.update({"a\n\ud800" + "x" * 10**4: ("U8", [1], b"0")}),
        (r"unknown tensor 'a\n\ud800xxx", CONVERT),
    ),
    "scale 0": (lambda f: f.set_float(SCALE, 0, 0), ("mlp.up_proj' is 0.0", CONVERT)),
    "scale negative": (lambda f: f.set_float(SCALE, 0, -1), ("mlp.up_proj' is -1.0", CONVERT)),
    "scale NaN": (lambda f: f.set_float(SCALE, 0, np.nan), ("mlp.up_proj' is nan", CONVERT)),
    "scale infinite": (lambda f: f.set_float(SCALE, 0, np.inf), ("mlp.up_proj' is inf", CONVERT)),
    "norm NaN": (lambda f: f.set_float(NORM, 3, np.nan), (f"'{NORM}' holds NaN", CONVERT)),
    "norm infinite": (lambda f: f.set_float(NORM, 0, -np.inf), (f"'{NORM}' holds NaN", CONVERT)),
    "code 3": (
        lambda f: f.poke(WEIGHT, 5, b"\xff"),
        ("self_attn.v_proj'", "no ternary value", CONVERT),
    ),
    "code 3 in the padding": (
        lambda f: f.poke(WEIGHT, 63, b"\x75"),
        ("self_attn.v_proj'", "no ternary value", CONVERT),
    ),
    "padding of rows": (lambda f: f.poke(WEIGHT, 63, b"\x54"), ("v_proj'", "padding", CONVERT)),
    "padding of columns": (lambda f: f.poke(WEIGHT, 3, b"\x95"), ("v_proj'", "padding", CONVERT)),
    "misaligned": (
        # three bytes of tokenizer before everything else
        lambda f: f.first(tensor_names.TOKENIZER, ("U8", [3], b"{} ")),
        ("tensor 'model.layers.0.", "not aligned", CONVERT),
    ),
    "tokenizer of floats": (
        lambda f: reshaped(f, tensor_names.TOKENIZER, "F32", [4]),
        ("'tokenizer.json' is F32 [4]", CONVERT),
    ),
    "embedding of integers": (
        lambda f: reshaped(f, tensor_names.EMBEDDING, "I16", [37, 11]),
        (f"'{tensor_names.EMBEDDING}' is I16", "BF16/F16/F32 [37, 11]", CONVERT),
    ),
    "embedding of fewer tokens": (
        lambda f: reshaped(f, tensor_names.EMBEDDING, "BF16", [36, 11]),
        (f"'{tensor_names.EMBEDDING}' is BF16 [36, 11]", CONVERT),
    ),
    "weights not in blocks": (
        lambda f: reshaped(f, WEIGHT, "U8", [1, 1, 64]),
        (f"'{WEIGHT}' is U8 [1, 1, 64]", "[1, 1, 16, 4]", CONVERT),
    ),
    "weights signed": (lambda f: reshaped(f, WEIGHT, "I8", [1, 1, 16, 4]), (f"'{WEIGHT}' is I8",)),
    "scale half": (lambda f: reshaped(f, SCALE, "F16", [1]), (f"'{SCALE}' is F16", CONVERT)),
    "scale by row": (lambda f: reshaped(f, SCALE, "F32", [134]), (f"'{SCALE}' is F32 [134]",)),
    "norm of another length": (
        lambda f: reshaped(f, NORM, "F32", [19]),
        (f"'{NORM}' is F32 [19]",),
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named(case: str, sound: Path, tmp_path: Path) -> None:
    damage, parts = DAMAGE[case]
    loose = Loose.take(sound)
    assert PackedModel(loose.write(tmp_path / "whole")).arrays()
    damage(loose)
    assert_refused(loose.write(tmp_path / "damaged"), *parts)


def assert_refused(path: Path, *parts: str) -> None:
    with pytest.raises(FormatError) as error:
        PackedModel(path).arrays()
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < len(str(path)) + 300
    for part in parts:
        assert part in message


def test_every_tensor_must_be_there(sound: Path, tmp_path: Path) -> None:
    needed = set(Loose.take(sound).tensors) - {
        *tensor_names.SCREEN,
        tensor_names.TOKENIZER,
        tensor_names.CHECKSUMS,
    }
    for name in sorted(needed):
        loose = Loose.take(sound)
        del loose.tensors[name]
        assert_refused(loose.write(tmp_path / "m"), f"'{name}' is missing", CONVERT)


def test_places_that_hold_no_packed_file_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    assert_refused(checkpoint, "a directory", f"trilobit convert {checkpoint}")
    assert_refused(checkpoint / "model.safetensors", "not a packed", "trilobit convert")
    assert_refused(checkpoint / "config.json", "not a safetensors file")
    assert_refused(tmp_path / "none", "no such file")
    with pytest.raises(FormatError, match="no such file"):
        PackedModel("x" * 5000)


# ---- the screen of the head -------------------------------------------------------------------


def test_the_screen_is_that_of_the_head(sound: Path) -> None:
    model = PackedModel(sound)
    assert model.has_screen
    arrays = model.arrays(screened=True)
    expected = screen.screen(model.file.float32(tensor_names.HEAD))
    parts = [part for plane in expected.values() for part in plane]
    for name, array in zip(tensor_names.SCREEN, parts, strict=True):
        assert np.array_equal(arrays[name], array)
    assert set(tensor_names.SCREEN).isdisjoint(model.arrays())


def test_a_file_without_a_screen_runs_the_same(model_file: Path, tmp_path: Path) -> None:
    loose = Loose.take(model_file)
    for name in tensor_names.SCREEN:
        del loose.tensors[name]
    path = loose.write(tmp_path / "m")
    assert not PackedModel(path).has_screen
    params = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    a, b = (LLM(p, threads=1).generate("Once", params) for p in (model_file, path))
    assert a.token_ids == b.token_ids


@pytest.mark.parametrize("missing", [*((i,) for i in range(6)), (0, 1, 2), (3, 4, 5)])
def test_part_of_a_screen_is_refused(missing: tuple[int, ...], sound: Path, tmp_path: Path) -> None:
    loose = Loose.take(sound)
    for i in missing:
        del loose.tensors[tensor_names.SCREEN[i]]
    first = tensor_names.SCREEN[missing[0]]
    assert_refused(loose.write(tmp_path / "m"), f"'{first}' is missing", CONVERT)


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [
        ("lm_head.screen.coarse.codes", "I8", [3, 4, 16, 4]),
        ("lm_head.screen.coarse.codes", "U8", [2, 4, 16, 4]),
        ("lm_head.screen.fine.codes", "U8", [37, 16]),
        ("lm_head.screen.coarse.scales", "F32", [36]),
        ("lm_head.screen.fine.residuals", "F16", [37]),
    ],
)
def test_a_screen_of_another_shape_is_refused(
    name: str, dtype: str, shape: list[int], sound: Path, tmp_path: Path
) -> None:
    loose = Loose.take(sound)
    reshaped(loose, name, dtype, shape)
    assert_refused(loose.write(tmp_path / "m"), f"'{name}' is {dtype} {shape}", CONVERT)


@pytest.mark.parametrize("name", ["lm_head.screen.coarse.scales", "lm_head.screen.fine.residuals"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_a_screen_without_sizes_is_refused_where_it_is_used(
    name: str, value: float, sound: Path, tmp_path: Path
) -> None:
    loose = Loose.take(sound)
    loose.set_float(name, 36, value)
    model = PackedModel(loose.write(tmp_path / "m"))
    with pytest.raises(FormatError, match=f"'{name}' holds NaN, infinity or a negative number"):
        model.arrays(screened=True)
    assert model.arrays()


# ---- any damage at all ------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_truncation_is_refused(sound: Path, data: st.DataObject) -> None:
    whole = sound.read_bytes()
    path = sound.with_name("cut")
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(FormatError, match="cut: "):
        PackedModel(path)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_changed_byte_opens_or_is_refused(sound: Path, data: st.DataObject) -> None:
    whole = bytearray(sound.read_bytes())
    # The header is small beside the data, and its bytes matter more.
    end = min(info.begin for info in PackedModel(sound).file.tensors.values())
    at = data.draw(st.one_of(st.integers(0, end - 1), st.integers(0, len(whole) - 1)))
    whole[at] = data.draw(st.integers(0, 255))
    path = sound.with_name("flipped")
    path.write_bytes(whole)
    with suppress(TrilobitError):
        PackedModel(path).arrays(screened=True)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_changed_byte_that_opens_runs(small_model: Path, data: st.DataObject) -> None:
    whole = bytearray(small_model.read_bytes())
    tensors = PackedModel(small_model).file.tensors
    header = min(info.begin for info in tensors.values())
    tokenizer = tensors[tensor_names.TOKENIZER]
    at = data.draw(
        st.one_of(
            st.integers(0, header - 1),
            st.integers(header, len(whole) - 1),
            st.integers(tokenizer.begin, tokenizer.end - 1),
        )
    )
    whole[at] = data.draw(st.integers(0, 255))
    path = small_model.with_name("flipped")
    path.write_bytes(whole)
    params = SamplingParams(max_tokens=3, temperature=0.7, seed=1)
    with suppress(TrilobitError):
        llm = LLM(path, threads=1, kv_memory_mb=1)
        llm.generate([1, 2], params)
        llm.generate("Once upon", params)


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """The shared tiny model in a folder of its own."""
    path = tmp_path_factory.mktemp("small") / "model.trilobit"
    convert(checkpoint, path)
    return path


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("name", [tensor_names.EMBEDDING, tensor_names.SCREEN[1], SCALE, NORM])
def test_hostile_floats_do_not_crash_the_engine(
    name: str, value: float, model_file: Path, tmp_path: Path
) -> None:
    loose = Loose.take(model_file)
    dtype, shape, data = loose.tensors[name]
    if dtype == "BF16":
        bits = int(np.float32(value).view(np.uint32)) >> 16
        array: NDArray[Any] = np.full(len(data) // 2, bits, dtype="<u2")
    else:
        array = np.full(len(data) // 4, value, dtype="<f4")
    loose.tensors[name] = dtype, shape, array.tobytes()
    path = loose.write(tmp_path / "m")
    for params in (SamplingParams(max_tokens=3), SamplingParams(max_tokens=3, temperature=0)):
        for head in ("screened", "full"):
            with suppress(TrilobitError):
                done = LLM(path, threads=1, head=head).generate([1, 2, 3], params)  # type: ignore[arg-type]
                assert all(0 <= i < 331 for i in done.token_ids)
