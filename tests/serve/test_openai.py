"""OpenAI's own SDK against a real server: what it sends is taken, what it gets it understands."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
from live_server import PATIENCE_S, Live, serving

from trilobit import LLM, Embedder, SamplingParams
from trilobit.bundled import CHAT, DEFAULT
from trilobit.serve import pulse

PROMPT = "Once upon a time there was a dog"
MESSAGES = [{"role": "user", "content": PROMPT}]
GREEDY = {"model": DEFAULT, "temperature": 0, "max_tokens": 20}


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", timeout=PATIENCE_S) as made:
        yield made


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM() as opened:
        yield opened


def test_a_completion_is_what_the_model_gives_in_process(client: openai.OpenAI, llm: LLM) -> None:
    done = client.completions.create(prompt=PROMPT, **GREEDY)
    wanted = llm.generate(PROMPT, SamplingParams(temperature=0, max_tokens=20))
    assert done.choices[0].text == wanted.text
    assert done.choices[0].finish_reason == wanted.finish_reason
    assert done.usage is not None
    assert done.usage.prompt_tokens == wanted.prompt_tokens
    assert done.usage.completion_tokens == len(wanted.token_ids)


def test_a_chat_is_what_the_model_gives_in_process(client: openai.OpenAI, llm: LLM) -> None:
    done = client.chat.completions.create(messages=MESSAGES, **GREEDY)
    wanted = llm.chat(MESSAGES, SamplingParams(temperature=0, max_tokens=20))
    assert done.choices[0].message.content == wanted.text
    assert done.choices[0].message.role == "assistant"


def test_a_streamed_chat_adds_up_to_the_whole_one(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=MESSAGES, **GREEDY)
    chunks = list(
        client.chat.completions.create(
            messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_a_streamed_completion_adds_up_to_the_whole_one(client: openai.OpenAI) -> None:
    whole = client.completions.create(prompt=PROMPT, **GREEDY)
    chunks = list(client.completions.create(prompt=PROMPT, stream=True, **GREEDY))
    assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text


def test_choices_have_seeds_that_give_them_again(client: openai.OpenAI) -> None:
    asked = {"prompt": PROMPT, "model": DEFAULT, "max_tokens": 12, "temperature": 1.5}
    three = client.completions.create(n=3, **asked)
    seed = three.model_extra["seed"]  # type: ignore[index]
    assert len({choice.text for choice in three.choices}) == 3
    for number, choice in enumerate(three.choices):
        again = client.completions.create(seed=seed + number, **asked)
        assert again.choices[0].text == choice.text
        assert again.system_fingerprint == three.system_fingerprint


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=DEFAULT):
        client.completions.create(model="gpt-9", prompt=PROMPT)


def test_a_prompt_that_is_too_long_is_a_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=DEFAULT, prompt="dog " * 2000)
    assert caught.value.code == "context_length_exceeded"


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [DEFAULT, CHAT]
    assert client.models.retrieve(DEFAULT).id == DEFAULT


def test_many_async_clients_get_each_their_own(live: Live, llm: LLM) -> None:
    prompts = [f"Once there were {n} cats" for n in range(24)]
    greedy = SamplingParams(temperature=0, max_tokens=20)
    wanted = [llm.generate(prompt, greedy).text for prompt in prompts]

    async def main() -> list[str]:
        base = f"{live.url}/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key="x", timeout=PATIENCE_S) as client:

            async def one(prompt: str) -> str:
                stream = await client.completions.create(prompt=prompt, stream=True, **GREEDY)
                return "".join([chunk.choices[0].text async for chunk in stream])

            return await asyncio.gather(*map(one, prompts))

    assert asyncio.run(main()) == wanted


def test_logprobs_of_a_chat_are_those_of_the_model(client: openai.OpenAI, llm: LLM) -> None:
    asked = {"messages": MESSAGES, "logprobs": True, "top_logprobs": 3} | GREEDY
    told = client.chat.completions.create(**asked).choices[0].logprobs
    params = SamplingParams(temperature=0, max_tokens=20, logprobs=3)
    wanted = llm.chat(MESSAGES, params).logprobs
    assert told is not None
    assert wanted is not None
    assert [one.logprob for one in told.content] == [one.logprob for one in wanted]
    assert [[two.logprob for two in one.top_logprobs] for one in told.content] == [
        [logprob for _, logprob in one.top] for one in wanted
    ]
    streamed = client.chat.completions.create(stream=True, **asked)
    parts = [c.choices[0].logprobs.content for c in streamed if c.choices[0].logprobs]
    assert [one for part in parts for one in part] == told.content


@pytest.mark.parametrize("stream", [False, True])
def test_an_echoed_prompt_has_the_logprobs_of_a_score(
    client: openai.OpenAI, llm: LLM, stream: bool
) -> None:
    texts = [PROMPT, "The cat sat on the mat and"]
    asked = {"prompt": texts, "echo": True, "logprobs": 1, "max_tokens": 0, "stream": stream}
    answer = client.completions.create(model=DEFAULT, **asked)
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    told = {one.index: one for one in choices if one.text}
    for index, text in enumerate(texts):
        score = llm.score(text)
        logprobs = told[index].logprobs
        assert told[index].text == text
        assert logprobs.token_logprobs == [None, *score.logprobs.tolist()]
        assert logprobs.top_logprobs[0] is None
        assert len(logprobs.tokens) == len(logprobs.text_offset) == len(score.token_ids)
        starts = zip(logprobs.text_offset[1:], logprobs.tokens[1:], strict=True)
        assert all(text[at:].startswith(token) for at, token in starts)
        best = [max(top.values()) for top in logprobs.top_logprobs[1:]]
        assert all(one >= two for one, two in zip(best, logprobs.token_logprobs[1:], strict=True))


def test_an_echo_goes_before_what_is_made(client: openai.OpenAI) -> None:
    plain = client.completions.create(prompt=PROMPT, logprobs=2, **GREEDY).choices[0]
    echoed = client.completions.create(prompt=PROMPT, logprobs=2, echo=True, **GREEDY).choices[0]
    assert echoed.text == PROMPT + plain.text
    assert echoed.logprobs is not None
    assert plain.logprobs is not None
    assert echoed.logprobs.token_logprobs[-20:] == plain.logprobs.token_logprobs
    assert echoed.logprobs.top_logprobs[-20:] == plain.logprobs.top_logprobs


def test_no_alternatives_leave_the_token_itself(client: openai.OpenAI) -> None:
    asked = {"prompt": PROMPT, "echo": True, "logprobs": 0} | GREEDY
    told = client.completions.create(**asked).choices[0].logprobs
    assert told is not None
    pairs = zip(told.tokens, told.token_logprobs, strict=True)
    assert told.top_logprobs == [None, *({token: logprob} for token, logprob in list(pairs)[1:])]


def test_prompts_may_be_token_ids_or_several(client: openai.OpenAI, llm: LLM) -> None:
    ids = [llm.encode(PROMPT), llm.encode("A cat")]
    texts = client.completions.create(prompt=[PROMPT, "A cat"], n=2, **GREEDY)
    assert [choice.index for choice in texts.choices] == [0, 1, 2, 3]
    by_ids = client.completions.create(prompt=ids, n=2, **GREEDY)
    assert [one.text for one in by_ids.choices] == [one.text for one in texts.choices]
    assert texts.choices[0].text == texts.choices[1].text != texts.choices[2].text
    assert texts.usage is not None
    assert texts.usage.prompt_tokens == sum(map(len, ids))
    one = client.completions.create(prompt=ids[0], **GREEDY)
    assert one.choices[0].text == texts.choices[0].text


def test_parameters_do_what_they_do_in_process(client: openai.OpenAI, llm: LLM) -> None:
    given = {
        "temperature": 1.2,
        "top_p": 0.9,
        "frequency_penalty": 0.5,
        "presence_penalty": 0.5,
        "seed": 11,
        "max_tokens": 30,
        "stop": [" the", "."],
    }
    also = {"top_k": 40, "min_p": 0.01, "repetition_penalty": 1.1, "ignore_eos": True}
    wanted = llm.generate(
        PROMPT, SamplingParams(logit_bias={5: -3.0}, stop_token_ids=[7], **given, **also)
    )
    done = client.completions.create(
        model=DEFAULT,
        prompt=PROMPT,
        logit_bias={"5": -3},
        extra_body=also | {"stop_token_ids": [7]},
        **given,
    )
    assert done.choices[0].text == wanted.text
    assert done.choices[0].finish_reason == wanted.finish_reason


def test_usage_tells_what_the_cache_had(client: openai.OpenAI) -> None:
    prompt = "A bird that nobody had seen before came to the garden. " * 8
    for cached in (False, True):
        usage = client.completions.create(model=DEFAULT, prompt=prompt, max_tokens=1).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        assert bool(usage.prompt_tokens_details.cached_tokens) == cached


def test_embeddings_are_those_of_the_embedder(client: openai.OpenAI) -> None:
    texts = ["a dog", "a cat", "the sun went down"]
    with Embedder(DEFAULT) as embedder:
        wanted = embedder.encode(texts)
        short = embedder.encode(texts, dimensions=16)
    # The SDK asks for base64 by itself, and decodes it.
    by_base64 = client.embeddings.create(model=DEFAULT, input=texts)
    by_floats = client.embeddings.create(model=DEFAULT, input=texts, encoding_format="float")
    fewer = client.embeddings.create(model=DEFAULT, input=texts, dimensions=16)
    for told, vectors in ((by_base64, wanted), (by_floats, wanted), (fewer, short)):
        assert np.array_equal(np.float32([one.embedding for one in told.data]), vectors)
    assert by_base64.usage.prompt_tokens > 6


def test_ids_and_texts_go_both_ways(live: Live, llm: LLM) -> None:
    with live.client() as client:
        ids = client.post("/tokenize", json={"content": PROMPT}).json()["tokens"]
        assert ids == llm.encode(PROMPT)
        assert client.post("/detokenize", json={"tokens": ids}).json()["content"] == PROMPT
        asked = {"model": DEFAULT, "messages": MESSAGES}
        chat = client.post("/tokenize", json=asked).json()["tokens"]
        assert chat == llm.chat_ids(MESSAGES)
        text = client.post("/apply-template", json=asked).json()["prompt"]
        assert text == PROMPT  # this model has no template
        pieces = client.post("/tokenize", json={"prompt": PROMPT, "with_pieces": True}).json()
        assert [piece["id"] for piece in pieces["tokens"]] == ids


def test_what_was_done_is_counted(live: Live, client: openai.OpenAI) -> None:
    def counted() -> dict[str, float]:
        return {
            name: live.measure(f"trilobit_{name}", model=DEFAULT)
            for name in (
                "prompt_tokens_total",
                "output_tokens_total",
                "steps_total",
                "time_to_first_token_seconds_count",
                "time_between_tokens_seconds_count",
            )
        }

    live.wait_for("trilobit_places_taken")  # a client knows of an end before the books do
    before = counted()
    client.completions.create(prompt=PROMPT, **GREEDY)
    live.wait_for("trilobit_places_taken")
    after = counted()
    more = {name: after[name] - before[name] for name in after}
    assert more["output_tokens_total"] == 20
    assert more["prompt_tokens_total"] > 5
    assert more["time_to_first_token_seconds_count"] == 1
    assert more["time_between_tokens_seconds_count"] == 19  # however many come together
    assert more["steps_total"] >= 20
    assert live.measure("trilobit_requests_total", route="/v1/completions", status="200") > 0
    live.wait_for("trilobit_kv_blocks_held", model=DEFAULT)


def test_health_makes_a_token_only_where_none_was_made_for_a_while(live: Live) -> None:
    def steps() -> float:
        return live.measure("trilobit_steps_total", model=DEFAULT)

    with live.client() as client:
        assert client.get("/health").json() == {"status": "ok"}
        before, started_s = steps(), time.monotonic()
        for _ in range(8):
            assert client.get("/health").status_code == 200
        made, took_s = steps() - before, time.monotonic() - started_s
    assert made <= took_s / pulse._FRESH_S


def test_a_stream_that_is_left_ends_and_leaves_no_descriptor(
    live: Live, client: openai.OpenAI
) -> None:
    folder = Path(f"/proc/{live.process.pid}/fd")
    asked = {"model": DEFAULT, "prompt": PROMPT, "max_tokens": 400, "temperature": 0}

    def leave() -> None:
        with openai.OpenAI(base_url=f"{live.url}/v1", api_key="x", timeout=PATIENCE_S) as one:
            stream = one.completions.create(stream=True, extra_body={"ignore_eos": True}, **asked)
            next(iter(stream))
            stream.close()

    leave()
    before = len(list(folder.iterdir())) if folder.exists() else 0
    for _ in range(20):
        leave()
    live.wait_for("trilobit_places_taken")
    live.wait_for("trilobit_kv_blocks_held", model=DEFAULT)
    if folder.exists():
        assert len(list(folder.iterdir())) <= before + 2  # a kept connection of this process
