"""Endpoints over REST."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db.models import Prefetch
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import ViewSet

from apps.accounts.models import slug_validator
from apps.core.api import TeamViewSet
from apps.core.errors import DomainError
from apps.deployments import configuration, services
from apps.deployments.models import MAX_REDACTED, PRODUCTION, Deployment, Endpoint, Guardrail, GuardrailAction
from apps.deployments.observed import Fleet, observe
from apps.deployments.traffic import Split
from apps.registry.models import ModelVersion


class DeploymentSerializer(serializers.ModelSerializer[Deployment]):
    """A version's time on an endpoint."""

    model = serializers.CharField(source="model_version.model.name", read_only=True)
    model_version = serializers.IntegerField(source="model_version.number", read_only=True)

    class Meta:
        model = Deployment
        fields = (
            "id",
            "model",
            "model_version",
            "role",
            "weight",
            "promotion_request_id",
            "is_rollback",
            "activated_by",
            "activated_at",
            "retired_at",
        )


class EndpointSerializer(serializers.ModelSerializer[Endpoint]):
    """An endpoint: what should serve (``desired``) and what the replicas report (``observed``)."""

    name = serializers.CharField(max_length=63, validators=[slug_validator])
    environment = serializers.CharField(max_length=63, validators=[slug_validator], default=PRODUCTION)
    desired = serializers.SerializerMethodField()
    observed = serializers.SerializerMethodField()

    class Meta:
        model = Endpoint
        fields = ("name", "description", "environment", "is_protected", "created_at", "desired", "observed")
        read_only_fields = ("is_protected", "created_at")

    def get_desired(self, endpoint: Endpoint) -> dict[str, Any] | None:
        """The champion."""
        champion = next(iter(endpoint.champions), None)
        return dict(DeploymentSerializer(champion).data) if champion else None

    def get_observed(self, endpoint: Endpoint) -> dict[str, Any]:
        """State over all live replicas."""
        seen = observe(next(iter(endpoint.champions), None), self.context["fleet"])
        return {
            "state": seen.state,
            "detail": seen.sentence,
            "desired_generation": seen.desired_generation,
            "replicas": [
                {"replica_id": replica.replica_id, "generation": replica.generation, "seen_at": replica.seen_at}
                for replica in seen.replicas
            ],
        }


class RollbackSerializer(serializers.Serializer[Any]):
    """The champion, or the whole split, that the caller means to roll back from."""

    deployment_id = serializers.IntegerField(min_value=1, required=False)
    split = serializers.CharField(max_length=200, required=False)


class SplitSerializer(serializers.Serializer[Split]):
    """Who answers with which share, and who only gets copies. ``split`` names the state that a change starts from."""

    split = serializers.CharField(source="state", read_only=True)
    answering = DeploymentSerializer(many=True, read_only=True)
    shadows = DeploymentSerializer(many=True, read_only=True)


class NewSplitSerializer(serializers.Serializer[Any]):
    """Shares in per cent by deployment id; ``split`` is the state that the caller saw, if it matters."""

    weights = serializers.DictField(child=serializers.IntegerField(min_value=0, max_value=100))
    split = serializers.CharField(max_length=200, required=False)

    def validate_weights(self, weights: dict[str, int]) -> dict[int, int]:
        """The keys as numbers."""
        if any(not (key.isascii() and key.isdecimal() and len(key) <= 18) for key in weights):
            raise serializers.ValidationError("The keys are deployment ids.")
        return {int(key): weight for key, weight in weights.items()}


class NewShadowSerializer(serializers.Serializer[Any]):
    """The version to send copies to."""

    model = serializers.CharField(max_length=63)
    model_version = serializers.IntegerField(min_value=1, max_value=2**31 - 1)


class SettingsSerializer(serializers.ModelSerializer[Endpoint]):
    """How an endpoint's requests are shared out, bounded and logged."""

    redacted = serializers.ListField(child=serializers.CharField(max_length=200), max_length=MAX_REDACTED)

    class Meta:
        model = Endpoint
        fields = configuration.SETTINGS


class GuardrailSerializer(serializers.ModelSerializer[Guardrail]):
    """A rule: what must hold for each row, and what happens where it does not."""

    name = serializers.CharField(max_length=63, validators=[slug_validator])
    action = serializers.ChoiceField(GuardrailAction.choices, default=GuardrailAction.FLAG)
    fallback = serializers.DictField(allow_null=True, default=None)

    class Meta:
        model = Guardrail
        fields = ("name", "requires", "action", "fallback")


class EndpointViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, TeamViewSet):
    """The team's endpoints."""

    queryset = Endpoint.objects.select_related("team").prefetch_related(
        Prefetch(
            "deployments",
            Deployment.objects.active().champions().select_related("model_version__model"),
            to_attr="champions",
        )
    )
    serializer_class = EndpointSerializer
    lookup_field = "name"
    permissions: ClassVar[dict[str, str]] = {
        "list": "team.view",
        "retrieve": "team.view",
        "create": "deployments.operate",
        "deployments": "team.view",
        "rollback": "deployments.operate",
        "traffic": "team.view",
        "change_traffic": "deployments.operate",
        "add_shadow": "deployments.operate",
        "remove_shadow": "deployments.operate",
        "endpoint_settings": "team.view",
        "change_settings": "deployments.operate",
    }

    def get_serializer_context(self) -> dict[str, Any]:
        """The replicas, read once however many endpoints there are."""
        return {**super().get_serializer_context(), "fleet": Fleet.read()}

    def create(self, request: Request) -> Response:
        """A new endpoint."""
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        endpoint = services.create_endpoint(request.actor, team=request.team, **serializer.validated_data)
        made = self.get_queryset().get(pk=endpoint.pk)
        return Response(self.get_serializer(made).data, status=status.HTTP_201_CREATED)

    @action(detail=True)
    def deployments(self, request: Request, name: str) -> Response:
        """The endpoint's deployments, newest first."""
        rows = self.get_object().deployments.select_related("model_version__model")
        page = self.paginate_queryset(rows)
        return self.get_paginated_response(DeploymentSerializer(page, many=True).data)

    @action(detail=True, methods=["post"])
    def rollback(self, request: Request, name: str) -> Response:
        """One step back: canaries are taken out; without any, the previous version answers again."""
        serializer = RollbackSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        deployment = services.roll_back(
            request.actor,
            endpoint=self.get_object(),
            expected_deployment_id=serializer.validated_data.get("deployment_id"),
            expected_split=serializer.validated_data.get("split"),
        )
        return Response(DeploymentSerializer(deployment).data)

    @extend_schema(responses=SplitSerializer)
    @action(detail=True)
    def traffic(self, request: Request, name: str) -> Response:
        """Who answers with which share, and who only gets copies."""
        return Response(SplitSerializer(Split.of(self.get_object())).data)

    @extend_schema(request=NewSplitSerializer, responses=SplitSerializer)
    @traffic.mapping.put
    def change_traffic(self, request: Request, name: str) -> Response:
        """Other shares. 0 takes a canary out, 100 makes one the champion."""
        endpoint = self.get_object()
        serializer = NewSplitSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        wanted = serializer.validated_data
        split = services.change_split(
            request.actor, endpoint=endpoint, weights=wanted["weights"], expected_split=wanted.get("split")
        )
        return Response(SplitSerializer(split).data)

    @extend_schema(request=NewShadowSerializer, responses={201: DeploymentSerializer})
    @action(detail=True, methods=["post"], url_path="shadows", url_name="shadow-list")
    def add_shadow(self, request: Request, name: str) -> Response:
        """Send a version copies of the requests."""
        endpoint = self.get_object()
        serializer = NewShadowSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        wanted = serializer.validated_data
        versions = ModelVersion.objects.for_team(request.team).select_related("model", "artifact")
        version = versions.filter(model__name=wanted["model"], number=wanted["model_version"]).first()
        if version is None:
            raise DomainError("There is no such model version in your team.", field="model_version")
        shadow = services.add_shadow(request.actor, endpoint=endpoint, model_version=version)
        return Response(DeploymentSerializer(shadow).data, status=status.HTTP_201_CREATED)

    @extend_schema(responses={204: None})
    @action(
        detail=True, methods=["delete"], url_path="shadows/(?P<deployment_id>[0-9]{1,18})", url_name="shadow-detail"
    )
    def remove_shadow(self, request: Request, name: str, deployment_id: str) -> Response:
        """Send a version no more copies."""
        services.remove_shadow(request.actor, endpoint=self.get_object(), deployment_id=int(deployment_id))
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(responses=SettingsSerializer)
    @action(detail=True, url_path="settings", url_name="settings")
    def endpoint_settings(self, request: Request, name: str) -> Response:
        """The sticky key, limits and log of the endpoint."""
        return Response(SettingsSerializer(self.get_object()).data)

    @extend_schema(request=SettingsSerializer, responses=SettingsSerializer)
    @endpoint_settings.mapping.patch
    def change_settings(self, request: Request, name: str) -> Response:
        """Change what is given."""
        endpoint = self.get_object()
        serializer = SettingsSerializer(endpoint, data=request.data, partial=True)
        serializer.is_valid(raise_exception=True)
        changed = configuration.change_settings(
            request.actor, endpoint=endpoint, changes=dict(serializer.validated_data)
        )
        return Response(SettingsSerializer(changed).data)


class GuardrailViewSet(ViewSet):
    """The guardrails of one endpoint, in the order in which they are checked."""

    lookup_field = "rule"
    lookup_value_regex = r"[^/\x00]+"
    permissions: ClassVar[dict[str, str]] = {
        "list": "team.view",
        "create": "deployments.operate",
        "update": "deployments.operate",
        "destroy": "deployments.operate",
    }

    @extend_schema(responses=GuardrailSerializer(many=True))
    def list(self, request: Request, endpoint_name: str) -> Response:
        """All of them: there are at most 50."""
        return Response(GuardrailSerializer(self._endpoint().guardrails.all(), many=True).data)

    @extend_schema(request=GuardrailSerializer, responses={201: GuardrailSerializer})
    def create(self, request: Request, endpoint_name: str) -> Response:
        """A new rule; every version that answers must fit it."""
        endpoint = self._endpoint()
        serializer = GuardrailSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        rule = configuration.add_guardrail(request.actor, endpoint=endpoint, **serializer.validated_data)
        return Response(GuardrailSerializer(rule).data, status=status.HTTP_201_CREATED)

    @extend_schema(request=GuardrailSerializer, responses=GuardrailSerializer)
    def update(self, request: Request, endpoint_name: str, rule: str) -> Response:
        """Say something else in a rule."""
        guardrail = get_object_or_404(self._endpoint().guardrails, name=rule)
        serializer = GuardrailSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        changed = configuration.change_guardrail(request.actor, guardrail=guardrail, **serializer.validated_data)
        return Response(GuardrailSerializer(changed).data)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, endpoint_name: str, rule: str) -> Response:
        """Check a rule no more."""
        guardrail = get_object_or_404(self._endpoint().guardrails, name=rule)
        configuration.remove_guardrail(request.actor, guardrail=guardrail)
        return Response(status=status.HTTP_204_NO_CONTENT)

    def _endpoint(self) -> Endpoint:
        endpoints = Endpoint.objects.for_team(self.request.team)
        endpoint: Endpoint = get_object_or_404(endpoints, name=self.kwargs["endpoint_name"])
        return endpoint
