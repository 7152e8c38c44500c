"""Text of a data set of the Hub, which is on loopback here; see hub_server.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pytest
from fables import FABLES, RECIPE, one_error, train, write_recipe
from hub_server import HubServer, asked
from pyarrow import parquet

from trilobit.errors import DownloadError, RequestError, TrilobitError
from trilobit.hub.texts import text_files
from trilobit.train.data.tokens import prepare
from trilobit.train.recipes import load_recipe

NAME = "hf://datasets/org/fables"
KINDS = (".parquet", ".jsonl")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with asked(monkeypatch, tmp_path) as server:
        yield server


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """The fables in two Parquet files, with what else such a repository has."""
    parts = {}
    for part, texts in ((0, FABLES[:4]), (1, FABLES[4:])):
        path = tmp_path / "part.parquet"
        parquet.write_table(pyarrow.table({"text": list(texts)}), path)
        parts[f"data/train-{part:05}-of-00002.parquet"] = path.read_bytes()
    other = json.dumps({"text": FABLES[0]}).encode()
    return {
        **parts,
        "data/test-00000-of-00001.jsonl": other,
        "constrained.jsonl": other,
        "fables.py": b"raise SystemExit",
        "README.md": b"# fables",
    }


def _names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_without_files_it_is_what_is_there_to_train_on(
    hub: HubServer, files: dict[str, bytes]
) -> None:
    hub.add("datasets/org/fables", files)
    found = text_files(NAME, KINDS).files
    expected = [name for name in files if name.startswith("data/train")]
    assert [path.read_bytes() for path in found] == [files[name] for name in expected]
    fetched = [path for path in hub.asked("GET", "/") if "/api/" not in path]
    assert len(fetched) == len(expected)  # no code, and nothing else
    again = len(hub.requests)
    assert text_files(NAME, KINDS).files == found
    assert not [path for _, path, _ in hub.requests[again:] if "/api/" not in path]


def test_files_and_revisions_are_chosen_by_their_names(
    hub: HubServer, files: dict[str, bytes]
) -> None:
    hub.add("datasets/org/fables", {"a.jsonl": b"{}"})
    commit = hub.add("datasets/org/fables", files, revision="old")
    assert _names(text_files(NAME, KINDS).files) == ["a.jsonl"]
    for revision in ("old", commit):
        for pattern, expected in (
            ("data/test*", ["test-00000-of-00001.jsonl"]),
            ("data/train-00001-of-00002.parquet", ["train-00001-of-00002.parquet"]),
            ("*-0000[01]-of-00002.*", [f"train-0000{n}-of-00002.parquet" for n in range(2)]),
        ):
            found = text_files(f"{NAME}@{revision}/{pattern}", KINDS)
            assert (_names(found.files), found.commit) == (expected, commit)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("hf://datasets/fables", RequestError, "'hf://datasets/fables': write hf://datasets/OWNE"),
        ("hf://datasets/../x", RequestError, "'hf://datasets/../x': write hf://datasets/OWNER/NA"),
        (f"{NAME}/*.py", RequestError, f"{NAME}/*.py: stands for no file that can be read; there "),
        ("hf://datasets/org/none", DownloadError, "datasets/org/none: neither a file here nor a d"),
        (f"{NAME}@none", DownloadError, "datasets/org/fables@none: datasets/org/fables has no rev"),
    ],
)
def test_names_that_stand_for_nothing_are_one_line(
    hub: HubServer, files: dict[str, bytes], name: str, kind: type[TrilobitError], message: str
) -> None:
    hub.add("datasets/org/fables", files)
    with pytest.raises(kind) as error:
        text_files(name, KINDS)
    assert str(error.value).startswith(message)


def test_a_file_that_is_not_what_the_hub_says_is_deleted(
    hub: HubServer, files: dict[str, bytes]
) -> None:
    hub.add("datasets/org/fables", files)
    hub.fail("/cdn/", "wrong", times=1)
    with pytest.raises(DownloadError, match=r"train-00000-of-00002.parquet is damaged \(sha256"):
        text_files(NAME, KINDS)
    assert len(text_files(NAME, KINDS).files) == 2


def test_a_hub_that_does_not_answer_is_done_without_where_all_is_here(
    hub: HubServer, files: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    commit = hub.add("datasets/org/fables", files)
    found = text_files(NAME, KINDS)
    hub.fail("/", "status", 503)
    assert text_files(NAME, KINDS) == found
    assert caplog.messages[-1] == (
        f"datasets/org/fables: the Hub does not answer; taking what is here, commit {commit}"
    )
    # What was not asked for then is not here, and what a pattern stands for is known all the same.
    with pytest.raises(DownloadError, match="answers 503 again and again"):
        text_files(f"{NAME}/data/*", KINDS)
    for file in found.files:
        file.unlink()
    with pytest.raises(DownloadError, match="answers 503 again and again"):
        text_files(NAME, KINDS)


def test_a_commit_is_asked_about_once(hub: HubServer, files: dict[str, bytes]) -> None:
    commit = hub.add("datasets/org/fables", files)
    found = text_files(f"{NAME}@{commit}", KINDS)
    asked = len(hub.requests)
    assert text_files(f"{NAME}@{commit}", KINDS) == found
    assert text_files(NAME, KINDS, commit) == found
    assert len(hub.requests) == asked


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"files": [{"name": 3}]}', b'{"files": 3}'])
def test_a_damaged_note_of_a_commit_is_made_again(
    hub: HubServer, files: dict[str, bytes], tmp_path: Path, damage: bytes
) -> None:
    commit = hub.add("datasets/org/fables", files)
    found = text_files(f"{NAME}@{commit}", KINDS)
    [note] = (tmp_path / "home" / "listings").iterdir()
    whole = note.read_bytes()
    note.write_bytes(damage)
    assert text_files(f"{NAME}@{commit}", KINDS) == found
    assert note.read_bytes() == whole


def test_a_run_learns_from_the_hub_as_from_files(
    hub: HubServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.add("datasets/org/fables", files)
    outcome = train(write_recipe(tmp_path), tmp_path / "run", "--max-steps", "13", "--data", NAME)
    assert outcome.code == 0, outcome.err
    # Row 0 of each file is held out, and so is every fourth behind it: the same fables.
    lines = load_recipe(write_recipe(tmp_path))
    corpus = prepare(lines, tmp_path / "lines")  # type: ignore[arg-type]
    for name in ("train.npy", "held_out.npy"):
        assert (tmp_path / "run/corpus" / name).read_bytes() == (
            (tmp_path / "lines" / name).read_bytes()
        )
    assert corpus.held_out_bytes
    assert json.loads((tmp_path / "run/recipe.json").read_text())["data"]["files"] == [NAME]
    kept = json.loads((tmp_path / "run/hub.json").read_text())
    assert kept == {NAME: hub.repositories["datasets/org/fables"].commit("main")}


def test_a_run_goes_on_with_its_text_whatever_the_name_stands_for_now(
    hub: HubServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.add("datasets/org/fables", files, revision="begun")
    hub.add("datasets/org/fables", files)
    recipe = write_recipe(tmp_path, RECIPE.replace("fables.jsonl", NAME))
    run = tmp_path / "run"
    assert train(recipe, run, "--max-steps", "13").code == 0
    begun = (run / "corpus/train.npy").read_bytes()
    hub.add("datasets/org/fables", {"a.jsonl": (files["constrained.jsonl"] + b"\n") * 8})
    asked = len(hub.requests)
    assert train(recipe, run, "--max-steps", "14").code == 0
    assert len(hub.requests) == asked
    # A run that does not know its commits any more does not change its text either.
    (run / "hub.json").write_text("[]")
    error = one_error(train(recipe, run, "--max-steps", "15"))
    assert error.startswith(f"{run}: its checkpoints were trained on other text than ")
    assert (run / "hub.json").read_text() == "[]"
    assert (run / "corpus/train.npy").read_bytes() == begun
    assert train(recipe, run, "--max-steps", "13", "--fresh").code == 0
    assert (run / "corpus/train.npy").read_bytes() != begun


def test_a_validation_of_several_files_is_one_line(
    hub: HubServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.add("datasets/org/fables", files)
    several = RECIPE.replace("held_out_every", f'validation = "{NAME}"\nheld_out_every')
    error = one_error(train(write_recipe(tmp_path, several), tmp_path / "run"))
    assert error.startswith(f"{NAME}: stands for 2 files, and validation is one; name it: ")
