"""Forms of the registry."""

from __future__ import annotations

from django import forms

from apps.accounts.models import slug_validator
from apps.registry.models import Task


class ModelFilterForm(forms.Form):
    """What the list of models is narrowed to."""

    q = forms.CharField(max_length=63, required=False)


class ModelForm(forms.Form):
    """A new registered model."""

    name = forms.CharField(
        max_length=63,
        validators=[slug_validator],
        help_text="Lower-case letters, digits and hyphens, e.g. fraud-scorer.",
    )
    task = forms.ChoiceField(choices=Task.choices)
    description = forms.CharField(max_length=1_000, required=False, widget=forms.Textarea({"rows": 3}))


class VersionForm(forms.Form):
    """An upload."""

    file = forms.FileField(label="ONNX file", widget=forms.ClearableFileInput({"accept": ".onnx"}))
    notes = forms.CharField(
        max_length=4_000,
        required=False,
        widget=forms.Textarea({"rows": 3}),
        help_text="What changed since the version before.",
    )
    signature_bundle = forms.FileField(
        label="Signature",
        required=False,
        widget=forms.ClearableFileInput({"accept": ".sig,.json"}),
        help_text="An OpenSSF model signature over this file, as “model_signing sign” writes it.",
    )
    trained_by = forms.EmailField(
        max_length=254,
        required=False,
        help_text="Email of the team’s member who trained it, if it was not you: trainers do not approve.",
    )
    training_data = forms.CharField(
        max_length=20_000,
        required=False,
        widget=forms.Textarea({"rows": 3, "class": "mono"}),
        help_text="One line for each file: its SHA-256 and its name, as sha256sum writes them.",
    )


class AliasForm(forms.Form):
    """A name for a version."""

    name = forms.CharField(label="Alias", max_length=63, validators=[slug_validator], help_text="e.g. challenger")


class TrustedSignerForm(forms.Form):
    """Somebody whose signatures on artifacts the team believes."""

    name = forms.CharField(max_length=120, help_text="Who signs, e.g. Training pipeline.")
    pem = forms.CharField(
        label="Public key or certificate",
        max_length=65_536,
        widget=forms.Textarea({"rows": 6, "class": "mono"}),
        help_text="PEM: an elliptic-curve public key, or the certificate of an authority.",
    )
