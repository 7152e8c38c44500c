"""HumanEval: what passes, what fails, and what a program cannot do."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner
from core_builds import need

pytest.importorskip("lm_eval")

from trilobit import LLM, FormatError, RequestError
from trilobit.bundled import DEFAULT
from trilobit.cli.eval import command
from trilobit.evaluate import humaneval as tasks
from trilobit.evaluate.harness import Harness
from trilobit.evaluate.humaneval import humaneval
from trilobit.evaluate.programs import check_sandbox, runs_through

pytestmark = pytest.mark.filterwarnings("ignore")

DOUBLE = {
    "prompt": 'def double(n):\n    """Twice n."""\n',
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
    "entry_point": "double",
}


@pytest.fixture(autouse=True)
def sandbox() -> None:
    need("bwrap")
    try:
        check_sandbox()
    except RequestError as error:
        if os.environ.get("TRILOBIT_REQUIRE_CROSS"):
            raise
        pytest.skip(str(error))


def test_a_program_counts_when_it_reaches_its_end() -> None:
    assert runs_through("print('said')\nassert 1 + 1 == 2")
    assert not runs_through("assert 1 + 1 == 3")
    assert not runs_through("def broken(:")
    assert not runs_through("raise SystemExit(0)")
    assert not runs_through("import os\nos._exit(0)")


def test_a_program_cannot_reach_the_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not runs_through(
            f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)"
        )


def test_a_program_cannot_see_or_change_our_files(tmp_path: Path) -> None:
    file = tmp_path / "ours"
    file.write_text("whole")
    assert not runs_through(f"open({str(file)!r}).read()")
    assert not runs_through(f"open({str(tmp_path / 'new')!r}, 'w').write('x')")
    assert not runs_through("import os\nopen(os.__file__, 'a').write('x')")
    assert runs_through("open('own', 'w').write('x')\nassert open('own').read() == 'x'")
    assert file.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [file]


def test_a_program_gets_nothing_of_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "x")
    assert runs_through("import os\nassert set(os.environ) <= {'PWD', 'LC_CTYPE'}, os.environ")
    assert runs_through(f"import os\nassert os.getpid() != {os.getpid()}\nos.kill(1, 0)")


@pytest.mark.parametrize(
    "greedy",
    [
        "x = bytearray(4 << 30)",
        "open('big', 'wb').write(bytes(64 << 20))",
        "for n in range(64): open(str(n), 'wb').write(bytes(1 << 19))",
        "print('x' * (64 << 20))",
        "kept = [open('/dev/null') for _ in range(10_000)]",
    ],
)
def test_a_program_has_limits(greedy: str) -> None:
    assert not runs_through(greedy)


def test_a_program_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trilobit.evaluate.programs._SECONDS", 1)
    assert not runs_through("while True: pass")
    assert not runs_through("import time\ntime.sleep(1000)")


def test_what_passes_its_tests_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "human_eval.jsonl").write_text(f"{json.dumps(DOUBLE)}\n" * 3)
    written = ["    return n + n\n", "    return n * 3\n", "    return 2 * n\n"]
    monkeypatch.setattr(Harness, "generate_until", lambda *_, **__: written)
    with LLM() as llm:
        score = humaneval(llm, tmp_path)
    assert (score.task, score.metric, score.questions) == ("humaneval", "pass@1", 3)
    assert score.value == pytest.approx(2 / 3)


def test_the_model_writes_what_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "human_eval.jsonl").write_text(json.dumps(DOUBLE))
    ran: list[str] = []
    monkeypatch.setattr(tasks, "runs_through", lambda program: ran.append(program) or True)
    monkeypatch.setattr(tasks, "_MOST_OUTPUT", 12)
    words = ["--tasks", "humaneval", "--data", str(tmp_path), "--json", "-m", DEFAULT]
    done = CliRunner().invoke(command, [*words, "--run-programs"], catch_exceptions=False)
    assert json.loads(done.stdout)["scores"][0]["value"] == 1
    (program,) = ran
    assert program.startswith(DOUBLE["prompt"])
    assert program.endswith(f"\n{DOUBLE['test']}\ncheck(double)")
    assert len(program) > sum(map(len, DOUBLE.values())) + 10


def test_programs_run_only_where_that_is_asked_for_and_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = CliRunner().invoke(command, ["--tasks", "humaneval", "--data", str(tmp_path)])
    assert isinstance(done.exception, RequestError)
    assert "give --run-programs" in str(done.exception)
    with LLM() as llm:
        with pytest.raises(RequestError, match=r"no human_eval\.jsonl"):
            humaneval(llm, tmp_path)
        (tmp_path / "human_eval.jsonl").write_text(
            '{"prompt": "", "test": "", "entry_point": "a b"}'
        )
        with pytest.raises(FormatError, match="line 1 is no record of humaneval"):
            humaneval(llm, tmp_path)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(RequestError, match="apt install bubblewrap"):
        check_sandbox()
