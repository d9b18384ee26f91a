"""Small helpers around operating-system processes: dying with the parent, stopping groups, single-holder locks."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

import psutil

PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent(sent: signal.Signals) -> Callable[[], None]:
    """A ``preexec_fn`` that has Linux send ``sent`` to the child when the thread that started it ends.

    Elsewhere it does nothing, and the next start removes what is left.
    """
    parent = os.getpid()

    def before_exec() -> None:
        if _libc is None:
            return
        _libc.prctl(PR_SET_PDEATHSIG, int(sent))
        if os.getppid() != parent:  # the parent ended before the request was in place
            os._exit(1)

    return before_exec


class AlreadyLocked(Exception):
    """Another process holds the lock; ``holder`` is its process id when it wrote one down."""

    def __init__(self, holder: int | None) -> None:
        super().__init__(f"held by process {holder}")
        self.holder = holder


def take_lock(path: Path) -> IO[bytes]:
    """Lock ``path`` until the returned file is closed or this process ends. Raises ``AlreadyLocked``."""
    file = open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+b", buffering=0)  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        written = file.read(20).strip()
        file.close()
        raise AlreadyLocked(int(written) if written.isdigit() else None) from None
    file.truncate(0)
    file.write(str(os.getpid()).encode())
    return file


def signal_group(group: int, sent: signal.Signals) -> None:
    """Send ``sent`` to every process of ``group``; nothing happens when it is empty."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says EPERM for a group of zombies
        os.killpg(group, sent)


def group_members(group: int) -> list[psutil.Process]:
    """The living processes of a process group, zombies left out."""
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
    return members


def wait_until(condition: Callable[[], bool], timeout_s: float, interval_s: float = 0.02) -> bool:
    """Poll ``condition`` until it holds; returns whether it did within ``timeout_s`` seconds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(interval_s)
    return True
