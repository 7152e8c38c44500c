"""Fields that several of OpenAI's routes take, and what they mean to the engine."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from trilobit.sampling import SamplingParams
from trilobit.serve.answer import Answer
from trilobit.serve.body import Body
from trilobit.serve.errors import ApiError
from trilobit.serve.openai.structured import ResponseFormat, StructuredOutputs, constraint
from trilobit.text.tools import Toolbox

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
_DIGITS = 20  # that no token id has


class StreamOptions(Body):
    """include_usage: tell the counts of tokens in a last chunk of their own."""

    include_usage: bool = False
    include_obfuscation: bool = False  # padding against listeners; here, chunks are as long as text


class Harmless(Body):
    """What SDKs send that changes no answer here. Nothing of it is kept."""

    user: str | None = Field(default=None, description="Not used.")
    metadata: dict[str, str] | None = Field(default=None, description="Not used.")
    store: bool | None = Field(default=None, description="Nothing is ever stored.")
    service_tier: str | None = Field(default=None, description="Not used.")
    safety_identifier: str | None = Field(default=None, description="Not used.")
    prompt_cache_key: str | None = Field(default=None, description="Not used: see cache_salt.")
    prompt_cache_retention: str | None = Field(default=None, description="Not used.")


class Sampling(Harmless):
    """How tokens are chosen: OpenAI's fields, and those of other servers under their names."""

    model: str | None = Field(
        default=None, description="Default: the first; for a conversation, the first for chats."
    )
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(default=1, ge=1)
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 64)
    temperature: float | None = Field(default=None, description="Default: the model's, else 1.")
    top_p: float | None = Field(default=None, description="Default: the model's, else 1.")
    top_k: int | None = Field(
        default=None, description="0 or -1 is off. Default: the model's, else 0."
    )
    min_p: float | None = Field(default=None, description="Default: the model's, else 0.")
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float | None = Field(
        default=None, description="Default: the model's, else 1."
    )
    logit_bias: dict[str, float] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    min_tokens: int = 0
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = Field(default=None, description="An older name.")
    guided_regex: str | None = Field(default=None, description="An older name.")
    guided_choice: list[str] | None = Field(default=None, description="An older name.")
    guided_grammar: str | None = Field(default=None, description="An older name.")
    return_token_ids: bool = Field(default=False, description="With the ids of what was made.")
    cache_salt: str | None = Field(
        default=None, description="Only requests with the same one share what is cached."
    )

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends in a chunk of counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    def params(self, *, max_tokens: int, logprobs: int | None) -> SamplingParams:
        """As the engine takes it; RequestError for values out of range."""
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=0 if self.top_k == -1 else self.top_k,
            min_p=self.min_p,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            repetition_penalty=self.repetition_penalty,
            seed=None if self.seed is None else self.seed % (1 << 64),
            logit_bias=_bias(self.logit_bias or {}),
            stop=() if self.stop is None else self.stop,
            stop_token_ids=self.stop_token_ids or (),
            ignore_eos=self.ignore_eos,
            min_tokens=self.min_tokens,
            logprobs=logprobs,
            **constraint(
                self.response_format,
                self.structured_outputs,
                StructuredOutputs(
                    json=self.guided_json,
                    regex=self.guided_regex,
                    choice=self.guided_choice,
                    grammar=self.guided_grammar,
                ),
            ),
        )


def _bias(given: dict[str, float]) -> Any:
    """OpenAI's keys are texts, as all keys of JSON; what is no id SamplingParams refuses."""

    def token_id(key: str) -> int | str:
        return int(key) if key.isascii() and key.isdigit() and len(key) < _DIGITS else key

    return {token_id(key): value for key, value in given.items()}


def thinking(effort: Effort | None) -> bool | None:
    """Whether an effort is one of thinking; None: as the model does."""
    return None if effort is None else effort not in ("none", "minimal")


def toolbox_of(
    tools: list[dict[str, Any]] | None, choice: str | dict[str, Any], parallel: bool
) -> Toolbox | None:
    """What may be called; ApiError or RequestError for what is none, or needs one."""
    if tools:
        return Toolbox(tools, choice, parallel)
    if choice not in ("auto", "none"):
        raise ApiError(400, "tool_choice: needs tools", param="tool_choice")
    return None


def head(answer: Answer, *, prefix: str, kind: str) -> dict[str, Any]:
    """What every answer and every chunk of one begins with."""
    return {
        "id": f"{prefix}{answer.id}",
        "object": kind,
        "created": answer.created,
        "model": answer.model,
        "system_fingerprint": answer.fingerprint,
        "seed": answer.seed,
    }


def usage(answer: Answer, *, tokens: bool = True) -> dict[str, Any]:
    """Tokens of an answer. tokens: False where none of those that were made is told."""
    prompt = sum(one.prompt_tokens for one in answer.usages)
    output = sum(one.output_tokens for one in answer.usages) if tokens else 0
    cached = sum(one.cached_tokens for one in answer.usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
