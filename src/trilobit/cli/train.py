"""`trilobit train`: follow a recipe, from text to a packed model file."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ..errors import RecipeError, TrilobitError


@click.command("train")
@click.argument("recipe_file", metavar="RECIPE", type=click.Path(path_type=Path))
@click.option(
    "--data",
    "data_files",
    metavar="FILE",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Text to train on, instead of the recipe's data.files. Repeat for more.",
)
@click.option(
    "--output",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where the run lives. Default: runs/NAME.",
)
@click.option("--weights", type=click.Choice(["ternary", "sign", "float"]), help="Override.")
@click.option("--max-steps", type=click.IntRange(min=1), help="Override schedule.steps.")
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads. Default: the physical cores."
)
@click.option("--fresh", is_flag=True, help="Delete an earlier run's checkpoints; do not resume.")
@click.option(
    "--packed",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Also write the model as one packed file, for `trilobit run FILE`.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    recipe_file: Path,
    data_files: tuple[Path, ...],
    output: Path | None,
    weights: str | None,
    max_steps: int | None,
    threads: int | None,
    fresh: bool,
    packed: Path | None,
    as_json: bool,
) -> None:
    """Train the model that RECIPE (.toml or .yaml) describes.

    Run the same command again after a crash or Ctrl-C: it goes on from the last checkpoint.
    """
    from trilobit.train.recipe import load_recipe

    with _extra_named():
        recipe = load_recipe(recipe_file)
    if data_files:
        files = tuple(str(path.resolve()) for path in data_files)
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, files=files))
    if weights is not None:
        recipe = dataclasses.replace(recipe, weights=weights)  # type: ignore[arg-type]
    if max_steps is not None:
        schedule = dataclasses.replace(recipe.schedule, steps=max_steps)
        recipe = dataclasses.replace(recipe, schedule=schedule)
    if packed is not None and recipe.weights == "float":
        raise RecipeError("--packed needs ternary or sign weights, and these are float")
    suffix = "" if recipe.weights == "ternary" else f"-{recipe.weights}"
    output = output or Path("runs") / (recipe.name + suffix)

    with _extra_named():
        _prepare_process(threads)
        from trilobit.formats.whole_file import check_place
        from trilobit.train.checkpoint import last_checkpoint
        from trilobit.train.pretrain import pretrain

    if packed is not None and packed.parent != output:  # which need not be there yet
        check_place(packed)
    try:
        result = pretrain(recipe, output, fresh=fresh)
    except KeyboardInterrupt:
        last = last_checkpoint(output)
        kept = f"; run the same command again to go on from {last}" if last else ""
        print(f"interrupted{kept}", file=sys.stderr)
        sys.exit(130)
    if not result.first_process:
        return
    if packed is not None and result.packed is not None:
        from trilobit.convert import convert

        convert(result.packed, packed, "packed")
    if as_json:
        print(
            json.dumps(
                {
                    "model": str(result.model),
                    "hf_packed": str(result.packed) if result.packed else None,
                    "packed": str(packed) if packed else None,
                    "steps": result.steps,
                    "held_out_loss": result.held_out_loss,
                    "held_out_perplexity": result.held_out_perplexity,
                }
            )
        )
        return
    print(f"held-out perplexity {result.held_out_perplexity:.3f} after {result.steps} steps")
    print(f"model: {packed or result.packed or result.model}")


@contextmanager
def _extra_named() -> Iterator[None]:
    """Say which extra a missing package belongs to."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("accelerate", "tensorboard", "torch", "transformers", "yaml"):
            raise
        raise TrilobitError(
            f"training needs the package '{package}'; pip install 'trilobit[train]'"
        ) from error


def _prepare_process(threads: int | None) -> None:
    """What must be settled before torch and transformers load."""
    # Training needs no network and no telemetry; say so before transformers looks.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
