"""`trilobit run`: a chat, an answer or a story, as the model is made for, and what it took."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from trilobit.bundled import BEGINNINGS, DEFAULT
from trilobit.cli.command import Command
from trilobit.cli.options import (
    FOR_PEOPLE,
    OpenLLM,
    for_people,
    llm_options,
    model_argument,
    plain_option,
    sampling_options,
)
from trilobit.errors import RequestError
from trilobit.sampling import SamplingParams

if TYPE_CHECKING:
    from trilobit.inputs import Message


@click.command(
    "run",
    cls=Command,
    examples=[
        ("trilobit run", "A story by the model that comes with the package."),
        ("trilobit run bitnet-2b", "A chat; downloads the model the first time."),
        ('trilobit run bitnet-2b "Why is the sky blue?"', "One answer."),
        ('trilobit run bitnet-2b "Sum up:" < notes.txt', "An answer about a text."),
        ('trilobit run model.trilobit "The big dog"', "A story that begins so."),
    ],
)
@model_argument(default=DEFAULT)
@click.argument("prompt", nargs=-1)
@click.option("--system", metavar="TEXT", help="What a chat model is told before the question.")
@plain_option
@sampling_options(SamplingParams(max_tokens=512), FOR_PEOPLE)
@llm_options
def command(
    model: str,
    prompt: tuple[str, ...],
    system: str | None,
    plain: bool,
    params: SamplingParams,
    open_llm: OpenLLM,
) -> None:
    """Talk to MODEL, put the question PROMPT to it, or let it tell a story.

    A model that was made for conversations answers PROMPT; without one, it chats in the terminal
    (`trilobit chat`). Any other model continues PROMPT ("Once upon a time", or the like in Arabic).
    What comes through stdin is put before PROMPT. MODEL is a file, a folder or a name
    (`trilobit list --names`). The text goes to stdout, the line about it to stderr.
    """
    from trilobit.cli.prompt import check_model, piped, warn_of_model

    check_model(
        model,
        "a prompt comes after the model: trilobit run MODEL PROMPT, or trilobit generate PROMPT",
    )
    said = None if prompt in ((), ("-",)) else " ".join(prompt)  # stdin is read anyway
    if said is not None:
        warn_of_model(said, "trilobit run")
    asked = _joined(piped(), said)
    if asked is None and _terminal():
        from trilobit.cli.chat import STEP_TOKENS, talk

        llm = open_llm(model, max_batch_tokens=STEP_TOKENS, max_sequences=1)
        if llm.has_chat_template:
            talk(llm, params, open_llm, system=system, stats=True, plain=plain)
            return
    else:
        llm = open_llm(model)
    params = for_people(params, llm.sampling)
    from trilobit.cli.chat.reply import Reply
    from trilobit.cli.continuation import read, summary
    from trilobit.cli.terminal import note
    from trilobit.cli.units import count

    if llm.has_chat_template:
        if asked is None or not asked.strip():
            raise RequestError(f"nothing is asked; give a question: trilobit run {model} PROMPT")
        stream, begun = llm.stream_chat(_messages(system, asked), params), ""
    elif system is not None:
        raise RequestError(f"{model}: was not made for conversations; leave out --system")
    else:
        begun = BEGINNINGS.get(model, BEGINNINGS[DEFAULT]) if asked is None else asked
        stream = llm.stream(begun, params)
    reply = Reply(plain=plain)
    finished = read(stream, reply.add, begun)
    reply.finish()
    print()
    values = summary(llm, params, stream)
    note(
        f"{count(values['tokens'], 'token')}"
        f" | prefill {values['prefill_tokens_per_s']:.0f} tokens/s"
        f" | decode {values['decode_tokens_per_s']:.0f} tokens/s"
        f" | threads {values['threads']} | ISA {values['isa']}"
        f" | peak memory {values['peak_rss_mb']:.0f} MB | seed {values['seed']}"
    )
    if not finished:
        raise click.exceptions.Exit(130)


def _joined(text: str | None, prompt: str | None) -> str | None:
    """What was piped, a blank line, the prompt; or one of them."""
    return f"{text}\n\n{prompt}" if text and prompt else text or prompt


def _messages(system: str | None, asked: str) -> list[Message]:
    told: list[Message] = [{"role": "system", "content": system}] if system else []
    return [*told, {"role": "user", "content": asked}]


def _terminal() -> bool:
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))
