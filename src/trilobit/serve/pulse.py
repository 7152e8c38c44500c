"""Whether an engine lives: by the steps that it makes, or by a token that is made to see it."""

from __future__ import annotations

import asyncio
import time
from weakref import WeakKeyDictionary

from trilobit.async_llm import AsyncLLM
from trilobit.sampling import SamplingParams

_ONE = SamplingParams(max_tokens=1, temperature=0).settled()
_FRESH_S = 10.0  # whoever asks how we are has one token made in so long, at most


class Pulse:
    """When each model last made a step. One look at a time; whoever asks meanwhile shares it."""

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[AsyncLLM, tuple[int, float]] = WeakKeyDictionary()
        self._looking = asyncio.Lock()

    async def beats(self, llm: AsyncLLM, patience_s: float) -> bool:
        """Whether the last step was no longer ago than that, or one can be made now."""
        async with self._looking:
            engine = llm.engine
            now_s = time.monotonic()
            steps, since_s = self._seen.get(llm, (-1, now_s))
            if engine.steps != steps:
                self._seen[llm] = (engine.steps, now_s)
                if engine.has_work or steps >= 0:
                    return True
            elif engine.has_work:
                return now_s - since_s < patience_s
            elif now_s - since_s < _FRESH_S:
                return True
            try:
                async with asyncio.timeout(patience_s):
                    await llm.generate([llm.config.bos_token_id or 0], _ONE)
            except Exception:
                return False
            self._seen[llm] = (engine.steps, time.monotonic())
            return True
