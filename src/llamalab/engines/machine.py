"""What this process may use of the machine, and what it has used: cores and memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path


def physical_cores() -> int:
    """Physical cores that this process may run on, at least 1.

    Two hyperthreads of one core count once; CPU affinity and a container's CPU quota are respected.
    """
    if sys.platform == "darwin":
        return _sysctl("hw.perflevel0.physicalcpu") or _sysctl("hw.physicalcpu") or os.cpu_count() or 1
    if not sys.platform.startswith("linux"):
        return max(1, (os.cpu_count() or 2) // 2)
    allowed = os.sched_getaffinity(0)
    cores = {_core_of(cpu) for cpu in allowed}
    quota = _cpu_quota()
    return max(1, len(cores) if quota is None else min(len(cores), quota))


def available_memory() -> int | None:
    """Bytes that can be allocated now without swapping; None where the system does not say.

    The smaller of the machine's free (or freeable) memory and what is left of a container's limit.
    """
    if not sys.platform.startswith("linux"):
        return None
    found = [value for value in (_meminfo_available(), *_cgroup_headroom()) if value is not None]
    return min(found, default=None)


def peak_memory() -> int | None:
    """Most bytes of this process that were in memory at once; None where the system does not say.

    Not `getrusage`, whose figure on Linux begins with the peak of the process that started this one.
    """
    if sys.platform.startswith("linux"):
        for line in (_text(Path("/proc/self/status")) or "").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return None
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def processor() -> str:
    """What the processor calls itself."""
    if sys.platform == "darwin":
        return _sysctl_text("machdep.cpu.brand_string") or platform.processor()
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def vendor() -> str:
    """Who made the processor, as it says itself ("GenuineIntel"); empty where the system does not say."""
    return _cpuinfo("vendor_id")


def instruction_sets() -> frozenset[str]:
    """Extensions of the instruction set, by Linux' names for them; empty where the system does not say."""
    return frozenset((_cpuinfo("flags") or _cpuinfo("Features")).split())


def _cpuinfo(name: str) -> str:
    """A field of the first processor."""
    for line in (_text(Path("/proc/cpuinfo")) or "").splitlines():
        field, _, value = line.partition(":")
        if field.strip() == name:
            return value.strip()
    return ""


def _core_of(cpu: int) -> tuple[str, str]:
    folder = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
    package, core = _text(folder / "physical_package_id"), _text(folder / "core_id")
    return (package or "", core if core is not None else f"cpu{cpu}")


def _cpu_quota() -> int | None:
    """Whole cores of the container's CPU quota, rounded up; None without one."""
    line = _text(Path("/sys/fs/cgroup/cpu.max"))
    if line is None:
        quota = _text(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"))
        period = _text(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us"))
        line = f"{quota} {period}" if quota and period and not quota.startswith("-") else None
    if line is None or line.startswith("max"):
        return None
    quota_us, period_us = (int(part) for part in line.split()[:2])
    return max(1, -(-quota_us // period_us))


def _meminfo_available() -> int | None:
    for line in (_text(Path("/proc/meminfo")) or "").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_headroom() -> list[int]:
    """Limit minus use of the container, with reclaimable file cache counted as free (v2, then v1)."""
    root = Path("/sys/fs/cgroup")
    for limit_file, use_file, stat_file, key in (
        (root / "memory.max", root / "memory.current", root / "memory.stat", "inactive_file"),
        (
            root / "memory/memory.limit_in_bytes",
            root / "memory/memory.usage_in_bytes",
            root / "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        limit, use = _text(limit_file), _text(use_file)
        if limit is None or use is None or not limit.isdigit():
            continue
        cache = next((int(s.split()[1]) for s in (_text(stat_file) or "").splitlines() if s.split()[0] == key), 0)
        return [max(0, int(limit) - int(use) + cache)]
    return []


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _sysctl(name: str) -> int | None:
    found = _sysctl_text(name)
    return int(found) if found.isdigit() else None


def _sysctl_text(name: str) -> str:
    try:
        done = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()
