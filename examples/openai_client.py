"""The server from a program that was written for OpenAI's API: only the address changes.

    trilobit serve bitnet-2b &
    pip install openai
    python examples/openai_client.py "Why is the sky blue?"

OPENAI_BASE_URL is where the server is, OPENAI_API_KEY its key if it asks for one.
"""

from __future__ import annotations

import os
import sys

from openai import OpenAI


def main(asked: str) -> None:
    client = OpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8080/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
    )
    # Some of a server's models may only continue text: Trilobit's list tells which ones chat.
    models = list(client.models.list())
    model = next((one for one in models if getattr(one, "chat", False)), models[0]).id
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": asked}],
        max_completion_tokens=200,
        stream=True,
    )
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
