"""Datasets with their immutable versions, evaluation runs with their metrics, and load tests."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final, Self

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.urls import reverse

from apps.accounts.models import slug_validator
from apps.core.querysets import TeamScopedQuerySet
from apps.jobs.models import JobState

METRIC_LABELS: Final = {
    "accuracy": "Accuracy",
    "false_positive_rate": "False positive rate",
    "log_loss": "Log loss",
    "mae": "MAE",
    "r2": "R²",
    "rmse": "RMSE",
    "roc_auc": "ROC AUC",
    "selection_rate": "Selection rate",
    "true_positive_rate": "True positive rate",
}


class Dataset(models.Model):
    """A named series of dataset versions."""

    team = models.ForeignKey("accounts.Team", on_delete=models.PROTECT, related_name="datasets")
    name = models.CharField(max_length=63, validators=[slug_validator])
    description = models.CharField(max_length=500, blank=True)
    created_by = models.ForeignKey("accounts.User", on_delete=models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = TeamScopedQuerySet.as_manager()

    class Meta:
        ordering = ("name",)
        constraints = (models.UniqueConstraint(fields=("team", "name"), name="dataset_name_once_per_team"),)

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        """Its page."""
        return reverse("evaluation:dataset-detail", args=[self.name])


class DatasetVersionState(models.TextChoices):
    """Where a version stands; it can be used when it is READY."""

    VALIDATING = "VALIDATING", "Validating"
    READY = "READY", "Ready"
    REJECTED = "REJECTED", "Rejected"


class DatasetVersionQuerySet(TeamScopedQuerySet):
    """Reads of dataset versions."""

    team_path = "dataset__team"

    def ready(self) -> Self:
        """Those that an evaluation can use."""
        return self.filter(state=DatasetVersionState.READY)

    def with_names(self) -> Self:
        """Everything that a list shows of a version, without the profile, in one query."""
        return self.select_related("dataset", "uploaded_by", "job").defer("profile")


class DatasetVersion(models.Model):
    """One uploaded file, kept as typed Parquet.

    ``sha256`` is the digest of the bytes that were uploaded: the version's identity. ``stored_sha256`` is the digest of
    the Parquet file at ``path``, checked before each use. The upload itself stays at ``original_path``.
    """

    dataset = models.ForeignKey(Dataset, on_delete=models.PROTECT, related_name="versions")
    number = models.PositiveIntegerField()
    state = models.CharField(max_length=10, choices=DatasetVersionState.choices, default=DatasetVersionState.VALIDATING)
    rejected_reason = models.CharField(max_length=1_000, blank=True)
    sha256 = models.CharField(max_length=64)
    size_bytes = models.BigIntegerField()
    file_name = models.CharField(max_length=200)
    original_path = models.CharField(max_length=200)
    stored_sha256 = models.CharField(max_length=64, blank=True)
    path = models.CharField(max_length=200, blank=True)
    row_count = models.BigIntegerField(null=True)
    schema = models.JSONField(default=list)
    profile = models.JSONField(default=list)
    uploaded_by = models.ForeignKey("accounts.User", on_delete=models.PROTECT, related_name="+")
    uploaded_at = models.DateTimeField(auto_now_add=True)
    job = models.ForeignKey("jobs.Job", null=True, on_delete=models.SET_NULL, related_name="+")

    objects = DatasetVersionQuerySet.as_manager()

    class Meta:
        ordering = ("-number",)
        constraints = (
            models.UniqueConstraint(fields=("dataset", "number"), name="dataset_version_number_once"),
            models.UniqueConstraint(
                fields=("dataset", "sha256"), condition=~models.Q(state="REJECTED"), name="dataset_version_bytes_once"
            ),
            models.CheckConstraint(
                condition=~models.Q(state="READY") | (~models.Q(path="") & models.Q(row_count__gt=0)),
                name="dataset_version_ready_is_stored",
            ),
        )

    def __str__(self) -> str:
        return f"{self.dataset.name} v{self.number}"

    def get_absolute_url(self) -> str:
        """The page of its dataset, with this version's columns."""
        return f"{self.dataset.get_absolute_url()}?version={self.number}"

    @property
    def is_ready(self) -> bool:
        """True if an evaluation can use it."""
        return self.state == DatasetVersionState.READY


