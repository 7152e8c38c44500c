"""The server as an ASGI app: what every request passes, and the routes behind it.

From outside: `Faults` (nothing is told of our own errors), `Origins`, CORS, `Keys`, `Bodies`; then
FastAPI with the routers of the dialects. A route module has a `router`, which is added here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import Counter
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from trilobit import __version__
from trilobit.errors import TrilobitError
from trilobit.serve import health, metrics, ollama, tokens
from trilobit.serve.anthropic import messages
from trilobit.serve.auth import Keys, Origins
from trilobit.serve.body import Json
from trilobit.serve.errors import REFUSALS, ApiError, Faults, api_error, is_json, response_of
from trilobit.serve.journal import Journal
from trilobit.serve.limits import Bodies
from trilobit.serve.openai import chat, completions, embeddings, models, responses
from trilobit.serve.page import add_page
from trilobit.serve.queue import Queue
from trilobit.serve.service import Service
from trilobit.serve.settings import Settings

_MOST_BODIES_BYTES = 32 << 20
_ROUTERS = (
    health.router,
    metrics.router,
    tokens.router,
    models.router,
    chat.router,
    completions.router,
    embeddings.router,
    responses.router,
    messages.router,
    ollama.router,
)


def create_app(settings: Settings) -> FastAPI:
    """An app that serves; its models are closed when its lifespan ends."""
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="Trilobit",
        version=__version__,
        summary="Language models on this machine, by the APIs that clients speak.",
        lifespan=lifespan,
        default_response_class=Json,
        docs_url=None,  # these pages would load scripts from elsewhere
        redoc_url=None,
        middleware=guards(settings, service.queue, service.metrics.requests),
        exception_handlers=HANDLERS,
    )
    app.state.service = service
    for router in _ROUTERS:
        app.include_router(router, responses=REFUSALS)
    if settings.page:
        add_page(app)
    return app


def guards(settings: Settings, queue: Queue, requests: Counter) -> list[Middleware]:
    """What every request passes. requests: where they are counted by route and status."""
    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        max_age=600,
    )
    return [
        Middleware(Journal, requests=requests, lines=settings.json_logs),
        Middleware(Faults),
        Middleware(Origins, hosts=settings.hosts, origins=settings.origins),
        *([cors] if settings.origins else []),
        Middleware(Keys, keys=settings.keys),
        Middleware(
            Bodies,
            queue=queue,
            body_bytes=settings.body_bytes,
            bodies_bytes=max(_MOST_BODIES_BYTES, 2 * settings.body_bytes),
            sender_s=settings.sender_s,
        ),
    ]


async def _told(request: Request, error: Exception) -> Response:
    told = api_error(error)
    if isinstance(error, RequestValidationError) and not is_json(request.headers):
        told = ApiError(415, "send JSON, with the header content-type: application/json")
    return response_of(told, request.url.path)


HANDLERS: Any = dict.fromkeys(
    (ApiError, TrilobitError, RequestValidationError, HTTPException, MemoryError, Exception), _told
)
