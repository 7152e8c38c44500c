"""What a model writes, not picked: seeds 0 to 9, the settings of `trilobit run`. Markdown.

    python models/samples.py [MODEL]

Ten stories; of a model that was made for conversations, ten conversations with the same child.
"""

from __future__ import annotations

import sys

from trilobit import LLM, SamplingParams
from trilobit.bundled import DEFAULT
from trilobit.inputs import Message

BEGINNING = "Once upon a time"
SAID = (
    "Hello!",
    "My name is Anna.",
    "Tell me a story about a cat and a red ball.",
    "Who is the story about?",
    "How does it end?",
    "What is the capital of France?",
    "Thank you, bye!",
)


def story(llm: LLM, params: SamplingParams) -> str:
    return (BEGINNING + llm.generate(BEGINNING, params).text).strip()


def conversation(llm: LLM, params: SamplingParams) -> str:
    messages: list[Message] = []
    for said in SAID:
        messages.append({"role": "user", "content": said})
        reply = llm.chat(messages, params).text.strip()
        messages.append({"role": "assistant", "content": reply})
    names = {"user": "Child", "assistant": "Model"}
    return "\n\n".join(f"{names[one['role']]}: {one['content']}" for one in messages)


def main() -> None:
    llm = LLM(sys.argv[1] if len(sys.argv) > 1 else DEFAULT)
    write = conversation if llm.has_chat_template else story
    for seed in range(10):
        text = write(llm, SamplingParams(max_tokens=400, temperature=0.7, min_p=0.05, seed=seed))
        print(f"**Seed {seed}**\n")
        print("\n".join(f"> {line}" if line else ">" for line in text.splitlines()) + "\n")


if __name__ == "__main__":
    main()
