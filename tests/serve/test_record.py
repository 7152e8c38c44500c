"""What is logged on request comes out again, to the byte; nothing is logged otherwise."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from live_server import PATIENCE_S, serving

from trilobit.errors import FormatError
from trilobit.serve.record import read

BODIES = [
    {"prompt": "Once upon a time", "max_tokens": 40, "temperature": 1.3},
    {"prompt": ["A dog", "A cat"], "n": 3, "max_tokens": 30, "seed": 5, "stop": [".", "the"]},
    {"prompt": "The end", "max_tokens": 30, "logprobs": 4, "logit_bias": {"7": -5.5}},
    {"prompt": "Bird", "max_tokens": 20, "stream": True, "frequency_penalty": 0.7, "top_p": 0.8},
]


def replay(log: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trilobit", "replay", str(log), *options],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    with serving("--request-log", str(path), "--threads", "2") as live, live.client() as client:
        for body in BODIES * 2:
            assert client.post("/v1/completions", json=body).status_code == 200
        long = {"prompt": "On", "max_tokens": 400, "n": 8, "stream": True, "ignore_eos": True}
        with client.stream("POST", "/v1/completions", json=long) as left:
            next(left.iter_text())
        live.stop()
    return path


def test_a_replay_is_the_same_to_the_byte_on_other_threads(log: Path) -> None:
    done = replay(log, "--threads", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"11 prompts, 26 answers: all the same\n", done.stdout)


def test_a_log_is_for_its_owner_only(log: Path) -> None:
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_an_answer_that_is_not_the_same_is_told(log: Path, tmp_path: Path) -> None:
    lines = log.read_text().splitlines()
    changed = json.loads(lines[1])
    changed["outputs"][2]["text"] += "!"
    other = tmp_path / "changed.jsonl"
    other.write_text("\n".join([lines[0], json.dumps(changed)]))
    done = replay(other)
    assert done.returncode == 1
    assert "line 2: choice 2 came out otherwise" in done.stdout


def test_a_log_in_which_nothing_was_asked_proves_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    done = replay(tmp_path / "empty.jsonl")
    assert done.returncode == 2
    assert "empty.jsonl: nothing was asked in it; give the log of a server that was" in done.stderr


def test_a_log_of_another_model_is_refused(log: Path, tmp_path: Path, model_file: Path) -> None:
    line = json.loads(log.read_text().splitlines()[0])
    line["options"]["context"] = 100
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(line))
    done = replay(other, "-m", str(model_file))
    assert done.returncode == 2
    assert "line 1: was answered by " in done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"format": "trilobit-requests-1"}',
        '{"format": "trilobit-requests-2"}',
        '{"format": "trilobit-requests-1", "model": "m", "fingerprint": "f", "options": {}, '
        '"prompt": [1], "params": {}, "outputs": [{}]}',
        '{"format": "trilobit-requests-1", "model": "m", "fingerprint": "f", "options": '
        '{"context": 1, "kv_dtype": "f16"}, "prompt": [1], "params": {"top_p": 9}, "outputs": []}',
        '{"format": "trilobit-requests-1", "model": "m", "fingerprint": "f", "options": '
        '{"context": 1, "kv_dtype": "f16"}, "prompt": [1], "params": {}, "outputs": []}',
        '{"format": "trilobit-requests-1", "model": "m", "fingerprint": "f", "options": '
        '{"context": 1, "kv_dtype": "f16"}, "prompt": 1, "params": {"x": 1}, "outputs": 3}',
    ],
)
def test_a_line_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(FormatError, match="line 1 "):
        list(read(path))
