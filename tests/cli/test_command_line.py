"""What a newcomer types: names of models, what `run` makes of them, help, completion, streams."""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
from conftest import tiny_config
from program import (
    HEAR_CTRL_C,
    INTERRUPTED,
    TIMEOUT_S,
    error_of,
    fail,
    result,
    succeed,
    trilobit,
    trilobit_after,
)

from trilobit import LLM, SamplingParams
from trilobit.bundled import DEFAULT, bundled_models
from trilobit.cli import _COMMANDS, cli
from trilobit.cli.command import Command
from trilobit.cli.units import count
from trilobit.conversion import convert
from trilobit.errors import OutputError
from trilobit.hub.catalogue import CATALOGUE
from trilobit.hub.home import home
from trilobit.hub.names import ALIASES, is_known
from trilobit.model.shapes import SHAPES
from trilobit.synth import synth

TEMPLATE = (
    "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)
QUESTION = "What did the dog see?"
FEW = ("--max-tokens", "6", "--seed", "3", "--threads", "1")
TAKE_A_MODEL = [
    name for name in _COMMANDS if name not in ("front", "list", "replay", "serve", "synth", "train")
]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: Path) -> Path:
    """A model with a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "tiny"
    synth(tiny_config(), folder, seed=2)
    (folder / "tokenizer.json").write_bytes(tokenizer_json.read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    path = folder.with_suffix(".trilobit")
    convert(folder, path)
    return path


def command(name: str) -> Command:
    found = cli.get_command(click.Context(cli), name)
    assert isinstance(found, Command)
    return found


def parsed(name: str, *words: str) -> dict[str, Any]:
    """What a command would be called with."""
    return command(name).make_context(f"trilobit {name}", list(words)).params


# ---- naming a model ---------------------------------------------------------------------------

AFTER_MODEL = {
    "run": ["some", "words"],
    "embed": ["a.txt", "b.txt"],
    "convert": ["out.trilobit"],
    "perplexity": ["a.txt"],
}


@pytest.mark.parametrize(
    "name", [name for name in TAKE_A_MODEL if name not in ("generate", "report")]
)
def test_a_model_is_named_in_the_first_place_or_by_an_option(name: str) -> None:
    rest = AFTER_MODEL.get(name, [])
    first = parsed(name, "bitnet-2b", *rest)
    assert first["model"] == "bitnet-2b"
    for words in (["-m", "bitnet-2b", *rest], [*rest, "--model", "bitnet-2b"]):
        assert parsed(name, *words) == first


def test_a_model_whose_name_begins_with_a_dash_is_a_file() -> None:
    for words in (["--model=-m.trilobit"], ["-m", "-m.trilobit"]):
        assert parsed("run", *words, "some", "words")["model"] == "./-m.trilobit"
        assert parsed("run", "some", *words)["prompt"] == ("some",)


def test_generate_takes_a_model_in_the_first_place_too(model_file: Path) -> None:
    by_option = result("generate", "-m", model_file, "The dog", *FEW)
    for words in (
        (model_file, "The dog"),
        (model_file, "The", "dog"),
        ("The dog", "--model", model_file),
        ("The", "dog", "-m", model_file),
    ):
        assert result("generate", *words, *FEW)["token_ids"] == by_option["token_ids"]
    ids = ("--token-ids", "3,4,5")
    by_option = result("generate", "-m", model_file, *ids, *FEW)
    assert result("generate", model_file, *ids, *FEW)["token_ids"] == by_option["token_ids"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["Once", "upon", "a", "time"], 'stands in quotes: trilobit generate "Once upon a time"'),
        (["bitnet-2", "hi"], "bitnet-2: no such model; did you mean bitnet-2b"),
        (["hi", "--token-ids", "1"], "give one of PROMPT"),
    ],
)
def test_generate_says_which_word_it_did_not_understand(words: list[str], reason: str) -> None:
    assert reason in fail("generate", *words)


def test_a_prompt_that_is_the_name_of_a_model_is_told(model_file: Path) -> None:
    for words in (
        ("generate", "bitnet-2b", "--max-tokens", 1),
        ("generate", DEFAULT, "-m", model_file, "--max-tokens", 1),
        ("run", model_file, "microsoft/bitnet-b1.58-2B-4T", "--max-tokens", 1),
        ("run", model_file, model_file, "--max-tokens", 1),
    ):
        done = trilobit(*words)
        assert done.returncode == 0
        assert done.stderr.count("is the name of a model, and was taken for the prompt") == 1
    assert "name of a model" not in trilobit("generate", "and/or", "--max-tokens", 1).stderr


def test_what_is_known_to_be_a_model(model_file: Path, checkpoint: Path, tmp_path: Path) -> None:
    for name in (DEFAULT, "bitnet-2b", "BitNet-2B", "hf://bitnet-2b", "bitnet-2b@main"):
        assert is_known(name), name
    assert is_known(str(model_file))
    assert is_known(str(checkpoint))
    for name in ("", "Once", "and/or", "he/she", str(tmp_path), "no.trilobit", "Once upon: a"):
        assert not is_known(name), name


@pytest.mark.parametrize("name", TAKE_A_MODEL)
def test_an_empty_name_is_refused(name: str) -> None:
    assert "MODEL is empty" in fail(name, "-m", "", *AFTER_MODEL.get(name, []))


@pytest.mark.parametrize("name", ["embed", "info", "pull", "rm", "verify"])
def test_a_missing_model_is_told(name: str) -> None:
    assert "Missing argument 'MODEL'" in fail(name)


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "--file", ""],
        ["convert", DEFAULT, ""],
        ["synth", "--shape", "125m", ""],
        ["embed", DEFAULT, ""],
        ["embed", DEFAULT, "--out", ""],
        ["verify", DEFAULT, "--text", ""],
        ["train", ""],
        ["bench", "--folder", ""],
    ],
)
def test_an_empty_path_is_not_this_folder(words: list[str]) -> None:
    assert "it is empty; name a file or a folder" in fail(*words)


def test_a_text_in_the_place_of_a_file_is_told_the_way(model_file: Path) -> None:
    assert "echo TEXT | trilobit embed MODEL" in fail("embed", model_file, "How are you?")


@pytest.mark.parametrize(("name", "to"), [("out.gguf", "packed"), ("out.trilobit", "gguf")])
def test_a_file_is_not_named_as_another_form(
    name: str, to: str, model_file: Path, tmp_path: Path
) -> None:
    assert "rename it" in fail("convert", model_file, tmp_path / name, "--to", to)
    assert list(tmp_path.iterdir()) == []


# ---- run --------------------------------------------------------------------------------------


def answer(model: Path, *messages: dict[str, str]) -> str:
    params = SamplingParams(max_tokens=6, seed=3, temperature=0.7, min_p=0.05)
    return LLM(model, threads=1).chat(messages, params).text


def test_run_answers_a_question_through_the_template(chat_model: Path) -> None:
    asked = {"role": "user", "content": QUESTION}
    for words in ((QUESTION,), QUESTION.split()):
        done = trilobit("run", chat_model, *words, *FEW)
        assert (done.returncode, done.stdout) == (0, answer(chat_model, asked) + "\n")
        assert done.stderr.startswith("6 tokens | ")
    done = trilobit("run", chat_model, QUESTION, "--system", "Be brief.", *FEW)
    told = {"role": "system", "content": "Be brief."}
    assert done.stdout == answer(chat_model, told, asked) + "\n"


def test_what_is_piped_comes_before_the_question(chat_model: Path, model_file: Path) -> None:
    piped = b"A cat.\nA dog.\n"
    done = trilobit("run", chat_model, QUESTION, *FEW, stdin=piped)
    asked = {"role": "user", "content": f"A cat.\nA dog.\n\n{QUESTION}"}
    assert done.stdout == answer(chat_model, asked) + "\n"
    for words in ((), ("-",)):
        done = trilobit("run", chat_model, *words, *FEW, stdin=piped)
        asked = {"role": "user", "content": "A cat.\nA dog."}
        assert done.stdout == answer(chat_model, asked) + "\n"
    done = trilobit("run", model_file, "The dog", *FEW, stdin=piped)
    assert done.stdout.startswith("A cat.\nA dog.\n\nThe dog")


def test_run_without_a_question_or_a_terminal_asks_for_one(chat_model: Path) -> None:
    for words in ((), ("",), (" ",)):
        assert "nothing is asked; give a question" in fail("run", chat_model, *words)


def test_run_tells_a_story_where_there_is_no_template(model_file: Path) -> None:
    assert trilobit("run", model_file, *FEW).stdout.startswith("Once upon a time")
    assert "leave out --system" in fail("run", model_file, "hi", "--system", "Be brief.")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals here")
@pytest.mark.parametrize("chats", [True, False])
def test_run_chats_in_a_terminal_where_there_is_a_template(
    chats: bool, chat_model: Path, model_file: Path, tmp_path: Path
) -> None:
    model = chat_model if chats else model_file
    master, slave = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "trilobit", "run", str(model), *FEW],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        env={
            **os.environ,
            "TERM": "xterm-256color",
            "PROMPT_TOOLKIT_NO_CPR": "1",
            "XDG_STATE_HOME": str(tmp_path),
        },
    )
    os.close(slave)
    shown, left, deadline = b"", False, time.monotonic() + TIMEOUT_S
    try:
        while process.poll() is None or select.select([master], [], [], 0)[0]:
            assert time.monotonic() < deadline, shown
            if not select.select([master], [], [], 0.2)[0]:
                continue
            try:
                data = os.read(master, 4096)
            except OSError:  # EIO: nobody holds the other side any more
                break
            shown += data
            if not left and b"\x1b[?2004h" in shown:  # the prompt takes keys now
                os.write(master, b"\x04")
                left = True
        assert process.wait(TIMEOUT_S) == 0
    finally:
        process.kill()
        os.close(master)
    assert (b"Ctrl-D leaves" in shown) is chats
    assert (b"Once upon a time" in shown) is not chats


def test_who_waits_for_text_is_told(model_file: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "trilobit", "run", str(model_file), *FEW],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(b"waiting for text on standard input")
        out, _ = process.communicate(b"The dog", timeout=TIMEOUT_S)
    assert process.returncode == 0
    assert out.startswith(b"The dog")


def test_generate_reads_stdin_where_no_prompt_is_given(model_file: Path) -> None:
    for words, stdin in (((), b"The dog"), (("-",), b"The dog"), (("The dog",), b"not read")):
        values = result("generate", *words, "-m", model_file, *FEW, stdin=stdin)
        assert values["text"] == result("generate", "The dog", "-m", model_file, *FEW)["text"]


# ---- help -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", _COMMANDS)
def test_help_is_short_to_ask_for_and_shows_examples(name: str) -> None:
    shown = succeed(name, "-h")
    assert shown == succeed(name, "--help")
    examples = shown.partition("\nExamples:\n")[2].partition("\n\n")[0]
    assert examples.count(f"  trilobit {name}") >= 2


@pytest.mark.parametrize("name", _COMMANDS)
def test_examples_are_understood(name: str) -> None:
    for line, what in command(name).examples:
        program, chosen, *words = shlex.split(line.partition(" < ")[0])
        assert (program, chosen) == ("trilobit", name)
        parsed(name, *words)
        assert what.endswith(".")
        assert len(line) < 76  # fits a terminal of 80 columns


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    for param in command(name).params:
        if isinstance(param, click.Option):
            assert param.help, param.opts


def test_options_stand_under_headings() -> None:
    shown = succeed("run", "-h")
    headings = [line for line in shown.splitlines() if re.fullmatch(r"\w+:", line)]
    assert headings == ["Examples:", "Options:", "Sampling:", "Engine:"]
    assert shown.index("Sampling:") < shown.index("--top-k") < shown.index("Engine:")


@pytest.mark.parametrize("columns", ["0", "1", "20", "-5", "x", "10000"])
def test_help_is_shown_at_any_width(columns: str) -> None:
    done = trilobit("run", "-h", env={**os.environ, "COLUMNS": columns})
    assert (done.returncode, done.stderr) == (0, "")
    assert "--max-tokens" in done.stdout


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("genrate", "generate"),
        ("Chat", "chat"),
        ("ls", "list"),
        ("models", "list"),
        ("help", "--help"),
        ("remove", "rm"),
        ("download", "pull"),
        ("bitnet-2b", "run bitnet-2b"),
    ],
)
def test_a_wrong_command_is_told_the_right_one(word: str, meant: str) -> None:
    assert fail(word) == (
        f"error: no command '{word}'; did you mean `trilobit {meant}`? See `trilobit --help`\n"
    )


def test_a_wrong_command_that_is_like_none_is_short(tmp_path: Path) -> None:
    assert "did you mean" not in fail("zzzzzzzz")
    assert len(fail("a b " * 10_000)) < 200


def test_a_wrong_option_is_told_the_right_one() -> None:
    assert "Did you mean '--temperature'? See" in fail("run", "--temprature", "1")
    assert "comes last, behind --" in fail("generate", "-5 degrees")
    assert "`trilobit run --help`" in fail("run", "-m")


# ---- completion -------------------------------------------------------------------------------


def completed(*words: str, cwd: Path | None = None) -> list[str]:
    """What is offered for the last word."""
    done = trilobit(
        env={
            **os.environ,
            "_TRILOBIT_COMPLETE": "zsh_complete",
            "COMP_WORDS": " ".join(["trilobit", *words]),
            "COMP_CWORD": str(len(words)),
        },
        cwd=cwd,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    return lines[1::3]


def test_completion_knows_commands_options_and_values() -> None:
    assert completed("r") == ["run", "replay", "rm", "report"]
    assert completed("") == list(_COMMANDS)
    assert completed("run", "--temp") == ["--temperature"]
    assert completed("run", "--kv-dtype", "") == ["f16", "f32", "i8"]


def test_completion_knows_models(model_file: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bitter.trilobit").touch()
    (tmp_path / "bitter.txt").touch()
    (tmp_path / "bit\n,\t\x1b.gguf").touch()
    shutil.copytree(checkpoint, tmp_path / "bits")
    shutil.copytree(checkpoint, tmp_path / "bitrun" / "packed")
    (tmp_path / "bitrun" / "recipe.json").touch()
    for words in (("run",), ("run", "-m"), ("info",), ("generate", "--model")):
        found = completed(*words, "bit", cwd=tmp_path)
        assert {"bitnet-2b", "bitter.trilobit", "bits"} <= set(found)
        assert all(name.startswith("bit") for name in found)
        assert "bitter.txt" not in found
        assert DEFAULT in completed(*words, "", cwd=tmp_path)
        assert "bitrun" in found
    trilobit("run", checkpoint, *FEW)  # which packs it
    assert os.path.realpath(checkpoint) in completed("rm", "")
    assert "bitnet-2b" not in completed("rm", "")


def test_completion_loads_no_more_than_it_needs() -> None:
    report = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
    asked = "import os; os.environ |= {'_TRILOBIT_COMPLETE': 'bash_complete', 'COMP_CWORD': '1',"
    asked += "'COMP_WORDS': 'trilobit r'}\n"
    name = "import sys; sys.argv[0] = 'trilobit'\n"
    done = trilobit_after(report + asked + name)
    assert not {"numpy", "trilobit.cli.run"} & set(done.stderr.split())


COMPLETES = {
    "bash": (
        ["bash", "-c"],
        'eval "$(_TRILOBIT_COMPLETE=bash_source trilobit)"; COMP_WORDS=(trilobit run bitnet-x); '
        'COMP_CWORD=2; _trilobit_completion trilobit; echo "${COMPREPLY[@]}"',
    ),
    "fish": (
        ["fish", "--no-config", "-c"],
        "_TRILOBIT_COMPLETE=fish_source trilobit | source; complete -C 'trilobit run bitnet-x'",
    ),
    # Only a zsh in a terminal completes: this one has another one type the Tab.
    "zsh": (
        ["zsh", "-f", "-c"],
        """zmodload zsh/zpty; zpty z 'PS1= zsh -f -i'
        zpty -w z 'autoload -U compinit; compinit -u -D'
        zpty -w z 'eval "$(_TRILOBIT_COMPLETE=zsh_source trilobit)"; echo rea""dy'
        zpty -r -m z shown '*ready*'
        zpty -n -w z $'trilobit run bitnet-x\\t'
        zpty -r -m z shown '*run bitnet-xl*'
        zpty -d z; echo bitnet-xl""",
    ),
}


@pytest.mark.parametrize("shell", COMPLETES)
def test_a_shell_completes_the_name_of_a_model(tmp_path: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    program = tmp_path / "trilobit"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m trilobit "$@"\n')
    program.chmod(0o755)
    words, script = COMPLETES[shell]
    done = subprocess.run(
        [*words, script],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "bitnet-xl\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_documented_line_gives_a_script(shell: str) -> None:
    text = (Path(__file__).parents[2] / "docs/command-line.md").read_text(encoding="utf-8")
    assert f"_TRILOBIT_COMPLETE={shell}_source trilobit" in text
    done = trilobit(env={**os.environ, "_TRILOBIT_COMPLETE": f"{shell}_source"})
    assert done.returncode == 0
    assert f"_TRILOBIT_COMPLETE={shell}_complete" in done.stdout


# ---- names and what they need -----------------------------------------------------------------


def test_the_catalogue_knows_every_name_and_only_shapes_that_are() -> None:
    assert CATALOGUE.keys() == ALIASES.keys()
    assert {facts.shape for facts in CATALOGUE.values()} - {None} <= set(SHAPES)


def test_names_are_listed_with_what_is_known_of_them() -> None:
    values = {item["name"]: item for item in result("list", "--names")}
    assert list(values) == [*bundled_models(), *ALIASES]
    bitnet = values["bitnet-2b"]
    assert bitnet["source"] == "microsoft/bitnet-b1.58-2B-4T"
    assert (bitnet["kind"], bitnet["context"], bitnet["licence"]) == ("chat", 4096, "MIT")
    assert 1.2e9 < bitnet["size_bytes"] < 1.5e9  # as converted, see the README
    assert 0.7e9 < bitnet["ram_bytes"] < 1e9  # 802 MB were measured with 640 tokens
    assert values["bitnet-embedding-0.6b"]["kind"] == "embedding"
    bundled = values[DEFAULT]
    assert bundled["size_bytes"] == bundled_models()[DEFAULT].stat().st_size
    assert bundled["context"] == LLM().context
    header, *rows = succeed("list", "--names").splitlines()
    assert header.split() == "NAME SIZE RAM CONTEXT KIND LANGUAGES LICENCE SOURCE".split()
    row = rows[len(bundled_models())]
    assert re.match(r"bitnet-2b +1\.\d+ GB +\d+ MB +4,096 +chat +English +MIT +micro", row)
    assert any(" ? " in row for row in rows)  # what is not known is not guessed


# ---- streams, signals, counts -----------------------------------------------------------------


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Run a line of a shell, where `trilobit` is the command."""
    program = f'trilobit() {{ {shlex.quote(sys.executable)} -m trilobit "$@"; }}; '
    return subprocess.run(
        ["sh", "-c", program + line],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


@pytest.mark.parametrize(
    "line",
    [
        "trilobit nope 2>&-",
        "trilobit run --temprature 1 2>&-",
        "trilobit generate --file /no/such/file 2>&-",
        "trilobit info /no/such/file 2>&- <&-",
        "trilobit nope 2>&- >&- <&-",
    ],
)
def test_errors_never_come_on_stdout(line: str) -> None:
    done = shell(line)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_notes_never_come_on_stdout() -> None:
    bench = "trilobit bench --runs 1 --prompt 1 --generate 2 --json 2>&-"
    assert json.loads(shell(bench).stdout)["generated_tokens"] == 2
    done = shell("trilobit run --max-tokens 3 --seed 1 2>&-")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)


