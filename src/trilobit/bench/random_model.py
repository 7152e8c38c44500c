"""The packed random model of a published shape, made in a process of its own.

What making it takes would count as the memory of the model that is measured.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import cast

from trilobit import synth
from trilobit.errors import RequestError, TrilobitError
from trilobit.formats.packed.form import VERSION
from trilobit.layouts import chosen_layout
from trilobit.model import shapes
from trilobit.model.packing import Layout, LayoutChoice


def random_model(
    shape: str, folder: Path, choice: LayoutChoice | None, gate_density: float | None = None
) -> Path:
    """The file in `folder`, written the first time it is wanted; choice: its layout.

    gate_density: see `synth_packed`. Raises RequestError for a layout that the shape cannot have,
    and for what the process says.
    """
    config = shapes.shape(shape)
    layout = chosen_layout(choice, config, name=shape)
    mark = "" if layout == "2-bit" else f"-{layout}"
    if gate_density is not None:
        mark += f"-gates-{gate_density:g}"
    # Of older formats there may be one beside it.
    path = folder / f"{shape}{mark}-random-{VERSION}.trilobit"
    if path.exists():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(
            f"{folder}: cannot be made ({error.strerror}); choose another --folder"
        ) from None
    logging.getLogger("trilobit").info(f"writing random weights to {path}")
    done = subprocess.run(
        [sys.executable, "-m", __name__, shape, layout, str(gate_density or ""), str(path)],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"its writer ended with {done.returncode}"]
        raise RequestError(said[-1])
    return path


def _main() -> None:
    shape, layout, density, path = sys.argv[1:]
    try:
        synth.synth_packed(
            shapes.shape(shape),
            Path(path),
            layout=cast(Layout, layout),
            gate_density=float(density) if density else None,
        )
    except TrilobitError as error:
        sys.exit(str(error))
    except MemoryError:
        sys.exit(f"not enough memory to make a random model of the shape {shape}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    _main()
