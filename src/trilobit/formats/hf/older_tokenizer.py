"""The tokenizer of a Hugging Face directory that has no tokenizer.json.

Older checkpoints hold SentencePiece's `tokenizer.model`, or tokens and merges in `vocab.json` and
`merges.txt`; `added_tokens` reads what was added to them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import FormatError, UnsupportedModel
from trilobit.formats.files import read_json, read_text
from trilobit.formats.hf.sentence_piece import REMEDY, read_pieces
from trilobit.formats.tokenizer_json import NORMAL, from_vocabulary
from trilobit.model.config import ModelConfig

PIECES, VOCAB, MERGES = "tokenizer.model", "vocab.json", "merges.txt"
# How the classes that have vocab.json split text, by llama.cpp's names.
_PRE = {
    "GPT2Tokenizer": "gpt-2",
    "GPT2TokenizerFast": "gpt-2",
    "Qwen2Tokenizer": "qwen2",
    "Qwen2TokenizerFast": "qwen2",
}


@dataclass(frozen=True, kw_only=True)
class StoredVocabulary:
    """Tokens by id, their types, and what `from_vocabulary` asks for besides."""

    model: str
    tokens: list[str]
    types: list[int]
    bos: int | None
    adds_bos: bool
    adds_space: bool = False
    scores: NDArray[Any]
    pre: str = ""
    merges: Sequence[Sequence[str]] = ()
    eos: int | None = None
    adds_eos: bool = False

    @cached_property
    def ids(self) -> dict[str, int]:
        """Token -> id."""
        return {token: i for i, token in enumerate(self.tokens)}

    def of_type(self, *types: int) -> Iterator[tuple[int, str]]:
        """Ids and texts of the tokens of some types."""
        return ((i, self.tokens[i]) for i, kind in enumerate(self.types) if kind in types)


def read_older_tokenizer(
    source: Path, config: ModelConfig, settings: Mapping[str, Any]
) -> tuple[bytes, Path] | None:
    """A tokenizer.json of the files that stand in its place, and the file to name in messages.

    The tokens that were added to it are still missing. settings: those of tokenizer_config.json.
    None where there are no such files.
    Raises FormatError for damaged ones, UnsupportedModel for kinds that we do not read.
    """
    if os.path.exists(source / PIECES):
        vocabulary = _sentence_piece(source / PIECES, config, settings)
    elif os.path.exists(source / VOCAB) and os.path.exists(source / MERGES):
        vocabulary = _byte_level(source, config, settings)
    else:
        return None
    where = source / (PIECES if vocabulary.model == "llama" else VOCAB)
    return from_vocabulary(vocabulary), where


def _sentence_piece(
    path: Path, config: ModelConfig, settings: Mapping[str, Any]
) -> StoredVocabulary:
    pieces = read_pieces(path)
    return StoredVocabulary(
        model="llama",
        tokens=pieces.texts,
        types=pieces.types,
        scores=np.array(pieces.scores),
        bos=_within(config.bos_token_id, len(pieces.texts)),
        adds_bos=settings.get("add_bos_token", True) is True,  # as LlamaTokenizer has it
        adds_space=settings.get("add_prefix_space", pieces.adds_space) is not False,
    )


def _byte_level(source: Path, config: ModelConfig, settings: Mapping[str, Any]) -> StoredVocabulary:
    name = settings.get("tokenizer_class")
    if name not in _PRE:
        raise UnsupportedModel(
            f"{source / VOCAB}: nothing tells how a tokenizer of the class {name!r:.60} splits "
            f"text; {REMEDY}"
        )
    of_id = {i: token for token, i in read_json(source / VOCAB).items() if type(i) is int}
    tokens = [of_id.get(i, "") for i in range(len(of_id))]
    if not all(tokens):
        raise FormatError(f"{source / VOCAB}: not every id has a token; download it again")
    return StoredVocabulary(
        model="gpt2",
        tokens=tokens,
        types=[NORMAL] * len(tokens),
        scores=np.zeros(len(tokens)),
        pre=_PRE[name],
        merges=_merges(source / MERGES),
        bos=_within(config.bos_token_id, len(tokens)),
        adds_bos=settings.get("add_bos_token") is True,
    )


def _merges(path: Path) -> list[list[str]]:
    lines = read_text(path).split("\n")
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in pairs):
        raise FormatError(f"{path}: a line is no pair of tokens; download it again")
    return pairs


def _within(token_id: int | None, count: int) -> int | None:
    return token_id if token_id is not None and token_id < count else None
