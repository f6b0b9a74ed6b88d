"""Cores and memory as the process may use them."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from llamalab.engines import machine


def test_there_are_no_more_physical_cores_than_logical_ones():
    assert 1 <= machine.physical_cores() <= (os.cpu_count() or 1)


def files(monkeypatch: pytest.MonkeyPatch, contents: dict[str, str]) -> None:
    monkeypatch.setattr(machine, "_text", lambda path: contents.get(str(path)))


def topology(cores: list[int]) -> dict[str, str]:
    base = "/sys/devices/system/cpu"
    ids = {f"{base}/cpu{cpu}/topology/core_id": str(core) for cpu, core in enumerate(cores)}
    return ids | {f"{base}/cpu{cpu}/topology/physical_package_id": "0" for cpu in range(len(cores))}


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux")
@pytest.mark.parametrize(
    ("allowed", "extra", "cores"),
    [
        ({0, 1, 2, 3}, {}, 2),  # two hyperthreads each
        ({0, 2}, {}, 1),  # both of the same core
        ({0, 1, 2, 3}, {"/sys/fs/cgroup/cpu.max": "100000 100000"}, 1),
        ({0, 1, 2, 3}, {"/sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
        ({0, 1, 2, 3}, {"/sys/fs/cgroup/cpu.max": "max 100000"}, 2),
    ],
)
def test_hyperthreads_affinity_and_quota_count(
    monkeypatch: pytest.MonkeyPatch, allowed: set[int], extra: dict[str, str], cores: int
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: allowed)
    files(monkeypatch, topology([0, 1, 0, 1]) | extra)
    assert machine.physical_cores() == cores


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="Linux")
def test_available_memory_is_at_most_what_psutil_says():
    available = machine.available_memory()
    assert available is not None
    assert 0 < available <= psutil.virtual_memory().total


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="Linux")
def test_a_containers_limit_counts_and_its_file_cache_is_free(monkeypatch: pytest.MonkeyPatch):
    files(
        monkeypatch,
        {
            "/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 8000 kB",
            "/sys/fs/cgroup/memory.max": "4000000",
            "/sys/fs/cgroup/memory.current": "3000000",
            "/sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 500000",
        },
    )
    assert machine.available_memory() == 1_500_000
