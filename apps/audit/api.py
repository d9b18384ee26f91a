"""The audit log over REST: read only."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db.models import QuerySet
from django.http import StreamingHttpResponse
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins, serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import ReadOnlyModelViewSet, ViewSet

from apps.audit.export import CSV, JSONL, event_document, export_csv, export_jsonl
from apps.audit.forms import AuditExportForm, AuditFilterForm
from apps.audit.keys import audit_key
from apps.audit.models import AuditEvent, Checkpoint
from apps.audit.services import consistency_proof
from apps.audit.tree import stored_nodes
from apps.core.api import NewestFirstPagination, TeamViewSet
from apps.core.errors import DomainError, NotFound

_READ = "audit.read"


class AuditEventSerializer(serializers.ModelSerializer[AuditEvent]):
    """An event: ``body`` is the very text that its leaf hash covers, ``event`` the same, read."""

    event = serializers.JSONField(source="document", read_only=True)

    class Meta:
        model = AuditEvent
        fields = ("seq", "at", "previous_hash", "leaf_hash", "body", "event")


class ProofSerializer(serializers.Serializer[Any]):
    """An event with the hashes that lead from it to the checkpoint's root; a line of an export has the same form."""

    event = serializers.DictField()
    index = serializers.IntegerField()
    proof = serializers.ListField(child=serializers.CharField())
    checkpoint = serializers.CharField()


class BySeqPagination(NewestFirstPagination):
    """The order of the chain, newest first."""

    ordering = "-seq"


class AuditEventViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, TeamViewSet):
    """Events of the team, newest first; filters: actor, action, obj, request_id, since, until."""

    queryset = AuditEvent.objects.numbered()
    serializer_class = AuditEventSerializer
    pagination_class = BySeqPagination
    lookup_field = "seq"
    lookup_value_regex = "[0-9]{1,18}"
    permissions: ClassVar[dict[str, str]] = {"list": _READ, "retrieve": _READ, "proof": _READ}

    def filter_queryset(self, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Apply the same filters as the page."""
        form = AuditFilterForm(self.request.query_params)
        _require_valid(form)
        return queryset.matching(**form.cleaned_data)  # type: ignore[no-any-return]

    @extend_schema(responses=ProofSerializer)
    @action(detail=True)
    def proof(self, request: Request, seq: str) -> Response:
        """The proof that the log signed by the first checkpoint after the event holds it; 404 before there is one."""
        event = self.get_object()
        checkpoint = Checkpoint.objects.filter(tree_size__gte=event.seq).order_by("tree_size").first()
        if checkpoint is None:
            raise NotFound("No checkpoint covers this event yet. Try again in a minute.")
        document = event_document(event, checkpoint.tree_size, stored_nodes())
        return Response(document | {"checkpoint": checkpoint.note})


class CheckpointSerializer(serializers.ModelSerializer[Checkpoint]):
    """A checkpoint: ``note`` is the signed text, ``verifier_key`` the public key to pin."""

    verifier_key = serializers.SerializerMethodField()

    class Meta:
        model = Checkpoint
        fields = ("tree_size", "root_hash", "note", "created_at", "verifier_key")

    def get_verifier_key(self, checkpoint: Checkpoint) -> str:
        """The key of this installation."""
        return str(audit_key())


class BySizePagination(NewestFirstPagination):
    """The newest checkpoint first."""

    ordering = "-tree_size"


class CheckpointViewSet(ReadOnlyModelViewSet[Checkpoint]):
    """Checkpoints of the installation's one log, newest first. They name no event."""

    queryset = Checkpoint.objects.all()
    serializer_class = CheckpointSerializer
    pagination_class = BySizePagination
    lookup_field = "tree_size"
    lookup_value_regex = "[0-9]{1,18}"
    permissions: ClassVar[dict[str, str]] = {"list": _READ, "retrieve": _READ, "consistency": _READ}

    @extend_schema(responses={200: {"type": "object"}})
    @action(detail=True, url_path="consistency/(?P<old_size>[0-9]{1,18})")
    def consistency(self, request: Request, tree_size: str, old_size: str) -> Response:
        """The proof that the log of this checkpoint begins with the one of ``old_size`` events."""
        proof = consistency_proof(int(old_size), int(tree_size))
        return Response({"from": int(old_size), "to": int(tree_size), "proof": proof})


class AuditExportViewSet(ViewSet):
    """The team's events as a file, with the filters of the list; ``after`` goes on where an export ended."""

    permissions: ClassVar[dict[str, str]] = {"list": _READ}

    @extend_schema(
        parameters=[OpenApiParameter(name, str) for name in (*AuditExportForm.base_fields, "form")],
        responses={(200, JSONL): str, (200, CSV): str},
    )
    def list(self, request: Request) -> StreamingHttpResponse:
        """JSON Lines that ``verify.py`` checks offline; a table with ``?form=csv``."""
        form = AuditExportForm(request.query_params)
        _require_valid(form)
        options = form.options()
        if request.query_params.get("form") == "csv":
            del options["since_size"]
            return StreamingHttpResponse(export_csv(request.actor, team=request.team, **options), content_type=CSV)
        return StreamingHttpResponse(export_jsonl(request.actor, team=request.team, **options), content_type=JSONL)


def _require_valid(form: AuditFilterForm) -> None:
    if not form.is_valid():
        field, messages = next(iter(form.errors.items()))
        raise DomainError(str(messages[0]), field=field)
