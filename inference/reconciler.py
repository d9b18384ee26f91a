"""Follows the signed manifest: verify, load aside, switch, report. Runs on threads of its own, never per request."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any, Final, NamedTuple, Protocol

import orjson
import psutil
import psycopg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from psycopg.types.json import Jsonb

from inference.contracts import MANIFEST_CHANNEL, ServingManifest
from inference.errors import ManifestRejected
from inference.manifest import ManifestReader
from inference.metrics import Rollup
from inference.model_store import NEED, LoadedModel, ModelStore, reason
from inference.quarantine import Quarantine

logger = logging.getLogger("inference.reconciler")

CONNECT_TIMEOUT_S: Final = 5
RETRY_S: Final = 1.0
STEP_S: Final = 0.1  # between two switches while models are being loaded
HEARTBEAT_S: Final = 2.0
ROLLUP_BATCH: Final = 2000
NOTHING: Final = ServingManifest(0, "", ())

TOUCH_REPLICA: Final = """
UPDATE deployments_replica SET seen_at = now(), memory_bytes = %s WHERE replica_id = %s AND pid = %s
"""
UPSERT_REPLICA: Final = """
INSERT INTO deployments_replica
    (replica_id, hostname, pid, started_at, seen_at, generation, state, memory_bytes, loaded, errors)
VALUES (%s, %s, %s, %s, now(), %s, %s, %s, %s, %s)
ON CONFLICT (replica_id) DO UPDATE SET
    hostname = excluded.hostname, pid = excluded.pid, started_at = excluded.started_at, seen_at = excluded.seen_at,
    generation = excluded.generation, state = excluded.state, memory_bytes = excluded.memory_bytes,
    loaded = excluded.loaded, errors = excluded.errors
"""
ADD_ROLLUP: Final = """
INSERT INTO monitoring_metricrollup AS known
    (endpoint_id, deployment_id, second, replica_id, requests, rows, errors, is_shadow, cpu_us, guardrails,
     latency_histogram)
