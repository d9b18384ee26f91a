"""Columns meet inputs, outputs become labels: plans, score columns and their classes, and models of many shapes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper, numpy_helper

from apps.core.errors import DomainError
from apps.evaluation.labels import LabelIndex, name_columns, recode
from apps.evaluation.mapping import Plan, make_plan
from apps.evaluation.metrics import UNKNOWN, Report
from apps.evaluation.scoring import score
from inference.contracts import Signature
from inference.runtime import load_session, read_signature

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
SCHEMA = [{"name": "a", "type": "float"}, {"name": "b", "type": "integer"}, {"name": "y", "type": "integer"}]


def signature(inputs: dict[str, tuple[str, list[int]]], outputs: dict[str, tuple[str, list[int]]]) -> Signature:
    """From name -> (datatype, shape)."""

    def specs(side: dict[str, tuple[str, list[int]]]) -> list[dict[str, Any]]:
        return [{"name": name, "datatype": kind, "shape": shape} for name, (kind, shape) in side.items()]

    return Signature.from_dict({"inputs": specs(inputs), "outputs": specs(outputs)})


ROWS = signature({"x": ("FP32", [-1, 2])}, {"label": ("INT64", [-1]), "probabilities": ("FP32", [-1, 2])})


def plan(of: Signature = ROWS, *, task: str = "CLASSIFICATION", schema: Any = SCHEMA, **choice: Any) -> Plan:
    """A plan for the schema."""
    return make_plan(task=task, signature=of, schema=schema, **({"target": "y"} | choice))


def refusal(of: Signature = ROWS, **choice: Any) -> str:
    """Why there is no plan."""
    with pytest.raises(DomainError) as refused:
        plan(of, **choice)
    return refused.value.message


def test_one_input_takes_all_columns_but_the_target_or_those_that_are_named() -> None:
    assert plan().features == ["a", "b"]
    assert plan(features=["b", "a"]).features == ["b", "a"]
    assert (plan().outputs.label, plan().outputs.scores) == (0, 1)


def test_several_inputs_take_columns_by_name() -> None:
    named = signature({"b": ("INT64", [-1, 1]), "a": ("FP32", [-1])}, {"label": ("INT64", [-1])})
    assert plan(named).features == ["b", "a"]
    other = signature({"a": ("FP32", [-1]), "q": ("FP32", [-1])}, {"label": ("INT64", [-1])})
    assert "“q” have no column" in refusal(other)
    assert "takes no inputs" in refusal(signature({}, {"v": ("FP32", [1])}), task="REGRESSION")


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"target": "nope"}, "no column “nope”"),
        ({"target": "a", "features": ["a", "b"]}, "cannot be a feature too"),
        ({"features": ["a"]}, "takes 2 columns; the dataset has 1 named as features"),
        ({"features": ["a", "z"]}, "no column “z”"),
        ({"features": ["a", "a"]}, "named more than once"),
        (
            {"schema": [*SCHEMA, {"name": "extra", "type": "float"}]},
            "takes 2 columns; the dataset has 3 besides the target",
        ),
        ({"schema": [{"name": "a", "type": "text"}, *SCHEMA[1:]]}, "“a (text)” cannot be used"),
        ({"schema": [*SCHEMA[:2], {"name": "y", "type": "date"}]}, "labels are text or whole numbers"),
        ({"task": "REGRESSION", "schema": [*SCHEMA[:2], {"name": "y", "type": "text"}]}, "a regression needs numbers"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(choice: dict[str, Any], said: str) -> None:
    assert said in refusal(**choice)


def test_score_columns_are_named_by_the_models_own_labels() -> None:
    scores = np.array([[0.9, 0.1, 0.0], [0.1, 0.8, 0.1], [0.0, 0.2, 0.8]])
    assert name_columns(["no", "yes", "perhaps"], scores, ["no", "perhaps", "yes"]) == ["no", "perhaps", "yes"]
    assert name_columns([0, 2], scores) == [0, 1, 2]
    assert name_columns([1, 2, 3], scores, [1, 2, 3]) == [1, 2, 3]
    assert name_columns([1, 2], scores[:2], [1, 2]) is None  # 1 and 2 of which three? the argmax says 0 and 1
    assert name_columns(["no", "yes"], scores) is None


def test_columns_in_another_order_than_the_labels_are_not_guessed() -> None:
    scores = np.array([[0.9, 0.1], [0.1, 0.9]])
    assert name_columns(["no", "yes"], scores, ["yes", "no"]) is None


def test_labels_of_all_kinds_become_codes() -> None:
    index = LabelIndex()
    codes = index.encode(np.array(["b", "a", "b"], dtype=object))
    assert [index.labels[code] for code in codes] == ["b", "a", "b"]
    numbers = LabelIndex()
    numbers.encode(np.array([2.0, 1.0]))
    assert sorted(numbers.labels) == [1, 2]
    with pytest.raises(DomainError, match="no whole number"):
        LabelIndex().encode(np.array([0.5]))
    with pytest.raises(DomainError, match="More than 1,000"):
        LabelIndex().encode(np.arange(1_001))
    assert recode(codes, index.labels, ["b"]).tolist() == [0, UNKNOWN, 0]


def onnx_file(
    folder: Path, nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], **constants: Any
) -> Path:
    """A model on disk; ``inputs`` and ``outputs`` are (name, type, shape)."""
    values = [[helper.make_tensor_value_info(*one) for one in side] for side in (inputs, outputs)]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "g", *values, initializer=tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def scored(
    folder: Path, artifact: Path, task: str, table: dict[str, Any], *, is_batchable: bool = True
) -> tuple[Report, int]:
    """Score a table with the real runtime."""
    stored = folder / "stored.parquet"
    columns = pa.table(table)
    pq.write_table(columns, stored)
    words = {pa.int64(): "integer", pa.float64(): "float", pa.string(): "text", pa.bool_(): "boolean"}
    schema = [{"name": field.name, "type": words[field.type]} for field in columns.schema]
    read = read_signature(load_session(artifact))
    return score(
        artifact=artifact,
        stored=stored,
        plan=plan(read, task=task, schema=schema),
        row_count=columns.num_rows,
        is_batchable=is_batchable,
        progress=lambda _: None,
    )


def found(report: Report) -> dict[str, float | None]:
    """Metric values by name."""
    return {metric.name: metric.value for metric in report.metrics}


def test_a_single_sigmoid_output_is_the_probability_of_the_second_class(tmp_path: Path) -> None:
    node = helper.make_node("Sigmoid", ["x"], ["p"])
    artifact = onnx_file(tmp_path, [node], [("x", FLOAT, ["n", 1])], [("p", FLOAT, ["n", 1])])
    report, _ = scored(tmp_path, artifact, "CLASSIFICATION", {"x": [-2.0, -1.0, 1.0, -0.5], "y": [0, 0, 1, 1]})
    assert found(report)["accuracy"] == 0.75
    assert found(report)["roc_auc"] == 1.0
    assert found(report)["log_loss"] == pytest.approx(np.mean(np.log1p(np.exp([-2, -1, -1, 0.5]))), rel=1e-5)


def test_logits_rank_and_classify_but_have_no_log_loss(tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["z"])
    artifact = onnx_file(tmp_path, [node], [("x", FLOAT, ["n", 3])], [("z", FLOAT, ["n", 3])])
    table = {"a": [3.0, 0.0, 0.0, 2.0], "b": [0.0, 3.0, 0.0, 0.0], "c": [0.0, 0.0, 3.0, 1.0], "y": [0, 1, 2, 0]}
    report, _ = scored(tmp_path, artifact, "CLASSIFICATION", table)
    assert (found(report)["accuracy"], found(report)["roc_auc"], found(report)["log_loss"]) == (1.0, 1.0, None)


def test_text_columns_and_a_fixed_batch_size(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["w"], ["number"], to=FLOAT),
        helper.make_node("Add", ["number", "x"], ["sum"]),
    ]
    inputs = [("w", STRING, [2, 1]), ("x", FLOAT, [2, 1])]
    artifact = onnx_file(tmp_path, nodes, inputs, [("sum", FLOAT, [2, 1])])
    table = {"w": ["1", "2", "3"], "x": [0.5, 0.5, 0.5], "y": [1.5, 2.5, 4.5]}
    report, rows = scored(tmp_path, artifact, "REGRESSION", table)
    assert rows == 3
    assert found(report)["mae"] == pytest.approx(1 / 3)


def test_missing_text_or_whole_numbers_are_refused_by_name(tmp_path: Path) -> None:
    node = helper.make_node("Cast", ["x"], ["v"], to=FLOAT)
    artifact = onnx_file(tmp_path, [node], [("x", INT64, ["n", 1])], [("v", FLOAT, ["n", 1])])
    with pytest.raises(DomainError, match="column “x” lacks values"):
        scored(tmp_path, artifact, "REGRESSION", {"x": [1, None], "y": [1.0, 2.0]})


def test_labels_of_another_kind_than_the_models_are_refused(tmp_path: Path) -> None:
    node = helper.make_node("Cast", ["x"], ["label"], to=INT64)
    artifact = onnx_file(tmp_path, [node], [("x", FLOAT, ["n"])], [("label", INT64, ["n"])])
    with pytest.raises(DomainError, match="are of another kind"):
        scored(tmp_path, artifact, "CLASSIFICATION", {"x": [0.0, 1.0], "y": ["no", "yes"]})
    report, _ = scored(tmp_path, artifact, "CLASSIFICATION", {"x": [0.0, 1.0, 1.0], "y": [False, True, False]})
    assert found(report) == {"roc_auc": None, "accuracy": pytest.approx(2 / 3), "log_loss": None}


def test_a_model_that_mixes_rows_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1)
    artifact = onnx_file(tmp_path, [node], [("x", FLOAT, ["n", 1])], [("m", FLOAT, ["k", 1])])
    with pytest.raises(DomainError, match="does not answer row by row"):
        scored(tmp_path, artifact, "REGRESSION", {"x": [0.0, 1.0], "y": [0.0, 1.0]})


def test_rows_that_depend_on_each_other_are_scored_one_by_one_as_they_are_served(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["v"]),
    ]
    artifact = onnx_file(tmp_path, nodes, [("x", FLOAT, ["n", 1])], [("v", FLOAT, ["n", 1])])
    table = {"x": [1.0, 2.0, 6.0], "y": [0.0, 0.0, 0.0]}
    together, _ = scored(tmp_path, artifact, "REGRESSION", table)
    alone, _ = scored(tmp_path, artifact, "REGRESSION", table, is_batchable=False)
    assert found(together)["mae"] == 2.0
    assert found(alone)["mae"] == 0.0


def test_no_row_with_a_target(tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["v"])
    artifact = onnx_file(tmp_path, [node], [("x", FLOAT, ["n", 1])], [("v", FLOAT, ["n", 1])])
    with pytest.raises(DomainError, match="no rows"):
        scored(tmp_path, artifact, "REGRESSION", {"x": [1.0], "y": pa.array([None], pa.float64())})


def test_batches_do_not_change_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(5)
    table = {"x": random.normal(size=2_000), "y": random.normal(size=2_000)}
    node = helper.make_node("Identity", ["x"], ["v"])
    artifact = onnx_file(tmp_path, [node], [("x", FLOAT, ["n", 1])], [("v", FLOAT, ["n", 1])])
    whole, _ = scored(tmp_path, artifact, "REGRESSION", table)
    monkeypatch.setattr("apps.evaluation.scoring._MAX_BATCH_ROWS", 300)
    assert scored(tmp_path, artifact, "REGRESSION", table)[0] == whole
