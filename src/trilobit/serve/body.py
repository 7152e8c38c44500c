"""Bodies that come and go: what is not known is refused by name, null is a field left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, model_validator
from starlette.responses import JSONResponse, Response

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def encoded(data: Any) -> bytes:
    """As JSON. Half of a character that a client sent comes back as a question mark."""
    return _encode(data).encode("utf-8", "replace")


class Json(JSONResponse):
    """An answer of whatever texts."""

    def render(self, content: Any) -> bytes:
        """Its bytes."""
        return encoded(content)


class Body(BaseModel):
    """A JSON object that a route takes; no text counts as a number, no number as a text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        if isinstance(given, dict):
            return {key: value for key, value in given.items() if value is not None}
        return given


class AnyTyped(APIRoute):
    """A route whose bodies are JSON, whatever they call themselves: `curl -d` calls it a form.

    `Origins` is what keeps pages of others from asking here so.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's own, that is told so."""
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            others = [pair for pair in request.scope["headers"] if pair[0] != b"content-type"]
            request.scope["headers"] = [*others, (b"content-type", b"application/json")]
            return await handle(Request(request.scope, request.receive))

        return handled
