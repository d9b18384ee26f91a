"""Evidence packs: built by their job, checked by the auditor's own verifier, and never to be altered unnoticed."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import zipfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.files import storage
from django.db import connection
from django.utils import timezone

from apps.audit.keys import audit_key
from apps.audit.models import AuditEvent
from apps.audit.verify import Rejected
from apps.core.errors import Conflict, DomainError, NotAllowed
from apps.jobs.runner import run_inline
from apps.packs import services
from apps.packs.building import build_pack, check_pack
from apps.packs.models import EvidencePack
from apps.promotions.models import PromotionRequest
from tests import builders
from tests.conftest import Cast


@pytest.fixture
def decided(cast: Cast) -> PromotionRequest:
    """A promotion with an evaluation, a reviewed card and a signed approval."""
    run = builders.finished_run(cast)
    builders.complete_card(cast, run.model_version, is_reviewed=True)
    return builders.live_request(cast, run.model_version)


def built(cast: Cast, subject: Any, **period: Any) -> EvidencePack:
    """A pack whose real job has run."""
    pack = services.request_pack(cast.actor("compliance_officer"), team=cast.team, subject=subject, **period)
    number_events()
    assert pack.job is not None
    job = run_inline(pack.job)
    assert job.state == "SUCCEEDED", job.message
    return EvidencePack.objects.get(pk=pack.pk)


def number_events() -> None:
    """A test is one transaction: have the events numbered now, as commits would."""
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute("SET CONSTRAINTS ALL DEFERRED")


def content_of(pack: EvidencePack) -> bytes:
    with storage.default_storage.open(pack.path) as file:
        return bytes(file.read())


def test_a_pack_of_a_promotion_holds_what_was_decided_and_can_be_checked_offline(
    cast: Cast, decided: PromotionRequest, tmp_path: Path
) -> None:
    pack = built(cast, decided)
    content = content_of(pack)
    assert hashlib.sha256(content).hexdigest() == pack.sha256
    (tmp_path / "pack.zip").write_bytes(content)
    (tmp_path / "pinned.vkey").write_text(str(audit_key()))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        evidence = archive.read("promotion/evidence.json")
        review = json.loads(archive.read("promotion/reviews.json"))[0]
        events = [json.loads(line)["event"] for line in archive.read("audit/events.jsonl").splitlines()]
        archive.extract("verify.py", tmp_path)
        assert archive.read("report.pdf").startswith(b"%PDF-")
        assert "Seen." in archive.read("model/card.md").decode()
        assert archive.read("promotion/plots/metrics.svg").startswith(b"<?xml")
    assert hashlib.sha256(evidence).hexdigest() == decided.evidence_digest == review["evidence_digest"]
    assert (review["reviewer_name"], review["meaning"]) == ("Cora Blom", "APPROVAL")
    actions = {json.loads(event["body"])["action"] for event in events}
    assert {"promotion.submitted", "promotion.approved", "card.reviewed", "model_version.uploaded"} <= actions
    command = [sys.executable, "verify.py", "pack.zip", "--key", "pinned.vkey"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"PATH": ""})
    assert (done.returncode, done.stdout[:2]) == (0, "OK"), done.stdout + done.stderr


def test_the_same_records_give_the_same_bytes(cast: Cast, decided: PromotionRequest) -> None:
    pack = services.request_pack(cast.actor("compliance_officer"), team=cast.team, subject=decided)
    number_events()
    first, second = io.BytesIO(), io.BytesIO()
    build_pack(pack, first)
    build_pack(pack, second)
    assert first.getvalue() == second.getvalue()


def altered(content: bytes, **changes: Any) -> io.BytesIO:
    """The pack with files replaced (bytes), added, or taken out (None)."""
    target = io.BytesIO()
    wanted = {name.replace("__", "/").replace("_dot_", "."): value for name, value in changes.items()}
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            if name not in wanted:
                copy.writestr(name, source.read(name))
        for name, value in wanted.items():
            if value is not None:
                copy.writestr(name, value)
    target.seek(0)
    return target


def test_an_altered_pack_is_refused(cast: Cast, decided: PromotionRequest) -> None:
    content = content_of(built(cast, decided))
    assert check_pack(io.BytesIO(content)).is_ok
    for changes in (
        {"promotion__evidence_dot_json": b"{}"},
        {"report_dot_pdf": b"%PDF-forged"},
        {"promotion__reviews_dot_json": None},
        {"extra_dot_txt": b"something more"},
        {"audit__events_dot_jsonl": b""},
    ):
        with pytest.raises(Rejected):
            check_pack(altered(content, **changes))


def test_packs_of_a_model_and_of_an_endpoint(cast: Cast, decided: PromotionRequest) -> None:
    now = timezone.now()
    model = built(cast, decided.model_version.model)
    endpoint = built(cast, decided.endpoint, since=now - timedelta(hours=1), until=now + timedelta(hours=1))
    with zipfile.ZipFile(io.BytesIO(content_of(model))) as archive:
        names = set(archive.namelist())
    assert {f"promotions/{decided.pk}/evidence.json", "model/versions/v1/card.json", "deployments.json"} <= names
    with zipfile.ZipFile(io.BytesIO(content_of(endpoint))) as archive:
        deployments = json.loads(archive.read("deployments.json"))
        assert json.loads(archive.read("endpoint/endpoint.json"))["name"] == decided.endpoint.name
        assert "endpoint/prediction-log.json" in archive.namelist()
    assert [row["promotion_request_id"] for row in deployments] == [decided.pk]


def test_a_period_has_to_make_sense(cast: Cast) -> None:
    endpoint, now = builders.endpoint(cast), timezone.now()
    officer = cast.actor("compliance_officer")
    for since, until, message in (
        (None, None, "begins before it ends"),
        (now, now, "begins before it ends"),
        (now - timedelta(days=400), now, "at most 366 days"),
        (now + timedelta(days=1), now + timedelta(days=2), "future"),
    ):
        with pytest.raises(DomainError, match=message):
            services.request_pack(officer, team=cast.team, subject=endpoint, since=since, until=until)


def test_who_may_have_a_pack_and_that_it_is_on_record(cast: Cast, decided: PromotionRequest) -> None:
    with pytest.raises(NotAllowed):
        services.request_pack(cast.actor("operator"), team=cast.team, subject=decided)
    officer = cast.browser("compliance_officer")
    answer = officer.post("/evidence-packs/new/", {"kind": "PROMOTION", "promotion": decided.pk})
    assert answer.status_code == 302
    pack = EvidencePack.objects.get()
    assert officer.get(f"{pack.get_absolute_url()}file/").status_code == 409
    with pytest.raises(Conflict):
        services.open_pack(cast.actor("compliance_officer"), pack=pack, part="pack")
    number_events()
    assert pack.job is not None
    run_inline(pack.job)
    downloaded = officer.get(f"{pack.get_absolute_url()}file/")
    content = b"".join(downloaded.streaming_content)
    assert check_pack(io.BytesIO(content)).is_ok
    report = officer.get(f"{pack.get_absolute_url()}report/")
    assert b"".join(report.streaming_content).startswith(b"%PDF-")
    parts = [row.document["after"]["part"] for row in AuditEvent.objects.filter(action="evidence_pack.downloaded")]
    assert sorted(parts) == ["pack", "report"]
    assert cast.browser("data_scientist").get(f"{pack.get_absolute_url()}file/").status_code == 403
    assert cast.browser("outsider").get(f"{pack.get_absolute_url()}file/").status_code == 404
