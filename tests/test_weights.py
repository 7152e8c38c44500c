"""Published weights have the answers of their publishers. Skipped without them.

TRILOBIT_WEIGHTS names a directory with downloads in it: directories of checkpoints, GGUF files and
packed files. WikiText-2's wiki.test.raw among them is what perplexity is measured of.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from test_cli import trilobit

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
