"""Pulling from a Hub on loopback, with what goes wrong on the way; see hub_server.py."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from conftest import tiny_config
from gguf_models import whole_config, write_gguf
from hub_server import OTHER_TOKEN, TOKEN, HubServer, asked, folder_files, in_lfs
from huggingface_hub import constants

from trilobit import LLM, SamplingParams
from trilobit.errors import DownloadError, FormatError, OutputError, RequestError, UnsupportedModel
from trilobit.formats.hf.reader import BitNetCheckpoint
from trilobit.formats.packed import form
from trilobit.formats.safetensors import SafetensorsFile
from trilobit.hub import download, shelf
from trilobit.hub.models import known_file, model_file, pull, source_path
from trilobit.hub.names import Repo
from trilobit.model.tensor_names import CHECKSUMS
from trilobit.synth import synth

NAME = "org/tiny"
GREEDY = SamplingParams(max_tokens=8, temperature=0)
PATIENCE_S = 120  # nobody waits for it: the server ends with its test
LARGE = 21_000_000  # more than two of the pieces that huggingface_hub reads


@pytest.fixture(scope="module")
def files(checkpoint: Path) -> dict[str, bytes]:
    return folder_files(checkpoint)


@pytest.fixture(scope="module")
def newer_files(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> dict:
    folder = tmp_path_factory.mktemp("newer") / "tiny"
    synth(tiny_config(), folder, seed=2)
    return {**files, **folder_files(folder)}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with asked(monkeypatch, tmp_path) as server:
        yield server


def greedy(model: str | Path) -> list[int]:
    llm = LLM(model, threads=1)
    return llm.generate("Once upon a time", GREEDY).token_ids


def below(folder: Path) -> list[str]:
    """The files in a folder, locks apart."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def fetched(hub: HubServer) -> list[str]:
    """Names of the files whose content was asked for, large ones by hash."""
    return [path.rsplit("/")[-1] for path in hub.asked("GET", "/") if "/api/" not in path]


# ---- what is fetched --------------------------------------------------------------------------


def test_a_pulled_model_says_what_its_checkpoint_says(
    hub: HubServer, files: dict[str, bytes], model_file: Path
) -> None:
    commit = hub.add(NAME, files)
    done = pull(NAME)
    assert done.name == NAME
    assert done.is_new
    assert done.downloaded_bytes == sum(map(len, files.values()))
    found, expected = SafetensorsFile(done.path), SafetensorsFile(model_file)
    for name in expected.tensors:  # whose checksums are of a header that names another source
        if name != CHECKSUMS:
            assert np.array_equal(found.array(name), expected.array(name)), name
    assert greedy(NAME) == greedy(model_file)
    assert greedy(f"{NAME}@{commit}") == greedy(model_file)


