"""`/health`: whether tokens are made, from one that was really made a moment ago."""

from __future__ import annotations

from fastapi import APIRouter, Request

from trilobit.serve.errors import ApiError
from trilobit.serve.service import service_of

router = APIRouter()


@router.get("/health")
async def health(request: Request) -> dict[str, str]:
    """200 while tokens are made, 503 when decoding is stuck."""
    service = service_of(request)
    for name, llm in service.host.opened().items():
        if not await service.pulse.beats(llm, service.settings.health_s):
            raise ApiError(503, f"{name}: no token within {service.settings.health_s:g} s")
    return {"status": "ok"}
