"""Any supported checkpoint -> one packed file, one projection at a time.

Whatever the source holds (float masters, packed codes with either meaning of their scale) becomes
codes in {-1, 0, 1} and a scale that multiplies, and then the packed layout. Memory stays at one
projection and the tokenizer; tables are copied row block by row block from the mapped file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import ternary
from .config import ModelConfig
from .errors import FormatError, OutputError, UnsupportedModel
from .formats import names, packed
from .formats.files import read_bytes, read_json, read_text
from .formats.packed import TextFiles
from .formats.safetensors import Checkpoint

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
    if not source.is_dir():
        what = "a file" if source.exists() else "missing"
        raise FormatError(f"{source}: {what}; give the directory of a Hugging Face checkpoint")
    if out.is_dir():
        raise OutputError(f"{out}: is a directory; give a file name, such as {out}/model.trilobit")
    if not (source / "config.json").exists():
        raise FormatError(
            f"{source / 'config.json'}: missing; give the directory of a Hugging Face checkpoint"
        )
    raw = read_json(source / "config.json")
    config = ModelConfig.from_hf(raw, str(source / "config.json"))
    read = _reader(raw, source)
    checkpoint = Checkpoint(source)
    config = _with_generation_config(config, source)
    text = _text_files(source, config)
    _check_names(config, checkpoint)
    float_dtype = checkpoint.file(names.EMBEDDING).info(names.EMBEDDING).dtype
    if float_dtype not in packed.FLOATS:
        raise FormatError(f"{source}: '{names.EMBEDDING}' is {float_dtype}; expected a float type")
    scales: dict[str, np.float32] = {}
    everything = list(names.all_projections(config))
    with packed.writer(out, config, float_dtype, text, source.name) as file:
        for done, (name, (rows, columns)) in enumerate(everything):
            codes, scales[name] = read(checkpoint, name, rows, columns)
            file.write(f"{name}.weight", ternary.pack(codes))
            checkpoint.forget()
            if progress:
                progress(done + 1, len(everything))
        for name, length in names.all_norms(config):
            gain = _float32(checkpoint, name, (length,))
            file.write(name, gain)
        for name, _ in everything:
            file.write(f"{name}.weight_scale", np.array([scales[name]], dtype=np.float32))
        table = (config.vocab_size, config.hidden_size)
        head = names.EMBEDDING if config.tie_word_embeddings else names.HEAD
        packed.write_screen(file, _table(checkpoint, head, table, float_dtype), float_dtype)
        checkpoint.forget()
        for name in [names.EMBEDDING] + ([] if config.tie_word_embeddings else [names.HEAD]):
            file.write(name, _table(checkpoint, name, table, float_dtype))
            checkpoint.forget()
        if text.tokenizer is not None:
            file.write(names.TOKENIZER, np.frombuffer(text.tokenizer, dtype=np.uint8))
    return config


# ---- the sources' forms -----------------------------------------------------------------------

_Reader = Callable[[Checkpoint, str, int, int], tuple[NDArray[np.int8], np.float32]]


def _reader(raw: Mapping[str, Any], source: Path) -> _Reader:
    """How this checkpoint's projections are stored, from its `quantization_config`."""
    where = source / "config.json"
    quantization = raw.get("quantization_config")
    if quantization is None:
        raise UnsupportedModel(
            f"{where}: no quantization_config, so this is a float model; "
            "give a checkpoint that was trained in ternary"
        )
    if not isinstance(quantization, Mapping) or quantization.get("quant_method") != "bitnet":
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
        raise UnsupportedModel(
            f"{where}: quant_method {method!r} is not supported; supported: 'bitnet'"
        )
    if quantization.get("use_rms_norm"):
        raise UnsupportedModel(
            f"{where}: use_rms_norm (a norm before every projection) is not supported yet"
        )
    skipped = quantization.get("modules_to_not_convert") or []
    if any(str(module).split(".")[-1].endswith("_proj") for module in skipped):
        raise UnsupportedModel(f"{where}: modules_to_not_convert keeps a projection in float")
    linear_class = quantization.get("linear_class", "bitlinear")
    if linear_class not in ("bitlinear", "autobitlinear"):
        raise UnsupportedModel(f"{where}: unknown linear_class {linear_class!r}")
    mode = quantization.get("quantization_mode", "offline")
    if mode not in ("online", "offline"):
        raise UnsupportedModel(f"{where}: unknown quantization_mode {mode!r}")
    # BitLinear divides by its scale (1/mean|W|), AutoBitLinear multiplies (mean|W|).
    return _read_any(divides=linear_class == "bitlinear")


