"""Open Inference Protocol V2 bodies, JSON and the binary tensor extension, to and from tensors. No I/O."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any, Final, NamedTuple, cast

import msgspec
import numpy as np
import orjson
import simdjson

from inference.contracts import Signature, TensorSpec
from inference.datatypes import V2_DATATYPES, Array
from inference.errors import RequestRejected

MAX_ID: Final = 128
MAX_RANK: Final = 64
MAX_SIZE: Final = 2**31 - 1
"""Of one dimension; beyond it numpy's own arithmetic on empty tensors overflows."""
LARGE_BYTES: Final = 7 * 1024
"""Above it a parser that reads numbers straight into an array is faster than one that makes objects."""
MAX_FORMS: Final = 8
"""How many forms of bodies a version remembers; the oldest go first."""
MAX_LEARNED: Final = 64
"""How many bodies a version looks at for their form; callers whose bodies have none do not pay for it for ever."""
NUMERIC: Final = b"0123456789.+-eE \t\r\n"
"""What stands between the commas of a list of numbers."""
MAX_NAMED: Final = 80  # characters of a caller's text that an error repeats
ID_PATTERN: Final = re.compile(r"[!#-\[\]-~](?:[ !#-\[\]-~]*[!#-\[\]-~])?")  # printable ASCII, no quote or backslash
TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
LENGTH_PREFIX: Final = struct.Struct("<I")

Values = bytes | list[float] | Array
"""A tensor's data in row-major order: the text of numbers between commas or a flat list of floats, as JSON had them, or
an array in its full shape."""


NO_DATA: Final = msgspec.Raw()


class _Parameters(msgspec.Struct):
    binary_data_size: int | None = None  # of an input: its bytes after the JSON
    binary_data: bool | None = None  # of a requested output: answer it in binary
    binary_data_output: bool = False  # of the request: answer all outputs in binary
    timeout: int = 0  # of the request: microseconds; 0 for none
    classification: int = 0
    shared_memory_region: str | None = None


class _Tensor(msgspec.Struct, gc=False):
    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw = NO_DATA
    parameters: _Parameters | None = None


class _FloatTensor(msgspec.Struct, gc=False):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]
    parameters: _Parameters | None = None


class _Output(msgspec.Struct):
    name: str
    parameters: _Parameters | None = None


class _Request(msgspec.Struct):
    inputs: list[_Tensor]
    id: str = ""
    outputs: list[_Output] | None = None
    parameters: _Parameters | None = None


class _FloatRequest(msgspec.Struct, gc=False):
    """The usual request: plain numbers. Decoded in one go, which takes half the time of ``_Request``."""

    inputs: list[_FloatTensor]
    id: str = ""
    outputs: list[_Output] | None = None
    parameters: _Parameters | None = None


_request_decoder = msgspec.json.Decoder(_Request)
_float_request_decoder = msgspec.json.Decoder(_FloatRequest)
_parser: Final = simdjson.Parser()
_BUFFERS: Final = {"f": ("d", np.float64), "i": ("i", np.int64), "u": ("u", np.uint64)}
"""How numbers are read at once, by the kind of the numpy dtype."""
_PACKED: Final = {"FP16": "e", "FP32": "f", "FP64": "d"}
"""The struct module's letters."""
_list_types: Final[dict[str, Any]] = {"f": list[float], "i": list[int], "u": list[int], "b": list[bool], "O": list[str]}
_list_decoders: Final = {kind: msgspec.json.Decoder(form) for kind, form in _list_types.items()}
"""By the kind of the numpy dtype."""


class InferRequest(msgspec.Struct, gc=False):
    """A decoded request that fits the model's signature; tensors are in the signature's order."""

    id: str
    values: list[Values]
    shapes: list[list[int]]
    rows: int
    outputs: list[tuple[int, bool]] | None = None  # (index, is_binary) of those asked for; None: all, as JSON
    timeout_s: float | None = None  # what the caller gives it, from its arrival on


class ReceivedTensor(NamedTuple):
    """An input as a transport other than HTTP received it."""

    name: str
    datatype: str
    shape: list[int]
    data: bytes | Sequence[Any]  # in the form of the binary extension, or one element after the other
    field: str  # where the data was, for an error


