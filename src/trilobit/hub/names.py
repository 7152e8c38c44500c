"""What a user calls a model -> a path on this machine, or a repository of the Hugging Face Hub.

Everything that takes a model asks `resolve`, so a name means the same to all of them. What is here
comes first: a file, or a folder with a checkpoint in it, is never hidden by a name. The folder of a
training run stands for the packed checkpoint that the run has left in it.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from trilobit.bundled import bundled_models
from trilobit.errors import RequestError
from trilobit.formats.run_folder import trained_in

_BITNET = "microsoft/bitnet-b1.58-2B-4T"
_BONSAI = "prism-ml/Ternary-Bonsai"

# Short name -> where the model is published. Repository ids as the model cards spell them.
ALIASES: dict[str, str] = {
    "bitnet-2b": _BITNET,
    "bitnet-2b-bf16": f"{_BITNET}-bf16",
    "bitnet-2b-gguf": f"{_BITNET}-gguf:ggml-model-i2_s.gguf",
    "bitnet-large": "1bitLLM/bitnet_b1_58-large",
    "bitnet-xl": "1bitLLM/bitnet_b1_58-xl",
    "bitnet-3b": "1bitLLM/bitnet_b1_58-3B",
    "llama3-8b": "HF1BitLLM/Llama3-8B-1.58-100B-tokens",
    "falcon3-1b": "tiiuae/Falcon3-1B-Instruct-1.58bit",
    "falcon3-3b": "tiiuae/Falcon3-3B-Instruct-1.58bit",
    "falcon3-7b": "tiiuae/Falcon3-7B-Instruct-1.58bit",
    "falcon3-10b": "tiiuae/Falcon3-10B-Instruct-1.58bit",
    "falcon3-3b-base": "tiiuae/Falcon3-3B-Base-1.58bit",
    "falcon3-7b-base": "tiiuae/Falcon3-7B-Base-1.58bit",
    "falcon3-10b-base": "tiiuae/Falcon3-10B-Base-1.58bit",
    "falcon-e-1b": "tiiuae/Falcon-E-1B-Instruct",
    "falcon-e-3b": "tiiuae/Falcon-E-3B-Instruct",
    "falcon-e-1b-base": "tiiuae/Falcon-E-1B-Base",
    "falcon-e-3b-base": "tiiuae/Falcon-E-3B-Base",
    "bitnet-embedding-0.6b": "microsoft/bitnet-embedding-0.6b",
    "bitnet-embedding-270m": "microsoft/bitnet-embedding-270m",
    "bonsai-1.7b": f"{_BONSAI}-1.7B-unpacked",
    "bonsai-4b": f"{_BONSAI}-4B-unpacked",
    "bonsai-8b": f"{_BONSAI}-8B-unpacked",
    "bonsai-1.7b-gguf": f"{_BONSAI}-1.7B-gguf:Ternary-Bonsai-1.7B-Q2_0_g64.gguf",
    "bonsai-4b-gguf": f"{_BONSAI}-4B-gguf:Ternary-Bonsai-4B-Q2_0_g64.gguf",
    "bonsai-8b-gguf": f"{_BONSAI}-8B-gguf:Ternary-Bonsai-8B-Q2_0_g64.gguf",
}

MAIN = "main"  # the revision that a repository shows

# Written before a name, these say that the Hub is meant, whatever is here.
_HUB_PREFIXES = ("hf://", "https://huggingface.co/", "https://hf.co/", "http://huggingface.co/")

_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?"
_GGUF = r"[\w.-]+(?:/[\w.-]+)*\.gguf"
_REPO = re.compile(
    rf"(?P<id>{_PART}/{_PART})(?:@(?P<revision>[\w.-]+(?:/[\w.-]+)*))?(?::(?P<file>{_GGUF}))?",
    re.ASCII,
)
# `model.trilobit` is meant as a file; `bitnet-b1.58` and `falcon3-1b-1.58bit` are names.
_FILE_SUFFIX = re.compile(r"\.[A-Za-z]\w*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Repo:
    """A model of the Hub: `org/name`, a branch, tag or commit, and perhaps one file of it."""

    id: str
    revision: str = MAIN
    file: str | None = None

    def __str__(self) -> str:
        """As a user may write it; equal for equal models."""
        revision = "" if self.revision == MAIN else f"@{self.revision}"
        return self.id + revision + (f":{self.file}" if self.file else "")

    @property
    def alias(self) -> str:
        """The shortest way to write it."""
        return _ALIAS_OF.get(str(self), str(self))

    @property
    def title(self) -> str:
        """A plain file name for what is made of it."""
        return Path(self.file).stem if self.file else self.id.split("/")[1]


_ALIAS_OF = {target: alias for alias, target in ALIASES.items()}
_KNOWN_IDS = {target.split(":")[0].lower(): target.split(":")[0] for target in ALIASES.values()}


def resolve(model: str | os.PathLike[str]) -> Path | Repo:
    """What a model's name means.

    In this order: a file, or a folder with a config.json in it, or that of a finished training
    run; the name of a bundled model; an alias; any other folder; `org/name[@revision][:file.gguf]`
    of the Hub. A path object is a path, and a text that begins with `hf://` is of the Hub. A path
    need not exist: that is said by whoever opens it.

    Raises RequestError for what can be none of these.
    """
    if isinstance(model, os.PathLike):
        return trained_in(Path(model)) or Path(model)
    if not isinstance(model, str):
        raise RequestError(f"model is {model!r:.80}; expected a path or a name")
    if not model.strip():
        raise RequestError(
            "the model's name is empty; give a file, a folder or a name: `trilobit list --names` "
            "shows those"
        )
    if model.startswith(_HUB_PREFIXES):
        prefix = next(p for p in _HUB_PREFIXES if model.startswith(p))
        rest = model.removeprefix(prefix).rstrip("/")
        repo = _alias(rest) or repo_of(rest)
        if repo is None:
            raise RequestError(f"{model}: write {prefix}org/name, or {prefix}org/name@revision")
        return repo
    if _is_here(model):
        return trained_in(Path(model)) or Path(model)
    bundled = bundled_models()
    if model in bundled:
        return bundled[model]
    named = _alias(model)
    if named is not None:
        return named
    meant_as_file = os.path.exists(model) or _is_meant_as_file(model)
    repo = None if meant_as_file else repo_of(model)
    if repo is not None:
        return repo
    if meant_as_file or "/" in model or os.sep in model:
        return Path(model)
    near = near_names(model)
    raise RequestError(
        f"{model}: neither a file nor a known model; "
        + (f"did you mean {' or '.join(near)}? " if near else "")
        + "`trilobit list --names` shows the names, and any org/name of the Hugging Face Hub is one"
    )


def is_known(model: str) -> bool:
    """Whether a text can hardly be anything but a model: its file, or a name that we know."""
    if _is_here(model):
        return os.path.isdir(model) or model.endswith((".trilobit", ".gguf"))
    name = model.removeprefix("hf://").partition("@")[0].partition(":")[0].lower()
    return name in bundled_models() or name in ALIASES or name in _KNOWN_IDS


def repo_of(text: str) -> Repo | None:
    """`org/name[@revision][:file.gguf]`, or None for another text."""
    match = _REPO.fullmatch(text)
    if match is None or ".." in text or "--" in match["id"]:  # the Hub's own rules
        return None
    # The Hub redirects other spellings of an id; a cache would keep them apart.
    known = _KNOWN_IDS.get(match["id"].lower(), match["id"])
    return Repo(known, match["revision"] or MAIN, match["file"])


def is_gguf_name(name: str) -> bool:
    """Whether a file of a repository may be asked for as `org/name:file.gguf`."""
    return re.fullmatch(_GGUF, name, re.ASCII) is not None and ".." not in name


def near_names(model: str) -> list[str]:
    """At most three known names that look like it, the nearest first."""
    short = model.lower().rsplit("/")[-1]
    spelled = {name: name for name in (*bundled_models(), *ALIASES)}
    spelled |= {target.split("/")[1].lower(): alias for alias, target in ALIASES.items()}
    close = difflib.get_close_matches(short, spelled, n=6, cutoff=0.6)
    return list(dict.fromkeys(spelled[name] for name in close))[:3]


def _is_here(model: str) -> bool:
    # A folder of notes about a model must not hide the model. os.path: unlike Path's methods it
    # has no errors of its own for names that cannot be.
    if os.path.isdir(model):
        has_config = os.path.exists(os.path.join(model, "config.json"))
        return has_config or trained_in(Path(model)) is not None
    return os.path.exists(model)


def _is_meant_as_file(model: str) -> bool:
    if model.startswith((".", "~", os.sep)) or os.path.isabs(model):
        return True
    if ":" in model or "@" in model:
        return False
    return "\0" in model or _FILE_SUFFIX.fullmatch(os.path.splitext(model)[1]) is not None


def _alias(model: str) -> Repo | None:
    target = ALIASES.get(model.lower())
    return repo_of(target) if target else None
