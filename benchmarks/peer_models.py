"""One random model of a shape in the form of every engine, each written when it is first wanted.

All have the same weights: a packed Hugging Face checkpoint comes first, and the others are made of
it. llama.cpp runs the shape as its `bitnet`, which has SiLU where 2B-4T has relu²: other answers,
the same work. Its other types are made by its own quantiser from F16.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cli
import gguf
import numpy as np

from trilobit.conversion import convert
from trilobit.formats.dtypes import as_float32
from trilobit.formats.gguf.names import gguf_name
from trilobit.formats.open import open_source
from trilobit.formats.packed.form import VERSION
from trilobit.formats.source import Source
from trilobit.model import shapes, tensor_names
from trilobit.model.packing import Layout
from trilobit.synth import synth

Quantise = Callable[[Path, Path, str], None]  # from, to, llama.cpp's name of the type


class PeerModels:
    """Files of one shape in one folder. `quantise` is asked for what llama.cpp makes itself."""

    def __init__(
        self, shape: str, gate_density: float, folder: Path, layout: Layout, quantise: Quantise
    ) -> None:
        self.shape, self.gate_density = shape, gate_density
        self.folder, self.layout, self.quantise = folder, layout, quantise
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, form: str) -> Path:
        """Where the form lies; it is made if it does not. "hf", "packed", or a type of GGUF."""
        # The version: a folder that is kept must not hide that the format has moved on.
        ours = f"-{self.layout}-v{VERSION}.trilobit"
        ending = {"hf": "-hf", "packed": ours}.get(form, f"-{form}.gguf")
        path = self.folder / f"{self.shape}-gates-{self.gate_density:g}{ending}"
        if path.exists():
            return path
        part = path.with_name(f"{path.stem}-part{path.suffix}")
        if form == "hf":
            synth(shapes.shape(self.shape), part, gate_density=self.gate_density)
        elif form == "packed":
            convert(self.path("hf"), part, "packed", layout=self.layout)
        elif form == "F16":
            write_f16(open_source(self.path("hf")), part)
        else:
            self.quantise(self.path("F16"), part, form)
        part.rename(path)
        print(f"written: {path}", file=sys.stderr)
        return path

    def size_mb(self, form: str) -> int:
        """Of all that the engine needs on the disk."""
        path = self.path(form)
        files = path.iterdir() if path.is_dir() else [path]
        return round(sum(file.stat().st_size for file in files) / 1e6)


def write_f16(source: Source, out: Path) -> None:
    """The model as llama.cpp's `bitnet`, every matrix as float16, without a tokenizer."""
    config = replace(source.config, hidden_act="silu")
    file = gguf.GGUFWriter(out, "bitnet")
    file.add_vocab_size(config.vocab_size)
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_block_count(config.num_hidden_layers)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_rope_dimension_count(config.head_dim)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_rope_freq_base(config.rope_theta)
    file.add_tokenizer_model("no_vocab")
    file.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    table = tensor_names.float_tables(config)[0]  # shapes that tie their head
    half, single = np.dtype(np.float16), np.dtype(np.float32)
    sizes = [(table, (config.vocab_size, config.hidden_size), half)]
    sizes += [(name, (length,), single) for name, length in tensor_names.all_norms(config)]
    sizes += [(name, shape, half) for name, shape in tensor_names.all_projections(config)]
    for name, shape, dtype in sizes:
        stored = gguf_name(name if name.endswith(".weight") else f"{name}.weight", config)
        file.add_tensor_info(stored, shape, dtype, int(np.prod(shape)) * dtype.itemsize)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_ti_data_to_file()
    file.write_tensor_data(
        as_float32(source.table(table)[:], source.float_dtype).astype(np.float16)
    )
    for name, _ in tensor_names.all_norms(config):
        file.write_tensor_data(np.asarray(source.gain(name), dtype=np.float32))
    for name, _ in tensor_names.all_projections(config):
        codes, scales = source.projection(name)
        weights = codes.astype(np.float16)
        weights *= scales.astype(np.float16)[:, None] if len(scales) > 1 else np.float16(scales[0])
        file.write_tensor_data(weights)
    file.close()


if __name__ == "__main__":
    cli.part_of("peers.py")