def _read_any(*, divides: bool) -> _Reader:
    """A reader that takes packed codes where there are any, float masters otherwise."""

    def read(
        checkpoint: Checkpoint, name: str, rows: int, columns: int
    ) -> tuple[NDArray[np.int8], np.float32]:
        weight = f"{name}.weight"
        dtype = checkpoint.file(weight).info(weight).dtype
        if dtype != "U8":
            master = _float32(checkpoint, weight, (rows, columns))
            codes, scale = ternary.absmean_ternary(master)
            return codes, scale
        stored = _array(checkpoint, weight, (-(-rows // 4), columns))
        scale_name = f"{name}.weight_scale"
        value = checkpoint.file(scale_name).float32(scale_name)
        if value.size != 1 or not np.isfinite(value).all() or value.reshape(-1)[0] <= 0:
            raise FormatError(
                f"{checkpoint.directory}: '{scale_name}' is {value.reshape(-1)[:4].tolist()}; "
                "expected one positive number"
            )
        scale = np.float32(value.reshape(-1)[0])
        return _unpack_hf(stored, rows, weight, checkpoint), (
            np.float32(1) / scale if divides else scale
        )

    return read


def _unpack_hf(
    stored: NDArray[np.uint8], rows: int, name: str, checkpoint: Checkpoint
) -> NDArray[np.int8]:
    """transformers' layout: bits 2i, 2i+1 of stored row r hold row `i * stored_rows + r`."""
    if (stored & (stored >> 1) & np.uint8(0x55)).any():
        raise FormatError(
            f"{checkpoint.directory}: '{name}' has a weight code 3, which is no ternary value; "
            "the file is damaged: download it again"
        )
    codes = np.concatenate([(stored >> 2 * i) & np.uint8(3) for i in range(4)])[:rows]
    return codes.view(np.int8) - np.int8(1)


def pack_hf(codes_NK: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Inverse of transformers' unpacking: uint8 `[ceil(N / 4), K]`."""
    rows = -(-codes_NK.shape[0] // 4)
    u = np.zeros((4 * rows, codes_NK.shape[1]), dtype=np.uint8)
    u[: codes_NK.shape[0]] = codes_NK.view(np.uint8) + np.uint8(1)
    quarters = u.reshape(4, rows, -1)
    packed_rows: NDArray[np.uint8] = (
        quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6
    )
    return packed_rows


# ---- tensors with their shapes checked --------------------------------------------------------


def _array(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    file = checkpoint.file(name)
    found = file.info(name).shape
    if found != shape:
        raise FormatError(
            f"{file.path}: tensor '{name}' is {list(found)}; the config asks for {list(shape)}"
        )
    return file.array(name)


def _float32(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    _array(checkpoint, name, shape)
    values = checkpoint.file(name).float32(name)
    if not np.isfinite(values).all():
        raise FormatError(f"{checkpoint.directory}: '{name}' holds NaN or infinity")
    return values


def _table(
    checkpoint: Checkpoint, name: str, shape: tuple[int, int], float_dtype: str
) -> NDArray[Any]:
    array = _array(checkpoint, name, shape)
    dtype = checkpoint.file(name).info(name).dtype
    if dtype != float_dtype:
        raise FormatError(
            f"{checkpoint.directory}: '{name}' is {dtype}, the embedding is {float_dtype}; "
            "save both in one type"
        )
    return array


def _check_names(config: ModelConfig, checkpoint: Checkpoint) -> None:
    """Every tensor known and used: what is left over would silently change the model."""
    known = {names.EMBEDDING, names.HEAD, *(name for name, _ in names.all_norms(config))}
    for name, _ in names.all_projections(config):
        known |= {f"{name}.weight", f"{name}.weight_scale"}
    foreign = sorted(name for name in checkpoint if name not in known and "rotary_emb" not in name)
    if foreign:
        raise UnsupportedModel(
            f"{checkpoint.directory}: tensor '{foreign[0][:80]}' is not part of a BitNet model"
        )
    if config.tie_word_embeddings and names.HEAD in checkpoint:
        head = checkpoint.file(names.HEAD).array(names.HEAD)
        if not np.array_equal(head, checkpoint.file(names.EMBEDDING).array(names.EMBEDDING)):
            raise FormatError(
                f"{checkpoint.directory}: tie_word_embeddings is true, but lm_head.weight differs "
                "from the embedding; set it to false in config.json"
            )


# ---- text files -------------------------------------------------------------------------------


def _with_generation_config(config: ModelConfig, source: Path) -> ModelConfig:
    """`generation_config.json` may end a text with more tokens than `config.json` names."""
    path = source / "generation_config.json"
    if not path.exists():
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
    if not path.exists():
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
    settings = read_json(settings_path) if settings_path.exists() else {}
    template = settings.get("chat_template")
    template_path = source / "chat_template.jinja"
    if template_path.exists():
        template = read_text(template_path)
    if isinstance(template, list):  # several named templates: the default one
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
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
