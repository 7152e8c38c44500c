"""`trilobit chat`, driven as people and pipes drive it: the real program, a real model."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import tiny_config
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from trilobit import LLM, FormatError, OutputError, SamplingParams
from trilobit.cli.chat.completion import ChatCompleter
from trilobit.cli.chat.conversation import Conversation, Exchange, load
from trilobit.cli.chat.dialogue import COMMANDS, NO_CHAT, Dialogue
from trilobit.cli.terminal import NO_MEMORY
from trilobit.console import one_line, printable
from trilobit.conversion import convert
from trilobit.synth import synth

TEMPLATE = (
    "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)
PROGRAM = "from trilobit.cli import main; main()"
# The first terminal that a session's leader opens becomes its own: then Ctrl-C reaches it.
IN_TERMINAL = "import os; os.close(os.open(os.ttyname(0), os.O_RDWR)); " + PROGRAM
LEFT = "\x1b[?2004l"  # the prompt has given up the terminal
READY = "\x1b[?2004h"  # bracketed paste on: the prompt takes keys now
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
PATIENCE_S = 120  # a loaded machine is slow; a hung program must still end the test


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: Path) -> Path:
    """A model with a chat template that never ends a reply by itself, in a very long context."""
    directory = tmp_path_factory.mktemp("chat") / "tiny"
    synth(tiny_config(eos_token_ids=(), max_position_embeddings=65536), directory, seed=2)
    (directory / "tokenizer.json").write_bytes(tokenizer_json.read_bytes())
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    path = directory.with_suffix(".trilobit")
    convert(directory, path)
    return path


class Terminal:
    """The program in a pseudo-terminal: type, and wait for what it shows."""

    def __init__(self, *arguments: str | Path, environment: dict[str, str]) -> None:
        self._master, slave = os.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-c", IN_TERMINAL, "chat", *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=environment,
        )
        os.close(slave)
        self._unread = ""

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def expect(self, text: str) -> str:
        """Everything up to and with `text`, without its escape sequences."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self._unread:
            assert time.monotonic() < deadline, f"no {text!r} in {self._unread!r}"
            assert self._read(), f"ended without {text!r}: {self._unread!r}"
        seen, _, self._unread = self._unread.partition(text)
        return ESCAPES.sub("", seen + text).replace("\r\n", "\n")

    def prompt(self) -> str:
        """Everything up to the next prompt."""
        return self.expect(READY)

    def ask(self, text: str) -> str:
        """Type a line and take what comes until the next prompt."""
        self.type(text + "\r")
        return self.prompt()

    def end(self) -> int:
        """The exit code of a program that is about to end; what it showed stays to be read."""
        deadline = time.monotonic() + PATIENCE_S
        while self._read():
            assert time.monotonic() < deadline, f"still there: {self._unread!r}"
        return self._process.wait(PATIENCE_S)

    def echoes(self) -> bool:
        """Whether the terminal itself shows what is typed: not while a prompt does so."""
        import termios

        return bool(termios.tcgetattr(self._master)[3] & termios.ECHO)

    def terminate(self) -> None:
        self._process.terminate()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def _read(self) -> bool:
        """Take what the program has written, waiting a second at most; False at its end."""
        if not select.select([self._master], [], [], 1)[0]:
            return True
        try:
            data = os.read(self._master, 4096)
        except OSError:  # EIO: nobody holds the other side any more
            return False
        self._unread += data.decode(errors="replace")
        return bool(data)


Open = Callable[..., Terminal]
Pipe = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "TERM": "xterm-256color",
        "PROMPT_TOOLKIT_NO_CPR": "1",  # nobody here answers where the cursor is
    }


@pytest.fixture
def terminal(environment: dict[str, str]) -> Iterator[Open]:
    """Opens the chat in a terminal, ready at its first prompt."""
    if not hasattr(os, "openpty"):
        pytest.skip("this system has no pseudo-terminals")
    programs: list[Terminal] = []

    def opened(*arguments: str | Path) -> Terminal:
        programs.append(Terminal(*arguments, environment=environment))
        programs[-1].prompt()
        return programs[-1]

    yield opened
    for program in programs:
        program.close()


