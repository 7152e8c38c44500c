"""A damaged file in the cache of packed models is packed again; anybody else's is left alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from trilobit import LLM, Embedder, FormatError, SamplingParams
from trilobit.bench.speed import measure_speed
from trilobit.cli.info import command as info
from trilobit.formats.packed.reader import PackedModel
from trilobit.hub import shelf
from trilobit.hub.cache import Entry, records
from trilobit.hub.models import model_file
from trilobit.model import tensor_names

GREEDY = SamplingParams(max_tokens=8, temperature=0)
SCALE = "model.layers.0.mlp.up_proj.weight_scale"
Damage = Callable[[Path], None]


def said(caplog: pytest.LogCaptureFixture) -> str:
    """What was logged since the last question, a line each."""
    lines = "".join(f"{line}\n" for line in caplog.messages)
    caplog.clear()
    return lines


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("TRILOBIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(home: Path, checkpoint: Path) -> Path:
    """A checkpoint that a test may change."""
    return Path(shutil.copytree(checkpoint, home.parent / "my model"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def without_a_scale(path: Path) -> None:
    """The header is sound; what is wrong shows when the values are read."""
    _overwrite(path, SCALE)


def without_a_tokenizer(path: Path) -> None:
    _overwrite(path, tensor_names.TOKENIZER)


def _overwrite(path: Path, tensor: str) -> None:
    place = PackedModel(path).file.info(tensor)
    with path.open("r+b") as file:
        file.seek(place.begin)
        file.write(bytes(place.size_bytes))


DAMAGES = [cut, empty, without_a_scale, without_a_tokenizer]


def tokens(model: str | Path) -> tuple[int, ...]:
    return tuple(LLM(model, threads=1).generate("Once upon a time", GREEDY).token_ids)


def vector(model: str | Path) -> bytes:
    return bytes(Embedder(model, threads=1).encode("Once upon a time").tobytes())


# ---- mended -----------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [tokens, vector])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_packed_again_and_this_is_told(
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Damage,
    answer: Callable[[str | Path], object],
) -> None:
    expected = answer(folder)
    path = model_file(folder)
    whole = path.read_bytes()
    damage(path)
    assert answer(folder) == expected
    err = said(caplog)
    assert err.startswith(f"{folder}: its packed file is damaged (")
    assert err.endswith("); packing it again\n")
    assert err.count("\n") == 1
    assert path.read_bytes() == whole
    assert answer(folder) == expected
    assert said(caplog) == ""


def test_by_the_path_in_the_cache_too(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected, path = tokens(folder), model_file(folder)
    cut(path)
    assert tokens(path) == expected
    assert "packing it again" in said(caplog)


def test_bench_mends_before_it_measures(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = model_file(folder)
    cut(path)
    assert measure_speed(path, prompt=2, generate=2, threads=1, runs=1).generated_tokens == 2
    assert "packing it again" in said(caplog)


def test_several_processes_pack_it_again_once(folder: Path) -> None:
    expected = tokens(folder)
    without_a_scale(model_file(folder))
    command = [sys.executable, "-m", "trilobit", "generate", "--model", str(folder), "--json"]
    command += ["Once upon a time", "--max-tokens", "8", "--temperature", "0", "--threads", "1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, **pipes) for _ in range(3)]
    ended = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], ended
    assert {tuple(json.loads(out)["token_ids"]) for out, _ in ended} == {expected}
    assert sum(err.count("packing it again") for _, err in ended) == 1, ended


def test_who_runs_the_damaged_file_goes_on(folder: Path) -> None:
    llm = LLM(folder, threads=1)
    expected = llm.generate("Once upon a time", GREEDY).token_ids
    without_a_tokenizer(model_file(folder))  # which is read once, in the beginning
    assert tokens(folder) == tuple(expected)
    assert llm.generate("upon a time", GREEDY).token_ids
    assert llm.generate("Once upon a time", GREEDY).token_ids == expected


# ---- not mended -------------------------------------------------------------------------------


def test_a_file_that_is_damaged_again_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = model_file(folder)
    cut(path)
    make = Entry.make

    def on_a_failing_disk(entry: Entry, *given: object) -> Path:
        made = make(entry, *given)  # type: ignore[arg-type]
        cut(made)
        return made

    monkeypatch.setattr(Entry, "make", on_a_failing_disk)
    with pytest.raises(FormatError) as error:
        LLM(folder, threads=1)
    assert str(error.value).startswith(f"{path}: its packed file is damaged (")
    assert str(error.value).endswith(
        f", though it was packed just now; look after the disk, or delete it: "
        f"trilobit rm '{folder}'"
    )
    assert said(caplog).count("packing it again") == 1
    assert shelf.remove(shelf.find(str(folder)))
    monkeypatch.undo()


def test_without_the_checkpoint_the_error_says_what_to_delete(folder: Path) -> None:
    path = model_file(folder)
    cut(path)
    damaged = path.read_bytes()
    os.utime(folder / "config.json", ns=(1, 1))
    for _ in range(2):  # changed, then gone
        with pytest.raises(FormatError) as error:
            LLM(path, threads=1)
        assert str(error.value).startswith(f"{path}: its packed file is damaged (")
        gone = f", and {folder} is gone or has changed; delete it: trilobit rm '{folder}'"
        assert str(error.value).endswith(gone)
        assert path.read_bytes() == damaged
        shutil.rmtree(folder, ignore_errors=True)
    shelf.remove(shelf.find(str(folder)))
    assert records() == []


def test_without_a_record_the_error_says_what_to_delete(folder: Path) -> None:
    path = model_file(folder)
    cut(path)
    held = path.parent.parent
    (held / "record.json").unlink()
    with pytest.raises(FormatError, match=f"is not known; delete it: trilobit rm {held.name}$"):
        LLM(path, threads=1)
    shelf.remove(shelf.find(held.name))
    assert records() == []


def test_a_cache_that_cannot_be_written_is_told_with_the_damage(folder: Path, home: Path) -> None:
    path = model_file(folder)
    cut(path)
    shutil.rmtree(home / "locks")
    (home / "locks").write_bytes(b"")
    with pytest.raises(FormatError) as error:
        LLM(folder, threads=1)
    assert str(error.value).startswith(f"{path}: its packed file is damaged (")
    assert "), and cannot be packed again: " in str(error.value)
    assert str(error.value).endswith("set TRILOBIT_HOME to a folder of yours")


def test_a_checkpoint_that_is_damaged_too_is_named(folder: Path, home: Path) -> None:
    path = model_file(folder)
    cut(path)
    weights = folder / "model.safetensors"
    times = weights.stat()
    damaged = bytearray(weights.read_bytes())
    damaged[8:16] = b"\0" * 8
    weights.write_bytes(damaged)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a disk damages it
    with pytest.raises(FormatError, match=r"my model/model\.safetensors: "):
        LLM(folder, threads=1)
    assert records() == []


def test_a_file_of_the_users_own_is_never_touched(
    folder: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = Path(shutil.copy(model_file(folder), home.parent / "own.trilobit"))
    cut(own)
    damaged = own.read_bytes()
    with pytest.raises(FormatError) as error:
        LLM(own, threads=1)
    assert "its packed file" not in str(error.value)
    assert own.read_bytes() == damaged
    assert said(caplog) == ""


def test_info_looks_only_and_tells_the_remedy(folder: Path) -> None:
    path = model_file(folder)
    cut(path)
    damaged = path.read_bytes()
    done = CliRunner().invoke(info, [str(path)])
    assert isinstance(done.exception, FormatError)
    assert str(done.exception).endswith(
        f"; running the model packs it again, or delete it: trilobit rm '{folder}'"
    )
    assert path.read_bytes() == damaged


def test_a_damaged_model_answers_as_a_sound_one(folder: Path, checkpoint: Path) -> None:
    cut(model_file(folder))
    np.testing.assert_array_equal(
        LLM(folder, threads=1).logits([1, 2, 3]), LLM(checkpoint, threads=1).logits([1, 2, 3])
    )
