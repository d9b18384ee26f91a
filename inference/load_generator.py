"""``python -m inference.load_generator``: drives one endpoint at stepped concurrency, then at fixed arrival rates.

A process of its own, so that its work is neither counted as the service's nor held up by it. One thread over plain
sockets: ``select`` wakes it with a precision of microseconds where event loops round timers to milliseconds.

Reads a ``LoadOrder`` as one JSON document from standard input and writes one JSON line per finished step to standard
output: ``{"step": {...}}``, or ``{"failed": "why"}`` as its last.

*Closed loop*: ``n`` callers, each sending its next request when the last one is answered. Finds the capacity.
*Open loop*: requests arrive on a schedule, whatever the service does, as they do from a large population of callers.
Latency counts from the moment a request was due, not from the moment it was sent: a service that stalls must not be
flattered by a generator that politely waits for it (coordinated omission).
"""

from __future__ import annotations

import gc
import json
import math
import random
import select
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import httptools
import numpy as np
import orjson
import psutil

Arrivals = Literal["poisson", "constant"]

OPEN_FRACTIONS: Final = (0.3, 0.5, 0.7, 0.8, 0.9)
"""Arrival rates, as shares of the best throughput of the closed loop."""
RAMP_SHARE: Final = 0.2  # of a step's length, before it, not counted
MAX_RAMP_S: Final = 1.0
MIN_ANSWERS: Final = 20  # a closed step goes on for them ...
MAX_STRETCH: Final = 3.0  # ... but at most for so many times its length
MAX_BACKLOG: Final = 20_000  # requests due and not sent; beyond it an open step ends early
GRACE_S: Final = 2.0  # for the last answers of an open step
OPEN_CONNECTIONS: Final = 64  # at least
PREFLIGHT_REQUESTS: Final = 64
PREFLIGHT_S: Final = 3.0  # no further request after them
PREFLIGHT_TIMEOUT_S: Final = 30.0
CHECK_EVERY: Final = 64  # answers; every one's status is checked, and of one in so many the whole document
RECEIVE_BYTES: Final = 256 * 1024
QUANTILES: Final = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}


class LoadFailed(Exception):
    """The test cannot go on; the message is for the person who asked for it."""


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """What to drive and how. ``requests`` is a file with one JSON body per line, sent in turn."""

    port: int
    path: str
    token: str
    requests: str
    rows_per_request: int
    outputs: list[dict[str, Any]]  # name, datatype, shape of the signature
    service_pid: int  # whose processor time, with that of its descendants, is the service's
    concurrency: list[int]
    step_s: float
    arrivals: Arrivals
    slo_rate: float | None  # requests/s of one more open step


class Connection:
    """One keep-alive connection with at most one request on it."""

    __slots__ = ("body", "done", "due", "fileno", "parser", "socket", "status", "unsent")

    def __init__(self, port: int, done: Callable[[Connection], None]) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.fileno = self.socket.fileno()
        self.parser = httptools.HttpResponseParser(self)
        self.done = done
        self.due = 0.0  # perf_counter at which the request was to be sent
        self.unsent = memoryview(b"")
        self.status = 0
        self.body: list[bytes] = []

    def send(self, payload: bytes) -> bool:
        """Send a request; False if the rest has to wait until the socket takes it."""
        self.unsent = memoryview(payload)
        return self.send_rest()

    def send_rest(self) -> bool:
        """Go on sending; True when all is sent."""
        try:
            self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except BlockingIOError:
            return False
        except OSError as error:
            raise LoadFailed(f"The serving process closed a connection ({error.strerror}).") from error
        return not self.unsent

    def receive(self) -> None:
        """Take what has arrived; calls ``done`` when the answer is complete."""
        try:
            data = self.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise LoadFailed(f"The serving process closed a connection ({error.strerror}).") from error
        if not data:
            raise LoadFailed("The serving process closed a connection.")
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise LoadFailed(f"The answer is not acceptable HTTP: {error}.") from error

    def on_body(self, data: bytes) -> None:
        """Called by the parser."""
        self.body.append(data)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self.status = self.parser.get_status_code()
        self.done(self)
        self.body.clear()


