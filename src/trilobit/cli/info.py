"""`trilobit info`: what a model file is, from its header; of a small one also how it looks."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trilobit.cli.command import Command
from trilobit.cli.options import model_argument
from trilobit.cli.terminal import say
from trilobit.cli.units import count, size

if TYPE_CHECKING:
    from trilobit.formats.gguf.tensors import TensorInfo as GGUFTensor
    from trilobit.formats.safetensors import TensorInfo
    from trilobit.model.config import ModelConfig

    Sized = TensorInfo | GGUFTensor

Facts = dict[str, Any]  # JSON values

# Of a model whose weights are looked at, which takes a second then.
_JUDGED_BYTES = 64_000_000


@click.command(
    "info",
    cls=Command,
    examples=[
        ("trilobit info trilobit-stories-5m", "The model that comes with the package."),
        ("trilobit info model.gguf", "A file; what it would be converted to."),
        ("trilobit info bitnet-2b --json", "For programs."),
    ],
)
@model_argument()
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(model: str, as_json: bool) -> None:
    """Explain MODEL: a packed file, or the name of one that comes with the package or was pulled.

    Also a GGUF file, or a Hugging Face checkpoint: its directory, or one .safetensors file of it.
    """
    from trilobit.errors import FormatError, RequestError
    from trilobit.hub.models import known_file
    from trilobit.hub.repair import damaged

    path = known_file(model)
    if path is None:
        raise RequestError(f"{model}: not here yet; `trilobit pull {model}` fetches it")
    try:
        facts = _directory(path) if path.is_dir() else file_facts(path)
    except FormatError as error:
        raise damaged(path, error) from None
    if "config" in facts:
        facts["damage"] = _damage(path, facts["size_bytes"])
    if as_json:
        print(json.dumps(facts))
        return
    for line in _lines(facts):
        say(line)


# ---- facts ------------------------------------------------------------------------------------


def file_facts(path: Path) -> Facts:
    """Of a file, as `trilobit info --json` prints them, without a look at the weights."""
    from dataclasses import asdict

    from trilobit.formats.gguf import is_gguf
    from trilobit.formats.packed.form import FORMAT
    from trilobit.formats.packed.reader import PackedModel
    from trilobit.formats.safetensors import SafetensorsFile

    if is_gguf(path):
        return _gguf(path)
    if path.exists() and (file := SafetensorsFile(path)).metadata.get("format") != FORMAT:
        return {
            "path": str(path),
            "kind": "safetensors",
            "size_bytes": file.size_bytes,
            "tensors": len(file.tensors),
            "bytes_by_dtype": _bytes_by_dtype(file.tensors),
            "convert": _convert(path.absolute().parent),
        }
    packed = PackedModel(path)
    pooling = packed.text.pooling
    return {
        "path": str(path),
        "kind": "packed",
        **_model(packed.config, packed.file.tensors, packed.file.size_bytes),
        **_threads(),
        "source": packed.file.metadata.get("source"),
        "tokenizer": packed.text.tokenizer is not None,
        "chat_template": packed.text.chat_template is not None,
        "pooling": asdict(pooling) if pooling else None,
        "sampling": packed.text.sampling.said,
    }


def _gguf(path: Path) -> Facts:
    """Of a model that we do not run, what its header says and the reason."""
    from trilobit.errors import UnsupportedModel
    from trilobit.formats.gguf.container import GGUFFile
    from trilobit.formats.gguf.reader import GGUFModel
    from trilobit.formats.gguf.text import read_sampling

    file = GGUFFile(path)
    facts: Facts = {"path": str(path), "kind": "gguf", "size_bytes": file.size_bytes}
    try:
        model = GGUFModel(path)
        facts |= _model(model.shape, model.tensors, file.size_bytes)
    except UnsupportedModel as error:
        facts["not_run"] = str(error).removeprefix(f"{path}: ")
    return {
        **facts,
        "architecture": file.text("general.architecture"),
        "name": file.text("general.name"),
        "tensors": len(file.tensors),
        "tokenizer": "tokenizer.ggml.tokens" in file,
        "chat_template": "tokenizer.chat_template" in file,
        "sampling": read_sampling(file).said,
        "bytes_by_dtype": _bytes_by_dtype(file.tensors),
        **({} if "not_run" in facts else {"convert": _convert(path)}),
    }


def _directory(path: Path) -> Facts:
    """Of a model that we do not run, what its header says and the reason."""
    from trilobit.errors import UnsupportedModel
    from trilobit.formats.adapter import not_a_model
    from trilobit.formats.files import read_json
    from trilobit.formats.hf.config import model_config, with_projection_norms
    from trilobit.formats.hf.generation import read_sampling
    from trilobit.formats.hf.quantization import quantization_form
    from trilobit.formats.hf.text import has_tokenizer, text_ends, with_roles
    from trilobit.formats.safetensors import Checkpoint

    where = path / "config.json"
    if not where.exists():
        raise not_a_model(path, "no config.json here; give a packed file or a checkpoint")
    raw, checkpoint = read_json(where), Checkpoint(path)
    settings_path = path / "tokenizer_config.json"
    settings = read_json(settings_path) if settings_path.exists() else {}
    facts: Facts = {"path": str(path), "kind": "checkpoint", "size_bytes": checkpoint.size_bytes}
    try:
        config = with_projection_norms(model_config(raw, str(where)), checkpoint)
        facts["ends"] = {name: list(ids) for name, ids in text_ends(config, path).items()}
        config = with_roles(config, path)
        facts |= _model(config, checkpoint.tensors, checkpoint.size_bytes)
        facts["weights"] = quantization_form(raw, config, where) or "floats"
    except UnsupportedModel as error:
        facts["not_run"] = str(error).removeprefix(f"{where}: ")
    return {
        **facts,
        "tensors": len(checkpoint.tensors),
        "tokenizer": has_tokenizer(path),
        "chat_template": (path / "chat_template.jinja").exists() or "chat_template" in settings,
        "sampling": read_sampling(path).said,
        "bytes_by_dtype": _bytes_by_dtype(checkpoint.tensors),
        **({} if "not_run" in facts else {"convert": _convert(path)}),
    }


def _damage(path: Path, size_bytes: int) -> list[str] | None:
    """What of a model's weights looks damaged; None for a large one, at which nobody looks here."""
    from trilobit.errors import FormatError, UnsupportedModel
    from trilobit.formats.dead_tensors import Judge, look_at
    from trilobit.formats.open import open_source

    if size_bytes > _JUDGED_BYTES:
        return None
    judge = Judge()
    try:
        look_at(open_source(path), judge)
    except (FormatError, UnsupportedModel) as error:
        return [str(error).removeprefix(f"{path}: ")]
    return judge.dead()


