"""Learn to continue text, from nothing or from a checkpoint: `kind = "pretrain"`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from trilobit.errors import FormatError, RecipeError
from trilobit.model.config import ModelConfig
from trilobit.train.recipes.base import Activations, Files, Recipe, check_names
from trilobit.train.recipes.mixture import Ingredient, check_keys_of_records, check_mixture
from trilobit.train.recipes.plain import check_range, shown

MAX_VOCABULARY = 1 << 20
_LARGEST = 1 << 62  # far beyond every limit of ModelConfig, and short to spell


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The decoder's shape, in the words of a Hugging Face config."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int = 1024
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if not 0 < value < _LARGEST:
                remedy = "far less" if value > 0 else "above 0"
                raise RecipeError(f"model.{f.name} is {shown(value)}; it must be {remedy}")
        if self.hidden_size % self.num_attention_heads:
            raise RecipeError(
                f"model.hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if (self.hidden_size // self.num_attention_heads) % 2:
            raise RecipeError("hidden_size / num_attention_heads must be even, for RoPE")
        if self.num_attention_heads % self.num_key_value_heads:
            raise RecipeError(
                f"model.num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.hidden_size % 4 or self.intermediate_size % 4:
            # The published packed form holds four rows a byte.
            raise RecipeError("model.hidden_size and intermediate_size must be multiples of 4")
        check_range("model.initializer_range", self.initializer_range, 1e-12, 1e6)
        # What the engine cannot run must not be found out after days of training.
        config = self.config(vocab_size=1)
        if config.kv_size % 4:
            raise RecipeError(
                f"model.num_key_value_heads {self.num_key_value_heads} of {config.head_dim} make "
                f"{config.kv_size} rows; the packed form needs a multiple of 4"
            )

    def config(self, vocab_size: int) -> ModelConfig:
        """As the engine will run it; RecipeError for what it does not."""
        try:
            return ModelConfig(
                vocab_size=vocab_size,
                hidden_size=self.hidden_size,
                intermediate_size=self.intermediate_size,
                num_hidden_layers=self.num_hidden_layers,
                num_attention_heads=self.num_attention_heads,
                num_key_value_heads=self.num_key_value_heads,
                head_dim=self.hidden_size // self.num_attention_heads,
                max_position_embeddings=self.max_position_embeddings,
                rms_norm_eps=self.rms_norm_eps,
                rope_theta=self.rope_theta,
                tie_word_embeddings=True,
            )
        except FormatError as error:
            raise RecipeError(f"model.{str(error).removeprefix('config: ')}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Data(Files):
    """The text, how it is cut, and what is held out.

    files: .txt (one document) or .jsonl (a document a line), plain or .xz, .parquet, or a folder
        that `datasets` saved.
    mixture: instead of files: several texts, each with its share of the tokens.
    held_out_every: of a .txt file, whose lines are no documents, paragraph blocks of 4,000
        characters count.
    source: if given, only the lines of a .jsonl, or rows, whose `source` is this.
    column: the key of the text in a line or row.
    document_mask: let no token attend to another document, and count positions from each one's
        beginning.
    short_window: if given, windows are cut into windows of this length in stage 1 of the
        schedule: attention costs less there, and the long range is learned last.
    replace_tokens: share of the tokens that a model in training is given, but not of those that it
        is to predict, which are others, drawn from all: little text lasts for more passes.
    """

    files: tuple[str, ...] = ()
    mixture: tuple[Ingredient, ...] = ()
    source: str | None = None
    column: str = "text"
    vocab_size: int = 2048
    short_window: int | None = None
    replace_tokens: float = 0.0
    document_mask: bool = False

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is another class than its methods were made in.
        Files.__post_init__(self)
        for text in self.ingredients:
            check_keys_of_records(text)
        if self.vocab_size < 260:
            raise RecipeError(
                f"data.vocab_size is {shown(self.vocab_size)}; 256 bytes and the special tokens "
                "need 260"
            )
        if self.vocab_size > MAX_VOCABULARY:
            raise RecipeError(
                f"data.vocab_size is {shown(self.vocab_size)}; at most {MAX_VOCABULARY}"
            )
        if self.short_window is not None:
            check_range("data.short_window", self.short_window, 2, self.window)
            if self.window % self.short_window:
                raise RecipeError(
                    f"data.short_window is {self.short_window}, which does not divide data.window, "
                    f"{self.window}"
                )
        if not 0 <= self.replace_tokens < 1:
            raise RecipeError(
                f"data.replace_tokens is {self.replace_tokens}; it must be from 0 to below 1"
            )

    def _check_names(self) -> None:
        if not self.mixture:
            if not self.files:
                raise RecipeError(
                    "data.files is empty; name at least one text file, or give [[data.mixture]]"
                )
            check_names("data", self.files, self.validation)
            return
        for key, empty in (("files", ()), ("validation", None), ("source", None)):
            if getattr(self, key) != empty:
                raise RecipeError(
                    f"data.{key} and data.mixture are both given; give each text of the mixture "
                    "its own, or leave the mixture out"
                )
        if self.column != "text":
            raise RecipeError("data.column has no place beside a mixture, whose parts have theirs")
        check_mixture(self.mixture)
        if known := set(self.validations) & set(self.trained_on):
            raise RecipeError(
                f"data.mixture: {shown(min(known))} is trained on and held out; a model knows the "
                "text that it was trained on"
            )

    @property
    def ingredients(self) -> tuple[Ingredient, ...]:
        """What the text is made of: a mixture's parts, or all files as one without a name."""
        if self.mixture:
            return self.mixture
        return (
            Ingredient(
                name="",
                files=self.files,
                weight=1.0,
                validation=self.validation,
                source=self.source,
                column=self.column,
            ),
        )

    @property
    def trained_on(self) -> tuple[str, ...]:
        """Names of all files that are learned from."""
        return tuple(name for part in self.ingredients for name in part.files)

    @property
    def validations(self) -> tuple[str, ...]:
        """Names of all files that are held out."""
        return tuple(p.validation for p in self.ingredients if p.validation is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrain(Recipe):
    """A whole pre-training run: from a random model of `model`'s shape, or from `start`.

    z_loss: share of log² Z that is added to the loss of a token, where Z sums the exponentials of
        its logits, so that they do not drift (PaLM, arXiv 2204.02311, section 5, with 1e-4).
    compile: let torch.compile make one of the small operations of a layer. It takes half a minute
        of a core, and rounds otherwise than without.
    activations: "int4" are 4 bits everywhere, "a4.8" 4 bits but for what lies within attention
        and feed-forward; both in the last steps only, schedule.low_bit_steps.
    hadamard: turn what is given to output and down projections, from the first step on: BitNet v2.
    dropout: share of what attention and feed-forward add to a token that is left out in training.
    """

    kind: ClassVar[str] = "pretrain"
    may_change: ClassVar[tuple[str, ...]] = (*Recipe.may_change, "compile")

    data: Data
    model: Shape | None = None
    z_loss: float = 0.0
    compile: bool = False
    activations: Activations = "int8"
    hadamard: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        Recipe.__post_init__(self)
        if (self.model is None) == (self.start is None):
            both = "is missing" if self.model is None else "and 'start' are both given"
            raise RecipeError(
                f"key 'model' {both}; give either [model] or start, the folder of a checkpoint"
            )
        check_range("z_loss", self.z_loss, 0, 1)
        if not 0 <= self.dropout < 1:
            raise RecipeError(f"dropout is {self.dropout}; it must be from 0 to below 1")
        self._check_layers()
        if self.model is not None and self.data.window > self.model.max_position_embeddings:
            raise RecipeError(
                f"data.window is {self.data.window}, longer than the model's context: "
                f"model.max_position_embeddings is {self.model.max_position_embeddings}"
            )

    def _check_layers(self) -> None:
        if self.adapter is not None:
            for key in ("compile", "hadamard", "dropout"):
                if getattr(self, key):
                    raise RecipeError(f"{key} has no place beside an adapter; leave it out")
            if self.activations != "int8":
                raise RecipeError("activations has no place beside an adapter; leave it out")
        if self.weights == "float" and (self.activations != "int8" or self.hadamard):
            raise RecipeError(
                "weights is 'float', whose layers round nothing; leave activations and hadamard out"
            )
        if self.activations == "a4.8" and self.hadamard:
            raise RecipeError(
                "activations is 'a4.8', which takes the larger half of what hadamard would spread "
                "over all; leave hadamard out, or take 'int4'"
            )

    @property
    def engine_lacks(self) -> str | None:
        """Of a4.8 and v2."""
        told = [f"activations = '{self.activations}'"] if self.activations != "int8" else []
        told += ["hadamard = true"] if self.hadamard else []
        return " and ".join(told) or None

    def activations_at(self, step: int) -> Activations:
        """int8 at first."""
        return "int8" if step < self.schedule.int8_steps else self.activations
