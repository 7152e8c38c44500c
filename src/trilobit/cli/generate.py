"""`trilobit generate`: continue a prompt, for people and for programs."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import click

from trilobit.bundled import DEFAULT
from trilobit.cli.command import Command
from trilobit.cli.constraint import constraint_options
from trilobit.cli.model_name import ModelName
from trilobit.cli.options import OpenLLM, llm_options, sampling_options
from trilobit.cli.path import FilePath
from trilobit.cli.terminal import note
from trilobit.errors import RequestError
from trilobit.sampling import SamplingParams

_ONE = "give one of PROMPT, --file and --token-ids"


def _ids(value: str) -> list[int]:
    try:
        return [int(item) for item in re.split(r"\s*,\s*|\s+", value.strip())]
    except ValueError:
        raise click.BadParameter(
            f"{value!r:.80} is not a list of token ids, such as 1,2,3"
        ) from None


@click.command(
    "generate",
    cls=Command,
    examples=[
        ('trilobit generate "The little dog"', "Continue with the model of the package."),
        ('trilobit generate bitnet-2b "The capital of"', "Continue with another one."),
        ("trilobit generate -m bitnet-2b --file text.txt", "Continue a file."),
        ("trilobit generate --json < prompt.txt", "Text, ids and rates, for programs."),
        (
            'trilobit generate "Is it a dog or a cat?" --choice dog --choice cat',
            "One of two answers.",
        ),
        (
            'trilobit generate "A child:" --json-schema child.json',
            "JSON that fits a schema (docs/structured.md).",
        ),
        ("trilobit generate -m m.trilobit --token-ids 1,2", "A model without a tokenizer."),
    ],
)
@click.argument("words", nargs=-1, metavar="[MODEL] [PROMPT]")
@click.option(
    "-m",
    "--model",
    type=ModelName(),
    metavar="MODEL",
    help=f"A file, a folder or a name. Default: {DEFAULT}.",
)
@click.option("--file", type=FilePath(), help="Read the prompt from a file.")
@click.option("--token-ids", type=_ids, metavar="IDS", help="The prompt as ids: 1,2,3.")
@sampling_options(SamplingParams())
@constraint_options
@llm_options
@click.option("--json", "as_json", is_flag=True, help="Print text, token ids and rates as JSON.")
def command(
    words: tuple[str, ...],
    model: str | None,
    file: Path | None,
    token_ids: list[int] | None,
    params: SamplingParams,
    open_llm: OpenLLM,
    as_json: bool,
) -> None:
    """Print what follows PROMPT; `-`, or no PROMPT, reads it from stdin.

    The text is continued as it is, by chat models too: `trilobit run` puts questions to them.
    One newline at the end of a file or of stdin is not part of the prompt. An empty PROMPT ("")
    begins a text, if the model has a token for that. A model without a tokenizer takes --token-ids
    and prints token ids.
    """
    if file is not None and token_ids is not None:
        raise click.UsageError(_ONE)
    elsewhere = file is not None or token_ids is not None
    model, prompt = _model_and_prompt(words, model, elsewhere)
    asked = token_ids if token_ids is not None else _text(prompt, file)
    from trilobit.cli.continuation import read, show, summary

    llm = open_llm(model)
    stream = llm.stream(asked, params)
    finished = read(stream, (lambda _: None) if as_json else show)
    if as_json:
        print(json.dumps(summary(llm, params, stream)))
    elif llm.tokenizer is None:
        print(",".join(map(str, stream.completion.token_ids)))
    else:
        print()
    if params.constraint is not None and stream.completion.finish_reason == "length":
        note(f"{params.constraint.kind}: cut before its end, so not whole; give more --max-tokens")
    if not finished:
        raise click.exceptions.Exit(130)


def _model_and_prompt(
    words: tuple[str, ...], model: str | None, elsewhere: bool
) -> tuple[str, str | None]:
    """What the words mean: PROMPT; MODEL and PROMPT; MODEL, where the prompt is elsewhere."""
    from trilobit.cli.prompt import warn_of_model
    from trilobit.hub.names import is_known, near_names, resolve

    if model is None and elsewhere and len(words) == 1:
        if is_known(words[0]) or os.path.exists(words[0]):
            return words[0], None
    elif model is None and len(words) > 1:
        model = words[0]
        try:
            resolve(model)
        except RequestError:
            near = "".join(f"; did you mean {name}" for name in near_names(model)[:1])
            raise click.UsageError(
                f"{model:.60}: no such model{near}; a prompt of several words stands in quotes: "
                f'trilobit generate "{" ".join(words):.60}"'
            ) from None
        words = words[1:]
    elif len(words) == 1:
        warn_of_model(words[0], "trilobit generate")
    if elsewhere and words:
        raise click.UsageError(_ONE)
    return model or DEFAULT, " ".join(words) if words else None


def _text(prompt: str | None, file: Path | None) -> str:
    from trilobit.cli.prompt import of_file, of_stdin, piped

    if file is not None:
        return of_file(file)
    if prompt == "-":
        return of_stdin()
    text = piped() if prompt is None else prompt
    if text is None:
        raise click.UsageError(_ONE)
    return text
