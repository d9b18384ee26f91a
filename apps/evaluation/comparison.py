"""Two evaluations on the same rows, compared row by row; much sharper than comparing their intervals."""

from __future__ import annotations

import hashlib
import io
from typing import Any, Final

import numpy as np
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage

from apps.evaluation.models import EvaluationRun
from apps.registry.models import ModelVersion

MAX_ROWS: Final = 2_000_000
"""Runs on more rows keep no influences: their own intervals are narrow enough."""
MAX_COMPARISONS: Final = 10
_MAX_RUNS: Final = 20
_Z: Final = 1.959963984540054  # of 95 %

Array = np.ndarray[Any, np.dtype[Any]]


def keep_influences(influences: dict[str, Array]) -> tuple[str, str]:
    """Store each row's influence on each metric; returns path and SHA-256, both empty if there is nothing to keep."""
    if not influences or max(len(values) for values in influences.values()) > MAX_ROWS:
        return "", ""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: values.astype(np.float32) for name, values in influences.items()}
    np.savez_compressed(buffer, **arrays)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    path = f"evaluations/{digest[:2]}/{digest}.npz"
    if not default_storage.exists(path):
        path = default_storage.save(path, ContentFile(content))
    return path, digest


def paired_comparisons(candidate: ModelVersion, champion: ModelVersion) -> list[dict[str, Any]]:
    """Candidate minus champion, for each metric that both have on the same rows with the same target.

    Entries: ``metric, dataset {name, number, sha256}, target, difference, ci_low, ci_high, row_count``; the interval is
    the normal one of the mean paired difference of the rows' influences, which for a mean is the rows' own values.
    """
    theirs = _newest(champion)
    found: list[dict[str, Any]] = []
    for place, ours in list(_newest(candidate).items())[:MAX_COMPARISONS]:
        other = theirs.get(place)
        if other is not None and other.row_count == ours.row_count:
            found += _compared(ours, other)
    return found


def _newest(version: ModelVersion) -> dict[tuple[int, str], EvaluationRun]:
    """The newest run with influences by dataset version and target."""
    runs = EvaluationRun.objects.finished().filter(model_version=version).exclude(influence_path="")
    newest: dict[tuple[int, str], EvaluationRun] = {}
    for run in runs.order_by("-id")[:_MAX_RUNS]:
        newest.setdefault((run.dataset_version_id, run.target), run)
    return newest


def _compared(ours: EvaluationRun, other: EvaluationRun) -> list[dict[str, Any]]:
    influences = _influences(ours), _influences(other)
    dataset = ours.dataset_version
    place = {
        "dataset": {"name": dataset.dataset.name, "number": dataset.number, "sha256": dataset.sha256},
        "target": ours.target,
        "row_count": ours.row_count,
    }
    theirs = {metric.name: metric.value for metric in other.metrics.all()}
    found = []
    for metric in ours.metrics.all():
        name, value = metric.name, theirs.get(metric.name)
        pair = [rows[name] for rows in influences if name in rows]
        if metric.value is None or value is None or len(pair) < 2 or not 1 < len(pair[0]) == len(pair[1]):
            continue
        difference, half = metric.value - value, _half_width(*pair)
        interval = {"ci_low": difference - half, "ci_high": difference + half}
        found.append({"metric": name, "difference": difference} | interval | place)
    return found


def _half_width(ours: Array, other: Array) -> float:
    paired = ours.astype(np.float64) - other
    return _Z * float(paired.std(ddof=1)) / float(len(paired) ** 0.5)


def _influences(run: EvaluationRun) -> dict[str, Array]:
    """What was stored; nothing if the bytes are not those that were recorded."""
    if not default_storage.exists(run.influence_path):
        return {}
    with default_storage.open(run.influence_path) as file:
        content = file.read()
    if hashlib.sha256(content).hexdigest() != run.influence_sha256:
        return {}
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
