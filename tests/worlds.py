"""Several processes of one training run, forked from one that has loaded torch: that saves seconds.

`Worlds` starts this file as a program, which takes runs as lines of JSON and forks their processes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fables import Outcome


class Worlds:
    """While entered, `run` is `trilobit` in several processes. folder: for what they print."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._process.communicate()  # its end of input is its end
        assert self._process.returncode == 0

    def run(
        self, processes: int, *words: str, kill_in_save: int = 0, most_bytes: int = 0
    ) -> list[Outcome]:
        """How each process of `trilobit WORDS` ended.

        kill_in_save: SIGKILL for all of them, when the last one is half through its part of the
        first, second, ... checkpoint. most_bytes: of a file that they may write.
        """
        told = [str(self._folder / f"process-{rank}") for rank in range(processes)]
        asked = {"words": words, "told": told, "kill": kill_in_save, "most_bytes": most_bytes}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        codes = json.loads(self._process.stdout.readline())
        return [
            Outcome(code, Path(f"{name}.out").read_text(), Path(f"{name}.err").read_text())
            for code, name in zip(codes, told, strict=True)
        ]


def _world(asked: dict[str, Any]) -> list[int]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    group = 0
    processes = []
    for rank in range(len(asked["told"])):
        process = os.fork()
        if process == 0:
            os.setpgid(0, group)
            os._exit(_one(asked, rank, port))
        group = group or process
        os.setpgid(process, group)  # whichever of both comes first
        processes.append(process)
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


def _one(asked: dict[str, Any], rank: int, port: int) -> int:
    from trilobit.cli import main

    world = len(asked["told"])
    for number, stream in ((0, "/dev/null"), (1, ".out"), (2, ".err")):
        path = stream if number == 0 else asked["told"][rank] + stream
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    if world > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        os.environ |= {name: str(value) for name, value in place.items()}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    if asked["kill"] and rank == world - 1:
        _die_in(asked["kill"])
    if asked["most_bytes"]:
        import resource  # which not every system has

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (asked["most_bytes"],) * 2)
    sys.argv = ["trilobit", *asked["words"]]
    code: Any = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return int(code or 0)


def _die_in(save: int) -> None:
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    write: Any = FileSystemWriter.write_data
    begun = 0

    def write_or_die(self: Any, plan: Any, planner: Any) -> Any:
        nonlocal begun
        begun += 1
        if begun == save:
            (self.path / "__1_0.distcp").write_bytes(b"half of it")
            os.killpg(0, signal.SIGKILL)
        return write(self, plan, planner)

    FileSystemWriter.write_data = write_or_die  # type: ignore[method-assign]


if __name__ == "__main__":
    import trilobit.train.run  # noqa: F401  what takes seconds to load

    for line in sys.stdin:
        print(json.dumps(_world(json.loads(line))), flush=True)
