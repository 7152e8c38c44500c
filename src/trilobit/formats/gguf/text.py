"""What a GGUF file says of text, with the known mistakes of published files mended."""

from __future__ import annotations

from trilobit.errors import FormatError, UnsupportedModel
from trilobit.formats.gguf.container import GGUFFile
from trilobit.formats.gguf.tokenizer import HUGGING_FACE, read_vocabulary
from trilobit.formats.pooling import Mode, Pooling
from trilobit.formats.text_files import TextFiles
from trilobit.formats.tokenizer_json import from_vocabulary
from trilobit.model.config import ModelConfig

# llama.cpp's numbers; 0 is none.
POOLING_TYPES: dict[Mode, int] = {"mean": 1, "last": 3}

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
            return TextFiles()
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
    )


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
