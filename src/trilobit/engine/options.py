"""The options of an engine: spelled and checked here, once for every face and command."""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, TypedDict

from trilobit.engine.blocks import KvDtype
from trilobit.errors import RequestError
from trilobit.model.packing import LAYOUTS, LayoutChoice

Head = Literal["auto", "screened", "full"]

MOST_THREADS = 1024
MOST_BATCH_TOKENS = 1 << 20


class Options(TypedDict, total=False):
    """The keywords of `EngineOptions`, for functions that pass them on."""

    threads: int | None
    context: int | None
    kv_memory_mb: int
    memory_mb: int | None
    max_batch_tokens: int
    max_sequences: int
    kv_dtype: KvDtype
    head: Head
    layout: LayoutChoice | None
    speculation: bool | None
    step_budget_ms: int
    prefix_cache: str | os.PathLike[str] | None
    prefix_cache_gb: int
    adapter: str | os.PathLike[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How a model is run. No option but `adapter` changes a result.

    threads: at most; default the physical cores that affinity and CPU quota allow. Steps too short
    to be shared take one. context: tokens of prompt and output together; default what the model was
    made for, which is also the most. kv_memory_mb: keys and values of running
    requests and of earlier ones that may serve again, in MB (10^6 bytes); at least one context.
    memory_mb: weights, keys and values and what a step needs, all together at most; a model that
    cannot keep to it is refused.
    max_batch_tokens: of one step. max_sequences: requests that run at once; others wait.
    kv_dtype: what the cache keeps keys and values as; "i8" is half of "f16" and moves results a
    little. head: how the next token is chosen (docs/head.md): "screened" computes as few rows of
    the head as decide it, "full" computes all; the tokens are the same. "auto" screens heads that
    no cache holds. layout: of the ternary weights in memory, "2-bit" or "1.6-bit"
    (docs/format.md); "auto": what is faster here, by measurement; None: as in the file, which is
    then read in place. speculation: where the text repeats itself, several tokens are guessed and
    tried at once. None: with models beyond 64 MB, whose steps are long enough. step_budget_ms: what
    a step may take while a text is being written: prompts, scores and embeddings that run beside it
    get smaller chunks then. prefix_cache: a folder where keys and values are kept, so that what was
    computed of a text need not be after a restart, nor by others that share the folder; what is in
    it tells what was asked. prefix_cache_gb: of the folder (10^9 bytes); the longest unused goes.
    adapter: the folder of a LoRA adapter of the model, as peft saves them, which is added to the
    products of its matrices in float32.

    Raises RequestError for an impossible value.
    """

    threads: int | None = None
    context: int | None = None
    kv_memory_mb: int = 512
    memory_mb: int | None = None
    max_batch_tokens: int = 256
    max_sequences: int = 16
    kv_dtype: KvDtype = "f16"
    head: Head = "auto"
    layout: LayoutChoice | None = None
    speculation: bool | None = None
    # A pause of a fifth of a second is just seen in a text that is being written.
    step_budget_ms: int = 200
    prefix_cache: str | os.PathLike[str] | None = None
    prefix_cache_gb: int = 10
    adapter: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.threads is not None:
            whole("threads", self.threads, MOST_THREADS)
        if self.context is not None:
            _check_context(self.context)
        whole("max_batch_tokens", self.max_batch_tokens, MOST_BATCH_TOKENS)
        whole("max_sequences", self.max_sequences, 1 << 16)
        whole("kv_memory_mb", self.kv_memory_mb, 1 << 30)
        if self.memory_mb is not None:
            whole("memory_mb", self.memory_mb, 1 << 30)
        whole("step_budget_ms", self.step_budget_ms, 3_600_000)
        whole("prefix_cache_gb", self.prefix_cache_gb, 1 << 20)
        for name in ("prefix_cache", "adapter"):
            folder = getattr(self, name)
            if folder is not None and not isinstance(folder, (str, os.PathLike)):
                shown = reprlib.repr(folder)
                raise RequestError(f"{name} is {shown}; expected a folder or None")
        _one_of("kv_dtype", self.kv_dtype, ("f16", "f32", "i8"))
        _one_of("head", self.head, ("auto", "screened", "full"))
        if self.layout is not None and self.layout not in (*LAYOUTS, "auto"):
            known = ", ".join(map(repr, LAYOUTS))
            shown = reprlib.repr(self.layout)
            raise RequestError(f"layout is {shown}; expected {known}, 'auto' or None")
        if self.speculation is not None and not isinstance(self.speculation, bool):
            shown = reprlib.repr(self.speculation)
            raise RequestError(f"speculation is {shown}; expected True or False")

    def context_of(self, most: int) -> int:
        """The context of a model that takes `most` tokens; RequestError for one it cannot have."""
        if self.context is None:
            return most
        if not 2 <= self.context <= most:
            raise RequestError(f"context is {self.context}; this model takes 2 to {most} tokens")
        return self.context


def options_of(face: str, given: Mapping[str, object]) -> EngineOptions:
    """The options that a face was given by name; RequestError for a name that there is not."""
    known = [field.name for field in fields(EngineOptions)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name.lower(), known, n=1)
            meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise RequestError(f"{face} has no option {name!r:.60}; {meant}")
    return EngineOptions(**given)  # type: ignore[arg-type]


def _check_context(value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 2 <= value <= 1 << 40:
        raise RequestError(
            f"context is {reprlib.repr(value)}; expected tokens of prompt and output together, 2 "
            "or more, or None for as many as the model takes"
        )


def whole(name: str, value: object, most: int) -> int:
    """An option that is an integer from 1 to `most`, or RequestError."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        shown = reprlib.repr(value)
        raise RequestError(f"{name} is {shown}; expected an integer from 1 to {most}")
    return value


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        *some, last = map(repr, known)
        shown = reprlib.repr(value)
        raise RequestError(f"{name} is {shown}; expected {', '.join(some)} or {last}")
