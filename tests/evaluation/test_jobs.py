"""From an upload to metrics, through services and the real jobs."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.core.files.storage import storages
from skl2onnx import to_onnx
from sklearn import metrics as sklearn_metrics
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from apps.audit.models import AuditEvent
from apps.core.errors import Conflict, DomainError, NotAllowed
from apps.evaluation import services
from apps.evaluation.evidence import evaluation_evidence
from apps.evaluation.models import DatasetVersion, EvaluationRun
from apps.jobs.runner import kind_of, run_inline
from apps.registry import services as registry
from apps.registry.models import ModelVersion
from tests.builders import ready_version, upload
from tests.conftest import Cast

pytestmark = pytest.mark.django_db


def csv_of(names: Any, features: Any, target_name: str, target: Any) -> bytes:
    """A CSV with the target as its last column."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([*names, target_name])
    writer.writerows([*row, value] for row, value in zip(features.tolist(), target, strict=True))
    return text.getvalue().encode()


def uploaded(cast: Cast, content: bytes, name: str = "holdout") -> DatasetVersion:
    """A dataset version after its job ran."""
    version = services.upload_dataset(
        cast.actor("data_scientist"), team=cast.team, name=name, description="", file=upload(content, "rows.csv")
    )
    assert version.job is not None
    assert run_inline(version.job).state == "SUCCEEDED"
    version.refresh_from_db()
    return version


def onnx_version(cast: Cast, name: str, task: str, onnx: bytes) -> ModelVersion:
    """A ready version of a new model of this task."""
    model = registry.register_model(cast.actor("data_scientist"), team=cast.team, name=name, task=task)
    return ready_version(cast, model, onnx)


def evaluated(cast: Cast, model_version: ModelVersion, dataset_version: DatasetVersion, target: str) -> EvaluationRun:
    """A run after its job ran."""
    run = services.start_evaluation(
        cast.actor("analyst"), model_version=model_version, dataset_version=dataset_version, target=target
    )
    assert run.job is not None
    job = run_inline(run.job)
    assert job.state == "SUCCEEDED", job.message + job.log_tail
    return EvaluationRun.objects.with_facts().get(pk=run.pk)


def values(run: EvaluationRun) -> dict[str, float]:
    """Metric values by name."""
    return {metric.name: metric.value for metric in run.metrics.all()}


def test_a_classifier_with_text_labels_is_evaluated_as_scikit_learn_does_it(cast: Cast) -> None:
    data = load_breast_cancer()
    features, labels = data.data.astype(np.float32), np.array(["malignant", "benign"])[data.target]
    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.001)).fit(features[::2], labels[::2])
    onnx = to_onnx(fitted, features[:1], options={"zipmap": False}, target_opset=17).SerializeToString()
    model_version = onnx_version(cast, "tumours", "CLASSIFICATION", onnx)
    rest, truth = features[1::2], labels[1::2]
    run = evaluated(cast, model_version, uploaded(cast, csv_of(data.feature_names, rest, "kind", truth)), "kind")
    probabilities = fitted.predict_proba(rest)
    found = values(run)
    assert found["accuracy"] == pytest.approx(np.mean(fitted.predict(rest) == truth))
    assert found["roc_auc"] == pytest.approx(sklearn_metrics.roc_auc_score(truth, probabilities[:, 1]), abs=1e-6)
    assert found["log_loss"] == pytest.approx(sklearn_metrics.log_loss(truth, probabilities), abs=1e-5)
    assert run.result["confusion"]["labels"] == ["benign", "malignant"]
    assert run.result["confusion"]["counts"] == sklearn_metrics.confusion_matrix(truth, fitted.predict(rest)).tolist()
    assert run.row_count == len(rest)
    assert run.state == "SUCCEEDED"
    assert AuditEvent.objects.filter(action="evaluation.finished", object_id=str(run.pk)).count() == 1


def test_a_regressor_is_evaluated_and_rows_without_target_are_left_out(cast: Cast) -> None:
    data = load_diabetes()
    features = data.data.astype(np.float32)
    fitted = Ridge().fit(features[::2], data.target[::2])
    onnx = to_onnx(fitted, features[:1], target_opset=17).SerializeToString()
    model_version = onnx_version(cast, "progression", "REGRESSION", onnx)
    truth: list[Any] = data.target[1::2].tolist()
    content = csv_of(data.feature_names, features[1::2], "y", ["", *truth[1:]])
    run = evaluated(cast, model_version, uploaded(cast, content), "y")
    predicted = fitted.predict(features[1::2])[1:]
    found = values(run)
    assert found["rmse"] == pytest.approx(sklearn_metrics.root_mean_squared_error(truth[1:], predicted), rel=1e-4)
    assert found["mae"] == pytest.approx(sklearn_metrics.mean_absolute_error(truth[1:], predicted), rel=1e-4)
    assert found["r2"] == pytest.approx(sklearn_metrics.r2_score(truth[1:], predicted), rel=1e-3)
    assert run.row_count == len(truth) - 1


