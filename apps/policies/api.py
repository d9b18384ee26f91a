"""Policies and risk assessments over REST. Proposing and confirming take a person in the console."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.api import TeamViewSet
from apps.policies.documents import Tier
from apps.policies.models import PolicyVersion, RiskAssessment
from apps.policies.services import assess_risk
from apps.registry.models import RegisteredModel


class PolicyVersionSerializer(serializers.ModelSerializer[PolicyVersion]):
    """A version of a policy with its whole document."""

    environment = serializers.CharField(source="policy.environment", read_only=True)
    tier = serializers.CharField(source="policy.tier", read_only=True)
    state = serializers.CharField(read_only=True)
    document = serializers.JSONField(source="body", read_only=True)
    proposed_by = serializers.CharField(source="proposed_by.name", default=None, read_only=True)
    decided_by = serializers.CharField(source="decided_by.name", default=None, read_only=True)

    class Meta:
        model = PolicyVersion
        fields = (
            "id",
            "environment",
            "tier",
            "number",
            "state",
            "document",
            "digest",
            "reason",
            "proposed_by",
            "proposed_at",
            "decided_by",
            "decided_at",
        )


class PolicyVersionViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, TeamViewSet):
    """Versions of the team's policies, newest first; those in force have the state ``IN_FORCE``.

    An environment and tier that are not here have the built-in policy, which is written down with the first request.
    """

    queryset = PolicyVersion.objects.with_names()
    serializer_class = PolicyVersionSerializer
    lookup_value_regex = "[0-9]{1,18}"
    permissions: ClassVar[dict[str, str]] = {"list": "team.view", "retrieve": "team.view"}


class RiskAssessmentSerializer(serializers.ModelSerializer[RiskAssessment]):
    """An assessment: the answers, the tier that they give, and a higher one with its reason."""

    answers = serializers.DictField(child=serializers.CharField(max_length=20))
    tier = serializers.ChoiceField(choices=[tier.value for tier in Tier], required=False)
    assessed_by = serializers.CharField(source="assessed_by.name", read_only=True)

    class Meta:
        model = RiskAssessment
        fields = (
            "number",
            "answers",
            "reasons",
            "computed_tier",
            "tier",
            "override_reason",
            "assessed_by",
            "assessed_at",
        )
        read_only_fields = ("number", "reasons", "computed_tier", "assessed_at")


class RiskAssessmentViewSet(mixins.ListModelMixin, TeamViewSet):
    """The risk assessments of a model, newest first; POST the answers to assess it again."""

    queryset = RiskAssessment.objects.select_related("assessed_by")
    serializer_class = RiskAssessmentSerializer
    permissions: ClassVar[dict[str, str]] = {"list": "team.view", "create": "policies.assess"}

    def get_queryset(self) -> QuerySet[Any]:
        """Assessments of the model in the URL."""
        return super().get_queryset().filter(model__name=self.kwargs.get("model_name"))

    def list(self, request: Request, model_name: str) -> Response:
        """All assessments; 404 if there is no such model."""
        self._model()
        return super().list(request)

    @extend_schema(responses={201: RiskAssessmentSerializer})
    def create(self, request: Request, model_name: str) -> Response:
        """Assess a model; the tier follows from the answers."""
        model = self._model()
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        asked = serializer.validated_data
        assessment = assess_risk(
            request.actor,
            model=model,
            answers=asked["answers"],
            tier=Tier(asked["tier"]) if "tier" in asked else None,
            override_reason=asked.get("override_reason", ""),
        )
        return Response(self.get_serializer(assessment).data, status=status.HTTP_201_CREATED)

    def _model(self) -> RegisteredModel:
        models = RegisteredModel.objects.for_team(self.request.team)
        model: RegisteredModel = get_object_or_404(models, name=self.kwargs["model_name"])
        return model
