"""Small real models, built with onnx.helper; what each computes is plain from its name."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

OPSET = 17
ODD_NAMES = ('a "quoted\\ name" %s/0:é', "x] 日本")
TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def build(nodes: list[Any], inputs: list[Any], outputs: list[Any], initializers: Any = ()) -> bytes:
    """A serialised model; inputs and outputs are (name, V2 datatype, shape)."""
    values = [
        [helper.make_tensor_value_info(name, TYPES[kind], shape) for name, kind, shape in side]
        for side in (inputs, outputs)
    ]
    graph = helper.make_graph(
        nodes, "test", *values, [numpy_helper.from_array(array, name) for name, array in dict(initializers).items()]
    )
    model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    return model.SerializeToString()


def identity(datatype: str, shape: list[Any], x: str = "x", y: str = "y") -> bytes:
    """y = x."""
    return build([helper.make_node("Identity", [x], [y])], [(x, datatype, shape)], [(y, datatype, shape)])


def scale(factor: float, features: int = 3) -> bytes:
    """y = factor * x, for FP32 rows."""
    return build(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        [("x", "FP32", ["n", features])],
        [("y", "FP32", ["n", features])],
        {"factor": np.float32(factor)},
    )


def two_in_two_out() -> bytes:
    """total = a + b (FP32), flag = mask (BOOL), both by row."""
    return build(
        [helper.make_node("Add", ["a", "b"], ["total"]), helper.make_node("Identity", ["mask"], ["flag"])],
        [("a", "FP32", ["n", 2]), ("b", "FP32", ["n", 2]), ("mask", "BOOL", ["n"])],
        [("total", "FP32", ["n", 2]), ("flag", "BOOL", ["n"])],
    )


def softmax_over_rows() -> bytes:
    """Rows depend on each other, though the first dimension is free."""
    return build(
        [helper.make_node("Softmax", ["x"], ["y"], axis=0)], [("x", "FP32", ["n", 2])], [("y", "FP32", ["n", 2])]
    )


def pick(size: int = 4) -> bytes:
    """y = table[x]; an index beyond the table makes the model fail."""
    return build(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        [("x", "INT64", ["n"])],
        [("y", "FP32", ["n"])],
        {"table": np.arange(size, dtype=np.float32)},
    )


def slow(width: int = 250, layers: int = 20) -> bytes:
    """y = x times a large matrix many times: some tens of milliseconds for a row of one feature."""
    matrix = np.full((width, width), 1 / width, np.float32)
    nodes = [helper.make_node("Expand", ["x", "shape"], ["h0"])]
    nodes += [helper.make_node("MatMul", [f"h{i}", "matrix"], [f"h{i + 1}"]) for i in range(layers)]
    nodes += [helper.make_node("ReduceMean", [f"h{layers}"], ["y"], axes=[1, 2], keepdims=0)]
    return build(
        nodes,
        [("x", "FP32", ["n", 1, 1])],
        [("y", "FP32", ["n"])],
        {"matrix": matrix, "shape": np.array([1, width, width], np.int64)},
    )


def logistic_regression(features: int = 30) -> bytes:
    """A label and two probabilities from a linear score."""
    random = np.random.default_rng(7)
    weights = random.normal(size=(features, 1)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "weights"], ["score"]),
        helper.make_node("Sigmoid", ["score"], ["positive"]),
        helper.make_node("Sub", ["one", "positive"], ["negative"]),
        helper.make_node("Concat", ["negative", "positive"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]
    return build(
        nodes,
        [("x", "FP32", ["n", features])],
        [("label", "INT64", ["n"]), ("probabilities", "FP32", ["n", 2])],
        {"weights": weights, "one": np.ones((1, 1), np.float32)},
    )


def reshape_to(rows: int, columns: int) -> bytes:
    """Takes only inputs of rows * columns elements: a good model that fails on made-up inputs."""
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    return build(nodes, [("x", "FP32", ["n"])], [("y", "FP32", [rows, columns])], {"shape": np.array([rows, columns])})


def spin(layers: int = 0, width: int = 250) -> bytes:
    """y = x, after max(x) turns of a loop: a large x never comes back. With ``layers`` a single turn takes time."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["keep_on"], ["still"]),
            helper.make_node("Add", ["before", "one"], ["after"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("keep_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.INT64, []),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.INT64, []),
        ],
        [numpy_helper.from_array(np.array(1, np.int64), "one")],
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["turns"], keepdims=0),
        helper.make_node("Loop", ["turns", "yes", "zero"], ["count"], body=body),
        helper.make_node("Cast", ["count"], ["h0"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["h0", "matrix"], ["m0"]),
        *[helper.make_node("MatMul", [f"m{i}", "matrix"], [f"m{i + 1}"]) for i in range(layers)],
        helper.make_node("ReduceMin", [f"m{layers}"], ["least"], keepdims=0),
        helper.make_node("Mul", ["least", "nought"], ["nothing"]),
        helper.make_node("Cast", ["nothing"], ["nil"], to=TensorProto.INT64),
        helper.make_node("Add", ["x", "nil"], ["y"]),
    ]
    return build(
        nodes,
        [("x", "INT64", ["n"])],
        [("y", "INT64", ["n"])],
        {
            "yes": np.array(True),
            "zero": np.array(0, np.int64),
            "nought": np.array(0, np.float32),
            "matrix": np.full((width, width), 1 / width, np.float32),
        },
    )


def heavy(megabytes: int, seed: int = 0, parts: int = 1) -> bytes:
    """y = x + seed, for FP32 rows of one feature, with so many useless weights, in ``parts`` pieces."""
    nodes = [
        helper.make_node("Add", ["x", "seed"], ["h0"]),
        helper.make_node("Mul", ["x", "nought"], ["nothing"]),  # of the input, else the weights would be folded away
        helper.make_node("Cast", ["nothing"], ["index"], to=TensorProto.INT64),
    ]
    for part in range(parts):
        nodes.append(helper.make_node("Gather", [f"weight{part}", "index"], [f"first{part}"]))
        nodes.append(helper.make_node("Add", [f"h{part}", f"first{part}"], [f"h{part + 1}"]))
    nodes.append(helper.make_node("Identity", [f"h{parts}"], ["y"]))
    weights = {f"weight{part}": np.zeros(megabytes * 2**18 // parts, np.float32) for part in range(parts)}
    for part, weight in enumerate(weights.values()):
        weight[1:] = part + 1  # else ONNX Runtime keeps one of several that are equal
    return build(
        nodes,
        [("x", "FP32", ["n", 1])],
        [("y", "FP32", ["n", 1])],
        {**weights, "seed": np.array([seed], np.float32), "nought": np.array([0], np.float32)},
    )


def fold(megabytes: int) -> bytes:
    """y = x plus the first number of a tensor that is tiny in the file and of this size once loaded."""
    return build(
        [
            helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
            helper.make_node("Add", ["zeros", "one"], ["weight"]),
            helper.make_node("Gather", ["weight", "x"], ["y"]),
        ],
        [("x", "INT64", ["n"])],
        [("y", "FP32", ["n"])],
        {"size": np.array([megabytes * 2**18], np.int64), "one": np.ones(1, np.float32)},
    )
