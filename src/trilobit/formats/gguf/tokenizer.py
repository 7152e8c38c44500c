"""The tokenizer in a GGUF file's metadata, checked (`tokenizer_json.py` makes a file of it).

Two kinds: byte-level BPE (model `gpt2`: tokens, merges and the name of a pre-tokenizer) and
SentencePiece BPE (model `llama`: tokens and scores, from which the merges follow).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import FormatError, UnsupportedModel
from trilobit.formats import pre_tokenizers
from trilobit.formats.gguf.container import GGUFFile
from trilobit.formats.gguf.header import shown
from trilobit.formats.tokenizer_json import CONTROL, NORMAL

PREFIX = "tokenizer.ggml."
HUGGING_FACE = "tokenizer.huggingface.json"  # the whole tokenizer.json, by the format

# bitnet.cpp's converter left out the name of 2B-4T's pre-tokenizer, which has Llama 3's tokens.
_LLAMA3_BOS = {128000: "<|begin_of_text|>"}


class Vocabulary:
    """Tokens, their types and special ids, checked against each other.

    Raises FormatError when they contradict each other, UnsupportedModel for another kind.
    """

    def __init__(self, file: GGUFFile) -> None:
        self._file = file
        self.model = file.text(f"{PREFIX}model") or ""
        if self.model not in ("gpt2", "llama"):
            raise UnsupportedModel(
                f"{file.path}: a tokenizer of the kind {shown(self.model)}; supported: gpt2, llama"
            )
        tokens = file.strings(f"{PREFIX}tokens")
        if tokens is None:
            raise FormatError(f"{file.path}: a tokenizer without tokens; download it again")
        self.tokens = tokens
        self.ids = {token: i for i, token in enumerate(tokens)}
        if len(self.ids) != len(tokens):
            twice = next(token for i, token in enumerate(tokens) if self.ids[token] != i)
            raise FormatError(
                f"{file.path}: the token {shown(twice)} is there twice; download it again"
            )
        self.types = self._numbers("token_type", "iu", NORMAL)
        self.bos = special_id(file, "bos", len(tokens))
        self.eos = special_id(file, "eos", len(tokens))

    @property
    def pre(self) -> str:
        """Name of the pre-tokenizer."""
        name = self._file.text(f"{PREFIX}pre")
        if name is None:
            llama3 = all(self.tokens[i : i + 1] == [text] for i, text in _LLAMA3_BOS.items())
            return "llama-bpe" if llama3 else "default"
        if name not in pre_tokenizers.SPLITS:
            raise UnsupportedModel(
                f"{self._file.path}: the pre-tokenizer {shown(name)} is not supported; supported: "
                f"{', '.join(sorted(pre_tokenizers.SPLITS))}"
            )
        return name

    @property
    def adds_bos(self) -> bool:
        """Whether a text begins with BOS."""
        given = self._file.boolean(f"{PREFIX}add_bos_token")
        if given is None:
            given = self.model == "llama" or self.pre in pre_tokenizers.ADDS_BOS
        return given and self.bos is not None

    @property
    def adds_eos(self) -> bool:
        """Whether a text ends with EOS."""
        return bool(self._file.boolean(f"{PREFIX}add_eos_token")) and self.eos is not None

    @property
    def adds_space(self) -> bool:
        """Whether a text begins with a space of its own (SentencePiece)."""
        given = self._file.boolean(f"{PREFIX}add_space_prefix")
        return self.model == "llama" if given is None else given

    @property
    def scores(self) -> NDArray[Any]:
        """Scores of the tokens; the greatest pair is merged first."""
        if f"{PREFIX}scores" not in self._file:
            raise FormatError(f"{self._file.path}: a tokenizer without scores; download it again")
        scores = self._numbers("scores", "f", 0.0)
        if np.isnan(scores).any():
            raise FormatError(f"{self._file.path}: a token's score is NaN; download it again")
        return scores

    @property
    def merges(self) -> list[list[str]]:
        """Pairs of tokens in the order in which they are merged."""
        stored = self._file.strings(f"{PREFIX}merges")
        if stored is None:
            raise FormatError(f"{self._file.path}: a tokenizer without merges; download it again")
        merges = []
        for merge in stored:
            cut = merge.find(" ", 1)  # a token may begin with a space
            left, right = merge[:cut], merge[cut + 1 :]
            if cut < 0 or left + right not in self.ids:
                raise FormatError(
                    f"{self._file.path}: the merge {shown(merge)} makes no token; download it again"
                )
            merges.append([left, right])
        return merges

    def of_type(self, *types: int) -> Iterator[tuple[int, str]]:
        """Ids and texts of the tokens of some types."""
        for i in np.flatnonzero(np.isin(self.types, types)).tolist():
            yield i, self.tokens[i]

    def _numbers(self, name: str, kinds: str, default: float) -> NDArray[Any]:
        values = self._file.numbers(f"{PREFIX}{name}")
        if values is None:
            return np.full(len(self.tokens), default)
        if values.dtype.kind not in kinds or len(values) != len(self.tokens):
            raise FormatError(
                f"{self._file.path}: '{PREFIX}{name}' does not fit {len(self.tokens)} tokens; "
                "download it again"
            )
        return values


def special_id(file: GGUFFile, role: str, count: int) -> int | None:
    """Id of a token by its role (`bos`, `eos`, `eot` ...), None where the file names none.

    FormatError for one beyond `count` tokens.
    """
    key = f"{PREFIX}{role}_token_id"
    token_id = file.integer(key)
    if token_id is None or 0 <= token_id < count:
        return token_id
    raise FormatError(
        f"{file.path}: '{key}' is {token_id}, and there are {count} tokens; download it again"
    )


def control_tokens(file: GGUFFile) -> dict[str, int]:
    """Texts and ids of the tokens that are no text, without reading the others."""
    types = file.numbers(f"{PREFIX}token_type")
    if types is None or len(types) != file.length(f"{PREFIX}tokens"):
        return {}
    ids = np.flatnonzero(types == CONTROL).tolist()
    return dict(zip(file.strings(f"{PREFIX}tokens", ids) or [], ids, strict=True))


def read_vocabulary(file: GGUFFile) -> Vocabulary | None:
    """The tokens of a file, None where it has none."""
    if file.text(f"{PREFIX}model") in (None, "no_vocab", "none"):
        return None
    return Vocabulary(file)
