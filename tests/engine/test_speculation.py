"""Speculation changes when tokens come, never which: every text is compared with one without it.

Most runs here are eager: every guess is tried as if it cost nothing, so that right and wrong drafts
meet every sampler, every border of a block and every way a text can end.
"""

from __future__ import annotations

import itertools
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_config
from hypothesis import given
from hypothesis import strategies as st
from interrupt import interrupt_at

from trilobit import LLM, RequestError, SamplingParams, _native
from trilobit.engine.blocks import BLOCK, ROOT, blocks_for, key_of
from trilobit.engine.engine import Engine
from trilobit.engine.event import Completion
from trilobit.engine.native import NativeBackend
from trilobit.engine.request import Request
from trilobit.engine.scheduler import Scheduler
from trilobit.engine.sequence import Sequence
from trilobit.engine.speculation import drafts as drafts_module
from trilobit.engine.speculation import lookup as lookup_module
from trilobit.engine.speculation.drafts import StepCost, draft_lengths
from trilobit.engine.speculation.lookup import Lookup
from trilobit.formats.packed.reader import PackedModel
from trilobit.synth import synth_packed
from trilobit.text.tokenizer import Tokenizer

STORY = (
    "Tom and Lily went to the park. They saw a big dog with a red ball. The dog ran to them and "
    "gave them the ball. They were very happy and played all day. "
)
PROMPTS = (
    "Once upon a time",
    STORY * 2,
    f"{STORY}\n\n{STORY[:50]}",
    "a b c d e f g a b c d e f g a b c d",
    "The the the the the",
    "x",
)
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.6},
    "hot": {"temperature": 1.3},
    "top-k": {"temperature": 0.8, "top_k": 5},
    "top-p": {"temperature": 0.8, "top_p": 0.8},
    "min-p": {"temperature": 0.9, "min_p": 0.2},
    "all filters": {"temperature": 0.9, "top_k": 30, "top_p": 0.9, "min_p": 0.05},
    "repetition penalty": {"temperature": 0.0, "repetition_penalty": 1.05},
    "penalties": {"temperature": 0.5, "frequency_penalty": 0.1, "presence_penalty": 0.2},
    "bias": {"temperature": 0.7, "logit_bias": {15: 3.0, 40: -float("inf")}},
}


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try every guess, whatever it costs and however often the last ones were wrong."""
    monkeypatch.setattr(StepCost, "share", lambda self, sequences: 0.0)
    monkeypatch.setattr(drafts_module, "_MOST_UNSEEN", 0)


def told(completion: Completion) -> tuple[object, ...]:
    """All of a completion that does not depend on the clock or on guesses."""
    return (
        completion.text,
        completion.token_ids,
        completion.prompt_tokens,
        completion.finish_reason,
    )


# ---- guesses ----------------------------------------------------------------------------------


class Scan:
    """The definition of a lookup, by going through the whole text each time."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.source: int | None = None
        self.agreed = 0

    def append(self, token: int) -> None:
        if self.source is not None and self.tokens[self.source] == token:
            self.source, self.agreed = self.source + 1, self.agreed + 1
            self.tokens.append(token)
            return
        self.tokens.append(token)
        self.source = None
        for size in (4, 2):
            last = self.tokens[-size:]
            for end in range(len(self.tokens) - 1, size - 1, -1):
                if self.tokens[end - size : end] == last:
                    self.source, self.agreed = end, size
                    return

    def guess(self, count: int) -> list[int]:
        if self.source is None:
            return []
        text = list(self.tokens)
        for place in range(self.source, self.source + count):
            text.append(text[place])
        return text[len(self.tokens) :]


@given(
    st.lists(st.integers(0, 3) | st.integers(0, 1 << 30), max_size=120),
    st.lists(st.integers(1, 9), min_size=1),
)
def test_guesses_are_those_of_a_scan(text: list[int], pieces: list[int]) -> None:
    scan, tokens = Scan(), list[int]()
    lookup = Lookup(tokens)
    left = list(text)
    for size in itertools.cycle(pieces):
        for token in left[:size]:
            scan.append(token)
        tokens += left[:size]
        del left[:size]
        lookup.follow()
        assert lookup.guess(11) == scan.guess(11)
        chances = lookup.chances(11)
        assert len(chances) == len(scan.guess(11))
        assert all(1 > a >= b > 0 for a, b in itertools.pairwise([*chances, 1e-9]))
        if not left:
            break


