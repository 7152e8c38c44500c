"""A Hugging Face checkpoint that a run starts from: shape, float weights or masters, tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from trilobit.errors import FormatError, RecipeError
from trilobit.formats.dtypes import FLOATS
from trilobit.formats.files import read_json
from trilobit.formats.hf.config import is_one_bit, model_config
from trilobit.formats.hf.generation import saved_values
from trilobit.formats.hf.quantization import quantization_form
from trilobit.formats.hf.text import read_text_files, with_roles
from trilobit.formats.run_folder import is_run
from trilobit.formats.safetensors import Checkpoint
from trilobit.formats.text_files import TextFiles
from trilobit.nn import swap_linears
from trilobit.train.data.tokens import GivenTokenizer


class Start:
    """What can be known of a checkpoint without reading its tensors, one file or shards.

    Raises FormatError for a damaged one, UnsupportedModel for an architecture that we do not run,
    RecipeError for one that holds no floats to train, or no tokenizer.
    template: of its chats, where it has none of its own. what: the recipe's name for it.
    """

    def __init__(self, folder: Path, template: str | None = None, what: str = "start") -> None:
        self.folder, self._what = folder, what
        where = folder / "config.json"
        if not folder.is_dir():
            found = "a file" if folder.exists() else "no folder here"
            raise RecipeError(
                f"{folder}: {what} is {found}; give the folder of a checkpoint with float weights "
                "(of a run of ours: its model/)"
            )
        if is_run(folder):
            raise RecipeError(
                f"{folder}: {what} is the folder of a training run; give its masters, "
                f"{folder / 'model'}"
            )
        raw = read_json(where)
        self.config = model_config(raw, str(where))
        if is_one_bit(raw):
            raise RecipeError(
                f"{folder}: {what} is a checkpoint of 1bitLLM's own code, which transformers does "
                "not load; give one that it does"
            )
        form = quantization_form(raw, self.config, where)
        self._masters = form == "masters"
        if form not in (None, "masters"):
            raise RecipeError(
                f"{folder}: {what} holds packed codes only, and training needs float masters; give "
                "the checkpoint that has them (of a run of ours: its model/, not its packed/)"
            )
        self._tensors = Checkpoint(folder)
        self._take_text(read_text_files(folder, self.config), template)

    def _take_text(self, text: TextFiles, template: str | None) -> None:
        folder, what = self.folder, self._what
        self._text = text
        if self._text.tokenizer is None:
            raise RecipeError(f"{folder}: {what} has no tokenizer; put its tokenizer.json there")
        eos_ids = [i for i in self.config.eos_token_ids if i < self.config.vocab_size]
        bos_id = self.config.bos_token_id if self._text.add_bos else None
        if bos_id is None and not eos_ids:
            raise RecipeError(
                f"{folder}: {what} names no token that ends a text; set eos_token_id in config.json"
            )
        self.tokenizer = GivenTokenizer(
            data=self._text.tokenizer, bos_id=bos_id, eos_id=eos_ids[0] if eos_ids else None
        )
        self.chat_template = self._text.chat_template or template

    def check_rows(self, weights: str) -> None:
        """RecipeError for a shape that the packed form has no room for."""
        shape = self.config
        sizes = (shape.query_size, shape.kv_size, shape.hidden_size, shape.intermediate_size)
        if weights != "float" and any(size % 4 for size in sizes):
            raise RecipeError(
                f"{self.folder}: {self._what} has matrices of {', '.join(map(str, sizes))} rows, "
                "and the packed form needs multiples of 4; train float weights, or take another"
            )

    def model(self, weights: str, *, sub_norms: bool = False, hadamard: bool = False) -> Any:
        """The model with its float32 weights, its linears as `weights` says.

        weights: "as it is" makes them ternary where they are masters.
        sub_norms: begin each with a norm, new where it has none. hadamard: as of `swap_linears`.
        """
        if weights == "as it is":
            weights = "ternary" if self._masters else "float"
        build: Any = AutoModelForCausalLM.from_config
        try:
            config = AutoConfig.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=False
            )
            # It says how to read the weights, and they are read here.
            if hasattr(config, "quantization_config"):
                del config.quantization_config
            model = build(config, dtype=torch.float32)
            model.generation_config = self._generation_config()
        except Exception as error:  # of any kind: what we read may still be too little for it
            reason = " ".join(str(error).split())[:200]
            raise RecipeError(
                f"{self.folder}: transformers cannot make the model of {self._what} ({reason}); "
                "mend its config.json"
            ) from error
        norm_eps = self.config.projection_norm_eps
        if sub_norms and norm_eps is None and not self.config.sub_norms:
            norm_eps = self.config.rms_norm_eps
        if weights != "float":
            swap_linears(
                model,
                rms_norm_eps=norm_eps,
                weights="sign" if weights == "sign" else "absmean",
                hadamard=hadamard,
            )
        self._load_into(model)
        return model

    def _generation_config(self) -> Any:
        """What ends a text, by all files, and what the makers say of how tokens are chosen."""
        roles = with_roles(self.config, self.folder)
        build: Any = GenerationConfig
        return build(
            bos_token_id=roles.bos_token_id,
            eos_token_id=list(roles.eos_token_ids) or None,
            **saved_values(self._text.sampling),
        )

    def hugging_face_tokenizer(self) -> Any:
        """The tokenizer, for saving beside the model."""
        import tokenizers

        inner = tokenizers.Tokenizer.from_str(self.tokenizer.data.decode("utf-8"))
        ids = {"bos_token": self.config.bos_token_id, "eos_token": self.tokenizer.eos_id}
        tokens = {name: inner.id_to_token(i) for name, i in ids.items() if i is not None}
        tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
            tokenizer_object=inner,
            model_max_length=self.config.max_position_embeddings,
            clean_up_tokenization_spaces=False,
            **{name: token for name, token in tokens.items() if token is not None},
        )
        if self.chat_template is not None:
            tokenizer.chat_template = self.chat_template
        return tokenizer

    def _load_into(self, model: Any) -> None:
        state = model.state_dict()
        head = "lm_head.weight"
        if self.config.tie_word_embeddings and head not in self._tensors:
            state.pop(head, None)
        if self.config.projection_norm_eps is None:  # new ones begin at 1
            state = {name: p for name, p in state.items() if ".rms_norm." not in name}
        foreign = [n for n in self._tensors if n not in state and "rotary_emb" not in n]
        if foreign:
            raise RecipeError(
                f"{self.folder}: {self._what}'s tensor {foreign[0][:80]!r} is not part of the model"
            )
        with torch.no_grad():
            for name, parameter in state.items():
                file = self._tensors.file(name)
                info = file.info(name)
                if info.dtype not in FLOATS or info.shape != tuple(parameter.shape):
                    raise FormatError(
                        f"{file.path}: tensor '{name}' is {info.dtype} {list(info.shape)}; the "
                        f"config asks for floats {list(parameter.shape)}"
                    )
                parameter.copy_(torch.tensor(file.float32(name)))
                if not torch.isfinite(parameter).all():
                    raise FormatError(
                        f"{file.path}: '{name}' holds NaN or infinity; fetch it again"
                    )
        self._tensors.forget()
