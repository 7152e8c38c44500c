"""`trilobit pull`: a model of the Hugging Face Hub on this machine, ready to run."""

from __future__ import annotations

import json
import shlex

import click

from trilobit.cli.command import Command
from trilobit.cli.options import model_argument


@click.command(
    "pull",
    cls=Command,
    examples=[
        ("trilobit pull bitnet-2b", "By a short name."),
        ("trilobit pull org/name@revision", "Any repository of the Hub."),
        ("trilobit pull org/name:file.gguf", "One file of several."),
    ],
)
@model_argument()
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(model: str, as_json: bool) -> None:
    """Download MODEL if it is new, check it, and pack it.

    MODEL is a short name (`trilobit list --names`), or org/name of the Hugging Face Hub, with
    @revision or :file.gguf where that is wanted. A checkpoint on this machine is packed only.
    The download goes into the cache of huggingface_hub; HF_HOME, HF_TOKEN, HF_ENDPOINT and
    HF_HUB_OFFLINE mean what they mean there.
    """
    from trilobit.cli.terminal import say
    from trilobit.cli.units import size
    from trilobit.console import Bars
    from trilobit.hub.models import pull

    with Bars() as bars:
        done = pull(model, bars)
    size_bytes = done.path.stat().st_size
    if as_json:
        result = {
            "name": done.name,
            "path": str(done.path),
            "size_bytes": size_bytes,
            "downloaded_bytes": done.downloaded_bytes,
            "new": done.is_new,
        }
        print(json.dumps(result))
        return
    if not done.is_new:
        say(f"{done.name}: up to date, {size(size_bytes)}")
    elif done.downloaded_bytes:
        say(f"{done.name}: {size(done.downloaded_bytes)} downloaded, packed: {size(size_bytes)}")
    else:
        say(f"{done.name}: packed: {size(size_bytes)}")
    say(f"Run it: trilobit run {shlex.quote(done.name)}")