class _Form(NamedTuple):
    """A body without its numbers. Callers repeat it, so that only the numbers of the next body have to be read."""

    head: bytes
    tail: bytes
    commas: bytes  # that are between the numbers


class _Input:
    """What decoding one input needs, worked out once."""

    __slots__ = ("datatype", "decoder", "dtype", "kind", "name", "position", "row_shape", "row_size", "shape")

    def __init__(self, position: int, spec: TensorSpec) -> None:
        self.position = position
        self.name = spec.name
        self.datatype = spec.datatype
        self.dtype = V2_DATATYPES[spec.datatype]
        self.kind = self.dtype.kind
        self.decoder = _list_decoders[self.kind]
        self.shape = spec.shape
        is_row = spec.shape[:1] == (-1,) and -1 not in spec.shape[1:]
        self.row_shape = [1, *spec.shape[1:]] if is_row else None  # the usual request: one row
        self.row_size = math.prod(spec.shape[1:])


class ModelCodec:
    """Decodes requests for one version on one endpoint and encodes its answers."""

    def __init__(self, endpoint: str, model_version: int, signature: Signature, *, is_batchable: bool) -> None:
        self._inputs = {spec.name: _Input(position, spec) for position, spec in enumerate(signature.inputs)}
        self._outputs = signature.outputs
        self._output_positions = {spec.name: position for position, spec in enumerate(signature.outputs)}
        self._is_batchable = is_batchable
        only = next(iter(self._inputs.values())) if len(self._inputs) == 1 and is_batchable else None
        self._only = only if only is not None and only.kind == "f" and only.row_shape else None
        self._forms: tuple[_Form, ...] = ()
        self._looked_at = 0
        self._row_shapes = [self._only.row_shape] if self._only is not None and self._only.row_shape else []
        self._head = b'{"model_name":%b,"model_version":"%d","id":"' % (orjson.dumps(endpoint), model_version)
        self._row_forms: dict[tuple[tuple[int, ...], ...], bytes] = {}  # of answers with one row, by its shapes
        self._output_heads = [
            b'{"name":%b,"datatype":"%b","shape":[' % (orjson.dumps(spec.name), spec.datatype.encode())
            for spec in signature.outputs
        ]

    # -- requests ----------------------------------------------------------------------------------------------------

    def decode(self, body: bytes | bytearray, header_length: int | None = None) -> InferRequest:
        """Read a request body whose first ``header_length`` bytes are JSON (all of it without one).

        Raises ``RequestRejected`` naming the field that does not fit.
        """
        if header_length is None:
            if self._only is not None and len(body) <= LARGE_BYTES and (quick := self._decode_row(body, self._only)):
                return quick
            binary: bytes | memoryview = b""
            request, arrays = _decode_json(body)
        else:
            binary = memoryview(body)[header_length:]
            request, arrays = _decode_json(memoryview(body)[:header_length])
        checked_id(request.id, "id")
        count = len(self._inputs)
        values: list[Values | None] = [None] * count
        shapes: list[list[int]] = [[]] * count
        offset = 0
        for tensor, array in zip(request.inputs, arrays, strict=True):
            known = self._inputs.get(tensor.name)
            if known is None or tensor.shape != known.row_shape or tensor.datatype != known.datatype:
                known = self._checked(tensor)  # anything but one row of the usual shape
            if values[known.position] is not None:
                raise RequestRejected("is given twice.", _field(tensor))
            size = tensor.parameters.binary_data_size if tensor.parameters else None
            shapes[known.position] = tensor.shape
            if array is not None:
                values[known.position] = _from_numbers(tensor, known, array)
            elif size is None:
                values[known.position] = _from_json(tensor, known)
            else:
                values[known.position] = _from_binary(tensor, known, binary, offset, size)
                offset += size
        if offset != len(binary):
            raise RequestRejected(
                f"{len(binary)} bytes follow the JSON, the inputs' binary_data_size add up to {offset}.", "inputs"
            )
        microseconds = request.parameters.timeout if request.parameters else 0
        return InferRequest(
            request.id,
            self._present(values),
            shapes,
            self._rows(shapes),
            self._wanted(request),
            microseconds / 1e6 if microseconds > 0 else None,
        )

    def _decode_row(self, body: bytes | bytearray, only: _Input) -> InferRequest | None:
        """One row of plain numbers, as most requests are; None for whatever needs a closer look."""
        for head, tail, commas in self._forms:
            if body.startswith(head) and body.endswith(tail):
                row = body[len(head) : -len(tail)]
                if row.translate(None, NUMERIC) == commas:
                    return InferRequest("", [bytes(row)], self._row_shapes, 1)
        values = _row_of(body, only)
        if values is None:
            return None
        if self._looked_at < MAX_LEARNED:
            self._looked_at += 1
            form = _form(bytes(body), only)
            if form is not None:
                self._forms = (form, *self._forms[: MAX_FORMS - 1])
        return InferRequest("", [values], self._row_shapes, 1)

    def decode_tensors(self, tensors: Iterable[ReceivedTensor], outputs: Iterable[str] = ()) -> InferRequest:
        """Read a request whose parts a transport has taken apart; ``outputs`` are the names asked for, or none for all.

        Raises ``RequestRejected`` naming the field that does not fit.
        """
        values: list[Values | None] = [None] * len(self._inputs)
        shapes: list[list[int]] = [[]] * len(self._inputs)
        for one in tensors:
            tensor = _Tensor(one.name, one.shape, one.datatype)
            known = self._checked(tensor)
            if values[known.position] is not None:
                raise RequestRejected("is given twice.", _field(tensor))
            shapes[known.position] = one.shape
            if isinstance(one.data, bytes):
                values[known.position] = _from_bytes(one.data, tensor, known, one.field)
            else:
                values[known.position] = _from_flat(one.data, tensor, known, one.field)
        asked = islice(outputs, len(self._outputs) + 1)  # one more is unknown, or there twice
        wanted = self._wanted(_Request([], outputs=[_Output(name) for name in asked]))
        return InferRequest("", self._present(values), shapes, self._rows(shapes), wanted)

    def _present(self, values: list[Values | None]) -> list[Values]:
        present = [value for value in values if value is not None]
        if len(present) < len(values):
            missing = next(name for name, known in self._inputs.items() if values[known.position] is None)
            raise RequestRejected("is missing.", f'inputs["{missing}"]')
        return present

    def key(self, request: InferRequest, name: str) -> bytes | None:
        """What the first row of an input is, for sticky routing: equal values give equal bytes, however they came."""
        known = self._inputs.get(name)
        if known is None or not request.rows:
            return None
        position = known.position
        array = to_array(request.values[position], request.shapes[position], known.datatype, name)
        return to_binary(array[:1] if self._is_batchable else array)

    def adopt(self, request: InferRequest) -> InferRequest:
        """A request decoded for a version with the same inputs, as this version counts its rows."""
        return msgspec.structs.replace(request, rows=self._rows(request.shapes), outputs=None)

    def _checked(self, tensor: _Tensor) -> _Input:
        """The signature's input of that name, after checking datatype and shape against it."""
        known = self._inputs.get(tensor.name)
        if known is None:
            raise RequestRejected(f"unknown; the model takes {_names(self._inputs)}.", _field(tensor))
        if tensor.datatype != known.datatype:
            raise RequestRejected(
                f"must be {known.datatype}, not {tensor.datatype[:MAX_NAMED]}.", _field(tensor, ".datatype")
            )
        shape, expected = tensor.shape, known.shape
        # A rank of zero in the signature may also mean that the model does not tell its rank.
        fits = len(shape) <= MAX_RANK and all(0 <= size <= MAX_SIZE for size in shape)
        if expected:
            fits = fits and len(shape) == len(expected)
            fits = fits and all(want in (-1, size) for want, size in zip(expected, shape, strict=True))
        if not fits:
            raise RequestRejected(
                f"must be {list(expected)} (-1: any size), not {str(shape)[:MAX_NAMED]}.", _field(tensor, ".shape")
            )
        return known

    def _rows(self, shapes: list[list[int]]) -> int:
        if not self._is_batchable:
            return 1
        rows = shapes[0][0]
        for shape in shapes:
            if shape[0] != rows:
                raise RequestRejected("all inputs must have the same first dimension.", "inputs")
        return rows

    def _wanted(self, request: _Request) -> list[tuple[int, bool]] | None:
        is_binary = request.parameters is not None and request.parameters.binary_data_output
        if not request.outputs:
            return [(position, True) for position in range(len(self._outputs))] if is_binary else None
        wanted: dict[int, bool] = {}
        for output in request.outputs:
            position = self._output_positions.get(output.name)
            field = f'outputs["{output.name[:MAX_NAMED]}"]'
            if position is None:
                raise RequestRejected(f"unknown; the model returns {_names(self._output_positions)}.", field)
            if position in wanted:
                raise RequestRejected("is asked for twice.", field)
            parameters = output.parameters or _Parameters()
            if parameters.classification or parameters.shared_memory_region is not None:
                raise RequestRejected("classification and shared memory are not supported.", field + ".parameters")
            wanted[position] = is_binary if parameters.binary_data is None else parameters.binary_data
        return list(wanted.items())

    # -- answers -----------------------------------------------------------------------------------------------------

    def encode(
        self, outputs: BatchOutputs, start: int, request: InferRequest, request_id: bytes
    ) -> tuple[bytes, int | None]:
        """The answer to the request whose rows begin at ``start``: body, and the JSON's length if binary follows."""
        rows = request.rows
        if request.outputs is None:
            if rows == 1:
                tails = outputs.singles or self._single_rows(outputs)
                return b"%b%b%b" % (self._head, request_id, tails[start]), None
            texts = [
                text_head + outputs.text(position, start, rows) for position, text_head in enumerate(self._output_heads)
            ]
            return b'%b%b","outputs":[%b]}' % (self._head, request_id, b",".join(texts)), None
        parts, buffers = [], []
        for position, is_binary in request.outputs:
            if is_binary:
                buffer = to_binary(outputs.slice(position, start, rows))
                buffers.append(buffer)
                dims = outputs.dimensions(position, rows)
                text = b'%b],"parameters":{"binary_data_size":%d}}' % (dims, len(buffer))
            else:
                text = outputs.text(position, start, rows)
            parts.append(self._output_heads[position] + text)
        text = b'%b%b","outputs":[%b]}' % (self._head, request_id, b",".join(parts))
        return b"".join((text, *buffers)), len(text) if buffers else None

    def _single_rows(self, outputs: BatchOutputs) -> list[bytes]:
        """For each row the end of a whole answer with that row alone, from after the request id on."""
        shapes = tuple([array.shape[1:] for array in outputs.arrays])
        form = self._row_forms.get(shapes)
        if form is None:
            parts = [
                b'%b%b],"data":[%%b]}' % (head.replace(b"%", b"%%"), outputs.dimensions(position, 1))
                for position, head in enumerate(self._output_heads)
            ]
            if len(self._row_forms) >= MAX_FORMS:
                self._row_forms.clear()
            form = self._row_forms[shapes] = b'","outputs":[%b]}' % b",".join(parts)
        columns = [outputs.texts(position) for position in range(len(shapes))]
        outputs.singles = [form % row for row in zip(*columns, strict=True)]
        return outputs.singles


