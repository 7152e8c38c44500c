"""A model served with an adapter answers as the two do together, and makes no vectors."""

from __future__ import annotations

from pathlib import Path

from adapters import random_adapter
from conftest import tiny_config
from fables import command
from live_server import serving

from trilobit import LLM, SamplingParams

IDS = list(range(2, 20))


def test_a_server_answers_with_its_adapter(model_file: Path, tmp_path: Path) -> None:
    folder = random_adapter(tmp_path / "adapter", tiny_config())
    greedy = SamplingParams(max_tokens=12, temperature=0)
    with LLM(model_file, adapter=folder) as llm, LLM(model_file) as plain:
        expected, other = (one.generate(IDS, greedy).text for one in (llm, plain))
    assert expected != other
    arguments = (f"tiny={model_file}", "--adapter", str(folder))
    with serving(*arguments) as live, live.client() as client:
        body = {"model": "tiny", "prompt": IDS, "max_tokens": 12, "temperature": 0}
        answer = client.post("/v1/completions", json=body)
        assert answer.json()["choices"][0]["text"] == expected
        refused = client.post("/v1/embeddings", json={"model": "tiny", "input": "Once"})
        assert refused.status_code == 400
        assert "served with an adapter, and makes no vectors so" in refused.text


def test_an_adapter_is_of_one_model(model_file: Path, tmp_path: Path) -> None:
    outcome = command("serve", str(model_file), f"b={model_file}", "--adapter", str(tmp_path))
    assert outcome.code == 2
    assert "--adapter: of one model; serve it alone" in outcome.err
