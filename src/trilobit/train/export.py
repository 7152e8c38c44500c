"""Write a model as a Hugging Face directory in the published BitNet layout.

Two forms. *Online*: the float32 masters, which a reader ternarises at load; training can go
on from it. They stay float32 because bfloat16 masters would round to other codes.
*Offline*: the codes, four rows a byte, with `weight_scale` = mean|W| beside them, as
`microsoft/bitnet-b1.58-2B-4T` is published; a reader multiplies. The codes come straight
from the masters: absmean of an already ternary tensor would shrink its scale.

A model of an architecture that we run is a `Source` (`Trained`), for all writers of `convert`;
`save_packed` writes any model that was swapped, with biases or with layers left in float.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from trilobit.errors import FormatError, RecipeError
from trilobit.formats.hf.config import model_config
from trilobit.formats.hf.generation import GENERATION, sampling_of
from trilobit.formats.hf.pooling import write_pooling
from trilobit.formats.hf.reader import pack_hf, stores_less_one
from trilobit.formats.pooling import Pooling
from trilobit.formats.text_files import TextFiles
from trilobit.formats.whole_directory import new_directory
from trilobit.model.config import ModelConfig
from trilobit.nn import BitLinear, bit_linears
from trilobit.sampling import SamplingParams
from trilobit.text.tokenizer import Tokenizer
from trilobit.train.checkpoint import errno_in


class Trained:
    """A model in memory as the writers read it (`formats/source.py`).

    path: names it in messages, and its last part is its label. pooling: of a model that makes
    vectors of texts.
    Raises UnsupportedModel for an architecture that we do not run.
    """

    float_dtype = "F32"

    def __init__(
        self, model: Any, tokenizer: Any, path: Path, pooling: Pooling | None = None
    ) -> None:
        self._model, self._tokenizer, self._path = model, tokenizer, path
        self._pooling = pooling
        raw = json.loads(model.config.to_json_string(use_diff=False))
        raw["quantization_config"] = _quantisation(model, "offline")
        raw["architectures"] = [type(model).__name__]
        raw["eos_token_id"] = _text_ends(model)
        self._config = model_config(raw, str(path))

    @property
    def path(self) -> Path:
        """For messages."""
        return self._path

    @property
    def label(self) -> str:
        """Where the model came from, for people."""
        return self._path.name

    @property
    def config(self) -> ModelConfig:
        """Its shape."""
        return self._config

    @cached_property
    def text(self) -> TextFiles:
        """Its tokenizer and chat template."""
        data = self._tokenizer.backend_tokenizer.to_str(pretty=True).encode("utf-8")
        bos_id = self._config.bos_token_id
        prefix = Tokenizer(data, str(self._path)).special_prefix()
        return TextFiles(
            tokenizer=data,
            chat_template=self._tokenizer.chat_template,
            add_bos=bos_id is not None and prefix == [bos_id],
            pooling=self._pooling,
            sampling=self._sampling(),
        )

    def _sampling(self) -> SamplingParams:
        """What the model that the run started from says, if anything."""
        said = getattr(self._model, "generation_config", None)
        values = {} if said is None else said.to_dict()
        return sampling_of(values, self._path / GENERATION)

    def projection(self, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Codes `[outputs, inputs]` and the scale that multiplies them, from the masters."""
        layer = self._model.get_submodule(name)
        if not isinstance(layer, BitLinear):
            raise FormatError(f"{self._path}: '{name}' was left in float; save its masters")
        self._array(f"{name}.weight")
        codes, scale = layer.codes()
        return codes.cpu().numpy(), scale.cpu().numpy().reshape(1)

    def gain(self, name: str) -> NDArray[np.float32]:
        """Gain of a norm."""
        gain = self._array(name)
        return np.float32(1) + gain if stores_less_one(self._config, name) else gain

    def table(self, name: str) -> NDArray[np.float32]:
        """Embedding or head `[vocab, hidden]`."""
        return self._array(name)

    def forget(self) -> None:
        """Nothing was read."""

    def _array(self, name: str) -> NDArray[np.float32]:
        array: NDArray[np.float32] = self._model.get_parameter(name).detach().float().cpu().numpy()
        if not np.isfinite(array).all():
            raise FormatError(
                f"{self._path}: '{name}' holds NaN or infinity; go on from an earlier checkpoint"
            )
        return array


def _text_ends(model: Any) -> list[int] | None:
    """Ids that end a text: of the config, and of the model that the run started from."""
    said = getattr(model, "generation_config", None)
    ends: list[int] = []
    for ids in (model.config.eos_token_id, said and said.eos_token_id):
        ends += ids if isinstance(ids, list) else [] if ids is None else [ids]
    return list(dict.fromkeys(ends)) or None