class BatchOutputs:
    """The output arrays of one run, and their JSON text, made once for all requests of the batch.

    NaN and infinities, which JSON does not have, become ``null``.
    """

    __slots__ = ("_is_batch", "_rows", "arrays", "row_count", "singles")

    def __init__(self, arrays: Sequence[Array], row_count: int, *, is_batch: bool) -> None:
        self.arrays = arrays
        self.row_count = row_count
        self._is_batch = is_batch
        self._rows: list[list[bytes] | None] = [None] * len(arrays)
        self.singles: list[bytes] | None = None

    def slice(self, position: int, start: int, rows: int) -> Array:
        """One request's part of an output."""
        array = self.arrays[position]
        return array[start : start + rows] if self._is_batch else array

    def dimensions(self, position: int, rows: int) -> bytes:
        """The shape of one request's part, as JSON without brackets."""
        shape = self.arrays[position].shape
        return ",".join(map(str, (rows, *shape[1:]) if self._is_batch else shape)).encode()

    def texts(self, position: int) -> list[bytes]:
        """The JSON of each row's elements, without brackets."""
        texts = self._rows[position]
        if texts is None:
            texts = self._rows[position] = _row_texts(self.arrays[position], self.row_count, self._is_batch)
        return texts

    def text(self, position: int, start: int, rows: int) -> bytes:
        """The end of an output's JSON object, from inside the shape on."""
        texts = self.texts(position)
        if rows == 1:
            data = texts[start]
        else:
            data = b",".join(texts[start : start + rows]) if self.arrays[position].size else b""
        return b'%b],"data":[%b]}' % (self.dimensions(position, rows), data)


