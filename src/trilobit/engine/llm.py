"""`LLM`: a model to call from Python. Text or token ids in, text, logits or probabilities out.

Safe to use from several threads: whoever waits for text runs the next step for everybody, so
requests from different threads share their batches.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from ..bundled import DEFAULT, bundled_models
from ..config import ModelConfig
from ..errors import ContextOverflow, RequestError
from ..formats.packed import PackedModel
from ..sampling import SamplingParams
from ..tokenizer import Tokenizer
from .blocks import BLOCK, blocks_for
from .machine import available_cores
from .runner import Runner
from .sequence import Completion, Sequence

Prompt = str | Items[int]
Message = Mapping[str, str]

# A model that was never taught to chat continues the conversation as one text.
_PLAIN_TEMPLATE = "{% for m in messages %}{{ m.content }}{% if not loop.last %}\n{% endif %}{% endfor %}"
_KV_MEMORY_MB = 512


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


class Stream:
    """Text of one request as it comes: iterate over it. `completion` tells what came of it.

    Leaving it early, or `close`, ends the request.
    """

    def __init__(self, llm: LLM, sequence: Sequence) -> None:
        self._llm, self._sequence = llm, sequence

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        pieces = self._sequence.pieces
        self._llm._run_until(lambda: bool(pieces) or self._sequence.over)
        if pieces:
            return pieces.popleft()
        if self._sequence.error is not None:
            raise self._sequence.error
        raise StopIteration

    def close(self) -> None:
        """End the request if it is not over; what has come is kept in `completion`."""
        if not self._sequence.over:
            self._llm._abort(self._sequence)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    @property
    def completion(self) -> Completion:
        """What has come so far."""
        return self._sequence.completion()


class LLM:
    """A packed model, ready to run.

    model: a packed file, or the name of a bundled model. threads: default the physical cores.
    context: tokens of a sequence, prompt and output; default what the model was made for, which
    is also the most. kv_memory_mb: memory (10^6 bytes) of the KV cache that all sequences share,
    at least one context. max_batch_tokens: tokens of one step. max_sequences: running at once.
    kv_dtype: "f16", or "f32" to compare with float references.

    Raises FormatError for a file that cannot be run, RequestError for an impossible option.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = DEFAULT,
        *,
        threads: int | None = None,
        context: int | None = None,
        kv_memory_mb: int = _KV_MEMORY_MB,
        max_batch_tokens: int = 512,
        max_sequences: int = 16,
        kv_dtype: Literal["f16", "f32"] = "f16",
    ) -> None:
        packed = PackedModel(_resolve(model))
        self.path: Path = packed.path
        self.config: ModelConfig = packed.config
        self.context = self._checked_context(context)
        threads = available_cores() if threads is None else threads
        for name, value, most in (
            ("threads", threads, 1024),
            ("max_batch_tokens", max_batch_tokens, 1 << 20),
            ("max_sequences", max_sequences, 1 << 16),
            ("kv_memory_mb", kv_memory_mb, 1 << 30),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise RequestError(f"{name} is {value!r}; expected an integer from 1 to {most}")
        if kv_dtype not in ("f16", "f32"):
            raise RequestError(f"kv_dtype is {kv_dtype!r}; expected 'f16' or 'f32'")
        self._packed = packed
        self._text = packed.text
        self.tokenizer: Tokenizer | None = (
            Tokenizer(packed.text.tokenizer, str(packed.path)) if packed.text.tokenizer else None
        )
        self._lock = threading.Lock()
        one = blocks_for(self.context)
        wanted = kv_memory_mb * 1_000_000 // self._kv_block_bytes(kv_dtype)
        self._runner = Runner(
            self.config,
            packed.arrays(),
            threads=threads,
            blocks=max(one, min(wanted, one * max_sequences)),
            batch_tokens=max(max_batch_tokens, max_sequences),
            sequences=max_sequences,
            kv_dtype=kv_dtype,
        )

    @property
    def threads(self) -> int:
        """Threads that compute."""
        return self._runner.threads

    @property
    def has_chat_template(self) -> bool:
        """Whether the model was published with a form for conversations."""
        return self._text.chat_template is not None

    # ---- text ---------------------------------------------------------------------------------

    @overload
    def generate(self, prompts: Prompt, params: SamplingParams | None = ...) -> Completion: ...
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
        if isinstance(prompts, str) or (len(prompts) > 0 and _is_id(prompts[0])):
            return self._complete([self._prompt_ids(prompts)], params)[0]  # type: ignore[arg-type]
        return self._complete([self._prompt_ids(prompt) for prompt in prompts], params)  # type: ignore[arg-type]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Stream:
        """Continue a prompt, text by text as it comes."""
        return Stream(self, self._queue([self._prompt_ids(prompt)], params)[0])

    def chat(self, messages: Items[Message], params: SamplingParams | None = None) -> Completion:
        """Answer a conversation: messages are `{"role": ..., "content": ...}`.

        A model without a chat template continues the contents, joined by newlines, as one text.
        """
        return self._complete([self.chat_ids(messages)], params)[0]

    def stream_chat(self, messages: Items[Message], params: SamplingParams | None = None) -> Stream:
        """Answer a conversation, text by text as it comes."""
        return Stream(self, self._queue([self.chat_ids(messages)], params)[0])

    # ---- numbers ------------------------------------------------------------------------------

    def logits(self, token_ids: Items[int]) -> NDArray[np.float32]:
        """Logits after every token, float32 `[T, vocab]`."""
        ids = self._checked_ids(token_ids)
        with self._lock:
            return np.concatenate(list(self._runner.logits(ids)))

    def score(self, text: Prompt) -> Score:
        """Log-probability of every token of a text (or of token ids) after those before it."""
        ids = self._prompt_ids(text)
        logprobs = np.empty(len(ids) - 1, dtype=np.float32)
        done = 0
        with self._lock:
            for rows in self._runner.logits(ids):
                following = np.array(ids[done + 1 : done + 1 + len(rows)])
                rows = rows[: len(following)]
                top = rows.max(axis=1)
                sums = np.exp(rows - top[:, None]).sum(axis=1, dtype=np.float64)
                chosen = rows[np.arange(len(following)), following]
                logprobs[done : done + len(following)] = chosen - top - np.log(sums)
                done += len(following)
        return Score(token_ids=tuple(ids), logprobs=logprobs)

    # ---- ids ----------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with the beginning-of-text token where the model wants one."""
        ids = self._tokenizer().encode(text)
        return self._with_bos(ids)

    def chat_ids(self, messages: Items[Message]) -> list[int]:
        """Token ids of a conversation, ready for the reply."""
        _check_messages(messages)
        tokenizer = self._tokenizer()
        ends = [tokenizer.token(i) for i in self.config.eos_token_ids]
        begin = self.config.bos_token_id
        ids = tokenizer.encode_chat(
            self._text.chat_template or _PLAIN_TEMPLATE,
            messages,
            bos_token=(tokenizer.token(begin) if begin is not None else None) or "",
            eos_token=next((end for end in ends if end), ""),
        )
        return self._checked_ids(self._with_bos(ids))

    def _with_bos(self, ids: list[int]) -> list[int]:
        bos = self.config.bos_token_id
        return [bos, *ids] if self._text.add_bos and bos is not None and ids[:1] != [bos] else ids

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise RequestError(
                f"{self.path}: has no tokenizer; give token ids, or convert the checkpoint again "
                "with its tokenizer.json"
            )
        return self.tokenizer

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        return self._checked_ids(self.encode(prompt) if isinstance(prompt, str) else prompt)

    def _checked_ids(self, ids: Items[int]) -> list[int]:
        vocabulary = self.config.vocab_size
        checked = []
        for i in ids:
            if not _is_id(i) or not 0 <= i < vocabulary:
                raise RequestError(f"token id {i!r} is not in the vocabulary, 0 to {vocabulary - 1}")
            checked.append(int(i))
        if not checked:
            raise RequestError("the prompt is empty; give at least one token")
        if len(checked) > self.context:
            raise ContextOverflow(
                f"the prompt has {len(checked)} tokens, the context {self.context}; shorten the "
                "prompt"
                + (" or raise context" if self.context < self._longest_context() else "")
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
            for sequence in sequences:
                if not sequence.over:
                    self._abort(sequence)
        for sequence in sequences:
            if sequence.error is not None:
                raise sequence.error
        return [sequence.completion() for sequence in sequences]

    def _queue(self, prompts: list[list[int]], params: SamplingParams | None) -> list[Sequence]:
        params = params or SamplingParams()
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
                text=self.tokenizer.stream() if self.tokenizer else None,
            )
            for ids in prompts
        ]
        with self._lock:
            for sequence in sequences:
                self._runner.add(sequence)
        return sequences

    def _run_until(self, done: Callable[[], bool]) -> None:
        while not done():
            with self._lock:
                # Another thread's step may have done it while this one waited for the lock.
                if not done():
                    self._runner.step()

    def _abort(self, sequence: Sequence) -> None:
        self._runner.abort(sequence)
        if self._lock.acquire(blocking=False):  # else the thread that steps will drop it
            try:
                self._runner.drop_aborted()
            finally:
                self._lock.release()

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

    def _kv_block_bytes(self, kv_dtype: str) -> int:
        config = self.config
        head = -(-config.head_dim // 16) * 16
        width = 2 if kv_dtype == "f16" else 4
        return 2 * config.num_hidden_layers * config.num_key_value_heads * head * BLOCK * width


def _resolve(model: str | os.PathLike[str]) -> Path:
    """A file, or the name of a bundled model; a file of that name comes first."""
    path = Path(model)
    if not path.exists():
        bundled = bundled_models()
        if str(model) in bundled:
            return bundled[str(model)]
        if path.suffix == "" and len(path.parts) == 1:
            raise RequestError(
                f"{model}: neither a file nor a bundled model; bundled: {', '.join(bundled)}"
            )
    return path


def _check_messages(messages: Items[Message]) -> None:
    if isinstance(messages, str) or not messages:
        raise RequestError("messages: expected a list of {'role': ..., 'content': ...}")
    for message in messages:
        for key in ("role", "content"):
            if not isinstance(message, Mapping) or not isinstance(message.get(key), str):
                raise RequestError(f"messages: a message has no text '{key}': {message!r:.80}")


def _is_id(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
