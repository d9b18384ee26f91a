"""The parent of the serving processes: one listener each, restarts, the watchdog, the quarantine and the drain."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any, Final

from inference.errors import ConfigurationError
from inference.quarantine import STRIKES, Quarantine, Strikes
from inference.settings import Settings
from inference.watchdog import Board, Finding, Watchdog, count_oom_kills, explain_death

logger = logging.getLogger("inference")

LOOK_S: Final = 0.1
KILL_AFTER_S: Final = 3.0  # beyond the drain timeout
SHIPPER_STOP_S: Final = 2.0
MAX_BACKOFF_S: Final = 30.0
STABLE_S: Final = 10.0  # a child that lived as long is restarted at once


class Child:
    """A supervised process."""

    def __init__(self, *arguments: str) -> None:
        self.name = " ".join(arguments)
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._restart_at = 0.0
        self._failures = 0

    def start(self) -> None:
        """Start the process."""
        self._spawn()

    def _spawn(self, *descriptors: int) -> None:
        arguments = [*self._arguments, str(os.getpid()), *map(str, descriptors)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "inference", *arguments], pass_fds=descriptors, stdin=subprocess.DEVNULL
        )
        self._started_at = time.monotonic()

    def revive(self) -> None:
        """Restart the process if it died: at once if it had been stable, else after a growing pause."""
        now = time.monotonic()
        if self._process is not None and (status := self._process.poll()) is not None:
            self._process = None
            self._failures = 0 if now - self._started_at >= STABLE_S else self._failures + 1
            pause = min(0.1 * 2**self._failures, MAX_BACKOFF_S) if self._failures > 1 else 0.0
            self._restart_at = now + pause
            logger.error("%s died (exit %s); restart in %.1f s.", self.name, status, pause)
            self.died(status)
        if self._process is None and now >= self._restart_at:
            self.start()

    def died(self, status: int) -> None:
        """Hook for what is to be learnt from an unasked-for end."""

    def signal(self, number: int) -> None:
        """Send a signal if the process lives."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def wait(self, until: float) -> None:
        """Wait for the end of the process; kill it at ``until`` (monotonic)."""
        if self._process is None:
            return
        try:
            self._process.wait(max(until - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            logger.error("%s did not stop in time and is killed.", self.name)
            self._process.kill()
            self._process.wait()


class ReplicaChild(Child):
    """A replica with its listening socket, which outlives the process, and a fresh board for each life."""

    def __init__(self, name: str, listener: socket.socket, settings: Settings, offences: Offences) -> None:
        super().__init__("replica", name)
        self._listener = listener
        self._settings = settings
        self._offences = offences
        self._board: Board | None = None
        self._watchdog: Watchdog | None = None
        self._finding: Finding | None = None
        self._oom_kills = (0, 0)  # on this machine, at the look before the last one and at the last one

    def start(self) -> None:
        """Start the process. It inherits the listening socket, so callers wait out a restart in the backlog."""
        if self._board is not None:
            self._board.close()
        self._board = Board.create()
        bounds = self._settings
        self._watchdog = Watchdog(self._board, hang=bounds.hang, run=bounds.run_timeout, load=bounds.load_timeout)
        self._finding = None
        self._oom_kills = (count_oom_kills(),) * 2
        self._spawn(self._listener.fileno(), self._board.descriptor)

    def watch(self) -> None:
        """Have a run that does not end stopped; kill the process if that does not help or its loop stands still."""
        if self._watchdog is None or self._finding is not None:
            return
        self._oom_kills = (self._oom_kills[1], count_oom_kills())
        finding = self._watchdog.look(time.monotonic())
        if finding is not None and finding.is_fatal:
            logger.error("%s is killed: %s.", self.name, finding.reason)
            self._finding = finding  # a strike once the process is dead
            self.signal(signal.SIGKILL)
        elif finding is not None:
            logger.error("%s: %s.", self.name, finding.reason)
            self._offences.record(finding)

    def died(self, status: int) -> None:
        """Hold the deployments responsible that were running, as far as that is known."""
        if self._board is None:
            return
        if self._finding is None:
            is_short = count_oom_kills() > self._oom_kills[0]
            self._finding = explain_death(self._board, status, was_out_of_memory=is_short)
            if trace := self._board.crash():
                logger.error("%s left this: %s", self.name, trace[:4000].decode(errors="replace"))
        if self._finding is not None:
            self._offences.record(self._finding)


class Offences:
    """From findings to the quarantine."""

    def __init__(self, quarantine: Quarantine) -> None:
        self._quarantine = quarantine
        self._strikes = Strikes()

    def record(self, finding: Finding) -> None:
        """Count a strike for each culprit; the last one is quarantine."""
        for deployment_id in finding.deployment_ids:
            count = self._strikes.add(deployment_id, time.monotonic())
            logger.error("Strike %s of %s for deployment %s: %s.", count, STRIKES, deployment_id, finding.reason)
            if count >= STRIKES:
                self._quarantine.add(deployment_id, finding.reason)


def supervise(settings: Settings) -> int:
    """Keep the replicas and the shipper running until SIGTERM or SIGINT; then drain and stop them."""
    settings.manifest_key()
    settings.token_pepper()
    listeners = bind(settings.host, settings.port, settings.replicas)
    if settings.grpc_port:  # each replica binds it for itself; whether it is free is asked once, here
        for probe in bind(settings.host, settings.grpc_port, 1, "INFERENCE_GRPC_PORT"):
            probe.close()
    offences = Offences(Quarantine(settings.quarantine))
    replicas = [
        ReplicaChild(f"{settings.replica_prefix}-{position}", listener, settings, offences)
        for position, listener in enumerate(listeners, start=1)
    ]
    shipper = Child("shipper")
    stopping = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    host, port = listeners[0].getsockname()[:2]
    logger.info("Serving on http://%s:%s with %s replica(s).", host, port, len(replicas))
    while not stopping:
        for replica in replicas:
            replica.watch()
            replica.revive()
        shipper.revive()
        time.sleep(LOOK_S)
    _stop(replicas, shipper, settings.drain_timeout)
    return 0


def _stop(replicas: list[ReplicaChild], shipper: Child, drain_timeout: float) -> None:
    """Drain the replicas, then let the shipper take what they logged. Each has its time, and is killed after it."""
    for replica in replicas:
        replica.signal(signal.SIGTERM)
    deadline = time.monotonic() + drain_timeout + KILL_AFTER_S
    for replica in replicas:
        replica.wait(deadline)
    shipper.signal(signal.SIGTERM)
    shipper.wait(time.monotonic() + SHIPPER_STOP_S)


def bind(host: str, port: int, count: int, variable: str = "INFERENCE_PORT") -> list[socket.socket]:
    """One listening socket per replica, all on one address. Raises ``ConfigurationError`` if it is taken."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # A first socket without SO_REUSEPORT fails where another service listens, whatever options that one uses.
        with _socket(family, address) as probe:
            address = probe.getsockname()
        listeners = [_socket(family, address, share=count > 1) for _ in range(count)]
        for listener in listeners:
            listener.listen(2048)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigurationError(
            f"Cannot listen on {host}:{port} ({reason}): stop what uses it, or set INFERENCE_HOST or {variable}."
        ) from error
    return listeners


def _socket(family: int, address: Any, *, share: bool = False) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind(address)
    except OSError:
        one.close()
        raise
    return one
