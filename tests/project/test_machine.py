"""Cores and memory that a process may use, read from folders laid out like /proc and /sys."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest

from trilobit import LLM, machine
from trilobit.cgroups import cpu_limit, memory_limit
from trilobit.machine import Cores, available_cores, cores, memory_bytes

GB = 10**9
FOUR = frozenset(range(4))
UNIFIED = "30 23 0:26 {base} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
NESTED = "0::/user.slice/run-1.scope\n"


def mount(controllers: str, base: str = "/") -> str:
    place = f"/sys/fs/cgroup/{controllers}"
    return f"32 31 0:29 {base} {place} rw,relatime shared:9 - cgroup cgroup rw,{controllers}\n"


def system(root: Path, files: Mapping[str, str], siblings: Mapping[int, str] | None = None) -> Path:
    """A root with these files, and CPUs with these siblings."""
    topology = {
        f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": text + "\n"
        for cpu, text in (siblings or {}).items()
    }
    for name, text in {**files, **topology}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def version_2(
    root: Path, limits: Mapping[str, str], group: str = "0::/\n", base: str = "/"
) -> Path:
    return system(
        root,
        {
            "proc/self/cgroup": group,
            "proc/self/mountinfo": UNIFIED.format(base=base),
            **{f"sys/fs/cgroup/{name}": text for name, text in limits.items()},
        },
    )


# ---- CPU quota --------------------------------------------------------------------------------


def test_a_quota_at_the_root_of_version_2_counts(tmp_path: Path) -> None:
    assert cpu_limit(version_2(tmp_path, {"cpu.max": "150000 100000\n"})) == 1.5


def test_no_quota_is_none(tmp_path: Path) -> None:
    assert cpu_limit(version_2(tmp_path, {"cpu.max": "max 100000\n"})) is None
    assert cpu_limit(tmp_path / "nothing at all") is None


def test_the_least_quota_along_nested_groups_counts(tmp_path: Path) -> None:
    outer, inner = "user.slice/cpu.max", "user.slice/run-1.scope/cpu.max"
    limits = {outer: "300000 100000\n", inner: "max 100000\n"}
    assert cpu_limit(version_2(tmp_path, limits, NESTED)) == 3
    assert cpu_limit(version_2(tmp_path, {inner: "20000 10000\n"}, NESTED)) == 2
    assert cpu_limit(version_2(tmp_path, {outer: "100000 100000\n"}, NESTED)) == 1


def test_a_group_beside_ours_does_not_count(tmp_path: Path) -> None:
    limits = {
        "system.slice/cpu.max": "100000 100000\n",
        "user.slice/cpu.max": "400000 100000\n",
        "user.slice/run-1.scope/cpu.max": "max 100000\n",
    }
    assert cpu_limit(version_2(tmp_path, limits, NESTED)) == 4


def test_a_container_sees_its_group_at_the_mount(tmp_path: Path) -> None:
    # Of the host's cgroup namespace, the path names what the mount begins with, or what it hides.
    limits = {"cpu.max": "250000 100000\n", "inner/cpu.max": "100000 100000\n"}
    for group, base, wanted in (
        ("0::/docker/0123\n", "/docker/0123", 2.5),
        ("0::/docker/0123/inner\n", "/docker/0123", 1.0),
        ("0::/docker/0123\n", "/", 2.5),
        ("0::/../sibling\n", "/", 2.5),
    ):
        assert cpu_limit(version_2(tmp_path, limits, group, base)) == wanted


def test_a_quota_of_version_1_counts(tmp_path: Path) -> None:
    group = "5:memory:/\n4:cpu,cpuacct:/box/job\n1:name=systemd:/\n"
    files = {
        "proc/self/cgroup": group,
        "proc/self/mountinfo": "1 0 0:1 / / rw - ext4 /dev/a rw\n" + mount("cpu,cpuacct"),
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "250000\n",
        "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu,cpuacct/box/job/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu,cpuacct/box/job/cpu.cfs_period_us": "100000\n",
    }
    assert cpu_limit(system(tmp_path, files)) == 2.5


def test_of_both_versions_mounted_the_one_with_the_controller_counts(tmp_path: Path) -> None:
    unified = UNIFIED.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified ").format(base="/")
    files = {
        "proc/self/cgroup": "3:cpu:/box\n4:memory:/box\n0::/elsewhere\n",
        "proc/self/mountinfo": mount("cpu") + mount("memory") + unified,
        "sys/fs/cgroup/unified/elsewhere/cgroup.procs": "",
        "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "100000\n",
        "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "50000\n",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{3 * GB}\n",
    }
    root = system(tmp_path, files)
    assert cpu_limit(root) == 2
    assert memory_limit(root) == 3 * GB


def test_a_mount_with_a_space_in_its_name_is_found(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": "30 23 0:26 / /my\\040groups rw - cgroup2 none rw\n",
        "my groups/cpu.max": "200000 100000\n",
    }
    assert cpu_limit(system(tmp_path, files)) == 2


@pytest.mark.parametrize("name", ["cpu.max", "cpu/cpu.cfs_quota_us"])
def test_a_masked_proc_leaves_the_usual_places(name: str, tmp_path: Path) -> None:
    text = {"cpu.max": "200000 100000\n", "cpu/cpu.cfs_quota_us": "200000\n"}[name]
    files = {f"sys/fs/cgroup/{name}": text, "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}
    assert cpu_limit(system(tmp_path, files)) == 2


@pytest.mark.parametrize(
    "text", ["", "\n", "0 0\n", "-5 100000\n", "x y\n", "100000\n", "1e3 9\n", "²³ 1\n", "\0\n"]
)
def test_a_quota_that_is_none_is_no_limit(text: str, tmp_path: Path) -> None:
    assert (
        cpu_limit(version_2(tmp_path, {"cpu.max": text, "memory.max": text.split(" ")[0]})) is None
    )


# ---- cores ------------------------------------------------------------------------------------


def test_two_threads_of_a_core_are_one(tmp_path: Path) -> None:
    root = system(tmp_path, {}, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"})
    assert cores(root, FOUR).count == 2
    assert cores(root, FOUR).cpus == 4
    assert cores(root, frozenset({0, 2})).count == 1


def test_a_quota_counts_where_the_topology_is_masked(tmp_path: Path) -> None:
    root = version_2(tmp_path, {"cpu.max": "200000 100000\n"})
    assert cores(root, FOUR) == Cores(count=2, cpus=2, why="a CPU quota of 2")
    assert cores(tmp_path / "none", FOUR).count == 4


@pytest.mark.parametrize(
    ("quota", "count", "cpus"),
    [(5_000, 1, 1), (100_000, 1, 1), (140_000, 1, 2), (150_000, 2, 2), (260_000, 3, 3)],
)
def test_a_part_of_a_cpu_is_rounded(quota: int, count: int, cpus: int, tmp_path: Path) -> None:
    here = cores(version_2(tmp_path, {"cpu.max": f"{quota} 100000\n"}), FOUR)
    assert (here.count, here.cpus) == (count, cpus)


def test_a_quota_beyond_the_cores_is_not_why(tmp_path: Path) -> None:
    here = cores(version_2(tmp_path, {"cpu.max": "900000 100000\n"}), FOUR)
    assert (here.count, "quota" in here.why) == (4, False)


def test_an_affinity_for_some_cpus_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert cores(tmp_path, FOUR).why == "physical cores of its CPU affinity"
    assert cores(tmp_path, frozenset(range(8))).why == "physical cores"


def test_systems_without_affinity_and_proc_count_cpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert cores(tmp_path) == Cores(count=6, cpus=6, why="physical cores")
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert cores(tmp_path).count == 1


def test_this_machine_has_cores() -> None:
    assert 1 <= available_cores() <= cores().cpus


# ---- memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["memory.max", "memory.high"])
def test_a_memory_limit_of_a_group_counts(name: str, tmp_path: Path) -> None:
    limits = {f"user.slice/{name}": "1000000\n", "user.slice/run-1.scope/memory.max": "max\n"}
    assert memory_bytes(version_2(tmp_path, limits, NESTED)) == 1_000_000


def test_a_memory_limit_of_version_1_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/box\n",
        "proc/self/mountinfo": mount("memory"),
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "2000000\n",
    }
    root = system(tmp_path, files)
    assert memory_bytes(root) == 2_000_000
    (root / "sys/fs/cgroup/memory/box/memory.limit_in_bytes").unlink()
    assert memory_limit(root) is None


def test_a_limit_beyond_the_memory_is_none(tmp_path: Path) -> None:
    physical = memory_bytes(tmp_path)
    root = version_2(tmp_path, {"memory.max": f"{1 << 50}\n"})
    assert physical is not None
    assert memory_bytes(root) == physical < 1 << 50


# ---- threads ----------------------------------------------------------------------------------


def test_more_threads_than_cpus_are_one_line_of_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(machine, "cores", lambda: Cores(count=2, cpus=4, why="physical cores"))
    with caplog.at_level(logging.WARNING, logger="trilobit"):
        assert LLM(threads=4).threads == 4
        assert caplog.messages == []
        assert LLM(threads=5).threads == 5  # asked for, so obeyed
    assert caplog.messages == [
        "5 threads on 4 CPUs can only wait for each other; leave out threads, or take 2"
    ]


def test_a_small_model_decodes_on_one_thread_and_reads_on_all() -> None:
    llm = LLM(threads=2)
    assert (llm.threads_for(1), llm.threads_for(llm.config.max_position_embeddings)) == (1, 2)
    assert LLM(threads=1).threads_for(1 << 20) == 1
