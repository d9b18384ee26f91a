"""Model cards and evidence packs over REST. A card's review takes a person in the console: there is no route for it."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db.models import QuerySet
from django.http import FileResponse
from django.shortcuts import get_object_or_404
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.api import NewestFirstPagination, TeamViewSet
from apps.core.errors import DomainError
from apps.packs import services
from apps.packs.models import EvidencePack, PackKind
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


class EvidencePackSerializer(serializers.ModelSerializer[EvidencePack]):
    """An evidence pack; ``file`` is its address once it is built."""

    requested_by = serializers.CharField(source="requested_by.name", read_only=True)
    state = serializers.CharField(read_only=True)
    file = serializers.SerializerMethodField()

    class Meta:
        model = EvidencePack
        fields = (
            "id",
            "pack_id",
            "kind",
            "subject",
            "since",
            "until",
            "state",
            "job",
            "requested_by",
            "requested_at",
            "built_at",
            "sha256",
            "size_bytes",
            "event_count",
            "checkpoint_size",
            "file",
        )

    def get_file(self, pack: EvidencePack) -> str | None:
        """Where the ZIP is downloaded; null until it is built."""
        return f"/api/v1/evidence-packs/{pack.pk}/file/" if pack.built_at else None


class NewEvidencePackSerializer(serializers.Serializer[Any]):
    """What a pack is about: the id of a promotion, or the name of a model or of an endpoint with a period."""

    kind = serializers.ChoiceField(choices=PackKind.choices)
    subject = serializers.CharField(max_length=63)
    since = serializers.DateTimeField(required=False)
    until = serializers.DateTimeField(required=False)

    def validate(self, values: dict[str, Any]) -> dict[str, Any]:
        """A period belongs to an endpoint; a promotion is named by its number."""
        has_period = "since" in values or "until" in values
        if has_period and values["kind"] != PackKind.ENDPOINT:
            raise serializers.ValidationError({"since": "Only a pack of an endpoint has a period."})
        if values["kind"] == PackKind.PROMOTION and not (
            values["subject"].isascii() and values["subject"].isdecimal() and len(values["subject"]) < 19
        ):
            raise serializers.ValidationError({"subject": "A promotion is named by its number."})
        return values


class EvidencePackViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, TeamViewSet):
    """The team's evidence packs, newest first; POST to have one built by a job."""

    queryset = EvidencePack.objects.with_names().select_related("team")
    serializer_class = EvidencePackSerializer
    lookup_value_regex = "[0-9]{1,18}"
    permissions: ClassVar[dict[str, str]] = {
        "list": "audit.read",
        "retrieve": "audit.read",
        "create": "audit.read",
        "file": "audit.read",
    }

    def create(self, request: Request) -> Response:
        """Ask for a pack; poll it until ``file`` has an address."""
        serializer = NewEvidencePackSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        wanted = dict(serializer.validated_data)
        subject = services.find_subject(request.team, kind=wanted.pop("kind"), key=wanted.pop("subject"))
        pack = services.request_pack(request.actor, team=request.team, subject=subject, **wanted)
        location = {"Location": f"{request.path}{pack.pk}/"}
        return Response(self.get_serializer(pack).data, status=status.HTTP_201_CREATED, headers=location)

    @extend_schema(responses={(200, "application/zip"): OpenApiTypes.BINARY})
    @action(detail=True)
    def file(self, request: Request, pk: str) -> FileResponse:
        """The ZIP; that it was downloaded is on record."""
        pack = self.get_object()
        content = services.open_pack(request.actor, pack=pack, part="pack")
        return FileResponse(content, as_attachment=True, filename=pack.file_name, content_type="application/zip")
