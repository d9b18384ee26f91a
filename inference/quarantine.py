"""Deployments that are not loaded any more, because they hung or took their process down again and again."""

from __future__ import annotations

import logging
import os
from collections import defaultdict, deque
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Final

import orjson

logger = logging.getLogger("inference.quarantine")

STRIKES: Final = 3
WITHIN_S: Final = 3600.0
MAX_ENTRIES: Final = 1000


class Strikes:
    """Counts what each deployment did to its process."""

    def __init__(self) -> None:
        self._times: defaultdict[int, deque[float]] = defaultdict(lambda: deque(maxlen=STRIKES))

    def add(self, deployment_id: int, now: float) -> int:
        """Count one more; returns how many there were within the last hour. ``now`` is monotonic."""
        times = self._times[deployment_id]
        times.append(now)
        return sum(now - time <= WITHIN_S for time in times)


class Quarantine:
    """The file in ``var`` by which the parent tells its replicas.

    It names deployments, not versions: the next deployment of a version has another id, and so another chance.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None

    def add(self, deployment_id: int, reason: str) -> None:
        """Put a deployment under quarantine; the oldest entries beyond ``MAX_ENTRIES`` are dropped."""
        at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        entries = self.read() | {
            deployment_id: f"Quarantined at {at}, because {STRIKES} times within an hour it hung or took its process"
            f" down; the last time {reason}. Only a new deployment of the version is loaded again."
        }
        kept = list(entries.items())[-MAX_ENTRIES:]
        aside = self._path.with_name(f".{self._path.name}.{token_hex(8)}")
        try:
            aside.write_bytes(orjson.dumps({str(key): value for key, value in kept}, option=orjson.OPT_INDENT_2))
            os.replace(aside, self._path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            logger.error("The quarantine cannot be saved to %s: %s", self._path, error)

    def read(self) -> dict[int, str]:
        """Deployment id -> what an operator is told. Without a readable file nothing is under quarantine."""
        try:
            return {int(key): str(value) for key, value in orjson.loads(self._path.read_bytes()).items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as error:
            logger.error("The quarantine in %s cannot be read: %s", self._path, error)
            return {}

    def has_changed(self) -> bool:
        """Whether the file is another one than at the last call."""
        try:
            status = self._path.stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        except OSError:
            seen = None
        is_new, self._seen = seen != self._seen, seen
        return is_new
