"""An assistant in the shell: remembers the conversation, and stops writing at Ctrl-C.

    python examples/assistant.py bitnet-2b

What was said before is in the engine's cache, so each turn computes only what is new.
"""

from __future__ import annotations

import sys

from trilobit import LLM, SamplingParams

SYSTEM = "You are a helpful assistant. You answer in a few sentences."


def main(model: str) -> None:
    with LLM(model) as llm:
        messages = [{"role": "system", "content": SYSTEM}]
        while True:
            try:
                asked = input("> ")
            except (EOFError, KeyboardInterrupt):
                return
            if not asked.strip():
                continue
            messages.append({"role": "user", "content": asked})
            reply = ""
            with llm.stream_chat(messages, SamplingParams(max_tokens=500)) as stream:
                try:
                    for piece in stream:
                        print(piece, end="", flush=True)
                        reply += piece
                except KeyboardInterrupt:
                    pass  # what was said so far stays
            print()
            messages.append({"role": "assistant", "content": reply})


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
