"""Datasets, evaluations and load tests over REST."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from rest_framework import mixins, parsers, serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from apps.accounts.models import slug_validator
from apps.core.api import TeamViewSet
from apps.core.errors import DomainError
from apps.evaluation import services
from apps.evaluation.load_results import Objective
from apps.evaluation.models import Arrivals, Dataset, DatasetVersion, EvaluationRun, LoadTest, MetricValue
from apps.registry.models import ModelVersion


class DatasetSerializer(serializers.ModelSerializer[Dataset]):
    """A dataset."""

    name = serializers.CharField(max_length=63, validators=[slug_validator])
    created_by = serializers.CharField(source="created_by.name", read_only=True)

    class Meta:
        model = Dataset
        fields = ("name", "description", "created_by", "created_at")
        read_only_fields = ("created_at",)


class DatasetViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, TeamViewSet):
    """The team's datasets."""

    queryset = Dataset.objects.select_related("created_by")
    serializer_class = DatasetSerializer
    lookup_field = "name"
    permissions: ClassVar[dict[str, str]] = {"list": "team.view", "retrieve": "team.view", "create": "registry.upload"}

    def create(self, request: Request) -> Response:
        """A new dataset; its versions are uploaded to it."""
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        dataset = services.create_dataset(request.actor, team=request.team, **serializer.validated_data)
        return Response(self.get_serializer(dataset).data, status=status.HTTP_201_CREATED)


class DatasetVersionSerializer(serializers.ModelSerializer[DatasetVersion]):
    """A dataset version without its profile. ``file`` is what an upload sends."""

    dataset = serializers.CharField(source="dataset.name", read_only=True)
    uploaded_by = serializers.CharField(source="uploaded_by.name", read_only=True)
    schema = serializers.JSONField(read_only=True)
    file = serializers.FileField(write_only=True)

    class Meta:
        model = DatasetVersion
        fields: tuple[str, ...] = (
            "dataset",
            "number",
            "state",
            "rejected_reason",
            "sha256",
            "stored_sha256",
            "size_bytes",
            "file_name",
            "row_count",
            "schema",
            "uploaded_by",
            "uploaded_at",
            "job",
            "file",
        )
        read_only_fields = (
            "number",
            "state",
            "rejected_reason",
            "sha256",
            "stored_sha256",
            "size_bytes",
            "file_name",
            "row_count",
            "uploaded_at",
            "job",
        )


class DatasetVersionDetailSerializer(DatasetVersionSerializer):
    """A dataset version with what is known of each column."""

    profile = serializers.JSONField(read_only=True)

    class Meta(DatasetVersionSerializer.Meta):
        fields = (*DatasetVersionSerializer.Meta.fields, "profile")


class DatasetVersionViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, TeamViewSet):
    """The versions of a dataset, newest first; POST a multipart ``file`` to upload one."""

    queryset = DatasetVersion.objects.select_related("dataset", "uploaded_by")
    serializer_class = DatasetVersionSerializer
    parser_classes = (parsers.MultiPartParser,)
    lookup_field = "number"
    lookup_value_regex = "[0-9]{1,9}"
    permissions: ClassVar[dict[str, str]] = {"list": "team.view", "retrieve": "team.view", "create": "registry.upload"}

    def get_queryset(self) -> QuerySet[Any]:
        """Versions of the dataset in the URL; lists come without the profiles."""
        versions = super().get_queryset().filter(dataset__name=self.kwargs.get("dataset_name"))
        return versions.defer("profile") if self.action == "list" else versions

    def get_serializer_class(self) -> type[DatasetVersionSerializer]:
        """With the profile for a single version."""
        return DatasetVersionDetailSerializer if self.action == "retrieve" else DatasetVersionSerializer

    def list(self, request: Request, dataset_name: str) -> Response:
        """All versions; 404 if there is no such dataset."""
        self._dataset()
        return super().list(request)

    def create(self, request: Request, dataset_name: str) -> Response:
        """Upload a version; the job in the answer reads it. The same bytes again are refused with 409."""
        dataset = self._dataset()
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        file = serializer.validated_data["file"]
        version = services.upload_dataset_version(request.actor, dataset=dataset, file=file)
        location = {"Location": f"{request.path}{version.number}/"}
        return Response(self.get_serializer(version).data, status=status.HTTP_201_CREATED, headers=location)

    def _dataset(self) -> Dataset:
        datasets = Dataset.objects.for_team(self.request.team)
        dataset: Dataset = get_object_or_404(datasets, name=self.kwargs["dataset_name"])
        return dataset


class MetricSerializer(serializers.ModelSerializer[MetricValue]):
    """A metric with its 95 % interval."""

    class Meta:
        model = MetricValue
        fields = ("name", "value", "ci_low", "ci_high", "note")


