"""Published weights have the answers of their publishers. Skipped without them.

TRILOBIT_WEIGHTS names a directory with downloads in it: directories of checkpoints, GGUF files and
packed files. WikiText-2's wiki.test.raw among them is what perplexity is measured of.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from program import trilobit

from trilobit import Embedder

FOLDER = Path(os.environ.get("TRILOBIT_WEIGHTS") or os.devnull)
MODELS = (
    sorted(
        path
        for path in FOLDER.iterdir()
        if path.suffix in (".gguf", ".trilobit") or (path / "config.json").exists()
    )
    if FOLDER.is_dir()
    else []
)

pytestmark = [
    pytest.mark.weights,
    pytest.mark.skipif(not MODELS, reason="no models in the directory TRILOBIT_WEIGHTS"),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.name)
def test_published_weights_have_their_published_answers(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRILOBIT_HOME", str(tmp_path))
    text = FOLDER / "wiki.test.raw"
    done = trilobit("verify", model, "--json", *(("--text", text) if text.exists() else ()))
    assert done.stderr == ""
    checks = json.loads(done.stdout)["checks"]
    assert [check for check in checks if check["passed"] is False] == []
    assert done.returncode == 0


# llama-embedding's vector of "query: What is BitNet?", as microsoft/BitNet's guide
# (docs/bitnet-embeddings-i2s-guide.md, section 4) shows its beginning: from the GGUF file, which
# takes the mean of all states. llama.cpp rounds tables and norms to float16.
WHAT_IS_BITNET = [0.0239517, 0.6826404, 0.0, -0.0644535, 0.0613754, 0.0473094, 0.0114330]
FLOAT16_TABLES = 0.003


@pytest.mark.parametrize(
    "model",
    [path for path in MODELS if path.match("bitnet-embedding*0.6b*.gguf")],
    ids=lambda path: path.name,
)
def test_published_embeddings_are_as_published(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRILOBIT_HOME", str(tmp_path))
    vector = Embedder(model, context=512).encode("query: What is BitNet?")[0]
    assert np.abs(vector[:7] - WHAT_IS_BITNET).max() < FLOAT16_TABLES
