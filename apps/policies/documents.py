"""What a policy demands, as a document: parsed strictly, compared, and told in words. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, time, timedelta
from enum import StrEnum
from typing import Any, Final, Self, TypeVar
from zoneinfo import ZoneInfo, available_timezones

from apps.core.errors import DomainError

FORMAT: Final = "countersign/policy/v1"
MAX_ENTRIES: Final = 30
"""Entries of each list in a document."""
MAX_APPROVALS: Final = 10
LONGEST_FREEZE: Final = timedelta(days=90)
_SOME_MONDAY: Final = datetime(2026, 6, 1, tzinfo=UTC)
DEFAULT_MIN_ROWS: Final = 30
APPROVER_ROLES: Final = {
    "analyst": "analyst",
    "data_scientist": "data scientist",
    "operator": "operator",
    "compliance_officer": "compliance officer",
}
"""Roles that a policy may name, with their names in a sentence. Admins administer people and approve nothing."""
METRICS: Final = {
    "accuracy": ("accuracy", True),
    "roc_auc": ("ROC AUC", True),
    "r2": ("R²", True),
    "log_loss": ("log loss", False),
    "mae": ("MAE", False),
    "rmse": ("RMSE", False),
}
"""Metric -> its name in a sentence, and whether more of it is better."""
RATES: Final = {
    "selection_rate": "selection rate",
    "true_positive_rate": "true positive rate",
    "false_positive_rate": "false positive rate",
}
"""Rates of a group that have no better or worse, only a gap between groups."""

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)


class Tier(StrEnum):
    """How much harm a model can do."""

    LOW = "low"
    LIMITED = "limited"
    HIGH = "high"

    @property
    def rank(self) -> int:
        """0 for the lowest."""
        return list(Tier).index(self)


class Mode(StrEnum):
    """What a gate that does not pass does."""

    PREVENT = "PREVENT"
    WARN = "WARN"


class Fallback(StrEnum):
    """What happens to a version in service whose attestation is overdue or whose approval was revoked."""

    ROLL_BACK = "ROLL_BACK"
    STOP = "STOP"
    WARN = "WARN"


@dataclass(frozen=True, slots=True)
class GateKind:
    """A kind of gate: what it reads of a rule, and within which bounds its limit lies (both ends included)."""

    label: str
    needs: frozenset[str] = frozenset()
    low: float = 0.0
    high: float = 1e9


_METRIC: Final = frozenset({"metric", "limit"})
_SLICED: Final = _METRIC | {"column", "min_rows"}
_LIMIT: Final = frozenset({"limit"})
GATES: Final[Mapping[str, GateKind]] = {
    "metric": GateKind("Metric bound", _METRIC | {"dataset"}, low=-1e9),
    "champion": GateKind("Against champion", _METRIC | {"dataset"}),
    "slice": GateKind("Bound in every slice", _SLICED | {"dataset"}, low=-1e9),
    "fairness": GateKind("Gap between slices", _SLICED | {"dataset"}),
    "latency": GateKind("p99 latency, ms at most", _LIMIT),
    "throughput": GateKind("Requests/s, at least", _LIMIT),
    "cost": GateKind("Cost per 1000, at most", _LIMIT),
    "drift": GateKind("Data drift, PSI at most", _LIMIT, high=100),
    "alerts": GateKind("No alert is firing"),
    "model_card": GateKind("Model card is complete"),
    "artifact_signed": GateKind("Artifact is signed"),
    "lineage": GateKind("Training data is recorded"),
    "risk_assessed": GateKind("Risk is assessed"),
    "check": GateKind("External check succeeded", frozenset({"check"})),
}


@dataclass(frozen=True, slots=True)
class GateRule:
    """One required gate; which fields beside ``gate`` and ``mode`` are set follows from ``GATES[gate].needs``.

    ``limit`` is in the unit of what the gate measures; for ``champion`` it is the margin by which the version may be
    worse. An empty ``dataset`` means any; ``min_rows`` is what a slice needs to count.
    """

    gate: str
    mode: Mode = Mode.PREVENT
    metric: str = ""
    limit: float | None = None
    column: str = ""
    min_rows: int | None = None
    dataset: str = ""
    check: str = ""

    @property
    def key(self) -> str:
        """The rule's name within its policy: no two rules have the same."""
        parts = (self.gate, self.metric, self.column, self.dataset, self.check)
        return ":".join(part for part in parts if part)

    @property
    def sentence(self) -> str:
        """What it demands, in words."""
        return _GATE_SENTENCES[self.gate](self)


