"""Puts checkpoints where the database's owner cannot take them back: a folder of append-only files, one for each day.

A record is a line of JSON: the signed note, and the leaf hashes since the checkpoint before it, so that a verifier can
name the very event that is not as it was.
"""

from __future__ import annotations

import base64
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from django.conf import settings

from apps.audit.verify import Anchors, VerifierKey

_STEP: Final = 2**20


def record_of(note: str, begin: int, leaves: bytes) -> dict[str, Any]:
    """What is anchored of a checkpoint: ``leaves`` are the hashes of the events after the first ``begin``."""
    return {"note": note, "from": begin, "leaves": base64.b64encode(leaves).decode()}


def append_to_folder(record: dict[str, Any]) -> None:
    """Write a record to the newest day's file, synced; what a crash cut off before is closed with a line end."""
    folder = _folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    newest = _newest_file()
    today = f"{datetime.now(UTC):%Y-%m-%d}.jsonl"
    # A clock that was set back must not change the order of the files.
    path = folder / (max(today, newest.name) if newest else today)
    line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
    with open(path, "a+b", opener=_private) as file:
        if file.tell() and _last_byte(file) != b"\n":
            line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def newest_in_folder() -> dict[str, Any] | None:
    """The record that was written last; None if there is none."""
    path = _newest_file()
    if path is None:
        return None
    for line in reversed(_tail(path).split(b"\n")[:-1]):
        try:
            record: dict[str, Any] = json.loads(line)
        except ValueError:
            continue  # cut off by a crash
        return record
    return None


def read_folder(key: VerifierKey) -> Anchors:
    """Everything that the folder holds, with signatures checked."""
    anchors = Anchors()
    if _folder().is_dir():
        anchors.read(_folder(), [key])
    return anchors


def _folder() -> Path:
    return Path(settings.AUDIT_ANCHOR_DIR)


def _newest_file() -> Path | None:
    return max(_folder().glob("*.jsonl"), default=None, key=lambda path: path.name)


def _tail(path: Path) -> bytes:
    """The end of a file with at least one whole line, if it has one."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        length = 0
        while True:
            length = min(size, length + _STEP)
            file.seek(size - length)
            tail = file.read(length)
            if length == size or tail.count(b"\n") > 1:
                return tail


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    last: bytes = file.read(1)
    return last


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
