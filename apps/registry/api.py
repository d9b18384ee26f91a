"""Models and versions over REST."""

from __future__ import annotations

from typing import Any, ClassVar

from django.core.files.storage import default_storage
from django.db.models import QuerySet
from django.http import FileResponse
from django.shortcuts import get_object_or_404
from rest_framework import mixins, parsers, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from apps.accounts.models import slug_validator
from apps.core.api import TeamViewSet
from apps.registry import services
from apps.registry.artifact_signing import signature_document
from apps.registry.models import Alias, ModelVersion, RegisteredModel


class RegisteredModelSerializer(serializers.ModelSerializer[RegisteredModel]):
    """A registered model."""

    name = serializers.CharField(max_length=63, validators=[slug_validator])
    created_by = serializers.CharField(source="created_by.name", read_only=True)
    aliases = serializers.SerializerMethodField()

    class Meta:
        model = RegisteredModel
        fields = ("name", "task", "description", "aliases", "created_by", "created_at")
        read_only_fields = ("created_at",)

    def get_aliases(self, model: RegisteredModel) -> dict[str, int]:
        """Alias -> version number."""
        return {alias.name: alias.model_version.number for alias in model.aliases.all()}


class RegisteredModelViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, TeamViewSet):
    """The team's models."""

    queryset = RegisteredModel.objects.select_related("created_by").prefetch_related("aliases__model_version")
    serializer_class = RegisteredModelSerializer
    lookup_field = "name"
    permissions: ClassVar[dict[str, str]] = {"list": "team.view", "retrieve": "team.view", "create": "registry.upload"}

    def create(self, request: Request) -> Response:
        """Register a model."""
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        model = services.register_model(request.actor, team=request.team, **serializer.validated_data)
        return Response(self.get_serializer(model).data, status=status.HTTP_201_CREATED)


class ModelVersionSerializer(serializers.ModelSerializer[ModelVersion]):
    """A version. ``file``, ``notes``, ``trained_by`` and ``training_data`` are what an upload sends."""

    model = serializers.CharField(source="model.name", read_only=True)
    sha256 = serializers.CharField(source="artifact.sha256", read_only=True)
    size_bytes = serializers.IntegerField(source="artifact.size_bytes", read_only=True)
    uploaded_by = serializers.CharField(source="uploaded_by.name", read_only=True)
    aliases: serializers.SlugRelatedField[Alias] = serializers.SlugRelatedField("name", many=True, read_only=True)
    file = serializers.FileField(write_only=True)
    signature_bundle = serializers.FileField(write_only=True, required=False)
    artifact_signatures = serializers.SerializerMethodField()
    trained_by = serializers.EmailField(write_only=True, required=False, allow_blank=True, max_length=254)
    training_data = serializers.CharField(write_only=True, required=False, allow_blank=True, max_length=20_000)

    class Meta:
        model = ModelVersion
        fields = (
            "model",
            "number",
            "state",
            "rejected_reason",
            "sha256",
            "size_bytes",
            "signature",
            "opset",
            "producer",
            "node_count",
            "warmup_ms",
            "validation",
            "aliases",
            "file_name",
            "notes",
            "trained_by",
            "training_data",
            "uploaded_by",
            "uploaded_at",
            "job",
            "artifact_signatures",
            "file",
            "signature_bundle",
        )
        read_only_fields = (
            "number",
            "state",
            "rejected_reason",
            "signature",
            "opset",
            "producer",
            "node_count",
            "warmup_ms",
            "validation",
            "file_name",
            "uploaded_at",
            "job",
        )

    def get_artifact_signatures(self, version: ModelVersion) -> list[dict[str, Any]]:
        """OpenSSF model signatures over the artifact."""
        return [signature_document(signature) for signature in version.signatures.all()]

    def to_representation(self, instance: ModelVersion) -> dict[str, Any]:
        """With the trainer's name and the list of files, which are sent as an email and as lines."""
        trainer = instance.trained_by.name if instance.trained_by else None
        return super().to_representation(instance) | {
            "trained_by": trainer,
            "training_data": instance.training_data,
        }


class AliasSerializer(serializers.ModelSerializer[Alias]):
    """An alias to set."""

    name = serializers.CharField(max_length=63, validators=[slug_validator])

    class Meta:
        model = Alias
        fields = ("name",)


class ModelVersionViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, TeamViewSet):
    """The versions of a model, newest first; POST a multipart ``file`` to push one."""

    queryset = ModelVersion.objects.with_facts().prefetch_related("aliases", "signatures")
    serializer_class = ModelVersionSerializer
    parser_classes = (parsers.MultiPartParser, parsers.JSONParser)
    lookup_field = "number"
    lookup_value_regex = "[0-9]{1,9}"
    permissions: ClassVar[dict[str, str]] = {
        "list": "team.view",
        "retrieve": "team.view",
        "create": "registry.upload",
        "artifact": "team.view",
        "alias": "registry.upload",
        "archive": "registry.upload",
    }

    def get_queryset(self) -> QuerySet[Any]:
        """Versions of the model in the URL."""
        return super().get_queryset().filter(model__name=self.kwargs.get("model_name"))

    def list(self, request: Request, model_name: str) -> Response:
        """All versions; 404 if there is no such model."""
        self._model()
        return super().list(request)

    def create(self, request: Request, model_name: str) -> Response:
        """Upload a version; its validation is the job in the answer."""
        model = self._model()
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        version = services.upload_model_version(request.actor, model=model, **serializer.validated_data)
        location = {"Location": f"{request.path}{version.number}/"}
        return Response(self.get_serializer(version).data, status=status.HTTP_201_CREATED, headers=location)

    @action(detail=True)
    def artifact(self, request: Request, model_name: str, number: str) -> FileResponse:
        """The artifact's bytes."""
        version = self.get_object()
        return FileResponse(
            default_storage.open(version.artifact.path),
            as_attachment=True,
            filename=f"{model_name}-v{version.number}.onnx",
            content_type="application/octet-stream",
        )

    @action(detail=True, methods=["post"], serializer_class=AliasSerializer)
    def alias(self, request: Request, model_name: str, number: str) -> Response:
        """Point an alias at this version."""
        version = self.get_object()
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        alias = services.set_alias(request.actor, model_version=version, name=serializer.validated_data["name"])
        return Response({"name": alias.name, "model_version": alias.model_version.number})

    @action(detail=True, methods=["post"])
    def archive(self, request: Request, model_name: str, number: str) -> Response:
        """Take this version out of use."""
        services.archive_version(request.actor, model_version=self.get_object())
        return Response(self.get_serializer(self.get_object()).data)

    def _model(self) -> RegisteredModel:
        models = RegisteredModel.objects.for_team(self.request.team)
        model: RegisteredModel = get_object_or_404(models, name=self.kwargs["model_name"])
        return model
