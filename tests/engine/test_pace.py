"""The budget of a step: measured costs, and chunks that keep to it while texts are written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from test_scheduler import sequence

from trilobit import SamplingParams
from trilobit.engine.batch import Batch
from trilobit.engine.blocks import BlockPool
from trilobit.engine.pace import Pace
from trilobit.engine.reading import Logprobs
from trilobit.engine.request import Request
from trilobit.engine.scheduler import Scheduler
from trilobit.engine.sequence import Sequence

DECODE_S, TOKEN_S, SCORED_S = 0.050, 0.006, 0.009


def seconds(chunks: dict[Sequence, int]) -> float:
    """What a step takes on a machine without surprises."""
    total = 0.0
    if any(one.is_decoding for one in chunks):
        total += DECODE_S
    for one, count in chunks.items():
        if not one.is_decoding:
            total += count * (SCORED_S if one.reading else TOKEN_S)
    return total


def scored(tokens: int) -> Sequence:
    ids = [token % 7 for token in range(tokens)]
    request = Request(prompt=ids, params=SamplingParams(), seed=0, limit=tokens)
    return Sequence(request, reading=Logprobs(ids))


def prompt(tokens: int) -> Sequence:
    request = Request(prompt=[3] * tokens, params=SamplingParams(), seed=0, limit=tokens + 1)
    return Sequence(request)


def step(scheduler: Scheduler) -> tuple[dict[Sequence, int], float]:
    chunks = scheduler.schedule()
    took = seconds(chunks)
    batch = Batch(chunks)
    scheduler.finish(batch, [[5] for _ in batch.asking], seconds=took)
    for one in chunks:
        if one.over:
            scheduler.remove(one)
    return chunks, took


@pytest.mark.parametrize("long", [scored, prompt])
@pytest.mark.parametrize("budget_s", [0.2, 0.5])
def test_a_long_text_beside_streams_keeps_to_the_budget(
    long: Callable[[int], Sequence], budget_s: float
) -> None:
    scheduler = Scheduler(BlockPool(400), batch_tokens=256, sequences=8, pace=Pace(budget_s))
    streams = [sequence([kind] * 5, 180) for kind in range(4)]
    for one in streams:
        scheduler.add(one)
    for _ in range(5):
        step(scheduler)
    text = long(1500)
    scheduler.add(text)
    steps = 0
    while not text.over and not any(one.over for one in streams):
        written = [one.output_tokens for one in streams]
        chunks, took = step(scheduler)
        assert took <= budget_s
        assert [one.output_tokens for one in streams] == [count + 1 for count in written]
        assert chunks[text] >= 8
        steps += 1
    assert text.over or budget_s < 0.5
    assert steps > 5


def test_nobody_is_bounded_while_nothing_is_written() -> None:
    scheduler = Scheduler(BlockPool(400), batch_tokens=256, sequences=8, pace=Pace(0.001))
    text = scored(1000)
    scheduler.add(text)
    sizes = []
    while not text.over:
        chunks, _ = step(scheduler)
        sizes.append(chunks[text])
    assert sizes == [256, 256, 256, 232]


def test_a_prompt_ends_beside_texts_that_use_up_the_budget() -> None:
    scheduler = Scheduler(BlockPool(400), batch_tokens=256, sequences=8, pace=Pace(0.001))
    stream, text = sequence([1] * 5, 180), prompt(100)
    scheduler.add(stream)
    step(scheduler)
    scheduler.add(text)
    for _ in range(40):
        step(scheduler)
    assert text.over


def test_a_pause_of_the_machine_is_forgotten() -> None:
    pace = Pace(0.2)
    for _ in range(20):
        pace.observe({}, decoding=True, seconds=DECODE_S)
        pace.observe({"tokens": 10}, decoding=True, seconds=DECODE_S + 10 * TOKEN_S)
    usual = pace.tokens("tokens", pace.left_s())
    pace.observe({"tokens": 10}, decoding=True, seconds=5.0)
    assert pace.tokens("tokens", pace.left_s()) < usual
    for _ in range(60):
        pace.observe({"tokens": 10}, decoding=True, seconds=DECODE_S + 10 * TOKEN_S)
    assert pace.tokens("tokens", pace.left_s()) == pytest.approx(usual, abs=2)
