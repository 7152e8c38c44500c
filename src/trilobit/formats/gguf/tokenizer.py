"""The tokenizer in a GGUF file's metadata as a tokenizer.json, and what else it says of text.

Two kinds: byte-level BPE (model `gpt2`: tokens, merges and the name of a pre-tokenizer) and
SentencePiece BPE (model `llama`: tokens and scores, from which the merges follow).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import FormatError, UnsupportedModel
from . import pre_tokenizers
from .container import GGUFFile
from .header import shown

PREFIX = "tokenizer.ggml."
HUGGING_FACE = "tokenizer.huggingface.json"  # the whole tokenizer.json, by the format
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_SPACE = "▁"

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
        self.bos = special_id(file, "bos")
        self.eos = special_id(file, "eos")

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


def special_id(file: GGUFFile, role: str) -> int | None:
    """Id of a token by its role (`bos`, `eos`, `eot` ...), None where the file names none."""
    key = f"{PREFIX}{role}_token_id"
    token_id, count = file.integer(key), file.length(f"{PREFIX}tokens") or 0
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


def from_vocabulary(vocabulary: Vocabulary) -> bytes:
    """A tokenizer.json of tokens and merges, or of tokens and scores."""
    parts = _byte_level(vocabulary) if vocabulary.model == "gpt2" else _sentence_piece(vocabulary)
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary),
        "post_processor": _post_processor(vocabulary),
        **parts,
    }
    return json.dumps(whole, ensure_ascii=False).encode()


def _added_tokens(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    special = {i for i, _ in vocabulary.of_type(CONTROL, UNKNOWN)}
    return [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": i in special,
        }
        for i, token in vocabulary.of_type(CONTROL, UNKNOWN, USER_DEFINED)
        if token
    ]


def _post_processor(vocabulary: Vocabulary) -> dict[str, Any] | None:
    before = [vocabulary.bos] if vocabulary.adds_bos else []
    behind = [vocabulary.eos] if vocabulary.adds_eos else []
    if not before and not behind:
        return None
    texts = {i: vocabulary.tokens[i] for i in [*before, *behind] if i is not None}

    def template(*sequences: str) -> list[dict[str, Any]]:
        pieces: list[dict[str, Any]] = []
        for kind, sequence in enumerate(sequences):
            pieces += [
                {"SpecialToken": {"id": texts[i], "type_id": kind}} for i in before if i in texts
            ]
            pieces += [{"Sequence": {"id": sequence, "type_id": kind}}]
            pieces += [
                {"SpecialToken": {"id": texts[i], "type_id": kind}} for i in behind if i in texts
            ]
        return pieces

    return {
        "type": "TemplateProcessing",
        "single": template("A"),
        "pair": template("A", "B"),
        "special_tokens": {
            text: {"id": text, "ids": [i], "tokens": [text]} for i, text in texts.items()
        },
    }


def _byte_level(vocabulary: Vocabulary) -> dict[str, Any]:
    name = vocabulary.pre
    return {
        "normalizer": {"type": "NFC"} if name in pre_tokenizers.NFC else None,
        "pre_tokenizer": pre_tokenizers.pre_tokenizer(name),
        "decoder": {**pre_tokenizers.BYTE_LEVEL, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": name in pre_tokenizers.IGNORE_MERGES,
            "vocab": vocabulary.ids,
            "merges": vocabulary.merges,
        },
    }


def _sentence_piece(vocabulary: Vocabulary) -> dict[str, Any]:
    prepend = [{"type": "Prepend", "prepend": _SPACE}] if vocabulary.adds_space else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    restore = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    unknown = next((text for _, text in vocabulary.of_type(UNKNOWN)), None)
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                restore,
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *(strip if vocabulary.adds_space else []),
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": any(True for _ in vocabulary.of_type(BYTE)),
            "ignore_merges": False,
            "vocab": vocabulary.ids,
            "merges": _merges_of_scores(vocabulary),
        },
    }


def _merges_of_scores(vocabulary: Vocabulary) -> Sequence[tuple[str, str]]:
    """SentencePiece merges the pair whose result has the best score: merges in that order.

    Pairs with one result stand in the order of their halves' ids, as transformers has them. No
    pair makes a control token: text that spells one is text.
    """
    scores = vocabulary.scores
    ids = {text: i for i, text in vocabulary.of_type(NORMAL, USER_DEFINED, UNUSED)}
    found: list[tuple[float, int, int, str, str]] = []
    for i, piece in vocabulary.of_type(NORMAL, USER_DEFINED):
        score = -float(scores[i])
        for cut in range(1, len(piece)):
            left, right = ids.get(piece[:cut]), ids.get(piece[cut:])
            if left is not None and right is not None:
                found.append((score, left, right, piece[:cut], piece[cut:]))
    found.sort(key=lambda pair: pair[:3])
    return [(left, right) for *_, left, right in found]
