"""Chat templates: the messages of a chat as one text.

A template is a program that came with a model file; see `sandbox` for what keeps it harmless.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trilobit.errors import RequestError

_LONGEST_TEMPLATE = 100_000  # characters; real ones have up to 20,000


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    *,
    bos_token: str = "",
    eos_token: str = "",
) -> str:
    """A chat as text, ending where the assistant's reply begins.

    Raises RequestError when the template refuses the messages, is damaged or exceeds its budget.
    """
    from trilobit.text.sandbox import (
        Sandbox,  # with jinja2, which a model without a template does not need
    )

    if len(template) > _LONGEST_TEMPLATE:
        raise RequestError(f"the chat template has {len(template)} characters; it cannot be real")
    try:
        return (
            Sandbox()
            .from_string(template)
            .render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                bos_token=bos_token,
                eos_token=eos_token,
                tools=None,
                documents=None,
            )
        )
    except RequestError:
        raise
    except Exception as error:  # a template's own mistakes: 1 // 0, a missing key, a wrong type
        reason = " ".join(str(error)[:200].split()) or type(error).__name__
        raise RequestError(
            f"the chat template failed: {reason}; use generate with a plain prompt"
        ) from None
