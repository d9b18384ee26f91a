"""Slices, drift and paired comparisons: from columns of a dataset to what a promotion freezes."""

from __future__ import annotations

import numpy as np
import pytest
from django.conf import settings
from scipy import stats

from apps.core.errors import DomainError
from apps.evaluation import metrics, services
from apps.evaluation.comparison import paired_comparisons
from apps.evaluation.drift import psi_of_categories, psi_of_numbers
from apps.evaluation.evidence import evaluation_evidence
from apps.evaluation.models import DatasetVersion, EvaluationRun
from apps.evaluation.scoring import MAX_SLICES
from apps.jobs.runner import run_inline
from apps.registry.models import ModelVersion
from tests import builders
from tests.conftest import Cast


def dataset(cast: Cast, *, rows: int = 120, shift: float = 0.0, regions: int = 3) -> DatasetVersion:
    random = np.random.default_rng(7)
    features = random.normal(size=(rows, 3)) + shift
    target = 2 * features.sum(axis=1) + random.normal(scale=0.1, size=rows)
    table = [",".join(f"{x:.6f}" for x in row) for row in np.column_stack([features, target])]
    names = [f"region {number % regions}" if number % 40 else "" for number in range(rows)]
    lines = ["a,b,c,target,region", *(f"{row},{name}" for row, name in zip(table, names, strict=True))]
    version = services.upload_dataset(
        cast.actor("data_scientist"),
        team=cast.team,
        name=f"rows-{next(builders._numbers)}",
        description="",
        file=builders.upload("\n".join(lines).encode(), "rows.csv"),
    )
    assert version.job is not None
    assert run_inline(version.job).state == "SUCCEEDED"
    return DatasetVersion.objects.select_related("dataset").get(pk=version.pk)


def run(cast: Cast, version: ModelVersion, rows: DatasetVersion, **kw: object) -> EvaluationRun:
    started = services.start_evaluation(
        cast.actor("analyst"),
        model_version=version,
        dataset_version=rows,
        target="target",
        features=["a", "b", "c"],
        **kw,  # type: ignore[arg-type]
    )
    assert started.job is not None
    assert run_inline(started.job).state == "SUCCEEDED"
    return EvaluationRun.objects.finished().get(pk=started.pk)


def test_each_value_of_a_column_has_metrics_of_its_own(cast: Cast) -> None:
    version = builders.ready_version(cast, content=builders.linear_onnx(2.0))
    evidence = evaluation_evidence(run(cast, version, dataset(cast), slice_by="region"))
    slices = evidence["slices"]
    assert sum(one["row_count"] for one in slices) == 120
    assert {one["value"] for one in slices} == {"region 0", "region 1", "region 2", "(missing)"}
    assert [metric["name"] for metric in slices[0]["metrics"]] == ["rmse", "mae", "r2"]
    assert all(metric["ci_low"] < metric["value"] < metric["ci_high"] for metric in slices[0]["metrics"])
    page = cast.browser("analyst").get(f"/evaluations/{evidence['run']}/").content.decode()
    assert "By region" in page


def test_the_rarest_values_share_a_slice(cast: Cast) -> None:
    version = builders.ready_version(cast, content=builders.linear_onnx(2.0))
    found = run(cast, version, dataset(cast, regions=37), slice_by="region").slices
    assert (len(found), sum(one["row_count"] for one in found)) == (MAX_SLICES, 120)
    assert "(others)" in {one["value"] for one in found}


def test_drift_from_reference_data(cast: Cast) -> None:
    version = builders.ready_version(cast, content=builders.linear_onnx(2.0))
    same, moved = dataset(cast), dataset(cast, shift=1.0)
    drift = run(cast, version, moved, reference=same).drift
    assert drift["reference"]["sha256"] == same.sha256
    assert drift["max_psi"] == drift["columns"][0]["psi"] > 0.25
    assert run(cast, version, same, reference=same).drift["max_psi"] == 0


def test_what_cannot_be_sliced_or_compared_is_refused(cast: Cast) -> None:
    version = builders.ready_version(cast, content=builders.linear_onnx(2.0))
    rows = dataset(cast)
    with pytest.raises(DomainError, match="cannot be sliced"):
        run(cast, version, rows, slice_by="a")
    with pytest.raises(DomainError, match="cannot be sliced"):
        run(cast, version, rows, slice_by="nothing")


