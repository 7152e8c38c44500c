"""The scripts in `benchmarks/` run and write what they say; how fast is not a matter for tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trilobit import LLM, _native

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
    assert [(one["kernel"], one["bits"]) for one in found["results"]] == [
        *((name, bits) for name in ("q, o", "k, v", "gate, up", "down") for bits in (2, 1.6)),
        ("head, screen", 4),
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


COUNTS = {"isa": "avx2", "compiler": "GCC: (Debian) 12", "counts": {"decode": 1000, "head": 1000}}


def compared(folder: Path, kept: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The lines of instructions.py, of counts taken before."""
    paths = folder / "kept.json", folder / "now.json"
    for path, counts in zip(paths, (kept, now), strict=True):
        path.write_text(json.dumps(counts), encoding="utf-8")
    done = script("instructions.py", "--kept", paths[0], "--counted", paths[1])
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_instructions_are_those_of_the_core(tmp_path: Path) -> None:
    if "avx2" not in _native.isas():
        pytest.skip("counts are kept of AVX2")
    if shutil.which("valgrind") is None:
        assert not os.environ.get("TRILOBIT_REQUIRE_CROSS"), "valgrind not found"
        pytest.skip("valgrind not found; .ci/run installs it")
    found = result_of("instructions.py", tmp_path / "counts.json")
    assert {"machine", "commit", "versions", "command", "compiler"} <= found.keys()
    kept = json.loads((ROOT / "benchmarks/results/instructions.json").read_text(encoding="utf-8"))
    assert found["counts"].keys() == kept["counts"].keys()
    # An AVX2 instruction multiplies 32 weights, of which a step needs each once. The loading of the
    # model alone, or Python's start, would be hundreds of times as much.
    one, eight = (found["counts"][f"decode, {n}"] for n in ("1 sequence", "8 sequences"))
    products = LLM().config.ternary_parameters / 32
    assert products < one < 16 * products
    assert one < eight < 8 * one
    assert eight < found["counts"]["prefill, 64 tokens"] < 8 * eight


def test_a_change_of_instructions_beyond_3_percent_is_marked(tmp_path: Path) -> None:
    now = {**COUNTS, "counts": {"decode": 1031, "head": 970}}
    lines = compared(tmp_path, COUNTS, now)
    assert lines[1].split() == ["decode", "1,000", "1,031", "+3.10%", "<"]
    assert lines[2].split() == ["head", "1,000", "970", "-3.00%"]
    assert lines[3].startswith("< changed by more than 3 %")
    assert len(lines) == 4


def test_a_part_that_comes_or_goes_is_marked(tmp_path: Path) -> None:
    lines = compared(tmp_path, COUNTS, {**COUNTS, "counts": {"decode": 1000, "prefill": 5}})
    assert lines[1].split() == ["decode", "1,000", "1,000", "+0.00%"]
    assert lines[2].split() == ["head", "1,000", "-", "<"]
    assert lines[3].split() == ["prefill", "-", "5", "<"]


def test_counts_of_another_compiler_say_so(tmp_path: Path) -> None:
    lines = compared(tmp_path, COUNTS, {**COUNTS, "compiler": "GCC: (Debian) 14"})
    assert lines[-2] == "nothing changed by more than 3 %"
    assert "kept of GCC: (Debian) 12, now of GCC: (Debian) 14" in lines[-1]


def test_counts_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    done = script("instructions.py", "--kept", tmp_path / "none.json")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: {tmp_path}/none.json: holds no counts (No such file or directory); "
        "write some with --json"
    ]
