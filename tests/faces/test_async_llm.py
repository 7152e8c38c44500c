"""`AsyncLLM`: many tasks, one engine, each its own text, whoever leaves."""

from __future__ import annotations

import asyncio
import gc
import random
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trilobit import LLM, AsyncLLM, ContextOverflow, Event, RequestError, SamplingParams

PROMPT = "Once upon a time there was a dog"
SEEDED = SamplingParams(temperature=2.0, max_tokens=30, ignore_eos=True, seed=7)
LONG = SamplingParams(temperature=0, max_tokens=250_000)  # of a model that does not end
PATIENCE_S = 240  # a hang, not a slow machine


@pytest.fixture(scope="module")
def llm(endless_model: Path) -> LLM:
    return LLM(endless_model, threads=1)


@pytest.fixture(scope="module")
def shared(endless_model: Path) -> AsyncLLM:
    return AsyncLLM(endless_model, threads=1)


def ids_of(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(2, 331, count).tolist()


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, PATIENCE_S))


async def idle(llm: AsyncLLM) -> None:
    """Wait until nothing runs, and all who listen know it."""
    while llm._worker.engine.has_work or llm._worker._heard:
        await asyncio.sleep(0.01)


def test_events_joined_are_the_completion(llm: LLM, shared: AsyncLLM) -> None:
    wanted = llm.generate(PROMPT, SEEDED)

    async def main() -> None:
        stream = shared.stream(PROMPT, SEEDED)
        events = [event async for event in stream]
        assert "".join(event.text for event in events) == wanted.text
        assert sum((event.token_ids for event in events), ()) == wanted.token_ids
        assert [event.finish_reason for event in events[:-1]] == [None] * (len(events) - 1)
        assert events[-1].finish_reason == "length"
        assert events[-1].usage.output_tokens == len(wanted.token_ids)
        assert events[-1].usage.prompt_tokens == wanted.prompt_tokens
        assert stream.completion.token_ids == wanted.token_ids
        done = await shared.generate(PROMPT, SEEDED)
        assert (done.text, done.token_ids, done.seed) == (wanted.text, wanted.token_ids, 7)
        messages = [{"role": "user", "content": PROMPT}]
        assert (await shared.chat(messages, SEEDED)).text == llm.chat(messages, SEEDED).text
        score = await shared.score(PROMPT)
        assert (score.logprobs == llm.score(PROMPT).logprobs).all()
        choices = await shared.choices(PROMPT, 3, SEEDED)
        assert [one.seed for one in choices] == [7, 8, 9]
        assert choices[0].token_ids == wanted.token_ids

    run(main())


def test_a_thousand_requests_half_of_them_cancelled_disturb_nobody(
    llm: LLM, endless_model: Path
) -> None:
    prompts = [ids_of(seed, 3 + seed % 40) for seed in range(20)]
    params = [SamplingParams(temperature=1.5, max_tokens=12, seed=s) for s in range(20)]
    wanted = [one.token_ids for one in llm.generate(prompts, params)]
    crowd = AsyncLLM(endless_model, threads=1, max_sequences=32)
    free = crowd._worker.engine.free_blocks
    dice = random.Random(5)
    most_threads = 0

    async def reads(number: int) -> tuple[int, ...]:
        stream = crowd.stream(prompts[number % 20], params[number % 20])
        ids: tuple[int, ...] = ()
        async for event in stream:
            ids += event.token_ids
        return ids

    async def leaves(number: int) -> None:
        stream = crowd.stream(prompts[number % 20], params[number % 20])
        for _ in range(dice.randrange(4)):
            await anext(aiter(stream), None)
        if number % 4 == 1:
            await stream.aclose()  # the others are dropped

    async def main() -> list[Any]:
        nonlocal most_threads
        tasks = []
        for number in range(1000):
            kind = reads if number % 2 == 0 else leaves
            tasks.append(asyncio.create_task(kind(number)))
            if number % 10 == 3:
                asyncio.get_running_loop().call_later(dice.random() / 5, tasks[-1].cancel)
        done = asyncio.gather(*tasks, return_exceptions=True)
        while not done.done():
            most_threads = max(most_threads, threading.active_count())
            await asyncio.sleep(0.01)
        await idle(crowd)
        return await done

    before = threading.active_count()
    results = run(main())
    assert most_threads <= before + 1
    assert list(results[::2]) == [wanted[n % 20] for n in range(0, 1000, 2)]
    assert not any(isinstance(one, Exception) for one in results)
    assert crowd._worker.engine.free_blocks == free


