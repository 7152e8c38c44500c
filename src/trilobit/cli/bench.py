"""`trilobit bench`: speed and memory, beside the machine's own limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trilobit.cli.command import Command, option
from trilobit.cli.options import (
    ENGINE,
    THREADS_HELP,
    gate_density_option,
    kv_option,
    layout_option,
    model_argument,
)
from trilobit.cli.path import FilePath
from trilobit.errors import RequestError
from trilobit.model import shapes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trilobit.bench.energy import Energy
    from trilobit.bench.speed import Speed
    from trilobit.engine.blocks import KvDtype
    from trilobit.engine.options import Head
    from trilobit.model.packing import LayoutChoice


@click.command(
    "bench",
    cls=Command,
    examples=[
        ("trilobit bench bitnet-2b", "A model that is here or published."),
        ("trilobit bench --shape 2b4t --layout auto", "Random weights: nothing to download."),
        (
            "trilobit bench --prompt 128 --generate 64 --json",
            "For programs.",
        ),
    ],
)
@model_argument(required=False)
@click.option(
    "--shape",
    type=click.Choice(shapes.SHAPES),
    metavar="SHAPE",
    help=f"Random weights of this shape: {', '.join(shapes.SHAPES)}.",
)
@gate_density_option
@click.option(
    "--prompt",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens of the prompt. Default: 512, or as many as the context leaves.",
)
@click.option(
    "--generate",
    type=click.IntRange(min=2),
    default=128,
    show_default=True,
    metavar="N",
    help="Tokens to write.",
)
@option(
    ENGINE,
    "--threads",
    type=click.IntRange(1, 1024),  # known before a model is written
    metavar="N",
    help=THREADS_HELP,
)
@option(
    ENGINE,
    "--head",
    type=click.Choice(("auto", "screened", "full")),
    default="auto",
    show_default=True,
    help="How tokens are chosen; see docs/head.md.",
)
@kv_option
@layout_option
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    metavar="N",
    help="Times to measure; shown are the median, the least and the most.",
)
@click.option(
    "--folder",
    type=FilePath(file_okay=False),
    help="Where the random model of a shape is kept. Default: the user's cache.",
)
@click.option(
    "--energy", is_flag=True, help="Joules a token, too: measured where the machine counts them."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    model: str | None,
    shape: str | None,
    gate_density: float | None,
    prompt: int | None,
    generate: int,
    threads: int | None,
    head: Head,
    kv_dtype: KvDtype,
    layout: LayoutChoice | None,
    runs: int,
    folder: Path | None,
    energy: bool,
    as_json: bool,
) -> None:
    """Measure MODEL (a file, a folder or a name; default the bundled one), or a published shape.

    Nothing else should run on the machine meanwhile.
    """
    from trilobit.bench.random_model import random_model
    from trilobit.bench.speed import measure_speed
    from trilobit.bundled import DEFAULT
    from trilobit.cli.units import count
    from trilobit.console import Bars
    from trilobit.hub.home import home
    from trilobit.hub.models import model_file

    if model and shape:
        raise RequestError(f"give a model or --shape, not both: {model}, {shape}")
    if gate_density is not None and not shape:
        raise RequestError("--gate-density is of random models; add --shape")
    with Bars() as bars:
        if shape:
            path = random_model(shape, folder or home(), layout, gate_density)
        else:
            path = model_file(model or DEFAULT, bars)
        speed = measure_speed(
            path,
            prompt=prompt,
            generate=generate,
            threads=threads,
            runs=runs,
            head=head,
            kv_dtype=kv_dtype,
            layout=layout,
            energy=energy,
            progress=bars,
        )
    if as_json:
        print(json.dumps({**speed.as_dict(), "model": shape or str(path)}, indent=2))
        return
    for label, measure, unit, share in (
        ("prefill", speed.prefill_tokens_per_s, "tokens/s", speed.prefill_fraction_of_int8),
        ("decode", speed.decode_tokens_per_s, "tokens/s", speed.decode_fraction_of_dram),
        ("memory reads", speed.dram_read_gb_per_s, "GB/s", None),
        ("int8 products", speed.int8_gmac_per_s, "GMAC/s", None),
    ):
        line = f"{label:14} {measure.median:8.1f} {unit:9}"
        line += f" ({measure.least:.1f} to {measure.most:.1f})"
        if share:
            line += f", {share.median:.0%} of the machine's limit"
            line += ", which was measured in a slower moment" * (share.median > 1)
        print(line)
    print(
        f"{speed.isa}, {_threads(speed)}, {speed.head} head, "
        f"{speed.kv_dtype} cache, {speed.layout} weights; "
        f"{count(speed.prompt_tokens, 'token')} in, {speed.generated_tokens} out; "
        f"load {speed.load_s:.3f} s, first token {speed.first_token_s:.3f} s, "
        f"file {speed.model_bytes / 1e6:.0f} MB"
    )
    if speed.gates_open:
        print(
            f"gates open {_range(speed.gates_open)}, inputs of down_proj not zero "
            f"{_range(speed.inputs_open)}, by layer; the rest of up_proj and down_proj is skipped"
        )
    print(
        f"peak memory {speed.peak_rss_mb:.0f} MB: {speed.weights_mb:.0f} MB of weights that "
        f"tokens read, {speed.kv_cache_mb:.0f} MB of keys and values, {speed.other_mb:.0f} MB of "
        "all else"
    )
    if speed.energy:
        for line in energy_lines(speed.energy):
            print(line)


def energy_lines(found: Energy) -> Iterator[str]:
    """Each number with what it is, measured or estimated, and where it comes from."""
    for label, phase in (("prefill", found.prefill), ("decode", found.decode)):
        if phase.measured is not None and phase.above_idle is not None:
            yield (
                f"{label:8}{phase.measured:.3g} J/token, {phase.above_idle:.3g} above idle "
                f"({found.idle_watts:.3g} W; {found.source})"
            )
    if found.idle_watts is None:
        yield f"energy is not measured here: {found.source}"
    for label, phase in (("prefill", found.prefill), ("decode", found.decode)):
        ours, twin = phase.estimated["7 nm"], phase.estimated_float16["7 nm"]
        yield (
            f"{label:8}{ours:.3g} J/token of arithmetic, {1 - ours / twin:.0%} less than "
            f"{twin:.3g} with float16 weights (estimated: operations times a 7 nm chip's energy)"
        )


def _range(shares: list[float]) -> str:
    mean = sum(shares) / len(shares)
    return f"{mean:.0%} ({min(shares):.0%} to {max(shares):.0%})"


def _threads(speed: Speed) -> str:
    text = f"{speed.threads} thread{'s' * (speed.threads > 1)} ({speed.threads_why}"
    if speed.decode_threads < speed.threads:
        text += f"; {speed.decode_threads} for a token, whose step is too short to share"
    return text + ")"
