"""What is known of the published models before one is downloaded.

From the model cards and configs that were read; what was not read there is None, and not guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["chat", "base", "embedding"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Facts of a model; shape: its name in `shapes`. context: in tokens."""

    shape: str | None = None
    kind: Kind | None = None
    context: int | None = None
    languages: str | None = None
    licence: str | None = None


_BITNET = Published(shape="2b4t", kind="chat", context=4096, languages="English", licence="MIT")
_FALCON = "Falcon LLM"


def _one_bit(shape: str) -> Published:
    return Published(shape=f"1bitllm-{shape}", kind="base", context=2048, licence="MIT")


def _falcon3(size: str, kind: Kind, context: int | None) -> Published:
    return Published(shape=f"falcon3-{size}", kind=kind, context=context, licence=_FALCON)


def _embedding(size: str) -> Published:
    return Published(shape=f"embedding-{size}", kind="embedding", languages="many")


# Short name -> facts, for every one of `names.ALIASES`.
CATALOGUE: dict[str, Published] = {
    "bitnet-2b": _BITNET,
    "bitnet-2b-bf16": _BITNET,
    "bitnet-2b-gguf": _BITNET,
    "bitnet-large": _one_bit("large"),
    "bitnet-xl": _one_bit("xl"),
    "bitnet-3b": _one_bit("3b"),
    "llama3-8b": Published(shape="llama3-8b", context=8192),
    "falcon3-1b": _falcon3("1b", "chat", None),
    "falcon3-3b": _falcon3("3b", "chat", 32768),
    "falcon3-7b": _falcon3("7b", "chat", 32768),
    "falcon3-10b": _falcon3("10b", "chat", 32768),
    "falcon3-3b-base": _falcon3("3b", "base", 32768),
    "falcon3-7b-base": _falcon3("7b", "base", 32768),
    "falcon3-10b-base": _falcon3("10b", "base", 32768),
    "falcon-e-1b": Published(kind="chat", licence=_FALCON),
    "falcon-e-3b": Published(shape="falcon-e-3b", kind="chat", licence=_FALCON),
    "falcon-e-1b-base": Published(kind="base", licence=_FALCON),
    "falcon-e-3b-base": Published(shape="falcon-e-3b", kind="base", licence=_FALCON),
    "bitnet-embedding-0.6b": _embedding("0.6b"),
    "bitnet-embedding-270m": _embedding("270m"),
    "bonsai-1.7b": Published(shape="bonsai-1.7b"),
    "bonsai-4b": Published(shape="bonsai-4b"),
    "bonsai-8b": Published(shape="bonsai-8b"),
    "bonsai-1.7b-gguf": Published(shape="bonsai-1.7b"),
    "bonsai-4b-gguf": Published(shape="bonsai-4b"),
    "bonsai-8b-gguf": Published(shape="bonsai-8b"),
}
