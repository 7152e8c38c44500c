"""What several commands take: a model, what `LLM` is opened with, what `SamplingParams` holds."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trilobit.cli.command import option
from trilobit.cli.model_name import ModelName
from trilobit.cli.number import Number
from trilobit.cli.path import FilePath
from trilobit.sampling import NOTHING_SAID, SamplingParams

if TYPE_CHECKING:
    from trilobit.engine.blocks import KvDtype
    from trilobit.llm import LLM
    from trilobit.model.packing import LayoutChoice

Command = Callable[..., None]
OpenLLM = Callable[..., "LLM"]

SAMPLING = "Sampling"
ENGINE = "Engine"

# ---- the model --------------------------------------------------------------------------------


def model_option(command: Command) -> Command:
    """Add `-m`, which names the model in place of the first argument (see `Command`)."""
    return click.option(
        "-m",
        "--model",
        "model_option",
        type=ModelName(),
        metavar="MODEL",
        expose_value=False,
        help="The same as MODEL in the first place.",
    )(command)


def model_argument(
    *, default: str | None = None, required: bool = True, here: bool = False
) -> Callable[[Command], Command]:
    """Add MODEL, as the first argument or as `-m`, to a command, which gets it as `model`.

    here: it must be on this machine already.
    """

    def decorate(command: Command) -> Command:
        # Even a default of None would make an argument optional.
        settings = {"required": required} if default is None else {"default": default}
        return click.argument("model", type=ModelName(here=here), **settings)(model_option(command))

    return decorate


# ---- output -----------------------------------------------------------------------------------

plain_option = click.option(
    "--plain", is_flag=True, help="On a terminal too, show the text as the model writes it."
)

# ---- LLM --------------------------------------------------------------------------------------

THREADS_HELP = "CPU threads. Default: what the model is worth, the physical cores at most."

threads_option = option(ENGINE, "--threads", type=int, metavar="N", help=THREADS_HELP)
context_option = option(
    ENGINE, "--context", type=int, metavar="N", help="Tokens, at most. Default: the model's."
)
speculation_option = option(
    ENGINE,
    "--speculation/--no-speculation",
    default=None,
    help="Guess ahead where the text repeats itself; the text is the same, and comes sooner. "
    "Default: with models beyond 64 MB.",
)
kv_option = option(
    ENGINE,
    "--kv-dtype",
    type=click.Choice(("f16", "f32", "i8")),
    default="f16",
    show_default=True,
    help="What the cache keeps keys and values as; i8 is half of f16, and faster when it is long.",
)
layout_option = option(
    ENGINE,
    "--layout",
    type=click.Choice(("2-bit", "1.6-bit", "auto")),
    help="How weights lie in memory; auto takes the faster one. Default: as in the file. What "
    "comes out is the same.",
)
adapter_option = option(
    ENGINE,
    "--adapter",
    type=FilePath(),
    metavar="DIR",
    help="A LoRA adapter of the model, as `trilobit train` and peft save them.",
)

gate_density_option = click.option(
    "--gate-density",
    type=Number(0, 0.5, min_open=True),
    metavar="SHARE",
    help="Of random relu² models: how many gates are positive. Trained ones have 0.1 to 0.3; "
    "default: 0.5, as random weights have it.",
)


def llm_options(command: Command) -> Command:
    """Add the options of `LLM` to a command, which gets `open_llm`: `LLM` with what they say."""

    @functools.wraps(command)
    def with_open_llm(
        *,
        threads: int | None,
        context: int | None,
        speculation: bool | None,
        kv_dtype: KvDtype,
        layout: LayoutChoice | None,
        adapter: Path | None,
        **rest: Any,
    ) -> None:
        def open_llm(model: str, **more: int) -> LLM:
            from trilobit.llm import LLM  # brings numpy and the core

            return LLM(
                model,
                threads=threads,
                context=context,
                speculation=speculation,
                kv_dtype=kv_dtype,
                layout=layout,
                adapter=adapter,
                **more,  # type: ignore[arg-type]
            )

        command(open_llm=open_llm, **rest)

    decorated: Command = with_open_llm
    for add in (
        adapter_option,
        layout_option,
        kv_option,
        speculation_option,
        context_option,
        threads_option,
    ):
        decorated = add(decorated)
    return decorated


# ---- SamplingParams ---------------------------------------------------------------------------

# What a text for people is made by where the model says nothing: without its unlikeliest tokens.
FOR_PEOPLE = SamplingParams(temperature=0.7, min_p=0.05)


def for_people(params: SamplingParams, model: SamplingParams) -> SamplingParams:
    """`params`; what they leave open is the model's, or of one that says nothing FOR_PEOPLE's."""
    return params.settled(model if model.said else FOR_PEOPLE)


# field -> type, what --help calls the value, help
_NUMBERS: dict[str, tuple[type, str, str]] = {
    "max_tokens": (int, "N", "Write at most N tokens."),
    "temperature": (float, "T", "Higher is more varied; 0 takes the most likely token."),
    "top_k": (int, "K", "Choose among the K most likely tokens; 0 is off."),
    "top_p": (float, "P", "Choose among the likeliest tokens that together make P; 1 is off."),
    "min_p": (float, "P", "Drop tokens less than P times as likely as the likeliest; 0 is off."),
    "repetition_penalty": (float, "R", "Divide the logits of tokens seen before by R; 1 is off."),
    "frequency_penalty": (float, "F", "Lower a token's logit by F every time it is written."),
    "presence_penalty": (float, "F", "Lower the logits of written tokens by F."),
}


def _bias(value: str) -> tuple[int, float]:
    token_id, _, bias = value.partition(":")
    try:
        return int(token_id), float(bias)
    except ValueError:
        raise click.BadParameter(f"{value!r:.80} is not ID:VALUE, such as 42:-1.5") from None


def sampling_options(
    defaults: SamplingParams, otherwise: SamplingParams = NOTHING_SAID
) -> Callable[[Command], Command]:
    """Add the options, with these defaults, to a command, which gets them as `params`.

    otherwise: what the command takes where neither the user nor the model says anything.
    A seed is drawn where none is given, so that every output can be had again.
    Raises RequestError, from SamplingParams, for values out of range.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_params(
            *,
            seed: int | None,
            stop: tuple[str, ...],
            logit_bias: tuple[tuple[int, float], ...],
            ignore_eos: bool,
            **rest: Any,
        ) -> None:
            params = SamplingParams(
                seed=secrets.randbits(32) if seed is None else seed,
                stop=stop,
                logit_bias=dict(logit_bias),
                ignore_eos=ignore_eos,
                **{name: rest.pop(name) for name in _NUMBERS},
            )
            command(params=params, **rest)

        decorated: Command = with_params
        for add in reversed(_sampling(defaults, otherwise)):
            decorated = add(decorated)
        return decorated

    return decorate


def _sampling(
    defaults: SamplingParams, otherwise: SamplingParams
) -> list[Callable[[Command], Command]]:
    usual = otherwise.settled().said
    return [
        *(
            option(
                SAMPLING,
                f"--{name.replace('_', '-')}",
                type=kind,
                metavar=metavar,
                default=getattr(defaults, name),
                show_default=f"the model's, else {usual[name]:g}" if name in usual else True,
                help=text,
            )
            for name, (kind, metavar, text) in _NUMBERS.items()
        ),
        option(
            SAMPLING, "--seed", type=int, metavar="N", help="The same seed gives the same text."
        ),
        option(
            SAMPLING, "--stop", multiple=True, metavar="TEXT", help="End before TEXT. Repeatable."
        ),
        option(
            SAMPLING,
            "--logit-bias",
            multiple=True,
            type=_bias,
            metavar="ID:VALUE",
            help="Add VALUE to a token's logit; -inf forbids it. Repeatable.",
        ),
        option(SAMPLING, "--ignore-eos", is_flag=True, help="Go on after the end-of-text token."),
    ]
