"""The scripts in `benchmarks/` run and write what they say; how fast is not a matter for tests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trilobit import LLM, _native
from trilobit.model import shapes

ROOT = Path(__file__).parents[2]
BUNDLED = "trilobit-stories-5m"
SCRIPTS = [
    *("busy.py", "gaps.py", "kernels.py", "speculation.py", "instructions.py", "head.py"),
    *("peers.py", "gguf_llamacpp.py", "llama_perplexity.py", "plot.py", "serving.py"),
    *("serving_peer.py", "training.py", "evaluation.py", "many.py"),
]


def script(
    name: str, *arguments: str | Path, **environment: str | Path
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / name, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {key: str(value) for key, value in environment.items()},
    )


def result_of(name: str, path: Path, *arguments: str | Path) -> dict[str, Any]:
    done = script(name, *arguments, "--json", path)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(path.read_text(encoding="utf-8"))


def test_kernels_stand_beside_the_limit_that_binds_them(tmp_path: Path) -> None:
    isa = _native.isas()[-1]
    arguments = ("--isas", isa, "--layouts", "1.6-bit", "--threads", 1, "--tokens", 1)
    found = result_of("kernels.py", tmp_path / "kernels.json", *arguments, "--repeats", 2)
    assert {"machine", "commit", "versions", "command"} <= found.keys()
    assert [(one["kernel"], one["bits"], one["share"]) for one in found["results"]] == [
        *(("q, o", 1.6, 1), ("k, v", 1.6, 1), ("gate", 1.6, 1)),
        *(("up", 1.6, 1), ("up, 50% of the rows", 1.6, 0.5), ("up, 20% of the rows", 1.6, 0.2)),
        ("down", 1.6, 1),
        ("down, 33% of the columns", 1.6, 0.33),
        ("down, 10% of the columns", 1.6, 0.1),
        ("head, coarse", 2, 1),
    ]
    for one in found["results"]:
        rate, limit, weights = one["gb_per_s"], max(one["dram_read_gb_per_s"]), 8 / one["bits"]
        assert 0 < rate["least"] <= rate["median"] <= rate["most"]
        assert one["gmac_per_s"]["median"] == pytest.approx(rate["median"] * weights, rel=1e-2)
        if one["bound_by"] == "reads":
            assert one["fraction_of_bound"]["median"] == pytest.approx(
                rate["median"] / limit, rel=1e-2
            )


def test_busy_machines_are_measured_beside_the_quiet_one(tmp_path: Path) -> None:
    arguments = ("--threads", 1, 2, "--loops", 0, 1, "--generate", 4, "--runs", 2)
    found = result_of("busy.py", tmp_path / "busy.json", *arguments)
    assert {"machine", "commit", "versions", "command", "cores", "isa"} <= found.keys()
    rows = {(one["threads"], one["loops"]): one for one in found["results"]}
    assert rows.keys() == {(threads, loops) for threads in (1, 2) for loops in (0, 1)}
    for (_, loops), one in rows.items():
        for part in ("prefill", "decode"):
            rate = one[f"{part}_tokens_per_s"]
            assert 0 < rate["least"] <= rate["median"] <= rate["most"]
            assert (f"{part}_of_quiet" in one) == (loops > 0)


def test_many_texts_stand_beside_the_products_of_all_weights(tmp_path: Path) -> None:
    arguments = ("--shape", "125m", "--gate-density", 0.2, "--sequences", 1, 3, "--threads", 1)
    where = ("--tokens", 2, "--rounds", 2, "--folder", tmp_path)
    found = result_of("many.py", tmp_path / "many.json", *arguments, *where)
    assert {"machine", "commit", "versions", "command", "isa"} <= found.keys()
    one, three = found["results"]
    assert (one["sequences"], three["sequences"]) == (1, 3)
    assert three["all_ms"] == pytest.approx(3 * one["all_ms"], rel=0.01)
    shape = shapes.shape("125m")
    hidden, ffn = shape.hidden_size, shape.intermediate_size
    macs = shape.num_hidden_layers * hidden * (4 * hidden + 3 * ffn) + shape.vocab_size * hidden
    rate = one["int8_gmac_per_s"]["most"]
    assert one["all_ms"] == pytest.approx(macs / rate / 1e6, rel=0.01)
    for row in found["results"]:
        count, step = row["sequences"], row["step_ms"]
        assert row["tokens_per_s"]["most"] == pytest.approx(count * 1e3 / step["least"], rel=1e-2)
        # beside its own round's rate, which is no higher than the highest
        assert row["share_of_int8"]["least"] >= 0.99 * row["all_ms"] / step["most"]


def test_a_file_that_llama_cpp_cannot_run_is_one_line_before_anything_is_measured(
    tmp_path: Path,
) -> None:
    done = script(
        *("busy.py", "--threads", 1, "--prompt", 4, "--generate", 2),
        *("--gguf", tmp_path / "no.gguf", "--peers-venv", tmp_path / "nowhere"),
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "no.gguf" in line
    assert "nowhere" in line


@pytest.mark.parametrize("kernel", [_native.linear_seconds, _native.screen_seconds])
def test_kernels_are_timed_as_often_as_asked(kernel: Any) -> None:
    for isa in _native.isas():
        seconds = kernel(isa, 4096, 4096, 1, threads=2, repeats=3)
        assert len(seconds) == 3
        assert min(seconds) > 0


@pytest.mark.parametrize("order", [_native.Order.rows, _native.Order.columns])
def test_products_with_what_counts_are_timed(order: _native.Order) -> None:
    for isa in _native.isas():
        seconds = _native.sparse_seconds(isa, 4096, 4096, order, 0.1, 2, threads=2, repeats=3)
        assert len(seconds) == 3
        assert min(seconds) > 0
    for refused, share, reason in (
        (_native.Order.groups, 0.1, "of groups all is read"),
        (order, -0.1, "share must be 0 to 1"),
        (order, 1.1, "share must be 0 to 1"),
    ):
        with pytest.raises(ValueError, match=reason):
            _native.sparse_seconds(_native.isa(), 64, 64, refused, share, 1)


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


def test_counts_of_another_instruction_set_say_so(tmp_path: Path) -> None:
    lines = compared(tmp_path, COUNTS, {**COUNTS, "isa": "neon"})
    assert lines[-1] == "kept of avx2, now of neon: these are not to be compared"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{}", "no isa"),
        ("[1]", "no JSON object"),
        ('{"isa": "avx2", "counts": {}}', "no compiler"),
        ('{"isa": "avx2", "compiler": "GCC", "counts": {"decode": null}}', "no counts by part"),
    ],
)
def test_what_holds_no_counts_is_one_line(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "counts.json"
    path.write_text(text, encoding="utf-8")
    done = script("instructions.py", "--counted", path)
    refused(done, f"error: {path}: holds no counts ({why}); write some with --json")


def refused(done: subprocess.CompletedProcess[str], line: str) -> None:
    """Exit 2, nothing measured, and this the last of what was said; argparse says usage before."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith(line)
    assert line.startswith("error") == (len(done.stderr.splitlines()) == 1)


