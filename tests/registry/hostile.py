"""Files that somebody might upload: one harmless model, and many that must not be served. Built when asked for."""

from __future__ import annotations

import io
import itertools
import os
import pickle
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TrainingInfoProto,
    helper,
    numpy_helper,
)

OPSET: Final = 17
FLOAT: Final = TensorProto.FLOAT
HUGE: Final = 2**37
"""Elements: 512 GiB of FP32."""
MARKUP: Final = "<script>alert('x')</script>"


def value(name: str, shape: Sequence[int | str] | None, kind: int = FLOAT) -> Any:
    """An input or output."""
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name: str, numbers: Any, kind: type = np.int64) -> TensorProto:
    """An initializer."""
    return numpy_helper.from_array(np.asarray(numbers, dtype=kind), name)


def model_of(
    nodes: Sequence[NodeProto],
    *,
    initializers: Sequence[TensorProto] = (),
    inputs: Sequence[Any] | None = None,
    outputs: Sequence[Any] | None = None,
    domains: Sequence[str] = (),
    functions: Sequence[FunctionProto] = (),
) -> ModelProto:
    """A model from ``x`` [n, 1] to ``y``, unless told otherwise."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [value("x", ["n", 1])] if inputs is None else list(inputs),
        [value("y", None)] if outputs is None else list(outputs),
        list(initializers),
    )
    opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=list(functions))


def harmless(features: int = 3, *, bias: float = 0.5) -> bytes:
    """A linear model, [n, features] FP32 to [n, 1] FP32; another ``bias`` makes other bytes."""
    weights = constant("weights", np.full((features, 1), 0.25), np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["y"]),
    ]
    model = model_of(
        nodes,
        initializers=[weights, constant("bias", [bias], np.float32)],
        inputs=[value("x", ["n", features])],
        outputs=[value("y", ["n", 1])],
    )
    model.producer_name, model.producer_version = "tests", "1"
    return bytes(model.SerializeToString())


# Work and memory without bounds.


def constant_of_512_gib() -> ModelProto:
    """Folded while the model is loaded."""
    nodes = [helper.make_node("ConstantOfShape", ["shape"], ["huge"]), helper.make_node("Add", ["x", "huge"], ["y"])]
    return model_of(nodes, initializers=[constant("shape", [HUGE])])


def expand_bomb() -> ModelProto:
    """One number made into 512 GiB."""
    return model_of([helper.make_node("Expand", ["x", "shape"], ["y"])], initializers=[constant("shape", [HUGE])])


def tile_bomb() -> ModelProto:
    """The same by repetition."""
    return model_of([helper.make_node("Tile", ["x", "times"], ["y"])], initializers=[constant("times", [1, HUGE])])


def range_bomb() -> ModelProto:
    """A count to 2^40, then added to the input."""
    nodes = [
        helper.make_node("Range", ["start", "limit", "step"], ["numbers"]),
        helper.make_node("Cast", ["numbers"], ["floats"], to=FLOAT),
        helper.make_node("Add", ["x", "floats"], ["y"]),
    ]
    return model_of(nodes, initializers=[constant("start", 0), constant("limit", 2**40), constant("step", 1)])


def _loop(*, scan: bool) -> ModelProto:
    """2^62 rounds of adding; with ``scan`` every round's value is kept."""
    kept = [helper.make_node("Expand", ["after", "kibi"], ["kept"])] if scan else []
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["still"]),
            helper.make_node("Add", ["before", "before"], ["after"]),
            *kept,
        ],
        "body",
        [value("round", [], TensorProto.INT64), value("go_on", [], TensorProto.BOOL), value("before", None)],
        [value("still", [], TensorProto.BOOL), value("after", None), *([value("kept", None)] if scan else [])],
    )
    outputs = ["last", "y"] if scan else ["y"]
    return model_of(
        [helper.make_node("Loop", ["rounds", "go", "x"], outputs, body=body)],
        initializers=[constant("rounds", 2**62), constant("go", True, np.bool_), constant("kibi", [1, 2**20])],
    )


def endless_loop() -> ModelProto:
    """2^62 rounds."""
    return _loop(scan=False)


def growing_scan() -> ModelProto:
    """2^62 rounds, each keeping 4 MiB."""
    return _loop(scan=True)


def _matmuls(size: int, first: NodeProto) -> ModelProto:
    nodes = [first] + [helper.make_node("MatMul", [f"m{i}", f"m{i}"], [f"m{i + 1}"]) for i in range(8)]
    nodes += [helper.make_node("ReduceMax", ["m8"], ["top"]), helper.make_node("Add", ["x", "top"], ["y"])]
    return model_of(nodes, initializers=[constant("shape", [size, size])])


