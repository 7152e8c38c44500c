"""What docs/serve.md says to type, typed, on ports that are free."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import PATIENCE_S, Live, serving

from trilobit.cli.serve import command
from trilobit.serve.app import create_app
from trilobit.serve.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs/serve.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8080"


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving() as server:
        yield server


def test_the_python_of_the_page_runs(live: Live) -> None:
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert ADDRESS in code
    code = code.replace(ADDRESS, live.url)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert len(done.stdout) > 80


def test_the_curl_of_the_page_runs(live: Live) -> None:
    [line] = re.findall(r"^curl .*?[^\\]$", PAGE, re.DOTALL | re.MULTILINE)
    done = subprocess.run(
        ["bash", "-c", line.replace("curl", "curl --noproxy '*' -fsS").replace(ADDRESS, live.url)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert '"text":' in done.stdout


def test_the_options_and_routes_of_the_page_are_there() -> None:
    options = {name for param in command.params for name in param.opts}
    assert set(re.findall(r"(?<![-\w])--[a-z][-a-z]+", PAGE)) - options <= {"--model", "--tasks"}
    paths = set(create_app(Settings(models={"m": "m"})).openapi()["paths"])
    told = set(re.findall(r"`(?:GET|POST)? ?(/[-a-z0-9/_]+)`", PAGE))
    assert told - {"/openapi.json"} <= paths
    assert paths - {"/v1/models/{name}"} <= told


def test_the_defaults_of_the_page_are_so() -> None:
    settings = Settings(models={"m": "m"})
    limits = {param.name: param.default for param in command.params}
    assert f"{limits['body_mb']} MB (`--body-mb`)" in PAGE
    assert f"{limits['max_sequences']} (`--max-sequences`), {limits['queue']} (`--queue`)" in PAGE
    assert f"{settings.sender_s:g} s; 408" in PAGE
    assert f"{settings.reader_s:g} s; the connection" in PAGE
    assert f"{settings.choices}, {settings.embeddings}; 400" in PAGE
    assert f"quiet for {settings.keep_alive_s:g} s" in PAGE
