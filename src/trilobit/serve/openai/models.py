"""`/v1/models`: what may be asked here."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request

from trilobit.errors import TrilobitError
from trilobit.formats.packed.reader import PackedModel
from trilobit.hub.models import known_file
from trilobit.serve.service import Service, service_of

router = APIRouter()


# Not `async`: files are read, in a thread.
@router.get("/v1/models")
def models(request: Request) -> dict[str, Any]:
    """All models by name."""
    service = service_of(request)
    return {"object": "list", "data": [_model(service, name) for name in service.host.models]}


@router.get("/v1/models/{name:path}")
def model(name: str, request: Request) -> dict[str, Any]:
    """One model."""
    service = service_of(request)
    return _model(service, service.host.name(name))


def _model(service: Service, name: str) -> dict[str, Any]:
    told = {
        "id": name,
        "object": "model",
        "created": service.started,
        "owned_by": "trilobit",
        "loaded": name in service.host.opened(),
    }
    try:
        path = known_file(service.host.models[name])
        if path is None or not path.is_file():
            return told
        positions, made_for = _header(path, path.stat().st_mtime_ns)
        context = service.host.options.context_of(positions)
    except (OSError, TrilobitError):  # who asks this model for something is told why
        return told
    return told | {"max_model_len": context} | made_for


@lru_cache(maxsize=64)
def _header(path: Path, _changed_ns: int) -> tuple[int, dict[str, bool]]:
    """Of a packed file: positions, and what it may be asked for.

    chat: it was made to. generates: it was not made for vectors only. embeds: it has a tokenizer,
    which is all that vectors need.
    """
    packed = PackedModel(path)
    text = packed.text
    positions = packed.config.max_position_embeddings
    return positions, {
        "chat": text.chat_template is not None,
        "generates": text.pooling is None,
        "embeds": text.tokenizer is not None,
    }
