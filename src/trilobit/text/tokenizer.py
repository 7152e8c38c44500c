"""Text to token ids and back.

Text that looks like a special token inside a prompt or a message is text: only a chat template
writes special tokens. Output is decoded token by token without ever showing half a character.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from tokenizers import Tokenizer as _Tokenizer

from trilobit.errors import ContextOverflow, FormatError, RequestError
from trilobit.text import chat_template
from trilobit.text.tokenizer_file import TokenizerFault, check_tokenizer
from trilobit.text.utf8 import utf8

_REPLACEMENT = "\ufffd"
_PRIVATE_USE = range(0xF0000, 0xFFFFE)  # Unicode's plane 15
_LONGEST_CHARACTER = 4  # bytes, so at most as many tokens
_WINDOW = 64  # tokens decoded again at every step, at most; usually there are two or three
# Bytes of a text encoded at once, before and after the tokenizer has made it longer. Each takes
# some 200 bytes of memory.
_LONGEST_TEXT = 16_000_000
_LONGEST_GROWN = 96_000_000


class Tokenizer:
    """A `tokenizer.json`. Raises FormatError, naming `source`, when it cannot be read, or would
    take time or memory without a bound.
    """

    def __init__(self, data: bytes, source: str) -> None:
        self._source = source
        try:
            self._effect = check_tokenizer(data)
        except TokenizerFault as fault:
            raise self._unusable("not a usable tokenizer", fault) from None
        self._inner: _Tokenizer = self._guarded(
            lambda: _Tokenizer.from_str(data.decode("utf-8")), "not a usable tokenizer"
        )
        # Left there by training; they would cut prompts short without a word.
        self._inner.no_truncation()
        self._inner.no_padding()
        # How special tokens are read is a setting of the object, not of the call.
        self._lock = threading.Lock()
        added = self._inner.get_added_tokens_decoder()
        self._check_spaces(added)
        special = {i: token.content for i, token in added.items() if token.special}
        self.special_ids: frozenset[int] = frozenset(special)
        self._special_longest_first = sorted(special.values(), key=len, reverse=True)
        vocabulary = self._inner.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values(), default=-1) + 1
        self._pieces: dict[int, str] = {}
        self._fallback_bytes: dict[int, int] = self._guarded(
            self._find_fallback_bytes, "not a usable tokenizer"
        )

    def encode(
        self, text: str, *, special: bool = False, most_tokens: int | None = None
    ) -> list[int]:
        """Ids of `text`, nothing added. special: read special tokens, as templates need.

        Raises ContextOverflow, before any work, for a text that is surely of more than
        `most_tokens`; RequestError for one of more than `longest_text()` bytes, 16 MB at most, or
        with lone surrogates. One that passes may still have more than `most_tokens` tokens.
        """
        self._check_length(len(utf8(text)), most_tokens)
        with self._lock:
            self._inner.encode_special_tokens = not special
            encoding = self._guarded(
                lambda: self._inner.encode(text, add_special_tokens=False), "failed on this text"
            )
        return list(encoding.ids)

    def longest_text(self, most_tokens: int | None = None) -> int:
        """Bytes of a text that is encoded at all, or that may be of as few tokens.

        Where a tokenizer leaves out parts of a text, any number of tokens may be enough.
        """
        longest = min(_LONGEST_TEXT, int(_LONGEST_GROWN / self._effect.growth))
        if most_tokens is None or self._effect.shrinkage is None:
            return longest
        return min(longest, most_tokens * self._longest_token * self._effect.shrinkage)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special tokens; broken UTF-8 becomes replacement characters."""
        text: str = self._guarded(lambda: self._decode(ids), "failed on these ids")
        return text

    def token_id(self, token: str) -> int | None:
        """Id of one token by its text."""
        found: int | None = self._inner.token_to_id(token)
        return found

    def token(self, token_id: int) -> str | None:
        """Text of one token, special ones too."""
        found: str | None = self._inner.id_to_token(token_id)
        return found

    def to_json(self) -> str:
        """The tokenizer as a `tokenizer.json` again."""
        text: str = self._inner.to_str()
        return text

    def piece(self, token_id: int) -> str:
        """What a token stands for inside a text; its name where that is no whole character."""
        known = self._pieces.get(token_id)
        if known is None:
            # Behind another one: decoders drop a space at the beginning.
            before = self._before_pieces
            text = self.decode([*before, token_id])[len(self.decode(before)) :]
            named = not text or _REPLACEMENT in text
            known = (self.token(token_id) or f"token_id:{token_id}") if named else text
            self._pieces[token_id] = known
        return known

    @cached_property
    def _before_pieces(self) -> list[int]:
        return self.encode("a")

    def special_prefix(self) -> list[int]:
        """Special ids that the tokenizer itself would put before a text."""
        return self._added()[0]

    def special_suffix(self) -> list[int]:
        """Special ids that the tokenizer itself would put behind a text."""
        return self._added()[1]

    def encode_chat(
        self,
        template: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        bos_token: str = "",
        eos_token: str = "",
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool | None = None,
        most_tokens: int | None = None,
    ) -> list[int]:
        """Ids of a chat, ready for the assistant's reply. tools, thinking: as for `render`.

        Messages and tools are encoded as text even where they spell a special token. Raises
        RequestError when the template refuses the messages, ContextOverflow as `encode` does.
        """
        marks, marked = self._mark_special([*messages, *(tools or ())], template)
        text = chat_template.render(
            template,
            marked[: len(messages)],
            bos_token=bos_token,
            eos_token=eos_token,
            tools=None if tools is None else marked[len(messages) :],
            thinking=thinking,
        )
        data = utf8(text, "the conversation")
        more = sum(text.count(mark) * len(token.encode()) for mark, token in marks.items())
        self._check_length(len(data) + more, most_tokens)
        ids: list[int] = []
        for is_mark, piece in itertools.groupby(text, key=lambda c: c in marks):
            if is_mark:
                ids += self.encode("".join(marks[c] for c in piece))
            else:
                ids += self.encode("".join(piece), special=True)
        return ids

    def _check_spaces(self, added: Mapping[int, Any]) -> None:
        """Refuse an added token of spaces that takes those before it, beside one that takes those
        behind it: where the second has taken the first, `tokenizers` panics.
        """
        if not any(token.rstrip for token in added.values()):
            return
        normalizer = self._inner.normalizer
        for token in added.values():
            normalises = token.normalized and token.lstrip and normalizer is not None
            content = normalizer.normalize_str(token.content) if normalises else token.content
            if token.lstrip and not content.strip():
                fault = TokenizerFault(
                    f"added_tokens: {token.content!r:.40} takes the spaces before it and is "
                    "nothing else"
                )
                raise self._unusable("not a usable tokenizer", fault)

    def stream(self) -> TextStream:
        """A decoder of one output, token by token."""
        return TextStream(self)

    @cached_property
    def _longest_token(self) -> int:
        """In bytes. In byte-level ones a character stands for a byte, or for two of the text's."""
        vocabulary = self._inner.get_vocab(with_added_tokens=True)
        return max((len(token.encode("utf-8")) for token in vocabulary), default=1)

    def _check_length(self, size: int, most_tokens: int | None) -> None:
        if most_tokens is not None and size > most_tokens:  # no token is of less than a byte
            most = self.longest_text(most_tokens)
            if size > most and most < self.longest_text():
                raise ContextOverflow(
                    f"the text has {size:,} bytes, more than {most_tokens} tokens, the context, "
                    "can stand for; shorten it"
                )
        if size > self.longest_text():
            raise RequestError(
                f"the text has {size:,} bytes; at most {self.longest_text():,} are encoded at "
                "once: shorten it, or encode its parts"
            )

    def _added(self) -> tuple[list[int], list[int]]:
        encode = partial(self._inner.encode, "a")
        with_special = list(self._guarded(encode, "failed").ids)
        plain = list(self._guarded(partial(encode, add_special_tokens=False), "failed").ids)
        for start in range(len(with_special)):
            end = start + len(plain)
            if with_special[start:end] == plain:
                return with_special[:start], with_special[end:]
        return [], []

    def _mark_special(
        self, messages: Sequence[Mapping[str, Any]], template: str
    ) -> tuple[dict[str, str], list[dict[str, Any]]]:
        """Messages with one unused character in place of each special token that they spell."""
        everything = "\n".join(chat_template.texts_of(messages))
        spelt = [token for token in self._special_longest_first if token in everything]
        unused = (chr(c) for c in _PRIVATE_USE if chr(c) not in everything + template)
        mark_of = dict(zip(spelt, unused, strict=False))

        def mark(text: str) -> str:
            for token, character in mark_of.items():
                text = text.replace(token, character)
            return text

        marked = [
            {key: chat_template.with_texts(value, mark) for key, value in message.items()}
            for message in messages
        ]
        return {character: token for token, character in mark_of.items()}, marked

    def _find_fallback_bytes(self) -> dict[int, int]:
        """Id -> byte, of tokens like <0x0A> where the decoder takes them for bytes."""
        decoder = self._inner.decoder
        if decoder is None or decoder.decode(["<0x41>"]) != "A":
            return {}
        ids = {self._inner.token_to_id(f"<0x{byte:02X}>"): byte for byte in range(256)}
        return {i: byte for i, byte in ids.items() if i is not None}

    def _decode(self, ids: Sequence[int]) -> str:
        # Here, because tokenizers shows a special token whose text its normaliser changes.
        ids = [i for i in ids if i not in self.special_ids]
        if self._fallback_bytes.keys().isdisjoint(ids):
            text: str = self._inner.decode(ids)
            return text
        # One broken byte would make the decoder drop all characters of bytes beside it, which may
        # have been shown by then: the bytes become characters here.
        tokens: list[str] = []
        for is_byte, run in itertools.groupby(ids, self._fallback_bytes.__contains__):
            if is_byte:
                tokens += bytes(self._fallback_bytes[i] for i in run).decode("utf-8", "replace")
            else:
                tokens += (t for t in map(self._inner.id_to_token, run) if t is not None)
        text = self._inner.decoder.decode(tokens)
        return text

    def _guarded(self, action: Callable[[], Any], what: str) -> Any:
        """Run a call into `tokenizers`, whose Rust panics are not Exceptions."""
        try:
            return action()
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:
            if _came_from_elsewhere(error):
                raise
            raise self._unusable(what, error) from None

    def _unusable(self, what: str, error: BaseException) -> FormatError:
        # The reason may repeat what stands in the file, signs that are no characters among it.
        words = " ".join(str(error).split())[:200]
        reason = "".join(sign if sign.isprintable() else "?" for sign in words)
        return FormatError(
            f"{self._source}: tokenizer.json: {what} ({reason}); take the model's own"
        )


