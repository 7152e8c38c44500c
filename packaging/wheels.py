"""Wheels for this system and others: by default those for Linux and for Windows.

    python packaging/wheels.py [--out dist] [TARGET ...]

The compiler is zig's clang, from PyPI: it carries the C libraries of all systems, old versions of
glibc among them, so nothing is cross-installed. Each target gets two wheels: `abi3` for Python
3.12 and all that follow, and one for 3.11, which has no stable interface that nanobind could use.
Their headers come from such Pythons on this machine; a Python of another system has the same ones,
but for Windows' `pyconfig.h`. They are built from the source archive, by pinned tools, without the
time of day or the name of a folder in them: two builds are the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "wheels"
TOOLS = (
    *("scikit-build-core", "nanobind", "cmake", "ninja", "ziglang"),
    *("wheel", "auditwheel", "abi3audit"),
)
EPOCH = "315532800"  # the first second that a wheel can tell, as the time of all that is in it
# It has no wheel for musl, where pip would compile it, with Rust; structured output asks for it.
NOT_FOR_MUSL = re.compile(r'^    "llguidance.*\n', re.MULTILINE)


@dataclass(frozen=True)
class Target:
    """A system, as zig, package indexes, CMake and Python name it."""

    zig: str  # with the oldest C library or system that the wheel runs on
    tag: str
    system: str
    processor: str
    soabi: str = ""  # of the module for 3.11: "cpython-311-" and this


TARGETS = {
    "linux-x86_64": Target(
        "x86_64-linux-gnu.2.17", "manylinux_2_17_x86_64", "Linux", "x86_64", "x86_64-linux-gnu"
    ),
    "linux-aarch64": Target(
        "aarch64-linux-gnu.2.17", "manylinux_2_17_aarch64", "Linux", "aarch64", "aarch64-linux-gnu"
    ),
    "musl-x86_64": Target(
        "x86_64-linux-musl", "musllinux_1_2_x86_64", "Linux", "x86_64", "x86_64-linux-musl"
    ),
    "musl-aarch64": Target(
        "aarch64-linux-musl", "musllinux_1_2_aarch64", "Linux", "aarch64", "aarch64-linux-musl"
    ),
    # 11.0 is the first with what std::atomic::wait sleeps on.
    "macos-arm64": Target("aarch64-macos.11.0", "macosx_11_0_arm64", "Darwin", "arm64", "darwin"),
    "macos-x86_64": Target("x86_64-macos.11.0", "macosx_11_0_x86_64", "Darwin", "x86_64", "darwin"),
    # Python's import library for Windows is made from the names of the stable interface: no 3.11.
    "windows-amd64": Target("x86_64-windows-gnu", "win_amd64", "Windows", "AMD64"),
}

# What zig wants said otherwise than clang does. It compiles a C++ library for each target and way
# of optimising that it links: by -O3 before all else CMake's first trials use the one needed. CMake
# takes Python's import library for Windows for a static one, which needs what a Python here needs.
COMPILER = """#!/bin/sh
for argument; do
    shift
    case $argument in
    -march=armv8.2-a+dotprod) argument=-mcpu=generic+v8_2a+dotprod ;;
    -bundle) argument=-shared ;;
    -Wl,@*darwin-ld*) argument=-Wl,-undefined,dynamic_lookup ;;
    -ldl) case {target} in *-windows-*) continue ;; esac ;;
    esac
    set -- "$@" "$argument"
done
exec "{zig}" c++ -target {target} -O3 -ffile-prefix-map={tools}=. \\
    -ffile-prefix-map={sources}=. "$@"
