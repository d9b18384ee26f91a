"""The Open Inference Protocol V2 as its reference client and plain HTTP clients speak it."""

from __future__ import annotations

import asyncio
import gzip
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import requests
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from tests.inference import onnx_models as models
from tests.inference.conftest import EXPIRED_TOKEN, OTHER_TOKEN
from tests.inference.conftest import service as service
from tests.inference.installation import Service, row, run_async, tensor

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False, False, True],
    "UINT8": [0, 1, 254, 255],
    "UINT16": [0, 1, 2, 65535],
    "UINT32": [0, 1, 2, 2**32 - 1],
    "UINT64": [0, 1, 2**53 + 1, 2**64 - 1],
    "INT8": [-128, -1, 0, 127],
    "INT16": [-32768, -1, 0, 32767],
    "INT32": [-(2**31), -1, 0, 2**31 - 1],
    "INT64": [-(2**63), -1, 2**53 + 1, 2**63 - 1],
    "FP16": [-1.5, 0.0, 0.25, 65504.0],
    "FP32": [-1.5, 0.0, 1e-30, 3.25],
    "FP64": [-1.5, 0.1, 1e-300, 1e300],
    "BYTES": ["", "plain", 'quote " ],[ \\', "naïve 日本"],
}


@pytest.fixture
def client(service: Service) -> Iterator[triton.InferenceServerClient]:
    """tritonclient as it comes, without options."""
    one = triton.InferenceServerClient(f"127.0.0.1:{service.port}")
    yield one
    one.close()


def test_server_and_model_metadata(client: triton.InferenceServerClient, service: Service) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.is_model_ready("double", headers=service.headers)
    assert client.is_model_ready("double", "1", headers=service.headers)
    assert not client.is_model_ready("double", "2", headers=service.headers)
    assert client.get_model_metadata("several", headers=service.headers) == {
        "name": "several",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "a", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "b", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "mask", "datatype": "BOOL", "shape": [-1]},
        ],
        "outputs": [
            {"name": "total", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "flag", "datatype": "BOOL", "shape": [-1]},
        ],
    }


@pytest.mark.parametrize("datatype", VALUES)
@pytest.mark.parametrize("is_binary", [True, False], ids=["binary", "json"])
def test_every_datatype_comes_back_exactly(
    client: triton.InferenceServerClient, service: Service, datatype: str, is_binary: bool
) -> None:
    values = np.array(VALUES[datatype], triton_to_np_dtype(datatype)).reshape(2, 2)
    asked = triton.InferInput("x", [2, 2], datatype)
    if datatype == "FP16" and not is_binary:  # the client itself cannot send it
        answer = service.infer("identity-fp16", {"inputs": [tensor("x", "FP16", [2, 2], VALUES["FP16"])]}).json()
        assert answer["outputs"][0]["data"] == VALUES["FP16"]
        return
    asked.set_data_from_numpy(values, binary_data=is_binary)
    outputs = [triton.InferRequestedOutput("y", binary_data=is_binary)]
    result = client.infer(f"identity-{datatype.lower()}", [asked], outputs=outputs, headers=service.headers)
    got = result.as_numpy("y")
    if datatype == "BYTES":
        got = np.array([part.decode() if isinstance(part, bytes) else part for part in got.ravel()]).reshape(2, 2)
    assert got.tolist() == np.array(VALUES[datatype], dtype=got.dtype).reshape(2, 2).tolist()


def test_the_reference_client_with_default_settings(client: triton.InferenceServerClient, service: Service) -> None:
    asked = triton.InferInput("x", [2, 3], "FP32")
    asked.set_data_from_numpy(np.array([[1, 2, 3], [4, 5, 6]], np.float32))
    result = client.infer("double", [asked], request_id="mine-1", headers=service.headers)
    assert result.as_numpy("y").tolist() == [[2, 4, 6], [8, 10, 12]]
    assert result.get_response()["id"] == "mine-1"
    assert result.get_response()["outputs"][0]["parameters"] == {"binary_data_size": 24}


