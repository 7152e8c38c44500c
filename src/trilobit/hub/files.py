"""Which files of a repository a model needs: weights, config and text. Never code, never pickles.

Nothing here reads anything; names are all it knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from trilobit.errors import RequestError, UnsupportedModel
from trilobit.hub.names import Repo, is_gguf_name

# What readers of checkpoints, tokenizers and embedding models open beside the weights.
_TEXT = (
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "modules.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)
_SINGLE = "model.safetensors"
_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors", re.ASCII)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
_SHOWN = 4  # files that an error lists


@dataclass(frozen=True, slots=True)
class Needed:
    """Files to have; `source` of them is what is converted, or their folder when it is None."""

    files: tuple[str, ...]
    source: str | None = None


def needed(repo: Repo, names: Iterable[str]) -> Needed:
    """The files that the model in a repository consists of.

    Raises RequestError when one must be chosen or is not there, UnsupportedModel when nothing
    in the repository can be read.
    """
    there = set(names)
    ggufs = sorted(name for name in there if is_gguf_name(name))
    if repo.file is not None:
        if repo.file not in there:
            raise RequestError(f"{repo}: no such file in {repo.id}; {_listed(repo, ggufs)}")
        return Needed((repo.file,), repo.file)
    weights = _safetensors(repo, there)
    if weights:
        if "config.json" not in there:
            raise UnsupportedModel(
                f"{repo}: weights without a config.json; take another repository"
            )
        return Needed((*(name for name in _TEXT if name in there), *weights))
    if len(ggufs) == 1:
        return Needed((ggufs[0],), ggufs[0])
    if ggufs:
        raise RequestError(f"{repo}: {len(ggufs)} GGUF files; {_listed(repo, ggufs)}")
    if any(name.endswith(_PICKLES) for name in there):
        raise UnsupportedModel(
            f"{repo}: has pickled weights only, which can run code when they are read; "
            "take a repository with safetensors or GGUF"
        )
    raise UnsupportedModel(f"{repo}: has no model.safetensors and no GGUF file; nothing to run")


def _safetensors(repo: Repo, there: set[str]) -> list[str]:
    if _SINGLE in there:  # before shards, as transformers does
        return [_SINGLE]
    shards = [match for match in map(_SHARD.fullmatch, sorted(there)) if match]
    if shards and len(shards) != int(shards[-1][2]):
        raise UnsupportedModel(
            f"{repo}: {len(shards)} of the {int(shards[-1][2])} shards of its weights are there; "
            "the upload is incomplete"
        )
    return [match[0] for match in shards]


def _listed(repo: Repo, ggufs: list[str]) -> str:
    if not ggufs:
        return "it has no GGUF file"
    shown = [f"{repo.id}:{name}" for name in ggufs[:_SHOWN]]
    more = f" (and {len(ggufs) - _SHOWN} more)" if len(ggufs) > _SHOWN else ""
    return f"choose one: {', '.join(shown)}{more}"
