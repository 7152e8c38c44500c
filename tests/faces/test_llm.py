"""`LLM` as its users meet it: what calls return and refuse, texts, threads, interrupts, exits."""

from __future__ import annotations

import gc
import importlib.util
import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trilobit import (
    LLM,
    AsyncLLM,
    ContextOverflow,
    Embedder,
    FormatError,
    RequestError,
    SamplingParams,
)
from trilobit.bundled import DEFAULT, bundled_models
from trilobit.engine.blocks import block_bytes
from trilobit.engine.event import Completion
from trilobit.engine.sequence import Sequence
from trilobit.formats.packed.reader import PackedModel
from trilobit.text.stops import StopStrings

REPOSITORY = Path(__file__).parents[2]
PROMPT = "Once upon a time there was a dog"
GREEDY = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
# Hot enough to make every token uncertain: the least change of a logit or a seed would show.
SEEDED = SamplingParams(temperature=2.0, max_tokens=30, ignore_eos=True, seed=7)


@pytest.fixture(scope="module")
def llm(model_file: Path) -> LLM:
    return LLM(model_file, threads=1)


def free_blocks(llm: LLM) -> int:
    return llm._worker.engine.free_blocks


def ids_of(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(2, 331, count).tolist()


# ---- what comes back --------------------------------------------------------------------------


def test_one_prompt_gives_one_completion_and_several_give_a_list(llm: LLM) -> None:
    ids = llm.encode(PROMPT)
    wanted = llm.generate(PROMPT, GREEDY)
    one: list[Any] = [ids, tuple(ids), np.array(ids), np.array(ids, dtype=np.uint16)]
    for prompt in [*one, [np.int32(i) for i in ids]]:
        completion = llm.generate(prompt, GREEDY)
        assert isinstance(completion, Completion)
        assert completion.token_ids == wanted.token_ids
    several: list[Any] = [[PROMPT], (PROMPT, PROMPT), [ids, PROMPT, np.array(ids)], np.array([ids])]
    for prompts in several:
        completions = llm.generate(prompts, GREEDY)
        assert isinstance(completions, list)
        assert [c.token_ids for c in completions] == [wanted.token_ids] * len(prompts)
    assert llm.generate([], GREEDY) == []


def test_a_completion_tells_what_happened(llm: LLM) -> None:
    prompt = ids_of(1, 70)
    first, again = llm.generate(prompt, SEEDED), llm.generate(prompt, SEEDED)
    assert first.text == again.text
    assert first.token_ids == again.token_ids
    assert llm.tokenizer is not None
    assert first.text == llm.tokenizer.decode(first.token_ids)
    assert (first.prompt_tokens, len(first.token_ids), first.finish_reason) == (70, 30, "length")
    assert (first.cached_tokens, again.cached_tokens) == (0, 64)
    assert first.prefill_tokens_per_s > 0
    assert first.decode_tokens_per_s > 0
    assert llm.generate(prompt, SamplingParams(max_tokens=1)).decode_tokens_per_s == 0


def test_a_stream_gives_the_same_text_in_pieces(llm: LLM) -> None:
    wanted = llm.generate(PROMPT, SEEDED)
    stream = llm.stream(PROMPT, SEEDED)
    pieces = list(stream)
    assert len(pieces) > 10
    assert all(pieces)
    assert "".join(pieces) == wanted.text == stream.completion.text
    assert stream.completion.token_ids == wanted.token_ids
    assert next(stream, None) is None


def test_chat_without_a_template_continues_the_contents(llm: LLM) -> None:
    assert not llm.has_chat_template
    messages = [{"role": "user", "content": "One day"}, {"role": "assistant", "content": "a dog"}]
    wanted = llm.generate("One day\na dog", SEEDED)
    assert llm.chat(messages, SEEDED).text == wanted.text
    assert "".join(llm.stream_chat(messages, SEEDED)) == wanted.text


def test_logits_are_float32_by_token_and_vocabulary(llm: LLM) -> None:
    logits = llm.logits(llm.encode(PROMPT))
    assert logits.shape == (len(llm.encode(PROMPT)), llm.config.vocab_size)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    assert (llm.logits(np.array([5]))[0] == llm.logits([5, 9])[0]).all()


def test_greedy_takes_the_largest_logit_of_every_step(llm: LLM) -> None:
    prompt = ids_of(2, 20)
    output = list(llm.generate(prompt, GREEDY).token_ids)
    logits = llm.logits(prompt + output)
    assert output == logits[len(prompt) - 1 : -1].argmax(axis=1).tolist()
    top_k = SamplingParams(temperature=5, top_k=1, max_tokens=30, ignore_eos=True, seed=3)
    assert list(llm.generate(prompt, top_k).token_ids) == output
    tiny = SamplingParams(temperature=1e-30, max_tokens=30, ignore_eos=True)
    assert list(llm.generate(prompt, tiny).token_ids) == output


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def test_a_score_is_the_log_probability_of_every_token(llm: LLM) -> None:
    ids = llm.encode(PROMPT)
    score = llm.score(PROMPT)
    wanted = log_softmax(llm.logits(ids))[np.arange(len(ids) - 1), ids[1:]]
    assert score.token_ids == tuple(ids)
    assert score.logprobs.dtype == np.float32
    # Exponentials and results in float32: a few roundings of 2^-24 of numbers below 10.
    assert score.logprobs == pytest.approx(wanted, abs=1e-5)
    assert score.total == pytest.approx(wanted.sum(), abs=1e-5 * len(ids))
    assert score.perplexity == pytest.approx(math.exp(-wanted.mean()), rel=1e-4)
    assert math.isnan(llm.score([3]).perplexity)


def test_scores_do_not_depend_on_the_chunk(llm: LLM, model_file: Path) -> None:
    ids = ids_of(8, 33)  # of 32, one token is left to a chunk of its own
    wanted = llm.score(ids).logprobs
    for chunk in (1, 7, 32, 33):
        other = LLM(model_file, threads=1, max_batch_tokens=chunk, max_sequences=1)
        assert (other.score(ids).logprobs == wanted).all()


def test_first_tokens_follow_the_softmax_of_the_logits(llm: LLM) -> None:
    prompt = ids_of(3, 10)
    count = 3000
    streams = [
        llm.stream(prompt, SamplingParams(temperature=0.5, max_tokens=1, seed=seed))
        for seed in range(count)
    ]
    for stream in streams:
        list(stream)
    drawn = [stream.completion.token_ids[0] for stream in streams]
    p = np.exp(log_softmax(llm.logits(prompt)[-1:] / np.float32(0.5)))[0]
    often = p * count >= 5  # the usual condition of the chi-square test: pool the others
    counts = np.bincount(drawn, minlength=len(p))
    observed = np.append(counts[often], counts[~often].sum())
    wanted = np.append(p[often], p[~often].sum()) * count
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    freedom = len(wanted) - 1
    assert freedom > 10
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)  # five standard deviations


