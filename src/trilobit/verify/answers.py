"""Whether a model answers as it should: like itself, and like the golden values."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from trilobit.llm import LLM
from trilobit.sampling import SamplingParams
from trilobit.verify.check import Check
from trilobit.verify.golden import Golden, farthest

_TOKENS = 16
_ANSWER_TOKENS = 20
# Of the golden answer: its bfloat16 may part from float32 where two tokens are nearly equal.
_LEAST_SHARE = 0.5

_TEXTS = (
    "Once upon a time, in 1947, there was a fox.",
    "  two spaces, a tab\tand\n\nlines",
    "ديك يصيح · הספר · नमस्ते · สวัสดี · 你好，世界 · こんにちは · 한국어",
    "naïve café — 😀 👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301",
)


def check_text(llm: LLM) -> Iterator[Check]:
    """Texts come back as they went in, and piece by piece as in one."""
    tokenizer = llm.tokenizer
    if tokenizer is None:
        yield Check("tokenizer", None, "has none; runs on token ids")
        return
    for text in _TEXTS:
        ids = tokenizer.encode(text)
        if ids and max(ids) >= llm.config.vocab_size:
            yield Check("tokenizer", False, f"gives token {max(ids)}, which the model has not")
            return
        stream = tokenizer.stream()
        streamed = "".join(map(stream.add, ids)) + stream.finish()
        if streamed != tokenizer.decode(ids):
            yield Check("tokenizer", False, f"decodes {text!r} otherwise piece by piece")
            return
    # Some tokenizers normalise or have no token for a character; plain English always survives.
    plain = _TEXTS[0]
    back = tokenizer.decode(tokenizer.encode(plain))
    same = sum(tokenizer.decode(tokenizer.encode(text)) == text for text in _TEXTS)
    found = f"{same} of {len(_TEXTS)} texts come back to the letter"
    yield Check("tokenizer", back.strip() == plain, found)


def check_itself(one: LLM, two: LLM) -> Iterator[Check]:
    """The same tokens with one thread and two, alone and in a batch; `one` has one thread."""
    config = one.config
    random = np.random.default_rng(0)
    prompts = [random.integers(0, config.vocab_size, count).tolist() for count in (3, 8, 21)]
    greedy = SamplingParams(temperature=0, max_tokens=_TOKENS, ignore_eos=True).settled()
    alone = [one.generate(prompt, greedy).token_ids for prompt in prompts]
    threads = [two.generate(prompt, greedy).token_ids for prompt in prompts]
    batch = [done.token_ids for done in two.generate(prompts, greedy)]
    count = sum(map(len, alone))
    yield Check("threads", threads == alone, f"{count} tokens, 1 thread and {two.threads}")
    yield Check("batch", batch == alone, f"{count} tokens, alone and {len(prompts)} at once")
    logits = one.logits(prompts[-1])
    finite = bool(np.isfinite(logits).all())
    alike = finite and bool((logits == logits[:, :1]).all(axis=1).any())
    found = f"from {logits.min():.2f} to {logits.max():.2f}"
    if alike:
        found += "; the same for every token, so the model says nothing"
    yield Check("logits", finite and not alike, found)


def check_golden(llm: LLM, golden: Golden) -> Iterator[Check]:
    """Logits and text beside those of the golden values."""
    if max(golden.ids) >= llm.config.vocab_size or len(golden.ids) > llm.context:
        yield Check("golden", False, "the golden ids are not of this model's vocabulary or context")
        return
    logits = llm.logits(golden.ids)
    if golden.mean_logits:
        means = logits.mean(axis=1, dtype=np.float64).tolist()
        yield _compared("mean logits", means, golden.mean_logits, golden.mean_tolerance)
    if golden.first_logits:
        first = logits[0, : len(golden.first_logits)].astype(float).tolist()
        yield _compared("first logits", first, golden.first_logits, golden.first_tolerance)
    if golden.chat is not None and golden.answer is not None:
        yield _answer(llm, golden.chat, golden.answer)


def _compared(name: str, found: list[float], wanted: tuple[float, ...], tolerance: float) -> Check:
    worst, passed = farthest(found, wanted, tolerance)
    return Check(
        name,
        passed,
        f"{len(wanted)} values; farthest {found[worst]:.4f} from {wanted[worst]:.4f} (number "
        f"{worst})",
    )


def _answer(llm: LLM, chat: str, answer: str) -> Check:
    if llm.tokenizer is None:
        return Check("answer", None, "no tokenizer")
    greedy = SamplingParams(temperature=0, max_tokens=_ANSWER_TOKENS).settled()
    found = llm.chat([{"role": "user", "content": chat}], greedy).text
    same = _common_length(found, answer)
    words = f"{same} of {len(answer)} characters"
    if same < len(answer):
        words += f", then {found[same : same + 20]!r}"
    return Check("answer", same >= _LEAST_SHARE * len(answer), words)


def _common_length(one: str, two: str) -> int:
    """How many characters two texts begin with alike."""
    length = min(len(one), len(two))
    return next((i for i in range(length) if one[i] != two[i]), length)
