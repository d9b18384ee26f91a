"""Forms of the promotion workflow."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from django import forms
from django.db.models import QuerySet
from django.utils import timezone

from apps.deployments.models import Endpoint
from apps.policies.approvals import Person
from apps.promotions.models import MEANINGS, Decision, Meaning, Severity
from apps.promotions.reviews import Condition

_CONDITION_ROWS: Final = 3
_DECISIONS: Final = (
    Decision.APPROVED,
    Decision.APPROVED_WITH_CONDITIONS,
    Decision.CHANGES_REQUESTED,
    Decision.REJECTED,
)
_MEANINGS: Final = (Meaning.APPROVAL, Meaning.RESPONSIBILITY, Meaning.CHANGES, Meaning.REJECTION)


class RevisionForm(forms.Form):
    """With which share a version starts, and why it should serve at all."""

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
        help_text="What changed, and why it should serve. The reviewers read this first.",
    )


class PromotionForm(RevisionForm):
    """Where to promote a version, and why."""

    endpoint = forms.ModelChoiceField(queryset=Endpoint.objects.none(), empty_label="Choose an endpoint")
    field_order = ("endpoint", "initial_weight", "justification")

    def __init__(self, *args: Any, endpoints: QuerySet[Endpoint], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["endpoint"].queryset = endpoints


class SignatureForm(forms.Form):
    """What every signature takes beside the person's confirmation: a reason, and the digest of what they saw."""

    comment = forms.CharField(
        max_length=4_000, widget=forms.Textarea({"rows": 3}), help_text="Required. It becomes part of the record."
    )
    approval_digest = forms.CharField(max_length=64, widget=forms.HiddenInput)


class ReviewForm(SignatureForm):
    """A signed decision."""

    decision = forms.ChoiceField(choices=[(row.value, row.label) for row in _DECISIONS], widget=forms.RadioSelect)
    meaning = forms.ChoiceField(
        choices=[(row.value, row.label) for row in _MEANINGS],
        label="Meaning of your signature",
        widget=forms.RadioSelect,
    )
    field_order = ("decision", "meaning", "comment")

    def clean(self) -> dict[str, Any]:
        """The meaning has to fit the decision."""
        cleaned = super().clean() or {}
        decision, meaning = cleaned.get("decision"), cleaned.get("meaning")
        if decision and meaning and meaning not in MEANINGS[decision]:
            self.add_error("meaning", "This does not fit the decision: choose the meaning that does.")
        return cleaned


class AfterwardsForm(SignatureForm):
    """A review of an emergency change after the fact."""

    decision = forms.ChoiceField(
        choices=[(Decision.APPROVED.value, "Approve it afterwards"), (Decision.REJECTED.value, "Reject: take it back")],
        widget=forms.RadioSelect,
    )
    field_order = ("decision", "comment")


class BreakGlassForm(forms.Form):
    """An emergency, and the first signature for it."""

    endpoint = forms.ModelChoiceField(queryset=Endpoint.objects.none(), empty_label="Choose an endpoint")
    reason = forms.CharField(
        label="What the emergency is",
        min_length=20,
        max_length=4_000,
        widget=forms.Textarea({"rows": 4}),
        help_text="Shown on the endpoint and in everybody’s inbox until the change has been reviewed.",
    )

    def __init__(self, *args: Any, endpoints: QuerySet[Endpoint], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["endpoint"].queryset = endpoints


class ConditionForm(forms.Form):
    """A condition of an approval; an empty one is none."""

    title = forms.CharField(label="Condition", max_length=300, required=False)
    owner = forms.TypedChoiceField(coerce=int, required=False, empty_value=None)
    severity = forms.ChoiceField(choices=Severity.choices, initial=Severity.MEDIUM, required=False)
    due_on = forms.DateField(
        label="Due", required=False, widget=forms.DateInput({"type": "date"}), initial=lambda: _in_a_week()
    )

    def __init__(self, *args: Any, people: list[Person], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["owner"].choices = [("", "Choose a person"), *((row.id, row.name) for row in people)]

    def clean(self) -> dict[str, Any]:
        """Whoever names a condition says who owes it, and by when."""
        cleaned = super().clean() or {}
        if cleaned.get("title"):
            for name, complaint in (("owner", "Say who owes it."), ("due_on", "Say by when.")):
                if not cleaned.get(name) and name not in self.errors:
                    self.add_error(name, complaint)
        return cleaned

    @property
    def condition(self) -> Condition | None:
        """What was filled in, if anything was."""
        row = self.cleaned_data
        if not row.get("title"):
            return None
        return Condition(row["title"], Severity(row["severity"] or Severity.MEDIUM), row["owner"], row["due_on"])


def condition_forms(data: Any, people: list[Person]) -> list[ConditionForm]:
    """A few rows to fill in; more conditions than that are another decision."""
    return [ConditionForm(data, prefix=f"condition-{row}", people=people) for row in range(_CONDITION_ROWS)]


class CommentForm(forms.Form):
    """Something to say."""

    body = forms.CharField(label="Comment", max_length=4_000, widget=forms.Textarea({"rows": 3}))


class ResolutionForm(forms.Form):
    """What was done about a condition."""

    resolution = forms.CharField(label="What was done", max_length=4_000, widget=forms.Textarea({"rows": 2}))


def _in_a_week() -> Any:
    return timezone.now().date() + timedelta(days=7)