class EvaluationRunSerializer(serializers.ModelSerializer[EvaluationRun]):
    """A run with its metrics, without its curves."""

    model = serializers.CharField(source="model_version.model.name", read_only=True)
    model_version = serializers.IntegerField(source="model_version.number", read_only=True)
    dataset = serializers.CharField(source="dataset_version.dataset.name", read_only=True)
    dataset_version = serializers.IntegerField(source="dataset_version.number", read_only=True)
    dataset_digest = serializers.CharField(source="dataset_version.sha256", read_only=True)
    state = serializers.CharField(read_only=True)
    failure = serializers.CharField(read_only=True)
    metrics = MetricSerializer(many=True, read_only=True)
    requested_by = serializers.CharField(source="requested_by.name", read_only=True)

    class Meta:
        model = EvaluationRun
        fields: tuple[str, ...] = (
            "id",
            "model",
            "model_version",
            "dataset",
            "dataset_version",
            "dataset_digest",
            "target",
            "features",
            "state",
            "failure",
            "row_count",
            "metrics",
            "requested_by",
            "requested_at",
            "finished_at",
            "job",
        )


class EvaluationRunDetailSerializer(EvaluationRunSerializer):
    """A run with its curves."""

    result = serializers.JSONField(read_only=True)

    class Meta(EvaluationRunSerializer.Meta):
        fields = (*EvaluationRunSerializer.Meta.fields, "slice_by", "slices", "drift", "result")


class EvaluationRequestSerializer(serializers.Serializer[Any]):
    """What to evaluate on what. Without ``features``: all columns beside the target, in the dataset's order."""

    model = serializers.CharField(max_length=63)
    model_version = serializers.IntegerField(min_value=1, max_value=2**31 - 1)
    dataset = serializers.CharField(max_length=63)
    dataset_version = serializers.IntegerField(min_value=1, max_value=2**31 - 1)
    target = serializers.CharField(max_length=200, trim_whitespace=False)
    features = serializers.ListField(
        child=serializers.CharField(max_length=200, trim_whitespace=False), required=False, max_length=2_000
    )
    slice_by = serializers.CharField(max_length=200, trim_whitespace=False, required=False, allow_blank=True)
    reference = serializers.CharField(max_length=63, required=False, help_text="A dataset; its newest ready version.")


class EvaluationRunViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, TeamViewSet):
    """Evaluation runs, newest first; ``?model=`` and ``?model_version=`` narrow the list."""

    queryset = EvaluationRun.objects.all()
    serializer_class = EvaluationRunSerializer
    lookup_value_regex = "[0-9]{1,18}"
    permissions: ClassVar[dict[str, str]] = {"list": "team.view", "retrieve": "team.view", "create": "evaluation.run"}

    def get_queryset(self) -> QuerySet[Any]:
        """Runs with everything that their serializer reads, in a fixed number of queries."""
        runs: Any = super().get_queryset()
        if self.action == "retrieve":
            return runs.with_facts()  # type: ignore[no-any-return]
        return _of_version(runs, self.request).with_names()  # type: ignore[no-any-return]

    def get_serializer_class(self) -> type[serializers.BaseSerializer[Any]]:
        """With the curves for a single run."""
        if self.action == "create":
            return EvaluationRequestSerializer
        return EvaluationRunDetailSerializer if self.action == "retrieve" else EvaluationRunSerializer

    def create(self, request: Request) -> Response:
        """Start an evaluation; 422 when the dataset does not fit the model."""
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        asked = serializer.validated_data
        model_versions = ModelVersion.objects.for_team(request.team).with_facts()
        dataset_versions = DatasetVersion.objects.for_team(request.team).select_related("dataset")
        run = services.start_evaluation(
            request.actor,
            model_version=get_object_or_404(model_versions, model__name=asked["model"], number=asked["model_version"]),
            dataset_version=get_object_or_404(
                dataset_versions, dataset__name=asked["dataset"], number=asked["dataset_version"]
            ),
            target=asked["target"],
            features=asked.get("features") or None,
            slice_by=asked.get("slice_by", ""),
            reference=_reference(dataset_versions, asked.get("reference")),
        )
        location = {"Location": f"{request.path}{run.pk}/"}
        return Response(EvaluationRunSerializer(run).data, status=status.HTTP_201_CREATED, headers=location)


def _reference(versions: Any, name: str | None) -> DatasetVersion | None:
    """The newest ready version of the dataset of this name; None without a name."""
    if not name:
        return None
    found: DatasetVersion | None = versions.ready().filter(dataset__name=name).order_by("-number").first()
    if found is None:
        raise DomainError("There is no dataset of this name that is ready.", field="reference")
    return found


class LoadTestSerializer(serializers.ModelSerializer[LoadTest]):
    """A load test with its figures, without its steps."""

    model = serializers.CharField(source="model_version.model.name", read_only=True)
    model_version = serializers.IntegerField(source="model_version.number", read_only=True)
    dataset = serializers.CharField(source="dataset_version.dataset.name", default=None, read_only=True)
    dataset_version = serializers.IntegerField(source="dataset_version.number", default=None, read_only=True)
    state = serializers.CharField(read_only=True)
    failure = serializers.CharField(read_only=True)
    requested_by = serializers.CharField(source="requested_by.name", read_only=True)

    class Meta:
        model = LoadTest
        fields: tuple[str, ...] = (
            "id",
            "model",
            "model_version",
            "dataset",
            "dataset_version",
            "features",
            "step_s",
            "max_concurrency",
            "arrivals",
            "cpu_hour_price",
            "slo_rate",
            "slo_p99_ms",
            "slo_cost",
            "state",
            "failure",
            "host",
            "capacity",
            "knee_concurrency",
            "knee_throughput",
            "knee_p99_ms",
            "cpu_s_per_thousand",
            "cost_per_thousand",
            "peak_rss_bytes",
            "is_slo_met",
            "requested_by",
            "requested_at",
            "finished_at",
            "job",
        )


