"""Every example, run as its docstring says, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import live_server
import pytest
from conftest import tiny_config
from fables import FABLES

from trilobit import LLM, SamplingParams, convert
from trilobit.bundled import CHAT, DEFAULT
from trilobit.synth import synth

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LINES = 80
KEY = "sk-a-key-of-ours"
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def chatting(folder: Path, tokenizer_json: Path, template: str) -> Path:
    """A model with a chat template."""
    synth(tiny_config(max_position_embeddings=4096), folder, seed=2)
    (folder / "tokenizer.json").write_bytes(tokenizer_json.read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    convert(folder, folder.with_suffix(".trilobit"))
    return folder.with_suffix(".trilobit")


@pytest.fixture(scope="module")
def chat_file(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: Path) -> Path:
    return chatting(tmp_path_factory.mktemp("chat") / "tiny", tokenizer_json, TEMPLATE)


def run(name: str, *args: object, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *map(str, args)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | env,
    )


def printed(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_a_story_goes_on_from_where_it_begins_and_tells_its_seed() -> None:
    done = run("story.py", "The little dog")
    assert len(printed(done)) > len("The little dog ")
    assert done.stdout.startswith("The little dog")
    assert re.fullmatch(r"\n\n\d+ tokens/s, seed \d+\n", done.stderr)


def test_the_assistant_remembers_what_was_said(
    tmp_path: Path, tokenizer_json: Path, chat_file: Path
) -> None:
    assert printed(run("assistant.py", chat_file, stdin="Hello.\n\n")).startswith("> ")
    # Its template refuses what only a conversation that was kept can be.
    remembers = "{% if messages | length == 4 %}{{ raise_exception('kept it') }}{% endif %}"
    file = chatting(tmp_path / "remembers", tokenizer_json, remembers + TEMPLATE)
    assert "kept it" not in run("assistant.py", file, stdin="Hello.\n").stderr
    assert "kept it" in run("assistant.py", file, stdin="Hello.\nAnd?\n").stderr
    assert run("assistant.py").stderr.startswith("An assistant in the shell")


def test_many_prompts_are_answered_as_each_alone(tmp_path: Path) -> None:
    prompts = ["Once upon a time", "The dog", "She said"] * 7
    lines = [json.dumps({"prompt": prompt, "id": n}) for n, prompt in enumerate(prompts)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    printed(run("many_prompts.py", tmp_path / "in.jsonl", tmp_path / "out.jsonl"))
    told = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sorted(record["id"] for record in told) == list(range(21))
    with LLM() as llm:
        params = SamplingParams(max_tokens=100, temperature=0)
        alone = {prompt: llm.generate(prompt, params).text for prompt in set(prompts)}
    assert all(record["text"] == alone[record["prompt"]] for record in told)


def test_extracted_facts_fit_the_schema() -> None:
    facts = json.loads(printed(run("extract.py", "Lily is five and has a red ball.")))
    assert list(facts) == ["name", "age", "toys"]
    assert isinstance(facts["name"], str)
    assert 0 <= facts["age"] <= 99
    assert len(facts["toys"]) <= 3


def test_the_likelier_sentence_comes_first() -> None:
    worse, better = "Dog the home ran the.", "The dog ran home."
    lines = printed(run("likelier.py", worse, better)).splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines] == [better, worse]
    first, second = (float(line.split()[0]) for line in lines)
    assert first < second


def test_the_web_application_streams_a_story() -> None:
    server = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "--app-dir", "examples", "--port", "0", "web_app:app"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        lines = iter(server.stderr.readline, "")
        url = next(found[0] for line in lines if (found := re.search(r"http://[0-9.:]+", line)))
        with httpx.Client(base_url=url, timeout=live_server.PATIENCE_S, trust_env=False) as client:
            assert "<form>" in client.get("/").text
            with client.stream("GET", "/story", params={"begun": "The dog"}) as answer:
                assert answer.status_code == 200
                assert "".join(answer.iter_text()).strip()
            assert client.get("/story", params={"begun": "a" * 501}).status_code == 422
    finally:
        server.kill()
        server.communicate()


def test_a_program_written_for_openai_s_interface_only_changes_its_address(chat_file: Path) -> None:
    with live_server.serving(str(chat_file), "--api-key", KEY) as live:
        where = {"OPENAI_BASE_URL": f"{live.url}/v1"}
        assert printed(run("openai_client.py", "Hello?", **where, OPENAI_API_KEY=KEY)).strip()
        assert "401" in run("openai_client.py", "Hello?", **where, OPENAI_API_KEY="sk-no").stderr


def test_that_program_asks_a_model_that_chats_where_the_first_does_not() -> None:
    with live_server.serving(DEFAULT, CHAT) as live:
        where = {"OPENAI_BASE_URL": f"{live.url}/v1"}
        assert printed(run("openai_client.py", "Hello?", **where)).strip()
        assert live.measure("trilobit_output_tokens_total", model=CHAT) > 0
        assert live.measure("trilobit_output_tokens_total", model=DEFAULT) == 0


def test_swapped_layers_learn_and_run_without_pytorch(tmp_path: Path) -> None:
    text = tmp_path / "fables.txt"
    text.write_text("\n".join(FABLES), encoding="utf-8")
    out = printed(run("bitlinear.py", text, "--steps", 60, "--folder", tmp_path))
    before, _, after = (float(bits) for bits in re.findall(r"([0-9.]+) bits a byte", out))
    assert after < before < 8
    assert (tmp_path / "bytes.trilobit").exists()


def test_examples_are_short_and_each_has_its_test() -> None:
    tests = "".join(
        (ROOT / "tests" / "project" / name).read_text()
        for name in ("test_examples.py", "test_embedding_docs.py")
    )
    for example in EXAMPLES:
        assert len(example.read_text().splitlines()) <= LINES, example.name
        assert f'"{example.name}"' in tests or example.stem in tests, example.name
        assert f"({example.name})" in (ROOT / "examples" / "README.md").read_text(), example.name
