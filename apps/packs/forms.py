"""Forms of cards and packs."""

from __future__ import annotations

from typing import Any

from django import forms

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
