"""Random checkpoints: of the right shape, the same for the same seed, and written as a stream."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_config

from trilobit import LLM, OutputError, RequestError, SamplingParams
from trilobit.conversion import convert
from trilobit.formats.packed.reader import PackedModel
from trilobit.formats.safetensors import SafetensorsFile
from trilobit.model.config import ModelConfig
from trilobit.model.packing import LAYOUTS, Layout
from trilobit.model.shapes import SHAPES, resized, shape
from trilobit.progress import Progress
from trilobit.synth import synth, synth_packed

# Billions of parameters that the names promise, the embedding among them. Llama 3's 8 billion have
# it twice, 0.5 billion each time. Of the families' shapes, the published numbers of parameters:
# Bonsai's are Qwen3's, the 0.6B has 595.78 million without norms before its projections.
BILLIONS = {
    "125m": 0.125, "350m": 0.35, "700m": 0.7, "1b": 1, "1.5b": 1.5, "2b4t": 2.4, "3b": 3.3,
    "3.8b": 3.8, "7b": 7, "8b": 7.5, "13b": 13, "30b": 30, "70b": 70, "100b": 100,
    "1bitllm-large": 0.73, "1bitllm-xl": 1.27, "1bitllm-3b": 3.3, "llama3-8b": 8.03,
    "falcon3-1b": 1.67, "falcon3-3b": 3.23, "falcon3-7b": 7.46, "falcon3-10b": 10.3,
    "falcon-e-3b": 3.05, "bonsai-1.7b": 1.72, "bonsai-4b": 4.02, "bonsai-8b": 8.19,
    "embedding-0.6b": 0.596, "embedding-270m": 0.268,
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_have_the_parameters_of_their_names(name: str) -> None:
    config = shape(name)
    # Names round, to two digits at most: half of the second of 1.1 is 5 %.
    within = 0.05 if name[0].isdigit() and not name.startswith("1bit") else 0.01
    assert config.parameters / 1e9 == pytest.approx(BILLIONS[name], rel=within)


def test_every_named_shape_is_checked() -> None:
    assert set(BILLIONS) == set(SHAPES)


def test_2b4t_is_the_published_model() -> None:
    config = shape("2b4t")
    assert config.ternary_parameters == 2_084_044_800
    assert config.vocab_size * config.hidden_size == 328_335_360


def test_unknown_shape_names_the_known() -> None:
    with pytest.raises(RequestError, match=r"unknown shape '5b'; known: 125m, .*100b"):
        shape("5b")


@pytest.mark.parametrize("form", ["packed", "bf16"])
def test_same_seed_same_bytes(tmp_path: Path, form: str) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        synth(tiny_config(), tmp_path / folder, form=form, seed=seed)  # type: ignore[arg-type]
    a, b, c = ((tmp_path / x / "model.safetensors").read_bytes() for x in "abc")
    assert a == b
    assert a != c
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    mode = "offline" if form == "packed" else "online"
    assert config["quantization_config"]["quantization_mode"] == mode


@pytest.mark.parametrize("form", ["packed", "bf16"])
def test_checkpoint_converts_and_runs(tmp_path: Path, form: str) -> None:
    synth(tiny_config(), tmp_path / "hf", form=form)  # type: ignore[arg-type]
    convert(tmp_path / "hf", tmp_path / "out.trilobit")
    logits = LLM(tmp_path / "out.trilobit").logits(range(1, 20))
    assert np.isfinite(logits).all()
    assert logits.std() > 0


@pytest.mark.parametrize("tied", [True, False])
def test_packed_file_opens_and_runs(tmp_path: Path, tied: bool) -> None:
    synth_packed(tiny_config(tie_word_embeddings=tied), tmp_path / "out.trilobit")
    done = LLM(tmp_path / "out.trilobit").generate([1], SamplingParams(max_tokens=5, seed=1))
    assert 1 <= len(done.token_ids) <= 5
    assert PackedModel(tmp_path / "out.trilobit").has_screen


# Every family's shape, shrunk until it runs in a blink: what only the family has stays.
FAMILIES = ("1bitllm-3b", "llama3-8b", "falcon3-1b", "bonsai-1.7b", "bonsai-8b", "embedding-0.6b",
            "embedding-270m")  # fmt: skip


def shrunk(name: str) -> ModelConfig:
    config = shape(name)
    sizes = {
        "vocab_size": 331,
        "hidden_size": 256,
        "intermediate_size": 260,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": config.head_dim // 2,
    }
    return resized(config, sizes)


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_files_of_families_run(name: str, tmp_path: Path) -> None:
    synth_packed(shrunk(name), tmp_path / "out.trilobit")
    logits = LLM(tmp_path / "out.trilobit").logits(range(1, 20))
    assert np.isfinite(logits).all()
    assert logits.std() > 0


@pytest.mark.parametrize("form", ["packed", "bf16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_checkpoints_of_families_are_read_as_what_they_are(
    name: str, form: str, tmp_path: Path
) -> None:
    config = shrunk(name)
    if config.scales == "group" and form == "packed":
        with pytest.raises(RequestError, match="scales by group have no packed form"):
            synth(config, tmp_path / "hf", form="packed")
        assert not (tmp_path / "hf").exists()
        return
    synth(config, tmp_path / "hf", form=form)  # type: ignore[arg-type]
    assert convert(tmp_path / "hf", tmp_path / "out.trilobit") == config
    assert np.isfinite(LLM(tmp_path / "out.trilobit").logits(range(1, 20))).all()


@pytest.mark.parametrize("density", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gates_are_open_as_often_as_asked(density: float, layout: Layout, tmp_path: Path) -> None:
    config = resized(tiny_config(), {"intermediate_size": 1400})
    synth_packed(config, tmp_path / "m", layout=layout, gate_density=density)
    llm = LLM(tmp_path / "m")
    llm.logits(range(1, 100))
    gates, inputs = zip(*llm.activity(), strict=True)
    assert np.mean(gates) == pytest.approx(density, abs=0.03)  # of 2 · 1400 rows by 99 tokens
    assert all(0 < some < all_ for some, all_ in zip(inputs, gates, strict=True))


@pytest.mark.parametrize("form", ["packed", "bf16"])
def test_gates_of_a_checkpoint_are_open_as_often_as_asked(form: str, tmp_path: Path) -> None:
    config = resized(tiny_config(), {"intermediate_size": 1400})
    synth(config, tmp_path / "hf", form=form, gate_density=0.2)  # type: ignore[arg-type]
    convert(tmp_path / "hf", tmp_path / "m")
    llm = LLM(tmp_path / "m")
    llm.logits(range(1, 100))
    assert np.mean([gates for gates, _ in llm.activity()]) == pytest.approx(0.2, abs=0.03)


def test_a_gate_density_that_cannot_be_is_refused(tmp_path: Path) -> None:
    for density in (0, -0.1, 0.51, float("nan")):
        with pytest.raises(RequestError, match="more than 0 and at most"):
            synth_packed(tiny_config(), tmp_path / "m", gate_density=density)
    silu = tiny_config(hidden_act="silu")
    for write in (synth_packed, synth):
        with pytest.raises(RequestError, match="gates go through silu; leave it out"):
            write(silu, tmp_path / "m", gate_density=0.2)
    assert not any(tmp_path.iterdir())


def test_weights_are_uniform_over_three_values(tmp_path: Path) -> None:
    synth(tiny_config(), tmp_path / "hf")
    packed = SafetensorsFile(tmp_path / "hf" / "model.safetensors").array(
        "model.layers.0.mlp.up_proj.weight"
    )
    codes = np.concatenate([packed >> shift & 3 for shift in (0, 2, 4, 6)])
    counts = np.bincount(codes.reshape(-1), minlength=4) / codes.size
    assert counts[3] == 0
    # 8,400 weights: a third of them within five deviations of sqrt(2/9 / 8400)
    assert np.abs(counts[:3] - 1 / 3).max() < 5 * 0.0052


def test_memory_is_that_of_one_tensor(tmp_path: Path) -> None:
    config = tiny_config(
        num_hidden_layers=24, hidden_size=256, intermediate_size=768, head_dim=32,
        num_attention_heads=8,
    )  # fmt: skip
    tracemalloc.start()
    synth(config, tmp_path / "hf", form="bf16")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = (tmp_path / "hf" / "model.safetensors").stat().st_size
    # One tensor of float32, scaled, and as bfloat16: 3 MB of 37.
    assert size > 30e6
    assert peak < size / 6


def test_existing_files_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(OutputError, match="exists; give a new or empty directory"):
        synth(tiny_config(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_interrupt_leaves_no_directory(tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synth(tiny_config(), tmp_path / "hf", progress=interrupt)
    assert list(tmp_path.iterdir()) == []