def test_running_either_job_again_changes_nothing(cast: Cast) -> None:
    version = uploaded(cast, b"a,b,c,y\n1,2,3,12\n2,3,4,19\n")
    run = evaluated(cast, ready_version(cast), version, "y")
    evidence, events = evaluation_evidence(run), AuditEvent.objects.count()
    assert kind_of("evaluation.evaluate").function(None, run_id=run.pk) == {"rows": 2}
    assert kind_of("evaluation.profile_dataset").function(None, dataset_version_id=version.pk) == {"state": "READY"}
    assert evaluation_evidence(EvaluationRun.objects.finished().get(pk=run.pk)) == evidence
    assert AuditEvent.objects.count() == events


def test_evidence_names_the_digest_of_the_bytes_that_were_uploaded(cast: Cast) -> None:
    content = b"a,b,c,y\n1,2,3,12\n2,3,4,19\n"
    run = evaluated(cast, ready_version(cast), uploaded(cast, content), "y")
    evidence = evaluation_evidence(run)
    dataset = {"name": "holdout", "number": 1, "sha256": upload(content).sha256, "row_count": 2}
    assert evidence["dataset"] == dataset
    assert (evidence["target"], evidence["features"]) == ("y", ["a", "b", "c"])
    assert [sorted(metric) for metric in evidence["metrics"]] == [["ci_high", "ci_low", "name", "value"]] * 3


def test_the_same_bytes_again_are_refused_and_the_version_is_named(cast: Cast) -> None:
    uploaded(cast, b"a,y\n1,2\n")
    with pytest.raises(Conflict, match="holdout v1"):
        uploaded(cast, b"a,y\n1,2\n")
    assert uploaded(cast, b"a,y\n1,3\n").number == 2


def test_a_file_that_cannot_be_read_is_rejected_with_the_reason_and_may_come_again(cast: Cast) -> None:
    version = uploaded(cast, b"a,b\n1,2\n3\n")
    assert version.state == "REJECTED"
    assert version.rejected_reason == "Line 3 does not fit the header: 2 fields expected, 1 found."
    assert AuditEvent.objects.filter(action="dataset_version.rejected", object_id=str(version.pk)).exists()
    assert uploaded(cast, b"a,b\n1,2\n3\n").number == 2


def test_a_dataset_that_does_not_fit_is_refused_before_anything_is_queued(cast: Cast) -> None:
    version = uploaded(cast, b"a,b,y\n1,2,3\n")
    start = {"model_version": ready_version(cast), "dataset_version": version}
    with pytest.raises(DomainError, match="takes 3 columns; the dataset has 2") as refused:
        services.start_evaluation(cast.actor("analyst"), **start, target="y")
    assert refused.value.field == "features"
    with pytest.raises(DomainError, match="no column “z”"):
        services.start_evaluation(cast.actor("analyst"), **start, target="z")
    with pytest.raises(NotAllowed):
        services.start_evaluation(cast.actor("compliance_officer"), **start, target="y")
    assert not EvaluationRun.objects.exists()


def test_a_stored_file_that_was_changed_is_never_scored(cast: Cast) -> None:
    version = uploaded(cast, b"a,b,c,y\n1,2,3,12\n2,3,4,19\n")
    path = Path(storages["default"].path(version.path))
    path.write_bytes(path.read_bytes() + b"x")
    run = services.start_evaluation(
        cast.actor("analyst"), model_version=ready_version(cast), dataset_version=version, target="y"
    )
    assert run.job is not None
    assert run_inline(run.job).state == "FAILED"
    run = EvaluationRun.objects.with_facts().get(pk=run.pk)
    assert run.state == "FAILED"
    assert "not those that were recorded" in run.failure
    assert not run.metrics.exists()
    path.unlink()


def test_missing_values_that_make_the_model_answer_nan_fail_the_run_with_the_row(cast: Cast) -> None:
    version = uploaded(cast, b"a,b,c,y\n1,2,3,12\n2,,4,19\n")
    run = services.start_evaluation(
        cast.actor("analyst"), model_version=ready_version(cast), dataset_version=version, target="y"
    )
    assert run.job is not None
    job = run_inline(run.job)
    assert (job.state, job.attempt) == ("FAILED", 1)
    assert "NaN or infinity for row 2" in job.message
