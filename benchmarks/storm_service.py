"""The inference service and its database for the storms: what can be killed in it, and whether its log is complete."""

from __future__ import annotations

import collections
import hashlib
import os
import signal
import time
from collections.abc import Set
from dataclasses import dataclass
from typing import Final, Literal

import httpx
import psutil
import psycopg
import pyarrow.parquet as pq

from benchmarks.models import INPUT, Model
from benchmarks.product import report, wait_for
from benchmarks.service import Service

Kind = Literal["replica", "shipper"]
CATALOG: Final = "SELECT path, sha256, row_count FROM monitoring_logsegment WHERE merged_into_id IS NULL"
PROBE_TIMEOUT_S: Final = 30
SETTLE_LIMIT_S: Final = 60.0
"""Until everything is in segments: the shipper's longest pause after a failure is 30 s."""


@dataclass(frozen=True)
class CatalogEntry:
    """A segment as the database describes it."""

    path: str
    sha256: str
    row_count: int


class StormService(Service):
    """The service of the benchmarks, whose database can fail."""

    def start_database(self) -> None:
        """Start it, after a stop or a kill."""
        self._database.start()

    def stop_database(self) -> None:
        """Stop it in good order."""
        self._database.stop()

    def kill_database(self) -> None:
        """SIGKILL to the postmaster; returns when it is dead."""
        assert self._database.pid is not None, "it is not running"
        os.kill(self._database.pid, signal.SIGKILL)
        wait_for(lambda: self._database.poll() is not None, PROBE_TIMEOUT_S, "the database's death", every_s=0.01)

    def children(self, kind: Kind) -> list[int]:
        """The process ids of the living replicas, or of the shipper."""
        found = []
        for process in psutil.Process(self.pid).children():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and process.cmdline()[3:4] == [kind]:
                    found.append(process.pid)
            except psutil.NoSuchProcess:
                continue
        return found

    def answers(self, model: Model) -> bool:
        """Whether a request on a new connection is answered with a prediction."""
        row = model.rows[:1]
        body = {"inputs": [{"name": INPUT, "datatype": "FP32", "shape": row.shape, "data": row.ravel().tolist()}]}
        url = f"{self.url}/v2/models/{model.name}/infer"
        try:
            return httpx.post(url, json=body, headers=self.headers, timeout=PROBE_TIMEOUT_S).is_success
        except httpx.HTTPError:
            return False

    def segment_count(self) -> int:
        """How many segments the catalog has."""
        with psycopg.connect(self._installation.database_dsn("app"), connect_timeout=PROBE_TIMEOUT_S) as connection:
            row = connection.execute("SELECT count(*) FROM monitoring_logsegment").fetchone()
        assert row is not None
        count: int = row[0]
        return count

    def spooled_bytes(self) -> int:
        """What waits for the shipper."""
        return sum(path.stat().st_size for path in self._installation.spool.glob("*/*"))

    def check_log(self, part: str, answered: Set[str], *, limit_s: float = SETTLE_LIMIT_S) -> bool:
        """Report whether every answered request is in the log once, and whether files and catalog agree.

        The callers have stopped, the service still runs.
        """
        began = time.monotonic()
        try:
            wait_for(lambda: not self._waiting(), limit_s, "shipping the log")
        except TimeoutError:
            report("storm_log", part=part, limit=limit_s, still_in_the_spool=self._waiting())
            return False
        seconds = time.monotonic() - began
        entries, logged = self._catalog(), collections.Counter[str]()
        wrong = [entry.path for entry in entries if not self._read(entry, logged)]
        files = {path for path in (self._installation.store / "segments").rglob("*") if path.is_file()}
        strays = files - {self._installation.store / entry.path for entry in entries}
        damaged = [path.name for path in self._installation.spool.glob("*/*.unreadable")]
        missing = len(answered - logged.keys())
        twice = sum(1 for count in logged.values() if count > 1)
        report(
            "storm_log",
            part=part,
            answered=len(answered),
            missing=missing,
            logged_twice=twice,
            rows=logged.total(),
            segments=len(entries),
            segments_unlike_their_files=wrong,
            files_outside_the_catalog=sorted(path.name for path in strays),
            damaged_spool_files=damaged,
            settled_s=round(seconds, 2),
            limit=limit_s,
        )
        return not (missing or twice or wrong or strays or damaged)

    def _waiting(self) -> list[str]:
        return [path.name for path in self._installation.spool.glob("*/*") if path.suffix in (".open", ".spool")]

    def _catalog(self) -> list[CatalogEntry]:
        with psycopg.connect(self._installation.database_dsn("app"), connect_timeout=PROBE_TIMEOUT_S) as connection:
            return [CatalogEntry(*row) for row in connection.execute(CATALOG)]

    def _read(self, entry: CatalogEntry, logged: collections.Counter[str]) -> bool:
        """Count the request ids of a segment; whether its file has the rows and the SHA-256 that the catalog says."""
        path = self._installation.store / entry.path
        if not path.is_file():
            return False
        request_ids = pq.read_table(path, columns=["request_id"], partitioning=None)["request_id"].to_pylist()
        logged.update(request_ids)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return (len(request_ids), digest) == (entry.row_count, entry.sha256)
