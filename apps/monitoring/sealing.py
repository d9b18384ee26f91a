"""Puts the digests of the inference log's segments into the audit log, so that predictions are as hard to change."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import islice
from typing import Final

from django.db import transaction
from django.utils import timezone

from apps.audit.actor import Actor
from apps.audit.models import AuditEvent
from apps.audit.services import record
from apps.deployments.models import Endpoint
from apps.monitoring.models import LogSegment

MAX_SEGMENTS: Final = 2_000
"""What one call seals at most; the next one goes on."""
SEAL_AFTER: Final = timedelta(minutes=10)
"""So old is a segment when it is sealed: many to an event, so that they do not bury what people do."""
_PER_EVENT: Final = 25
"""So many lines with a path and two digests fit into an audit event."""


@transaction.atomic
def seal_segments() -> int:
    """Write one audit event for each batch of new segments of an endpoint; returns how many segments they hold."""
    due = LogSegment.objects.filter(audit_event_id=None, created_at__lt=timezone.now() - SEAL_AFTER).order_by("pk")
    fresh = due.select_for_update(skip_locked=True)
    by_endpoint: dict[int, list[LogSegment]] = defaultdict(list)
    for segment in fresh[:MAX_SEGMENTS]:
        by_endpoint[segment.endpoint_id].append(segment)
    endpoints = Endpoint.objects.select_related("team").in_bulk(by_endpoint)
    for endpoint_id, segments in by_endpoint.items():
        for batch in _batches(segments):
            event = _seal(endpoints.get(endpoint_id), batch)
            LogSegment.objects.filter(pk__in=[segment.pk for segment in batch]).update(audit_event_id=event.pk)
    return sum(map(len, by_endpoint.values()))


def sealed_line(segment: LogSegment) -> str:
    """A segment as the audit log has it: digest, rows, path, and of a merged one what it was merged from."""
    line = f"{segment.sha256} {segment.row_count} {segment.path}"
    if not segment.parts:
        return line
    parts = hashlib.sha256("\n".join(segment.parts).encode()).hexdigest()
    return f"{line} of {len(segment.parts)} parts {parts}"


def sealing_events(segments: Sequence[LogSegment]) -> dict[int, AuditEvent]:
    """The audit event of each segment, by the segment's id, if that event names the segment as it is registered."""
    events = AuditEvent.objects.in_bulk({one.audit_event_id for one in segments if one.audit_event_id})
    found = {one.pk: events.get(one.audit_event_id or 0) for one in segments}
    return {
        one.pk: event
        for one in segments
        if (event := found[one.pk]) is not None
        and sealed_line(one) in (event.document.get("after") or {}).get("segments", ())
    }


def _seal(endpoint: Endpoint | None, batch: Sequence[LogSegment]) -> AuditEvent:
    return record(
        Actor.system("controller"),
        "inference_log.sealed",
        endpoint or batch[0],
        team=endpoint.team if endpoint else None,
        after={"segments": [sealed_line(one) for one in batch], "rows": sum(one.row_count for one in batch)},
    )


def _batches(segments: Sequence[LogSegment]) -> Iterator[list[LogSegment]]:
    rest = iter(segments)
    while batch := list(islice(rest, _PER_EVENT)):
        yield batch
