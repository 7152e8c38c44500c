"""Recipes of the papers' sizes: what they build is of that size, and the smallest learns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fables import command, one_error, train

from trilobit.model.shapes import shape
from trilobit.train.objectives.causal import build_model
from trilobit.train.optimizer import optimizer_of
from trilobit.train.presets import PRESETS
from trilobit.train.recipes import Pretrain, load_recipe

SIZES = {
    "125m": 0.125e9,
    "350m": 0.35e9,
    "700m": 0.7e9,
    "1.3b": 1.3e9,
    "2b4t": 2.4e9,
    "3b": 3.3e9,
    "3.9b": 3.9e9,
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a second one only waits for a busy core
    yield
    torch.set_num_threads(threads)


def _recipe(name: str) -> Pretrain:
    recipe = load_recipe(PRESETS[name])
    assert isinstance(recipe, Pretrain)
    return recipe


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_builds_what_its_name_says(name: str) -> None:
    recipe = _recipe(name)
    with torch.device("meta"):
        model = build_model(recipe, recipe.data.vocab_size, bos=0, eos=1)
    built = sum(p.numel() for p in model.parameters())
    assert built == pytest.approx(SIZES[name], rel=0.15)
    assert recipe.model is not None
    assert built == recipe.model.config(recipe.data.vocab_size).parameters


@pytest.mark.parametrize("name", PRESETS)
def test_a_step_is_of_a_million_tokens(name: str) -> None:
    recipe = _recipe(name)
    assert recipe.schedule.batch_windows * recipe.data.window == 1 << 20
    tokens = recipe.schedule.steps << 20
    assert tokens == pytest.approx(4e12 if name == "2b4t" else 100e9, rel=1e-4)


def test_sizes_that_the_benchmarks_know_have_their_shape() -> None:
    for name in ("125m", "350m", "2b4t", "3b"):
        recipe, known = _recipe(name), shape(name)
        assert recipe.model is not None
        mine = recipe.model.config(recipe.data.vocab_size)
        for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"):
            assert getattr(mine, key) == getattr(known, key)
        assert mine.num_key_value_heads == known.num_key_value_heads


def test_a_step_of_the_smallest_moves_its_weights() -> None:
    recipe = _recipe("125m")
    recipe = dataclasses.replace(recipe, precision="float32")
    torch.manual_seed(0)
    model = build_model(recipe, 512, bos=0, eos=1)
    ids = torch.arange(16)[None]
    optimizer = optimizer_of(recipe, model)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    assert float(model(input_ids=ids, labels=ids).loss.detach()) < float(loss.detach())


def test_without_text_it_is_printed(tmp_path: Path) -> None:
    outcome = command("train", "--preset", "700m")
    assert outcome.code in (None, 0)
    path = tmp_path / "recipe.toml"
    path.write_text(outcome.out)
    assert load_recipe(path).as_dict() == _recipe("700m").as_dict()


def test_a_preset_that_the_machine_has_no_memory_for_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trilobit.train.launch.memory_bytes", lambda: 24 << 30)
    text = tmp_path / "text.txt"
    text.write_text("A text.")
    places = ("--data", str(text), "--output", str(tmp_path / "run"))
    error = one_error(command("train", "--preset", "3.9b", *places))
    assert error.startswith("the run needs at least 7")


def test_a_recipe_and_a_preset_do_not_go_together(tmp_path: Path) -> None:
    outcome = train(tmp_path / "recipe.toml", tmp_path / "run", "--preset", "125m")
    assert outcome.code == 2
    assert "give a RECIPE, or --preset with the name of a size" in outcome.err
