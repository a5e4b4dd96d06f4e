"""What a benchmark asks of the machine: who listens, what a process tree takes, what others took, and where it ran."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil


def listener(port: int) -> psutil.Process:
    """The process that listens on the port."""
    found = psutil.net_connections("tcp")
    pids = (c.pid for c in found if c.laddr and c.laddr.port == port and c.status == psutil.CONN_LISTEN and c.pid)
    return psutil.Process(next(pids))


def family(process: psutil.Process) -> list[psutil.Process]:
    """The process and all below it."""
    return [process, *process.children(recursive=True)]


def cpu_seconds(process: psutil.Process) -> float:
    """Of the process and all below it, also of those that have ended."""
    total = 0.0
    for each in family(process):
        try:
            total += sum(each.cpu_times()[:4])  # what follows is waiting
        except psutil.NoSuchProcess:
            continue
    return total


def peak_mb(process: psutil.Process) -> int:
    """The most that the process ever held; 0 for one that has ended."""
    status = _lines(f"/proc/{process.pid}/status")
    return next((int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM")), 0)


def folder_mb(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) // 2**20


@dataclass
class Spent:
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    foreign_cores: float = 0.0
    """Cores that neither the measured nor the measuring process used."""


@contextmanager
def watched(process: psutil.Process) -> Iterator[Spent]:
    """What the block took of wall time and of the CPU, and what others took meanwhile."""
    spent, me = Spent(), psutil.Process()
    began, busy, own, mine = time.perf_counter(), busy_seconds(), cpu_seconds(process), sum(me.cpu_times()[:2])
    yield spent
    spent.seconds = time.perf_counter() - began
    spent.cpu_seconds = cpu_seconds(process) - own
    ours = spent.cpu_seconds + (0.0 if process.pid == me.pid else sum(me.cpu_times()[:2]) - mine)
    spent.foreign_cores = max(0.0, (busy_seconds() - busy - ours) / spent.seconds)


def busy_seconds() -> float:
    """CPU seconds of the whole machine since it started."""
    now = psutil.cpu_times()
    return sum(now) - now.idle - now.iowait - now.guest - now.guest_nice


def description() -> str:
    cpu = next((line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    flags = next((line for line in _lines("/proc/cpuinfo") if line.startswith("flags")), "").split()
    known = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8") if flag in flags]
    memory = psutil.virtual_memory().total / 2**30
    system = f"{platform.system()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores {cpu} ({', '.join(known)}), {memory:.0f} GB, {system}"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
