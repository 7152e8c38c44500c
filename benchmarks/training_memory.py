"""Bytes that a training step keeps for its backward pass, by what keeps them: `python FILE`.

A model of the recipe's shape, forward once; every tensor that autograd saves is counted once, but
for parameters, which are there anyway.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from trilobit.train.objectives.causal import build_model
from trilobit.train.recipes import load_recipe

RECIPE = Path(__file__).parents[1] / "models" / "trilobit-stories-5m" / "recipe.toml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", type=Path, default=RECIPE)
    parser.add_argument("--weights", default="ternary", choices=["ternary", "float"])
    parser.add_argument("--steps", type=int, default=5, help="for the time of a step")
    given = parser.parse_args()
    import dataclasses

    recipe = dataclasses.replace(load_recipe(given.recipe), weights=given.weights)
    torch.manual_seed(0)
    model = build_model(recipe, recipe.data.vocab_size, bos=0, eos=1)
    ids = torch.randint(recipe.data.vocab_size, (recipe.schedule.batch_windows, recipe.data.window))
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, tuple[str, int]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (str(tensor.dtype), storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    by_type: dict[str, int] = {}
    for dtype, size in kept.values():
        by_type[dtype] = by_type.get(dtype, 0) + size
    for dtype, size in sorted(by_type.items(), key=lambda item: -item[1]):
        print(f"{dtype:16} {size / 1e6:8.1f} MB")
    print(f"{'all':16} {sum(by_type.values()) / 1e6:8.1f} MB")
    seconds = []
    for _ in range(given.steps):
        begin = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        seconds.append(time.perf_counter() - begin)
    print(f"step {min(seconds):.3f} s, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