def test_several_inputs_and_one_requested_output(client: triton.InferenceServerClient, service: Service) -> None:
    inputs = [triton.InferInput("mask", [2], "BOOL"), triton.InferInput("b", [2, 2], "FP32")]
    inputs.append(triton.InferInput("a", [2, 2], "FP32"))
    inputs[0].set_data_from_numpy(np.array([True, False]))
    inputs[1].set_data_from_numpy(np.ones((2, 2), np.float32), binary_data=False)
    inputs[2].set_data_from_numpy(np.array([[1, 2], [3, 4]], np.float32))
    everything = client.infer("several", inputs, headers=service.headers)
    assert everything.as_numpy("total").tolist() == [[2, 3], [4, 5]]
    assert everything.as_numpy("flag").tolist() == [True, False]
    mixed = [triton.InferRequestedOutput("flag", binary_data=False), triton.InferRequestedOutput("total")]
    result = client.infer("several", inputs, outputs=mixed, headers=service.headers)
    assert [output["name"] for output in result.get_response()["outputs"]] == ["flag", "total"]
    assert result.as_numpy("total").tolist() == [[2, 3], [4, 5]]
    assert result.as_numpy("flag").tolist() == [True, False]


@pytest.mark.parametrize(
    ("endpoint", "datatype", "shape", "data"),
    [
        ("fixed", "FP32", [2, 2], [1.0, 2.0, 3.0, 4.0]),
        ("scalar", "FP64", [], [1.5]),
        ("free", "FP32", [2, 3, 2], [float(i) for i in range(12)]),
        ("free", "FP32", [1, 1, 2], [1.0, 2.0]),
        ("free", "FP32", [3, 0, 2], []),
        ("identity-fp32", "FP32", [0, 2], []),
    ],
)
def test_fixed_free_scalar_and_empty_shapes(
    service: Service, endpoint: str, datatype: str, shape: list[int], data: list[float]
) -> None:
    answer = service.infer(endpoint, {"inputs": [tensor("x", datatype, shape, data)]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"] == [{"name": "y", "datatype": datatype, "shape": shape, "data": data}]


def test_nested_json_data_is_read_in_row_major_order(service: Service) -> None:
    answer = service.infer("double", {"inputs": [tensor("x", "FP32", [2, 3], [[1, 2, 3], [4, 5, 6]])]})
    assert answer.json()["outputs"][0]["data"] == [2, 4, 6, 8, 10, 12]


def test_a_model_whose_rows_depend_on_each_other_runs_each_request_alone(service: Service) -> None:
    answer = service.infer("coupled", {"inputs": [tensor("x", "FP32", [2, 2], [1, 1, 1, 1])]})
    assert answer.json()["outputs"][0]["data"] == [0.5, 0.5, 0.5, 0.5]
    assert service.infer("coupled", {"inputs": [tensor("x", "FP32", [1, 2], [1, 1])]}).json()["outputs"][0]["data"] == [
        1,
        1,
    ]


def test_the_version_is_named_and_may_be_asked_for(service: Service) -> None:
    url = f"{service.url}/v2/models/double/versions"
    answer = requests.post(f"{url}/1/infer", json=row(1, 2, 3), headers=service.headers, timeout=5)
    assert answer.json()["model_name"] == "double"
    assert answer.json()["model_version"] == "1"
    assert requests.post(f"{url}/2/infer", json=row(1, 2, 3), headers=service.headers, timeout=5).status_code == 404


def test_request_ids(service: Service) -> None:
    first, second = (service.infer("double", row(1, 2, 3)) for _ in range(2))
    assert first.json()["id"] == first.headers["x-request-id"] < second.headers["x-request-id"]
    given = service.infer("double", row(1, 2, 3), headers={"X-Request-ID": "from-a-proxy"})
    assert given.json()["id"] == given.headers["x-request-id"] == "from-a-proxy"
    own = service.infer("double", row(1, 2, 3) | {"id": "own 1"}, headers={"X-Request-ID": "from-a-proxy"})
    assert own.json()["id"] == own.headers["x-request-id"] == "own 1"
    for bad in ("a\nb", 'quote"', "x" * 129, "é"):
        answer = service.infer("double", row(1, 2, 3) | {"id": bad})
        assert (answer.status_code, answer.json()["error"][:3]) == (400, "id:")


def _one(**changes: Any) -> dict[str, Any]:
    return {"inputs": [tensor("x", "FP32", [1, 3], [1, 2, 3]) | changes]}


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({}, "body: Object missing required field `inputs`"),
        ({"inputs": []}, 'inputs["x"]'),
        ({"inputs": "x"}, "inputs"),
        ({"inputs": _one()["inputs"] * 2}, 'inputs["x"]: is given twice'),
        (_one(name="z"), 'inputs["z"]'),
        (_one(datatype="FP64"), 'inputs["x"].datatype'),
        (_one(datatype="float"), 'inputs["x"].datatype'),
        (_one(shape=[1, 4]), 'inputs["x"].shape'),
        (_one(shape=[3]), 'inputs["x"].shape'),
        (_one(shape=[-1, 3]), 'inputs["x"].shape'),
        (_one(shape=[0, 3]), 'inputs["x"].data'),
        (_one(shape=[2**62, 3]), 'inputs["x"].shape'),
        (_one(shape=[2**70, 3]), 'inputs["x"].shape'),
        (_one(shape=[1.5, 3]), "inputs[0].shape[0]"),
        (_one(data=[1, 2]), 'inputs["x"].data'),
        (_one(data=[1, 2, "3"]), 'inputs["x"].data[2]'),
        (_one(data=[1, 2, None]), 'inputs["x"].data[2]'),
        (_one(data=[[1, 2], [3]]), 'inputs["x"].data'),
        (_one(data=5), 'inputs["x"].data'),
        (_one(data=[1, 2, 1e39]), 'inputs["x"].data'),
        (_one() | {"outputs": [{"name": "nope"}]}, 'outputs["nope"]'),
        (_one() | {"outputs": [{"name": "y"}, {"name": "y"}]}, 'outputs["y"]'),
        (_one() | {"outputs": [{"name": "y", "parameters": {"classification": 2}}]}, 'outputs["y"].parameters'),
        (_one(parameters={"binary_data_size": 12}), 'inputs["x"]'),
    ],
)
def test_a_request_that_does_not_fit_is_refused_by_the_name_of_the_field(
    service: Service, document: dict[str, Any], named: str
) -> None:
    answer = service.infer("double", document)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(named), answer.json()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,NaN,3]}]}',
        b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,1e400,3]}]}',
        b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":' + b"[" * 10_000 + b"]" * 10_000 + b"}]}",
        b'{"parameters":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b',"inputs":[]}',
    ],
)
def test_what_is_not_json_is_refused(service: Service, body: bytes) -> None:
    answer = requests.post(f"{service.url}/v2/models/double/infer", data=body, headers=service.headers, timeout=5)
    assert answer.status_code == 400
    assert answer.json()["error"]
    assert service.infer("double", row(1, 2, 3)).status_code == 200


