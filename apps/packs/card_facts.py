"""What is on record about a version, gathered for its model card."""

from __future__ import annotations

from typing import Any, Final

from apps.deployments.models import Deployment
from apps.evaluation.evidence import evaluation_evidence
from apps.evaluation.models import METRIC_LABELS, EvaluationRun
from apps.registry.cards import CardFacts, DatasetFact, MetricFact, Prefill, SliceFact
from apps.registry.models import CardRevision, ModelVersion

_MAX_RUNS: Final = 5
_MAX_TENSORS: Final = 12


def prefill(model_version: ModelVersion) -> Prefill:
    """Facts of the version, and what the newest card of an earlier version says."""
    earlier = CardRevision.objects.filter(
        model_version__model=model_version.model, model_version__number__lt=model_version.number
    )
    previous: CardRevision | None = earlier.order_by("-model_version__number", "-number").first()
    return Prefill(card_facts(model_version), previous.sections if previous else {})


def card_facts(model_version: ModelVersion) -> CardFacts:
    """The facts as they stand now; of the evaluations, the newest five."""
    model = model_version.model
    runs = list(EvaluationRun.objects.finished().filter(model_version=model_version)[:_MAX_RUNS])
    signature: dict[str, Any] = model_version.signature or {}
    serving = Deployment.objects.active().filter(model_version=model_version).order_by("endpoint__name")
    return CardFacts(
        version=str(model_version),
        task=model.get_task_display(),
        artifact_digest=model_version.artifact.sha256,
        team=model.team.name,
        registered_by=model.created_by.name,
        uploaded_by=model_version.uploaded_by.name,
        producer=model_version.producer,
        description=model.description,
        inputs=_tensors(signature.get("inputs", [])),
        outputs=_tensors(signature.get("outputs", [])),
        datasets=tuple(dict.fromkeys(map(_dataset, runs))),
        metrics=tuple(fact for run in runs for fact in _metrics(run)),
        slices=tuple(fact for run in runs for fact in _slices(run)),
        trained_by=model_version.trained_by.name if model_version.trained_by else "",
        training_data=tuple((row["name"], row["sha256"]) for row in model_version.training_data),
        endpoints=tuple(serving.values_list("endpoint__name", flat=True).distinct()),
    )


def _tensors(specs: list[dict[str, Any]]) -> tuple[str, ...]:
    named = [f"{spec['name']} {spec['datatype']}{spec['shape']}" for spec in specs[:_MAX_TENSORS]]
    return (*named, f"and {len(specs) - _MAX_TENSORS} more") if len(specs) > _MAX_TENSORS else tuple(named)


def _dataset(run: EvaluationRun) -> DatasetFact:
    version = run.dataset_version
    return DatasetFact(str(version), version.sha256, run.row_count, run.target)


def _metrics(run: EvaluationRun) -> list[MetricFact]:
    dataset = str(run.dataset_version)
    return [MetricFact(row.label, dataset, row.value, row.ci_low, row.ci_high) for row in run.metrics.all()]


def _slices(run: EvaluationRun) -> list[SliceFact]:
    """A row for each group and metric that the run measured."""
    dataset = str(run.dataset_version)
    return [
        SliceFact(
            group=f"{row['column']} = {row['value']}",
            row_count=row["row_count"],
            metric=MetricFact(METRIC_LABELS.get(metric["name"], metric["name"]), dataset, *_figures(metric)),
        )
        for row in evaluation_evidence(run).get("slices", [])
        for metric in row["metrics"]
    ]


def _figures(metric: dict[str, Any]) -> tuple[float | None, float | None, float | None]:
    return metric["value"], metric["ci_low"], metric["ci_high"]