VALUES (%s, %s, to_timestamp(%s), %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (endpoint_id, deployment_id, second, replica_id) DO UPDATE SET
    requests = known.requests + excluded.requests,
    rows = known.rows + excluded.rows,
    errors = known.errors + excluded.errors,
    cpu_us = known.cpu_us + excluded.cpu_us,
    guardrails = (
        SELECT coalesce(jsonb_object_agg(rule, rows), '{}') FROM (
            SELECT rule, sum(count::bigint) AS rows FROM (
                SELECT * FROM jsonb_each_text(known.guardrails)
                UNION ALL SELECT * FROM jsonb_each_text(excluded.guardrails)
            ) AS counts (rule, count) GROUP BY rule
        ) AS sums
    ),
    latency_histogram = (
        SELECT array_agg(one + other ORDER BY position)
        FROM unnest(known.latency_histogram, excluded.latency_histogram) WITH ORDINALITY AS t(one, other, position)
    )
"""


class Document(NamedTuple):
    """A manifest as it is stored; without a body if there is none yet."""

    generation: int
    body: bytes
    signature: str


@dataclass(slots=True)
class Observed:
    """What a replica reports of itself; written by the reconciler, read by the reporter."""

    state: str = "STARTING"
    generation: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)
    changed: threading.Event = field(default_factory=threading.Event)


class Install(Protocol):
    """Switches the dataplane."""

    def __call__(
        self,
        manifest: ServingManifest,
        models: Mapping[int, LoadedModel],
        *,
        pending: Collection[int],
        refused: Mapping[int, str],
        is_complete: bool,
    ) -> Iterable[str]:
        """``Dataplane.prepare`` and ``switch``; returns the digests that serve now. Called on the reconciler's thread.

        ``is_complete``: nothing that is to get traffic is still being loaded.
        """


class ManifestFeed(threading.Thread):
    """Follows the database: hands over the newest manifest, as it is written there."""

    def __init__(self, dsn: str, poll_interval: float, known: Callable[[], int], wake: Callable[[], None]) -> None:
        """``known``: the generation that needs no fetching; ``wake`` is called when ``take`` has something."""
        super().__init__(name="manifest-feed", daemon=True)
        self._dsn = dsn
        self._poll_interval = poll_interval
        self._known = known
        self._wake = wake
        self._stopping = threading.Event()
        self._newest: Document | None = None
        self._is_cut_off = False

    def take(self) -> Document | None:
        """What has come since the last call."""
        newest, self._newest = self._newest, None
        return newest

    def run(self) -> None:
        """Follow the database for ever; serving goes on without it."""
        while not self._stopping.is_set():
            try:
                with psycopg.connect(self._dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as connection:
                    self._follow(connection)
            except psycopg.Error as error:
                if not self._is_cut_off:
                    logger.warning("The database does not answer (%s); serving goes on.", _first_line(error))
                self._is_cut_off = True
            except Exception:
                logger.exception("Following the manifest failed; it starts over.")
            self._stopping.wait(RETRY_S)

    def stop(self) -> None:
        """Stop following; the thread ends within a poll interval."""
        self._stopping.set()

    def _follow(self, connection: psycopg.Connection) -> None:
        self._is_cut_off = False
        connection.execute(f"LISTEN {MANIFEST_CHANNEL}")
        while not self._stopping.is_set():
            row = connection.execute(
                "SELECT generation, CASE WHEN generation <> %s THEN body END, signature"
                " FROM deployments_servingmanifest ORDER BY generation DESC LIMIT 1",
                (self._known(),),
            ).fetchone()
            if row is None:
                self._newest = Document(0, b"", "")  # a new installation
                self._wake()
            elif row[1] is not None:
                self._newest = Document(row[0], row[1].encode(), row[2])
                self._wake()
            for _ in connection.notifies(timeout=self._poll_interval, stop_after=1):
                pass


class Reconciler(threading.Thread):
    """Brings what serves to what the newest manifest says: at once what is loaded, step by step what is not."""

    def __init__(
        self,
        *,
        dsn: str,
        key: Ed25519PublicKey,
        state_file: Path,
        store: ModelStore,
        quarantine: Quarantine,
        install: Install,
        observed: Observed,
        poll_interval: float,
    ) -> None:
        super().__init__(name="reconciler", daemon=True)
        self._reader = ManifestReader(key)
        self._state_file = state_file
        self._store = store
        self._quarantine = quarantine
        self._install = install
        self._observed = observed
        self._poll_interval = poll_interval
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._feed = ManifestFeed(dsn, poll_interval, lambda: self._manifest.generation, self._wake.set)
        self._has_manifest = False
        self._manifest = NOTHING
        self._refused: tuple[int, str] | None = None  # the generation and text last refused, told once
        self._quarantined: dict[int, str] = {}
        self._has_loaded = False  # set by the loaders: what is loaded is not what was installed
        self._in_use: set[str] = set()

    def run(self) -> None:
        """Start from the last good manifest, then follow the database for ever."""
        self._store.on_change = self._on_loaded
        self._start_from_disk()
        self._feed.start()
        while not self._stopping.is_set():
            try:
                self._reconcile()
            except Exception:
                logger.exception("The reconciler failed; it starts over.")
                self._stopping.wait(RETRY_S)
            self._wake.wait(self._poll_interval)
            self._wake.clear()

    def stop(self) -> None:
        """Stop following; the thread ends a moment later."""
        self._feed.stop()
        self._stopping.set()
        self._wake.set()

    def _on_loaded(self) -> None:
        self._has_loaded = True
        self._wake.set()

    def _reconcile(self) -> None:
        document = self._feed.take()
        if document is not None and (document.body or not self._has_manifest):
            self._try(document)
        if self._has_manifest and self._quarantine.has_changed():
            self._plan()
            self._switch()
        if self._has_loaded:
            self._has_loaded = False
            self._switch()
            # Many loads end within one step; a new manifest does not wait for longer than that.
            self._stopping.wait(STEP_S)
        self._store.retire(self._in_use)

    def _start_from_disk(self) -> None:
        try:
            document = orjson.loads(self._state_file.read_bytes())
            self._apply(self._reader.open(document["body"].encode(), document["signature"]))
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, AttributeError, ManifestRejected) as error:
            logger.warning("The saved manifest is not usable: %s", error)

    def _try(self, document: Document) -> None:
        if not document.body:
            self._apply(NOTHING)
            return
        try:
            manifest = self._reader.open(document.body, document.signature)
            if manifest.generation < self._manifest.generation:
                raise ManifestRejected(
                    f"Generation {manifest.generation} is older than generation {self._manifest.generation},"
                    " which serves."
                )
        except ManifestRejected as error:
            if self._refused != (document.generation, str(error)):
                self._refused = (document.generation, str(error))
                logger.error("Manifest %s is refused: %s", document.generation, error)
            self._report_refusal(str(error))
            return
        self._refused = None
        self._apply(manifest)
        _save(self._state_file, {"body": document.body.decode(), "signature": document.signature})

    def _apply(self, manifest: ServingManifest) -> None:
        self._manifest = manifest
        self._has_manifest = True
        self._quarantine.has_changed()
        self._plan()
        self._switch()

    def _plan(self) -> None:
        """Have the store load what is missing."""
        self._quarantined = self._quarantine.read()
        self._store.want(
            [
                (entry, endpoint.limits)
                for endpoint in self._manifest.endpoints
                for entry in endpoint.deployments
                if entry.deployment_id not in self._quarantined
            ]
        )

    def _switch(self) -> None:
        """Switch to what is loaded of the manifest. What cannot be served is reported; the store tries again."""
        missing, missing_traffic = self._store.missing(), self._store.missing(need=NEED["shadow"])
        models: dict[int, LoadedModel] = {}
        failed: dict[int, str] = {}
        pending: set[int] = set()
        for endpoint in self._manifest.endpoints:
            for entry in endpoint.deployments:
                key = entry.deployment_id
                if key in self._quarantined:
                    continue
                try:
                    model = self._store.find(entry, endpoint.limits)
                except Exception as error:
                    failed[key] = reason(error)
                else:
                    if model is None:
                        pending.add(key)
                    else:
                        models[key] = model
        self._in_use = set(
            self._install(
                self._manifest, models, pending=pending, refused=self._quarantined, is_complete=not missing_traffic
            )
        )
        self._report(failed, is_complete=not missing)

    def _report(self, failed: dict[int, str], *, is_complete: bool) -> None:
        """The generation counts as followed once everything in it was loaded or failed."""
        observed = self._observed
        known = {entry.deployment_id for endpoint in self._manifest.endpoints for entry in endpoint.deployments}
        problems = failed | {key: text for key, text in self._quarantined.items() if key in known}
        errors = [{"deployment_id": key, "message": text} for key, text in problems.items()]
        generation = self._manifest.generation if is_complete else observed.generation
        if (generation, errors) != (observed.generation, observed.errors):
            observed.generation, observed.errors = generation, errors
            observed.changed.set()
        if is_complete and observed.state == "STARTING":  # and not when it is draining by now
            observed.state = "READY"
            observed.changed.set()

    def _report_refusal(self, message: str) -> None:
        refusal = {
            "deployment_id": None,
            "is_manifest": True,
            "message": f"The newest manifest is refused: {message}",
        }
        if refusal not in self._observed.errors:
            self._observed.errors = [*self._observed.errors, refusal]
            self._observed.changed.set()


class Reporter(threading.Thread):
    """Tells the database what this replica sees: a heartbeat, and the per-second rollups."""

    def __init__(
        self,
        *,
        dsn: str,
        replica_id: str,
        observed: Observed,
        describe: Callable[[], list[dict[str, Any]]],
        take_rollups: Callable[[int], list[Rollup]],
    ) -> None:
        """``describe``: what is loaded now, for people and the console."""
        super().__init__(name="reporter", daemon=True)
        self._dsn = dsn
        self._replica_id = replica_id
        self._observed = observed
        self._describe = describe
        self._sent: tuple[Any, ...] | None = None
        self._take_rollups = take_rollups
        self._unsent: list[Rollup] = []
        self._process = psutil.Process()
        self._started_at = datetime.now(UTC)
        self._stopping = threading.Event()

    def run(self) -> None:
        """Report until stopped; while the database is down, try again every second."""
        while not self._stopping.is_set():
            try:
                with psycopg.connect(self._dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as connection:
                    self._report(connection)
            except psycopg.Error:
                self._stopping.wait(RETRY_S)
            except Exception:
                logger.exception("The reporter failed; it starts over.")
                self._stopping.wait(RETRY_S)

    def stop(self, timeout: float) -> None:
        """Send what is left, and the final state, for at most ``timeout`` seconds."""
        self._stopping.set()
        self._observed.changed.set()
        self.join(timeout)

    def _report(self, connection: psycopg.Connection) -> None:
        next_heartbeat = 0.0
        while True:
            is_last = self._stopping.is_set()
            is_changed = self._observed.changed.wait(timeout=1.0)
            self._observed.changed.clear()
            if is_changed or is_last or time.monotonic() >= next_heartbeat:
                self._send_heartbeat(connection)
                next_heartbeat = time.monotonic() + HEARTBEAT_S
            self._send_rollups(connection)
            if is_last:
                return

    def _send_heartbeat(self, connection: psycopg.Connection) -> None:
        """Tell what has changed; if nothing has, only that this replica lives: what is loaded may be a long list."""
        observed = self._observed
        memory = self._process.memory_info().rss
        state = (observed.generation, observed.state, self._describe(), observed.errors)
        if state == self._sent:
            touched = connection.execute(TOUCH_REPLICA, (memory, self._replica_id, os.getpid()))
            if touched.rowcount:
                return
        generation, name, loaded, errors = state
        connection.execute(
            UPSERT_REPLICA,
            (
                self._replica_id,
                os.uname().nodename,
                os.getpid(),
                self._started_at,
                generation,
                name,
                memory,
                Jsonb(loaded),
                Jsonb(errors),
            ),
        )
        self._sent = state

    def _send_rollups(self, connection: psycopg.Connection) -> None:
        while rollups := self._unsent or self._take_rollups(ROLLUP_BATCH):
            self._unsent = rollups
            with connection.transaction(), connection.cursor() as cursor:
                cursor.executemany(ADD_ROLLUP, [_rollup_row(one, self._replica_id) for one in rollups])
            self._unsent = []


def _rollup_row(rollup: Rollup, replica_id: str) -> tuple[Any, ...]:
    return (
        rollup.endpoint_id,
        rollup.deployment_id,
        rollup.second,
        replica_id,
        rollup.requests,
        rollup.rows,
        rollup.errors,
        rollup.is_shadow,
        rollup.cpu_us,
        Jsonb(rollup.guardrails),
        list(rollup.latency_histogram),
    )


def _save(path: Path, document: dict[str, str]) -> None:
    """Replace the saved manifest in one step. A full disk must not stop the switch."""
    aside = path.with_name(f".{path.name}.{token_hex(8)}")
    try:
        with open(aside, "xb") as file:
            file.write(orjson.dumps(document))
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        logger.error("The manifest cannot be saved to %s: %s", path, error)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]
