"""LoRA adapters beside a frozen model: the engine computes what stock peft does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import stock
import torch
from adapters import ALL, random_adapter
from conftest import tiny_config
from fables import command, one_error
from peft import PeftModel
from safetensors.numpy import load_file, save_file

from trilobit import LLM, RequestError, SamplingParams, _native
from trilobit.conversion import convert
from trilobit.errors import FormatError, TrilobitError, UnsupportedModel
from trilobit.formats.open import open_source
from trilobit.model import ternary

# peft 0.21 asks transformers 5.23 for a property by its older name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

IDS = [int(i) for i in np.arange(70) * 7 % 300]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_adapter(tmp_path_factory.mktemp("adapter") / "all", tiny_config())


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("Llama3-8B-1.58", ("up_proj",)),
        ("Qwen3 fine-tuned", ALL),
        ("Gemma3 fine-tuned", ("o_proj", "down_proj")),  # norms behind these
    ],
)
def test_logits_are_those_of_stock_peft(
    family: str, targets: tuple[str, ...], tmp_path: Path
) -> None:
    base = families.random_masters(tmp_path / "base", family)
    config = open_source(base).config
    folder = random_adapter(tmp_path / "adapter", config, targets=targets)
    convert(base, tmp_path / "base.trilobit")
    ids = [i % config.vocab_size for i in IDS]
    with stock.not_compiled():
        model = PeftModel.from_pretrained(families.stock_model(base), folder).eval()
    theirs = stock.logits(model, torch.tensor([ids]))[0].numpy()
    with LLM(tmp_path / "base.trilobit", adapter=folder, kv_dtype="f32") as llm:
        ours = llm.logits(ids)
    with LLM(tmp_path / "base.trilobit", kv_dtype="f32") as llm:
        plain = llm.logits(ids)
    # Rarely an input lies so near the middle of two codes that rounding decides otherwise.
    far = np.abs(ours - theirs).max(axis=1) > 1e-3 * np.abs(theirs).max()
    assert far.mean() <= 0.1
    assert np.abs(plain - theirs).max() > 0.1 * np.abs(theirs).max()  # it does something


def test_no_bit_depends_on_threads_chunks_or_batch(model_file: Path, adapter: Path) -> None:
    found = []
    for threads, chunk in ((1, 256), (2, 256), (2, 1), (3, 17)):
        with LLM(model_file, adapter=adapter, threads=threads, max_batch_tokens=chunk) as llm:
            found.append(llm.logits(IDS))
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    with LLM(model_file, adapter=adapter) as llm:
        several = [IDS, IDS[:9], IDS[5:40]]
        for ids, score in zip(several, llm.score(several), strict=True):
            np.testing.assert_array_equal(score.logprobs, llm.score(ids).logprobs)


PROGRAM = """
import hashlib, sys
import numpy as np
from trilobit import LLM

