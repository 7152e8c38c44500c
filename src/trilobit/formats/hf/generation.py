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
    top_k = said.get("top_k")
    if isinstance(top_k, float) and top_k.is_integer():  # as some writers of JSON have it
        said["top_k"] = int(top_k)
    if top_k == -1:  # how vLLM says that it is off
        said["top_k"] = 0
    sampled = raw.get("do_sample")
    if sampled is not None and not isinstance(sampled, bool):
        raise FormatError(f"{path}: do_sample is {sampled!r:.40}; expected true or false")
    if sampled is False:
        said["temperature"] = 0
    try:
        return SamplingParams(**said)
    except RequestError as error:
        raise FormatError(f"{path}: {error}; correct it, or take it out") from None


def given_sampling(path: Path) -> SamplingParams:
    """What a file says that a caller names for a model; FormatError for one that says nothing.

    An empty object takes away what the model says.
    """
    try:
        raw = read_json(path)
    except FormatError as error:
        raise FormatError(str(error).replace("download it again", "mend it")) from None
    if raw and not any(name in raw for name in (*DEFAULTS, "do_sample")):
        raise FormatError(
            f"{path}: says nothing of {', '.join(DEFAULTS)} or do_sample; name a "
            "generation_config.json, or one with {} for a model that shall say nothing"
        )
    return sampling_of(raw, path)


def saved_values(sampling: SamplingParams) -> dict[str, Any]:
    """The values as transformers saves them: with `do_sample` false it refuses filters."""
    said = generation_values(sampling)
    greedy = said.get("do_sample") is False
    return {name: value for name, value in said.items() if not (greedy and name in _SAMPLED)}


def generation_values(sampling: SamplingParams) -> dict[str, Any]:
    """What `sampling_of` reads, for a generation config."""
    said = sampling.said
    if said.get("temperature") == 0:  # transformers knows no such temperature
        del said["temperature"]
        return {"do_sample": False} | said
    sampled = {"do_sample": True} if any(name in said for name in _SAMPLED) else {}
    return sampled | said
