"""A training step: its speed beside the machine's own, and what it keeps for its backward pass.

    python benchmarks/training.py [RECIPE] [--rounds 5] [--threads 1]

Forward and backward pass of a recipe's model and batch, for several kinds of linear layers in turn,
round by round, so that a busy moment meets all of them, and Muon's step in either type; told is the
least of the rounds. `share` is the products' part of a step if they ran at the rate of the largest
one alone, in float32. Every tensor that autograd saves is counted once, but for parameters, which
are there anyway.
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

COMPILED = {"BitLinear, compiled": "float32", "BitLinear, compiled, bf16": "bf16"}
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


def pass_of(model: Any, ids: torch.Tensor, precision: str) -> Callable[[], None]:
    """Forward and backward, as the Trainer calls them."""
    import torch

    model.config.use_cache = False

    def act() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()

    return act


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", type=Path, default=RECIPE)
    parser.add_argument("--rounds", type=cli.whole(), default=5)
    parser.add_argument("--threads", type=cli.whole(most=cli.MOST_THREADS), default=1)
    given = parser.parse_args()
    import torch

    from trilobit.train.compiled import compile_layers
    from trilobit.train.objectives.causal import build_model
    from trilobit.train.optimizer import Muon
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

    kinds = {name: model("float") for name in ("nn.Linear", "transformers' AutoBitLinear")}
    stock_layers(kinds["transformers' AutoBitLinear"])
    kinds |= {name: model("ternary") for name in ("BitLinear", *COMPILED)}
    for name, precision in COMPILED.items():
        compile_layers(kinds[name], plain_attention=precision == "bf16")
    kept = {name: kept_bytes(m, ids) for name, m in kinds.items() if name not in COMPILED}
    acts = {name: pass_of(m, ids, COMPILED.get(name, "float32")) for name, m in kinds.items()}
    matrices = [p for p in kinds["BitLinear"].parameters() if p.ndim == 2][1:]
    for precision, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        acts[f"Muon's step, {precision}"] = Muon(matrices, 0.0, 0.0, dtype).step
    best = dict.fromkeys(acts, float("inf"))
    for number in range(given.rounds + 1):
        for name, act in acts.items():
            took = seconds(act)
            if number:  # the first compiles, and fills caches
                best[name] = min(best[name], took)
    tokens = ids.numel()
    rate = product_rate(tokens, shape.hidden_size, shape.intermediate_size)
    weights = shape.config(vocab_size).parameters
    print(f"{windows} windows of {window}; {given.threads} threads; {2e-9 * rate:.1f} GFLOP/s")
    print(f"{'':28} {'s a step':>9} {'tokens/s':>9} {'of float':>9} {'share':>6} {'kept':>9}")
    for name, took in best.items():
        share = 3 * weights * tokens / rate / took
        size = f"{kept[name] / 1e6:6.1f} MB" if name in kept else ""
        print(
            f"{name:28} {took:9.3f} {tokens / took:9.0f} {took / best['nn.Linear']:9.2f} "
            f"{share:6.0%} {size:>9}"
        )


if __name__ == "__main__":
    cli.run(main)
