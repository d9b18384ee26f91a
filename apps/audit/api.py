"""The audit log over REST: read only."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db.models import QuerySet
from rest_framework import mixins, serializers

from apps.audit.forms import AuditFilterForm
from apps.audit.models import AuditEvent
from apps.core.api import NewestFirstPagination, TeamViewSet
from apps.core.errors import DomainError


class AuditEventSerializer(serializers.ModelSerializer[AuditEvent]):
    """An event: ``body`` is the very text that its leaf hash covers, ``event`` the same, read."""

    event = serializers.JSONField(source="document", read_only=True)

    class Meta:
        model = AuditEvent
        fields = ("seq", "at", "previous_hash", "leaf_hash", "body", "event")


class BySeqPagination(NewestFirstPagination):
    """The order of the chain, newest first."""

    ordering = "-seq"


class AuditEventViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, TeamViewSet):
    """Events of the team, newest first; filters: actor, action, obj, since, until."""

    queryset = AuditEvent.objects.numbered()
    serializer_class = AuditEventSerializer
    pagination_class = BySeqPagination
    lookup_field = "seq"
    lookup_value_regex = "[0-9]{1,18}"
    permissions: ClassVar[dict[str, str]] = {"list": "audit.read", "retrieve": "audit.read"}

    def filter_queryset(self, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Apply the same filters as the page."""
        form = AuditFilterForm(self.request.query_params)
        if not form.is_valid():
            field, messages = next(iter(form.errors.items()))
            raise DomainError(str(messages[0]), field=field)
        return queryset.matching(**form.cleaned_data)  # type: ignore[no-any-return]