"""


def run(*command: str | Path, cwd: Path = ROOT, **env: str) -> str:
    """Run a command and return what it printed; if it fails, show that and stop."""
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout[-6000:]}{done.stderr[-6000:]}")
    return done.stdout


def find_pythons() -> dict[int, Path]:
    """The Pythons of this machine that have their headers, by minor version."""
    folders = [Path(sys.base_exec_prefix) / "bin", *map(Path, os.get_exec_path())]
    folders += Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/*/bin")
    has_headers = "import os, sysconfig as s; os.stat(s.get_path('include') + '/Python.h')"
    found: dict[int, Path] = {}
    for minor in range(11, 20):
        for python in (folder / f"python3.{minor}" for folder in folders):
            command = (python, "-c", has_headers)
            if python.exists() and not subprocess.run(command, capture_output=True).returncode:
                found.setdefault(minor, python)
    return found


def make_tools(kind: str) -> Path:
    """An environment with what builds and checks a kind of wheel; made once."""
    pythons = find_pythons()
    python = (
        pythons.get(11) if kind == "cp311" else pythons.get(min(pythons.keys() - {11}, default=0))
    )
    if python is None:
        wanted = "3.11" if kind == "cp311" else "3.12 or newer"
        sys.exit(f"{kind} wheels need Python {wanted} with its headers, on the PATH or in pyenv's")
    folder = WORK / f"tools-{kind}"
    mark = folder / ".ready"
    wanted = (ROOT / "constraints.txt").read_bytes()
    if not mark.exists() or mark.read_bytes() != wanted:
        run(python, "-m", "venv", "--clear", folder)
        pip = (folder / "bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check")
        run(*pip, "install", "--constraint", ROOT / "constraints.txt", *TOOLS)
        mark.write_bytes(wanted)
    return folder


def build_sdist(tools: Path, out: Path) -> Path:
    """Write the source archive into `out`."""
    program = f"from scikit_build_core import build; build.build_sdist({str(out)!r})"
    run(tools / "bin/python", "-c", program, cwd=ROOT)
    return max(out.glob("trilobit-*.tar.gz"), key=lambda path: path.stat().st_mtime)


def unpack(sdist: Path, folder: Path) -> Path:
    """The sources in `folder`, and beside them the module's types: a native build tells those."""
    stub = ROOT / "src/trilobit/_native.pyi"
    if not stub.exists():
        sys.exit(f"{stub.relative_to(ROOT)} is missing; `make run` writes it")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if old.name != "zig":  # the compiler's cache
            shutil.rmtree(old)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    source = folder / sdist.name.removesuffix(".tar.gz")
    shutil.copy(stub, source)
    return source


def windows_python(tools: Path, folder: Path) -> list[str]:
    """Python's headers and import library as a compiler for Windows wants them."""
    python = tools / "bin/python"
    include = run(python, "-c", "import sysconfig; print(sysconfig.get_path('include'), end='')")
    shutil.copytree(include, folder / "include", dirs_exist_ok=True)
    shutil.copy(ROOT / "packaging/pyconfig-windows.h", folder / "include/pyconfig.h")
    names = run(
        python,
        "-c",
        "import abi3info as a\n"
        "for symbol in a.FUNCTIONS: print(symbol.name)\n"
        "for symbol in a.DATAS: print(symbol.name, 'DATA')",
    )
    (folder / "python3.def").write_text(f"LIBRARY python3.dll\nEXPORTS\n{names}")
    library = folder / "python3.lib"
    run(folder / "dlltool", "-m", "i386:x86-64", "-d", folder / "python3.def", "-l", library)
    # CMake reads versions from names, and asks for the other library too: nothing is linked to it.
    minor = run(python, "-c", "import sys; print(sys.version_info.minor, end='')")
    numbered = Path(shutil.copy(library, folder / f"python3{minor}.lib"))
    return [
        f"-DPython_INCLUDE_DIR={folder / 'include'}",
        f"-DPython_LIBRARY={numbered}",
        f"-DPython_SABI_LIBRARY={library}",
    ]


def find_zig() -> Path:
    """The same one for both kinds, so that it finds in its cache what they have in common."""
    (zig,) = (WORK / "tools-abi3/lib").glob("python3.*/site-packages/ziglang/zig")
    return zig


def make_compiler(target: Target, zig: Path, sources: Path, folder: Path) -> dict[str, str]:
    """Write the compiler for a target into `folder`; returns what CMake has to be told."""
    compiler = COMPILER.format(zig=zig, target=target.zig, sources=sources, tools=WORK)
    commands = {"c++": compiler}
    for tool in ("ar", "ranlib", "dlltool"):
        commands[tool] = f'#!/bin/sh\nexec "{zig}" {tool} "$@"\n'
    for name, text in commands.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return {
        "CMAKE_SYSTEM_NAME": target.system,
        "CMAKE_SYSTEM_PROCESSOR": target.processor,
        "CMAKE_CXX_COMPILER": str(folder / "c++"),
        "CMAKE_AR": str(folder / "ar"),
        "CMAKE_RANLIB": str(folder / "ranlib"),
        # Linking a program to try the compiler would compile a C++ library for it first.
        "CMAKE_TRY_COMPILE_TARGET_TYPE": "STATIC_LIBRARY",
        "CMAKE_INSTALL_NAME_TOOL": "/bin/true",  # for macOS; nothing is renamed
    }