def test_an_index_forgets_what_is_long_past_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = 50
    monkeypatch.setattr(lookup_module, "_KEPT", kept)
    tokens: list[int] = []
    lookup = Lookup(tokens)
    for token in range(20 * kept):
        tokens.append(token)
        lookup.follow()
        assert len(lookup._recent) + len(lookup._older) <= 4 * kept + 4
    for back, found in ((kept - 8, True), (2 * kept + 8, False)):
        # As far back when the last of the four is known
        place = len(tokens) + 4 - back
        tokens += tokens[place - 4 : place]
        lookup.follow()
        assert lookup.guess(1) == ([tokens[place]] if found else [])
        tokens += range(10_000 + back, 10_000 + back + 4)  # nothing that was there before
        lookup.follow()


def test_chances_follow_what_was_right() -> None:
    rng = np.random.default_rng(0)
    again = rng.integers(0, 1 << 20, 40).tolist()
    often = Lookup(again * 6)
    often.follow()
    assert often.chances(1)[0] > 0.95
    # A pair that is followed by something else each time
    never = Lookup([token for i in range(100) for token in (7, 8, 1000 + i)] + [7, 8])
    never.follow()
    assert never.guess(1)
    assert never.chances(1)[0] < 0.01


chance_lists = st.lists(
    st.lists(st.floats(0.01, 1), min_size=1, max_size=5).map(lambda c: np.cumprod(c).tolist()),
    min_size=1,
    max_size=3,
)


@given(chance_lists, st.floats(0.0, 1.0), st.integers(1, 7), st.integers(0, 3))
def test_drafts_give_the_most_tokens_a_second_that_can_be_expected(
    lists: list[list[float]], share: float, room: int, others: int
) -> None:
    chances = dict(enumerate(lists))
    sequences = len(lists) + others

    def rate(lengths: tuple[int, ...]) -> float:
        gains = sum(sum(c[:n]) for c, n in zip(lists, lengths, strict=True))
        return (sequences + gains) / (1 + share * sum(lengths))

    choices = [
        lengths
        for lengths in itertools.product(*(range(len(c) + 1) for c in lists))
        if sum(lengths) <= room
    ]
    best = max(map(rate, choices))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drafts_module, "_WORTH", 1.0)
        lengths = draft_lengths(chances, sequences, room, share)
    assert rate(tuple(lengths.values())) == pytest.approx(best, rel=1e-12)


def test_costs_are_learned_and_a_pause_is_not() -> None:
    cost = StepCost()
    for _ in range(100):
        cost.observe(1, 0, 0.010)
        cost.observe(1, 4, 0.014)
    assert cost.share(1) == pytest.approx(0.1, abs=0.02)
    for _ in range(5):
        cost.observe(1, 0, 5.0)
    cost.observe(1, 4, 5.0)
    for _ in range(100):
        cost.observe(1, 0, 0.010)
        cost.observe(1, 4, 0.014)
    assert cost.share(1) == pytest.approx(0.1, abs=0.02)
    assert cost.share(3) == StepCost().share(3)


# ---- the same texts ---------------------------------------------------------------------------


MODELS = ("bundled, screened", "bundled, full", "random")
CASES = [
    *itertools.product(("bundled, screened", "random"), SAMPLINGS),
    *itertools.product(("bundled, full",), ("greedy", "temperature", "top-k", "penalties")),
]
# Random weights repeat themselves when few tokens are left to choose from.
FEW = dict.fromkeys(range(10, 15), 30.0)


@pytest.fixture(scope="module")
def pairs(model_file: Path) -> dict[str, tuple[LLM, LLM]]:
    """Each with speculation, and without it and with the full head."""
    bundled, random = LLM(speculation=False, head="full"), LLM(model_file, speculation=False)
    fast = (
        LLM(head="screened", threads=2, speculation=True),
        LLM(head="full", speculation=True),
        LLM(model_file, threads=2, speculation=True),
    )
    return dict(zip(MODELS, zip(fast, (bundled, bundled, random), strict=True), strict=True))


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_texts_are_the_same(pairs: dict[str, tuple[LLM, LLM]], name: str, kind: str) -> None:
    fast, plain = pairs[name]
    sampling = SAMPLINGS[kind]
    if name == "random":
        sampling = {**sampling, "logit_bias": {**FEW, **sampling.get("logit_bias", {})}}
    params = SamplingParams(max_tokens=32, seed=11, ignore_eos=True, **sampling)
    got = [fast.generate(prompt, params) for prompt in PROMPTS]
    assert [*map(told, got)] == [told(plain.generate(prompt, params)) for prompt in PROMPTS]
    assert 0 < sum(one.accepted_tokens for one in got) < sum(one.drafted_tokens for one in got)


