"""Chat templates: the messages of a chat as one text.

A template is a program that came with a model file; see `sandbox` for what keeps it harmless.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from trilobit.errors import RequestError

_LONGEST_TEMPLATE = 100_000  # characters; real ones have up to 20,000


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos_token: str = "",
    eos_token: str = "",
    tools: Sequence[Mapping[str, Any]] | None = None,
    thinking: bool | None = None,
) -> str:
    """A chat as text, ending where the assistant's reply begins. tools: that may be called.

    thinking: whether the reply begins with a thought, where the template lets one choose (Qwen 3's
    `enable_thinking`); None: as the template has it.

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
                tools=tools,
                documents=None,
                **({} if thinking is None else {"enable_thinking": thinking}),
            )
        )
    except RequestError:
        raise
    except Exception as error:  # a template's own mistakes: 1 // 0, a missing key, a wrong type
        reason = " ".join(str(error)[:200].split()) or type(error).__name__
        raise RequestError(
            f"the chat template failed: {reason}; use generate with a plain prompt"
        ) from None


@lru_cache(maxsize=16)
def leaves_bos_to_tokenizer(template: str) -> bool:
    """Whether a chat begins with BOS although its template writes none.

    By transformers' `apply_chat_template` none does. BitNet b1.58 2B4T is the exception: its card
    gives the template's text to the tokenizer, which puts BOS in front, as bitnet.cpp does.
    However its template is written (there are several), its chats look like no other's.
    """
    try:
        text = render(template, [{"role": "user", "content": "a"}])
    except RequestError:
        return False
    return text == "User: a<|eot_id|>Assistant: "


def texts_of(value: object) -> Iterator[str]:
    """All texts in the fields of messages, names of fields inside them too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from texts_of(key)
            yield from texts_of(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from texts_of(inner)


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Messages, or a value in one, with every text changed, names of fields too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): with_texts(inner, change) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_texts(inner, change) for inner in value]
    return value
