"""Model files that a hostile or careless person might upload, each with the words that its refusal must contain."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def build(nodes: list[Any], *, inits: list[Any] | None = None, opsets: Any = None, shape: Any = ("n", 4)) -> bytes:
    """A model from float input ``x`` to output ``y``."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializer=inits or [],
    )
    model = helper.make_model(graph, opset_imports=opsets or [helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def good() -> bytes:
    """Twice the input."""
    return build([helper.make_node("Add", ["x", "x"], ["y"])])


def _external(location: str) -> bytes:
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", location
    return build([helper.make_node("Add", ["x", "w"], ["y"])], inits=[weight])


def _external_in_subgraph() -> bytes:
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Identity", ["w"], ["z"])], "b", [], [out], initializer=[weight])
    condition = numpy_helper.from_array(np.array(True), "c")
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    return build([node], inits=[condition])


def _constant_of_shape(elements: int) -> bytes:
    shape = numpy_helper.from_array(np.array([elements], np.int64), "s")
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=1),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    return build(nodes, inits=[shape])


def _expand_bomb() -> bytes:
    shape = numpy_helper.from_array(np.array([1 << 20, 1 << 18], np.int64), "s")
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["one"], keepdims=0),
        helper.make_node("Expand", ["one", "s"], ["y"]),
    ]
    return build(nodes, inits=[shape])


def _tile_bomb() -> bytes:
    repeats = numpy_helper.from_array(np.array([1 << 19, 1 << 18], np.int64), "r")
    return build([helper.make_node("Tile", ["x", "r"], ["y"])], inits=[repeats])


def _loop(*, scan: bool) -> bytes:
    iteration = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    going = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    state = helper.make_tensor_value_info("v", TensorProto.FLOAT, None)
    outs = [helper.make_tensor_value_info(n, t, None) for n, t in (("go2", TensorProto.BOOL), ("v2", TensorProto.FLOAT))]
    nodes = [helper.make_node("Identity", ["go"], ["go2"]), helper.make_node("Add", ["v", "v"], ["v2"])]
    if scan:
        nodes.append(helper.make_node("Identity", ["v2"], ["grown"]))
        outs.append(helper.make_tensor_value_info("grown", TensorProto.FLOAT, None))
    body = helper.make_graph(nodes, "body", [iteration, going, state], outs)
    inits = [
        numpy_helper.from_array(np.array(2**62, np.int64), "m"),
        numpy_helper.from_array(np.array(True), "t"),
    ]
    results = ["last", "y"] if scan else ["y"]
    return build([helper.make_node("Loop", ["m", "t", "x"], results, body=body)], inits=inits)


def _load_burn() -> bytes:
    """Constant folding inside ``InferenceSession()`` multiplies large constants for minutes."""
    shape = numpy_helper.from_array(np.array([6000, 6000], np.int64), "s")
    nodes: list[Any] = [
        helper.make_node("ConstantOfShape", ["s"], ["m0"], value=numpy_helper.from_array(np.ones(1, np.float32)))
    ]
    for step in range(40):
        nodes.append(helper.make_node("MatMul", [f"m{step}", f"m{step}"], [f"m{step + 1}"]))
    nodes += [
        helper.make_node("ReduceMax", ["m40"], ["top"], keepdims=0),
        helper.make_node("Add", ["x", "top"], ["y"]),
    ]
    return build(nodes, inits=[shape])


def _giant_matmul() -> bytes:
    shape = numpy_helper.from_array(np.array([12_000, 12_000], np.int64), "s")
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["one"], keepdims=0),
        helper.make_node("Expand", ["one", "s"], ["a"]),
        helper.make_node("MatMul", ["a", "a"], ["b"]),
        helper.make_node("MatMul", ["b", "a"], ["y"]),
    ]
    return build(nodes, inits=[shape])


