"""`/v1/models`: what may be asked here."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from trilobit.serve.service import Service, service_of

router = APIRouter()


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """All models by name."""
    service = service_of(request)
    return {"object": "list", "data": [_model(service, name) for name in service.host.models]}


@router.get("/v1/models/{name:path}")
async def model(name: str, request: Request) -> dict[str, Any]:
    """One model."""
    service = service_of(request)
    return _model(service, service.host.name(name))


def _model(service: Service, name: str) -> dict[str, Any]:
    told = {"id": name, "object": "model", "created": service.started, "owned_by": "trilobit"}
    llm = service.host.opened().get(name)
    if llm is None:
        return told
    return told | {"max_model_len": llm.context, "chat": llm.has_chat_template}
