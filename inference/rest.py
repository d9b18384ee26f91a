"""The Open Inference Protocol V2 over HTTP: paths to dataplane calls, domain errors to status codes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import orjson

from inference import VERSION
from inference.contracts import TensorSpec
from inference.dataplane import Call, Dataplane, RequestIds
from inference.errors import (
    CallerGone,
    InferenceError,
    ModelFailed,
    NotAllowed,
    NotFound,
    Overloaded,
    RequestRejected,
    RequestTooLarge,
    Unauthenticated,
)
from inference.http import JSON_TYPE, Exchange, Refused
from inference.protocol import BatchOutputs, InferRequest, ModelCodec, checked_id

BINARY_TYPE: Final = b"application/octet-stream"
METRICS_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
MAX_CACHED_PATHS: Final = 4096
STATUS: Final[dict[type[InferenceError], int]] = {
    RequestRejected: 400,
    Unauthenticated: 401,
    NotAllowed: 403,
    NotFound: 404,
    CallerGone: 408,
    RequestTooLarge: 413,
    ModelFailed: 500,
    Overloaded: 503,
}
PATH: Final = re.compile(
    r"/v2/models/(?P<name>[A-Za-z0-9_-][A-Za-z0-9._-]{0,127})(?:/versions/(?P<version>[0-9]{1,18}))?(?P<action>/infer|/ready)?"
)


@dataclass(frozen=True, slots=True)
class Route:
    """Where a path leads. ``name`` and ``version`` are empty on the server's own paths."""

    method: bytes
    action: Callable[[Exchange, Route], None]
    name: str = ""
    version: str | None = None


class HttpCall(Call):
    """An infer request that came over HTTP."""

    __slots__ = ("exchange",)

    def __init__(self, exchange: Exchange, request_id: str) -> None:
        self.exchange = exchange
        self.request_id = request_id

    @property
    def is_open(self) -> bool:
        return self.exchange.is_open

    def decode(self, codec: ModelCodec) -> InferRequest:
        exchange = self.exchange
        encoding = exchange.headers.get(b"content-encoding", b"identity")
        if encoding.lower() != b"identity":
            raise RequestRejected("compressed bodies are not accepted.", "content-encoding")
        length = exchange.headers.get(b"inference-header-content-length")
        return codec.decode(exchange.body, None if length is None else _header_length(length, len(exchange.body)))

    def sticky_key(self, header: str) -> bytes | None:
        return self.exchange.headers.get(header.lower().encode())

    def succeed(self, outputs: BatchOutputs, start: int) -> None:
        encoded_id = self.request_id.encode()
        body, json_length = self.served.codec.encode(outputs, start, self.request, encoded_id)
        headers = b"x-request-id: %b\r\n" % encoded_id
        if json_length is None:
            self.exchange.send(200, body, headers=headers)
        else:
            headers += b"inference-header-content-length: %d\r\n" % json_length
            self.exchange.send(200, body, content_type=BINARY_TYPE, headers=headers)

    def fail(self, error: InferenceError) -> None:
        send_error(self.exchange, error, b"x-request-id: %b\r\n" % self.request_id.encode())


