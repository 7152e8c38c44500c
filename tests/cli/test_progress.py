"""Whoever works tells how far it is, in one type; the library itself draws and prints nothing."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from trilobit import LLM, Embedder
from trilobit.bundled import DEFAULT
from trilobit.console import Bars
from trilobit.conversion import convert
from trilobit.model.shapes import resized, shape
from trilobit.progress import Progress, Transfer, named, steps
from trilobit.synth import synth


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRILOBIT_HOME", str(tmp_path / "home"))
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 300}
    config = resized(shape("2b4t"), {**small, "num_attention_heads": 2, "num_key_value_heads": 1})
    synth(config, tmp_path / "tiny")
    return tmp_path / "tiny"


def test_packing_a_folder_is_told_to_its_end(checkpoint: Path) -> None:
    told: list[Progress] = []
    with LLM(checkpoint, progress=told.append):
        pass
    assert {one.what for one in told} == {f"Packing {checkpoint}"}
    assert [one.done for one in told] == list(range(1, told[-1].total + 1))
    again: list[Progress] = []
    with LLM(checkpoint, progress=again.append):
        pass
    assert again == []  # it is packed already


def test_embedding_tells_its_tokens() -> None:
    told: list[Progress] = []
    embedder = Embedder(DEFAULT, max_batch_tokens=4)
    embedder.encode(["Once upon a time there was a dog", "The end."], progress=told.append)
    done = [one.done for one in told]
    assert len(done) > 2
    assert done == sorted(set(done))
    assert (told[-1].what, told[-1].done) == ("Embedding", told[-1].total)


def test_a_conversion_is_told_by_the_name_of_its_source(checkpoint: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    convert(checkpoint, tmp_path / "m.gguf", progress=told.append)
    assert {one.what for one in told} == {"Converting tiny"}
    assert told[-1].done == told[-1].total


def test_bytes_add_up_and_names_can_be_changed() -> None:
    told: list[Progress] = []
    transfer = Transfer(named(told.append, "Fetching"), "something", 10)
    transfer.advance(4)
    transfer.advance(6)
    assert told == [
        Progress(what="Fetching", done=done, total=10, unit="bytes") for done in (4, 10)
    ]
    assert steps(None, "nobody watches") is None
    assert named(None, "nobody watches") is None
    Transfer(None, "nobody watches", 1).advance(1)


def test_bars_are_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def drawn(stream: io.StringIO) -> str:
        monkeypatch.setattr(sys, "stderr", stream)
        with Bars() as bars:
            bars(Progress(what="Fetching \x1b[31m", done=1, total=3, unit="bytes"))
            bars(Progress(what="Packing", done=1, total=2))
            bars(Progress(what="Packing", done=2, total=2))
        return stream.getvalue()

    monkeypatch.setenv("TERM", "xterm")
    seen = drawn(Terminal())
    assert "Fetching ␛[31m" in seen
    assert "Packing" in seen
    assert drawn(io.StringIO()) == ""
    monkeypatch.setenv("TERM", "dumb")
    assert drawn(Terminal()) == ""


def test_the_library_is_silent_where_nobody_watches(checkpoint: Path) -> None:
    code = f"from trilobit import LLM; LLM({str(checkpoint)!r}).generate([1, 2]).token_ids"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
