"""Deletes what an endpoint's inference log keeps no longer, a UTC day at a time."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from apps.audit.actor import Actor
from apps.audit.services import record
from apps.deployments.models import Endpoint
from apps.monitoring.models import LogSegment

MAX_SEGMENTS: Final = 2_000
"""What one call deletes at most; the next one goes on."""
_LISTED: Final = 80
"""So many digests fit into an audit event."""


def prune_segments() -> int:
    """Delete segments past their endpoint's retention; returns how many went.

    Whole days go, so that an endpoint's log is pruned once a day and by one audit event.
    """
    today = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0)
    pruned = 0
    for endpoint in Endpoint.objects.exclude(retention_days=None).select_related("team").order_by("pk"):
        kept_from = today - timedelta(days=endpoint.retention_days)
        expired = LogSegment.objects.current().of_endpoint(endpoint.pk).filter(ended_at__lt=kept_from)
        segments = list(expired.order_by("ended_at", "pk")[: MAX_SEGMENTS - pruned])
        if segments:
            _prune(endpoint, segments)
            pruned += len(segments)
        if pruned >= MAX_SEGMENTS:
            break
    return pruned


def _prune(endpoint: Endpoint, segments: list[LogSegment]) -> None:
    """Files first: what dies in between leaves rows without files, which the next call takes, and no hidden file."""
    root = Path(settings.INSTALLATION.store)
    parts = LogSegment.objects.filter(merged_into__in=segments, is_file_removed=False)
    for path in (*parts.values_list("path", flat=True), *(segment.path for segment in segments)):
        (root / path).unlink(missing_ok=True)
    with transaction.atomic():
        LogSegment.objects.filter(pk__in=[segment.pk for segment in segments]).delete()
        record(
            Actor.system("controller"),
            "inference_log.pruned",
            endpoint,
            team=endpoint.team,
            before=_described(segments),
            after={"retention_days": endpoint.retention_days},
        )


def _described(segments: list[LogSegment]) -> dict[str, Any]:
    digests = [segment.sha256 for segment in segments]
    return {
        "segments": len(segments),
        "rows": sum(segment.row_count for segment in segments),
        "from": min(segment.started_at for segment in segments).isoformat(),
        "until": max(segment.ended_at for segment in segments).isoformat(),
        "digests": digests if len(digests) <= _LISTED else None,
        "digest_of_digests": hashlib.sha256("\n".join(digests).encode()).hexdigest(),
    }
