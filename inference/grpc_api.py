"""The Open Inference Protocol V2 over gRPC, on the dataplane that HTTP uses. Loaded only when the port is set.

No TLS: the port belongs on the loopback interface or behind a proxy that ends it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final
from urllib.parse import quote

import grpc
from google.protobuf.message import DecodeError

from inference import VERSION
from inference.contracts import TensorSpec
from inference.dataplane import Call, Dataplane, RequestIds, Served
from inference.errors import (
    CallerGone,
    ConfigurationError,
    DeadlineExceeded,
    GuardrailViolated,
    InferenceError,
    ModelFailed,
    NotAllowed,
    NotFound,
    NotReady,
    Overloaded,
    RequestRejected,
    RequestTooLarge,
    Unauthenticated,
)
from inference.grpc_messages import (
    HealthCheckResponse,
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadataRequest,
    ModelMetadataResponse,
    ModelReadyRequest,
    ModelReadyResponse,
    ServerLiveResponse,
    ServerMetadataResponse,
    ServerReadyResponse,
)
from inference.inference_log import LogUnavailable
from inference.protocol import (
    MAX_NAMED,
    BatchOutputs,
    InferRequest,
    ModelCodec,
    ReceivedTensor,
    checked_id,
    to_binary,
    trace_context,
)
from inference.settings import Settings

NOTICE_S: Final = 0.2
MAX_PARAMETERS: Final = 64
MAX_ADDRESS: Final = 200  # characters of an endpoint's name or a version's number; neither is as long
SERVICE: Final = "inference.GRPCInferenceService"
HEALTH_SERVICE: Final = "grpc.health.v1.Health"
SERVING, NOT_SERVING = 1, 2  # of grpc.health.v1.HealthCheckResponse.ServingStatus
CODES: Final[dict[type[InferenceError], grpc.StatusCode]] = {
    RequestRejected: grpc.StatusCode.INVALID_ARGUMENT,
    RequestTooLarge: grpc.StatusCode.INVALID_ARGUMENT,  # RESOURCE_EXHAUSTED would invite to try again
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    NotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    NotFound: grpc.StatusCode.NOT_FOUND,
    CallerGone: grpc.StatusCode.CANCELLED,
    GuardrailViolated: grpc.StatusCode.INVALID_ARGUMENT,
    ModelFailed: grpc.StatusCode.INTERNAL,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    NotReady: grpc.StatusCode.UNAVAILABLE,
    LogUnavailable: grpc.StatusCode.UNAVAILABLE,
}
CONTENTS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Where the protocol puts a datatype's elements. FP16 has no place: it travels as raw contents only."""

Context = Any  # grpc.aio.ServicerContext, which has no types
Metadata = dict[str, str]
Answer = Callable[[bytes, Metadata, Context], Awaitable[bytes]]