@pytest.mark.usefixtures("eager")
def test_texts_of_sliding_layers_are_the_same(tmp_path: Path) -> None:
    """Drafts reach over the border of a window, and wrong ones lie where it will begin."""
    window = {"layer_types": ("sliding_attention", "full_attention"), "sliding_window": 40}
    synth_packed(tiny_config(**window), tmp_path / "sliding.trilobit", seed=1)
    fast, plain = (LLM(tmp_path / "sliding.trilobit", speculation=on) for on in (True, False))
    for sampling in (SAMPLINGS["greedy"], {**SAMPLINGS["hot"], "logit_bias": FEW}):
        params = SamplingParams(max_tokens=150, ignore_eos=True, seed=1, **sampling)
        got = fast.generate(LOOP, params)
        assert told(got) == told(plain.generate(LOOP, params))
        assert 0 < got.accepted_tokens < got.drafted_tokens


@pytest.mark.usefixtures("eager")
def test_company_changes_no_text(pairs: dict[str, tuple[LLM, LLM]]) -> None:
    fast, plain = pairs["bundled, screened"]
    for name in ("temperature", "top-p", "penalties"):
        params = SamplingParams(max_tokens=40, seed=6, ignore_eos=True, **SAMPLINGS[name])
        for several in (PROMPTS[1:3], PROMPTS * 2):  # room for drafts, none
            got, wanted = (llm.generate(several, params) for llm in (fast, plain))
            assert [*map(told, got)] == [*map(told, wanted)]
            assert not any(one.drafted_tokens for one in wanted)
            assert (sum(one.accepted_tokens for one in got) > 0) == (len(several) < 8)


# ---- ends -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short(model_file: Path) -> tuple[LLM, LLM]:
    """A random model with speculation and without, and a context that is soon full."""
    return LLM(model_file, context=80, speculation=True), LLM(
        model_file, context=80, speculation=False
    )


LOOP = [20, 21, 22, 23, 24] * 6  # the random model's greedy answer repeats itself in parts


def greedy(count: int, **options: Any) -> SamplingParams:
    return SamplingParams(max_tokens=count, temperature=0, ignore_eos=True, **options)


@pytest.mark.usefixtures("eager")
def test_a_text_may_end_within_a_draft(short: tuple[LLM, LLM]) -> None:
    fast, plain = short
    whole = plain.generate(LOOP, greedy(99))
    assert (len(whole.token_ids), whole.finish_reason) == (50, "length")  # the context is full
    accepted = 0
    for count in (*range(1, 30), 49, 50, 51, 60):
        got = fast.generate(LOOP, greedy(count))
        assert told(got) == told(plain.generate(LOOP, greedy(count)))
        assert got.token_ids == whole.token_ids[:count]
        assert got.accepted_tokens < max(count, 2)
        accepted += got.accepted_tokens
    assert accepted > 0
    for stop in sorted(set(whole.token_ids))[::2]:
        params = greedy(99, stop_token_ids=[stop])
        got = fast.generate(LOOP, params)
        assert told(got) == told(plain.generate(LOOP, params))
        assert got.token_ids == whole.token_ids[: whole.token_ids.index(stop) + 1]


@pytest.mark.usefixtures("eager")
def test_stop_strings_end_the_text_at_the_same_place(pairs: dict[str, tuple[LLM, LLM]]) -> None:
    fast, plain = pairs["random"]
    text = plain.generate(LOOP, greedy(80)).text
    accepted = []
    for start in range(0, len(text) - 5, 5):
        params = greedy(80, stop=[text[start : start + 5], "never"])
        got = fast.generate(LOOP, params)
        assert told(got) == told(plain.generate(LOOP, params))
        assert got.finish_reason == "stop"
        accepted.append(got.accepted_tokens)
    assert len(set(accepted)) > 3  # texts end in different places of a draft


