"""What a request freezes: the facts that the decision rests on, and their digest."""

from __future__ import annotations

import hashlib
from typing import Any

from apps.audit.chain import canonical_json
from apps.deployments.models import Deployment, Endpoint
from apps.evaluation.charts import is_score
from apps.evaluation.comparison import paired_comparisons
from apps.evaluation.evidence import evaluation_evidence, load_test_evidence
from apps.evaluation.models import METRIC_LABELS, EvaluationRun, LoadTest
from apps.policies.services import risk_evidence
from apps.registry.artifact_signing import signature_evidence
from apps.registry.card_services import card_evidence
from apps.registry.models import ModelVersion

_MAX_RUNS = 20
_MAX_LOAD_TESTS = 5


def collect_evidence(
    *, model_version: ModelVersion, endpoint: Endpoint, champion: Deployment | None, initial_weight: int
) -> dict[str, Any]:
    """What is asked for, and everything known about the version and the one it would replace, as a JSON document."""
    return {
        "format": "countersign/evidence/v1",
        "endpoint": endpoint.name,
        "environment": endpoint.environment,
        "risk": risk_evidence(model_version.model),
        "initial_weight": initial_weight,
        "candidate": version_evidence(model_version),
        "champion": version_evidence(champion.model_version) if champion else None,
        "comparisons": paired_comparisons(model_version, champion.model_version) if champion else [],
    }


def version_evidence(model_version: ModelVersion) -> dict[str, Any]:
    """A version's identity, its validation, its finished evaluations and load tests, newest first."""
    runs = EvaluationRun.objects.finished().filter(model_version=model_version).order_by("-id")[:_MAX_RUNS]
    tests = LoadTest.objects.finished().filter(model_version=model_version).select_related("dataset_version__dataset")
    return {
        "model": model_version.model.name,
        "task": model_version.model.task,
        "number": model_version.number,
        "artifact_digest": model_version.artifact.sha256,
        "size_bytes": model_version.artifact.size_bytes,
        "signature": model_version.signature,
        "opset": model_version.opset,
        "producer": model_version.producer,
        "warmup_ms": model_version.warmup_ms,
        "uploaded_by": model_version.uploaded_by.name,
        "trained_by": model_version.trained_by.name if model_version.trained_by else None,
        "training_data": model_version.training_data,
        "model_card": card_evidence(model_version),
        "artifact_signature": signature_evidence(model_version),
        "uploaded_at": model_version.uploaded_at.isoformat(),
        "evaluations": [evaluation_evidence(run) for run in runs],
        "load_tests": [load_test_evidence(test) for test in tests.order_by("-id")[:_MAX_LOAD_TESTS]],
    }


def digest_of(evidence: dict[str, Any]) -> str:
    """Hex SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(evidence).encode()).hexdigest()


def metric_differences(evidence: dict[str, Any]) -> list[dict[str, Any]]:
    """Candidate beside champion for each metric that both have on the same dataset and target.

    Rows: ``metric, label, dataset, candidate, champion`` (each with value, ci_low, ci_high), ``change`` and
    ``verdict`` (better, worse, same). Metrics of the candidate without a counterpart come with ``champion`` None.
    """
    champion = evidence.get("champion") or {"evaluations": []}
    theirs = _metrics_by_place(champion["evaluations"])
    rows = []
    for place, metric in _metrics_by_place(evidence["candidate"]["evaluations"]).items():
        other = theirs.get(place)
        comparable = other is not None and None not in (metric["value"], other["value"])
        change = metric["value"] - other["value"] if comparable and other else None
        rows.append(
            {
                "metric": place[-1],
                "label": METRIC_LABELS.get(place[-1], place[-1]),
                "dataset": metric["dataset"],
                "candidate": metric,
                "champion": other,
                "change": change,
                "verdict": _verdict(place[-1], change),
            }
        )
    return rows


def _verdict(metric: str, change: float | None) -> str:
    if not change:
        return "" if change is None else "same"
    return "better" if (change > 0) == is_score(metric) else "worse"


def _metrics_by_place(evaluations: list[dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The newest value of each metric by (dataset digest, target, metric name)."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for run in evaluations:
        label = f"{run['dataset']['name']} v{run['dataset']['number']}"
        for metric in run["metrics"]:
            place = (run["dataset"]["sha256"], run["target"], metric["name"])
            found.setdefault(place, metric | {"dataset": label})
    return found


def newest_load_tests(evidence: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(Candidate or Champion, its newest load test), as frozen; evidence from before there were any has none."""
    sides = (("Candidate", evidence["candidate"]), ("Champion", evidence.get("champion") or {}))
    return [(name, side["load_tests"][0]) for name, side in sides if side.get("load_tests")]


def dataset_differences(evidence: dict[str, Any]) -> list[dict[str, Any]]:
    """The data that candidate and champion were evaluated on: ``label, row_count, sha256, candidate, champion``."""
    found: dict[str, dict[str, Any]] = {}
    for side in ("candidate", "champion"):
        for run in (evidence.get(side) or {"evaluations": []})["evaluations"]:
            dataset = run["dataset"]
            label = f"{dataset['name']} v{dataset['number']}"
            row = found.setdefault(
                dataset["sha256"],
                {"label": label, "row_count": dataset["row_count"], "sha256": dataset["sha256"]}
                | {"candidate": False, "champion": False},
            )
            row[side] = True
    return list(found.values())