@pytest.mark.parametrize(
    ("name", "arguments", "line"),
    [
        (
            "kernels.py",
            ("--tokens", "-1"),
            "kernels.py: error: argument --tokens: '-1' is no whole",
        ),
        ("kernels.py", ("--tokens", "1", "0"), "kernels.py: error: argument --tokens: '0' is no"),
        ("kernels.py", ("--repeats", "0"), "kernels.py: error: argument --repeats: '0' is no"),
        (
            "kernels.py",
            ("--threads", "1025"),
            "kernels.py: error: argument --threads: '1025' is no",
        ),
        ("kernels.py", ("--json", "."), "error: .: a directory"),
        ("speculation.py", ("--json", "."), "error: .: a directory"),
        ("speculation.py", ("--runs", "0"), "speculation.py: error: argument --runs: '0' is no"),
        (
            "speculation.py",
            ("--sequences", "x"),
            "speculation.py: error: argument --sequences: 'x'",
        ),
        ("speculation.py", ("nope",), "error: nope: neither a file nor a known model"),
        ("head.py", ("nope.trilobit", "README.md"), "error: nope.trilobit: no such file"),
        ("head.py", (BUNDLED, __file__), f"error: {__file__}: not JSON lines of texts"),
        ("training.py", ("none.toml",), "error: none.toml: cannot read the recipe (no such file)"),
        ("head.py", (BUNDLED, "none.jsonl"), "error: none.jsonl: No such file"),
        ("peers.py", ("--generate", "1"), "peers.py: error: argument --generate: '1' is no whole"),
    ],
)
def test_bad_input_is_refused_in_one_line(name: str, arguments: tuple[str, ...], line: str) -> None:
    refused(script(name, *arguments), line)


@pytest.mark.parametrize("name", ["kernels.py", "speculation.py", "instructions.py", "peers.py"])
def test_no_folder_is_made_for_a_result(name: str, tmp_path: Path) -> None:
    path = tmp_path / "none" / "result.json"
    refused(script(name, "--json", path), f"error: {path}: cannot be written")
    assert not path.parent.exists()


