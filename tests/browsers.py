"""Chromium, as this system has it, for tests of pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

PATIENCE_MS = 120_000  # a hang, not a slow machine


@contextmanager
def chromium() -> Iterator[Browser]:
    """Skips where there is none, but where TRILOBIT_REQUIRE_CROSS asks for it."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if program is None:
        if os.environ.get("TRILOBIT_REQUIRE_CROSS"):
            pytest.fail("chromium not found, and TRILOBIT_REQUIRE_CROSS asks for it")
        pytest.skip("chromium not found")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as driver:
        # The sandbox cannot be had as root, as in CI; the pages are our own.
        found = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()