def _model(config: ModelConfig, tensors: Mapping[str, Sized], size_bytes: int) -> Facts:
    from trilobit.engine.blocks import BLOCK, block_bytes
    from trilobit.formats.packed.form import bytes_by_part

    parts = bytes_by_part(tensors)
    parts["header"] = size_bytes - sum(parts.values())
    return {
        "size_bytes": size_bytes,
        "model_type": config.model_type,
        "parameters": config.parameters,
        "ternary_parameters": config.ternary_parameters,
        "bits_per_ternary_weight": 8 * parts["ternary"] / config.ternary_parameters,
        "bits_per_weight": 8 * size_bytes / config.parameters,
        "bytes_by_part": parts,
        "context": config.max_position_embeddings,
        "kv_bytes_per_token": block_bytes(config, "f16") // BLOCK,
        "config": config.to_dict(),
    }


def _threads() -> Facts:
    from trilobit.machine import cores

    here = cores()
    return {"threads": here.count, "threads_why": here.why}


def _bytes_by_dtype(tensors: Mapping[str, Sized]) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for info in tensors.values():
        sizes[info.dtype] += info.size_bytes
    return dict(sizes.most_common())


def _convert(model: Path) -> str:
    packed = f"{model.name.removesuffix('.gguf') or 'model'}.trilobit"
    return f"trilobit convert {shlex.quote(str(model))} {shlex.quote(packed)}"


