"""Forms about endpoints."""

from __future__ import annotations

import json
from typing import Any

from django import forms

from apps.accounts.models import slug_validator


class EndpointForm(forms.Form):
    """A new endpoint."""

    name = forms.CharField(
        max_length=63,
        validators=[slug_validator],
        help_text="Callers use it in the address: lower-case letters, digits and hyphens.",
    )
    description = forms.CharField(max_length=500, required=False, widget=forms.Textarea({"rows": 2}))


class RollbackForm(forms.Form):
    """Which champion the person saw when they decided."""

    deployment = forms.IntegerField(min_value=1, widget=forms.HiddenInput)


class TryForm(forms.Form):
    """A request body in the Open Inference Protocol."""

    body = forms.CharField(
        label="Request",
        max_length=200_000,
        strip=True,
        widget=forms.Textarea({"rows": 12, "class": "mono", "spellcheck": "false"}),
    )

    def clean_body(self) -> dict[str, Any]:
        """The JSON object in the text."""
        try:
            body = json.loads(self.cleaned_data["body"], parse_constant=_refuse_constant)
            json.dumps(body, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise forms.ValidationError(f"This is not JSON: {error}.") from error
        if not isinstance(body, dict):
            raise forms.ValidationError("The request is a JSON object with “inputs”.")
        return body


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
