"""Forms about endpoints."""

from __future__ import annotations

import json
from typing import Any

from django import forms
from django.db.models import QuerySet
from django.http import QueryDict

from apps.accounts.models import slug_validator
from apps.deployments.configuration import MAX_FALLBACK_CHARACTERS, SETTINGS
from apps.deployments.models import BOUNDS, PRODUCTION, Deployment, Endpoint, GuardrailAction
from apps.deployments.traffic import Split
from apps.registry.models import ModelVersion
from inference.guardrails import MAX_LENGTH


class EndpointForm(forms.Form):
    """A new endpoint."""

    name = forms.CharField(
        max_length=63,
        validators=[slug_validator],
        help_text="Callers use it in the address: lower-case letters, digits and hyphens.",
    )
    description = forms.CharField(max_length=500, required=False, widget=forms.Textarea({"rows": 2}))
    environment = forms.CharField(
        max_length=63,
        validators=[slug_validator],
        initial=PRODUCTION,
        required=False,
        help_text="production, staging or a name of your own: it decides which policy holds, and cannot be changed.",
    )

    def clean_environment(self) -> str:
        """Production, unless another one is named."""
        return str(self.cleaned_data["environment"] or PRODUCTION)


class RollbackForm(forms.Form):
    """Which split the person saw when they decided."""

    split = forms.CharField(max_length=200, widget=forms.HiddenInput)


class SplitForm(forms.Form):
    """A share for each version that answers, and the split that the person saw."""

    split = forms.CharField(max_length=200, widget=forms.HiddenInput)

    def __init__(self, data: QueryDict | None = None, *, split: Split) -> None:
        super().__init__(data, initial={"split": split.state})
        self.deployments = split.answering
        for row in split.answering:
            self.fields[f"weight_{row.pk}"] = forms.IntegerField(
                label=str(row.model_version), min_value=0, max_value=100, initial=row.weight
            )

    @property
    def weights(self) -> dict[int, int]:
        """The shares of a valid form by deployment id."""
        return {row.pk: self.cleaned_data[f"weight_{row.pk}"] for row in self.deployments}

    def rows(self) -> list[tuple[Deployment, forms.BoundField]]:
        """Each deployment with its field."""
        return [(row, self[f"weight_{row.pk}"]) for row in self.deployments]


class ShadowForm(forms.Form):
    """A version to send copies to."""

    model_version = forms.ModelChoiceField(
        label="Version", queryset=ModelVersion.objects.none(), empty_label="Choose a version"
    )

    def __init__(self, *args: Any, versions: QuerySet[ModelVersion], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["model_version"].queryset = versions


class SettingsForm(forms.Form):
    """What an endpoint can be told beside its versions and rules."""

    sticky_header = forms.CharField(
        max_length=64,
        required=False,
        help_text="Requests with the same value of this header go to the same version while the split stays.",
    )
    sticky_input = forms.CharField(
        max_length=200,
        required=False,
        help_text="Or: an input whose first row is the key, for instance a customer’s number.",
    )
    queue_rows = forms.IntegerField(
        label="Rows waiting", help_text="What comes when so many rows wait already is refused with 503."
    )
    timeout_ms = forms.IntegerField(
        label="Time to answer, ms", help_text="A request that is not answered by then is given up."
    )
    batch_rows = forms.IntegerField(
        label="Rows run together", help_text="More run faster together; fewer answer the first one sooner."
    )
    memory_mb = forms.IntegerField(
        label="Memory of each version, MB", required=False, help_text="A version that needs more is not loaded."
    )
    cpu_cores = forms.FloatField(
        label="CPU cores of each version",
        required=False,
        help_text="What its runs may take on average, for instance 0.5; without a bound, as many as there are.",
    )
    is_log_strict = forms.BooleanField(
        label="Strict log: answer only when the prediction is on the disk",
        required=False,
        help_text="Survives a power cut, not only the end of a process. Costs a few milliseconds.",
    )
    payload_cap_bytes = forms.IntegerField(
        label="Largest tensor kept, bytes", help_text="A larger one is kept as its digest and shape."
    )
    redacted = forms.CharField(
        label="Redacted tensors",
        required=False,
        max_length=20_000,
        widget=forms.Textarea({"rows": 3, "class": "mono", "spellcheck": "false"}),
        help_text="Inputs and outputs whose values are never written down, one name on a line.",
    )
    retention_days = forms.IntegerField(
        label="Keep the log, days",
        required=False,
        help_text="Older predictions are deleted, a day (UTC) at a time. Empty: kept for ever.",
    )

    def __init__(self, data: QueryDict | None = None, *, endpoint: Endpoint) -> None:
        initial = {name: getattr(endpoint, name) for name in SETTINGS}
        super().__init__(data, initial=initial | {"redacted": "\n".join(endpoint.redacted)})
        for name, (low, high) in BOUNDS.items():
            self.fields[name].widget.attrs |= {"min": low, "max": high}

    def clean_redacted(self) -> list[str]:
        """The names, each once."""
        return list(dict.fromkeys(filter(None, (line.strip() for line in self.cleaned_data["redacted"].splitlines()))))


class GuardrailForm(forms.Form):
    """A rule, and a row to try it on."""

    name = forms.CharField(
        max_length=63, validators=[slug_validator], help_text="Callers see it when the rule refuses their request."
    )
    requires = forms.CharField(
        label="What must hold",
        max_length=MAX_LENGTH,
        widget=forms.Textarea({"rows": 3, "class": "mono", "spellcheck": "false"}),
        help_text="For each row. Beside this form there are the names to use, and examples.",
    )
    action = forms.ChoiceField(
        label="Where it does not", choices=GuardrailAction.choices, widget=forms.RadioSelect, initial="flag"
    )
    fallback = forms.CharField(
        label="Fallback answer",
        required=False,
        max_length=MAX_FALLBACK_CHARACTERS,
        widget=forms.Textarea({"rows": 3, "class": "mono", "spellcheck": "false"}),
        help_text="JSON: a value for every output, for one row. Only for the action “fall back”.",
    )
    sample = forms.CharField(
        label="A row to test it on",
        required=False,
        max_length=20_000,
        widget=forms.Textarea({"rows": 4, "class": "mono", "spellcheck": "false"}),
        help_text="JSON: values by name; null is a missing number. It is not saved.",
    )

    def clean_fallback(self) -> dict[str, Any] | None:
        """The answer; None if there is none."""
        return _json_object(self.cleaned_data["fallback"]) if self.cleaned_data["fallback"].strip() else None

    def clean_sample(self) -> dict[str, Any]:
        """The row; empty if there is none."""
        return _json_object(self.cleaned_data["sample"]) if self.cleaned_data["sample"].strip() else {}

    @property
    def rule(self) -> dict[str, Any]:
        """What is saved of a valid form."""
        return {name: self.cleaned_data[name] for name in ("name", "requires", "action", "fallback")}


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
        return _json_object(self.cleaned_data["body"])


def _json_object(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
        json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise forms.ValidationError(f"This is not JSON: {error}.") from error
    if not isinstance(document, dict):
        raise forms.ValidationError("This must be a JSON object: values by name in braces.")
    return document


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
