"""OpenAI's own SDK against a real server: what it sends is taken, what it gets it understands."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest
from live_server import PATIENCE_S, Live, serving

from trilobit import LLM, SamplingParams
from trilobit.bundled import DEFAULT

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
    assert [model.id for model in client.models.list()] == [DEFAULT]
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
