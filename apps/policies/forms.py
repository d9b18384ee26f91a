"""Forms about policies. A policy is edited as one form with rows, and read back as a document."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from django import forms
from django.db.models import QuerySet
from django.http import QueryDict

from apps.accounts.models import Membership, slug_validator
from apps.core.errors import DomainError
from apps.policies.documents import (
    APPROVER_ROLES,
    DEFAULT_MIN_ROWS,
    FALLBACK_WORDS,
    FORMAT,
    GATES,
    MAX_APPROVALS,
    MAX_ENTRIES,
    METRICS,
    RATES,
    GateRule,
    PolicyDocument,
    Tier,
)
from apps.policies.models import CheckKeyKind
from apps.policies.risk import QUESTIONS

_MODES: Final = (("PREVENT", "Required"), ("WARN", "Warns"))
_OFF_OR_MODE: Final = (("", "Off"), *_MODES)
_FALLBACKS: Final = [(key.value, words[0].upper() + words[1:]) for key, words in FALLBACK_WORDS.items()]
_ROW_GATES: Final = ("metric", "champion", "slice", "fairness")
"""Gates of which a policy has any number, one in a row."""
FACT_GATES: Final = tuple(name for name, kind in GATES.items() if not kind.needs)
LIMIT_GATES: Final = tuple(name for name, kind in GATES.items() if kind.needs == {"limit"})
_DAYS: Final = tuple(enumerate(("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")))


class ApprovalRow(forms.Form):
    """So many approvals from one role or group."""

    source = forms.ChoiceField(label="Role or group")
    count = forms.IntegerField(label="How many", min_value=1, max_value=MAX_APPROVALS, required=False, initial=1)

    def __init__(self, *args: Any, sources: Sequence[tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["source"].choices = [("", "–"), *sources]


class GateRow(forms.Form):
    """A gate about a metric."""

    gate = forms.ChoiceField(label="Gate", choices=[("", "–"), *((name, GATES[name].label) for name in _ROW_GATES)])
    # A browser sends the first choice of a row that nobody touched: as the initial value it counts as no change.
    metric = forms.ChoiceField(
        label="Metric",
        initial="accuracy",
        choices=[*((key, label) for key, (label, _) in METRICS.items()), *RATES.items()],
    )
    limit = forms.FloatField(label="Bound, margin or gap", required=False)
    column = forms.CharField(label="Slice by column", max_length=200, required=False)
    min_rows = forms.IntegerField(label="Rows a slice needs", min_value=1, required=False)
    dataset = forms.CharField(label="Dataset", max_length=63, required=False)
    mode = forms.ChoiceField(label="Mode", choices=_MODES, initial="PREVENT")


class CheckRow(forms.Form):
    """A gate that waits for an external check."""

    check = forms.ChoiceField(label="External check")
    mode = forms.ChoiceField(label="Mode", choices=_MODES, initial="PREVENT")

    def __init__(self, *args: Any, checks: Iterable[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["check"].choices = [("", "–"), *((name, name) for name in checks)]


class FreezeRow(forms.Form):
    """A freeze window: with days it comes back every week, without it is once."""

    name = forms.CharField(label="Name", max_length=100)
    time_zone = forms.CharField(label="Time zone", max_length=100, initial="UTC")
    starts = forms.CharField(label="From", max_length=20)
    ends = forms.CharField(label="To", max_length=20)
    days = forms.TypedMultipleChoiceField(
        label="Every", choices=_DAYS, coerce=int, required=False, widget=forms.SelectMultiple({"size": 3})
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["starts"].widget.attrs["placeholder"] = "2026-12-24T18:00 or 18:00"
        self.fields["ends"].widget.attrs["placeholder"] = "2027-01-02T08:00 or 08:00"


class TermsForm(forms.Form):
    """What a policy says once: times, fallbacks, and gates without rows of their own."""

    wait_minutes = forms.IntegerField(
        label="Wait between approval and rollout, minutes", min_value=0, max_value=30 * 24 * 60
    )
    request_lifetime_days = forms.IntegerField(
        label="A request expires after days without a decision", min_value=1, max_value=365
    )
    approval_lifetime_days = forms.IntegerField(
        label="An approval expires after days without a rollout", min_value=1, max_value=365
    )
    fallback = forms.ChoiceField(label="If an approval is revoked in service", choices=_FALLBACKS)
    attestation_days = forms.IntegerField(
        label="A version in service is attested again every so many days",
        min_value=1,
        max_value=3_650,
        required=False,
        help_text="Empty: never.",
    )
    attestation_fallback = forms.ChoiceField(label="If an attestation is overdue", choices=_FALLBACKS)
    reason = forms.CharField(
        label="Why",
        max_length=2_000,
        widget=forms.Textarea({"rows": 3}),
        help_text="The second compliance officer reads this first.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in (*LIMIT_GATES, *FACT_GATES):
            self.fields[f"mode_{name}"] = forms.ChoiceField(
                label=GATES[name].label, choices=_OFF_OR_MODE, required=False
            )
        for name in LIMIT_GATES:
            self.fields[f"limit_{name}"] = forms.FloatField(
                label="Limit", required=False, widget=forms.NumberInput({"step": "any"})
            )

    def gate_rows(self) -> list[tuple[forms.BoundField, forms.BoundField | None]]:
        """Mode and, where there is one, limit of each gate that a policy has once."""
        return [
            (self[f"mode_{name}"], self[f"limit_{name}"] if name in LIMIT_GATES else None)
            for name in (*LIMIT_GATES, *FACT_GATES)
        ]

    def gates(self) -> list[dict[str, Any]]:
        """Those that are not off, as a document has them."""
        chosen = self.cleaned_data
        found: list[dict[str, Any]] = []
        for name in (*LIMIT_GATES, *FACT_GATES):
            if mode := chosen[f"mode_{name}"]:
                limit = {"limit": chosen[f"limit_{name}"]} if name in LIMIT_GATES else {}
                found.append({"gate": name, "mode": mode} | limit)
        return found


class PolicyEditor:
    """One form over a whole policy document: ``terms`` and four lists of rows."""

    def __init__(
        self, data: QueryDict | None, *, document: PolicyDocument, groups: Iterable[str], checks: Iterable[str]
    ) -> None:
        sources = [(f"role:{role}", f"Role: {name}") for role, name in APPROVER_ROLES.items()]
        named = {rule.check for rule in document.gates if rule.check}
        in_force = {rule.source for rule in document.approvals} | {f"group:{name}" for name in groups}
        sources += [(one, f"Group: {one[6:]}") for one in sorted(in_force) if one.startswith("group:")]
        initial = document.as_json()
        self.terms = TermsForm(data, initial=_initial_terms(document))
        self.approvals = _rows(ApprovalRow, data, "approvals", initial["approvals"], sources=sources)
        self.gates = _rows(GateRow, data, "gates", _with_gate(initial, _ROW_GATES), extra=3)
        self.checks = _rows(
            CheckRow, data, "checks", _with_gate(initial, ("check",)), extra=1, checks=sorted({*checks, *named})
        )
        self.freezes = _rows(FreezeRow, data, "freezes", initial["freeze_windows"], extra=1)
        self.document = document

    @property
    def parts(self) -> tuple[Any, ...]:
        """Everything that is validated."""
        return (self.terms, self.approvals, self.gates, self.checks, self.freezes)

    def is_valid(self) -> bool:
        """Whether the form is filled in right and makes a document; ``document`` is that document then."""
        valid = [part.is_valid() for part in self.parts]  # all of them, so that every message is there
        if not all(valid):
            if not self.terms.errors:
                self.terms.add_error(None, "A row below is not complete. Its message stands beside it.")
            return False
        try:
            self.document = PolicyDocument.from_json(self._as_json())
        except DomainError as error:
            self.terms.add_error(None, error.message)
            return False
        return True

    def _as_json(self) -> dict[str, Any]:
        terms = self.terms.cleaned_data
        once = ("wait_minutes", "request_lifetime_days", "approval_lifetime_days", "fallback")
        attestation = {"period_days": terms["attestation_days"], "fallback": terms["attestation_fallback"]}
        gates = [_as_gate(row) for row in _kept(self.gates)]
        checks = [{"gate": "check"} | row for row in _kept(self.checks)]
        return {
            "format": FORMAT,
            "approvals": [row | {"count": row["count"] or 1} for row in _kept(self.approvals)],
            "gates": [*gates, *self.terms.gates(), *checks],
            "freeze_windows": _kept(self.freezes),
            "attestation": attestation if terms["attestation_days"] else None,
        } | {name: terms[name] for name in once}


def _rows(
    form: type[forms.Form], data: QueryDict | None, prefix: str, initial: Any, *, extra: int = 2, **kwargs: Any
) -> Any:
    factory = forms.formset_factory(
        form, extra=extra, can_delete=True, max_num=MAX_ENTRIES, absolute_max=MAX_ENTRIES, validate_max=True
    )
    return factory(data, prefix=prefix, initial=initial, form_kwargs=kwargs)


def _kept(rows: Any) -> list[dict[str, Any]]:
    """What the rows say that are neither empty nor removed."""
    filled = [form.cleaned_data for form in rows if form.has_changed() or form.initial]
    return [{key: value for key, value in row.items() if key != "DELETE"} for row in filled if not row.get("DELETE")]


def _as_gate(row: dict[str, Any]) -> dict[str, Any]:
    """Only what this kind of gate reads; a column for a gate without slices is no mistake worth a message."""
    needs = GATES[row["gate"]].needs | {"gate", "mode"}
    gate = {name: value for name, value in row.items() if name in needs and value not in ("", None)}
    return gate | ({"min_rows": DEFAULT_MIN_ROWS} if "min_rows" in needs and "min_rows" not in gate else {})


def _with_gate(document: dict[str, Any], gates: Sequence[str]) -> list[dict[str, Any]]:
    unwanted = {"gate"} if gates == ("check",) else set()
    found = (rule for rule in document["gates"] if rule["gate"] in gates)
    return [{name: value for name, value in rule.items() if name not in unwanted} for rule in found]


def _initial_terms(document: PolicyDocument) -> dict[str, Any]:
    attestation = document.attestation
    once: dict[str, GateRule] = {rule.gate: rule for rule in document.gates if rule.gate in FACT_GATES + LIMIT_GATES}
    return {
        "wait_minutes": document.wait_minutes,
        "request_lifetime_days": document.request_lifetime_days,
        "approval_lifetime_days": document.approval_lifetime_days,
        "fallback": document.fallback.value,
        "attestation_days": attestation.period_days if attestation else None,
        "attestation_fallback": attestation.fallback.value if attestation else "WARN",
        **{f"mode_{name}": rule.mode.value for name, rule in once.items()},
        **{f"limit_{name}": rule.limit for name, rule in once.items()},
    }


class DecisionForm(forms.Form):
    """A second compliance officer's word on a proposal, and which document they saw."""

    comment = forms.CharField(max_length=2_000, required=False, widget=forms.Textarea({"rows": 2}))
    digest = forms.CharField(max_length=64, widget=forms.HiddenInput)


