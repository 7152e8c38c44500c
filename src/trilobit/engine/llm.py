"""`LLM`: a model to call from Python. Text or token ids in, text, logits or probabilities out.

Safe to use from several threads: whoever waits for text runs the next step for everybody, so
requests from different threads share their batches. Safe to interrupt: Ctrl-C ends the call that
it hits, no other.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, overload

import numpy as np
from numpy.typing import NDArray

from ..bundled import DEFAULT
from ..config import ModelConfig
from ..errors import ContextOverflow, RequestError
from ..formats import names
from ..formats.packed import PackedModel
from ..hub.models import open_packed
from ..machine import available_cores
from ..packing import Layout, LayoutChoice
from ..sampling import SamplingParams
from ..tokenizer import Tokenizer, without_tokenizer
from .blocks import KvDtype, block_bytes, blocks_for
from .layout import chosen_layout
from .prompts import (
    Message,
    Prompt,
    TokenIds,
    check_messages,
    checked_ids,
    is_items,
    is_several,
    not_in_vocabulary,
)
from .runner import Runner
from .sequence import Completion, Sequence
from .stream import Stream
from .turns import Turns

Head = Literal["auto", "screened", "full"]
# From here on a step reads its weights from memory and takes milliseconds, beside which looking for
# guesses costs nothing. It took up to 7 % of the 0.2 ms that a step of the bundled model takes.
_STREAMED_BYTES = 64_000_000

# A model that was never taught to chat continues the conversation as one text.
_PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m.content }}{% if not loop.last %}\n{% endif %}{% endfor %}"
)
_KV_MEMORY_MB = 512
# Below this a cache holds the head, and reading all of it costs less than choosing from it.
_SCREENED_HEAD_BYTES = 16_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Natural log-probabilities of a text: `logprobs[i]` is of `token_ids[i + 1]`, float32."""

    token_ids: tuple[int, ...]
    logprobs: NDArray[np.float32]

    @property
    def total(self) -> float:
        """Log-probability of the text, given its first token."""
        return float(self.logprobs.sum(dtype=np.float64))

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability; NaN for a text of one token."""
        count = len(self.logprobs)
        return float(np.exp(-self.total / count)) if count else float("nan")


class LLM:
    """A packed model, ready to run.

    model: a packed file, the folder of a checkpoint, or a name: of a bundled model or of one of the
    Hugging Face Hub, such as "bitnet-2b" or "org/name" (docs/models.md). What is not packed yet is
    packed, and downloaded if need be, the first time. threads: default the physical cores.
    context: tokens of a sequence, prompt and output; default what the model was made for, which
    is also the most. kv_memory_mb: memory (10^6 bytes) of the KV cache that all sequences share,
    at least one context. max_batch_tokens: tokens of one step. max_sequences: running at once.
    kv_dtype: what keys and values are kept as: "f16"; "f32" to compare with float references; "i8",
    half of the memory and of the reading at a long context (docs/architecture.md has its cost).
    head: "screened" chooses tokens from the few rows of the head that can win (docs/head.md),
    "full" computes all; the tokens are the same. "auto" screens heads that no cache holds. layout:
    of the ternary weights in memory, "2-bit" or "1.6-bit" (docs/format.md); "auto": what is faster
    here, by measurement; None: as in the file, which is then read in place. The results are the
    same. speculation: where the text repeats itself, several tokens are guessed and tried at once;
    the tokens are the same. None: with models beyond 64 MB, whose steps are long enough.

    Raises FormatError or UnsupportedModel for a file that cannot be run, DownloadError for a name
    that cannot be fetched, RequestError for an unknown name or an impossible option.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = DEFAULT,
        *,
        threads: int | None = None,
        context: int | None = None,
        kv_memory_mb: int = _KV_MEMORY_MB,
        max_batch_tokens: int = 256,
        max_sequences: int = 16,
        kv_dtype: KvDtype = "f16",
        head: Head = "auto",
        layout: LayoutChoice | None = None,
        speculation: bool | None = None,
    ) -> None:
        self._name = str(model)  # what the user calls it: its packed file may be in a cache
        threads = available_cores() if threads is None else threads
        for name, value, most in (
            ("threads", threads, 1024),
            ("max_batch_tokens", max_batch_tokens, 1 << 20),
            ("max_sequences", max_sequences, 1 << 16),
            ("kv_memory_mb", kv_memory_mb, 1 << 30),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise RequestError(f"{name} is {value!r}; expected an integer from 1 to {most}")
        if kv_dtype not in ("f16", "f32", "i8"):
            raise RequestError(f"kv_dtype is {kv_dtype!r}; expected 'f16', 'f32' or 'i8'")
        if head not in ("auto", "screened", "full"):
            raise RequestError(f"head is {head!r}; expected 'auto', 'screened' or 'full'")
        if speculation is not None and not isinstance(speculation, bool):
            raise RequestError(f"speculation is {speculation!r}; expected True or False")
        packed, arrays = open_packed(model, lambda p: self._read(p, context, threads, head, layout))
        if speculation is None:
            speculation = packed.file.size_bytes >= _STREAMED_BYTES
        self._turns = Turns()
        one = blocks_for(self.context)
        wanted = kv_memory_mb * 1_000_000 // block_bytes(self.config, kv_dtype)
        self._runner = Runner(
            self.config,
            arrays,
            threads=threads,
            blocks=max(one, min(wanted, one * max_sequences)),
            batch_tokens=max(max_batch_tokens, max_sequences),
            sequences=max_sequences,
            kv_dtype=kv_dtype,
            layout=self.layout,
            speculation=speculation,
            files=packed.row_files(),
            forget_head=packed.forget_head if self.head_is_screened else None,
        )
        packed.fetch_rows()

    def _read(
        self,
        packed: PackedModel,
        context: int | None,
        threads: int,
        head: Head,
        layout: LayoutChoice | None,
    ) -> dict[str, NDArray[Any]]:
        """Everything of the file: what stays here, and the tensors as the options want them."""
        self.path: Path = packed.path
        self.config: ModelConfig = packed.config
        self._text = packed.text
        self.context = self._checked_context(context)
        self.layout: Layout = chosen_layout(layout, packed, threads, self._name)
        if head == "screened" and not packed.has_screen:
            ternary = packed.config.ternary_embeddings
            remedy = "it is ternary: leave out head" if ternary else "convert it again"
            raise RequestError(f"{self._name}: has no screen of the head; {remedy}")
        self.head_is_screened: bool = packed.has_screen and (
            head == "screened" or (head == "auto" and _head_bytes(packed) >= _SCREENED_HEAD_BYTES)
        )
        self.tokenizer: Tokenizer | None = (
            Tokenizer(packed.text.tokenizer, str(packed.path)) if packed.text.tokenizer else None
        )
        return packed.arrays(screened=self.head_is_screened, layout=self.layout, threads=threads)

    @property
    def threads(self) -> int:
        """Threads that compute."""
        return self._runner.threads

    @property
    def has_chat_template(self) -> bool:
        """Whether the model was published with a form for conversations."""
        return self._text.chat_template is not None

    # ---- text ---------------------------------------------------------------------------------

    # A str is also a sequence of str: the first that fits counts, here and in `is_several`.
    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompts: Prompt, params: SamplingParams | None = ...
    ) -> Completion: ...
    @overload
    def generate(
        self, prompts: Items[Prompt], params: SamplingParams | None = ...
    ) -> list[Completion]: ...

    def generate(
        self, prompts: Prompt | Items[Prompt], params: SamplingParams | None = None
    ) -> Completion | list[Completion]:
        """Continue a prompt (a text, or token ids), or several at once.

        Raises ContextOverflow when a prompt leaves no room, RequestError for one that cannot be
        encoded; then nothing is generated.
        """
        if is_several(prompts):
            several = cast(Items[Prompt], prompts)
            return self._complete([self._prompt_ids(prompt) for prompt in several], params)
        return self._complete([self._prompt_ids(cast(Prompt, prompts))], params)[0]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Stream:
        """Continue a prompt, text by text as it comes."""
        return self._streamed(self._prompt_ids(prompt), params)

    def chat(self, messages: Items[Message], params: SamplingParams | None = None) -> Completion:
        """Answer a conversation: messages are `{"role": ..., "content": ...}`.

        A model without a chat template continues the contents, joined by newlines, as one text.
        """
        return self._complete([self.chat_ids(messages)], params)[0]

    def stream_chat(self, messages: Items[Message], params: SamplingParams | None = None) -> Stream:
        """Answer a conversation, text by text as it comes."""
        return self._streamed(self.chat_ids(messages), params)

    # ---- numbers ------------------------------------------------------------------------------

    def logits(self, token_ids: TokenIds) -> NDArray[np.float32]:
        """Logits after every token, float32 `[T, vocab]`."""
        if isinstance(token_ids, str):
            raise RequestError("logits takes token ids, not a text; give it encode(text)")
        ids = self._checked_ids(token_ids)
        logits = np.empty((len(ids), self.config.vocab_size), dtype=np.float32)
        done = 0
        with self._turns.turn():
            for rows in self._runner.logits(ids):
                logits[done : done + len(rows)] = rows
                done += len(rows)
        return logits

    def score(self, text: Prompt) -> Score:
        """Log-probability of every token of a text (or of token ids) after those before it."""
        ids = self._prompt_ids(text)
        logprobs = np.empty(len(ids) - 1, dtype=np.float32)
        done = 0
        with self._turns.turn():
            for rows in self._runner.logits(ids):
                following = np.array(ids[done + 1 : done + 1 + len(rows)], dtype=np.intp)
                rows = rows[: len(following)]
                top = rows.max(axis=1)
                sums = np.exp(rows - top[:, None]).sum(axis=1, dtype=np.float64)
                chosen = rows[np.arange(len(following)), following]
                logprobs[done : done + len(following)] = chosen - top - np.log(sums)
                done += len(following)
        return Score(token_ids=tuple(ids), logprobs=logprobs)

    # ---- ids ----------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the beginning-of-text token where the model wants one.

        It may be longer than the context, up to 16 MB. RequestError for more.
        """
        if not isinstance(text, str):
            raise RequestError(f"encode takes a text, not {type(text).__name__}")
        ids = self._tokenizer().encode(text)
        return self._with_bos(ids)

    def decode(self, token_ids: TokenIds) -> str:
        """Text of token ids, as completions have it: without special tokens.

        Bytes that are no character become replacement characters.
        """
        ids = checked_ids(token_ids, self.config.vocab_size)
        return self._tokenizer().decode(ids)

    def chat_ids(self, messages: Items[Message]) -> list[int]:
        """Token ids of a conversation, ready for the reply."""
        check_messages(messages)
        tokenizer = self._tokenizer()
        ends = [tokenizer.token(i) for i in self.config.eos_token_ids]
        begin = self.config.bos_token_id
        ids = tokenizer.encode_chat(
            self._text.chat_template or _PLAIN_TEMPLATE,
            messages,
            bos_token=(tokenizer.token(begin) if begin is not None else None) or "",
            eos_token=next((end for end in ends if end), ""),
            most_tokens=self.context,
        )
        return self._checked_ids(self._with_bos(ids))

    def _with_bos(self, ids: list[int]) -> list[int]:
        bos = self.config.bos_token_id
        return [bos, *ids] if self._text.add_bos and bos is not None and ids[:1] != [bos] else ids

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise RequestError(without_tokenizer(self._name, "give token ids, or "))
        return self.tokenizer

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            ids = self._tokenizer().encode(prompt, most_tokens=self.context)
            return self._checked_ids(self._with_bos(ids))
        return self._checked_ids(prompt)

    def _checked_ids(self, ids: TokenIds) -> list[int]:
        if not is_items(ids):
            kind = type(ids).__name__
            raise RequestError(f"a prompt is a text or a list of token ids, not {kind}")
        checked = checked_ids(ids, self.config.vocab_size)
        if not checked:
            raise RequestError("the prompt is empty; give at least one token")
        if len(checked) > self.context:
            raise ContextOverflow(
                f"the prompt has {len(checked)} tokens, the context {self.context}; shorten the "
                "prompt" + (" or raise context" if self.context < self._longest_context() else "")
            )
        return checked

    # ---- running ------------------------------------------------------------------------------

    def _complete(
        self, prompts: list[list[int]], params: SamplingParams | None
    ) -> list[Completion]:
        sequences = self._queue(prompts, params)
        try:
            self._run_until(lambda: all(sequence.over for sequence in sequences))
        finally:
            self._abandon([sequence for sequence in sequences if not sequence.over])
        for sequence in sequences:
            if sequence.error is not None:
                raise sequence.error
        return [sequence.completion() for sequence in sequences]

    def _streamed(self, prompt: list[int], params: SamplingParams | None) -> Stream:
        sequence = self._queue([prompt], params)[0]
        return Stream(sequence, run_until=self._run_until, abandon=self._abandon)

    def _queue(self, prompts: list[list[int]], params: SamplingParams | None) -> list[Sequence]:
        params = SamplingParams() if params is None else params
        if not isinstance(params, SamplingParams):
            kind = type(params).__name__
            raise RequestError(f"params is of type {kind}; expected one SamplingParams for all")
        if params.stop:
            self._tokenizer()  # without text there is nothing to find them in
        for what, ids in (
            ("logit_bias", params.logit_bias),
            ("stop_token_ids", params.stop_token_ids),
        ):
            for i in ids:
                if not 0 <= i < self.config.vocab_size:
                    raise RequestError(f"{what}: {not_in_vocabulary(i, self.config.vocab_size)}")
        for ids in prompts:
            if len(ids) >= self.context:
                raise ContextOverflow(
                    f"the prompt has {len(ids)} tokens and fills the context of {self.context}; "
                    "shorten the prompt"
                )
        ends = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            ends |= frozenset(self.config.eos_token_ids)
        sequences = [
            Sequence(
                ids,
                params,
                seed=secrets.randbits(64) if params.seed is None else params.seed,
                end_ids=ends,
                limit=min(len(ids) + params.max_tokens, self.context),
                tokenizer=self.tokenizer,
            )
            for ids in prompts
        ]
        try:
            with self._turns.turn():
                for sequence in sequences:
                    self._runner.add(sequence)
        except BaseException:
            self._abandon(sequences)
            raise
        return sequences

    def _run_until(self, done: Callable[[], bool]) -> None:
        while not done():
            with self._turns.turn(unless=done) as mine:
                # Another thread's step may have done it while this one stood in line.
                if mine and not done():
                    worked = self._runner.step()
                    assert worked or done()
            self._sweep()

    def _abandon(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            sequence.abandoned = True
        self._sweep()

    def _sweep(self) -> None:
        """Drop what was abandoned, now or, if another thread has its turn, right after it."""
        while self._runner.has_abandoned:
            with self._turns.turn_now() as mine:
                if not mine:  # who has the turn sweeps behind it
                    return
                self._runner.drop_abandoned()

    # ---- sizes --------------------------------------------------------------------------------

    def _longest_context(self) -> int:
        return self.config.max_position_embeddings

    def _checked_context(self, context: int | None) -> int:
        most = self._longest_context()
        if context is None:
            return most
        if not isinstance(context, int) or isinstance(context, bool) or not 2 <= context <= most:
            raise RequestError(f"context is {context!r}; this model takes 2 to {most} tokens")
        return context


def _head_bytes(packed: PackedModel) -> int:
    tied = packed.config.tie_word_embeddings
    return packed.file.info(names.EMBEDDING if tied else names.HEAD).size_bytes