class Measurement(models.Model):
    """Something that a job finds out about a model version. Never changed once it has finished."""

    requested_by = models.ForeignKey("accounts.User", on_delete=models.PROTECT, related_name="+")
    requested_at = models.DateTimeField(auto_now_add=True)
    finished_at = models.DateTimeField(null=True)
    job = models.ForeignKey("jobs.Job", null=True, on_delete=models.SET_NULL, related_name="+")
    result = models.JSONField(default=dict)

    class Meta:
        abstract = True

    @property
    def state(self) -> str:
        """The job's state; what has results has succeeded, whatever became of its job's row."""
        if self.finished_at is not None:
            return JobState.SUCCEEDED
        return self.job.state if self.job is not None else JobState.FAILED

    @property
    def failure(self) -> str:
        """Why there are no results and there will be none; empty otherwise."""
        has_ended = self.finished_at is None and (self.job is None or self.job.is_finished)
        return (self.job.message if self.job is not None else "Its job is gone.") if has_ended else ""

    @property
    def duration(self) -> timedelta | None:
        """From the start of the attempt that succeeded to its end."""
        if self.finished_at is None or self.job is None or self.job.started_at is None:
            return None
        return self.finished_at - self.job.started_at


class EvaluationRunQuerySet(TeamScopedQuerySet):
    """Reads of evaluation runs."""

    def finished(self) -> Self:
        """Those that succeeded, with what evidence says of them."""
        runs = self.filter(finished_at__isnull=False)
        return (
            runs.select_related("dataset_version__dataset")
            .defer("result", "dataset_version__profile")
            .prefetch_related("metrics")
        )

    def comparable_to(self, run: EvaluationRun) -> Self:
        """Finished runs of the same model, any version, on the same rows with the same target."""
        return self.filter(
            finished_at__isnull=False,
            model_version__model=run.model_version.model,
            dataset_version=run.dataset_version,
            target=run.target,
        )

    def with_facts(self) -> Self:
        """Everything that a run's own page shows, in two queries."""
        related = ("model_version__model", "model_version__artifact", "dataset_version__dataset", "requested_by", "job")
        runs = self.select_related(*related).prefetch_related("metrics")
        return runs.defer("dataset_version__profile", "dataset_version__schema")

    def with_names(self) -> Self:
        """Everything that a list shows of a run, without its curves, in two queries."""
        return self.with_facts().defer("result", "dataset_version__profile", "dataset_version__schema")


class EvaluationRun(Measurement):
    """One model version scored on one dataset version."""

    team = models.ForeignKey("accounts.Team", on_delete=models.PROTECT, related_name="evaluation_runs")
    model_version = models.ForeignKey("registry.ModelVersion", on_delete=models.PROTECT, related_name="evaluation_runs")
    dataset_version = models.ForeignKey(DatasetVersion, on_delete=models.PROTECT, related_name="evaluation_runs")
    target = models.CharField(max_length=200)
    features = ArrayField(models.CharField(max_length=200))
    slice_by = models.CharField(max_length=200, blank=True)  # a column, or nothing
    reference = models.ForeignKey(DatasetVersion, null=True, on_delete=models.PROTECT, related_name="+")
    row_count = models.BigIntegerField(null=True)
    slices = models.JSONField(default=list)  # [{"column", "value", "row_count", "metrics": [...]}, ...]
    drift: models.JSONField[Any, Any] = models.JSONField(null=True)  # {"reference", "columns", "max_psi"}
    influence_path = models.CharField(max_length=200, blank=True)  # each row's influence on each metric
    influence_sha256 = models.CharField(max_length=64, blank=True)

    objects = EvaluationRunQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        indexes = (models.Index(fields=("model_version", "-id"), name="evaluation_by_version"),)

    def __str__(self) -> str:
        return f"{self.model_version} on {self.dataset_version}"

    def get_absolute_url(self) -> str:
        """Its page."""
        return reverse("evaluation:run-detail", args=[self.pk])

    @property
    def skipped_rows(self) -> int:
        """Rows of the dataset that were left out because their target is empty."""
        return 0 if self.row_count is None else (self.dataset_version.row_count or 0) - self.row_count

    @property
    def key_metric(self) -> MetricValue | None:
        """The metric to show where there is room for one: the first that has a value."""
        return next((metric for metric in self.metrics.all() if metric.value is not None), None)


class MetricValue(models.Model):
    """A metric of a run with its 95 % confidence interval; ``note`` says why a value or an interval is missing."""

    run = models.ForeignKey(EvaluationRun, on_delete=models.CASCADE, related_name="metrics")
    name = models.CharField(max_length=40)
    value = models.FloatField(null=True)
    ci_low = models.FloatField(null=True)
    ci_high = models.FloatField(null=True)
    note = models.CharField(max_length=300, blank=True)

    class Meta:
        ordering = ("id",)
        constraints = (models.UniqueConstraint(fields=("run", "name"), name="metric_once_per_run"),)

    def __str__(self) -> str:
        return self.name

    @property
    def label(self) -> str:
        """The metric's name for people."""
        return METRIC_LABELS.get(self.name, self.name)

    def as_evidence(self) -> dict[str, Any]:
        """Name, value and interval, JSON-safe."""
        return {"name": self.name, "value": self.value, "ci_low": self.ci_low, "ci_high": self.ci_high}


