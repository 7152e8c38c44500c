"""Joules: counters read from folders laid out like /sys, and estimates beside the papers'."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from trilobit import LLM
from trilobit.bench.energy import (
    Counter,
    counters,
    full_precision,
    matrix_joules,
    measure_energy,
    operations,
    used_by,
)
from trilobit.model.shapes import shape

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux has counters in /sys")


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
    used = used_by(only(tmp_path), lambda: None)
    assert 0 <= used.joules <= 8 * used.seconds + 0.1


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
    assert found.idle_watts == pytest.approx(10, rel=0.2)
    assert found.decode.measured is not None
    assert found.decode.measured > 0
    assert found.decode.estimated == without.decode.estimated
