"""The Open Inference Protocol V2 over HTTP: paths to dataplane calls, domain errors to status codes."""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final, cast
from urllib.parse import unquote, urlsplit

import orjson

from inference import VERSION
from inference.compression import negotiate, pack, unpack
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
    UnsupportedCoding,
)
from inference.http import JSON_TYPE, Exchange, Head, Refused
from inference.protocol import BatchOutputs, InferRequest, ModelCodec, checked_id, trace_context
from inference.settings import Settings

BINARY_TYPE: Final = b"application/octet-stream"
METRICS_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
MAX_CACHED_PATHS: Final = 4096
MIN_PACKED: Final = 4096
"""Bytes of an answer from which on it is packed for who asks for it; below, packing costs more than it saves."""
CODERS: Final = 2  # threads that pack and unpack, and so bodies that are unpacked before they are counted
STATUS: Final[dict[type[InferenceError], int]] = {
    RequestRejected: 400,
    Unauthenticated: 401,
    NotAllowed: 403,
    NotFound: 404,
    CallerGone: 408,
    RequestTooLarge: 413,
    UnsupportedCoding: 415,
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
    action: Callable[[HttpCall, Plan], None]
    name: str = ""
    version: str | None = None


class Plan:
    """What the head of a request says, worked out once for all requests with that head."""

    __slots__ = (
        "action",
        "authorization",
        "coders",
        "encoding",
        "header_length",
        "id_problem",
        "name",
        "request_id",
        "traceparent",
        "version",
    )

    def __init__(self, route: Route, headers: dict[bytes, bytes], coders: Executor) -> None:
        self.action = route.action
        self.coders = coders
        self.name, self.version = route.name, route.version
        self.authorization = headers.get(b"authorization")
        self.encoding = headers.get(b"content-encoding", b"identity").decode("latin-1").lower()
        self.header_length = headers.get(b"inference-header-content-length")
        self.request_id = headers.get(b"x-request-id", b"").decode("latin-1")
        self.id_problem: RequestRejected | None = None
        try:
            checked_id(self.request_id, "x-request-id")
        except RequestRejected as error:
            self.request_id, self.id_problem = "", error
        self.traceparent = trace_context(headers.get(b"traceparent", b"").decode("latin-1"))


class HttpCall(Exchange, Call):
    """A request that came over HTTP, and a call of the dataplane if it is to infer."""

    plan: Plan
    problem: InferenceError | None = None  # with unpacking the body
    violated: Sequence[str] = ()

    def decode(self, codec: ModelCodec) -> InferRequest:
        length = self.plan.header_length
        if length is None and self.problem is None:
            return codec.decode(self.body)
        if self.problem is not None:
            raise self.problem
        return codec.decode(self.body, _header_length(length, len(self.body)))

    def header(self, name: str) -> bytes | None:
        return self.head.headers.get(name.lower().encode())

    def succeed(self, outputs: BatchOutputs, start: int) -> None:
        request_id = self.request_id.encode("ascii")
        body, json_length = self.served.codec.encode(outputs, start, self.request, request_id)
        headers, kind = b"x-request-id: %b\r\n" % request_id, JSON_TYPE
        if self.violated or self.traceparent is not None:
            headers += self._more_headers()
        if json_length is not None:
            headers += b"inference-header-content-length: %d\r\n" % json_length
            kind = BINARY_TYPE
        if len(body) >= MIN_PACKED:
            self._send_packed(body, kind, headers + b"vary: accept-encoding\r\n")
        elif self.is_open:
            self.connection.answer(self, 200, body, kind, headers)

    def _send_packed(self, body: bytes, kind: bytes, headers: bytes) -> None:
        """Send in the coding that the caller asks for, if any; packing takes a thread."""
        coding = negotiate(self.head.headers.get(b"accept-encoding", b""))
        if coding is None:
            self.send(200, body, content_type=kind, headers=headers)
            return
        headers += b"content-encoding: %b\r\n" % coding.encode()
        packed = asyncio.get_running_loop().run_in_executor(self.plan.coders, pack, body, coding)
        packed.add_done_callback(lambda done: self.send(200, done.result(), content_type=kind, headers=headers))

    def fail(self, error: InferenceError) -> None:
        send_error(self, error, b"x-request-id: %b\r\n%b" % (self.request_id.encode(), self._more_headers()))

    def _more_headers(self) -> bytes:
        """Which guardrails were violated, and the caller's trace context as it came."""
        lines = b"x-guardrails: %b\r\n" % ", ".join(self.violated).encode() if self.violated else b""
        if self.traceparent is not None:
            lines += b"traceparent: %b\r\n" % self.traceparent.encode()
        return lines


class RestApi:
    """Answers every HTTP request of a replica."""

    def __init__(self, dataplane: Dataplane, render_metrics: Callable[[], bytes], settings: Settings) -> None:
        self._dataplane = dataplane
        self._max_body = settings.max_body
        self._coders = ThreadPoolExecutor(CODERS, thread_name_prefix="content-coding")
        self._render_metrics = render_metrics
        self._metrics_token = settings.metrics_token.encode()
        self._ids = RequestIds()
        self._paths: dict[bytes, Route | None] = {}
        self._fixed = {
            "/v2": Route(b"GET", self._server_metadata),
            "/v2/health/live": Route(b"GET", self._live),
            "/v2/health/ready": Route(b"GET", self._ready),
            "/metrics": Route(b"GET", self._metrics),
        }

    exchange = HttpCall

    def handle(self, exchange: Exchange) -> None:
        """Answer a request, now or later."""
        call = cast("HttpCall", exchange)
        call.plan = plan = call.head.route or self._plan(call.head)
        plan.action(call, plan)

    def _plan(self, head: Head) -> Plan:
        route = self._resolve(head.path)
        if route is None:
            route = NOWHERE
        elif head.method != route.method and not (head.method == b"HEAD" and route.method == b"GET"):
            route = replace(route, action=_use_post if route.method == b"POST" else _use_get)
        head.route = plan = Plan(route, head.headers, self._coders)
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

    def _infer(self, call: HttpCall, plan: Plan) -> None:
        call.request_id = plan.request_id or self._ids.next(call.received_us)
        call.traceparent = plan.traceparent
        if plan.id_problem is not None:
            call.fail(plan.id_problem)
        elif plan.encoding == "identity":
            self._dataplane.infer(call, plan.name, plan.version, plan.authorization)
        else:
            self._infer_unpacked(call, plan)

    def _infer_unpacked(self, call: HttpCall, plan: Plan) -> None:
        """Unpack the body on a thread, if the caller may send one at all, and go on."""
        try:
            self._dataplane.authorize(plan.name, plan.authorization)
        except InferenceError as error:
            call.fail(error)
            return

        def go_on(unpacked: asyncio.Future[bytes]) -> None:
            if not call.is_open:
                return
            try:
                if not call.replace_body(unpacked.result()):
                    raise Overloaded("The server holds too many request bodies.")
            except InferenceError as error:
                call.problem = error
            self._dataplane.infer(call, plan.name, plan.version, plan.authorization)

        loop = asyncio.get_running_loop()
        unpacked = loop.run_in_executor(self._coders, unpack, call.body, plan.encoding, self._max_body)
        unpacked.add_done_callback(go_on)

    def _server_metadata(self, exchange: Exchange, plan: Plan) -> None:
        _send(exchange, 200, {"name": "countersign", "version": VERSION, "extensions": ["binary_tensor_data"]})

    def _live(self, exchange: Exchange, plan: Plan) -> None:
        _send(exchange, 200, {"live": True})

    def _ready(self, exchange: Exchange, plan: Plan) -> None:
        is_ready = self._dataplane.accepts_predictions
        _send(exchange, 200 if is_ready else 503, {"ready": is_ready})

    def _metrics(self, exchange: Exchange, plan: Plan) -> None:
        expected = b"Bearer " + self._metrics_token
        if not exchange.is_local and not (
            self._metrics_token and hmac.compare_digest(plan.authorization or b"", expected)
        ):
            problem = "Metrics are told on this machine, and elsewhere to who sends the INFERENCE_METRICS_TOKEN."
            send_error(exchange, Unauthenticated(problem))
            return
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


NOWHERE: Final = Route(b"", lambda exchange, plan: send_error(exchange, NotFound("There is nothing at this path.")))


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
    if isinstance(error, UnsupportedCoding):
        return status, b"accept-encoding: gzip, deflate\r\n"
    if isinstance(error, Unauthenticated):
        return status, b"www-authenticate: Bearer\r\n"
    return status, b""


def _send(exchange: Exchange, status: int, document: dict[str, Any], headers: bytes = b"") -> None:
    exchange.send(status, orjson.dumps(document), content_type=JSON_TYPE, headers=headers)


def _header_length(text: bytes | None, body_length: int) -> int:
    field = "inference-header-content-length"
    if text is None or not text.isdigit() or len(text) > 12:
        raise RequestRejected("must be a number of bytes.", field)
    length = int(text)
    if length > body_length:
        raise RequestRejected(f"is {length}, but the body has {body_length} bytes.", field)
    return length


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}