def build_wheel(target: Target, kind: str, tools: Path, source: Path, out: Path) -> Path:
    """Build and check one wheel; returns it in `out`."""
    folder = source.parent / target.tag
    folder.mkdir(exist_ok=True)
    for name in ("CMakeCache.txt", ".skbuild-info.json"):  # of the other Python
        (folder / "build" / name).unlink(missing_ok=True)  # the core stays, compiled once for both
    defines = make_compiler(target, find_zig(), source.parent, folder)
    defines["TRILOBIT_STUB"] = str(source / "_native.pyi")
    defines["SKBUILD_SOABI"] = f"cpython-311-{target.soabi}"
    if kind == "abi3":
        defines["SKBUILD_SOSABI"] = "" if target.system == "Windows" else "abi3"
    arguments = [f"-D{key}={value}" for key, value in defines.items()]
    if target.system == "Windows":
        arguments += windows_python(tools, folder)
    wheels = folder / "wheel"
    wheels.mkdir(exist_ok=True)
    settings = {"build-dir": str(folder / "build"), "wheel.py-api": "cp312"}  # 3.11 ignores it
    program = (
        f"from scikit_build_core import build; build.build_wheel({str(wheels)!r}, {settings!r})"
    )
    python = tools / "bin/python"
    run(
        *(python, "-c", program),
        cwd=source,
        PATH=f"{tools / 'bin'}{os.pathsep}{os.environ['PATH']}",
        CMAKE_ARGS=shlex.join(arguments),
        SOURCE_DATE_EPOCH=EPOCH,
        ZIG_GLOBAL_CACHE_DIR=str(source.parent / "zig"),
        ZIG_LOCAL_CACHE_DIR=str(source.parent / "zig"),
    )
    (built,) = wheels.iterdir()
    command = (tools / "bin/wheel", "tags", "--remove", "--platform-tag", target.tag, built)
    run(*command, SOURCE_DATE_EPOCH=EPOCH)
    (wheel,) = wheels.iterdir()
    check(target, kind, tools, wheel)
    return Path(shutil.move(wheel, out / wheel.name))


# What any 64-bit Windows 10 has, beside a Python.
WINDOWS_HAS = re.compile(r"(python3|kernel32|api-ms-win-crt-[a-z0-9-]+)\.dll", re.IGNORECASE)
IMPORTS = """
import pefile, sys, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
(module,) = (name for name in wheel.namelist() if name.endswith(".pyd"))
needed = pefile.PE(data=wheel.read(module)).DIRECTORY_ENTRY_IMPORT
print(*(library.dll.decode() for library in needed))
"""


def check(target: Target, kind: str, tools: Path, wheel: Path) -> None:
    """Let the auditors say that the wheel needs no more than its name does."""
    if target.system == "Linux":
        show = [tools / "bin/auditwheel", "show", wheel]
        wanted = f'"{target.tag}"'
        if target.tag.startswith("musl"):
            # Where glibc is, auditwheel knows no tag of musl; but what such a wheel may ask for.
            show += ["--ldpaths", "/none-of-this-machine"]
            wanted = '{ "libc.so": null }'
        told = " ".join(run(*show).split())
        if wanted not in told:
            sys.exit(f"{wheel.name} needs more than {target.tag}:\n{told}")
    if target.system == "Windows":  # by what abi3audit reads modules with
        needed = run(tools / "bin/python", "-c", IMPORTS, wheel).split()
        if more := [name for name in needed if not WINDOWS_HAS.fullmatch(name)]:
            sys.exit(f"{wheel.name} needs {', '.join(more)}")
    if kind == "abi3":
        run(tools / "bin/abi3audit", "--strict", wheel)


def build(targets: list[str], out: Path, folder: Path) -> None:
    """Write the source archive and the wheels of `targets` into `out`; compile in `folder`."""
    out.mkdir(parents=True, exist_ok=True)
    environments = {kind: make_tools(kind) for kind in ("cp311", "abi3")}
    sdist = build_sdist(environments["abi3"], out)
    print(f"{sdist.stat().st_size / 1e6:6.2f} MB  {sdist.name}", flush=True)
    source = unpack(sdist, folder)
    project = source / "pyproject.toml"
    whole = project.read_text(encoding="utf-8")
    for name in targets:
        target = TARGETS[name]
        wanted = NOT_FOR_MUSL.sub("", whole) if target.tag.startswith("musl") else whole
        project.write_text(wanted, encoding="utf-8")
        for kind, tools in environments.items():
            if kind == "cp311" and not target.soabi:
                continue
            wheel = build_wheel(target, kind, tools, source, out)
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
            print(f"{wheel.stat().st_size / 1e6:6.2f} MB  {wheel.name}  {digest[:16]}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build wheels for other systems.")
    usual = [name for name in TARGETS if not name.startswith("macos")]
    parser.add_argument("targets", nargs="*", metavar="TARGET", default=usual)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--work", type=Path, default=WORK / "build", help="where to compile")
    asked = parser.parse_args()
    unknown = set(asked.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no such target: {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    build(asked.targets, asked.out.resolve(), asked.work.resolve())