def trace_context(text: str | None) -> str | None:
    """A W3C ``traceparent``; None for what is not one, as its recommendation wants."""
    return text if text is not None and TRACEPARENT.fullmatch(text) else None


def checked_id(text: str, field: str) -> str:
    """A caller's request id, or none. Raises ``RequestRejected`` for one that is no plain text for logs and headers."""
    if text and (len(text) > MAX_ID or not ID_PATTERN.fullmatch(text)):
        raise RequestRejected(f"use at most {MAX_ID} printable ASCII characters without quotes.", field)
    return text


def to_binary(array: Array) -> bytes:
    """A tensor in the binary extension's form: little-endian, row-major; each string with its length before it."""
    if array.dtype.kind != "O":
        return array.tobytes()
    encoded = [text.encode() for text in array.ravel().tolist()]
    return b"".join(chain.from_iterable((LENGTH_PREFIX.pack(len(text)), text) for text in encoded))


def to_array(values: Values, shape: Sequence[int], datatype: str, name: str) -> Array:
    """The array of one tensor. Raises ``RequestRejected`` for a number or a shape that the datatype cannot hold."""
    if isinstance(values, np.ndarray):
        return values
    if isinstance(values, bytes):
        values = read_rows([values], name)
    try:
        # Packing a list takes a third of the time that numpy takes to read it.
        packed = struct.pack(f"<{len(values)}{_PACKED[datatype]}", *values)
        return np.frombuffer(packed, V2_DATATYPES[datatype]).reshape(shape)
    except OverflowError as error:
        raise _too_large(datatype, f'inputs["{name}"].data') from error
    except ValueError as error:
        raise RequestRejected(f"{error}.", f'inputs["{name}"].shape') from error


