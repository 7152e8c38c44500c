"""A table of the models that have a name: what they are for, and what they need."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trilobit.cli.units import size

if TYPE_CHECKING:
    from trilobit.model.config import ModelConfig

HEADER = ("NAME", "SIZE", "RAM", "CONTEXT", "KIND", "LANGUAGES", "LICENCE", "SOURCE")

_CONTEXT = 2048  # tokens of the conversation that RAM is told for
_PYTHON_MB = 60  # of the interpreter, numpy and the tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A model with a name. None is what is not known.

    size_bytes: of the packed file, without its tokenizer. ram_bytes: what running it takes, about,
    with 2,048 tokens of context.
    """

    name: str
    source: str
    size_bytes: int | None
    ram_bytes: int | None
    context: int | None
    kind: str | None
    languages: str | None
    licence: str | None

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)

    def row(self) -> tuple[str, ...]:
        """For people, in the order of HEADER."""
        sizes = (size(count) if count else "?" for count in (self.size_bytes, self.ram_bytes))
        context = f"{self.context:,}" if self.context else "?"
        words = (word or "?" for word in (self.kind, self.languages, self.licence))
        return (self.name, *sizes, context, *words, self.source)


def named_models() -> Iterator[Named]:
    """The bundled models, then those with a short name."""
    from trilobit.bundled import bundled_models
    from trilobit.hub.catalogue import CATALOGUE
    from trilobit.hub.names import ALIASES
    from trilobit.model import shapes

    for name, path in bundled_models().items():
        yield _bundled(name, path)
    for name, source in ALIASES.items():
        facts = CATALOGUE[name]
        config = shapes.shape(facts.shape) if facts.shape else None
        yield Named(
            name=name,
            source=source,
            size_bytes=_parts(config)[0] if config else None,
            ram_bytes=_ram(config, facts.kind == "embedding") if config else None,
            context=facts.context,
            kind=facts.kind,
            languages=facts.languages,
            licence=facts.licence,
        )


def _bundled(name: str, path: Path) -> Named:
    from trilobit.bundled import ARABIC
    from trilobit.formats.packed.reader import PackedModel

    model = PackedModel(path)
    config = model.config
    return Named(
        name=name,
        source="comes with the package",
        size_bytes=path.stat().st_size,
        ram_bytes=_ram(config, embeds=False),
        context=config.max_position_embeddings,
        kind="base" if model.text.chat_template is None else "chat",
        languages="Arabic" if name == ARABIC else "English",
        licence="MIT",
    )


def _parts(config: ModelConfig) -> tuple[int, int]:
    """Bytes of a packed file, and of what every token reads of it."""
    from trilobit.formats.dtypes import DTYPES
    from trilobit.formats.packed.form import declare
    from trilobit.formats.text_files import TextFiles
    from trilobit.model import tensor_names

    sizes = {
        name: DTYPES[dtype].itemsize * math.prod(dims)
        for name, dtype, dims in declare(config, "BF16", TextFiles())
    }
    # Of the tables, rows; of a ternary head, which has no screen, all.
    tables = sum(sizes.get(name, 0) for name in (tensor_names.EMBEDDING, tensor_names.HEAD))
    if config.ternary_embeddings:
        tables = 0 if config.tie_word_embeddings else sizes[tensor_names.EMBEDDING]
    whole = sum(sizes.values())
    return whole, whole - tables


def _ram(config: ModelConfig, embeds: bool) -> int:
    from trilobit.engine.blocks import BLOCK, block_bytes

    tokens = 0 if embeds else min(_CONTEXT, config.max_position_embeddings)
    return _parts(config)[1] + tokens * block_bytes(config, "f16") // BLOCK + _PYTHON_MB * 1_000_000
