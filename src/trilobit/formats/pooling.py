"""How a checkpoint makes a vector of a text, and where it says so.

sentence-transformers' files (`modules.json`, `1_Pooling/config.json`,
`config_sentence_transformers.json`) say it; a model that is published without a head is meant for
it, and takes the last token's state, of an end-of-text token that is added, as BitNet-embedding's
cards describe. A packed file keeps it as one JSON object in its metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from trilobit.errors import FormatError
from trilobit.formats import json_text
from trilobit.model.config import ModelConfig

Mode = Literal["last", "mean"]
MODES: tuple[Mode, ...] = get_args(Mode)

ADVICE = "convert the model again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """How the states of a text's tokens become one vector.

    mode: the last token's, or the mean of all. end_ids: tokens that are added to every text.
    prompts: texts to put before another, by name. default_prompt: the one to put where none is
    chosen.
    """

    mode: Mode = "last"
    end_ids: tuple[int, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None

    def to_json(self) -> str:
        """As the metadata of a packed file have it."""
        return json.dumps(asdict(self))


def from_json(text: str, config: ModelConfig) -> Pooling:
    """What `to_json` wrote; FormatError for anything else."""
    try:
        raw = json_text.parse(text)
        pooling = Pooling(**{**raw, "end_ids": tuple(raw["end_ids"])})
    except (json_text.JSONFault, TypeError, KeyError):
        raise FormatError(f"the pooling in the metadata is not readable; {ADVICE}") from None
    if pooling.mode not in MODES:
        raise FormatError(f"the pooling in the metadata is {pooling.mode!r:.80}; {ADVICE}")
    if not all(type(i) is int and 0 <= i < config.vocab_size for i in pooling.end_ids):
        raise FormatError(f"the pooling in the metadata ends texts with no tokens; {ADVICE}")
    if not are_prompts(pooling.prompts, pooling.default_prompt):
        raise FormatError(f"the prompts in the metadata are no texts by name; {ADVICE}")
    return pooling


def are_prompts(prompts: Any, default: Any) -> bool:
    """Whether these are texts by name, and the name of one of them or None."""
    if not isinstance(prompts, dict):
        return False
    return all(isinstance(text, str) for text in prompts.values()) and (
        default is None or (isinstance(default, str) and default in prompts)
    )
