"""`trilobit convert`: a model in another form."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path

import click

from trilobit.cli.command import Command
from trilobit.cli.options import model_argument
from trilobit.cli.path import FilePath
from trilobit.conversion import FORMS, Form, convert, form_of
from trilobit.formats.gguf.ternary_blocks import I2S_LAYOUTS, I2SLayout
from trilobit.model.packing import LayoutChoice

_FORMS = {
    "packed": "packed Trilobit model",
    "hf": "Hugging Face directory, packed weights",
    "hf-bf16": "Hugging Face directory, weights as floats",
    "gguf": "GGUF file, I2_S",
    "gguf-q8": "GGUF file, I2_S with an embedding of 8 bits",
    "gguf-tq1_0": "GGUF file, TQ1_0",
    "gguf-tq2_0": "GGUF file, TQ2_0",
}

_FORM_OF_END = {".trilobit": "packed", ".gguf": "gguf"}


@click.command(
    "convert",
    cls=Command,
    examples=[
        ("trilobit convert checkpoint model.trilobit", "A packed file, ready to run."),
        ("trilobit convert model.trilobit folder", "A Hugging Face directory."),
        ("trilobit convert bitnet-2b model.gguf --to gguf-tq2_0", "A file for llama.cpp."),
    ],
)
@model_argument()
@click.argument("out", type=FilePath())
@click.option("--to", type=click.Choice(FORMS), help="Form of OUT; else as its suffix says.")
@click.option(
    "--i2s-layout",
    type=click.Choice(I2S_LAYOUTS),
    help="How a GGUF MODEL lays out I2_S, if not as x86 builds do: files of ARM builds since "
    "November 2025, or of builds that interleave four rows.",
)
@click.option(
    "--layout",
    type=click.Choice(("2-bit", "1.6-bit", "auto")),
    help="Of a packed file's weights: 1.6-bit is a fifth smaller, and faster where memory is the "
    "limit; auto measures. Default: MODEL's, or 2-bit.",
)
@click.option(
    "--adapter",
    metavar="DIR",
    type=FilePath(),
    help="A LoRA adapter to merge into MODEL's float masters. They are rounded anew, so this is "
    "not exactly MODEL with the adapter beside it.",
)
@click.option(
    "--half-tables",
    is_flag=True,
    help="Round float32 embedding and head to float16 in a packed file: half as large.",
)
@click.option(
    "--generation-config",
    metavar="FILE",
    type=FilePath(),
    help="A generation_config.json: how tokens are chosen where a request does not say, in place "
    "of what MODEL says.",
)
@click.option("--force", is_flag=True, help="Replace OUT if it is a file.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    model: str,
    out: Path,
    to: Form | None,
    i2s_layout: I2SLayout | None,
    layout: LayoutChoice | None,
    adapter: Path | None,
    half_tables: bool,
    generation_config: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write MODEL in another form, as OUT.

    Reads packed files, GGUF files, and directories with checkpoints in safetensors: float masters,
    or packed weights with their scale. A checkpoint without a tokenizer gives a model that runs
    on token ids. A name is downloaded first (`trilobit list --names`).

    OUT.trilobit is a packed file, ready to run; OUT without a suffix is a Hugging Face directory
    with packed weights, and --to hf-bf16 makes it one of float weights. Both load in stock
    transformers. OUT.gguf is a GGUF file with I2_S weights for bitnet.cpp, --to gguf-tq1_0 and
    gguf-tq2_0 make it one for llama.cpp, with scales rounded to float16.
    """
    from trilobit.cli.terminal import note, say
    from trilobit.cli.units import size
    from trilobit.cli.writing import check_free
    from trilobit.console import Bars
    from trilobit.formats.open import open_source
    from trilobit.hub.models import source_path

    form = to or form_of(out)
    meant = _FORM_OF_END.get(out.suffix.lower(), form)
    if not form.startswith(meant):  # readers would take it for what its name says
        raise click.UsageError(f"{out}: ends as {meant} files do, and --to is {form}; rename it")
    check_free(out, replace=force, remedy="choose another name, or replace it with --force")
    faults: list[str] = []
    with Bars() as bars:
        source = source_path(model, bars)
        started = time.monotonic()
        convert(
            source,
            out,
            form,
            i2s_layout=i2s_layout,
            layout=layout,
            adapter=adapter,
            half_tables=half_tables,
            generation_config=generation_config,
            progress=bars,
            told=faults.append,
        )
    for fault in faults:
        note(fault, dim=False)
    seconds = time.monotonic() - started
    written = open_source(out)
    files = out.rglob("*") if out.is_dir() else [out]
    size_bytes = sum(file.stat().st_size for file in files if file.is_file())
    if adapter is not None:
        note(
            f"{adapter}: merged into float masters, which were rounded anew; `--adapter` of "
            "`trilobit run` computes it exactly"
        )
    has_tokenizer = written.text.tokenizer is not None
    if as_json:
        result = {
            "path": str(out),
            "form": form,
            "size_bytes": size_bytes,
            "seconds": round(seconds, 3),
            "parameters": written.config.parameters,
            "tokenizer": has_tokenizer,
        }
        print(json.dumps(result))
        return
    say(f"{out}: {_FORMS[form]}, {size(size_bytes)}, written in {seconds:.1f} s")
    name = shlex.quote(str(out))
    if form.startswith("hf"):
        say(f"Load it: transformers.AutoModelForCausalLM.from_pretrained({str(out)!r})")
    elif written.text.pooling is not None:
        say(f"Embed with it: trilobit embed {name} FILES")
    elif has_tokenizer:
        say(f"Run it: trilobit run {name}")
    else:
        say(
            f"{source} has no tokenizer; run it on token ids: "
            f"trilobit generate --model {name} --token-ids 1,2,3"
        )
