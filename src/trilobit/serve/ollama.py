"""Ollama's API: what is here, chats, texts and vectors, as lines of JSON where they are streamed.

https://github.com/ollama/ollama/blob/main/docs/api.md. Defaults are the model's, else Ollama's
own, but `repeat_penalty`, which is off then; context and lifetime of models are the server's.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from trilobit.serve.answer import Answer, ask
from trilobit.serve.body import AnyTyped, Json, encoded
from trilobit.serve.errors import ApiError, body_of
from trilobit.serve.limits import exits
from trilobit.serve.ollama_bodies import USUAL, ChatBody, EmbedBody, GenerateBody, ShowBody, Texts
from trilobit.serve.openai.embeddings import embed
from trilobit.serve.service import Service, service_of
from trilobit.serve.sse import Events
from trilobit.text.reply import Part, Reply
from trilobit.text.tools import Toolbox, ToolCall

_WIRE = "0.12.0"  # of Ollama, whose API this is: clients refuse what is too old for them
_LINES = "application/x-ndjson"
_TAG = ":latest"  # that clients put behind names
_ERROR = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
_REFUSAL = {
    "description": "What cannot be answered, and why.",
    "content": {"application/json": {"schema": _ERROR}},
}
_STREAMED: dict[int | str, Any] = {200: {"content": {"application/json": {}, _LINES: {}}}}
_DETAILS = {"format": "trilobit", "family": "bitnet", "quantization_level": "1.58-bit"}

router = APIRouter(
    prefix="/api",
    route_class=AnyTyped,
    responses={"4XX": _REFUSAL, "503": _REFUSAL},
)


@router.get("/tags")
async def tags(request: Request) -> dict[str, Any]:
    """All models."""
    service = service_of(request)
    return {"models": [_model(service, name) for name in service.host.models]}


@router.get("/version")
async def version() -> dict[str, str]:
    """Of the API."""
    return {"version": _WIRE}


@router.get("/ps")
async def running(request: Request) -> dict[str, Any]:
    """Those that are open."""
    service = service_of(request)
    return {
        "models": [
            _model(service, name)
            | {"size": llm.memory_bytes, "size_vram": 0, "context_length": llm.context}
            for name, llm in service.host.opened().items()
        ]
    }


@router.post("/show")
async def show(body: ShowBody, request: Request) -> dict[str, Any]:
    """About one, which is opened for that."""
    service = service_of(request)
    name = _name(service, body.model)
    llm = await exits(request).enter_async_context(service.host.llm(name))
    about = {key: _model(service, name)[key] for key in ("modified_at", "details")}
    info = {
        "general.architecture": "bitnet",
        "bitnet.context_length": llm.context,
        "bitnet.embedding_length": llm.config.hidden_size,
        "bitnet.block_count": llm.config.num_hidden_layers,
    }
    about |= {"model_info": info, "capabilities": ["completion", "tools"]}
    names = {"repetition_penalty": "repeat_penalty"}
    lines = [f"{names.get(name, name):30} {value:g}" for name, value in llm.sampling.said.items()]
    return about | {"template": "", "parameters": "\n".join(lines), "modelfile": ""}


@router.post("/chat", responses=_STREAMED)
async def chat(body: ChatBody, request: Request) -> Response:
    """Answer a conversation, at once or as lines."""
    for number, message in enumerate(body.messages):
        _no_images(message.images, f"messages.{number}.images")
    said = [one.message() for one in body.messages]
    toolbox = Toolbox(body.tools) if body.tools else None
    return await _answered(request, body, _message, messages=said, toolbox=toolbox)


@router.post("/generate", responses=_STREAMED)
async def generate(body: GenerateBody, request: Request) -> Response:
    """Answer a text, at once or as lines."""
    _no_images(body.images, "images")
    told = {"system": body.system, "user": body.prompt} if body.prompt else {}
    chat = [{"role": role, "content": text} for role, text in told.items() if text]
    asked: dict[str, Any] = {"prompt": body.prompt} if body.raw else {"messages": chat}
    return await _answered(request, body, lambda part: {"response": part.text}, **asked)


@router.post("/embed")
async def embeddings(body: EmbedBody, request: Request) -> dict[str, Any]:
    """A unit vector for each text."""
    began_ns = time.perf_counter_ns()
    texts = [body.input] if isinstance(body.input, str) else body.input
    asked = _name(service_of(request), body.model)
    name, vectors, tokens = await embed(request, asked, texts, body.dimensions)
    return {
        "model": name,
        "embeddings": vectors.tolist(),
        "total_duration": time.perf_counter_ns() - began_ns,
        "prompt_eval_count": tokens,
    }


def _message(part: Part) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": part.text}
    if part.thought:
        message["thinking"] = part.thought
    if part.calls:
        message["tool_calls"] = [_call(call) for call in part.calls]
    return {"message": message}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "function": {"name": call.name, "arguments": call.object}}


async def _answered(
    request: Request,
    body: Texts,
    shaped: Callable[[Part], dict[str, Any]],
    toolbox: Toolbox | None = None,
    **asked: Any,
) -> Response:
    """What `asked` is answered with. shaped: gives a part the place that it has in an answer."""
    began_ns = time.perf_counter_ns()
    service = service_of(request)
    name = _name(service, body.model)

    def told(part: Part, end: dict[str, Any]) -> dict[str, Any]:
        head = {"model": body.model, "created_at": datetime.now(UTC).isoformat(), "done": False}
        return head | shaped(part) | end

    if not any(asked.values()):  # that is how a client has a model opened before it is needed
        await exits(request).enter_async_context(service.host.llm(name))
        return Json(told(Part(), {"done": True, "done_reason": "load"}))
    answer = await ask(
        request, model=name, params=body.params(), otherwise=USUAL, toolbox=toolbox, **asked
    )
    reply = answer.llm.reply(answer.prompts[0], toolbox, salt=answer.id)
    pieces = _pieces(answer, reply, began_ns)
    if body.stream:
        return Events(
            (_line(told(*piece)) async for piece in pieces),
            keep_alive_s=service.settings.keep_alive_s,
            alive=_line(told(Part(), {})),
            failed=lambda error: _line(body_of(error, request.url.path)),
            media_type=_LINES,
        )
    whole = [piece async for piece in pieces]
    return Json(told(Part.joined([part for part, _ in whole]), whole[-1][1]))


async def _pieces(
    answer: Answer, reply: Reply, began_ns: int
) -> AsyncIterator[tuple[Part, dict[str, Any]]]:
    """Parts as they come; in the end what was counted, times in nanoseconds."""
    opened_ns = first_ns = time.perf_counter_ns()
    async for _, new in answer:
        if first_ns == opened_ns:
            first_ns = time.perf_counter_ns()
        part = reply.add(new.text)
        if part != Part():
            yield part, {}
    [done] = answer.completions
    ended_ns = time.perf_counter_ns()
    end = {
        "done": True,
        "done_reason": done.finish_reason,
        "total_duration": ended_ns - began_ns,
        "load_duration": opened_ns - began_ns,
        "prompt_eval_count": done.prompt_tokens,
        "prompt_eval_duration": first_ns - opened_ns,
        "eval_count": len(done.token_ids),
        "eval_duration": ended_ns - first_ns,
    }
    yield reply.finish(), end


def _line(told: dict[str, Any]) -> bytes:
    return encoded(told) + b"\n"


def _name(service: Service, asked: str) -> str:
    """A model's name, with a tag or without."""
    here = service.host.models
    return service.host.name(asked if asked in here else asked.removesuffix(_TAG))


def _model(service: Service, name: str) -> dict[str, Any]:
    opened = service.host.opened().get(name)
    path = opened.path if opened else Path(service.host.models[name])
    return {
        "name": name,
        "model": name,
        "modified_at": datetime.fromtimestamp(service.started, UTC).isoformat(),
        "size": path.stat().st_size if path.is_file() else 0,
        "digest": sha256(str(path).encode()).hexdigest(),  # clients want one: it is the path's
        "details": _DETAILS,
    }


def _no_images(images: list[str], place: str) -> None:
    if images:
        raise ApiError(400, f"{place}: models here read only text", param=place)
