"""Facts out of a text, as JSON that fits a schema whatever the model would rather write.

python examples/extract.py "Lily is five and has a red ball." --model bitnet-2b
"""

from __future__ import annotations

import argparse
import json

from trilobit import LLM, SamplingParams

CHILD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "toys": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 3},
    },
    "required": ["name", "age", "toys"],
    "additionalProperties": False,
}


def main(text: str, model: str) -> None:
    params = SamplingParams(json_schema=CHILD, temperature=0, max_tokens=200)
    asked = f"Give the child's name, age and toys as JSON.\n\n{text}"
    with LLM(model) as llm:
        if llm.has_chat_template:
            done = llm.chat([{"role": "user", "content": asked}], params)
        else:
            done = llm.generate(f"{asked}\n\nJSON: ", params)
    if done.finish_reason != "stop":
        raise SystemExit("the answer was cut: raise max_tokens")
    print(json.dumps(json.loads(done.text), ensure_ascii=False, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text")
    parser.add_argument("--model", default="trilobit-stories-5m")
    args = parser.parse_args()
    main(args.text, args.model)
