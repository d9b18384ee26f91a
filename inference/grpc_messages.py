"""The Open Inference Protocol's gRPC messages, made from a table when gRPC is on, so that no code is generated."""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE: Final = "inference"

_TABLE: Final = """
HealthCheckResponse: int32 status = 1
ServerLiveResponse: bool live = 1
ServerReadyResponse: bool ready = 1
ServerMetadataResponse: string name = 1, string version = 2, repeated string extensions = 3
ModelReadyRequest: string name = 1, string version = 2
ModelReadyResponse: bool ready = 1
ModelMetadataRequest: string name = 1, string version = 2
TensorMetadata: string name = 1, string datatype = 2, repeated int64 shape = 3
ModelMetadataResponse: string name = 1, repeated string versions = 2, string platform = 3,
    repeated TensorMetadata inputs = 4, repeated TensorMetadata outputs = 5
InferParameter: bool bool_param = 1, int64 int64_param = 2, string string_param = 3, double double_param = 4,
    uint64 uint64_param = 5
Parameter: string key = 1, InferParameter value = 2
InferTensorContents: repeated bool bool_contents = 1, repeated int32 int_contents = 2,
    repeated int64 int64_contents = 3, repeated uint32 uint_contents = 4, repeated uint64 uint64_contents = 5,
    repeated float fp32_contents = 6, repeated double fp64_contents = 7, repeated bytes bytes_contents = 8
InferInputTensor: string name = 1, string datatype = 2, repeated int64 shape = 3, repeated Parameter parameters = 4,
    InferTensorContents contents = 5
InferRequestedOutputTensor: string name = 1, repeated Parameter parameters = 2
ModelInferRequest: string model_name = 1, string model_version = 2, string id = 3, repeated Parameter parameters = 4,
    repeated InferInputTensor inputs = 5, repeated InferRequestedOutputTensor outputs = 6,
    repeated bytes raw_input_contents = 7
InferOutputTensor: string name = 1, string datatype = 2, repeated int64 shape = 3
ModelInferResponse: string model_name = 1, string model_version = 2, string id = 3,
    repeated InferOutputTensor outputs = 5, repeated bytes raw_output_contents = 6
"""
"""Messages with their fields' types and numbers as the protocol publishes them; what is empty there is left out.

Where the protocol nests a message, here it stands alone, and its maps are lists of entries: the same bytes. The health
check is of grpc.health.v1, where its status is an enumeration.
"""


def _file() -> Any:
    """The table as the descriptor of a proto3 file."""
    file = descriptor_pb2.FileDescriptorProto(name="inference.proto", package=PACKAGE, syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    for line in _TABLE.strip().replace(",\n", ",").splitlines():
        name, _, fields = line.partition(":")
        message = file.message_type.add(name=name)
        for declaration in fields.split(","):
            *labels, kind, field, _, number = declaration.split()
            one = message.field.add(name=field, number=int(number))
            one.label = kinds.LABEL_REPEATED if labels else kinds.LABEL_OPTIONAL
            if kind[0].isupper():
                one.type, one.type_name = kinds.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
            else:
                one.type = getattr(kinds, f"TYPE_{kind.upper()}")
    return file


# A pool of their own: a client library in the same process may register messages of the same names.
_pool = descriptor_pool.DescriptorPool()
_pool.Add(_file())


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))


HealthCheckResponse: Final = _message("HealthCheckResponse")
ServerLiveResponse: Final = _message("ServerLiveResponse")
ServerReadyResponse: Final = _message("ServerReadyResponse")
ServerMetadataResponse: Final = _message("ServerMetadataResponse")
ModelReadyRequest: Final = _message("ModelReadyRequest")
ModelReadyResponse: Final = _message("ModelReadyResponse")
ModelMetadataRequest: Final = _message("ModelMetadataRequest")
ModelMetadataResponse: Final = _message("ModelMetadataResponse")
ModelInferRequest: Final = _message("ModelInferRequest")
ModelInferResponse: Final = _message("ModelInferResponse")
