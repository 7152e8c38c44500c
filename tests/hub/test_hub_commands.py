"""`pull`, `list`, `rm` and running by name, as processes: at once, offline, interrupted, killed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import HubServer, folder_files, serving

from trilobit.bundled import DEFAULT, bundled_models

NAME = "org/tiny"
TIMEOUT_S = 120  # of a command that takes a second: the machine may be busy
PROGRAM = "\nimport runpy; runpy.run_module('trilobit', run_name='__main__', alter_sys=True)"
HEAR_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"


@pytest.fixture(scope="module")
def files(checkpoint: Path) -> dict[str, bytes]:
    return folder_files(checkpoint)


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[HubServer]:
    with serving() as server:
        server.add(NAME, files)
        yield server


class Machine:
    """Commands on a machine with caches of its own."""

    def __init__(self, folder: Path, hub: HubServer) -> None:
        self.folder = folder
        drop = ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_HOME", "HF_HUB_CACHE")
        self.env = {name: value for name, value in os.environ.items() if name not in drop}
        self.env |= {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / "hf"),
            # A server that this process keeps waiting is not one that has stopped.
            "HF_HUB_ETAG_TIMEOUT": str(TIMEOUT_S),
            "HF_HUB_DOWNLOAD_TIMEOUT": str(TIMEOUT_S),
            "TRILOBIT_HOME": str(folder / "home"),
            "NO_PROXY": "*",
        }

    def start(self, *words: str, before: str = "") -> subprocess.Popen[str]:
        """Begin a command, after some lines of Python."""
        return subprocess.Popen(
            [sys.executable, "-c", before + PROGRAM, *words],
            env=self.env,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, before: str = "", code: int = 0) -> tuple[str, str]:
        """Run a command to its end; stdout and stderr."""
        with self.start(*words, before=before) as process:
            out, err = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == code, (out, err)
        return out, err

    def fail(self, *words: str, before: str = "") -> str:
        """The one line that a command fails with."""
        out, err = self.run(*words, before=before, code=2)
        assert out == ""
        assert re.fullmatch(r"error: .+\n", err)
        return err

    def on_terminal(self, *words: str, answer: str = "") -> str:
        """What a command shows in a terminal of 100 columns, where something was typed before."""
        master, slave = os.openpty()
        os.write(master, answer.encode())
        process = subprocess.Popen(
            [sys.executable, "-m", "trilobit", *words],
            env={**self.env, "TERM": "xterm", "COLUMNS": "100", "NO_COLOR": "1"},
            cwd=self.folder,
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: nobody holds the other side any more
            while data := os.read(master, 4096):
                shown += data
        os.close(master)
        assert process.wait(TIMEOUT_S) == 0, shown
        return shown.decode()

    def packed(self) -> list[Path]:
        return sorted(self.folder.glob("home/**/*.trilobit"))

    def partial(self) -> list[Path]:
        parts = ("*.incomplete", "*.part", "*.tmp")
        return [path for part in parts for path in self.folder.rglob(part)]


@pytest.fixture
def machine(tmp_path: Path, hub: HubServer) -> Machine:
    return Machine(tmp_path, hub)


def stall(hub: HubServer, data: bytes) -> None:
    """Let the next download of a large file stop half-way, and its connection stay open."""
    sha256 = hashlib.sha256(data).hexdigest()
    hub.fail(f"/cdn/{sha256}", "stall", value=len(data) // 2, times=1)


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- by name ----------------------------------------------------------------------------------


def test_a_name_is_pulled_listed_run_without_the_network_and_removed(
    hub: HubServer, machine: Machine, files: dict[str, bytes]
) -> None:
    size = sum(map(len, files.values()))
    pulled = json.loads(machine.run("pull", NAME, "--json")[0])
    (path,) = machine.packed()
    assert pulled == {
        "name": NAME,
        "path": str(path),
        "size_bytes": path.stat().st_size,
        "downloaded_bytes": size,
        "new": True,
    }
    (held,) = [i for i in json.loads(machine.run("list", "--json")[0]) if i["name"] == NAME]
    assert (held["state"], held["path"], held["download_bytes"]) == ("ready", str(path), size)

    machine.env["HF_HUB_OFFLINE"] = "1"
    asked = len(hub.requests)
    four = ("--max-tokens", "4", "--ignore-eos", "--json")
    told = machine.run("generate", "--model", NAME, "Once", *four)[0]
    assert len(json.loads(told)["token_ids"]) == 4
    assert json.loads(machine.run("info", NAME, "--json")[0])["path"] == str(path)
    assert len(hub.requests) == asked

    out, _ = machine.run("rm", NAME)
    assert "packed file deleted" in out
    assert "`trilobit rm --all org/tiny` deletes it" in out
    assert machine.packed() == []
    machine.run("run", NAME, "--max-tokens", "2")  # of the download, which is still there
    assert len(machine.packed()) == 1
    out, _ = machine.run("rm", "--all", NAME)
    assert "packed file deleted" in out
    assert "download deleted" in out
    assert list((machine.folder / "hf").rglob("blobs")) == []
    assert machine.fail("rm", NAME) == (
        f"error: {NAME}: not here, so there is nothing to delete; nothing was pulled or packed "
        "yet\n"
    )
    assert machine.fail("rm", "nope").startswith("error: nope: not here, so there is nothing to de")
    assert "not here, and HF_HUB_OFFLINE is set" in machine.fail("run", NAME)


def test_a_run_downloads_what_it_needs_and_writes_nothing_about_it(
    hub: HubServer, machine: Machine
) -> None:
    out, err = machine.run("run", NAME, "Once", "--max-tokens", "3")
    assert out.startswith("Once")
    assert re.fullmatch(r"3 tokens \|.*\n", err)
    assert "not here yet; `trilobit pull org/none`" in machine.fail("info", "org/none")


def test_four_pulls_at_once_end_with_one_good_copy(
    hub: HubServer, machine: Machine, files: dict[str, bytes]
) -> None:
    started = [machine.start("pull", NAME, "--json") for _ in range(4)]
    done = [process.communicate(timeout=TIMEOUT_S) for process in started]
    assert [process.returncode for process in started] == [0] * 4, done
    assert [err for _, err in done] == [""] * 4
    results = [json.loads(out) for out, _ in done]
    assert sum(result["new"] for result in results) == 1
    assert {result["path"] for result in results} == {str(path) for path in machine.packed()}
    for name, data in files.items():
        part = hashlib.sha256(data).hexdigest() if name != "config.json" else name
        assert len(hub.asked("GET", part)) == 1
    assert machine.partial() == []


def test_what_is_packed_opens_without_huggingface_hub(hub: HubServer, machine: Machine) -> None:
    machine.run("pull", NAME)
    program = (
        "import sys, trilobit\n"
        "assert trilobit.LLM('org/tiny', threads=1).context == 1100\n"
        "unwanted = {'huggingface_hub', 'filelock', 'rich', 'trilobit.conversion'}\n"
        "loaded = unwanted & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", program], env=machine.env, check=True, timeout=TIMEOUT_S)


def test_names_are_shown_with_what_they_stand_for(machine: Machine) -> None:
    lines = machine.run("list", "--names")[0].splitlines()
    assert ("bitnet-2b", "microsoft/bitnet-b1.58-2B-4T") in [
        (line.split()[0], line.split()[-1]) for line in lines
    ]
    if DEFAULT in bundled_models():
        assert DEFAULT in [line.split()[0] for line in lines[1 : 1 + len(bundled_models())]]
        assert "up to date" in machine.run("pull", DEFAULT)[0]


# ---- on a terminal ----------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals here")
def test_a_terminal_is_shown_the_bar_and_asked_about_the_download(
    hub: HubServer, machine: Machine
) -> None:
    hub.fail("/api/models", "status", 503, times=1)
    shown = machine.on_terminal("pull", NAME)
    assert "the Hub is busy; trying again" in shown
    assert "Downloading org/tiny" in shown
    assert "72.9/72.9 kB" in shown
    assert "Packing org/tiny" in shown
    assert "Run it: trilobit run org/tiny" in shown
    assert "its download stays" in machine.on_terminal("rm", NAME, answer="n\n")
    shown = machine.on_terminal("rm", NAME, answer="y\n")
    assert "Delete its download too (72.9 kB, shared with other programs)?" in shown
    assert "download deleted, 72.9 kB freed" in shown
    assert list((machine.folder / "hf").rglob("blobs")) == []


# ---- interrupted ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_download_that_is_stopped_leaves_nothing_broken(
    hub: HubServer,
    machine: Machine,
    files: dict[str, bytes],
    number: signal.Signals,
    code: int,
) -> None:
    stall(hub, files["model.safetensors"])
    with machine.start("pull", NAME, before=HEAR_CTRL_C) as process:
        until(lambda: hub.asked("GET", hashlib.sha256(files["model.safetensors"]).hexdigest()))
        until(lambda: list(machine.folder.rglob("*.incomplete")))
        process.send_signal(number)
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, out) == (code, "")
    assert err.strip() == ("interrupted" if number == signal.SIGINT else "")
    assert (machine.partial() == []) == (number != signal.SIGKILL)
    machine.run("generate", "--model", NAME, "Once", "--max-tokens", "2")
    assert machine.partial() == []


def test_a_packing_that_was_killed_is_begun_again(machine: Machine) -> None:
    kill = (
        "import os, trilobit.model.packing as packing\n"
        "packing.pack = lambda *_: os.kill(os.getpid(), 9)"
    )
    machine.run("pull", NAME, before=kill, code=-9)
    assert machine.partial() != []
    (held,) = [i for i in json.loads(machine.run("list", "--json")[0]) if i["name"] == NAME]
    assert held["state"] == "stale: not packed by this version of Trilobit"
    machine.env["HF_HUB_OFFLINE"] = "1"  # the download is whole
    machine.run("run", NAME, "--max-tokens", "2")
    assert machine.partial() == []
    assert len(machine.packed()) == 1


@pytest.mark.parametrize("file", ["model.safetensors", "packed"])
def test_a_full_disk_leaves_nothing_broken(
    machine: Machine, files: dict[str, bytes], file: str
) -> None:
    weights = len(files["model.safetensors"])
    limit = weights - 1000 if file == "model.safetensors" else weights + 1000
    full = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit},) * 2)"
    told = machine.fail("pull", NAME, before=full)
    assert "cannot be" in told
    assert "free space" in told
    assert machine.partial() == []
    assert machine.packed() == []
    machine.run("pull", NAME)
    assert len(machine.packed()) == 1


def test_a_home_that_cannot_be_written_is_told_with_the_remedy(machine: Machine) -> None:
    (machine.folder / "home").write_bytes(b"")
    assert "set TRILOBIT_HOME to a folder of yours" in machine.fail("pull", NAME)
