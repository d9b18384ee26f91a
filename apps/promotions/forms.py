"""Forms of the promotion workflow."""

from __future__ import annotations

from typing import Any

from django import forms
from django.db.models import QuerySet

from apps.deployments.models import Endpoint
from apps.promotions.models import Decision, Meaning


class PromotionForm(forms.Form):
    """Where to promote a version, and why."""

    endpoint = forms.ModelChoiceField(queryset=Endpoint.objects.none(), empty_label="Choose an endpoint")
    initial_weight = forms.IntegerField(
        label="Share of the traffic to start with, %",
        initial=100,
        min_value=1,
        max_value=100,
        help_text="100: it becomes the champion. Less: it starts as a canary beside the champion, and an operator"
        " raises its share. The approval binds it.",
    )
    justification = forms.CharField(
        label="Why",
        max_length=4_000,
        widget=forms.Textarea({"rows": 4}),
        help_text="What changed, and why it should serve. The reviewer reads this first.",
    )

    def __init__(self, *args: Any, endpoints: QuerySet[Endpoint], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["endpoint"].queryset = endpoints


class ReviewForm(forms.Form):
    """A signed decision."""

    decision = forms.ChoiceField(choices=Decision.choices, widget=forms.RadioSelect)
    meaning = forms.ChoiceField(choices=Meaning.choices, label="Meaning of your signature", widget=forms.RadioSelect)
    comment = forms.CharField(
        max_length=4_000, widget=forms.Textarea({"rows": 3}), help_text="Required. It becomes part of the record."
    )
    password = forms.CharField(
        label="Your password",
        max_length=128,
        strip=False,
        widget=forms.PasswordInput({"autocomplete": "current-password"}),
        help_text="Signing takes your password again.",
    )
    evidence_digest = forms.CharField(max_length=64, widget=forms.HiddenInput)

    def clean(self) -> dict[str, Any]:
        """The meaning has to fit the decision."""
        cleaned = super().clean() or {}
        decision, meaning = cleaned.get("decision"), cleaned.get("meaning")
        if decision and meaning and (meaning == Meaning.REJECTION) != (decision == Decision.REJECTED):
            self.add_error("meaning", "This does not fit the decision: choose the meaning that does.")
        return cleaned
