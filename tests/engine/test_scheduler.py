"""The scheduler makes progress and keeps its books, whatever arrives, ends early or runs short."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trilobit import SamplingParams
from trilobit.engine.batch import Batch
from trilobit.engine.blocks import BLOCK, BlockPool, blocks_for
from trilobit.engine.request import Request
from trilobit.engine.scheduler import Scheduler
from trilobit.engine.sequence import Sequence

MOST_TOKENS = 6 * BLOCK  # of one sequence: the least that a pool holds


def sequence(prompt: list[int], max_tokens: int) -> Sequence:
    limit = min(len(prompt) + max_tokens, MOST_TOKENS)
    return Sequence(Request(prompt=prompt, params=SamplingParams(), seed=0, limit=limit))


def compute(scheduler: Scheduler, chunks: dict[Sequence, int]) -> None:
    """A step whose tokens are made up from those before them."""
    batch = Batch(chunks)
    tokens: list[list[int] | Exception] = [[sum(one.tokens) % 5] for one in batch.asking]
    scheduler.finish(batch, tokens, seconds=0.0)
    for one in chunks:
        if one.over:
            scheduler.remove(one)


def check_books(scheduler: Scheduler) -> None:
    everyone = [*scheduler.running, *scheduler.waiting]
    assert len(set(everyone)) == len(everyone)
    assert not any(one.blocks for one in scheduler.waiting)
    held = Counter(block for one in scheduler.running for block in one.blocks)
    assert len(held) + scheduler.pool.available == len(scheduler.pool)
    for block, times in held.items():
        if times > 1:
            ends = [
                (one, one.blocks.index(block) + 1)
                for one in scheduler.running
                if block in one.blocks
            ]
            assert all(end * BLOCK <= one.computed for one, end in ends)
            assert len({tuple(one.tokens[: end * BLOCK]) for one, end in ends}) == 1
    for one in scheduler.running:
        assert one.computed <= len(one.blocks) * BLOCK
        assert one.computed < len(one.tokens)


@dataclass(frozen=True)
class Arrival:
    step: int
    length: int
    kind: int  # prompts of a kind begin alike
    max_tokens: int
    leaves_after: int | None


arrivals = st.builds(
    Arrival,
    step=st.integers(0, 40),
    length=st.integers(1, MOST_TOKENS - 1),
    kind=st.integers(0, 2),
    max_tokens=st.integers(1, 2 * BLOCK),
    leaves_after=st.none() | st.integers(0, 30),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(arrivals, min_size=1, max_size=10),
    st.integers(blocks_for(MOST_TOKENS), 20),
    st.integers(1, 5),
    st.integers(0, 100),
)
def test_every_sequence_ends_and_every_block_comes_back(
    plan: list[Arrival], blocks: int, at_once: int, more_batch: int
) -> None:
    batch_tokens = at_once + more_batch
    scheduler = Scheduler(BlockPool(blocks), batch_tokens=batch_tokens, sequences=at_once)
    plan = sorted(plan, key=lambda arrival: arrival.step)
    alive: dict[Sequence, Arrival] = {}  # in the order of arrival
    step, budget = 0, 0
    while plan or alive:
        while plan and (plan[0].step <= step or not alive):
            arrival = plan.pop(0)
            prompt = np.random.default_rng(arrival.kind).integers(0, 5, arrival.length).tolist()
            one = sequence(prompt, arrival.max_tokens)
            alive[one] = arrival
            budget += MOST_TOKENS + 41
            scheduler.add(one)
        decoding = [one for one in scheduler.running if one.pending == 1]
        chunks = scheduler.schedule()
        check_books(scheduler)
        assert chunks
        assert sum(chunks.values()) <= batch_tokens
        assert len(scheduler.running) <= at_once
        assert set(chunks) <= set(scheduler.running)
        for one, count in chunks.items():
            assert 1 <= count <= one.pending
            assert one.computed + count <= len(one.blocks) * BLOCK
        # A long prompt does not stop those that decode; only want of memory does.
        assert all(one in chunks or one in scheduler.waiting for one in decoding)
        assert next(iter(alive)) in chunks, "the oldest always goes on"
        compute(scheduler, chunks)
        for one, arrival in list(alive.items()):
            if arrival.leaves_after is not None and step >= arrival.step + arrival.leaves_after:
                scheduler.remove(one)
                assert not one.blocks
                one.abort()
            if one.over:
                del alive[one]
        check_books(scheduler)
        step += 1
        assert step <= budget
    assert scheduler.pool.available == blocks
    assert not scheduler.running
    assert not scheduler.waiting
    assert scheduler.schedule() == {}


def run_alone(prompt: list[int], max_tokens: int) -> list[int]:
    one = sequence(prompt, max_tokens)
    scheduler = Scheduler(BlockPool(blocks_for(MOST_TOKENS)), batch_tokens=MOST_TOKENS, sequences=1)
    scheduler.add(one)
    while not one.over:
        compute(scheduler, scheduler.schedule())
    return one.tokens


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, MOST_TOKENS - 1), min_size=2, max_size=8), st.integers(1, 8))
def test_tokens_do_not_depend_on_company_or_preemption(lengths: list[int], at_once: int) -> None:
    scheduler = Scheduler(
        BlockPool(blocks_for(MOST_TOKENS)), batch_tokens=at_once + 9, sequences=at_once
    )
    prompts = [np.random.default_rng(length).integers(0, 5, length).tolist() for length in lengths]
    together = [sequence(prompt, 50) for prompt in prompts]
    for one in together:
        scheduler.add(one)
    while chunks := scheduler.schedule():
        compute(scheduler, chunks)
    assert [one.tokens for one in together] == [run_alone(prompt, 50) for prompt in prompts]


def test_the_youngest_gives_way_and_comes_back_before_those_that_never_ran() -> None:
    scheduler = Scheduler(BlockPool(7), batch_tokens=512, sequences=2)
    old, young, late = (sequence([kind] * 3 * BLOCK, 60) for kind in range(3))
    for one in (old, young, late):
        scheduler.add(one)
    preempted = False
    while not young.over:
        chunks = scheduler.schedule()
        if young in scheduler.waiting:
            preempted = True
            assert scheduler.waiting[0] is young
        assert late not in scheduler.running or old.over
        compute(scheduler, chunks)
    assert preempted


def test_nobody_is_admitted_into_blocks_that_the_running_need_next() -> None:
    scheduler = Scheduler(BlockPool(6), batch_tokens=512, sequences=2)
    old, young = sequence([0] * (3 * BLOCK - 1), 60), sequence([1] * 2 * BLOCK, 60)
    scheduler.add(old)
    compute(scheduler, scheduler.schedule())
    scheduler.add(young)
    # Three blocks are free. The young one would take them all, and the next step one of them back.
    assert scheduler.pool.available == blocks_for(len(young.tokens) + 1) == 3
    assert list(scheduler.schedule()) == [old]


def test_cached_tokens_are_those_of_the_first_start() -> None:
    scheduler = Scheduler(BlockPool(12), batch_tokens=512, sequences=4)
    first, again = sequence([1] * 70, 2), sequence([1] * 70, 2)
    scheduler.add(first)
    while chunks := scheduler.schedule():
        compute(scheduler, chunks)
    scheduler.add(again)
    compute(scheduler, scheduler.schedule())
    assert (first.cached_tokens, again.cached_tokens) == (0, 2 * BLOCK)
    scheduler.preempt(again)
    while chunks := scheduler.schedule():
        compute(scheduler, chunks)
    assert again.cached_tokens == 2 * BLOCK
