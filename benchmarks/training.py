"""A training step: its speed beside the machine's own, and what it keeps for its backward pass.

    python benchmarks/training.py [RECIPE] [--rounds 5] [--threads 1]

Forward and backward pass of a recipe's model and batch, for several kinds of linear layers in turn,
round by round, so that a busy moment meets all of them; told is the least of the rounds. `share` is
the products' part of a step if they ran at the rate of the largest one alone. Every tensor that
autograd saves is counted once, but for parameters, which are there anyway.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cli

if TYPE_CHECKING:  # what takes long to load comes behind the options
    import torch

RECIPE = Path(__file__).parents[1] / "models" / "trilobit-stories-5m" / "recipe.toml"


def kept_bytes(model: torch.nn.Module, ids: torch.Tensor) -> int:
    """Bytes saved for the backward pass."""
    import torch

    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return sum(kept.values())


def seconds(act: Callable[[], object]) -> float:
    begin = time.perf_counter()
    act()
    return time.perf_counter() - begin


def product_rate(tokens: int, inputs: int, outputs: int) -> float:
    """Multiply-adds a second of one float32 product, the best of some."""
    import torch

    x, w = torch.randn(tokens, inputs), torch.randn(outputs, inputs)
    return tokens * inputs * outputs / min(seconds(lambda: x @ w.T) for _ in range(10))


def stock_layers(model: torch.nn.Module) -> None:
    """transformers' own layers for training in ternary, in place of the linear ones."""
    from torch import nn
    from transformers.integrations.bitnet import AutoBitLinear

    for name, linear in [(n, m) for n, m in model.named_modules() if type(m) is nn.Linear]:
        if name != "lm_head":
            layer = AutoBitLinear(
                linear.in_features, linear.out_features, bias=False, online_quant=True
            )
            layer.weight = linear.weight
            model.set_submodule(name, layer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", type=Path, default=RECIPE)
    parser.add_argument("--rounds", type=cli.whole(), default=5)
    parser.add_argument("--threads", type=cli.whole(most=cli.MOST_THREADS), default=1)
    given = parser.parse_args()
    import torch

    from trilobit.train.compiled import compile_layers
    from trilobit.train.objectives.causal import build_model
    from trilobit.train.recipes import Pretrain, load_recipe

    recipe = load_recipe(given.recipe)
    if not isinstance(recipe, Pretrain) or recipe.model is None:
        cli.fail(f"{given.recipe}: has no [model]; give a recipe that begins with a new one")
    torch.set_num_threads(given.threads)
    shape, vocab_size = recipe.model, recipe.data.vocab_size
    window = recipe.data.short_window or recipe.data.window
    windows = recipe.schedule.batch_windows // recipe.schedule.accumulate_steps
    windows *= recipe.data.window // window
    ids = torch.randint(vocab_size, (windows, window))

    def model(weights: str) -> Any:
        torch.manual_seed(0)
        return build_model(dataclasses.replace(recipe, weights=weights), vocab_size, bos=0, eos=1)

    kinds = {"nn.Linear": model("float"), "transformers' AutoBitLinear": model("float")}
    stock_layers(kinds["transformers' AutoBitLinear"])
    kinds |= {"BitLinear": model("ternary"), "BitLinear, compiled": model("ternary")}
    compile_layers(kinds["BitLinear, compiled"])
    kept = {name: kept_bytes(m, ids) for name, m in kinds.items() if "compiled" not in name}
    best = dict.fromkeys(kinds, float("inf"))
    for number in range(given.rounds + 1):
        for name, m in kinds.items():
            took = seconds(lambda m=m: m(input_ids=ids, labels=ids).loss.backward())
            if number:  # the first compiles, and fills caches
                best[name] = min(best[name], took)
    tokens = ids.numel()
    rate = product_rate(tokens, shape.hidden_size, shape.intermediate_size)
    matrices = shape.config(vocab_size).parameters
    print(f"{windows} windows of {window}; {given.threads} threads; {2e-9 * rate:.1f} GFLOP/s")
    print(f"{'':28} {'s a step':>9} {'tokens/s':>9} {'of float':>9} {'share':>6} {'kept':>9}")
    for name, took in best.items():
        share = 3 * matrices * tokens / rate / took
        size = f"{kept[name] / 1e6:6.1f} MB" if name in kept else ""
        print(
            f"{name:28} {took:9.3f} {tokens / took:9.0f} {took / best['nn.Linear']:9.2f} "
            f"{share:6.0%} {size:>9}"
        )


if __name__ == "__main__":
    cli.run(main)