def read_rows(rows: Sequence[bytes], name: str) -> list[float]:
    """The numbers of texts, one after the other. Raises ``RequestRejected``."""
    try:
        return cast("list[float]", _list_decoders["f"].decode(b"[%b]" % b",".join(rows)))
    except msgspec.MsgspecError as error:
        raise RequestRejected("must be a list of numbers.", f'inputs["{name}"].data') from error


def _too_large(datatype: str, field: str) -> RequestRejected:
    return RequestRejected(f"a number is too large for {datatype}.", field)


def _row_of(body: bytes | bytearray, only: _Input) -> list[float] | None:
    """The numbers of a body that holds one row in its usual shape, and nothing else."""
    try:
        request = _float_request_decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    if len(request.inputs) != 1 or request.outputs is not None or request.parameters is not None or request.id:
        return None
    tensor = request.inputs[0]
    data, shape = tensor.data, tensor.shape
    is_usual = shape == only.row_shape and len(data) == only.row_size and tensor.datatype == only.datatype
    return data if is_usual and tensor.name == only.name and tensor.parameters is None else None


def _form(body: bytes, only: _Input) -> _Form | None:
    """The form of a body that ``_row_of`` reads, if its numbers are in the last list; None otherwise."""
    start = body.rfind(b"[") + 1
    end = body.find(b"]", start)
    form = _Form(body[:start], body[end:], b"," * (only.row_size - 1))
    # What is read back tells whether these brackets are those of the data, and not of a shape or inside a name.
    probe = list(range(3, 3 + only.row_size))
    read = _row_of(b"%b%b%b" % (form.head, b",".join(b"%d" % one for one in probe), form.tail), only)
    return form if read == probe else None