@pytest.fixture
def piped(environment: dict[str, str]) -> Pipe:
    """Runs the chat on lines of text."""

    def run(text: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", PROGRAM, "chat", *map(str, arguments)],
            input=text,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            env=environment,
            timeout=PATIENCE_S,
        )

    return run


def saved(chat: Terminal, path: Path) -> list[dict[str, str]]:
    assert re.search(r"saved \d+ exchange", chat.ask(f"/save {path}"))
    messages: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return messages


# ---- turns ------------------------------------------------------------------------------------


def test_without_a_model_it_is_the_one_that_comes_with_the_package_and_talks(piped: Pipe) -> None:
    said = piped("Hello\nMy name is Anna.\nWhat is seven times eight?\n", "--seed", "1")
    assert said.returncode == 0, said.stderr
    greeting, named, unknown = said.stdout.splitlines()
    assert "story" in greeting
    assert "Anna" in named
    assert unknown.startswith(("I do not know", "That is too hard for me."))


def test_every_turn_sends_the_whole_conversation(
    terminal: Open, chat_model: Path, tmp_path: Path
) -> None:
    chat = terminal(chat_model, "--max-tokens", "40", "--seed", "5", "--system", "Be kind.")
    assert "40 tokens" in chat.ask("Hello there.")
    chat.ask("The red ball?")
    messages = saved(chat, tmp_path / "chat.json")

    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert messages[0]["content"] == "Be kind."
    assert [m["content"] for m in messages[1::2]] == ["Hello there.", "The red ball?"]
    llm = LLM(chat_model)
    for end, seed in ((2, 5), (4, 6)):  # the seed counts on, reply by reply
        params = SamplingParams(max_tokens=40, min_p=0.05, seed=seed)
        assert llm.chat(messages[:end], params).text == messages[end]["content"]
    alone = llm.chat([messages[0], messages[3]], SamplingParams(max_tokens=40, min_p=0.05, seed=6))
    assert alone.text != messages[4]["content"]  # so what came before does matter


def test_a_later_turn_takes_the_earlier_ones_from_the_cache(
    terminal: Open, chat_model: Path
) -> None:
    chat = terminal(chat_model, "--max-tokens", "20")
    chat.ask("The girl and the dog ran and ran in the park until the sun went down. " * 3)
    chat.ask("And then?")
    last = re.search(r"last reply +prompt (\d+) tokens, (\d+) of them cached", chat.ask("/stats"))
    assert last is not None
    prompt, cached = map(int, last.groups())
    assert 0 < cached < prompt


def test_a_message_may_have_several_lines(terminal: Open, chat_model: Path, tmp_path: Path) -> None:
    chat = terminal(chat_model, "--max-tokens", "2")
    chat.ask("by a\\\rbackslash")
    chat.ask("by\x1b\rAlt+Enter")
    chat.ask("\x1b[200~pasted\r\nlines\nhere\x1b[201~")
    messages = saved(chat, tmp_path / "chat.json")
    assert [m["content"] for m in messages[::2]] == [
        "by a\nbackslash",
        "by\nAlt+Enter",
        "pasted\nlines\nhere",
    ]


def test_two_slashes_send_a_text_that_begins_with_one(
    terminal: Open, chat_model: Path, tmp_path: Path
) -> None:
    chat = terminal(chat_model, "--max-tokens", "2")
    chat.ask("//etc is a folder")
    assert saved(chat, tmp_path / "chat.json")[0]["content"] == "/etc is a folder"


def test_a_model_without_chat_template_says_that_it_continues_text(
    model_file: Path, piped: Pipe
) -> None:
    done = piped("Once upon a time\n", model_file, "--max-tokens", "3", "--ignore-eos")
    assert done.returncode == 0
    assert "it continues your text" in done.stderr