def _printable(text: object, longest: int = 120) -> str:
    """Text of a file as it may stand on a terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:longest])


# ---- facts as text ----------------------------------------------------------------------------

_KINDS = {
    "packed": "packed Trilobit model",
    "checkpoint": "Hugging Face checkpoint",
    "safetensors": "safetensors file, no packed Trilobit model",
    "gguf": "GGUF file",
}


# What a checkpoint's matrices are, by formats/hf/quantization.py.
_WEIGHTS = {
    "masters": "float masters, made ternary as they are read",
    "codes": "ternary codes and scales that multiply",
    "divided codes": "ternary codes and scales that divide",
    "floats": "floats, which run if they are ternary in groups of 128",
    "mlx": "MLX's two-bit codes",
}


def _lines(facts: Facts) -> Iterator[str]:
    yield f"{facts['path']}: {_KINDS[facts['kind']]}, {size(facts['size_bytes'])}"
    if "architecture" in facts:
        yield f"  architecture     {_printable(facts['architecture'])}"
    if facts.get("name"):
        yield f"  name             {_printable(facts['name'])}"
    if "config" in facts:
        yield from _model_lines(facts)
    else:
        yield f"  tensors          {facts['tensors']:,}"
    if "bytes_by_dtype" in facts:
        yield from _table("bytes by type", facts["bytes_by_dtype"], facts["size_bytes"])
    if "not_run" in facts:
        yield f"Trilobit does not run it: {facts['not_run']}"
    if "convert" in facts:
        yield f"Pack it: {facts['convert']}"


def _model_lines(facts: Facts) -> Iterator[str]:
    config = facts["config"]
    yield f"  architecture     {', '.join(_features(facts['model_type'], config))}"
    yield (
        f"  shape            {count(config['num_hidden_layers'], 'layer')}, "
        f"hidden {config['hidden_size']}, ffn {config['intermediate_size']}, "
        f"{count(config['num_attention_heads'], 'head')} of {config['head_dim']}, "
        f"{config['num_key_value_heads']} for keys and values, "
        f"vocabulary {config['vocab_size']}"
    )
    yield (
        f"  parameters       {facts['parameters']:,}, "
        f"{facts['ternary_parameters']:,} of them ternary"
    )
    yield (
        f"  bits per weight  {facts['bits_per_ternary_weight']:.2f} ternary, "
        f"{facts['bits_per_weight']:.2f} in all"
    )
    if "weights" in facts:
        yield f"  weights          {_WEIGHTS[facts['weights']]}"
    if facts.get("source"):
        yield f"  made from        {_printable(facts['source'])}"
    yield f"  context          {facts['context']:,} tokens"
    yield f"  KV cache         {facts['kv_bytes_per_token']:,} bytes a token"
    if "threads" in facts:
        yield f"  threads here     {facts['threads']}, by default: {facts['threads_why']}"
    yield f"  tokenizer        {'yes' if facts['tokenizer'] else 'no, runs on token ids'}"
    yield f"  chat template    {'yes' if facts['chat_template'] else 'no'}"
    if len({tuple(ids) for ids in facts.get("ends", {}).values()}) > 1:  # the files differ
        ends = (f"{', '.join(map(str, ids))} ({name})" for name, ids in facts["ends"].items())
        yield f"  ends of texts    {', '.join(ends)}: any of them"
    if facts.get("sampling"):
        said = (f"{name} {value:g}" for name, value in facts["sampling"].items())
        yield f"  sampling         {', '.join(said)}, where a request says nothing"
    if facts.get("pooling"):
        yield f"  embeddings       {_pooling(facts['pooling'])}"
    if facts.get("damage"):
        from trilobit.formats.dead_tensors import in_words

        yield f"  looks damaged    {_printable(in_words(facts['damage']), 400)}"
    elif facts["damage"] is None:
        yield "  weights          too many to look at here; `trilobit verify` does"
    yield from _table("bytes by part", facts["bytes_by_part"], facts["size_bytes"])


def _pooling(facts: Mapping[str, Any]) -> str:
    text = {"last": "the last token's state", "mean": "the mean of all states"}[facts["mode"]]
    if facts["end_ids"]:
        text += f", after token {', '.join(map(str, facts['end_ids']))}"
    if facts["prompts"]:
        text += f"; prompts {_printable(', '.join(facts['prompts']))}"
    return text


_ACTIVATIONS = {"relu2": "relu²", "silu": "SiLU", "gelu_pytorch_tanh": "GELU"}
_NORMS = {
    "sub_norms": "sub-norms",
    "qk_norms": "norms of queries and keys",
    "post_norms": "norms of outputs",
}


def _features(model_type: str, config: Mapping[str, Any]) -> Iterator[str]:
    """What tells a family's models from others."""
    yield model_type
    yield _ACTIVATIONS[config["hidden_act"]]
    yield from (text for name, text in _NORMS.items() if config[name])
    if config["projection_norm_eps"] is not None:
        yield "a norm before every projection"
    if config["sliding_window"] is not None:
        sliding = config["layer_types"].count("sliding_attention")
        seen = count(config["sliding_window"], "position")
        yield f"{count(sliding, 'layer')} see{'s' * (sliding == 1)} {seen}"
    if config["rope_scaling"] is not None:
        yield f"{config['rope_scaling']['rope_type']} RoPE"
    yield {
        "tensor": "a scale a matrix",
        "row": "a scale a row",
        "group": "a scale each 128 weights",
    }[config["scales"]]
    if config["ternary_embeddings"]:
        yield "ternary embedding and head"


def _table(title: str, sizes: Mapping[str, int], total: int) -> Iterator[str]:
    yield f"  {title}"
    for name, size_bytes in sizes.items():
        if size_bytes:
            yield f"    {name:<13}{size_bytes:>17,}{100 * size_bytes / total:>8.1f} %"
