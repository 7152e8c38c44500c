"""A file depends on the model alone: not on the processor, nor on what numpy makes of it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from machines import MACHINES

from trilobit.bundled import DEFAULT, bundled_models
from trilobit.model.sums import total, tree_sum

# Every form that is written, read back in every way; then the definitions, on weights whose sums
# round. NumPy warns of features that a processor does not have in the first place.
PROGRAM = """
import hashlib, sys
from pathlib import Path

import numpy as np

from trilobit import pack_vectors
from trilobit.conversion import FORMS, convert
from trilobit.model import screen, ternary
from trilobit.model.rope import LinearScaling, YarnScaling, frequencies

model, inputs, out = sys.argv[1], np.load(sys.argv[2]), Path(sys.argv[3])
for form in FORMS:
    if form in ("gguf-tq1_0", "gguf-tq2_0"):
        continue  # scales of this model do not fit float16
    convert(model, out / form, form)
    convert(out / form, out / f"{form}.again", "packed")
arrays = {f"screen {name}": plane for name, plane in screen.screen(inputs["head"]).items()}
arrays["absmean"] = ternary.absmean_ternary(inputs["masters"])
arrays["sign"] = ternary.sign_binary(inputs["masters"])
for bits in ("int8", "int4", "int2", "int1"):
    arrays[bits] = [pack_vectors(inputs["vectors"], bits)]
arrays["rope"] = [
    frequencies(head, theta, scaling)
    for head in (80, 128)
    for theta in (1e4, 5e5, 1e6)
    for scaling in (None, LinearScaling(factor=3.0), YarnScaling(
        factor=5.0,
        original_max_position_embeddings=4096,
        attention_factor=YarnScaling.default_attention_factor(5.0),
    ))
]
for name, parts in arrays.items():
    (out / name).write_bytes(b"".join(part.tobytes() for part in parts))
for path in sorted(path for path in out.rglob("*") if path.is_file()):
    print(path.relative_to(out), hashlib.sha256(path.read_bytes()).hexdigest())
"""


def written(machine: str, inputs: Path, out: Path) -> list[str]:
    """A line for each file: its name and its hash."""
    out.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, bundled_models()[DEFAULT], inputs, out],
        env={**os.environ, "PYTHONWARNINGS": "ignore", **MACHINES[machine]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("inputs") / "inputs.npz"
    np.savez(
        path,
        head=random.standard_normal((333, 2500), dtype=np.float32),
        masters=random.standard_normal((511, 1111), dtype=np.float32)
        * np.exp(random.standard_normal((511, 1), dtype=np.float32)),
        vectors=random.standard_normal((99, 999), dtype=np.float32),
    )
    return path


@pytest.fixture(scope="module")
def here(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return written("as it is", inputs, tmp_path_factory.mktemp("here") / "out")


@pytest.mark.parametrize("machine", [name for name in MACHINES if MACHINES[name]])
def test_every_form_has_the_same_bytes_on(
    machine: str, inputs: Path, here: list[str], tmp_path: Path
) -> None:
    assert len(here) > 15
    assert written(machine, inputs, tmp_path / "out") == here


def test_every_lossless_form_gives_the_bundled_file_back(here: list[str]) -> None:
    hashes = dict(line.rsplit(" ", 1) for line in here)
    bundled = hashlib.sha256(bundled_models()[DEFAULT].read_bytes()).hexdigest()
    assert {hashes[f"{form}.again"] for form in ("packed", "hf", "gguf")} == {bundled}


@pytest.mark.parametrize("terms", [1, 2, 3, 5, 64, 2560, 100_001])
def test_sums_take_the_order_that_they_promise(terms: int) -> None:
    x = np.random.default_rng(terms).standard_normal(terms, dtype=np.float32)
    tree = list(x)
    while len(tree) > 1:
        half = (len(tree) + 1) // 2
        folded = [a + b for a, b in zip(tree, tree[half:], strict=False)]
        tree = folded + tree[len(folded) : half]
    assert tree_sum(x) == tree[0]
    lanes = [np.float64(0)] * (1 << 15)
    for i, term in enumerate(x):
        lanes[i % (1 << 15)] += np.float64(term)
    assert total(x) == tree_sum(np.array(lanes))
