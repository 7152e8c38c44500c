"""What `deploy/` tells other programs is true of this server; two replicas behind a real nginx."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from live_server import PATIENCE_S, Live, serving

from trilobit.cli.serve import command

DEPLOY = Path(__file__).parents[2] / "deploy"
ASKED: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 60, "temperature": 0}
KEY = "a" * 32
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin")


@pytest.fixture(scope="module")
def replicas() -> Iterator[list[Live]]:
    with serving("--api-key", KEY) as one, serving("--api-key", KEY) as two:
        yield [one, two]


def asking(url: str, **headers: str) -> httpx.Client:
    return httpx.Client(
        base_url=url,
        timeout=PATIENCE_S,
        trust_env=False,
        headers={"authorization": f"Bearer {KEY}"} | headers,
    )


def test_the_board_shows_what_the_server_counts_and_all_of_it(replicas: list[Live]) -> None:
    with asking(replicas[0].url) as client:
        client.post("/v1/completions", json=ASKED).raise_for_status()
        text = client.get("/metrics").text
        while "trilobit_requests_total{" not in text:  # a request is counted behind its answer
            text = client.get("/metrics").text
    served = set(re.findall(r"^# TYPE (\w+) (?:counter|gauge|histogram)", text, re.MULTILINE))
    served = {name for name in served if not name.endswith("_created")}
    board = json.loads((DEPLOY / "grafana" / "trilobit.json").read_text())
    exprs = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    shown = set(re.findall(r"trilobit_\w+", " ".join(exprs)))
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown} == served
    used = set(re.findall(r"by \(([^)]*)\)", " ".join(exprs)))
    labels = set(re.findall(r'(\w+)="', text)) | {"le"}
    assert {name.strip() for one in used for name in one.split(",")} <= labels


def test_every_option_in_the_files_is_one_of_the_server() -> None:
    known = {name for one in command.params for name in one.opts}
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    unit = re.search(r"^ExecStart=(.*)$", (DEPLOY / "trilobit.service").read_text(), re.MULTILINE)
    entry = re.search(r"^ENTRYPOINT (.*)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert unit is not None
    assert entry is not None
    given = [
        *unit[1].split(),
        *json.loads(entry[1]),
        *compose["services"]["trilobit"]["command"],
    ]
    options = {word for word in given if word.startswith("--")}
    assert {"--memory", "--api-key-file", "--host", "--json-logs"} <= options <= known
    for path in re.findall(r"- (\./[^:]+):", (DEPLOY / "compose.yaml").read_text()):
        assert (DEPLOY / path).exists()
    assert (DEPLOY.parent / compose["services"]["trilobit"]["build"]["dockerfile"]).exists()


# ---- nginx --------------------------------------------------------------------------------------


@pytest.fixture
def balanced(tmp_path: Path, replicas: list[Live]) -> Iterator[str]:
    """The address of nginx in front of both, with the file as it is but for addresses."""
    if NGINX is None:
        pytest.skip("nginx is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = (DEPLOY / "nginx.conf").read_text().replace("listen 8080", f"listen 127.0.0.1:{port}")
    for number, live in enumerate(replicas, 8081):
        text = text.replace(f"127.0.0.1:{number}", live.url.removeprefix("http://"))
    kept = "client_body proxy fastcgi uwsgi scgi".split()
    paths = " ".join(f"{one}_temp_path {tmp_path}/{one};" for one in kept)
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/pid; error_log stderr; worker_processes 1; daemon off; events {{}}\n"
        f"http {{ access_log off; {paths}\n{text}\n}}"
    )
    arguments = [NGINX, "-p", str(tmp_path), "-e", "stderr", "-c", str(tmp_path / "nginx.conf")]
    tried = subprocess.run([*arguments, "-t"], capture_output=True, text=True, check=False)
    assert tried.returncode == 0, tried.stderr
    process = subprocess.Popen(arguments)
    try:
        for _ in range(1000):
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def answered(replicas: list[Live]) -> list[float]:
    """Completions that each has given."""
    counts = []
    for live in replicas:
        with asking(live.url) as client:
            text = client.get("/metrics").text
        found = re.search(
            r'trilobit_requests_total\{route="/v1/completions",status="200"\} (\S+)', text
        )
        counts.append(float(found[1]) if found else 0.0)
    return counts


def test_a_conversation_stays_on_its_replica_and_streams(
    balanced: str, replicas: list[Live]
) -> None:
    before = answered(replicas)
    with asking(balanced) as client:
        for _ in range(4):
            client.post("/v1/completions", json=ASKED).raise_for_status()
    gains = [after - was for after, was in zip(answered(replicas), before, strict=True)]
    assert sorted(gains) == [0, 4]
    before = answered(replicas)
    for number in range(24):
        with asking(balanced, **{"x-session-id": f"talk {number}"}) as client:
            client.post("/v1/completions", json=ASKED | {"max_tokens": 1}).raise_for_status()
    assert all(after > was for after, was in zip(answered(replicas), before, strict=True))
    with asking(replicas[0].url) as client:
        whole = client.post("/v1/completions", json=ASKED).json()["choices"][0]["text"]
    with (
        asking(balanced) as client,
        client.stream("POST", "/v1/completions", json=ASKED | {"stream": True}) as stream,
    ):
        lines = [line[6:] for line in stream.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    texts = [json.loads(line)["choices"][0]["text"] for line in lines[:-1]]
    assert "".join(texts) == whole
    assert len(texts) > 1
    with httpx.Client(base_url=balanced, trust_env=False) as client:
        assert client.post("/v1/completions", json=ASKED).status_code == 401
        assert client.get("/health").status_code == 200


def test_of_a_replica_that_is_gone_another_takes_over(balanced: str, replicas: list[Live]) -> None:
    with asking(balanced) as client:
        before = answered(replicas)
        client.post("/v1/completions", json=ASKED).raise_for_status()
        gains = [after - was for after, was in zip(answered(replicas), before, strict=True)]
        gone = replicas[gains.index(1)]
        assert gone.stop() == 0
        for _ in range(3):
            client.post("/v1/completions", json=ASKED).raise_for_status()
