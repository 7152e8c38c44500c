"""Trilobit: train, convert, run and measure 1.58-bit (BitNet b1.58) language models."""

from __future__ import annotations

from trilobit.errors import (
    ContextOverflow,
    DownloadError,
    EngineError,
    FormatError,
    OutputError,
    RecipeError,
    RequestError,
    TrilobitError,
    UnsupportedModel,
)

TYPE_CHECKING = False  # as of `typing`, which takes longer to load than all of this
if TYPE_CHECKING:
    from typing import Any

    from trilobit.async_llm import AsyncLLM
    from trilobit.conversion import convert
    from trilobit.embedder import Embedder
    from trilobit.engine.event import Completion, Event, Score, TokenLogprob, Usage
    from trilobit.engine.options import EngineOptions
    from trilobit.event_stream import EventStream
    from trilobit.llm import LLM
    from trilobit.sampling import SamplingParams
    from trilobit.stream import Stream
    from trilobit.text.reply import Part, Reply
    from trilobit.text.tools import Toolbox, ToolCall
    from trilobit.vectors import pack_vectors, similarity, unpack_vectors

    __version__: str

__all__ = [
    "LLM",
    "AsyncLLM",
    "Completion",
    "ContextOverflow",
    "DownloadError",
    "Embedder",
    "EngineError",
    "EngineOptions",
    "Event",
    "EventStream",
    "FormatError",
    "OutputError",
    "Part",
    "RecipeError",
    "Reply",
    "RequestError",
    "SamplingParams",
    "Score",
    "Stream",
    "TokenLogprob",
    "ToolCall",
    "Toolbox",
    "TrilobitError",
    "UnsupportedModel",
    "Usage",
    "__version__",
    "convert",
    "pack_vectors",
    "similarity",
    "unpack_vectors",
]

# Name -> its module. Looked up when asked for: the engine brings the native module and the
# tokenizer, and even the rest takes longer than a command needs to answer Ctrl-C.
_MODULES = {
    "LLM": "llm",
    "AsyncLLM": "async_llm",
    "Completion": "engine.event",
    "Embedder": "embedder",
    "EngineOptions": "engine.options",
    "Event": "engine.event",
    "EventStream": "event_stream",
    "SamplingParams": "sampling",
    "Part": "text.reply",
    "Reply": "text.reply",
    "Score": "engine.event",
    "Stream": "stream",
    "TokenLogprob": "engine.event",
    "ToolCall": "text.tools",
    "Toolbox": "text.tools",
    "Usage": "engine.event",
    "convert": "conversion",
    "pack_vectors": "vectors",
    "similarity": "vectors",
    "unpack_vectors": "vectors",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("trilobit")
    raise AttributeError(f"module 'trilobit' has no attribute {name!r}")
