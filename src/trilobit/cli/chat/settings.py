"""The settings of a chat: how the next tokens are chosen, by the names of `SamplingParams`."""

from __future__ import annotations

import dataclasses
from difflib import get_close_matches

from trilobit.errors import RequestError
from trilobit.sampling import SamplingParams

NAMES = (
    *("temperature", "top_k", "top_p", "min_p", "max_tokens", "seed"),
    *("repetition_penalty", "frequency_penalty", "presence_penalty"),
)


def changed(params: SamplingParams, name: str, value: str) -> SamplingParams:
    """The parameters with one of them changed; RequestError for a name or value that is none."""
    name = name.replace("-", "_")
    if name not in NAMES:
        near = get_close_matches(name, NAMES, n=1)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(NAMES)}"
        raise RequestError(f"/set: no setting {name[:40]!r}; {meant}")
    number: int | float | None
    if name == "seed" and value == "none":
        number = None
    else:
        try:
            number = int(value)
        except ValueError:
            try:
                number = float(value)
            except ValueError:
                raise RequestError(f"/set: {name} is {value[:40]!r}; expected a number") from None
    return dataclasses.replace(params, **{name: number})  # type: ignore[arg-type]


def table(params: SamplingParams) -> str:
    """All settings, a line each."""
    return "".join(f"{name:<20} {getattr(params, name)}\n" for name in NAMES)
