"""BitNet's variants and the float model beside them: one size, one text, as many tokens.

    python benchmarks/variants.py --data simple.jsonl.xz [--only b1.58-0]

Trains `variants.toml` for each of RUNS, one after another on one thread, in build/variants (the
same command goes on where it was stopped), and keeps the curves in results/variants.jsonl. Of what
lies there it draws docs/images/variants.svg and prints the table of docs/variants.md; without
--data it does only that.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import cli
from facts import RESULTS, ROOT
from plot import STYLE, TEXT

CURVES = RESULTS / "variants.jsonl"
# What differs from the recipe, and how many of the last steps have 4 bits.
VARIANTS: dict[str, tuple[dict[str, Any], int | None]] = {
    "float": ({"weights": "float"}, None),
    "b1.58": ({}, None),
    "b1": ({"weights": "sign"}, None),
    "a4.8": ({"activations": "a4.8"}, 80),
    "v2": ({"activations": "int4", "hadamard": True}, 80),
}
RUNS = ("b1.58-0", "float-0", "a4.8-0", "v2-0", "b1-0", "b1.58-1", "float-1")
COLOURS = {
    "float": "#767676",
    "b1.58": "#e58a56",
    "b1": "#b04a5a",
    "a4.8": "#4f86b8",
    "v2": "#5f9e6e",
}


def learn(run: str, data: Path) -> list[dict[str, Any]]:
    """Train to the end, or what is left of it; the held-out text's lines of its log."""
    from trilobit.train.recipes import load_recipe
    from trilobit.train.run import train

    variant, _, seed = run.rpartition("-")
    changes, low_bit_steps = VARIANTS[variant]
    recipe = load_recipe(Path(__file__).with_suffix(".toml"))
    recipe = dataclasses.replace(
        recipe,
        name=run,
        seed=int(seed),
        data=dataclasses.replace(recipe.data, files=(str(data.resolve()),)),
        schedule=dataclasses.replace(recipe.schedule, low_bit_steps=low_bit_steps),
        **changes,
    )
    output = ROOT / "build" / "variants" / run
    train(recipe, output, threads=1)
    lines = (output / "log.jsonl").read_text(encoding="utf-8").splitlines()
    tokens_a_step = recipe.schedule.batch_windows * recipe.data.window
    return [
        {
            "variant": variant,
            "seed": int(seed),
            "step": entry["step"],
            "tokens": entry["step"] * tokens_a_step,
            "held_out_bits_per_byte": entry["held_out_bits_per_byte"],
        }
        for entry in map(json.loads, lines)
        if "held_out_bits_per_byte" in entry
    ]


def curves() -> dict[tuple[str, int], list[dict[str, Any]]]:
    """What is kept, by variant and seed, in the order of VARIANTS."""
    kept: dict[tuple[str, int], list[dict[str, Any]]] = {}
    if CURVES.exists():
        for line in map(json.loads, CURVES.read_text(encoding="utf-8").splitlines()):
            kept.setdefault((line["variant"], line["seed"]), []).append(line)
    order = list(VARIANTS)
    return dict(sorted(kept.items(), key=lambda item: (order.index(item[0][0]), item[0][1])))


def keep(run: str, lines: list[dict[str, Any]]) -> None:
    """A run's curve in the place of an earlier one."""
    variant, _, seed = run.rpartition("-")
    kept = {**curves(), (variant, int(seed)): lines}
    text = "".join(json.dumps(line) + "\n" for curve in kept.values() for line in curve)
    CURVES.write_text(text, encoding="utf-8")


def draw(out: Path) -> None:
    """Held-out bits a byte over tokens, a colour a variant; a second seed is dashed."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        axes = figure.subplots()
        for (variant, seed), curve in curves().items():
            axes.plot(
                [line["tokens"] / 1e6 for line in curve],
                [line["held_out_bits_per_byte"] for line in curve],
                color=COLOURS[variant],
                linestyle="--" if seed else "-",
                label=f"{variant}, seed {seed}",
            )
        axes.set_xlabel("million tokens", color=TEXT)
        axes.set_ylabel("held-out bits a byte", color=TEXT)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        about = {"Date": None, "Creator": None, "Title": "BitNet's variants in training"}
        figure.savefig(out, format="svg", transparent=True, metadata=about)


def table() -> str:
    """Markdown: the last bits a byte by seed, and how many more than float's of the same seeds."""
    ends: dict[str, dict[int, float]] = {}
    for (variant, seed), curve in curves().items():
        ends.setdefault(variant, {})[seed] = curve[-1]["held_out_bits_per_byte"]
    lines = ["| | bits a byte | beside float |", "|---|---|---|"]
    for variant, by_seed in ends.items():
        told = ", ".join(f"{value:.3f}" for value in by_seed.values())
        apart = [x - ends["float"][seed] for seed, x in by_seed.items() if seed in ends["float"]]
        beside = f"{fmean(apart):+.3f}" if apart and variant != "float" else ""
        lines.append(f"| {variant} | {told} | {beside} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="FILE", help="simple.jsonl, plain or .xz")
    parser.add_argument("--only", choices=RUNS, help="this run alone")
    parser.add_argument("--svg", type=Path, default=ROOT / "docs" / "images" / "variants.svg")
    given = parser.parse_args()
    if given.data is not None:
        for run in [given.only] if given.only else RUNS:
            keep(run, learn(run, given.data))
    draw(given.svg)
    print(table())


if __name__ == "__main__":
    cli.run(main)