def _nested(depth: int) -> bytes:
    condition = numpy_helper.from_array(np.array(True), "c")
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "leaf", [], [out])
    for level in range(depth):
        node = helper.make_node("If", ["c"], [f"z{level}"], then_branch=branch, else_branch=branch)
        out = helper.make_tensor_value_info(f"z{level}", TensorProto.FLOAT, None)
        branch = helper.make_graph([node], f"level{level}", [], [out])
        if level > 6:  # both branches double the size: go on with one
            break
    for level in range(7, depth):
        leaf_out = helper.make_tensor_value_info("w", TensorProto.FLOAT, None)
        leaf = helper.make_graph([helper.make_node("Identity", ["x"], ["w"])], "leaf", [], [leaf_out])
        node = helper.make_node("If", ["c"], [f"q{level}"], then_branch=branch, else_branch=leaf)
        branch = helper.make_graph(
            [node], f"deep{level}", [], [helper.make_tensor_value_info(f"q{level}", TensorProto.FLOAT, None)]
        )
    return build([helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)], inits=[condition])


def _many_nodes(count: int) -> bytes:
    names = ["x", *(f"t{index}" for index in range(count - 1)), "y"]
    return build([helper.make_node("Identity", [names[i]], [names[i + 1]]) for i in range(count)])


def _custom_op() -> bytes:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("evil.corp", 1)]
    return build([helper.make_node("Shell", ["x"], ["y"], domain="evil.corp")], opsets=opsets)


def _undeclared_custom_op() -> bytes:
    return build([helper.make_node("Shell", ["x"], ["y"], domain="evil.corp")])


def _zip() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("data.pkl", b"nothing")
    return data.getvalue()


def _ort_format() -> bytes:
    return b"\x1c\x00\x00\x00ORTM" + bytes(200)


def _no_graph() -> bytes:
    return bytes(onnx.ModelProto(ir_version=8, producer_name="nobody").SerializeToString())


def _wrong_types() -> bytes:
    return build([helper.make_node("StringNormalizer", ["x"], ["y"])])


def _map_output() -> bytes:
    node = helper.make_node(
        "ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_strings=["a", "b", "c", "d"]
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_value_info("y", helper.make_sequence_type_proto(helper.make_map_type_proto(
            TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))))],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


# name -> (how to build it, what the refusal says)
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty"),
    "pickle": (lambda: pickle.dumps({"weights": [1, 2]}), "pickle"),
    "zip or .pt": (_zip, "ZIP"),
    "ORT format": (_ort_format, "own format"),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
    "text": (lambda: b"<html>hello</html>", "ONNX model"),
    "truncated": (lambda: good()[:-7], "ONNX"),
    "no graph": (_no_graph, "no ONNX model"),
    "external, relative": (lambda: _external("weights.bin"), "outside the file"),
    "external, traversal": (lambda: _external("../../etc/passwd"), "outside the file"),
    "external, absolute": (lambda: _external("/etc/passwd"), "outside the file"),
    "external, memory address": (lambda: _external("*/_ORT_MEM_ADDR_/*"), "outside the file"),
    "external in a subgraph": (_external_in_subgraph, "outside the file"),
    "custom operator": (_custom_op, "evil.corp"),
    "custom operator, undeclared": (_undeclared_custom_op, "evil.corp"),
    "nested too deep": (lambda: _nested(20), "deep"),
    "too many nodes": (lambda: _many_nodes(1_001), "nodes"),
    "512 GiB constant": (lambda: _constant_of_shape(1 << 37), "memory"),
    "expand bomb": (_expand_bomb, "memory"),
    "tile bomb": (_tile_bomb, "memory"),
    "growing scan output": (lambda: _loop(scan=True), "or more than"),
    "endless loop": (lambda: _loop(scan=False), "loop without an end"),
    "burns while loading": (_load_burn, "processor time"),
    "giant matrix product": (_giant_matmul, "processor time"),
    "operator on the wrong type": (_wrong_types, "cannot load"),
    "map output": (_map_output, "plain tensors"),
}