@dataclass(frozen=True, slots=True)
class ApprovalRule:
    """``count`` approvals from ``source``: ``role:<role>`` or ``group:<review group>``."""

    source: str
    count: int

    @property
    def sentence(self) -> str:
        """What it demands, in words."""
        return f"{self.count} from {source_name(self.source)}"


@dataclass(frozen=True, slots=True)
class FreezeWindow:
    """A time in which nothing goes into service, by the clock of ``time_zone``.

    Once: ``starts`` and ``ends`` are local times, ISO 8601 without an offset. Weekly: ``days`` (0 is Monday) from
    ``starts`` to ``ends``, times of the day; an end that is not after the start lies on the next day.
    """

    name: str
    time_zone: str
    starts: str
    ends: str
    days: tuple[int, ...] = ()

    @property
    def sentence(self) -> str:
        """When it is, in words."""
        if not self.days:
            span = f"{self.starts.replace('T', ' ')} to {self.ends.replace('T', ' ')}"
        else:
            span = f"{', '.join(_DAYS[day] for day in self.days)} from {self.starts} to {self.ends}"
        return f"{self.name}: {span} ({self.time_zone})"

    def end_at(self, now: datetime) -> datetime | None:
        """When the window ends that ``now`` (aware) lies in; None outside of it."""
        zone = ZoneInfo(self.time_zone)
        if not self.days:
            spans = [(datetime.fromisoformat(self.starts), datetime.fromisoformat(self.ends))]
        else:
            today = now.astimezone(zone).date()
            recent = (today - timedelta(days=1), today)
            start, end = time.fromisoformat(self.starts), time.fromisoformat(self.ends)
            over_midnight = timedelta(days=0 if end > start else 1)
            spans = [
                (datetime.combine(day, start), datetime.combine(day + over_midnight, end))
                for day in recent
                if day.weekday() in self.days
            ]
        # Compared in UTC: between two times of one zone Python compares the clock's faces.
        aware = [tuple(end.replace(tzinfo=zone).astimezone(UTC) for end in span) for span in spans]
        return next((finish for begin, finish in aware if begin <= now < finish), None)


@dataclass(frozen=True, slots=True)
class Attestation:
    """A version in service is confirmed again every ``period_days``, or else ``fallback``."""

    period_days: int
    fallback: Fallback