@pytest.mark.parametrize(
    ("datatype", "value"), [("UINT8", 256), ("UINT8", -1), ("INT64", 2**63), ("UINT64", 2**64), ("INT32", 1.5)]
)
def test_integers_that_do_not_fit_are_refused_and_never_wrapped(service: Service, datatype: str, value: float) -> None:
    answer = service.infer(f"identity-{datatype.lower()}", {"inputs": [tensor("x", datatype, [1, 2], [0, value])]})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith('inputs["x"].data')


@pytest.mark.parametrize(
    "form",
    [
        '{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[%s]}]}',
        '{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[ [%s] ]}]}',
        '{"inputs":[{"data":[%s],"name":"x","datatype":"FP32","shape":[1,3]}]}\n',
        '{"extra":[1,2,3],"inputs":[{"name":"x","data":[9,9,9],"shape":[1,3],"datatype":"FP32","data":[%s]}],"z":[4,5,6]}',
        '{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[%s]}],"id":"own"}',
    ],
)
def test_bodies_that_repeat_but_for_their_numbers(service: Service, form: str) -> None:
    def send(numbers: str) -> tuple[int, Any]:
        url = f"{service.url}/v2/models/double/infer"
        answer = requests.post(url, data=form % numbers, headers=service.headers, timeout=5)
        document = answer.json()
        return answer.status_code, document["outputs"][0]["data"] if answer.ok else document["error"]

    for numbers, doubled in (("1,2,3", [2, 4, 6]), ("4,5,6", [8, 10, 12]), (" -1.5e0, 0 ,\t7", [-3, 0, 14])):
        assert send(numbers) == (200, doubled)
    for numbers in (
        "1,2",
        "1,2,3,4",
        "1,2,",
        ",1,2",
        "1,2,null",
        '1,2,"3"',
        "1,[2],3",
        "1,2,1e39",
        "1,2,3-",
        "01,2,3",
        "",
    ):
        status, error = send(numbers)
        assert status == 400, numbers
        assert error.startswith(("inputs", "body: ")), error
    assert send("7,8,9") == (200, [14, 16, 18])