def _decode_json(text: bytes | bytearray | memoryview) -> tuple[_Request, list[Array | None]]:
    """The request, and for each input its numbers where they were read at once."""
    if len(text) > LARGE_BYTES:
        large = _decode_large(text)
        if large is not None:
            return large
    request = _decode_small(text)
    return request, [None] * len(request.inputs)


def _decode_large(text: bytes | bytearray | memoryview) -> tuple[_Request, list[Array | None]] | None:
    """Read large tensors without an object for each number; None for what needs a closer look."""
    try:
        document: Any = _parser.parse(bytes(text))
        inputs, arrays = [], []
        for tensor in document["inputs"]:
            fields = {name: _plain(tensor[name]) for name in tensor if name != "data"}
            inputs.append(fields)
            arrays.append(_numbers(tensor["data"], fields["datatype"]) if "data" in tensor else None)
        others = {name: _plain(document[name]) for name in document if name != "inputs"}
        return msgspec.convert({**others, "inputs": inputs}, _Request), arrays
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, msgspec.MsgspecError):
        return None


def _numbers(data: Any, datatype: str) -> Array:
    """The numbers of a flat JSON array, widened to 64 bits. Raises ``TypeError`` when it holds anything else."""
    if isinstance(data[0], simdjson.Array):
        raise TypeError("nested")
    kind, dtype = _BUFFERS[V2_DATATYPES[datatype].kind]
    return np.frombuffer(data.as_buffer(of_type=kind), dtype)


def _plain(value: Any) -> Any:
    if isinstance(value, simdjson.Object):
        return value.as_dict()
    return value.as_list() if isinstance(value, simdjson.Array) else value


def _decode_small(text: bytes | bytearray | memoryview) -> _Request:
    try:
        return _request_decoder.decode(text)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        raise RequestRejected(f"{message}.", path.rstrip("`") or "body") from error
    except RecursionError as error:
        raise RequestRejected("the JSON is nested too deeply.", "body") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestRejected(f"not valid JSON: {error}.", "body") from error


def _from_json(tensor: _Tensor, known: _Input) -> Values:
    if tensor.parameters is not None and tensor.parameters.shared_memory_region is not None:
        raise RequestRejected("shared memory is not supported.", _field(tensor, ".parameters"))
    if tensor.data is NO_DATA:
        raise RequestRejected("is missing.", _field(tensor, ".data"))
    try:
        flat: list[Any] = known.decoder.decode(tensor.data)
    except msgspec.ValidationError:
        flat = _from_nested(tensor, known)
    except msgspec.DecodeError as error:
        raise RequestRejected(f"not valid JSON: {error}.", _field(tensor, ".data")) from error
    if known.kind != "f":
        return _from_flat(flat, tensor, known, _field(tensor, ".data"))
    _check_count(flat, tensor, known, _field(tensor, ".data"))
    return flat  # turned into an array together with the rest of the batch


def _from_flat(flat: Sequence[Any], tensor: _Tensor, known: _Input, field: str) -> Array:
    _check_count(flat, tensor, known, field)
    try:
        return np.array(flat, known.dtype).reshape(tensor.shape)
    except (OverflowError, ValueError) as error:
        raise RequestRejected(f"{error}.", field) from error


def _check_count(flat: Sequence[Any] | Array, tensor: _Tensor, known: _Input, field: str) -> None:
    if len(flat) != (known.row_size if tensor.shape == known.row_shape else math.prod(tensor.shape)):
        raise RequestRejected(
            f"has {len(flat)} elements, the shape {tensor.shape} needs {math.prod(tensor.shape)}.", field
        )


