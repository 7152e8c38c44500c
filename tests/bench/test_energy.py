"""Joules: counters read from folders laid out like /sys, and estimates beside the papers'."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trilobit import LLM
from trilobit.bench.counters import Counter, counters, used_by
from trilobit.bench.energy import (
    PROCESSES,
    Energy,
    Phase,
    estimates,
    full_precision,
    matrix_joules,
    measure_energy,
    operations,
)
from trilobit.cli.bench import energy_lines as told
from trilobit.model.shapes import shape

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux has counters in /sys")

ROOT = Path(__file__).parents[2]

# What pynvml asks of NVIDIA's library: three GPUs, the second too old to count energy, which use
# 1.5 J and 2.5 J from each time they are asked to the next.
NVML = r"""
#include <stddef.h>
#include <string.h>
static unsigned long long used[3];
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlDeviceGetCount_v2(unsigned* count) { *count = 3; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned number, void** device) {
  *device = used + number;
  return 0;
}
int nvmlDeviceGetName(void* device, char* name, unsigned length) {
  strncpy(name, "NVIDIA Stand-in", length);
  return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void* device, unsigned long long* millijoules) {
  ptrdiff_t number = (unsigned long long*)device - used;
  if (number == 1) return 3;  /* NVML_ERROR_NOT_SUPPORTED */
  *millijoules = used[number] += number == 0 ? 1500 : 2500;
  return 0;
}
"""


def write(folder: Path, **values: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name).write_text(f"{value}\n")
    return folder


def rapl(root: Path) -> Path:
    zones = root / "class/powercap"
    write(
        zones / "intel-rapl:0", name="package-0", energy_uj=5_000_000, max_energy_range_uj=9_999_999
    )
    write(zones / "intel-rapl:0:0", name="core", energy_uj=77, max_energy_range_uj=9_999_999)
    write(zones / "intel-rapl:0:1", name="dram", energy_uj=100, max_energy_range_uj=9_999_999)
    write(zones / "intel-rapl:1", name="psys", energy_uj=5, max_energy_range_uj=9_999_999)
    return zones


def only(root: Path) -> list[Counter]:
    found, reason = counters(root)
    assert found
    assert reason == ""
    return found


def test_rapl_counts_packages_and_memory_and_wraps(tmp_path: Path) -> None:
    zones = rapl(tmp_path)
    package, memory = only(tmp_path)
    assert (package.name, memory.name) == ("RAPL package-0", "RAPL dram of intel-rapl:0:1")
    write(zones / "intel-rapl:0", energy_uj=7_500_000)
    assert package.joules() == 2.5
    assert memory.joules() == 0
    write(zones / "intel-rapl:0", energy_uj=500_000)  # behind 9,999,999 comes 0
    assert package.joules() == 3.0
    assert package.joules() == 0


def test_work_is_measured_over_a_wrap(tmp_path: Path) -> None:
    zones = rapl(tmp_path)
    found = only(tmp_path)

    def work() -> None:
        write(zones / "intel-rapl:0", energy_uj=9_000_000)
        write(zones / "intel-rapl:0:1", energy_uj=1_000_100)

    assert used_by(found, work).joules == 5.0


def test_hwmon_counts_sockets(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "class/hwmon/hwmon3",
        name="amd_energy",
        energy1_input=1_000_000,
        energy1_label="Ecore000",
        energy2_input=2_000_000,
        energy2_label="Esocket0",
    )
    write(tmp_path / "class/hwmon/hwmon0", name="nvme", temp1_input=3)
    [socket] = only(tmp_path)
    write(folder, energy2_input=6_000_000)
    assert (socket.name, socket.joules()) == ("hwmon Esocket0", 4.0)


@pytest.mark.parametrize(
    "power", [{"power_now": 8_000_000}, {"current_now": -1_000_000, "voltage_now": 8_000_000}]
)
def test_a_battery_counts_while_it_is_discharged(tmp_path: Path, power: dict[str, int]) -> None:
    folder = write(tmp_path / "class/power_supply/BAT0", type="Battery", status="Charging", **power)
    assert counters(tmp_path)[0] == []
    write(folder, status="Discharging")
    worked_s: list[float] = []

    def work() -> None:
        begun = time.perf_counter()
        time.sleep(0.01)
        worked_s.append(time.perf_counter() - begun)

    used = used_by(only(tmp_path), work)
    assert 8 * worked_s[0] <= used.joules <= 8 * used.seconds


def test_a_counter_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: Any) -> None:
    zones = rapl(tmp_path)
    (zones / "intel-rapl:0/energy_uj").chmod(0)
    if os.access(zones / "intel-rapl:0/energy_uj", os.R_OK):  # root may
        plain = Path.read_text

        def forbidden(self: Path, *args: Any, **kwargs: Any) -> str:
            if self.name == "energy_uj":
                raise PermissionError(13, "Permission denied", str(self))
            return plain(self, *args, **kwargs)

        monkeypatch.setattr(Path, "read_text", forbidden)
    found, reason = counters(tmp_path)
    assert found == []
    assert reason.endswith("energy_uj may be read by root only")


def asked(nvml: Path, sys_folder: Path) -> list[Any]:
    """What a process with NVIDIA's library of a folder finds: names and joules, or the reason."""
    code = """
import json, sys
from pathlib import Path
from trilobit.bench.counters import counters
found, reason = counters(Path(sys.argv[1]))
print(json.dumps([[one.name, one.joules()] for one in found] or [reason]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(sys_folder)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "LD_LIBRARY_PATH": str(nvml)},
    )
    found: list[Any] = json.loads(done.stdout)
    return found


def test_gpus_count_beside_the_processor_and_are_no_measure_alone(tmp_path: Path) -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (tmp_path / "nvml.c").write_text(NVML)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", library, tmp_path / "nvml.c"], check=True, timeout=60
    )
    rapl(tmp_path / "sys")
    assert asked(tmp_path, tmp_path / "sys") == [
        ["RAPL package-0", 0],
        ["RAPL dram of intel-rapl:0:1", 0],
        ["NVML GPU 0 (NVIDIA Stand-in)", 1.5],
        ["NVML GPU 2 (NVIDIA Stand-in)", 2.5],
    ]
    [reason] = asked(tmp_path, tmp_path)
    assert "NVML GPU 0 (NVIDIA Stand-in) counts, but not the processor, which does the w" in reason
    # What a battery gives has the GPUs of a laptop in it.
    battery = tmp_path / "laptop/class/power_supply/BAT0"
    write(battery, type="Battery", status="Discharging", power_now=0)
    assert asked(tmp_path, tmp_path / "laptop") == [["battery BAT0", 0]]
    # Without NVIDIA's driver nothing is wrong.
    library.write_text("no library")
    assert len(asked(tmp_path, tmp_path / "sys")) == 2


@pytest.mark.parametrize(
    ("platform", "reason"),
    [
        ("darwin", "macOS: what it counts is told by its powermetrics, to root only"),
        ("win32", "Windows: what it counts is read through a driver of its maker's only"),
        ("freebsd14", "no energy counter is read on freebsd14; Linux has them in /sys"),
    ],
)
def test_other_systems_say_what_is_missing(
    tmp_path: Path, monkeypatch: Any, platform: str, reason: str
) -> None:
    monkeypatch.setattr("trilobit.bench.counters.sys.platform", platform)
    found, told = counters(rapl(tmp_path).parents[1])
    monkeypatch.undo()
    assert found == []
    assert reason in told


def test_no_number_is_told_without_its_label_and_source() -> None:
    estimated = dict.fromkeys(PROCESSES, 1e-7)
    twin = dict.fromkeys(PROCESSES, 1e-6)
    bare = Phase(measured=None, above_idle=None, estimated=estimated, estimated_float16=twin)
    source = "this machine shows no energy counter"
    lines = list(told(Energy(source=source, idle_watts=None, prefill=bare, decode=bare)))
    assert lines[0] == f"energy is not measured here: {source}"
    estimate = "1e-07 J/token of arithmetic, 90% less than 1e-06 with float16 weights (estimated: "
    assert [line[8:].startswith(estimate) for line in lines[1:]] == [True, True]
    assert all("a 7 nm chip's energy" in line for line in lines[1:])
    full = replace(bare, measured=0.25, above_idle=0.125)
    source = "measured: RAPL package-0"
    lines = list(told(Energy(source=source, idle_watts=5.0, prefill=full, decode=full)))
    assert [line[8:] for line in lines[:2]] == [
        f"0.25 J/token, 0.125 above idle (5 W; {source})",
    ] * 2
    assert all("(estimated: " in line for line in lines[2:])
    assert len(lines) == 4


def test_no_counter_and_a_broken_one_are_told(tmp_path: Path) -> None:
    assert (
        counters(tmp_path)[1] == "this machine (or its hypervisor) shows no energy counter in /sys"
    )
    write(rapl(tmp_path) / "intel-rapl:0", energy_uj="many")
    assert "holds 'many', no number" in counters(tmp_path)[1]


def test_a_counter_that_goes_away_is_an_error_behind_the_work(tmp_path: Path) -> None:
    zones = rapl(tmp_path)
    done = []

    def work() -> None:
        (zones / "intel-rapl:0/energy_uj").unlink()
        done.append(True)

    with pytest.raises(OSError, match="energy_uj"):
        used_by(only(tmp_path), work)
    assert done == [True]


def test_estimates_are_the_papers() -> None:
    """BitNet (arXiv 2310.11453), table 1: 512 tokens of a 6.7B transformer, matrices alone."""
    products = 512 * 6_442_450_944  # 32 layers of width 4096
    for arithmetic, process, addition, multiplication in (
        ("float32", "7 nm", 1.28, 4.41),
        ("float32", "45 nm", 3.03, 12.46),
        ("float16", "7 nm", 0.54, 1.14),
        ("float16", "45 nm", 1.35, 3.70),
    ):
        found = matrix_joules(products, arithmetic, process)  # type: ignore[arg-type]
        assert found == pytest.approx((addition, multiplication), rel=0.03)


def test_operations_of_2b4t() -> None:
    config = shape("2b4t")
    token = operations(config, 0)
    assert token.int8_additions == config.ternary_parameters
    assert token.float16_products == 128256 * 2560 + 2 * 30 * 20 * 128
    assert operations(config, 1, head=False).float16_products == 2 * (2 * 30 * 20 * 128)
    assert token.joules("7 nm") == pytest.approx(
        (config.ternary_parameters * 0.007 + token.float16_products * 0.5) * 1e-12
    )
    assert full_precision(token).joules("7 nm") > 6 * token.joules("7 nm")


def test_the_float16_twin_multiplies_where_ours_adds() -> None:
    """Of the same shape: as many operations, all of them products of float16."""
    config = shape("2b4t")
    head, attention = 128256 * 2560, 2 * 30 * 20 * 128 * 5  # the fifth token of eight
    prefill, decode = estimates(config, prompt=8, generate=8)
    for phase, heads in ((prefill, head / 8), (decode, head)):
        products = attention + heads
        ours = config.ternary_parameters * 0.007 + products * (0.16 + 0.34)
        twin = (config.ternary_parameters + products) * (0.16 + 0.34)
        assert phase["7 nm"] == pytest.approx((ours * 1e-12, twin * 1e-12))


def test_the_energy_in_the_docs_is_the_estimate_that_it_says() -> None:
    text = " ".join((ROOT / "docs" / "speed.md").read_text(encoding="utf-8").split())
    told = re.search(
        r"([\d.]+) mJ to decode a token, (\d+) % less than the ([\d.]+) of the same shape in "
        r"float16; ([\d.]+) to prefill one, (\d+) % less than ([\d.]+)\.",
        text,
    )
    assert told is not None
    assert f"mJ/token, **estimated** | {told[1]} | {told[1]} | {told[1]} |" in text
    numbers = [float(number) for number in told.groups()]
    prefill, decode = estimates(shape("2b4t"), prompt=512, generate=128)
    for phase, in_docs in ((decode, numbers[:3]), (prefill, numbers[3:])):
        ours, twin = phase["7 nm"]
        found = [1e3 * ours, 100 * (1 - ours / twin), 1e3 * twin]
        assert found == pytest.approx(in_docs, rel=5e-3)


def test_ternary_embeddings_are_added_up_too() -> None:
    config = shape("bonsai-1.7b")
    assert config.ternary_embeddings
    table = config.vocab_size * config.hidden_size
    layers = config.ternary_parameters - (1 if config.tie_word_embeddings else 2) * table
    assert operations(config, 0).int8_additions == layers + table
    assert operations(config, 0, head=False).int8_additions == layers


def test_energy_of_a_model(model_file: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("trilobit.bench.energy._LEAST_S", 0.05)
    with LLM(model_file, context=64) as llm:
        without = measure_energy(llm, prompt=8, generate=8, sys_folder=tmp_path)
        assert without.idle_watts is without.decode.measured is without.prefill.above_idle is None
        assert "no energy counter" in without.source
        write(
            tmp_path / "class/power_supply/BAT0",
            type="Battery",
            status="Discharging",
            power_now=10_000_000,
        )
        found = measure_energy(llm, prompt=8, generate=8, sys_folder=tmp_path)
    assert found.source == "measured: battery BAT0"
    assert found.idle_watts is not None
    assert 0 < found.idle_watts <= 10  # less where the machine was busy before it was read
    assert found.decode.measured is not None
    assert found.decode.measured > 0
    assert found.decode.estimated == without.decode.estimated
