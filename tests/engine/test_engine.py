"""A token's logits are a function of its own sequence, bit for bit, and a step is whole or undone.

Nothing here has a tolerance: batches, chunks, threads, the cache, preemption and interrupts may
not change a single bit of a logit or a single token.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupt import interrupt_at
from numpy.typing import NDArray

from trilobit import LLM, SamplingParams, _native
from trilobit.engine.blocks import BLOCK, blocks_for
from trilobit.engine.engine import Engine
from trilobit.engine.native import NativeBackend, rotary_frequencies
from trilobit.engine.reading import Logits
from trilobit.engine.request import Request
from trilobit.engine.scheduler import Scheduler
from trilobit.engine.sequence import Sequence
from trilobit.formats.packed.reader import PackedModel
from trilobit.text.tokenizer import Tokenizer

Plan = list[list[tuple[int, int]]]  # steps of (sequence, tokens)
LONG = 1060  # positions in three spans of 512


@pytest.fixture(scope="module")
def model(model_file: Path) -> PackedModel:
    return PackedModel(model_file)


def random_ids(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(2, 331, count).tolist()


# ---- the native decoder -----------------------------------------------------------------------


def make_decoder(
    model: PackedModel, *, threads: int = 1, batch_tokens: int = LONG, kv_dtype: str = "f16"
) -> Any:
    return _native.Decoder(
        model.config.to_dict(),
        model.arrays(),
        rotary_frequencies(model.config),
        threads,
        batch_tokens,
        2 * blocks_for(LONG),
        kv_dtype,
    )


def logits(
    decoder: Any, sequences: list[list[int]], plan: Plan, block_order: list[int] | None = None
) -> list[NDArray[np.float32]]:
    """Logits of all tokens of all sequences, computed in the steps of `plan`."""
    width = max(blocks_for(len(ids)) for ids in sequences)
    order = block_order or list(range(2 * blocks_for(LONG)))
    tables = np.zeros((len(sequences), width), dtype=np.int32)
    used = 0
    for row, ids in enumerate(sequences):
        count = blocks_for(len(ids))
        tables[row, :count] = order[used : used + count]
        used += count
    done = [0] * len(sequences)
    rows: list[list[NDArray[np.float32]]] = [[] for _ in sequences]
    for step in plan:
        ids, positions, owner = [], [], []
        for sequence, count in step:
            ids += sequences[sequence][done[sequence] : done[sequence] + count]
            positions += range(done[sequence], done[sequence] + count)
            owner += [sequence] * count
            done[sequence] += count
        decoder.forward(
            *(np.array(values, dtype=np.int32) for values in (ids, positions, owner)),
            tables,
            np.arange(len(ids), dtype=np.int32),
        )
        for sequence, row in zip(owner, decoder.logits(), strict=True):
            rows[sequence].append(row)
    assert done == [len(ids) for ids in sequences]
    return [np.stack(own) for own in rows]


def alone(decoder: Any, ids: list[int], chunk: int = LONG) -> NDArray[np.float32]:
    sizes = [min(chunk, len(ids) - start) for start in range(0, len(ids), chunk)]
    return logits(decoder, [ids], [[(0, size)] for size in sizes])[0]


@pytest.mark.parametrize("kv_dtype", ["f16", "f32"])
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_logits_do_not_depend_on_chunk_or_threads(
    model: PackedModel, threads: int, kv_dtype: str
) -> None:
    ids = random_ids(0, LONG)
    wanted = alone(make_decoder(model, kv_dtype=kv_dtype), ids)
    decoder = make_decoder(model, threads=threads, kv_dtype=kv_dtype)
    for chunk in (7, 64, 512, LONG):
        assert (alone(decoder, ids, chunk) == wanted).all(), chunk
    # Token by token around the borders of blocks and spans.
    plan: Plan = [[(0, 500)], *[[(0, 1)]] * 30, [(0, 490)], *[[(0, 1)]] * 40]
    assert (logits(decoder, [ids], plan)[0] == wanted).all()


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[list[int]], Plan, list[int]]:
    """Sequences, steps that mix their chunks in any way, and blocks in any order."""
    lengths = draw(st.lists(st.integers(1, 90), min_size=1, max_size=7))
    if draw(st.booleans()):
        lengths.append(draw(st.integers(505, 560)))
    sequences = [random_ids(seed, length) for seed, length in enumerate(lengths)]
    left = dict(enumerate(lengths))
    plan: Plan = []
    while left:
        some = draw(st.lists(st.sampled_from(sorted(left)), min_size=1, unique=True))
        step = [(one, draw(st.integers(1, left[one]))) for one in some]
        plan.append(step)
        left = {one: n - dict(step).get(one, 0) for one, n in left.items()}
        left = {one: n for one, n in left.items() if n}
    return sequences, plan, draw(st.permutations(range(2 * blocks_for(LONG))))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kv_dtype", ["f16", "f32"])
def test_logits_do_not_depend_on_company(model: PackedModel, kv_dtype: str, threads: int) -> None:
    single = make_decoder(model, kv_dtype=kv_dtype)
    decoder = make_decoder(model, threads=threads, kv_dtype=kv_dtype)

    @settings(max_examples=25, deadline=None)
    @given(batches())
    def check(batch: tuple[list[list[int]], Plan, list[int]]) -> None:
        sequences, plan, order = batch
        for ids, got in zip(sequences, logits(decoder, sequences, plan, order), strict=True):
            assert (got == alone(single, ids)).all()

    check()


ISA_PROGRAM = """
import hashlib, json, sys
from trilobit import LLM, SamplingParams, _native
path, ids = sys.argv[1], json.loads(sys.argv[2])
digests = set()
for threads, chunk in ((1, 512), (1, 7), (2, 64), (3, 512), (5, 31)):
    llm = LLM(path, threads=threads, max_batch_tokens=chunk, max_sequences=1)
    digests.add(hashlib.sha256(llm.logits(ids).tobytes()).hexdigest())
