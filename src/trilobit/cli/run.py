"""`trilobit run`: a story, told as it is made, and one line of what it took."""

from __future__ import annotations

import os
from textwrap import shorten

import click

from trilobit.bundled import DEFAULT
from trilobit.errors import RequestError
from trilobit.sampling import SamplingParams

from .llm_options import OpenLLM, llm_options
from .sampling_options import sampling_options


@click.command("run")
@click.argument("model", default=DEFAULT)
@click.argument("prompt", default="Once upon a time")
@sampling_options(SamplingParams(max_tokens=512, temperature=0.7, min_p=0.05))
@llm_options
def command(
    model: str,
    prompt: str,
    params: SamplingParams,
    open_llm: OpenLLM,
) -> None:
    """Write a story that begins with PROMPT ("Once upon a time").

    MODEL is a file, a folder or a name (`trilobit list --names`). The text goes to stdout, the
    line about it to stderr.
    """
    if any(map(str.isspace, model)) and not os.path.exists(model):
        raise RequestError(
            f"{shorten(model, 60)}: no such model; a prompt comes after the model: "
            "trilobit run MODEL PROMPT, or trilobit generate PROMPT"
        )
    from .continuation import read, summary
    from .terminal import note

    llm = open_llm(model)
    stream = llm.stream(prompt, params)
    finished = read(stream, shown=True, prompt=prompt)
    print()
    values = summary(llm, params, stream)
    note(
        f"{values['tokens']} tokens"
        f" | prefill {values['prefill_tokens_per_s']:.0f} tokens/s"
        f" | decode {values['decode_tokens_per_s']:.0f} tokens/s"
        f" | threads {values['threads']} | ISA {values['isa']}"
        f" | peak memory {values['peak_rss_mb']:.0f} MB | seed {values['seed']}"
    )
    if not finished:
        raise click.exceptions.Exit(130)
