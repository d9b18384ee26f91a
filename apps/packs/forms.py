"""Forms of cards and packs."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

from django import forms

from apps.packs.models import PackKind
from apps.registry.cards import MAX_SECTION_CHARACTERS, SECTIONS


class CardForm(forms.Form):
    """A model card: a field for each section, and the revision that it is based on."""

    based_on = forms.IntegerField(min_value=0, max_value=2**31 - 1, widget=forms.HiddenInput)
    summary = forms.CharField(label="What changed", max_length=200, required=False)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for section in SECTIONS:
            self.fields[section.key] = forms.CharField(
                label=section.title,
                max_length=MAX_SECTION_CHARACTERS,
                required=False,
                help_text=section.asks,
                widget=forms.Textarea({"rows": 7, "class": "mono"}),
            )
        self.order_fields(["based_on", *(section.key for section in SECTIONS), "summary"])

    @property
    def sections(self) -> dict[str, str]:
        """Section key -> Markdown."""
        return {section.key: self.cleaned_data[section.key] for section in SECTIONS}


class CardReviewForm(forms.Form):
    """A reviewer's word on a revision."""

    revision = forms.IntegerField(min_value=1, max_value=2**31 - 1, widget=forms.HiddenInput)
    verdict = forms.ChoiceField(
        label="Verdict",
        choices=(("reviewed", "It is right and complete"), ("changes", "Changes are needed")),
        widget=forms.RadioSelect,
    )
    comment = forms.CharField(max_length=4_000, widget=forms.Textarea({"rows": 3}))


class PackForm(forms.Form):
    """What a new pack is about; a period belongs to an endpoint alone, its days are UTC and both are included."""

    kind = forms.ChoiceField(label="About", choices=PackKind.choices)
    promotion = forms.IntegerField(label="Promotion request", min_value=1, max_value=2**63 - 1, required=False)
    name = forms.CharField(label="Model or endpoint", max_length=63, required=False)
    first_day = forms.DateField(required=False, widget=forms.DateInput({"type": "date"}), help_text="UTC, included.")
    last_day = forms.DateField(required=False, widget=forms.DateInput({"type": "date"}), help_text="UTC, included.")

    def clean(self) -> dict[str, Any]:
        """Ask for what this kind of pack needs."""
        values = super().clean() or {}
        needed: dict[str, list[str]] = {
            PackKind.PROMOTION: ["promotion"],
            PackKind.MODEL: ["name"],
            PackKind.ENDPOINT: ["name", "first_day", "last_day"],
        }
        for field in needed.get(values.get("kind", ""), []):
            if field not in self.errors and not values.get(field):
                self.add_error(field, "This kind of pack needs it.")
        return values

    @property
    def period(self) -> dict[str, datetime]:
        """``since`` and ``until`` of an endpoint's pack; empty for the others."""
        if self.cleaned_data["kind"] != PackKind.ENDPOINT:
            return {}
        first, last = self.cleaned_data["first_day"], self.cleaned_data["last_day"]
        return {"since": _midnight(first), "until": _midnight(last + timedelta(days=1))}


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