class RestApi:
    """Answers every HTTP request of a replica."""

    def __init__(self, dataplane: Dataplane, render_metrics: Callable[[], bytes]) -> None:
        self._dataplane = dataplane
        self._render_metrics = render_metrics
        self._ids = RequestIds()
        self._paths: dict[bytes, Route | None] = {}
        self._fixed = {
            "/v2": Route(b"GET", self._server_metadata),
            "/v2/health/live": Route(b"GET", self._live),
            "/v2/health/ready": Route(b"GET", self._ready),
            "/metrics": Route(b"GET", self._metrics),
        }

    def handle(self, exchange: Exchange) -> None:
        """Answer a request, now or later."""
        try:
            route = self._paths[exchange.path]
        except KeyError:
            route = self._resolve(exchange.path)
        if route is None:
            send_error(exchange, NotFound("There is nothing at this path."))
        elif exchange.method == route.method or (exchange.method == b"HEAD" and route.method == b"GET"):
            route.action(exchange, route)
        else:
            allow = b"allow: GET, HEAD\r\n" if route.method == b"GET" else b"allow: POST\r\n"
            _send(exchange, 405, {"error": f"Use {route.method.decode()} here."}, allow)

    def screen(self, path: bytes, headers: dict[bytes, bytes]) -> Refused | None:
        """Refuse to read a large body from a caller who may not send it."""
        try:
            route = self._paths[path]
        except KeyError:
            route = self._resolve(path)
        if route is None or not route.name:
            return None
        try:
            self._dataplane.authorize(route.name, headers.get(b"authorization"))
        except InferenceError as error:
            status, lines = _status(error)
            return Refused(status, str(error), lines)
        return None

    def _resolve(self, raw: bytes) -> Route | None:
        route = self._match(raw)
        if len(self._paths) >= MAX_CACHED_PATHS:
            self._paths.clear()
        if len(raw) <= 512:
            self._paths[raw] = route
        return route

    def _match(self, raw: bytes) -> Route | None:
        try:
            path = unquote(urlsplit(raw.decode("ascii")).path, errors="strict")
        except ValueError:
            return None
        if path in self._fixed:
            return self._fixed[path]
        match = PATH.fullmatch(path)
        if match is None:
            return None
        name, version, action = match["name"], match["version"], match["action"]
        if action == "/infer":
            return Route(b"POST", self._infer, name, version)
        return Route(b"GET", self._model_ready if action else self._model_metadata, name, version)

    # -- actions -----------------------------------------------------------------------------------------------------

    def _infer(self, exchange: Exchange, route: Route) -> None:
        headers = exchange.headers
        given = headers.get(b"x-request-id")
        call = HttpCall(exchange, self._ids.next())
        if given is not None:
            try:
                call.request_id = checked_id(given.decode("latin-1"), "x-request-id") or call.request_id
            except RequestRejected as error:
                call.fail(error)
                return
        self._dataplane.infer(call, route.name, route.version, headers.get(b"authorization"))

    def _server_metadata(self, exchange: Exchange, route: Route) -> None:
        _send(exchange, 200, {"name": "countersign", "version": VERSION, "extensions": ["binary_tensor_data"]})

    def _live(self, exchange: Exchange, route: Route) -> None:
        _send(exchange, 200, {"live": True})

    def _ready(self, exchange: Exchange, route: Route) -> None:
        is_ready = self._dataplane.accepts_predictions
        _send(exchange, 200 if is_ready else 503, {"ready": is_ready})

    def _metrics(self, exchange: Exchange, route: Route) -> None:
        exchange.send(200, self._render_metrics(), content_type=METRICS_TYPE)

    def _model_ready(self, exchange: Exchange, route: Route) -> None:
        try:
            endpoint, _ = self._dataplane.authorize(route.name, exchange.headers.get(b"authorization"))
            endpoint.versions(route.version)
        except InferenceError as error:
            send_error(exchange, error)
            return
        _send(exchange, 200, {"name": route.name, "ready": True})

    def _model_metadata(self, exchange: Exchange, route: Route) -> None:
        try:
            endpoint, _ = self._dataplane.authorize(route.name, exchange.headers.get(b"authorization"))
            served = endpoint.versions(route.version)
        except InferenceError as error:
            send_error(exchange, error)
            return
        signature = served[0].model.signature
        document = {
            "name": route.name,
            "versions": [str(one.entry.model_version) for one in served],
            "platform": "onnxruntime_onnx",
            "inputs": [_tensor(spec) for spec in signature.inputs],
            "outputs": [_tensor(spec) for spec in signature.outputs],
        }
        _send(exchange, 200, document)


def send_error(exchange: Exchange, error: InferenceError, headers: bytes = b"") -> None:
    """Answer with ``{"error": ...}`` and the status that fits."""
    status, lines = _status(error)
    _send(exchange, status, {"error": str(error)}, headers + lines)


def _status(error: InferenceError) -> tuple[int, bytes]:
    """The status of a domain error, and the header lines that go with it."""
    status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)
    if isinstance(error, Overloaded):
        return status, b"retry-after: %d\r\n" % error.retry_after
    if isinstance(error, Unauthenticated):
        return status, b"www-authenticate: Bearer\r\n"
    return status, b""


def _send(exchange: Exchange, status: int, document: dict[str, Any], headers: bytes = b"") -> None:
    exchange.send(status, orjson.dumps(document), content_type=JSON_TYPE, headers=headers)


def _header_length(text: bytes, body_length: int) -> int:
    field = "inference-header-content-length"
    if not text.isdigit() or len(text) > 12:
        raise RequestRejected("must be a number of bytes.", field)
    length = int(text)
    if length > body_length:
        raise RequestRejected(f"is {length}, but the body has {body_length} bytes.", field)
    return length


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}