def test_a_broken_row_spares_those_that_run_with_it(service: Service) -> None:
    service.infer("double", row(1, 2, 3))
    texts = [json.dumps(row(number, 2, 3)).replace("2,", "2-," if number % 4 == 0 else "2,") for number in range(16)]
    texts = [text.encode().replace(b" ", b"") for text in texts]
    head = b"POST /v2/models/double/infer HTTP/1.1\r\nHost: x\r\nAuthorization: %b\r\nContent-Length: %d\r\n\r\n"
    token = service.headers["Authorization"].encode()
    with service.connect() as connection:
        connection.sendall(b"".join(head % (token, len(text)) + text for text in texts))
        received = b""
        while received.count(b"HTTP/1.1") < len(texts) or not received.endswith(b"}"):
            received += connection.recv(65536)
    statuses = [int(answer[1:4]) for answer in received.split(b"HTTP/1.1")[1:]]
    assert statuses == [400 if number % 4 == 0 else 200 for number in range(16)]


def _binary(size: int, payload: bytes, header_length: int | None = None, datatype: str = "FP32") -> tuple[bytes, str]:
    endpoint_input = {"name": "x", "datatype": datatype, "shape": [1, 3] if datatype == "FP32" else [1, 2]}
    head = json.dumps({"inputs": [endpoint_input | {"parameters": {"binary_data_size": size}}]}).encode()
    return head + payload, str(len(head) if header_length is None else header_length)


@pytest.mark.parametrize(
    ("endpoint", "sent"),
    [
        ("double", _binary(12, b"\0" * 11)),
        ("double", _binary(12, b"\0" * 13)),
        ("double", _binary(8, b"\0" * 8)),
        ("double", _binary(-4, b"")),
        ("double", _binary(12, b"\0" * 12, 10)),
        ("double", _binary(12, b"\0" * 12, 10**6)),
        ("identity-bool", _binary(2, b"\1\2", datatype="BOOL")),
        ("identity-bytes", _binary(5, struct.pack("<I", 100) + b"a", datatype="BYTES")),
        ("identity-bytes", _binary(10, struct.pack("<I", 1) + b"\xff" + struct.pack("<I", 1) + b"a", datatype="BYTES")),
    ],
)
def test_binary_data_that_does_not_add_up_is_refused(service: Service, endpoint: str, sent: tuple[bytes, str]) -> None:
    body, length = sent
    headers = service.headers | {"Inference-Header-Content-Length": length}
    answer = requests.post(f"{service.url}/v2/models/{endpoint}/infer", data=body, headers=headers, timeout=5)
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize("length", ["-1", "abc", "1e3", "99999999999999999999", "5, 5"])
def test_a_wrong_header_length_is_refused(service: Service, length: str) -> None:
    headers = service.headers | {"Inference-Header-Content-Length": length}
    answer = requests.post(f"{service.url}/v2/models/double/infer", json=row(1, 2, 3), headers=headers, timeout=5)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("inference-header-content-length")


def test_a_model_that_fails_says_nothing_of_its_inside_and_spares_its_neighbours(service: Service) -> None:
    answer = service.infer("pick", {"inputs": [tensor("x", "INT64", [1], [99])]})
    assert answer.status_code == 500
    assert answer.json() == {"error": "The model failed on these inputs."}
    assert service.infer("pick", {"inputs": [tensor("x", "INT64", [2], [1, 3])]}).json()["outputs"][0]["data"] == [1, 3]