class EnvironmentForm(forms.Form):
    """An environment of the team's own to write a policy for."""

    environment = forms.CharField(max_length=63, validators=[slug_validator])
    tier = forms.ChoiceField(choices=[(tier.value, tier.value.capitalize()) for tier in Tier])


class RiskForm(forms.Form):
    """The questions about a model, and a higher tier than the answers give."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for question in QUESTIONS:
            self.fields[question.key] = forms.ChoiceField(
                label=question.text, choices=question.answers, widget=forms.RadioSelect
            )
        tiers = [("", "The tier that the answers give"), ("limited", "Limited"), ("high", "High")]
        self.fields["tier"] = forms.ChoiceField(
            label="Set it higher", choices=tiers, required=False, help_text="It can be set higher, never lower."
        )
        self.fields["override_reason"] = forms.CharField(
            label="Why higher", max_length=2_000, required=False, widget=forms.Textarea({"rows": 2})
        )

    @property
    def answers(self) -> dict[str, str]:
        """The answer to each question of a valid form."""
        return {question.key: self.cleaned_data[question.key] for question in QUESTIONS}

    def questions(self) -> list[forms.BoundField]:
        """The fields of the questions."""
        return [self[question.key] for question in QUESTIONS]


class CheckKeyForm(forms.Form):
    """An external check and how it signs."""

    name = forms.CharField(max_length=63, validators=[slug_validator], help_text="Policies name the check by it.")
    kind = forms.ChoiceField(label="It signs with", choices=CheckKeyKind.choices, widget=forms.RadioSelect)
    public_key = forms.CharField(
        max_length=64, required=False, help_text="For Ed25519: the 32 bytes of its public key in base64."
    )


class MemberField(forms.ModelMultipleChoiceField):  # type: ignore[type-arg] # at run time it takes no argument
    """Members by name and roles."""

    def label_from_instance(self, obj: Membership) -> str:
        """What stands beside the box."""
        return f"{obj.user.name} ({', '.join(obj.role_names).lower()})"


class GroupForm(forms.Form):
    """A review group and who is in it."""

    name = forms.CharField(max_length=63, validators=[slug_validator])
    members = MemberField(queryset=Membership.objects.none(), required=False, widget=forms.CheckboxSelectMultiple)

    def __init__(self, *args: Any, members: QuerySet[Membership], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["members"].queryset = members


class AttestationForm(forms.Form):
    """A signed word about a version in service."""

    deployment_id = forms.IntegerField(widget=forms.HiddenInput)
    statement = forms.CharField(
        label="What you looked at, and that the version is still fit for its use",
        max_length=2_000,
        widget=forms.Textarea({"rows": 3}),
    )


class AliasProtectionForm(forms.Form):
    """An alias to protect."""

    name = forms.CharField(label="Alias", max_length=63, validators=[slug_validator], help_text="e.g. champion")
