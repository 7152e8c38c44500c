"""Text to token ids and back.

Text that looks like a special token inside a prompt or a message is text: only a chat template
writes special tokens. Output is decoded token by token without ever showing half a character.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer as _Tokenizer

from . import chat_template
from .errors import FormatError

_REPLACEMENT = "\ufffd"
_PRIVATE_USE = range(0xF0000, 0xFFFFE)  # Unicode's plane 15
# A character has at most 4 bytes, so at most 4 tokens. Its first 3 show as 1 to 3 replacement
# characters: only that many at the end of a text may still become something else.
_LONGEST_CHARACTER = 4


class Tokenizer:
    """A `tokenizer.json`. Raises FormatError, naming `source`, when it cannot be read."""

    def __init__(self, data: bytes, source: str) -> None:
        self._source = source
        self._inner: _Tokenizer = self._guarded(
            lambda: _Tokenizer.from_str(data.decode("utf-8")), "not a usable tokenizer"
        )
        # How special tokens are read is a setting of the object, not of the call.
        self._lock = threading.Lock()
        added = self._inner.get_added_tokens_decoder()
        special = {i: token.content for i, token in added.items() if token.special}
        self.special_ids: frozenset[int] = frozenset(special)
        self._special_longest_first = sorted(special.values(), key=len, reverse=True)
        vocabulary = self._inner.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values(), default=-1) + 1

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of `text`, nothing added. special: read special tokens, as templates need."""
        # Lone surrogates (a terminal's undecodable bytes) cannot be encoded: show them as such.
        text = text.encode("utf-8", "replace").decode("utf-8")
        with self._lock:
            self._inner.encode_special_tokens = not special
            encoding = self._guarded(
                lambda: self._inner.encode(text, add_special_tokens=False), "failed on this text"
            )
        return list(encoding.ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special tokens."""
        text: str = self._guarded(
            lambda: self._inner.decode(list(ids), skip_special_tokens=True), "failed on these ids"
        )
        return text

    def token_id(self, token: str) -> int | None:
        """Id of one token by its text."""
        found: int | None = self._inner.token_to_id(token)
        return found

    def token(self, token_id: int) -> str | None:
        """Text of one token, special ones too."""
        found: str | None = self._inner.id_to_token(token_id)
        return found

    def special_prefix(self) -> list[int]:
        """Special ids that the tokenizer itself would put before a text."""
        with_special = self._inner.encode("a").ids
        plain = self._inner.encode("a", add_special_tokens=False).ids
        for start in range(len(with_special)):
            if with_special[start : start + len(plain)] == plain:
                return list(with_special[:start])
        return []

    def encode_chat(
        self,
        template: str,
        messages: Sequence[Mapping[str, str]],
        *,
        bos_token: str = "",
        eos_token: str = "",
    ) -> list[int]:
        """Ids of a chat, ready for the assistant's reply.

        Messages are encoded as text even where they spell a special token. Raises RequestError
        when the template refuses the messages.
        """
        marks, marked = self._mark_special(messages)
        text = chat_template.render(template, marked, bos_token=bos_token, eos_token=eos_token)
        ids: list[int] = []
        for is_mark, piece in itertools.groupby(text, key=lambda c: c in marks):
            if is_mark:
                ids += self.encode("".join(marks[c] for c in piece))
            else:
                ids += self.encode("".join(piece), special=True)
        return ids

    def stream(self) -> TextStream:
        """A decoder of one output, token by token."""
        return TextStream(self)

    def _mark_special(
        self, messages: Sequence[Mapping[str, str]]
    ) -> tuple[dict[str, str], list[dict[str, str]]]:
        """Messages with one unused character in place of each special token that they spell."""
        everything = "\n".join(text for message in messages for text in message.values())
        spelt = [token for token in self._special_longest_first if token in everything]
        unused = (chr(c) for c in _PRIVATE_USE if chr(c) not in everything)
        mark_of = dict(zip(spelt, unused, strict=False))

        def mark(text: str) -> str:
            for token, character in mark_of.items():
                text = text.replace(token, character)
            return text

        marked = [{key: mark(text) for key, text in message.items()} for message in messages]
        return {character: token for token, character in mark_of.items()}, marked

    def _guarded(self, action: Callable[[], Any], what: str) -> Any:
        """Run a call into `tokenizers`, whose Rust panics are not Exceptions."""
        try:
            return action()
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:
            raise FormatError(
                f"{self._source}: tokenizer.json: {what} ({str(error)[:200]})"
            ) from None


class TextStream:
    """Incremental decoding: the pieces add up to the decoded text, whole characters each."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Decoders drop a leading space or join bytes: new tokens are decoded behind the ones that
        # gave the last piece, and what was given already is cut off.
        self._ids: list[int] = []
        self._before = 0  # how many of them gave the last piece
        self._given = 0  # how many characters of their text were given

    def add(self, token_id: int) -> str:
        """The new text of one more token; empty while a character is incomplete."""
        if token_id in self._tokenizer.special_ids:
            return ""
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids)
        broken = len(text) - len(text.rstrip(_REPLACEMENT))
        waiting = len(self._ids) - self._before
        if broken and waiting < _LONGEST_CHARACTER:
            return ""
        piece = self._give(text[: len(text) - min(broken, _LONGEST_CHARACTER - 1)])
        if piece and not broken:
            self._ids = self._ids[self._before :]
            self._before = len(self._ids)
            self._given = len(self._tokenizer.decode(self._ids))
        return piece

    def finish(self) -> str:
        """What is left, with a replacement character where the output ended inside one."""
        return self._give(self._tokenizer.decode(self._ids))

    def _give(self, text: str) -> str:
        new = text[self._given :]
        self._given += len(new)
        return new