@pytest.mark.usefixtures("eager")
def test_a_stream_gives_the_same_text_in_its_order(pairs: dict[str, tuple[LLM, LLM]]) -> None:
    fast, plain = pairs["bundled, screened"]
    params = greedy(80)
    wanted = plain.generate(PROMPTS[3], params)
    stream = fast.stream(PROMPTS[3], params)
    text = ""
    for piece in stream:
        assert piece
        text += piece
        assert wanted.text.startswith(text)
        assert stream.completion.text == text
    assert told(stream.completion) == told(wanted)
    assert stream.completion.accepted_tokens > 0
    # Two readers in turn, one of which leaves
    first, second = fast.stream(PROMPTS[3], params), fast.stream(PROMPTS[0], params)
    start = next(first)
    taken = next(second) + next(second)
    second.close()
    assert second.completion.finish_reason == "aborted"
    assert second.completion.text.startswith(taken)
    assert start + "".join(first) == wanted.text
    engine = fast._worker.engine
    assert engine.free_blocks == engine.backend.blocks


# ---- the engine: blocks, cache, preemption, interrupts ----------------------------------------


@pytest.fixture(scope="module")
def model(model_file: Path) -> PackedModel:
    return PackedModel(model_file)


def make_engine(model: PackedModel, *, blocks: int = 40, speculation: bool = True) -> Engine:
    backend = NativeBackend(model.config, model.arrays(), threads=1, blocks=blocks, batch_tokens=40)
    return Engine(backend, sequences=3, speculation=speculation)


def make_sequence(model: PackedModel, prompt: list[int], count: int, **options: Any) -> Sequence:
    text = model.text.tokenizer
    assert text is not None
    options = {"temperature": 0.3, "logit_bias": FEW, "repetition_penalty": 1.1, **options}
    request = Request(
        prompt=prompt,
        params=SamplingParams(max_tokens=count, **options),
        seed=len(prompt),
        limit=len(prompt) + count,
    )
    return Sequence(request, tokenizer=Tokenizer(text, "test"))


def check_blocks(engine: Engine) -> None:
    """Between steps, blocks hold what was computed and are known by tokens that were accepted."""
    pool = engine.scheduler.pool
    for one in engine.scheduler.running:
        assert len(one.blocks) == blocks_for(one.computed)
        assert one.computed <= len(one.tokens)
        key = ROOT
        for number, block in enumerate(one.blocks):
            tokens = one.tokens[number * BLOCK : (number + 1) * BLOCK]
            key = key_of(key, tokens)
            full = (number + 1) * BLOCK <= one.computed
            assert pool._key[block] in ((key, None) if full else (None,))


def run(engine: Engine, sequences: list[Sequence]) -> list[list[int]]:
    for one in sequences:
        engine.inbox.append(one)
    while engine.step():
        check_blocks(engine)
    assert all(one.over for one in sequences)
    assert engine.free_blocks == engine.backend.blocks
    return [one.tokens for one in sequences]


def run_plainly(model: PackedModel, sequences: list[Sequence]) -> list[list[int]]:
    return [run(make_engine(model, speculation=False), [one])[0] for one in sequences]


def prompts_of(*lengths: int) -> list[list[int]]:
    return [np.random.default_rng(n).integers(10, 15, n).tolist() for n in lengths]


