"""Retention takes bodies and nothing else, says so, and leaves a log that is verified."""

from __future__ import annotations

from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection

from apps.accounts import services as accounts
from apps.audit import retention
from apps.audit.actor import Actor
from apps.audit.checkpoints import checkpoint_now
from apps.audit.models import AuditEvent

SYSTEM = Actor.system("test")

pytestmark = pytest.mark.django_db(transaction=True)


def _said(command: str, *arguments: str) -> str:
    out = StringIO()
    call_command(command, *arguments, stdout=out, no_color=True)
    return out.getvalue()


@pytest.fixture
def old_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five events that count as old, the first three under a checkpoint."""
    monkeypatch.setattr(retention, "timedelta", lambda days: timedelta(days=days - 183))
    for number in range(5):
        accounts.create_team(SYSTEM, slug=f"t{number}", name=f"T{number}")
        if number == 2:
            checkpoint_now()


def test_old_bodies_go_and_the_log_is_verified_as_before(old_log: None) -> None:
    assert _said("prune_audit", "--older-than-days=183").startswith("3 bodies")
    assert [event.has_body for event in AuditEvent.objects.numbered()] == [False, False, False, True, True, True]
    checkpoint_now()
    assert _said("verify_audit").startswith("OK: 6 events, 6 of them anchored")
    assert "the bodies of 1 to 3 are gone" in _said("verify_audit")
    assert _said("prune_audit", "--older-than-days=183").startswith("2 bodies")
    assert "the bodies of 1 to 5 are gone" in _said("verify_audit")


def test_a_body_that_goes_without_an_event_is_tampering(old_log: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET countersign.retention = 'on'")
        cursor.execute("UPDATE audit_auditevent SET body = '{}' WHERE seq = 2")
        cursor.execute("RESET countersign.retention")
    with pytest.raises(CommandError, match="broken at seq 2: its body is gone, and no event says"):
        _said("verify_audit")


@pytest.mark.parametrize(
    "change", ["body = '{\"x\":1}'", "body = '{}', leaf_hash = repeat('a', 64)", "body = '{}', at = now()", "seq = 9"]
)
def test_retention_can_do_nothing_else(old_log: None, change: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET countersign.retention = 'on'")
    with pytest.raises(DatabaseError, match="append-only"), connection.cursor() as cursor:
        cursor.execute(f"UPDATE audit_auditevent SET {change} WHERE seq = 2")  # noqa: S608
    with connection.cursor() as cursor:
        cursor.execute("RESET countersign.retention")


def test_half_a_year_is_kept_in_any_case(settings: Any) -> None:
    with pytest.raises(CommandError, match="at least 183 days"):
        _said("prune_audit", "--older-than-days=182")
