"""The CPU's backend: the native decoder and sampler, which nothing else of the engine imports."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trilobit import _native
from trilobit.engine.batch import Batch
from trilobit.engine.blocks import BLOCK, KvDtype
from trilobit.engine.reading import no_numbers
from trilobit.engine.request import Request
from trilobit.errors import RequestError, TrilobitError
from trilobit.layouts import native_layout
from trilobit.model.config import ModelConfig
from trilobit.model.packing import Layout
from trilobit.model.rope import frequencies
from trilobit.sampling import DEFAULTS

_LOG = logging.getLogger("trilobit")

# Below this float32 cannot hold logit / temperature beside its noise, and the likeliest token
# wins anyway.
_LEAST_TEMPERATURE = 1e-5


# By a table's name: an open file, and where in it the table begins.
Files = Mapping[str, tuple[Any, int]]


class NativeBackend:
    """A decoder over `arrays` and `files` (see PackedModel), which it borrows.

    blocks: of the KV cache. batch_tokens: of one step. layout: of the ternary weights.
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
        kv_dtype: KvDtype = "f16",
        layout: Layout = "2-bit",
        files: Files | None = None,
        forget_head: Callable[[], None] | None = None,
    ) -> None:
        self.decoder = open_decoder(
            config,
            arrays,
            threads=threads,
            batch_tokens=batch_tokens,
            blocks=blocks,
            kv_dtype=kv_dtype,
            files=files,
            layout=layout,
        )
        self.blocks, self.batch_tokens = blocks, batch_tokens
        self.vocab_size, self.hidden_size = config.vocab_size, config.hidden_size
        self._forget_head, self._head_is_mapped, self._full_passes = forget_head, False, 0
        self._told_of_cut = False

    @property
    def threads(self) -> int:
        """Threads of the decoder, at most."""
        return self.decoder.threads

    def threads_for(self, tokens: int) -> int:
        """Threads that a step of so many tokens takes: 1 where it is too short to be shared."""
        return self.decoder.threads_for(tokens)

    def activity(self) -> list[tuple[float, float]]:
        """Of every layer, of all tokens so far: see `LLM.activity`."""
        return self.decoder.activity

    def second_looks(self) -> float:
        """The share of the head's rows that a screened token looked at twice, so far: see `LLM`."""
        tokens = self.decoder.screened_tokens
        return self.decoder.second_looks / (tokens * self.vocab_size) if tokens else 0.0

    def sampler(self, request: Request) -> _native.Sampler:
        """The native sampler of a request."""
        params = request.params
        chosen = {**DEFAULTS, **params.said}
        if chosen["temperature"] < _LEAST_TEMPERATURE:
            chosen["temperature"] = 0.0
        sampler = _native.Sampler(
            **chosen,
            frequency_penalty=params.frequency_penalty,
            presence_penalty=params.presence_penalty,
            seed=request.seed,
            logit_bias=dict(params.logit_bias),
            min_tokens=request.min_tokens,
            ends=list(request.held_ids),
        )
        sampler.observe(np.array(request.prompt, dtype=np.int32))
        return sampler

    def forward(self, batch: Batch) -> None:
        """Compute a batch."""
        self.decoder.forward(
            batch.token_ids, batch.positions, batch.owners, batch.tables, batch.outputs
        )
        if self.decoder.cut and not self._told_of_cut:
            self._told_of_cut = True
            _LOG.warning(
                "keys or values of attention pass 65,504, the most that a float16 cache holds, and "
                "are cut to it: answers suffer; keep them as float32: --kv-dtype f32, "
                "kv_dtype='f32'"
            )

    def choose(
        self,
        samplers: Items[_native.Sampler],
        drafts: Items[list[int]],
        allowed: Items[NDArray[np.uint32] | None] = (),
    ) -> list[list[int] | Exception]:
        """The tokens that follow in each sequence, or why there can be none."""
        # What was chosen before a place where nothing can be is good; the next step tells of it.
        return [
            tokens if tokens[-1] >= 0 else tokens[:-1] or _no_token(tokens[-1])
            for tokens in self.decoder.verify(samplers, drafts, allowed)
        ]

    def logits(self, first: int, count: int) -> NDArray[np.float32]:
        """Logits [count, vocab] of output rows."""
        return self.decoder.logits(first, count)

    def states(self, first: int, count: int) -> NDArray[np.float32]:
        """States [count, hidden] of output rows."""
        return self.decoder.hidden(first, count)

    def read_block(self, block: int) -> bytes:
        """The keys and values of a block."""
        return self.decoder.read_block(block)

    def write_block(self, block: int, data: bytes | memoryview) -> None:
        """Put back what `read_block` gave."""
        self.decoder.write_block(block, np.frombuffer(data, dtype=np.uint8))

    def settle(self, *, idle: bool) -> None:
        """Forget a head that full passes have drawn in, once a step or everybody does without."""
        passes = self.decoder.full_passes - self._full_passes
        self._full_passes += passes
        self._head_is_mapped |= passes > 0
        if self._forget_head and self._head_is_mapped and (idle or not passes):
            self._forget_head()
            self._head_is_mapped = False


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
            native_layout(layout),
        )
    except MemoryError:
        raise RequestError(
            "not enough memory for the KV cache and the batch; lower kv_memory_mb, context "
            "or max_batch_tokens"
        ) from None
    except RuntimeError as error:  # an instruction set that TRILOBIT_ISA cannot have
        raise RequestError(str(error)) from None


def rotary_frequencies(config: ModelConfig) -> NDArray[np.float32]:
    """Frequencies of RoPE `[1, head_dim / 2]`, and in a second row those of sliding layers."""
    rows = [frequencies(config.head_dim, config.rope_theta, config.rope_scaling)]
    if config.rope_local_base_freq is not None:
        rows.append(frequencies(config.head_dim, config.rope_local_base_freq))
    return np.stack(rows)


def _no_token(code: int) -> TrilobitError:
    """Why the sampler could choose none."""
    if code == _native.Sampler.ALL_FORBIDDEN:
        return RequestError(
            "logit_bias forbids every token that may come next here; leave one that may be chosen"
        )
    return no_numbers("no token can be chosen")


def isa() -> str:
    """The instruction set in use."""
    return _native.isa()