def test_a_seed_gives_its_text_in_any_company(llm: LLM, model_file: Path) -> None:
    prompts = [ids_of(seed, length) for seed, length in enumerate((1, 40, 5, 100, 33))]
    wanted = [llm.generate(prompt, SEEDED).token_ids for prompt in prompts]
    assert [c.token_ids for c in llm.generate(prompts, SEEDED)] == wanted
    for options in (
        {"max_batch_tokens": 3, "max_sequences": 3},
        {"max_sequences": 1, "threads": 3},
        {"context": 140, "kv_memory_mb": 1, "max_batch_tokens": 7, "max_sequences": 2},
    ):
        other = LLM(model_file, **{"threads": 1, **options})
        assert [c.token_ids for c in other.generate(prompts, SEEDED)] == wanted


def test_without_a_seed_texts_differ(llm: LLM) -> None:
    hot = SamplingParams(temperature=2, max_tokens=30, ignore_eos=True)
    assert len({c.token_ids for c in llm.generate([PROMPT] * 4, hot)}) == 4


def test_requests_beyond_what_runs_at_once_are_served_in_turn(model_file: Path) -> None:
    llm = LLM(model_file, threads=1, max_sequences=2, context=100)
    prompts = [ids_of(seed, 60) for seed in range(9)]
    got = [c.token_ids for c in llm.generate(prompts, SEEDED)]
    assert got == [llm.generate(prompt, SEEDED).token_ids for prompt in prompts]


# ---- where an output ends ---------------------------------------------------------------------


def test_output_ends_at_max_tokens_or_the_context(model_file: Path) -> None:
    llm = LLM(model_file, threads=1, context=50)
    endless = SamplingParams(temperature=0, max_tokens=1000, ignore_eos=True)
    for length in (1, 30, 49):
        completion = llm.generate(ids_of(4, length), endless)
        assert length + len(completion.token_ids) == 50
        assert completion.finish_reason == "length"
    assert len(llm.generate([5], SamplingParams(max_tokens=3, ignore_eos=True)).token_ids) == 3


def test_an_end_token_ends_the_output_and_gives_no_text(llm: LLM) -> None:
    wanted = llm.generate(PROMPT, GREEDY)
    end = wanted.token_ids[10]
    first = wanted.token_ids.index(end)
    stopped = llm.generate(
        PROMPT, SamplingParams(temperature=0, ignore_eos=True, stop_token_ids=[end])
    )
    assert stopped.token_ids == wanted.token_ids[: first + 1]
    assert stopped.finish_reason == "stop"
    assert llm.tokenizer is not None
    assert stopped.text == llm.tokenizer.decode(wanted.token_ids[:first])


def test_the_models_end_token_ends_unless_ignored(llm: LLM) -> None:
    [eos] = llm.config.eos_token_ids
    force = {eos: 1e9}
    ended = llm.generate(PROMPT, SamplingParams(logit_bias=force, max_tokens=5))
    assert (ended.token_ids, ended.text, ended.finish_reason) == ((eos,), "", "stop")
    ignored = llm.generate(PROMPT, SamplingParams(logit_bias=force, max_tokens=5, ignore_eos=True))
    assert (ignored.token_ids, ignored.finish_reason) == ((eos,) * 5, "length")


def test_a_stop_string_across_tokens_ends_the_output_before_it(llm: LLM) -> None:
    prompt = llm.encode(PROMPT)
    assert llm.tokenizer is not None
    full = llm.generate(prompt, SEEDED)
    borders = [len(llm.tokenizer.decode(full.token_ids[:n])) for n in range(30)]
    for start in range(2, len(full.text) - 4, 3):
        stop = full.text[start : start + 4]
        if "\ufffd" in stop:
            continue
        found = full.text.index(stop)
        params = SamplingParams(temperature=2.0, max_tokens=30, ignore_eos=True, seed=7, stop=stop)
        stream = llm.stream(prompt, params)
        shown = ""
        for piece in stream:
            shown += piece
            # Never more than what will stay.
            assert full.text[:found].startswith(shown)
        assert shown == stream.completion.text == full.text[:found]
        assert stream.completion.finish_reason == "stop"
    assert any(border not in (0, len(full.text)) for border in borders)


