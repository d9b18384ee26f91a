"""Gates: every kind passes, fails and lacks data, on evidence as promotions freeze it."""

from __future__ import annotations

from typing import Any

import pytest

from apps.core.errors import DomainError
from apps.policies.documents import GATES, ApprovalRule, GateRule, Mode, PolicyDocument
from apps.policies.gates import CheckReport, Outcome, evaluate, preventing

OFFICER = (ApprovalRule("role:compliance_officer", 1),)


def run(auc: tuple[float, float, float] = (0.91, 0.89, 0.93), name: str = "holdout", **more: Any) -> dict[str, Any]:
    value, low, high = auc
    return {
        "dataset": {"name": name, "number": 2, "sha256": "d" * 64, "row_count": 1_000},
        "target": "y",
        "metrics": [
            {"name": "roc_auc", "value": value, "ci_low": low, "ci_high": high},
            {"name": "log_loss", "value": 0.30, "ci_low": 0.28, "ci_high": 0.32},
            {"name": "mae", "value": None, "ci_low": None, "ci_high": None},
        ],
        **more,
    }


def part(value: str, accuracy: tuple[float, float, float], rows: int = 500) -> dict[str, Any]:
    metric = dict(zip(("value", "ci_low", "ci_high"), accuracy, strict=True)) | {"name": "accuracy"}
    return {"column": "region", "value": value, "row_count": rows, "metrics": [metric]}


def evidence(*runs: dict[str, Any], champion: Any = None, top: dict[str, Any] | None = None, **facts: Any) -> Any:
    candidate = {"evaluations": list(runs), "load_tests": [], **facts}
    return {"candidate": candidate, "champion": champion, **(top or {})}


def answer(gate: str, given: Any, *checks: CheckReport, **rule: Any) -> tuple[Outcome, str]:
    document = PolicyDocument(OFFICER, (GateRule(gate, **rule),))
    assert PolicyDocument.from_json(document.as_json()) == document
    (result,) = evaluate(document, given, checks)
    assert result.prevents == (result.outcome is not Outcome.PASS)
    return result.outcome, result.sentence


def test_a_metric_is_held_on_the_end_of_its_interval() -> None:
    given = evidence(run())
    assert answer("metric", given, metric="roc_auc", limit=0.89) == (
        Outcome.PASS,
        "ROC AUC is 0.91 (0.89 to 0.93): the lower bound 0.89 is at least 0.89. On holdout v2.",
    )
    outcome, sentence = answer("metric", given, metric="roc_auc", limit=0.9)
    assert outcome is Outcome.FAIL
    assert "the lower bound 0.89 is under 0.9" in sentence


def test_an_error_is_held_on_its_upper_bound() -> None:
    given = evidence(run())
    assert answer("metric", given, metric="log_loss", limit=0.32)[0] is Outcome.PASS
    assert answer("metric", given, metric="log_loss", limit=0.31)[0] is Outcome.FAIL


def test_a_metric_without_value_interval_or_dataset_is_not_enough() -> None:
    no_interval = run((1.0, None, None))  # type: ignore[arg-type]
    for given, rule in (
        (evidence(), {"metric": "roc_auc"}),
        (evidence(run()), {"metric": "mae"}),
        (evidence(run()), {"metric": "roc_auc", "dataset": "other"}),
        (evidence(no_interval), {"metric": "roc_auc"}),
    ):
        assert answer("metric", given, limit=0.1, **rule)[0] is Outcome.NOT_ENOUGH_DATA


def test_the_newest_run_of_the_named_dataset_counts() -> None:
    given = evidence(run((0.5, 0.4, 0.6), "easy"), run((0.8, 0.75, 0.85)), run((0.9, 0.88, 0.92)))
    assert answer("metric", given, metric="roc_auc", limit=0.8, dataset="holdout")[0] is Outcome.FAIL
    assert answer("metric", given, metric="roc_auc", limit=0.7, dataset="holdout")[0] is Outcome.PASS


def test_nothing_is_worse_than_no_champion() -> None:
    assert answer("champion", evidence(run()), metric="roc_auc", limit=0.0)[0] is Outcome.PASS


@pytest.mark.parametrize(
    ("theirs", "margin", "expected"),
    [
        ((0.90, 0.89, 0.91), 0.02, Outcome.PASS),  # 0.01 better, −0.0124 at the worst
        ((0.90, 0.89, 0.91), 0.01, Outcome.NOT_ENOUGH_DATA),
        ((0.95, 0.94, 0.96), 0.02, Outcome.FAIL),  # 0.04 worse
    ],
)
def test_the_champion_is_compared_by_both_intervals(theirs: Any, margin: float, expected: Outcome) -> None:
    given = evidence(run(), champion={"evaluations": [run(theirs)]})
    assert answer("champion", given, metric="roc_auc", limit=margin)[0] is expected


