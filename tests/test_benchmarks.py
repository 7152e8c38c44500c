"""The scripts in `benchmarks/` run and write what they say; how fast is not a matter for tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trilobit import _native

ROOT = Path(__file__).parent.parent


def script(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / name, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def result_of(name: str, path: Path, *arguments: str | Path) -> dict[str, Any]:
    done = script(name, *arguments, "--json", path)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text(encoding="utf-8"))


def test_kernels_stand_beside_the_limit_that_binds_them(tmp_path: Path) -> None:
    isa = _native.isas()[-1]
    arguments = ("--isas", isa, "--threads", 1, "--tokens", 1, "--repeats", 2)
    found = result_of("kernels.py", tmp_path / "kernels.json", *arguments)
    assert {"machine", "commit", "versions", "command"} <= found.keys()
    assert [one["kernel"] for one in found["results"]] == [
        "q, o",
        "k, v",
        "gate, up",
        "down",
        "head, screen",
    ]
    for one in found["results"]:
        rate, limit, weights = one["gb_per_s"], max(one["dram_read_gb_per_s"]), 8 / one["bits"]
        assert 0 < rate["least"] <= rate["median"] <= rate["most"]
        assert one["gmac_per_s"]["median"] == pytest.approx(rate["median"] * weights, rel=1e-2)
        if one["bound_by"] == "reads":
            assert one["fraction_of_bound"]["median"] == pytest.approx(
                rate["median"] / limit, rel=1e-2
            )


@pytest.mark.parametrize("kernel", [_native.linear_seconds, _native.screen_seconds])
def test_kernels_are_timed_as_often_as_asked(kernel: Any) -> None:
    for isa in _native.isas():
        seconds = kernel(isa, 4096, 4096, 1, threads=2, repeats=3)
        assert len(seconds) == 3
        assert min(seconds) > 0


@pytest.mark.parametrize("kernel", [_native.linear_seconds, _native.screen_seconds])
def test_kernels_of_no_size_are_refused(kernel: Any) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        kernel(_native.isa(), 0, 64, 1)
    with pytest.raises(ValueError, match="2\\^20"):
        kernel(_native.isa(), 64, 64, 1 << 13)
    with pytest.raises(ValueError, match="'i860' is not available here"):
        kernel("i860", 64, 64, 1)
    with pytest.raises(ValueError, match="'i860' is not available here"):
        _native.int8_gmac_per_s(1, 1, "i860")
