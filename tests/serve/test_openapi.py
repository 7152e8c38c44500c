"""What the server says of itself is so: schemathesis asks all that its OpenAPI document allows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from live_server import Live, serving
from schemathesis.specs.openapi.checks import positive_data_acceptance

from trilobit.bundled import DEFAULT
from trilobit.serve.app import create_app
from trilobit.serve.settings import Settings


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving(settings={"models": {DEFAULT: DEFAULT}, "request_s": 2.0}) as server:
        yield server


def operations() -> dict[str, Any]:
    document = create_app(Settings(models={DEFAULT: DEFAULT})).openapi()
    schema = schemathesis.openapi.from_dict(document)
    found = [result.ok() for result in schema.get_all_operations()]
    return {f"{one.method.upper()} {one.path}": one for one in found}


@pytest.mark.parametrize("name", operations())
def test_every_answer_is_one_that_is_documented(live: Live, name: str) -> None:
    @given(case=operations()[name].as_strategy())
    @settings(max_examples=15, suppress_health_check=list(HealthCheck), deadline=None)
    def check(case: schemathesis.Case) -> None:
        # Ids of a vocabulary, roles of a template, sums of fields: no schema tells all of it.
        case.call_and_validate(base_url=live.url, excluded_checks=[positive_data_acceptance])

    check()


def test_all_that_is_served_is_in_the_document(live: Live) -> None:
    with live.client() as client:
        paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models"} <= set(paths)
    assert "422" not in str(paths)  # refusals are 400 here


def test_no_page_that_loads_scripts_from_elsewhere(live: Live) -> None:
    for path in ("/docs", "/redoc"):
        with live.client() as client:
            assert client.get(path).status_code == 404