greedy = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
prompts = [ids[:n] for n in (1, 5, 40, 300)]
together = [c.token_ids for c in llm.generate(prompts, greedy)]
assert together == [llm.generate(p, greedy).token_ids for p in prompts]
print(json.dumps([_native.isa(), sorted(digests)]))
"""


@pytest.mark.parametrize("isa", _native.isas())
def test_every_instruction_set_keeps_to_one_result(model_file: Path, isa: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ISA_PROGRAM, model_file, json.dumps(random_ids(1, 560))],
        env={**os.environ, "TRILOBIT_ISA": isa},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    used, digests = json.loads(done.stdout)
    assert used == isa
    assert len(digests) == 1


# ---- LLM.logits -------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 64, 512])
def test_llm_logits_do_not_depend_on_max_batch_tokens(
    model: PackedModel, model_file: Path, chunk: int
) -> None:
    ids = random_ids(2, 600 if chunk > 1 else 80)
    llm = LLM(model_file, max_batch_tokens=chunk, max_sequences=1, threads=2)
    assert (llm.logits(ids) == alone(make_decoder(model), ids)).all()


# ---- the engine: cache, preemption, interrupts ------------------------------------------------


def make_engine(
    model: PackedModel,
    *,
    blocks: int = 4 * blocks_for(LONG),
    batch_tokens: int = 512,
    sequences: int = 8,
) -> Engine:
    backend = NativeBackend(
        model.config, model.arrays(), threads=1, blocks=blocks, batch_tokens=batch_tokens
    )
    return Engine(backend, sequences=sequences)


def make_sequence(model: PackedModel, prompt: list[int], count: int, **options: Any) -> Sequence:
    text = model.text.tokenizer
    assert text is not None
    options = {"temperature": 1.5, "repetition_penalty": 1.1, **options}
    request = Request(
        prompt=prompt,
        params=SamplingParams(max_tokens=count, **options),
        seed=len(prompt),
        limit=len(prompt) + count,
    )
    return Sequence(request, tokenizer=Tokenizer(text, "test"))


def make_reading(model: PackedModel, ids: list[int]) -> tuple[Sequence, Logits]:
    reading = Logits(len(ids), model.config.vocab_size)
    request = Request(prompt=ids, params=SamplingParams(), seed=0, limit=len(ids))
    return Sequence(request, reading=reading), reading


def run(engine: Engine, sequences: list[Sequence]) -> list[list[int]]:
    for one in sequences:
        engine.inbox.append(one)
    while engine.step():
        pass
    assert all(one.over for one in sequences)
    return [one.tokens for one in sequences]


def run_each_alone(model: PackedModel, sequences: list[Sequence]) -> list[list[int]]:
    return [run(make_engine(model), [one])[0] for one in sequences]


def test_preemption_under_a_tiny_cache_changes_no_token(
    model: PackedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    preempted: list[Sequence] = []
    preempt = Scheduler.preempt
    monkeypatch.setattr(
        Scheduler, "preempt", lambda self, one: (preempted.append(one), preempt(self, one))
    )
    prompts = [random_ids(seed, length) for seed, length in enumerate((90, 3, 60, 31, 1, 64))]
    engine = make_engine(model, blocks=7, batch_tokens=40, sequences=5)
    got = run(engine, [make_sequence(model, ids, 100) for ids in prompts])
    assert len(preempted) > 3
    assert got == run_each_alone(model, [make_sequence(model, ids, 100) for ids in prompts])
    assert engine.free_blocks == 7


def test_cached_blocks_change_no_token(model: PackedModel) -> None:
    first = random_ids(3, 200)
    engine = make_engine(model, batch_tokens=50)
    run(engine, [make_sequence(model, first, 60)])
    prompts = [first, first[:100], first[:70] + random_ids(4, 90), random_ids(5, 40)]
    again = [make_sequence(model, ids, 60) for ids in prompts]
    got = run(engine, again)
    assert [one.cached_tokens for one in again] == [192, 96, 64, 0]
    assert got == run_each_alone(model, [make_sequence(model, ids, 60) for ids in prompts])


def test_output_is_cached_for_the_next_turn(model: PackedModel) -> None:
    engine = make_engine(model)
    turn = make_sequence(model, random_ids(6, 50), 60)
    [tokens] = run(engine, [turn])
    prompt = tokens + random_ids(7, 5)
    reply = make_sequence(model, prompt, 20)
    [got] = run(engine, [reply])
    assert reply.cached_tokens == (len(tokens) - 1) // BLOCK * BLOCK
    assert got == run_each_alone(model, [make_sequence(model, prompt, 20)])[0]


def test_what_freed_blocks_hold_reaches_nobody(model: PackedModel) -> None:
    """Random arrivals, ends and preemptions, with NaN in every block that nobody has."""
    draw = np.random.default_rng(8)
    engine = make_engine(model, blocks=24, batch_tokens=48, sequences=6)
    backend = engine.backend
    assert isinstance(backend, NativeBackend)
    poison = b"\xff" * len(backend.read_block(0))
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {"top_k": 5, "top_p": 0.9},
        {"frequency_penalty": 0.5, "presence_penalty": 0.2, "logprobs": 2},
        {"logit_bias": {7: 5.0, 9: -100.0}},
        {"stop": ["e"], "min_p": 0.05},
    ]

    def some() -> list[Sequence]:
        each = np.random.default_rng(9)
        return [
            make_sequence(model, random_ids(n, int(each.integers(1, 150))), 70, **kinds[n % 5])
            for n in range(20)
        ]

    several, waiting = some(), some()
    left = list(range(len(several)))
    while engine.has_work or left:
        if left and draw.random() < 0.2:
            engine.inbox.append(several[left.pop()])
            engine.inbox.append(waiting[len(left)])  # which somebody gives up some time
        for one in waiting:
            if not one.over and one.computed and draw.random() < 0.05:
                one.abandoned = True
                engine.inbox.append(one)
        engine.step()
        for block in engine.scheduler.pool._blank:
            backend.write_block(block, poison)
    assert any(one.finish_reason == "aborted" for one in waiting)
    for one, alone in zip(several, some(), strict=True):
        run(make_engine(model), [alone])
        assert (one.tokens, one.text, one.logprobs) == (alone.tokens, alone.text, alone.logprobs)


def test_logits_amid_running_sequences_disturb_nobody(model: PackedModel) -> None:
    engine = make_engine(model, blocks=blocks_for(LONG))
    prompts = [random_ids(seed, 80) for seed in range(4)]
    running = [make_sequence(model, ids, 40) for ids in prompts]
    for one in running:
        engine.inbox.append(one)
    for _ in range(10):
        engine.step()
    ids = random_ids(8, LONG)  # takes every block
    sequence, reading = make_reading(model, ids)
    engine.inbox.append(sequence)
    while not sequence.over:
        engine.step()
    assert (reading.values == alone(make_decoder(model), ids)).all()
    wanted = run_each_alone(model, [make_sequence(model, p, 40) for p in prompts])
    assert run(engine, []) == []
    assert [one.tokens for one in running] == wanted


def test_logits_left_half_read_disturb_nobody(model: PackedModel) -> None:
    engine = make_engine(model, batch_tokens=16)
    sequence = make_sequence(model, random_ids(9, 40), 30)
    engine.inbox.append(sequence)
    engine.step()
    half_read, _ = make_reading(model, random_ids(10, 100))
    engine.inbox.append(half_read)
    engine.step()
    engine.step()
    assert 0 < half_read.computed < 100
    half_read.abandoned = True  # and never the rest
    engine.inbox.append(half_read)
    run(engine, [])
    assert [sequence.tokens] == run_each_alone(model, [make_sequence(model, random_ids(9, 40), 30)])
    assert engine.free_blocks == 4 * blocks_for(LONG)


def interrupted_case(model: PackedModel, stop: list[str]) -> tuple[Engine, list[Sequence]]:
    """Prefill in chunks, a shared prefix, preemption, a stop string, different ends."""
    shared = random_ids(11, 40)
    lengths = ((shared + random_ids(12, 50), 25), (shared, 30), (random_ids(13, 33), 40))
    engine = make_engine(model, blocks=6, batch_tokens=60, sequences=3)
    return engine, [make_sequence(model, ids, n, stop=stop) for ids, n in lengths]


def test_a_step_may_be_interrupted_at_any_line(model: PackedModel) -> None:
    engine, sequences = interrupted_case(model, [])
    run(engine, sequences)
    stop = [sequences[0].text[20:22]]
    engine, sequences = interrupted_case(model, stop)
    for one in sequences:
        engine.inbox.append(one)
    with interrupt_at(-1) as lines:
        while engine.step():
            pass
    wanted = [(one.tokens, one.text, one.finish_reason) for one in sequences]
    assert {one.finish_reason for one in sequences} == {"stop", "length"}
    # All lines would take minutes: an odd stride meets every line of the loops sooner or later.
    for line in range(1, lines(), 61):
        engine, sequences = interrupted_case(model, stop)
        for one in sequences:
            engine.inbox.append(one)
        shown = [""] * len(sequences)
        with suppress(KeyboardInterrupt), interrupt_at(line) as reached:
            while engine.step():
                shown = [one.text for one in sequences]
        assert reached() == line
        run(engine, [])
        assert [(one.tokens, one.text, one.finish_reason) for one in sequences] == wanted, line
        # What a reader has taken is not taken back.
        assert all(one.text.startswith(text) for one, text in zip(sequences, shown, strict=True))
        assert engine.free_blocks == 6


def test_adding_and_dropping_may_be_interrupted(model: PackedModel) -> None:
    wanted = run_each_alone(model, [make_sequence(model, random_ids(14, 40), 10)])
    for line in range(1, 60):
        engine = make_engine(model, blocks=6, batch_tokens=60, sequences=2)
        stays, goes = (make_sequence(model, random_ids(14, 40), 10) for _ in range(2))
        engine.inbox.append(stays)
        engine.step()
        try:
            with interrupt_at(line):
                engine.inbox.append(goes)
                engine.step()
                goes.abandoned = True
                engine.inbox.append(goes)
                engine.take_in()
        except KeyboardInterrupt:
            goes.abandoned = True
            engine.inbox.append(goes)
        assert run(engine, []) == []
        assert [stays.tokens] == wanted
        assert engine.free_blocks == 6


def test_a_failed_step_ends_its_sequences_and_the_next_ones_run(
    model: PackedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(model)
    victims = [make_sequence(model, random_ids(seed, 40), 10) for seed in (15, 16)]
    for one in victims:
        engine.inbox.append(one)
    engine.step()

    def broken(*_: object) -> None:
        raise MemoryError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine.backend, "forward", broken)
        with pytest.raises(MemoryError):
            engine.step()
    assert all(one.over and isinstance(one.error, MemoryError) for one in victims)
    after = [make_sequence(model, random_ids(17, 40), 10)]
    assert run(engine, after) == run_each_alone(
        model, [make_sequence(model, random_ids(17, 40), 10)]
    )
    assert engine.free_blocks == 4 * blocks_for(LONG)


def test_a_tokenizer_that_fails_ends_only_its_own_sequence(
    model: PackedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(model)
    good, bad = (make_sequence(model, random_ids(18, 30), 10) for _ in range(2))

    def fail(_: int) -> str:
        raise ValueError("no such token")

    monkeypatch.setattr(bad._text, "add", fail)
    run(engine, [good, bad])
    assert isinstance(bad.error, ValueError)
    assert good.error is None
    assert good.finish_reason == "length"
    assert engine.free_blocks == 4 * blocks_for(LONG)
