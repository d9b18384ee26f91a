"""What external checks report on a promotion request, over REST, like the statuses of a commit."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from rest_framework import mixins, serializers, status
from rest_framework.request import Request
from rest_framework.response import Response

from apps.accounts.authentication import SessionAuthentication, TokenAuthentication
from apps.core.api import TeamViewSet
from apps.core.errors import Conflict
from apps.policies.checks import record_check_result
from apps.policies.models import CheckResult
from apps.policies.signed_requests import REPORT_CHECK, CheckSignatureAuthentication
from apps.promotions.models import PromotionRequest


class CheckResultSerializer(serializers.ModelSerializer[CheckResult]):
    """A check's result on the evidence that it names."""

    check = serializers.CharField(source="key.name", read_only=True)
    evidence_digest = serializers.RegexField("^[0-9a-f]{64}$", max_length=64)
    sentence = serializers.CharField(max_length=300, help_text="One sentence for the reviewers.")
    url = serializers.URLField(max_length=500, required=False, allow_blank=True)

    class Meta:
        model = CheckResult
        fields = ("check", "evidence_digest", "is_success", "sentence", "url", "signed_at", "received_at")
        read_only_fields = ("signed_at", "received_at")


class CheckResultViewSet(mixins.ListModelMixin, TeamViewSet):
    """Results of external checks on a request; POST takes the signature of a registered check key and nothing else."""

    queryset = CheckResult.objects.select_related("key")
    serializer_class = CheckResultSerializer
    authentication_classes = (CheckSignatureAuthentication, TokenAuthentication, SessionAuthentication)
    permissions: ClassVar[dict[str, str]] = {"list": "team.view", "create": REPORT_CHECK}

    def get_queryset(self) -> QuerySet[Any]:
        """Results on the request in the URL."""
        return super().get_queryset().filter(request_id=self.kwargs.get("promotion_pk"))

    def list(self, request: Request, promotion_pk: str) -> Response:
        """All results, newest first; 404 if there is no such request."""
        self._promotion()
        return super().list(request)

    def create(self, request: Request, promotion_pk: str) -> Response:
        """Report a result on the evidence that the request has now."""
        promotion = self._promotion()
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        if not promotion.is_open:
            raise Conflict(f"Too late: this request is {promotion.get_state_display().lower()} already.")
        if serializer.validated_data["evidence_digest"] != promotion.evidence_digest:
            raise Conflict("The request has other evidence by now. Look at it again.", field="evidence_digest")
        signed: Any = request.auth  # the permission comes with no other authentication
        result = record_check_result(request.actor, signed=signed, request_id=promotion.pk, **serializer.validated_data)
        return Response(self.get_serializer(result).data, status=status.HTTP_201_CREATED)

    def _promotion(self) -> PromotionRequest:
        requests = PromotionRequest.objects.for_team(self.request.team)
        promotion: PromotionRequest = get_object_or_404(requests, pk=self.kwargs["promotion_pk"])
        return promotion
