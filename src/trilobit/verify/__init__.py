"""Whether a model is what it claims to be: its file, its text, its answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from trilobit.errors import RequestError
from trilobit.evaluate.perplexity import WINDOW, Perplexity, check_windows, perplexity, too_short
from trilobit.formats.open import open_source
from trilobit.formats.source import Source
from trilobit.llm import LLM
from trilobit.progress import Watch, steps
from trilobit.text.tokenizer import Tokenizer, without_tokenizer
from trilobit.verify import golden as golden_values
from trilobit.verify.answers import check_golden, check_itself, check_text
from trilobit.verify.check import Check
from trilobit.verify.golden import Golden
from trilobit.verify.weights import check_sums, check_weights

# Characters of a text that surely fills a window.
_SURELY_ENOUGH = 1 << 16


def verify(
    path: Path, *, golden: Golden | None, text: str | None, progress: Watch | None = None
) -> Iterator[Check]:
    """Check the model at `path` (any form), one thing after the other.

    golden: answers to compare with; None takes those of a published model of this shape. text: of
    which to measure the perplexity. progress: shows what the long ones are at.

    Raises FormatError or UnsupportedModel for what cannot be opened at all, RequestError for a text
    that no perplexity can be measured of.
    """
    source = open_source(path)
    if text is not None:
        _check_text_for(source, text)
    yield from check_sums(source, steps(progress, "Comparing checksums"))
    weights = list(check_weights(source, steps(progress, "Reading the weights")))
    yield from weights
    if not weights[0].passed:  # it cannot be read; what looks dead still answers
        return
    # float32 keys and values, as the references have them.
    one, two = (LLM(path, threads=count, kv_dtype="f32") for count in (1, 2))
    yield from check_text(two)
    yield from check_itself(one, two)
    del one
    if golden is None:
        golden = golden_values.known(source.config)
    if golden is None:
        yield Check("golden", None, "no golden values are known of this model")
    else:
        yield Check("golden", True, f"values of {golden.origin}")
        yield from check_golden(two, golden)
    if text is not None:
        step = steps(progress, "Measuring the perplexity")
        tell = (lambda found, total: step(found.windows, total)) if step else None
        yield _perplexity(perplexity(two, [text], progress=tell), golden)
        if activity := two.activity():
            gates, inputs = zip(*activity, strict=True)
            words = f"open gates by layer {_percent(gates)}; inputs of down_proj {_percent(inputs)}"
            yield Check("zeros", None, f"{words}; the rest is skipped")


def _percent(shares: Iterable[float]) -> str:
    return " ".join(f"{100 * share:.0f}" for share in shares) + " %"


def _check_text_for(source: Source, text: str) -> None:
    """RequestError when its perplexity cannot be measured: before anything long begins."""
    if source.text.tokenizer is None:
        raise RequestError(without_tokenizer(source.path, "leave out the text, or "))
    check_windows(
        source.config.max_position_embeddings, mode="llama.cpp", window=WINDOW, stride=None
    )
    if len(text) < _SURELY_ENOUGH:
        ids = Tokenizer(source.text.tokenizer, str(source.path)).encode(text)
        if len(ids) + source.text.add_bos < WINDOW:
            raise RequestError(too_short(WINDOW))


def _perplexity(found: Perplexity, golden: Golden | None) -> Check:
    windows = f"{found.windows} window{'s' * (found.windows != 1)}"
    words = f"{found.by_token:.4f} in {windows} of {found.window} tokens"
    if golden is None or golden.perplexity is None:
        return Check("perplexity", None, f"{words}; no golden value is known")
    passed = abs(found.by_token - golden.perplexity) <= golden.perplexity_tolerance
    return Check("perplexity", passed, f"{words}; {golden.perplexity:.4f} is known")
