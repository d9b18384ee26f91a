"""Filters of the audit page, its exports and its API; all read the same query string."""

from __future__ import annotations

from typing import Any

from django import forms

MAX_SEQ = 10**17


class AuditFilterForm(forms.Form):
    """Who, what, to what, when (UTC), in which request."""

    actor = forms.CharField(required=False, max_length=200)
    action = forms.CharField(
        required=False,
        max_length=100,
        label="Action begins with",
        widget=forms.TextInput({"placeholder": "promotion."}),
    )
    obj = forms.CharField(required=False, max_length=200, label="Object")
    request_id = forms.CharField(required=False, max_length=64, label="Request id")
    since = forms.DateTimeField(
        required=False, label="From (UTC)", widget=forms.DateTimeInput({"type": "datetime-local"})
    )
    until = forms.DateTimeField(
        required=False, label="Until (UTC)", widget=forms.DateTimeInput({"type": "datetime-local"})
    )


class AuditExportForm(AuditFilterForm):
    """The same filters, and where to go on: after which ``seq``, and from which checkpoint's size."""

    after = forms.IntegerField(required=False, min_value=0, max_value=MAX_SEQ)
    since_size = forms.IntegerField(required=False, min_value=0, max_value=MAX_SEQ)

    def options(self) -> dict[str, Any]:
        """``filters``, ``after`` and ``since_size`` for the export; call it on a valid form."""
        given = dict(self.cleaned_data)
        after, since_size = given.pop("after") or 0, given.pop("since_size") or 0
        return {"filters": given, "after": after, "since_size": since_size}