texts = st.text("abc", max_size=12)


@settings(deadline=None, max_examples=400)
@given(st.lists(texts, max_size=8), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_stop_strings_cut_alike_however_the_text_is_cut(
    pieces: list[str], stops: list[str]
) -> None:
    whole = "".join(pieces)
    # The definition: the first end of any stop string; of those that end there the longest.
    ends = [
        (end, -len(stop))
        for stop in stops
        for end in range(len(stop), len(whole) + 1)
        if whole[:end].endswith(stop)
    ]
    wanted = whole[: min(ends)[0] + min(ends)[1]] if ends else whole
    for cut in (pieces, list(whole), [whole]):
        stream = StopStrings(stops)
        shown = ""
        for piece in cut:
            shown += stream.add(piece)
            assert wanted.startswith(shown)
            if stream.stopped:
                break
        if not stream.stopped:
            shown += stream.finish()
        assert shown == wanted
        assert stream.stopped == bool(ends)


def test_bias_forbids_and_forces(llm: LLM) -> None:
    often = set(llm.generate(PROMPT, SEEDED).token_ids)
    forbid = SamplingParams(
        temperature=2, max_tokens=60, seed=7, ignore_eos=True, logit_bias=dict.fromkeys(often, -1e9)
    )
    assert often.isdisjoint(llm.generate(PROMPT, forbid).token_ids)
    force = SamplingParams(temperature=2, max_tokens=4, logit_bias={77: 1e9})
    assert llm.generate(PROMPT, force).token_ids == (77,) * 4


def damaged(model_file: Path, path: Path, tensor: str, value: float) -> Path:
    """The same model with every number of a float32 tensor replaced."""
    data = bytearray(model_file.read_bytes())
    info = PackedModel(model_file).file.info(tensor)
    assert info.dtype == "F32"
    data[info.begin : info.end] = np.full(info.size_bytes // 4, value, dtype="<f4").tobytes()
    path.write_bytes(data)
    return path


SCALE = "model.layers.1.mlp.down_proj.weight_scale"
GREEDY_AND_DRAWN = [SamplingParams(temperature=0), SamplingParams(temperature=1.0),
                    SamplingParams(top_p=0.5), SamplingParams(top_k=3)]  # fmt: skip


@pytest.mark.parametrize("params", GREEDY_AND_DRAWN, ids=str)
@pytest.mark.parametrize("speculation", [False, True])
def test_logits_that_are_no_numbers_are_an_error_that_says_so(
    model_file: Path, tmp_path: Path, params: SamplingParams, speculation: bool
) -> None:
    broken = LLM(damaged(model_file, tmp_path / "m.trilobit", SCALE, 3e38), speculation=speculation)
    with pytest.raises(FormatError, match="logits are infinite or no numbers") as error:
        broken.generate("Once upon a time", params)
    assert "\n" not in str(error.value)
    with pytest.raises(FormatError, match="logits are infinite or no numbers"):
        list(broken.stream("Once upon a time", params))


def test_a_score_of_logits_that_are_no_numbers_is_an_error_that_says_so(
    model_file: Path, tmp_path: Path
) -> None:
    broken = LLM(damaged(model_file, tmp_path / "m.trilobit", SCALE, 3e38))
    with pytest.raises(FormatError, match="infinite or no numbers, so no token has a probab") as e:
        broken.score("Once upon a time")
    assert "\n" not in str(e.value)
    assert free_blocks(broken) == broken._worker.engine.backend.blocks


@pytest.mark.parametrize("face", [LLM, AsyncLLM])
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"foo": 1}, "has no option 'foo'; there are threads, context, kv_memory_mb, "),
        ({"kv_type": "f16"}, "has no option 'kv_type'; did you mean kv_dtype?"),
        ({"Threads": 1}, "has no option 'Threads'; did you mean threads?"),
        ({"context": 0}, "context is 0; expected tokens of prompt and output together, 2 or more"),
        ({"context": "all"}, "context is 'all'; expected tokens of prompt"),
    ],
)
def test_an_option_that_there_is_not_is_named_with_the_one_that_is_meant(
    model_file: Path, face: type[LLM], options: Any, reason: str
) -> None:
    with pytest.raises(RequestError, match=re.escape(reason)) as error:
        face(model_file, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_is_told(name: str) -> None:
    for face in (LLM, Embedder):
        with pytest.raises(RequestError, match="the model's name is empty; give a file, a folder"):
            face(name)


@pytest.mark.parametrize("params", GREEDY_AND_DRAWN, ids=str)
def test_a_bias_that_forbids_every_token_is_an_error_that_ends_no_other(
    llm: LLM, params: SamplingParams
) -> None:
    nothing = replace(params, logit_bias=dict.fromkeys(range(llm.config.vocab_size), -math.inf))
    alone = llm.generate("Once upon", replace(params, seed=1, max_tokens=30))
    other = llm.stream("Once upon", replace(params, seed=1, max_tokens=30))
    first = next(other)
    with pytest.raises(RequestError, match="logit_bias forbids every token"):
        llm.generate("Once upon a time", nothing)
    assert first + "".join(other) == alone.text


def test_a_cache_that_cannot_hold_a_value_warns_once_and_names_the_remedy(
    model_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scale = "model.layers.0.self_attn.v_proj.weight_scale"
    large = damaged(model_file, tmp_path / "m.trilobit", scale, 1e5)
    params = SamplingParams(max_tokens=8, temperature=0)
    for kv_dtype, warnings in [("f32", 0), ("i8", 0), ("f16", 1)]:
        caplog.clear()
        model = LLM(large, kv_dtype=kv_dtype)  # type: ignore[arg-type]
        for _ in range(2):
            model.generate("Once upon a time", params)
        told = [record.message for record in caplog.records if record.name == "trilobit"]
        assert len(told) == warnings, kv_dtype
        assert all("65,504" in line and "--kv-dtype f32" in line for line in told)
    caplog.clear()
    LLM(model_file).generate("Once upon a time", params)
    assert not caplog.records


def test_a_presence_penalty_looks_at_the_output_a_repetition_penalty_at_the_prompt_too(
    llm: LLM,
) -> None:
    apart = SamplingParams(temperature=0, presence_penalty=100, max_tokens=60, ignore_eos=True)
    assert len(set(llm.generate(PROMPT, apart).token_ids)) == 60
    # A prompt that is likeliest to go on with one of its own tokens.
    prompts = (ids_of(seed, 40) for seed in range(1000))
    prompt, again = next((p, i) for p in prompts if (i := int(llm.logits(p)[-1].argmax())) in p)
    assert llm.generate(prompt, apart).token_ids[0] == again
    repeat = SamplingParams(temperature=0, repetition_penalty=100, max_tokens=1, ignore_eos=True)
    assert llm.generate(prompt, repeat).token_ids[0] not in prompt


# ---- what is refused --------------------------------------------------------------------------

NOT_PROMPTS: list[tuple[Any, str]] = [
    (5, "not int"),
    (None, "not NoneType"),
    (b"abc", "not bytes"),
    ({1: 2}, "not dict"),
    ({1, 2}, "not set"),
    (iter([1]), "not list_iterator"),
    ([331], "token id 331 is not in the vocabulary, 0 to 330"),
    ([-1], "token id -1 is not in the vocabulary"),
    ([2**40], "is not in the vocabulary"),
    ([True], "token id True"),
    (np.array([True]), "token id"),
    ([1.0], "token id 1.0"),
    (np.array([1.0]), "token id"),
    ([3, "a"], "token id 'a'"),
    ([3, [4]], r"token id \[4\]"),
    ([[3], 4], "not int"),
    ([[3], None], "not NoneType"),
    ([[3], []], "the prompt is empty"),
    (["a", 5], "not int"),
    (np.zeros((2, 0), dtype=int), "the prompt is empty"),
]


@pytest.mark.parametrize(("prompt", "message"), NOT_PROMPTS, ids=lambda value: repr(value)[:20])
def test_a_bad_prompt_is_refused_in_one_line(llm: LLM, prompt: Any, message: str) -> None:
    free = free_blocks(llm)
    with pytest.raises(RequestError, match=message) as caught:
        llm.generate(prompt, GREEDY)
    assert "\n" not in str(caught.value)
    assert free_blocks(llm) == free
    assert not llm._worker.engine._live


def test_every_way_in_refuses_bad_ids(llm: LLM) -> None:
    calls: list[Callable[[Any], object]] = [llm.generate, llm.stream, llm.logits, llm.score]
    for call in calls:
        for bad in ([], [331], [True], 5):
            if call == llm.generate and bad == []:
                continue
            with pytest.raises(RequestError):
                call(bad)


def test_what_is_no_text_is_refused_and_told_what_to_do(llm: LLM) -> None:
    with pytest.raises(RequestError, match=r"token ids, not a text; give it encode\(text\)$"):
        llm.logits(PROMPT)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"^encode takes a text, not int$"):
        llm.encode(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("params", [5, {"max_tokens": 3}, [GREEDY, 5], {}])
def test_params_of_another_type_are_refused(llm: LLM, params: Any) -> None:
    free = free_blocks(llm)
    with pytest.raises(RequestError, match=r"^params is of type .*; expected one SamplingParams"):
        llm.generate([PROMPT, PROMPT], params)
    assert free_blocks(llm) == free


@pytest.mark.parametrize("count", [0, 1, 3])
def test_params_are_for_all_or_one_for_each_prompt(llm: LLM, count: int) -> None:
    with pytest.raises(RequestError, match=f"^params are {count}, prompts 2; give one for each$"):
        llm.generate([PROMPT, PROMPT], [GREEDY] * count)
    different = [SEEDED, GREEDY]
    together = llm.generate([PROMPT, PROMPT], different)
    assert [one.token_ids for one in together] == [
        llm.generate(PROMPT, params).token_ids for params in different
    ]


@pytest.mark.parametrize("model", [None, 5, b"x", []])
def test_what_is_neither_path_nor_name_is_no_model(model: Any) -> None:
    with pytest.raises(RequestError, match=r"^model is .*; expected a path or a name$"):
        LLM(model)


def test_an_empty_text_is_the_token_that_begins_a_text(llm: LLM) -> None:
    assert llm.encode("") == [llm.config.bos_token_id]
    assert llm.generate("", GREEDY).prompt_tokens == 1


def test_more_tokens_than_the_context_are_refused(model_file: Path) -> None:
    llm = LLM(model_file, threads=1, context=50)
    assert llm.logits(ids_of(6, 50)).shape[0] == 50
    assert len(llm.generate(ids_of(6, 49), GREEDY).token_ids) == 1
    for call in (llm.generate, llm.stream):
        with pytest.raises(ContextOverflow, match="50 tokens and fills the context of 50"):
            call(ids_of(6, 50))
    for call in (llm.generate, llm.stream, llm.logits):
        with pytest.raises(ContextOverflow, match=r"51 tokens, the context 50; .* raise context"):
            call(ids_of(6, 51))
    with pytest.raises(ContextOverflow):
        llm.chat([{"role": "user", "content": PROMPT * 50}])
    assert issubclass(ContextOverflow, ValueError)


def test_the_last_token_of_a_scored_text_may_stand_behind_the_context(model_file: Path) -> None:
    llm = LLM(model_file, threads=1, context=50)
    ids = ids_of(6, 51)
    whole = llm.score(ids)
    assert whole.logprobs.shape == (50,)
    assert np.array_equal(whole.logprobs[:49], llm.score(ids[:50]).logprobs)
    last = llm.logits(ids[:50])[-1].astype(np.float64)
    log_sum = last.max() + np.log(np.exp(last - last.max()).sum())
    assert whole.logprobs[49] == pytest.approx(last[ids[50]] - log_sum, abs=1e-5)  # float32
    assert llm.score(ids, first=50).logprobs[0] == whole.logprobs[49]  # from the cache
    with pytest.raises(ContextOverflow, match=r"52 tokens, the context 50; .* raise context"):
        llm.score(ids_of(6, 52))


def test_texts_that_cannot_fit_are_refused_before_they_are_encoded(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = LLM(model_file, threads=1, context=50)
    assert llm.tokenizer is not None
    text = "Once upon a time " * 100_000
    most = llm.tokenizer.longest_text(50)  # asked before, so that nothing is asked later
    assert most < 10_000
    monkeypatch.setattr(llm.tokenizer, "_inner", None)
    for call in (llm.generate, llm.stream, llm.score, lambda text: llm.generate(["a", text][1:])):
        with pytest.raises(ContextOverflow, match=r"1,700,000 bytes, more than 50 tokens.*shorten"):
            call(text)
    monkeypatch.undo()  # chats ask for the texts of the ends
    monkeypatch.setattr(llm.tokenizer, "encode", None)
    for chat in (llm.chat, llm.stream_chat, llm.chat_ids):
        with pytest.raises(ContextOverflow, match="more than 50 tokens"):
            chat([{"role": "user", "content": text}])
    monkeypatch.undo()
    with pytest.raises(RequestError, match="at most 16,000,000 are encoded at once"):
        llm.encode("a" * 16_000_001)


def test_parameters_that_name_no_token_are_refused(llm: LLM) -> None:
    with pytest.raises(RequestError, match="logit_bias: token id 331 is not in the vocabulary"):
        llm.generate(PROMPT, SamplingParams(logit_bias={331: 1.0}))
    with pytest.raises(RequestError, match="stop_token_ids: token id -1"):
        llm.stream(PROMPT, SamplingParams(stop_token_ids=[-1]))


@pytest.mark.parametrize(
    "messages",
    [[], "hello", [{"role": "user"}], [{"content": "x"}], [{"role": "user", "content": 5}], [7]],
    ids=repr,
)
def test_messages_of_another_form_are_refused(llm: LLM, messages: Any) -> None:
    with pytest.raises(RequestError, match=r"^messages: "):
        llm.chat(messages)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("threads", 0),
        ("threads", 1.0),
        ("threads", True),
        ("context", 1),
        ("context", 1101),
        ("context", "50"),
        ("kv_memory_mb", 0),
        ("max_batch_tokens", -3),
        ("max_sequences", 0),
        ("kv_dtype", "int8"),
        ("head", "half"),
    ],
)
def test_an_impossible_option_is_refused_by_name(
    model_file: Path, option: str, value: object
) -> None:
    with pytest.raises(RequestError, match=f"^{option} is "):
        LLM(model_file, **{option: value})


def test_a_model_is_found_by_path_or_name(model_file: Path, tmp_path: Path) -> None:
    assert LLM(str(model_file), threads=1).path == model_file
    with pytest.raises(RequestError, match="neither a file nor a known model"):
        LLM("no-such-model")
    with pytest.raises(FormatError, match="no such file"):
        LLM(tmp_path / "missing.trilobit")
    if DEFAULT in bundled_models():
        assert LLM(DEFAULT, threads=1).path == bundled_models()[DEFAULT]
        assert LLM(threads=1).config == LLM(DEFAULT, threads=1).config


def test_ids_decode_to_the_text_they_came_from(llm: LLM) -> None:
    ids = llm.encode(PROMPT)
    assert llm.decode(ids) == PROMPT
    assert llm.decode(np.array(ids)) == PROMPT
    completion = llm.generate(PROMPT, GREEDY)
    assert llm.decode(completion.token_ids) == completion.text
    assert llm.decode([]) == ""
    assert llm.decode(llm.config.eos_token_ids) == ""


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ("text", "expected a list of token ids, not str"),
        (5, "expected a list of token ids, not int"),
        ([1, -1], "token id -1 is not in the vocabulary"),
        ([1, 1 << 40], "token id 1099511627776 is not in the vocabulary"),
        ([True], "token id True is not in the vocabulary"),
        ([[1, 2]], "expected one text or one list of token ids"),
    ],
)
def test_what_are_no_ids_is_not_decoded(llm: LLM, ids: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        llm.decode(ids)


def test_a_model_without_tokenizer_runs_on_ids(checkpoint: Path, tmp_path: Path) -> None:
    from trilobit.conversion import convert

    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).symlink_to(checkpoint / name)
    convert(bare, tmp_path / "bare.trilobit")
    llm = LLM(tmp_path / "bare.trilobit", threads=1)
    completion = llm.generate([5, 6], GREEDY)
    assert len(completion.token_ids) == 30
    assert completion.text == ""
    for call in (llm.generate, llm.stream, llm.score):
        with pytest.raises(RequestError, match="has no tokenizer; give token ids"):
            call(PROMPT)
    for call in (lambda folder: LLM(folder, threads=1).generate(PROMPT), Embedder):
        with pytest.raises(RequestError) as error:
            call(bare)
        assert str(error.value).startswith(f"{bare}: has no tokenizer; ")
        assert str(error.value).endswith("put its tokenizer.json into it")
    with pytest.raises(RequestError, match="has no tokenizer"):
        llm.decode([5, 6])
    with pytest.raises(RequestError, match="has no tokenizer"):
        llm.generate([5, 6], SamplingParams(stop="x"))