class Tally:
    """What a step counts between ``begin`` and ``end`` (of ``time.perf_counter``), which it learns as it goes."""

    def __init__(self, order: LoadOrder) -> None:
        self.begin = self.end = math.inf
        self.latencies: list[float] = []  # seconds
        self.answered = 0  # between begin and end, as they should be
        self.errors: Counter[str] = Counter()
        self._order = order
        self._seen = 0

    def answer(self, connection: Connection, now: float, counted_at: float) -> None:
        """Count an answer that is complete ``now``; ``counted_at`` decides whether its latency belongs to the step."""
        self._seen += 1
        fault = "" if connection.status == 200 else f"HTTP {connection.status}"
        if not fault and self._seen % CHECK_EVERY == 1:
            fault = fault_in(b"".join(connection.body), self._order)
        if fault:
            self.errors[fault] += 1
            return
        if self.begin <= now < self.end:
            self.answered += 1
        if self.begin <= counted_at < self.end:
            self.latencies.append(now - connection.due)


class Generator:
    """Sends the requests of one file in turn, over as many connections as a step wants."""

    def __init__(self, order: LoadOrder) -> None:
        self._order = order
        head = (
            f"POST {order.path} HTTP/1.1\r\nHost: 127.0.0.1:{order.port}\r\nAuthorization: Bearer {order.token}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()
        bodies = Path(order.requests).read_bytes().splitlines()
        self._payloads = [b"%b%d\r\n\r\n%b" % (head, len(body), body) for body in bodies]
        self._next = 0
        self._connections: dict[int, Connection] = {}
        self._writing: set[int] = set()

    def preflight(self) -> None:
        """Send the first requests one by one; raises ``LoadFailed`` with what the service says about one."""
        answers: list[tuple[int, bytes]] = []
        self._connect(1, lambda connection: answers.append((connection.status, b"".join(connection.body))))
        connection = next(iter(self._connections.values()))
        began = time.perf_counter()
        for number, _ in enumerate(self._payloads[:PREFLIGHT_REQUESTS], start=1):
            if (sent := time.perf_counter()) > began + PREFLIGHT_S:
                break
            self._send(connection, sent)
            while not answers:
                if time.perf_counter() > sent + PREFLIGHT_TIMEOUT_S:
                    raise LoadFailed(f"A single request was not answered within {PREFLIGHT_TIMEOUT_S:.0f} s.")
                self._wait(0.5)
            status, body = answers.pop()
            if fault := _said(status, body) if status != 200 else fault_in(body, self._order):
                raise LoadFailed(f"Request {number} was not answered as it should be: {fault}")
        self._close()

    def closed(self, concurrency: int) -> dict[str, Any]:
        """A step of the closed loop."""
        step_s, usage = self._order.step_s, Usage(self._order.service_pid)
        tally = Tally(self._order)

        def done(connection: Connection) -> None:
            now = time.perf_counter()
            tally.answer(connection, now, now)
            self._send(connection, now)

        self._connect(concurrency, done)
        begin = time.perf_counter() + _ramp(step_s)
        for connection in self._connections.values():
            self._send(connection, time.perf_counter())
        while time.perf_counter() < begin:
            self._wait(begin - time.perf_counter())
        tally.begin = usage.begin()
        until = tally.begin + step_s
        while (now := time.perf_counter()) < tally.begin + step_s * MAX_STRETCH:
            if now >= until and tally.answered >= MIN_ANSWERS:
                break
            self._wait(0.05)
        figures = self._figures(tally, usage)
        self._close()
        if not tally.latencies and not tally.errors:
            seconds = step_s * MAX_STRETCH
            raise LoadFailed(f"With {concurrency} callers no answer came within {seconds:.0f} s. Choose longer steps.")
        return {"concurrency": concurrency, **figures, **latency_figures(tally.latencies)}

    def open(self, rate: float, fraction: float | None) -> dict[str, Any]:
        """A step of the open loop with ``rate`` arrivals per second."""
        step_s, usage = self._order.step_s, Usage(self._order.service_pid)
        tally = Tally(self._order)
        backlog: deque[float] = deque()  # when each was due
        idle: list[Connection] = []

        def done(connection: Connection) -> None:
            tally.answer(connection, time.perf_counter(), connection.due)
            if backlog:
                self._send(connection, backlog.popleft())
            else:
                idle.append(connection)

        self._connect(max(OPEN_CONNECTIONS, *self._order.concurrency), done)
        idle += self._connections.values()
        arrivals = _schedule(rate, self._order.arrivals, time.perf_counter())
        due = next(arrivals)
        begin = due + _ramp(step_s)
        while (now := time.perf_counter()) < begin + step_s and len(backlog) < MAX_BACKLOG:
            if now >= begin and tally.begin == math.inf:
                usage.begin()
                tally.begin = begin
            while due <= now:
                backlog.append(due)
                due = next(arrivals)
            while backlog and idle:
                self._send(idle.pop(), backlog.popleft())
            self._wait(min(due, begin + step_s) - time.perf_counter())
        tally.end = min(time.perf_counter(), begin + step_s)
        figures = self._figures(tally, usage)
        unanswered = self._drain(tally, backlog, idle)
        self._close()
        return {
            "rate": rate,
            "fraction": fraction,
            "unanswered": unanswered,
            "is_cut_short": tally.end < begin + step_s,
            **figures,
            **latency_figures(tally.latencies),
        }

    def _drain(self, tally: Tally, backlog: deque[float], idle: list[Connection]) -> int:
        """Wait for what is under way, without new arrivals; the number of requests that are still not answered then.

        They took at least so long, and count with that: leaving them out would flatter the service.
        """
        until = time.perf_counter() + max(GRACE_S, self._order.step_s / 2)
        while len(idle) < len(self._connections) and time.perf_counter() < until:
            self._wait(0.05)
        ended = time.perf_counter()
        busy = self._connections.keys() - {connection.fileno for connection in idle}
        waiting = [*backlog, *(self._connections[number].due for number in busy)]
        late = [ended - due for due in waiting if tally.begin <= due < tally.end]
        tally.latencies += late
        return len(late)

    def _figures(self, tally: Tally, usage: Usage) -> dict[str, Any]:
        """Rates and costs of a step that ends now. Its errors are counted from its start, its ramp included."""
        seconds, service, own, host = usage.end()
        predictions = tally.answered * self._order.rows_per_request
        return {
            "seconds": seconds,
            "answered": tally.answered,
            "errors": tally.errors,
            "throughput": tally.answered / seconds,
            "cpu_s_per_thousand": service / predictions * 1_000 if predictions else None,
            "service_cores": service / seconds,
            "generator_cores": own / seconds,
            "other_cores": max(host - service - own, 0.0) / seconds,
        }

    def _connect(self, count: int, done: Callable[[Connection], None]) -> None:
        try:
            connections = [Connection(self._order.port, done) for _ in range(count)]
        except OSError as error:
            raise LoadFailed(f"The serving process takes no connection: {error}.") from error
        self._connections = {one.fileno: one for one in connections}
        self._writing = set()

    def _close(self) -> None:
        for connection in self._connections.values():
            connection.socket.close()
        self._connections = {}

    def _send(self, connection: Connection, due: float) -> None:
        connection.due = due
        payload = self._payloads[self._next]
        self._next = (self._next + 1) % len(self._payloads)
        if not connection.send(payload):
            self._writing.add(connection.fileno)

    def _wait(self, timeout: float) -> None:
        """Handle what the sockets have, or return after ``timeout`` seconds."""
        readable, writable, _ = select.select(self._connections, self._writing, [], max(timeout, 0.0))
        for number in writable:
            if self._connections[number].send_rest():
                self._writing.discard(number)
        for number in readable:
            self._connections[number].receive()


class Usage:
    """Processor time between ``begin`` and ``end``: of the service, of this process, and of the whole host."""

    def __init__(self, service_pid: int) -> None:
        try:
            supervisor = psutil.Process(service_pid)
            self._service = [supervisor, *supervisor.children(recursive=True)]
        except psutil.Error as error:
            raise LoadFailed("The service is gone.") from error
        self._own = psutil.Process()
        self._began = (0.0, 0.0, 0.0, 0.0)

    def begin(self) -> float:
        """Start; returns the moment (of ``time.perf_counter``)."""
        self._began = self._now()
        return self._began[0]

    def end(self) -> tuple[float, float, float, float]:
        """Seconds that passed, and processor seconds of the service with its descendants, of this process, of all."""
        seconds, service, own, host = (now - before for now, before in zip(self._now(), self._began, strict=True))
        return seconds, service, own, host

    def _now(self) -> tuple[float, float, float, float]:
        try:
            service = sum(_cpu_s(process) for process in self._service)
        except psutil.Error as error:
            raise LoadFailed("The serving process died under load.") from error
        times = psutil.cpu_times()
        return time.perf_counter(), service, _cpu_s(self._own), times.user + times.system + times.nice


def latency_figures(latencies: Sequence[float]) -> dict[str, float | None]:
    """Mean, maximum and percentiles (observed values, by nearest rank) in milliseconds; None without an answer."""
    if not latencies:
        return dict.fromkeys(("mean_ms", *QUANTILES, "max_ms"))
    values = np.asarray(latencies) * 1e3
    ranks = np.quantile(values, list(QUANTILES.values()), method="inverted_cdf")
    percentiles = dict(zip(QUANTILES, ranks.tolist(), strict=True))
    return {"mean_ms": float(values.mean()), **percentiles, "max_ms": float(values.max())}


def fault_in(body: bytes, order: LoadOrder) -> str:
    """What is wrong with an answer; empty if it has every output of the signature, complete."""
    try:
        outputs = orjson.loads(body)["outputs"]
        found = [(one["name"], one["datatype"]) for one in outputs]
        shapes = [list(one["shape"]) for one in outputs]
        lengths = [len(one["data"]) for one in outputs]
    except (ValueError, KeyError, TypeError):
        return "the answer is no inference response"
    if found != [(spec["name"], spec["datatype"]) for spec in order.outputs]:
        return "the outputs are not those of the signature"
    for spec, shape, length in zip(order.outputs, shapes, lengths, strict=True):
        if math.prod(shape) != length:
            return f"the output {spec['name']} is not complete"
        wanted = spec["shape"]
        if wanted and (len(shape) != len(wanted) or any(w not in (-1, s) for w, s in zip(wanted, shape, strict=True))):
            return f"the output {spec['name']} has shape {shape}, not {wanted}"
    return ""


def _said(status: int, body: bytes) -> str:
    try:
        return f"HTTP {status}, {orjson.loads(body)['error']}"
    except (ValueError, KeyError, TypeError):
        return f"HTTP {status}"


def _schedule(rate: float, arrivals: Arrivals, start: float) -> Iterator[float]:
    """The moments at which requests are due, the first at ``start``. The same seed makes runs comparable."""
    generator = random.Random(7)  # noqa: S311
    while True:
        yield start
        start += generator.expovariate(rate) if arrivals == "poisson" else 1 / rate


def _ramp(step_s: float) -> float:
    return min(RAMP_SHARE * step_s, MAX_RAMP_S)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def run(order: LoadOrder, emit: Callable[[dict[str, Any]], None]) -> None:
    """All steps, each reported when it ends. Raises ``LoadFailed``."""
    generator = Generator(order)
    generator.preflight()
    capacity = 0.0
    for concurrency in order.concurrency:
        step = generator.closed(concurrency)
        capacity = max(capacity, step["throughput"])
        emit({"step": step})
    if not capacity:
        raise LoadFailed("Not one request was answered as it should be.")
    for fraction in OPEN_FRACTIONS:
        emit({"step": generator.open(fraction * capacity, fraction)})
    if order.slo_rate is not None:
        emit({"step": generator.open(order.slo_rate, None)})


def main() -> int:
    """Read the order, run it, report. Exit status 1 after a failure, whose reason is the last line."""

    def emit(document: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(document) + "\n")
        sys.stdout.flush()

    order = LoadOrder(**json.load(sys.stdin))
    # A pause of the collector here would look like one of the service.
    gc.freeze()
    gc.disable()
    try:
        run(order, emit)
    except LoadFailed as error:
        emit({"failed": str(error)})
        return 1
    return 0


def to_json(order: LoadOrder) -> bytes:
    """What ``main`` reads."""
    return json.dumps(asdict(order)).encode()


if __name__ == "__main__":
    sys.exit(main())