@pytest.mark.parametrize("is_binary", [True, False], ids=["binary", "json"])
def test_tensors_may_have_odd_names(client: triton.InferenceServerClient, service: Service, is_binary: bool) -> None:
    x, y = models.ODD_NAMES
    asked = triton.InferInput(x, [1, 2], "FP32")
    asked.set_data_from_numpy(np.array([[1, 2]], np.float32), binary_data=is_binary)
    outputs = [triton.InferRequestedOutput(y, binary_data=is_binary)]
    result = client.infer("odd-names", [asked], outputs=outputs, headers=service.headers)
    assert result.as_numpy(y).tolist() == [[1, 2]]
    assert x in service.infer("odd-names", _one()).json()["error"]


def test_the_reference_client_for_asyncio(service: Service) -> None:
    async def ask(coding: str | None) -> list[Any]:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{service.port}") as client:
            assert await client.is_model_ready("double", headers=service.headers)
            asked = triton_aio.InferInput("x", [500, 3], "FP32")
            asked.set_data_from_numpy(np.ones((500, 3), np.float32))
            results = await asyncio.gather(
                *(
                    client.infer(
                        "double",
                        [asked],
                        headers=service.headers,
                        request_compression_algorithm=coding,
                        response_compression_algorithm=coding,
                    )
                    for _ in range(8)
                )
            )
            return [result.as_numpy("y") for result in results]

    for coding in ("gzip", "deflate", None):
        assert all((answer == 2).all() for answer in run_async(ask(coding)))


@pytest.mark.parametrize("asked_in", ["gzip", "deflate", None])
@pytest.mark.parametrize("answered_in", ["gzip", "deflate", None])
@pytest.mark.parametrize("is_binary", [True, False], ids=["binary", "json"])
def test_compressed_bodies(
    client: triton.InferenceServerClient,
    service: Service,
    asked_in: str | None,
    answered_in: str | None,
    is_binary: bool,
) -> None:
    for rows in (1, 2_000):  # a small answer is not worth packing
        values = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
        asked = triton.InferInput("x", [rows, 2], "FP32")
        asked.set_data_from_numpy(values, binary_data=is_binary)
        result = client.infer(
            "identity-fp32",
            [asked],
            outputs=[triton.InferRequestedOutput("y", binary_data=is_binary)],
            headers=service.headers,
            request_compression_algorithm=asked_in,
            response_compression_algorithm=answered_in,
        )
        assert np.array_equal(result.as_numpy("y"), values)


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("deflate, gzip", "gzip"),
        ("gzip;q=0.5, deflate", "deflate"),
        ("*", "gzip"),
        ("br, *;q=0.1, gzip;q=0", "deflate"),
        ("gzip;q=0", None),
        ("gzip;q=high", None),
        ("gzip;q=0.5, identity", None),
        ("br", None),
        ("", None),
        (",;=", None),
    ],
)
def test_an_answer_is_packed_as_the_caller_asks(service: Service, accepted: str, coding: str | None) -> None:
    document = {"inputs": [tensor("x", "FP32", [2_000, 2], [1.0] * 4_000)]}
    answer = service.infer("identity-fp32", document, headers={"Accept-Encoding": accepted})
    assert answer.headers.get("content-encoding") == coding
    assert answer.headers["vary"] == "accept-encoding"
    assert answer.json()["outputs"][0]["data"] == [1.0] * 4_000
    small = service.infer("identity-fp32", {"inputs": [tensor("x", "FP32", [1, 2], [1.0, 2.0])]})
    assert "content-encoding" not in small.headers


def _packed(service: Service, body: bytes, coding: str, **headers: str) -> requests.Response:
    sent = service.headers | {"Content-Encoding": coding} | headers
    return requests.post(f"{service.url}/v2/models/double/infer", data=body, headers=sent, timeout=10)


