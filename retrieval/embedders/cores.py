"""What this process may compute with: its share of the cores, and what they do with small integers."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
CPUS = Path("/proc/cpuinfo")
WIDE_SUMS = {"avx512_vnni", "avx_vnni", "amx_int8"}
"""x86 instructions that add products of 8 bits in 32."""


def overflows_in_int8(cpus: Path = CPUS) -> bool:
    """Whether sums of products of 8-bit integers are clamped to 16 bits, as on x86 before VNNI. Unknown systems do not."""
    lines = cpus.read_text(encoding="utf-8").splitlines() if cpus.is_file() else []
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    return "avx2" in flags and not flags & WIDE_SUMS


def available_cores(root: Path = CGROUPS, own: Path = OWN_GROUPS) -> int:
    """At least 1. The host's count would be wrong in a container: as many threads would wait for a few cores' time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(root, own))]))


def _quotas(root: Path, own: Path) -> Iterator[float]:
    """In cores, of our control group and of all above it, in either version of the interface."""
    lines = own.read_text(encoding="utf-8").splitlines() if own.is_file() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        group = base / path.lstrip("/")
        # In a namespace of its own a container sees its group as the root, or by a path that only the host has.
        for folder in dict.fromkeys((base, group, *group.parents)):
            if folder.is_relative_to(base):
                yield from _quota_of(folder)


def _quota_of(folder: Path) -> Iterator[float]:
    if (file := folder / "cpu.max").is_file():
        quota, period = file.read_text(encoding="utf-8").split()
    elif (file := folder / "cpu.cfs_quota_us").is_file():
        quota, period = file.read_text(encoding="utf-8"), (folder / "cpu.cfs_period_us").read_text(encoding="utf-8")
    else:
        return
    if quota.strip() not in {"max", "-1"}:
        yield int(quota) / int(period)
