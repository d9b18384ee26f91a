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
from inference.dataplane import Call, Dataplane, RequestIds, Served
from inference.errors import (
    CallerGone,
    DeadlineExceeded,
    GuardrailViolated,
    InferenceError,
    ModelFailed,
    NotAllowed,
    NotFound,
    Overloaded,
    RequestRejected,
    RequestTooLarge,
    Unauthenticated,
)
from inference.http import JSON_TYPE, Exchange, Head, Refused
from inference.protocol import BatchOutputs, InferRequest, ModelCodec, checked_id, trace_context

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
    GuardrailViolated: 422,
    ModelFailed: 500,
    Overloaded: 503,
    DeadlineExceeded: 504,
}
PATH: Final = re.compile(
    r"/v2/models/(?P<name>[A-Za-z0-9_-][A-Za-z0-9._-]{0,127})(?:/versions/(?P<version>[0-9]{1,18}))?(?P<action>/infer|/ready)?"
)


@dataclass(frozen=True, slots=True)
class Route:
    """Where a path leads. ``name`` and ``version`` are empty on the server's own paths."""

    method: bytes
    action: Callable[[Exchange, Plan], None]
    name: str = ""
    version: str | None = None


NOWHERE: Final = Route(b"", lambda exchange, plan: None)


class Plan:
    """What the head of a request says, worked out once for all requests with that head."""

    __slots__ = ("action", "authorization", "encoding", "header_length", "name", "request_id", "traceparent", "version")

    def __init__(self, action: Callable[[Exchange, Plan], None], route: Route, headers: dict[bytes, bytes]) -> None:
        self.action = action
        self.name, self.version = route.name, route.version
        self.authorization = headers.get(b"authorization")
        self.encoding = headers.get(b"content-encoding", b"identity").lower()
        self.header_length = headers.get(b"inference-header-content-length")
        self.request_id = headers.get(b"x-request-id", b"").decode("latin-1")
        self.traceparent = trace_context(headers.get(b"traceparent", b"").decode("latin-1"))


class HttpCall(Call):
    """An infer request that came over HTTP."""

    __slots__ = ("exchange", "plan")

    def __init__(self, exchange: Exchange, plan: Plan, request_id: str) -> None:
        self.exchange = exchange
        self.plan = plan
        self.request_id = request_id
        self.traceparent = plan.traceparent
        self.violated = ()

    @property
    def is_open(self) -> bool:
        return self.exchange.is_open

    def decode(self, codec: ModelCodec) -> InferRequest:
        plan, body = self.plan, self.exchange.body
        if plan.encoding != b"identity":
            raise RequestRejected("compressed bodies are not accepted.", "content-encoding")
        if plan.header_length is None:
            return codec.decode(body)
        return codec.decode(body, _header_length(plan.header_length, len(body)))

    def header(self, name: str) -> bytes | None:
        return self.exchange.head.headers.get(name.lower().encode())

    def succeed(self, outputs: BatchOutputs, start: int) -> None:
        request_id = self.request_id.encode("ascii")
        body, json_length = self.served.codec.encode(outputs, start, self.request, request_id)
        headers = b"x-request-id: %b\r\n" % request_id
        if self.violated or self.traceparent is not None:
            headers += self._more_headers()
        if json_length is None:
            self.exchange.send(200, body, headers=headers)
        else:
            headers += b"inference-header-content-length: %d\r\n" % json_length
            self.exchange.send(200, body, content_type=BINARY_TYPE, headers=headers)

    def fail(self, error: InferenceError) -> None:
        send_error(self.exchange, error, b"x-request-id: %b\r\n%b" % (self.request_id.encode(), self._more_headers()))

    def _more_headers(self) -> bytes:
        """Which guardrails were violated, and the caller's trace context as it came."""
        lines = b"x-guardrails: %b\r\n" % ", ".join(self.violated).encode() if self.violated else b""
        if self.traceparent is not None:
            lines += b"traceparent: %b\r\n" % self.traceparent.encode()
        return lines


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
        plan: Plan = exchange.head.route or self._plan(exchange.head)
        plan.action(exchange, plan)

    def _plan(self, head: Head) -> Plan:
        route = self._resolve(head.path)
        if route is None:
            plan = Plan(_nothing_here, NOWHERE, head.headers)
        elif head.method == route.method or (head.method == b"HEAD" and route.method == b"GET"):
            plan = Plan(route.action, route, head.headers)
        else:
            plan = Plan(_use_post if route.method == b"POST" else _use_get, route, head.headers)
        head.route = plan
        return plan

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

    def _infer(self, exchange: Exchange, plan: Plan) -> None:
        given = plan.request_id
        call = HttpCall(exchange, plan, given or self._ids.next())
        if given:
            try:
                checked_id(given, "x-request-id")
            except RequestRejected as error:
                call.request_id = self._ids.next()
                call.fail(error)
                return
        self._dataplane.infer(call, plan.name, plan.version, plan.authorization)

    def _server_metadata(self, exchange: Exchange, plan: Plan) -> None:
        _send(exchange, 200, {"name": "countersign", "version": VERSION, "extensions": ["binary_tensor_data"]})

    def _live(self, exchange: Exchange, plan: Plan) -> None:
        _send(exchange, 200, {"live": True})

    def _ready(self, exchange: Exchange, plan: Plan) -> None:
        is_ready = self._dataplane.accepts_predictions
        _send(exchange, 200 if is_ready else 503, {"ready": is_ready})

    def _metrics(self, exchange: Exchange, plan: Plan) -> None:
        exchange.send(200, self._render_metrics(), content_type=METRICS_TYPE)

    def _model_ready(self, exchange: Exchange, plan: Plan) -> None:
        try:
            self._versions(plan)
        except InferenceError as error:
            send_error(exchange, error)
            return
        _send(exchange, 200, {"name": plan.name, "ready": True})

    def _model_metadata(self, exchange: Exchange, plan: Plan) -> None:
        try:
            served = self._versions(plan)
        except InferenceError as error:
            send_error(exchange, error)
            return
        signature = served[0].model.signature
        document = {
            "name": plan.name,
            "versions": [str(one.entry.model_version) for one in served],
            "platform": "onnxruntime_onnx",
            "inputs": [_tensor(spec) for spec in signature.inputs],
            "outputs": [_tensor(spec) for spec in signature.outputs],
        }
        _send(exchange, 200, document)

    def _versions(self, plan: Plan) -> list[Served]:
        endpoint, _ = self._dataplane.authorize(plan.name, plan.authorization)
        return endpoint.versions(plan.version)


def _nothing_here(exchange: Exchange, plan: Plan) -> None:
    send_error(exchange, NotFound("There is nothing at this path."))


def _use_get(exchange: Exchange, plan: Plan) -> None:
    _send(exchange, 405, {"error": "Use GET here."}, b"allow: GET, HEAD\r\n")


def _use_post(exchange: Exchange, plan: Plan) -> None:
    _send(exchange, 405, {"error": "Use POST here."}, b"allow: POST\r\n")


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