model, adapter = sys.argv[1:]
logits = LLM(model, adapter=adapter).logits([int(i) for i in np.arange(70) * 7 % 300])
print(hashlib.sha256(logits.tobytes()).hexdigest())
"""


@pytest.mark.parametrize("isa", _native.isas())
def test_every_instruction_set_gives_the_same_bits(
    isa: str, model_file: Path, adapter: Path
) -> None:
    with LLM(model_file, adapter=adapter) as llm:
        mine = hashlib.sha256(llm.logits(IDS).tobytes()).hexdigest()
    run = [sys.executable, "-c", PROGRAM, str(model_file), str(adapter)]
    environment = {**os.environ, "TRILOBIT_ISA": isa}
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == mine


def test_an_adapter_that_adds_nothing_changes_nothing(model_file: Path, tmp_path: Path) -> None:
    folder = random_adapter(tmp_path / "zero", tiny_config(), size=0)
    with LLM(model_file) as plain, LLM(model_file, adapter=folder) as llm:
        np.testing.assert_array_equal(llm.logits(IDS), plain.logits(IDS))


def test_guesses_change_no_token(model_file: Path, adapter: Path) -> None:
    params = SamplingParams(max_tokens=60, temperature=0)
    texts = []
    for speculation in (False, True):
        with LLM(model_file, adapter=adapter, speculation=speculation) as llm:
            texts.append(llm.generate(IDS[:8] * 4, params).token_ids)
    assert texts[0] == texts[1]


def test_fingerprints_and_what_is_kept_of_prompts_are_an_adapters_own(
    model_file: Path, adapter: Path, tmp_path: Path
) -> None:
    other = random_adapter(tmp_path / "other", tiny_config(), targets=("q_proj",))
    prints, logits = set(), []
    for folder in (None, adapter, other, None, adapter):
        with LLM(model_file, adapter=folder, prefix_cache=tmp_path / "kept") as llm:
            prints.add(llm.fingerprint)
            logits.append(llm.score(IDS, first=60).logprobs.tolist())
    assert len(prints) == 3
    assert logits[:2] == logits[3:]
    assert logits[0] != logits[1] != logits[2]


def test_commands_take_an_adapter(model_file: Path, adapter: Path) -> None:
    asked = ("Once", "--model", str(model_file), "--max-tokens", "8", "--json", "--seed", "1")
    plain, adapted = (
        command("generate", *asked, *more) for more in ((), ("--adapter", str(adapter)))
    )
    assert (plain.code, adapted.code) == (0, 0)
    texts = [json.loads(outcome.out)["text"] for outcome in (plain, adapted)]
    assert texts[0] != texts[1]
    outcome = command("generate", *asked, "--adapter", str(model_file))
    assert one_error(outcome).endswith(
        "give a folder with adapter_config.json and adapter_model.safetensors"
    )


@pytest.mark.parametrize("words", [("info",), ("generate", "Once", "--model"), ("verify",)])
def test_an_adapter_in_a_models_place_is_told_from_one(
    words: tuple[str, ...], adapter: Path
) -> None:
    assert one_error(command(*words, str(adapter))) == (
        f"{adapter}: is an adapter, which runs beside its model; give the model, and --adapter DIR"
    )


def test_merging_rounds_the_masters_with_what_is_added(tmp_path: Path) -> None:
    base = families.random_masters(tmp_path / "base", "Llama3-8B-1.58")
    folder = random_adapter(tmp_path / "adapter", open_source(base).config, targets=("q_proj",))
    convert(base, tmp_path / "merged.trilobit", adapter=folder)
    merged, plain = open_source(tmp_path / "merged.trilobit"), open_source(base)
    masters = load_file(base / "model.safetensors")
    added = load_file(folder / "adapter_model.safetensors")
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"):
        down, up = (added[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        codes, scale = ternary.absmean_ternary(masters[f"{name}.weight"] + 2 * (up @ down))
        got, got_scale = merged.projection(name)
        assert (got != codes).mean() < 1e-3  # a sum in another order lies on the other side
        assert got_scale == pytest.approx(scale, rel=1e-5)
        assert (got != plain.projection(name)[0]).mean() > 0.05
    untouched = "model.layers.0.mlp.up_proj"
    np.testing.assert_array_equal(merged.projection(untouched)[0], plain.projection(untouched)[0])


def test_codes_alone_are_not_merged_into(model_file: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has codes only, and an adapter merges into float"):
        convert(model_file, tmp_path / "out.trilobit", adapter=adapter)
    assert not (tmp_path / "out.trilobit").exists()


def test_a_model_whose_matrices_have_norms_of_their_own_takes_no_adapter(tmp_path: Path) -> None:
    base = families.random_masters(tmp_path / "base", "BitNet-embedding-0.6B")
    convert(base, tmp_path / "base.trilobit")
    folder = random_adapter(tmp_path / "adapter", open_source(base).config)
    with pytest.raises(UnsupportedModel, match="begin with norms of their own"):
        LLM(tmp_path / "base.trilobit", adapter=folder)


# ---- bad adapters -----------------------------------------------------------------------------

Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = Q.replace("lora_A", "lora_B")


def settings(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def tensors(change: Callable[[dict[str, Any]], Any], **metadata: str) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        values = load_file(path)
        change(values)
        save_file(values, path, {key.replace("_", "."): value for key, value in metadata.items()})

    return rewrite


def nothing(_: dict[str, Any]) -> None:
    pass


BAD = {
    "of rank 0": (settings(r=0), "r is '0'; it must be from 1 to 4096"),
    "of another rank": (settings(r=4), "and the rank 4"),
    "of no LoRA": (settings(peft_type="IA3"), "peft_type is 'IA3'"),
    "with DoRA": (settings(use_dora=True), "use_dora is set"),
    "with ranks by layer": (settings(rank_pattern={"q_proj": 8}), "rank_pattern is set"),
    "with biases": (settings(bias="all"), "bias is 'all'"),
    "of a changed base": (settings(init_lora_weights="pissa"), "changes the base as well"),
    "without alpha": (settings(lora_alpha=None), "lora_alpha is 'None'"),
    "with infinite alpha": (settings(lora_alpha=float("inf")), "lora_alpha is 'inf'"),
    "that overflows": (tensors(lambda v: v[B].fill(3e38)), "is scaled beyond float32"),
    "with NaN": (tensors(lambda v: v[Q].fill(np.nan)), "holds NaN or infinity"),
    "cut by a row": (tensors(lambda v: v.update({Q: v[Q][:4].copy()})), "is adapted by"),
    "of a narrower model": (
        tensors(lambda v: v.update({Q: v[Q][:, :32].copy()})),
        "the model's matrix is [60, 60]",
    ),
    "with integers": (tensors(lambda v: v.update({Q: v[Q].astype(np.int32)})), "is I32"),
    "with half a pair": (tensors(lambda v: v.pop(B)), f"tensor '{B}' is missing"),
    "with a foreign tensor": (
        tensors(lambda v: v.update({Q.replace("layers.0", "layers.9"): v[Q]})),
        "is no part of a LoRA adapter of this model",
    ),
    "of nothing": (tensors(lambda v: v.clear(), format="pt"), "adapts nothing"),
    "of another model": (tensors(nothing, trilobit_base="0" * 16), "was trained on another model"),
    "without a config": (lambda f: (f / "adapter_config.json").unlink(), "no adapter; give a"),
    "without weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "adapter_model"),
    "that is no JSON": (lambda f: (f / "adapter_config.json").write_text("{"), "is not JSON"),
    "cut off": (
        lambda f: (f / "adapter_model.safetensors").write_bytes(b"\x40" + bytes(7) + b"{" * 20),
        "cut off",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_adapter_is_one_line(what: str, model_file: Path, tmp_path: Path) -> None:
    change, reason = BAD[what]
    folder = random_adapter(tmp_path / "bad", tiny_config())
    change(folder)
    with pytest.raises(TrilobitError) as caught:
        LLM(model_file, adapter=folder)
    assert isinstance(caught.value, FormatError | UnsupportedModel)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
