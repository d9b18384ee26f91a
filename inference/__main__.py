"""``python -m inference``: supervises the serving processes and the shipper of the inference log."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Final

from inference.errors import ConfigurationError
from inference.settings import Settings

logger = logging.getLogger("inference")

PR_SET_PDEATHSIG: Final = 1
START_FAILED: Final = 2
KILL_AFTER_S: Final = 3.0  # beyond the drain timeout
SHIPPER_STOP_S: Final = 5.0
MAX_BACKOFF_S: Final = 30.0
STABLE_S: Final = 10.0  # a child that lived as long is restarted at once


@dataclass(slots=True)
class Child:
    """A supervised process; ``listener`` is the replica's socket, which outlives its process."""

    arguments: list[str]
    listener: socket.socket | None = None
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    restart_at: float = 0.0
    failures: int = field(default=0)

    def start(self) -> None:
        """Start the process. It inherits the listening socket, so callers wait out a restart in the backlog."""
        descriptors = () if self.listener is None else (self.listener.fileno(),)
        arguments = [sys.executable, "-m", "inference", *self.arguments, str(os.getpid()), *map(str, descriptors)]
        self.process = subprocess.Popen(arguments, pass_fds=descriptors, stdin=subprocess.DEVNULL)
        self.started_at = time.monotonic()

    def revive(self) -> None:
        """Restart the process if it died: at once if it had been stable, else after a growing pause."""
        now = time.monotonic()
        if self.process is not None and (code := self.process.poll()) is not None:
            self.process = None
            self.failures = 0 if now - self.started_at >= STABLE_S else self.failures + 1
            pause = min(0.1 * 2**self.failures, MAX_BACKOFF_S) if self.failures > 1 else 0.0
            self.restart_at = now + pause
            logger.error("%s died (exit %s); restart in %.1f s.", " ".join(self.arguments), code, pause)
        if self.process is None and now >= self.restart_at:
            self.start()

    def signal(self, number: int) -> None:
        """Send a signal if the process lives."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def wait(self, until: float) -> None:
        """Wait for the end of the process; kill it at ``until`` (monotonic)."""
        if self.process is None:
            return
        try:
            self.process.wait(max(until - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def main(arguments: list[str]) -> int:
    """Run the command. A start that cannot succeed is one sentence on standard error and exit status 2."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = Settings.from_environment()
        match arguments:
            case []:
                return supervise(settings)
            case ["replica", replica_id, supervisor, descriptor]:
                _die_with(int(supervisor))
                return _run_replica(settings, replica_id, int(descriptor))
            case ["shipper", supervisor]:
                _die_with(int(supervisor))
                return _run_shipper(settings)
        raise ConfigurationError("Usage: python -m inference (settings come from the environment).")
    except ConfigurationError as error:
        print(f"inference: {error}", file=sys.stderr)
        return START_FAILED


def supervise(settings: Settings) -> int:
    """Keep the replicas and the shipper running until SIGTERM or SIGINT; then drain and stop them."""
    settings.manifest_key()
    settings.token_pepper()
    listeners = bind(settings.host, settings.port, settings.replicas)
    if settings.grpc_port:  # each replica binds it for itself; whether it is free is asked once, here
        for probe in bind(settings.host, settings.grpc_port, 1, "INFERENCE_GRPC_PORT"):
            probe.close()
    replicas = [
        Child(["replica", f"{settings.replica_prefix}-{position}"], listener)
        for position, listener in enumerate(listeners, start=1)
    ]
    shipper = Child(["shipper"])
    stopping = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    host, port = listeners[0].getsockname()[:2]
    logger.info("Serving on http://%s:%s with %s replica(s).", host, port, len(replicas))
    while not stopping:
        for child in (*replicas, shipper):
            child.revive()
        time.sleep(0.1)
    _stop(replicas, shipper, settings.drain_timeout)
    return 0


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


def _stop(replicas: list[Child], shipper: Child, drain_timeout: float) -> None:
    """Drain the replicas, then let the shipper take what they logged."""
    for child in replicas:
        child.signal(signal.SIGTERM)
    deadline = time.monotonic() + drain_timeout + KILL_AFTER_S
    for child in replicas:
        child.wait(deadline)
    shipper.signal(signal.SIGTERM)
    shipper.wait(time.monotonic() + SHIPPER_STOP_S)


def _run_replica(settings: Settings, replica_id: str, descriptor: int) -> int:
    from inference.replica import serve

    serve(settings, replica_id, socket.socket(fileno=descriptor))
    return 0


def _run_shipper(settings: Settings) -> int:
    from inference.shipper import Shipper

    shipper = Shipper(settings)
    signal.signal(signal.SIGTERM, lambda *_: shipper.stop())
    shipper.run()
    return 0


def _die_with(supervisor: int) -> None:
    """Leave nothing behind if the supervisor is killed, and leave Ctrl-C to it: it stops its children in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:  # it died before this line
            os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
