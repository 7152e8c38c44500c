"""What a GGUF file says of text, with the known mistakes of published files mended."""

from __future__ import annotations

from typing import Any

import numpy as np

from trilobit.errors import FormatError, RequestError, UnsupportedModel
from trilobit.formats.gguf.container import GGUFFile
from trilobit.formats.gguf.tokenizer import HUGGING_FACE, read_vocabulary
from trilobit.formats.pooling import Mode, Pooling
from trilobit.formats.text_files import TextFiles
from trilobit.formats.tokenizer_json import from_vocabulary
from trilobit.model.config import ModelConfig
from trilobit.sampling import SamplingParams

# llama.cpp's numbers; 0 is none.
POOLING_TYPES: dict[Mode, int] = {"mean": 1, "last": 3}

# llama.cpp's, since November 2025; its converter takes the values from a generation_config.json.
SAMPLING_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}

# bitnet.cpp's converter wrote a template of an older model into 2B-4T's file. This is the one of
# the model's own repository, which it was trained on.
_OLD_TEMPLATE = "BITNETAssistant"
_2B_4T_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize + ': ' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)


def read_text(file: GGUFFile, config: ModelConfig) -> TextFiles:
    """Tokenizer and chat template; empty where the file has no tokenizer.

    Raises FormatError when the tokenizer is damaged or has more tokens than the model,
    UnsupportedModel for a kind that we do not read.
    """
    vocabulary = read_vocabulary(file)
    data = file.text_bytes(HUGGING_FACE)  # the file's own copy, where it has one
    if data is None:
        if vocabulary is None:
            return TextFiles(sampling=read_sampling(file))
        data = from_vocabulary(vocabulary)
    from trilobit.text.tokenizer import Tokenizer

    tokenizer = Tokenizer(data, str(file.path))
    if tokenizer.vocab_size > config.vocab_size:
        raise FormatError(
            f"{file.path}: its tokenizer has ids up to {tokenizer.vocab_size - 1}, its vocabulary "
            f"ends at {config.vocab_size - 1}; download it again"
        )
    template = file.text("tokenizer.chat_template")
    if template is not None and _OLD_TEMPLATE in template:
        template = _2B_4T_TEMPLATE
    adds_bos = vocabulary is not None and vocabulary.adds_bos
    mode = _mode(file)
    end_ids = tokenizer.special_suffix()
    if not end_ids and vocabulary is not None and vocabulary.adds_eos:
        end_ids = [i for i in [vocabulary.eos] if i is not None]
    return TextFiles(
        tokenizer=data,
        chat_template=template,
        add_bos=adds_bos,
        pooling=Pooling(mode=mode, end_ids=tuple(end_ids)) if mode else None,
        sampling=read_sampling(file),
    )


def read_sampling(file: GGUFFile) -> SamplingParams:
    """What the file says of how tokens are chosen; FormatError for what cannot be."""
    said: dict[str, Any] = {}
    for name, key in SAMPLING_KEYS.items():
        value = file.integer(key) if name == "top_k" else file.number(key)
        if value is not None:  # a float32 is meant as the decimal number that it was made of
            said[name] = value if name == "top_k" else float(str(np.float32(value)))
    try:
        return SamplingParams(**said)
    except RequestError as error:
        raise FormatError(f"{file.path}: general.sampling: {error}; download it again") from None


def _mode(file: GGUFFile) -> Mode | None:
    """How an embedding model pools; None for another model."""
    number = file.integer(f"{file.text('general.architecture')}.pooling_type")
    if not number:
        return None
    for mode, known in POOLING_TYPES.items():
        if number == known:
            return mode
    raise UnsupportedModel(
        f"{file.path}: pooling_type is {number}; Trilobit pools by 1 (mean) and 3 (last token)"
    )
