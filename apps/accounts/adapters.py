"""What django-allauth asks the product: who may sign in, what is recorded, how factors are kept."""

from __future__ import annotations

import base64
import hashlib
from functools import cache as once
from io import BytesIO
from typing import Any

import qrcode
from allauth.account.adapter import DefaultAccountAdapter
from allauth.core.internal import ratelimit
from allauth.mfa.adapter import DefaultMFAAdapter
from cryptography.fernet import Fernet
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from qrcode.image.svg import SvgPathFillImage

from apps.accounts import entrance
from apps.accounts.models import User

_MISMATCH = "Email and password do not fit. Try again, or ask an admin of your team."


class AccountAdapter(DefaultAccountAdapter):  # type: ignore[misc]  # the library has no types
    """Passwords and sessions."""

    error_messages = DefaultAccountAdapter.error_messages | {
        "email_password_mismatch": _MISMATCH,
        "invalid_login": _MISMATCH,
        "too_many_login_attempts": entrance.TOO_MANY_TRIES,
        "rate_limited": entrance.TOO_MANY_TRIES,
        "incorrect_code": "That code does not fit. Wait for the next one and try again.",
    }

    def is_open_for_signup(self, request: HttpRequest) -> bool:
        """People come by invitation or by the organisation's own sign-in, never by themselves."""
        return False

    def _get_login_attempts_cache_key(self, request: HttpRequest, **credentials: Any) -> str:
        # Not the library's key: that holds the Host header, whose port is the caller's choice.
        return str(credentials.get("email", "")).strip().lower()

    def pre_authenticate(self, request: HttpRequest, **credentials: Any) -> None:
        """Refuse when there were too many failed tries, of this account or from this address; and record that.

        Addresses are counted apart, because the library forgets a count whenever somebody's second factor is right.
        """
        self._address_usage = ratelimit.consume(request, app="allauth.account", action="login_failed_address")
        try:
            if not self._address_usage:
                raise self.validation_error("too_many_login_attempts")
            super().pre_authenticate(request, **credentials)
        except ValidationError:
            entrance.record_lockout(request, str(credentials.get("email", "")))
            raise

    def authenticate(self, request: HttpRequest, **credentials: Any) -> User | None:
        """The person, or None for a wrong password, no account, and a person who may not sign in, all alike."""
        user: User | None = super().authenticate(request, **credentials)
        if user is None or not entrance.may_sign_in(user):
            return None
        self._address_usage.rollback()
        return user

    def authentication_failed(self, request: HttpRequest, **credentials: Any) -> None:
        """Record it."""
        entrance.record_failure(request, str(credentials.get("email", "")))

    @transaction.atomic
    def login(self, request: HttpRequest, user: User) -> None:
        """Begin the session, and record it in the same transaction."""
        super().login(request, user)
        entrance.record_sign_in(request, user)

    def respond_user_inactive(self, request: HttpRequest, user: User) -> HttpResponse:
        """Sent back to the sign-in page like anybody else."""
        return entrance.refused(request, _MISMATCH)

    def add_message(self, *args: Any, **kwargs: Any) -> None:
        """The pages say what happened; the library's own messages would say it twice."""

    def send_notification_mail(self, *args: Any, **kwargs: Any) -> None:
        """The product sends no mail; the audit log tells."""


class FactorAdapter(DefaultMFAAdapter):  # type: ignore[misc]  # the library has no types
    """Second factors: their secrets are encrypted with a key that is not in the database."""

    error_messages = DefaultMFAAdapter.error_messages | {
        "incorrect_code": "That does not fit. Wait for the next code and try again.",
    }

    def build_totp_svg(self, url: str) -> str:
        """The QR code on white, so that it can be scanned from a dark page, too."""
        picture = BytesIO()
        qrcode.make(url, image_factory=SvgPathFillImage).save(picture)
        return picture.getvalue().decode()

    def encrypt(self, text: str) -> str:
        """Encrypt what the database keeps."""
        return _cipher().encrypt(text.encode()).decode()

    def decrypt(self, encrypted_text: str) -> str:
        """Read it again."""
        return _cipher().decrypt(encrypted_text.encode()).decode()


@once
def _cipher() -> Fernet:
    secret = settings.INSTALLATION.secret("factor_key")
    return Fernet(base64.urlsafe_b64encode(hashlib.sha256(secret.encode()).digest()))
