"""Forms of datasets, evaluations and load tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django import forms

from apps.accounts.models import slug_validator
from apps.evaluation.load_results import Objective
from apps.evaluation.models import Arrivals, DatasetVersion
from apps.evaluation.services import MAX_CONCURRENCY, MAX_RATE, MAX_STEP_S, SLICE_TYPES


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

    slice_by = forms.ChoiceField(
        required=False, help_text="Each value of this column is evaluated on its own, too: gates can hold them apart."
    )
    reference = forms.TypedChoiceField(
        label="Reference data",
        required=False,
        coerce=int,
        empty_value=None,
        help_text="The training data, say: how far these rows have drifted from it is measured.",
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
        groups = [column["name"] for column in chosen.schema if column["type"] in SLICE_TYPES] if chosen else []
        self.fields["slice_by"].choices = [("", "–"), *((name, name) for name in groups)]
        self.fields["reference"].choices = [("", "–"), *((one.pk, str(one)) for one in choices)]
        if chosen:
            self.initial.setdefault("dataset_version", chosen.pk)
            self.initial.setdefault("target", target or next(reversed(names), ""))

    def clean_features(self) -> list[str]:
        """The columns, one per line."""
        return _lines(self.cleaned_data["features"])


class LoadTestForm(forms.Form):
    """With which rows, how hard and against which objective a version is driven."""

    dataset_version = forms.TypedChoiceField(
        label="Rows from",
        coerce=int,
        empty_value=None,
        required=False,
        help_text="The first 2,000 complete rows, one in a request. An endpoint’s predictions page keeps what its "
        "callers send as a dataset.",
    )
    max_concurrency = forms.IntegerField(
        label="Callers, at most",
        min_value=1,
        max_value=MAX_CONCURRENCY,
        initial=64,
        help_text="1, 2, 4 … callers, each sending its next request when it has its answer.",
    )
    step_s = forms.IntegerField(label="Seconds per step", min_value=1, max_value=MAX_STEP_S, initial=5)
    arrivals = forms.ChoiceField(
        label="Arrivals at fixed rates",
        choices=Arrivals.choices,
        initial=Arrivals.POISSON,
        help_text="At 30 to 90% of the capacity found; latency counts from when a request was due.",
    )
    slo_rate = forms.FloatField(label="Requests per second to hold", required=False, min_value=0, max_value=MAX_RATE)
    slo_p99_ms = forms.FloatField(label="p99 latency at that rate, at most (ms)", required=False, min_value=0)
    cpu_hour_price = forms.FloatField(
        label="Price of a CPU hour", required=False, min_value=0, help_text="In the currency that you reckon in."
    )
    slo_cost = forms.FloatField(label="Cost per thousand predictions, at most", required=False, min_value=0)
    features = forms.CharField(
        required=False,
        max_length=100_000,
        widget=forms.Textarea({"rows": 3}),
        help_text="One column per line, in the model’s order. Empty: as in the last evaluation on the dataset, else "
        "all columns, else all but the last.",
    )

    def __init__(
        self, data: Any = None, *, choices: Sequence[DatasetVersion], chosen: DatasetVersion | None = None
    ) -> None:
        super().__init__(data)
        named = [(str(one.pk), f"{one} ({one.row_count or 0:,} rows)") for one in choices]
        self.fields["dataset_version"].choices = [("", "made-up rows that fit the signature"), *named]
        if chosen is not None:
            self.initial["dataset_version"] = chosen.pk

    def clean_features(self) -> list[str]:
        """The columns, one per line."""
        return _lines(self.cleaned_data["features"])

    def options(self) -> dict[str, Any]:
        """The keywords of ``start_load_test``, beside versions."""
        given = self.cleaned_data
        names = ("max_concurrency", "step_s", "arrivals", "cpu_hour_price")
        objective = Objective(given["slo_rate"], given["slo_p99_ms"], given["slo_cost"])
        return {name: given[name] for name in names} | {"objective": objective, "features": given["features"] or None}


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
