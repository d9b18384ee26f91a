"""Endpoints over REST."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db.models import Prefetch
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from apps.accounts.models import slug_validator
from apps.core.api import TeamViewSet
from apps.deployments import services
from apps.deployments.models import Deployment, Endpoint
from apps.deployments.observed import Fleet, observe


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
    desired = serializers.SerializerMethodField()
    observed = serializers.SerializerMethodField()

    class Meta:
        model = Endpoint
        fields = ("name", "description", "created_at", "desired", "observed")
        read_only_fields = ("created_at",)

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
    """The champion that the caller means to roll back from."""

    deployment_id = serializers.IntegerField(min_value=1, required=False)


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
        """The previous version answers again."""
        serializer = RollbackSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        deployment = services.roll_back(
            request.actor,
            endpoint=self.get_object(),
            expected_deployment_id=serializer.validated_data.get("deployment_id"),
        )
        return Response(DeploymentSerializer(deployment).data)