# ---- keys -------------------------------------------------------------------------------------


def test_ctrl_c_stops_the_reply_and_not_the_chat(
    terminal: Open, chat_model: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    environment["COLUMNS"] = "8"  # the line that says how much was read has no letters there
    chat = terminal(chat_model, "--max-tokens", "60000", "--seed", "5")
    chat.type("Hello there.\r")
    chat.expect(LEFT)
    chat.expect("e")  # some of the reply; the rest waits until this side reads on
    chat.type("\x03")
    assert "stopped" in chat.prompt()
    chat.type("And then?\r")
    chat.expect(LEFT)
    chat.expect("e")
    chat.type("\x03")
    assert "stopped" in chat.prompt()

    messages = saved(chat, tmp_path / "chat.json")
    assert [m["role"] for m in messages] == ["user", "assistant"] * 2
    for end, seed in ((1, 5), (3, 6)):
        kept = messages[end]["content"].rstrip("\ufffd")  # half a character may end it
        text = ""
        stream = LLM(chat_model).stream_chat(
            messages[:end], SamplingParams(max_tokens=60000, min_p=0.05, seed=seed)
        )
        with stream:
            while len(text) < len(kept):
                text += next(stream)
        assert kept
        assert text.startswith(kept)


def test_ctrl_c_at_the_prompt_clears_the_line_and_then_says_how_to_leave(
    terminal: Open, chat_model: Path, tmp_path: Path
) -> None:
    chat = terminal(chat_model, "--max-tokens", "2")
    chat.type("never mind\x03\x03")
    assert "Ctrl-D or /exit leaves" in chat.prompt()
    chat.type("never\x03")
    chat.ask("mind")
    assert saved(chat, tmp_path / "chat.json")[0]["content"] == "mind"


@pytest.mark.parametrize("keys", ["\x04", "/exit\r"])
def test_ctrl_d_and_exit_leave(terminal: Open, chat_model: Path, keys: str) -> None:
    chat = terminal(chat_model)
    chat.type(keys)
    assert chat.end() == 0


def test_a_terminated_chat_gives_the_terminal_back_as_it_was(
    terminal: Open, chat_model: Path
) -> None:
    chat = terminal(chat_model)
    assert not chat.echoes()
    chat.terminate()
    assert chat.end() == 128 + signal.SIGTERM
    assert chat.echoes()


def test_up_brings_back_a_message_of_an_earlier_chat(
    terminal: Open, chat_model: Path, tmp_path: Path
) -> None:
    first = terminal(chat_model, "--max-tokens", "2")
    first.ask("remember me")
    first.type("\x04")
    assert first.end() == 0
    history = tmp_path / "state" / "trilobit" / "chat_history"
    assert history.stat().st_mode & 0o077 == 0

    second = terminal(chat_model, "--max-tokens", "2")
    second.type("\x1b[A")
    second.expect("remember me")
    second.ask("")
    assert saved(second, tmp_path / "chat.json")[0]["content"] == "remember me"


def test_a_history_that_cannot_be_kept_does_not_stop_the_chat(
    terminal: Open, environment: dict[str, str], chat_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "state").write_text("a file where a folder should be")
    chat = terminal(chat_model, "--max-tokens", "2")
    assert "2 tokens" in chat.ask("Hello")


# ---- commands ---------------------------------------------------------------------------------


def test_help_lists_commands_and_keys(terminal: Open, chat_model: Path) -> None:
    text = terminal(chat_model).ask("/help")
    for word in ("/help", "/reset", "/system", "/save", "/load", "/stats", "/exit", "Alt+Enter"):
        assert word in text


def test_reset_forgets_the_exchanges_and_keeps_the_system_message(
    terminal: Open, chat_model: Path, tmp_path: Path
) -> None:
    chat = terminal(chat_model, "--max-tokens", "10", "--seed", "5", "--system", "Be kind.")
    chat.ask("Hello")
    assert "a new conversation" in chat.ask("/reset")
    chat.ask("Again")
    messages = saved(chat, tmp_path / "chat.json")
    assert [m["content"] for m in messages[:2]] == ["Be kind.", "Again"]
    assert len(messages) == 3
    params = SamplingParams(max_tokens=10, min_p=0.05, seed=6)
    assert LLM(chat_model).chat(messages[:2], params).text == messages[2]["content"]


def test_system_shows_sets_and_removes_the_system_message(
    terminal: Open, chat_model: Path, tmp_path: Path
) -> None:
    chat = terminal(chat_model, "--max-tokens", "10", "--seed", "5")
    assert "no system message" in chat.ask("/system")
    chat.ask("Hello")
    chat.ask("/system Be kind,\\\rand short.")
    assert "Be kind,\nand short." in chat.ask("/system")
    chat.ask("Again")
    messages = saved(chat, tmp_path / "one.json")
    assert messages[0] == {"role": "system", "content": "Be kind,\nand short."}
    assert [m["content"] for m in messages[1::2]] == ["Hello", "Again"]  # the talk went on
    params = SamplingParams(max_tokens=10, min_p=0.05, seed=6)
    assert LLM(chat_model).chat(messages[:-1], params).text == messages[-1]["content"]

    chat.ask("/system -")
    assert saved(chat, tmp_path / "two.json") == messages[1:]


def test_stats_tell_tokens_speed_context_and_memory(terminal: Open, chat_model: Path) -> None:
    chat = terminal(chat_model, "--max-tokens", "10", "--context", "1000")
    assert re.search(r"context +0 tokens, 1000 at most", chat.ask("/stats"))
    chat.ask("Hello")
    chat.ask("Again")
    text = chat.ask("/stats")
    assert re.search(r"replies +2", text)
    last = re.search(r"last reply +prompt (\d+) tokens.* reply (\d+) tokens, decode [\d.]+", text)
    every = re.search(r"all replies +prompt (\d+) tokens.* reply (\d+) tokens", text)
    assert last is not None
    assert every is not None
    assert [last[2], every[2]] == ["10", "20"]
    assert f"context       {int(last[1]) + 10} tokens, 1000 at most" in text
    assert re.search(r"peak memory +[1-9]\d* MB", text)


def test_no_stats_leaves_the_reply_alone(terminal: Open, chat_model: Path) -> None:
    assert "tokens/s" not in terminal(chat_model, "--no-stats", "--max-tokens", "2").ask("Hello")


def test_a_saved_chat_goes_on_after_load(terminal: Open, chat_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    first = terminal(chat_model, "--max-tokens", "10", "--system", "Be kind.")
    first.ask("Hello")
    before = saved(first, path)
    second = terminal(chat_model, "--max-tokens", "10", "--seed", "5")
    assert "> Hello" in second.ask(f"/load {path}")
    second.ask("Again")
    assert "saved 2 exchanges" in second.ask("/save")  # the same file
    after = json.loads(path.read_text(encoding="utf-8"))
    assert after[:3] == before
    params = SamplingParams(max_tokens=10, min_p=0.05, seed=5)
    assert LLM(chat_model).chat(after[:-1], params).text == after[-1]["content"]


def test_a_place_that_cannot_be_written_gives_one_line_and_the_chat_goes_on(
    terminal: Open, chat_model: Path, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign.json"
    foreign.write_text("mine")
    chat = terminal(chat_model, "--max-tokens", "2")
    chat.ask("Hello")
    for place, reason in (
        (tmp_path / "missing" / "chat.json", "No such file"),
        (tmp_path, "is a directory"),
        (foreign, "exists already"),
        ("", "needs the name of a file"),
    ):
        shown = chat.ask(f"/save {place}").split("\n")
        errors = [line for line in shown if line.startswith("error: ")]
        assert len(errors) == 1
        assert reason in errors[0]
    assert foreign.read_text() == "mine"
    assert len(saved(chat, tmp_path / "chat.json")) == 2


def test_a_chat_saved_before_reset_is_not_overwritten_after_it(
    terminal: Open, chat_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "chat.json"
    chat = terminal(chat_model, "--max-tokens", "2")
    chat.ask("Hello")
    first = saved(chat, path)
    chat.ask("/reset")
    chat.ask("Another")
    assert "exists already" in chat.ask(f"/save {path}")
    assert json.loads(path.read_text(encoding="utf-8")) == first


@pytest.mark.parametrize("line", ["/nope", "/reset everything", "/", "/load", "/load nowhere"])
def test_a_wrong_command_gives_one_line_and_sends_nothing(
    piped: Pipe, chat_model: Path, line: str
) -> None:
    done = piped(f"{line}\n/stats\n", chat_model)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert re.search(r"replies +0", done.stdout)


# ---- the context ------------------------------------------------------------------------------


def test_a_full_context_leaves_out_the_oldest_exchanges_but_not_the_system_message(
    terminal: Open, chat_model: Path, tmp_path: Path
) -> None:
    options = ("--context", "200", "--max-tokens", "30", "--seed", "5", "--system", "Be kind.")
    chat = terminal(chat_model, *options)
    question = "The girl and the dog ran in the park {} until the sun went down."
    shown = ""
    for turn in range(8):
        shown = chat.ask(question.format(turn))
    note = re.search(r"no longer sees the oldest (\d+) exchange", shown)
    assert note is not None
    left_out = int(note[1])
    assert f"the oldest {left_out} exchanges" in chat.ask("/stats")

    messages = saved(chat, tmp_path / "chat.json")
    assert len(messages) == 17  # nothing is lost
    llm = LLM(chat_model, context=200)
    params = SamplingParams(max_tokens=30, min_p=0.05, seed=12)
    sent = [messages[0], *messages[1 + 2 * left_out : -1]]
    assert llm.chat(sent, params).text == messages[-1]["content"]
    one_more = [messages[0], *messages[1 + 2 * (left_out - 1) : -1]]
    assert len(LLM(chat_model).chat_ids(one_more)) + 30 > 200  # no more than had to


def test_a_message_longer_than_the_context_gives_one_line_and_is_not_kept(
    terminal: Open, chat_model: Path, tmp_path: Path
) -> None:
    chat = terminal(chat_model, "--context", "100", "--max-tokens", "10")
    chat.ask("Hello")
    shown = chat.ask("far too long " * 40)
    errors = [line for line in shown.split("\n") if line.startswith("error: ")]
    assert len(errors) == 1
    assert "the context 100" in errors[0]
    assert "no longer sees" not in shown
    chat.ask("Again")
    messages = saved(chat, tmp_path / "chat.json")
    assert [m["content"] for m in messages[::2]] == ["Hello", "Again"]


def test_first_sent_leaves_out_as_few_exchanges_as_possible() -> None:
    talk = Conversation(
        system="s", exchanges=[Exchange(str(i), "x" * size) for i, size in enumerate([9, 1, 5, 2])]
    )

    def length(messages: list[dict[str, str]]) -> int:
        return sum(len(message["content"]) for message in messages)

    for most in range(1, 30):
        start = talk.first_sent("new", lambda messages: length(messages) <= most)  # noqa: B023
        assert start == 4 or length(talk.messages(start, "new")) <= most
        assert start == 0 or length(talk.messages(start - 1, "new")) > most


# ---- pipes ------------------------------------------------------------------------------------


def test_a_pipe_gives_replies_and_nothing_else(piped: Pipe, chat_model: Path) -> None:
    done = piped("Hello\\\nthere.\n\nAgain", chat_model, "--max-tokens", "10", "--seed", "5")
    assert done.returncode == 0
    llm = LLM(chat_model)
    messages = [{"role": "user", "content": "Hello\nthere."}]
    replies = [llm.chat(messages, SamplingParams(max_tokens=10, min_p=0.05, seed=5)).text]
    messages.append({"role": "assistant", "content": replies[0]})
    messages.append({"role": "user", "content": "Again"})
    replies.append(llm.chat(messages, SamplingParams(max_tokens=10, min_p=0.05, seed=6)).text)
    assert done.stdout == "".join(reply.removesuffix("\n") + "\n" for reply in replies)
    assert "\x1b" not in done.stderr


def test_an_empty_pipe_ends_at_once(piped: Pipe, chat_model: Path) -> None:
    done = piped("", chat_model)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_line_that_is_no_text_is_refused_and_the_next_one_is_not(
    piped: Pipe, environment: dict[str, str], chat_model: Path, tmp_path: Path
) -> None:
    environment["PYTHONIOENCODING"] = "utf-8:strict"  # as in most locales
    path = tmp_path / "chat.json"
    lines = f"a\udcffb\n/system \udcff\nfine\n/edit \udcff\n/save {path}\n"
    done = piped(lines, chat_model, "--max-tokens", "2")
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("error")] == [
        "error: the message: not UTF-8 text (the byte 0xff at character 2); give it in UTF-8",
        "error: /system: not UTF-8 text (the byte 0xff at character 1); give it in UTF-8",
        "error: the message: not UTF-8 text (the byte 0xff at character 1); give it in UTF-8",
    ]
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert [message["role"] for message in kept] == ["user", "assistant"]
    assert kept[0]["content"] == "fine"


@pytest.mark.parametrize("words", [["hi\udcff"], ["hi", "--system", "\udcff"]])
def test_arguments_that_are_no_text_are_refused(
    piped: Pipe, chat_model: Path, words: list[str]
) -> None:
    done = piped("", chat_model, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: \S+: not UTF-8 text \(the byte 0xff .*\n", done.stderr)


def test_a_model_without_tokenizer_is_refused_at_the_start(piped: Pipe, tmp_path: Path) -> None:
    synth(tiny_config(), tmp_path / "tiny", seed=1)
    convert(tmp_path / "tiny", tmp_path / "tiny.trilobit")
    done = piped("Hello\n", tmp_path / "tiny.trilobit")
    assert done.returncode == 2
    assert "has no tokenizer" in done.stderr
    assert done.stderr.count("\n") == 1


# ---- what a terminal must not obey ------------------------------------------------------------


def test_escape_sequences_of_a_model_are_shown_and_not_obeyed(
    terminal: Open, chat_model: Path, tmp_path: Path
) -> None:
    # So hot that all tokens are alike: among 3000 of them is ESC.
    chat = terminal(chat_model, "--max-tokens", "3000", "--temperature", "100", "--seed", "5")
    chat.type("Hello\r")
    chat.expect(LEFT)
    shown = chat.prompt()
    reply = saved(chat, tmp_path / "chat.json")[1]["content"]
    assert reply.count("\x1b") > 0
    assert shown.count("␛") == reply.count("\x1b")
    assert "\x1b" not in shown


def test_escape_sequences_of_a_file_are_shown_and_not_obeyed(
    terminal: Open, chat_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "evil.json"
    evil = "\x1b]0;title\x07\x9b2J"
    messages = [{"role": role, "content": evil} for role in ("system", "user", "assistant")]
    path.write_text(json.dumps(messages))
    chat = terminal(chat_model)
    assert "> ␛]0;title␇\ufffd2J\n␛]0;title␇\ufffd2J" in chat.ask(f"/load {path}")
    assert "␛]0;title␇\ufffd2J" in chat.ask("/system")


def test_printable_replaces_control_characters_alone() -> None:
    controls = {chr(c) for c in [*range(0x20), 0x7F, *range(0x80, 0xA0)]} - {"\n", "\t"}
    everything = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    assert {c for c in everything if printable(c) != c} == controls
    assert not any(c in controls for c in printable("".join(everything)))
    assert one_line(" a\n\x1b[2J\tb ") == "a ␛[2J b"


# ---- the file ---------------------------------------------------------------------------------


def test_save_then_load_gives_the_same_conversation(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    talk = Conversation(
        system="gütig ☃", exchanges=[Exchange(" Hello\n\n", "\x1b[1mHi\x00 "), Exchange("?", "")]
    )
    talk.save(path)
    again = load(path)
    assert again.messages() == talk.messages()
    assert again.file == talk.file == path
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "not JSON"),
        ("\xff", "not (JSON|UTF-8)"),
        ("{}", "not a list"),
        ("[1]", "message 1: expected the role 'user'"),
        ('[{"role": "assistant", "content": ""}]', "message 1: expected the role 'user'"),
        ('[{"role": "system"}]', "message 1: has no text"),
        ('[{"role": "user", "content": 1}]', "message 1: has no text"),
        ('[{"role": "user", "content": ""}]', "the last message has no answer"),
        (
            '[{"role": "system", "content": ""}, {"role": "system", "content": ""}]',
            "message 2: expected the role 'user'",
        ),
    ],
)
def test_load_refuses_what_is_no_conversation(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "chat.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(FormatError, match=reason) as error:
        load(path)
    assert str(path) in str(error.value)


def test_load_refuses_what_is_no_file(tmp_path: Path) -> None:
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no space
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    for place in (huge, pipe, tmp_path, tmp_path / "missing.json", tmp_path / "a\0b"):
        with pytest.raises(FormatError):
            load(place)


def test_half_a_character_in_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    turns = [{"role": "user", "content": "a\ud800"}, {"role": "assistant", "content": "ok"}]
    path.write_text(json.dumps(turns))
    with pytest.raises(FormatError, match=r"message 1: not UTF-8 text \(half a character at"):
        load(path)


def test_a_failed_save_leaves_nothing_behind(tmp_path: Path) -> None:
    talk = Conversation(exchanges=[Exchange("Hello", "Hi")])
    for place in (tmp_path / ("x" * 250), tmp_path / "a\0b", tmp_path):
        with pytest.raises(OutputError):
            talk.save(place)
    assert list(tmp_path.iterdir()) == []
    assert talk.file is None


def test_retry_edit_set_and_quotes_through_a_pipe(piped: Pipe, chat_model: Path) -> None:
    said = [
        "/retry",
        "hello",
        "/set temperature 0.5",
        "/set temprature 1",
        "/set top_k x",
        "/set top_k -3",
        "/retry",
        "/edit good bye",
        '"""',
        "/two",
        "lines",
        '"""',
        "/edit",
        "/set",
        "/save",
    ]
    done = piped("\n".join(said) + "\n", chat_model, "--max-tokens", "3", "--seed", "1")
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: /retry: nothing has been said yet",
        "error: /set: no setting 'temprature'; did you mean temperature?",
        "error: /set: top_k is 'x'; expected a number",
        errors[3],
        "error: /edit needs a text, where there is no keyboard",
        "error: /save needs the name of a file",
    ]
    assert "top_k" in errors[3]
    assert "temperature          0.5\n" in done.stdout


def test_retry_and_edit_replace_the_last_exchange(
    piped: Pipe, chat_model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "chat.json"
    said = ["first", "second", "/retry", "/edit third", "/retry", f"/save {file}"]
    done = piped("\n".join(said) + "\n", chat_model, "--max-tokens", "4", "--seed", "7")
    assert done.returncode == 0, done.stderr
    kept = [
        message["content"] for message in json.loads(file.read_text()) if message["role"] == "user"
    ]
    assert kept == ["first", "third"]
    answers = done.stdout.split("\n")
    assert len({*answers[1:3]}) == 2  # another seed, another answer


def test_a_chat_goes_on_with_another_model(piped: Pipe, chat_model: Path, tmp_path: Path) -> None:
    other, file = tmp_path / "other.trilobit", tmp_path / "chat.json"
    other.write_bytes(chat_model.read_bytes())
    said = ["hello", "/model", f"/model {tmp_path}/none", "/model", f"/model {other}", "/model"]
    done = piped(
        "\n".join([*said, "and now", f"/save {file}"]) + "\n", chat_model, "--max-tokens", "2"
    )
    assert done.returncode == 2
    assert "none: no such file" in done.stderr
    names = [line for line in done.stdout.splitlines() if line in ("tiny", "other")]
    assert names == ["tiny", "tiny", "other"]
    assert len(json.loads(file.read_text())) == 4


def test_a_model_that_is_refused_is_closed_and_the_old_one_stays(
    chat_model: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    synth(tiny_config(), tmp_path / "mute", seed=1)
    convert(tmp_path / "mute", tmp_path / "mute.trilobit")
    old, opened = LLM(chat_model), list[LLM]()

    def open_model(name: str) -> LLM:
        if name == "huge":
            raise MemoryError  # what no machine of a test should do in earnest
        opened.append(LLM(tmp_path / "mute.trilobit" if name == "mute" else model_file))
        return opened[-1]

    said = iter(["/model huge", "/model mute", "hello", "/model", "/model story", "/model"])
    dialogue = Dialogue(
        old,
        SamplingParams(max_tokens=2),
        lambda _: next(said, None) or at_the_end(),
        open_model,
        system=None,
        interactive=False,
        stats=False,
        plain=False,
    )
    assert not dialogue.run()
    told = capsys.readouterr()
    errors = [line for line in told.err.splitlines() if line.startswith("error")]
    assert errors[0] == f"error: {NO_MEMORY}; nothing has changed"
    assert "has no tokenizer" in errors[1]
    assert len(errors) == 2
    assert NO_CHAT in told.err  # of the last one
    assert told.out.split("\n")[-3:] == ["tiny", model_file.stem, ""]
    assert ["closed" in repr(llm) for llm in (old, *opened)] == [True, True, False]


def at_the_end() -> str:
    raise EOFError


def test_tab_completes_commands_models_settings_and_files(tmp_path: Path) -> None:
    (tmp_path / "talk.json").write_text("[]")
    completer = ChatCompleter(COMMANDS)

    def offered(text: str) -> list[str]:
        event = CompleteEvent(completion_requested=True)
        return [found.text for found in completer.get_completions(Document(text), event)]

    assert offered("/re") == ["/retry", "/reset"]
    assert offered("/set temp") == ["temperature"]
    assert "bitnet-2b" in offered("/model bitnet-")
    assert offered(f"/load {tmp_path}/ta") == ["lk.json"]
    assert offered("hello /re") == []


def test_a_chat_begins_with_what_the_command_says(piped: Pipe, chat_model: Path) -> None:
    done = piped("/stats\n", chat_model, "hello", "there", "--max-tokens", "2")
    assert done.returncode == 0, done.stderr
    assert "replies       1," in done.stdout


def test_quotes_within_a_line_open_nothing_and_open_ones_are_told(
    piped: Pipe, chat_model: Path
) -> None:
    done = piped('"""Dune""" is a book\nsecond\n/stats\n', chat_model, "--max-tokens", "2")
    assert done.returncode == 0, done.stderr
    assert "replies       2," in done.stdout
    lines = "line\n" * 300_000  # looked at one by one: all of them each time would take hours
    done = piped(f'hello\n"""begun\n{lines}', chat_model, "--max-tokens", "2")
    assert done.returncode == 2
    assert 'error: a message begins with """ and does not end; close it with """' in done.stderr


@pytest.mark.parametrize("keys", ["\x03", "\x04", "\x7f\x7f\x04", "\x7f" * 5 + "\x04"])
def test_an_edit_that_is_given_up_changes_nothing(
    terminal: Open, chat_model: Path, tmp_path: Path, keys: str
) -> None:
    chat = terminal(chat_model, "--max-tokens", "2")
    chat.ask("first")
    chat.ask("/edit")  # the old message stands there, to be changed
    chat.type(keys)
    assert "nothing has changed" in chat.prompt()
    chat.ask("second")
    assert [one["content"] for one in saved(chat, tmp_path / "c.json")[::2]] == ["first", "second"]
