"""What Tab completes in a chat: commands, and what stands behind them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from trilobit.cli.chat.settings import NAMES
from trilobit.cli.model_name import known_models

_FILES = ("/load", "/save")


class ChatCompleter(Completer):
    """Completes commands by name; files, models and settings behind the commands that take them."""

    def __init__(self, commands: Mapping[str, tuple[str, str]]) -> None:
        self._commands = commands
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        """What may stand before the cursor."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, space, rest = text.partition(" ")
        if not space:
            for command, (_, said) in self._commands.items():
                if command.startswith(name):
                    yield Completion(command, -len(name), display_meta=said)
        elif name in _FILES:
            yield from self._paths.get_completions(Document(rest), event)
        elif name == "/model":
            yield from _those(known_models(), rest)
        elif name == "/set":
            yield from _those(NAMES, rest)


def _those(names: Iterable[str], begun: str) -> Iterable[Completion]:
    return (Completion(name, -len(begun)) for name in names if name.startswith(begun))
