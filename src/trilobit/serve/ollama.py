"""Ollama's API: what is here, chats, texts and vectors, as lines of JSON where they are streamed.

https://github.com/ollama/ollama/blob/main/docs/api.md. A model's defaults are Ollama's own, but
`repeat_penalty`, which is off; context and lifetime of models are the server's.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from trilobit.sampling import SamplingParams
from trilobit.serve.answer import Answer, ask
from trilobit.serve.body import AnyTyped, Body
from trilobit.serve.errors import ApiError, body_of
from trilobit.serve.limits import exits
from trilobit.serve.openai.embeddings import embed
from trilobit.serve.service import Service, service_of
from trilobit.serve.sse import Events

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


class Options(Body):
    """How tokens are chosen, and what other machines need to be told."""

    num_predict: int = Field(default=-1, ge=-2, description="Below 1: until the context is full.")
    temperature: float = 0.8
    top_k: int = Field(default=40, ge=0, description="0 is off.")
    top_p: float = 0.9
    min_p: float = 0.0
    seed: int = Field(default=-1, ge=-(1 << 63), lt=1 << 64, description="-1: a fresh one.")
    stop: str | list[str] = Field(default=[])
    repeat_penalty: float = Field(default=1.0, description="Over prompt and output.")
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

    def params(self) -> SamplingParams:
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
        )


class _Asked(Body):
    model: str = Field(min_length=1)
    options: Options = Field(default_factory=Options)
    keep_alive: float | str | None = Field(default=None, description="Not used.")


class _Texts(_Asked):
    stream: bool = True
    format: Literal[""] | None = Field(default=None, description="No form can be asked for yet.")
    think: Literal[False] | None = None
    logprobs: Literal[False] | None = None


class Said(Body):
    """A message. images: none may be given."""

    role: str
    content: str = ""
    images: list[str] = Field(default=[])


class ChatBody(_Texts):
    """A conversation to be answered."""

    messages: list[Said] = Field(default=[])
    tools: list[dict[str, Any]] = Field(default=[], description="None may be given yet.")


class GenerateBody(_Texts):
    """A text to be answered, or to be continued, where it is raw."""

    prompt: str = ""
    system: str = ""
    raw: bool = False
    suffix: Literal[""] | None = None
    template: Literal[""] | None = None
    images: list[str] = Field(default=[], description="None may be given.")


class EmbedBody(_Asked):
    """Texts whose vectors are asked."""

    input: str | list[str]
    truncate: bool = Field(default=True, description="What is too long is refused all the same.")
    dimensions: int | None = Field(default=None, ge=1)


class ShowBody(Body):
    """A model about which is asked."""

    model: str = Field(min_length=1)
    verbose: bool = False


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
    about |= {"model_info": info, "capabilities": ["completion"]}
    return about | dict.fromkeys(("template", "parameters", "modelfile"), "")


@router.post("/chat", responses=_STREAMED)
async def chat(body: ChatBody, request: Request) -> Response:
    """Answer a conversation, at once or as lines."""
    if body.tools:
        raise ApiError(400, "tools: are not served here yet; leave them out", param="tools")
    for number, message in enumerate(body.messages):
        _no_images(message.images, f"messages.{number}.images")
    said = [{"role": one.role, "content": one.content} for one in body.messages]
    reply = {"role": "assistant"}
    return await _answered(
        request, body, lambda text: {"message": reply | {"content": text}}, messages=said
    )


@router.post("/generate", responses=_STREAMED)
async def generate(body: GenerateBody, request: Request) -> Response:
    """Answer a text, at once or as lines."""
    _no_images(body.images, "images")
    told = {"system": body.system, "user": body.prompt} if body.prompt else {}
    chat = [{"role": role, "content": text} for role, text in told.items() if text]
    asked: dict[str, Any] = {"prompt": body.prompt} if body.raw else {"messages": chat}
    return await _answered(request, body, lambda text: {"response": text}, **asked)


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


async def _answered(
    request: Request, body: _Texts, shaped: Callable[[str], dict[str, Any]], **asked: Any
) -> Response:
    """What `asked` is answered with. shaped: gives a text the place that it has in an answer."""
    began_ns = time.perf_counter_ns()
    service = service_of(request)
    name = _name(service, body.model)

    def part(text: str, end: dict[str, Any]) -> dict[str, Any]:
        told = {"model": body.model, "created_at": datetime.now(UTC).isoformat(), "done": False}
        return told | shaped(text) | end

    if not any(asked.values()):  # that is how a client has a model opened before it is needed
        await exits(request).enter_async_context(service.host.llm(name))
        return JSONResponse(part("", {"done": True, "done_reason": "load"}))
    answer = await ask(request, model=name, params=body.options.params(), **asked)
    pieces = _pieces(answer, began_ns)
    if body.stream:
        return Events(
            (_line(part(*piece)) async for piece in pieces),
            keep_alive_s=service.settings.keep_alive_s,
            alive=_line(part("", {})),
            failed=lambda error: _line(body_of(error, request.url.path)),
            media_type=_LINES,
        )
    whole = [piece async for piece in pieces]
    return JSONResponse(part("".join(text for text, _ in whole), whole[-1][1]))


async def _pieces(answer: Answer, began_ns: int) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Texts as they come; in the end what was counted, times in nanoseconds."""
    opened_ns = first_ns = time.perf_counter_ns()
    async for _, new in answer:
        if first_ns == opened_ns:
            first_ns = time.perf_counter_ns()
        if new.text:
            yield new.text, {}
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
    yield "", end


def _line(told: dict[str, Any]) -> bytes:
    return f"{json.dumps(told, ensure_ascii=False)}\n".encode("utf-8", "replace")


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
