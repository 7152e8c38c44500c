"""The core as another compiler sees it, and under sanitizers.

In a file of its own, so that it is built beside the processors of `test_native.py`.
"""

from __future__ import annotations

import sys

import pytest
from core_builds import build, native_tests

from trilobit import _native

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sanitizers of gcc on Linux")


def test_clang_builds_the_core_without_warnings() -> None:
    build("clang", "core", "clang++")


def test_address_and_undefined_sanitizers_find_nothing() -> None:
    folder = build("asan", "native_tests", "g++", TRILOBIT_SANITIZE="address,undefined")
    assert native_tests(folder)["tested"] == _native.isas()


def test_thread_sanitizer_finds_nothing() -> None:
    folder = build("tsan", "native_tests", "g++", TRILOBIT_SANITIZE="thread")
    assert native_tests(folder)["tested"] == _native.isas()