def test_the_screened_head_is_compared_by_the_name_of_a_model(tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"source": "tinystories", "text": "Once upon a time. " * 3}))
    done = script("head.py", BUNDLED, texts, "--positions", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{BUNDLED}.trilobit: ")
    assert "\ngreedy: 0 differ" in done.stdout
    texts.write_text(json.dumps({"source": "other", "text": "Once"}))
    refused(
        script("head.py", BUNDLED, texts), f"error: {texts}: every 50th line is a text held out"
    )


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.name)
def test_every_file_helps_with_what_is_installed_and_without(path: Path, tmp_path: Path) -> None:
    helped = script(path.name, "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert helped.stdout.startswith((f"usage: {path.name}", f"{path.name} is a part of "))
    for module in ("numpy", "gguf", "trilobit"):
        (tmp_path / f"{module}.py").write_text(f"raise ModuleNotFoundError(name={module!r})")
    bare = script(path.name, "--help", PYTHONPATH=tmp_path)
    assert (bare.returncode, bare.stderr) == (0, "")
    assert bare.stdout.strip()


@pytest.mark.parametrize(
    "name", ["cli.py", "counted_steps.py", "facts.py", "peer_engines.py", "peer_models.py"]
)
def test_a_part_of_a_script_says_whose_it_is(name: str) -> None:
    done = script(name)
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.startswith(f"{name} is a part of ")
    assert done.stdout.count("\n") == 1


INTERRUPTED = (130, "interrupted\n")
CTRL_C = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT that one process sends another")
@pytest.mark.parametrize("name", SCRIPTS)
def test_ctrl_c_while_modules_load_is_quiet(name: str, tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text(CTRL_C)
    done = script(name, PYTHONPATH=tmp_path)
    assert (done.returncode, done.stderr) == INTERRUPTED


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT that one process sends another")
@pytest.mark.parametrize(
    ("name", "forever", "quick"),
    [
        ("kernels.py", ["--isas", *[_native.isa()] * 9999], ["--tokens", "1", "--repeats", "1"]),
        ("speculation.py", ["--sequences", *["1"] * 9999], ["--runs", "1"]),
    ],
    ids=["kernels.py", "speculation.py"],
)
def test_ctrl_c_while_something_is_measured_is_quiet(
    name: str, forever: list[str], quick: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "result.json"
    words = ["--threads", "1", "--json", path, *forever, *quick]
    with subprocess.Popen(
        [sys.executable, "-u", ROOT / "benchmarks" / name, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        while not running.stdout.readline().strip():  # until the first figures
            assert running.poll() is None
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=120)
    assert (running.returncode, said) == INTERRUPTED
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="the compiler is a shell script")
def test_ctrl_c_while_instructions_are_counted_is_quiet(tmp_path: Path) -> None:
    if "avx2" not in _native.isas():
        pytest.skip("counts are kept of AVX2")
    for program, text in (("cc", "kill -INT $PPID; exec sleep 60"), ("valgrind", "exit 1")):
        (tmp_path / program).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / program).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = script("instructions.py", PATH=path, CC=tmp_path / "cc")
    assert (done.returncode, done.stderr) == INTERRUPTED


def test_perplexity_is_llama_cpp_s(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    found = result_of("llama_perplexity.py", tmp_path / "found.json", "--stories", "8")
    whole, one_block = found["results"]
    for row in (whole, one_block):
        theirs = row["llama.cpp's logits"]
        assert row["llama.cpp's logits, by trilobit"] == pytest.approx(theirs, rel=1e-5)
        # Ties move a token's logarithm by some 1e-2, of 510.
        assert row["transformers, in blocks"] == pytest.approx(theirs, rel=1e-3)
    assert one_block["trilobit"] == pytest.approx(one_block["llama.cpp's logits"], rel=1e-3)
    assert whole["trilobit"] == pytest.approx(whole["llama.cpp's logits"], rel=5e-3)


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("peers.py", "gguf", "gguf"),
        ("plot.py", "matplotlib", "matplotlib"),
        ("gguf_llamacpp.py", "llama_cpp", "llama-cpp-python"),
        ("llama_perplexity.py", "llama_cpp", "llama-cpp-python"),
    ],
)
def test_what_is_not_installed_is_one_line(
    name: str, module: str, package: str, tmp_path: Path
) -> None:
    # As if it were not: most of them are, where tests run
    (tmp_path / f"{module}.py").write_text(f"raise ModuleNotFoundError(name={module!r})")
    helped = script(name, "--help", PYTHONPATH=tmp_path)
    assert (helped.returncode, helped.stderr) == (0, "")
    assert helped.stdout.startswith(f"usage: {name}")
    done = script(name, PYTHONPATH=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {module} is not installed: {sys.executable} -m pip install {package}\n"
    )
