"""Follows the signed manifest: verify, load aside, switch, report. Runs on threads of its own, never per request."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any, Final

import orjson
import psutil
import psycopg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from psycopg.types.json import Jsonb

from inference.contracts import MANIFEST_CHANNEL, ServingManifest, open_manifest
from inference.errors import InferenceError, ManifestRejected
from inference.metrics import Rollup
from inference.model_store import LoadedModel, ModelStore

logger = logging.getLogger("inference.reconciler")

CONNECT_TIMEOUT_S: Final = 5
RETRY_S: Final = 1.0
RELOAD_S: Final = 5.0  # pause before a deployment that could not be loaded is tried again
HEARTBEAT_S: Final = 2.0
ROLLUP_BATCH: Final = 2000
NOTHING: Final = ServingManifest(0, "", ())

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
    guardrails = known.guardrails || excluded.guardrails,
    latency_histogram = (
        SELECT array_agg(one + other ORDER BY position)
        FROM unnest(known.latency_histogram, excluded.latency_histogram) WITH ORDINALITY AS t(one, other, position)
    )
"""


@dataclass(slots=True)
class Observed:
    """What a replica reports of itself; written by the reconciler, read by the reporter."""

    state: str = "STARTING"
    generation: int = 0
    loaded: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    changed: threading.Event = field(default_factory=threading.Event)


Install = Callable[[ServingManifest, dict[int, LoadedModel]], Sequence[dict[str, Any]]]
"""Switch the dataplane (on its own thread) and return what serves now, as ``Observed.loaded`` wants it."""


class Reconciler(threading.Thread):
    """Brings what serves to what the newest manifest says."""

    def __init__(
        self,
        *,
        dsn: str,
        key: Ed25519PublicKey,
        state_file: Path,
        store: ModelStore,
        install: Install,
        observed: Observed,
        poll_interval: float,
    ) -> None:
        super().__init__(name="reconciler", daemon=True)
        self._dsn = dsn
        self._key = key
        self._state_file = state_file
        self._store = store
        self._install = install
        self._observed = observed
        self._poll_interval = poll_interval
        self._stopping = threading.Event()
        self._manifest: ServingManifest | None = None
        self._refused: tuple[int, str] | None = None  # the generation and text last refused, told once
        self._retry_at = 0.0
        self._is_cut_off = False

    def run(self) -> None:
        """Start from the last good manifest, then follow the database for ever."""
        self._start_from_disk()
        while not self._stopping.is_set():
            try:
                with psycopg.connect(self._dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as connection:
                    self._follow(connection)
            except psycopg.Error as error:
                if not self._is_cut_off:
                    logger.warning("The database does not answer (%s); serving goes on.", _first_line(error))
                self._is_cut_off = True
                self._retry_failed()
            except Exception:
                logger.exception("The reconciler failed; it starts over.")
            self._stopping.wait(RETRY_S)

    def stop(self) -> None:
        """Stop following; the thread ends within a poll interval."""
        self._stopping.set()

    def _start_from_disk(self) -> None:
        try:
            document = orjson.loads(self._state_file.read_bytes())
            self._apply(document["body"].encode(), document["signature"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, AttributeError, ManifestRejected) as error:
            logger.warning("The saved manifest is not usable: %s", error)

    def _follow(self, connection: psycopg.Connection) -> None:
        self._is_cut_off = False
        connection.execute(f"LISTEN {MANIFEST_CHANNEL}")
        while not self._stopping.is_set():
            known = self._manifest.generation if self._manifest else -1
            row = connection.execute(
                "SELECT generation, CASE WHEN generation <> %s THEN body END, signature"
                " FROM deployments_servingmanifest ORDER BY generation DESC LIMIT 1",
                (known,),
            ).fetchone()
            if row is not None and row[1] is not None:
                self._try(row[0], row[1].encode(), row[2])
            elif row is None and self._manifest is None and self._observed.state == "STARTING":
                self._load_and_switch(NOTHING)  # a new installation: ready, with nothing to serve yet
            self._retry_failed()
            for _ in connection.notifies(timeout=self._poll_interval, stop_after=1):
                pass

    def _try(self, generation: int, body: bytes, signature: str) -> None:
        try:
            self._apply(body, signature)
        except ManifestRejected as error:
            if self._refused != (generation, str(error)):
                self._refused = (generation, str(error))
                logger.error("Manifest %s is refused: %s", generation, error)
            self._report_refusal(str(error))
        else:
            self._refused = None
            _save(self._state_file, {"body": body.decode(), "signature": signature})

    def _apply(self, body: bytes, signature: str) -> None:
        manifest = open_manifest(body, signature, self._key)
        if self._manifest is not None and manifest.generation < self._manifest.generation:
            raise ManifestRejected(
                f"Generation {manifest.generation} is older than generation {self._manifest.generation}, which serves."
            )
        self._manifest = manifest
        self._retry_at = time.monotonic() + RELOAD_S  # until the switch has come through
        self._load_and_switch(manifest)

    def _load_and_switch(self, manifest: ServingManifest) -> None:
        """Load what is missing, aside; then switch. What cannot be loaded is reported and tried again later."""
        models: dict[int, LoadedModel] = {}
        errors = []
        for endpoint in manifest.endpoints:
            for entry in endpoint.deployments:
                try:
                    models[entry.deployment_id] = self._store.get(entry)
                except Exception as error:
                    message = str(error) if isinstance(error, InferenceError) else f"It broke: {type(error).__name__}."
                    errors.append({"deployment_id": entry.deployment_id, "message": message})
                    logger.error("%s version %s cannot be served: %s", endpoint.name, entry.model_version, error)
        loaded = self._install(manifest, models)
        self._store.retire({one["digest"] for one in loaded} | {model.digest for model in models.values()})
        self._retry_at = time.monotonic() + RELOAD_S if errors else 0.0
        observed = self._observed
        observed.generation, observed.loaded, observed.errors = manifest.generation, list(loaded), errors
        if observed.state == "STARTING":
            observed.state = "READY"
        observed.changed.set()

    def _retry_failed(self) -> None:
        if self._manifest is not None and self._retry_at and time.monotonic() >= self._retry_at:
            self._retry_at = time.monotonic() + RELOAD_S
            self._load_and_switch(self._manifest)

    def _report_refusal(self, message: str) -> None:
        refusal = {"deployment_id": None, "message": f"The newest manifest is refused: {message}"}
        if refusal not in self._observed.errors:
            self._observed.errors = [*self._observed.errors, refusal]
            self._observed.changed.set()


class Reporter(threading.Thread):
    """Tells the database what this replica sees: a heartbeat, and the per-second rollups."""

    def __init__(
        self, *, dsn: str, replica_id: str, observed: Observed, take_rollups: Callable[[int], list[Rollup]]
    ) -> None:
        super().__init__(name="reporter", daemon=True)
        self._dsn = dsn
        self._replica_id = replica_id
        self._observed = observed
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
        observed = self._observed
        connection.execute(
            UPSERT_REPLICA,
            (
                self._replica_id,
                os.uname().nodename,
                os.getpid(),
                self._started_at,
                observed.generation,
                observed.state,
                self._process.memory_info().rss,
                Jsonb(observed.loaded),
                Jsonb(observed.errors),
            ),
        )

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