class LoadTestDetailSerializer(LoadTestSerializer):
    """A load test with every step, the host and a line for each demand of its objective."""

    result = serializers.JSONField(read_only=True)

    class Meta(LoadTestSerializer.Meta):
        fields = (*LoadTestSerializer.Meta.fields, "result")


class LoadTestRequestSerializer(serializers.Serializer[Any]):
    """What to drive and how. Without ``dataset``: made-up rows. The objective (``slo_…``) is optional.

    Without ``features``: the columns of the last evaluation on the dataset, else all, else all but the last.
    """

    model = serializers.CharField(max_length=63)
    model_version = serializers.IntegerField(min_value=1, max_value=2**31 - 1)
    dataset = serializers.CharField(max_length=63, required=False)
    dataset_version = serializers.IntegerField(min_value=1, max_value=2**31 - 1, required=False)
    features = serializers.ListField(
        child=serializers.CharField(max_length=200, trim_whitespace=False), required=False, max_length=2_000
    )
    step_s = serializers.IntegerField(min_value=1, max_value=services.MAX_STEP_S, default=5)
    max_concurrency = serializers.IntegerField(min_value=1, max_value=services.MAX_CONCURRENCY, default=64)
    arrivals = serializers.ChoiceField(choices=Arrivals.choices, default=Arrivals.POISSON)
    cpu_hour_price = serializers.FloatField(required=False, allow_null=True, default=None)
    slo_rate = serializers.FloatField(required=False, allow_null=True, default=None)
    slo_p99_ms = serializers.FloatField(required=False, allow_null=True, default=None)
    slo_cost = serializers.FloatField(required=False, allow_null=True, default=None)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Dataset and version come together."""
        if ("dataset" in attrs) != ("dataset_version" in attrs):
            raise serializers.ValidationError({"dataset_version": "Name both the dataset and its version, or neither."})
        return attrs


class LoadTestViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, TeamViewSet):
    """Load tests, newest first; ``?model=`` and ``?model_version=`` narrow the list."""

    queryset = LoadTest.objects.all()
    serializer_class = LoadTestSerializer
    lookup_value_regex = "[0-9]{1,18}"
    permissions: ClassVar[dict[str, str]] = {"list": "team.view", "retrieve": "team.view", "create": "evaluation.run"}

    def get_queryset(self) -> QuerySet[Any]:
        """Tests with everything that their serializer reads, in a fixed number of queries."""
        tests: Any = super().get_queryset()
        if self.action == "retrieve":
            return tests.with_facts()  # type: ignore[no-any-return]
        return _of_version(tests, self.request).with_names()  # type: ignore[no-any-return]

    def get_serializer_class(self) -> type[serializers.BaseSerializer[Any]]:
        """With the steps for a single test."""
        if self.action == "create":
            return LoadTestRequestSerializer
        return LoadTestDetailSerializer if self.action == "retrieve" else LoadTestSerializer

    def create(self, request: Request) -> Response:
        """Start a load test; 422 when the dataset does not fit the model or the objective is not whole."""
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        asked = serializer.validated_data
        model_versions = ModelVersion.objects.for_team(request.team).with_facts()
        rows = DatasetVersion.objects.for_team(request.team).select_related("dataset")
        dataset = {"dataset__name": asked.get("dataset"), "number": asked.get("dataset_version")}
        test = services.start_load_test(
            request.actor,
            model_version=get_object_or_404(model_versions, model__name=asked["model"], number=asked["model_version"]),
            dataset_version=get_object_or_404(rows, **dataset) if "dataset" in asked else None,
            features=asked.get("features") or None,
            **{name: asked[name] for name in ("step_s", "max_concurrency", "arrivals", "cpu_hour_price")},
            objective=Objective(asked["slo_rate"], asked["slo_p99_ms"], asked["slo_cost"]),
        )
        location = {"Location": f"{request.path}{test.pk}/"}
        return Response(LoadTestSerializer(test).data, status=status.HTTP_201_CREATED, headers=location)


def _of_version(measurements: Any, request: Request) -> Any:
    """Narrowed by ``?model=`` and ``?model_version=``."""
    if model := request.query_params.get("model", ""):
        measurements = measurements.filter(model_version__model__name=model[:63].replace("\x00", ""))
    if number := request.query_params.get("model_version", ""):
        if not number.isdecimal() or len(number) > 9:
            raise DomainError("“model_version” is the number of a version.", field="model_version")
        measurements = measurements.filter(model_version__number=int(number))
    return measurements
