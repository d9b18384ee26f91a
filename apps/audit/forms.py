"""Filters of the audit page and its API; both read the same query string."""

from django import forms


class AuditFilterForm(forms.Form):
    """Who, what, to what, when (UTC)."""

    actor = forms.CharField(required=False, max_length=200)
    action = forms.CharField(
        required=False,
        max_length=100,
        label="Action begins with",
        widget=forms.TextInput({"placeholder": "promotion."}),
    )
    obj = forms.CharField(required=False, max_length=200, label="Object")
    since = forms.DateTimeField(
        required=False, label="From (UTC)", widget=forms.DateTimeInput({"type": "datetime-local"})
    )
    until = forms.DateTimeField(
        required=False, label="Until (UTC)", widget=forms.DateTimeInput({"type": "datetime-local"})
    )
