"""What a parser process may do, and how much memory it has: it reads hostile files, and so do the programs that it starts."""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import signal
import socket
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_MAX_FILE_BYTES = 512 * 1024**2
"""So that no document can fill the disk."""

log = logging.getLogger(__name__)


def enter() -> None:
    """Of this process and all that it will start: no network, an own session, no huge files; and death with the parent."""
    if sys.platform == "linux":
        _leave_network()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    _limit(resource.RLIMIT_FSIZE, _MAX_FILE_BYTES)


def has_network() -> bool:
    """Whether this process reaches at least this machine; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("127.0.0.1", 9))
        except OSError:
            return False
    return True


def limit_memory(extra: int) -> None:
    """Allow `extra` bytes on top of what the process has now; absolute limits fail as soon as a large library is loaded."""
    if sys.platform == "linux":  # other systems do not enforce it
        _limit(resource.RLIMIT_AS, _pages()[0] * resource.getpagesize() + extra)


def resident_bytes() -> int:
    """What of this process lies in memory; 0 where the system does not tell."""
    return _pages()[1] * resource.getpagesize() if sys.platform == "linux" else 0


def give_back_memory() -> None:
    """glibc keeps what a large document took until it is asked."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _pages() -> tuple[int, int]:
    """Of address space, and in memory."""
    size, resident = Path("/proc/self/statm").read_text(encoding="ascii").split()[:2]
    return int(size), int(resident)


def _limit(what: int, wanted: int) -> None:
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _leave_network() -> None:
    """Into a network without interfaces, where the system lets us; others than root may only in a user namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWNET) == 0:
        return
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        log.warning(
            "this parser keeps the network (%s): the container forbids it to leave; block egress of the workers",
            os.strerror(ctypes.get_errno()),
        )
        return
    try:  # in a new user namespace we are nobody until told otherwise
        for file, content in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            Path("/proc/self", file).write_text(content, encoding="ascii")
    except OSError as error:
        log.debug("parsers run as nobody: %s", error)
