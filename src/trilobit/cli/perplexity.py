"""`trilobit perplexity`: how well a model foretells texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trilobit.cli.command import Command
from trilobit.cli.options import OpenLLM, llm_options, model_argument
from trilobit.cli.path import FilePath

if TYPE_CHECKING:
    from trilobit.evaluate.perplexity import Mode, Perplexity


@click.command(
    "perplexity",
    cls=Command,
    examples=[
        ("trilobit perplexity bitnet-2b wiki.test.raw", "As llama.cpp measures it."),
        ("trilobit perplexity model.trilobit --mode document stories.jsonl.xz", "Bits per byte."),
        ("trilobit perplexity trilobit-stories-5m *.txt --json", "For programs."),
    ],
)
@model_argument()
@click.argument("files", nargs=-1, required=True, type=FilePath())
@click.option(
    "--mode",
    type=click.Choice(["llama.cpp", "sliding", "document"]),
    default="llama.cpp",
    help="How a text longer than a window is read (docs/evaluation.md).",
)
@click.option("--window", type=int, default=512, metavar="N", help="Tokens that are read together.")
@click.option(
    "--stride", type=int, metavar="N", help="Tokens from one window to the next; half a window."
)
@llm_options
@click.option("--json", "as_json", is_flag=True, help="Print all numbers as JSON.")
def command(
    model: str,
    files: tuple[Path, ...],
    mode: Mode,
    window: int,
    stride: int | None,
    open_llm: OpenLLM,
    as_json: bool,
) -> None:
    """Measure the perplexity of FILES: texts, or JSON lines with a `text` (.jsonl), plain or .xz.

    By token, with its standard error; unless --mode is llama.cpp, by word and as bits per byte too,
    which compare models of different tokenizers.
    """
    from trilobit.cli.terminal import say
    from trilobit.cli.units import count
    from trilobit.console import Bars
    from trilobit.evaluate.perplexity import perplexity
    from trilobit.evaluate.texts import read_texts
    from trilobit.progress import Progress

    texts = [text for file in files for text in read_texts(file)]  # before a model is loaded
    with Bars() as bars, open_llm(model) as llm:

        def tell(found: Perplexity, windows: int) -> None:
            so_far = f"{found.by_token:.4f}"
            bars(Progress(what="Perplexity", done=found.windows, total=windows, note=so_far))

        found = perplexity(llm, texts, mode=mode, window=window, stride=stride, progress=tell)
    if as_json:
        print(json.dumps({"model": str(llm.path), **facts(found)}))
        return
    say(f"perplexity {found.by_token:.4f} ± {found.standard_error:.4f} by token")
    if found.bits_per_byte is not None and found.by_word is not None:
        say(f"bits per byte {found.bits_per_byte:.4f}, perplexity {found.by_word:.4f} by word")
    say(
        f"{count(found.tokens, 'token')} scored, in {count(found.windows, 'window')} of "
        f"{found.window}, {count(found.documents, 'text')}"
    )


def facts(found: Perplexity) -> dict[str, object]:
    """All numbers, as JSON values; what is no finite number is null."""
    return {
        "mode": found.mode,
        "window": found.window,
        "stride": found.stride,
        "documents": found.documents,
        "windows": found.windows,
        "tokens": found.tokens,
        "words": found.words,
        "bytes": found.bytes,
        "negative_log_likelihood": found.nats,
        **{
            name: value if value is not None and abs(value) < float("inf") else None
            for name, value in (
                ("perplexity", found.by_token),
                ("standard_error", found.standard_error),
                ("perplexity_by_word", found.by_word),
                ("bits_per_byte", found.bits_per_byte),
            )
        },
    }