def _from_numbers(tensor: _Tensor, known: _Input, numbers: Array) -> Array:
    """The numbers of a large tensor in its datatype and shape."""
    _check_count(numbers, tensor, known, _field(tensor, ".data"))
    try:
        with np.errstate(over="raise"):
            array = numbers.astype(known.dtype)
        if known.kind != "f" and not np.array_equal(array, numbers):
            raise OverflowError
    except (FloatingPointError, OverflowError) as error:
        raise _too_large(known.datatype, _field(tensor, ".data")) from error
    return array.reshape(tensor.shape)


def _from_nested(tensor: _Tensor, known: _Input) -> list[Any]:
    """Flatten data given as nested arrays; also the place where wrong elements get their message."""
    try:
        level = msgspec.json.decode(tensor.data)
        for size in tensor.shape[1:]:
            if not isinstance(level, list) or not all(isinstance(part, list) and len(part) == size for part in level):
                break
            level = list(chain.from_iterable(level))
        return cast("list[Any]", msgspec.convert(level, _list_types[known.kind]))
    except RecursionError as error:
        raise RequestRejected("nested too deeply.", _field(tensor, ".data")) from error
    except (msgspec.ValidationError, msgspec.DecodeError, TypeError) as error:
        message, _, path = str(error).partition(" - at `$")
        raise RequestRejected(f"{message}.", _field(tensor, f".data{path.rstrip('`')}")) from error


def _from_binary(tensor: _Tensor, known: _Input, binary: memoryview | bytes, offset: int, size: int) -> Array:
    field = _field(tensor, ".parameters.binary_data_size")
    if tensor.data is not NO_DATA:
        raise RequestRejected("has both data and binary_data_size.", _field(tensor))
    if not 0 <= size <= len(binary) - offset:
        raise RequestRejected(f"is {size}, but {len(binary) - offset} bytes are left after the JSON.", field)
    return _from_bytes(binary[offset : offset + size], tensor, known, field)


def _from_bytes(part: memoryview | bytes, tensor: _Tensor, known: _Input, field: str) -> Array:
    count = math.prod(tensor.shape)
    if known.kind == "O":
        return _strings(part, count, _field(tensor)).reshape(tensor.shape)
    size, needed = len(part), count * known.dtype.itemsize
    if size != needed:
        raise RequestRejected(f"is {size}, the shape {tensor.shape} needs {needed} bytes.", field)
    if known.kind == "b" and size and max(part) > 1:
        raise RequestRejected("a BOOL is one byte, 0 or 1.", _field(tensor))
    return np.frombuffer(part, known.dtype).reshape(tensor.shape)


def _strings(part: memoryview | bytes, count: int, field: str) -> Array:
    texts: list[str] = []
    position = 0
    while position < len(part) and len(texts) < count:
        if position + LENGTH_PREFIX.size > len(part):
            break
        (length,) = LENGTH_PREFIX.unpack_from(part, position)
        position += LENGTH_PREFIX.size + length
        if position > len(part):
            break
        try:
            texts.append(str(part[position - length : position], "utf-8"))
        except UnicodeDecodeError as error:
            raise RequestRejected(f"element {len(texts)} is not UTF-8.", field) from error
    if len(texts) != count or position != len(part):
        raise RequestRejected(f"the binary data does not hold exactly {count} length-prefixed strings.", field)
    array = np.empty(count, object)
    array[:] = texts
    return array


def _row_texts(array: Array, rows: int, is_batch: bool) -> list[bytes]:
    """The JSON of each row's elements, without brackets: one serialisation for all rows, then a split."""
    if not is_batch:
        rows = 1
    if rows == 0 or array.size == 0:
        return [b""] * rows
    flat = array.reshape(rows, -1)
    if array.dtype.kind == "O":
        return [orjson.dumps(row)[1:-1] for row in flat.tolist()]
    if flat.shape[1] == 1:
        return orjson.dumps(flat.ravel(), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")
    return orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)[2:-2].split(b"],[")


def _field(tensor: _Tensor, rest: str = "") -> str:
    return f'inputs["{tensor.name[:MAX_NAMED]}"]{rest}'


def _names(names: Any) -> str:
    text = ", ".join(f'"{name}"' for name in names)
    return text if len(text) <= 400 else text[:400] + " …"
