"""`/v1/models`: what may be asked here."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request

from trilobit.errors import TrilobitError
from trilobit.serve.purpose import purpose_of
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
    purpose = purpose_of(service.host.models[name])
    if purpose is None:
        return told
    made_for = asdict(purpose)
    try:
        context = service.host.options.context_of(made_for.pop("positions"))
    except TrilobitError:  # who asks this model for something is told why
        return told
    return told | {"max_model_len": context} | made_for
