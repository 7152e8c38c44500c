"""`trilobit train`: follow a recipe, from text to a packed model file."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trilobit.cli.command import Command
from trilobit.cli.path import FilePath
from trilobit.cli.processes import Processes, launched
from trilobit.cli.units import count
from trilobit.errors import FormatError, OutputError, RecipeError, TrilobitError
from trilobit.train.presets import PRESETS

if TYPE_CHECKING:
    from trilobit.train.recipes import Schedule

# Of the extra `train`, those that are asked for here.
_PACKAGES = ("torch", "transformers", "accelerate", "peft", "tensorboard", "yaml", "pyarrow")


class _Text(FilePath):
    """A text as a recipe names it: a file by its whole path, or one of a data set of the Hub."""

    def convert(  # type: ignore[override]
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str:
        """Its name; a usage error for an empty one."""
        from trilobit.train.recipes.base import OF_HUB

        if isinstance(value, str) and value.startswith(OF_HUB):
            return value
        return str(super().convert(value, param, ctx).resolve())


class _Train(Command):
    """`train RECIPE`, or `train report RUN...`: no recipe's name ends as that word does."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Of the command that is meant."""
        if args[:1] == ["report"]:
            from trilobit.cli.train_report import command as report

            return report.make_context(f"{info_name} report", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command(
    "train",
    cls=_Train,
    examples=[
        ("trilobit train recipe.toml", "As the recipe says; again after a crash: go on."),
        ("trilobit train recipe.toml --data stories.jsonl", "With text of your own."),
        ("trilobit train recipe.toml --packed model.trilobit", "To run it afterwards."),
        ("trilobit train recipe.toml --processes 2", "On two GPUs."),
        ("trilobit train --preset 700m", "The recipe of a published size, to be changed."),
        ("trilobit train report runs/a runs/b", "Their curves as one page: report.html."),
    ],
)
@click.argument("recipe_file", metavar="[RECIPE]", required=False, type=FilePath())
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="Instead of RECIPE: that of a published size. Without --data it is printed.",
)
@click.option(
    "--data",
    "data_files",
    metavar="FILE",
    multiple=True,
    type=_Text(),
    help="Text to train on, instead of the recipe's data.files: a file, or hf://datasets/... of "
    "the Hugging Face Hub. Repeat for more.",
)
@click.option(
    "--output",
    metavar="DIR",
    type=FilePath(),
    help="Where the run lives. Default: runs/NAME.",
)
@click.option("--weights", type=click.Choice(["ternary", "sign", "float"]), help="Override.")
@click.option("--max-steps", type=click.IntRange(min=1), help="Override schedule.steps.")
@click.option(
    "--threads",
    type=click.IntRange(min=1, max=1024),
    help="CPU threads. Default: as many physical cores as the model is worth.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1, max=1024),
    default=1,
    show_default=True,
    help="Of this machine, which share every step: as many as it has GPUs.",
)
@click.option(
    "--nodes",
    type=click.IntRange(min=1, max=65536),
    default=1,
    show_default=True,
    help="Machines that train together, each with the same command but for --node-rank.",
)
@click.option(
    "--node-rank",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Which of the nodes this is.",
)
@click.option(
    "--main", metavar="HOST:PORT", help="Where several nodes meet: a free port of node 0."
)
@click.option("--fresh", is_flag=True, help="Delete an earlier run's checkpoints; do not resume.")
@click.option(
    "--packed",
    metavar="FILE",
    type=FilePath(),
    help="Also write the model as one packed file, for `trilobit run FILE`.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    recipe_file: Path | None,
    preset: str | None,
    data_files: tuple[str, ...],
    output: Path | None,
    weights: str | None,
    max_steps: int | None,
    threads: int | None,
    processes: int,
    nodes: int,
    node_rank: int,
    main: str | None,
    fresh: bool,
    packed: Path | None,
    as_json: bool,
) -> None:
    """Train the model that RECIPE (.toml or .yaml) describes.

    Run the same command again after a crash or Ctrl-C: it goes on from the last checkpoint.
    """
    from trilobit.formats.whole_file import check_place
    from trilobit.train.recipes import load_recipe

    if (recipe_file is None) == (preset is None):
        raise click.UsageError("give a RECIPE, or --preset with the name of a size")
    if preset is not None:
        recipe_file = PRESETS[preset]
        if not data_files:
            print(recipe_file.read_text(encoding="utf-8"), end="")
            return
    assert recipe_file is not None
    _check_extra()
    recipe = load_recipe(recipe_file)
    if data_files:
        if getattr(recipe.data, "mixture", ()):
            raise RecipeError(
                f"--data: {recipe_file} mixes its texts, each with a share of its own; name the "
                "file in its [[data.mixture]], or take the mixture out"
            )
        data = dataclasses.replace(recipe.data, files=data_files)
        recipe = dataclasses.replace(recipe, data=data)
    if weights is not None:
        recipe = dataclasses.replace(recipe, weights=weights)  # type: ignore[arg-type]
    if max_steps is not None:
        schedule = dataclasses.replace(recipe.schedule, steps=max_steps)
        recipe = dataclasses.replace(recipe, schedule=schedule)
    if packed is not None and recipe.weights == "float":
        raise RecipeError("--packed needs ternary or sign weights, and these are float")
    if packed is not None and recipe.engine_lacks:
        raise RecipeError(f"--packed: {_no_packed_file(recipe.engine_lacks)}")
    if packed is not None and recipe.adapter is not None:
        raise RecipeError(
            "--packed: an adapter has no packed file; run it by trilobit run MODEL --adapter DIR, "
            "or merge it by trilobit convert MODEL OUT --adapter DIR"
        )
    suffix = "" if recipe.weights == "ternary" else f"-{recipe.weights}"
    output = output or Path("runs") / (recipe.name + suffix)
    if packed is not None:
        _check_replaceable(packed)
        if packed.parent != output:  # which need not be there yet
            check_place(packed)
    together = Processes(here=processes, nodes=nodes, node=node_rank, main=main)
    if not together.alone and not launched():
        sys.exit(together.run(sys.argv[1:]))
    if os.environ.get("RANK", "0") == "0":
        # PyTorch takes seconds to load.
        print(f"{recipe.name}: {recipe.schedule.steps:,} steps in {output}", file=sys.stderr)
        _warn_of_threads(threads)
        _warn_of_warm_up(recipe.schedule)

    _prepare_process(network=recipe.is_of_hub)
    from trilobit.train.checkpoint import last_checkpoint
    from trilobit.train.run import train

    try:
        result = train(recipe, output, fresh=fresh, threads=threads)
    except KeyboardInterrupt:
        last = last_checkpoint(output)
        kept = f"; run the same command again to go on from {last}" if last else ""
        print(f"interrupted{kept}", file=sys.stderr)
        sys.exit(130)
    if not result.first_process:
        return
    if packed is not None and result.packed is not None:
        from trilobit.conversion import convert

        convert(result.packed, packed, "packed")
    if as_json:
        print(
            json.dumps(
                {
                    "model": str(result.model),
                    "hf_packed": str(result.packed) if result.packed else None,
                    "packed": str(packed) if packed else None,
                    "steps": result.steps,
                    "held_out_bits_per_byte": result.held_out_bits_per_byte,
                    "held_out_accuracy": result.held_out_accuracy,
                    "held_out_loss": result.held_out_loss,
                    "held_out_perplexity": result.held_out_perplexity,
                }
            )
        )
        return
    if result.held_out_accuracy is not None:
        told = f"loss {result.held_out_loss:.4f}, {result.held_out_accuracy:.1%} told apart,"
    else:
        told = f"perplexity {result.held_out_perplexity:.3f}"
    if result.held_out_bits_per_byte is not None:
        told = f"{result.held_out_bits_per_byte:.4f} bits a byte, {told}"
    print(f"held-out {told} after {count(result.steps, 'step')}")
    if recipe.adapter is not None:
        print(f"adapter: {result.model}")
        return
    print(f"model: {packed or result.packed or result.model}")
    if recipe.engine_lacks:
        print(_no_packed_file(recipe.engine_lacks))


