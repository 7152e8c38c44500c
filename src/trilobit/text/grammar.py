"""Grammars: an output that is what a schema, an expression or a list asks for, token by token.

llguidance keeps the place of an output in its grammar, and tells which tokens may come next. What
it is given comes from anybody, so everything is bounded: sources by their size, compiling and each
step by work that is counted, not by time, so that every machine refuses the same; the compiled ones
by a cache with a limit in bytes. Sources that may take long, by their size or by what they count
to, are tried in a process of their own before (`grammar_trial`): some take minutes.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import RequestError
from trilobit.sampling import Constraint
from trilobit.text.grammar_trial import LIMITS, try_out
from trilobit.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_WORD = 32  # tokens in a word of a mask
# What compiled grammars were seen to take: so much each, and for each character of the source.
_BYTES_EACH, _BYTES_A_CHARACTER = 500_000, 300
CACHE_BYTES = 128_000_000
_BYTES_OF_FAILURE = 2_000  # and its source, which is the key
# Up to here a source compiles within about a second: characters, and those times all its counts.
_TRUSTED, _TRUSTED_WORK = 2_000, 100_000
# Where a schema counts: `multipleOf` to its number, expressions by their repetitions.
_COUNTING = re.compile("multipleOf|pattern")
_COUNT = re.compile(r'(?:[{,]|"multipleOf":)\s*([0-9][0-9.]*)')
# Expressions of this mode may have spaces and comments in their numbers.
_EXTENDED = re.compile(r"\(\?[a-zA-Z-]*x")
_LONGEST_REASON = 300
# What llguidance says by a name only.
_WORDS = {
    "NoExtensionBias": "nothing can stand in it: it refers to itself without an end, or "
    "contradicts itself",
}
# Of schemas, in Lark too, where they stand as "x-guidance".
JSON_OPTIONS: dict[str, Any] = {
    # One space, or a new line with its indentation: else small models go on with space for ever.
    "whitespace_pattern": r" |\n {0,16}",
    # Nothing else can be done with it from left to right; schemas mostly mean anyOf.
    "coerce_one_of": True,
}


class Grammar:
    """A compiled grammar. `start` gives the state of a new output."""

    def __init__(self, kind: str, matcher: LLMatcher, words: int) -> None:
        self._kind, self._matcher, self._words = kind, matcher, words

    def start(self) -> GrammarState:
        """The state of an output of no tokens yet."""
        return GrammarState(self._kind, self._matcher.deep_copy(), self._words)


class GrammarState:
    """Where one output is in its grammar: a function of its tokens."""

    def __init__(self, kind: str, matcher: LLMatcher, words: int) -> None:
        self._kind, self._matcher, self._words = kind, matcher, words

    @property
    def ended(self) -> bool:
        """Whether nothing more may come, not even a space."""
        return self._matcher.is_stopped()

    def allowed(self, draft: list[int]) -> NDArray[np.uint32]:
        """The tokens that may come next, and behind each of a draft: bits, [1 + draft, words].

        Rows behind a token of the draft that may not come say nothing. Raises RequestError when
        the grammar is too complex to be followed.
        """
        matcher = self._matcher
        rows = np.full((1 + len(draft), self._words), 0xFFFFFFFF, dtype=np.uint32)
        passed = 0
        for row, token_id in zip(rows, [*draft, None], strict=True):
            matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
            self._check()
            if token_id is None or not row[token_id // _WORD] >> (token_id % _WORD) & 1:
                break
            matcher.consume_token(token_id)
            passed += 1
            if matcher.is_stopped():
                break
        if passed:
            matcher.rollback(passed)
        self._check()
        return rows

    def accept(self, token_id: int) -> None:
        """Take a token of the output. Raises RequestError when it may not be there."""
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RequestError(
                f"{self._kind}: cannot be followed any further ({_reason(self._matcher)}); make it "
                "simpler"
            )


class Grammars:
    """Compiles grammars for the vocabulary of one model, and keeps those of late.

    For any thread: compiling takes up to seconds, so it is nothing for the engine's, or for that
    of an event loop. end_ids: tokens that end an output. cache_bytes: of those kept, about. What
    cannot be compiled is kept too, as finding that out may have taken long.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int,
        end_ids: Collection[int],
        *,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._tokenizer, self._end_ids = tokenizer, sorted(end_ids)
        self._cache_bytes = cache_bytes
        self._vocab_size = max(vocab_size, tokenizer.vocab_size)
        self._lock = threading.Lock()
        self._compiled: OrderedDict[Constraint, Grammar | str] = OrderedDict()
        self._compiling: dict[Constraint, threading.Lock] = {}
        self._vocabulary: LLTokenizer | None = None
        self._making_vocabulary = threading.Lock()  # which takes a second where it is large
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._compiled)

    def compile(self, constraint: Constraint) -> Grammar:
        """A grammar, from the cache if it is there. RequestError for one that cannot be used."""
        with self._lock:
            found = self._found(constraint)
            turn = self._compiling.setdefault(constraint, threading.Lock()) if not found else None
        if turn is not None:
            with turn:  # who asks for the same meanwhile waits for it
                found = self._found_or_made(constraint)
        if isinstance(found, Grammar):
            return found
        raise RequestError(found)

    def _found(self, constraint: Constraint) -> Grammar | str | None:
        found = self._compiled.get(constraint)
        if found is not None:
            self._compiled.move_to_end(constraint)
        return found

    def _found_or_made(self, constraint: Constraint) -> Grammar | str:
        with self._lock:
            if (found := self._found(constraint)) is not None:
                return found
        made: Grammar | str
        try:
            made = self._made(constraint)
        except RequestError as error:
            made = str(error)
        finally:
            with self._lock:
                self._compiling.pop(constraint, None)
        with self._lock:
            self._keep(constraint, made)
        return made

    def _keep(self, constraint: Constraint, made: Grammar | str) -> None:
        if constraint in self._compiled:  # by another thread meanwhile
            return
        self._compiled[constraint] = made
        self.size_bytes += _bytes_of(constraint, made)
        while self.size_bytes > self._cache_bytes and len(self._compiled) > 1:
            self.size_bytes -= _bytes_of(*self._compiled.popitem(last=False))

    def _made(self, constraint: Constraint) -> Grammar:
        kind = constraint.kind
        try:
            from llguidance import LLMatcher, LLParserLimits
        except ImportError:  # the wheel for musl does not bring it: it has none there
            raise RequestError(
                f"{kind}: needs llguidance, which is not installed; pip install llguidance (with "
                "musl, as in Alpine, that compiles it: install cargo before)"
            ) from None
        if not self._end_ids:
            raise RequestError(f"{kind}: this model has no end-of-sequence token, which ends one")
        try:
            source = _source(constraint)
        except ValueError as error:
            raise RequestError(f"{kind}: cannot be used: {_line(str(error))}") from None
        if _may_be_dear(constraint):
            fault = try_out(source)
            if fault is not None:
                raise RequestError(f"{kind}: {fault}")
        matcher = LLMatcher(
            self._words_of_model(), source, log_level=0, limits=LLParserLimits(**LIMITS)
        )
        # What the first step needs is made here; states are copies.
        first = np.zeros(-(-self._vocab_size // _WORD), dtype=np.uint32)
        if not matcher.is_error():
            matcher.unsafe_compute_mask_ptr(first.ctypes.data, first.nbytes)
        if matcher.is_error():
            raise RequestError(f"{kind}: cannot be used: {_reason(matcher)}")
        for end in self._end_ids:
            first[end // _WORD] &= ~np.uint32(1 << end % _WORD)
        if not first.any():
            raise RequestError(f"{kind}: nothing, or only the empty text, fits it")
        return Grammar(kind, matcher, len(first))

    def _words_of_model(self) -> LLTokenizer:
        with self._making_vocabulary:
            if self._vocabulary is None:
                from llguidance import LLTokenizer

                try:
                    self._vocabulary = LLTokenizer(
                        self._tokenizer.to_json(), n_vocab=self._vocab_size, eos_token=self._end_ids
                    )
                except (KeyboardInterrupt, SystemExit, MemoryError):
                    raise
                except BaseException as error:  # Rust's panics are no Exceptions
                    raise RequestError(
                        "this model's tokenizer is of a kind that grammars cannot be compiled for: "
                        f"{_line(str(error))}"
                    ) from None
            return self._vocabulary


def _bytes_of(constraint: Constraint, made: Grammar | str) -> int:
    if isinstance(made, str):
        return _BYTES_OF_FAILURE + 4 * len(constraint.text)
    return _BYTES_EACH + _BYTES_A_CHARACTER * len(constraint.text)


def _may_be_dear(constraint: Constraint) -> bool:
    """Whether compiling may take long: `(b{1000}){1000}` writes a million characters."""
    kind, text = constraint
    if len(text) > _TRUSTED or kind == "grammar":  # which may hold all the others, written anyhow
        return True
    if kind == "choice" or (kind == "json_schema" and not _COUNTING.search(text)):
        return False
    counts = (max(1, int(count.replace(".", ""))) for count in _COUNT.findall(text))
    return len(text) * math.prod(counts) > _TRUSTED_WORK or bool(_EXTENDED.search(text))


def _source(constraint: Constraint) -> str:
    """As llguidance takes it."""
    from llguidance import LLMatcher

    kind, text = constraint
    if kind == "json_schema":
        schema = {"true": "{}", "false": '{"not": {}}'}.get(text, text)
        return LLMatcher.grammar_from_json_schema(schema, defaults=JSON_OPTIONS)  # type: ignore[arg-type]
    if kind == "regex":
        return LLMatcher.grammar_from_regex(text)
    if kind == "choice":
        words = (json.dumps(word, ensure_ascii=False) for word in json.loads(text))
        text = "start: " + "\n| ".join(words)
    return LLMatcher.grammar_from_lark(text)


def _reason(matcher: LLMatcher) -> str:
    line = _line(matcher.get_error())
    return _WORDS.get(line, line)


def _line(text: str) -> str:
    """What a library tells, in one line that anybody may read."""
    text = text.partition("<backtrace>")[0].replace("<non-verbose/>", "")
    line = " ".join(text.split())
    line = "".join(sign if sign.isprintable() else "?" for sign in line)
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]} …"