def test_two_versions_are_compared_row_by_row(cast: Cast) -> None:
    model = builders.model(cast)
    champion = builders.ready_version(cast, model, builders.linear_onnx(2.0))
    candidate = builders.ready_version(cast, model, builders.linear_onnx(1.9))
    rows = dataset(cast)
    theirs, ours = run(cast, champion, rows), run(cast, candidate, rows)
    found = {one["metric"]: one for one in paired_comparisons(candidate, champion)}
    assert set(found) == {"rmse", "mae", "r2"}
    mae = found["mae"]
    values = [{metric.name: metric for metric in one.metrics.all()}["mae"] for one in (ours, theirs)]
    assert mae["difference"] == pytest.approx(values[0].value - values[1].value)
    assert mae["ci_low"] < mae["difference"] < mae["ci_high"]
    # The rows are the same, so the paired interval is no wider than that of two independent samples.
    halves = [(one.ci_high - one.ci_low) / 2 for one in values]
    assert (mae["ci_high"] - mae["ci_low"]) / 2 < np.hypot(*halves)
    assert paired_comparisons(candidate, candidate)[0]["ci_low"] == 0.0
    # Bytes that are not those that were recorded are no evidence.
    with (settings.INSTALLATION.store / theirs.influence_path).open("r+b") as file:
        file.seek(40)
        file.write(b"x")
    assert paired_comparisons(candidate, champion) == []


def test_influences_give_the_standard_errors_of_the_metrics() -> None:
    random = np.random.default_rng(1)
    actual = random.integers(0, 2, 4_000)
    score = np.clip(0.35 * actual + 0.65 * random.random(4_000), 0.001, 0.999)
    scores = np.column_stack([1 - score, score])
    report = metrics.evaluate_classification(actual, (score > 0.5).astype(int), ["n", "y"], scores)
    found = {metric.name: metric for metric in report.metrics}
    for name in ("roc_auc", "accuracy", "log_loss"):
        half = 1.96 * report.influences[name].std(ddof=1) / 4_000**0.5
        assert half == pytest.approx((found[name].ci_high - found[name].ci_low) / 2, rel=0.01), name  # type: ignore[operator]
    residuals = random.normal(size=4_000)
    regression = metrics.evaluate_regression(random.normal(size=4_000) * 3, residuals)
    for metric in regression.metrics:
        half = 1.96 * regression.influences[metric.name].std(ddof=1) / 4_000**0.5
        assert half == pytest.approx((metric.ci_high - metric.ci_low) / 2, rel=0.02), metric.name  # type: ignore[operator]


def test_rates_of_groups() -> None:
    actual, predicted = np.array([1, 1, 0, 0, 1, 0]), np.array([1, 0, 1, 0, 1, 1])
    groups = metrics.Groups(["a", "b", "empty"], np.array([0, 0, 0, 0, 1, 1]))
    report = metrics.evaluate_classification(actual, predicted, ["n", "y"], groups=groups)
    rates = [{metric.name: metric.value for metric in one.metrics} for one in report.slices]
    assert [one.value for one in report.slices] == ["a", "b"]
    assert (rates[0]["selection_rate"], rates[0]["true_positive_rate"], rates[0]["false_positive_rate"]) == (
        0.5,
        0.5,
        0.5,
    )
    assert (rates[1]["selection_rate"], rates[1]["true_positive_rate"]) == (1.0, 1.0)


def test_psi_by_its_definition() -> None:
    random = np.random.default_rng(3)
    reference, current = random.normal(size=5_000), random.normal(0.5, size=5_000)
    edges = np.quantile(reference, np.arange(1, 10) / 10)
    shares = [np.bincount(np.searchsorted(edges, x, side="right"), minlength=10) / 5_000 for x in (reference, current)]
    expected = float(np.sum(stats.entropy(shares[1], shares[0]) + stats.entropy(shares[0], shares[1])))
    assert psi_of_numbers(reference, current) == pytest.approx(expected, rel=1e-9)
    assert psi_of_numbers(reference, reference) == 0
    assert psi_of_numbers(np.full(9, np.nan), np.zeros(9)) > 8
    assert psi_of_categories({"a": 50, "b": 50}, {"a": 80, "b": 20}) == pytest.approx(
        0.3 * np.log(1.6) - 0.3 * np.log(0.4)
    )
    assert psi_of_categories({"a": 10}, {"new": 10}) > 8
