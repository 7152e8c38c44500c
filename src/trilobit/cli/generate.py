"""`trilobit generate`: continue a prompt, for people and for programs."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import BinaryIO

import click

from trilobit.bundled import DEFAULT
from trilobit.errors import RequestError
from trilobit.sampling import SamplingParams

from .llm_options import OpenLLM, llm_options
from .sampling_options import sampling_options

_LONGEST_PROMPT = 16_000_000  # bytes; do not read /dev/zero to its end


def _ids(value: str) -> list[int]:
    try:
        return [int(item) for item in re.split(r"\s*,\s*|\s+", value.strip())]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of token ids, such as 1,2,3") from None


@click.command("generate")
@click.argument("prompt", required=False)
@click.option("--file", type=click.Path(path_type=Path), help="Read the prompt from a file.")
@click.option("--token-ids", type=_ids, metavar="IDS", help="The prompt as ids: 1,2,3.")
@click.option("--model", default=DEFAULT, metavar="MODEL", help="A file, a folder or a name.")
@sampling_options(SamplingParams())
@llm_options
@click.option("--json", "as_json", is_flag=True, help="Print text, token ids and rates as JSON.")
def command(
    prompt: str | None,
    file: Path | None,
    token_ids: list[int] | None,
    model: str,
    params: SamplingParams,
    open_llm: OpenLLM,
    as_json: bool,
) -> None:
    """Print what follows PROMPT; `-` reads it from stdin.

    One newline at the end of a file or of stdin is not part of the prompt. An empty PROMPT ("")
    begins a text, if the model has a token for that. A model without a tokenizer takes --token-ids
    and prints token ids.
    """
    if [prompt, file, token_ids].count(None) != 2:
        raise click.UsageError("give one of PROMPT, --file and --token-ids")
    asked = token_ids if token_ids is not None else _text(prompt, file)
    from .continuation import read, summary

    llm = open_llm(model)
    stream = llm.stream(asked, params)
    finished = read(stream, shown=not as_json)
    if as_json:
        print(json.dumps(summary(llm, params, stream)))
    elif llm.tokenizer is None:
        print(",".join(map(str, stream.completion.token_ids)))
    else:
        print()
    if not finished:
        raise click.exceptions.Exit(130)


def _text(prompt: str | None, file: Path | None) -> str:
    if file is not None:
        with file.open("rb") as opened:
            text = _read(opened, str(file))
    elif prompt == "-":
        if sys.stdin is None:
            raise RequestError("standard input is closed; pipe a prompt into it")
        text = _read(sys.stdin.buffer, "standard input")
    else:
        text = prompt or ""
    return text


def _read(file: BinaryIO, source: str) -> str:
    data = file.read(_LONGEST_PROMPT + 1)
    if len(data) > _LONGEST_PROMPT:
        raise RequestError(f"{source}: longer than any context; give at most 16 MB")
    try:
        text = data.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{source}: not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None
    if not text:  # somebody's mistake more often than a wish, which "" says
        raise RequestError(f'{source}: the prompt is empty; give at least a word, or "" as PROMPT')
    return text
