"""Checkpoints on this machine: packed when they are run, again when they change, and listed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from conftest import tiny_config

from trilobit import LLM, SamplingParams
from trilobit.bundled import DEFAULT
from trilobit.errors import FormatError, OutputError, RequestError
from trilobit.hub import shelf
from trilobit.hub.cache import Entry, records
from trilobit.hub.models import known_file, model_file, pull
from trilobit.synth import synth


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("TRILOBIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(home: Path, checkpoint: Path) -> Path:
    """A checkpoint that a test may change."""
    return Path(shutil.copytree(checkpoint, home.parent / "my model"))


def greedy(model: str | Path) -> list[int]:
    llm = LLM(model, threads=1)
    return llm.generate("Once upon a time", SamplingParams(max_tokens=8, temperature=0)).token_ids


def state(folder: Path) -> str:
    (held,) = [item for item in shelf.shelf() if item.source == str(folder)]
    return held.state


def test_a_checkpoint_runs_as_its_packed_file_does(folder: Path, model_file: Path) -> None:
    assert greedy(folder) == greedy(str(folder)) == greedy(model_file)


def test_a_checkpoint_is_packed_once_by_whatever_path(
    folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model_file(folder)
    made = path.stat().st_mtime_ns
    monkeypatch.chdir(folder.parent)
    (folder.parent / "link").symlink_to(folder)
    for name in ("my model", "./my model", "my model/", str(folder), "link"):
        assert model_file(name) == path
    assert pull(folder).is_new is False
    assert path.stat().st_mtime_ns == made
    assert path.name == "my-model.trilobit"
    assert path.is_relative_to(home)


def test_a_checkpoint_that_changed_is_packed_again(folder: Path, home: Path) -> None:
    old, text = model_file(folder), greedy(folder)
    shutil.rmtree(folder)
    synth(tiny_config(), folder, seed=2)
    assert state(folder) == "stale: its source has changed"
    new = model_file(folder)
    assert new != old
    assert not old.exists()
    assert LLM(new, threads=1).generate([1, 2, 3]).token_ids != text
    assert state(folder) == "ready"
    shutil.rmtree(folder)
    assert state(folder) == "stale: its source is gone"
    with pytest.raises(FormatError, match="no such file"):
        LLM(folder)


def test_a_change_that_keeps_size_is_seen_by_its_time(folder: Path) -> None:
    old = model_file(folder)
    config = folder / "config.json"
    before = config.stat()
    os.utime(config, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert model_file(folder) != old


def test_how_it_pools_is_part_of_a_checkpoint(folder: Path) -> None:
    old = model_file(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    new = model_file(folder)
    assert new != old
    assert model_file(folder) == new


def test_what_is_no_checkpoint_is_left_to_whoever_opens_it(home: Path, model_file: Path) -> None:
    from trilobit.hub.models import model_file as found

    assert found(model_file) == known_file(str(model_file)) == model_file
    assert found(home.parent) == home.parent
    assert found(DEFAULT) == known_file(DEFAULT)
    assert pull(str(model_file)).path == model_file
    assert not home.exists()


def test_a_damaged_checkpoint_leaves_nothing_in_the_cache(folder: Path, home: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(FormatError, match=r"model\.safetensors"):
        model_file(folder)
    assert records() == []


def test_a_packing_that_fails_keeps_the_older_file(folder: Path) -> None:
    old = model_file(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(FormatError):
        model_file(folder)
    assert old.exists()
    assert state(folder) == "stale: its source has changed"


def test_removing_a_packed_file_spares_the_checkpoint(folder: Path, home: Path) -> None:
    path = model_file(folder)
    held = shelf.find(str(folder))
    assert held.size_bytes > path.stat().st_size  # with its record
    assert shelf.remove(held) == held.size_bytes
    assert records() == []
    assert greedy(folder)
    with pytest.raises(RequestError, match="yours, not made by `trilobit pull`"):
        shelf.find(str(folder / "model.safetensors"))
    with pytest.raises(RequestError, match="comes with the package"):
        shelf.find(DEFAULT)


def test_an_unknown_name_cannot_be_removed_and_says_what_is_here(folder: Path) -> None:
    model_file(folder)
    with pytest.raises(
        RequestError, match=r"\./none: not here, so there is nothing to delete; here are .*my model"
    ):
        shelf.find("./none")


def test_a_record_that_makes_no_sense_is_shown_and_can_be_removed(folder: Path, home: Path) -> None:
    path = model_file(folder)
    record = path.parent.parent / "record.json"
    for text in ("", "[]", "{}", '{"files": 1}', record.read_text().replace('"title"', '"x"')):
        record.write_text(text)
        (held,) = [item for item in shelf.shelf() if item.folder]
        assert held.state == "stale: without a record; delete it"
        assert shelf.find(held.name) == held
    assert model_file(folder) == path  # which is whole, whatever the record says
    shelf.remove(held)
    assert records() == []


def test_a_full_or_forbidden_home_is_told_with_the_remedy(
    folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.write_bytes(b"")
    with pytest.raises(OutputError, match=r"\); set TRILOBIT_HOME to a folder of yours"):
        model_file(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_a_checkpoint_that_cannot_be_looked_at_is_told(folder: Path) -> None:
    model_file(folder)
    folder.chmod(0o300)
    try:
        with pytest.raises(FormatError, match="cannot be read"):
            model_file(folder)
        assert state(folder) == "stale: its source cannot be read"
    finally:
        folder.chmod(0o700)


def test_only_a_model_can_be_pulled(home: Path) -> None:
    (home.parent / "notes.txt").write_text("no model")
    for name in ("notes.txt", ".", "missing.trilobit"):
        with pytest.raises(FormatError, match=name):
            pull(str(home.parent / name))


def test_names_that_files_cannot_have_become_plain_ones(home: Path) -> None:
    titles = [Entry(name, name).title for name in ("a/b c", "..", "é", "x" * 300, "a\nb")]
    assert titles == ["a-b-c", "model", "model", "x" * 80, "a-b"]
    assert Entry("one", "t").folder != Entry("two", "t").folder
