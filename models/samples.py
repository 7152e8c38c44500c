"""Ten stories of a model, not picked: seeds 0 to 9, the settings of `trilobit run`. Markdown.

python models/samples.py [MODEL]
"""

from __future__ import annotations

import sys

from trilobit import LLM, SamplingParams
from trilobit.bundled import DEFAULT


def main() -> None:
    llm = LLM(sys.argv[1] if len(sys.argv) > 1 else DEFAULT)
    prompt = "Once upon a time"
    for seed in range(10):
        params = SamplingParams(max_tokens=400, temperature=0.7, min_p=0.05, seed=seed)
        story = (prompt + llm.generate(prompt, params).text).strip()
        print(f"**Seed {seed}**\n")
        print("\n".join(f"> {line}" if line else ">" for line in story.splitlines()) + "\n")


if __name__ == "__main__":
    main()