def _warn_of_warm_up(schedule: Schedule) -> None:
    if schedule.rising_steps >= schedule.steps:
        print(
            f"warning: schedule.warmup_steps is {schedule.rising_steps:,}: the run ends before its "
            "learning rate is at its height; lower it, or give more steps",
            file=sys.stderr,
        )


def _check_replaceable(packed: Path) -> None:
    """What an earlier run has packed may be replaced, and nothing else: it might be a text."""
    from trilobit.formats.packed.reader import PackedModel

    if packed.is_file():
        try:
            PackedModel(packed)
        except FormatError:
            raise OutputError(
                f"{packed}: exists, and is no packed model; choose another name, or delete it"
            ) from None


def _no_packed_file(lacks: str) -> str:
    return f"no packed file: the engine does not run {lacks}"


def _check_extra() -> None:
    """Say what is missing before anything is read: loading what is there takes seconds."""
    for package in _PACKAGES:
        if find_spec(package) is None:
            raise TrilobitError(
                f"training needs the package '{package}'; pip install 'trilobit[train]'"
            )


def _warn_of_threads(threads: int | None) -> None:
    from trilobit.machine import available_cores

    if threads is not None and threads > (cores := available_cores()):
        print(
            f"warning: {threads} threads on {cores} core{'s' if cores > 1 else ''} wait for each "
            "other; leave out --threads",
            file=sys.stderr,
        )


def _prepare_process(*, network: bool) -> None:
    """What must be settled before torch and transformers load.

    network: files of the Hub are to be fetched.
    """
    # Training needs no network and no telemetry; say so before transformers looks.
    if not network:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
