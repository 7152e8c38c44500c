"""How a Hugging Face directory says that tokens are chosen where a request says nothing.

Its generation_config.json, as transformers and vLLM read it: what stands in it counts, and no
default of theirs. `"do_sample": false` is greedy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trilobit.errors import FormatError, RequestError
from trilobit.formats.files import read_json
from trilobit.sampling import DEFAULTS, SamplingParams

GENERATION = "generation_config.json"
_SAMPLED = ("temperature", "top_k", "top_p", "min_p")


def read_sampling(source: Path) -> SamplingParams:
    """What a directory says; FormatError for what cannot be."""
    path = source / GENERATION
    return sampling_of(read_json(path), path) if os.path.exists(path) else SamplingParams()


def sampling_of(raw: Mapping[str, Any], path: Path) -> SamplingParams:
    """What the values of a generation config say; path: whose they are, for messages."""
    said = {name: raw[name] for name in DEFAULTS if raw.get(name) is not None}
    if said.get("top_k") == -1:  # how vLLM says that it is off
        said["top_k"] = 0
    if raw.get("do_sample") is False:
        said["temperature"] = 0
    try:
        return SamplingParams(**said)
    except RequestError as error:
        raise FormatError(f"{path}: {error}; correct it, or take it out") from None


def generation_values(sampling: SamplingParams) -> dict[str, Any]:
    """What `sampling_of` reads, for a generation config."""
    said = sampling.said
    if said.get("temperature") == 0:  # transformers knows no such temperature
        del said["temperature"]
        return {"do_sample": False} | said
    sampled = {"do_sample": True} if any(name in said for name in _SAMPLED) else {}
    return sampled | said
