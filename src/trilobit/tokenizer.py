"""Text to token ids and back, and chats to text.

Text that looks like a special token inside a prompt or a message is text: only the chat template
writes special tokens. Output is decoded token by token without ever showing half a character.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer as _Tokenizer

from .errors import FormatError, RequestError

_TEMPLATE_SECONDS = 5.0
_TEMPLATE_CHARACTERS = 10_000_000
_TEMPLATE_ITERATIONS = 1_000_000
_REPLACEMENT = "\ufffd"


class Tokenizer:
    """A `tokenizer.json`. Raises FormatError, naming `source`, when it cannot be read."""

    def __init__(self, data: bytes, source: str) -> None:
        self._inner: _Tokenizer = _guarded(
            lambda: _Tokenizer.from_str(data.decode("utf-8")), f"{source}: not a usable tokenizer"
        )
        added = self._inner.get_added_tokens_decoder()
        self._special = sorted((t.content for t in added.values() if t.special), key=len)[::-1]
        vocabulary = self._inner.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values(), default=-1) + 1

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of `text`, nothing added. special: parse special tokens, as templates need."""
        # Lone surrogates (a terminal's undecodable bytes) cannot be encoded: show them as such.
        text = text.encode("utf-8", "replace").decode("utf-8")
        self._inner.encode_special_tokens = not special
        encoding = _guarded(
            lambda: self._inner.encode(text, add_special_tokens=False),
            "the tokenizer failed on this text",
        )
        return list(encoding.ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special tokens."""
        text: str = self._inner.decode(list(ids), skip_special_tokens=True)
        return text

    def token_id(self, token: str) -> int | None:
        """Id of one token by its text."""
        found: int | None = self._inner.token_to_id(token)
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
        self, template: str, messages: Sequence[Mapping[str, str]], bos_token: str = ""
    ) -> list[int]:
        """Ids of a chat, ready for the assistant's reply.

        Contents are encoded as text even where they spell a special token.
        """
        marks = {}
        safe = []
        for message in messages:
            content = message["content"]
            for token in self._special:
                if token in content:
                    # Characters of the private use area stand for the text until it is encoded.
                    mark = chr(0xF0000 + self._special.index(token))
                    marks[mark] = token
                    content = content.replace(token, mark)
            safe.append({**message, "content": content})
        text = render(template, safe, bos_token)
        ids: list[int] = []
        for is_mark, piece in itertools.groupby(text, key=lambda c: c in marks):
            part = "".join(piece)
            if is_mark:
                ids += self.encode("".join(marks[c] for c in part))
            else:
                ids += self.encode(part, special=True)
        return ids

    def stream(self) -> TextStream:
        """A decoder of one output, token by token."""
        return TextStream(self)


class TextStream:
    """Incremental decoding: the pieces add up to the decoded text, whole characters each."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0  # characters of the window's text already given out

    def add(self, token_id: int) -> str:
        """The new text of one more token; empty while a character is incomplete."""
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids)
        if text.endswith(_REPLACEMENT):
            return ""
        new = text[self._shown :]
        self._shown = len(text)
        # Keep a short window: decoders look a few tokens back (a leading space is dropped).
        if len(self._ids) > 16:
            self._ids = self._ids[-8:]
            self._shown = len(self._tokenizer.decode(self._ids))
        return new

    def finish(self) -> str:
        """What is left, with a replacement character where the output ended inside one."""
        text = self._tokenizer.decode(self._ids)
        new, self._shown = text[self._shown :], len(text)
        return new


def _guarded(action: Callable[[], Any], message: str) -> Any:
    """Run a call into `tokenizers`, whose Rust panics are not Exceptions."""
    try:
        return action()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise FormatError(f"{message}: {str(error)[:200]}") from None


# ---- chat templates ---------------------------------------------------------------------------


def render(template: str, messages: Sequence[Mapping[str, str]], bos_token: str = "") -> str:
    """A chat as text, by a Jinja template in a sandbox with bounded time and output.

    Raises RequestError when the template refuses the messages or exceeds its bounds.
    """
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

    deadline = time.monotonic() + _TEMPLATE_SECONDS
    steps = itertools.count()

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["*", "**", "+", "%"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            size = max((len(v) for v in (left, right) if hasattr(v, "__len__")), default=0)
            if operator in ("*", "**") and (size or operator == "**"):
                raise SecurityError("repetition and powers are not allowed")
            if size > _TEMPLATE_CHARACTERS:
                raise SecurityError("a text grew too long")
            return super().call_binop(context, operator, left, right)

    def bounded(iterable: Any) -> Iterator[Any]:
        for item in iterable:
            if next(steps) > _TEMPLATE_ITERATIONS or time.monotonic() > deadline:
                raise SecurityError("it loops for too long")
            yield item

    def refuse(message: str) -> str:
        raise RequestError(f"the chat template refused the messages: {message}")

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["range"] = lambda *bounds: list(bounded(range(*bounds)))
    environment.globals["strftime_now"] = lambda pattern: time.strftime(pattern)
    pieces: list[str] = []
    size = 0
    try:
        chunks = environment.from_string(template).generate(
            messages=[dict(m) for m in messages], add_generation_prompt=True, bos_token=bos_token
        )
        for chunk in bounded(chunks):
            size += len(chunk)
            if size > _TEMPLATE_CHARACTERS:
                raise SecurityError("its output is too long")
            pieces.append(chunk)
    except RequestError:
        raise
    except (
        jinja2.TemplateError,
        SecurityError,
        ArithmeticError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RecursionError,
    ) as error:
        raise RequestError(f"the chat template failed: {str(error)[:200]}") from None
    return "".join(pieces)
