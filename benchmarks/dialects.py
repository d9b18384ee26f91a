"""How the servers want to be asked: the same rows in each one's own request format, and what their answers mean."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from benchmarks.models import INPUT, Array

JSON_TYPE: Final = {"Content-Type": "application/json"}
HEADER_LENGTH: Final = "Inference-Header-Content-Length"
NUMPY_TYPES: Final = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64, "INT32": np.int32}


@dataclass(frozen=True)
class Dialect:
    """A request format. ``path`` names the model as ``{model}``; answers are decoded to arrays by output name."""

    path: str
    encode: Callable[[Array], tuple[Mapping[str, str], bytes]]  # one row, without its batch dimension
    decode: Callable[[Mapping[str, str], bytes], dict[str, Array]]


def _numbers(row: Array) -> list[Any]:
    """The shortest decimals that are these float32 values: what a caller would write, not their float64 expansion."""
    return [float(str(value)) for value in row.reshape(-1)]


def _compact(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _encode_v2(row: Array) -> tuple[Mapping[str, str], bytes]:
    tensor = {"name": INPUT, "shape": [1, *row.shape], "datatype": "FP32", "data": _numbers(row)}
    return JSON_TYPE, _compact({"inputs": [tensor]})


def _encode_v2_with_id(row: Array) -> tuple[Mapping[str, str], bytes]:
    headers, body = _encode_v2(row)
    return headers, _compact({"id": "1", **json.loads(body)})


def _encode_v2_binary(row: Array) -> tuple[Mapping[str, str], bytes]:
    data = np.ascontiguousarray(row, "<f4").tobytes()
    tensor = {
        "name": INPUT,
        "shape": [1, *row.shape],
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(data)},
    }
    header = _compact({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    return {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))}, header + data


def _decode_v2(headers: Mapping[str, str], body: bytes) -> dict[str, Array]:
    header_length = int(headers.get(HEADER_LENGTH.lower(), len(body)))
    outputs, position = {}, header_length
    for output in json.loads(body[:header_length])["outputs"]:
        dtype = NUMPY_TYPES[output["datatype"]]
        if "data" in output:
            values = np.array(output["data"], dtype)
        else:
            size = output["parameters"]["binary_data_size"]
            values = np.frombuffer(body[position : position + size], dtype)
            position += size
        outputs[output["name"]] = values.reshape(output["shape"])
    return outputs


def _encode_mlflow(row: Array) -> tuple[Mapping[str, str], bytes]:
    return JSON_TYPE, _compact({"inputs": {INPUT: _nested(row)}})


def _decode_mlflow(headers: Mapping[str, str], body: bytes) -> dict[str, Array]:
    return {name: np.array(values) for name, values in json.loads(body)["predictions"].items()}


def _encode_bentoml(row: Array) -> tuple[Mapping[str, str], bytes]:
    return JSON_TYPE, _compact({INPUT: _nested(row)})


def _decode_bentoml(headers: Mapping[str, str], body: bytes) -> dict[str, Array]:
    return {"probabilities": np.array(json.loads(body))}


def _nested(row: Array) -> list[Any]:
    nested: list[Any] = np.array(_numbers(row)).reshape(1, *row.shape).tolist()
    return nested


V2: Final = Dialect("/v2/models/{model}/infer", _encode_v2, _decode_v2)
V2_BINARY: Final = Dialect("/v2/models/{model}/infer", _encode_v2_binary, _decode_v2)
V2_WITH_ID: Final = Dialect("/v2/models/{model}/infer", _encode_v2_with_id, _decode_v2)
"""KServe answers 500 to a request without an id, which the protocol allows."""
MLFLOW: Final = Dialect("/invocations", _encode_mlflow, _decode_mlflow)
BENTOML: Final = Dialect("/predict", _encode_bentoml, _decode_bentoml)
