"""Forms about people and tokens."""

from __future__ import annotations

from django import forms
from django.contrib.auth.forms import AuthenticationForm

from apps.accounts.roles import Role, Scope


class SignInForm(AuthenticationForm):
    """Email and password; the refusal is the same whatever was wrong."""

    username = forms.EmailField(
        label="Email", max_length=254, widget=forms.EmailInput({"autocomplete": "username", "autofocus": True})
    )
    error_messages = {
        "invalid_login": "Email and password do not fit. Try again, or ask an admin of your team to reset them.",
        "inactive": "Email and password do not fit. Try again, or ask an admin of your team to reset them.",
    }


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
