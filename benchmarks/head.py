"""Does the screened head choose what the full head chooses, at every position of real text?

    python benchmarks/head.py MODEL TEXT.jsonl.xz [--positions 20000]

Runs the texts through the model and chooses a token after each position twice: from the screen and
from all logits. Prints how many differ, how many rows were looked at twice, and how many computed.
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections.abc import Iterator
from pathlib import Path

import cli
import numpy as np

from trilobit import LLM, _native
from trilobit.engine.native import rotary_frequencies
from trilobit.errors import FormatError
from trilobit.formats.packed.reader import PackedModel
from trilobit.hub.models import model_file

SAMPLINGS = {
    "greedy": {"temperature": 0.0},
    "temperature 0.8": {"temperature": 0.8},
    "temperature 0.8, top-k 40": {"temperature": 0.8, "top_k": 40},
    "temperature 1, min-p 0.05": {"temperature": 1.0, "min_p": 0.05},
}
CHUNK = 128


def texts(path: Path) -> Iterator[str]:
    """Those held out of training. FormatError where the file is not JSON lines, or has none."""
    found = False
    try:
        with (lzma.open if path.suffix == ".xz" else open)(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                record = json.loads(line)
                if number % 50 == 0 and record.get("source") == "tinystories":
                    found = True
                    yield record["text"]
    except (ValueError, KeyError, AttributeError, lzma.LZMAError, EOFError) as error:
        raise FormatError(f"{path}: not JSON lines of texts ({error})") from None
    if not found:
        raise FormatError(
            f"{path}: every 50th line is a text held out, and none of them is a story"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="path or name")
    parser.add_argument("text", type=Path)
    parser.add_argument("--positions", type=cli.whole(), default=20_000)
    parser.add_argument("--threads", type=cli.whole(1, cli.MOST_THREADS), default=2)
    arguments = parser.parse_args()
    packed = PackedModel(model_file(arguments.model))
    encode = LLM(packed.path, threads=1).encode
    config = packed.config
    decoder = _native.Decoder(
        config.to_dict(),
        packed.arrays(screened=True),
        rotary_frequencies(config),
        arguments.threads,
        CHUNK,
        config.max_position_embeddings // _native.Decoder.BLOCK + 1,
        "f16",
    )
    positions = 0
    differ = dict.fromkeys(SAMPLINGS, 0)
    rows = dict.fromkeys(SAMPLINGS, 0)
    screened = dict.fromkeys(SAMPLINGS, 0)
    twice = dict.fromkeys(SAMPLINGS, 0)
    for text in texts(arguments.text):
        ids = encode(text)[: config.max_position_embeddings]
        table = np.arange(len(ids) // _native.Decoder.BLOCK + 1, dtype=np.int32)[None]
        for start in range(0, len(ids), CHUNK):
            part = np.array(ids[start : start + CHUNK], dtype=np.int32)
            count = len(part)
            decoder.forward(
                part,
                np.arange(start, start + count, dtype=np.int32),
                np.zeros(count, dtype=np.int32),
                table,
                np.arange(count, dtype=np.int32),
            )
            logits = decoder.logits()
            for name, settings in SAMPLINGS.items():
                seeds = range(positions, positions + count)
                before = decoder.rescored_rows, decoder.screened_tokens, decoder.second_looks
                samplers = [_native.Sampler(seed=s, **settings) for s in seeds]
                chosen = [one for [one] in decoder.verify(samplers, [[]] * count)]
                full = [
                    _native.Sampler(seed=s, **settings).sample(row)
                    for s, row in zip(seeds, logits, strict=True)
                ]
                differ[name] += sum(a != b for a, b in zip(chosen, full, strict=True))
                rows[name] += decoder.rescored_rows - before[0]
                screened[name] += decoder.screened_tokens - before[1]
                twice[name] += decoder.second_looks - before[2]
            positions += count
        if positions >= arguments.positions:
            break
    print(f"{packed.path.name}: {positions} positions, vocabulary {config.vocab_size}")
    for name in SAMPLINGS:
        print(
            f"{name}: {differ[name]} differ; {screened[name]} decided from the screen, "
            f"{rows[name] / max(screened[name], 1):.1f} rows each; "
            f"{twice[name] / positions / config.vocab_size:.1%} of the rows looked at twice"
        )


if __name__ == "__main__":
    cli.run(main)