def test_errors_that_grew_are_worse() -> None:
    champion = run() | {"metrics": [{"name": "log_loss", "value": 0.20, "ci_low": 0.19, "ci_high": 0.21}]}
    given = evidence(run(), champion={"evaluations": [champion]})
    outcome, sentence = answer("champion", given, metric="log_loss", limit=0.05)
    assert outcome is Outcome.FAIL
    assert "0.1 worse" in sentence


def test_a_paired_comparison_goes_before_two_intervals() -> None:
    comparison = {
        "metric": "roc_auc",
        "dataset": {"name": "holdout"},
        "difference": 0.01,
        "ci_low": 0.004,
        "ci_high": 0.016,
        "row_count": 1_000,
    }
    champion = {"evaluations": [run((0.90, 0.88, 0.92))]}
    alone = evidence(run(), champion=champion)
    paired = evidence(run(), champion=champion, top={"comparisons": [comparison]})
    assert answer("champion", alone, metric="roc_auc", limit=0.0)[0] is Outcome.NOT_ENOUGH_DATA
    outcome, sentence = answer("champion", paired, metric="roc_auc", limit=0.0)
    assert (outcome, "paired on 1,000 rows" in sentence) == (Outcome.PASS, True)


def test_other_data_is_no_comparison() -> None:
    elsewhere = run() | {"target": "other"}
    given = evidence(run(), champion={"evaluations": [elsewhere]})
    assert answer("champion", given, metric="roc_auc", limit=1.0)[0] is Outcome.NOT_ENOUGH_DATA


def test_every_large_slice_has_to_hold() -> None:
    north, south = part("north", (0.9, 0.88, 0.92)), part("south", (0.8, 0.76, 0.84))
    tiny = part("tiny", (0.1, 0.0, 0.4), rows=5)
    given = evidence(run(slices=[north, south, tiny]))
    rule: dict[str, Any] = {"metric": "accuracy", "column": "region", "min_rows": 30}
    outcome, sentence = answer("slice", given, limit=0.75, **rule)
    assert outcome is Outcome.PASS
    assert "the lowest is “south”" in sentence
    assert "1 with under 30 rows" in sentence
    outcome, sentence = answer("slice", given, limit=0.8, **rule)
    assert outcome is Outcome.FAIL
    assert "1 of 2 do not hold. “south”" in sentence
    assert answer("slice", given, limit=0.1, **rule | {"column": "age"})[0] is Outcome.NOT_ENOUGH_DATA
    assert answer("slice", given, limit=0.1, **rule | {"min_rows": 501})[0] is Outcome.NOT_ENOUGH_DATA


def test_the_widest_gap_between_slices_counts() -> None:
    given = evidence(
        run(slices=[part("a", (0.90, 0.89, 0.91)), part("b", (0.88, 0.87, 0.89)), part("c", (0.80, 0.79, 0.81))])
    )
    rule: dict[str, Any] = {"metric": "accuracy", "column": "region", "min_rows": 30}
    assert answer("fairness", given, limit=0.05, **rule)[0] is Outcome.FAIL
    outcome, sentence = answer("fairness", given, limit=0.11, **rule)
    assert outcome is Outcome.NOT_ENOUGH_DATA
    assert "between “a” 0.9 (0.89 to 0.91) and “c” 0.8" in sentence
    assert answer("fairness", given, limit=0.12, **rule)[0] is Outcome.PASS
    alone = evidence(run(slices=[part("a", (0.90, 0.89, 0.91))]))
    assert answer("fairness", alone, limit=0.1, **rule)[0] is Outcome.NOT_ENOUGH_DATA


def test_a_load_test_is_held_against_its_limits() -> None:
    test = {"host": {"name": "box"}, "capacity": 900.0, "knee": {"p99_ms": 4.0}, "cost_per_thousand": 0.02}
    given = evidence(load_tests=[test])
    for gate, passing, failing in (("latency", 4, 3.9), ("throughput", 900, 901), ("cost", 0.02, 0.01)):
        assert answer(gate, given, limit=passing)[0] is Outcome.PASS
        assert answer(gate, given, limit=failing)[0] is Outcome.FAIL
        assert answer(gate, evidence(), limit=1)[0] is Outcome.NOT_ENOUGH_DATA


