"""A checkpoint -> one packed file, one projection at a time.

Memory stays at one projection, one table and the tokenizer.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from . import ternary
from .config import ModelConfig
from .errors import FormatError, OutputError
from .formats import names, packed
from .formats.bitnet import BitNetCheckpoint
from .formats.files import read_bytes, read_json, read_text
from .formats.packed import TextFiles

Progress = Callable[[int, int], None]  # done, total: projections


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
) -> ModelConfig:
    """Pack the Hugging Face checkpoint in directory `source` into the file `out`.

    Reads `BitNetForCausalLM` as float masters or packed uint8. Raises FormatError for a damaged
    checkpoint, UnsupportedModel for one we do not run, OutputError when `out` cannot be written.
    """
    source, out = Path(source), Path(out)
    # os.path: unlike Path's methods it has no errors of its own for names that cannot be.
    if not os.path.isdir(source):
        what = "a file" if os.path.exists(source) else "missing"
        raise FormatError(f"{source}: {what}; give the directory of a Hugging Face checkpoint")
    _check_output(out, source)
    checkpoint = BitNetCheckpoint(source)
    config = _with_generation_config(checkpoint.config, source)
    text = _text_files(source, config)
    projections = [name for name, _ in names.all_projections(config)]
    tables = [names.EMBEDDING] + ([] if config.tie_word_embeddings else [names.HEAD])
    scales: dict[str, np.float32] = {}
    with packed.writer(out, config, checkpoint.float_dtype, text, source.name) as file:
        for done, name in enumerate(projections):
            codes, scales[name] = checkpoint.projection(name)
            file.write(f"{name}.weight", ternary.pack(codes))
            checkpoint.forget()
            if progress:
                progress(done + 1, len(projections))
        for name, _ in names.all_norms(config):
            file.write(name, checkpoint.gain(name))
        for name in projections:
            file.write(f"{name}.weight_scale", np.array([scales[name]], dtype=np.float32))
        # The last table is the head, whether or not it is the embedding too.
        head = checkpoint.table(tables[-1])
        packed.write_screen(file, head, checkpoint.float_dtype, checkpoint.forget)
        for name in tables:
            file.write(name, checkpoint.table(name))
            checkpoint.forget()
        if text.tokenizer is not None:
            file.write(names.TOKENIZER, np.frombuffer(text.tokenizer, dtype=np.uint8))
    return config


def _check_output(out: Path, source: Path) -> None:
    if os.path.isdir(out):
        raise OutputError(f"{out}: is a directory; give a file name, such as {out}/model.trilobit")
    if (
        os.path.exists(out)
        and os.path.samefile(out.parent, source)
        and out.suffix in (".safetensors", ".json", ".jinja", ".model")
    ):
        raise OutputError(f"{out}: a file of the checkpoint itself; choose another name")


def _with_generation_config(config: ModelConfig, source: Path) -> ModelConfig:
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


def _text_files(source: Path, config: ModelConfig) -> TextFiles:
    path = source / "tokenizer.json"
    if not os.path.exists(path):
        return TextFiles()
    from .tokenizer import Tokenizer

    data = read_bytes(path)
    tokenizer = Tokenizer(data, str(path))
    if tokenizer.vocab_size > config.vocab_size:
        raise FormatError(
            f"{path}: has ids up to {tokenizer.vocab_size - 1}, the model's vocabulary ends at "
            f"{config.vocab_size - 1}; take the tokenizer of this model"
        )
    settings_path = source / "tokenizer_config.json"
    settings = read_json(settings_path) if os.path.exists(settings_path) else {}
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
    )