class GrpcCall(Call):
    """An infer request that came over gRPC; ``answer`` becomes the serialised response or the error."""

    __slots__ = ("answer", "message", "metadata")

    def __init__(self, message: Any, metadata: Metadata, ids: RequestIds, request_id: str) -> None:
        self.arrived = time.perf_counter()
        self.received_us = time.time_ns() // 1000
        self.message = message
        self.metadata = metadata
        self.request_id = request_id or ids.next(self.received_us)
        self.traceparent = trace_context(metadata.get("traceparent"))
        self.violated = ()
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    @property
    def is_open(self) -> bool:
        return not self.answer.done()  # gRPC cancels who waits for it when the caller leaves or its deadline passes

    def decode(self, codec: ModelCodec) -> InferRequest:
        request = codec.decode_tensors(_received(self.message), _wanted(self.message))
        request.timeout_s = _timeout_s(self.message)
        return request

    def header(self, name: str) -> bytes | None:
        value = self.metadata.get(name.lower())
        return None if value is None else value.encode()

    def trailing(self) -> tuple[tuple[str, str], ...]:
        """What goes with the answer, whatever it is."""
        pairs = [("x-request-id", self.request_id)]
        if self.violated:
            pairs.append(("x-guardrails", ", ".join(quote(name, safe=" ") for name in self.violated)))
        if self.traceparent is not None:
            pairs.append(("traceparent", self.traceparent))
        return tuple(pairs)

    def succeed(self, outputs: BatchOutputs, start: int) -> None:
        if self.answer.done():
            return
        specs, request = self.served.model.signature.outputs, self.request
        response = ModelInferResponse(
            model_name=self.endpoint.entry.name, model_version=str(self.served.entry.model_version), id=self.request_id
        )
        wanted = range(len(specs)) if request.outputs is None else [position for position, _ in request.outputs]
        for position in wanted:
            array = outputs.slice(position, start, request.rows)
            response.outputs.add(name=specs[position].name, datatype=specs[position].datatype, shape=array.shape)
            response.raw_output_contents.append(to_binary(array))
        self.answer.set_result(response.SerializeToString())

    def fail(self, error: InferenceError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class GrpcServer:
    """The service on its port."""

    def __init__(self, dataplane: Dataplane, settings: Settings) -> None:
        """Call on the running event loop."""
        self._dataplane = dataplane
        self._settings = settings
        self._ids = RequestIds()
        self._is_draining = False
        self._buffered = 0  # bytes of requests that are not answered yet
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=settings.max_connections,
            options=(
                ("grpc.so_reuseport", int(settings.replicas > 1)),
                ("grpc.max_receive_message_length", settings.max_body),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_connection_idle_ms", int(settings.idle_timeout * 1e3)),
                ("grpc.server_handshake_timeout_ms", int(settings.header_timeout * 1e3)),
            ),
        )
        open_methods = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
        }
        methods = {"ModelReady": self._model_ready, "ModelMetadata": self._model_metadata, "ModelInfer": self._infer}
        handlers = {name: self._handler(answer, is_open=True) for name, answer in open_methods.items()}
        handlers |= {name: self._handler(answer, is_open=False) for name, answer in methods.items()}
        health = {"Check": self._handler(self._health, is_open=True)}
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(SERVICE, handlers),
                grpc.method_handlers_generic_handler(HEALTH_SERVICE, health),
            )
        )

    async def start(self) -> None:
        """Accept calls. Raises ``ConfigurationError`` when the port is taken."""
        host = self._settings.host
        address = f"{f'[{host}]' if ':' in host else host}:{self._settings.grpc_port}"
        try:
            self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise ConfigurationError(f"Cannot listen on {address}: set INFERENCE_GRPC_PORT to a free port.") from error
        await self._server.start()

    async def drain(self, timeout: float) -> None:
        """Take no more calls, and let accepted ones finish for at most ``timeout`` seconds.

        Whoever calls at the moment in which gRPC shuts down is cancelled by gRPC itself, unserved. So callers are first
        told for a while that the server is not available, which is what clients know how to retry.
        """
        self._is_draining = True
        await asyncio.sleep(min(NOTICE_S, timeout))
        await self._server.stop(max(timeout - NOTICE_S, 0))

    def _handler(self, answer: Answer, *, is_open: bool) -> Any:
        """A method that gets its message as bytes: none if it is open to everybody, who needs to say nothing.

        To gRPC it is one that takes a stream, which differs only here, not for the caller: it decides when to read.
        So nothing is read from a stranger, and nobody holds a call by sending slowly.
        """

        async def handle(messages: object, context: Context) -> bytes:
            body = b""
            metadata = _metadata(context)
            try:
                if not is_open:
                    if self._is_draining:
                        raise NotReady("The server is stopping.")
                    self._dataplane.authenticate(_authorization(metadata))
                    body = await self._read(context)
                return await answer(body, metadata, context)
            except InferenceError as error:
                await context.abort(*_status(error), _trailing(context, error))
                raise  # never reached: abort raises
            finally:
                self._buffered -= len(body)

        return grpc.stream_unary_rpc_method_handler(handle)

    async def _read(self, context: Context) -> bytes:
        try:
            async with asyncio.timeout(self._settings.body_timeout):
                body = await context.read()
        except TimeoutError as error:
            raise RequestRejected("The request did not arrive in time.") from error
        if not isinstance(body, bytes):
            raise RequestRejected("The request has no message.")
        self._buffered += len(body)
        if self._buffered > self._settings.max_buffered_bodies:
            self._buffered -= len(body)
            raise Overloaded("The server holds too many requests.")
        return body

    # -- methods -----------------------------------------------------------------------------------------------------

    async def _server_live(self, body: bytes, metadata: Metadata, context: Context) -> bytes:
        return _serialized(ServerLiveResponse(live=True))

    async def _server_ready(self, body: bytes, metadata: Metadata, context: Context) -> bytes:
        return _serialized(ServerReadyResponse(ready=self._dataplane.accepts_predictions))

    async def _server_metadata(self, body: bytes, metadata: Metadata, context: Context) -> bytes:
        return _serialized(ServerMetadataResponse(name="countersign", version=VERSION))

    async def _health(self, body: bytes, metadata: Metadata, context: Context) -> bytes:
        """What orchestrators probe; whichever service is asked for, the answer is for all."""
        return _serialized(HealthCheckResponse(status=SERVING if self._dataplane.accepts_predictions else NOT_SERVING))

    async def _model_ready(self, body: bytes, metadata: Metadata, context: Context) -> bytes:
        message = _parse(ModelReadyRequest, body)
        self._versions(message, metadata)
        return _serialized(ModelReadyResponse(ready=True))

    async def _model_metadata(self, body: bytes, metadata: Metadata, context: Context) -> bytes:
        message = _parse(ModelMetadataRequest, body)
        served = self._versions(message, metadata)
        response = ModelMetadataResponse(
            name=message.name,
            versions=[str(one.entry.model_version) for one in served],
            platform="onnxruntime_onnx",
        )
        _describe(response.inputs, served[0].model.signature.inputs)
        _describe(response.outputs, served[0].model.signature.outputs)
        return _serialized(response)

    async def _infer(self, body: bytes, metadata: Metadata, context: Context) -> bytes:
        message = _parse(ModelInferRequest, body)
        request_id = checked_id(message.id, "id") or checked_id(metadata.get("x-request-id", ""), "x-request-id")
        call = GrpcCall(message, metadata, self._ids, request_id)
        name, version = message.model_name[:MAX_ADDRESS], message.model_version[:MAX_ADDRESS]
        self._dataplane.infer(call, name, version or None, _authorization(metadata))
        call.message = None  # as large as the tensors, which are copies
        try:
            return await call.answer
        finally:
            context.set_trailing_metadata(call.trailing())

    def _versions(self, message: Any, metadata: Metadata) -> list[Served]:
        """The versions that a message about a model is about."""
        endpoint, _ = self._dataplane.authorize(message.name[:MAX_ADDRESS], _authorization(metadata))
        return endpoint.versions(message.version[:MAX_ADDRESS] or None)


