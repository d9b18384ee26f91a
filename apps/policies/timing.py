"""When an approved version may go into service: the wait timer and the freeze windows. No I/O."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from apps.policies.documents import PolicyDocument


def why_not_now(document: PolicyDocument, *, approved_at: datetime, now: datetime) -> str:
    """Why a version approved at ``approved_at`` may not go into service at ``now`` (both aware); empty if it may."""
    ready_at = approved_at + timedelta(minutes=document.wait_minutes)
    if now < ready_at:
        return f"It waits until {ready_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC: the policy has a wait timer."
    for window in document.freeze_windows:
        if end := window.end_at(now):
            local = end.astimezone(ZoneInfo(window.time_zone))
            return f"Freeze window “{window.name}”: nothing goes live until {local:%Y-%m-%d %H:%M} {window.time_zone}."
    return ""
