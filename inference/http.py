"""HTTP/1.1 transport: bytes to requests and back, with limits, timeouts and back-pressure. Knows no routes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from ipaddress import ip_address
from socket import socket
from typing import Any, Final, Protocol, cast

import httptools
import orjson

from inference.settings import Settings

logger = logging.getLogger("inference.http")

MAX_HEAD_BYTES: Final = 32 * 1024
HEAD_END: Final = b"\r\n\r\n"
MAX_KEPT_HEADS: Final = 4096
MAX_KEPT_HEAD_BYTES: Final = 2048
MAX_PIPELINED: Final = 64
MIN_BODY_RATE: Final = 64 * 1024  # bytes/s; a large body gets more time than a small one
LINGER_S: Final = 2.0
MAX_LOOKS: Final = 4
"""How often requests that came in are held back for another look at the sockets while still more come in."""
MAX_ARRIVED: Final = 128  # pieces of input that are held back at most
SCREENED_BYTES: Final = 64 * 1024  # larger bodies are read only from callers that the application knows
BODY_METHODS: Final = frozenset({b"POST", b"PUT", b"PATCH"})
JSON_TYPE: Final = b"application/json"
STATUS_LINES: Final = {status.value: f"{status.value} {status.phrase}".encode() for status in HTTPStatus}


class Refused(Exception):
    """The message is not acceptable and the connection will close. ``headers`` are complete lines."""

    def __init__(self, status: int, message: str, headers: bytes = b"") -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of the transport. Sizes in bytes, times in seconds."""

    max_body: int
    max_buffered_bodies: int
    max_connections: int
    header_timeout: float
    body_timeout: float
    idle_timeout: float

    @classmethod
    def from_settings(cls, settings: Settings) -> HttpLimits:
        """The part of the settings that concerns the transport."""
        return cls(**{name: getattr(settings, name) for name in cls.__slots__})


@dataclass(slots=True)
class Head:
    """A request without its body. Requests whose heads are equal byte for byte share one, so treat it as immutable.

    ``headers`` has lower-case names; repeats are joined by commas. ``route`` is for the application: it keeps there
    what it worked out from the head, and finds it again with the next request.
    """

    method: bytes
    path: bytes
    headers: dict[bytes, bytes]
    length: int  # of the body, as declared; -1 without a body or when it is chunked
    keep_alive: bool
    route: Any = None


class Exchange:
    """One request and the place for its answer. An application may derive its own."""

    is_open = True  # the caller is still there

    def __init__(self, connection: Connection, head: Head, body: bytes | bytearray) -> None:
        server = connection.server
        self.connection = connection
        self.head = head
        self.body = body
        self.keep_alive = head.keep_alive
        self.buffered = 0
        self.response: bytes | None = None
        self.arrived = server.arrived  # by time.perf_counter
        self.received_us = server.received_us  # since the epoch

    @property
    def is_local(self) -> bool:
        """Whether the caller is on this machine, or seems to be: a proxy here speaks for callers elsewhere."""
        return self.connection.is_local

    def send(self, status: int, body: bytes, *, content_type: bytes = JSON_TYPE, headers: bytes = b"") -> None:
        """Answer. ``headers`` are complete lines, each ended by CRLF. Does nothing when the caller is gone."""
        if self.is_open:
            self.connection.answer(self, status, body, content_type, headers)

    def replace_body(self, body: bytes) -> bool:
        """Go on with an unpacked body. False if there is no room for it among the bodies that the server holds."""
        if not self.connection.hold(self, len(body)):
            return False
        self.body = body
        return True


REFUSED_HEAD: Final = Head(b"", b"", {}, -1, keep_alive=False)


class Application(Protocol):
    """What answers the requests."""

    def exchange(self, connection: Connection, head: Head, body: bytes | bytearray) -> Exchange:
        """The exchange for a request."""

    def handle(self, exchange: Exchange) -> None:
        """Answer, now or later. ``exchange`` is one of ``self.exchange``."""

    def screen(self, path: bytes, headers: dict[bytes, bytes]) -> Refused | None:
        """Why a large body should not even be read, judged by the head alone."""


