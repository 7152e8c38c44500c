"""Messages typed at a terminal: one prompt, several lines, a history that outlives the program."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import Completer
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from trilobit.cli.chat.quoted import is_open
from trilobit.cli.signals import on_signal
from trilobit.cli.terminal import note

HINTS = (
    ("Enter", "send"),
    ("Alt+Enter, or \\ Enter", "new line"),
    ("Tab", "complete a command, a file, a model, a setting"),
    ("Up, Down, Ctrl-R", "earlier messages, search them"),
    ("Ctrl-C", "stop the reply; clear the line; give up an edit"),
    ("Ctrl-D", "leave; give up an edit"),
)


def keyboard(completer: Completer) -> Callable[[str], str]:
    """A function that asks for the next message, which may be begun; EOFError on Ctrl-D."""
    edits = False  # the message that is asked for is an old one, to be changed
    session: PromptSession[str] = PromptSession(
        "> ",
        multiline=True,
        prompt_continuation="  ",
        key_bindings=_keys(lambda: edits),
        history=_history(),
        completer=completer,
        complete_while_typing=False,
        enable_suspend=True,
    )

    def leave() -> None:
        # Ending the prompt gives the terminal back as it was; an exception from here would not.
        try:
            session.app.exit(exception=SystemExit(128 + signal.SIGTERM))
        except Exception:  # it does not ask yet, or no more
            sys.exit(128 + signal.SIGTERM)

    def read(begun: str) -> str:
        nonlocal edits
        edits = bool(begun)
        while True:
            try:
                with on_signal(signal.SIGTERM, leave):
                    text = session.prompt("edit> " if edits else "> ", default=begun)
            except (KeyboardInterrupt, EOFError) as key:
                if edits:  # an edit that is given up changes nothing
                    return ""
                if isinstance(key, EOFError):
                    raise
                note("Ctrl-D or /exit leaves")
            else:
                return text

    return read


def _keys(editing: Callable[[], bool]) -> KeyBindings:
    keys = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)  # not searching the history

    @keys.add("enter", filter=typing)
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.is_cursor_at_the_end and buffer.text.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        elif is_open(buffer.text):
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=typing)  # what terminals send for Alt+Enter
    def go_on(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("c-c", filter=typing)
    @keys.add("<sigint>")
    def clear(event: KeyPressEvent) -> None:
        if event.current_buffer.text and not editing():
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    @keys.add("c-d", filter=typing & Condition(editing))
    def give_up(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if not buffer.document.is_cursor_at_the_end:  # there it deletes, as in a shell
            buffer.delete()
        else:
            event.app.exit(exception=EOFError)

    return keys


class _PatientHistory(FileHistory):
    """A file that cannot be read or written (no permission, disk full) does not stop a chat."""

    def load_history_strings(self) -> Iterable[str]:
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string)


def _history() -> History:
    try:
        path = _state_directory() / "chat_history"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)  # what people tell a model is nobody else's business
    except (OSError, RuntimeError):  # RuntimeError: no home directory
        return InMemoryHistory()
    return _PatientHistory(path)


def _state_directory() -> Path:
    named = os.environ.get("XDG_STATE_HOME") or (
        os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else None
    )
    return (Path(named) if named else Path.home() / ".local" / "state") / "trilobit"
