"""The process's heap as the C library sees it, and how much memory there is. Zeros where nobody can say."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path
from typing import Any, Final

import psutil


class _MallInfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc 2.33 and later."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def _from_libc(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError):  # not glibc
        return None


_mallinfo2: Final = _from_libc("mallinfo2")
_malloc_trim: Final = _from_libc("malloc_trim")
if _mallinfo2 is not None:
    _mallinfo2.restype = _MallInfo


def heap_in_use() -> int:
    """Bytes that the process has allocated and not freed, exact to the byte, whatever the system's pages say."""
    if _mallinfo2 is None:
        return 0
    info = _mallinfo2()
    return int(info.uordblks) + int(info.hblkhd)


def release_free_memory() -> None:
    """Give free pages of the heap back to the system. Takes milliseconds: not for the event loop's thread."""
    if _malloc_trim is not None:
        _malloc_trim(0)


def usable_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The memory in bytes that this machine has, or that its control group (version 2, else 1) may use."""
    limits = [psutil.virtual_memory().total]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # absent, or "max"
            limits.append(int((cgroup / name).read_text()))
    return min(limits)
