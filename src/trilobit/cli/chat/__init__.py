"""`trilobit chat`: talk to a model in the terminal, or line by line through a pipe."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

import click

from trilobit.bundled import CHAT
from trilobit.cli.chat.quoted import is_closed, is_open
from trilobit.cli.command import Command
from trilobit.cli.options import (
    FOR_PEOPLE,
    OpenLLM,
    llm_options,
    model_argument,
    plain_option,
    sampling_options,
)
from trilobit.errors import RequestError
from trilobit.sampling import SamplingParams
from trilobit.text.utf8 import utf8

if TYPE_CHECKING:
    from trilobit.llm import LLM

# Ctrl-C is heard between two steps, so a step of a long prompt must not take seconds.
STEP_TOKENS = 128


@click.command(
    "chat",
    cls=Command,
    examples=[
        ("trilobit chat", "Talk to the teller of stories that comes with the package."),
        ("trilobit chat bitnet-2b", "Talk to a published model."),
        ('trilobit chat bitnet-2b --system "Be brief."', "Tell it how to answer."),
        ("trilobit chat bitnet-2b < questions.txt", "An answer to each line."),
    ],
)
@model_argument(default=CHAT)
@click.argument("message", nargs=-1)
@click.option("--system", metavar="TEXT", help="What the model is told before the conversation.")
@click.option("--stats/--no-stats", default=True, help="Show the speed after each reply.")
@plain_option
@sampling_options(SamplingParams(max_tokens=1024), FOR_PEOPLE)
@llm_options
def command(
    model: str,
    message: tuple[str, ...],
    system: str | None,
    stats: bool,
    plain: bool,
    params: SamplingParams,
    open_llm: OpenLLM,
) -> None:
    """Talk to MODEL: a file, a folder or a name (`trilobit list --names`).

    MESSAGE is said first.

    /help in the chat explains its commands and keys. Without a terminal, every line of stdin is
    a message; replies go to stdout, all else to stderr.
    """
    from trilobit.cli.prompt import check_model

    check_model(model, f"a message comes after the model: trilobit chat {CHAT} MESSAGE")
    # One sequence: the cache need not hold more than one context.
    llm = open_llm(model, max_batch_tokens=STEP_TOKENS, max_sequences=1)
    first = " ".join(message)
    talk(llm, params, open_llm, system=system, stats=stats, plain=plain, first=first)


def talk(
    llm: LLM,
    params: SamplingParams,
    open_llm: OpenLLM,
    *,
    system: str | None,
    stats: bool,
    plain: bool,
    first: str = "",
) -> None:
    """Chat with a model until the user leaves; through a pipe, line by line.

    open_llm: opens another model when the user wants one. plain: show replies as they are.
    first: a message that is said already.
    """
    from trilobit.cli.chat.dialogue import COMMANDS, NO_CHAT, Dialogue
    from trilobit.cli.terminal import note

    utf8(system or "", "--system")
    utf8(first, "MESSAGE")
    llm.encode("")  # a model without a tokenizer fails here, not at every message
    interactive = _is_terminal(sys.stdin) and _is_terminal(sys.stdout)
    if interactive:
        from trilobit.cli.chat.completion import ChatCompleter
        from trilobit.cli.chat.keyboard import keyboard

        read = keyboard(ChatCompleter(COMMANDS))
        note(
            f"{llm.path.stem}: context {llm.context} tokens, threads {llm.threads}; "
            "/help explains, Ctrl-D leaves"
        )
    else:
        if isinstance(sys.stdin, io.TextIOWrapper):
            # Bytes that are no text: the message is refused, and the next one read.
            sys.stdin.reconfigure(errors="surrogateescape")
        read = lines(sys.stdin or io.StringIO())
    if not llm.has_chat_template:
        note(NO_CHAT)

    def open_model(name: str) -> LLM:
        return open_llm(name, max_batch_tokens=STEP_TOKENS, max_sequences=1)

    dialogue = Dialogue(
        llm,
        params,
        read,
        open_model,
        system=system,
        interactive=interactive,
        stats=stats,
        plain=plain,
    )
    if not dialogue.run(first) and not interactive:
        raise click.exceptions.Exit(2)


def lines(stream: TextIO) -> Callable[[str], str]:
    """A function that gives the next message of a pipe: a line, or more that end in a backslash, or
    all that stands between three quotes.

    It raises EOFError at the end.
    """

    def read(begun: str) -> str:
        parts: list[str] = []
        quoted = False  # since the first line
        for line in stream:
            parts.append(line.removesuffix("\n"))
            if quoted:
                if is_closed(parts[-1]):
                    return "\n".join(parts)
            elif len(parts) == 1 and is_open(parts[0]):
                quoted = True
            elif parts[-1].endswith("\\"):
                parts[-1] = parts[-1][:-1]
            else:
                break
        if quoted:
            raise RequestError('a message begins with """ and does not end; close it with """')
        if not parts:
            raise EOFError
        return "\n".join(parts)

    return read


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()
