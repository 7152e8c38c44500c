"""Hostile files: each is small on disk, and wants much time, much memory or a traceback.

`make(folder)` writes them; `tests/formats/test_hostile_files.py` gives each to the command that
reads it, under limits. Run as a script it writes them into the folder that is named.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "model_type": "bitnet",
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
HUGE = "1" + "0" * 400
# Value, as JSON text, of each field of a config.json.
CONFIGS = {
    "layers": ("num_hidden_layers", "1000000000"),
    "hidden": ("hidden_size", str(1 << 40)),
    "heads": ("num_attention_heads", "0"),
    "long": ("rope_theta", HUGE),
    "long-eps": ("rms_norm_eps", HUGE),
    "long-vocab": ("vocab_size", HUGE),
    "long-ends": ("eos_token_id", f"[{HUGE}]"),
    "yarn": ("rope_scaling", '{"rope_type": "yarn", "factor": ' + HUGE + "}"),
    "hybrid": ("model_type", '"qwen3_5"'),
    "text": ("hidden_size", json.dumps("x" * 100_000)),
    "deep": ("quantization_config", "[" * 90_000 + "]" * 90_000),
}


def _safetensors(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def _key(name: str, kind: int, data: bytes) -> bytes:
    return _text(name) + struct.pack("<I", kind) + data


def _gguf(*changed: tuple[str, int, bytes]) -> bytes:
    """A GGUF header of a small model without tensors but the embedding, some keys otherwise."""
    integers = {"embedding_length": 64, "block_count": 1, "feed_forward_length": 64}
    integers |= {"attention.head_count": 2, "context_length": 64}
    keys = {f"bitnet.{name}": (4, struct.pack("<I", n)) for name, n in integers.items()}
    keys["bitnet.attention.layer_norm_rms_epsilon"] = (6, struct.pack("<f", 1e-5))
    keys["general.architecture"] = (8, _text("bitnet"))
    keys |= {name: (kind, data) for name, kind, data in changed}
    tensor = _text("token_embd.weight") + struct.pack("<IQQIQ", 2, 64, 64, 1, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(keys))
    head += b"".join(_key(name, *value) for name, value in keys.items()) + tensor
    return head + bytes(-len(head) % 32) + bytes(64 * 64 * 2)


def _array(kind: int, code: str, *items: float) -> bytes:
    return struct.pack(f"<IQ{len(items)}{code}", kind, len(items), *items)


_HEADS, _EPS = "bitnet.attention.head_count", "bitnet.attention.layer_norm_rms_epsilon"


def make(folder: Path) -> list[Path]:
    """Write the corpus; the files and folders that are to be opened."""
    files: dict[str, bytes] = {
        "lists.safetensors": _safetensors(b"[" + b"[]," * 16_000_000 + b"[]]"),
        "objects.trilobit": _safetensors(b'{"a":[' + b"{}," * 16_000_000 + b"{}]}"),
        "nested.trilobit": _safetensors(b'{"__metadata__":' + b"[" * 1_000_000),
        "long.trilobit": _safetensors(b'{"a":{"dtype":"U8","shape":[' + HUGE.encode() + b"]}}"),
        "text.txt": b"This is a text file, and no model at all.\n" * 3,
        "empty.trilobit": b"",
        "list-inf.gguf": _gguf((_HEADS, 9, _array(6, "f", float("inf")))),
        "list-nan.gguf": _gguf((_HEADS, 9, _array(12, "d", float("nan")))),
        "negative.gguf": _gguf(("bitnet.embedding_length", 5, struct.pack("<i", -5))),
        "negative-list.gguf": _gguf((_HEADS, 9, _array(5, "i", -5))),
        "layers.gguf": _gguf(("bitnet.block_count", 10, struct.pack("<Q", 1 << 62))),
        "eps.gguf": _gguf((_EPS, 12, struct.pack("<d", 1e300))),
        "theta-zero.gguf": _gguf(("bitnet.rope.freq_base", 6, struct.pack("<f", 0))),
        "theta-inf.gguf": _gguf(("bitnet.rope.freq_base", 6, struct.pack("<f", float("inf")))),
        "hybrid.gguf": _gguf(("general.architecture", 8, _text("qwen35"))),
    }
    paths = []
    for name, data in files.items():
        (folder / name).write_bytes(data)
        paths.append(folder / name)
    for name, (key, value) in CONFIGS.items():
        place = folder / f"config-{name}"
        place.mkdir()
        fields = {**{k: json.dumps(v) for k, v in CONFIG.items()}, key: value}
        text = ", ".join(f'"{k}": {v}' for k, v in fields.items())
        (place / "config.json").write_text("{" + text + "}")
        (place / "model.safetensors").write_bytes(_safetensors(b"{}"))
        paths.append(place)
    place = folder / "index"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(CONFIG))
    (place / "model.safetensors.index.json").write_bytes(b"[" + b"[]," * 16_000_000 + b"[]]")
    (folder / "nothing").mkdir()
    return [*paths, place, folder / "nothing"]


def make_golden(folder: Path) -> list[Path]:
    """Golden values for `verify`."""
    texts = {
        "long": '{"ids": [1, 2], "mean_logits": [' + HUGE + ", 1]}",
        "id": '{"ids": [' + HUGE + "]}",
        "many": json.dumps({"ids": [1] * 100_000}),
        "deep": '{"ids": ' + "[" * 100_000,
        "infinite": '{"ids": [1], "perplexity": 1e999}',
    }
    paths = [folder / f"golden-{name}.json" for name in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        path.write_text(text)
    return paths


if __name__ == "__main__":
    for made in make(Path(sys.argv[1])) + make_golden(Path(sys.argv[1])):
        print(made)