def test_a_cancelled_task_frees_its_blocks(shared: AsyncLLM) -> None:
    async def main() -> None:
        free = shared._worker.engine.free_blocks
        task = asyncio.create_task(shared.generate(PROMPT, LONG))
        stream = shared.stream(PROMPT, LONG)
        await anext(aiter(stream))
        assert shared._worker.engine.free_blocks < free
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert stream.completion.finish_reason != "length"
        del stream
        gc.collect()
        await idle(shared)
        assert shared._worker.engine.free_blocks == free

    run(main())


def test_bad_requests_are_refused_at_the_call(shared: AsyncLLM) -> None:
    async def main() -> None:
        with pytest.raises(RequestError, match="token id 331"):
            shared.stream([331])
        with pytest.raises(ContextOverflow):
            await shared.generate([5] * 300_000)
        with pytest.raises(RequestError, match=r"^n is 0; expected"):
            await shared.choices(PROMPT, 0)

    run(main())


def test_an_error_of_one_ends_that_one(shared: AsyncLLM, llm: LLM) -> None:
    wanted = llm.generate(PROMPT, SEEDED).token_ids

    async def main() -> None:
        bad, good = shared.stream(PROMPT, LONG), shared.stream(PROMPT, SEEDED)

        def fail(_: int) -> str:
            raise ValueError("no such token")

        assert bad._sequence._text is not None
        bad._sequence._text.add = fail  # type: ignore[method-assign]
        with pytest.raises(ValueError, match="no such token"):
            [event async for event in bad]
        assert sum([event.token_ids async for event in good], ()) == wanted

    run(main())


def test_a_slow_reader_gets_the_rest_at_once(shared: AsyncLLM, llm: LLM) -> None:
    async def main() -> list[Event]:
        stream: AsyncIterator[Event] = aiter(shared.stream(PROMPT, SEEDED))
        first = await anext(stream)
        await idle(shared)
        return [first, *[event async for event in stream]]

    events = run(main())
    assert len(events) <= 3
    assert "".join(event.text for event in events) == llm.generate(PROMPT, SEEDED).text


def test_a_stream_that_was_ended_before_anybody_waited_is_over(shared: AsyncLLM) -> None:
    async def main() -> list[Event]:
        stream = shared.stream(PROMPT, LONG)
        stream.end()
        return [event async for event in stream]

    [event] = run(main())
    assert event.finish_reason == "aborted"


def test_closing_ends_what_runs_with_an_error(endless_model: Path) -> None:
    async def main() -> None:
        async with AsyncLLM(endless_model, threads=1) as llm:
            stream = aiter(llm.stream(PROMPT, LONG))
            await anext(stream)
        with pytest.raises(RequestError, match="was closed"):
            [event async for event in stream]
        with pytest.raises(RequestError, match="was closed"):
            llm.stream(PROMPT)
        assert repr(llm).endswith("closed>")

    run(main())


def test_one_model_serves_loop_after_loop(shared: AsyncLLM, llm: LLM) -> None:
    wanted = llm.generate(PROMPT, SEEDED).text

    async def leaves() -> None:
        await anext(aiter(shared.stream(PROMPT, LONG)))  # and its loop is closed amid it

    for _ in range(3):
        run(leaves())
        assert run(shared.generate(PROMPT, SEEDED)).text == wanted
    run(idle(shared))
    gc.collect()
    assert len(shared._mailboxes) == 0


def test_the_interpreter_may_exit_amid_requests(endless_model: Path) -> None:
    program = """
import asyncio, logging, sys
from trilobit import AsyncLLM, SamplingParams
logging.disable()  # where there is one processor, two threads are warned of
llm = AsyncLLM(sys.argv[1], threads=2)
long = SamplingParams(temperature=0, max_tokens=250_000)
async def main():
    global streams
    streams = [llm.stream([5, 6], long) for _ in range(3)]
    await anext(aiter(streams[0]))
asyncio.run(main())
print("bye")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(endless_model)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("bye\n", "", 0)
