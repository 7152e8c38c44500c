"""A vocabulary as a tokenizer.json: byte-level BPE, or SentencePiece's.

GGUF files and older Hugging Face checkpoints have tokens with merges, or with scores from which the
merges follow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from trilobit.formats import pre_tokenizers

# Types of tokens, by SentencePiece's numbers, which are GGUF's too.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_SPACE = "▁"


class Vocabulary(Protocol):
    """Tokens, their types, and what makes text of them: merges (`gpt2`) or scores (`llama`)."""

    @property
    def model(self) -> str: ...  # noqa: D102
    @property
    def tokens(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def ids(self) -> Mapping[str, int]: ...  # noqa: D102
    @property
    def bos(self) -> int | None: ...  # noqa: D102
    @property
    def eos(self) -> int | None: ...  # noqa: D102
    @property
    def pre(self) -> str: ...  # noqa: D102
    @property
    def adds_bos(self) -> bool: ...  # noqa: D102
    @property
    def adds_eos(self) -> bool: ...  # noqa: D102
    @property
    def adds_space(self) -> bool: ...  # noqa: D102
    @property
    def scores(self) -> NDArray[Any]: ...  # noqa: D102
    @property
    def merges(self) -> Sequence[Sequence[str]]: ...  # noqa: D102
    def of_type(self, *types: int) -> Iterator[tuple[int, str]]: ...  # noqa: D102


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


def with_bos(data: bytes, bos: int, token: str) -> bytes:
    """A tokenizer.json that also begins every text with a token."""
    raw = json.loads(data)
    steps = [raw.get("post_processor"), _template([(bos, token)], [])]
    raw["post_processor"] = {"type": "Sequence", "processors": [step for step in steps if step]}
    return json.dumps(raw, ensure_ascii=False).encode()


def _post_processor(vocabulary: Vocabulary) -> dict[str, Any] | None:
    def tokens(*ids: int | None) -> list[tuple[int, str]]:
        return [(i, vocabulary.tokens[i]) for i in ids if i is not None]

    before = tokens(vocabulary.bos) if vocabulary.adds_bos else []
    behind = tokens(vocabulary.eos) if vocabulary.adds_eos else []
    return _template(before, behind) if before or behind else None


def _template(before: list[tuple[int, str]], behind: list[tuple[int, str]]) -> dict[str, Any]:
    """The step that puts tokens before and behind each text."""

    def whole(*sequences: str) -> list[dict[str, Any]]:
        pieces: list[dict[str, Any]] = []
        for kind, sequence in enumerate(sequences):
            pieces += [{"SpecialToken": {"id": text, "type_id": kind}} for _, text in before]
            pieces += [{"Sequence": {"id": sequence, "type_id": kind}}]
            pieces += [{"SpecialToken": {"id": text, "type_id": kind}} for _, text in behind]
        return pieces

    return {
        "type": "TemplateProcessing",
        "single": whole("A"),
        "pair": whole("A", "B"),
        "special_tokens": {
            text: {"id": text, "ids": [i], "tokens": [text]} for i, text in [*before, *behind]
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
