"""Compiled layers: the same step but for rounding, and what cannot be compiled in one line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from fables import RECIPE, write_recipe

from trilobit.errors import RecipeError
from trilobit.train.compiled import compile_layers
from trilobit.train.objectives.causal import build_model
from trilobit.train.recipes import load_recipe


# torch's compiler does what torch itself warns of.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("plain_attention", [False, True])
def test_a_compiled_step_is_the_same_but_for_rounding(
    plain_attention: bool, tmp_path: Path
) -> None:
    recipe: Any = load_recipe(write_recipe(tmp_path, RECIPE))
    one = dataclasses.replace(recipe.model, num_hidden_layers=1)
    torch.manual_seed(0)
    model = build_model(dataclasses.replace(recipe, model=one), 64, bos=0, eos=1)
    ids = torch.randint(64, (2, 16))
    steps = []
    for _ in range(2):
        model.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        steps.append((loss.item(), [p.grad.clone() for p in model.parameters()]))
        compile_layers(model, plain_attention=plain_attention)
    (loss, gradients), (compiled_loss, compiled_gradients) = steps
    # Float32 sums in another order; an input beside a rounding tie may get another code.
    assert compiled_loss == pytest.approx(loss, abs=1e-3)
    for ours, theirs in zip(compiled_gradients, gradients, strict=True):
        assert (ours - theirs).norm() <= 0.02 * theirs.norm()


def test_what_has_no_layers_is_refused() -> None:
    with pytest.raises(RecipeError, match="compile: Linear has no layers to compile; leave it out"):
        compile_layers(torch.nn.Linear(2, 2))


def test_a_missing_compiler_is_told(tmp_path: Path) -> None:
    recipe: Any = load_recipe(write_recipe(tmp_path, RECIPE))
    model = build_model(recipe, 64, bos=0, eos=1)
    # Not by setattr and back: torch's settings would take the old value for one that they lack.
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, str(tmp_path / "none"))}),
        pytest.raises(RecipeError, match=r"compile needs a C\+\+ compiler: install g\+\+"),
    ):
        compile_layers(model)