def test_only_what_is_needed_is_fetched_and_code_never(
    hub: HubServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    trap = tmp_path / "trap"
    code = f"open({str(trap)!r}, 'w')".encode()
    config = files["config.json"].replace(
        b"{", b'{"auto_map": {"AutoConfig": "configuration.Config", "AutoModel": "model.Net"},', 1
    )
    others = {
        "model.py": code,
        "configuration.py": code,
        "__init__.py": code,
        "pytorch_model.bin": b"pickle",
        "onnx/model.onnx": b"onnx",
        "README.md": b"# tiny",
    }
    hub.add(NAME, {**files, **others, "config.json": config})
    pull(NAME)
    greedy(NAME)
    assert not trap.exists()
    names = {path.name for path in (tmp_path / "hf").rglob("snapshots/*/*")}
    assert names == set(files)
    assert not list(tmp_path.rglob("*.py*"))


def test_a_second_pull_fetches_nothing(hub: HubServer, files: dict[str, bytes]) -> None:
    hub.add(NAME, files)
    path = pull(NAME).path
    before = (fetched(hub), path.stat().st_mtime_ns)
    done = pull(NAME)
    assert (done.is_new, done.downloaded_bytes, done.path) == (False, 0, path)
    assert (fetched(hub), path.stat().st_mtime_ns) == before


def test_what_was_pulled_runs_without_a_look_at_the_network(
    hub: HubServer, files: dict[str, bytes]
) -> None:
    hub.add(NAME, files)
    path = model_file(NAME)
    asked = len(hub.requests)
    assert model_file(NAME) == model_file(f"{NAME}@main") == known_file(NAME) == path
    assert len(hub.requests) == asked


def test_a_damaged_packed_file_is_made_again_without_the_network(
    hub: HubServer, files: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    hub.add(NAME, files)
    expected, path = greedy(NAME), model_file(NAME)
    path.write_bytes(path.read_bytes()[:-1])
    asked = len(hub.requests)
    assert greedy(NAME) == expected
    assert len(hub.requests) == asked
    [said] = caplog.messages
    assert said.startswith(f"{NAME}: its packed file is damaged (")
    assert said.endswith("); packing it again")


def test_a_damaged_packed_file_without_its_download_says_what_to_do(
    hub: HubServer, files: dict[str, bytes]
) -> None:
    hub.add(NAME, files)
    expected, path = greedy(NAME), model_file(NAME)
    shelf.remove_download(shelf.find(NAME))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError) as error:
        LLM(NAME, threads=1)
    assert str(error.value).startswith(f"{path}: its packed file is damaged (")
    assert str(error.value).endswith(
        "), and its download is not here any more; delete it, then pull again: trilobit rm org/tiny"
    )
    shelf.remove(shelf.find(NAME))
    assert greedy(NAME) == expected


def test_a_new_commit_replaces_the_old_one_when_it_is_pulled(
    hub: HubServer, files: dict[str, bytes], newer_files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.add(NAME, files)
    old = pull(NAME).path
    old_text = greedy(NAME)
    hub.add(NAME, newer_files)
    assert model_file(NAME) == old  # a run never changes what it runs
    done = pull(NAME)
    assert done.is_new
    assert done.downloaded_bytes == len(newer_files["model.safetensors"])
    assert greedy(NAME) != old_text
    assert [name for name in below(tmp_path / "home") if name.endswith(".trilobit")] == [
        done.path.relative_to(tmp_path / "home").as_posix()
    ]


def test_a_newer_download_by_another_program_is_told_and_changes_nothing(
    hub: HubServer, files: dict[str, bytes], newer_files: dict[str, bytes]
) -> None:
    hub.add(NAME, files)
    path = model_file(NAME)
    assert shelf.find(NAME).state == "ready"
    hub.add(NAME, newer_files)
    huggingface_hub.snapshot_download(NAME)
    assert shelf.find(NAME).state == "stale: a newer download is here"
    assert model_file(NAME) == path
    assert pull(NAME).downloaded_bytes == 0
    assert shelf.find(NAME).state == "ready"


def test_a_revision_is_a_model_of_its_own(
    hub: HubServer, files: dict[str, bytes], newer_files: dict[str, bytes]
) -> None:
    hub.add(NAME, files)
    hub.add(NAME, newer_files, revision="v2")
    assert greedy(NAME) != greedy(f"{NAME}@v2")
    with pytest.raises(DownloadError, match="org/tiny has no revision v3"):
        model_file(f"{NAME}@v3")


def test_one_gguf_of_several_is_fetched_alone_and_runs(
    hub: HubServer, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "source"
    synth(whole_config(), folder, seed=5)
    write_gguf(tmp_path / "m.gguf", BitNetCheckpoint(folder))
    data = (tmp_path / "m.gguf").read_bytes()
    hub.add("org/ggufs", {"q/m.gguf": data, "f16.gguf": data + b" ", "config.json": b"{}"})
    with pytest.raises(RequestError, match=r"choose one: org/ggufs:f16\.gguf, org/ggufs:q/m\.gguf"):
        model_file("org/ggufs")
    done = pull("org/ggufs:q/m.gguf")
    assert done.path.name == "m.trilobit"
    assert fetched(hub) == [hashlib.sha256(data).hexdigest()]
    assert (
        LLM("org/ggufs:q/m.gguf", threads=1).generate([1, 2, 3], GREEDY).token_ids
        == LLM(tmp_path / "m.gguf", threads=1).generate([1, 2, 3], GREEDY).token_ids
    )


def test_a_name_can_be_converted_and_is_fetched_for_that(
    hub: HubServer, files: dict[str, bytes], newer_files: dict[str, bytes]
) -> None:
    hub.add(NAME, files)
    folder = source_path(NAME)
    assert {path.name for path in folder.iterdir()} == set(files)
    model_file(NAME)
    hub.add(NAME, newer_files)
    assert source_path(NAME) == folder  # that of the model which runs
    assert source_path(folder) == folder


def test_a_download_that_was_deleted_is_fetched_again_at_its_commit(
    hub: HubServer,
    files: dict[str, bytes],
    newer_files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.add(NAME, files, revision="old")
    hub.add(NAME, files)
    text = greedy(NAME)
    shelf.remove_download(shelf.find(NAME))
    assert greedy(NAME) == text
    hub.add(NAME, newer_files)
    monkeypatch.setattr(form, "VERSION", "0")
    done = model_file(NAME)
    assert done.stat().st_size
    assert shelf.find(NAME).commit == hub.repositories[NAME].commit("old")


def test_a_model_of_a_download_by_another_program_needs_no_network(
    hub: HubServer, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, files)
    huggingface_hub.snapshot_download(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert greedy(NAME)
    assert len(hub.requests) == asked


def test_a_download_without_its_tokenizer_is_no_model(
    hub: HubServer, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, files)
    huggingface_hub.snapshot_download(NAME, ignore_patterns=["tokenizer*"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="not here, and HF_HUB_OFFLINE is set"):
        model_file(NAME)


def test_a_packed_file_of_another_format_is_made_again_without_the_network(
    hub: HubServer, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, files)
    old = pull(NAME).path
    asked = len(hub.requests)
    monkeypatch.setattr(form, "VERSION", "0")
    assert [held.state for held in shelf.shelf() if held.name == NAME] == [
        "stale: not packed by this version of Trilobit"
    ]
    new = model_file(NAME)
    assert new != old
    assert new.exists()
    assert not old.exists()
    assert len(hub.requests) == asked


# ---- what goes wrong --------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_file_with_wrong_bytes_is_deleted_and_told(
    hub: HubServer, files: dict[str, bytes], file: str, tmp_path: Path
) -> None:
    hub.add(NAME, files)
    sha256 = hashlib.sha256(files[file]).hexdigest()
    hub.fail(sha256 if in_lfs(file) else file, "wrong", method="GET", times=1)
    with pytest.raises(DownloadError, match=f"{NAME}: {file} is damaged .*it was deleted: pull"):
        pull(NAME)
    # A config is looked at before the rest is fetched.
    kept = {*files} - {file} if file != "config.json" else set()
    assert {path.name for path in (tmp_path / "hf").rglob("snapshots/*/*")} == kept
    assert len(list((tmp_path / "hf").rglob("blobs/*"))) == len(kept)
    assert pull(NAME).downloaded_bytes == sum(len(files[name]) for name in {*files} - kept)
    assert greedy(NAME)


def test_a_cut_download_goes_on_where_it_stopped(hub: HubServer, files: dict[str, bytes]) -> None:
    hub.add(NAME, {**files, "merges.txt": bytes(LARGE)})
    hub.fail("merges.txt", "cut", value=15_000_000, method="GET", times=1)
    pull(NAME)
    ranges = [h["Range"] for _, path, h in hub.requests if "merges" in path and "Range" in h]
    assert len(ranges) == 1
    assert 0 < int(ranges[0].removeprefix("bytes=").removesuffix("-")) <= 15_000_000


def test_a_download_that_is_cut_again_and_again_leaves_nothing_broken(
    hub: HubServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.add(NAME, files)
    hub.fail("cdn", "cut", value=1000)
    with pytest.raises(DownloadError, match=f"{NAME}: no answer from 127.0.0.1:"):
        pull(NAME)
    assert not list(tmp_path.rglob("*.incomplete"))
    hub.faults.clear()
    assert pull(NAME).is_new


@pytest.mark.parametrize("where", ["/api/", "/resolve/", "/cdn/"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_busy_for_a_moment_is_asked_again(
    hub: HubServer, files: dict[str, bytes], where: str, status: int
) -> None:
    hub.add(NAME, files)
    hub.fail(where, "status", status, times=2)
    assert pull(NAME).is_new


@pytest.mark.parametrize("where", ["/api/", "/resolve/", "/cdn/"])
def test_a_server_that_stays_busy_is_told_in_one_line(
    hub: HubServer, files: dict[str, bytes], where: str
) -> None:
    hub.add(NAME, files)
    hub.fail(where, "status", 503)
    with pytest.raises(DownloadError, match=f"{NAME}: .* answers 503 again and again; try later"):
        pull(NAME)


def test_a_server_that_answers_late_is_asked_again(
    hub: HubServer, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
    hub.add(NAME, files)
    hub.fail("/api/", "slow", PATIENCE_S, times=1)
    assert pull(NAME).is_new
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.1)  # there is nothing to wait for
    hub.fail("/api/", "slow", PATIENCE_S)
    with pytest.raises(DownloadError, match=f"{NAME}: no answer from .* .ReadTimeout"):
        pull(NAME)


def test_a_gated_model_wants_its_licence_accepted_and_a_token(
    hub: HubServer, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, files, access="gated")
    for token in (None, OTHER_TOKEN):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(DownloadError, match=f"{NAME}: gated; accept .*/{NAME}, then set HF_TO"):
            pull(NAME)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert pull(NAME).is_new  # the other host, which refuses a token, was not shown it
    assert hub.asked("GET", "/cdn/")


def test_a_private_model_and_a_missing_one_look_the_same_to_strangers(
    hub: HubServer, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, files, access="private")
    for name in (NAME, "org/none"):
        with pytest.raises(DownloadError, match=f"{name}: neither .* nor .*set HF_TOKEN"):
            pull(name)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert pull(NAME).is_new
    with pytest.raises(DownloadError, match="org/none: neither a file here nor a model"):
        pull("org/none")


def test_a_token_that_is_none_is_told(
    hub: HubServer, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, files)
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(DownloadError, match=f"{NAME}: .* does not take your HF_TOKEN"):
        pull(NAME)


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>Welcome to our hotel</html>",
        b"[]",
        b"{}",
        b'{"id": "org/tiny", "sha": "../..", "siblings": []}',
        b'{"id": "org/tiny", "sha": null, "siblings": []}',
        b'{"id": "a/b", "sha": "%s", "siblings": [{"rfilename": "a.gguf"}]}' % (b"0" * 40),
        b'{"id": "a/b", "sha": "%s", "siblings": [{"rfilename": 1, "size": -1}]}' % (b"0" * 40),
        b'{"id": "a/b", "sha": "%s", "siblings": 5}' % (b"0" * 40),
        b'{"id": "a/b", "sha": "%s", "siblings": [{"rfilename": "a.gguf", "size": 1, "lfs":'
        b' {"sha256": "../x", "size": 1, "pointerSize": 1}}]}' % (b"0" * 40),
    ],
)
def test_what_is_no_hub_is_told_in_one_line(hub: HubServer, answer: bytes) -> None:
    hub.answers["/api/models/org/tiny"] = answer
    with pytest.raises(DownloadError, match=f"^{NAME}: 127.0.0.1:.* does not answer as a Hub does"):
        pull(NAME)


def test_a_file_outside_its_repository_is_not_fetched(hub: HubServer, tmp_path: Path) -> None:
    hub.add(NAME, {"../../a.gguf": b"GGUF", "/b.gguf": b"GGUF", "C:\\c.gguf": b"GGUF"})
    with pytest.raises(UnsupportedModel, match="nothing to run"):
        pull(NAME)
    assert fetched(hub) == []


def test_a_missing_model_is_told_with_the_names_that_are_near(hub: HubServer) -> None:
    with pytest.raises(DownloadError, match=r"microsoft/bitnet-2b-4T: neither .* mean bitnet-2b"):
        pull("microsoft/bitnet-2b-4T")


@pytest.mark.parametrize(("status", "reason"), [(403, "accept its licence"), (418, "answers 418")])
def test_a_refusal_is_told(
    hub: HubServer, files: dict[str, bytes], status: int, reason: str
) -> None:
    hub.add(NAME, files)
    hub.fail("/api/", "status", status)
    with pytest.raises(DownloadError, match=f"^{NAME}: .*{reason}"):
        pull(NAME)


def test_no_server_is_told_in_one_line(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match=f"{NAME}: no answer from 127.0.0.1:9 .ConnectError"):
        pull(NAME)


def test_offline_without_a_copy_is_told(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for ask in (pull, model_file):
        with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set; unset it and pull"):
            ask(NAME)
    assert hub.requests == []


def test_a_disk_too_small_is_known_before_anything_is_fetched(
    hub: HubServer, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, files)
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match=rf"{NAME}: needs .* MB, and the disk of .* has 0\.00 MB"):
        pull(NAME)
    assert fetched(hub) == []


def test_a_cache_that_cannot_be_written_is_told_with_the_remedy(
    hub: HubServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.add(NAME, files)
    (tmp_path / "hf").write_bytes(b"")
    with pytest.raises(OutputError, match=f"{NAME}: cannot be stored in .* set HF_HOME to another"):
        pull(NAME)


def test_pickles_and_a_choice_of_files_are_refused_before_anything_is_fetched(
    hub: HubServer, files: dict[str, bytes]
) -> None:
    hub.add("org/pickles", {"config.json": files["config.json"], "pytorch_model.bin": b"x"})
    hub.add("org/ggufs", {"a.gguf": b"GGUF", "b.gguf": b"GGUF"})
    with pytest.raises(UnsupportedModel, match="pickled weights only"):
        pull("org/pickles")
    with pytest.raises(RequestError, match=r"choose one: org/ggufs:a\.gguf, org/ggufs:b\.gguf"):
        pull("org/ggufs")
    assert fetched(hub) == []


def test_a_model_of_another_kind_is_refused_by_its_config_and_can_be_deleted(
    hub: HubServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    config = files["config.json"].replace(b"BitNetForCausalLM", b"MambaForCausalLM")
    config = config.replace(b'"bitnet"', b'"mamba"')
    hub.add(NAME, {**files, "config.json": config})
    with pytest.raises(UnsupportedModel):
        pull(NAME)
    assert fetched(hub) == ["config.json"]  # the weights are not worth the wait
    assert below(tmp_path / "home") == []
    held = shelf.find(NAME)
    assert (held.state, held.path, held.download_bytes) == ("not packed", None, len(config))
    assert shelf.remove_download(held) == held.download_bytes
    assert "snapshots" not in {path.name for path in (tmp_path / "hf").rglob("*")}
    with pytest.raises(RequestError, match=f"{NAME}: not here, so there is nothing to delete"):
        shelf.find(NAME)


def test_leftovers_of_killed_downloads_are_removed_and_live_ones_kept(
    hub: HubServer, files: dict[str, bytes]
) -> None:
    from filelock import FileLock

    hub.add(NAME, files)
    storage = download.storage(Repo(NAME))
    (storage / "blobs").mkdir(parents=True)
    dead, live = (storage / "blobs" / f"{name}.1.incomplete" for name in ("dead", "live"))
    dead.touch()
    live.touch()
    locks = storage.parent / ".locks" / storage.name
    locks.mkdir(parents=True)
    with FileLock(locks / "live.lock"):
        pull(NAME)
    assert (dead.exists(), live.exists()) == (False, True)
    assert os.listdir(storage / "refs") == ["main"]


def test_a_model_too_large_to_be_packed_is_refused_before_its_weights(
    hub: HubServer, files: dict[str, bytes]
) -> None:
    config = json.loads(files["config.json"])
    config |= {"num_hidden_layers": 1000, "intermediate_size": 2**19, "vocab_size": 2**22}
    config |= {"hidden_size": 2**17, "num_attention_heads": 128, "head_dim": 1024}
    hub.add(NAME, {**files, "config.json": json.dumps(config).encode()})
    with pytest.raises(OutputError, match=r"until it is packed, and the disk .*TRILOBIT_HOME"):
        pull(NAME)
    assert fetched(hub) == ["config.json"]
