"""How llama.cpp's named pre-tokenizers split text, as tokenizer.json says it.

GGUF names a pre-tokenizer (`tokenizer.ggml.pre`) instead of describing it. The expressions are
those of the models' own tokenizer.json files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|\p{{N}}|{_REST}"
_PUNCTUATION = r"[\p{P}$+<=>^~|`]+"  # ASCII's and Unicode's
_THREE_DIGITS = "[0-9][0-9][0-9]"

# Expressions that split one after another. The first name of a row is the one that we write.
_SPLITS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "falcon_e", "lfm2"): (_LLAMA3,),
    ("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"): (_QWEN2,),
    ("gpt-2", "phi-2", "mpt", "olmo", "jais"): (_GPT2,),
    ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"): (r"\p{N}", _GPT2),
    ("dbrx", "smaug-bpe"): (_LLAMA3,),
    ("falcon",): (_PUNCTUATION, _GPT2, _THREE_DIGITS),
    ("default",): (r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", _THREE_DIGITS),
}
SPLITS = {name: splits for names, splits in _SPLITS.items() for name in names}
_LLAMA3_NAMES = next(iter(_SPLITS))

# A word that is a token as it stands is that token, whatever the merges would make of it.
IGNORE_MERGES = frozenset(_LLAMA3_NAMES)
# Text begins with BOS where the file does not say.
ADDS_BOS = frozenset(_LLAMA3_NAMES)
# These models' tokenizers compose characters first (NFC).
NFC = frozenset({"qwen2", "deepseek-r1-qwen"})


def pre_tokenizer(name: str) -> dict[str, Any]:
    """The `pre_tokenizer` of a tokenizer.json for one of the names in SPLITS."""
    splits = [
        {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}
        for split in SPLITS[name]
    ]
    return {"type": "Sequence", "pretokenizers": [*splits, BYTE_LEVEL]}


def name_of(tokenizer: Mapping[str, Any]) -> str | None:
    """The name of what a tokenizer.json does, None where it has none.

    Two tokenizers may split alike and differ in whether whole words are merged, or composed (NFC).
    """
    splits = _splits(tokenizer.get("pre_tokenizer") or {})
    whole = bool(tokenizer["model"].get("ignore_merges"))
    normalizer = tokenizer.get("normalizer") or {}
    composes = normalizer.get("type") == "NFC"
    if splits is None or (normalizer and not composes):
        return None
    for names, expected in _SPLITS.items():
        name = names[0]
        same = (name in IGNORE_MERGES) == whole and (name in NFC) == composes
        if same and splits == expected:
            return name
    return None


def _splits(pre_tokenizer: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The expressions that split text one after another, None for other steps."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    splits: list[str] = []
    for step in steps:
        pattern = (step.get("pattern") or {}).get("Regex")
        if step.get("type") == "Split" and step.get("behavior") == "Isolated" and pattern:
            splits.append(pattern)
        elif step.get("type") == "Digits" and step.get("individual_digits"):
            splits.append(r"\p{N}")
        elif step.get("type") == "Punctuation" and step.get("behavior") == "Contiguous":
            splits.append(_PUNCTUATION)
        elif step.get("type") != "ByteLevel" or step.get("add_prefix_space"):
            return None
        elif step.get("use_regex", True):
            splits.append(_GPT2)
    return tuple(splits)


BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": False,
}
