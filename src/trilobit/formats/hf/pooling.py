"""How a Hugging Face directory says that a vector is made of a text."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from trilobit.errors import FormatError, UnsupportedModel
from trilobit.formats.files import read_json, read_json_value
from trilobit.model.config import ModelConfig

if TYPE_CHECKING:
    from trilobit.text.tokenizer import Tokenizer

from trilobit.formats.pooling import Mode, Pooling, are_prompts

_MODULES = "modules.json"


_POOLING = "1_Pooling/config.json"


_PROMPTS = "config_sentence_transformers.json"


_MODE = "pooling_mode_"


_MODE_KEYS: dict[Mode, str] = {
    "last": f"{_MODE}lasttoken",
    "mean": f"{_MODE}mean_tokens",
}


# What sentence-transformers' modules are called, whatever the package's path to them.
_KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")


def read_pooling(
    source: Path, config: ModelConfig, tokenizer: Tokenizer, *, add_eos: bool
) -> Pooling | None:
    """What a Hugging Face directory says; None when it says nothing.

    add_eos: its tokenizer's settings want an end-of-text token.
    Raises UnsupportedModel for what is not a mean or a last token, FormatError for damaged files.
    """
    headless = _is_headless(source)
    named = [os.path.exists(source / name) for name in (_MODULES, _POOLING, _PROMPTS)]
    if not headless and not any(named):
        return None
    _check_modules(source / _MODULES)
    prompts, default = _read_prompts(source / _PROMPTS)
    end_ids = tokenizer.special_suffix()
    if not end_ids and (add_eos or headless):
        end_ids = list(config.eos_token_ids[:1])
    return Pooling(
        mode=_read_mode(source / _POOLING),
        end_ids=tuple(end_ids),
        prompts=prompts,
        default_prompt=default,
    )


def write_pooling(directory: Path, pooling: Pooling, config: ModelConfig) -> None:
    """Write sentence-transformers' files into a Hugging Face directory."""
    package = "sentence_transformers.models"
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"{package}.{kind}"}
        for n, (path, kind) in enumerate(
            (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
        )
    ]
    modes = {key: mode == pooling.mode for mode, key in _MODE_KEYS.items()}
    settings = {"word_embedding_dimension": config.hidden_size, **modes, "include_prompt": True}
    prompts = {
        "prompts": dict(pooling.prompts),
        "default_prompt_name": pooling.default_prompt,
        "similarity_fn_name": "cosine",
    }
    (directory / _POOLING).parent.mkdir()
    for name, value in ((_MODULES, modules), (_POOLING, settings), (_PROMPTS, prompts)):
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        (directory / name).write_text(text, encoding="utf-8")


def _is_headless(source: Path) -> bool:
    """Whether the config names a class without a language model's head, such as Qwen3Model."""
    names = read_json(source / "config.json").get("architectures")
    return isinstance(names, list) and len(names) > 0 and str(names[0]).endswith("Model")


def _check_modules(path: Path) -> None:
    if not os.path.exists(path):
        return
    try:
        kinds = [str(module["type"]).rpartition(".")[2] for module in read_json_value(path)]
    except (TypeError, KeyError):
        raise FormatError(f"{path}: not a list of modules; download it again") from None
    for kind in kinds:
        if kind not in _KNOWN_MODULES:
            raise UnsupportedModel(
                f"{path}: a module {kind[:80]!r} after the model; "
                f"expected only {', '.join(_KNOWN_MODULES)}"
            )


def _read_mode(path: Path) -> Mode:
    if not os.path.exists(path):
        return "last"
    raw = read_json(path)
    chosen = [key for key, value in raw.items() if key.startswith(_MODE) and value is True]
    if not chosen and isinstance(raw.get("pooling_mode"), str):  # of newer versions
        chosen = [_MODE + {"mean": "mean_tokens"}.get(raw["pooling_mode"], raw["pooling_mode"])]
    modes = [mode for mode, key in _MODE_KEYS.items() if chosen == [key]]
    if not modes:
        raise UnsupportedModel(
            f"{path}: pools by {', '.join(chosen)[:80] or 'nothing'}; Trilobit pools by "
            f"{' or '.join(_MODE_KEYS.values())}"
        )
    mode = modes[0]
    if mode == "mean" and raw.get("include_prompt") is False:
        raise UnsupportedModel(f"{path}: the mean leaves out the prompt, which Trilobit does not")
    return mode


def _read_prompts(path: Path) -> tuple[dict[str, str], str | None]:
    if not os.path.exists(path):
        return {}, None
    raw = read_json(path)
    prompts, default = raw.get("prompts") or {}, raw.get("default_prompt_name")
    if not are_prompts(prompts, default):
        raise FormatError(f"{path}: prompts are no texts by name; download it again")
    return prompts, default