def _received(message: Any) -> Iterator[ReceivedTensor]:
    """The inputs of a request with their data, which is either all raw or all typed."""
    raw: Sequence[bytes] = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise RequestRejected(f"has {len(raw)} entries for {len(message.inputs)} inputs.", "raw_input_contents")
    for position, one in enumerate(message.inputs):
        field = f'inputs["{one.name[:MAX_NAMED]}"]'
        _refuse_parameters(one.parameters, f"{field}.parameters")
        if not raw:
            data, place = _typed(one, field)
            yield ReceivedTensor(one.name, one.datatype, list(one.shape), data, place)
        elif one.HasField("contents"):
            raise RequestRejected("must be empty when there are raw_input_contents.", f"{field}.contents")
        else:
            place = f"raw_input_contents[{position}]"
            yield ReceivedTensor(one.name, one.datatype, list(one.shape), raw[position], place)


def _wanted(message: Any) -> Iterator[str]:
    """The names of the outputs that a request asks for."""
    for output in message.outputs:
        _refuse_parameters(output.parameters, f'outputs["{output.name[:MAX_NAMED]}"].parameters')
        yield output.name


def _typed(tensor: Any, field: str) -> tuple[list[Any], str]:
    """The elements of a typed tensor, and the name of the field that held them."""
    place = CONTENTS.get(tensor.datatype)
    if place is None:
        raise RequestRejected("has no typed contents: send raw_input_contents.", f"{field}.datatype")
    elements = list(getattr(tensor.contents, place))
    if tensor.datatype == "BYTES":
        try:
            elements = [element.decode() for element in elements]
        except UnicodeDecodeError as error:
            raise RequestRejected("an element is not UTF-8.", f"{field}.contents.{place}") from error
    return elements, f"{field}.contents.{place}"


def _timeout_s(message: Any) -> float | None:
    """The time that the caller gives a request, which it writes in microseconds."""
    for one in _few(message.parameters, "parameters"):
        if one.key == "timeout" and one.value.int64_param > 0:
            return float(one.value.int64_param / 1e6)
    return None


def _refuse_parameters(parameters: Any, field: str) -> None:
    for one in _few(parameters, field):
        if one.key == "shared_memory_region" or (one.key == "classification" and one.value.int64_param):
            raise RequestRejected("classification and shared memory are not supported.", field)


def _few(parameters: Any, field: str) -> Any:
    if len(parameters) > MAX_PARAMETERS:
        raise RequestRejected(f"has more than {MAX_PARAMETERS} entries.", field)
    return parameters


def _describe(tensors: Any, specs: Sequence[TensorSpec]) -> None:
    for spec in specs:
        tensors.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)


def _parse(message: Any, body: bytes) -> Any:
    try:
        return message.FromString(body)
    except DecodeError as error:
        raise RequestRejected("The message is not what the protocol defines.") from error


def _serialized(message: Any) -> bytes:
    body: bytes = message.SerializeToString()
    return body


def _metadata(context: Context) -> Metadata:
    """The metadata that is text; of a repeated key the last."""
    return {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}


def _authorization(metadata: Metadata) -> bytes:
    return metadata.get("authorization", "").encode("latin-1", "replace")


def _status(error: InferenceError) -> tuple[grpc.StatusCode, str]:
    """The status of a domain error, and its message."""
    code = next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), grpc.StatusCode.INTERNAL)
    return code, str(error)


def _trailing(context: Context, error: InferenceError) -> tuple[tuple[str, str], ...]:
    """What goes with an error: the request's id if it has one, and when to try again."""
    retry = (("retry-after", str(error.retry_after)),) if isinstance(error, Overloaded) else ()
    return (*context.trailing_metadata(), *retry)