def test_a_written_file_is_not_taken_for_a_closed_stream(tmp_path: Path) -> None:
    out = tmp_path / "out.trilobit"
    done = shell(f"trilobit convert {DEFAULT} {shlex.quote(str(out))} >&- 2>&- <&-")
    assert done.returncode == 0
    convert(bundled_models()[DEFAULT], tmp_path / "again.trilobit")
    assert out.read_bytes() == (tmp_path / "again.trilobit").read_bytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_stderr_that_cannot_be_written_changes_nothing() -> None:
    assert shell("trilobit nope 2>/dev/full").returncode == 2
    done = shell("trilobit run --max-tokens 3 --seed 1 2>/dev/full")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)


CONVERTED = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path, target=None):
        if name == {name!r}:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(1000): pass
            except KeyboardInterrupt as error:
                raise {error}('a library tells it in its own way') from error
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("error", ["RuntimeError", "ImportError", "AttributeError"])
def test_ctrl_c_that_a_library_tells_in_its_own_way_is_quiet(error: str) -> None:
    before = HEAR_CTRL_C + CONVERTED.format(name="tokenizers", error=error)
    done = trilobit_after(before, "run")
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "", "interrupted\n")


@pytest.mark.parametrize("name", ["trilobit.errors", "click", "trilobit.hub.names", "numpy"])
def test_ctrl_c_is_quiet_from_the_entry_of_the_script_on(name: str) -> None:
    script = Path(sys.executable).with_name("trilobit")
    if not script.exists():
        pytest.skip("installed without its script")
    # As the script does, but for the lines of Python's own before it.
    program = (
        f"{HEAR_CTRL_C}\nimport runpy, sys\nfrom trilobit.__main__ import main\n"
        "sys.argv = ['trilobit', 'run']\n"
        f"{CONVERTED.format(name=name, error='RuntimeError')}"
        "for name in [n for n in sys.modules if n.startswith(('trilobit.', 'click'))]:\n"
        "    del sys.modules[name]\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "", "interrupted\n")


def test_one_of_a_thing_is_singular(model_file: Path, tmp_path: Path) -> None:
    assert [count(number, "token") for number in (0, 1, 2)] == ["0 tokens", "1 token", "2 tokens"]
    done = trilobit("run", model_file, "--max-tokens", 1)
    assert done.stderr.startswith("1 token | ")
    shape = ("--shape", "125m", "--num-hidden-layers", 1, "--vocab-size", 300)
    succeed("synth", tmp_path / "one.trilobit", *shape, "--to-packed-file")
    assert " 1 layer, hidden" in succeed("info", tmp_path / "one.trilobit")
    benched = succeed(
        "bench", model_file, "--runs", 1, "--prompt", 1, "--generate", 2, "--threads", 1
    )
    assert "1 thread (" in benched
    assert "1 token in, " in benched
    assert "gates open " in benched


def test_file_names_do_not_command_the_terminal(model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m.trilobit"
    out = tmp_path / "b\x1b[31m.trilobit"
    path.symlink_to(model_file)
    for words in (("info", path), ("convert", path, out), ("verify", path)):
        assert "\x1b" not in trilobit(*words).stdout


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    pwd = pytest.importorskip("pwd")

    def no_entry(uid: int) -> None:
        raise KeyError(uid)

    for name in ("HOME", "TRILOBIT_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    with pytest.raises(OutputError, match="set TRILOBIT_HOME"):
        home()


def test_stdin_that_cannot_be_read_is_told(model_file: Path, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as written:
        done = subprocess.run(
            [sys.executable, "-m", "trilobit", "embed", str(model_file)],
            stdin=written,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    assert "standard input: cannot be read" in error_of(done)
