"""Fuzz a reader of files: `python tests/fuzz.py gguf SECONDS`, or another of TARGETS.

Coverage-guided mutations of small sound files. Whatever comes, the reader either reads it or raises
FormatError, UnsupportedModel or RecipeError. Exits with 1 when it did something else, or when
nothing was run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

MEMORY_MB = 512  # resident; libFuzzer's own and the interpreter's are some 200
LEAST_RUNS = 1000  # a second brings some thousand
INSTRUMENTED = [
    "trilobit.formats",
    "trilobit.text.charsmap",
    "trilobit.text.split_pattern",
    "trilobit.text.tokenizer_file",
    "trilobit.text.sandbox",
    "trilobit.train.recipes",
]
IN_MEMORY = "/dev/shm"  # on a disk, writing the inputs takes most of the time


def fuzz_gguf() -> tuple[Callable[[Path], None], list[bytes]]:
    """The reader of GGUF headers and its seeds."""
    import test_gguf_container as sound

    return sound.read_all, [sound.GOOD, sound.SOUND, sound.image([sound.ARCH])]


def fuzz_gguf_model() -> tuple[Callable[[Path], None], list[bytes]]:
    """The reader of whole models in GGUF, tokenizer and blocks included."""
    from test_gguf_model import read_model, small

    with tempfile.TemporaryDirectory() as folder:
        return read_model, [small(Path(folder) / "m.gguf")]


def fuzz_safetensors() -> tuple[Callable[[Path], None], list[bytes]]:
    """The reader of safetensors files and its seeds."""
    from test_safetensors import SOUND, image, tensor

    from trilobit.formats.safetensors import SafetensorsFile

    def read_all(path: Path) -> None:
        file = SafetensorsFile(path)
        for name, info in file.tensors.items():
            assert file.array(name).nbytes == info.size_bytes
            assert info.end <= file.size_bytes

    two = {"a": tensor("F32", [2], 0, 8), "b": tensor("BF16", [3, 1], 8, 14)}
    return read_all, [SOUND, image({**two, "__metadata__": {"k": "v"}}, bytes(14)), image({})]


def fuzz_recipe(suffix: str) -> tuple[Callable[[Path], None], list[bytes]]:
    """The reader of training recipes in TOML or YAML; the short ones of the hostile are seeds."""
    from hostile_recipes import RECIPES, SOUND, SOUND_YAML

    from trilobit.train.recipes import load_recipe

    def read(path: Path) -> None:
        load_recipe(path)

    hostile = (text for name, text in RECIPES.items() if name.endswith(suffix))
    seeds = [text.encode() for text in hostile if isinstance(text, str) and len(text) < 4096]
    return read, [(SOUND if suffix == "toml" else SOUND_YAML).encode(), *seeds]


def fuzz_tokenizer() -> tuple[Callable[[Path], None], list[bytes]]:
    """The check of tokenizer.json and what runs behind it; the short ones of the hostile are
    seeds.
    """
    from hostile_tokenizers import HARMLESS, REFUSED

    from trilobit.text.tokenizer import Tokenizer

    def read(path: Path) -> None:
        tokenizer = Tokenizer(path.read_bytes(), str(path))
        ids = tokenizer.encode("ab  é\n<s>", special=True)
        tokenizer.special_prefix()
        tokenizer.decode(ids)

    seeds = [*HARMLESS.values(), *(data for data, _ in REFUSED.values())]
    return read, [data for data in seeds if len(data) < 4096]


def fuzz_template() -> tuple[Callable[[Path], None], list[bytes]]:
    """Chat templates, which are refused by name whatever they do."""
    from test_chat_template import EVERYTHING, GREEDY, TEXTS

    from trilobit import FormatError, RequestError
    from trilobit.text import sandbox
    from trilobit.text.chat_template import render

    sandbox._BUDGET = 100_000  # what is too much ends in milliseconds

    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "a\nb"}]

    def read(path: Path) -> None:
        try:
            render(path.read_text(errors="replace"), messages, bos_token="<s>", eos_token="</s>")
        except RequestError as error:
            raise FormatError(f"{path}: {error}") from error

    return read, [
        template.encode()
        for template in (EVERYTHING, TEXTS, *GREEDY.values())
        if len(template) < 4096
    ]


TARGETS = {
    "gguf": fuzz_gguf,
    "gguf-model": fuzz_gguf_model,
    "safetensors": fuzz_safetensors,
    "toml": partial(fuzz_recipe, "toml"),
    "yaml": partial(fuzz_recipe, "yaml"),
    "tokenizer": fuzz_tokenizer,
    "template": fuzz_template,
}


def main() -> int:
    """Fuzz in a process of its own: libFuzzer ends the one that it runs in."""
    target, seconds = sys.argv[1], int(sys.argv[2])
    with tempfile.TemporaryDirectory(dir=IN_MEMORY if os.path.isdir(IN_MEMORY) else None) as folder:
        command = [sys.executable, __file__, target, str(seconds), folder]
        result = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
    runs = re.findall(r"Done (\d+) runs", result.stderr)
    # Rust's word, in front of our own line.
    panicked = set(re.findall(r"panicked at .*\n(.*)", result.stderr))
    if result.returncode or panicked or not runs or int(runs[-1]) < LEAST_RUNS:
        print(result.stderr[-5000:], file=sys.stderr)
        print(f"{target}: failed, or not run at all (exit {result.returncode})", file=sys.stderr)
        return 1
    print(f"{target}: {int(runs[-1]):,} inputs in {seconds} s, each read or refused by name")
    return 0


def run(target: str, seconds: int, folder: Path) -> None:
    """What runs in that process; does not return."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        read, seeds = TARGETS[target]()
    from trilobit import FormatError, UnsupportedModel
    from trilobit.errors import RecipeError

    for number, seed in enumerate(seeds):
        (folder / f"seed{number}").write_bytes(seed)
    path = folder / "input" / f"fuzzed.{target.split('-')[0]}"
    path.parent.mkdir()

    def one(data: bytes) -> None:
        path.write_bytes(data)
        try:
            read(path)
        except (FormatError, RecipeError, UnsupportedModel) as error:
            message = str(error)
            if not message.startswith(f"{path}: ") or not message.isprintable():
                raise AssertionError(message) from error

    corpus = folder / "corpus"
    corpus.mkdir()
    options = [
        f"-max_total_time={seconds}",
        f"-seed={os.environ.get('FUZZ_SEED', '0')}",  # 0 draws one
        f"-rss_limit_mb={MEMORY_MB}",
        "-timeout=10",
        "-max_len=16384",
        f"-artifact_prefix={os.getcwd()}/build/",  # where an input that fails is kept
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus), str(folder)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    # The seeds are those of the readers' own tests.
    tests = Path(__file__).parent
    sys.path[:0] = map(str, [tests, tests / "formats/gguf", tests / "formats/hf", tests / "text"])
    if len(sys.argv) == 4:
        run(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    else:
        sys.exit(main())
