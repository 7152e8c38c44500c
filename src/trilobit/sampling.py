"""How the next token is chosen: the parameters, checked, and what is taken for those left open."""

from __future__ import annotations

import itertools
import json
import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from trilobit.errors import RequestError
from trilobit.schema import LONGEST, schema_text

# Far above any logit, far below what float32 cannot hold.
_MOST_BIAS = 1e30
# Logits are divided by it, and shall stay numbers.
_LEAST_PENALTY = 0.01
# More than any vocabulary has, and more alternatives than anybody reads.
_MOST_IDS = 1 << 20
MOST_LOGPROBS = 100
# What is taken of the fields that a model may have a say in, where nobody says anything.
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"temperature": 0.7, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
)

Bias = Mapping[int, float] | tuple[tuple[int, float], ...]
# Every stop string is looked for after every token.
_MOST_STOPS = 256
_STOP_CHARACTERS = 20_000


class Constraint(NamedTuple):
    """What an output must be. text: JSON of a schema or of a list of choices, else as given."""

    kind: Literal["json_schema", "regex", "grammar", "choice"]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling of one request, applied in the order: bias and penalties, temperature, top-k,
    top-p, min-p.

    temperature, top_k, top_p, min_p, repetition_penalty: None takes what the model's makers say
    (its generation_config.json), else 0.7, 0, 1, 0 and 1. temperature: 0 takes the most likely
    token. top_k: 0 is off. min_p: relative to the most likely token. repetition_penalty: over
    prompt and output; frequency and presence penalties: over the output, as in OpenAI's API. seed:
    None draws a fresh one. stop: one text or several that end the output and are not part of it,
    256 at most. min_tokens: no end before so many tokens: end-of-sequence and stop tokens are not
    chosen, stop strings not looked for. ignore_eos: go on after an end-of-sequence token. logprobs:
    tell the log-probability of every token of the output, and of so many likeliest ones in its
    place; they are of the logits as they come from the model, before bias and temperature, and cost
    a pass over the whole head. logit_bias: a mapping, kept as pairs in the order of ids. Equal
    parameters have equal hashes.

    At most one of these says what the output must be, and has the last word about its end, before
    min_tokens and ignore_eos. json_schema: JSON that fits a schema, given as JSON or as what it
    means (kept as JSON). regex: a text that an expression matches as a whole. grammar: of Lark, in
    llguidance's form. choice: one of some texts. docs/structured.md tells more.

    Raises RequestError for a value out of range.
    """

    max_tokens: int = 256
    min_tokens: int = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    logit_bias: Bias = ()
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    json_schema: str | Mapping[str, Any] | bool | None = None
    regex: str | None = None
    grammar: str | None = None
    choice: Sequence[str] | None = None

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else _items("stop", self.stop)
        if any(not isinstance(text, str) or not text for text in stop):
            raise RequestError("stop: every stop string must be a non-empty text")
        if any("\ud800" <= sign <= "\udfff" for text in stop for sign in text):
            raise RequestError("stop: a stop string is not UTF-8 text; give it in UTF-8")
        if len(stop) > _MOST_STOPS or sum(map(len, stop)) > _STOP_CHARACTERS:
            raise RequestError(
                f"stop: {len(stop):,} stop strings of {sum(map(len, stop)):,} characters; at most "
                f"{_MOST_STOPS} of {_STOP_CHARACTERS:,} together are looked for"
            )
        self._set("stop", stop)
        ids = _items("stop_token_ids", self.stop_token_ids)
        if not all(_is_integer(i) for i in ids):
            raise RequestError(f"stop_token_ids is {_short(ids)}; expected token ids")
        self._set("stop_token_ids", tuple(map(int, ids)))
        self._integer("max_tokens", 1, 1 << 31)
        self._integer("min_tokens", 0, 1 << 31)
        if self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens is {self.min_tokens}, max_tokens {self.max_tokens}; expected no more"
            )
        for name, end in (("top_k", 1 << 31), ("seed", 1 << 64), ("logprobs", MOST_LOGPROBS + 1)):
            if getattr(self, name) is not None:
                self._integer(name, 0, end)
        if not isinstance(self.ignore_eos, bool):
            raise RequestError(f"ignore_eos is {_short(self.ignore_eos)}; expected True or False")
        for name, most in (
            ("temperature", 100),
            ("top_p", 1),
            ("min_p", 1),
            ("repetition_penalty", 100),
        ):
            if getattr(self, name) is not None:
                self._number(name, 0, most)
        self._number("frequency_penalty", -100, 100)
        self._number("presence_penalty", -100, 100)
        if self.top_p == 0:
            raise RequestError("top_p is 0; expected a number greater than 0")
        penalty = self.repetition_penalty
        if penalty is not None and penalty < _LEAST_PENALTY:
            raise RequestError(
                f"repetition_penalty is {penalty:g}; expected a number from {_LEAST_PENALTY}"
            )
        self._logit_bias()
        self._constraints()

    @property
    def said(self) -> dict[str, Any]:
        """Those of DEFAULTS that these parameters say, by name."""
        values = {name: getattr(self, name) for name in DEFAULTS}
        return {name: value for name, value in values.items() if value is not None}

    def settled(self, *others: SamplingParams) -> SamplingParams:
        """These parameters; what they leave open is that of the first other that says it.

        What nobody says is that of DEFAULTS.
        """
        said = self.said
        if len(said) == len(DEFAULTS):
            return self
        for other in others:
            said = other.said | said
        return replace(self, **{**DEFAULTS, **said})

    @property
    def constraint(self) -> Constraint | None:
        """What the output must be, if anything is said."""
        if isinstance(self.json_schema, str):
            return Constraint("json_schema", self.json_schema)
        if self.regex is not None:
            return Constraint("regex", self.regex)
        if self.grammar is not None:
            return Constraint("grammar", self.grammar)
        if self.choice is not None:
            return Constraint("choice", json.dumps(self.choice, ensure_ascii=False))
        return None

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _logit_bias(self) -> None:
        given = self.logit_bias
        try:
            bias = dict(given)
        except (TypeError, ValueError):
            raise RequestError(
                f"logit_bias is {_short(given)}; expected token id -> bias"
            ) from None
        if len(bias) > _MOST_IDS:
            raise RequestError(f"logit_bias has {len(bias)} tokens; expected {_MOST_IDS} at most")
        for token_id, value in bias.items():
            if not _is_integer(token_id):
                raise RequestError(f"logit_bias: {_short(token_id)} is not a token id")
            if not _is_number(value) or not (value == -math.inf or abs(value) <= _MOST_BIAS):
                raise RequestError(
                    f"logit_bias: the bias of {token_id} is {_short(value)}; expected a number "
                    f"from {-_MOST_BIAS:.0e} to {_MOST_BIAS:.0e}, or -inf to forbid the token"
                )
        # Nothing that the caller does to a mapping of his own later reaches in here.
        self._set("logit_bias", tuple(sorted((int(i), float(v)) for i, v in bias.items())))

    def _constraints(self) -> None:
        if self.json_schema is not None:
            self._set("json_schema", schema_text(self.json_schema))
        if self.choice is not None:
            self._set("choice", _choices(self.choice))
        names = ("json_schema", "regex", "grammar", "choice")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            raise RequestError(f"{' and '.join(given)} are given; an output follows one of them")
        for name in given:
            value = getattr(self, name)
            if name != "choice" and not isinstance(value, str):
                raise RequestError(f"{name} is {_short(value)}; expected a text")
            try:
                "".join(value).encode()
            except UnicodeEncodeError:
                raise RequestError(
                    f"{name} has half a character (a lone surrogate); leave it out"
                ) from None
            size = sum(map(len, value)) if name == "choice" else len(value)
            if not value or size > LONGEST:
                raise RequestError(f"{name} has {size:,} characters; expected 1 to {LONGEST:,}")

    def _integer(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if not _is_integer(value) or not low <= value < high:
            raise RequestError(
                f"{name} is {_short(value)}; expected an integer from {low} to {high - 1}"
            )
        self._set(name, int(value))

    def _number(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if not _is_number(value) or not low <= value <= high:
            raise RequestError(f"{name} is {_short(value)}; expected a number from {low} to {high}")
        self._set(name, float(value))


def _choices(given: object) -> tuple[str, ...]:
    choices = (given,) if isinstance(given, str) else _items("choice", given)
    if not choices:
        raise RequestError("choice is an empty list; give one text or more, or leave it out")
    if any(not isinstance(text, str) or not text for text in choices):
        raise RequestError("choice: every choice must be a non-empty text")
    return choices


def _items(name: str, value: object) -> tuple[Any, ...]:
    if not isinstance(value, Iterable):
        raise RequestError(f"{name} is {_short(value)}; expected a list")
    # Of an endless iterator no more than shows that it is too long.
    items = tuple(itertools.islice(value, _MOST_IDS + 1))
    if len(items) > _MOST_IDS:
        raise RequestError(f"{name} has more than {_MOST_IDS} items; give fewer")
    return items


def _short(value: object) -> str:
    return reprlib.repr(value)


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)  # numpy's are Integral too


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


NOTHING_SAID = SamplingParams()  # all is left open