class HttpServer:
    """All connections of one process: shared limits, one timer for their timeouts, and the drain."""

    def __init__(self, application: Application, limits: HttpLimits) -> None:
        self.application = application
        self.limits = limits
        self.connections: set[Connection] = set()
        self.buffered = 0  # bytes of request bodies held in memory
        self.is_draining = False
        self.heads: dict[bytes, Head] = {}  # parsed before, by their bytes
        self.date = self.ok = b""
        self.arrived = 0.0  # when what is being taken came in: by time.perf_counter,
        self.received_us = 0  # and since the epoch
        self._inbox: list[tuple[Connection, bytes]] = []
        self._seen = self._looks = 0  # how much was in it at the last look, and how often it was looked at
        self._listener: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()

    async def start(self, listener: socket) -> None:
        """Accept connections on a bound socket."""
        self._loop = asyncio.get_running_loop()
        self._listener = await self._loop.create_server(lambda: Connection(self), sock=listener, backlog=2048)
        self._sweep()

    async def drain(self, timeout: float) -> None:
        """Stop accepting, let accepted requests finish for at most ``timeout`` seconds, close every connection."""
        self.is_draining = True
        self._take()
        if self._listener is not None:
            self._listener.close()
        for connection in tuple(self.connections):
            connection.close_if_idle()
        if self.connections:
            self._idle.clear()
            try:
                await asyncio.wait_for(self._idle.wait(), timeout)
            except TimeoutError:
                for connection in tuple(self.connections):
                    connection.abort()
        if self._timer is not None:
            self._timer.cancel()

    def receive(self, connection: Connection, data: bytes) -> None:
        """Keep what a connection read until the sockets have nothing more: requests that come together run together.

        It also leaves reading to the kernel, and the processor's caches to one thing at a time.
        """
        inbox = self._inbox
        if not inbox:
            self._clock()
            self._loop.call_soon(self._look)
        inbox.append((connection, data))

    def _look(self) -> None:
        waiting = len(self._inbox)
        if self._seen < waiting and 1 < waiting < MAX_ARRIVED and self._looks < MAX_LOOKS:
            self._seen = waiting
            self._looks += 1
            self._loop.call_soon(self._look)
        else:
            self._take()

    def _take(self) -> None:
        inbox, self._inbox = self._inbox, []
        self._seen = self._looks = 0
        for connection, data in inbox:
            try:
                connection.take(data)
            except Exception:  # a bug; the others must not pay for it
                logger.exception("A connection was dropped.")
                connection.abort()

    def _clock(self) -> None:
        self.arrived = time.perf_counter()
        self.received_us = time.time_ns() // 1000

    def forget(self, connection: Connection) -> None:
        """Called by a connection that is gone."""
        self.connections.discard(connection)
        if not self.connections:
            self._idle.set()

    def _sweep(self) -> None:
        now = time.monotonic()
        self.date = formatdate(usegmt=True).encode()
        self.ok = b"HTTP/1.1 200 OK\r\ndate: %b\r\ncontent-type: %b\r\ncontent-length: " % (self.date, JSON_TYPE)
        for connection in tuple(self.connections):
            connection.check(now)
        limits = self.limits
        interval = min(1.0, limits.header_timeout / 4, limits.body_timeout / 4, limits.idle_timeout / 4)
        self._timer = asyncio.get_running_loop().call_later(interval, self._sweep)


