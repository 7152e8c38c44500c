"""A tokenizer.json as the keys that llama.cpp reads: the way back of `tokenizer`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from trilobit.errors import UnsupportedModel
from trilobit.formats.gguf import values
from trilobit.formats.gguf.config_keys import architecture_name
from trilobit.formats.gguf.text import POOLING_TYPES, SAMPLING_KEYS
from trilobit.formats.gguf.tokenizer import HUGGING_FACE, PREFIX
from trilobit.formats.pre_tokenizers import name_of
from trilobit.formats.text_files import TextFiles
from trilobit.formats.tokenizer_json import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from trilobit.model.config import ModelConfig
from trilobit.sampling import SamplingParams

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "▁"


def tokenizer_keys(text: TextFiles, config: ModelConfig, where: str) -> list[bytes]:
    """Keys of a tokenizer and its chat template; without one, the ids that begin and end a text.

    The tokenizer.json goes with them whole, so that nothing of it is lost to those who read it.
    UnsupportedModel for a tokenizer that the keys cannot say; `where` names the model.
    """
    if text.tokenizer is None:
        return [values.pair(f"{PREFIX}model", values.text("no_vocab")), *_roles(config)]
    raw = json.loads(text.tokenizer)
    model = raw.get("model") or {}
    if model.get("type") != "BPE":
        raise UnsupportedModel(
            f"{where}: its tokenizer is {model.get('type')!r:.40}; GGUF is written with BPE only"
        )
    tokens, types = _tokens(raw, config)
    byte_level = '"ByteLevel"' in json.dumps([raw.get("pre_tokenizer"), raw.get("decoder")])
    kind = _byte_level(raw, where) if byte_level else _sentence_piece(raw, tokens)
    template, pooling = text.chat_template, text.pooling
    adds_eos = _adds_eos(raw)
    pooled: list[bytes] = []
    if pooling is not None:
        key = f"{architecture_name(config)}.pooling_type"
        pooled.append(values.pair(key, values.u32(POOLING_TYPES[pooling.mode])))
        adds_eos = adds_eos or pooling.end_ids == config.eos_token_ids[:1]
    return [
        values.pair(f"{PREFIX}model", values.text("gpt2" if byte_level else "llama")),
        *kind,
        values.pair(f"{PREFIX}tokens", values.texts(tokens)),
        values.pair(f"{PREFIX}token_type", values.numbers("i32", types)),
        *_roles(config, model["vocab"].get(model.get("unk_token"))),
        values.pair(f"{PREFIX}add_bos_token", values.boolean(text.add_bos)),
        values.pair(f"{PREFIX}add_eos_token", values.boolean(adds_eos)),
        *pooled,
        *([values.pair("tokenizer.chat_template", values.text(template))] if template else []),
        values.pair(HUGGING_FACE, values.text(text.tokenizer.decode("utf-8"))),
    ]


def sampling_keys(sampling: SamplingParams) -> list[bytes]:
    """Keys of what a model's makers say of how tokens are chosen."""
    return [
        values.pair(
            SAMPLING_KEYS[name], values.i32(value) if name == "top_k" else values.f32(value)
        )
        for name, value in sampling.said.items()
    ]


def _tokens(raw: Mapping[str, Any], config: ModelConfig) -> tuple[list[str], list[int]]:
    """Texts and types of all ids of the model; those that the tokenizer lacks are unused."""
    model = raw["model"]
    tokens = [f"[PAD{i}]" for i in range(config.vocab_size)]
    types = [UNUSED] * config.vocab_size
    for token, i in model["vocab"].items():
        is_byte = model.get("byte_fallback") and _BYTE_TOKEN.fullmatch(token)
        tokens[i], types[i] = token, BYTE if is_byte else NORMAL
    for added in raw.get("added_tokens", []):
        i = added["id"]
        tokens[i], types[i] = added["content"], CONTROL if added["special"] else USER_DEFINED
    unknown = model["vocab"].get(model.get("unk_token"))
    if unknown is not None:
        types[unknown] = UNKNOWN
    return tokens, types


def _byte_level(raw: Mapping[str, Any], where: str) -> list[bytes]:
    name = name_of(raw)
    if name is None:
        raise UnsupportedModel(
            f"{where}: GGUF has no name for its tokenizer's pre_tokenizer, so other programs would "
            "split text elsewhere; write another form"
        )
    merges = [m if isinstance(m, str) else " ".join(m) for m in raw["model"]["merges"]]
    return [
        values.pair(f"{PREFIX}pre", values.text(name)),
        values.pair(f"{PREFIX}merges", values.texts(merges)),
    ]


def _sentence_piece(raw: Mapping[str, Any], tokens: list[str]) -> list[bytes]:
    """Scores that merge in the order of the merges: the earlier, the greater."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(raw["model"]["merges"]):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    worst = float(len(raw["model"]["merges"]))
    scores = [-float(ranks.get(token, worst)) for token in tokens]
    settings = json.dumps([raw.get("normalizer"), raw.get("pre_tokenizer")])
    prefixed = '"Prepend"' in settings or '"prepend_scheme": "first"' in settings
    prefixed = prefixed or '"prepend_scheme": "always"' in settings
    return [
        values.pair(f"{PREFIX}pre", values.text("default")),
        values.pair(f"{PREFIX}scores", values.numbers("f32", scores)),
        values.pair(f"{PREFIX}add_space_prefix", values.boolean(prefixed)),
    ]


def _roles(config: ModelConfig, unknown: int | None = None) -> list[bytes]:
    """Ids by their roles: the first end is `eos`, the next two are the ends of turn and message."""
    roles = {"bos": config.bos_token_id}
    roles |= dict(zip(("eos", "eot", "eom"), config.eos_token_ids, strict=False))
    roles |= {"unknown": unknown}
    return [
        values.pair(f"{PREFIX}{role}_token_id", values.u32(i))
        for role, i in roles.items()
        if i is not None and i < config.vocab_size
    ]


def _adds_eos(raw: Mapping[str, Any]) -> bool:
    """Whether the tokenizer itself puts a special token behind a text."""
    processor = raw.get("post_processor") or {}
    steps = [processor, *processor.get("processors", [])]
    templates = [step["single"] for step in steps if step.get("type") == "TemplateProcessing"]
    return any(template and "SpecialToken" in template[-1] for template in templates)
