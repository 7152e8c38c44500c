"""The model that an adapter is trained on: in any form, frozen, with the codes that will run."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from trilobit.errors import RecipeError
from trilobit.formats.adapter import base_digest
from trilobit.formats.dtypes import as_float32
from trilobit.formats.hf.config import to_hf
from trilobit.formats.hf.reader import stores_less_one
from trilobit.formats.open import open_source
from trilobit.model import tensor_names
from trilobit.nn import swap_linears
from trilobit.train.start import Start


class Base(Start):
    """A `Start` that does not learn: a checkpoint with masters or codes, a packed or a GGUF file.

    Raises FormatError for a damaged one, UnsupportedModel for one that we do not run, RecipeError
    for one that has no tokenizer, or that a layer of torch cannot be.
    """

    def __init__(self, path: Path, template: str | None = None) -> None:
        self.folder, self._what = path, "start"
        self._source = source = open_source(path)
        self.config = source.config
        if self.config.scales != "tensor":
            raise RecipeError(
                f"{path}: start has a scale for each {self.config.scales} of its matrices, and an "
                "adapter is trained on matrices that have one; take another model"
            )
        if self.config.projection_norm_eps is not None:
            raise RecipeError(
                f"{path}: start's matrices begin with norms of their own, before which peft would "
                "add an adapter, and behind which it belongs; take another model"
            )
        self._take_text(source.text, template)

    @cached_property
    def digest(self) -> str:
        """What tells it from other models: see `formats.adapter.base_digest`."""
        return base_digest(self.config, self._source.gain)

    def check_rows(self, weights: str) -> None:
        """Nothing of it is packed anew."""

    def model(self, weights: str, *, sub_norms: bool = False, hadamard: bool = False) -> Any:
        """The model as it runs, in float32, without gradients."""
        values = to_hf(self.config)
        build: Any = AutoModelForCausalLM.from_config
        model = build(AutoConfig.for_model(values.pop("model_type"), **values), dtype=torch.float32)
        swap_linears(model, weights="fixed")
        source = self._source
        for name, _ in tensor_names.all_projections(self.config):
            codes, scale = source.projection(name)
            self._fill(model, f"{name}.weight", codes * scale)
        for name, _ in tensor_names.all_norms(self.config):
            gain = source.gain(name)
            less = np.float32(stores_less_one(self.config, name))
            self._fill(model, name, gain - less)
        for name in tensor_names.tables(self.config):
            self._fill(model, name, as_float32(source.table(name)[:], source.float_dtype))
        return model.requires_grad_(False)

    def _fill(self, model: Any, name: str, values: Any) -> None:
        with torch.no_grad():
            model.get_parameter(name).copy_(torch.from_numpy(np.array(values, dtype=np.float32)))
        self._source.forget()
