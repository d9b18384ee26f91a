"""Model cards over REST. A review takes a person in the console, so there is no route for one."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db.models import QuerySet
from django.shortcuts import get_object_or_404
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.api import NewestFirstPagination, TeamViewSet
from apps.core.errors import DomainError
from apps.registry import card_services
from apps.registry.cards import completeness
from apps.registry.models import CardRevision, ModelVersion


class CardRevisionSerializer(serializers.ModelSerializer[CardRevision]):
    """A revision of a model card; ``sections``, ``based_on`` and ``summary`` are what a new one sends."""

    sections = serializers.DictField(child=serializers.CharField(allow_blank=True, trim_whitespace=False))
    based_on = serializers.IntegerField(min_value=0, max_value=2**31 - 1, write_only=True)
    missing = serializers.SerializerMethodField()

    class Meta:
        model = CardRevision
        fields = (
            "number",
            "state",
            "sections",
            "missing",
            "sha256",
            "summary",
            "author_name",
            "saved_at",
            "reviewer_name",
            "review_comment",
            "reviewed_at",
            "based_on",
        )
        read_only_fields = (
            "number",
            "state",
            "sha256",
            "author_name",
            "saved_at",
            "reviewer_name",
            "review_comment",
            "reviewed_at",
        )

    def get_missing(self, revision: CardRevision) -> list[str]:
        """Titles of required sections that say nothing yet."""
        return list(completeness(revision.sections).missing)


class CardRevisionPagination(NewestFirstPagination):
    """Few to a page, because a card is long."""

    page_size = 10
    max_page_size = 20


class CardRevisionViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, TeamViewSet):
    """The revisions of a version's model card, newest first; POST the next one."""

    queryset = CardRevision.objects.with_version()
    serializer_class = CardRevisionSerializer
    pagination_class = CardRevisionPagination
    lookup_field = "number"
    lookup_value_regex = "[0-9]{1,9}"
    permissions: ClassVar[dict[str, str]] = {
        "list": "team.view",
        "retrieve": "team.view",
        "create": "registry.upload",
        "submit": "registry.upload",
    }

    def get_queryset(self) -> QuerySet[Any]:
        """Revisions of the version in the URL."""
        revisions = super().get_queryset().filter(model_version__model__name=self.kwargs.get("model_name"))
        return revisions.filter(model_version__number=self.kwargs.get("version_number"))

    def list(self, request: Request, model_name: str, version_number: str) -> Response:
        """All revisions; 404 if there is no such version."""
        self._version()
        return super().list(request)

    def create(self, request: Request, model_name: str, version_number: str) -> Response:
        """Save the next revision; 409 if somebody was faster."""
        version = self._version()
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        try:
            revision = card_services.save_card(request.actor, model_version=version, **serializer.validated_data)
        except DomainError as error:
            error.field = f"sections/{error.field}" if error.field and error.field != "sections" else error.field
            raise
        return Response(self.get_serializer(revision).data, status=status.HTTP_201_CREATED)

    @action(detail=True, methods=["post"])
    def submit(self, request: Request, model_name: str, version_number: str, number: str) -> Response:
        """Ask for a review; the revision has to be the newest, and complete."""
        revision = card_services.request_card_review(request.actor, revision=self.get_object())
        return Response(self.get_serializer(revision).data)

    def _version(self) -> ModelVersion:
        versions = ModelVersion.objects.for_team(self.request.team)
        kwargs = self.kwargs
        version: ModelVersion = get_object_or_404(
            versions, model__name=kwargs["model_name"], number=kwargs["version_number"]
        )
        return version
