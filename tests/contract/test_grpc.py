"""The Open Inference Protocol V2 over gRPC as its reference client speaks it."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from inference.contracts import GuardrailRule, Limits
from tests.contract.test_open_inference_protocol import VALUES
from tests.inference import onnx_models as models
from tests.inference.conftest import EXPIRED_TOKEN, OTHER_TOKEN, Workbench
from tests.inference.conftest import service as service
from tests.inference.conftest import workbench as workbench
from tests.inference.installation import TOKEN, Service, free_port, run_async, wait_for

HEADERS = {"authorization": f"Bearer {TOKEN}"}
CONTENTS = {
    "bool_contents": ("BOOL",),
    "int_contents": ("INT8", "INT16", "INT32"),
    "int64_contents": ("INT64",),
    "uint_contents": ("UINT8", "UINT16", "UINT32"),
    "uint64_contents": ("UINT64",),
    "fp32_contents": ("FP32",),
    "fp64_contents": ("FP64",),
    "bytes_contents": ("BYTES",),
}
"""Where the protocol puts the elements of which datatype."""


@pytest.fixture
def client(service: Service) -> Iterator[triton.InferenceServerClient]:
    """tritonclient as it comes, without options."""
    one = triton.InferenceServerClient(service.grpc_address)
    yield one
    one.close()


@pytest.fixture
def stub(service: Service) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    """The bare service, for what the client library does not let through."""
    with grpc.insecure_channel(service.grpc_address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def _input(name: str, values: Any, datatype: str = "FP32") -> triton.InferInput:
    array = np.array(values, triton_to_np_dtype(datatype))
    one = triton.InferInput(name, list(array.shape), datatype)
    one.set_data_from_numpy(array)
    return one


def _message(endpoint: str = "double", **changes: Any) -> service_pb2.ModelInferRequest:
    """One FP32 row in typed contents; ``changes`` are of its input."""
    tensor: dict[str, Any] = {
        "name": "x",
        "datatype": "FP32",
        "shape": [1, 3],
        "contents": {"fp32_contents": [1, 2, 3]},
    }
    return service_pb2.ModelInferRequest(model_name=endpoint, inputs=[tensor | changes])


def test_server_and_model_metadata(client: triton.InferenceServerClient, service: Service) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata().name == "countersign"
    with grpc.insecure_channel(service.grpc_address) as channel:
        assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"") == b"\x08\x01"  # SERVING
    assert client.is_model_ready("double", headers=HEADERS)
    assert client.is_model_ready("double", "1", headers=HEADERS)
    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        client.is_model_ready("double", "2", headers=HEADERS)
    assert client.get_model_metadata("several", headers=HEADERS, as_json=True) == {
        "name": "several",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "a", "datatype": "FP32", "shape": ["-1", "2"]},
            {"name": "b", "datatype": "FP32", "shape": ["-1", "2"]},
            {"name": "mask", "datatype": "BOOL", "shape": ["-1"]},
        ],
        "outputs": [
            {"name": "total", "datatype": "FP32", "shape": ["-1", "2"]},
            {"name": "flag", "datatype": "BOOL", "shape": ["-1"]},
        ],
    }


@pytest.mark.parametrize("datatype", VALUES)
@pytest.mark.parametrize("is_raw", [True, False], ids=["raw", "typed"])
def test_every_datatype_comes_back_exactly(
    stub: service_pb2_grpc.GRPCInferenceServiceStub, datatype: str, is_raw: bool
) -> None:
    values = VALUES[datatype]
    tensor: dict[str, Any] = {"name": "x", "datatype": datatype, "shape": [2, 2]}
    request = service_pb2.ModelInferRequest(model_name=f"identity-{datatype.lower()}", inputs=[tensor])
    if datatype == "BYTES":
        raw = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in values)
    else:
        raw = np.array(values, triton_to_np_dtype(datatype)).tobytes()
    if is_raw:
        request.raw_input_contents.append(raw)
    elif place := next((place for place, kinds in CONTENTS.items() if datatype in kinds), None):
        elements = [text.encode() for text in values] if datatype == "BYTES" else values
        getattr(request.inputs[0].contents, place).extend(elements)
    else:
        assert datatype == "FP16"
        with pytest.raises(grpc.RpcError, match=r"datatype: has no typed contents"):
            stub.ModelInfer(request, metadata=tuple(HEADERS.items()))
        return
    answer = stub.ModelInfer(request, metadata=tuple(HEADERS.items()))
    assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == (datatype, [2, 2])
    assert list(answer.raw_output_contents) == [raw]


def test_tensors_may_have_odd_names(client: triton.InferenceServerClient) -> None:
    x, y = models.ODD_NAMES
    asked = client.infer("odd-names", [_input(x, [[1, 2]])], outputs=[triton.InferRequestedOutput(y)], headers=HEADERS)
    assert asked.as_numpy(y).tolist() == [[1, 2]]


def test_not_a_number_and_infinity_travel(client: triton.InferenceServerClient) -> None:
    result = client.infer("identity-fp32", [_input("x", [[np.nan, np.inf]])], headers=HEADERS)
    assert np.array_equal(result.as_numpy("y"), [[np.nan, np.inf]], equal_nan=True)


def test_several_inputs_and_one_requested_output(client: triton.InferenceServerClient) -> None:
    inputs = [
        _input("mask", [True, False], "BOOL"),
        _input("b", [[1, 1], [1, 1]]),
        _input("a", [[1, 2], [3, 4]]),
    ]
    everything = client.infer("several", inputs, headers=HEADERS)
    assert [output.name for output in everything.get_response().outputs] == ["total", "flag"]
    assert everything.as_numpy("total").tolist() == [[2, 3], [4, 5]]
    assert everything.as_numpy("flag").tolist() == [True, False]
    one = client.infer("several", inputs, outputs=[triton.InferRequestedOutput("flag")], headers=HEADERS)
    assert [output.name for output in one.get_response().outputs] == ["flag"]
    assert one.as_numpy("flag").tolist() == [True, False]


@pytest.mark.parametrize(
    ("endpoint", "datatype", "values"),
    [
        ("fixed", "FP32", [[1.0, 2.0], [3.0, 4.0]]),
        ("scalar", "FP64", 1.5),
        ("free", "FP32", [[[1.0, 2.0], [3.0, 4.0]]]),
        ("identity-fp32", "FP32", np.empty((0, 2))),
        ("identity-bytes", "BYTES", np.empty((0, 2), object)),
    ],
)
def test_fixed_free_scalar_and_empty_shapes(
    client: triton.InferenceServerClient, endpoint: str, datatype: str, values: Any
) -> None:
    result = client.infer(endpoint, [_input("x", values, datatype)], headers=HEADERS)
    assert result.as_numpy("y").shape == np.shape(values)
    assert result.as_numpy("y").tolist() == np.array(values).tolist()


def test_versions_and_request_ids(client: triton.InferenceServerClient) -> None:
    asked = [_input("x", [[1, 2, 3]])]
    first, second = (client.infer("double", asked, "1", headers=HEADERS).get_response() for _ in range(2))
    assert (first.model_name, first.model_version) == ("double", "1")
    assert first.id < second.id
    assert client.infer("double", asked, request_id="own 1", headers=HEADERS).get_response().id == "own 1"
    proxied = HEADERS | {"x-request-id": "from-a-proxy"}
    assert client.infer("double", asked, headers=proxied).get_response().id == "from-a-proxy"
    assert client.infer("double", asked, request_id="own", headers=proxied).get_response().id == "own"
    with pytest.raises(InferenceServerException, match=r"INVALID_ARGUMENT\] id:"):
        client.infer("double", asked, request_id='quo"te', headers=HEADERS)


def _shared_memory(message: Any) -> None:
    message.inputs[0].parameters["shared_memory_region"].string_param = "region"


def _many_outputs(message: Any) -> None:
    message.outputs.extend([message.InferRequestedOutputTensor(name="y")] * 100_000)


def _many_parameters(message: Any) -> None:
    for number in range(65):
        message.inputs[0].parameters[str(number)].bool_param = True


def _classification(message: Any) -> None:
    message.outputs.add(name="y").parameters["classification"].int64_param = 2


@pytest.mark.parametrize(
    ("message", "code", "said"),
    [
        (_message("nowhere"), "NOT_FOUND", "There is no endpoint"),
        (_message("double" * 10_000), "NOT_FOUND", 'There is no endpoint "doubledouble'),
        (_message(name="z"), "INVALID_ARGUMENT", 'inputs["z"]: unknown'),
        (_message(datatype="FP64"), "INVALID_ARGUMENT", 'inputs["x"].datatype'),
        (_message(shape=[1, 4]), "INVALID_ARGUMENT", 'inputs["x"].shape'),
        (_message(shape=[-1, 3]), "INVALID_ARGUMENT", 'inputs["x"].shape'),
        (_message(contents={"fp32_contents": [1]}), "INVALID_ARGUMENT", 'inputs["x"].contents.fp32_contents: has 1'),
        (_message(contents={"fp64_contents": [1, 2, 3]}), "INVALID_ARGUMENT", 'inputs["x"].contents.fp32_contents'),
        (
            _message("identity-int8", datatype="INT8", shape=[1, 2], contents={"int_contents": [1, 128]}),
            "INVALID_ARGUMENT",
            'inputs["x"].contents.int_contents',
        ),
        (
            _message("identity-bytes", datatype="BYTES", shape=[1, 2], contents={"bytes_contents": [b"a", b"\xff"]}),
            "INVALID_ARGUMENT",
            'inputs["x"].contents.bytes_contents',
        ),
        (
            service_pb2.ModelInferRequest(
                model_name="double", inputs=_message().inputs, raw_input_contents=[b"\0" * 12]
            ),
            "INVALID_ARGUMENT",
            'inputs["x"].contents: must be empty',
        ),
        (
            service_pb2.ModelInferRequest(
                model_name="double",
                inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 3]}],
                raw_input_contents=[b"\0" * 8],
            ),
            "INVALID_ARGUMENT",
            "raw_input_contents[0]: is 8",
        ),
        (
            service_pb2.ModelInferRequest(model_name="double", raw_input_contents=[b""]),
            "INVALID_ARGUMENT",
            "raw_input_contents: has 1 entries for 0 inputs",
        ),
        (service_pb2.ModelInferRequest(model_name="double"), "INVALID_ARGUMENT", 'inputs["x"]: is missing'),
        (
            service_pb2.ModelInferRequest(model_name="double", inputs=[*_message().inputs, *_message().inputs]),
            "INVALID_ARGUMENT",
            'inputs["x"]: is given twice',
        ),
        (
            service_pb2.ModelInferRequest(model_name="double", inputs=_message().inputs, outputs=[{"name": "nope"}]),
            "INVALID_ARGUMENT",
            'outputs["nope"]: unknown',
        ),
        (_many_outputs, "INVALID_ARGUMENT", 'outputs["y"]: is asked for twice'),
        (_many_parameters, "INVALID_ARGUMENT", 'inputs["x"].parameters: has more than 64'),
        (_shared_memory, "INVALID_ARGUMENT", 'inputs["x"].parameters'),
        (_classification, "INVALID_ARGUMENT", 'outputs["y"].parameters'),
        (
            _message("pick", datatype="INT64", shape=[1], contents={"int64_contents": [99]}),
            "INTERNAL",
            "The model failed on these inputs.",
        ),
        (
            _message("narrow", shape=[9, 3], contents={"fp32_contents": [0] * 27}),
            "INVALID_ARGUMENT",
            "The request has 9 rows",
        ),
    ],
)
def test_a_request_that_does_not_fit_gets_a_status_and_the_name_of_the_field(
    stub: service_pb2_grpc.GRPCInferenceServiceStub, message: Any, code: str, said: str
) -> None:
    if callable(message):
        change, message = message, _message()
        change(message)
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(message, metadata=tuple(HEADERS.items()))
    assert refused.value.code().name == code
    assert refused.value.details().startswith(said), refused.value.details()


def test_what_is_not_the_protocol_is_refused(service: Service) -> None:
    with grpc.insecure_channel(service.grpc_address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for body in (b"\xff" * 20, b"\x0a\x01\xff"):
            with pytest.raises(grpc.RpcError) as refused:
                call(body, metadata=tuple(HEADERS.items()), timeout=5)
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/inference.GRPCInferenceService/ModelConfig")(b"", timeout=5)
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_tokens(stub: service_pb2_grpc.GRPCInferenceServiceStub) -> None:
    def code(endpoint: str, authorization: str | None) -> str:
        metadata = () if authorization is None else (("authorization", authorization),)
        try:
            stub.ModelInfer(_message(endpoint), metadata=metadata, timeout=5)
        except grpc.RpcError as error:
            name: str = error.code().name
            return name
        return "OK"

    known = HEADERS["authorization"]
    assert code("double", known) == code("double", known.replace("Bearer", "bearer")) == "OK"
    for wrong in (None, "", "Bearer", "Bearer ", "Basic abc", known + "x"):
        assert code("double", wrong) == code("nowhere", wrong) == "UNAUTHENTICATED"
    assert code("forbidden", known) == "PERMISSION_DENIED"
    assert code("foreign", known) == code("nowhere", known) == "NOT_FOUND"
    assert code("forbidden", f"Bearer {OTHER_TOKEN}") == code("foreign", f"Bearer {OTHER_TOKEN}") == "OK"
    assert code("expired", f"Bearer {EXPIRED_TOKEN}") == "UNAUTHENTICATED"
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelMetadata(service_pb2.ModelMetadataRequest(name="double"))
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_a_message_over_the_limit_is_refused_and_a_strangers_is_not_even_read(
    stub: service_pb2_grpc.GRPCInferenceServiceStub,
) -> None:
    large = _message(shape=[2**19, 3], contents={"fp32_contents": [0.0] * (3 * 2**19)})
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(large, metadata=tuple(HEADERS.items()), timeout=20)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(large, timeout=20)
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_compressed_messages_within_the_limit(client: triton.InferenceServerClient, service: Service) -> None:
    asked = [_input("x", np.ones((500, 3)))]
    for coding in ("gzip", "deflate"):
        result = client.infer("double", asked, headers=HEADERS, compression_algorithm=coding)
        assert (result.as_numpy("y") == 2).all()
    bomb = _message(contents={"bytes_contents": [bytes(20_000_000)]}).SerializeToString()
    with grpc.insecure_channel(service.grpc_address, options=(("grpc.max_send_message_length", -1),)) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as refused:
            infer(bomb, metadata=tuple(HEADERS.items()), compression=grpc.Compression.Gzip, timeout=20)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_who_sends_slowly_loses_the_call(service: Service) -> None:
    def requests() -> Iterator[bytes]:
        time.sleep(5)
        yield b""

    with grpc.insecure_channel(service.grpc_address) as channel:
        call = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        began = time.monotonic()
        with pytest.raises(grpc.RpcError) as refused:
            call(requests(), metadata=tuple(HEADERS.items()))
    assert refused.value.details() == "The request did not arrive in time."
    assert time.monotonic() - began < 4  # the service's body timeout is 1 s


def _run(address: str, use: Callable[[triton_aio.InferenceServerClient], Awaitable[None]]) -> None:
    """Use an asyncio client on a loop of its own."""

    async def main() -> None:
        client = triton_aio.InferenceServerClient(address)
        try:
            await use(client)
        finally:
            await client.close()

    run_async(main())


def test_many_at_a_time_get_their_own_answers(service: Service) -> None:
    async def use(client: triton_aio.InferenceServerClient) -> None:
        async def ask(number: int) -> None:
            result = await client.infer("double", [_input("x", [[number, 0, 1]])], headers=dict(HEADERS))
            assert result.as_numpy("y").tolist() == [[2 * number, 0, 2]]

        await asyncio.gather(*(ask(number) for number in range(300)))

    _run(service.grpc_address, use)


def test_a_full_queue_and_callers_who_leave(workbench: Workbench) -> None:
    installation = workbench.installation()
    installation.endpoint("slow", models.slow(500, 40), limits=Limits(queue_rows=6))
    installation.publish()
    service = workbench.serve(installation, INFERENCE_GRPC_PORT=str(free_port()))

    async def use(client: triton_aio.InferenceServerClient) -> None:
        async def ask(rows: int, timeout: float | None = None) -> str:
            asked = [_input("x", np.ones((rows, 1, 1)))]
            try:
                await client.infer("slow", asked, headers=dict(HEADERS), client_timeout=timeout)
            except InferenceServerException as error:
                return str(error)
            return "ok"

        running = asyncio.create_task(ask(4))
        await asyncio.sleep(0.05)  # calls of one client arrive in the order in which they are made
        leaving, late = asyncio.create_task(ask(1)), asyncio.create_task(ask(1, timeout=0.15))
        await asyncio.sleep(0.05)
        assert "RESOURCE_EXHAUSTED] The endpoint's queue is full" in await ask(1)
        leaving.cancel()
        assert "DEADLINE_EXCEEDED" in await late
        assert not running.done(), "the model is too fast for this test"
        assert await running == "ok"
        await asyncio.sleep(0.1)
        assert await ask(6) == "ok"

    _run(service.grpc_address, use)
    service.stop()
    errors = [stored.record.error for stored in installation.records() if stored.record.outcome == "failed"]
    assert errors == ["The caller closed the connection before the model ran."] * 2


def test_an_error_says_when_to_try_again(workbench: Workbench) -> None:
    installation = workbench.installation()
    installation.endpoint("slow", models.slow(), limits=Limits(queue_rows=8))
    installation.publish()
    service = workbench.serve(installation, INFERENCE_GRPC_PORT=str(free_port()))
    message = _message("slow", shape=[8, 1, 1], contents={"fp32_contents": [1.0] * 8})
    with grpc.insecure_channel(service.grpc_address) as channel:
        infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        calls = [infer.future(message, metadata=tuple(HEADERS.items())) for _ in range(3)]
        ended = {call.code(): dict(call.trailing_metadata()) for call in calls}
    assert set(ended) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert ended[grpc.StatusCode.OK]["x-request-id"]
    assert ended[grpc.StatusCode.RESOURCE_EXHAUSTED]["x-request-id"]
    assert ended[grpc.StatusCode.RESOURCE_EXHAUSTED]["retry-after"] == "1"


def test_guardrails_timeouts_and_trace_context(workbench: Workbench) -> None:
    installation = workbench.installation()
    rules = (GuardrailRule("small", "x[0] < 5", "flag"), GuardrailRule("known", "x[0] < 9", "reject"))
    installation.endpoint("double", models.scale(2), guardrails=rules)
    installation.endpoint("slow", models.slow())
    installation.publish()
    service = workbench.serve(installation, INFERENCE_GRPC_PORT=str(free_port()))
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    metadata = (*HEADERS.items(), ("traceparent", trace))
    with grpc.insecure_channel(service.grpc_address) as channel:
        infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer

        def ended(first: float) -> tuple[str, dict[str, str]]:
            call = infer.future(_message(contents={"fp32_contents": [first, 2, 3]}), metadata=metadata)
            return call.code().name, {key: value for key, value in call.trailing_metadata() if key != "x-request-id"}

        assert ended(1) == ("OK", {"traceparent": trace})
        assert ended(5) == ("OK", {"traceparent": trace, "x-guardrails": "small"})
        code, trailing = ended(9)
        assert (code, trailing["traceparent"]) == ("INVALID_ARGUMENT", trace)
        assert "known" in trailing["x-guardrails"]
        hasty = _message("slow", shape=[1, 1, 1], contents={"fp32_contents": [1.0]})
        hasty.parameters["timeout"].int64_param = 100  # microseconds
        assert infer.future(hasty, metadata=metadata).code().name in ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")


def test_a_sticky_header_and_the_log(workbench: Workbench) -> None:
    installation = workbench.installation()
    installation.endpoint(
        "split",
        installation.deployment(models.scale(1), version=1, weight=50),
        installation.deployment(models.scale(2), version=2, weight=50, role="canary"),
        sticky_header="X-Customer",
    )
    installation.publish()
    service = workbench.serve(installation, INFERENCE_GRPC_PORT=str(free_port()))
    client = triton.InferenceServerClient(service.grpc_address)

    def version(customer: int) -> str:
        headers = HEADERS | {"x-customer": str(customer)}
        answer = client.infer("split", [_input("x", [[1, 2, 3]])], headers=headers).get_response()
        http = service.infer("split", {"inputs": [_http_row()]}, headers={"X-Customer": str(customer)})
        assert http.json()["model_version"] == answer.model_version
        return str(answer.model_version)

    versions = [version(customer) for customer in range(20)]
    assert versions == [version(customer) for customer in range(20)]
    assert set(versions) == {"1", "2"}
    last = client.infer("split", [_input("x", [[7, 8, 9]])], request_id="the-last", headers=HEADERS)
    client.close()
    service.stop()
    [stored] = [one for one in installation.records() if "the-last" in one.record.request_ids]
    inputs, outputs = (tensor.values for tensor in stored.tensors)
    assert inputs is not None
    assert outputs is not None
    assert (stored.record.outcome, stored.record.token_ids) == ("ok", [1])
    assert (inputs.tolist(), outputs.tolist()) == ([[7, 8, 9]], last.as_numpy("y").tolist())


def _http_row() -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}


def test_a_drain_under_load_loses_nothing_that_was_accepted(workbench: Workbench) -> None:
    installation = workbench.installation()
    installation.endpoint("double", models.scale(2))
    installation.publish()
    service = workbench.serve(installation, INFERENCE_GRPC_PORT=str(free_port()))
    answered: set[str] = set()
    refused: dict[str, str] = {}

    async def use(client: triton_aio.InferenceServerClient) -> None:
        async def ask(worker: int) -> None:
            for turn in range(100_000):
                request_id = f"{worker}-{turn}"
                try:
                    asked = [_input("x", [[1, 2, 3]])]
                    await client.infer("double", asked, request_id=request_id, headers=dict(HEADERS))
                except InferenceServerException as error:
                    refused[request_id] = str(error.status())
                    return
                answered.add(request_id)

        workers = [asyncio.create_task(ask(worker)) for worker in range(16)]
        await asyncio.sleep(0.7)
        assert await asyncio.to_thread(service.stop) == 0
        await asyncio.gather(*workers)

    _run(service.grpc_address, use)
    assert len(answered) > 100
    # Who calls in the very moment of the shutdown is cancelled by gRPC, and as little served as the others.
    assert "StatusCode.UNAVAILABLE" in refused.values()
    assert set(refused.values()) <= {"StatusCode.UNAVAILABLE", "StatusCode.CANCELLED"}
    logged = [request_id for stored in installation.records() for request_id in stored.record.request_ids]
    assert len(logged) == len(set(logged))
    assert set(logged) == answered


def test_replicas_share_the_port_and_without_one_nothing_is_loaded(workbench: Workbench) -> None:
    installation = workbench.installation()
    installation.endpoint("double", models.scale(2))
    installation.publish()
    service = workbench.serve(installation, INFERENCE_GRPC_PORT=str(free_port()), INFERENCE_REPLICAS="2")
    wait_for(lambda: sum(_has_grpc(pid) for pid in service.children()) == 2)
    for _ in range(20):  # every connection goes to one of the two
        with triton.InferenceServerClient(service.grpc_address) as client:
            assert client.infer("double", [_input("x", [[1, 2, 3]])], headers=HEADERS).as_numpy("y").tolist() == [
                [2, 4, 6]
            ]
    plain = workbench.serve(installation)
    assert not any(_has_grpc(pid) for pid in plain.children())


def _has_grpc(pid: int) -> bool:
    return "cygrpc" in Path(f"/proc/{pid}/maps").read_text()
