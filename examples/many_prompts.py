"""Many prompts from a file, many at once: each pass over the weights serves all of them.

    python examples/many_prompts.py prompts.jsonl answers.jsonl --model bitnet-2b

A line of the file is {"prompt": "..."}; its other keys go into the answer's line as they are. Lines
are written as they end, so what was done is kept when the program is stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any, TextIO

from trilobit import AsyncLLM, SamplingParams

AT_ONCE = 16


async def answer(
    llm: AsyncLLM, record: dict[str, Any], out: TextIO, places: asyncio.Semaphore
) -> None:
    async with places:
        done = await llm.generate(record["prompt"], SamplingParams(max_tokens=100, temperature=0))
    record |= {"text": done.text, "finish_reason": done.finish_reason}
    out.write(json.dumps(record, ensure_ascii=False) + "\n")
    out.flush()


async def main(prompts: Path, answers: Path, model: str) -> None:
    records = [json.loads(line) for line in prompts.read_text(encoding="utf-8").splitlines()]
    places = asyncio.Semaphore(AT_ONCE)
    async with AsyncLLM(model, max_sequences=AT_ONCE) as llm:
        with answers.open("w", encoding="utf-8") as out:
            await asyncio.gather(*(answer(llm, record, out, places) for record in records))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompts", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--model", default="trilobit-stories-5m")
    args = parser.parse_args()
    asyncio.run(main(args.prompts, args.answers, args.model))
