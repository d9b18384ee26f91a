"""What a promotion request freezes of an evaluation and of a load test."""

from __future__ import annotations

from typing import Any

from apps.evaluation.load_results import caveats
from apps.evaluation.models import EvaluationRun, LoadTest


def evaluation_evidence(run: EvaluationRun) -> dict[str, Any]:
    """A finished run as a JSON document; the same run always gives the same document."""
    if run.finished_at is None:
        raise ValueError("Only a finished run is evidence.")
    version = run.dataset_version
    return {
        "run": run.pk,
        "dataset": {
            "name": version.dataset.name,
            "number": version.number,
            "sha256": version.sha256,
            "row_count": version.row_count,
        },
        "target": run.target,
        "features": list(run.features),
        "row_count": run.row_count,
        "finished_at": run.finished_at.isoformat(),
        "metrics": [metric.as_evidence() for metric in run.metrics.all()],
        "slices": run.slices,
        "drift": run.drift,
    }


def load_test_evidence(test: LoadTest) -> dict[str, Any]:
    """A finished load test as a JSON document, without its steps; the same test always gives the same document."""
    if test.finished_at is None:
        raise ValueError("Only a finished load test is evidence.")
    version = test.dataset_version
    return {
        "load_test": test.pk,
        "dataset": None
        if version is None
        else {"name": version.dataset.name, "number": version.number, "sha256": version.sha256},
        "finished_at": test.finished_at.isoformat(),
        "host": test.result["host"],
        "capacity": test.capacity,
        "knee": test.result["knee"],
        "cpu_s_per_thousand": test.cpu_s_per_thousand,
        "cost_per_thousand": test.cost_per_thousand,
        "peak_rss_bytes": test.peak_rss_bytes,
        "slo": test.result["slo"],
        "is_slo_met": test.is_slo_met,
        "caveats": caveats(test.result),
    }