def save_masters(model: Any, tokenizer: Any, folder: Path, pooling: Pooling | None = None) -> None:
    """The model with its float32 masters ("online"), or as it is if nothing is ternary.

    tokenizer: None for a model without one. pooling: of a model that makes vectors of texts.
    """
    model.save_pretrained(folder)
    _share(folder)
    save_tokenizer(tokenizer, folder)
    if pooling is not None:
        write_pooling(folder, pooling, model_config(model.config.to_dict(), str(folder)))
        settings = folder / "tokenizer_config.json"
        values = json.loads(settings.read_text(encoding="utf-8"))
        values["add_eos_token"] = bool(pooling.end_ids)
        settings.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    _complete_config(model, folder, "online")


def save_packed(model: Any, tokenizer: Any, folder: Path) -> None:
    """The model with its codes packed ("offline"). Sign weights pack like ternary ones.

    tokenizer: None for a model without one. The folder appears when all is in it.
    Raises RecipeError when the model has no quantised layers, or one whose rows do not fill
    bytes, OutputError when the folder has something in it already or cannot be written.
    """
    layers = dict(bit_linears(model))
    if not layers:
        raise RecipeError("a model without quantised layers has no packed form; export masters")
    state: dict[str, Tensor] = {}
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    for name, tensor in model.state_dict().items():
        if name in tied and model.config.tie_word_embeddings:
            continue
        layer, _, kind = name.rpartition(".")
        if layer not in layers:
            state[name] = tensor.detach().contiguous()
            continue
        codes, scale = layers[layer].codes()
        if kind == "weight":
            state[name] = pack_published(codes)
            state[f"{name}_scale"] = scale.reshape(1)
        else:  # a bias, which transformers adds before it multiplies by the scale
            state[name] = tensor.detach() / scale
    # Config and generation config by transformers, the weights by us: packed tensors have
    # other shapes and types than the model's parameters.
    with new_directory(folder) as partial:
        model.config.save_pretrained(partial)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(partial)
        save_tokenizer(tokenizer, partial)
        _complete_config(model, partial, "offline")
        save_file(state, partial / "model.safetensors", metadata={"format": "pt"})
        _share(partial)


def pack_published(codes: Tensor) -> Tensor:
    """Codes `[O, I]` as published: uint8 `[O/4, I]`; RecipeError where O is no multiple of 4."""
    rows = codes.shape[0]
    if rows % 4:
        raise RecipeError(f"a weight has {rows} rows; the packed form needs a multiple of 4")
    return torch.from_numpy(pack_hf(codes.cpu().numpy()))


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """The tokenizer's files, with its chat template; nothing for None."""
    if tokenizer is None:
        return
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        # tokenizers tells of a full disk by an exception of no kind.
        if type(error) is not Exception:
            raise
        raise OSError(errno_in(str(error)), str(error)) from error


def _share(folder: Path) -> None:
    """safetensors lets nobody else read its files, whatever the umask; these are as the config."""
    mode = (folder / "config.json").stat().st_mode & 0o777
    for path in folder.glob("*.safetensors"):
        path.chmod(mode)


def _complete_config(model: Any, folder: Path, mode: str) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["use_cache"] = True  # the Trainer turns it off, but whoever generates wants it
    if mode == "online" and (variant := _variant(model)):
        config["model_type"] += f"_{variant}"
    if quantisation := _quantisation(model, mode):
        config["quantization_config"] = quantisation
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _variant(model: Any) -> str | None:
    """What of a model with masters no reader does; None: it is as published.

    Readers know one way from masters to codes, absmean, and one from inputs to codes, absmax.
    """
    layers = [module for _, module in bit_linears(model)]
    activations = {module.activations for module in layers}
    told = ["sign"] if any(module.weights == "sign" for module in layers) else []
    told += ["hadamard"] if any(module.hadamard for module in layers) else []
    if "larger half" in activations:
        told.append("a4.8")
    elif "int4" in activations:
        told.append("int4")
    return "_".join(told) or None


def _quantisation(model: Any, mode: str) -> dict[str, object]:
    """How to read the weights, in the words of stock transformers; empty for a float model."""
    layers = [module for _, module in bit_linears(model)]
    if not layers:
        return {}
    variant = _variant(model) if mode == "online" else None
    quantisation: dict[str, object] = {
        # Of a method that it does not know stock transformers warns, and computes with the masters
        # as they are; where there is none it refuses, whatever class is asked to load them.
        **({"variant": variant} if variant else {"quant_method": "bitnet"}),
        "linear_class": "autobitlinear",
        "quantization_mode": mode,
    }
    norms = {module.rms_norm.eps for module in layers if module.rms_norm is not None}
    if norms:
        quantisation |= {"use_rms_norm": True, "rms_norm_eps": norms.pop()}
    floats = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    head = model.get_output_embeddings()
    if any(module is not head for module in floats.values()):
        # The head stays float by itself, but not if others are named.
        quantisation["modules_to_not_convert"] = list(floats)
    return quantisation