# ---- streams that end early -------------------------------------------------------------------


def test_closing_a_stream_frees_its_blocks_at_once(llm: LLM) -> None:
    free = free_blocks(llm)
    stream = llm.stream(PROMPT, SEEDED)
    first = next(stream)
    assert free_blocks(llm) < free
    stream.close()
    assert free_blocks(llm) == free
    assert next(stream, None) is None
    assert stream.completion.finish_reason == "aborted"
    assert stream.completion.text.startswith(first)
    stream.close()


def test_leaving_a_stream_in_any_way_frees_its_blocks(llm: LLM) -> None:
    free = free_blocks(llm)
    with llm.stream(PROMPT, SEEDED) as stream:
        for _ in stream:
            break
    assert free_blocks(llm) == free
    next(llm.stream(PROMPT, SEEDED))
    gc.collect()
    assert free_blocks(llm) == free
    waiting = llm.stream(PROMPT, SEEDED)  # never read
    waiting.close()
    assert waiting.completion.token_ids == ()
    assert not llm._worker.engine._live


def test_a_stream_that_ended_is_not_aborted_by_closing(llm: LLM) -> None:
    stream = llm.stream(PROMPT, GREEDY)
    list(stream)
    stream.close()
    assert stream.completion.finish_reason == "length"


def test_a_stream_outlives_the_name_of_its_llm(model_file: Path) -> None:
    llm = LLM(model_file, threads=2)
    wanted = llm.generate(PROMPT, SEEDED).text
    stream = llm.stream(PROMPT, SEEDED)
    start = next(stream)
    del llm
    gc.collect()
    assert start + "".join(stream) == wanted


