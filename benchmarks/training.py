"""What a training step keeps for its backward pass, and what a second thread brings it.

    python benchmarks/training.py [RECIPE] [--weights float] [--steps 5]

Every tensor that autograd saves is counted once, but for parameters, which are there anyway. The
time is that of forward and backward pass, the least of some, with each number of threads.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cli

if TYPE_CHECKING:  # what takes long to load comes behind the options
    import torch

RECIPE = Path(__file__).parents[1] / "models" / "trilobit-stories-5m" / "recipe.toml"


def kept_bytes(model: torch.nn.Module, ids: torch.Tensor) -> dict[str, int]:
    """Bytes saved for the backward pass, by type."""
    import torch

    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, tuple[str, int]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (str(tensor.dtype).removeprefix("torch."), storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    by_type: dict[str, int] = {}
    for dtype, size in kept.values():
        by_type[dtype] = by_type.get(dtype, 0) + size
    return by_type


def step_seconds(model: Any, ids: torch.Tensor, steps: int) -> float:
    """The least of some: others disturb, and nothing makes it faster than it is."""
    seconds = []
    for _ in range(steps):
        begin = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", type=Path, default=RECIPE)
    parser.add_argument("--weights", default="ternary", choices=["ternary", "sign", "float"])
    parser.add_argument("--steps", type=cli.whole(), default=5)
    given = parser.parse_args()
    import torch

    from trilobit.machine import available_cores
    from trilobit.train.launch import threads_worth
    from trilobit.train.objectives.causal import build_model
    from trilobit.train.recipes import load_recipe

    recipe = dataclasses.replace(load_recipe(given.recipe), weights=given.weights)
    if recipe.model is None:
        cli.fail(f"{given.recipe}: has no [model]; give a recipe that begins with a new one")
    torch.manual_seed(0)
    model = build_model(recipe, recipe.data.vocab_size, bos=0, eos=1)
    windows = recipe.schedule.batch_windows // recipe.schedule.accumulate_steps
    ids = torch.randint(recipe.data.vocab_size, (windows, recipe.data.window))
    by_type = kept_bytes(model, ids)
    for dtype, size in [*by_type.items(), ("all", sum(by_type.values()))]:
        print(f"kept {dtype:10} {size / 1e6:8.1f} MB")
    worth = threads_worth(recipe, recipe.model.config(recipe.data.vocab_size))
    for threads in range(1, available_cores() + 1):
        torch.set_num_threads(threads)
        mark = " (what it is worth)" if threads == worth else ""
        print(f"{threads} threads {step_seconds(model, ids, given.steps):8.3f} s a step{mark}")


if __name__ == "__main__":
    cli.run(main)
