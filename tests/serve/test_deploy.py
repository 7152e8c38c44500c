"""What `deploy/` tells other programs is true of this server; two replicas behind a real nginx."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from live_server import PATIENCE_S, Live, serving
from ports import kept_port

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


def is_open(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def balancing(folder: Path, *urls: str) -> Iterator[str]:
    """nginx before two servers, with its file as it is but for addresses, and for its patience."""
    if NGINX is None:
        pytest.skip("nginx is not installed")
    text = (DEPLOY / "nginx.conf").read_text()
    for number, url in enumerate(urls, 8081):
        text = text.replace(f"127.0.0.1:{number}", url.removeprefix("http://"))
    for patience in ("proxy_connect_timeout 2s", "client_header_timeout 30s"):
        assert patience in text
        text = text.replace(patience, f"{patience.split()[0]} {PATIENCE_S}s")
    kept = "client_body proxy fastcgi uwsgi scgi".split()
    paths = " ".join(f"{one}_temp_path {folder}/{one};" for one in kept)
    arguments = [NGINX, "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]
    with kept_port() as port:
        text = text.replace("listen 8080", f"listen 127.0.0.1:{port}")
        (folder / "nginx.conf").write_text(
            f"pid {folder}/pid; error_log stderr; worker_processes 1; daemon off; events {{}}\n"
            f"http {{ access_log off; {paths}\n{text}\n}}"
        )
        tried = subprocess.run([*arguments, "-t"], capture_output=True, text=True, check=False)
        assert tried.returncode == 0, tried.stderr
        process = subprocess.Popen(arguments)
        try:
            while not is_open(port):
                assert process.poll() is None
                time.sleep(0.01)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


@pytest.fixture
def balanced(tmp_path: Path, replicas: list[Live]) -> Iterator[str]:
    """The address of nginx in front of both, with the file as it is but for addresses."""
    with balancing(tmp_path, *(live.url for live in replicas)) as url:
        yield url


def answered(replicas: list[Live]) -> list[float]:
    """Completions that each has given; a request is counted when its place is free again."""
    counts = []
    for live in replicas:
        with asking(live.url) as client:
            while "trilobit_places_taken 0.0\n" not in (text := client.get("/metrics").text):
                pass
        found = re.search(
            r'trilobit_requests_total\{route="/v1/completions",status="200"\} (\S+)', text
        )
        counts.append(float(found[1]) if found else 0.0)
    return counts


def test_a_conversation_stays_on_its_replica_and_a_stream_comes_whole(
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
    with httpx.Client(base_url=balanced, timeout=PATIENCE_S, trust_env=False) as client:
        assert client.post("/v1/completions", json=ASKED).status_code == 401
        assert client.get("/health").status_code == 200


def test_what_a_replica_says_goes_on_before_it_says_more(tmp_path: Path) -> None:
    heard = threading.Event()

    class Slow(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(b"data: 1\n\n")
            self.wfile.flush()
            assert heard.wait(PATIENCE_S)
            self.wfile.write(b"data: 2\n\n")

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            with (
                balancing(tmp_path, url, url) as balanced,
                asking(balanced) as client,
                client.stream("GET", "/") as stream,
            ):
                lines = stream.iter_lines()
                assert next(lines) == "data: 1"
                heard.set()
                assert [line for line in lines if line] == ["data: 2"]
        finally:
            heard.set()
            server.shutdown()


def test_of_a_replica_that_is_gone_another_takes_over(balanced: str, replicas: list[Live]) -> None:
    with asking(balanced) as client:
        before = answered(replicas)
        client.post("/v1/completions", json=ASKED).raise_for_status()
        gains = [after - was for after, was in zip(answered(replicas), before, strict=True)]
        gone = replicas[gains.index(1)]
        assert gone.stop() == 0
        for _ in range(3):
            client.post("/v1/completions", json=ASKED).raise_for_status()
