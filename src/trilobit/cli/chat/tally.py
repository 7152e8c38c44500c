"""What a chat has cost so far, in tokens and seconds."""

from __future__ import annotations

from dataclasses import dataclass

from trilobit.cli.units import count
from trilobit.engine.event import Completion


@dataclass(slots=True, kw_only=True)
class Tally:
    """Sums over replies."""

    replies: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompts, taken from the cache
    output_tokens: int = 0
    decoded_tokens: int = 0  # without each reply's first token, which comes out of its prefill
    prefill_s: float = 0.0
    decode_s: float = 0.0

    def add(self, completion: Completion) -> None:
        """Count one more reply."""
        output = len(completion.token_ids)
        prefilled = completion.prompt_tokens - completion.cached_tokens
        decoded = max(0, output - 1)
        self.replies += 1
        self.prompt_tokens += completion.prompt_tokens
        self.cached_tokens += completion.cached_tokens
        self.output_tokens += output
        self.decoded_tokens += decoded
        # A rate of 0 says that the reply was stopped before there was one.
        if completion.prefill_tokens_per_s:
            self.prefill_s += prefilled / completion.prefill_tokens_per_s
        if completion.decode_tokens_per_s:
            self.decode_s += decoded / completion.decode_tokens_per_s

    def __str__(self) -> str:
        prefilled = self.prompt_tokens - self.cached_tokens
        decode = _rate(self.decoded_tokens, self.decode_s)
        return (
            f"prompt {count(self.prompt_tokens, 'token')}, {self.cached_tokens} of them cached, "
            f"prefill {_rate(prefilled, self.prefill_s)}; "
            f"reply {count(self.output_tokens, 'token')}, decode {decode}"
        )


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:.1f} tokens/s" if seconds else "not measured"
