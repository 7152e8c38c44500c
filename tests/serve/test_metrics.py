"""What is counted of an answer, by events made by hand: one, or several tokens at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from trilobit.engine.event import Event, Usage
from trilobit.engine.options import EngineOptions
from trilobit.serve.host import Host
from trilobit.serve.metrics import Metrics
from trilobit.serve.queue import Queue


def counted(*news: tuple[int, int]) -> dict[str, float]:
    """What a server has counted of an answer. news: (choice, tokens) of each event of it."""
    metrics = Metrics(Host({"m": "m"}, EngineOptions()), Queue(1))
    usage = Usage(prompt_tokens=7, cached_tokens=3, output_tokens=0)

    async def events() -> AsyncIterator[tuple[int, Event]]:
        for choice, tokens in news:
            ids = tuple(range(tokens))
            event = Event(text="", token_ids=ids, logprobs=None, finish_reason=None, usage=usage)
            yield choice, event

    async def main() -> list[tuple[int, int]]:
        passed = metrics.watched("m", events(), time.perf_counter())
        return [(choice, len(event.token_ids)) async for choice, event in passed]

    assert asyncio.run(main()) == [*news]
    names = {
        "prompt": "prompt_tokens_total",
        "cached": "cached_prompt_tokens_total",
        "output": "output_tokens_total",
        "first": "time_to_first_token_seconds_count",
        "pauses": "time_between_tokens_seconds_count",
        "paused_s": "time_between_tokens_seconds_sum",
    }
    found = {
        name: metrics.registry.get_sample_value(f"trilobit_{sample}", {"model": "m"})
        for name, sample in names.items()
    }
    return {name: value or 0.0 for name, value in found.items()}


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 3), (3, 1), (2, 2), (4,), (0, 2, 0, 2, 0)])
def test_a_pause_is_counted_for_every_token_but_the_first_however_they_come(
    sizes: tuple[int, ...],
) -> None:
    found = counted(*((0, size) for size in sizes))
    assert (found["output"], found["first"], found["pauses"]) == (4, 1, 3)


def test_tokens_that_come_with_the_first_come_without_a_pause() -> None:
    assert counted((0, 3))["paused_s"] == 0
    assert counted((0, 3), (0, 1))["paused_s"] > 0


def test_choices_have_pauses_of_their_own_and_one_prompt() -> None:
    found = counted((0, 1), (1, 2), (0, 2), (1, 1))
    assert (found["output"], found["first"], found["pauses"]) == (6, 2, 4)
    assert (found["prompt"], found["cached"]) == (7, 3)


def test_nothing_is_counted_of_an_answer_without_tokens() -> None:
    assert set(counted((0, 0)).values()) == {0.0}