def _came_from_elsewhere(error: BaseException) -> bool:
    """Whether it was raised in Python that is not of this file: a signal handler of the user's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_filename != __file__


def without_tokenizer(model: str | os.PathLike[str], instead: str = "") -> str:
    """What to tell of a model without a tokenizer. instead: what else may be done, then "or"."""
    packed = "convert the checkpoint again with its tokenizer.json"
    remedy = "put its tokenizer.json into it" if os.path.isdir(model) else packed
    return f"{os.fspath(model)}: has no tokenizer; {instead}{remedy}"


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
        # The beginning of a character shows as one replacement character. It waits for the rest.
        whole = text.removesuffix(_REPLACEMENT)
        piece = self._give(whole)
        if piece and whole == text:
            self._ids = self._ids[self._before :]
            self._before = len(self._ids)
            self._given = len(self._tokenizer.decode(self._ids))
        elif len(self._ids) > _WINDOW:
            self._shorten(text)
        return piece

    def finish(self) -> str:
        """What is left, with a replacement character where the output ended inside one."""
        return self._give(self._tokenizer.decode(self._ids))

    def _give(self, text: str) -> str:
        new = text[self._given :]
        self._given += len(new)
        return new

    def _shorten(self, text: str) -> None:
        """Keep the tokens that a last character may need, if the others do not change them."""
        rest, last = self._ids[:-_LONGEST_CHARACTER], self._ids[-_LONGEST_CHARACTER:]
        end = self._tokenizer.decode(last)
        if end and self._tokenizer.decode(rest) + end == text:
            self._ids, self._before = last, 0
            self._given = len(end.removesuffix(_REPLACEMENT))
