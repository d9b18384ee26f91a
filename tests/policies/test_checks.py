"""External checks: a signed result counts once, for the request and the evidence that it names."""

from __future__ import annotations

import base64
import hmac
import json
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rest_framework.test import APIClient

from apps.audit.models import AuditEvent
from apps.core.errors import Conflict, DomainError, NotAllowed
from apps.policies.checks import check_reports, create_check_key, message, revoke_check_key
from apps.policies.models import CheckKey, CheckKeyKind, CheckResult
from apps.promotions import services as promotions
from apps.promotions.models import PromotionRequest
from tests import builders
from tests.conftest import Cast


@pytest.fixture
def request_(cast: Cast) -> PromotionRequest:
    return builders.submitted_request(cast, builders.recorded_version(cast, builders.model(cast)))


def hmac_key(cast: Cast, name: str = "scan") -> tuple[CheckKey, str]:
    return create_check_key(cast.actor("compliance_officer"), team=cast.team, name=name, kind=CheckKeyKind.HMAC)


def sign_hmac(secret: str) -> Any:
    return lambda signed: hmac.digest(secret.encode(), signed, "sha256")


def post(request: PromotionRequest, key: CheckKey, sign: Any, *, at: int = 0, path: str = "", **changes: Any) -> Any:
    body = {"evidence_digest": request.evidence_digest, "is_success": True, "sentence": "No findings."} | changes
    url = f"/api/v1/promotions/{request.pk}/checks/"
    content = json.dumps(body).encode()
    timestamp = str(at or int(time.time()))
    headers = {
        "Countersign-Key": str(key.pk),
        "Countersign-Timestamp": timestamp,
        "Countersign-Signature": base64.b64encode(sign(message(path or url, timestamp, content))).decode(),
    }
    client = APIClient()
    return client.generic("POST", url, content, "application/json", headers=headers)


def reports(cast: Cast, request: PromotionRequest) -> list[tuple[str, bool]]:
    found = check_reports(cast.team, request_id=request.pk, evidence_digest=request.evidence_digest)
    return [(report.name, report.is_success) for report in found]


def test_a_signed_result_counts_and_a_later_one_outweighs_it(cast: Cast, request_: PromotionRequest) -> None:
    key, secret = hmac_key(cast)
    assert post(request_, key, sign_hmac(secret)).status_code == 201
    answer = post(request_, key, sign_hmac(secret), is_success=False, sentence="2 findings.")
    assert (answer.status_code, answer.json()["check"]) == (201, "scan")
    assert reports(cast, request_) == [("scan", False), ("scan", True)]
    listed = cast.api("analyst").get(f"/api/v1/promotions/{request_.pk}/checks/").json()["results"]
    assert [one["sentence"] for one in listed] == ["2 findings.", "No findings."]


def test_ed25519(cast: Cast, request_: PromotionRequest) -> None:
    private = Ed25519PrivateKey.generate()
    public = base64.b64encode(private.public_key().public_bytes_raw()).decode()
    officer = cast.actor("compliance_officer")
    key, secret = create_check_key(officer, team=cast.team, name="scan", kind=CheckKeyKind.ED25519, public_key=public)
    assert secret == ""
    assert post(request_, key, Ed25519PrivateKey.generate().sign).status_code == 401
    assert post(request_, key, private.sign).status_code == 201


def test_the_same_message_counts_once(cast: Cast, request_: PromotionRequest) -> None:
    key, secret = hmac_key(cast)
    now = int(time.time())
    assert [post(request_, key, sign_hmac(secret), at=now).status_code for _ in range(2)] == [201, 409]
    assert CheckResult.objects.count() == 1


def test_what_is_not_signed_right_is_refused(cast: Cast, request_: PromotionRequest) -> None:
    key, secret = hmac_key(cast)
    now = int(time.time())
    assert post(request_, key, sign_hmac("csk_guess")).status_code == 401
    assert post(request_, key, sign_hmac(secret), at=now - 301).status_code == 401
    assert post(request_, key, sign_hmac(secret), at=now + 301).status_code == 401
    assert post(request_, key, sign_hmac(secret), path="/api/v1/promotions/1/checks/").status_code == 401
    assert post(request_, CheckKey(pk=key.pk + 1), sign_hmac(secret)).status_code == 401
    url = f"/api/v1/promotions/{request_.pk}/checks/"
    assert cast.api("compliance_officer").post(url, {}).status_code == 403
    assert APIClient().post(url, {}, headers={"Countersign-Signature": "no"}).status_code == 401
    assert CheckResult.objects.count() == 0


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"evidence_digest": "0" * 64}, 409),
        ({"evidence_digest": "x"}, 422),
        ({"sentence": ""}, 422),
        ({"sentence": "x" * 301}, 422),
        ({"is_success": "perhaps"}, 422),
        ({"url": "javascript:alert(1)"}, 422),
        ({"sentence": "x" * 17_000}, 400),
    ],
)
def test_a_result_that_makes_no_sense_is_refused(
    cast: Cast, request_: PromotionRequest, changes: dict[str, Any], status: int
) -> None:
    key, secret = hmac_key(cast)
    assert post(request_, key, sign_hmac(secret), **changes).status_code == status


def test_another_teams_request_is_not_found(cast: Cast, request_: PromotionRequest) -> None:
    officer = cast.actor("outsider")
    key, secret = create_check_key(officer, team=cast.other_team, name="scan", kind=CheckKeyKind.HMAC)
    assert post(request_, key, sign_hmac(secret)).status_code == 404


def test_a_decided_request_takes_no_more_results(cast: Cast, request_: PromotionRequest) -> None:
    key, secret = hmac_key(cast)
    promotions.cancel_promotion(cast.actor("data_scientist"), request=request_)
    assert post(request_, key, sign_hmac(secret)).status_code == 409


def test_a_revoked_key_is_trusted_no_more(cast: Cast, request_: PromotionRequest) -> None:
    key, secret = hmac_key(cast)
    post(request_, key, sign_hmac(secret))
    with pytest.raises(Conflict, match="a check “scan” already"):
        hmac_key(cast)
    revoke_check_key(cast.actor("compliance_officer"), key=key)
    assert reports(cast, request_) == []
    assert post(request_, key, sign_hmac(secret)).status_code == 401
    assert hmac_key(cast)[1] != secret


def test_only_compliance_officers_register_keys_and_the_log_has_no_secret(cast: Cast) -> None:
    for role in ("admin", "operator", "data_scientist", "analyst"):
        with pytest.raises(NotAllowed):
            create_check_key(cast.actor(role), team=cast.team, name="scan", kind=CheckKeyKind.HMAC)
    _, secret = hmac_key(cast)
    assert secret not in json.dumps(list(CheckKey.objects.values()), default=str)
    assert not AuditEvent.objects.filter(body__contains=secret[4:]).exists()
    with pytest.raises(DomainError, match="32 bytes"):
        create_check_key(
            cast.actor("compliance_officer"), team=cast.team, name="x", kind=CheckKeyKind.ED25519, public_key="AAAA"
        )
