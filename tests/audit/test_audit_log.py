"""The audit log: numbered without gaps, linked, append-only, and written with its change or not at all."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction

from apps.accounts import services as accounts
from apps.accounts.models import Team
from apps.audit import services, verify
from apps.audit.actor import Actor
from apps.audit.checkpoints import links
from apps.audit.models import AuditEvent
from tests.conftest import Cast

SYSTEM = Actor.system("test")


def _teams(count: int) -> None:
    for index in range(count):
        accounts.create_team(SYSTEM, slug=f"team-{index}", name=f"Team {index}")


def _number_events() -> None:
    """Have the deferred trigger do now what it does at commit."""
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")


def _verify() -> str:
    out = StringIO()
    call_command("verify_audit", stdout=out, no_color=True)
    return out.getvalue()


@pytest.mark.django_db(transaction=True)
def test_events_are_numbered_without_gaps_linked_and_verified() -> None:
    _teams(5)
    with transaction.atomic():
        accounts.create_team(SYSTEM, slug="gone", name="Gone")
        transaction.set_rollback(True)
    accounts.create_team(SYSTEM, slug="last", name="Last")
    found = list(links())
    assert [link.seq for link in found] == [1, 2, 3, 4, 5, 6]
    assert found[0].previous_hash == verify.GENESIS
    assert verify.verify_log(found).is_ok
    assert _verify().startswith("OK: 6 events")


@pytest.mark.django_db(transaction=True)
def test_a_change_whose_event_cannot_be_written_does_not_happen(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise DatabaseError("the disk is full")

    monkeypatch.setattr(AuditEvent.objects, "create", broken)
    with pytest.raises(DatabaseError):
        accounts.create_team(SYSTEM, slug="risk", name="Risk")
    assert not Team.objects.exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_auditevent SET body = replace(body, 'Team 1', 'Team X') WHERE seq = 2",
        "DELETE FROM audit_auditevent WHERE seq = 2",
        "TRUNCATE audit_auditevent",
        "ALTER TABLE audit_auditevent DISABLE TRIGGER ALL",
        "INSERT INTO audit_auditevent (seq, at, previous_hash, leaf_hash, body) VALUES (9, now(), '', '', '{}')",
    ],
)
def test_the_application_can_only_append(statement: str) -> None:
    _teams(3)
    dsn = settings.INSTALLATION.database_dsn("app")
    name = connection.settings_dict["NAME"]
    with psycopg.connect(dsn, dbname=name) as app, pytest.raises(psycopg.errors.InsufficientPrivilege):
        app.execute(statement)
    assert _verify().startswith("OK: 3 events")


@pytest.mark.django_db(transaction=True)
def test_even_the_owner_is_refused_by_the_trigger() -> None:
    _teams(2)
    for statement in ("UPDATE audit_auditevent SET body = '{}'", "DELETE FROM audit_auditevent"):
        with pytest.raises(DatabaseError, match="append-only"), connection.cursor() as cursor:
            cursor.execute(statement)


def _tamper(statement: str) -> None:
    """Change the log as somebody does who owns the tables and lifts the triggers."""
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE audit_auditevent DISABLE TRIGGER USER")
        cursor.execute(statement)
        cursor.execute("ALTER TABLE audit_auditevent ENABLE TRIGGER USER")
        cursor.execute("ALTER TABLE audit_auditevent DISABLE TRIGGER audit_refuse_truncate")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("statement", "bad_seq"),
    [
        ("UPDATE audit_auditevent SET body = replace(body, 'Team 2', 'Team X') WHERE seq = 3", 3),
        ("UPDATE audit_auditevent SET at = at + interval '1 second' WHERE seq = 2", 2),
        ("DELETE FROM audit_auditevent WHERE seq = 4", 4),
        ("DELETE FROM audit_auditevent WHERE seq = 1", 1),
        ("UPDATE audit_auditevent SET leaf_hash = repeat('a', 64) WHERE seq = 2", 2),
    ],
)
def test_tampering_is_found_and_the_first_bad_seq_is_named(statement: str, bad_seq: int) -> None:
    _teams(6)
    _tamper(statement)
    with pytest.raises(CommandError, match=f"broken at seq {bad_seq}:"):
        _verify()


def test_the_database_and_python_agree_on_hard_text(db: None) -> None:
    with transaction.atomic():
        team = Team.objects.create(slug="t", name="Ünïcode “quotes” \\ \n \t \x01 😀")
        services.record(SYSTEM, "team.created", team, team=team, after={"name": team.name, "nul": "a\x00b"})
    _number_events()
    (link,) = links()
    assert link.body is not None
    assert link.leaf_hash == verify.leaf_hash(link.seq, link.at, link.previous_hash, link.body)
    assert json.loads(link.body)["after"]["name"] == team.name


def test_leaf_hash_is_the_documented_formula() -> None:
    # printf '\0001\n2026-11-23T12:00:00.000005Z\n%064d\n{}' 0 | sha256sum
    assert verify.leaf_hash(1, "2026-11-23T12:00:00.000005Z", verify.GENESIS, "{}") == (
        "09717ec17a4859fd5b26f603c72b7c16ffe41c042543804019e4962cca6e69d0"
    )


def test_events_need_a_transaction_and_are_bounded(cast: Cast) -> None:
    event = services.record(SYSTEM, "team.tested", cast.team, team=cast.team, after={"text": "x" * 100_000})
    assert len(event.body) < 12_000
    assert event.document["after"]["characters"] > 100_000


def test_the_page_filters_and_shows_only_ones_own_team(cast: Cast) -> None:
    _number_events()
    page = cast.browser("compliance_officer").get("/audit/", {"action": "member.", "actor": "test"})
    text = page.content.decode()
    assert "Mira Sato in Risk" in text
    assert "team.created" not in text
    assert "Otto" not in text
    assert cast.browser("compliance_officer").get("/audit/", {"since": "nonsense"}).status_code == 422


def test_the_api_reads_the_same_events(cast: Cast) -> None:
    api = cast.api("compliance_officer")
    _number_events()
    answer = api.get("/api/v1/audit-events/?action=member.")
    assert answer.status_code == 200
    assert {row["event"]["action"] for row in answer.json()["results"]} == {"member.added"}
    assert api.get("/api/v1/audit-events/?since=nonsense").status_code == 422
