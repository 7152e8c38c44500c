"""What is asked of an engine: ids to continue or to read, and how."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

from trilobit.sampling import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One line of tokens to be continued.

    prompt: token ids. seed: of its sampling, drawn already. end_ids: tokens that end the output.
    limit: tokens of prompt and output together. salt: only requests with the same one share what
    is cached of their prompts.
    """

    prompt: Items[int]
    params: SamplingParams
    seed: int
    end_ids: frozenset[int] = frozenset()
    limit: int
    salt: bytes = b""
