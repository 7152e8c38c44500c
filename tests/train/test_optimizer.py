"""Muon: its steps are those of its authors, it learns, and its state goes on bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fables import RECIPE, train, write_recipe

from trilobit.train.objectives.causal import build_model
from trilobit.train.optimizer import Muon, optimizer_of, orthogonal
from trilobit.train.recipes import load_recipe
from trilobit.train.schedule import TwoStage

MUON = f'optimizer = "muon"\n{RECIPE}'.replace("[3e-2, 2e-2]", "[1e-2, 1e-2]").replace(
    "stage_2 = [1e-2, 0.0]", "stage_2 = [1e-2, 0.0]\nstage_2_steps = 10\nmuon_rate = 4"
)


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 48)])
def test_a_step_keeps_directions_and_makes_their_lengths_alike(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    # The same directions: U' X V is diagonal, but for float32's rounding over 15 products.
    lengths = u.T @ orthogonal(matrix.float()).double() @ vt.T
    assert (lengths - lengths.diag().diag()).abs().max() < 1e-4
    assert 0.6 < lengths.diag().min() <= lengths.diag().max() < 1.25


# Theirs has eight bits of significand in every product of five iterations.
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 0.03), (torch.bfloat16, 1e-6)])
@pytest.mark.parametrize("shape", [(24, 8), (8, 24)])
def test_steps_are_those_of_torch(shape: tuple[int, int], dtype: torch.dtype, most: float) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    mine, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers: list[torch.optim.Optimizer] = [
        Muon([mine], lr=0.05, weight_decay=0.1, dtype=dtype),
        torch.optim.Muon([theirs], lr=0.05, weight_decay=0.1),
    ]
    for _ in range(3):
        mine.grad = torch.randn(shape, generator=generator)
        theirs.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = (theirs - start).norm()
    assert (mine - theirs).norm() <= most * moved


def test_all_linear_layers_but_the_head_are_muons_and_the_rest_adams(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, MUON))
    model = build_model(recipe, 320, bos=0, eos=1)
    optimizer = optimizer_of(recipe, model)
    TwoStage(optimizer, recipe.schedule)
    names = {id(p): name for name, p in model.named_parameters()}
    muon, decaying, free = ([names[id(p)] for p in g["params"]] for g in optimizer.param_groups)
    assert len(muon) == 2 * 7
    assert all(name.endswith("_proj.weight") for name in muon)
    assert decaying == ["model.embed_tokens.weight"]
    assert all("norm" in name for name in free)
    assert len(muon) + len(decaying) + len(free) == len(names)
    # The first of ten steps of warm-up.
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([4e-3, 1e-3, 1e-3])


def _log(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def test_it_learns_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, MUON.replace("steps = 120", "steps = 40"))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(recipe, whole).code == 0
    losses = [entry["loss"] for entry in _log(whole) if "loss" in entry]
    assert losses[-1] < losses[0] - 1.5
    rates = [entry["learning_rate"] for entry in _log(whole) if "loss" in entry]
    assert rates[0] == pytest.approx(1e-2 * 5 / 10)  # of the stages: Muon's is four times that
    for folder in ("recipe.json", "corpus", "checkpoint-39"):
        (broken / folder).parent.mkdir(exist_ok=True)
        (whole / folder).rename(broken / folder)
    assert train(recipe, broken).code == 0
    model = Path("model") / "model.safetensors"
    assert (broken / model).read_bytes() == (whole / model).read_bytes()


def test_another_optimizer_may_not_go_on(tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert train(write_recipe(tmp_path), output, "--max-steps", "13").code == 0
    outcome = train(write_recipe(tmp_path, MUON), output)
    assert outcome.code == 2
    assert "(it differs in optimizer)" in outcome.err
