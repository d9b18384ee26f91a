"""Changes to datasets, evaluation runs and load tests."""

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
from apps.evaluation.comparison import keep_influences
from apps.evaluation.load_results import Objective, cost_per_thousand, judge, representative_step
from apps.evaluation.mapping import Plan, make_plan, match_inputs
from apps.evaluation.models import (
    Arrivals,
    Dataset,
    DatasetVersion,
    DatasetVersionState,
    EvaluationRun,
    LoadTest,
    MetricValue,
)
from apps.jobs.services import enqueue
from apps.registry.models import ModelVersion
from inference.contracts import Signature

if TYPE_CHECKING:  # SciPy and scikit-learn stay out of the web processes
    from apps.evaluation.metrics import Report

MAX_DATASETS_PER_TEAM: Final = 5_000
MAX_STEP_S: Final = 30
MAX_CONCURRENCY: Final = 256
MAX_DRIFT_COLUMNS: Final = 200
SLICE_TYPES: Final = ("text", "boolean", "integer")
MAX_RATE: Final = 200_000.0  # requests/s


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
    slice_by: str = "",
    reference: DatasetVersion | None = None,
) -> EvaluationRun:
    """Queue the scoring of a version on a dataset; what cannot fit together is refused now, with the reason.

    Without ``features``, a model with one input takes all columns but the target, in the dataset's order. ``slice_by``
    is a column whose values are evaluated each on their own, too; ``reference`` is data, that of the training say,
    from which the drift of the rows is measured.
    """
    actor.require("evaluation.run")
    if not model_version.is_ready:
        raise Conflict(f"{model_version} is not ready: only a version that passed validation can be evaluated.")
    if not dataset_version.is_ready:
        raise Conflict(f"{dataset_version} is not ready yet.", field="dataset_version")
    plan = plan_of(
        model_version=model_version, dataset_version=dataset_version, target=target, features=features or None
    )
    _check_slices(dataset_version, slice_by)
    _check_reference(plan.features, reference)
    team = model_version.model.team
    run = EvaluationRun.objects.create(
        team=team,
        model_version=model_version,
        dataset_version=dataset_version,
        target=target,
        features=plan.features,
        slice_by=slice_by,
        reference=reference,
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


def _check_slices(dataset_version: DatasetVersion, column: str) -> None:
    types = {one["name"]: one["type"] for one in dataset_version.schema}
    if column and types.get(column) not in SLICE_TYPES:
        raise DomainError(
            f"“{column}” cannot be sliced by: choose a column of {' or '.join(SLICE_TYPES)}.", field="slice_by"
        )


def _check_reference(features: list[str], reference: DatasetVersion | None) -> None:
    if reference is None:
        return
    if not reference.is_ready:
        raise Conflict(f"{reference} is not ready yet.", field="reference")
    if not {column["name"] for column in reference.schema} & set(features):
        raise DomainError(f"{reference} has none of the features, so there is nothing to compare.", field="reference")


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
def finish_evaluation(
    actor: Actor, *, run: EvaluationRun, report: Report, row_count: int, drift: dict[str, Any] | None = None
) -> bool:
    """Write a run's metrics, curves, slices and drift; False if it has them already."""
    run = EvaluationRun.objects.select_for_update(of=("self",)).select_related("team").get(pk=run.pk)
    if run.finished_at is not None:
        return False
    MetricValue.objects.bulk_create(MetricValue(run=run, **asdict(metric)) for metric in report.metrics)
    run.result, run.row_count, run.finished_at = report.curves, row_count, timezone.now()
    run.slices = [{"column": run.slice_by} | asdict(one) for one in report.slices]
    run.drift = drift
    run.influence_path, run.influence_sha256 = keep_influences(report.influences)
    run.save()
    after = {"rows": row_count} | {metric.name: metric.value for metric in report.metrics}
    record(actor, "evaluation.finished", run, team=run.team, after=after)
    return True


@transaction.atomic
def start_load_test(
    actor: Actor,
    *,
    model_version: ModelVersion,
    dataset_version: DatasetVersion | None = None,
    features: list[str] | None = None,
    step_s: int = 5,
    max_concurrency: int = 64,
    arrivals: str = Arrivals.POISSON,
    cpu_hour_price: float | None = None,
    objective: Objective | None = None,
) -> LoadTest:
    """Queue a load test; what cannot be driven is refused now, with the reason.

    Without ``dataset_version`` the rows are made up to fit the signature. Without ``features``: the columns of the
    model's last evaluation on that dataset, or else all, or else all but the last, whichever fits.
    """
    actor.require("evaluation.run")
    if not model_version.is_ready:
        raise Conflict(f"{model_version} is not ready: only a version that passed validation can be tested.")
    objective = objective or Objective()
    _check_load(step_s=step_s, max_concurrency=max_concurrency, arrivals=arrivals)
    _check_objective(objective, cpu_hour_price)
    columns: list[str] = []
    if dataset_version is not None:
        if not dataset_version.is_ready:
            raise Conflict(f"{dataset_version} is not ready yet.", field="dataset_version")
        columns = _columns_to_send(model_version, dataset_version, features)
    team = model_version.model.team
    test = LoadTest.objects.create(
        model_version=model_version,
        dataset_version=dataset_version,
        features=columns,
        step_s=step_s,
        max_concurrency=max_concurrency,
        arrivals=arrivals,
        cpu_hour_price=cpu_hour_price,
        slo_rate=objective.rate,
        slo_p99_ms=objective.p99_ms,
        slo_cost=objective.cost,
        requested_by_id=actor.person_id,
    )
    test.job = enqueue(
        actor,
        "evaluation.load_test",
        team=team,
        subject=f"Load test of {model_version}",
        subject_url=test.get_absolute_url(),
        arguments={"load_test_id": test.pk},
    )
    test.save(update_fields=["job"])
    after = {"step_s": step_s, "max_concurrency": max_concurrency, "arrivals": arrivals, "rows": test.rows}
    record(actor, "load_test.requested", test, team=team, after=after)
    return test


def _check_load(*, step_s: int, max_concurrency: int, arrivals: str) -> None:
    if not 1 <= step_s <= MAX_STEP_S:
        raise DomainError(f"A step takes 1 to {MAX_STEP_S} seconds.", field="step_s")
    if not 1 <= max_concurrency <= MAX_CONCURRENCY:
        raise DomainError(f"Choose 1 to {MAX_CONCURRENCY} callers.", field="max_concurrency")
    if arrivals not in Arrivals.values:
        raise DomainError(f"Choose one of {', '.join(Arrivals.values)}.", field="arrivals")


def _check_objective(objective: Objective, cpu_hour_price: float | None) -> None:
    asked = {
        "slo_rate": objective.rate,
        "slo_p99_ms": objective.p99_ms,
        "slo_cost": objective.cost,
        "cpu_hour_price": cpu_hour_price,
    }
    for field, value in asked.items():
        if value is not None and not 0 < value <= 1e9:
            raise DomainError("Give a number above 0.", field=field)
    if objective.rate is not None and objective.rate > MAX_RATE:
        raise DomainError(f"At most {MAX_RATE:,.0f} requests/s can be tried.", field="slo_rate")
    if (objective.rate is None) != (objective.p99_ms is None):
        missing = "slo_rate" if objective.rate is None else "slo_p99_ms"
        raise DomainError("A latency objective needs both: p99 in ms, and at how many requests/s.", field=missing)
    if objective.cost is not None and cpu_hour_price is None:
        raise DomainError("A cost objective needs the price of a CPU hour.", field="cpu_hour_price")


def _columns_to_send(
    model_version: ModelVersion, dataset_version: DatasetVersion, features: list[str] | None
) -> list[str]:
    """The features, checked against the model's inputs; raises ``DomainError`` for the first choice if none fits."""
    names = [column["name"] for column in dataset_version.schema]
    last = EvaluationRun.objects.filter(
        model_version__model=model_version.model, dataset_version__dataset=dataset_version.dataset
    ).first()
    choices = [features] if features else [*([last.features] if last else []), None, names[:-1]]
    signature = Signature.from_dict(model_version.signature or {})
    refusal: DomainError | None = None
    for choice in choices:
        try:
            inputs = match_inputs(signature=signature, schema=dataset_version.schema, features=choice)
        except DomainError as error:
            refusal = refusal or error
        else:
            return [column for one in inputs for column in one.columns]
    raise refusal or DomainError("The dataset has no columns.", field="dataset_version")


@transaction.atomic
def finish_load_test(actor: Actor, *, test: LoadTest, result: dict[str, Any]) -> bool:
    """Write a load test's result, its figures and what became of its objective; False if it has them already."""
    test = LoadTest.objects.select_for_update(of=("self",)).select_related("model_version__model__team").get(pk=test.pk)
    if test.finished_at is not None:
        return False
    knee, host, step = result["knee"], result["host"], representative_step(result)
    lines = judge(result, Objective(test.slo_rate, test.slo_p99_ms, test.slo_cost), test.cpu_hour_price)
    test.result, test.finished_at = result | {"slo": lines}, timezone.now()
    test.host = f"{host['hostname']}, {host['cpu']}, {host['cores']} cores"[:200]
    test.capacity, test.peak_rss_bytes = result["capacity"], result["peak_rss_bytes"]
    test.knee_concurrency, test.knee_throughput = knee["concurrency"], knee["throughput"]
    test.knee_p99_ms, test.cpu_s_per_thousand = knee["p99_ms"], step["cpu_s_per_thousand"]
    test.cost_per_thousand = cost_per_thousand(test.cpu_s_per_thousand, test.cpu_hour_price)
    test.is_slo_met = all(line["is_met"] for line in lines) if lines else None
    test.save()
    after = {"capacity": test.capacity, "knee_p99_ms": test.knee_p99_ms, "host": test.host}
    if lines:
        after["is_slo_met"] = test.is_slo_met
    record(actor, "load_test.finished", test, team=test.model_version.model.team, after=after)
    return True
