"""The audit pages, history, exports and API, and the offline verifier on what they give out."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as live_settings
from django.core.management import call_command
from django.db import connection
from django.test import Client

from apps.accounts import services as accounts
from apps.accounts.models import Membership
from apps.accounts.roles import Role
from apps.audit import verification
from apps.audit.actor import Actor
from apps.audit.checkpoints import checkpoint_now
from apps.audit.export import harmless
from apps.audit.keys import audit_key
from apps.audit.models import AuditEvent, Verification
from tests.conftest import Cast

VERIFIER = Path(live_settings.BASE_DIR) / "apps" / "audit" / "verify.py"
SYSTEM = Actor.system("test")


@pytest.fixture
def officer(transactional_db: None) -> Client:
    """A compliance officer of a team whose events are committed, among those of another team."""
    client = Client()
    for slug in ("risk", "marketing"):
        team = accounts.create_team(SYSTEM, slug=slug, name=slug.title())
        for number in range(4):
            member = accounts.create_member(
                SYSTEM,
                team=team,
                email=f"p{number}@{slug}.example",
                name=f"=SUM(A{number})",
                password="correct-horse-battery",
                roles=[Role.COMPLIANCE_OFFICER],
            )
    client.force_login(Membership.objects.filter(team__slug="risk").order_by("pk")[0].user)
    del member
    return client


def _body(answer: Any) -> bytes:
    return b"".join(answer.streaming_content)


def _run_verifier(content: bytes, tmp_path: Path, *arguments: str) -> tuple[int, str]:
    """The verifier as an auditor runs it: alone, in an empty folder."""
    alone = tmp_path / "auditor"
    alone.mkdir(exist_ok=True)
    (alone / "verify.py").write_bytes(VERIFIER.read_bytes())
    (alone / "audit.jsonl").write_bytes(content)
    (alone / "audit.vkey").write_text(f"{audit_key()}\n")
    command = [sys.executable, "-I", "verify.py", "audit.jsonl", "--key", "audit.vkey", *arguments]
    result = subprocess.run(command, cwd=alone, capture_output=True, text=True, check=False, timeout=60)
    assert not result.stderr
    return result.returncode, result.stdout


def test_an_export_is_verified_offline_and_every_change_to_it_is_found(
    officer: Client, tmp_path: Path, settings: Any
) -> None:
    old = checkpoint_now()
    assert old is not None
    (tmp_path / "old.note").write_text(old.note)
    content = _body(officer.get("/audit/export.jsonl", {"since_size": old.tree_size}))
    arguments = ("--checkpoint", str(tmp_path / "old.note"), "--anchor", str(settings.AUDIT_ANCHOR_DIR))
    code, said = _run_verifier(content, tmp_path, *arguments)
    assert (code, said[:12]) == (0, "OK: 5 events")
    lines = content.splitlines(keepends=True)
    assert {json.loads(line)["event"]["seq"] for line in lines[1:-1]} == {1, 2, 3, 4, 5}
    altered = [
        (b"".join(lines).replace(b"member.added", b"member.moved", 1), "broken at seq 2"),
        (b"".join([*lines[:3], *lines[4:]]), "lines were added"),
        (b"".join([*lines[:3], lines[4], lines[3], *lines[5:]]), "broken at seq 3: it comes after event 4"),
        (b"".join(lines[:-1]), "its end is missing"),
        (b"".join([lines[0], lines[-1]]), "lines were added"),
    ]
    for one, expected in altered:
        code, said = _run_verifier(one, tmp_path)
        assert (code, expected in said) == (1, True), said


def test_the_whole_log_is_exported_for_whoever_runs_the_installation(officer: Client, tmp_path: Path) -> None:
    target = tmp_path / "whole.jsonl"
    call_command("export_audit", str(target))
    code, said = _run_verifier(target.read_bytes(), tmp_path)
    assert (code, said[:13]) == (0, "OK: 10 events")
    code, said = _run_verifier(target.read_bytes().replace(b"p1@marketing", b"p9@marketing", 1), tmp_path)
    assert code == 1
    assert "broken at seq 8: its content does not fit its hash" in said


def test_a_foreign_key_is_not_believed(officer: Client, tmp_path: Path) -> None:
    content = _body(officer.get("/audit/export.jsonl"))
    foreign = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    (tmp_path / "auditor").mkdir()
    (tmp_path / "auditor" / "other.vkey").write_text(foreign)
    assert _run_verifier(content, tmp_path)[0] == 0
    command = [sys.executable, str(VERIFIER), str(tmp_path / "auditor" / "audit.jsonl"), "--key", foreign]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 1
    assert "not signed by the pinned key" in result.stdout


def test_a_csv_export_holds_no_formula_and_only_ones_own_team(officer: Client) -> None:
    rows = list(csv.DictReader(io.StringIO(_body(officer.get("/audit/export.csv", {"action": "member."})).decode())))
    assert {row["action"] for row in rows} == {"member.added"}
    assert {row["object"][:6] for row in rows} == {"'=SUM("}
    assert len(rows) == 4
    assert [harmless(text) for text in ("=1", "+1", "-1", "@a", "\tb", "plain", 5)] == [
        "'=1", "'+1", "'-1", "'@a", "'\tb", "plain", 5
    ]  # fmt: skip


def test_an_export_is_an_event_with_its_filters(officer: Client) -> None:
    _body(officer.get("/audit/export.csv", {"actor": "test"}))
    _body(officer.get("/audit/export.jsonl", {"action": "member."}))
    csv_event, jsonl_event = AuditEvent.objects.filter(action="audit_log.exported").order_by("pk")
    assert csv_event.document["after"] == {"format": "csv", "actor": "test"}
    assert jsonl_event.document["after"] == {"format": "jsonl", "action": "member."}
    assert officer.get("/audit/export.csv", {"since": "nonsense"}).status_code == 422


def test_an_event_is_shown_with_its_proof(officer: Client) -> None:
    page = officer.get("/audit/events/2/").content.decode()
    assert "within a minute" in page
    checkpoint_now()
    page = officer.get("/audit/events/2/").content.decode()
    assert "in the signed log" in page
    assert "— countersign/" in page
    assert officer.get("/audit/events/7/").status_code == 404  # another team's


def test_the_api_proves_and_lists_checkpoints(cast: Cast) -> None:
    api = cast.api("compliance_officer")
    _number_events()
    event = AuditEvent.objects.for_team(cast.team).numbered().first()
    assert event is not None
    assert api.get(f"/api/v1/audit-events/{event.seq}/proof/").status_code == 404
    checkpoint = checkpoint_now()
    assert checkpoint is not None
    proof = api.get(f"/api/v1/audit-events/{event.seq}/proof/").json()
    assert proof["checkpoint"] == checkpoint.note
    assert proof["event"]["leaf_hash"] == event.leaf_hash
    (listed,) = api.get("/api/v1/audit-checkpoints/").json()["results"]
    assert listed["note"] == checkpoint.note
    assert listed["verifier_key"] == str(audit_key())
    size = checkpoint.tree_size
    assert api.get(f"/api/v1/audit-checkpoints/{size}/consistency/{size - 1}/").json()["proof"]
    assert api.get(f"/api/v1/audit-checkpoints/{size}/consistency/{size + 1}/").status_code == 404
    exported = _body(api.get("/api/v1/audit-export/", {"form": "csv"}))
    assert exported.startswith(b"seq,at,actor")


def _number_events() -> None:
    """Have the deferred trigger do now what it does at commit."""
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")


def test_verification_is_asked_for_once_and_its_outcome_is_shown(
    officer: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    officer.post("/audit/verify/")
    officer.post("/audit/verify/")
    verification_row = Verification.objects.get()
    assert verification_row.is_open
    assert "being checked" in officer.get("/audit/").content.decode()
    started: list[list[str]] = []
    monkeypatch.setattr(verification.subprocess, "Popen", lambda command, **_: started.append(command))
    verification.run_verifications()
    assert started[0][-2:] == ["verify_audit", f"--record={verification_row.pk}"]
    call_command("verify_audit", "--record", str(verification_row.pk), stdout=io.StringIO())
    page = officer.get("/audit/state/").content.decode()
    assert "sound" in page
    assert "Verify now" in page


def test_history_is_of_the_objects_asked_for(cast: Cast) -> None:
    _number_events()
    member = f"accounts.membership:{cast.analyst.pk}"
    page = cast.browser("admin").get("/audit/history/", {"of": f"{member},accounts.team:{cast.team.pk}"})
    text = page.content.decode()
    assert "Ana Lyst in Risk" in text
    assert "team.created" in text
    assert "Omar Reyes" not in text
    assert cast.browser("operator").get("/audit/history/", {"of": member}).status_code == 403
    assert "Nothing yet" in cast.browser("outsider").get("/audit/history/", {"of": member}).content.decode()
    assert cast.browser("operator").get("/audit/history/", {"of": "x'"}).status_code == 422
