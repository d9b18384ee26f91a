"""Guardrails: what the language takes and means, and what the service does with rows that violate a rule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import requests

from inference.contracts import GuardrailRule, Signature, TensorSpec
from inference.guardrails import Guard, RuleRejected, check_rule
from tests.inference import onnx_models as models
from tests.inference.conftest import Workbench
from tests.inference.installation import Service, row, tensor

SIGNATURE = Signature(
    (
        TensorSpec("X", "FP32", (-1, 3)),
        TensorSpec("country", "BYTES", (-1,)),
        TensorSpec("count", "INT64", (-1, 1)),
        TensorSpec("odd name", "BOOL", (-1,)),
    ),
    (TensorSpec("p", "FP32", (-1, 2)), TensorSpec("X", "INT64", (-1,))),
)
INPUTS = [
    np.array([[1, 2, 3], [4, np.nan, 6]], np.float32),
    np.array(["DE", "US"], object),
    np.array([[5], [2**62]]),
    np.array([True, False]),
]
OUTPUTS = [np.array([[0.1, 0.9], [0.5, 0.5]], np.float32), np.array([0, 1])]


def violated(expression: str) -> list[bool]:
    """Which of the two rows violate an expression."""
    guard = Guard([GuardrailRule("rule", expression, "flag")], SIGNATURE, is_batch=True)
    found = guard.check_inputs(INPUTS) + guard.check_outputs(INPUTS, OUTPUTS)
    return found[0].rows.tolist() if found else [False, False]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 <= input.X[0] <= 3", [False, True]),
        ("input.X < 7", [False, True]),  # NaN compares as false
        ("input.X[1] != 1", [False, False]),
        ("not is_missing(input.X[1])", [False, True]),
        ('country in ("DE", "FR")', [False, True]),
        ('country != "US" or input.X[0] > 3', [False, False]),
        ("length(country) == 2", [False, False]),
        ("count * 4 > 0", [False, False]),  # no wrap-around
        ("input.X[2] <= 0.7 * count", [False, False]),
        ("sum(output.p) == 1 and max(output.p) < 0.8", [True, False]),
        ("min(input.X[0], 2) == 1", [False, True]),
        ("abs(-input.X[-1]) < 5", [False, True]),
        ("count not in [5, 6]", [True, False]),
        ('input["odd name"]', [False, True]),
        ('all(input.X > 0) or not input["odd name"]', [False, False]),
        ("input.X[0] < count", [False, False]),
        ("mean(p) == 0.5", [False, False]),
        ("output.X % 2 == 0", [False, True]),
    ],
)
def test_what_an_expression_means(expression: str, expected: list[bool]) -> None:
    assert violated(expression) == expected


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "1 to 500 characters"),
        ("X[0] > 1", "input.X or output.X"),
        ("input.X[3] > 1", "3 elements"),
        ("input.X[0][0][0] > 1", "1 dimensions"),
        ("input.X[1:2] > 0", "whole number"),
        ("age > 1", "no “age”"),
        ("country > 3", "cannot be compared"),
        ('"a" in country', "list of texts"),
        ("count in (1, 'a')", "list of numbers"),
        ("input.X[0]", "has to hold"),
        ("1 < 2", "names no input"),
        ("input.X[0] >", "cannot be read"),
        ("__import__('os').system('true')", "not understood"),
        ("(lambda: 1)() == count", "not understood"),
        ("count ** 9 > 1", "not understood"),
        ("[x for x in country]", "not understood"),
        ("count.__class__ == 1", "no “count.__class__”"),
        ("count < " + "9" * 40, "64 bits"),
        ("sum(country) > 1", "a number fits"),
        (" and ".join(["count>1"] * 40), "split it"),
        ("not " * 120 + 'input["odd name"]', "character|deeply|too long"),
    ],
)
def test_what_the_language_refuses_and_says(expression: str, message: str) -> None:
    with pytest.raises(RuleRejected, match=message):
        check_rule(GuardrailRule("rule", expression, "flag"), SIGNATURE)


@pytest.mark.parametrize(
    ("fallback", "message"),
    [
        (None, "every output"),
        ({"p": [0, 1]}, "“X” has none"),
        ({"p": [0, 1, 2], "X": 1}, "shape"),
        ({"p": [0, 1], "X": 1.5}, "INT64"),
        ({"p": [0, "a"], "X": 1}, "FP32"),
        ({"p": [0, 1], "X": 1, "q": 2}, "no output"),
    ],
)
def test_a_fallback_must_fit_the_outputs(fallback: dict[str, Any] | None, message: str) -> None:
    check_rule(GuardrailRule("rule", "count > 0", "fallback", {"p": [0, 1], "X": 3}), SIGNATURE)
    with pytest.raises(RuleRejected, match=message):
        check_rule(GuardrailRule("rule", "count > 0", "fallback", fallback), SIGNATURE)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose endpoints have rules."""
    bench = Workbench(tmp_path_factory.mktemp("guardrails"))
    installation = bench.installation()
    installation.endpoint(
        "double",
        models.scale(2),
        guardrails=(
            GuardrailRule("small", "x[0] < 100", "flag"),
            GuardrailRule("positive", "x[1] >= 0", "reject"),
            GuardrailRule("bounded", "y[2] <= 50", "fallback", {"y": [-1, -1, -1]}),
            GuardrailRule("not-too-large", "y[2] <= 500", "reject"),
        ),
    )
    installation.endpoint(
        "pick",
        models.pick(),
        guardrails=(GuardrailRule("known", "0 <= x < 4", "fallback", {"y": -7}),),
    )
    installation.endpoint("coupled", models.softmax_over_rows(), guardrails=(GuardrailRule("up", "x > 0", "reject"),))
    installation.endpoint("misfit", models.scale(2), guardrails=(GuardrailRule("age", "age > 0", "flag"),))
    installation.publish()
    yield bench.serve(installation)
    bench.close()


