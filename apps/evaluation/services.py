"""Changes to datasets and evaluation runs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from django.db import IntegrityError, transaction
from django.db.models import Max
from django.utils import timezone

from apps.audit.actor import Actor
from apps.audit.services import record
from apps.core.errors import Conflict, DomainError
from apps.core.uploads import Upload, keep, refuse_over_cap
from apps.evaluation.mapping import Plan, make_plan
from apps.evaluation.models import Dataset, DatasetVersion, DatasetVersionState, EvaluationRun, MetricValue
from apps.jobs.services import enqueue
from apps.registry.models import ModelVersion
from inference.contracts import Signature

if TYPE_CHECKING:  # SciPy and scikit-learn stay out of the web processes
    from apps.evaluation.metrics import Report

MAX_DATASETS_PER_TEAM: Final = 5_000


@transaction.atomic
def create_dataset(actor: Actor, *, team: Any, name: str, description: str = "") -> Dataset:
    """A new dataset without versions."""
    actor.require("registry.upload")
    if Dataset.objects.for_team(team).count() >= MAX_DATASETS_PER_TEAM:
        raise Conflict(f"A team has at most {MAX_DATASETS_PER_TEAM:,} datasets.")
    try:
        with transaction.atomic():
            dataset = Dataset.objects.create(
                team=team, name=name, description=description, created_by_id=actor.person_id
            )
    except IntegrityError as error:
        message = f"Your team has a dataset “{name}” already. Upload a version to it instead."
        raise Conflict(message, field="name") from error
    record(actor, "dataset.created", dataset, team=team, after={"name": name})
    return dataset


@transaction.atomic
def upload_dataset_version(actor: Actor, *, dataset: Dataset, file: Upload) -> DatasetVersion:
    """Keep an uploaded CSV or Parquet file and queue its conversion and profile."""
    actor.require("registry.upload")
    refuse_over_cap(file)
    if not file.size:
        raise DomainError("The file is empty. Upload a CSV with a header line, or a Parquet file.", field="file")
    # Locked, so that of two uploads at once the second one sees the first.
    dataset = Dataset.objects.select_for_update(of=("self",)).select_related("team").get(pk=dataset.pk)
    twin = dataset.versions.filter(sha256=file.sha256).exclude(state=DatasetVersionState.REJECTED).first()
    if twin is not None:
        raise Conflict(f"These very bytes are {dataset.name} v{twin.number} already.", field="file")
    version = DatasetVersion.objects.create(
        dataset=dataset,
        number=(dataset.versions.aggregate(last=Max("number"))["last"] or 0) + 1,
        sha256=file.sha256,
        size_bytes=file.size,
        file_name=(file.name or "dataset")[:200],
        original_path=keep(file, folder="uploads", suffix=""),
        uploaded_by_id=actor.person_id,
    )
    version.job = enqueue(
        actor,
        "evaluation.profile_dataset",
        team=dataset.team,
        subject=f"Read and profile {version}",
        subject_url=version.get_absolute_url(),
        arguments={"dataset_version_id": version.pk},
    )
    version.save(update_fields=["job"])
    after = {"sha256": version.sha256, "size_bytes": version.size_bytes, "file_name": version.file_name}
    record(actor, "dataset_version.uploaded", version, team=dataset.team, after=after)
    return version


@transaction.atomic
def upload_dataset(actor: Actor, *, team: Any, name: str, description: str, file: Upload) -> DatasetVersion:
    """Upload a version to the dataset of this name; it is created if there is none."""
    dataset = Dataset.objects.for_team(team).filter(name=name).first()
    if dataset is None:
        dataset = create_dataset(actor, team=team, name=name, description=description)
    return upload_dataset_version(actor, dataset=dataset, file=file)


@transaction.atomic
def accept_dataset_version(
    actor: Actor,
    *,
    dataset_version: DatasetVersion,
    path: str,
    stored_sha256: str,
    row_count: int,
    schema: list[dict[str, str]],
    profile: list[dict[str, Any]],
) -> bool:
    """Mark a version READY with what was found in it; False if it was decided before."""
    version = _validating(dataset_version)
    if version is None:
        return False
    version.state, version.path, version.stored_sha256 = DatasetVersionState.READY, path, stored_sha256
    version.row_count, version.schema, version.profile = row_count, schema, profile
    version.save()
    after = {"state": version.state, "stored_sha256": stored_sha256, "rows": row_count, "columns": len(schema)}
    record(actor, "dataset_version.accepted", version, team=version.dataset.team, after=after)
    return True


@transaction.atomic
def reject_dataset_version(actor: Actor, *, dataset_version: DatasetVersion, reason: str) -> bool:
    """Mark a version REJECTED; False if it was decided before."""
    version = _validating(dataset_version)
    if version is None:
        return False
    version.state, version.rejected_reason = DatasetVersionState.REJECTED, reason[:1_000]
    version.save(update_fields=["state", "rejected_reason"])
    after = {"state": version.state}
    record(actor, "dataset_version.rejected", version, team=version.dataset.team, after=after, reason=reason)
    return True


def _validating(dataset_version: DatasetVersion) -> DatasetVersion | None:
    locked = DatasetVersion.objects.select_for_update(of=("self",)).select_related("dataset__team")
    found: DatasetVersion | None = locked.filter(pk=dataset_version.pk, state=DatasetVersionState.VALIDATING).first()
    return found


@transaction.atomic
def start_evaluation(
    actor: Actor,
    *,
    model_version: ModelVersion,
    dataset_version: DatasetVersion,
    target: str,
    features: list[str] | None = None,
) -> EvaluationRun:
    """Queue the scoring of a version on a dataset; what cannot fit together is refused now, with the reason.

    Without ``features``, a model with one input takes all columns but the target, in the dataset's order.
    """
    actor.require("evaluation.run")
    if not model_version.is_ready:
        raise Conflict(f"{model_version} is not ready: only a version that passed validation can be evaluated.")
    if not dataset_version.is_ready:
        raise Conflict(f"{dataset_version} is not ready yet.", field="dataset_version")
    plan = plan_of(
        model_version=model_version, dataset_version=dataset_version, target=target, features=features or None
    )
    team = model_version.model.team
    run = EvaluationRun.objects.create(
        team=team,
        model_version=model_version,
        dataset_version=dataset_version,
        target=target,
        features=plan.features,
        requested_by_id=actor.person_id,
    )
    run.job = enqueue(
        actor,
        "evaluation.evaluate",
        team=team,
        subject=f"Evaluate {run}",
        subject_url=run.get_absolute_url(),
        arguments={"run_id": run.pk},
    )
    run.save(update_fields=["job"])
    after = {"dataset_digest": dataset_version.sha256, "target": target, "features": plan.features}
    record(actor, "evaluation.requested", run, team=team, after=after)
    return run


def plan_of(
    *, model_version: ModelVersion, dataset_version: DatasetVersion, target: str, features: list[str] | None
) -> Plan:
    """How the dataset meets the model; raises ``DomainError`` if it does not."""
    return make_plan(
        task=model_version.model.task,
        signature=Signature.from_dict(model_version.signature or {}),
        schema=dataset_version.schema,
        target=target,
        features=features,
    )


def fits(*, model_version: ModelVersion, dataset_version: DatasetVersion, target: str) -> bool:
    """Whether all columns beside the target fit the model as they stand."""
    try:
        plan_of(model_version=model_version, dataset_version=dataset_version, target=target, features=None)
    except DomainError:
        return False
    return True


@transaction.atomic
def finish_evaluation(actor: Actor, *, run: EvaluationRun, report: Report, row_count: int) -> bool:
    """Write a run's metrics and curves; False if it has them already."""
    run = EvaluationRun.objects.select_for_update(of=("self",)).select_related("team").get(pk=run.pk)
    if run.finished_at is not None:
        return False
    MetricValue.objects.bulk_create(MetricValue(run=run, **asdict(metric)) for metric in report.metrics)
    run.result, run.row_count, run.finished_at = report.curves, row_count, timezone.now()
    run.save(update_fields=["result", "row_count", "finished_at"])
    after = {"rows": row_count} | {metric.name: metric.value for metric in report.metrics}
    record(actor, "evaluation.finished", run, team=run.team, after=after)
    return True
