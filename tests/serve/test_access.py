"""Who may come in: by key, by the name that is asked, by the page that asks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import click
import httpx
import pytest
from live_server import Live, serving

from trilobit.bundled import DEFAULT
from trilobit.cli.serve import command
from trilobit.errors import TrilobitError
from trilobit.serve.app import create_app
from trilobit.serve.auth import OPEN, OPEN_BELOW
from trilobit.serve.settings import Settings

KEYS = ("first-key", "second-key", "third-key")
PAGE = "https://app.example"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    file.write_text(f"{KEYS[1]}\n")
    options = ("--api-key", KEYS[0], "--api-key-file", str(file), "--cors", PAGE)
    with serving(*options, TRILOBIT_API_KEY=KEYS[2]) as server:
        yield server


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[httpx.Client]:
    with live.client() as made:
        yield made


def routes() -> list[tuple[str, str]]:
    """Every route of the app: method and path."""
    left = list(create_app(Settings(models={DEFAULT: DEFAULT})).routes)
    found = []
    while left:
        route = left.pop()
        inner = getattr(route, "original_router", route)  # FastAPI's own included routers
        left += getattr(inner, "routes", None) or []
        found += [(method, route.path) for method in sorted(getattr(route, "methods", None) or ())]
    assert {"/v1/chat/completions", "/metrics", "/openapi.json"} <= {path for _, path in found}
    return sorted(found)


@pytest.mark.parametrize(("method", "path"), routes())
def test_every_route_but_health_and_the_pages_files_asks_for_a_key(
    client: httpx.Client, method: str, path: str
) -> None:
    path = path.replace("{name:path}", DEFAULT)
    open_to_all = path in OPEN or path.startswith(OPEN_BELOW)
    assert (client.request(method, path).status_code == 401) != open_to_all
    wrong = {"authorization": "Bearer first-ke"}
    assert (client.request(method, path, headers=wrong).status_code == 401) != open_to_all


@pytest.mark.parametrize("path", ["/nope", "/v1/models/../../metrics", "/health/"])
def test_what_is_no_route_asks_for_a_key_too(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 401


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_option_file_or_environment_opens_in_either_header(
    client: httpx.Client, key: str
) -> None:
    for header in ({"Authorization": f"Bearer {key}"}, {"x-api-key": key}):
        assert client.get("/v1/models", headers=header).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer -"},
        {"Authorization": f"Basic {KEYS[0]}"},
        {"Authorization": KEYS[0]},
        {"x-api-key": ""},
        {"x-api-key": KEYS[0].upper()},
        {"x-api-key": f"{KEYS[0]} {KEYS[1]}"},
    ],
)
def test_nothing_else_opens(client: httpx.Client, header: dict[str, str]) -> None:
    refused = client.get("/v1/models", headers=header)
    assert refused.status_code == 401
    assert refused.json()["error"]["code"] == "invalid_api_key"
    assert "first-key" not in refused.text.lower()


def test_a_key_in_the_address_opens_nothing(client: httpx.Client) -> None:
    assert client.get("/v1/models", params={"api_key": KEYS[0]}).status_code == 401


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:1234", 200),
        ("127.0.0.1", 200),
        ("[::1]:8080", 200),
        ("a.localhost", 200),
        ("evil.example", 403),
        ("evil.example:8080", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("", 403),
    ],
)
def test_a_name_that_was_bent_to_this_address_is_refused(
    client: httpx.Client, host: str, status: int
) -> None:
    assert client.get("/health", headers={"Host": host}).status_code == status


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1"])
def test_a_page_of_another_server_may_not_ask(client: httpx.Client, origin: str) -> None:
    headers = {"Origin": origin, "x-api-key": KEYS[0]}
    answer = client.get("/v1/models", headers=headers)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_the_servers_own_page_and_a_named_one_may_ask(live: Live, client: httpx.Client) -> None:
    own = client.get("/v1/models", headers={"Origin": live.url, "x-api-key": KEYS[0]})
    assert own.status_code == 200
    named = client.get("/v1/models", headers={"Origin": PAGE, "x-api-key": KEYS[0]})
    assert named.headers["access-control-allow-origin"] == PAGE
    before = client.options(
        "/v1/chat/completions",
        headers={
            "Origin": PAGE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type",
        },
    )
    assert before.status_code == 200
    assert before.headers["access-control-allow-origin"] == PAGE
    keyless = client.get("/v1/models", headers={"Origin": PAGE})
    assert keyless.status_code == 401
    assert keyless.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "--no-api-key"),
        (["--host", "192.0.2.1", "--no-api-key"], "192.0.2.1 port 0: "),
        (["--cors", "*"], "--cors *"),
        (["--cors", "https://a.example/path"], "--cors"),
        (["--api-key", "two words"], "a key"),
        (["--api-key", ""], "a key"),
        (["--api-key-file", "/dev/null"], "has no key"),
        (["--api-key-file", "gone.txt"], "gone.txt: cannot be read (No such file or directory); g"),
        (["--timeout-s", "nan"], "'nan' is no number"),
        (["--drain-s", "nan"], "'nan' is no number"),
        (["--api-key", "k", "--no-api-key"], "leave out one"),
        (["--tls-cert", __file__], "give both"),
        (["--tls-cert", __file__, "--tls-key", __file__], "no certificate"),
        (["--prefix-cache-gb", "5"], "--prefix-cache-gb: of no folder"),
        (["--prefix-cache", "/tmp", "--prefix-cache-gb", "0"], "prefix_cache_gb is 0"),
        (["--max-sequences", "0"], "max_sequences is 0"),
        (["x=trilobit-stories-5m", "x=trilobit-stories-5m"], "two models are named x"),
        (["no-such-model"], "no-such-model"),
    ],
)
def test_a_start_that_cannot_be_says_why(arguments: list[str], said: str) -> None:
    with pytest.raises((click.UsageError, TrilobitError)) as caught:
        command.main(["--port", "0", *arguments], standalone_mode=False)
    words = str(caught.value)
    assert said in words
    assert len(words.splitlines()) == 1


def test_a_port_in_use_is_one_line_and_exit_2(live: Live) -> None:
    port = str(httpx.URL(live.url).port)
    done = subprocess.run(
        [sys.executable, "-m", "trilobit", "serve", "--port", port],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "in use" in done.stderr
    assert "--port" in done.stderr
    assert len(done.stderr.splitlines()) == 1
