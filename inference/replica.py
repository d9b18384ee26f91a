"""One serving process: wires transport, dataplane, log and reconciler together, and drains on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Future
from socket import socket
from typing import Any, Final

import psutil
import uvloop

from inference.artifacts import ArtifactCache
from inference.contracts import ServingManifest
from inference.dataplane import Dataplane, Served
from inference.http import HttpLimits, HttpServer
from inference.inference_log import Spool
from inference.metrics import SHARE_S, Metrics, Rollup, SharedText
from inference.model_store import LoadedModel, ModelStore
from inference.quarantine import Quarantine
from inference.reconciler import Observed, Reconciler, Reporter
from inference.rest import RestApi
from inference.runtime import RunOptions, share_arena
from inference.settings import Settings
from inference.slow_runs import slow_runs
from inference.watchdog import LOOP_LANE, SLOW_LANES, TICK_S, Board

logger = logging.getLogger("inference.replica")

SWITCH_INTERVAL_S: Final = 0.001
ACCEPT_ANYWAY_S: Final = 5.0  # to tell health checks and callers that there is no manifest
READY_ANYWAY_S: Final = 30.0  # after that, with what is loaded by then
REPORT_LAST_S: Final = 2.0  # for the last heartbeat and rollups


class Replica:
    """Everything in one serving process."""

    def __init__(self, settings: Settings, replica_id: str, board: Board) -> None:
        """Call on the running event loop. Raises ``ConfigurationError`` when keys are missing."""
        self._settings = settings
        self._replica_id = replica_id
        self._board = board
        self._loop = asyncio.get_running_loop()
        self._process = psutil.Process()
        self._metrics = Metrics()
        self._others = SharedText(settings.metrics, replica_id) if settings.replicas > 1 else None
        self._ticks = 0
        self._log = Spool(settings.spool, replica_id, cap=settings.spool_cap, seal_interval=settings.seal_interval)
        threads = min(max(os.cpu_count() or 1, 2) + 1, len(SLOW_LANES))
        self._lanes = [board.lane(lane, RunOptions()) for lane in (LOOP_LANE, *SLOW_LANES[:threads])]
        slow, shadows = slow_runs(self._lanes[1:])
        self._dataplane = Dataplane(
            settings.token_pepper(),
            self._log,
            self._metrics,
            lane=self._lanes[0],
            slow=slow,
            shadows=shadows,
        )
        rest = RestApi(self._dataplane, self._render_metrics, settings)
        self._server = HttpServer(rest, HttpLimits.from_settings(settings))
        self._grpc = None
        if settings.grpc_port:
            from inference.grpc_api import GrpcServer  # its libraries cost time and memory

            self._grpc = GrpcServer(self._dataplane, settings)
        self._installed = asyncio.Event()
        self._must_be_complete = True  # to be ready
        self._observed = Observed()
        self._served: list[Served] = []
        budget = settings.model_memory // settings.replicas
        artifacts = ArtifactCache(settings.store, settings.cache)
        self._store = ModelStore(artifacts, board, keep_warm=settings.keep_warm, budget=budget)
        self._reconciler = Reconciler(
            dsn=settings.database_dsn,
            key=settings.manifest_key(),
            state_file=settings.cache / "last-good-manifest.json",
            store=self._store,
            quarantine=Quarantine(settings.quarantine),
            install=self._install,
            observed=self._observed,
            poll_interval=settings.poll_interval,
        )
        self._reporter = Reporter(
            dsn=settings.database_dsn,
            replica_id=replica_id,
            observed=self._observed,
            describe=lambda: [_describe(one) for one in self._served],
            take_rollups=self._take_rollups,
        )

    async def serve(self, listener: socket, stop: asyncio.Event) -> None:
        """Serve on a bound socket until ``stop`` is set; then let accepted requests finish."""
        self._beat()
        threading.Thread(target=self._stop_endless_runs, name="stopper", daemon=True).start()
        self._reconciler.start()
        self._reporter.start()
        self._tick()
        # Callers wait in the socket's backlog meanwhile, so a restarted replica turns nobody away.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._installed.wait(), ACCEPT_ANYWAY_S)
        self._loop.call_later(READY_ANYWAY_S, self._be_ready_anyway)
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
        self._store.close()  # not before: an accepted request may need a model that was unloaded
        self._metrics.roll()
        self._log.close()
        self._observed.state = "STOPPED"
        await asyncio.to_thread(self._reporter.stop, REPORT_LAST_S)

    def _tick(self) -> None:
        """Once a second: close the metrics' second, seal an idle log file, look at the backlog."""
        self._loop.call_later(1.0, self._tick)
        self._metrics.roll()
        self._ticks += 1
        if self._others is not None and self._ticks % SHARE_S == 0:
            self._others.write(self._own_metrics())
        self._log.seal_if_due()
        self._log.measure_backlog()

    def _be_ready(self, *, is_complete: bool) -> None:
        if is_complete or not self._must_be_complete:
            is_stopping = self._observed.state in ("DRAINING", "STOPPED")
            self._dataplane.is_ready = self._dataplane.has_manifest and not is_stopping

    def _be_ready_anyway(self) -> None:
        """A single model that takes minutes to load does not keep all the others from being called."""
        self._must_be_complete = False
        self._be_ready(is_complete=False)

    def _beat(self) -> None:
        """Show the parent that the loop turns."""
        self._loop.call_later(TICK_S, self._beat)
        self._board.tick()

    def _stop_endless_runs(self) -> None:
        """A thread of its own: the loop's may be what does not come back."""
        while True:
            time.sleep(TICK_S)
            for lane in self._lanes:
                lane.stop_if_asked()

    def _install(
        self,
        manifest: ServingManifest,
        models: Mapping[int, LoadedModel],
        *,
        pending: Collection[int],
        refused: Mapping[int, str],
        is_complete: bool,
    ) -> Iterable[str]:
        """Called on the reconciler's thread: prepare there, switch on the loop's thread and wait for it."""
        prepared = self._dataplane.prepare(manifest, models, pending=pending, refused=refused)
        done: Future[None] = Future()

        def switch() -> None:
            try:
                self._dataplane.switch(prepared)
                if is_complete:
                    self._installed.set()
                self._be_ready(is_complete=is_complete)
                done.set_result(None)
            except BaseException as error:
                done.set_exception(error)

        self._loop.call_soon_threadsafe(switch)
        done.result()
        self._served = prepared.served
        if is_complete:  # what lives long is not to be walked by the collector again and again
            gc.collect()
            gc.freeze()
        return (one.model.digest for one in prepared.served)

    def _take_rollups(self, limit: int) -> list[Rollup]:
        rollups = self._metrics.rollups
        return [rollups.popleft() for _ in range(min(limit, len(rollups)))]

    def _render_metrics(self) -> bytes:
        own = self._own_metrics()
        return own if self._others is None else self._others.merged(own)

    def _own_metrics(self) -> bytes:
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


def serve(settings: Settings, replica_id: str, listener: socket, board: Board) -> None:
    """Run a replica until SIGTERM."""

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        await Replica(settings, replica_id, board).serve(listener, stop)

    # The reconciler's work on a thousand endpoints must not keep the loop waiting for the interpreter's lock.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    board.keep_crashes()
    share_arena()
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
        "memory_bytes": served.model.memory_bytes,
        "is_in_memory": served.model.session is not None,
    }