class Connection(asyncio.Protocol):
    """One caller. Answers go out in the order of the requests, whatever order they are ready in."""

    def __init__(self, server: HttpServer) -> None:
        self.server = server
        self._parser = httptools.HttpRequestParser(self)
        self._pending: deque[Exchange] = deque()  # unanswered, in order
        self._waiting: deque[Exchange] = deque()  # the last of them, not even begun, while reading is paused
        self._is_reading = True
        self._is_broken = False  # the input is no longer trusted; what arrives is thrown away
        self._refusal: Refused | None = None
        self._count = self._count_at_sweep = 0
        self._since = 0.0  # monotonic time at which the current wait began; 0 while none is timed
        self._write_paused_at = 0.0
        self._first: bytes | None = None  # the data in which the current message begins, if it begins there
        self._reset()

    def _reset(self) -> None:
        self._in_message = False
        self._head_done = False
        self._is_screened = False
        self._path = b""
        self._headers: dict[bytes, bytes] = {}
        self._head_bytes = 0
        self._body: bytes | bytearray = b""
        self._length = -1  # declared length; -1 without a body or when it is chunked
        self._buffered = 0

    # -- what asyncio calls ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        server = self.server
        if server.is_draining or len(server.connections) >= server.limits.max_connections:
            server.connections.add(self)
            self._refuse(Refused(503, "The server has too many connections.", b"retry-after: 1\r\n"))
        else:
            server.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        for exchange in self._pending:
            exchange.is_open = False
            self.server.buffered -= exchange.buffered
        self._pending.clear()
        self._waiting.clear()
        self.server.buffered -= self._buffered
        self._buffered = 0
        self._is_broken = True
        self.server.forget(self)

    def eof_received(self) -> bool:
        """A caller that closes its side is gone: its waiting requests free their place."""
        return False

    def pause_writing(self) -> None:
        self._write_paused_at = time.monotonic()
        self._pause_reading()

    def resume_writing(self) -> None:
        self._write_paused_at = 0.0
        self._resume_reading()

    def data_received(self, data: bytes) -> None:
        self.server.receive(self, data)

    def take(self, data: bytes) -> None:
        """Go on with what ``data_received`` was given."""
        if self._is_broken:
            return
        if not self._in_message:
            if self._is_reading and self._take_whole(data):
                return
            self._first = data
        was_in_head = self._in_message and not self._head_done
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            reason = str(error) or type(error).__name__
            self._refuse(self._refusal or Refused(400, f"This is not acceptable HTTP/1.1: {reason}."))
            return
        if self._in_message:
            if not self._since:
                self._since = time.monotonic()
            if was_in_head and not self._head_done:
                self._head_bytes += len(data)
                if self._head_bytes > MAX_HEAD_BYTES:
                    self._refuse(_head_too_large())

    def _take_whole(self, data: bytes) -> bool:
        """Take a request that is all of ``data`` and whose head was parsed before; false if it is anything else.

        Callers that keep a connection repeat their heads, and most of the cost of a small request is its head's.
        """
        end = data.find(HEAD_END) + len(HEAD_END)
        head = self.server.heads.get(data[:end])
        if head is None or len(data) - end != head.length:
            return False
        self._since = 0.0
        self._count += 1
        self._accept(self.server.application.exchange(self, head, data[end:]))
        return True

    # -- what the parser calls ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._in_message = True
        self._since = 0.0

    def on_url(self, url: bytes) -> None:
        self._path += url
        if len(self._path) > MAX_HEAD_BYTES:
            self._stop(_head_too_large())

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_done:
            return  # trailers carry nothing that we use
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > MAX_HEAD_BYTES:
            self._stop(_head_too_large())
        name = name.lower()
        known = self._headers.get(name)
        self._headers[name] = value if known is None else known + b", " + value

    def on_headers_complete(self) -> None:
        self._head_done = True
        self._since = 0.0
        headers = self._headers
        declared = headers.get(b"content-length")
        if declared is not None:
            self._length = int(declared)
            if self._length > self.server.limits.max_body:
                self._stop(self._body_too_large())
        elif b"transfer-encoding" not in headers and self._parser.get_method() in BODY_METHODS:
            self._stop(Refused(411, "content-length: a body needs a length or chunked transfer coding."))
        host = headers.get(b"host")
        if (host is None and self._parser.get_http_version() == "1.1") or (host is not None and b"," in host):
            self._stop(Refused(400, "host: exactly one is needed."))
        expect = headers.get(b"expect")
        if self._length > SCREENED_BYTES or expect is not None:
            self._screen()
        if expect is not None:
            self._expect(expect)

    def on_body(self, body: bytes) -> None:
        if len(body) == self._length:
            self._body = body
            return
        server = self.server
        if not self._body:
            self._body = bytearray()
        self._body += body
        self._buffered += len(body)
        server.buffered += len(body)
        if self._length < 0 and len(self._body) > SCREENED_BYTES:
            self._screen()
        if len(self._body) > server.limits.max_body:
            self._stop(self._body_too_large())
        if server.buffered > server.limits.max_buffered_bodies:
            self._stop(Refused(503, "The server holds too many request bodies.", b"retry-after: 1\r\n"))

    def on_message_complete(self) -> None:
        parser = self._parser
        if parser.should_upgrade():
            return
        keep_alive = parser.should_keep_alive()
        head = Head(parser.get_method(), self._path, self._headers, self._length, keep_alive)
        exchange = self.server.application.exchange(self, head, self._body)
        exchange.buffered = self._buffered
        self._remember(head)
        self._reset()
        self._since = 0.0
        self._count += 1
        if not keep_alive:
            self._is_broken = True
        self._accept(exchange)

    def _accept(self, exchange: Exchange) -> None:
        self._pending.append(exchange)
        if not self._is_reading:  # the parser cannot be paused within what was read at once
            self._waiting.append(exchange)
            return
        if len(self._pending) >= MAX_PIPELINED:
            self._pause_reading()
        self.server.application.handle(exchange)

    def _remember(self, head: Head) -> None:
        """Keep a plain head under its bytes, if the message came in one piece and alone."""
        data, self._first = self._first, None
        if data is None or head.length < 0 or not head.keep_alive or b"expect" in head.headers:
            return
        end = data.find(HEAD_END) + len(HEAD_END)
        if len(data) - end == head.length and end <= MAX_KEPT_HEAD_BYTES:
            heads = self.server.heads
            if len(heads) >= MAX_KEPT_HEADS:
                heads.clear()
            heads[data[:end]] = head

    # -- answers -----------------------------------------------------------------------------------------------------

    def answer(self, exchange: Exchange, status: int, body: bytes, content_type: bytes, headers: bytes) -> None:
        """Keep the answer until it is its turn, then write it."""
        server, pending = self.server, self._pending
        is_draining = server.is_draining
        if is_draining and exchange is pending[-1]:
            exchange.keep_alive = False
        if status == 200 and exchange.keep_alive and content_type is JSON_TYPE and exchange.head.method == b"POST":
            exchange.response = b"%b%d\r\n%b\r\n%b" % (server.ok, len(body), headers, body)
        else:
            exchange.response = self._response(exchange, status, body, content_type, headers)
        while pending and (response := pending[0].response) is not None:
            done = pending.popleft()
            server.buffered -= done.buffered
            self._transport.write(response)
            if not done.keep_alive:
                self._close_gently()
                return
        if is_draining:
            self.close_if_idle()
        elif not self._is_reading and len(pending) - len(self._waiting) < MAX_PIPELINED // 2:
            self._resume_reading()

    def _response(self, exchange: Exchange, status: int, body: bytes, content_type: bytes, headers: bytes) -> bytes:
        return b"HTTP/1.1 %b\r\ndate: %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n%b%b\r\n%b" % (
            STATUS_LINES[status],
            self.server.date,
            content_type,
            len(body),
            headers,
            b"" if exchange.keep_alive else b"connection: close\r\n",
            b"" if exchange.head.method == b"HEAD" else body,
        )

    def hold(self, exchange: Exchange, size: int) -> bool:
        """Count ``size`` more bytes that an open exchange keeps in memory. False if they are too many."""
        server = self.server
        if not exchange.is_open or server.buffered + size > server.limits.max_buffered_bodies:
            return False
        exchange.buffered += size
        server.buffered += size
        return True

    @property
    def is_local(self) -> bool:
        """Whether the other end is a loopback address or a Unix socket."""
        peer = self._transport.get_extra_info("peername")
        return not isinstance(peer, tuple) or ip_address(peer[0].partition("%")[0]).is_loopback

    def close_if_idle(self) -> None:
        """Close unless a request is on its way in or out."""
        if not self._pending and not self._in_message:
            self._transport.close()

    def abort(self) -> None:
        """Drop the connection now."""
        self._transport.abort()

    def check(self, now: float) -> None:
        """Enforce the timeouts; called about once a second."""
        limits = self.server.limits
        if self._write_paused_at and now - self._write_paused_at > limits.body_timeout:
            self.abort()
        elif self._is_broken:
            if not self._pending and now - self._since > LINGER_S:
                self._transport.close()
        elif self._in_message:
            waited = now - self._since if self._since else 0.0
            self._since = self._since or now
            allowed = limits.header_timeout
            if self._head_done:
                allowed = limits.body_timeout + len(self._body) / MIN_BODY_RATE
            if waited > allowed:
                part = "body" if self._head_done else "header"
                self._refuse(Refused(408, f"The request's {part} did not arrive in time."))
        elif self._pending or self._count != self._count_at_sweep or not self._since:
            self._count_at_sweep = self._count
            self._since = now
        elif now - self._since > limits.idle_timeout:
            self._transport.close()

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _stop(self, refusal: Refused) -> None:
        self._refusal = refusal
        raise refusal

    def _body_too_large(self) -> Refused:
        return Refused(413, f"The body is larger than {self.server.limits.max_body} bytes.")

    def _screen(self) -> None:
        if not self._is_screened:
            self._is_screened = True
            refusal = self.server.application.screen(self._path, self._headers)
            if refusal is not None:
                self._stop(refusal)

    def _expect(self, expectation: bytes) -> None:
        if expectation.lower() != b"100-continue":
            self._stop(Refused(417, "expect: only 100-continue is understood."))
        if not self._pending:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _refuse(self, refusal: Refused) -> None:
        """Answer with an error after what is pending, and close: the rest of the input cannot be trusted."""
        self._is_broken = True
        self._in_message = False
        exchange = Exchange(self, REFUSED_HEAD, b"")
        exchange.buffered = self._buffered
        self._buffered = 0
        self._pending.append(exchange)
        exchange.send(refusal.status, orjson.dumps({"error": refusal.message}), headers=refusal.headers)

    def _close_gently(self) -> None:
        """Close our side and read on for a moment, so that a reset does not take the answer from the caller."""
        self._is_broken = True
        self._since = time.monotonic()
        for exchange in self._pending:
            exchange.is_open = False
            self.server.buffered -= exchange.buffered
        self._pending.clear()
        self._waiting.clear()
        self._resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Go on in HTTP/1.1 as RFC 9110 allows: some clients offer h2c with every first request."""
        method = self._parser.get_method()
        if method == b"CONNECT" or self._count:
            self._refuse(Refused(400, "upgrade: this connection stays with HTTP/1.1."))
            return
        kept = {name: value for name, value in self._headers.items() if name not in (b"upgrade", b"expect")}
        kept[b"connection"] = b"keep-alive" if self._parser.should_keep_alive() else b"close"
        head = b"".join(b"%b: %b\r\n" % item for item in kept.items())
        line = b"%b %b HTTP/1.1\r\n" % (method, self._path)
        self._reset()
        self._parser = httptools.HttpRequestParser(self)
        self.take(line + head + b"\r\n" + rest)

    def _pause_reading(self) -> None:
        if self._is_reading and not self._transport.is_closing():
            self._is_reading = False
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._is_reading or self._write_paused_at or self._transport.is_closing():
            return
        self._is_reading = True
        while self._waiting and self._is_reading:
            exchange = self._waiting.popleft()
            if len(self._pending) - len(self._waiting) >= MAX_PIPELINED:
                self._pause_reading()
            self.server.application.handle(exchange)
        if self._is_reading:
            self._transport.resume_reading()


def _head_too_large() -> Refused:
    return Refused(431, f"The request line and headers are larger than {MAX_HEAD_BYTES} bytes.")
