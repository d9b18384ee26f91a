"""``manage.py controller``: the one process that ticks. Of several, one leads and the others wait."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import psycopg
from django.core.management.base import BaseCommand
from django.db import close_old_connections, connection

from apps.audit.checkpoints import keep_checkpoints
from apps.audit.forwarding import forward_checkpoints
from apps.audit.verification import run_verifications
from apps.core.controller import CHANNEL
from apps.deployments.manifest import publish_manifest
from apps.deployments.refusals import note_refused_manifests
from apps.jobs.services import recover_jobs
from apps.monitoring.compaction import merge_segments, remove_merged_files
from apps.monitoring.retention import prune_segments
from apps.monitoring.sealing import seal_segments
from apps.monitoring.services import prune_rollups
from apps.policies.attestations import enforce_attestations
from apps.promotions.reviews import remind_reviewers
from apps.promotions.rollouts import apply_promotions, approve_unprotected, enforce_approvals, expire_promotions

logger = logging.getLogger(__name__)

_LEADER_LOCK: Final = 7_203_114_501
_TICK_S: Final = 1.0

# What to do, and how many seconds may pass between two times.
DUTIES: Final[tuple[tuple[Callable[[], Any], float], ...]] = (
    (note_refused_manifests, 5),  # before anything publishes a newer manifest
    (approve_unprotected, 0),
    (apply_promotions, 0),
    (enforce_approvals, 10),
    (enforce_attestations, 30),
    (publish_manifest, 0),  # tokens and members change who may call an endpoint
    (keep_checkpoints, 0),
    (forward_checkpoints, 5),
    (run_verifications, 5),
    (seal_segments, 60),
    (recover_jobs, 5),
    (expire_promotions, 60),
    (remind_reviewers, 300),
    (prune_rollups, 600),
    (merge_segments, 10),
    (remove_merged_files, 60),
    (prune_segments, 600),
)


class Command(BaseCommand):
    """Tick every second, or at once when something knocks."""

    help = "Apply approved promotions, publish manifests, recover jobs, expire requests, keep the log in order."
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        """Run until SIGTERM. A database that goes away is waited for."""
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        while not stop.is_set():
            try:
                with psycopg.connect(**connection.get_connection_params() | {"autocommit": True}) as ears:
                    self._lead(ears, stop)
            except psycopg.OperationalError as error:
                logger.warning("The database does not answer, trying again: %s", str(error).splitlines()[0])
                stop.wait(_TICK_S)

    def _lead(self, ears: psycopg.Connection[Any], stop: threading.Event) -> None:
        """Wait to become the leader, then tick. The lock goes with the connection."""
        while not stop.is_set():
            row = ears.execute("SELECT pg_try_advisory_lock(%s)", [_LEADER_LOCK]).fetchone()
            if row and row[0]:
                break
            stop.wait(_TICK_S)
        ears.execute(f"LISTEN {CHANNEL}")
        done_at = dict.fromkeys(range(len(DUTIES)), float("-inf"))
        while not stop.is_set():
            self._tick(done_at)
            for _ in ears.notifies(timeout=_TICK_S, stop_after=1):
                pass

    def _tick(self, done_at: dict[int, float]) -> None:
        """Do what is due. One duty that fails does not keep the others from being done."""
        close_old_connections()
        now = time.monotonic()
        for index, (duty, every_s) in enumerate(DUTIES):
            if now - done_at[index] < every_s:
                continue
            try:
                duty()
            except Exception:
                logger.exception("%s failed; trying again at the next tick", duty.__name__)
            done_at[index] = now
