"""Forms about people and tokens."""

from __future__ import annotations

import struct
from ipaddress import ip_network
from typing import Any

from allauth.account.forms import LoginForm
from allauth.core.internal.cryptokit import normalize_user_code
from allauth.mfa.adapter import get_adapter as get_factor_adapter
from allauth.mfa.base.forms import AuthenticateForm
from allauth.mfa.webauthn.forms import AddWebAuthnForm, AuthenticateWebAuthnForm, LoginWebAuthnForm
from django import forms
from django.core.cache import cache

from apps.accounts.roles import Role, Scope

MAX_NETWORKS = 20
_CODE_REPLAY_S = 150
"""Longer than any code is valid."""


class SignInForm(LoginForm):  # type: ignore[misc]  # the library has no types
    """Email and password; the refusal is the same whatever was wrong."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["login"] = forms.EmailField(
            label="Email", max_length=254, widget=forms.EmailInput({"autocomplete": "username", "autofocus": True})
        )
        self.fields["password"] = forms.CharField(
            max_length=128, strip=False, widget=forms.PasswordInput({"autocomplete": "current-password"})
        )


class CodeForm(AuthenticateForm):  # type: ignore[misc]  # the library has no types
    """A code of the authenticator app, or a recovery code. None is good twice."""

    code = forms.CharField(
        max_length=32,
        widget=forms.TextInput({"autocomplete": "one-time-code", "inputmode": "numeric"}),
        help_text="Six digits from your authenticator app, or one of your recovery codes.",
    )

    def clean_code(self) -> str:
        """The right code, for the first time. The library remembers one for half as long as it is valid."""
        code = str(super().clean_code())
        if not cache.add(f"used-code:{self.user.pk}:{normalize_user_code(code)}", True, timeout=_CODE_REPLAY_S):
            raise get_factor_adapter().validation_error("incorrect_code")
        return code


class _PasskeyAnswer:
    """What a browser answered for a passkey: the caller's JSON, which the library expects to be well-formed."""

    def full_clean(self: Any) -> None:
        """An odd answer is a wrong one."""
        try:
            super().full_clean()  # type: ignore[misc]
        except (AttributeError, LookupError, TypeError, ValueError, struct.error):
            self.add_error(None, "That passkey does not fit. Try again.")


class PasskeyForm(_PasskeyAnswer, AddWebAuthnForm):  # type: ignore[misc]  # the library has no types
    """A new passkey: the browser's answer, and what to call it."""

    name = forms.CharField(max_length=60, help_text="Where it is, e.g. “work laptop”.")
    passwordless = None  # always: it stands for email and password


class PasskeyCheckForm(_PasskeyAnswer, AuthenticateWebAuthnForm):  # type: ignore[misc]
    """A passkey of a person who is known already."""


class PasskeySignInForm(_PasskeyAnswer, LoginWebAuthnForm):  # type: ignore[misc]
    """A passkey that says who the person is."""


class PasswordForm(forms.Form):
    """Another password."""

    password = forms.CharField(
        label="New password",
        max_length=128,
        strip=False,
        widget=forms.PasswordInput({"autocomplete": "new-password"}),
        help_text="At least 12 characters, and none of the common ones. It never expires.",
    )


class InvitationForm(forms.Form):
    """Whom to invite, as what."""

    email = forms.EmailField(max_length=254)
    roles = forms.MultipleChoiceField(choices=Role.choices, widget=forms.CheckboxSelectMultiple)


class AcceptInvitationForm(forms.Form):
    """Name and password of somebody who was invited."""

    name = forms.CharField(max_length=120, widget=forms.TextInput({"autocomplete": "name"}))
    password = forms.CharField(
        max_length=128,
        strip=False,
        widget=forms.PasswordInput({"autocomplete": "new-password"}),
        help_text="At least 12 characters. If you have an account already, enter its password.",
    )


class MemberForm(forms.Form):
    """A member's roles and whether they are active."""

    roles = forms.MultipleChoiceField(choices=Role.choices, widget=forms.CheckboxSelectMultiple)
    is_active = forms.BooleanField(required=False, label="Active")


class NetworksField(forms.CharField):
    """CIDR ranges, separated by commas or blanks, as a list of canonical ones."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            label="Only from",
            required=False,
            max_length=1_000,
            help_text="Networks like 10.20.0.0/16, separated by commas. Empty: from everywhere. A token with a range"
            " is for this console’s API; inference does not take it.",
            **kwargs,
        )

    def clean(self, value: Any) -> Any:
        """Raises ``ValidationError`` for what is no network, and for more than ``MAX_NETWORKS``."""
        parts = str(super().clean(value)).replace(",", " ").split()
        if len(parts) > MAX_NETWORKS:
            raise forms.ValidationError(f"At most {MAX_NETWORKS} networks.")
        try:
            return [str(ip_network(part)) for part in parts]
        except ValueError as error:
            raise forms.ValidationError(f"Write networks like 10.20.0.0/16 or 2001:db8::/32: {error}.") from error


class TokenForm(forms.Form):
    """A new token."""

    name = forms.CharField(max_length=80, help_text="What it is for, e.g. “nightly training job”.")
    scopes = forms.MultipleChoiceField(choices=Scope.choices, widget=forms.CheckboxSelectMultiple)
    lifetime_days = forms.TypedChoiceField(
        label="Expires after",
        coerce=int,
        choices=[(30, "30 days"), (90, "90 days"), (365, "1 year")],
        initial=90,
    )
    networks = NetworksField()


class ServiceAccountForm(forms.Form):
    """A new service account."""

    name = forms.CharField(max_length=120, help_text="The program, e.g. “nightly training”.")
    roles = forms.MultipleChoiceField(
        choices=Role.choices,
        widget=forms.CheckboxSelectMultiple,
        help_text="Its tokens can do no more than these, and never approve.",
    )


class GroupMappingForm(forms.Form):
    """Which role a group of the organisation has."""

    group = forms.CharField(max_length=200)
    role = forms.ChoiceField(choices=Role.choices)


class SecondFactorForm(forms.Form):
    """Whether the team wants a second factor."""

    is_required = forms.BooleanField(required=False, label="Members need a second factor")
