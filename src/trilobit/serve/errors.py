"""What is told when a request cannot be served: one error, in the shape of the API it came by.

Raise `ApiError` anywhere below a route; what the package raises (`TrilobitError`) becomes one too.
A dialect with a shape of its own stands in `_SHAPES`.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trilobit.errors import ContextOverflow, RequestError, TrilobitError
from trilobit.serve.body import Json

# status -> what OpenAI's API calls such errors
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
_MOST_FAULTS = 3  # of a body that are told at once
_SHOWN = 80  # characters of a value
_FRAMES = 6  # of a fault of our own, in the log
_log = logging.getLogger("trilobit")


class ApiError(Exception):
    """A refusal. param: the field that is at fault. code: a word for programs.

    kind: by the status, unless it is given.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.param, self.code = param, code
        self.kind = kind or _KINDS.get(status, "server_error")
        self.headers = dict(headers or {})


def _openai(error: ApiError) -> dict[str, Any]:
    told = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    return {"error": told}


# status -> what Anthropic's API calls such errors, where it is another word
_ANTHROPIC_KINDS = {413: "request_too_large", 500: "api_error", 503: "overloaded_error"}


def _anthropic(error: ApiError) -> dict[str, Any]:
    kind = _ANTHROPIC_KINDS.get(error.status, error.kind)
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def _ollama(error: ApiError) -> dict[str, Any]:
    return {"error": error.message}


def _documented(*words: str) -> dict[str, Any]:
    fields = {name: {"type": ["string", "null"]} for name in ("param", "code")}
    texts = {name: {"type": "string"} for name in ("message", "type")}
    error = {"type": "object", "properties": texts | fields, "required": ["message", "type"]}
    schema = {"type": "object", "properties": {"error": error}, "required": ["error"]}
    return {"description": " ".join(words), "content": {"application/json": {"schema": schema}}}


# What OpenAPI says of every route.
REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": _documented("What cannot be asked, and why."),
    "503": _documented("What cannot be answered now."),
}

# Beginning of a path -> the shape of its errors
_SHAPES: dict[str, Callable[[ApiError], dict[str, Any]]] = {
    "/v1/messages": _anthropic,
    "/api/": _ollama,
}


def body_of(error: ApiError, path: str) -> dict[str, Any]:
    """An error as the API at `path` tells it."""
    for start, shape in _SHAPES.items():
        if path.startswith(start):
            return shape(error)
    return _openai(error)


def response_of(error: ApiError, path: str) -> Response:
    """An error as an answer."""
    return Json(body_of(error, path), status_code=error.status, headers=error.headers)


def api_error(error: Exception) -> ApiError:
    """Any error as one that may be told; what is our own fault says nothing about the request."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextOverflow):
        return ApiError(400, str(error), code="context_length_exceeded")
    if isinstance(error, RequestError):
        return ApiError(400, str(error))
    if isinstance(error, TrilobitError):
        return ApiError(503, str(error))
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, _unread(error) or error.detail, headers=error.headers)
    if isinstance(error, MemoryError):
        return ApiError(503, "not enough memory for this request now; ask again later")
    return ApiError(500, "the server failed at this request; its log says where")


def is_json(headers: Mapping[str, str]) -> bool:
    """Whether a body calls itself JSON."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind[-5:] == "+json")


class Faults:
    """Keeps errors of our own from being told, and what they say of a request from the log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with 500 where nothing was answered yet."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            if scope["type"] != "http":
                raise
            log_fault(error)
            if not started:
                await response_of(api_error(error), scope["path"])(scope, receive, send)


def log_fault(error: Exception) -> None:
    """Log where an error of our own came from: not its words, which may hold a request's."""
    if api_error(error).status != 500:
        return
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    where = " < ".join(f"{Path(one.filename).name}:{one.lineno}" for one in reversed(frames))
    _log.error("%s in %s", type(error).__name__, where)


def _invalid(error: RequestValidationError) -> ApiError:
    """A body that is not what a route takes: which fields, and why."""
    faults = error.errors()
    told, first = [], None
    for fault in faults[:_MOST_FAULTS]:
        # Behind the fields stand the alternatives of a type: `str`, `list[int]`.
        fields = [part for part in fault["loc"] if part != "body" and not _is_type(part)]
        if fault["type"] == "json_invalid":  # then it is a place of the text
            fields = []
        place = ".".join(map(str, fields))[:_SHOWN]
        first = first or place
        told.append(_fault(fault, place))
    if len(faults) > _MOST_FAULTS:
        told.append(f"{len(faults) - _MOST_FAULTS} more")
    return ApiError(400, "; ".join(told), param=first or None)


def _unread(error: HTTPException) -> str | None:
    """Why FastAPI could not read a body, if that is it: of these causes it tells nothing."""
    if error.status_code != 400 or not isinstance(error.__cause__, (ValueError, RecursionError)):
        return None
    if isinstance(error.__cause__, RecursionError):
        return "the body is not JSON that can be read: it is nested too deeply"
    if isinstance(error.__cause__, UnicodeDecodeError):
        return "the body is not JSON: it is no UTF-8 text"
    return "the body is not JSON that can be read: a number has too many digits"


def _is_type(part: object) -> bool:
    return part in ("str", "int", "float", "bool") or "[" in str(part)


def _fault(fault: Mapping[str, Any], place: str) -> str:
    kind, message = fault["type"], str(fault["msg"])
    if kind == "json_invalid":
        return "the body is not JSON"
    if kind == "extra_forbidden":
        return f"{place}: this server knows no such field, and will not leave it out silently"
    if kind == "missing":
        return f"{place or 'body'}: is missing"
    if kind == "model_attributes_type":
        return "the body is no JSON object; send one, with content-type: application/json"
    words = message[:1].lower() + message[1:]
    return f"{place or 'body'}: {words[:300]}"
