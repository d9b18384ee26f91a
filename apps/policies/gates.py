"""Gates: what a policy demands, held against frozen evidence. Pure functions, each answer a sentence with numbers.

A gate passes only if the evidence shows that it does; evidence that is missing or too thin is NOT_ENOUGH_DATA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from math import hypot
from typing import Any, Final

from apps.policies.documents import METRICS, GateRule, Mode, PolicyDocument, metric_name

Evidence = Mapping[str, Any]
_MAX_NAMED: Final = 3
"""Slices or alerts named in one sentence."""


class Outcome(StrEnum):
    """A gate's answer."""

    PASS = "PASS"  # noqa: S105 - no password
    FAIL = "FAIL"
    NOT_ENOUGH_DATA = "NOT_ENOUGH_DATA"


@dataclass(frozen=True, slots=True)
class GateResult:
    """A gate's answer: ``gate`` is the rule's key, ``title`` what it demands, ``sentence`` what was found."""

    gate: str
    outcome: Outcome
    sentence: str
    mode: Mode
    title: str = ""

    @property
    def prevents(self) -> bool:
        """Whether nothing can be approved while this is the answer."""
        return self.mode is Mode.PREVENT and self.outcome is not Outcome.PASS


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What an external system reported on the request, newest first in a list of them."""

    name: str
    is_success: bool
    sentence: str


Finding = tuple[Outcome, str]


@dataclass(frozen=True, slots=True)
class _Value:
    """A metric's value with its 95 % interval, and where it was measured."""

    value: float
    low: float | None
    high: float | None
    dataset: str
    place: tuple[str, str]

    @property
    def text(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


def evaluate(
    document: PolicyDocument, evidence: Evidence, checks: Sequence[CheckReport] = ()
) -> tuple[GateResult, ...]:
    """The answer of every gate of the policy, in its order. The same arguments always give the same answers.

    ``evidence`` is the frozen document of a promotion request; ``checks`` what external systems reported on it.
    """
    return tuple(_result(rule, evidence, checks) for rule in document.gates)


def preventing(results: Iterable[GateResult]) -> tuple[GateResult, ...]:
    """Those that stand in the way of an approval."""
    return tuple(result for result in results if result.prevents)


def _result(rule: GateRule, evidence: Evidence, checks: Sequence[CheckReport]) -> GateResult:
    outcome, sentence = _check(rule, checks) if rule.gate == "check" else _GATES[rule.gate](rule, evidence)
    return GateResult(rule.key, outcome, sentence, rule.mode, _begin(rule.sentence))


def _begin(text: str) -> str:
    """The text as a sentence begins."""
    return text[0].upper() + text[1:]


def _metric(rule: GateRule, evidence: Evidence) -> Finding:
    found = _newest(evidence["candidate"], rule)
    if found is None:
        return Outcome.NOT_ENOUGH_DATA, f"No finished evaluation{_where(rule)} has {metric_name(rule.metric)}."
    outcome, sentence = _against_bound(rule, found)
    return outcome, f"{sentence} On {found.dataset}."


def _against_bound(rule: GateRule, found: _Value) -> Finding:
    """Held on the end of the interval that is the worse one."""
    is_score = METRICS[rule.metric][1]
    limit = rule.limit or 0.0
    end = found.low if is_score else found.high
    name = _begin(metric_name(rule.metric))
    if end is None:
        return Outcome.NOT_ENOUGH_DATA, f"{name} is {found.text}, without an interval to hold against {limit:g}."
    which = "lower" if is_score else "upper"
    is_met = end >= limit if is_score else end <= limit
    relation = ("at least" if is_score else "at most") if is_met else ("under" if is_score else "over")
    sentence = f"{name} is {found.text}: the {which} bound {end:.4g} is {relation} {limit:g}."
    return (Outcome.PASS if is_met else Outcome.FAIL), sentence


def _champion(rule: GateRule, evidence: Evidence) -> Finding:
    if not evidence.get("champion"):
        return Outcome.PASS, "Nothing serves yet, so there is no champion to be worse than."
    compared = _paired(evidence, rule) or _unpaired(evidence, rule)
    if compared is None:
        sentence = f"Candidate and champion have no {metric_name(rule.metric)} on the same data{_where(rule)}."
        return Outcome.NOT_ENOUGH_DATA, sentence
    difference, low, high, how = compared
    if not METRICS[rule.metric][1]:
        difference, low, high = -difference, -high, -low
    margin = rule.limit or 0.0
    text = f"{abs(difference):.4g} {'better' if difference >= 0 else 'worse'} than the champion ({how}, 95 % interval "
    text += f"{low:+.4g} to {high:+.4g})"
    if low >= -margin:
        return Outcome.PASS, f"{_begin(metric_name(rule.metric))} is {text}: at most {margin:g} worse."
    if difference < -margin:
        return Outcome.FAIL, f"{_begin(metric_name(rule.metric))} is {text}: more than {margin:g} worse."
    sentence = (
        f"{_begin(metric_name(rule.metric))} is {text}: too few rows to show that it is at most {margin:g} worse."
    )
    return Outcome.NOT_ENOUGH_DATA, sentence


def _paired(evidence: Evidence, rule: GateRule) -> tuple[float, float, float, str] | None:
    """Candidate minus champion, row by row on the same rows, as the evaluations left it."""
    for one in evidence.get("comparisons") or ():
        is_wanted = one["metric"] == rule.metric and rule.dataset in ("", one["dataset"]["name"])
        if is_wanted and one["ci_low"] is not None:
            return one["difference"], one["ci_low"], one["ci_high"], f"paired on {one['row_count']:,} rows"
    return None


def _unpaired(evidence: Evidence, rule: GateRule) -> tuple[float, float, float, str] | None:
    """Candidate minus champion from their own intervals on the same data; wider than a paired one."""
    theirs = {one.place: one for one in _values(evidence["champion"], rule)}
    for ours in _values(evidence["candidate"], rule):
        other = theirs.get(ours.place)
        ends = other and _difference_ends(ours, other)
        if other is not None and ends:
            return ours.value - other.value, *ends, "from both intervals"
    return None


def _difference_ends(one: _Value, other: _Value) -> tuple[float, float] | None:
    """The 95 % interval of the difference of two estimates, from their own intervals, taken as independent.

    The method of variance estimates recovery (Zou & Donner 2008, Statistics in Medicine 27:1693).
    """
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return None
    difference = one.value - other.value
    return (
        difference - hypot(one.value - one.low, other.high - other.value),
        difference + hypot(one.high - one.value, other.value - other.low),
    )


def _slice(rule: GateRule, evidence: Evidence) -> Finding:
    slices, note = _slices(rule, evidence)
    if not slices:
        return Outcome.NOT_ENOUGH_DATA, note
    findings = {name: _against_bound(rule, value) for name, value in slices.items()}
    failed = {name: said for name, said in findings.items() if said[0] is not Outcome.PASS}
    if not failed:
        worst = min(slices, key=lambda name: _goodness(rule, slices[name]))
        sentence = f"All {len(slices)} hold; the lowest is “{worst}”: {slices[worst].text}.{note}"
        return Outcome.PASS, sentence
    outcome = Outcome.FAIL if any(said[0] is Outcome.FAIL for said in failed.values()) else Outcome.NOT_ENOUGH_DATA
    named = " ".join(f"“{name}”: {said[1]}" for name, said in list(failed.items())[:_MAX_NAMED])
    return outcome, f"{len(failed)} of {len(slices)} do not hold. {named}{note}"


def _goodness(rule: GateRule, value: _Value) -> float:
    return value.value if METRICS[rule.metric][1] else -value.value


def _fairness(rule: GateRule, evidence: Evidence) -> Finding:
    """The widest gap between two slices; it passes only if the intervals leave no room for a wider one."""
    slices, note = _slices(rule, evidence)
    if len(slices) < 2:
        return Outcome.NOT_ENOUGH_DATA, note or f"There is only one slice of {rule.column}, so nothing to compare."
    limit = rule.limit or 0.0
    pairs = [
        (one, other) if slices[one].value >= slices[other].value else (other, one)
        for one, other in combinations(slices, 2)
    ]
    top, bottom = max(pairs, key=lambda pair: slices[pair[0]].value - slices[pair[1]].value)
    gap = slices[top].value - slices[bottom].value
    between = f"between “{top}” {slices[top].text} and “{bottom}” {slices[bottom].text}"
    text = f"{_begin(metric_name(rule.metric))} differs by {gap:.4g}, {between}"
    if gap > limit:
        return Outcome.FAIL, f"{text}: more than {limit:g}.{note}"
    ends = [_difference_ends(slices[one], slices[other]) for one, other in pairs]
    widest = None if None in ends else max(end[1] for end in ends if end is not None)
    if widest is None or widest > limit:
        reach = "there are no intervals" if widest is None else f"it may be {widest:.4g}"
        return Outcome.NOT_ENOUGH_DATA, f"{text}: too few rows to show that it is at most {limit:g} ({reach}).{note}"
    return Outcome.PASS, f"{text}: at most {limit:g}, and at most {widest:.4g} with 95 % confidence.{note}"


def _slices(rule: GateRule, evidence: Evidence) -> tuple[dict[str, _Value], str]:
    """The newest run's slices that are large enough, by value, and a note on what is missing."""
    minimum = rule.min_rows or 0
    for run in evidence["candidate"]["evaluations"]:
        rows = [one for one in run.get("slices") or () if one["column"] == rule.column]
        if not rows or rule.dataset not in ("", run["dataset"]["name"]):
            continue
        large = [one for one in rows if one["row_count"] >= minimum]
        found = {
            one["value"]: _value_of(run, metric) for one in large if (metric := _named(one["metrics"], rule.metric))
        }
        left_out = len(rows) - len(found)
        small = f" {left_out} with under {minimum:,} rows or without the metric left out." if left_out else ""
        if not found:
            return {}, f"No slice of {rule.column} has {minimum:,} rows and {metric_name(rule.metric)}."
        return found, small
    return {}, f"No finished evaluation{_where(rule)} was sliced by {rule.column}."


def _latency(rule: GateRule, evidence: Evidence) -> Finding:
    test, step = _load(evidence)
    if test is None or step is None or step.get("p99_ms") is None:
        return _no_load_test("latency")
    return _at_most(rule, step["p99_ms"], f"Latency (p99) is {step['p99_ms']:.4g} ms at the knee on {_host(test)}")


def _throughput(rule: GateRule, evidence: Evidence) -> Finding:
    test, _ = _load(evidence)
    if test is None or test.get("capacity") is None:
        return _no_load_test("capacity")
    text = f"Capacity is {test['capacity']:,.4g} requests/s on {_host(test)}"
    is_met = test["capacity"] >= (rule.limit or 0.0)
    return _told(is_met, f"{text}: {'at least' if is_met else 'under'} {rule.limit:,.6g}.")


def _cost(rule: GateRule, evidence: Evidence) -> Finding:
    test, _ = _load(evidence)
    if test is None or test.get("cost_per_thousand") is None:
        return _no_load_test("cost per thousand predictions (it takes a price for the CPU hour)")
    return _at_most(rule, test["cost_per_thousand"], f"A thousand predictions cost {test['cost_per_thousand']:.4g}")


def _at_most(rule: GateRule, measured: float, text: str) -> Finding:
    is_met = measured <= (rule.limit or 0.0)
    return _told(is_met, f"{text}: {'at most' if is_met else 'over'} {rule.limit:g}.")


def _told(is_met: bool, sentence: str) -> Finding:
    return (Outcome.PASS if is_met else Outcome.FAIL), sentence


def _load(evidence: Evidence) -> tuple[Evidence | None, Evidence | None]:
    tests = evidence["candidate"].get("load_tests") or ()
    return (tests[0], tests[0].get("knee")) if tests else (None, None)


def _host(test: Evidence) -> str:
    host = test.get("host") or {}
    return str(host.get("name") or "the worker’s host") if isinstance(host, Mapping) else str(host)


def _no_load_test(what: str) -> Finding:
    return Outcome.NOT_ENOUGH_DATA, f"No finished load test of the candidate has its {what}."


def _drift(rule: GateRule, evidence: Evidence) -> Finding:
    for run in evidence["candidate"]["evaluations"]:
        drift = run.get("drift")
        if not drift or not drift["columns"]:
            continue
        worst = max(drift["columns"], key=lambda one: float(one["psi"]))
        text = f"The largest of {len(drift['columns'])} PSI is {worst['psi']:.3g} ({worst['column']}), "
        text += f"{run['dataset']['name']} against {drift['reference']['name']}"
        return _at_most(rule, worst["psi"], text)
    return Outcome.NOT_ENOUGH_DATA, "No finished evaluation was held against reference data."


def _alerts(rule: GateRule, evidence: Evidence) -> Finding:
    alerts = evidence.get("alerts")
    if alerts is None:
        return Outcome.NOT_ENOUGH_DATA, "The evidence does not say whether an alert is firing."
    firing = [str(one["name"]) for one in alerts["firing"]]
    if not firing:
        return Outcome.PASS, "No alert was firing when the evidence was frozen."
    named = ", ".join(firing[:_MAX_NAMED])
    return Outcome.FAIL, f"{len(firing)} alert{'s were' if len(firing) > 1 else ' was'} firing: {named}."


def _model_card(rule: GateRule, evidence: Evidence) -> Finding:
    candidate = evidence["candidate"]
    if "model_card" not in candidate:
        return Outcome.NOT_ENOUGH_DATA, "The evidence does not say whether there is a model card."
    card = candidate["model_card"]
    if not card:
        return Outcome.FAIL, "There is no model card."
    if card["is_complete"]:
        return Outcome.PASS, f"Version {card['number']} of the model card is complete."
    lacking = card.get("missing") or []
    return Outcome.FAIL, f"The model card lacks {len(lacking)} sections: {', '.join(lacking[:8])}."


def _artifact_signed(rule: GateRule, evidence: Evidence) -> Finding:
    candidate = evidence["candidate"]
    if "artifact_signature" not in candidate:
        return Outcome.NOT_ENOUGH_DATA, "The evidence does not say whether the artifact is signed."
    signature = candidate["artifact_signature"]
    if not signature:
        return Outcome.FAIL, "The artifact has no signature."
    if not signature["is_verified"]:
        return (
            Outcome.FAIL,
            f"The artifact’s signature by {signature.get('signer') or 'an unknown key'} does not verify.",
        )
    return Outcome.PASS, f"The artifact’s signature by {signature['signer']} verifies."


def _lineage(rule: GateRule, evidence: Evidence) -> Finding:
    datasets = evidence["candidate"].get("training_data") or []
    if not datasets:
        return Outcome.FAIL, "The version does not say which data it was trained on."
    named = ", ".join(f"{one['name']} {one['sha256'][:8]}…" for one in datasets[:_MAX_NAMED])
    return Outcome.PASS, f"Trained on {len(datasets)} recorded dataset{'s' if len(datasets) > 1 else ''}: {named}."


def _risk_assessed(rule: GateRule, evidence: Evidence) -> Finding:
    risk = evidence.get("risk")
    if not risk or not risk["is_assessed"]:
        return Outcome.FAIL, "The model’s risk has not been assessed."
    return Outcome.PASS, f"Assessed as {risk['tier']} risk (assessment {risk['number']})."


def _check(rule: GateRule, checks: Sequence[CheckReport]) -> Finding:
    newest = next((one for one in checks if one.name == rule.check), None)
    if newest is None:
        return Outcome.NOT_ENOUGH_DATA, f"“{rule.check}” has not reported on this request yet."
    return _told(newest.is_success, newest.sentence)


def _where(rule: GateRule) -> str:
    return f" on {rule.dataset}" if rule.dataset else ""


def _newest(side: Evidence, rule: GateRule) -> _Value | None:
    return next(iter(_values(side, rule)), None)


def _values(side: Evidence, rule: GateRule) -> Iterable[_Value]:
    """The values of the rule's metric on the rule's dataset, newest run first."""
    for run in side["evaluations"]:
        metric = _named(run["metrics"], rule.metric)
        if metric is not None and rule.dataset in ("", run["dataset"]["name"]):
            yield _value_of(run, metric)


def _named(metrics: Iterable[Evidence], name: str) -> Evidence | None:
    return next((one for one in metrics if one["name"] == name and one["value"] is not None), None)


def _value_of(run: Evidence, metric: Evidence) -> _Value:
    dataset = run["dataset"]
    place = (str(dataset["sha256"]), str(run["target"]))
    return _Value(
        metric["value"], metric.get("ci_low"), metric.get("ci_high"), f"{dataset['name']} v{dataset['number']}", place
    )


_GATES: Final[dict[str, Callable[[GateRule, Evidence], Finding]]] = {
    "metric": _metric,
    "champion": _champion,
    "slice": _slice,
    "fairness": _fairness,
    "latency": _latency,
    "throughput": _throughput,
    "cost": _cost,
    "drift": _drift,
    "alerts": _alerts,
    "model_card": _model_card,
    "artifact_signed": _artifact_signed,
    "lineage": _lineage,
    "risk_assessed": _risk_assessed,
}