def test_flag_answers_and_tells(guarded: Service) -> None:
    answer = guarded.infer("double", row(100, 1, 1))
    assert (answer.status_code, answer.headers["x-guardrails"]) == (200, "small")
    assert answer.json()["outputs"][0]["data"] == [200, 2, 2]
    assert "x-guardrails" not in guarded.infer("double", row(1, 1, 1)).headers
    flagged, plain = guarded.installation.logged("double")[-2:]
    assert (flagged.record.outcome, flagged.record.violations) == ("ok", [["small", [0]]])
    assert (plain.record.outcome, plain.record.violations) == ("ok", [])


def test_reject_is_422_by_inputs_and_by_outputs_and_is_logged(guarded: Service) -> None:
    for values, rule in (((1, -1, 1), "positive"), ((1, 1, 300), "not-too-large")):
        answer = guarded.infer("double", row(*values))
        assert (answer.status_code, rule in answer.json()["error"]) == (422, True)
        stored = guarded.installation.logged("double")[-1]
        assert (stored.record.outcome, rule in (stored.record.error or "")) == ("guardrail", True)
        assert rule in [name for name, _ in stored.record.violations]
        assert stored.tensors[0].values is not None


def test_fallback_replaces_only_the_rows_that_violate(guarded: Service) -> None:
    asked = {"inputs": [tensor("x", "FP32", [3, 3], [1, 1, 1, 2, 2, 26, 3, 3, 3])]}
    answer = guarded.infer("double", asked)
    assert (answer.status_code, answer.headers["x-guardrails"]) == (200, "bounded")
    assert answer.json()["outputs"][0]["data"] == [2, 2, 2, -1, -1, -1, 6, 6, 6]
    stored = guarded.installation.logged("double")[-1]
    assert (stored.record.outcome, stored.record.violations) == ("guardrail", [["bounded", [1]]])
    assert stored.tensors[1].values is not None
    assert stored.tensors[1].values[1].tolist() == [-1, -1, -1]


def test_neighbours_in_a_batch_are_not_touched(guarded: Service) -> None:
    """Pipelined requests run together; each gets its own outcome."""
    wanted = [((1, 1, 1), 200), ((1, -1, 1), 422), ((5, 1, 26), 200), ((7, 7, 7), 200), ((1, 1, 300), 422)]
    url = f"{guarded.url}/v2/models/double/infer"
    requests_ = [
        requests.Request("POST", url, json=row(*values), headers=guarded.headers).prepare() for values, _ in wanted
    ]
    with guarded.connect() as connection:
        for one in requests_:
            body = one.body if isinstance(one.body, bytes) else str(one.body).encode()
            lines = "".join(f"{name}: {value}\r\n" for name, value in one.headers.items())
            connection.sendall(f"POST {one.path_url} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode() + body)
        received = b""
        while received.count(b"HTTP/1.1 ") < len(wanted) or not received.endswith(b"}"):
            received += connection.recv(65536)
    statuses = [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [status for _, status in wanted]
    assert b'"data":[2.0,2.0,2.0]' in received
    assert b'"data":[-1.0,-1.0,-1.0]' in received
    assert b'"data":[14.0,14.0,14.0]' in received


def test_a_fallback_saves_a_request_on_which_the_model_breaks(guarded: Service) -> None:
    answer = guarded.infer("pick", {"inputs": [tensor("x", "INT64", [1], [99])]})
    assert (answer.status_code, answer.json()["outputs"][0]["data"]) == (200, [-7])


def test_a_model_whose_rows_belong_together_is_judged_as_a_whole(guarded: Service) -> None:
    fine = {"inputs": [tensor("x", "FP32", [2, 2], [1, 2, 3, 4])]}
    wrong = {"inputs": [tensor("x", "FP32", [2, 2], [1, 2, -3, 4])]}
    assert guarded.infer("coupled", fine).status_code == 200
    assert guarded.infer("coupled", wrong).status_code == 422


def test_a_rule_that_does_not_fit_the_model_lets_nothing_through(guarded: Service) -> None:
    answer = guarded.infer("misfit", row(1, 2, 3))
    assert (answer.status_code, "age" in answer.json()["error"]) == (422, True)


def test_violations_are_counted_by_rule(guarded: Service) -> None:
    guarded.infer("double", row(100, 1, 1))
    text = requests.get(f"{guarded.url}/metrics", timeout=5).text
    (line,) = [
        one for one in text.splitlines() if one.startswith("inference_guardrail_rows_total") and 'rule="small"' in one
    ]
    assert int(line.rpartition(" ")[2]) >= 1