def test_drift_takes_the_worst_column() -> None:
    drift = {
        "reference": {"name": "training"},
        "columns": [{"column": "age", "psi": 0.3}, {"column": "sex", "psi": 0.02}],
    }
    given = evidence(run(), run(drift=drift))
    outcome, sentence = answer("drift", given, limit=0.25)
    assert (outcome, "0.3 (age)" in sentence) == (Outcome.FAIL, True)
    assert answer("drift", given, limit=0.3)[0] is Outcome.PASS
    assert answer("drift", evidence(run()), limit=0.3)[0] is Outcome.NOT_ENOUGH_DATA


def test_facts_pass_fail_or_are_not_there() -> None:
    cases: list[tuple[str, Any, Any, Outcome]] = [
        (
            "model_card",
            evidence(model_card={"number": 1, "is_complete": True}),
            evidence(model_card={"number": 1, "is_complete": False, "missing": ["Limits"]}),
            Outcome.NOT_ENOUGH_DATA,
        ),
        (
            "artifact_signed",
            evidence(artifact_signature={"is_verified": True, "signer": "k"}),
            evidence(artifact_signature={"is_verified": False, "signer": "k"}),
            Outcome.NOT_ENOUGH_DATA,
        ),
        (
            "lineage",
            evidence(training_data=[{"name": "loans", "sha256": "a" * 64}]),
            evidence(training_data=[]),
            Outcome.FAIL,
        ),
        (
            "alerts",
            evidence(top={"alerts": {"firing": []}}),
            evidence(top={"alerts": {"firing": [{"name": "drift"}]}}),
            Outcome.NOT_ENOUGH_DATA,
        ),
        (
            "risk_assessed",
            evidence(top={"risk": {"is_assessed": True, "tier": "low", "number": 1}}),
            evidence(top={"risk": {"is_assessed": False, "tier": "limited", "number": None}}),
            Outcome.FAIL,
        ),
    ]
    for gate, passing, failing, without in cases:
        assert answer(gate, passing)[0] is Outcome.PASS, gate
        assert answer(gate, failing)[0] is Outcome.FAIL, gate
        assert answer(gate, evidence())[0] is without, gate


def test_the_newest_report_of_an_external_check_counts() -> None:
    reports = (CheckReport("scan", False, "2 findings."), CheckReport("scan", True, "Clean."))
    assert answer("check", evidence(), check="scan")[0] is Outcome.NOT_ENOUGH_DATA
    assert answer("check", evidence(), *reports, check="scan") == (Outcome.FAIL, "2 findings.")
    assert answer("check", evidence(), *reversed(reports), check="scan") == (Outcome.PASS, "Clean.")


def test_a_gate_that_warns_prevents_nothing() -> None:
    rules = (GateRule("lineage", Mode.WARN), GateRule("risk_assessed", Mode.PREVENT))
    results = evaluate(PolicyDocument(OFFICER, rules), evidence())
    assert [result.gate for result in preventing(results)] == ["risk_assessed"]


def test_every_kind_of_gate_is_tested_here_and_can_be_evaluated() -> None:
    for gate, kind in GATES.items():
        values = {"metric": "accuracy", "limit": 1.0, "column": "c", "min_rows": 1, "check": "x"}
        rule = {name: values[name] for name in kind.needs & values.keys()}
        assert answer(gate, evidence(), **rule)[1].endswith(".")


@pytest.mark.parametrize(
    "gate",
    [
        {"gate": "nonsense"},
        {"gate": "metric", "metric": "roc_auc"},
        {"gate": "metric", "metric": "selection_rate", "limit": 1},
        {"gate": "metric", "metric": "roc_auc", "limit": float("nan")},
        {"gate": "metric", "metric": "roc_auc", "limit": True},
        {"gate": "champion", "metric": "roc_auc", "limit": -0.1},
        {"gate": "latency", "limit": 5, "metric": "roc_auc"},
        {"gate": "fairness", "metric": "accuracy", "limit": 0.1},
        {"gate": "alerts", "mode": "MAYBE"},
        {"gate": "alerts", "extra": 1},
        {"gate": "check"},
        "alerts",
    ],
)
def test_a_gate_that_makes_no_sense_is_refused(gate: Any) -> None:
    with pytest.raises(DomainError):
        PolicyDocument.from_json(PolicyDocument(OFFICER).as_json() | {"gates": [gate]})
