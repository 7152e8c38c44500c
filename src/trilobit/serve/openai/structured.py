"""What an output must be: OpenAI's `response_format`, and the fields of other servers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from trilobit.serve.body import Body
from trilobit.serve.errors import ApiError

ANY_OBJECT = {"type": "object"}


class NamedSchema(Body):
    """A schema as OpenAI's API has it. It is always followed, strict or not."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """Any text, any JSON object, or JSON that fits a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class StructuredOutputs(Body):
    """As vLLM has it; one of them. grammar: of Lark."""

    json_: str | dict[str, Any] | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


def constraint(
    response_format: ResponseFormat | None, *structured: StructuredOutputs | None
) -> dict[str, Any]:
    """The same in the fields of SamplingParams; ApiError where several say different things."""
    told = [_of_format(response_format)]
    for one in structured:
        if one is not None:
            told.append(
                {
                    "json_schema": one.json_,
                    "regex": one.regex,
                    "choice": one.choice,
                    "grammar": one.grammar,
                }
            )
    given: dict[str, Any] = {}
    for fields in told:
        for name, value in fields.items():
            if value is None:
                continue
            if name in given:
                raise ApiError(
                    400,
                    "response_format: the output is bounded twice; give one of them",
                    param="response_format",
                )
            given[name] = value
    return given


def _of_format(wanted: ResponseFormat | None) -> dict[str, Any]:
    if wanted is None or wanted.type == "text":
        return {}
    if wanted.type == "json_object":
        return {"json_schema": ANY_OBJECT}
    if wanted.json_schema is None or wanted.json_schema.schema_ is None:
        raise ApiError(
            400,
            "response_format: type json_schema needs json_schema: {'schema': ...}",
            param="response_format",
        )
    return {"json_schema": wanted.json_schema.schema_}
