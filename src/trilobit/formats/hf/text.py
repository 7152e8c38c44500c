"""The tokenizer, chat template and ends of texts of a Hugging Face directory."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from trilobit.errors import FormatError
from trilobit.formats.files import read_bytes, read_json, read_text
from trilobit.formats.hf.older_tokenizer import MERGES, PIECES, VOCAB, read_older_tokenizer
from trilobit.formats.hf.pooling import read_pooling, write_pooling
from trilobit.formats.text import TextFiles
from trilobit.model.config import ModelConfig

# What a tokenizer consists of: any one of these.
TOKENIZERS = (("tokenizer.json",), (PIECES,), (VOCAB, MERGES))


def with_generation_config(config: ModelConfig, source: Path) -> ModelConfig:
    """`generation_config.json` may end a text with more tokens than `config.json` names."""
    path = source / "generation_config.json"
    if not os.path.exists(path):
        return config
    eos = read_json(path).get("eos_token_id")
    more = eos if isinstance(eos, list) else [eos]
    ids = dict.fromkeys(
        [*config.eos_token_ids, *(i for i in more if isinstance(i, int) and i >= 0)]
    )
    try:
        return replace(config, eos_token_ids=tuple(ids))
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None


def has_tokenizer(source: Path) -> bool:
    """Whether a Hugging Face directory has a tokenizer, whatever its form."""
    return any(all(os.path.exists(source / name) for name in names) for names in TOKENIZERS)


def read_text_files(source: Path, config: ModelConfig) -> TextFiles:
    """Tokenizer, chat template and settings of a Hugging Face directory; empty without tokenizer.

    Raises FormatError when one is damaged or belongs to another model.
    """
    settings_path = source / "tokenizer_config.json"
    settings = read_json(settings_path) if os.path.exists(settings_path) else {}
    path = source / "tokenizer.json"
    if os.path.exists(path):
        data = read_bytes(path)
    else:
        older = read_older_tokenizer(source, config, settings)
        if older is None:
            return TextFiles()
        data, path = older
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
    bos = config.bos_token_id
    adds = settings.get("add_bos_token") is True or (
        bos is not None and tokenizer.special_prefix() == [bos]
    )
    usable = bos is not None and bos < config.vocab_size
    return TextFiles(
        tokenizer=data,
        chat_template=template if isinstance(template, str) else None,
        add_bos=bool(adds and usable),
        pooling=read_pooling(
            source, config, tokenizer, add_eos=settings.get("add_eos_token") is True
        ),
    )


def write_text_files(directory: Path, text: TextFiles, config: ModelConfig) -> None:
    """Write tokenizer and chat template into a Hugging Face directory; nothing without them."""
    if text.tokenizer is None:
        return
    from trilobit.text.tokenizer import Tokenizer

    (directory / "tokenizer.json").write_bytes(text.tokenizer)
    tokenizer = Tokenizer(text.tokenizer, "tokenizer.json")
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": text.add_bos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.max_position_embeddings,
    }
    eos = config.eos_token_ids[0] if config.eos_token_ids else None
    for key, token_id in (("bos_token", config.bos_token_id), ("eos_token", eos)):
        if token_id is not None and (token := tokenizer.token(token_id)) is not None:
            settings[key] = token
    if text.pooling is not None:
        write_pooling(directory, text.pooling, config)
        if text.pooling.end_ids and not tokenizer.special_suffix():
            settings["add_eos_token"] = True
    settings_text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (directory / "tokenizer_config.json").write_text(settings_text, encoding="utf-8")
    if text.chat_template is not None:
        template = text.chat_template.encode("utf-8")
        (directory / "chat_template.jinja").write_bytes(template)
