"""What comes back besides the text: seeds, reasons, log-probabilities, events; several at once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trilobit import LLM, Embedder, RequestError, SamplingParams

PROMPT = "Once upon a time there was a dog"
GREEDY = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
SEEDED = SamplingParams(temperature=2.0, max_tokens=30, ignore_eos=True, seed=7)


@pytest.fixture(scope="module")
def llm(model_file: Path) -> LLM:
    return LLM(model_file, threads=1)


@pytest.fixture(scope="module")
def bare(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """A model without a tokenizer."""
    folder = tmp_path_factory.mktemp("bare")
    for name in ("config.json", "model.safetensors"):
        (folder / name).symlink_to(checkpoint / name)
    return LLM(folder, threads=1)


def test_the_seed_that_was_drawn_gives_the_same_text(llm: LLM) -> None:
    hot = SamplingParams(temperature=2.0, max_tokens=20, ignore_eos=True)
    first, other = llm.generate([PROMPT, PROMPT], hot)
    assert first.seed != other.seed
    again = llm.generate(PROMPT, SamplingParams(**told(hot), seed=first.seed))
    assert (again.token_ids, again.seed) == (first.token_ids, first.seed)


def told(params: SamplingParams) -> dict[str, Any]:
    names = ("temperature", "max_tokens", "ignore_eos")
    return {name: getattr(params, name) for name in names}


def test_the_stop_reason_says_what_ended_it(llm: LLM) -> None:
    whole = llm.generate(PROMPT, GREEDY)
    assert (whole.finish_reason, whole.stop_reason) == ("length", None)
    end = whole.token_ids[10]
    stopped = llm.generate(
        PROMPT, SamplingParams(temperature=0, ignore_eos=True, stop_token_ids=[end])
    )
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", end)
    stop = whole.text[5:8]
    stopped = llm.generate(
        PROMPT, SamplingParams(temperature=0, ignore_eos=True, stop=["never", stop, stop + "x"])
    )
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", stop)


def test_logprobs_of_a_prompt_are_those_of_the_score(llm: LLM) -> None:
    ids = llm.encode(PROMPT)
    told = llm.prompt_logprobs(PROMPT, 3)
    assert [one.token_id for one in told] == ids[1:]
    assert [one.logprob for one in told] == llm.score(PROMPT).logprobs.tolist()
    for one, row in zip(told, llm.logits(ids), strict=False):
        best = sorted(range(len(row)), key=lambda i: (-row[i], i))[:3]
        assert [i for i, _ in one.top] == best
    assert all(one.top == () for one in llm.prompt_logprobs(ids))
    for top in (-1, 1 << 20, True):
        with pytest.raises(RequestError, match="logprobs"):
            llm.prompt_logprobs(PROMPT, top)


@pytest.mark.parametrize("options", [{}, {"speculation": True}, {"max_batch_tokens": 3}])
def test_logprobs_are_those_of_the_score(llm: LLM, model_file: Path, options: Any) -> None:
    ids = llm.encode(PROMPT)
    params = SamplingParams(temperature=1.0, max_tokens=30, seed=3, ignore_eos=True, logprobs=4)
    asked = LLM(model_file, threads=1, max_sequences=2, **options)
    done, plain = asked.generate([PROMPT, PROMPT], [params, SEEDED])
    assert plain.logprobs is None
    assert done.logprobs is not None
    assert [one.token_id for one in done.logprobs] == list(done.token_ids)
    score = llm.score(ids + list(done.token_ids))
    logits = llm.logits(ids + list(done.token_ids))[len(ids) - 1 :]
    for number, (one, row) in enumerate(zip(done.logprobs, logits, strict=False)):
        assert one.logprob == score.logprobs[len(ids) - 1 + number]
        best = sorted(range(len(row)), key=lambda i: (-row[i], i))[:4]
        assert [i for i, _ in one.top] == best
        assert all(a >= b for (_, a), (_, b) in zip(one.top, one.top[1:], strict=False))
        if one.token_id in best:
            assert dict(one.top)[one.token_id] == one.logprob
    only = llm.generate(PROMPT, SamplingParams(max_tokens=3, logprobs=0, ignore_eos=True))
    assert only.logprobs is not None
    assert [one.top for one in only.logprobs] == [()] * 3


def test_logprobs_change_no_token(llm: LLM) -> None:
    with_them = SamplingParams(temperature=2.0, max_tokens=30, ignore_eos=True, seed=7, logprobs=2)
    assert llm.generate(PROMPT, with_them).token_ids == llm.generate(PROMPT, SEEDED).token_ids


def test_choices_differ_by_their_seeds_and_share_their_prompt(llm: LLM) -> None:
    prompt = np.random.default_rng(11).integers(2, 331, 70).tolist()
    choices = llm.choices(prompt, 4, SEEDED)
    assert [one.seed for one in choices] == [7, 8, 9, 10]
    assert [one.cached_tokens for one in choices[1:]] == [64] * 3
    assert len({one.token_ids for one in choices}) == 4
    for one in choices:
        params = SamplingParams(temperature=2.0, max_tokens=30, ignore_eos=True, seed=one.seed)
        assert llm.generate(prompt, params).token_ids == one.token_ids
    for n in (0, 1025, True, "3"):
        with pytest.raises(RequestError, match=r"^n is "):
            llm.choices(prompt, n)  # type: ignore[arg-type]


def test_several_chats_and_scores_are_those_of_each(llm: LLM) -> None:
    chats = [[{"role": "user", "content": text}] for text in ("One day", PROMPT)]
    together = llm.chat(chats, SEEDED)
    assert [one.token_ids for one in together] == [
        llm.chat(chat, SEEDED).token_ids for chat in chats
    ]
    texts: list[Any] = [PROMPT, llm.encode("One day"), "a"]
    for score, text in zip(llm.score(texts), texts, strict=True):
        alone = llm.score(text)
        assert score.token_ids == alone.token_ids
        assert (score.logprobs == alone.logprobs).all()


def test_events_of_a_stream_join_to_its_completion(llm: LLM) -> None:
    stream = llm.stream(PROMPT, SamplingParams(max_tokens=20, seed=1, logprobs=1, ignore_eos=True))
    first = next(stream)
    events = list(stream.events())
    done = stream.completion
    assert first + "".join(event.text for event in events) == done.text
    assert sum((event.token_ids for event in events), ()) == done.token_ids
    assert sum((event.logprobs or () for event in events), ()) == done.logprobs
    assert events[-1].finish_reason == "length"
    assert events[-1].usage.output_tokens == 20
    assert not any(event.finish_reason for event in events[:-1])


def test_a_stream_without_a_tokenizer_gives_ids_as_they_come(bare: LLM) -> None:
    wanted = bare.generate([5, 6], GREEDY).token_ids
    events = list(bare.stream([5, 6], GREEDY).events())
    assert len(events) == 30
    assert sum((event.token_ids for event in events), ()) == wanted
    assert not any(event.text for event in events)


def test_a_stream_tells_how_much_of_its_prompt_is_done(model_file: Path) -> None:
    llm = LLM(model_file, threads=1, max_batch_tokens=16)
    prompt = np.random.default_rng(12).integers(2, 331, 90).tolist()
    stream = llm.stream(prompt, GREEDY)
    assert stream.prompt_tokens_done == 0
    llm._worker.run_until(lambda: stream.prompt_tokens_done > 0)
    assert 0 < stream.prompt_tokens_done < 90
    next(stream)
    assert stream.prompt_tokens_done == 90


def test_a_closed_model_says_so(model_file: Path) -> None:
    with LLM(model_file, threads=1) as llm:
        stream = llm.stream(PROMPT, GREEDY)
        next(stream)
        assert repr(llm) == f"<LLM {model_file}: context 1100, threads 1>"
    assert repr(llm).endswith("closed>")
    with pytest.raises(RequestError, match="the model was closed"):
        list(stream)
    for call in (llm.generate, llm.score, llm.stream):
        with pytest.raises(RequestError, match="the model was closed; open it again"):
            call(PROMPT)
    llm.close()
    with Embedder(model_file, threads=1) as embedder:
        assert embedder.encode("a dog").shape == (1, 60)
    with pytest.raises(RequestError, match="the model was closed"):
        embedder.encode("a dog")


def test_results_are_public() -> None:
    import trilobit

    for name in trilobit.__all__:
        assert getattr(trilobit, name) is not None
    nothing = np.zeros(0, dtype=np.float32)
    one = trilobit.Score(token_ids=(1,), logprobs=nothing, likeliest=nothing.astype(bool))
    assert math.isnan(one.perplexity)