def test_an_unread_stream_advances_with_the_others(llm: LLM) -> None:
    wanted = llm.generate(PROMPT, SEEDED).text
    unread = llm.stream(PROMPT, SEEDED)
    llm.generate(ids_of(7, 9), SamplingParams(max_tokens=60, ignore_eos=True))
    assert "".join(unread) == wanted


# ---- threads ----------------------------------------------------------------------------------


def in_threads(work: Callable[[int], Any], count: int) -> list[Any]:
    """Results of work(0), work(1), ... all at the same time; the first error is raised."""
    results: list[Any] = [None] * count
    errors: list[BaseException] = []
    start = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            start.wait()
            results[number] = work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]
    return results


def test_threads_that_stream_at_once_get_their_own_texts(model_file: Path) -> None:
    llm = LLM(model_file, threads=2, max_sequences=4, max_batch_tokens=16)
    prompts = [ids_of(seed, 5 + 9 * seed) for seed in range(8)]
    wanted = [llm.generate(prompt, SEEDED).text for prompt in prompts]
    logits = llm.logits(prompts[3])

    def work(number: int) -> str:
        for _ in range(3):
            if number == 3:
                assert (llm.logits(prompts[3]) == logits).all()
            if number == 4:
                next(llm.stream(prompts[4], SEEDED))  # and leave it
            text = "".join(llm.stream(prompts[number], SEEDED))
        return text

    assert in_threads(work, 8) == wanted
    assert not llm._worker.engine._live


