"""What a training run is: one frozen recipe, read from a TOML or YAML file.

A recipe is complete. Two runs of the same recipe and data, on the same machine, give the
same model; the file is written next to the checkpoints so that a resumed run can tell
whether it is still the same run.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trilobit.errors import RecipeError

Weights = Literal["ternary", "sign", "float"]
Decay = Literal["linear", "cosine"]
Precision = Literal["float32", "bf16"]


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
            if not (math.isfinite(value) and value > 0):
                raise RecipeError(f"model.{f.name} is {value}; it must be above 0")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """The text, how it is cut, and what is held out.

    files: .txt (one document) or .jsonl (a document a line, in `text`), plain or .xz;
        relative to the recipe's folder.
    source: if given, only the lines of a .jsonl whose `source` is this.
    held_out_every: of each file, line n is held out where n is a multiple of this; of a
        .txt file, whose lines are no documents, paragraph blocks of 4,000 characters count.
    window: tokens in a training window.
    """

    files: tuple[str, ...]
    source: str | None = None
    held_out_every: int = 50
    vocab_size: int = 2048
    window: int = 256

    def __post_init__(self) -> None:
        if not self.files:
            raise RecipeError("data.files is empty; name at least one text file")
        if self.held_out_every < 2:
            raise RecipeError(f"data.held_out_every is {self.held_out_every}; at least 2")
        if self.vocab_size < 260:
            raise RecipeError(
                f"data.vocab_size is {self.vocab_size}; 256 bytes and the special tokens need 260"
            )
        if self.window < 2:
            raise RecipeError(f"data.window is {self.window}; at least 2")
        if self.vocab_size > 65536:
            raise RecipeError(f"data.vocab_size is {self.vocab_size}; at most 65536")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Two stages, each from one learning rate to another, and weight decay in the first only.

    Source: "The Era of 1-bit LLMs: Training Tips, Code and FAQ" and the 2B4T report.
    batch_windows: windows of one step, over all processes.
    accumulate_steps: parts in which a process computes its windows, to save memory.
    stage_1, stage_2: learning rate at the start and at the end of each half.
    """

    steps: int
    batch_windows: int = 8
    accumulate_steps: int = 1
    warmup_steps: int = 100
    stage_1: tuple[float, float] = (1.5e-3, 1.0e-3)
    stage_2: tuple[float, float] = (6.0e-4, 0.0)
    decay: Decay = "linear"
    weight_decay: float = 0.1
    quantisation_warmup_steps: int = 0
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_windows, self.accumulate_steps) < 1:
            raise RecipeError(
                "schedule.steps, batch_windows and accumulate_steps must be at least 1"
            )
        if self.batch_windows % self.accumulate_steps:
            raise RecipeError(
                f"schedule.batch_windows {self.batch_windows} is not a multiple of "
                f"accumulate_steps {self.accumulate_steps}"
            )
        if min(self.warmup_steps, self.quantisation_warmup_steps) < 0:
            raise RecipeError("schedule.warmup_steps and quantisation_warmup_steps must be >= 0")
        if self.quantisation_warmup_steps >= self.steps:
            raise RecipeError(
                f"schedule.quantisation_warmup_steps is {self.quantisation_warmup_steps}; it must "
                f"be less than the {self.steps} steps, or the model never trains as it will run"
            )
        for name, (start, end) in (("stage_1", self.stage_1), ("stage_2", self.stage_2)):
            if not (math.isfinite(start) and math.isfinite(end) and start > 0 and end >= 0):
                raise RecipeError(f"schedule.{name} is {start}, {end}; learning rates above 0")
        for name in ("weight_decay", "max_grad_norm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise RecipeError(f"schedule.{name} is {value}; it must be 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A whole pre-training run.

    weights: "float" makes a baseline of the same size.
    precision: of the products; "bf16" is for GPUs. Masters and roundings stay float32.
    """

    name: str
    model: Shape
    data: Data
    schedule: Schedule
    weights: Weights = "ternary"
    precision: Precision = "float32"
    seed: int = 0
    log_every: int = 10
    evaluate_every: int = 250
    save_every: int = 250
    folder: Path = field(default_factory=Path)

    def __post_init__(self) -> None:
        if not self.name[:1].isalnum() or not all(c.isalnum() or c in "-_." for c in self.name):
            raise RecipeError(
                f"name is '{self.name}'; a letter or digit, then letters, digits, '-', '_' and '.'"
            )
        if not 0 <= self.seed < 2**32:
            raise RecipeError(f"seed is {self.seed}; it must be from 0 to 4294967295")
        if min(self.log_every, self.evaluate_every, self.save_every) < 1:
            raise RecipeError("log_every, evaluate_every and save_every must be at least 1")
        if self.data.window > self.model.max_position_embeddings:
            raise RecipeError(
                f"data.window is {self.data.window}, longer than the model's context: "
                f"model.max_position_embeddings is {self.model.max_position_embeddings}"
            )

    def data_files(self) -> list[Path]:
        """The text files, resolved against the recipe's folder."""
        return [self.folder / name for name in self.data.files]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, without the folder: what the run is, not where it lies."""
        values = dataclasses.asdict(self)
        del values["folder"]
        return values

    @classmethod
    def from_dict(cls, values: object, folder: Path = Path()) -> Recipe:
        """The recipe of plain values, each checked. Inverse of `as_dict`.

        Raises RecipeError for a key or a value that is not understood.
        """
        recipe: Recipe = _build(cls, values, "")
        return dataclasses.replace(recipe, folder=folder)


def load_recipe(path: Path) -> Recipe:
    """Read a recipe from a .toml, .yaml or .yml file.

    Raises RecipeError when the file is missing, does not parse, or holds a key or a value
    that is not understood.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: cannot read the recipe ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: the recipe is not UTF-8 text") from error
    try:
        return Recipe.from_dict(_parse(path, text), path.parent)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None


def _parse(path: Path, text: str) -> dict[str, Any]:
    if path.suffix == ".toml":
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"is not TOML: {error}") from error
    if path.suffix in (".yaml", ".yml"):
        import yaml  # type: ignore[import-untyped]

        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict):
            raise RecipeError("holds no keys; see docs/train.md for a recipe")
        return values
    raise RecipeError("a recipe's name ends in .toml, .yaml or .yml")


