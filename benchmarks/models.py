"""The models that the speed benchmarks serve, made from what scikit-learn ships, and the rows that are sent to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from inference.runtime import load_session

PEERS: Final = Path(__file__).resolve().parent / "peers"
"""Everything that the benchmarks make or install; ignored by git."""

INPUT: Final = "X"
NAMES: Final = ("lr", "gb", "mlp", "cnn")
OPSET: Final = 17
SEED: Final = 20
TABLE_ROWS: Final = 64
IMAGE_ROWS: Final = 8

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Model:
    """A model with rows to send, float32 [n, ...], and what in-process ONNX Runtime answers to each of them alone."""

    name: str
    path: Path
    rows: Array
    expected: tuple[dict[str, Array], ...]

    def session(self) -> ort.InferenceSession:
        """The model as the inference service loads it: one thread, on the CPU."""
        return load_session(self.path)


def make_model(name: str) -> Model:
    """Train ``lr``, ``gb``, ``mlp`` or ``cnn`` and write it below ``PEERS``. Always the same rows and weights."""
    makers = {"lr": _logistic_regression, "gb": _boosted_trees, "mlp": _perceptron, "cnn": _convolutions}
    return _written(name, *makers[name]())


def make_variants(count: int) -> Iterator[Model]:
    """Logistic regressions ``lr-1``, ``lr-2``, ... that differ in their intercepts, and so in their answers."""
    content, rows = _logistic_regression()
    variant = onnx.load_from_string(content)
    (intercepts,) = (
        attribute.floats
        for node in variant.graph.node
        for attribute in node.attribute
        if attribute.name == "intercepts"
    )
    for number in range(1, count + 1):
        intercepts[:] = [value + 0.01 for value in intercepts]
        yield _written(f"lr-{number}", variant.SerializeToString(), rows)


def _written(name: str, content: bytes, rows: Array) -> Model:
    path = PEERS / "models" / f"{name}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    session = load_session(path)
    names = [output.name for output in session.get_outputs()]
    expected = (dict(zip(names, session.run(None, {INPUT: row[None]}), strict=True)) for row in rows)
    return Model(name, path, rows, tuple(expected))


def _logistic_regression() -> tuple[bytes, Array]:
    features, target = load_breast_cancer(return_X_y=True)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000)).fit(features, target)
    return _convert(model, features)


def _boosted_trees() -> tuple[bytes, Array]:
    features, target = load_breast_cancer(return_X_y=True)
    model = GradientBoostingClassifier(n_estimators=100, random_state=SEED).fit(features, target)
    return _convert(model, features)


def _perceptron() -> tuple[bytes, Array]:
    features, target = load_digits(return_X_y=True)
    features = features / 16
    model = MLPClassifier((128,), max_iter=60, random_state=SEED, early_stopping=True).fit(features, target)
    return _convert(model, features)


def _convert(model: Any, features: Array) -> tuple[bytes, Array]:
    # Every seventh row, so that both classes (all digits) are among them.
    rows = features.astype(np.float32)[::7][:TABLE_ROWS]
    converted = to_onnx(model, rows[:1], options={"zipmap": False}, target_opset=OPSET)
    return converted.SerializeToString(), rows


def _convolutions() -> tuple[bytes, Array]:
    """Three strided convolutions on 3×64×64, a pool and ten classes; random weights cost what trained ones do."""
    random = np.random.default_rng(SEED)
    channels = (3, 16, 32, 64)
    weights: dict[str, Array] = {}
    nodes, last = [], INPUT
    for layer, (taken, given) in enumerate(pairwise(channels), start=1):
        weights |= {f"w{layer}": random.normal(0, 0.2, (given, taken, 3, 3)), f"b{layer}": random.normal(0, 0.1, given)}
        nodes += [
            helper.make_node(
                "Conv",
                [last, f"w{layer}", f"b{layer}"],
                [f"c{layer}"],
                kernel_shape=[3, 3],
                pads=[1, 1, 1, 1],
                strides=[2, 2],
            ),
            helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]),
        ]
        last = f"r{layer}"
    weights |= {"w": random.normal(0, 0.2, (channels[-1], 10)), "b": random.normal(0, 0.1, 10)}
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "cnn",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["n", channels[0], 64, 64])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    # Six digits: the JSON of an image is about 109 KB.
    rows = np.round(random.random((IMAGE_ROWS, channels[0], 64, 64)), 6).astype(np.float32)
    return model.SerializeToString(), rows
