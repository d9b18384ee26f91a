"""What a promotion request freezes of an evaluation."""

from __future__ import annotations

from typing import Any

from apps.evaluation.models import EvaluationRun


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
    }
