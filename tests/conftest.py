"""Small random models that every test may share. Written once a run, never changed by a test."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from trilobit.conversion import convert
from trilobit.model.config import ModelConfig
from trilobit.synth import synth
from trilobit.train.data.bpe import train_tokenizer

if TYPE_CHECKING:  # PyTorch takes seconds to load, and few files need it
    from fables import Run

# Machines are slow and shared: a time limit for each example would fail by chance. And examples are
# drawn by the test's name, the same ones each time; `--hypothesis-profile explore` draws others.
settings.register_profile("explore", deadline=None)
settings.register_profile("trilobit", deadline=None, derandomize=True)
settings.load_profile("trilobit")

# A shell lets what it starts in the background ignore Ctrl-C, and nohup the end of a terminal; that
# is inherited by all below.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# No test asks the Internet for a model. Before huggingface_hub is imported: it reads this once.
os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what compiles the core again and again: these are the longest files."""
    longest = ("test_native.py", "test_sanitizers.py")
    items.sort(key=lambda item: item.path.name not in longest)


TEXT = (
    "Once upon a time there was a little girl who had a red ball. She liked to play in the park. "
    "One day she met a big dog. The dog was kind, and they ran and ran until the sun went down. "
)


CHAT_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
# A tiny model has been at its first 60,000 tokens for a minute and a half: nobody sees the last.
ENDLESS_CONTEXT = 1 << 18


def tiny_config(**changes: object) -> ModelConfig:
    """A model that runs in a blink; its sizes fit no vector, tile or block exactly."""
    values: dict[str, object] = {
        "vocab_size": 331,
        "hidden_size": 60,
        "intermediate_size": 140,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "max_position_embeddings": 1100,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_ids": (1,),
    }
    return ModelConfig(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place of the tests' own for packed files, for commands that they start too."""
    home = tmp_path_factory.mktemp("home")
    os.environ["TRILOBIT_HOME"] = str(home)
    return home


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer of at most 320 tokens; 0 begins a text, 1 ends it."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer([TEXT] * 3, 320).save(str(path))
    return path


@pytest.fixture(scope="session")
def endless_model(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: Path) -> Path:
    """Was made to chat, talks nonsense, and does not end by itself while anybody waits for it."""
    directory = tmp_path_factory.mktemp("endless") / "endless"
    config = tiny_config(eos_token_ids=(), max_position_embeddings=ENDLESS_CONTEXT)
    synth(config, directory, seed=2)
    (directory / "tokenizer.json").write_bytes(tokenizer_json.read_bytes())
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    path = directory.with_suffix(".trilobit")
    convert(directory, path)
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: Path) -> Path:
    """A Hugging Face directory: random packed weights, with a tokenizer."""
    directory = tmp_path_factory.mktemp("checkpoint") / "tiny"
    synth(tiny_config(), directory, seed=1)
    (directory / "tokenizer.json").write_bytes(tokenizer_json.read_bytes())
    return directory


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """The same model as one packed file."""
    path = tmp_path_factory.mktemp("packed") / "tiny.trilobit"
    convert(checkpoint, path)
    return path


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: of small products, a second one only waits for a busy core."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A whole training run on fables, of which every worker reads the same files."""
    from fables import finished_run

    return finished_run(tmp_path_factory.getbasetemp())
