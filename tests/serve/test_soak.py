"""A little of each part of `make soak`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import soak
from live_server import PATIENCE_S, Live, serving

from trilobit.bundled import DEFAULT


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    settings = {"queue": 16, "engine": {"max_sequences": 16}, "sender_s": PATIENCE_S}
    with serving(settings={"models": {DEFAULT: DEFAULT}} | settings) as server:
        yield server


@pytest.fixture(scope="module")
def wanted(live: Live) -> list[str]:
    return asyncio.run(soak.alone(live, 12))


def test_no_text_of_a_crowd_is_lost_mixed_or_changed(live: Live, wanted: list[str]) -> None:
    asyncio.run(soak.crowd(live, wanted, clients=16, each=3))


def test_who_leaves_at_any_point_changes_nobodys_text(live: Live, wanted: list[str]) -> None:
    asyncio.run(soak.leavers(live, wanted, 60, at_once=8))


def test_a_burst_is_served_or_refused_and_nobody_waits_for_nothing(
    live: Live, wanted: list[str]
) -> None:
    refused = asyncio.run(soak.burst(live, wanted, 4 * 32))
    assert 0 < len(refused) <= 3 * 32


def test_slow_ones_keep_nobody_waiting(live: Live, wanted: list[str]) -> None:
    asyncio.run(soak.slow_ones(live, wanted, senders=60, readers=12))


def test_schemas_of_all_kinds_leave_the_server_well(live: Live, wanted: list[str]) -> None:
    asyncio.run(soak.schemas(live, 48))
    asyncio.run(soak.crowd(live, wanted, clients=4, each=2))
