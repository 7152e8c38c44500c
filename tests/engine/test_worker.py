"""Engine and worker without the native module: who runs the steps, what ends whom, who is told."""

from __future__ import annotations

import ast
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy_backend import HIDDEN, VOCAB, NumpyBackend, NumpySampler

import trilobit.engine
from trilobit import FormatError, RequestError, SamplingParams
from trilobit.engine.engine import Engine
from trilobit.engine.reading import Logits, Logprobs, Reading, State
from trilobit.engine.request import Request
from trilobit.engine.sequence import Sequence
from trilobit.engine.worker import Worker


def ids_of(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, count).tolist()


def text(prompt: list[int], count: int = 20, *, seed: int = 0, **more: Any) -> Sequence:
    params = SamplingParams(max_tokens=count, **more)
    request = Request(prompt=prompt, params=params, seed=seed, limit=len(prompt) + count)
    return Sequence(request)


def reading(prompt: list[int], what: Reading) -> Sequence:
    request = Request(prompt=prompt, params=SamplingParams(), seed=0, limit=len(prompt))
    return Sequence(request, reading=what)


def make_worker(*, sequences: int = 8, **options: Any) -> Worker:
    return Worker(Engine(NumpyBackend(**options), sequences=sequences))


def alone(*args: Any, **options: Any) -> list[int]:
    one = text(*args, **options)
    run(make_worker(), [one])
    return one.tokens


def run(worker: Worker, sequences: list[Sequence]) -> None:
    worker.submit(sequences)
    worker.run(sequences)
    assert all(one.over for one in sequences)


# ---- one batch for all kinds of work ----------------------------------------------------------


def test_texts_scores_and_states_share_batches_and_change_no_bit() -> None:
    worker = make_worker(blocks=40, batch_tokens=30)
    prompts = [ids_of(seed, length) for seed, length in enumerate((70, 5, 33, 100, 64))]

    def readings() -> list[Any]:
        return [
            Logits(len(prompts[0]), VOCAB),
            Logprobs(prompts[1]),
            State(len(prompts[2]), HIDDEN, mode="mean"),
            State(len(prompts[3]), HIDDEN, mode="last"),
        ]

    together = readings()
    sequences = [reading(*pair) for pair in zip(prompts, together, strict=False)]
    texts = [text(prompt, seed=number) for number, prompt in enumerate(prompts)]
    mixed = [one for pair in zip(texts, sequences, strict=False) for one in pair] + texts[4:]
    run(worker, mixed)
    assert [one.tokens for one in texts] == [
        alone(prompt, seed=number) for number, prompt in enumerate(prompts)
    ]
    for prompt, got, wanted in zip(prompts, together, readings(), strict=False):
        run(make_worker(), [reading(prompt, wanted)])
        assert (got.values == wanted.values).all()
    assert worker.engine.free_blocks == 40


def test_a_score_does_not_hold_the_turn() -> None:
    """A text that is being written goes on beside it, a token in each step."""
    worker = make_worker(blocks=80, batch_tokens=16)
    writing = text(ids_of(1, 5), 100)
    worker.submit([writing])
    worker.run_until(lambda: writing.output_tokens > 0)
    scored = reading(long := ids_of(2, 1000), Logprobs(long))
    worker.submit([scored])
    before, steps = writing.output_tokens, worker.engine.steps
    worker.run_until(lambda: scored.over or writing.over)
    assert scored.over
    assert not writing.over
    assert writing.output_tokens - before == worker.engine.steps - steps
    worker.run([writing])
    assert writing.tokens == alone(ids_of(1, 5), 100)


def test_several_completions_compute_their_prompt_once() -> None:
    worker = make_worker()
    prompt = ids_of(3, 65)  # two full blocks and a token
    several = [text(prompt, seed=seed) for seed in range(4)]
    several[0].followers = several[1:]
    worker.submit(several[:1])
    worker.run(several)
    assert [one.cached_tokens for one in several] == [0, 64, 64, 64]
    assert [one.tokens for one in several] == [alone(prompt, seed=seed) for seed in range(4)]


@pytest.mark.parametrize("ends", ["abandoned", "fails"])
def test_followers_go_on_without_the_first(ends: str) -> None:
    worker = make_worker()
    several = [text(ids_of(3, 40), seed=seed) for seed in range(3)]
    several[0].followers = several[1:]
    if ends == "fails":
        several[0].sampler = object()  # no sampler
        worker.engine.backend.choose = failing_for(  # type: ignore[method-assign]
            worker.engine.backend, several[0].sampler
        )
        worker.submit(several[:1])
    else:
        worker.submit(several[:1])
        worker.abandon(several[:1])
    worker.run(several)
    assert [one.tokens for one in several[1:]] == [
        alone(ids_of(3, 40), seed=seed) for seed in (1, 2)
    ]


def failing_for(backend: Any, sampler: object) -> Callable[..., Any]:
    choose = backend.choose

    def choose_or_fail(
        samplers: list[Any], drafts: list[list[int]], allowed: list[Any]
    ) -> list[Any]:
        good = [one if one is not sampler else NumpySampler(SEEDLESS) for one in samplers]
        chosen = choose(good, drafts, allowed)
        return [
            RequestError("no token can be chosen") if one is sampler else tokens
            for one, tokens in zip(samplers, chosen, strict=True)
        ]

    return choose_or_fail


SEEDLESS = Request(prompt=[1], params=SamplingParams(), seed=0, limit=2)


# ---- errors -----------------------------------------------------------------------------------


