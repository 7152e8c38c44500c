"""Trilobit: train, convert, run and measure 1.58-bit (BitNet b1.58) language models."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from .errors import (
    ContextOverflow,
    DownloadError,
    FormatError,
    OutputError,
    RecipeError,
    RequestError,
    TrilobitError,
    UnsupportedModel,
)
from .sampling import SamplingParams

if TYPE_CHECKING:
    from .engine.embedder import Embedder
    from .engine.llm import LLM
    from .vectors import pack_vectors, similarity, unpack_vectors

__version__ = version("trilobit")

__all__ = [
    "LLM",
    "ContextOverflow",
    "DownloadError",
    "Embedder",
    "FormatError",
    "OutputError",
    "RecipeError",
    "RequestError",
    "SamplingParams",
    "TrilobitError",
    "UnsupportedModel",
    "__version__",
    "pack_vectors",
    "similarity",
    "unpack_vectors",
]


def __getattr__(name: str) -> Any:
    # The engine brings the native module and the tokenizer: paid for only when used.
    if name == "LLM":
        from .engine.llm import LLM

        return LLM
    if name == "Embedder":
        from .engine.embedder import Embedder

        return Embedder
    if name in ("pack_vectors", "similarity", "unpack_vectors"):
        from . import vectors

        return getattr(vectors, name)
    raise AttributeError(f"module 'trilobit' has no attribute {name!r}")
