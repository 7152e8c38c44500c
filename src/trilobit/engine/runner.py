"""The step loop: scheduler, blocks and native decoder, from queued sequences to new tokens.

For one thread at a time. What interrupts a step half-way (Ctrl-C, an exhausted memory) cannot
leave it in a wrong state: the tokens of a sequence are the truth, and everything else is made
anew from them before the next step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..config import ModelConfig
from ..errors import RequestError
from ..formats.files import OpenFile
from ..packing import PLACES, Layout
from ..rope import frequencies
from .blocks import BLOCK, BlockPool, blocks_for, key_of
from .drafts import Drafter
from .scheduler import Scheduler
from .sequence import Sequence

Files = Mapping[str, tuple[OpenFile, int]]
# Logits of one pass over the head, when a caller wants them all: 64 MB of float32.
_LOGITS_ELEMENTS = 1 << 24


class Runner:
    """A decoder over `arrays` and `files` (see PackedModel) and the sequences that run on it.

    blocks: of the KV cache. batch_tokens: of one step. sequences: running at once, at most.
    layout: of the ternary weights.
    speculation: try guesses of the next tokens where they are expected to pay; changes no token.
    forget_head: called when the head's table was read as a whole and is not any more.
    Raises RequestError when the machine cannot hold or run it.
    """

    def __init__(
        self,
        config: ModelConfig,
        arrays: Mapping[str, NDArray[Any]],
        *,
        threads: int,
        blocks: int,
        batch_tokens: int,
        sequences: int,
        kv_dtype: str,
        layout: Layout = "2-bit",
        speculation: bool = False,
        files: Files | None = None,
        forget_head: Callable[[], None] | None = None,
    ) -> None:
        self._decoder = open_decoder(
            config,
            arrays,
            threads=threads,
            batch_tokens=batch_tokens,
            blocks=blocks,
            kv_dtype=kv_dtype,
            files=files,
            layout=layout,
        )
        self._forget_head, self._head_is_mapped, self._full_passes = forget_head, False, 0
        self._speculation = speculation
        self._blocks, self._batch_tokens, self._sequences = blocks, batch_tokens, sequences
        self._logit_rows = min(batch_tokens, max(1, _LOGITS_ELEMENTS // config.vocab_size))
        self._live: list[Sequence] = []  # all that are not over, in the order of their arrival
        self._cut_short = False
        self._cut = 0
        self._start_empty()

    @property
    def threads(self) -> int:
        """Threads of the decoder, at most."""
        return self._decoder.threads

    def threads_for(self, tokens: int) -> int:
        """Threads that a step of so many tokens takes."""
        return self._decoder.threads_for(tokens)

    @property
    def free_blocks(self) -> int:
        """Blocks that no sequence holds."""
        return self._scheduler.pool.available

    @property
    def has_abandoned(self) -> bool:
        """Whether `drop_abandoned` would drop something. Safe from any thread."""
        return any(sequence.abandoned for sequence in self._live)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        with self._whole():
            self._live.append(sequence)
            self._scheduler.add(sequence)

    def drop_abandoned(self) -> None:
        """Free what abandoned sequences hold."""
        with self._whole():
            self._retire()

    def step(self) -> bool:
        """Run one batch and hand out its tokens; False when there was nothing to run.

        What it raises, other than an interrupt, has ended every sequence with the same error.
        """
        try:
            with self._whole():
                self._retire()
                started = time.perf_counter()
                chunks = self._scheduler.schedule()
                if chunks:
                    self._run(chunks, started)
                    self._retire()
                    self._let_go()
                return bool(chunks)
        except Exception as error:
            for sequence in self._live:
                sequence.error = error
            raise

    def logits(self, token_ids: list[int]) -> Iterator[NDArray[np.float32]]:
        """Logits [rows, vocab] of every token, a few rows at a time, from an empty cache."""
        with self._whole():
            self._retire()
            blocks = self._scheduler.take(blocks_for(len(token_ids)))
            table = np.array([blocks], dtype=np.int32)
            for start in range(0, len(token_ids), self._logit_rows):
                part = _int32(token_ids[start : start + self._logit_rows])
                count = len(part)
                self._decoder.forward(
                    part,
                    np.arange(start, start + count, dtype=np.int32),
                    np.zeros(count, dtype=np.int32),
                    table,
                    np.arange(count, dtype=np.int32),
                )
                self._cut = tell_of_cut(self._decoder, self._cut)
                yield self._decoder.logits()
            self._scheduler.pool.release(blocks)
            self._let_go()

    def _run(self, chunks: dict[Sequence, int], started: float) -> None:
        drafts = self._draft(chunks)
        ids: list[int] = []
        positions: list[int] = []
        rows: list[int] = []
        outputs: list[int] = []
        table = np.zeros((len(chunks), max(len(s.blocks) for s in chunks)), dtype=np.int32)
        asking: list[Sequence] = []
        for row, (sequence, count) in enumerate(chunks.items()):
            end = sequence.computed + count
            draft = drafts.get(sequence, [])
            ids += sequence.tokens[sequence.computed : end] + draft
            positions += range(sequence.computed, end + len(draft))
            rows += [row] * (count + len(draft))
            table[row, : len(sequence.blocks)] = sequence.blocks
            if end == len(sequence.tokens):
                outputs += range(len(ids) - 1 - len(draft), len(ids))
                asking.append(sequence)
        self._decoder.forward(_int32(ids), _int32(positions), _int32(rows), table, _int32(outputs))
        self._cut = tell_of_cut(self._decoder, self._cut)
        chosen = self._decoder.verify(
            [one.sampler for one in asking], [drafts.get(one, []) for one in asking]
        )
        seconds = time.perf_counter() - started
        if self._drafter:
            self._drafter.observe(drafts, seconds)
        for sequence, count in chunks.items():
            self._advance(sequence, count, seconds)
        for sequence, tokens in zip(asking, chosen, strict=True):
            self._accept(sequence, tokens)
            if sequence in drafts:
                sequence.drafted += len(drafts[sequence])
                self._scheduler.take_back(sequence)

    def _let_go(self) -> None:
        """Forget a head that full passes have drawn in, once a step or everybody does without."""
        passes = self._decoder.full_passes - self._full_passes
        self._full_passes += passes
        self._head_is_mapped |= passes > 0
        if self._forget_head and self._head_is_mapped and not (passes and self._live):
            self._forget_head()
            self._head_is_mapped = False

    def _draft(self, chunks: dict[Sequence, int]) -> dict[Sequence, list[int]]:
        """Guesses of what follows, with room for their keys and values."""
        if not self._drafter:
            return {}
        drafts = self._drafter.draft(chunks, self._batch_tokens - sum(chunks.values()))
        for sequence, draft in drafts.items():
            tokens = len(sequence.tokens)
            del draft[self._scheduler.lend(sequence, tokens + len(draft)) - tokens :]
        return drafts

    def _accept(self, sequence: Sequence, tokens: list[int]) -> None:
        """Take the next tokens; all but the last were guessed, so this step has computed them."""
        for number, token in enumerate(tokens):
            if number:
                self._keep(sequence, 1)
            sequence.accept(token)
            sequence.accepted += number < len(tokens) - 1
            if sequence.over:
                break

    def _advance(self, sequence: Sequence, count: int, seconds: float) -> None:
        if sequence.output_tokens:
            sequence.decode_s += seconds
        else:
            sequence.prefill_s += seconds
            sequence.prefilled += count
        self._keep(sequence, count)

    def _keep(self, sequence: Sequence, count: int) -> None:
        """Count tokens as computed, and make the blocks known that they fill."""
        full = sequence.computed // BLOCK
        sequence.computed += count
        for number in range(full, sequence.computed // BLOCK):
            tokens = sequence.tokens[number * BLOCK : (number + 1) * BLOCK]
            sequence.key = key_of(sequence.key, tokens)
            self._scheduler.pool.publish(sequence.blocks[number], sequence.key)

    def _retire(self) -> None:
        """Take out the sequences that are over."""
        # Asked once: a signal handler or another thread may end one between two questions.
        over = [sequence for sequence in self._live if sequence.over]
        for sequence in over:
            self._scheduler.remove(sequence)
            if self._drafter:
                self._drafter.forget(sequence)
            if sequence.finish_reason is None and sequence.error is None:
                sequence.abort()
        self._live = [sequence for sequence in self._live if sequence not in over]

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """A change of state that is finished, or else made up for before the next one."""
        if self._cut_short:
            self._start_over()
        self._cut_short = True
        yield
        self._cut_short = False

    def _start_over(self) -> None:
        self._start_empty()
        self._live = [sequence for sequence in self._live if not sequence.over]
        for sequence in self._live:
            sequence.restart()
            self._scheduler.add(sequence)

    def _start_empty(self) -> None:
        self._scheduler = Scheduler(
            BlockPool(self._blocks), batch_tokens=self._batch_tokens, sequences=self._sequences
        )
        self._drafter = Drafter() if self._speculation else None


def open_decoder(
    config: ModelConfig,
    arrays: Mapping[str, NDArray[Any]],
    *,
    threads: int,
    batch_tokens: int,
    blocks: int,
    kv_dtype: str,
    files: Files | None = None,
    layout: Layout = "2-bit",
) -> _native.Decoder:
    """A decoder over `arrays`; RequestError when the machine cannot hold or run it."""
    assert _native.Decoder.BLOCK == BLOCK
    try:
        return _native.Decoder(
            config.to_dict(),
            dict(arrays),
            rotary_frequencies(config),
            threads,
            batch_tokens,
            blocks,
            kv_dtype,
            dict(files or {}),
            PLACES[layout],
        )
    except MemoryError:
        raise RequestError(
            "not enough memory for the KV cache and the batch; lower kv_memory_mb, context "
            "or max_batch_tokens"
        ) from None
    except RuntimeError as error:  # an instruction set that TRILOBIT_ISA cannot have
        raise RequestError(str(error)) from None


def tell_of_cut(decoder: _native.Decoder, before: int) -> int:
    """Warn where the first keys or values were cut to float16's range; how many were so far."""
    if decoder.cut and not before:
        logging.getLogger("trilobit").warning(
            "keys or values of attention pass 65,504, the most that a float16 cache holds, and are "
            "cut to it: answers suffer; keep them as float32: --kv-dtype f32, kv_dtype='f32'"
        )
    return decoder.cut


def rotary_frequencies(config: ModelConfig) -> NDArray[np.float32]:
    """Frequencies of RoPE `[1, head_dim / 2]`, and in a second row those of sliding layers."""
    rows = [frequencies(config.head_dim, config.rope_theta, config.rope_scaling)]
    if config.rope_local_base_freq is not None:
        rows.append(frequencies(config.head_dim, config.rope_local_base_freq))
    return np.stack(rows)


def _int32(values: list[int]) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)