def test_a_body_that_cannot_be_unpacked_is_refused(service: Service) -> None:
    plain = json.dumps(row(1, 2, 3)).encode()
    packed = gzip.compress(plain)
    assert _packed(service, packed, "gzip").json()["outputs"][0]["data"] == [2, 4, 6]
    assert _packed(service, plain, "Identity").ok
    for body, coding in [
        (plain, "gzip"),
        (packed, "deflate"),
        (packed[:-4], "gzip"),
        (packed + b"x", "gzip"),
        (b"", "gzip"),
    ]:
        answer = _packed(service, body, coding)
        assert (answer.status_code, answer.json()["error"].startswith("content-encoding")) == (400, True)
    for coding in ("br", "gzip, gzip", "", "zstd"):
        answer = _packed(service, packed, coding)
        assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip, deflate")
    assert _packed(service, packed, "gzip", Authorization="Bearer nobody").status_code == 401


def test_a_bomb_is_not_unpacked_beyond_the_limit_of_a_body(service: Service) -> None:
    allowed = int(service.environment["INFERENCE_MAX_BODY_BYTES"])
    padding = b" " * (allowed - len(json.dumps(row(1, 2, 3))))
    assert _packed(service, zlib.compress(json.dumps(row(1, 2, 3)).encode() + padding), "deflate").ok
    bomb = zlib.compress(bytes(200 * allowed))
    answer = _packed(service, bomb, "deflate")
    assert (answer.status_code, str(allowed) in answer.json()["error"]) == (413, True)
    assert service.infer("double", row(1, 2, 3)).ok


def test_tokens(service: Service, client: triton.InferenceServerClient) -> None:
    def status(endpoint: str, authorization: str | None) -> int:
        headers = {} if authorization is None else {"Authorization": authorization}
        url = f"{service.url}/v2/models/{endpoint}/infer"
        return requests.post(url, json=row(1, 2, 3), headers=headers, timeout=5).status_code

    known = service.headers["Authorization"]
    assert status("double", known) == status("double", known.replace("Bearer", "bearer")) == 200
    for wrong in (None, "", "Bearer", "Bearer ", "Basic abc", known + "x", "Bearer \xff"):
        assert status("double", wrong) == 401
        assert status("nowhere", wrong) == 401, "an unknown caller must not learn which endpoints exist"
    assert status("forbidden", known) == 403
    assert status("foreign", known) == status("nowhere", known) == 404
    assert status("forbidden", f"Bearer {OTHER_TOKEN}") == status("foreign", f"Bearer {OTHER_TOKEN}") == 200
    assert status("expired", f"Bearer {EXPIRED_TOKEN}") == 401
    answer = requests.post(f"{service.url}/v2/models/double/infer", json=row(1, 2, 3), timeout=5)
    assert answer.headers["www-authenticate"] == "Bearer"
    with pytest.raises(InferenceServerException) as refused:
        client.get_model_metadata("double")
    assert refused.value.status() == "401"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/", 404),
        ("GET", "/v2/models/..%2f..%2fetc%2fpasswd", 404),
        ("POST", "/v2/models/..%2fdouble/infer", 404),
        ("POST", "/v2/models/double%00/infer", 404),
        ("POST", "/v2/models/dou%20ble/infer", 404),
        ("POST", "/v2/models/%ff/infer", 404),
        ("POST", "/v2/models/double/versions/-1/infer", 404),
        ("GET", "/v2/models/double/infer", 405),
        ("DELETE", "/v2/models/double/infer", 405),
        ("POST", "/v2/health/live", 405),
        ("HEAD", "/v2/health/live", 200),
        ("GET", "/v2?verbose=1", 200),
        ("GET", "/metrics", 200),
    ],
)
def test_paths_and_methods(service: Service, method: str, path: str, status: int) -> None:
    answer = requests.request(method, service.url + path, headers=service.headers, timeout=5)
    assert answer.status_code == status
    if status == 405:
        assert answer.headers["allow"]
    if status >= 400 and method != "HEAD":
        assert "error" in answer.json()


def test_more_rows_than_the_queue_holds(service: Service) -> None:
    asked = {"inputs": [tensor("x", "FP32", [9, 3], [0.0] * 27)]}
    answer = service.infer("narrow", asked)
    assert (answer.status_code, "9 rows" in answer.json()["error"]) == (413, True)
