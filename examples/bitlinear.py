"""Train a model of your own in ternary: swap its layers, train as ever, run it without PyTorch.

    pip install 'trilobit[train]'
    python examples/bitlinear.py README.md --steps 200

Characters are the tokens, the model is a small Llama: the point is the three lines of Trilobit.
`trilobit train` is the way to a model worth using.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trilobit import LLM, SamplingParams, convert
from trilobit.nn import swap_linears
from trilobit.train.export import save_masters

WINDOW, BATCH = 128, 8


def main(text_file: Path, steps: int, folder: Path) -> None:
    text = text_file.read_bytes()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    swap_linears(model)  # from here on weights of -1, 0, +1 and activations of 8 bits
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    bytes_T = torch.tensor(list(text))
    for step in range(1, steps + 1):
        starts = torch.randint(len(text) - WINDOW, (BATCH,)).tolist()
        ids_NT = torch.stack([bytes_T[start : start + WINDOW] for start in starts])
        loss = model(input_ids=ids_NT, labels=ids_NT).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            print(f"step {step}: {loss.item() / 0.6931:.2f} bits a byte")

    save_masters(model, None, folder / "model")
    convert(folder / "model", folder / "bytes.trilobit")
    llm = LLM(folder / "bytes.trilobit")
    done = llm.generate(list(b"The "), SamplingParams(max_tokens=60, seed=1, ignore_eos=True))
    print(bytes(done.token_ids).decode("utf-8", errors="replace"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=Path("build/bitlinear"))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    main(args.text, args.steps, args.folder)
