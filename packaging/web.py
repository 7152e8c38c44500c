"""The core for browsers: WebAssembly, with and without relaxed SIMD, and the bundled model.

    python packaging/web.py build/web

The compiler is that of the wheels, zig's clang, from PyPI: `make web` installs it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sysconfig
from pathlib import Path

import wheels

from trilobit.bundled import DEFAULT, bundled_models

ROOT = Path(__file__).parents[1]
TARGET = wheels.Target("wasm32-wasi", "", "Generic", "wasm32")


def compile_core(program: str, relaxed: bool) -> Path:
    """Compile a program of CMakeLists.txt; returns the file. What is done already is kept."""
    folder = ROOT / "build/wasm" / ("relaxed" if relaxed else "simd128")
    (folder / "tools").mkdir(parents=True, exist_ok=True)
    zig = Path(sysconfig.get_path("purelib")) / "ziglang/zig"
    defines = wheels.make_compiler(TARGET, zig, ROOT, folder / "tools")
    defines |= {"TRILOBIT_PYTHON": "OFF", "TRILOBIT_TESTS": "ON", "TRILOBIT_WERROR": "ON"}
    defines["TRILOBIT_RELAXED_SIMD"] = "ON" if relaxed else "OFF"
    path = {"PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"}
    settings = [f"-D{key}={value}" for key, value in defines.items()]
    wheels.run("cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", *settings, **path)
    wheels.run("cmake", "--build", folder, "--target", program, **path)
    return folder / program


def build(out: Path) -> None:
    """Write all that a page needs beside docs/web into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for relaxed in (False, True):
        name = "trilobit-relaxed.wasm" if relaxed else "trilobit.wasm"
        shutil.copy(compile_core("trilobit.wasm", relaxed), out / name)
        print(f"{(out / name).stat().st_size / 1e6:6.2f} MB  {name}", flush=True)
    shutil.copy(bundled_models()[DEFAULT], out / "model.trilobit")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the core for browsers.")
    parser.add_argument("out", type=Path)
    build(parser.parse_args().out.resolve())