def test_a_sequence_without_a_next_token_ends_alone() -> None:
    worker = make_worker()
    good, bad = text(ids_of(1, 40)), text(ids_of(2, 40))
    bad.sampler = object()
    worker.engine.backend.choose = failing_for(  # type: ignore[method-assign]
        worker.engine.backend, bad.sampler
    )
    run(worker, [good, bad])
    assert isinstance(bad.error, RequestError)
    assert good.tokens == alone(ids_of(1, 40))
    assert worker.engine.free_blocks == 64


class Numberless(Logprobs):
    """What a model with a damaged scale gives."""

    def take(self, start: int, rows: Any) -> None:
        super().take(start, np.full_like(rows, np.nan))


def test_a_score_without_numbers_ends_alone() -> None:
    worker = make_worker(batch_tokens=30)
    prompts = [ids_of(seed, 70) for seed in (1, 2)]
    good = reading(prompts[0], Logprobs(prompts[0]))
    bad = reading(prompts[1], Numberless(prompts[1]))
    beside = text(ids_of(3, 40))
    run(worker, [bad, good, beside])
    assert isinstance(bad.error, FormatError)
    assert good.error is None
    assert beside.tokens == alone(ids_of(3, 40))
    assert worker.engine.free_blocks == 64


def test_a_sampler_that_cannot_be_made_ends_its_sequence_only() -> None:
    worker = make_worker()
    make = worker.engine.backend.sampler

    def sampler(request: Request) -> Any:
        if request.seed == 13:
            raise ValueError("no such sampler")
        return make(request)

    worker.engine.backend.sampler = sampler  # type: ignore[method-assign]
    several = [text(ids_of(seed, 40), seed=seed) for seed in (12, 13, 14)]
    run(worker, several)
    assert [type(one.error) for one in several] == [type(None), ValueError, type(None)]
    assert several[2].tokens == alone(ids_of(14, 40), seed=14)


def test_a_backend_that_fails_ends_all_with_its_reason_and_the_next_run() -> None:
    worker = make_worker()
    forward = worker.engine.backend.forward

    def broken(_: object) -> None:
        raise MemoryError("no memory")

    victims = [text(ids_of(seed, 40)) for seed in range(3)]
    worker.engine.backend.forward = broken  # type: ignore[method-assign]
    run(worker, victims)
    assert all(isinstance(one.error, MemoryError) for one in victims)
    worker.engine.backend.forward = forward  # type: ignore[method-assign]
    after = text(ids_of(5, 40))
    run(worker, [after])
    assert after.tokens == alone(ids_of(5, 40))
    assert worker.engine.free_blocks == 64


# ---- who runs the steps -----------------------------------------------------------------------


def test_sinks_are_told_of_every_token_and_the_thread_ends_with_them() -> None:
    worker = make_worker()
    seen, over, told = threading.Event(), threading.Event(), list[int]()

    def sink(one: Sequence) -> None:
        assert seen.wait(60)
        told.append(one.output_tokens)
        if one.over:
            over.set()

    one = text(ids_of(1, 40))
    one.sink = sink
    worker.submit([one])
    thread = worker._thread
    assert thread is not None
    seen.set()
    assert over.wait(60)
    thread.join(60)
    assert not thread.is_alive()
    assert sorted(set(told)) == list(range(1, 21))
    assert one.tokens == alone(ids_of(1, 40))


def test_callers_and_sinks_share_one_engine() -> None:
    worker = make_worker(blocks=64)
    heard = [text(ids_of(seed, 20), 60, seed=seed) for seed in range(4)]
    left = threading.Semaphore(0)
    for one in heard:
        one.sink = lambda one: left.release() if one.over else None
    got: list[list[int]] = []

    def call(seed: int) -> None:
        for _ in range(5):
            one = text(ids_of(seed, 20), seed=seed)
            run(worker, [one])
            got.append(one.tokens)

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(4, 8)]
    for caller in callers:
        caller.start()
    worker.submit(heard)
    for caller in callers:
        caller.join(120)
        assert not caller.is_alive(), "a caller hangs"
    for _ in heard:
        assert left.acquire(timeout=60)
    assert sorted(got) == sorted(5 * [alone(ids_of(s, 20), seed=s) for s in range(4, 8)])
    assert [one.tokens for one in heard] == [
        alone(ids_of(seed, 20), 60, seed=seed) for seed in range(4)
    ]


def test_a_sink_that_fails_loses_its_sequence_only() -> None:
    worker = make_worker()
    bad, good = text(ids_of(1, 40), 500), text(ids_of(2, 40))
    bad.sink = lambda _: 1 / 0  # type: ignore[arg-type,return-value]
    worker.submit([bad])
    run(worker, [good])
    worker.run_until(lambda: bad.over)
    assert bad.output_tokens < 500
    assert good.tokens == alone(ids_of(2, 40))


def test_closing_ends_all_and_refuses_what_comes_after() -> None:
    worker = make_worker()
    running = text(ids_of(1, 40), 50)
    worker.submit([running])
    worker.run_until(lambda: running.output_tokens > 3)
    worker.close()
    assert isinstance(running.error, RequestError)
    worker.run([running])
    with pytest.raises(RequestError, match="was closed"):
        worker.submit([text([1])])
    worker.abandon([running])
    worker.close()


def test_only_one_file_of_the_engine_knows_the_native_module() -> None:
    folder = Path(trilobit.engine.__file__).parent
    knowing = {
        path.name
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and "_native" in {a.name for a in node.names}
    }
    assert knowing == {"native.py"}
