"""What a model writes, not picked: seeds 0 to 9, the settings of `trilobit run`. Markdown.

    python models/samples.py [MODEL [BEGINNING]]

Ten texts that begin alike; of a model that was made for conversations, ten conversations with the
same child.
"""

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path

from trilobit import LLM, SamplingParams
from trilobit.bundled import BEGINNINGS, DEFAULT
from trilobit.inputs import Message

SAID = (
    "Hello!",
    "My name is Anna.",
    "Tell me a story about a cat and a red ball.",
    "Who is the story about?",
    "How does it end?",
    "What is the capital of France?",
    "Thank you, bye!",
)


# Markdown knows no direction; HTML around it does.
RIGHT_TO_LEFT = '<div dir="rtl" lang="ar">\n\n{}\n</div>\n'


def conversation(llm: LLM, params: SamplingParams) -> str:
    messages: list[Message] = []
    for said in SAID:
        messages.append({"role": "user", "content": said})
        reply = llm.chat(messages, params).text.strip()
        messages.append({"role": "assistant", "content": reply})
    names = {"user": "Child", "assistant": "Model"}
    return "\n\n".join(f"{names[one['role']]}: {one['content']}" for one in messages)


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else DEFAULT
    known = BEGINNINGS.get(Path(name).stem, BEGINNINGS[DEFAULT])
    beginning = sys.argv[2] if len(sys.argv) > 2 else known
    llm = LLM(name)
    form = RIGHT_TO_LEFT if unicodedata.bidirectional(beginning[0]) == "AL" else "{}"
    for seed in range(10):
        params = SamplingParams(max_tokens=400, temperature=0.7, min_p=0.05, seed=seed)
        if llm.has_chat_template:
            text = conversation(llm, params)
        else:
            text = (beginning + llm.generate(beginning, params).text).strip()
        quoted = "\n".join(f"> {line}" if line else ">" for line in text.splitlines()) + "\n"
        print(f"**Seed {seed}**\n")
        print(form.format(quoted))


if __name__ == "__main__":
    main()
