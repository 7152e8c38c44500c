"""What a server takes where a request says nothing: what the model says, else its dialect's own."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from live_server import serving

from trilobit.bundled import CHAT, bundled_models
from trilobit.conversion import convert

MESSAGES = [{"role": "user", "content": "Tell me a story about a dog."}]
# path -> what is asked, and its name for the most tokens
ASKED: dict[str, tuple[dict[str, Any], str]] = {
    "/v1/completions": ({"prompt": "Once"}, "max_tokens"),
    "/v1/chat/completions": ({"messages": MESSAGES}, "max_tokens"),
    "/v1/responses": ({"input": "Tell me a story."}, "max_output_tokens"),
    "/v1/messages": ({"messages": MESSAGES}, "max_tokens"),
    "/api/chat": ({"messages": MESSAGES, "stream": False}, "num_predict"),
}
OWN = {"temperature": 1.5}
Key = tuple[str, str, bool]  # path, model, whether the request has a value of its own


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> dict[Key, dict[str, Any]]:
    """The sampling that requests of every kind ran with, as the log of requests has it."""
    folder = tmp_path_factory.mktemp("sampling")
    log, config, arguments = folder / "log.jsonl", folder / "generation_config.json", []
    for name, said in (("says", {"temperature": 0.25, "top_p": 0.5}), ("silent", {})):
        config.write_text(json.dumps(said))
        convert(bundled_models()[CHAT], folder / f"{name}.trilobit", generation_config=config)
        arguments.append(f"{name}={folder / f'{name}.trilobit'}")
    keys = list(itertools.product(ASKED, ("says", "silent"), (False, True)))
    with serving(*arguments, "--request-log", str(log)) as live, live.client() as client:
        for number, (path, model, has_own) in enumerate(keys, 1):
            body, most = ASKED[path]
            options = {most: number} | (OWN if has_own else {})  # the number tells them apart
            options = {"options": options} if path.startswith("/api") else options
            answer = client.post(path, json={"model": model} | body | options)
            assert answer.status_code == 200
            if path == "/v1/responses" and model == "says" and not has_own:
                assert (answer.json()["temperature"], answer.json()["top_p"]) == (0.25, 0.5)
        live.stop()  # only then are all of them written
    lines = [json.loads(line)["params"] for line in log.read_text().splitlines()]
    assert len(lines) == len(keys)
    return {keys[params["max_tokens"] - 1]: params for params in lines}


@pytest.mark.parametrize("path", ASKED)
def test_a_model_that_says_how_is_followed_in_every_dialect(
    taken: dict[Key, dict[str, Any]], path: str
) -> None:
    params = taken[path, "says", False]
    assert (params["temperature"], params["top_p"]) == (0.25, 0.5)


@pytest.mark.parametrize("path", ASKED)
def test_a_requests_own_value_wins(taken: dict[Key, dict[str, Any]], path: str) -> None:
    params = taken[path, "says", True]
    assert (params["temperature"], params["top_p"]) == (1.5, 0.5)


@pytest.mark.parametrize("path", ASKED)
def test_a_model_that_says_nothing_leaves_it_to_the_dialect(
    taken: dict[Key, dict[str, Any]], path: str
) -> None:
    params = taken[path, "silent", False]
    wanted = (0.8, 0.9, 40) if path.startswith("/api") else (1, 1, 0)
    assert (params["temperature"], params["top_p"], params["top_k"]) == wanted