@pytest.mark.usefixtures("eager")
def test_preemption_chunks_and_company_change_no_token(
    model: PackedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    preempted: list[Sequence] = []
    preempt = Scheduler.preempt
    monkeypatch.setattr(
        Scheduler, "preempt", lambda self, one: (preempted.append(one), preempt(self, one))
    )
    prompts = prompts_of(90, 3, 60, 31, 1, 64)
    engine = make_engine(model, blocks=7)
    sequences = [make_sequence(model, ids, 100) for ids in prompts]
    got = run(engine, sequences)
    assert len(preempted) > 3
    assert all(one.accepted > 20 for one in sequences)
    assert got == run_plainly(model, [make_sequence(model, ids, 100) for ids in prompts])


@pytest.mark.usefixtures("eager")
def test_drafts_take_no_block_from_anybody(model: PackedModel) -> None:
    """A cache that the tokens alone fill to the last position."""
    [prompt] = prompts_of(30)
    engine = make_engine(model, blocks=3)
    sequence = make_sequence(model, prompt, 3 * BLOCK - len(prompt))
    got = run(engine, [sequence])
    assert sequence.accepted > 10
    assert got == run_plainly(model, [make_sequence(model, prompt, 3 * BLOCK - len(prompt))])


@pytest.mark.usefixtures("eager")
def test_what_was_computed_beside_wrong_guesses_serves_the_next_turn(model: PackedModel) -> None:
    engine = make_engine(model)
    turn = make_sequence(model, prompts_of(50)[0], 80)
    [tokens] = run(engine, [turn])
    assert 0 < turn.accepted < turn.drafted
    prompt = [*tokens, 300, 301]
    reply = make_sequence(model, prompt, 30)
    [got] = run(engine, [reply])
    assert reply.cached_tokens == (len(tokens) - 1) // BLOCK * BLOCK
    assert got == run_plainly(model, [make_sequence(model, prompt, 30)])[0]


@pytest.mark.usefixtures("eager")
def test_a_step_with_drafts_may_be_interrupted_at_any_line(model: PackedModel) -> None:
    def start(stop: list[str]) -> tuple[Engine, list[Sequence]]:
        engine = make_engine(model, blocks=4)
        sequences = [
            make_sequence(model, ids, count, stop=stop)
            for ids, count in zip(prompts_of(40, 20), (25, 30), strict=True)
        ]
        for one in sequences:
            engine.inbox.append(one)
        return engine, sequences

    _, [_, probe] = engine, sequences = start([])
    run(engine, [])
    stop = [probe.text[8:11]]
    engine, sequences = start(stop)
    with interrupt_at(-1) as lines:
        while engine.step():
            pass
    wanted = [(one.tokens, one.text, one.finish_reason) for one in sequences]
    assert sum(one.accepted for one in sequences) > 5
    for line in range(1, lines(), 31):
        engine, sequences = start(stop)
        shown = [""] * len(sequences)
        with suppress(KeyboardInterrupt), interrupt_at(line):
            while engine.step():
                shown = [one.text for one in sequences]
        run(engine, [])
        assert [(one.tokens, one.text, one.finish_reason) for one in sequences] == wanted, line
        assert all(one.text.startswith(text) for one, text in zip(sequences, shown, strict=True))


def test_poor_guesses_are_given_up(model: PackedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepCost, "observe", lambda *_: None)  # no clock in a test
    monkeypatch.setattr(drafts_module, "_MOST_UNSEEN", 0)
    wild, tame = (
        {"temperature": 5.0, "logit_bias": {}},
        {"temperature": 0.0, "logit_bias": {11: 90.0}},
    )
    few = make_sequence(model, prompts_of(60)[0], 200, **wild)
    many = make_sequence(model, prompts_of(60)[0], 200, **tame)
    for one in (few, many):
        run(make_engine(model), [one])
    assert few.drafted < 10
    assert many.accepted > 120
    assert many.drafted == many.accepted


def test_short_steps_are_not_all_spent_on_looking(
    model: PackedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    follow = Lookup.follow
    monkeypatch.setattr(Lookup, "follow", lambda self: (looks.append(1), follow(self))[1])
    monkeypatch.setattr(drafts_module, "_LOOK_S", 1e6)
    wild = {"temperature": 5.0, "logit_bias": {}}
    run(make_engine(model), [make_sequence(model, prompts_of(30)[0], 91, **wild)])
    assert len(looks) == 10  # of 90 steps that decode
    looks.clear()
    monkeypatch.setattr(drafts_module, "_LOOK_S", 0.0)
    run(make_engine(model), [make_sequence(model, prompts_of(30)[0], 91, **wild)])
    assert len(looks) == 90


def test_the_switch_is_a_switch(model_file: Path) -> None:
    with pytest.raises(RequestError, match="speculation is 3; expected True or False"):
        LLM(model_file, speculation=3)  # type: ignore[arg-type]


def test_drafts_that_do_not_fit_the_outputs_are_refused(model: PackedModel) -> None:
    decoder = make_engine(model).backend.decoder
    ids = np.arange(3, dtype=np.int32)
    decoder.forward(ids, ids, np.zeros_like(ids), np.zeros((1, 1), dtype=np.int32), ids)
    sampler = _native.Sampler(temperature=0.0)
    with pytest.raises(ValueError, match="one draft for each sampler"):
        decoder.verify([sampler], [[1], [2]])
    with pytest.raises(ValueError, match="an output row for each"):
        decoder.verify([sampler], [[1, 2, 3]])
    [chosen] = decoder.verify([sampler], [[1, 2]])
    assert 1 <= len(chosen) <= 3
