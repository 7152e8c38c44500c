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
    from .engine.llm import LLM

__version__ = version("trilobit")

__all__ = [
    "LLM",
    "ContextOverflow",
    "DownloadError",
    "FormatError",
    "OutputError",
    "RecipeError",
    "RequestError",
    "SamplingParams",
    "TrilobitError",
    "UnsupportedModel",
    "__version__",
]


def __getattr__(name: str) -> Any:
    # The engine brings the native module and the tokenizer: paid for only when used.
    if name == "LLM":
        from .engine.llm import LLM

        return LLM
    raise AttributeError(f"module 'trilobit' has no attribute {name!r}")
