"""`Embedder`: texts in, one unit vector each out. Like texts have vectors that point alike.

A text is read once, as a prompt is, and the state behind the last norm is its vector: that of its
last token, or the mean of all, as the model was trained for (`formats/pooling.py`). No head is
read. A text's vector has the same bits in every batch, chunk and number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trilobit.console import Bars
from trilobit.engine.blocks import KvDtype, block_bytes, blocks_for
from trilobit.engine.engine import Engine
from trilobit.engine.memory import step_bytes
from trilobit.engine.native import NativeBackend
from trilobit.engine.options import EngineOptions, whole
from trilobit.engine.reading import State
from trilobit.engine.request import Request
from trilobit.engine.sequence import Sequence
from trilobit.engine.worker import Worker
from trilobit.errors import ContextOverflow, FormatError, RequestError
from trilobit.formats.packed.reader import PackedModel
from trilobit.formats.pooling import MODES, Mode, Pooling
from trilobit.hub.models import open_packed
from trilobit.layouts import chosen_layout
from trilobit.machine import available_cores, warn_of_threads
from trilobit.model.config import ModelConfig
from trilobit.model.packing import Layout, LayoutChoice
from trilobit.model.sums import tree_sum
from trilobit.progress import Steps, Watch, steps
from trilobit.sampling import SamplingParams
from trilobit.text.tokenizer import Tokenizer, without_tokenizer
from trilobit.vectors import Precision, check_precision, pack_vectors

# The form that BitNet-embedding's queries (and those of its teachers, E5's) were trained in.
_INSTRUCTION = "Instruct: {instruction}\nQuery: "
_SHOWN = 40  # characters of a text, in errors


class Embedder:
    """A packed model, ready to make vectors of texts.

    model: as for `LLM`. pooling: "last" or "mean" in place of the model's own; a model that says
    nothing takes its last token's state. threads: as for `LLM`. context: tokens of a
    text; default what the model was made for, which is also the most. max_batch_tokens: tokens of
    one step. kv_dtype, layout: as in `LLM`; the layout "auto" is "2-bit" here, in which many tokens
    at once are faster.

    Raises FormatError or UnsupportedModel for a file that cannot be run, DownloadError for a name
    that cannot be fetched, RequestError for an unknown name, an impossible option or a model
    without a tokenizer.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        pooling: Mode | None = None,
        threads: int | None = None,
        context: int | None = None,
        max_batch_tokens: int = 512,
        kv_dtype: KvDtype = "f16",
        layout: LayoutChoice | None = None,
        progress: Watch | None = None,
    ) -> None:
        if pooling is not None and pooling not in MODES:
            raise RequestError(f"pooling is {pooling!r}; expected 'last' or 'mean'")
        options = EngineOptions(
            threads=threads, max_batch_tokens=max_batch_tokens, kv_dtype=kv_dtype, layout=layout
        )
        threads = available_cores() if threads is None else threads
        warn_of_threads(threads)
        self._batch_tokens = max_batch_tokens
        self._name = str(model)
        with Bars() as bars:
            packed, arrays = open_packed(
                model,
                lambda packed: self._read(packed, pooling, context, threads, layout),
                progress or bars,
            )
        backend = NativeBackend(
            replace(self.config, tie_word_embeddings=True),  # no head is ever read
            arrays,
            threads=threads,
            batch_tokens=max_batch_tokens,
            blocks=blocks_for(max(self.context, max_batch_tokens)),
            kv_dtype=options.kv_dtype,
            layout=self.layout,
            files=packed.row_files(),
        )
        self.memory_bytes: int = (
            packed.file.size_bytes
            + step_bytes(self.config, max_batch_tokens)
            + backend.blocks * block_bytes(self.config, kv_dtype)
        )
        packed.fetch_rows()
        # As many texts as a step has tokens: each has one at least.
        self._worker = Worker(Engine(backend, sequences=max_batch_tokens))
        self.threads: int = backend.threads

    def _read(
        self,
        packed: PackedModel,
        pooling: Mode | None,
        context: int | None,
        threads: int,
        layout: LayoutChoice | None,
    ) -> dict[str, NDArray[Any]]:
        """Everything of the file: what stays here, and the tensors that states need."""
        self.path: Path = packed.path
        self.config: ModelConfig = packed.config
        most = self.config.max_position_embeddings
        self.context = most if context is None else whole("context", context, most)
        if packed.text.tokenizer is None:
            raise RequestError(without_tokenizer(self._name))
        self.tokenizer = Tokenizer(packed.text.tokenizer, str(packed.path))
        own = packed.text.pooling or Pooling(end_ids=tuple(self.tokenizer.special_suffix()))
        self.pooling: Pooling = own if pooling is None else replace(own, mode=pooling)
        if len(own.end_ids) >= self.context:
            raise RequestError(f"context is {self.context}; that leaves no room for a text")
        begin = self.config.bos_token_id
        self._begin_ids = [begin] if packed.text.add_bos and begin is not None else []
        self.layout: Layout = chosen_layout(
            layout, packed.config, name=self._name, own=packed.layout, embeds=True
        )
        return packed.arrays(headless=True, layout=self.layout, threads=threads)

    @property
    def dimensions(self) -> int:
        """Values of a vector."""
        return self.config.hidden_size

    def close(self) -> None:
        """Give the memory of the model back. Calls that run end with an error."""
        self._worker.close()

    def __enter__(self) -> Embedder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = ", closed" if self._worker.is_closed else ""
        return (
            f"<Embedder {self._name}: {self.dimensions} dimensions, context {self.context}, "
            f"threads {self.threads}{state}>"
        )

    def encode(
        self,
        texts: str | Items[str],
        *,
        instruction: str | None = None,
        prompt: str | None = None,
        dimensions: int | None = None,
        precision: Precision = "float32",
        truncate: bool = False,
        progress: Watch | None = None,
    ) -> NDArray[Any]:
        """One unit vector for each text (one text counts as a list of one), float32 `[n, d]`.

        instruction: what is asked of a query; documents have none. prompt: the name of one of the
        model's own prompts instead (`pooling.prompts`). dimensions: keep the first ones only, for
        models that were trained so (Matryoshka), as unit vectors again. precision: of what is
        returned (`vectors.py`); for other than float32 see `unpack_vectors` and `similarity`.
        truncate: leave out the end of texts that are too long.

        Raises ContextOverflow for a text that is too long, RequestError for an empty one and for
        options that are impossible; then nothing is computed.
        """
        check_precision(precision)
        if dimensions is not None:
            dimensions = whole("dimensions", dimensions, self.dimensions)
        if not isinstance(texts, Iterable) or isinstance(texts, (bytes, bytearray)):
            raise RequestError(f"expected a text or a list of texts, not {type(texts).__name__}")
        several = [texts] if isinstance(texts, str) else list(texts)
        before = self._prompt(instruction, prompt)
        ids = [self._ids(n, text, before, truncate) for n, text in enumerate(several)]
        states = self._pooled(ids, steps(progress, "Embedding"))
        return pack_vectors(self._unit(states[:, :dimensions]), precision)

    def count_tokens(
        self, texts: Items[str], *, instruction: str | None = None, prompt: str | None = None
    ) -> int:
        """Tokens that `encode` reads of these texts, all together."""
        before = self._prompt(instruction, prompt)
        return sum(len(self._ids(n, text, before, False)) for n, text in enumerate(texts))

    # ---- text ---------------------------------------------------------------------------------

    def _prompt(self, instruction: str | None, prompt: str | None) -> str:
        if instruction is not None and prompt is not None:
            raise RequestError("give an instruction or the name of a prompt, not both")
        if instruction is not None:
            return _INSTRUCTION.format(instruction=instruction)
        name = self.pooling.default_prompt if prompt is None else prompt
        if name is None:
            return ""
        if name not in self.pooling.prompts:
            known = ", ".join(self.pooling.prompts) or "none"
            raise RequestError(f"{self.path}: has no prompt {name!r}; it has {known}")
        return self.pooling.prompts[name]

    def _ids(self, number: int, text: object, before: str, truncate: bool) -> list[int]:
        if not isinstance(text, str):
            raise RequestError(f"text {number} is not a text, but {type(text).__name__}")
        whole = before + text
        if truncate:  # behind twice what the context may hold, where it changes no token in it
            longest = self.tokenizer.longest_text
            most = min(longest(), 2 * longest(self.context))
            whole = whole.encode("utf-8", "replace")[:most].decode("utf-8", "ignore")
        try:
            most_tokens = None if truncate else self.context
            ids = self._begin_ids + self.tokenizer.encode(whole, most_tokens=most_tokens)
        except ContextOverflow as error:
            raise ContextOverflow(
                f"text {number} ({text[:_SHOWN]!r}…): {error}, or let its end be left "
                "out (truncate)"
            ) from None
        end = list(self.pooling.end_ids)
        if len(ids) + len(end) > self.context:
            if not truncate:
                raise ContextOverflow(
                    f"text {number} ({text[:_SHOWN]!r}…) has {len(ids) + len(end)} tokens, the "
                    f"context {self.context}; shorten it, or let its end be left out (truncate)"
                )
            del ids[max(0, self.context - len(end)) :]
        if not ids + end:
            raise RequestError(f"text {number} is empty; give at least a word")
        return ids + end

    # ---- numbers ------------------------------------------------------------------------------

    def _pooled(self, texts: list[list[int]], progress: Steps | None) -> NDArray[np.float64]:
        """States `[n, hidden]`: the last token's, or the sum of all."""
        mode = self.pooling.mode
        readings = [State(len(ids), self.dimensions, mode=mode) for ids in texts]
        sequences = [
            Sequence(
                Request(prompt=ids, params=SamplingParams(), seed=0, limit=len(ids)),
                reading=reading,
            )
            for ids, reading in zip(texts, readings, strict=True)
        ]
        # Texts of like length run together, so that few wait for a long one to end.
        longest_first = sorted(sequences, key=lambda one: -one.prompt_tokens)
        try:
            self._worker.submit(longest_first)
            if progress:
                self._tell(longest_first, progress)
            self._worker.run(longest_first)
        finally:
            self._worker.abandon([one for one in sequences if not one.over])
        for one in sequences:
            if one.error is not None:
                raise one.error
        states = np.zeros((len(texts), self.dimensions), dtype=np.float64)
        for row, reading in zip(states, readings, strict=True):
            row[:] = reading.values
        return states

    def _tell(self, sequences: list[Sequence], progress: Steps) -> None:
        """Run sequences to their ends, and tell after every step how far they are."""
        engine = self._worker.engine
        total = sum(one.prompt_tokens for one in sequences)
        done = 0
        while done < total:
            steps = engine.steps
            self._worker.run_until(
                lambda: engine.steps != steps or all(one.over for one in sequences)  # noqa: B023
            )
            done = sum(one.prompt_tokens if one.over else one.computed for one in sequences)
            progress(done, total)

    def _unit(self, states: NDArray[np.float64]) -> NDArray[np.float32]:
        length = np.sqrt(tree_sum(np.square(states).T))[:, None]
        good = np.isfinite(length) & (length > 0)
        if not good.all():
            raise FormatError(
                f"{self.path}: the vector of text {int(np.argmin(good))} is zero or not a number; "
                "is the model damaged? `trilobit verify` tells"
            )
        unit: NDArray[np.float32] = (states / length).astype(np.float32)
        return unit