class Arrivals(models.TextChoices):
    """How requests arrive in the open loop."""

    POISSON = "poisson", "At random (Poisson)"
    CONSTANT = "constant", "Evenly spaced"


class LoadTestQuerySet(TeamScopedQuerySet):
    """Reads of load tests."""

    team_path = "model_version__model__team"

    def finished(self) -> Self:
        """Those that have a result."""
        return self.filter(finished_at__isnull=False)

    def with_names(self) -> Self:
        """Everything that a list shows of a load test, without its steps, in one query."""
        return self.with_facts().defer("result")

    def with_facts(self) -> Self:
        """Everything that a load test's own page shows, in one query."""
        related = ("model_version__model", "model_version__artifact", "dataset_version__dataset", "requested_by", "job")
        return self.select_related(*related).defer("dataset_version__profile", "dataset_version__schema")

    def beside(self, test: LoadTest) -> Self:
        """The newest finished test of each other version of the same model on the same host, newest version first."""
        tests = self.finished().filter(model_version__model=test.model_version.model, host=test.host)
        newest = tests.order_by("model_version_id", "-id").distinct("model_version_id").values("pk")
        others = self.filter(pk__in=newest).exclude(model_version=test.model_version)
        return others.order_by("-model_version__number")


class LoadTest(Measurement):
    """What one model version can do on the host of the worker that drove it.

    The figures beside ``result`` are those that lists, comparisons and gates read: ``capacity`` in requests/s, the
    rest at the knee, the cost per thousand predictions where the SLO's rate is, or else at the knee.
    """

    model_version = models.ForeignKey("registry.ModelVersion", on_delete=models.PROTECT, related_name="load_tests")
    dataset_version = models.ForeignKey(
        DatasetVersion, null=True, on_delete=models.PROTECT, related_name="load_tests"
    )  # none: made-up rows
    features = ArrayField(models.CharField(max_length=200), default=list)
    step_s = models.PositiveSmallIntegerField()
    max_concurrency = models.PositiveSmallIntegerField()
    arrivals = models.CharField(max_length=8, choices=Arrivals.choices)
    cpu_hour_price = models.FloatField(null=True)  # in the currency that the team reckons in
    slo_rate = models.FloatField(null=True)  # requests/s
    slo_p99_ms = models.FloatField(null=True)
    slo_cost = models.FloatField(null=True)  # per thousand predictions
    host = models.CharField(max_length=200, blank=True)
    capacity = models.FloatField(null=True)
    knee_concurrency = models.PositiveSmallIntegerField(null=True)
    knee_throughput = models.FloatField(null=True)
    knee_p99_ms = models.FloatField(null=True)
    cpu_s_per_thousand = models.FloatField(null=True)
    cost_per_thousand = models.FloatField(null=True)
    peak_rss_bytes = models.BigIntegerField(null=True)
    is_slo_met = models.BooleanField(null=True)  # null: there was none

    objects = LoadTestQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        indexes = (models.Index(fields=("model_version", "-id"), name="load_test_by_version"),)
        constraints = (
            models.CheckConstraint(
                condition=models.Q(slo_rate__isnull=True, slo_p99_ms__isnull=True)
                | models.Q(slo_rate__isnull=False, slo_p99_ms__isnull=False),
                name="load_test_slo_has_both_sides",
            ),
            models.CheckConstraint(
                condition=models.Q(slo_cost__isnull=True) | models.Q(cpu_hour_price__isnull=False),
                name="load_test_cost_has_price",
            ),
            models.CheckConstraint(
                condition=models.Q(finished_at__isnull=True) | (models.Q(capacity__isnull=False) & ~models.Q(host="")),
                name="load_test_finished_has_figures",
            ),
        )

    def __str__(self) -> str:
        return f"{self.model_version} under load"

    def get_absolute_url(self) -> str:
        """Its page."""
        return reverse("evaluation:load-test-detail", args=[self.pk])

    @property
    def rows(self) -> str:
        """Where the rows came from, for people."""
        return str(self.dataset_version) if self.dataset_version is not None else "made-up rows"
