"""The tokenizer, chat template and ends of texts of a Hugging Face directory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trilobit.errors import FormatError, UnsupportedModel
from trilobit.formats.files import read_bytes, read_json, read_text
from trilobit.formats.hf.added_tokens import SETTINGS, SPECIAL, merged, read_added_tokens, token_ids
from trilobit.formats.hf.generation import GENERATION, read_sampling
from trilobit.formats.hf.older_tokenizer import MERGES, PIECES, VOCAB, read_older_tokenizer
from trilobit.formats.hf.pooling import read_pooling, write_pooling
from trilobit.formats.text_files import TextFiles
from trilobit.formats.tokenizer_json import with_bos
from trilobit.model.config import ModelConfig

# What a tokenizer consists of: any one of these.
TOKENIZERS = (("tokenizer.json",), (PIECES,), (VOCAB, MERGES))


_BOUNDS = ("bos_token", "eos_token")


def text_ends(config: ModelConfig, source: Path) -> dict[str, tuple[int, ...]]:
    """Ids that end a text, by the file of a Hugging Face directory that names them.

    Where they differ, all of them end one. The tokenizer's comes first: whoever tunes a model for
    chats gives its tokenizer the end of a turn and leaves the others as they were.
    """
    return _ends(config, source, _role_ids(source, config))


def _ends(
    config: ModelConfig, source: Path, roles: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    ends = {"config.json": config.eos_token_ids}
    path = source / GENERATION
    if os.path.exists(path):
        eos = read_json(path).get("eos_token_id")
        more = eos if isinstance(eos, list) else [eos]
        ends[path.name] = tuple(i for i in more if type(i) is int and i >= 0)
    if "eos_token" in roles:
        where = SETTINGS if "eos_token" in _settings(source) else SPECIAL
        ends = {where: (roles["eos_token"],), **ends}
    return {name: ids for name, ids in ends.items() if ids}


def with_roles(config: ModelConfig, source: Path) -> ModelConfig:
    """The config with the tokens that begin and end a text by all files of a directory.

    Raises FormatError for ids that cannot be.
    """
    roles = _role_ids(source, config)
    ends = [i for ids in _ends(config, source, roles).values() for i in ids]
    bos = roles.get("bos_token", config.bos_token_id)
    try:
        return replace(config, bos_token_id=bos, eos_token_ids=tuple(dict.fromkeys(ends)))
    except FormatError as error:
        raise FormatError(f"{source / GENERATION}: {error}") from None


def has_tokenizer(source: Path) -> bool:
    """Whether a Hugging Face directory has a tokenizer, whatever its form."""
    return any(all(os.path.exists(source / name) for name in names) for names in TOKENIZERS)


def read_text_files(source: Path, config: ModelConfig) -> TextFiles:
    """Tokenizer, chat template and settings of a Hugging Face directory; empty without tokenizer.

    Raises FormatError when one is damaged or belongs to another model.
    """
    read = _read_tokenizer(source, config)
    if read is None:
        return TextFiles(sampling=read_sampling(source))
    data, path = read
    settings = _settings(source)
    from trilobit.text.tokenizer import Tokenizer

    tokenizer = Tokenizer(data, str(path))
    if tokenizer.vocab_size > config.vocab_size:
        raise FormatError(
            f"{path}: has ids up to {tokenizer.vocab_size - 1}, the model's vocabulary ends at "
            f"{config.vocab_size - 1}; take the tokenizer of this model"
        )
    template = settings.get("chat_template")
    template_path = source / "chat_template.jinja"
    if os.path.exists(template_path):
        template = read_text(template_path)
    if isinstance(template, list):  # several named templates: the default one
        named = [t for t in template if isinstance(t, dict) and t.get("name") == "default"]
        template = named[0].get("template") if named else None
    # As transformers, which does not ask `add_bos_token` where tokenizer.json says what is added.
    begins = tokenizer.special_prefix()
    if begins and begins != [config.bos_token_id]:
        texts = ", ".join(f"{tokenizer.token(i)!r:.40}" for i in begins[:4])
        raise UnsupportedModel(
            f"{path}: begins every text with {texts}, and no file names that as its one bos_token; "
            "name it in tokenizer_config.json"
        )
    return TextFiles(
        tokenizer=data,
        chat_template=template if isinstance(template, str) else None,
        add_bos=bool(begins),
        pooling=read_pooling(
            source, config, tokenizer, add_eos=settings.get("add_eos_token") is True
        ),
        sampling=read_sampling(source),
    )


def _settings(source: Path) -> dict[str, Any]:
    path = source / SETTINGS
    return read_json(path) if os.path.exists(path) else {}


def _read_tokenizer(source: Path, config: ModelConfig) -> tuple[bytes, Path] | None:
    """A directory's tokenizer as a tokenizer.json, and the file to name; None without one."""
    path = source / "tokenizer.json"
    if os.path.exists(path):
        data = read_bytes(path)
    else:
        older = read_older_tokenizer(source, config, _settings(source))
        if older is None:
            return None
        data, path = older
    return merged(data, read_added_tokens(source), config.vocab_size), path


def _role_ids(source: Path, config: ModelConfig) -> dict[str, int]:
    """Ids of the tokenizer's `bos_token` and `eos_token` that the model knows, by role."""
    if not has_tokenizer(source):
        return {}
    added = read_added_tokens(source)
    known = {token.content: i for i, token in added.by_id.items()}
    texts = {name: added.roles[name].content for name in _BOUNDS if name in added.roles}
    if not known.keys() >= set(texts.values()):  # reading all of the tokenizer takes longer
        read = _read_tokenizer(source, config)
        known |= token_ids(read[0], texts.values()) if read is not None else {}
    ids = {name: known[text] for name, text in texts.items() if text in known}
    return {name: i for name, i in ids.items() if i < config.vocab_size}


def write_text_files(directory: Path, text: TextFiles, config: ModelConfig) -> None:
    """Write tokenizer and chat template into a Hugging Face directory; nothing without them."""
    if text.tokenizer is None:
        return
    from trilobit.text.tokenizer import Tokenizer

    tokenizer = Tokenizer(text.tokenizer, "tokenizer.json")
    data = text.tokenizer
    bos = config.bos_token_id
    token = tokenizer.token(bos) if text.add_bos and bos is not None else None
    if bos is not None and token is not None and tokenizer.special_prefix() != [bos]:
        data = with_bos(data, bos, token)  # no other file may say it
    (directory / "tokenizer.json").write_bytes(data)
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": text.add_bos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_position_embeddings,
    }
    eos = config.eos_token_ids[0] if config.eos_token_ids else None
    for key, token_id in (("bos_token", config.bos_token_id), ("eos_token", eos)):
        if token_id in tokenizer.special_ids:  # whoever reads a name here makes the token special
            settings[key] = tokenizer.token(token_id)
    if text.pooling is not None:
        write_pooling(directory, text.pooling, config)
        if text.pooling.end_ids and not tokenizer.special_suffix():
            settings["add_eos_token"] = True
    settings_text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (directory / "tokenizer_config.json").write_text(settings_text, encoding="utf-8")
    if text.chat_template is not None:
        template = text.chat_template.encode("utf-8")
        (directory / "chat_template.jinja").write_bytes(template)
