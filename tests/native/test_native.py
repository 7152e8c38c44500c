"""The core by itself: with every compiler, on processors we do not have, under sanitizers.

`native/tests` is a program without Python. It is built here several times, into `build/native`,
where a second run finds everything done. What needs a compiler or an emulator that this machine
lacks is skipped, unless TRILOBIT_REQUIRE_CROSS is set, as in CI: then it fails.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path

import pytest
from core_builds import build, native_tests, need, run

from trilobit import _native

ROOT = Path(__file__).parents[2]
BUILDS = ROOT / "build" / "native"
X86 = platform.machine() in ("x86_64", "AMD64")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="emulators and ELF tools of Linux")


@pytest.fixture(scope="module")
def gcc() -> Path:
    return build("gcc", "native_tests", "g++")


@pytest.fixture(scope="module")
def aarch64() -> Path:
    # Static, so that the emulator needs no foreign libraries beside it.
    return build(
        "aarch64",
        "native_tests",
        "aarch64-linux-gnu-g++",
        CMAKE_SYSTEM_NAME="Linux",
        CMAKE_SYSTEM_PROCESSOR="aarch64",
        CMAKE_EXE_LINKER_FLAGS="-static",
    )


def test_every_isa_of_this_machine_is_right(gcc: Path) -> None:
    done = native_tests(gcc)
    assert done["tested"] == done["available"] == _native.isas()


def test_neon_is_right(aarch64: Path) -> None:
    done = native_tests(aarch64, "neon", emulator=("qemu-aarch64", "-cpu", "max"))
    assert done["tested"] == ["neon"]


def test_arm_without_dot_products_uses_scalar_code(aarch64: Path) -> None:
    done = native_tests(aarch64, "none", emulator=("qemu-aarch64", "-cpu", "cortex-a53"))
    assert done["available"] == ["scalar"]


@pytest.mark.skipif(not X86, reason="an x86 program")
def test_x86_before_avx_is_right(gcc: Path) -> None:
    done = native_tests(gcc, emulator=("qemu-x86_64", "-cpu", "Nehalem"))
    assert done["tested"] == done["available"] == ["scalar"]


@pytest.mark.skipif(not X86, reason="an x86 program")
@pytest.mark.parametrize("cpu", ["max,-avx2", "max,-fma", "max,-f16c", "max,-xsave"])
def test_avx2_code_needs_all_it_uses(gcc: Path, cpu: str) -> None:
    done = native_tests(gcc, "none", emulator=("qemu-x86_64", "-cpu", cpu))
    assert done["available"] == ["scalar"]


@pytest.mark.skipif(not X86, reason="x86 processors")
@pytest.mark.parametrize(
    ("cpu", "isa"),
    [("Nehalem", "scalar"), ("Haswell", "avx2"), ("Skylake-Server", "avx2"), ("max", "avx2")],
)
def test_module_gives_the_same_bits_on_old_and_new_processors(cpu: str, isa: str) -> None:
    # The emulator knows no AVX-512, and leaves it out of what it claims to be.
    if cpu not in ("Nehalem", "Haswell") and not os.environ.get("TRILOBIT_RELEASE"):
        pytest.skip("two of these are enough for every day: make release-check")
    need("qemu-x86_64")
    program = (
        "import hashlib; from trilobit import LLM, _native\n"
        "llm = LLM(threads=1)\n"
        "logits = llm.logits(llm.encode('Once upon a time'))\n"
        "print(_native.isa(), hashlib.sha256(logits.tobytes()).hexdigest())"
    )
    here = run(sys.executable, "-c", program).split()
    # OpenBLAS believes these names more than the processor.
    plain = {"OPENBLAS_CORETYPE": ""}
    there = run("qemu-x86_64", "-cpu", cpu, sys.executable, "-c", program, env=plain).split()
    assert there[-2:] == [isa, here[-1]]


# ---- nothing of a wider instruction set outside its file ---------------------------------------


def objects(folder: Path) -> dict[str, Path]:
    found = {path.name.removesuffix(".cpp.o"): path for path in folder.rglob("core.dir/**/*.o")}
    assert {"scalar", "isa", "decoder", "sampler"} <= found.keys()
    return found


@pytest.mark.skipif(not X86, reason="objects of x86")
def test_only_avx_files_hold_avx_instructions(gcc: Path) -> None:
    # Every instruction with a VEX or EVEX prefix is written with a v and names a vector register.
    vex = re.compile(r"\tv[a-z0-9]+ .*%[xyz]mm")
    holding = {
        name
        for name, path in objects(gcc).items()
        if vex.search(run("objdump", "-d", "--no-show-raw-insn", path))
    }
    assert holding == {"avx2", "avxvnni", "avx512vnni"}


def test_only_neon_files_hold_dot_products(aarch64: Path) -> None:
    holding = {
        name
        for name, path in objects(aarch64).items()
        if re.search(r"\t[su]dot\t", run("aarch64-linux-gnu-objdump", "-d", path))
    }
    assert holding == {"neon"}


def exported(nm: str, path: Path) -> set[str]:
    lines = run(nm, "--defined-only", "--extern-only", "--demangle", path).splitlines()
    return {line.split(maxsplit=2)[2] for line in lines}


@pytest.mark.parametrize("name", ["avx2", "avxvnni", "avx512vnni", "neon"])
def test_kernel_file_exports_its_table_alone(name: str, request: pytest.FixtureRequest) -> None:
    # An inline function exported here could be the copy that the linker keeps for everybody.
    if name == "neon":
        folder, nm = request.getfixturevalue("aarch64"), "aarch64-linux-gnu-nm"
    elif X86:
        folder, nm = request.getfixturevalue("gcc"), "nm"
    else:
        pytest.skip("objects of x86")
    assert exported(nm, objects(folder)[name]) == {f"trilobit::k_{name}"}


# ---- compilers and sanitizers ------------------------------------------------------------------
