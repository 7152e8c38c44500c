"""`trilobit convert`: a model in another form."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path

import click

from trilobit.convert import FORMS, Form, convert


@click.command("convert")
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--to", type=click.Choice(FORMS), help="Form of OUT; else as it is named.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(model: str, out: Path, to: Form | None, force: bool, as_json: bool) -> None:
    """Write MODEL in another form, as OUT.

    Reads packed files, and directories with BitNet checkpoints in safetensors: float masters, or
    packed weights with their scale.
    A checkpoint without tokenizer.json gives a model that runs on token ids. A name is downloaded
    first (`trilobit list --names`).
    """
    from trilobit.formats.packed import PackedModel
    from trilobit.hub.models import source_path

    from .units import size
    from .writing import check_free, progress

    check_free(out, replace=force, remedy="choose another name, or replace it with --force")
    source = source_path(model)
    started = time.monotonic()
    with progress(f"Packing {source.name}") as step:
        convert(source, out, to, progress=step)
    seconds = time.monotonic() - started
    packed = PackedModel(out)
    size_bytes = packed.file.size_bytes
    has_tokenizer = packed.text.tokenizer is not None
    if as_json:
        result = {
            "path": str(out),
            "size_bytes": size_bytes,
            "seconds": round(seconds, 3),
            "parameters": packed.config.parameters,
            "tokenizer": has_tokenizer,
        }
        print(json.dumps(result))
        return
    print(f"{out}: {size(size_bytes)}, packed in {seconds:.1f} s")
    name = shlex.quote(str(out))
    if has_tokenizer:
        print(f"Run it: trilobit run {name}")
    else:
        print(
            f"{source} has no tokenizer.json; run it on token ids: "
            f"trilobit generate --model {name} --token-ids 1,2,3"
        )
