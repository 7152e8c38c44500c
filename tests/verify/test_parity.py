"""Our logits and texts against stock transformers, the reference that we did not write.

`ties.py` says what can be claimed of two float implementations, and holds it against them.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ties import Stock, rounding_ties
from transformers import BitNetConfig, BitNetForCausalLM

from trilobit import LLM, SamplingParams, _native
from trilobit.bundled import DEFAULT, bundled_models
from trilobit.conversion import Form, convert
from trilobit.formats.hf.config import to_hf
from trilobit.formats.hf.reader import pack_hf
from trilobit.formats.packed.reader import PackedModel
from trilobit.formats.safetensors import SafetensorsWriter
from trilobit.model import packing, tensor_names

# torch warns about itself when it loads what even an uncompiled torch.compile needs.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def _plain_torch() -> Iterator[None]:
    # transformers compiles its quantisers, which takes a minute and fuses their roundings.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small products: a second thread only waits for a busy core
    with torch.compiler.set_stance("force_eager"):
        yield
    torch.set_num_threads(threads)


# ---- random models ----------------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "odd sizes, groups of 3": {},
    "head_dim 100, vocabulary 32002": {
        "vocab_size": 32002,
        "hidden_size": 200,
        "intermediate_size": 300,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
    "untied, no groups": {
        "tie_word_embeddings": False,
        "hidden_size": 96,
        "intermediate_size": 257,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "num_hidden_layers": 3,
    },
    "one kv head, far rotations": {
        "hidden_size": 192,
        "intermediate_size": 384,
        "num_attention_heads": 12,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
}


def random_checkpoint(directory: Path, **changes: Any) -> Path:
    """A checkpoint as transformers writes it, with float32 masters (online)."""
    torch.manual_seed(0)
    values = {
        "vocab_size": 331,
        "hidden_size": 60,
        "intermediate_size": 140,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1100,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    model = BitNetForCausalLM(BitNetConfig(**{**values, **changes}))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_(torch.exp(0.3 * torch.randn_like(weight)))
            elif "proj" in name:
                weight.copy_(torch.randn_like(weight) * weight.shape[1] ** -0.5)
            else:  # rows of different lengths, as trained embeddings have
                spread = torch.exp(0.3 * torch.randn(len(weight), 1))
                weight.copy_(torch.randn_like(weight) * spread)
    model.save_pretrained(directory)
    declare(directory, "autobitlinear", "online")
    return directory


def declare(directory: Path, linear_class: str, mode: str) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = {
        "quant_method": "bitnet",
        "linear_class": linear_class,
        "quantization_mode": mode,
    }
    path.write_text(json.dumps(config))


def stock_model(directory: Path) -> BitNetForCausalLM:
    return BitNetForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )


def packed_as_stock(path: Path, directory: Path, linear_class: str) -> Path:
    """A packed file written back as a published checkpoint: uint8 codes and `weight_scale`."""
    model = PackedModel(path)
    config, arrays = model.config, model.arrays()
    tensors: dict[str, tuple[str, np.ndarray]] = {}
    for name, (rows, columns) in tensor_names.all_projections(config):
        codes = packing.unpack(arrays[f"{name}.weight"], rows, columns, "2-bit", model.order(name))
        scale = arrays[f"{name}.weight_scale"]
        tensors[f"{name}.weight"] = "U8", pack_hf(codes)
        divided = linear_class == "bitlinear"
        tensors[f"{name}.weight_scale"] = "F32", np.float32(1) / scale if divided else scale
    for name, _ in tensor_names.all_norms(config):
        tensors[name] = "F32", arrays[name]
    for name in [tensor_names.EMBEDDING] + (
        [] if config.tie_word_embeddings else [tensor_names.HEAD]
    ):
        tensors[name] = "F32", model.file.float32(name)  # widened: exact
    BitNetConfig(**to_hf(config)).save_pretrained(directory)
    declared = [(name, dtype, array.shape) for name, (dtype, array) in tensors.items()]
    with SafetensorsWriter(directory / "model.safetensors", declared, {"format": "pt"}) as file:
        for name, (_, array) in tensors.items():
            file.write(name, array)
    declare(directory, linear_class, "offline")
    return directory


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("parity") / "checkpoint"
    return random_checkpoint(directory, **CASES[request.param])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("parity") / "checkpoint")


def random_ids(seed: int, count: int, vocabulary: int = 331) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocabulary, count).tolist()


def assert_parity(checkpoint: Path, tmp_path: Path, prompts: list[list[int]]) -> None:
    convert(checkpoint, tmp_path / "model.trilobit")
    llm = LLM(tmp_path / "model.trilobit", kv_dtype="f32", threads=1)
    stock = Stock(stock_model(checkpoint))
    for ids in prompts:
        ties = rounding_ties(stock, ids, llm.logits(ids))
        # Needed for a few tokens only: the search is no way to explain a wrong model.
        assert len(ties) <= 1 + len(ids) // 20


# ---- the claims -------------------------------------------------------------------------------


def test_logits_are_those_of_stock_transformers_but_for_rounding_ties(
    case: Path, tmp_path: Path
) -> None:
    vocabulary = json.loads((case / "config.json").read_text())["vocab_size"]
    prompts = [random_ids(length, length, vocabulary) for length in (1, 2, 33, 64, 120)]
    assert_parity(case, tmp_path, prompts)


def test_the_search_explains_no_real_difference(plain: Path, tmp_path: Path) -> None:
    convert(plain, tmp_path / "model.trilobit")
    ids = random_ids(3, 40)
    ours = LLM(tmp_path / "model.trilobit", kv_dtype="f32", threads=1).logits(ids)
    stock = Stock(stock_model(plain))
    assert not rounding_ties(stock, ids, ours)
    with torch.no_grad():  # one weight of 60 * 60, from 0 or ±1 to another code
        weight = stock.model.model.layers[1].self_attn.o_proj.weight
        weight[7, 11] = 0.0 if weight[7, 11].abs() > weight.abs().mean() / 2 else 1.0
    with pytest.raises(AssertionError, match="no rounding tie explains it"):
        rounding_ties(stock, ids, ours)


def test_eight_independent_ties_of_one_token_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So many inputs of the last matrix that eight of them are ties; none moves another.
    wide = random_checkpoint(tmp_path / "wide", intermediate_size=8000, num_hidden_layers=1)
    monkeypatch.setattr("ties.NEAR", 2e-3)
    stock = Stock(stock_model(wide))
    ids = random_ids(4, 6)
    _, near = stock.logits(ids, {})
    here = sorted((n for n in near if n.tie[:2] == (5, 3)), key=lambda n: n.distance)
    turned = {one.tie: -one.side for one in here[:8]}
    assert len(turned) == 8
    ours, _ = stock.logits(ids, turned)
    found = rounding_ties(stock, ids, ours)
    assert found.items() >= turned.items()


def test_positions_beyond_one_and_two_attention_spans(plain: Path, tmp_path: Path) -> None:
    convert(plain, tmp_path / "model.trilobit")
    ids = random_ids(11, 1090)
    ours = LLM(tmp_path / "model.trilobit", kv_dtype="f32", threads=1).logits(ids)
    # In float64, so that stock's own roundings over 1090 keys do not add ties of their own.
    ties = rounding_ties(Stock(stock_model(plain).double()), ids, ours)
    assert len(ties) <= len(ids) // 50


def test_bfloat16_masters(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "checkpoint")
    model = BitNetForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    model.save_pretrained(checkpoint)
    assert_parity(checkpoint, tmp_path, [random_ids(5, 64)])


@pytest.mark.parametrize("linear_class", ["autobitlinear", "bitlinear"])
def test_published_packed_checkpoints(plain: Path, tmp_path: Path, linear_class: str) -> None:
    convert(plain, tmp_path / "from_masters.trilobit")
    checkpoint = packed_as_stock(
        tmp_path / "from_masters.trilobit", tmp_path / "packed", linear_class
    )
    assert_parity(checkpoint, tmp_path, [random_ids(6, 64)])


@pytest.mark.parametrize("form", ["hf", "hf-bf16"])
def test_written_checkpoints(plain: Path, tmp_path: Path, form: Form) -> None:
    convert(plain, tmp_path / "from_masters.trilobit")
    convert(tmp_path / "from_masters.trilobit", tmp_path / "written", form)
    assert_parity(tmp_path / "written", tmp_path, [random_ids(7, 64)])


@pytest.mark.parametrize("isa", _native.isas())
def test_every_instruction_set(plain: Path, tmp_path: Path, isa: str) -> None:
    convert(plain, tmp_path / "model.trilobit")
    ids = random_ids(8, 100)
    program = (
        "import sys, numpy, json; from trilobit import LLM\n"
        "llm = LLM(sys.argv[1], kv_dtype='f32')\n"
        "numpy.save(sys.argv[2], llm.logits(json.loads(sys.argv[3])))\n"
    )
    model, logits = tmp_path / "model.trilobit", tmp_path / "logits.npy"
    subprocess.run(
        [sys.executable, "-c", program, model, logits, json.dumps(ids)],
        env={**os.environ, "TRILOBIT_ISA": isa},
        check=True,
    )
    rounding_ties(Stock(stock_model(plain)), ids, np.load(logits))


def test_half_precision_cache_changes_logits_by_little(plain: Path, tmp_path: Path) -> None:
    convert(plain, tmp_path / "model.trilobit")
    ids = random_ids(9, 600)
    full = LLM(tmp_path / "model.trilobit", kv_dtype="f32", threads=1).logits(ids)
    half = LLM(tmp_path / "model.trilobit", threads=1).logits(ids)
    assert (full != half).any()
    # Keys and values lose 2^-11 of their size, which moves some activations to a neighbouring
    # code: a step of 1/127 somewhere in the token. The logits move by a hundredth of their spread.
    assert np.sqrt(np.mean((full - half) ** 2)) < 0.02 * full.std()
    assert (full.argmax(axis=1) == half.argmax(axis=1)).mean() > 0.97


# ---- greedy texts -----------------------------------------------------------------------------


def assert_greedy_texts_are_stock(
    path: Path, tmp_path: Path, prompts: list[list[int]], count: int, *, same: int
) -> None:
    """Texts equal stock's, at least `same` of them, or part where a rounding tie decides.

    A text is a chain of `count` choices: the first tie that turns one of them ends what can be
    compared, between stock in float32 and stock in float64 as well. A text of ours that parts is
    one that stock gives with the ties rounded our way; float64 tells without stock's own roundings.
    """
    stock = Stock(stock_model(packed_as_stock(path, tmp_path / "stock", "autobitlinear")))
    llm = LLM(path, kv_dtype="f32", threads=1)
    greedy = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
    prompts = sorted(prompts, key=len)
    ours = [list(completion.token_ids) for completion in llm.generate(prompts, greedy)]
    theirs: list[list[int]] = []
    for _, alike in itertools.groupby(prompts, key=len):  # one batch needs no padding
        theirs += stock.greedy(list(alike), count)
    stock.model.double()
    parted = 0
    for prompt, mine, other in zip(prompts, ours, theirs, strict=True):
        assert len(mine) == len(other) == count
        if mine == other:
            continue
        parted += 1
        first = next(i for i in range(count) if mine[i] != other[i])
        ids = prompt + mine[:first]
        logits, _ = stock.logits(ids, rounding_ties(stock, ids, llm.logits(ids)))
        assert int(logits[-1].argmax()) == mine[first]
    assert len(prompts) - parted >= same


def test_greedy_texts_of_a_random_model(plain: Path, tmp_path: Path) -> None:
    convert(plain, tmp_path / "model.trilobit")
    prompts = [random_ids(seed, 5) for seed in range(20)]
    assert_greedy_texts_are_stock(tmp_path / "model.trilobit", tmp_path, prompts, 60, same=10)


WHO = ("The dog", "A little girl", "Tom", "Lily", "The old bear", "Mom", "One bird", "Ben")
WHAT = (
    "wanted to play",
    "found a red ball",
    "was very sad because",
    "went to the park and saw",
    "had a new toy",
    "liked to help, so",
    "could not sleep and",
)
OPENINGS = [f"{who} {what}" for who in WHO for what in WHAT]


@pytest.fixture
def bundled_file() -> Path:
    path = bundled_models().get(DEFAULT)
    if path is None:
        pytest.skip("no bundled model in this installation")
    return path


def test_greedy_texts_of_the_bundled_model(bundled_file: Path, tmp_path: Path) -> None:
    llm = LLM(bundled_file, threads=1)
    prompts = [llm.encode(text) for text in OPENINGS]
    assert_greedy_texts_are_stock(bundled_file, tmp_path, prompts, 200, same=20)


def test_logits_of_the_bundled_model(bundled_file: Path, tmp_path: Path) -> None:
    checkpoint = packed_as_stock(bundled_file, tmp_path / "stock", "autobitlinear")
    llm = LLM(bundled_file, kv_dtype="f32", threads=1)
    ids = llm.encode(" ".join(OPENINGS[:9]))
    assert rounding_ties(Stock(stock_model(checkpoint)), ids, llm.logits(ids)) is not None