def test_a_short_request_does_not_wait_for_a_long_one(endless_model: Path) -> None:
    llm = LLM(endless_model, threads=1)
    long = llm.stream([5], SamplingParams(temperature=0, max_tokens=250_000))
    began = threading.Event()

    def run_long() -> None:
        for _ in long:
            began.set()

    thread = threading.Thread(target=run_long)
    thread.start()
    assert began.wait(300)
    llm.generate([6], SamplingParams(max_tokens=3, ignore_eos=True))
    next(llm.stream([7], GREEDY))
    llm.logits([8, 9])
    llm.score([8, 9])
    assert thread.is_alive()
    long.close()
    thread.join(300)
    assert not thread.is_alive()


def test_a_reader_that_fails_does_not_stop_the_others(model_file: Path) -> None:
    llm = LLM(model_file, threads=1)
    wanted = llm.generate(PROMPT, SEEDED).text

    def work(number: int) -> str:
        text = ""
        try:
            for piece in llm.stream(PROMPT, SEEDED):
                text += piece
                if number % 2:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            return "failed"
        return text

    assert in_threads(work, 6) == [wanted, "failed"] * 3
    gc.collect()
    assert llm.generate(PROMPT, SEEDED).text == wanted


# ---- processes: interrupts, forks, exits, imports ---------------------------------------------