def _build(kind: Any, values: object, where: str) -> Any:
    """A dataclass from plain values; every key and type checked against its fields."""
    if not isinstance(values, dict):
        raise RecipeError(f"'{where}' must be a table of keys")
    hints = typing.get_type_hints(kind)
    # The folder is where the file was found, and no key.
    fields = {f.name: f for f in dataclasses.fields(kind) if f.name != "folder"}
    prefix = f"{where}." if where else ""
    for key in values:
        if key not in fields:
            raise RecipeError(f"unknown key '{prefix}{key}'; known here: {', '.join(fields)}")
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise RecipeError(f"key '{prefix}{name}' is missing")
    return kind(**{key: _checked(hints[key], value, prefix + key) for key, value in values.items()})


_TYPES = {int: "a whole number", float: "a number", str: "a text"}


def _checked(hint: Any, value: object, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in options:
            raise RecipeError(f"'{where}' is {value!r}; one of {', '.join(map(str, options))}")
        return value
    if origin is tuple:
        size = None if options[-1] is Ellipsis else len(options)
        if not isinstance(value, list | tuple) or (size and len(value) != size):
            raise RecipeError(f"'{where}' must be a list{f' of {size} values' if size else ''}")
        return tuple(_checked(options[0], item, where) for item in value)
    if origin is types.UnionType:
        return None if value is None else _checked(options[0], value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or isinstance(value, bool):
        # YAML takes 1e-3 for a text.
        point = " (1e-3 needs a point in YAML: 1.0e-3)" if hint is float else ""
        raise RecipeError(f"'{where}' is {value!r}; it must be {_TYPES[hint]}{point}")
    return value
