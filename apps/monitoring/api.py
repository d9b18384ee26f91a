"""The inference log over REST: read only."""

from __future__ import annotations

from typing import ClassVar

from django.shortcuts import get_object_or_404
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import ViewSet

from apps.deployments.models import Endpoint


class PredictionViewSet(ViewSet):
    """Predictions of one endpoint, newest first."""

    lookup_field = "request_id"
    lookup_value_regex = "[^/]+"
    permissions: ClassVar[dict[str, str]] = {"list": "team.view", "retrieve": "team.view"}

    def list(self, request: Request, endpoint_name: str) -> Response:
        """A page of predictions."""
        get_object_or_404(Endpoint.objects.for_team(request.team), name=endpoint_name)
        return Response({"results": []})

    def retrieve(self, request: Request, endpoint_name: str, request_id: str) -> Response:
        """The predictions of one request."""
        get_object_or_404(Endpoint.objects.for_team(request.team), name=endpoint_name)
        return Response({"results": []})