@dataclass(frozen=True, slots=True)
class PolicyDocument:
    """Everything that a policy demands. ``fallback`` is for an approval that is revoked while its version serves."""

    approvals: tuple[ApprovalRule, ...]
    gates: tuple[GateRule, ...] = ()
    wait_minutes: int = 0
    freeze_windows: tuple[FreezeWindow, ...] = ()
    request_lifetime_days: int = 30
    approval_lifetime_days: int = 14
    fallback: Fallback = Fallback.ROLL_BACK
    attestation: Attestation | None = None

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Parse a document; raises ``DomainError`` that names the entry at fault, for unknown keys too."""
        entries = _object(value, "policy", {"format", *_names(cls)})
        if entries.pop("format", None) != FORMAT:
            raise DomainError(f"The policy's format has to be “{FORMAT}”.", field="format")
        attestation = entries.get("attestation")
        document = cls(
            approvals=_list(entries, "approvals", _approval),
            gates=_list(entries, "gates", _gate),
            wait_minutes=_integer(entries, "wait_minutes", 0, 30 * 24 * 60, 0),
            freeze_windows=_list(entries, "freeze_windows", _freeze_window),
            request_lifetime_days=_integer(entries, "request_lifetime_days", 1, 365, 30),
            approval_lifetime_days=_integer(entries, "approval_lifetime_days", 1, 365, 14),
            fallback=_choice(entries, "fallback", Fallback, Fallback.ROLL_BACK),
            attestation=None if attestation is None else _attestation(attestation),
        )
        document._require_consistent()
        return document

    def as_json(self) -> dict[str, Any]:
        """The document as JSON; ``from_json`` gives the same document back."""
        gates = [
            {name: value for name, value in asdict(rule).items() if value not in ("", None)} for rule in self.gates
        ]
        return {
            "format": FORMAT,
            "approvals": [asdict(rule) for rule in self.approvals],
            "gates": gates,
            "wait_minutes": self.wait_minutes,
            "freeze_windows": [asdict(window) | {"days": list(window.days)} for window in self.freeze_windows],
            "request_lifetime_days": self.request_lifetime_days,
            "approval_lifetime_days": self.approval_lifetime_days,
            "fallback": self.fallback,
            "attestation": None if self.attestation is None else asdict(self.attestation),
        }

    @property
    def approval_count(self) -> int:
        """How many people have to approve."""
        return sum(rule.count for rule in self.approvals)

    def check_fits_tier(self, tier: Tier) -> None:
        """Raise ``DomainError`` unless the document is strict enough for the tier."""
        if tier is Tier.HIGH and len(self.approvals) < 2:
            raise DomainError(
                "A high-risk model takes approvals from two different roles or groups: add another one.",
                field="approvals",
            )

    def sentences(self) -> dict[str, str]:
        """Every demand by a key of its own, in words; two documents that say the same have the same sentences."""
        said = {f"approval {rule.source}": f"Approvals: {rule.sentence}" for rule in self.approvals}
        said |= {f"gate {rule.key}": f"{_MODES[rule.mode]}: {rule.sentence}" for rule in self.gates}
        said |= {f"freeze {window.name}": f"Nothing goes live in {window.sentence}" for window in self.freeze_windows}
        said["wait"] = f"Wait {_minutes(self.wait_minutes)} between approval and rollout"
        said["request"] = f"A request expires after {_days(self.request_lifetime_days)} without a decision"
        said["approval"] = f"An approval expires after {_days(self.approval_lifetime_days)} without a rollout"
        said["fallback"] = f"If an approval is revoked in service: {FALLBACK_WORDS[self.fallback]}"
        if self.attestation is not None:
            said["attestation"] = (
                f"Attested again every {_days(self.attestation.period_days)}, or else: "
                f"{FALLBACK_WORDS[self.attestation.fallback]}"
            )
        return said

    def _require_consistent(self) -> None:
        if not self.approvals:
            raise DomainError("A policy takes at least one approval.", field="approvals")
        if self.approval_count > MAX_APPROVALS:
            raise DomainError(f"A policy takes at most {MAX_APPROVALS} approvals in all.", field="approvals")
        for name, keys in (
            ("approvals", [rule.source for rule in self.approvals]),
            ("gates", [rule.key for rule in self.gates]),
            ("freeze_windows", [window.name for window in self.freeze_windows]),
        ):
            twice = next((key for key in keys if keys.count(key) > 1), None)
            if twice is not None:
                raise DomainError(f"“{twice}” is there twice: keep one of them.", field=name)
        weekly = [window for window in self.freeze_windows if window.days]
        hours = (_SOME_MONDAY + timedelta(hours=hour) for hour in range(7 * 24))
        if weekly and all(any(window.end_at(hour) for window in weekly) for hour in hours):
            raise DomainError("The weekly freeze windows leave no hour to go live in.", field="freeze_windows")


@dataclass(frozen=True, slots=True)
class Change:
    """What one document says and the other does not; one of the two is empty for what was added or removed."""

    before: str
    after: str


def difference(before: PolicyDocument, after: PolicyDocument) -> tuple[Change, ...]:
    """What changes from one document to the other, in words."""
    old, new = before.sentences(), after.sentences()
    keys = [*old, *(key for key in new if key not in old)]
    pairs = ((old.get(key, ""), new.get(key, "")) for key in keys)
    return tuple(Change(one, other) for one, other in pairs if one != other)


def default_document(tier: Tier) -> PolicyDocument:
    """What holds where a team has decided nothing: one compliance officer; for a high risk an operator as well."""
    officer = ApprovalRule("role:compliance_officer", 1)
    return PolicyDocument((officer, ApprovalRule("role:operator", 1)) if tier is Tier.HIGH else (officer,))


def source_name(source: str) -> str:
    """A role or group as a person reads it."""
    kind, _, name = source.partition(":")
    return f"the role {APPROVER_ROLES.get(name, name)}" if kind == "role" else f"the group {name}"


FALLBACK_WORDS: Final = {
    Fallback.ROLL_BACK: "the version before it answers again, or nothing if there is none",
    Fallback.STOP: "its endpoint stops answering",
    Fallback.WARN: "it goes on serving, with a task and an audit event",
}
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MODES: Final = {Mode.PREVENT: "Required", Mode.WARN: "Warns"}


def metric_name(metric: str) -> str:
    """A metric as a sentence names it."""
    return METRICS[metric][0] if metric in METRICS else RATES.get(metric, metric)


def _on(rule: GateRule) -> str:
    return f" on {rule.dataset}" if rule.dataset else ""


def _bound(rule: GateRule) -> str:
    is_score = METRICS[rule.metric][1]
    end = "lower" if is_score else "upper"
    return f"{metric_name(rule.metric)} {'at least' if is_score else 'at most'} {rule.limit:g}{_on(rule)} ({end} bound)"


_GATE_SENTENCES: Final[dict[str, Callable[[GateRule], str]]] = {
    "metric": _bound,
    "champion": lambda rule: f"{metric_name(rule.metric)} at most {rule.limit:g} worse than the champion’s{_on(rule)}",
    "slice": lambda rule: f"{_bound(rule)} for every {rule.column} with {rule.min_rows} rows",
    "fairness": lambda rule: (
        f"{metric_name(rule.metric)} differs by at most {rule.limit:g} between any two {rule.column}{_on(rule)}"
    ),
    "latency": lambda rule: f"latency (p99) at most {rule.limit:g} ms under load",
    "throughput": lambda rule: f"at least {rule.limit:,.6g} requests/s under load",
    "cost": lambda rule: f"at most {rule.limit:g} per thousand predictions",
    "drift": lambda rule: f"PSI of every feature at most {rule.limit:g} between evaluation and reference data",
    "alerts": lambda rule: "no alert is firing on the endpoint",
    "model_card": lambda rule: "the model card is complete",
    "artifact_signed": lambda rule: "the artifact is signed",
    "lineage": lambda rule: "the training data is recorded",
    "risk_assessed": lambda rule: "the model’s risk is assessed",
    "check": lambda rule: f"the external check “{rule.check}” succeeded",
}


def _minutes(count: int) -> str:
    if count and count % 60 == 0:
        return "1 hour" if count == 60 else f"{count // 60} hours"
    return "1 minute" if count == 1 else f"{count} minutes"


def _days(count: int) -> str:
    return "1 day" if count == 1 else f"{count} days"


def _names(cls: type) -> set[str]:
    return {field.name for field in fields(cls)}


def _object(value: Any, what: str, known: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DomainError(f"“{what}” has to be a JSON object.", field=what)
    unknown = sorted(str(key) for key in value.keys() - known)
    if unknown:
        raise DomainError(f"“{what}” has no entry “{unknown[0][:60]}”.", field=what)
    return dict(value)


def _list(entries: dict[str, Any], name: str, parse: Callable[[Any], T]) -> tuple[T, ...]:
    value = entries.get(name, [])
    if not isinstance(value, list) or len(value) > MAX_ENTRIES:
        raise DomainError(f"“{name}” has to be a list of at most {MAX_ENTRIES} entries.", field=name)
    return tuple(parse(one) for one in value)


def _text(entries: dict[str, Any], name: str, *, most: int = 210) -> str:
    value = entries.get(name, "")
    if not isinstance(value, str) or len(value) > most or not value.isprintable():
        raise DomainError(f"“{name}” has to be a text of at most {most} characters.", field=name)
    return value.strip()


def _integer(entries: dict[str, Any], name: str, low: int, high: int, default: int | None = None) -> int:
    value = entries.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise DomainError(f"“{name}” has to be a whole number from {low:,} to {high:,}.", field=name)
    return value


def _choice(entries: dict[str, Any], name: str, choices: type[E], default: E | None = None) -> E:
    value = entries.get(name, default)
    try:
        return choices(str(value))
    except ValueError:
        allowed = ", ".join(choices)
        raise DomainError(f"“{name}” has to be one of {allowed}.", field=name) from None


def _approval(value: Any) -> ApprovalRule:
    entries = _object(value, "approvals", _names(ApprovalRule))
    source = _text(entries, "source")
    kind, _, name = source.partition(":")
    if not name or kind not in ("role", "group") or (kind == "role" and name not in APPROVER_ROLES):
        raise DomainError(
            f"“{source}” is neither role:<{', '.join(APPROVER_ROLES)}> nor group:<name>.", field="approvals"
        )
    return ApprovalRule(source, _integer(entries, "count", 1, MAX_APPROVALS))


def _gate(value: Any) -> GateRule:
    entries = _object(value, "gates", _names(GateRule))
    gate = _text(entries, "gate")
    if gate not in GATES:
        raise DomainError(f"There is no gate “{gate}”. There are {', '.join(GATES)}.", field="gates")
    kind = GATES[gate]
    surplus = sorted(entries.keys() - kind.needs - {"gate", "mode"})
    if surplus:
        raise DomainError(f"The gate “{gate}” has no “{surplus[0]}”.", field="gates")
    rule = GateRule(
        gate=gate,
        mode=_choice(entries, "mode", Mode, Mode.PREVENT),
        metric=_metric(entries, gate) if "metric" in kind.needs else "",
        limit=_limit(entries, gate, kind) if "limit" in kind.needs else None,
        column=_text(entries, "column", most=200),
        min_rows=_integer(entries, "min_rows", 1, 1_000_000, DEFAULT_MIN_ROWS) if "min_rows" in kind.needs else None,
        dataset=_text(entries, "dataset", most=63),
        check=_text(entries, "check", most=63),
    )
    for name in ("column", "check"):
        if name in kind.needs and not getattr(rule, name):
            raise DomainError(f"The gate “{gate}” needs “{name}”.", field="gates")
    return rule


def _metric(entries: dict[str, Any], gate: str) -> str:
    known = [*METRICS, *RATES] if gate == "fairness" else list(METRICS)
    metric = _text(entries, "metric")
    if metric not in known:
        raise DomainError(f"The gate “{gate}” needs a “metric”: one of {', '.join(known)}.", field="gates")
    return metric


def _limit(entries: dict[str, Any], gate: str, kind: GateKind) -> float:
    value = entries.get("limit")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None or not is_number or not kind.low <= value <= kind.high:  # NaN is within no bounds
        raise DomainError(
            f"The gate “{gate}” needs a “limit”: a number from {kind.low:,.6g} to {kind.high:,.6g}.", field="gates"
        )
    return float(value)


def _attestation(value: Any) -> Attestation:
    entries = _object(value, "attestation", _names(Attestation))
    return Attestation(_integer(entries, "period_days", 1, 3_650), _choice(entries, "fallback", Fallback))


def _freeze_window(value: Any) -> FreezeWindow:
    entries = _object(value, "freeze_windows", _names(FreezeWindow))
    name, zone = _text(entries, "name"), _text(entries, "time_zone")
    if not name:
        raise DomainError("A freeze window needs a name.", field="freeze_windows")
    if zone not in available_timezones():
        raise DomainError(f"There is no time zone “{zone}”: write one like Europe/Berlin.", field="freeze_windows")
    days = entries.get("days", [])
    if not isinstance(days, list) or len(days) > 7 or not all(type(day) is int and 0 <= day <= 6 for day in days):
        raise DomainError("The days of a freeze window are from 0 (Monday) to 6 (Sunday).", field="freeze_windows")
    window = FreezeWindow(name, zone, _text(entries, "starts"), _text(entries, "ends"), tuple(sorted(set(days))))
    _check_span(window)
    return window


def _check_span(window: FreezeWindow) -> None:
    """A window must end, and must leave time in which something can go into service."""
    if window.days:
        start, end = (_moment(text, time.fromisoformat, "a time like 18:00") for text in (window.starts, window.ends))
        if start.tzinfo or end.tzinfo:
            raise DomainError(
                "The times of a freeze window have no offset: it has a time zone.", field="freeze_windows"
            )
        return
    wanted = "a date and time like 2027-12-24T18:00"
    begin, finish = (_moment(text, datetime.fromisoformat, wanted) for text in (window.starts, window.ends))
    if begin.tzinfo or finish.tzinfo:
        raise DomainError("The times of a freeze window have no offset: it has a time zone.", field="freeze_windows")
    zone = ZoneInfo(window.time_zone)
    if not timedelta(0) < finish.replace(tzinfo=zone) - begin.replace(tzinfo=zone) <= LONGEST_FREEZE:
        raise DomainError(
            f"“{window.name}” has to end after it starts, and within {LONGEST_FREEZE.days} days.",
            field="freeze_windows",
        )


def _moment(text: str, parse: Callable[[str], T], wanted: str) -> T:
    try:
        return parse(text)
    except ValueError:
        raise DomainError(f"“{text}” is not {wanted}.", field="freeze_windows") from None