PROLOGUE = """
import logging, os, signal, sys, threading, time
from trilobit import LLM, SamplingParams
logging.disable()  # where there is one processor, two threads are warned of
# Whoever runs the tests in the background may have had it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
llm = LLM(sys.argv[1], threads=2)
seeded = SamplingParams(temperature=2.0, max_tokens=30, ignore_eos=True, seed=7)
long = SamplingParams(temperature=0, max_tokens=1000, ignore_eos=True)
wanted = llm.generate([5, 6, 7], seeded).text
all_blocks = llm._worker.engine.free_blocks
"""


def run_program(program: str, *arguments: object) -> str:
    """Output of a program that must end well and say nothing on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,  # a hang, not a slow machine
    )
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


POSIX = pytest.mark.skipif(os.name != "posix", reason="POSIX signals and forks")


@POSIX
def test_ctrl_c_ends_the_call_it_hits_and_no_other(model_file: Path) -> None:
    program = (
        PROLOGUE
        + """
texts = []
def read():
    for _ in range(8):
        texts.append("".join(llm.stream([5, 6, 7], seeded)))
thread = threading.Thread(target=read)
thread.start()
me = threading.main_thread().ident
hits = 0
while thread.is_alive() or hits < 5:
    caught = threading.Event()
    def press(delay_s=0.02 * 1.2**hits):
        time.sleep(delay_s)
        # Python drops an interrupt that lands in a finaliser: press again, as people do.
        while not caught.is_set():
            signal.pthread_kill(me, signal.SIGINT)
            caught.wait(20)
    finger = threading.Thread(target=press)
    try:
        finger.start()
        while True:
            llm.generate([9], long)
    except KeyboardInterrupt:
        hits += 1
        caught.set()
    finger.join()
thread.join()
assert texts == [wanted] * 8, texts
assert llm.generate([5, 6, 7], seeded).text == wanted
assert llm._worker.engine.free_blocks == all_blocks
assert not llm._worker.engine._live
print("usable")
"""
    )
    assert run_program(program, model_file) == "usable\n"


@POSIX
def test_a_signal_handler_may_close_a_stream(model_file: Path) -> None:
    program = (
        PROLOGUE
        + """
for delay in (0.001, 0.003, 0.01, 0.03):
    stream = llm.stream([9], long)
    signal.signal(signal.SIGALRM, lambda *_: stream.close())
    signal.setitimer(signal.ITIMER_REAL, delay)
    for piece in stream:
        pass
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert stream.completion.finish_reason in ("aborted", "length")
    assert llm._worker.engine.free_blocks == all_blocks
assert llm.generate([5, 6, 7], seeded).text == wanted
print("usable")
"""
    )
    assert run_program(program, model_file) == "usable\n"


def test_a_request_that_ends_while_another_is_taken_out_leaves_nothing(llm: LLM) -> None:
    before = free_blocks(llm)
    endless = SamplingParams(temperature=0, max_tokens=1000, ignore_eos=True)
    first, second = llm.stream([9], endless), llm.stream([8], endless)
    next(first), next(second)
    scheduler = llm._worker.engine.scheduler
    remove = scheduler.remove

    def ends_the_first_too(sequence: Sequence) -> None:
        first._sequence.abandoned = True  # as a signal handler does at any time
        remove(sequence)

    scheduler.remove = ends_the_first_too  # type: ignore[method-assign]
    second.close()
    scheduler.remove = remove  # type: ignore[method-assign]
    first.close()
    llm.generate([5], endless)
    assert free_blocks(llm) == before


@POSIX
def test_a_forked_child_runs_the_model(model_file: Path) -> None:
    program = (
        PROLOGUE
        + """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, about forks with threads
