"""The options of `LLM`, for every command that generates."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from .kv_option import kv_option
from .layout_option import layout_option
from .speculation_option import speculation_option

if TYPE_CHECKING:
    from trilobit.engine.blocks import KvDtype
    from trilobit.llm import LLM
    from trilobit.packing import LayoutChoice

Command = Callable[..., None]
OpenLLM = Callable[..., "LLM"]

_OPTIONS = (
    click.option("--threads", type=int, metavar="N", help="CPU threads. Default: all cores."),
    click.option("--context", type=int, metavar="N", help="Tokens, at most. Default: the model's."),
    speculation_option,
    kv_option,
    layout_option,
)


def llm_options(command: Command) -> Command:
    """Add the options to a command, which gets `open_llm`: `LLM` with what they say."""

    @functools.wraps(command)
    def with_open_llm(
        *,
        threads: int | None,
        context: int | None,
        speculation: bool | None,
        kv_dtype: KvDtype,
        layout: LayoutChoice | None,
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
                **more,  # type: ignore[arg-type]
            )

        command(open_llm=open_llm, **rest)

    decorated: Command = with_open_llm
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated
