"""HTTP/1.1 manners, through raw sockets: order, limits, timeouts, and shapes that smuggle requests."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time

import psutil
import pytest

from tests.inference.installation import TOKEN, Service, row, tensor

BODY = json.dumps(row(1, 2, 3)).encode()
AUTHORIZATION = f"Authorization: Bearer {TOKEN}\r\n".encode()


def request(body: bytes = BODY, *, endpoint: str = "double", extra: bytes = b"", length: bytes | None = None) -> bytes:
    """A complete infer request."""
    size = str(len(body)).encode() if length is None else length
    head = b"POST /v2/models/%b/infer HTTP/1.1\r\nHost: test\r\n%b%bContent-Length: %b\r\n\r\n"
    return head % (endpoint.encode(), AUTHORIZATION, extra, size) + body


def converse(service: Service, sent: bytes) -> bytes:
    """Send bytes and read until the server closes or says nothing for a second."""
    with service.connect() as connection:
        connection.sendall(sent)
        return read_all(connection)


def read_all(connection: socket.socket, silence: float = 1.0) -> bytes:
    """Read until the end, or until nothing came for ``silence`` seconds."""
    connection.settimeout(silence)
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except TimeoutError:
        pass
    return received


def read_answer(connection: socket.socket) -> tuple[int, bytes]:
    """One answer: status and body."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer.status, answer.read()


def test_keep_alive_and_pipelined_answers_come_in_order(service: Service) -> None:
    slow = json.dumps({"inputs": [tensor("x", "FP32", [1, 1, 1], [1])], "id": "slow"}).encode()
    fast = [json.dumps(row(1, 2, 3) | {"id": f"fast-{number}"}).encode() for number in range(200)]
    sent = request(slow, endpoint="slow") + b"".join(request(body) for body in fast)
    sent += request(slow, endpoint="slow", extra=b"Connection: close\r\n")
    with service.connect() as connection:
        connection.sendall(sent)
        received = read_all(connection, 10)
    ids = [line.split(b'"id":"')[1].split(b'"')[0].decode() for line in received.split(b"\r\n") if b'"id":"' in line]
    assert ids == ["slow", *(f"fast-{number}" for number in range(200)), "slow"]


def test_chunked_bodies_trailers_and_one_byte_at_a_time(service: Service) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\nX-Trailer: 1\r\n\r\n"
    head = b"POST /v2/models/double/infer HTTP/1.1\r\nHost: test\r\n%bTransfer-Encoding: chunked\r\n\r\n"
    with service.connect() as connection:
        connection.sendall(head % AUTHORIZATION + chunks)
        assert read_answer(connection)[0] == 200
        for byte in request():
            connection.send(bytes([byte]))
        assert read_answer(connection)[0] == 200


def test_expect_100_continue(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(request(b"", extra=b"Expect: 100-continue\r\n", length=str(len(BODY)).encode()))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert read_answer(connection)[0] == 200
    too_large = request(b"", extra=b"Expect: 100-continue\r\n", length=b"999999999")
    assert converse(service, too_large).startswith(b"HTTP/1.1 413 ")
    assert converse(service, request(b"", extra=b"Expect: miracles\r\n", length=b"3")).startswith(b"HTTP/1.1 417 ")


def test_an_offer_of_http2_is_passed_over(service: Service) -> None:
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    with service.connect() as connection:
        connection.sendall(request(extra=offer))
        assert read_answer(connection)[0] == 200
        connection.sendall(request())
        assert read_answer(connection)[0] == 200


LINE = b"POST /v2/models/double/infer HTTP/1.1\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (LINE + b"Host: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (LINE + b"Host: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400),
        (LINE + b"Host: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
        (LINE + b"Host: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
        (LINE + b"Host: a\r\nContent-Length: +3\r\n\r\nabc", 400),
        (LINE + b"Host: a\r\nContent-Length: -3\r\n\r\nabc", 400),
        (LINE + b"Host: a\r\nContent-Length: 3, 3\r\n\r\nabc", 400),
        (LINE + b"Host: a\r\nContent-Length: 99999999999999999999999\r\n\r\nabc", 400),
        (LINE + b"Host: a\r\nContent-Length : 3\r\n\r\nabc", 400),
        (LINE + b"Host: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
        (LINE + b"Host: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
        (LINE + b"Host: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (LINE + b"Host: a\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n", 400),
        (LINE + b"Host: a\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n", 400),
        (LINE + b"Host: a\r\n Folded: b\r\nContent-Length: 3\r\n\r\nabc", 400),
        (LINE + b"Host: a\r\nX: a\0b\r\n\r\n", 400),
        (LINE + b"Host: a\r\nX: a\rb\r\n\r\n", 400),
        (LINE + b"Content-Length: 3\r\n\r\nabc", 400),
        (LINE + b"Host: a\r\nHost: b\r\nContent-Length: 3\r\n\r\nabc", 400),
        (LINE.replace(b"\r\n", b"\n") + b"Host: a\nContent-Length: 3\n\nabc", 400),
        (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /a\0b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\nHost: a\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (LINE + b"Host: a\r\n\r\n", 411),
        (LINE + b"Host: a\r\nContent-Length: 99999999\r\n\r\n", 413),
        (LINE + b"Host: a\r\nX: " + b"a" * 40_000 + b"\r\n\r\n", 431),
        (LINE + b"Host: a\r\n" + b"X: a\r\n" * 20_000 + b"\r\n", 431),
        (b"GET /" + b"a" * 300_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
    ],
)
def test_unacceptable_messages_are_refused_and_the_connection_closed(
    service: Service, sent: bytes, status: int
) -> None:
    smuggled = b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n"
    received = converse(service, sent + smuggled)
    assert received.startswith(b"HTTP/1.1 %d " % status), received[:200]
    assert b"connection: close\r\n" in received
    assert received.count(b"HTTP/1.1 ") == 1, "what follows a refused message must not be answered"
    assert b'{"error":' in received


@pytest.mark.parametrize("authorization", [b"", b"Authorization: Bearer nobody\r\n"])
def test_a_large_body_of_a_stranger_is_not_read(service: Service, authorization: bytes) -> None:
    chunk = b"Transfer-Encoding: chunked\r\n\r\n20000\r\n" + b" " * 0x11000
    for framing in (b"Content-Length: 1000000\r\n\r\n", chunk):
        received = converse(service, LINE + b"Host: a\r\n" + authorization + framing)
        assert received.startswith(b"HTTP/1.1 401 ")
        assert b"www-authenticate: Bearer\r\n" in received


def test_a_chunked_body_over_the_limit_in_tiny_chunks(service: Service) -> None:
    head = b"POST /v2/models/double/infer HTTP/1.1\r\nHost: test\r\n%bTransfer-Encoding: chunked\r\n\r\n"
    with service.connect() as connection:
        connection.sendall(head % AUTHORIZATION)
        try:
            for _ in range(60):
                connection.sendall(b"6\r\n      \r\n" * 20_000)
        except OSError:
            pass  # the server has closed while we still send
        else:
            assert read_all(connection, 5).startswith(b"HTTP/1.1 413 ")
    assert service.infer("double", row(1, 2, 3)).ok


@pytest.mark.parametrize("beginning", [LINE + b"Host: a\r\nX: ", request()[:-5]])
def test_slow_requests_time_out(service: Service, beginning: bytes) -> None:
    with service.connect() as connection:
        connection.sendall(beginning)
        started = time.monotonic()
        assert read_all(connection, 6).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - started < 5
    with service.connect() as dripping:
        started = time.monotonic()
        try:
            for byte in beginning:
                dripping.send(bytes([byte]))
                time.sleep(0.05)
        except OSError:
            pass
        assert time.monotonic() - started < len(beginning) * 0.06


def test_callers_that_leave_free_their_place(service: Service) -> None:
    body = json.dumps({"inputs": [tensor("x", "FP32", [1, 1, 1], [1])]}).encode()
    connections = [service.connect() for _ in range(60)]
    for connection in connections:
        connection.sendall(request(body, endpoint="slow"))
    for connection in connections:
        connection.close()
    started = time.monotonic()
    assert service.infer("slow", json.loads(body)).ok
    assert time.monotonic() - started < 3, "those who left were still served first"


def test_a_slow_model_does_not_hold_up_a_fast_one(service: Service) -> None:
    body = {"inputs": [tensor("x", "FP32", [60, 1, 1], [1.0] * 60)]}
    started = time.monotonic()
    thread = threading.Thread(target=service.infer, args=("slow", body))
    thread.start()
    time.sleep(0.1)
    durations = []
    while thread.is_alive():
        before = time.monotonic()
        assert service.infer("double", row(1, 2, 3)).ok
        durations.append(time.monotonic() - before)
    thread.join()
    assert time.monotonic() - started > 0.3
    assert len(durations) > 3
    assert sorted(durations)[len(durations) // 2] < 0.1


def test_a_full_queue_answers_503_and_when_to_come_back(service: Service) -> None:
    asked = json.dumps({"inputs": [tensor("x", "FP32", [8, 3], [0.0] * 24)]}).encode()
    with service.connect() as connection:
        connection.sendall(request(asked, endpoint="narrow") * 3)
        received = read_all(connection)
    assert received.count(b"HTTP/1.1 200 OK") == 1
    assert received.count(b"HTTP/1.1 503 ") == 2
    assert received.count(b"retry-after: 1\r\n") == 2


def test_a_reader_that_stalls_costs_bounded_memory(service: Service) -> None:
    process = psutil.Process(service.child("replica"))
    before = process.memory_info().rss
    with service.connect() as connection:
        connection.settimeout(1)
        with pytest.raises(TimeoutError):  # the server stops reading once its answers are not taken
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n" * 500_000)
        assert process.memory_info().rss - before < 30 * 1024 * 1024
    assert service.infer("double", row(1, 2, 3)).ok


def test_empty_and_absurd_shapes_leave_the_endpoint_unharmed(service: Service) -> None:
    empty = json.dumps({"inputs": [tensor("x", "FP32", [1, 0, 2], [])]}).encode()
    with service.connect() as connection:
        connection.sendall(request(empty, endpoint="free") * 3)  # one tick, one batch
        assert read_all(connection).count(b"HTTP/1.1 200 OK") == 3
    absurd = {"inputs": [tensor("x", "FP32", [0, 2**62, 2], [])]}
    assert service.infer("free", absurd).status_code == 400
    good = {"inputs": [tensor("x", "FP32", [1, 1, 2], [1.0, 2.0])]}
    assert service.infer("free", good).json()["outputs"][0]["data"] == [1.0, 2.0]
