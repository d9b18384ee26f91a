"""External checks: their keys, and the signed results that they post."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from django.db import IntegrityError, transaction
from django.utils import timezone
from django.utils.crypto import salted_hmac

from apps.audit.actor import Actor
from apps.audit.services import record
from apps.core.errors import Conflict, DomainError
from apps.policies.gates import CheckReport
from apps.policies.models import CheckKey, CheckKeyKind, CheckResult

MAX_KEYS: Final = 50
MAX_RESULTS: Final = 100
"""Results of one key on one request."""
CLOCK_TOLERANCE: Final = timedelta(minutes=5)
SECRET_PREFIX: Final = "csk_"  # noqa: S105 - what a secret begins with
_DOMAIN: Final = b"countersign/check/v1\n"


@dataclass(frozen=True, slots=True)
class Signed:
    """A message whose signature was verified: by which key, when it was signed, and its digest."""

    key: CheckKey
    at: datetime
    digest: str


def message(path: str, timestamp: str, body: bytes) -> bytes:
    """What is signed: the address that is posted to, the time in whole seconds since 1970, and the body's SHA-256."""
    return _DOMAIN + f"{path}\n{timestamp}\n{hashlib.sha256(body).hexdigest()}\n".encode()


def secret_of(key: CheckKey) -> str:
    """The shared secret of an HMAC key."""
    return SECRET_PREFIX + salted_hmac("apps.policies.CheckKey", key.salt, algorithm="sha256").hexdigest()


@transaction.atomic
def create_check_key(
    actor: Actor, *, team: Any, name: str, kind: CheckKeyKind, public_key: str = ""
) -> tuple[CheckKey, str]:
    """Register a check; the second value is the secret of an HMAC key, which is shown once and empty otherwise.

    ``public_key`` is an Ed25519 key as base64 of its 32 bytes.
    """
    actor.require("promotions.set_policy")
    if CheckKey.objects.for_team(team).filter(revoked_at=None).count() >= MAX_KEYS:
        raise Conflict(f"A team has at most {MAX_KEYS} external checks. Revoke one first.")
    is_shared = kind == CheckKeyKind.HMAC
    try:
        with transaction.atomic():
            key = CheckKey.objects.create(
                team=team,
                name=name,
                kind=kind,
                salt=secrets.token_hex(32) if is_shared else "",
                public_key="" if is_shared else _parsed_public_key(public_key),
                created_by_id=actor.person_id,
            )
    except IntegrityError as error:
        raise Conflict(f"There is a check “{name}” already. Revoke it to give it another key.", field="name") from error
    record(actor, "check_key.created", key, team=team, after={"kind": kind, "public_key": key.public_key})
    return key, secret_of(key) if is_shared else ""


def _parsed_public_key(text: str) -> str:
    try:
        raw = base64.b64decode(text.strip(), validate=True)
        Ed25519PublicKey.from_public_bytes(raw)
    except ValueError as error:
        raise DomainError("This is not an Ed25519 key: give its 32 bytes in base64.", field="public_key") from error
    return base64.b64encode(raw).decode()


@transaction.atomic
def revoke_check_key(actor: Actor, *, key: CheckKey) -> CheckKey:
    """Trust a key no more, nor what it signed: gates do not count its results from now on."""
    actor.require("promotions.set_policy")
    key = CheckKey.objects.select_for_update(of=("self",)).select_related("team").get(pk=key.pk)
    if key.revoked_at is not None:
        raise Conflict(f"{key} is revoked already.")
    key.revoked_at = timezone.now()
    key.save(update_fields=["revoked_at"])
    record(actor, "check_key.revoked", key, team=key.team)
    return key


def verify(key_id: str, path: str, timestamp: str, signature: str, body: bytes) -> Signed | None:
    """Check a signature (base64); None unless a key that is trusted signed this very message a moment ago."""
    if not (key_id.isdecimal() and timestamp.isdecimal() and len(key_id) <= 18 and len(timestamp) <= 11):
        return None
    key = CheckKey.objects.select_related("team").filter(pk=int(key_id), revoked_at=None).first()
    signed_at = datetime.fromtimestamp(int(timestamp), UTC)
    if key is None or abs(timezone.now() - signed_at) > CLOCK_TOLERANCE:
        return None
    signed = message(path, timestamp, body)
    try:
        given = base64.b64decode(signature, validate=True)
    except ValueError:
        return None
    return Signed(key, signed_at, hashlib.sha256(signed).hexdigest()) if _is_valid(key, given, signed) else None


def _is_valid(key: CheckKey, signature: bytes, signed: bytes) -> bool:
    if key.kind == CheckKeyKind.HMAC:
        return hmac.compare_digest(hmac.digest(secret_of(key).encode(), signed, "sha256"), signature)
    try:
        Ed25519PublicKey.from_public_bytes(base64.b64decode(key.public_key)).verify(signature, signed)
    except InvalidSignature:
        return False
    return True


@transaction.atomic
def record_check_result(
    actor: Actor,
    *,
    signed: Signed,
    request_id: int,
    evidence_digest: str,
    is_success: bool,
    sentence: str,
    url: str = "",
) -> CheckResult:
    """Keep what a check found about a request, on the evidence that it names. The caller has found the request.

    Raises ``Conflict`` for a message that came before, whoever sends it again.
    """
    # Locked, so that the bound holds for messages that arrive together.
    key = CheckKey.objects.select_for_update(of=("self",)).select_related("team").get(pk=signed.key.pk)
    if key.revoked_at is not None:
        raise Conflict("The key was revoked meanwhile.")
    if key.results.filter(request_id=request_id).count() >= MAX_RESULTS:
        raise Conflict(f"“{key}” has reported {MAX_RESULTS} times on this request; more are not kept.")
    try:
        with transaction.atomic():
            result = CheckResult.objects.create(
                team=key.team,
                key=key,
                request_id=request_id,
                evidence_digest=evidence_digest,
                is_success=is_success,
                sentence=sentence,
                url=url,
                signed_at=signed.at,
                signed_digest=signed.digest,
            )
    except IntegrityError as error:
        raise Conflict("This very message was received before. Sign a new one.") from error
    after = {"request_id": request_id, "evidence_digest": evidence_digest, "is_success": is_success}
    record(actor, "check.reported", result, team=key.team, after=after, reason=sentence)
    return result


def check_reports(team: Any, *, request_id: int, evidence_digest: str) -> list[CheckReport]:
    """What gates count of a request: results on its present evidence by keys that are still trusted, newest first."""
    results = CheckResult.objects.for_team(team).standing().filter(request_id=request_id)
    return [
        CheckReport(result.key.name, result.is_success, result.sentence)
        for result in results.filter(evidence_digest=evidence_digest)[: MAX_KEYS * MAX_RESULTS]
    ]
