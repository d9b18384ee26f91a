"""Jobs over REST: read only."""

from __future__ import annotations

from typing import ClassVar

from rest_framework import mixins, serializers

from apps.core.api import TeamViewSet
from apps.jobs.models import Job


class JobSerializer(serializers.ModelSerializer[Job]):
    """A job."""

    requested_by = serializers.CharField(source="requested_by.name", default=None, read_only=True)

    class Meta:
        model = Job
        fields = (
            "id",
            "kind",
            "subject",
            "state",
            "progress",
            "message",
            "attempt",
            "result",
            "log_tail",
            "requested_by",
            "created_at",
            "started_at",
            "finished_at",
        )


class JobViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, TeamViewSet):
    """The team's jobs, newest first."""

    queryset = Job.objects.select_related("requested_by")
    serializer_class = JobSerializer
    lookup_value_regex = "[0-9]{1,18}"
    permissions: ClassVar[dict[str, str]] = {"list": "team.view", "retrieve": "team.view"}
