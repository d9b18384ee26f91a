"""Filters of the inference log, which the page and the API read from the same query string, and what to keep of it."""

from __future__ import annotations

from typing import Any

from django import forms
from django.http import QueryDict

from apps.accounts.models import slug_validator
from apps.core.errors import DomainError
from apps.monitoring.log_reader import LogFilter

OUTCOMES = (
    ("", "Any"),
    ("ok", "OK"),
    ("guardrail", "Guardrail"),
    ("rejected", "Rejected"),
    ("failed", "Failed"),
    ("shadow", "Shadow"),
)


class _Moment(forms.DateTimeInput):
    input_type = "datetime-local"


class LogFilterForm(forms.Form):
    """Which request, when (UTC), how it ended, which version, which rule was violated."""

    request_id = forms.CharField(required=False, max_length=256, label="Request id", strip=False)
    since = forms.DateTimeField(required=False, label="From (UTC)", widget=_Moment({"step": 1}))
    until = forms.DateTimeField(required=False, label="Until (UTC)", widget=_Moment({"step": 1}))
    outcome = forms.ChoiceField(required=False, choices=OUTCOMES)
    model_version = forms.IntegerField(required=False, label="Version", min_value=1, max_value=2**31 - 1)
    guardrail = forms.CharField(required=False, max_length=63)

    def clean(self) -> dict[str, Any]:
        """A span that ends before it begins is a slip, not an empty answer."""
        cleaned: dict[str, Any] = super().clean() or {}
        since, until = cleaned.get("since"), cleaned.get("until")
        if since and until and until < since:
            self.add_error("until", "This is before the beginning of the span.")
        return cleaned

    def wanted(self) -> LogFilter:
        """The filter of a valid form."""
        return LogFilter(**self.cleaned_data)


class ProvenanceForm(forms.Form):
    """A request, or a moment (UTC)."""

    request_id = forms.CharField(required=False, max_length=256, label="Request id", strip=False)
    at = forms.DateTimeField(required=False, label="Or at (UTC)", widget=_Moment({"step": 1}))

    def clean(self) -> dict[str, Any]:
        """One of the two."""
        cleaned: dict[str, Any] = super().clean() or {}
        if cleaned.get("request_id") and cleaned.get("at"):
            self.add_error("at", "Ask about a request or about a moment, not both.")
        return cleaned


class KeepRowsForm(forms.Form):
    """The dataset that takes the rows."""

    name = forms.CharField(
        label="Dataset",
        max_length=63,
        validators=[slug_validator],
        help_text="Lower-case letters, digits and hyphens. An existing dataset gets a new version.",
    )


def read_filter(query: QueryDict) -> LogFilter:
    """The filter in a query string. Raises ``DomainError`` for the first field that is not acceptable."""
    form = LogFilterForm(query)
    if not form.is_valid():
        field, messages = next(iter(form.errors.items()))
        raise DomainError(str(messages[0]), field=field)
    return form.wanted()
