"""Bodies that come and go: what is not known is refused by name, null is a field left out."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from starlette.responses import JSONResponse

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
