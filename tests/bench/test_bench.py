"""`trilobit bench` measures what it says; how fast is not a matter for tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trilobit import LLM, RequestError
from trilobit.bench.limits import measure_limits
from trilobit.bench.speed import measure_speed
from trilobit.engine.blocks import block_bytes, blocks_for
from trilobit.formats.packed.reader import PackedModel
from trilobit.machine import cores
from trilobit.model import tensor_names


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trilobit", "bench", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_json_has_the_figures_and_their_limits(model_file: Path) -> None:
    done = bench(model_file, "--prompt", 40, "--generate", 8, "--threads", 1, "--runs", 2, "--json")
    assert done.returncode == 0, done.stderr
    speed = json.loads(done.stdout)
    for figure in (
        "prefill_tokens_per_s",
        "decode_tokens_per_s",
        "dram_read_gb_per_s",
        "int8_gmac_per_s",
        "decode_fraction_of_dram",
        "prefill_fraction_of_int8",
    ):
        least, most = speed["spread"][figure]
        assert 0 < least <= speed[figure] <= most
    parts = [speed[f"{part}_mb"] for part in ("weights", "kv_cache", "other")]
    assert sum(parts) == pytest.approx(speed["peak_rss_mb"])
    assert min(parts) > 0
    blocks = blocks_for(48) * block_bytes(LLM(model_file).config, "f16")
    assert speed["kv_cache_mb"] == pytest.approx(blocks / 1e6)
    assert speed["load_s"] > 0
    assert speed["first_token_s"] > speed["load_s"]
    assert speed["model_bytes"] == model_file.stat().st_size
    assert (speed["threads"], speed["prompt_tokens"], speed["generated_tokens"]) == (1, 40, 8)
    assert (speed["threads_why"], speed["decode_threads"]) == ("as asked", 1)


def test_threads_are_said_with_their_reason(model_file: Path) -> None:
    arguments = (model_file, "--prompt", 4, "--generate", 2, "--runs", 1)
    asked = bench(*arguments, "--threads", 2)
    assert (
        ", 2 threads (as asked; 1 for a token, whose step is too short to share), " in asked.stdout
    )
    default = bench(*arguments)
    assert f"{cores().count} thread" in default.stdout
    assert f"({cores().why}" in default.stdout


def test_fractions_are_those_of_their_own_run(model_file: Path) -> None:
    speed = measure_speed(model_file, prompt=20, generate=10, threads=1, runs=1)
    weights = LLM(model_file).config.ternary_parameters
    assert speed.prefill_fraction_of_int8.median == pytest.approx(
        speed.prefill_tokens_per_s.median * weights / (speed.int8_gmac_per_s.median * 1e9)
    )
    assert speed.decode_fraction_of_dram.median == pytest.approx(
        speed.decode_tokens_per_s.median
        * speed.decode_bytes_per_token
        / (speed.dram_read_gb_per_s.median * 1e9)
    )


def test_screened_head_needs_fewer_bytes_than_the_full_head(model_file: Path) -> None:
    screened, full = (
        measure_speed(model_file, prompt=4, generate=4, threads=1, runs=1, head=head)
        for head in ("screened", "full")
    )
    tensors = PackedModel(model_file).file.tensors
    table = tensors["model.embed_tokens.weight"].size_bytes
    screen = sum(tensors[name].size_bytes for name in tensor_names.SCREEN)
    fine = tensors[tensor_names.FINE_CODES].size_bytes
    saved = full.decode_bytes_per_token - screened.decode_bytes_per_token
    assert table - screen < saved <= table - screen + fine  # of the fine plane a part is read


def test_shape_is_written_once_and_kept(tmp_path: Path) -> None:
    arguments = (
        "--shape",
        "125m",
        "--prompt",
        4,
        "--generate",
        2,
        "--runs",
        1,
        "--folder",
        tmp_path,
    )
    assert bench(*arguments).returncode == 0
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    assert bench(*arguments).returncode == 0
    assert file.stat().st_mtime_ns == written


def test_making_a_shape_is_not_memory_of_its_model(tmp_path: Path) -> None:
    arguments = ("--shape", "350m", "--prompt", 4, "--generate", 2, "--runs", 1, "--json")
    made, kept = (
        json.loads(bench(*arguments, "--folder", tmp_path).stdout)["peak_rss_mb"] for _ in range(2)
    )
    assert made < 1.1 * kept  # pages come and go; in the same process it was half as much again


def test_a_layout_that_a_shape_cannot_have_makes_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    done = bench("--shape", "bonsai-1.7b", "--layout", "1.6-bit", "--folder", folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: bonsai-1.7b: its scales are by group, which the 1.6-bit layout does not hold; "
        "leave out layout, or give it 2-bit\n"
    )
    assert not folder.exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    done = bench("--shape", "125m", "--folder", tmp_path)
    assert done.returncode == 2
    assert "cannot be written" in done.stderr.splitlines()[-1]


def test_limits_come_from_a_process_of_their_own() -> None:
    limits = measure_limits(1)
    assert limits.dram_read_gb_per_s > 0
    assert limits.int8_gmac_per_s > 0


def test_more_tokens_than_the_context_are_refused(model_file: Path) -> None:
    with pytest.raises(RequestError, match=r"more than the context of 1100; lower --prompt"):
        measure_speed(model_file, prompt=1100, generate=8, threads=1, runs=1)


def test_model_and_shape_together_are_refused(model_file: Path) -> None:
    done = bench(model_file, "--shape", "125m")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
