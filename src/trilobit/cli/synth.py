"""`trilobit synth`: random weights in the shape of a published model."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from pathlib import Path

import click

from trilobit.cli.command import Command, option
from trilobit.cli.options import gate_density_option
from trilobit.cli.path import FilePath
from trilobit.cli.terminal import say
from trilobit.cli.units import amount, size
from trilobit.cli.writing import check_free
from trilobit.console import Bars
from trilobit.model.packing import Layout
from trilobit.model.shapes import SHAPES, resized, shape
from trilobit.synth import Form, synth, synth_packed

# What may differ from the shape.
_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)


def _field_options(command: Callable[..., None]) -> Callable[..., None]:
    for name in reversed(_FIELDS):
        words = name.replace("_", "-")
        add = option("Shape", f"--{words}", type=int, metavar="N", help="In place of the shape's.")
        command = add(command)
    return command


@click.command(
    "synth",
    cls=Command,
    examples=[
        ("trilobit synth --shape 125m checkpoint", "A Hugging Face checkpoint."),
        ("trilobit synth --shape 2b4t m.trilobit --to-packed-file", "Ready to run."),
        ("trilobit synth --shape 125m tiny --num-hidden-layers 2", "A shape of your own."),
    ],
)
@click.argument("out", type=FilePath())
@click.option(
    "--shape",
    "shape_name",
    required=True,
    type=click.Choice(SHAPES),
    metavar="SHAPE",
    help=f"Of which published model: {', '.join(SHAPES)}.",
)
@click.option(
    "--form",
    type=click.Choice(["packed", "bf16"]),
    default="packed",
    show_default=True,
    help="Ternary codes and scales, or float masters.",
)
@click.option("--to-packed-file", is_flag=True, help="Write one packed file, ready to run.")
@click.option(
    "--layout",
    type=click.Choice(("2-bit", "1.6-bit")),
    default="2-bit",
    show_default=True,
    help="Of the weights of a packed file.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="The same seed gives the same weights.",
)
@gate_density_option
@_field_options
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    *,
    out: Path,
    shape_name: str,
    form: Form,
    to_packed_file: bool,
    layout: Layout,
    seed: int,
    gate_density: float | None,
    as_json: bool,
    **fields: int | None,
) -> None:
    """Write a random model of a published shape: the Hugging Face checkpoint directory OUT.

    It is for measuring: its weights are noise. --hidden-size and the options after it change
    the shape. One --seed gives other weights in every layout and form: for the same ones in
    another layout, `trilobit convert --layout` a file.
    """
    if to_packed_file and form != "packed":
        raise click.UsageError(f"--to-packed-file holds no float masters; leave out --form {form}")
    if layout != "2-bit" and not to_packed_file:
        raise click.UsageError("--layout is of packed files; add --to-packed-file")
    changes = {name: value for name, value in fields.items() if value is not None}
    config = resized(shape(shape_name), changes)
    started = time.monotonic()
    with Bars() as bars:
        if to_packed_file:
            check_free(out, replace=False, remedy="delete it or choose another name")
            synth_packed(
                config, out, seed=seed, layout=layout, gate_density=gate_density, progress=bars
            )
        else:
            synth(config, out, form=form, seed=seed, gate_density=gate_density, progress=bars)
    seconds = time.monotonic() - started
    size_bytes = (out if to_packed_file else out / "model.safetensors").stat().st_size
    if as_json:
        result = {
            "path": str(out),
            "size_bytes": size_bytes,
            "seconds": round(seconds, 3),
            "parameters": config.parameters,
        }
        print(json.dumps(result))
        return
    say(f"{out}: {amount(config.parameters)} parameters, {size(size_bytes)}, in {seconds:.1f} s")
    name = shlex.quote(str(out))
    if to_packed_file:
        say(f"Run it on token ids: trilobit generate --model {name} --token-ids 1,2,3")
    else:
        say(f"Pack it: trilobit convert {name} {shlex.quote(f'{out}.trilobit')}")
