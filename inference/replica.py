"""One serving process: wires transport, dataplane, log and reconciler together, and drains on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from socket import socket
from typing import Any, Final

import psutil
import uvloop

from inference.artifacts import ArtifactCache
from inference.contracts import ServingManifest
from inference.dataplane import Dataplane, Served
from inference.http import HttpLimits, HttpServer
from inference.inference_log import Spool
from inference.metrics import Metrics, Rollup
from inference.model_store import LoadedModel, ModelStore
from inference.reconciler import Observed, Reconciler, Reporter
from inference.rest import RestApi
from inference.settings import Settings

logger = logging.getLogger("inference.replica")

ACCEPT_ANYWAY_S: Final = 5.0  # to tell health checks and callers that there is no manifest
REPORT_LAST_S: Final = 2.0  # for the last heartbeat and rollups


class Replica:
    """Everything in one serving process."""

    def __init__(self, settings: Settings, replica_id: str) -> None:
        """Call on the running event loop. Raises ``ConfigurationError`` when keys are missing."""
        self._settings = settings
        self._replica_id = replica_id
        self._loop = asyncio.get_running_loop()
        self._process = psutil.Process()
        self._metrics = Metrics()
        self._log = Spool(settings.spool, replica_id, cap=settings.spool_cap, seal_interval=settings.seal_interval)
        slow_runs = ThreadPoolExecutor(max(2, os.cpu_count() or 1), thread_name_prefix="slow-run")
        shadow_runs = ThreadPoolExecutor(1, thread_name_prefix="shadow-run")
        self._dataplane = Dataplane(settings.token_pepper(), self._log, self._metrics, slow_runs, shadow_runs)
        rest = RestApi(self._dataplane, self._render_metrics, settings.max_body)
        self._server = HttpServer(rest, HttpLimits.from_settings(settings))
        self._grpc = None
        if settings.grpc_port:
            from inference.grpc_api import GrpcServer  # its libraries cost time and memory

            self._grpc = GrpcServer(self._dataplane, settings)
        self._installed = asyncio.Event()
        self._observed = Observed()
        self._reconciler = Reconciler(
            dsn=settings.database_dsn,
            key=settings.manifest_key(),
            state_file=settings.cache / "last-good-manifest.json",
            store=ModelStore(ArtifactCache(settings.store, settings.cache), settings.keep_warm),
            install=self._install,
            observed=self._observed,
            poll_interval=settings.poll_interval,
        )
        self._reporter = Reporter(
            dsn=settings.database_dsn,
            replica_id=replica_id,
            observed=self._observed,
            take_rollups=self._take_rollups,
        )

    async def serve(self, listener: socket, stop: asyncio.Event) -> None:
        """Serve on a bound socket until ``stop`` is set; then let accepted requests finish."""
        self._reconciler.start()
        self._reporter.start()
        self._tick()
        # Callers wait in the socket's backlog meanwhile, so a restarted replica turns nobody away.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._installed.wait(), ACCEPT_ANYWAY_S)
        await self._server.start(listener)
        if self._grpc is not None:
            await self._grpc.start()
        await stop.wait()
        await self._drain()

    async def _drain(self) -> None:
        self._dataplane.is_ready = False
        self._observed.state = "DRAINING"
        self._observed.changed.set()
        self._reconciler.stop()
        servers = [self._server] if self._grpc is None else [self._server, self._grpc]
        await asyncio.gather(*(server.drain(self._settings.drain_timeout) for server in servers))
        self._metrics.roll()
        self._log.close()
        self._observed.state = "STOPPED"
        await asyncio.to_thread(self._reporter.stop, REPORT_LAST_S)

    def _tick(self) -> None:
        """Once a second: close the metrics' second, seal an idle log file, look at the backlog."""
        self._loop.call_later(1.0, self._tick)
        self._metrics.roll()
        self._log.seal_if_due()
        self._log.measure_backlog()

    def _install(self, manifest: ServingManifest, models: dict[int, LoadedModel]) -> Sequence[dict[str, Any]]:
        """Called on the reconciler's thread: switch on the loop's thread and wait for it."""
        done: Future[Sequence[dict[str, Any]]] = Future()

        def switch() -> None:
            try:
                served = self._dataplane.install(manifest, models)
                self._dataplane.is_ready = self._observed.state not in ("DRAINING", "STOPPED")
                self._installed.set()
                done.set_result([_describe(one) for one in served])
            except BaseException as error:
                done.set_exception(error)
            # Models live long: keep the collector from walking them again and again.
            gc.collect()
            gc.freeze()

        self._loop.call_soon_threadsafe(switch)
        return done.result()

    def _take_rollups(self, limit: int) -> list[Rollup]:
        rollups = self._metrics.rollups
        return [rollups.popleft() for _ in range(min(limit, len(rollups)))]

    def _render_metrics(self) -> bytes:
        return self._dataplane.render_metrics(
            self._replica_id,
            {
                "inference_memory_bytes": self._process.memory_info().rss,
                "inference_connections": len(self._server.connections),
                "inference_request_bodies_bytes": self._server.buffered,
                "inference_log_is_full": self._log.is_full,
                "inference_generation": self._observed.generation,
            },
        )


def serve(settings: Settings, replica_id: str, listener: socket) -> None:
    """Run a replica until SIGTERM."""

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        await Replica(settings, replica_id).serve(listener, stop)

    gc.set_threshold(50_000, 20, 50)
    uvloop.run(main())


def _describe(served: Served) -> dict[str, Any]:
    return {
        "deployment_id": served.entry.deployment_id,
        "endpoint": served.context.endpoint,
        "model_version": served.entry.model_version,
        "digest": served.entry.artifact_digest,
        "load_ms": round(served.model.load_ms, 3),
        "warmup_ms": round(served.model.warm_up.total_ms, 3),
    }
