"""How an external check says over REST who it is: by the signature of what it posts."""

from __future__ import annotations

from typing import Any, Final

from django.contrib.auth.models import AnonymousUser
from rest_framework import authentication, exceptions
from rest_framework.request import Request

from apps.audit.actor import Actor
from apps.policies.checks import Signed, verify

REPORT_CHECK: Final = "policies.report_check"
"""No role and no scope has this permission: only a verified signature gives it."""
MAX_BODY_BYTES: Final = 16_384


class CheckSignatureAuthentication(authentication.BaseAuthentication):
    """``Countersign-Key``, ``Countersign-Timestamp`` and ``Countersign-Signature``: acts as the check, in its team."""

    def authenticate(self, request: Request) -> tuple[Any, Signed] | None:
        """Verify the signature; 401 for any that is not right, too old or of a revoked key, whatever the reason."""
        signature = request.headers.get("Countersign-Signature")
        if signature is None:
            return None
        plain = request._request
        if not 0 < int(plain.META.get("CONTENT_LENGTH") or 0) <= MAX_BODY_BYTES:
            raise exceptions.ParseError(f"The body has to be from 1 to {MAX_BODY_BYTES:,} bytes.")
        key_id, timestamp = (request.headers.get(f"Countersign-{name}", "") for name in ("Key", "Timestamp"))
        signed = verify(key_id, plain.path, timestamp, signature, plain.body)
        if signed is None:
            raise exceptions.AuthenticationFailed("The signature is not valid, or not of these five minutes.")
        plain.team = signed.key.team
        plain.actor = Actor(
            user_id=None,
            name=f"check {signed.key.name}",
            address=plain.META.get("REMOTE_ADDR", ""),
            request_id=plain.request_id,
            permissions=frozenset({REPORT_CHECK}),
        )
        return AnonymousUser(), signed

    def authenticate_header(self, request: Request) -> str:
        """What a 401 asks for."""
        return "Countersign-Signature"
