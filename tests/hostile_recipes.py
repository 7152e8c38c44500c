"""Recipes that cost a reader time, memory or a traceback: `python tests/hostile_recipes.py DIR`.

Each is small and takes an unguarded reader minutes, gigabytes or its stack.
"""

from __future__ import annotations

import sys
from pathlib import Path

SOUND = """
name = "tiny"
[model]
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
[data]
files = ["a.txt"]
[schedule]
steps = 20
"""
# The same in YAML, up to its last key.
SOUND_YAML = """
name: tiny
model: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4,
  num_key_value_heads: 2}
data: {files: [a.txt]}
schedule: {steps: 20}
"""


def _instead(line: str, hostile: str) -> str:
    assert SOUND.count(line) == 1
    return SOUND.replace(line, hostile)


def _bomb(levels: int = 30, width: int = 10) -> str:
    lines = [f"a0: &a0 [{', '.join(['x' * 100] * width)}]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]")
    return "\n".join(lines) + f"\nname: *a{levels - 1}\n"


_DEEP = 50_000
_DIGITS = "9" * 400
RECIPES: dict[str, str | bytes] = {
    # Keys of many parts, plain, quoted, in headers, in inline tables, on many lines.
    "parts.toml": ".".join(["a"] * 60_000) + " = 1\n" + SOUND,
    "parts_quoted.toml": ".".join(['"a"'] * 30_000) + " = 1\n" + SOUND,
    "parts_single.toml": ".".join(["'a'"] * 30_000) + " = 1\n" + SOUND,
    "parts_spaced.toml": " . ".join(["a"] * 30_000) + " = 1\n" + SOUND,
    "parts_header.toml": SOUND + "[" + ".".join(["a"] * 60_000) + "]\n",
    "parts_array_header.toml": SOUND + "[[" + ".".join(["a"] * 60_000) + "]]\n",
    "parts_inline.toml": SOUND + "x = {" + ".".join(["a"] * 60_000) + " = 1}\n",
    "parts_behind_texts.toml": SOUND + 'x = {y = """a"b""", ' + ".".join("a" * 30_000) + "=1}",
    "parts_lines.toml": "".join(f"{'.'.join(['a'] * 900)}.b{n} = 1\n" for n in range(70)) + SOUND,
    "parts_100.toml": "".join(f"{'.'.join(['a'] * 100)}.b{n} = 1\n" for n in range(500)) + SOUND,
    # Depth.
    "deep.toml": "x = " + "[" * _DEEP + "]" * _DEEP + SOUND,
    "deep_tables.toml": "x = " + "{a=" * 30_000 + "1" + "}" * 30_000 + "\n" + SOUND,
    "deep.yaml": "x: " + "[" * _DEEP + "]" * _DEEP,
    "deep_open.yaml": "x: " + "[" * _DEEP,
    "deep_maps.yaml": "{a: " * 30_000,
    "deep_block.yaml": "- " * _DEEP,
    "deep_keys.yaml": "? " * _DEEP,
    # Aliases.
    "bomb.yaml": _bomb(),
    "bomb_merge.yaml": "a: &a {b: 1}\nc: {<<: [" + ", ".join(["*a"] * 30_000) + "]}\n",
    "cycle.yaml": "name: &a [*a]\n",
    "cycle_key.yaml": "&a {*a : 1}\n",
    # What YAML takes for dates, numbers and bytes.
    "date.yaml": SOUND_YAML.replace("tiny", "2001-99-99"),
    "date_sound.yaml": SOUND_YAML.replace("tiny", "2001-12-14"),
    "time.yaml": SOUND_YAML.replace("tiny", "2001-12-14t21:59:43.10-99:00"),
    "float.yaml": SOUND_YAML.replace("20", ".5_e"),
    "dots.yaml": SOUND_YAML.replace("20", "._"),
    "sexagesimal.yaml": SOUND_YAML.replace("20", "1" + ":59" * 30_000),
    "sexagesimal_float.yaml": SOUND_YAML.replace("20", "1" + ":59" * 30_000 + ".5"),
    "binary.yaml": SOUND_YAML.replace("20", "!!binary x"),
    "int_tag.yaml": SOUND_YAML.replace("20", "!!int ''"),
    "bool_tag.yaml": SOUND_YAML.replace("20", "!!bool x"),
    "float_tag.yaml": SOUND_YAML.replace("20", "!!float ''"),
    "time_tag.yaml": SOUND_YAML.replace("20", "!!timestamp x"),
    "python_tag.yaml": SOUND_YAML.replace("20", "!!python/object/apply:os.system [x]"),
    "list_key.yaml": "? [a]\n: b\n",
    "set.yaml": SOUND_YAML.replace("[a.txt]", "!!set {a}"),
    "twice.yaml": SOUND_YAML + "schedule: {steps: 30}\n",
    "twice_within.yaml": SOUND_YAML.replace("steps: 20", "steps: 20, steps: 30"),
    "twice.toml": SOUND + "steps = 30\n",
    "nul.yaml": "name: \0\n",
    "escapes.yaml": 'name: "\\x1b[31m\\n\\u2028\\r"\n' + SOUND_YAML.replace("name: tiny", "x: 1"),
    # Numbers.
    **{
        f"number_{n}.toml": _instead(line, f"{line.split(' = ')[0]} = {value}")
        for n, (line, value) in enumerate(
            (line, value)
            for line in (
                "hidden_size = 32",
                "intermediate_size = 64",
                "num_hidden_layers = 2",
                "num_attention_heads = 4",
                "num_key_value_heads = 2",
                "steps = 20",
            )
            for value in (_DIGITS, f"-{_DIGITS}", "9" * 5000, str(2**40), "0x" + "f" * 50_000)
        )
    },
    **{
        f"value_{n}.toml": _instead("steps = 20", f"steps = 20\n{extra}")
        for n, extra in enumerate(
            f"{key} = {value}"
            for key in (
                "batch_windows",
                "accumulate_steps",
                "warmup_steps",
                "weight_decay",
                "max_grad_norm",
            )
            for value in (_DIGITS, f"-{_DIGITS}", "1e400", "nan", "2001-01-01", "1000000000000")
            if (key, value)
            not in (("weight_decay", "1000000000000"), ("max_grad_norm", "1000000000000"))
        )
    },
    "layers.toml": _instead("num_hidden_layers = 2", "num_hidden_layers = 1000000000"),
    "context.toml": _instead("hidden_size = 32", "hidden_size = 32\nmax_position_embeddings=1e8"),
    "context_int.toml": _instead(
        "hidden_size = 32", "hidden_size = 32\nmax_position_embeddings = 100000000"
    ),
    "theta.toml": _instead("hidden_size = 32", "hidden_size = 32\nrope_theta = 0.5"),
    "epsilon.toml": _instead("hidden_size = 32", "hidden_size = 32\nrms_norm_eps = 1e300"),
    "range.toml": _instead("hidden_size = 32", f"hidden_size = 32\ninitializer_range = {_DIGITS}"),
    "stages.toml": _instead("steps = 20", f"steps = 20\nstage_1 = [{_DIGITS}, 1]"),
    "seed.toml": f"seed = {_DIGITS}\n" + SOUND,
    "log_every.toml": f"log_every = {_DIGITS}\n" + SOUND,
    "window.toml": _instead('files = ["a.txt"]', f'files = ["a.txt"]\nwindow = {_DIGITS}'),
    "vocabulary.toml": _instead('files = ["a.txt"]', f'files = ["a.txt"]\nvocab_size = {_DIGITS}'),
    # Long and strange texts.
    "long_name.toml": _instead('"tiny"', '"' + "a" * 100_000 + '"'),
    "long_bad_name.toml": _instead('"tiny"', '"' + "/" * 100_000 + '"'),
    "long_key.toml": "a" * 100_000 + " = 1\n" + SOUND,
    "long_kind.toml": 'kind = "' + "a" * 100_000 + '"\n' + SOUND,
    "long_file.toml": _instead('"a.txt"', '"' + "a" * 100_000 + '"'),
    "nul_file.toml": _instead('"a.txt"', '"a\\u0000.txt"'),
    "long_value.toml": _instead("steps = 20", 'steps = "' + "a" * 100_000 + '"'),
    "list_value.toml": _instead("steps = 20", "steps = [" + "1," * 50_000 + "]"),
    "table_value.toml": _instead(
        "steps = 20", "steps = {" + ",".join(f"k{n}=1" for n in range(10_000)) + "}"
    ),
    "large.toml": "#" * (1 << 20) + SOUND,
    "large.yaml": "#" * (1 << 20) + SOUND_YAML,
    "binary.toml": bytes(range(256)),
    "surrogate.toml": b'name = "\xed\xa0\x80"',
    "bom.yaml": b"\xff\xfea\0",
    "empty.toml": "",
    "empty.yaml": "",
    "quotes.toml": '"' * 100_000,
    "escapes.toml": 'name = "' + "\\" * 100_000,
    "flow.yaml": "[a, " * 30_000,
    "anchors.yaml": "".join(f"&a{n} " for n in range(20_000)),
    "colons.yaml": "a: " * 40_000,
    "tags.yaml": "!" * 100_000,
    "indent.yaml": "".join(" " * n + "a:\n" for n in range(450)),
    "documents.yaml": "---\n" * 30_000,
    "pluses.yaml": "x: |" + "+" * 100_000,
}


def write(folder: Path) -> list[Path]:
    """Write the recipes; returns their paths."""
    paths = [folder / name for name in RECIPES]
    for path, content in zip(paths, RECIPES.values(), strict=True):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return paths


if __name__ == "__main__":
    print(*write(Path(sys.argv[1])), sep="\n")
