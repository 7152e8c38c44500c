"""What Ollama's API is asked with. What other servers need to be told is taken, and not used."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, FiniteFloat, field_validator
from pydantic_core import PydanticCustomError

from trilobit.sampling import SamplingParams
from trilobit.serve.body import Body

# Ollama's own, of models that say nothing.
USUAL = SamplingParams(temperature=0.8, top_k=40, top_p=0.9)
_ANY_OBJECT = {"type": "object"}
_SHOWN = 40  # characters of a value
# A time as Go writes it, which is what Ollama reads: 5m, 1h30m, -1s; only 0 needs no unit.
_TIME = re.compile(r"[+-]?(?:0|(?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+)")


class Options(Body):
    """How tokens are chosen, and what other machines need to be told."""

    num_predict: int = Field(default=-1, ge=-2, description="Below 1: until the context is full.")
    temperature: float | None = Field(default=None, description="Default: the model's, else 0.8.")
    top_k: int | None = Field(
        default=None, ge=0, description="0 is off. Default: the model's, else 40."
    )
    top_p: float | None = Field(default=None, description="Default: the model's, else 0.9.")
    min_p: float | None = Field(default=None, description="Default: the model's, else 0.")
    seed: int = Field(default=-1, ge=-(1 << 63), lt=1 << 64, description="-1: a fresh one.")
    stop: str | list[str] = Field(default=[])
    repeat_penalty: float | None = Field(
        default=None, description="Over prompt and output. Default: the model's, else 1."
    )
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    num_ctx: int | None = Field(default=None, description="Not used: nothing is cut off to fit.")
    num_keep: int | None = Field(default=None, description="Not used, as num_ctx.")
    num_batch: int | None = Field(default=None, description="Not used.")
    num_gpu: int | None = Field(default=None, description="Not used.")
    num_thread: int | None = Field(default=None, description="Not used.")
    use_mmap: bool | None = Field(default=None, description="Not used.")
    use_mlock: bool | None = Field(default=None, description="Not used.")
    mirostat: Literal[0] | None = None

    def params(self, json_schema: dict[str, Any] | None = None) -> SamplingParams:
        """As the engine takes it; RequestError for values out of range."""
        return SamplingParams(
            max_tokens=self.num_predict if self.num_predict > 0 else (1 << 31) - 1,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=None if self.seed == -1 else self.seed % (1 << 64),
            stop=self.stop,
            repetition_penalty=self.repeat_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            json_schema=json_schema,
        )


class Asked(Body):
    """What every question has."""

    model: str = Field(min_length=1)
    options: Options = Field(default_factory=Options)
    keep_alive: FiniteFloat | str | None = Field(default=None, description="Not used.")

    @field_validator("keep_alive", mode="before")
    @classmethod
    def _time(cls, given: Any) -> Any:
        if isinstance(given, str) and not _TIME.fullmatch(given):
            raise PydanticCustomError(
                "time",
                "{given} is no time; expected seconds, or a text such as '5m' or '1h30m'",
                {"given": repr(given)[:_SHOWN]},
            )
        return given


class Texts(Asked):
    """What questions that are answered in words have."""

    stream: bool = True
    format: Literal["", "json"] | dict[str, Any] | None = Field(
        default=None, description='"json": any object; or a JSON schema.'
    )
    think: Literal[False] | None = None
    logprobs: Literal[False] | None = None

    @field_validator("format", mode="before")
    @classmethod
    def _form(cls, given: Any) -> Any:
        if given in ("", "json") or isinstance(given, dict):
            return given
        raise PydanticCustomError(
            "form",
            "{given} is no form of an answer; expected 'json' or a JSON schema",
            {"given": repr(given)[:_SHOWN]},
        )

    def params(self) -> SamplingParams:
        """As the engine takes it; RequestError for values out of range."""
        schema = _ANY_OBJECT if self.format == "json" else self.format or None
        return self.options.params(schema)


class CalledFunction(Body):
    """index: which call it is of its message."""

    name: str
    arguments: dict[str, Any] = Field(default={})
    index: int | None = Field(default=None, description="Not used.")


class Call(Body):
    """A call that the model has made."""

    function: CalledFunction
    id: str | None = None
    type: Literal["function"] | None = None


class Said(Body):
    """A message. images: none may be given. tool_name: of the function that returned this."""

    role: str
    content: str = ""
    images: list[str] = Field(default=[])
    thinking: str | None = None
    tool_calls: list[Call] = Field(default=[])
    tool_name: str | None = None
    tool_call_id: str | None = None

    def message(self) -> dict[str, Any]:
        """As OpenAI's, which a model's template reads; a field of None is left out there."""
        calls = [
            {"id": one.id or "", "type": "function", "function": one.function.model_dump()}
            for one in self.tool_calls
        ]
        return {
            "role": self.role,
            "content": self.content,
            "reasoning_content": self.thinking,
            "tool_calls": calls or None,
            "name": self.tool_name,
            "tool_call_id": self.tool_call_id,
        }


class ChatBody(Texts):
    """A conversation to be answered."""

    messages: list[Said] = Field(default=[])
    tools: list[dict[str, Any]] = Field(default=[], description="Functions that may be called.")


class GenerateBody(Texts):
    """A text to be answered, or to be continued, where it is raw."""

    prompt: str = ""
    system: str = ""
    raw: bool = False
    suffix: Literal[""] | None = None
    template: Literal[""] | None = None
    images: list[str] = Field(default=[], description="None may be given.")


class EmbedBody(Asked):
    """Texts whose vectors are asked."""

    input: str | list[str]
    truncate: bool = Field(default=True, description="What is too long is refused all the same.")
    dimensions: int | None = Field(default=None, ge=1)


class ShowBody(Body):
    """A model about which is asked."""

    model: str = Field(min_length=1)
    verbose: bool = False
