"""SentencePiece's BPE as it is defined, and texts that are hard on tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from conftest import TEXT
from tokenizers import Tokenizer as HuggingFace
from tokenizers import models, pre_tokenizers, trainers

TEXTS = [
    TEXT,
    "",
    " ",
    "   leading and trailing   ",
    "tabs\tand\nnew\n\nlines\r\n\r\n  x\n ",
    "I'm we'll THEY'RE don't can'T",
    "3 33 333 3333 33333 3.14 1,000,000 ४५६ ٣٤٥",
    "naïve café cafe\u0301 Ångström ﬁ",
    "Привет, мир! Это маленькая девочка.",
    "你好，世界！我们在公园里玩。",
    "こんにちは世界 한국어 문장",
    "مرحبا بالعالم، كيف الحال؟",
    "नमस्ते दुनिया",
    "שלום עולם",
    "🐚🦕 family 👨‍👩‍👧 flag 🇳🇴 ½ ™",
    "if (x != y) { return a[i] += 1; } // `code` <b>$5^2~|</b>",
    "x\u00a0y\u2009z\u200bw \ufeff",
    "<|end|> <s> </s> <0x0A> ▁underscore▁",
    "\U000f0000\x00\x7f",
]


def pieces() -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and types as SentencePiece's BPE has them: later pieces score less."""
    trainer = trainers.BpeTrainer(
        vocab_size=500, show_progress=False, special_tokens=[], max_token_length=8
    )
    made = HuggingFace(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    made.train_from_iterator(TEXTS[:1] + TEXTS[6:9], trainer)
    learnt = [t for t, _ in sorted(made.get_vocab().items(), key=lambda item: item[1])]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    texts = ["<unk>", "<s>", "</s>", *byte_tokens, *learnt]
    scores = [0.0] * 259 + [-float(i) for i in range(len(learnt))]
    return texts, scores, [2, 3, 3] + [6] * 256 + [1] * len(learnt)


def merged(text: str, ids: dict[str, int], scores: Sequence[float]) -> list[int]:
    """SentencePiece's BPE as it is defined: the best pair is merged, the leftmost of equals."""
    symbols = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        pairs = [(a + b, i) for i, (a, b) in enumerate(pairwise(symbols))]
        known = [(scores[ids[piece]], -i) for piece, i in pairs if ids.get(piece, 0) > 258]
        if not known:
            break
        i = -max(known)[1]
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    found: list[int] = []
    for symbol in symbols:
        found += [ids[symbol]] if symbol in ids else [3 + byte for byte in symbol.encode()]
    return found