def load_time_burn() -> ModelProto:
    """Minutes of constant folding inside the constructor of the session."""
    return _matmuls(5_000, helper.make_node("ConstantOfShape", ["shape"], ["m0"]))


def giant_matmul() -> ModelProto:
    """The same work at run time, where no terminate flag stops it."""
    return _matmuls(5_000, helper.make_node("Expand", ["x", "shape"], ["m0"]))


def function_bomb() -> ModelProto:
    """Thirty functions, each calling the one before twice: a billion nodes when they are inlined."""

    def function(level: int) -> FunctionProto:
        callee = ("Identity", "") if level == 0 else (f"f{level - 1}", "local")
        nodes = [
            helper.make_node(callee[0], ["a"], ["b"], domain=callee[1]),
            helper.make_node(callee[0], ["b"], ["c"], domain=callee[1]),
        ]
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("local", 1)]
        return helper.make_function("local", f"f{level}", ["a"], ["c"], nodes, opsets)

    functions = [function(level) for level in range(30)]
    call = helper.make_node("f29", ["x"], ["y"], domain="local")
    return model_of([call], domains=["local"], functions=functions)


def recursive_function() -> ModelProto:
    """A function that calls itself."""
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("local", 1)]
    body = [helper.make_node("again", ["a"], ["b"], domain="local")]
    function = helper.make_function("local", "again", ["a"], ["b"], body, opsets)
    return model_of([helper.make_node("again", ["x"], ["y"], domain="local")], domains=["local"], functions=[function])


# Weights from somewhere else.


