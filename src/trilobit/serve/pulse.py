"""Whether an engine lives: by the steps that it makes, or by a token that is made to see it."""

from __future__ import annotations

import asyncio
import time

from trilobit.async_llm import AsyncLLM
from trilobit.sampling import SamplingParams

_ONE = SamplingParams(max_tokens=1, temperature=0)
_FRESH_S = 10.0  # whoever asks how we are has one token made in so long, at most


class Pulse:
    """When each model last made a step. One look at a time; whoever asks meanwhile shares it."""

    def __init__(self) -> None:
        self._seen: dict[AsyncLLM, tuple[int, float]] = {}
        self._looking = asyncio.Lock()

    async def beats(self, llm: AsyncLLM, patience_s: float) -> bool:
        """Whether a step ended within the last moments, or one does within so long."""
        async with self._looking:
            steps, at_s = self._seen.get(llm, (-1, 0.0))
            now = time.monotonic()
            if llm.engine.steps != steps:
                self._seen = {llm: (llm.engine.steps, now)}
                if steps >= 0 or llm.engine.has_work:
                    return True
            elif now - at_s < (patience_s if llm.engine.has_work else _FRESH_S):
                return True
            try:
                async with asyncio.timeout(patience_s):
                    await llm.generate([llm.config.bos_token_id or 0], _ONE)
            except Exception:
                return False
            self._seen = {llm: (llm.engine.steps, time.monotonic())}
            return True
