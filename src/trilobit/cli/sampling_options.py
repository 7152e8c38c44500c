"""The options of SamplingParams, for every command that generates."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable
from typing import Any

import click

from trilobit.sampling import SamplingParams

Command = Callable[..., None]

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
        raise click.BadParameter(f"{value!r} is not ID:VALUE, such as 42:-1.5") from None


def sampling_options(defaults: SamplingParams) -> Callable[[Command], Command]:
    """Add the options, with these defaults, to a command, which gets them as `params`.

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
        for option in reversed(_options(defaults)):
            decorated = option(decorated)
        return decorated

    return decorate


def _options(defaults: SamplingParams) -> list[Callable[[Command], Command]]:
    return [
        *(
            click.option(
                f"--{name.replace('_', '-')}",
                type=kind,
                metavar=metavar,
                default=getattr(defaults, name),
                show_default=True,
                help=text,
            )
            for name, (kind, metavar, text) in _NUMBERS.items()
        ),
        click.option("--seed", type=int, metavar="N", help="The same seed gives the same text."),
        click.option("--stop", multiple=True, metavar="TEXT", help="End before TEXT. Repeatable."),
        click.option(
            "--logit-bias",
            multiple=True,
            type=_bias,
            metavar="ID:VALUE",
            help="Add VALUE to a token's logit; -inf forbids it. Repeatable.",
        ),
        click.option("--ignore-eos", is_flag=True, help="Go on after the end-of-text token."),
    ]
