"""Forms of datasets and evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django import forms

from apps.accounts.models import slug_validator
from apps.evaluation.models import DatasetVersion


class DatasetForm(forms.Form):
    """An upload: a new dataset, or the next version of one."""

    name = forms.CharField(
        max_length=63,
        validators=[slug_validator],
        help_text="Lower-case letters, digits and hyphens. An existing dataset gets a new version.",
    )
    description = forms.CharField(max_length=500, required=False, help_text="For a new dataset: what its rows are.")
    file = forms.FileField(
        label="CSV or Parquet file",
        widget=forms.ClearableFileInput({"accept": ".csv,.tsv,.txt,.parquet"}),
        help_text="A CSV in UTF-8 with a header line, or Parquet with plain columns.",
    )


class EvaluationForm(forms.Form):
    """What to score a model version on. The columns to choose from are those of the chosen dataset version."""

    dataset_version = forms.TypedChoiceField(
        coerce=int,
        widget=forms.Select(
            {
                "hx-get": "",
                "hx-target": "#evaluation-form",
                "hx-trigger": "change",
                "hx-include": "this",
                "hx-push-url": "false",
            }
        ),
    )
    target = forms.ChoiceField(label="Target column", help_text="The true label or value.")
    features = forms.CharField(
        required=False,
        strip=True,
        max_length=100_000,
        widget=forms.Textarea({"rows": 3}),
        help_text="One column per line, in the model's order. Empty: all but the target, in the dataset's order.",
    )

    def __init__(
        self,
        data: Any = None,
        *,
        choices: Sequence[DatasetVersion],
        chosen: DatasetVersion | None,
        target: str = "",
        url: str,
    ) -> None:
        super().__init__(data)
        versions, targets = self.fields["dataset_version"], self.fields["target"]
        versions.choices = [(one.pk, f"{one} ({one.row_count or 0:,} rows)") for one in choices]
        versions.widget.attrs["hx-get"] = url
        names = [column["name"] for column in chosen.schema] if chosen else []
        targets.choices = [(name, name) for name in names]
        if chosen:
            self.initial.setdefault("dataset_version", chosen.pk)
            self.initial.setdefault("target", target or next(reversed(names), ""))

    def clean_features(self) -> list[str]:
        """The columns, one per line."""
        lines = str(self.cleaned_data["features"]).splitlines()
        return [line.strip() for line in lines if line.strip()]