def _outside(location: str, name: str = "weights") -> TensorProto:
    tensor = TensorProto(name=name, data_type=FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, text in (("location", location), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=text)
    return tensor


def external(location: str) -> ModelProto:
    """An initializer in another file: relative, absolute, through links, or an address in memory."""
    return model_of([helper.make_node("Mul", ["x", "weights"], ["y"])], initializers=[_outside(location)])


def external_in_subgraph() -> ModelProto:
    """The same, in a branch."""

    def branch(name: str) -> GraphProto:
        node = helper.make_node("Mul", ["x", f"{name}_w"], [name])
        return helper.make_graph([node], name, [], [value(name, None)], [_outside("weights.bin", f"{name}_w")])

    node = helper.make_node("If", ["yes"], ["y"], then_branch=branch("then"), else_branch=branch("other"))
    return model_of([node], initializers=[constant("yes", True, np.bool_)])


def external_in_constant() -> ModelProto:
    """The same, in a node's attribute."""
    nodes = [
        helper.make_node("Constant", [], ["weights"], value=_outside("weights.bin")),
        helper.make_node("Mul", ["x", "weights"], ["y"]),
    ]
    return model_of(nodes)


def external_in_function() -> ModelProto:
    """The same, as the default of a function's attribute."""
    constant_node = helper.make_node("Constant", [], ["w"])
    constant_node.attribute.add(name="value", ref_attr_name="w", type=AttributeProto.TENSOR)
    body = [constant_node, helper.make_node("Mul", ["a", "w"], ["b"])]
    function = helper.make_function("local", "scale", ["a"], ["b"], body, [helper.make_opsetid("", OPSET)])
    function.attribute_proto.append(helper.make_attribute("w", _outside("weights.bin")))
    return model_of([helper.make_node("scale", ["x"], ["y"], domain="local")], domains=["local"], functions=[function])


def external_sparse() -> ModelProto:
    """The same, in a sparse initializer."""
    model = model_of([helper.make_node("Mul", ["x", "weights"], ["y"])])
    sparse = model.graph.sparse_initializer.add(dims=[1])
    sparse.values.CopyFrom(_outside("weights.bin"))
    sparse.indices.CopyFrom(constant("", [0]))
    return model


# Structures that are not for serving.


def nested(depth: int) -> ModelProto:
    """Branches inside branches."""

    def branch(level: int) -> GraphProto:
        node = (
            helper.make_node("Identity", ["x"], [f"y{level}"])
            if level == 0
            else helper.make_node("If", ["yes"], [f"y{level}"], then_branch=branch(level - 1), else_branch=branch(0))
        )
        return helper.make_graph([node], f"level{level}", [], [value(f"y{level}", None)])

    node = helper.make_node("If", ["yes"], ["y"], then_branch=branch(depth), else_branch=branch(0))
    return model_of([node], initializers=[constant("yes", True, np.bool_)])


def nested_beyond_parsing() -> bytes:
    """Three hundred branches inside branches, written by hand: no protobuf library builds this."""

    def field(number: int, content: bytes) -> bytes:
        length, rest = b"", len(content)
        while rest > 0x7F:
            length, rest = length + bytes([rest & 0x7F | 0x80]), rest >> 7
        return bytes([number << 3 | 2]) + length + bytes([rest]) + content

    graph = field(2, b"innermost")
    for _ in range(300):
        attribute = field(1, b"then_branch") + field(6, graph)
        graph = field(1, field(1, b"yes") + field(4, b"If") + field(5, attribute))
    return b"\x08\x08" + field(7, graph)


def many_nodes(count: int) -> ModelProto:
    """A long chain."""
    names = ["x", *(f"v{i}" for i in range(count - 1)), "y"]
    return model_of([helper.make_node("Identity", [a], [b]) for a, b in itertools.pairwise(names)])


def custom_operator() -> ModelProto:
    """An operator that needs a library of the uploader's."""
    return model_of([helper.make_node("Steal", ["x"], ["y"], domain="evil.ops")], domains=["evil.ops"])


def undeclared_custom_operator() -> ModelProto:
    """The same, without saying so in the imports."""
    return model_of([helper.make_node("Steal", ["x"], ["y"], domain="evil.ops")])


def unknown_operator() -> ModelProto:
    """No operator of ONNX."""
    return model_of([helper.make_node("Frobnicate", ["x"], ["y"])])


def wrong_type() -> ModelProto:
    """Arithmetic on text."""
    return model_of(
        [helper.make_node("Relu", ["x"], ["y"])],
        inputs=[value("x", ["n", 1], TensorProto.STRING)],
        outputs=[value("y", ["n", 1], TensorProto.STRING)],
    )


def without_graph() -> ModelProto:
    """A valid protobuf that holds nothing."""
    return ModelProto(ir_version=8)


def training_information() -> ModelProto:
    """A training graph beside the model."""
    model = model_of([helper.make_node("Identity", ["x"], ["y"])])
    model.training_info.append(TrainingInfoProto())
    return model


def impossible_reshape() -> ModelProto:
    """Fails on the made-up inputs, as a good model may that wants an image of a certain size."""
    return model_of([helper.make_node("Reshape", ["x", "shape"], ["y"])], initializers=[constant("shape", [7, 3])])


def without_inputs() -> ModelProto:
    """It always answers the same."""
    node = helper.make_node("Identity", ["one"], ["y"])
    return model_of([node], inputs=[], initializers=[constant("one", [1.0], np.float32)])


def outputs_of_one_name() -> ModelProto:
    """ONNX Runtime takes it, but an answer could not tell them apart."""
    return model_of([helper.make_node("Identity", ["x"], ["y"])], outputs=[value("y", ["n", 3])] * 2)


def huge_input() -> ModelProto:
    """One row would fill the memory."""
    return model_of([helper.make_node("Identity", ["x"], ["y"])], inputs=[value("x", ["n", HUGE])])


def control_characters_in_a_name() -> ModelProto:
    """What no database column takes."""
    return model_of([helper.make_node("Identity", ["x\0y"], ["y"])], inputs=[value("x\0y", ["n", 1])])


def name_that_is_no_text() -> bytes:
    """Bytes that are not UTF-8 where a name belongs."""
    model = model_of([helper.make_node("Identity", ["in_put"], ["y"])], inputs=[value("in_put", ["n", 1])])
    return bytes(model.SerializeToString()).replace(b"in_put", b"\xff\xfe_put")


def map_output() -> bytes:
    """A classifier as skl2onnx writes it by default: a list of dictionaries."""
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression

    rows = np.array([[0.0], [1.0]], dtype=np.float32)
    return bytes(to_onnx(LogisticRegression().fit(rows, [0, 1]), rows, target_opset=OPSET).SerializeToString())


def markup_everywhere() -> ModelProto:
    """A model that works, with markup in everything that is shown."""
    model = model_of(
        [helper.make_node("Identity", [MARKUP], [f"{MARKUP}2"])],
        inputs=[value(MARKUP, ["n", 1])],
        outputs=[value(f"{MARKUP}2", ["n", 1])],
    )
    model.producer_name = model.doc_string = MARKUP
    helper.set_model_props(model, {MARKUP: MARKUP})
    return model


# Files that are no ONNX model.


class _Explosive:
    """Runs a command when it is unpickled; nothing here ever does that."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, ("touch /tmp/unpickled-by-countersign",)


def a_pickle() -> bytes:
    """A pickled object."""
    return pickle.dumps(_Explosive())


def a_zip(member: str = "model.onnx") -> bytes:
    """An archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member, harmless())
    return buffer.getvalue()


def ort_format(folder: Path) -> bytes:
    """A model in ONNX Runtime's own format."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(harmless(), options, providers=["CPUExecutionProvider"])
    return (folder / "model.ort").read_bytes()


def flipped(position: int) -> bytes:
    """The harmless model with one byte changed, ``position`` tenths into the file."""
    data = bytearray(harmless())
    data[len(data) * position // 10 + 1] ^= 0x55
    return bytes(data)
