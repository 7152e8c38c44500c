"""A model by any name -> an engine that runs it, and what its file says."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from trilobit.console import Bars
from trilobit.engine.blocks import block_bytes, blocks_for
from trilobit.engine.engine import Engine
from trilobit.engine.memory import MemoryTooSmall, step_bytes
from trilobit.engine.native import NativeBackend
from trilobit.engine.options import EngineOptions
from trilobit.engine.worker import Worker
from trilobit.errors import FormatError, RequestError
from trilobit.formats.adapter import Adapter, chat_template_of
from trilobit.formats.packed.reader import PackedModel
from trilobit.hub.models import open_packed
from trilobit.layouts import chosen_layout
from trilobit.machine import available_cores, warn_of_threads
from trilobit.model import tensor_names
from trilobit.model.config import ModelConfig
from trilobit.model.packing import Layout
from trilobit.prefix_cache import WAITING_BYTES, PrefixCache
from trilobit.progress import Watch
from trilobit.prompter import Prompter
from trilobit.text.grammar import CACHE_BYTES, Grammars
from trilobit.text.tokenizer import Tokenizer

# From here on a step reads its weights from memory and takes milliseconds, beside which looking for
# guesses costs nothing. It took up to 7 % of the 0.2 ms that a step of the bundled model takes.
_STREAMED_BYTES = 64_000_000
# Below this a cache holds the head, and reading all of it costs less than choosing from it.
_SCREENED_HEAD_BYTES = 16_000_000
_MB, _GB = 1_000_000, 1_000_000_000
_GRAMMARS_PART = 16  # of a memory that is bounded, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedModel:
    """A model that generates. head_is_screened: how its next tokens are chosen.

    fingerprint: names all that decides which tokens come.
    """

    path: Path
    fingerprint: Callable[[], str]
    config: ModelConfig
    options: EngineOptions
    prompter: Prompter
    layout: Layout
    head_is_screened: bool
    threads: int  # at most
    threads_for: Callable[[int], int]  # of a step of so many tokens
    memory_bytes: int  # that it may come to use
    activity: Callable[[], list[tuple[float, float]]]  # of its layers
    second_looks: Callable[[], float]  # at its head
    worker: Worker


def open_model(
    model: str | os.PathLike[str], options: EngineOptions, progress: Watch | None = None
) -> OpenedModel:
    """A model ready to generate.

    progress: told how far a download and packing are; None draws it on a terminal.

    Raises FormatError or UnsupportedModel for a file that cannot be run, DownloadError for a name
    that cannot be fetched, RequestError for an unknown name or an impossible option.
    """
    name = str(model)  # what the user calls it: its packed file may be in a cache
    threads = available_cores() if options.threads is None else options.threads
    warn_of_threads(threads)
    grammar_bytes = CACHE_BYTES
    if options.memory_mb is not None:
        grammar_bytes = min(CACHE_BYTES, options.memory_mb * _MB // _GRAMMARS_PART)

    template = None if options.adapter is None else chat_template_of(options.adapter)

    def read(packed: PackedModel) -> tuple[Prompter, Layout, bool, Mapping[str, NDArray[Any]]]:
        context = options.context_of(packed.config.max_position_embeddings)
        layout = chosen_layout(
            options.layout, packed.config, name=name, own=packed.layout, threads=threads
        )
        screened = _head_is_screened(options, packed, name)
        text = packed.text
        config = packed.config
        tokenizer = Tokenizer(text.tokenizer, str(packed.path)) if text.tokenizer else None
        prompter = Prompter(
            name=name,
            config=config,
            tokenizer=tokenizer,
            chat_template=template or text.chat_template,
            add_bos=text.add_bos,
            context=context,
            grammars=Grammars(
                tokenizer, config.vocab_size, config.eos_token_ids, cache_bytes=grammar_bytes
            )
            if tokenizer
            else None,
            sampling=text.sampling,
        )
        return (
            prompter,
            layout,
            screened,
            packed.arrays(screened=screened, layout=layout, threads=threads),
        )

    with Bars() as bars:
        packed, (prompter, layout, screened, arrays) = open_packed(model, read, progress or bars)
    config = packed.config
    adapter = None
    if options.adapter is not None:
        adapter = Adapter(options.adapter, config, packed.file.float32)
        arrays = {**arrays, **adapter.arrays}
    one = blocks_for(prompter.context)
    block = block_bytes(config, options.kv_dtype)

    def fingerprint() -> str:
        adapted = f" {adapter.digest}" if adapter else ""
        return packed.fingerprint(f"{version('trilobit')} {options.kv_dtype}{adapted}")

    batch_tokens = max(options.max_batch_tokens, options.max_sequences)
    fixed = packed.file.size_bytes + step_bytes(config, batch_tokens) + grammar_bytes
    if adapter is not None:
        fixed += adapter.size_bytes
    if options.prefix_cache is not None:
        fixed += WAITING_BYTES
    if layout != packed.layout:  # then they are not read in place
        fixed += packed.file.size_bytes
    wanted = min(options.kv_memory_mb * _MB, _left(options, name, fixed, one * block)) // block
    blocks = max(one, min(wanted, one * options.max_sequences))
    backend = NativeBackend(
        config,
        arrays,
        threads=threads,
        blocks=blocks,
        batch_tokens=batch_tokens,
        kv_dtype=options.kv_dtype,
        layout=layout,
        files=packed.row_files(),
        forget_head=packed.forget_head if screened else None,
    )
    packed.fetch_rows()
    speculation = options.speculation
    if speculation is None:
        speculation = packed.file.size_bytes >= _STREAMED_BYTES
    store = None
    if options.prefix_cache is not None:
        store = PrefixCache(
            Path(options.prefix_cache),
            limit_bytes=options.prefix_cache_gb * _GB,
            fingerprint=fingerprint(),
            block_bytes=block,
            read=backend.read_block,
            write=backend.write_block,
        )
    engine = Engine(
        backend,
        sequences=options.max_sequences,
        speculation=speculation,
        budget_s=options.step_budget_ms / 1000,
        store=store,
    )
    return OpenedModel(
        path=packed.path,
        fingerprint=fingerprint,
        config=config,
        options=options,
        prompter=prompter,
        layout=layout,
        head_is_screened=screened,
        threads=backend.threads,
        threads_for=backend.threads_for,
        memory_bytes=fixed + blocks * block,
        activity=backend.activity,
        second_looks=backend.second_looks,
        worker=Worker(engine),
    )


def _left(options: EngineOptions, name: str, fixed: int, least: int) -> int:
    """Bytes for the cache, of which `least` are needed; RequestError where they are not there."""
    if options.memory_mb is None:
        return 1 << 62
    left = options.memory_mb * _MB - fixed
    if left < least:
        raise MemoryTooSmall(
            f"{name}: needs {-(-fixed // _MB):,} MB for weights and steps, {-(-least // _MB):,} MB "
            f"for one context; memory allows {options.memory_mb:,} MB: give more, or a smaller "
            "context"
        )
    return left


def _head_is_screened(options: EngineOptions, packed: PackedModel, name: str) -> bool:
    if options.head == "screened" and not (packed.has_screen or packed.has_old_screen):
        ternary = packed.config.ternary_embeddings
        remedy = "it is ternary: leave out head" if ternary else "convert it again"
        raise RequestError(f"{name}: has no screen of the head; {remedy}")
    if not packed.has_screen and not packed.has_old_screen:
        return False
    large = _head_bytes(packed) >= _SCREENED_HEAD_BYTES
    wanted = options.head == "screened" or (options.head == "auto" and large)
    if wanted and packed.has_old_screen:
        raise FormatError(
            f"{name}: its screen of the head is of an older version; convert it again: "
            f"trilobit convert {name} NEW (LLM(head='full') does without it)"
        )
    return wanted


def _head_bytes(packed: PackedModel) -> int:
    tied = packed.config.tie_word_embeddings
    return packed.file.info(tensor_names.EMBEDDING if tied else tensor_names.HEAD).size_bytes
