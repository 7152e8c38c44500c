"""`/v1/embeddings`."""

from __future__ import annotations

import asyncio
import base64
import threading
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from pydantic import Field

from trilobit.embedder import Embedder
from trilobit.serve.errors import ApiError
from trilobit.serve.limits import exits
from trilobit.serve.openai.fields import Harmless
from trilobit.serve.service import service_of

router = APIRouter()


class EmbeddingBody(Harmless):
    """Texts whose vectors are asked."""

    model: str | None = Field(default=None, description="Default: the server's first model.")
    input: str | list[str] | list[int] | list[list[int]] = Field(
        description="A text or several. Token ids are refused: they are another tokenizer's."
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)


class _Gone(Exception):
    """Nobody waits for the vectors any more."""


@router.post("/v1/embeddings")
async def embeddings(body: EmbeddingBody, request: Request) -> dict[str, Any]:
    """A unit vector for each text."""
    given: Any = body.input
    texts: list[str] = [given] if isinstance(given, str) else given
    name, vectors, tokens = await embed(request, body.model, texts, body.dimensions)
    as_told = _base64 if body.encoding_format == "base64" else _floats
    return {
        "object": "list",
        "model": name,
        "data": [
            {"object": "embedding", "index": index, "embedding": as_told(vector)}
            for index, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


async def embed(
    request: Request, model: str | None, texts: list[str], dimensions: int | None
) -> tuple[str, NDArray[np.float32], int]:
    """The model's name, a unit vector of each text, and how many tokens they have.

    Raises ApiError or TrilobitError for what cannot be embedded.
    """
    service = service_of(request)
    if not 1 <= len(texts) <= service.settings.embeddings:
        most = service.settings.embeddings
        raise ApiError(400, f"input: {len(texts)} texts; this server takes 1 to {most}")
    if not all(isinstance(text, str) for text in texts):
        raise ApiError(
            400,
            "input: token ids are of a tokenizer that is not this model's; send texts (LangChain: "
            "check_embedding_ctx_length=False)",
            param="input",
        )
    stack = exits(request)
    name = service.host.name(model)
    embedder = await stack.enter_async_context(service.host.embedder(name))
    gone = threading.Event()
    stack.callback(gone.set)
    vectors, tokens = await asyncio.get_running_loop().run_in_executor(
        service.host.embedding_threads, _vectors, embedder, texts, dimensions, gone
    )
    return name, vectors, tokens


def _vectors(
    embedder: Embedder, texts: list[str], dimensions: int | None, gone: threading.Event
) -> tuple[NDArray[np.float32], int]:
    def look(*_: object) -> None:
        if gone.is_set():
            raise _Gone

    vectors = embedder.encode(texts, dimensions=dimensions, progress=look)
    return vectors, embedder.count_tokens(texts)


def _floats(vector: NDArray[np.float32]) -> list[float]:
    told: list[float] = vector.tolist()
    return told


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