busy = threading.Thread(target=llm.generate, args=([9], long))
busy.start()
for ends in (sys.exit, os._exit):
    child = os.fork()
    if child == 0:
        same = llm.generate([5, 6, 7], seeded).text == wanted
        ends(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
busy.join()
assert llm.generate([5, 6, 7], seeded).text == wanted
print("usable")
"""
    )
    assert run_program(program, model_file) == "usable\n"


@pytest.mark.parametrize("unfinished", range(3))
def test_the_interpreter_may_exit_amid_steps(model_file: Path, unfinished: int) -> None:
    program = (
        PROLOGUE
        + """
def forever():
    while True:
        llm.generate([9], long)
for _ in range(3):
    threading.Thread(target=forever, daemon=True).start()
stream = llm.stream([5, 6, 7], seeded)
next(stream)
print("bye")
"""
    )
    assert run_program(program, model_file) == "bye\n"


def test_a_model_may_be_used_while_the_interpreter_exits(model_file: Path) -> None:
    program = (
        """
import atexit
atexit.register(lambda: print(llm.generate([5, 6, 7], seeded).text == wanted))
"""
        + PROLOGUE
    )
    assert run_program(program, model_file) == "True\n"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_threads_default_to_the_cores_that_the_process_may_use(model_file: Path) -> None:
    program = """
import logging, os, sys
logging.getLogger("trilobit").setLevel(logging.ERROR)  # a warning about the three
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from trilobit import LLM
print(LLM(sys.argv[1]).threads, LLM(sys.argv[1], threads=3).threads)
"""
    assert run_program(program, model_file) == "1 3\n"


def test_running_a_model_imports_no_torch(model_file: Path) -> None:
    program = """
import sys
import trilobit
heavy = {"torch", "transformers", "accelerate", "numpy", "tokenizers"}
print(sorted(heavy & set(sys.modules) - {"numpy"}))
trilobit.LLM(sys.argv[1], threads=1).generate("Once", trilobit.SamplingParams(max_tokens=3))
print(sorted(heavy & set(sys.modules)))
"""
    assert run_program(program, model_file) == "[]\n['numpy', 'tokenizers']\n"


# ---- types ------------------------------------------------------------------------------------

TYPED = """
from collections.abc import Sequence
from typing import assert_type

import numpy as np
from numpy.typing import NDArray

from trilobit import LLM, SamplingParams
from trilobit import Score
from trilobit.stream import Stream
from trilobit.engine.blocks import block_bytes
from trilobit.engine.event import Completion


def use(ids: list[int], text: str, array: NDArray[np.int64], both: list[str | list[int]]) -> None:
    llm = LLM("model", threads=2, kv_dtype="f32")
    params = SamplingParams(temperature=0, stop="x", logit_bias={1: -1.0})
    assert_type(llm.generate(text, params), Completion)
    assert_type(llm.generate(ids), Completion)
    assert_type(llm.generate((1, 2, 3)), Completion)
    assert_type(llm.generate(range(5)), Completion)
    assert_type(llm.generate(array), Completion)
    assert_type(llm.generate([text, text], params), list[Completion])
    assert_type(llm.generate([ids, ids]), list[Completion])
    assert_type(llm.generate((text, text)), list[Completion])
    assert_type(llm.generate([array, array]), list[Completion])
    assert_type(llm.generate(both), list[Completion])
    assert_type(llm.stream(text), Stream)
    for piece in llm.stream(ids, params):
        assert_type(piece, str)
    assert_type(llm.chat([{"role": "user", "content": text}]), Completion)
    assert_type(llm.stream_chat([{"role": "user", "content": text}]), Stream)
    assert_type(llm.logits(ids), NDArray[np.float32])
    assert_type(llm.score(text), Score)
    assert_type(llm.score(text).logprobs, NDArray[np.float32])
    assert_type(llm.encode(text), list[int])
"""

WRONG = """
from trilobit import LLM, SamplingParams

llm = LLM(5)
llm.generate(5)
llm.generate([1.5])
llm.stream(["a", "b"])
llm.logits("text")
SamplingParams(0.5)
SamplingParams(tempreature=0.5)
"""


@pytest.mark.skipif(not importlib.util.find_spec("mypy"), reason="mypy is not installed")
def test_types_are_what_a_reader_expects(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(TYPED)
    wrong.write_text(WRONG)
    cache = pytestconfig.cache.mkdir("mypy") if pytestconfig.cache else tmp_path / "cache"
    options = ["--strict", "--follow-imports=silent", "--no-error-summary", "--cache-dir", cache]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *map(str, options), right, wrong],
        env={**os.environ, "MYPYPATH": str(REPOSITORY / "src")},
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    lines = {
        int(line.split(":")[1]) for line in done.stdout.splitlines() if line.startswith("wrong.py")
    }
    assert "right.py" not in done.stdout, done.stdout
    assert lines == set(range(4, 11)), done.stdout


def test_an_int8_cache_costs_half_the_memory_and_little_of_the_likelihood() -> None:
    text = "Once upon a time there was a little girl named Sue. " * 12
    scores = {kind: LLM(DEFAULT, kv_dtype=kind).score(text).logprobs for kind in ("f32", "i8")}
    assert not np.array_equal(scores["f32"], scores["i8"])
    # Perplexity moved by 0.002 % on 99,310 tokens of stories; a tenth of a nat is a wrong scale.
    assert abs(float(scores["f32"].mean() - scores["i8"].mean())) < 0.01
    assert float(np.abs(scores["f32"] - scores["i8"]).max()) < 0.5
    config = LLM(DEFAULT).config
    head = config.head_dim  # a multiple of 16: no padding
    assert block_bytes(config, "i8") * 2 * head == block_bytes(config, "f16") * (head + 4)


def test_an_int8_cache_gives_the_same_text_alone_and_in_a_batch() -> None:
    llm = LLM(DEFAULT, kv_dtype="i8", threads=2)
    prompts = ["The old man", "Once upon a time", "A cat"]
    params = SamplingParams(temperature=0, max_tokens=60)
    together = llm.generate(prompts, params)
    assert [one.token_ids for one in together] == [
        llm.generate(prompt, params).token_ids for prompt in prompts
    ]
