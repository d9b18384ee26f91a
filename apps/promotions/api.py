"""Promotion requests over REST. There is no route to approve: that takes a person in the console."""

from __future__ import annotations

from typing import Any, ClassVar

from django.shortcuts import get_object_or_404
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.api import TeamViewSet
from apps.core.errors import DomainError
from apps.deployments.models import Endpoint
from apps.promotions import services
from apps.promotions.models import PromotionRequest, Review
from apps.registry.models import ModelVersion


class ReviewSerializer(serializers.ModelSerializer[Review]):
    """A signed decision."""

    meaning = serializers.CharField(source="get_meaning_display", read_only=True)

    class Meta:
        model = Review
        fields = ("reviewer_name", "decision", "meaning", "comment", "artifact_digest", "evidence_digest", "signed_at")


class PromotionRequestSerializer(serializers.ModelSerializer[PromotionRequest]):
    """A promotion request."""

    endpoint = serializers.CharField(source="endpoint.name", read_only=True)
    model = serializers.CharField(source="model_version.model.name", read_only=True)
    model_version = serializers.IntegerField(source="model_version.number", read_only=True)
    requested_by = serializers.CharField(source="requested_by.name", read_only=True)
    reviews = ReviewSerializer(many=True, read_only=True)

    class Meta:
        model = PromotionRequest
        fields = (
            "id",
            "endpoint",
            "model",
            "model_version",
            "state",
            "rollout",
            "rollout_message",
            "initial_weight",
            "justification",
            "artifact_digest",
            "evidence_digest",
            "requested_by",
            "requested_at",
            "expires_at",
            "decided_at",
            "applied_at",
            "reviews",
        )


class PromotionRequestDetailSerializer(PromotionRequestSerializer):
    """A promotion request with its frozen evidence."""

    class Meta:
        model = PromotionRequest
        fields = (*PromotionRequestSerializer.Meta.fields, "evidence")


class NewPromotionSerializer(serializers.Serializer[Any]):
    """What to promote where, and why."""

    endpoint = serializers.CharField(max_length=63)
    model = serializers.CharField(max_length=63)
    model_version = serializers.IntegerField(min_value=1, max_value=2**31 - 1)
    justification = serializers.CharField(max_length=4_000)
    initial_weight = serializers.IntegerField(min_value=1, max_value=100, default=100)


class PromotionRequestViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, TeamViewSet):
    """The team's promotion requests, newest first."""

    queryset = PromotionRequest.objects.with_names().prefetch_related("reviews")
    lookup_value_regex = "[0-9]{1,18}"
    permissions: ClassVar[dict[str, str]] = {
        "list": "team.view",
        "retrieve": "team.view",
        "create": "promotions.request",
        "cancel": "promotions.request",
    }

    def get_serializer_class(self) -> type[serializers.BaseSerializer[Any]]:
        """The list leaves the evidence out: it may be large."""
        return PromotionRequestSerializer if self.action == "list" else PromotionRequestDetailSerializer

    def create(self, request: Request) -> Response:
        """Submit a request; the evidence is frozen now."""
        serializer = NewPromotionSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        wanted = serializer.validated_data
        endpoint = Endpoint.objects.for_team(request.team).filter(name=wanted["endpoint"]).first()
        if endpoint is None:
            raise DomainError("There is no endpoint of this name in your team.", field="endpoint")
        model_version = (
            ModelVersion.objects.for_team(request.team)
            .select_related("model", "artifact", "uploaded_by")
            .filter(model__name=wanted["model"], number=wanted["model_version"])
            .first()
        )
        if model_version is None:
            raise DomainError("There is no such model version in your team.", field="model_version")
        promotion = services.request_promotion(
            request.actor,
            team=request.team,
            model_version=model_version,
            endpoint=endpoint,
            justification=wanted["justification"],
            initial_weight=wanted["initial_weight"],
        )
        return Response(self.get_serializer(promotion).data, status=status.HTTP_201_CREATED)

    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Withdraw one's own request."""
        promotion = get_object_or_404(PromotionRequest.objects.for_team(request.team), pk=pk)
        services.cancel_promotion(request.actor, request=promotion)
        return Response(self.get_serializer(self.get_object()).data)
